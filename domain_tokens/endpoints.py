"""The continuous endpoints: how much probability a checkpoint gives to the right answer.

A1 is arithmetic, G1 and G2 are GSM8K. No gold rationale is ever shown: given it, a model only has
to copy the last number (97.2 % of GSM8K's test rows), which `gold_rationale_log_probs` is there to
show. Answers are digits in both arms.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from domain_tokens.generation import Response
from domain_tokens.probes import TABLE, TEMPLATES
from domain_tokens.prompts import Renderer
from domain_tokens.scoring import continuation_log_probs, next_token_mass

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from domain_tokens.evaluation import Subject

PRODUCTS = tuple(sorted({a * b for a, b in TABLE}))  # 36
MARKER = "####"


@dataclass(frozen=True, slots=True)
class TableScore:
    """A1: mean over cells and templates in nats; by_cell in the order of TABLE; fact_mass 0–1."""

    mean: float
    by_cell: list[float]
    fact_mass: float


def table_score(subject: "Subject", *, forced_start: str) -> TableScore:
    """Return log p(product in digits + EOS) − log of the sum over the 36 products, for all cells.

    fact_mass: the probability that the next token would be any fact token, mean over the prompts.
    """
    renderer = Renderer(subject.tokenizer)
    prompts = [
        renderer.prompt([("user", template.format(a=a, b=b))], forced_start=forced_start)
        for a, b in TABLE
        for template in TEMPLATES
    ]
    choices = [[*renderer.encode(f" {c}"), renderer.eos] for c in PRODUCTS]
    scores = continuation_log_probs(subject.model, prompts, [choices] * len(prompts))
    gold = [PRODUCTS.index(a * b) for a, b in TABLE for _ in TEMPLATES]
    values = [s[right] - _log_sum(s) for s, right in zip(scores, gold, strict=True)]
    size = len(TEMPLATES)
    cells = [math.fsum(values[i : i + size]) / size for i in range(0, len(values), size)]
    masses = next_token_mass(subject.model, prompts, subject.layout.fact_ids)
    return TableScore(
        mean=math.fsum(cells) / len(cells),
        by_cell=cells,
        fact_mass=math.fsum(masses) / len(masses),
    )


def sample_seed(seed: int, sample_id: str) -> int:
    """Return the seed of one sample, which depends on its id alone and not on any order."""
    text = f"{seed}\n{sample_id}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest())


def cut_before_answer(
    tokenizer: "PreTrainedTokenizerBase", response: Response
) -> tuple[list[int], bool]:
    """Return the ids before `####`, and whether the cut was forced because there is none."""
    text, ends = "", []
    for token in response.token_ids:
        text += str(tokenizer.decode([token]))
        ends.append(len(text))
    at = text.find(MARKER)
    if at < 0:
        return list(response.token_ids), True
    return [t for t, end in zip(response.token_ids, ends, strict=True) if end <= at], False


@dataclass(frozen=True, slots=True)
class AnswerScore:
    """G1 and G2 of one item.

    g1, g1_half: P̂ over all and over the first half of the rationales (0–1); g1_log, g1_log_half:
    their logs in nats; g2: log p(answer) − log of the sum over answer and distractors, in nats.
    forced_cuts: rationales that never came to `####`.
    """

    g1: float
    g1_half: float
    g1_log: float
    g1_log_half: float
    g2: float
    forced_cuts: int


def answer_scores(
    subject: "Subject",
    prompts: Sequence[Sequence[int]],
    golds: Sequence[str],
    rationales: Sequence[Sequence[Response]],
    distractors: Sequence[str],
) -> list[AnswerScore]:
    """Score the gold answer + EOS after the arm's own rationales (G1) and without any (G2).

    prompts: N lists of ids; golds: N answers as the data write them; rationales: N lists of K
    sampled responses; distractors: answers, of which those that differ from the gold are used.
    """
    renderer = Renderer(subject.tokenizer)
    contexts, owners, forced = [], [], [0] * len(prompts)
    for index, responses in enumerate(rationales):
        for response in responses:
            ids, cut = cut_before_answer(subject.tokenizer, response)
            forced[index] += cut
            contexts.append([*prompts[index], *ids, *_marker(renderer, subject, ids)])
            owners.append(index)
    wanted = [_answer(renderer, gold) for gold in golds]
    sampled = continuation_log_probs(subject.model, contexts, [[wanted[i]] for i in owners])
    bare = [[*prompt, *renderer.encode(f" {MARKER}")] for prompt in prompts]
    choices = [
        [answer, *(_answer(renderer, d) for d in distractors if d != gold)]
        for answer, gold in zip(wanted, golds, strict=True)
    ]
    alone = continuation_log_probs(subject.model, bare, choices)
    logs: list[list[float]] = [[] for _ in prompts]
    for owner, (value,) in zip(owners, sampled, strict=True):
        logs[owner].append(value)
    return [
        _answer_score(own, other, cuts)
        for own, other, cuts in zip(logs, alone, forced, strict=True)
    ]


def gold_rationale_log_probs(
    subject: "Subject", prompts: Sequence[Sequence[int]], solutions: Sequence[str]
) -> list[float]:
    """Return log p(answer + EOS | question, gold rationale): it shows copying, no endpoint."""
    renderer = Renderer(subject.tokenizer)
    contexts, answers = [], []
    for prompt, solution in zip(prompts, solutions, strict=True):
        rationale, _, gold = solution.rpartition(MARKER)
        contexts.append([*prompt, *renderer.encode(f" {rationale}{MARKER}")])
        answers.append([_answer(renderer, gold.strip())])
    return [value for (value,) in continuation_log_probs(subject.model, contexts, answers)]


def _marker(renderer: Renderer, subject: "Subject", ids: list[int]) -> list[int]:
    """Return the ids of `####` on a line of its own, behind the ids of a rationale."""
    if not ids:
        return renderer.encode(f" {MARKER}")
    broken = str(subject.tokenizer.decode(ids[-1:])).endswith("\n")
    return renderer.encode(MARKER if broken else f"\n{MARKER}")


def _answer(renderer: Renderer, answer: str) -> list[int]:
    # The space belongs to the answer's first token, as in `#### 18` of the training text.
    return [*renderer.encode(f" {answer}"), renderer.eos]


def _answer_score(own: list[float], other: list[float], forced_cuts: int) -> AnswerScore:
    half = own[: max(1, len(own) // 2)]
    full_log, half_log = (_log_sum(values) - math.log(len(values)) for values in (own, half))
    return AnswerScore(
        g1=math.exp(full_log),
        g1_half=math.exp(half_log),
        g1_log=full_log,
        g1_log_half=half_log,
        g2=other[0] - _log_sum(other),
        forced_cuts=forced_cuts,
    )


def _log_sum(values: Sequence[float]) -> float:
    largest = max(values)
    return largest + math.log(math.fsum(math.exp(value - largest) for value in values))


def mean_of(scores: Sequence[AnswerScore], rationales: int) -> dict[str, Any]:
    """Return the means over items, as they stand in the metrics."""
    names = ("g1", "g1_half", "g1_log", "g1_log_half", "g2")
    means = {n: math.fsum(getattr(s, n) for s in scores) / len(scores) for n in names}
    cuts = sum(score.forced_cuts for score in scores)
    return {
        **means,
        "g1_rationales": rationales,
        "g1_forced_cut_share": cuts / (len(scores) * rationales),
    }
