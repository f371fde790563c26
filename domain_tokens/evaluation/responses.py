"""What the two evaluations share: prompts in, items out, finished items kept over a kill."""

import contextlib
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from domain_tokens.errors import UserError
from domain_tokens.evaluation.checkpoint import LoadedCheckpoint, evaluation_identity
from domain_tokens.evaluation.endpoints import sample_seed
from domain_tokens.evaluation.fact_tokens import read_response, reserved_counts
from domain_tokens.inference import (
    GREEDY,
    Calculator,
    Constraints,
    Response,
    Sampling,
    generate,
)
from domain_tokens.runs import (
    EVALUATION_LINES,
    EVALUATION_RESULTS,
    ExistingOutput,
    GSM8KSection,
    ProbeSection,
    State,
    Step,
    barrier,
    code_identity,
    decide,
    file_digest,
    gather_dict,
    hash_json,
    is_main_process,
    lock_output,
    make_folder,
    other_code,
    process_rank,
    read_sealed,
    refuse_changed,
    refuse_file,
    require_record,
    sealed,
    share_of,
    write_record,
    write_text,
)

# The files of lines that each evaluation writes next to its results.
LINES = {
    "gsm8k": ("items", "rationales"),
    "arithmetic": ("items", "scores"),
    "stories": ("items", "scores"),
}


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


class PartialResponses:
    """Responses as they end, one file per process: an identity, then a line per response."""

    def __init__(self, folder: Path, name: str, identity: dict[str, Any]):
        own = "" if is_main_process() else f".{process_rank()}"
        self._folder = folder
        self._pattern = f"{name}_items.partial*.jsonl"
        self._own = folder / f"{name}_items.partial{own}.jsonl"
        self._identity = identity

    def files(self) -> list[Path]:
        """Return the files of all processes that worked on an unfinished evaluation."""
        return sorted(self._folder.glob(self._pattern))

    def identity(self) -> dict[str, Any]:
        """Return what identifies the run that began them, of another run's file if there is one.

        {} where it was cut off.
        """
        identities = []
        for path in self.files():
            with path.open(encoding="utf-8") as file:
                line = file.readline()
            identities.append(json.loads(line) if line.endswith("\n") and line.strip() else {})
        return next(
            (identity for identity in identities if identity != self._identity), identities[0]
        )

    def start(self, *, keep: bool) -> dict[str, Response]:
        """Begin this process's file and return the responses of an earlier segment by item id.

        All processes do so together. keep: use what is there; otherwise it is removed.
        """
        done: dict[str, Response] = {}
        for file in self.files() if keep else []:
            # A killed run can leave half a line after the last newline.
            lines = file.read_text(encoding="utf-8").split("\n")[1:-1]
            items = [json.loads(line) for line in lines]
            done |= {item["id"]: Response(item["token_ids"], item["stop_reason"]) for item in items}
        barrier()
        if not keep and is_main_process():
            self.drop()
        barrier()
        lines = [self._identity]
        lines += [{"id": id, **asdict(response)} for id, response in done.items()]
        write_text(self._own, "".join(f"{json.dumps(line)}\n" for line in lines))
        return done

    def append(self, id: str, response: Response) -> None:
        """Keep a finished response."""
        with self._own.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"id": id, **asdict(response)}) + "\n")

    def drop(self) -> None:
        """Remove the files of all processes."""
        for file in self.files():
            file.unlink()


class Answers:
    """The output of one evaluation in a folder that it may share with the others.

    What it may do there is decided in `runs.output_folder`. Its own are the partial responses and
    the order at the end: items whole, then the results JSON, then the partial files go.
    """

    note = ""  # what a reader of finished results should know

    def __init__(self, output_dir: Path, name: str, identity: dict[str, Any]):
        self.folder = output_dir
        self.results = self.folder / f"{name}_results.json"
        self._partial = PartialResponses(self.folder, name, identity)
        self._lock = self.folder / f".{name}_lock"
        self._identity = identity
        self._name = name
        self._keep = False  # what partial files hold is used
        self._locked = False
        self._state = State.EMPTY

    def open(self, *, resume: bool, overwrite: bool) -> bool:
        """Return whether there is work to do; raises UserError where the folder forbids it."""
        refuse_file(self.folder)
        existing = self._find()
        step = decide(existing, self._identity, resume=resume, overwrite=overwrite)
        self._state, self._keep = existing.state, step is Step.CONTINUE
        if step is Step.NOTHING:
            made_by = (read_sealed(self.results)["card"].get("code") or {}).get("tree")
            self.note = other_code(made_by, code_identity()["tree"]) if made_by else ""
            if is_main_process() and self._partial.files():  # killed after the results
                with contextlib.suppress(UserError):  # or a process is replacing them
                    lock_output(self._lock)
                    self._tidy()
        return step is not Step.NOTHING

    def _find(self) -> ExistingOutput:
        identity: dict[str, Any] = {}
        state, stranger = self._look()
        if state is State.UNFINISHED:
            identity = self._partial.identity()
        elif state is State.FINISHED:
            # A card of an older version has no hash of the whole model.
            before = evaluation_identity(read_sealed(self.results)["card"])
            identity = {key: value for key, value in before.items() if value is not None}
        title = f"{self.folder} ({self._name})"
        return ExistingOutput(title, self.results.name, state, identity, _say_another_run, stranger)

    def _look(self) -> tuple[State, str]:
        """Return the state of this evaluation, and the first file of another kind or ""."""
        files = sorted(f.name for f in self.folder.iterdir()) if self.folder.exists() else []
        known = tuple(f"{dot}{name}_" for name in LINES for dot in ("", "."))
        for name in files:
            if not name.startswith(known):
                return State.FOREIGN, name
        if self.results.name in files:
            return State.FINISHED, ""
        return (State.UNFINISHED if self._partial.files() else State.EMPTY), ""

    def begin(self) -> dict[str, Response]:
        """Make the folder and return the responses of an earlier segment by item id."""
        if not self._locked and is_main_process():
            make_folder(self.folder)
            lock_output(self._lock)
            self._locked = True
            refuse_changed(self.results, self._state, self._look()[0])
        barrier()
        done = self._partial.start(keep=self._keep)
        self._keep = True
        return done

    def append(self, id: str, response: Response) -> None:
        """Keep a finished response, so that a killed run need not decode it again."""
        self._partial.append(id, response)

    def finish(
        self,
        items: list[dict[str, Any]],
        results: dict[str, Any],
        *,
        more: dict[str, list[dict[str, Any]]],
    ) -> None:
        """Write items and what else there is per line, then the results with their SHA-256.

        more: lines of further files by name. All are written whole before the first one takes its
        place, and old results go before their items do. The first process writes.
        """
        if not is_main_process():
            return
        paths, bound = [], {}
        for kind, lines in {"items": items, **more}.items():
            for line in lines:
                require_record(EVALUATION_LINES[self._name][kind], line, f"{self._name} {kind}")
            paths.append(lines_file(self.folder, self._name, kind))
            text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
            write_text(_whole(paths[-1]), text)
            sha256 = file_digest(_whole(paths[-1]))
            bound[kind] = {"file": paths[-1].name, "sha256": sha256, "count": len(lines)}
        whole = sealed({**results, **bound})
        write_record(_whole(self.results), EVALUATION_RESULTS[self._name], whole)
        old = [self.results, *(lines_file(self.folder, self._name, k) for k in LINES[self._name])]
        for path in old:  # killed from here on, --resume has all responses
            path.unlink(missing_ok=True)
        for path in [*paths, self.results]:
            _whole(path).rename(path)
        self._tidy()

    def _tidy(self) -> None:
        """Remove partial files, the lock and what a killed write left; results are there."""
        self._partial.drop()
        for path in self.folder.glob(f".{self._name}_*"):
            path.unlink()


def _whole(path: Path) -> Path:
    """Return where a file is written before it takes its place."""
    return path.with_name(f".{path.name}.whole")


def _say_another_run(existing: ExistingOutput, now: dict[str, Any], differing: list[str]) -> str:
    if existing.state is State.FINISHED:
        return (
            f"{existing.title} was made with another {differing[0]}; "
            "give the same arguments, or another --output-dir"
        )
    return (
        f"{existing.title} was begun with another checkpoint, config, data or code "
        f"({differing[0]}); give the same arguments, or another --output-dir"
    )


def answer_questions(
    subject: LoadedCheckpoint,
    questions: Sequence[Question],
    output: Answers,
    settings: GSM8KSection | ProbeSection,
    *,
    sampling_seed: int | None = None,
) -> list[Response]:
    """Decode what is not there yet, greedily; return a response per question, in order.

    settings: how many together, how far, and what is forced or forbidden.
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
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
            sampling=sampling,
            constraints=constraints_of(subject, settings.model_dump()),
            on_finished=keep,
        )
    done = gather_dict(done)
    return [done[q.id] for q in questions]


def constraints_of(subject: LoadedCheckpoint, decode: dict[str, Any]) -> Constraints | None:
    """Return what decode settings force or forbid, None where they leave all free."""
    kind = decode.get("calculator")
    forbidden = subject.layout.fact_ids if decode.get("forbid_fact_tokens") else ()
    if kind is None and not forbidden:
        return None
    calculator = Calculator(subject.tokenizer, kind) if kind else None
    return Constraints(calculator=calculator, forbidden=forbidden)


def item_of(
    subject: LoadedCheckpoint, question: Question, response: Response, *, right: Collection[int]
) -> dict[str, Any]:
    """Return the line of one answered question, before it is scored.

    right: ids of the facts that belong in its answer.
    """
    text, spans = read_response(subject, response.token_ids)
    return {
        "id": question.id,
        "category": question.category,
        "prompt": question.prompt,
        "prompt_hash": question.prompt_hash,
        "response": text,
        "token_ids": response.token_ids,
        "fact_spans": [list(span) for span in spans],
        "stop_reason": response.stop_reason,
        "gold": question.gold,
        **reserved_counts(subject, response.token_ids, right),
    }
