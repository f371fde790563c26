"""Every verdict and metric of an evaluation from its own items: what writes results checks them.

Nothing here needs a model, a tokenizer or a data file. Rates are fractions 0–1, log-probabilities
are in nats.
"""

import math
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from domain_tokens.answers import (
    extract_credited,
    extract_flexible,
    extract_probe,
    extract_probe_credited,
    extract_strict,
)
from domain_tokens.evaluation.attribution import attribution, first_wrong
from domain_tokens.evaluation.probes import TABLE, TEMPLATES
from domain_tokens.evaluation.stories import STORIES, story_floors
from domain_tokens.statistics import (
    best_constant,
    matched_floor,
    training_mode_constant,
    wilson_interval,
)

Item = dict[str, Any]

CATEGORIES = ("mul_table", "mul_multidigit", "addition")
SHOWN = 50  # GSM8K items repeated in the results JSON, as in the lab note
DISTRACTORS = 16  # of G2
PERMUTATIONS = 2000  # of the golds, for the matched floor
SCORES = ("g1", "g1_half", "g1_log", "g1_log_half", "g2")


def problem_verdicts(gold: str, response: str) -> Item:
    """Return the extracted answers of a GSM8K response and the three verdicts."""
    answers = {
        "strict": extract_strict(response),
        "flexible": extract_flexible(response),
        "credited": extract_credited(response),
    }
    verdicts = {
        "correct": _equal(answers["strict"], gold),
        "correct_flexible": _equal(answers["flexible"], gold),
        "correct_credited": _equal(answers["credited"], gold),
    }
    return {**{k: v if v is None else str(v) for k, v in answers.items()}, **verdicts}


def problem_keys(item: Item) -> Item:
    """Return the verdicts of a GSM8K item and, if it is wrong, where it went wrong first."""
    verdicts = problem_verdicts(item["gold"], item["response"])
    wrong = first_wrong(item["response"], cut=item["stop_reason"] != "eos")
    return {**verdicts, "first_wrong": None if verdicts["correct"] else wrong}


def probe_verdicts(gold: str, response: str) -> Item:
    """Return the extracted numbers of a probe's response and the two verdicts."""
    strict = extract_probe(response)
    credited = extract_probe_credited(response)
    return {
        "strict": None if strict is None else str(strict),
        "credited": None if credited is None else str(credited),
        "correct": _equal(strict, gold),
        "correct_credited": _equal(credited, gold),
    }


def item_scores(sampled: Sequence[float], alone: Sequence[float]) -> dict[str, float]:
    """Return G1 and G2 of one item and their variants.

    sampled: log p of the gold answer after each of K rationales; alone: without any, of the gold
    answer and then of the distractors.
    """
    half = sampled[: max(1, len(sampled) // 2)]
    full_log, half_log = (log_sum(v) - math.log(len(v)) for v in (sampled, half))
    return {
        "g1": math.exp(full_log),
        "g1_half": math.exp(half_log),
        "g1_log": full_log,
        "g1_log_half": half_log,
        "g2": alone[0] - log_sum(alone),
    }


def log_sum(values: Sequence[float]) -> float:
    """Return the log of the sum of what these are the logs of."""
    largest = max(values)
    return largest + math.log(math.fsum(math.exp(value - largest) for value in values))


def derived_keys(evaluation: str, item: Item) -> Item:
    """Return all that follows from the other keys of an item."""
    if evaluation in ("arithmetic", "stories"):
        return {
            "id": f"{item['category']}:{item['prompt']}",
            **probe_verdicts(item["gold"], item["response"]),
        }
    derived = problem_keys(item)
    if "gold_facts" in item:  # newer than some evaluations
        derived["applicable"] = bool(item["gold_facts"])
    if "g1_log_probs" in item:
        derived |= item_scores(item["g1_log_probs"], item["g2_log_probs"])
    return derived


def gsm8k_metrics(items: Sequence[Item], decode: dict[str, Any]) -> dict[str, Any]:
    """Return all metrics of the GSM8K evaluation but its speed; decode: the card's settings.

    attribution: how many wrong answers are wrong first in each kind of equation; items of older
    versions do not tell.
    """
    total = len(items)
    correct = sum(item["correct"] for item in items)
    golds = [item["gold"] for item in items]
    training_mode = decode["frequent_answers"][0]
    mode = training_mode_constant([training_mode], golds)
    constant = best_constant(golds)
    matched, p = matched_floor(
        [item["strict"] for item in items], golds, permutations=PERMUTATIONS, seed=42
    )
    return {
        "correct": correct,
        "total": total,
        "accuracy": correct / total,
        "accuracy_interval_95": list(wilson_interval(correct, total)),
        "accuracy_expression_credited": sum(i["correct_credited"] for i in items) / total,
        "accuracy_flexible": sum(i["correct_flexible"] for i in items) / total,
        "training_mode_answer": training_mode,
        "training_mode_accuracy": mode.accuracy,
        "best_constant_answer": constant.answer,
        "best_constant_accuracy": constant.accuracy,
        "matched_floor": matched,
        "matched_floor_p": p,
        **({"attribution": attribution(items)} if all("first_wrong" in i for i in items) else {}),
        **decoding_metrics(items),
        **(_continuous(items, decode["num_rationales"]) if decode["num_rationales"] else {}),
    }


def _continuous(items: Sequence[Item], rationales: int) -> dict[str, Any]:
    cuts = sum(item["forced_cuts"] for item in items)
    return {
        **{name: math.fsum(item[name] for item in items) / len(items) for name in SCORES},
        "g1_rationales": rationales,
        "g1_forced_cut_share": cuts / (len(items) * rationales),
    }


def arithmetic_metrics(items: Sequence[Item], scores: Sequence[Item]) -> dict[str, Any]:
    """Return all metrics of the probes but their speed.

    scores: A1's lines, one per cell and wording, the wordings of a cell together.
    """
    by_category = {c: [i for i in items if i["category"] == c] for c in CATEGORIES}
    correct = sum(i["correct"] for i in items)
    table = [i["correct"] for i in by_category["mul_table"]]
    size = len(table) // len(TABLE)  # wordings of a cell
    cells = [sum(table[i : i + size]) / size for i in range(0, len(table), size)]
    return {
        "overall_accuracy": correct / len(items),
        "overall_accuracy_interval_95": list(wilson_interval(correct, len(items))),
        "overall_accuracy_expression_credited": sum(i["correct_credited"] for i in items)
        / len(items),
        "correct": correct,
        "total": len(items),
        "category_accuracies": {
            category: {
                "accuracy": sum(i["correct"] for i in group) / len(group),
                "correct": sum(i["correct"] for i in group),
                "total": len(group),
            }
            for category, group in by_category.items()
        },
        "table_grid": nine_by_nine(cells),
        **table_metrics(scores),
        **decoding_metrics(items),
    }


def table_metrics(
    scores: Sequence[Item], *, endpoint: str = "a1", wordings: int = len(TEMPLATES)
) -> dict[str, Any]:
    """Return A1 (or A2), its grid and the fact mass from the lines of the table's scores.

    a1_both_routes counts digits and fact tokens together (exploratory); lines of older versions,
    and of stories, do not tell.
    """
    cells = _cell_means([line["value"] for line in scores], wordings)
    metrics = {
        endpoint: math.fsum(cells) / len(cells),
        f"{endpoint}_grid": nine_by_nine(cells),
        "fact_mass": math.fsum(line["fact_mass"] for line in scores) / len(scores),
    }
    if all("both_value" in line for line in scores):
        cells = _cell_means([line["both_value"] for line in scores], wordings)
        metrics[f"{endpoint}_both_routes"] = math.fsum(cells) / len(cells)
        metrics[f"{endpoint}_both_routes_grid"] = nine_by_nine(cells)
    return metrics


def story_metrics(items: Sequence[Item], scores: Sequence[Item]) -> dict[str, Any]:
    """Return all metrics of the story probe but its speed, with its floors.

    scores: A2's lines, one per cell and story, the stories of a cell together, as are the items.
    """
    correct, golds = sum(i["correct"] for i in items), [item["gold"] for item in items]
    constant = best_constant(golds)
    matched, p = matched_floor(
        [item["strict"] for item in items], golds, permutations=PERMUTATIONS, seed=42
    )
    return {
        "accuracy": correct / len(items),
        "accuracy_interval_95": list(wilson_interval(correct, len(items))),
        "accuracy_expression_credited": sum(i["correct_credited"] for i in items) / len(items),
        "correct": correct,
        "total": len(items),
        "best_constant_answer": constant.answer,
        "best_constant_accuracy": constant.accuracy,
        "matched_floor": matched,
        "matched_floor_p": p,
        **story_floors(),
        "story_grid": nine_by_nine(_cell_means([float(i["correct"]) for i in items], len(STORIES))),
        **table_metrics(scores, endpoint="a2", wordings=len(STORIES)),
        **decoding_metrics(items),
    }


def _cell_means(values: Sequence[float], size: int) -> list[float]:
    """Return the mean of each cell; values: of its `size` wordings, cell after cell."""
    return [math.fsum(values[i : i + size]) / size for i in range(0, len(values), size)]


def decoding_metrics(items: Sequence[Item]) -> dict[str, float | int | None]:
    """Return stop rate, length and reserved-token counts; tokens count by id, not in text.

    mul_token_correct_rate is the share of emitted fact tokens that belong in the answer,
    mul_token_valid_rate the share that are right where they stand; None where none was emitted.
    """
    stops = [item["stop_reason"] for item in items]
    facts, right, valid, reserved = (
        sum(item[name] for item in items)
        for name in ("mul_tokens", "mul_tokens_correct", "mul_tokens_valid", "reserved_tokens")
    )
    return {
        "stop_rate": stops.count("eos") / len(items),
        "run_on_rate": sum("\nUser:" in item["response"] for item in items) / len(items),
        "avg_response_tokens": sum(len(item["token_ids"]) for item in items) / len(items),
        "mul_token_count": facts,
        "mul_tokens_per_response": facts / len(items),
        "mul_token_correct_rate": right / facts if facts else None,
        "mul_token_valid_rate": valid / facts if facts else None,
        "reserved_token_count": reserved,
    }


def decoding_speed(items: Sequence[Item], seconds: float) -> dict[str, float]:
    """Return what was measured of the greedy answers, seconds, and what follows from it."""
    tokens = sum(len(item["token_ids"]) for item in items)
    return {
        "samples_per_second": len(items) / seconds,
        "tokens_per_second": tokens / seconds,
        "seconds": seconds,
    }


def nine_by_nine(cells: Sequence[float]) -> list[list[float]]:
    """Return 81 values in the table's order as nine rows."""
    return [list(cells[row * 9 : row * 9 + 9]) for row in range(9)]


def _equal(answer: Decimal | None, gold: str) -> bool:
    try:
        return answer is not None and answer == Decimal(gold)
    except InvalidOperation:  # a gold that is no number makes nothing right
        return False
