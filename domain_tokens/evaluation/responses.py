"""What the two evaluations share: prompts in, items out, finished items kept over a kill."""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from domain_tokens.errors import UserError
from domain_tokens.evaluation.checkpoint import LoadedCheckpoint, evaluation_identity, response_text
from domain_tokens.evaluation.endpoints import sample_seed
from domain_tokens.evaluation.fact_tokens import fact_spans, reserved_counts
from domain_tokens.inference import GREEDY, Response, Sampling, generate
from domain_tokens.runs import (
    barrier,
    file_digest,
    gather_dict,
    hash_json,
    is_main_process,
    lock_output,
    make_folder,
    process_rank,
    read_sealed,
    sealed,
    share_of,
    write_json,
    write_text,
)

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
        return hash_json(self.prompt_ids)


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
        own = "" if is_main_process() else f".{process_rank()}"
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
        before = evaluation_identity(read_sealed(self.results)["card"])
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
        if not self._locked and is_main_process():
            make_folder(self.folder)
            lock_output(self._lock)
            self._locked = True
        barrier()
        done: dict[str, Response] = {}
        for partial in [] if self._restart else self._partials():
            done |= self._read(partial)
        barrier()
        if self._restart and is_main_process():
            for partial in self._partials():
                partial.unlink()
        barrier()
        self._restart = False
        header = [json.dumps(self._identity)]
        kept = [
            json.dumps({"id": i, "token_ids": r.token_ids, "stop": r.stop}) for i, r in done.items()
        ]
        write_text(self._partial, "".join(f"{line}\n" for line in header + kept))
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
        if not is_main_process():
            return
        bound = {}
        for kind, lines in {"items": items, **more}.items():
            path = lines_file(self.folder, self._name, kind)
            text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
            write_text(path, text)
            bound[kind] = {
                "file": path.name,
                "sha256": file_digest(path),
                "count": len(lines),
            }
        for kind in LINES[self._name]:
            if kind not in bound:  # of results that are replaced
                lines_file(self.folder, self._name, kind).unlink(missing_ok=True)
        write_json(self.results, sealed({**results, **bound}))
        for partial in self._partials():
            partial.unlink()
        self._lock.unlink()


def answer_questions(
    subject: LoadedCheckpoint,
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
    open_questions = share_of([q for q in questions if q.id not in done])
    sampling, name = GREEDY, "answer"
    if sampling_seed is not None:
        seeds = tuple(sample_seed(sampling_seed, q.id) for q in open_questions)
        sampling, name = Sampling(temperature=1.0, row_seeds=seeds), "sample rationales"
    shown = None if is_main_process() else True
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
    done = gather_dict(done)
    return [done[q.id] for q in questions]


def item_of(
    subject: LoadedCheckpoint, question: Question, response: Response, *, right: Collection[int]
) -> dict[str, Any]:
    """Return the line of one answered question, before it is scored.

    right: ids of the facts that belong in its answer.
    """
    return {
        "id": question.id,
        "category": question.category,
        "prompt": question.prompt,
        "prompt_hash": question.prompt_hash,
        "response": response_text(subject, response),
        "token_ids": response.token_ids,
        "fact_spans": [list(span) for span in fact_spans(subject, response.token_ids)],
        "stop_reason": response.stop,
        "gold": question.gold,
        **reserved_counts(subject, response.token_ids, right),
    }
