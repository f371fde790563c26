"""The continuous endpoints: how much probability a checkpoint gives to the right answer.

A1 is arithmetic, A2 the same in stories, G1 and G2 are GSM8K. No gold rationale is ever shown:
given it, a model only has to copy the last number (97.2 % of GSM8K's test rows), which
`gold_rationale_log_probs` is there to show. Answers are digits in both arms.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from math import exp
from typing import TYPE_CHECKING, Any

from domain_tokens.errors import UserError
from domain_tokens.evaluation.metrics import DISTRACTORS, item_scores, log_sum
from domain_tokens.evaluation.probes import TABLE, TEMPLATES
from domain_tokens.evaluation.stories import worded
from domain_tokens.inference import Response, continuation_log_probs
from domain_tokens.prompts import Renderer
from domain_tokens.treatments import FACT_TOKENS
from domain_tokens.vocabulary import FACT_PAIRS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from domain_tokens.evaluation.checkpoint import LoadedCheckpoint

PRODUCTS = tuple(sorted({a * b for a, b in TABLE}))  # 36
MARKER = "####"
RATIONALES_TOGETHER = 4  # that one reading of a question serves: attention to all grows as K²


def table_scores(
    subject: "LoadedCheckpoint", *, response_prefix: str, templates: Sequence[str] = TEMPLATES
) -> list[dict[str, Any]]:
    """Return the lines of A1 (or A2), one per cell and wording, the wordings of a cell together.

    templates: the wordings; A2's are the stories.
    log_prob: log p of the product in digits + EOS, log_sum: the log of the sum over the 36 products
    (nats), value: their difference; fact_mass: the probability (0–1) that the next token would be
    any fact token. both_log_prob, both_log_sum, both_value: the same where a product may be written
    in digits or as a space and any fact token that reads it, as the renderer writes it, then EOS:
    the exact sum of all these routes. Not for stories, nor where rows stand for something else.
    """
    renderer = Renderer(subject.tokenizer)
    cells = [(a, b, template) for a, b in TABLE for template in templates]
    prompts = [
        renderer.prompt([("user", worded(template, a, b))], response_prefix=response_prefix)
        for a, b, template in cells
    ]
    facts = subject.layout.fact_ids
    # In digits; as the next token; as a fact token after a space, as the renderer writes it.
    digits = [[*renderer.encode(f" {c}"), renderer.eos] for c in PRODUCTS]
    routes = (
        [[*renderer.encode(" "), i, renderer.eos] for i in facts]
        if _has_two_routes(subject, templates)
        else []
    )
    choices = [*digits, *([i] for i in facts), *routes]
    scores = continuation_log_probs(subject.model, prompts, [choices] * len(prompts))
    lines = []
    for (a, b, template), values in zip(cells, scores, strict=True):
        in_digits, rest = values[: len(digits)], values[len(digits) :]
        mass, as_facts = exp(log_sum(rest[: len(facts)])), rest[len(facts) :]
        right, total = in_digits[PRODUCTS.index(a * b)], log_sum(in_digits)
        line = {"a": a, "b": b, "template": template, "log_prob": right, "log_sum": total}
        line |= {"value": right - total, "fact_mass": mass}
        if as_facts:
            line |= _both_routes(right, total, as_facts, a * b)
        lines.append(line)
    return lines


def _has_two_routes(subject: "LoadedCheckpoint", templates: Sequence[str]) -> bool:
    """Return whether a product is scored as a fact token, too, and not in digits alone."""
    return templates == TEMPLATES and (subject.treatment or FACT_TOKENS).rows_are_facts


def _both_routes(right: float, total: float, facts: list[float], product: int) -> dict[str, float]:
    """Return a line's sums over digits and fact tokens.

    right, total: of the digits alone; facts: log p(space + fact token + EOS) of the 45.
    """
    same = [value for value, (a, b) in zip(facts, FACT_PAIRS, strict=True) if a * b == product]
    both, all_ = log_sum([right, *same]), log_sum([total, *facts])
    return {"both_log_prob": both, "both_log_sum": all_, "both_value": both - all_}


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
    forced_cuts: rationales that never came to `####`. g1_log_probs: log p of the answer after each
    rationale; g2_log_probs: without one, of the answer and then of the 16 distractors.
    """

    g1: float
    g1_half: float
    g1_log: float
    g1_log_half: float
    g2: float
    forced_cuts: int
    g1_log_probs: list[float]
    g2_log_probs: list[float]


def distractors(frequent: Sequence[str], gold: str) -> list[str]:
    """Return the 16 most frequent answers that differ, as numbers, from the gold and each other.

    Raises UserError where there are fewer: G2 of two items would not be of the same range.
    """
    known, chosen = {_number(gold)}, []
    for answer in frequent:
        if _number(answer) not in known:
            known.add(_number(answer))
            chosen.append(answer)
    if len(chosen) < DISTRACTORS:
        raise UserError(
            f"evaluation.frequent_answers has {len(chosen)} numbers that are not the gold answer "
            f"{gold}; wanted at least {DISTRACTORS}: add some to the config"
        )
    return chosen[:DISTRACTORS]


def _number(text: str) -> Decimal | str:
    try:
        number = Decimal(text.strip().replace(",", ""))
    except InvalidOperation:
        return text.strip()
    return number if number.is_finite() else text.strip()


def answer_scores(
    subject: "LoadedCheckpoint",
    prompts: Sequence[Sequence[int]],
    golds: Sequence[str],
    rationales: Sequence[Sequence[Response]],
    frequent: Sequence[str],
) -> list[AnswerScore]:
    """Score the gold answer + EOS after the arm's own rationales (G1) and without any (G2).

    prompts: N lists of ids; golds: N answers as the data write them; rationales: N lists of K
    sampled responses; frequent: answers by frequency, for the `distractors` of each gold.
    """
    renderer = Renderer(subject.tokenizer)
    answers = [_answer(renderer, gold) for gold in golds]
    owners, forced = [], [0] * len(prompts)
    texts: list[list[list[int]]] = []  # of each group: rationale, marker and answer
    given: list[list[int]] = []
    for index, responses in enumerate(rationales):
        contexts = []
        for response in responses:
            ids, cut = cut_before_answer(subject.tokenizer, response)
            forced[index] += cut
            contexts.append([*ids, *_marker(renderer, subject, ids)])
        for first in range(0, len(contexts), RATIONALES_TOGETHER):
            together = contexts[first : first + RATIONALES_TOGETHER]
            owners.append(index)
            texts.append([[*context, *answers[index]] for context in together])
            given.append([len(context) for context in together])
    sampled = continuation_log_probs(subject.model, [prompts[i] for i in owners], texts, given)
    bare = [[*prompt, *renderer.encode(f" {MARKER}")] for prompt in prompts]
    choices = [
        [answer, *(_answer(renderer, d) for d in distractors(frequent, gold))]
        for answer, gold in zip(answers, golds, strict=True)
    ]
    alone = continuation_log_probs(subject.model, bare, choices)
    logs: list[list[float]] = [[] for _ in prompts]
    for owner, values in zip(owners, sampled, strict=True):
        logs[owner] += values
    return [
        AnswerScore(
            **item_scores(own, bare_logs),
            forced_cuts=cuts,
            g1_log_probs=own,
            g2_log_probs=bare_logs,
        )
        for own, bare_logs, cuts in zip(logs, alone, forced, strict=True)
    ]


def gold_rationale_log_probs(
    subject: "LoadedCheckpoint", prompts: Sequence[Sequence[int]], solutions: Sequence[str]
) -> list[float]:
    """Return log p(answer + EOS | question, gold rationale): it shows copying, no endpoint."""
    renderer = Renderer(subject.tokenizer)
    contexts, answers = [], []
    for prompt, solution in zip(prompts, solutions, strict=True):
        rationale, _, gold = solution.rpartition(MARKER)
        contexts.append([*prompt, *renderer.encode(f" {rationale}{MARKER}")])
        answers.append([_answer(renderer, gold.strip())])
    return [value for (value,) in continuation_log_probs(subject.model, contexts, answers)]


def _marker(renderer: Renderer, subject: "LoadedCheckpoint", ids: list[int]) -> list[int]:
    """Return the ids of `####` on a line of its own, after the ids of a rationale."""
    if not ids:
        return renderer.encode(f" {MARKER}")
    broken = str(subject.tokenizer.decode(ids[-1:])).endswith("\n")
    return renderer.encode(MARKER if broken else f"\n{MARKER}")


def _answer(renderer: Renderer, answer: str) -> list[int]:
    # The space belongs to the answer's first token, as in `#### 18` of the training text.
    return [*renderer.encode(f" {answer}"), renderer.eos]
