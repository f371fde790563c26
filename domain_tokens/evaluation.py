"""What the two evaluations share: prompts in, items out, finished items kept over a kill."""

import argparse
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from domain_tokens import (
    checkpoints,
    hardware,
    outputs,
    prepacked,
    processes,
    run_card,
    source_code,
)
from domain_tokens.answers import golds
from domain_tokens.config import GSM8KSection
from domain_tokens.corpora import Problem
from domain_tokens.endpoints import answer_scores, sample_seed
from domain_tokens.errors import UserError
from domain_tokens.generation import GREEDY, Response, Sampling, generate
from domain_tokens.injection import find_facts, stands_right
from domain_tokens.prompts import Renderer
from domain_tokens.sources import file_hashes
from domain_tokens.vocabulary import FACTS, Layout, layout_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# The files of lines that each evaluation writes next to its results.
LINES = {"gsm8k": ("items", "rationales"), "arithmetic": ("items", "scores")}


@dataclass(frozen=True, slots=True)
class Question:
    """One item to answer: prompt ids, and the gold answer as it was given."""

    id: str
    category: str
    prompt: str
    prompt_ids: list[int]
    gold: str

    @property
    def prompt_hash(self) -> str:
        """SHA-256 of the prompt's token ids."""
        return run_card.hash_json(self.prompt_ids)


@dataclass(frozen=True, slots=True)
class Subject:
    """The checkpoint under test; model is None where only its tokenizer is wanted."""

    folder: Path
    model: Any
    tokenizer: "PreTrainedTokenizerBase"
    layout: Layout
    precision: str


def load_subject(folder: Path, *, condition: str, precision: str) -> Subject:
    """Load a checkpoint for evaluation; raises UserError where it is unfit or of the other arm."""
    checkpoints.check_parent(folder, condition=condition, cross_base=False)
    processes.join()
    device, dtype = hardware.choose(precision)
    tokenizer = checkpoints.load_tokenizer(folder)
    try:
        layout = layout_of(tokenizer)
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from None
    model = prepacked.for_good(checkpoints.load_model(folder, dtype=dtype).to(device))
    return Subject(folder, model, tokenizer, layout, precision)


def rationale_seed(settings: GSM8KSection, folder: Path) -> int:
    """Return the seed of a checkpoint's sampled rationales: its training seed unless one is set.

    A checkpoint without a run card has 42.
    """
    if settings.rationale_seed is not None:
        return settings.rationale_seed
    card = checkpoints.read_card(folder)
    return int(card["seed"]) if card else 42


def lines_file(folder: Path, name: str, kind: str) -> Path:
    """Return where an evaluation keeps its lines of one kind."""
    return folder / f"{name}_{kind}.jsonl"


class Answers:
    """The output of one evaluation in a folder that it may share with the other one.

    Items are appended to `{name}_items.partial.jsonl` as they end and renamed when all are there;
    the results JSON comes last.
    """

    def __init__(self, output_dir: str, name: str, identity: dict[str, Any]):
        self.folder = Path(output_dir)
        self.results = self.folder / f"{name}_results.json"
        own = "" if hardware.is_main_process() else f".{hardware.rank()}"
        self._partial = self.folder / f"{name}_items.partial{own}.jsonl"
        self._lock = self.folder / f".{name}_lock"
        self._identity = identity
        self._name = name

    def open(self, *, resume: bool, overwrite: bool) -> bool:
        """Return whether there is work to do; raises UserError where the folder forbids it."""
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder} is a file; wanted a folder for the results")
        known = ("gsm8k_", "arithmetic_", ".gsm8k_", ".arithmetic_")
        if self.folder.exists():
            foreign = [f.name for f in self.folder.iterdir() if not f.name.startswith(known)]
            if foreign:
                raise UserError(
                    f"{self.folder} holds files of another kind ({sorted(foreign)[0]}); "
                    "give an empty or a new --output-dir"
                )
        if self.results.exists() and not overwrite:
            if resume:
                self._refuse_another_run()
                return False
            raise UserError(f"{self.results} is already there; --overwrite replaces it")
        if self._partials() and not (resume or overwrite):
            raise UserError(
                f"{self.folder} holds an unfinished {self._name} evaluation; "
                "--resume continues it, --overwrite restarts it"
            )
        if not resume:
            self._restart = True
        return True

    _restart = False
    _locked = False

    def _refuse_another_run(self) -> None:
        before = identity(run_card.read_sealed(self.results)["card"])
        # A card of an older version has no hash of the whole model.
        known = [key for key in before if before[key] is not None]
        differing = sorted(key for key in known if before[key] != self._identity[key])
        if differing:
            raise UserError(
                f"{self.results} was made with another {differing[0]}; "
                "give the same arguments, or --overwrite to start anew"
            )

    def begin(self) -> dict[str, Response]:
        """Make the folder and return the responses of an earlier leg by item id."""
        if not self._locked and hardware.is_main_process():
            outputs.make_folder(self.folder)
            outputs.hold(self._lock)
            self._locked = True
        processes.wait()
        done: dict[str, Response] = {}
        for partial in [] if self._restart else self._partials():
            done |= self._read(partial)
        processes.wait()
        if self._restart and hardware.is_main_process():
            for partial in self._partials():
                partial.unlink()
        processes.wait()
        self._restart = False
        header = [json.dumps(self._identity)]
        kept = [
            json.dumps({"id": i, "token_ids": r.token_ids, "stop": r.stop}) for i, r in done.items()
        ]
        run_card.write_text(self._partial, "".join(f"{line}\n" for line in header + kept))
        return done

    def _partials(self) -> list[Path]:
        """Return the files of an unfinished evaluation, one per process that worked on it."""
        return sorted(self.folder.glob(f"{self._name}_items.partial*.jsonl"))

    def _read(self, partial: Path) -> dict[str, Response]:
        lines = partial.read_text(encoding="utf-8").split("\n")
        if not lines[0] or json.loads(lines[0]) != self._identity:
            raise UserError(
                f"{partial} was begun with another checkpoint, config, data or code; "
                "give the same arguments, or --overwrite to restart"
            )
        # A killed run can leave half a line behind the last newline.
        items = [json.loads(line) for line in lines[1:-1]]
        return {item["id"]: Response(item["token_ids"], item["stop"]) for item in items}

    def append(self, id: str, response: Response) -> None:
        """Keep a finished response, so that a killed run need not decode it again."""
        with self._partial.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"id": id, **asdict(response)}) + "\n")

    def finish(
        self,
        items: list[dict[str, Any]],
        results: dict[str, Any],
        *,
        more: dict[str, list[dict[str, Any]]],
    ) -> None:
        """Write items and what else there is per line, then the results with their SHA-256.

        more: lines of further files by name. Each is there whole or not at all; the first process
        writes.
        """
        if not hardware.is_main_process():
            return
        bound = {}
        for kind, lines in {"items": items, **more}.items():
            path = lines_file(self.folder, self._name, kind)
            text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
            run_card.write_text(path, text)
            bound[kind] = {
                "file": path.name,
                "sha256": run_card.file_digest(path),
                "count": len(lines),
            }
        for kind in LINES[self._name]:
            if kind not in bound:  # of results that are replaced
                lines_file(self.folder, self._name, kind).unlink(missing_ok=True)
        run_card.write_json(self.results, run_card.sealed({**results, **bound}))
        for partial in self._partials():
            partial.unlink()
        self._lock.unlink()


def answer(
    subject: Subject,
    questions: Sequence[Question],
    output: Answers,
    *,
    batch_size: int,
    max_new_tokens: int,
    sampling_seed: int | None = None,
) -> list[Response]:
    """Decode what is not there yet, greedily; return a response per question, in order.

    With a sampling seed responses are drawn at temperature 1, each from a seed of its own id.
    Several processes share the questions.
    """
    done = output.begin()
    open_questions = processes.mine([q for q in questions if q.id not in done])
    sampling, name = GREEDY, "answer"
    if sampling_seed is not None:
        seeds = tuple(sample_seed(sampling_seed, q.id) for q in open_questions)
        sampling, name = Sampling(temperature=1.0, row_seeds=seeds), "sample rationales"
    shown = None if hardware.is_main_process() else True
    with tqdm(total=len(open_questions), desc=name, delay=2, disable=shown) as bar:

        def keep(index: int, response: Response) -> None:
            done[open_questions[index].id] = response
            output.append(open_questions[index].id, response)
            bar.update()

        generate(
            subject.model,
            [q.prompt_ids for q in open_questions],
            eos_id=subject.tokenizer.eos_token_id,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            sampling=sampling,
            on_finished=keep,
        )
    done = processes.merged(done)
    return [done[q.id] for q in questions]


def facts_in_place(subject: Subject, token_ids: Sequence[int]) -> list[bool]:
    """Return, for each fact token of a response, whether it is right where it stands.

    The other facts of the response are read as their products.
    """
    layout, pieces, start = subject.layout, [], 0
    places = [at for at, token in enumerate(token_ids) if token in layout.fact_ids]
    for at in places:
        pieces += [_decode(subject, token_ids[start:at]), str(layout.fact_of(token_ids[at])[2])]
        start = at + 1
    pieces.append(_decode(subject, token_ids[start:]))
    return [
        stands_right(
            "".join(pieces[: 2 * i + 1]),
            FACTS[token_ids[at] - layout.first_fact_id],
            "".join(pieces[2 * i + 2 :]),
        )
        for i, at in enumerate(places)
    ]


def fact_spans(subject: Subject, token_ids: Sequence[int]) -> list[tuple[int, int]]:
    """Return where the fact tokens of a response stand in its text, as [start, end) of characters.

    Facts are known by id: a typed `<MUL_6_9_54>` is none.
    """
    places = [at for at, token in enumerate(token_ids) if token in subject.layout.fact_ids]
    return [
        (len(_decode(subject, token_ids[:at])), len(_decode(subject, token_ids[: at + 1])))
        for at in places
    ]


def _decode(subject: Subject, token_ids: Sequence[int]) -> str:
    return str(subject.tokenizer.decode(list(token_ids), skip_special_tokens=True))


def reserved_counts(
    subject: Subject, token_ids: Sequence[int], right: Collection[int]
) -> dict[str, int]:
    """Return how many reserved tokens a response holds; they count by id, not in text.

    right: ids of the facts that belong in its answer. mul_tokens: fact tokens, mul_tokens_correct:
    those that are among them, mul_tokens_valid: those that are right where they stand.
    """
    layout = subject.layout
    return {
        "mul_tokens": sum(i in layout.fact_ids for i in token_ids),
        "mul_tokens_correct": sum(i in right for i in token_ids),
        "mul_tokens_valid": sum(facts_in_place(subject, token_ids)),
        "reserved_tokens": sum(i in layout.reserved_ids for i in token_ids),
    }


def card(
    args: argparse.Namespace,
    subject: Subject,
    *,
    stage: str,
    decode: dict[str, Any],
    data: dict,
    reading: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the run card of an evaluation, which lives inside its results JSON.

    reading: how `corpora.load_problems` was called, so that the items can be checked against the
    data; without it nothing was read.
    """
    device, dtype = hardware.choose(subject.precision)
    training = checkpoints.read_card(subject.folder)
    return {
        "stage": stage,
        "command": args.command,
        "condition": args.condition,
        "seed": training["seed"] if training else None,
        "model_path": str(subject.folder),
        **checkpoints.hashes(subject.folder),
        "architecture": checkpoints.architecture(subject.folder),
        "training": training,
        "parent": {"path": str(subject.folder)},
        "formats": run_card.formats(),
        "data": data,
        "sources": file_hashes(reading["source"], split=reading["split"]) if reading else {},
        "reading": reading,
        "decode": decode,
        "code": run_card.code_identity(),
        "environment": run_card.environment(device, str(dtype).removeprefix("torch.")),
    }


def identity(card: dict[str, Any]) -> dict[str, Any]:
    """Return what must be the same for a resumed evaluation, the code that decodes included.

    None for what an older card lacks. Of a finished one the code stands in the card: it is compared
    between arms, not refused here.
    """
    keys = ("stage", "condition", "weights", "model", "formats", "data", "decode")
    return {
        **{key: card.get(key) for key in keys},
        "code": source_code.code_hash([Path(__file__)]),
    }


def fingerprint(rows: Sequence[Any]) -> str:
    """Return a hash of generated questions and their answers."""
    return run_card.hash_json([list(row) for row in rows])


def gsm8k_questions(subject: Subject, problems: Sequence[Problem]) -> list[Question]:
    """Render GSM8K test questions with the training renderer.

    Raises UserError that names an item whose answer cannot be read.
    """
    renderer = Renderer(subject.tokenizer)
    return [
        Question(
            id=problem.id,
            category="gsm8k",
            prompt=problem.question,
            prompt_ids=renderer.prompt([("user", problem.question)]),
            gold=str(gold.number),
        )
        for problem, gold in zip(problems, golds(problems), strict=True)
    ]


def probe_questions(
    subject: Subject, probes: Sequence[tuple[str, str, int]], *, forced_start: str
) -> list[Question]:
    """Render probes; the response is made to begin with forced_start in both arms alike."""
    renderer = Renderer(subject.tokenizer)
    return [
        Question(
            id=f"{category}:{question}",
            category=category,
            prompt=question,
            prompt_ids=renderer.prompt([("user", question)], forced_start=forced_start),
            gold=str(gold),
        )
        for category, question, gold in probes
    ]


def rationale_questions(questions: Sequence[Question], count: int) -> list[Question]:
    """Return every question `count` times, numbered, for the arm's own rationales."""
    return [replace(q, id=f"{q.id}#{k}") for q in questions for k in range(count)]


def answer_endpoints(
    subject: Subject,
    questions: Sequence[Question],
    output: Answers,
    *,
    golds: Sequence[str],
    settings: GSM8KSection,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the endpoints G1 and G2 per item, and the rationales; nothing without rationales.

    golds: the answers as the data write them. The rationales are kept (about 10 MB for all of
    GSM8K, a fiftieth of a checkpoint): sampling is not repeatable on other hardware, while G1 after
    given rationales is.
    """
    count = settings.rationales
    if count == 0:
        return [{} for _ in questions], []
    drawn = answer(
        subject,
        rationale_questions(questions, count),
        output,
        batch_size=settings.batch_size,
        max_new_tokens=settings.max_new_tokens,
        sampling_seed=rationale_seed(settings, subject.folder),
    )
    groups = [drawn[i : i + count] for i in range(0, len(drawn), count)]
    scores = answer_scores(
        subject,
        [question.prompt_ids for question in questions],
        golds,
        groups,
        settings.frequent_answers,
    )
    lines = [
        {
            "id": question.id,
            "token_ids": [response.token_ids for response in group],
            "stop_reasons": [response.stop for response in group],
        }
        for question, group in zip(questions, groups, strict=True)
    ]
    bound = [{"rationales_sha256": run_card.hash_json(line["token_ids"])} for line in lines]
    return [asdict(score) | of for score, of in zip(scores, bound, strict=True)], lines


def text(subject: Subject, response: Response) -> str:
    """Return what a response says; fact tokens read `<MUL_6_9_54>`."""
    return _decode(subject, response.token_ids)


def item(
    subject: Subject, question: Question, response: Response, *, right: Collection[int]
) -> dict[str, Any]:
    """Return the line of one answered question, before it is scored.

    right: ids of the facts that belong in its answer.
    """
    return {
        "id": question.id,
        "category": question.category,
        "prompt": question.prompt,
        "prompt_hash": question.prompt_hash,
        "response": text(subject, response),
        "token_ids": response.token_ids,
        "fact_spans": [list(span) for span in fact_spans(subject, response.token_ids)],
        "stop_reason": response.stop,
        "gold": question.gold,
        **reserved_counts(subject, response.token_ids, right),
    }


def facts_in_solution(subject: Subject, problem: Problem) -> set[int]:
    """Return the ids of the facts that a gold solution uses."""
    used = {fact.token for fact in find_facts(problem.answer)}
    return {subject.layout.first_fact_id + i for i, fact in enumerate(FACTS) if fact in used}


def facts_with_product(subject: Subject, product: int) -> set[int]:
    """Return the ids of the facts whose product this is."""
    return {i for i in subject.layout.fact_ids if subject.layout.fact_of(i)[2] == product}
