"""A source's examples: duplicates, irregular rows, subset, order, fingerprint.

Where rows come from is for `sources.py` to say, what a row has to hold for `examples.py`, how
messages become token ids for `prompts.py`.
"""

import hashlib
import heapq
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic

from tqdm import tqdm

from domain_tokens.data.examples import (
    Conversation,
    DataRow,
    IrregularError,
    Problem,
    canonical_json,
    conversation_of,
    equations_alone,
    example_identity,
    problem_of,
    what_is_there,
)
from domain_tokens.data.rationales import ANNOTATION, as_problem_row
from domain_tokens.data.row_files import kind_of
from domain_tokens.data.sources import label_of, read_rows
from domain_tokens.errors import UserError

if TYPE_CHECKING:
    from domain_tokens.runs import Rationale

SHOWN_ROWS = 5  # irregular rows of a kind that a message names


@dataclass(frozen=True, slots=True)
class Loaded(Generic[DataRow]):
    """The examples that were kept, sorted by rank, and what is needed to account for the others.

    total_rows: rows read, whatever became of them. duplicates: rows that repeat another's content.
    fingerprint: hex SHA-256 of the kept ids and their content, whatever the file order.
    source_composition: kept examples per sub-corpus, largest first.
    irregular: why rows could not be examples -> their 1-based numbers.
    no_equations: kept problems of which only the answer is left as rationale; None where the whole
    rationale is kept.
    where: config key and source, for messages.
    """

    items: list[DataRow]
    total_rows: int
    duplicates: int
    fingerprint: str
    source_composition: dict[str, int]
    irregular: dict[str, list[int]] = field(default_factory=dict, compare=False)
    where: str = field(default="", compare=False)
    no_equations: int | None = None

    @property
    def dropped(self) -> Counter[str]:
        """Rows of the source that were left out, by reason."""
        counts = Counter({reason: len(rows) for reason, rows in self.irregular.items()})
        return +(counts + Counter(duplicate=self.duplicates))

    def notes(self) -> list[str]:
        """Return lines that say what was left out of rows and of rationales; none for nothing."""
        notes = []
        if self.no_equations:
            notes = [
                f"{self.where}: {self.no_equations} of {len(self.items)} solutions have no "
                "equation; they keep their answer alone"
            ]
        if not self.dropped:
            return notes
        words = [f"{count} {reason}{self._rows(reason)}" for reason, count in self.dropped.items()]
        left_out = self.dropped.total()
        line = f"{self.where}: {left_out} of {self.total_rows} rows left out: {', '.join(words)}"
        return [line, *notes]

    def _rows(self, reason: str) -> str:
        rows = self.irregular.get(reason, [])
        shown = ", ".join(map(str, rows[:SHOWN_ROWS]))
        more = ", …" if len(rows) > SHOWN_ROWS else ""
        return f" (row{'s' * (len(rows) > 1)} {shown}{more})" if rows else ""


# --- order and identity ---------------------------------------------------------------------------


def hash_rank(seed: int | str, example_id: str) -> int:
    """Place an example in a seeded order that depends on nothing but the seed and its id.

    Returns an integer in [0, 2**64); smaller comes first.
    """
    return int.from_bytes(hashlib.blake2b(f"{seed}\n{example_id}".encode(), digest_size=8).digest())


def epoch_order(ids: Sequence[str], *, seed: int, epoch: int) -> list[int]:
    """Shuffle an epoch: the positions in `ids`, in the order in which they are trained on."""
    epoch_seed = f"{seed}:{epoch}"
    return sorted(range(len(ids)), key=lambda at: (hash_rank(epoch_seed, ids[at]), ids[at]))


def digest_of_ids(ids: Iterable[str]) -> str:
    """Hash a sequence of ids, order included; hex SHA-256."""
    total = hashlib.sha256()
    for example_id in ids:
        # JSON quotes each id, so that ["a", "b"] and ["ab"] cannot run together.
        total.update(canonical_json(example_id))
    return total.hexdigest()


def hold_out(
    items: Sequence[DataRow], *, count: int, seed: int
) -> tuple[list[DataRow], list[DataRow]]:
    """Split off the `count` examples of smallest rank; both parts keep the order of `items`.

    Raises UserError if nothing would be left.
    """
    if count and count >= len(items):
        raise UserError(
            f"a hold-out of {count} examples was asked of {len(items)}; wanted fewer than "
            f"{len(items)}: lower data.holdout or allow more training examples"
        )
    chosen = heapq.nsmallest(count, ((hash_rank(seed, item.id), item.id) for item in items))
    held_ids = {example_id for _, example_id in chosen}
    kept = [item for item in items if item.id not in held_ids]
    return kept, [item for item in items if item.id in held_ids]


def _fingerprint(items: Iterable[DataRow]) -> str:
    total = hashlib.sha256()
    for item in sorted(items, key=lambda item: item.id):
        total.update(canonical_json(example_identity(item)) + b"\n")
    return total.hexdigest()


# --- rows to examples -----------------------------------------------------------------------------


def load_conversations(
    source: str,
    *,
    split: str,
    limit: int | None,
    subset_seed: int,
    key: str = "data.source",
) -> Loaded[Conversation]:
    """Load chat rows {messages: [{role, content}, …], id?, source?} and draw a subset by hash.

    limit: how many examples to keep at most; None keeps all. Memory grows with the limit, not with
    the corpus (but for ids and content hashes). A row without `source` counts under the file's or
    hub id's name. An empty list of messages passes: dropping what cannot be rendered is the
    renderer's to count. Rows of another shape are counted as irregular.
    Raises UserError for an unreadable source, one that is mostly irregular, and an id that stands
    for two contents.
    """
    label = label_of(source)
    return _collect(
        read_rows(source, split=split, key=key),
        lambda row, number: conversation_of(row, number, label),
        where=f"{key}: {source}",
        limit=limit,
        seed=subset_seed,
        label=label,
    )


def load_problems(
    source: str,
    *,
    split: str,
    limit: int | None,
    subset_seed: int,
    key: str = "data.source",
    rationale: "Rationale" = "full",
) -> Loaded[Problem]:
    """Load GSM8K rows {question, answer, id?} and draw a subset by hash, as load_conversations.

    Rows of GSM8K-Aug and SVAMP are read as such. rationale "equations" leaves a solution its
    calculator annotations and its answer; ids, subset and order are those of the full text, so that
    both formats train on the same problems.
    """

    def build(row: dict, number: int) -> Problem:
        problem = problem_of(row, number)
        if rationale == "equations":
            equations_alone(problem)  # or it is irregular
        return problem

    loaded = _collect(
        read_rows(source, split=split, key=key),
        build,
        where=f"{key}: {source}",
        limit=limit,
        seed=subset_seed,
        label=label_of(source),
    )
    if rationale == "full":
        return loaded
    items = [equations_alone(problem) for problem in loaded.items]
    bare = sum(not ANNOTATION.search(item.answer) for item in items)
    return replace(loaded, items=items, fingerprint=_fingerprint(items), no_equations=bare)


def load_questions(source: str, *, split: str, key: str) -> list[str]:
    """Read the `question` of every row, in the order of the source.

    Raises UserError where a row has none: what is compared with them would pass unseen.
    """
    questions = []
    for number, row in enumerate(read_rows(source, split=split, key=key), 1):
        question = as_problem_row(row).get("question")
        if not isinstance(question, str) or not question.strip():
            raise UserError(
                f"{key}: {source}, row {number}: `question` is {kind_of(question)}; wanted a text "
                f"in every row{what_is_there(row)}"
            )
        questions.append(question)
    if not questions:
        raise UserError(f"{key}: {source} holds no rows; wanted at least one question")
    return questions


def without_rows_of(
    items: Sequence[DataRow], others: Iterable[DataRow]
) -> tuple[list[DataRow], int]:
    """Leave out the examples that `others` hold, too, under whatever id; return how many they were.

    Problems are the same by their question, conversations by all their turns; space around a turn
    does not count.
    """
    known = {_content_key(item) for item in others}
    kept = [item for item in items if _content_key(item) not in known]
    return kept, len(items) - len(kept)


def _content_key(item: Conversation | Problem) -> bytes:
    if isinstance(item, Conversation):
        content: Any = [(role, text.strip()) for role, text in item.messages]
    else:
        content = item.question.strip()
    return hashlib.blake2b(canonical_json(content), digest_size=16).digest()


class _Subset(Generic[DataRow]):
    """The `limit` examples of smallest (rank, id) so far, in whatever order they come.

    Of rows with one content the smallest (rank, id) is kept: the same one in every file order.
    """

    def __init__(self, limit: int | None, seed: int, where: str):
        self.duplicates = 0
        self._limit, self._seed, self._where = limit, seed, where
        self._contents: dict[str, bytes] = {}  # id -> hash of its content
        self._rows = array("q")  # of the ids, in their order
        self._ids: dict[bytes, str] = {}  # hash of a content -> the id that it is kept under
        self._chosen: dict[str, DataRow] = {}
        # (-rank, id), so that the heap's top is the next to go; may hold ids that went before
        self._worst_first: list[tuple[int, str]] = []

    def add(self, item: DataRow) -> None:
        """Take an example in; raises UserError where its id stands for another content."""
        content = hashlib.blake2b(
            canonical_json(example_identity(item)[1:]), digest_size=16
        ).digest()
        known = self._contents.get(item.id)
        if known is not None and known != content:
            row = self._rows[list(self._contents).index(item.id)]
            raise UserError(
                f"{self._where}: rows {row} and {item.row} have the id {item.id!r} and differ in "
                'content (1 and "1" are one id); make the ids unique, or drop the `id` field of '
                "all rows, so that hashes of their content serve"
            )
        if known is not None:
            self.duplicates += 1
            self._same_label(item)
            return
        self._contents[item.id] = content
        self._rows.append(item.row)
        earlier = self._ids.get(content)
        if earlier is not None:
            self.duplicates += 1
            if self._key(earlier) < self._key(item.id):
                return
            self._chosen.pop(earlier, None)
        self._ids[content] = item.id
        self._chosen[item.id] = item
        heapq.heappush(self._worst_first, (-self._key(item.id)[0], item.id))
        while self._limit is not None and len(self._chosen) > self._limit:
            self._chosen.pop(heapq.heappop(self._worst_first)[1], None)

    def items(self) -> list[DataRow]:
        """Return what was kept, sorted by rank."""
        return sorted(self._chosen.values(), key=lambda item: self._key(item.id))

    def _key(self, example_id: str) -> tuple[int, str]:
        return hash_rank(self._seed, example_id), example_id

    def _same_label(self, item: DataRow) -> None:
        """Of two sub-corpora that one example is said to be from, keep the first by name."""
        earlier = self._chosen.get(item.id)
        if isinstance(item, Conversation) and isinstance(earlier, Conversation):
            self._chosen[item.id] = item if item.source < earlier.source else earlier


def _collect(
    rows: Iterable[dict],
    build: Callable[[dict, int], DataRow],
    *,
    where: str,
    limit: int | None,
    seed: int,
    label: str,
) -> Loaded[DataRow]:
    """Build, count and draw, in one pass and whatever the row order."""
    subset: _Subset[DataRow] = _Subset(limit, seed, where)
    irregular: dict[str, list[int]] = {}
    first: dict[str, str] = {}  # reason -> what was found in the first such row
    total = 0
    for total, row in enumerate(
        tqdm(rows, desc=f"reading {label}", unit=" rows", delay=2, disable=None), 1
    ):
        try:
            subset.add(build(row, total))
        except IrregularError as error:
            irregular.setdefault(error.reason, []).append(total)
            first.setdefault(error.reason, error.got)
    if not total:
        raise UserError(f"{where} holds no rows; wanted at least one example")
    _refuse_mostly_irregular(irregular, first, total, where)
    items = subset.items()
    names = Counter(item.source if isinstance(item, Conversation) else label for item in items)
    composition = dict(names.most_common())
    return Loaded(
        items, total, subset.duplicates, _fingerprint(items), composition, irregular, where
    )


def _refuse_mostly_irregular(
    irregular: dict[str, list[int]], first: dict[str, str], total: int, where: str
) -> None:
    count = sum(map(len, irregular.values()))
    if count <= total / 2:
        return
    reason = max(irregular, key=lambda name: len(irregular[name]))
    raise UserError(
        f"{where}: {count} of {total} rows are not what was wanted, most of them {reason}: "
        f"row {irregular[reason][0]}: {first[reason]}"
    )
