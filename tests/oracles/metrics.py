"""Metrics of an evaluation from its lines, by NumPy and a few plain lines: no project code.

It shares nothing with `domain_tokens.evaluation.metrics`: what both say alike is not said by one
mistake.
"""

import json
import re

import numpy as np

NORMAL = 1.959963984540054  # the two-sided 95 % quantile


def lines(path):
    return [json.loads(line) for line in path.open()]


def wilson(right, total):
    """The roots of (p − p̂)² = z² p (1 − p) / n."""
    share = right / total
    roots = np.roots([1 + NORMAL**2 / total, -(2 * share + NORMAL**2 / total), share**2])
    return [max(0.0, min(roots.real)), min(1.0, max(roots.real))]


def share(values):
    return float(np.mean(list(values)))


def decoding(items):
    ids = np.array([len(x["token_ids"]) for x in items])
    facts = sum(len(x["fact_spans"]) for x in items)
    valid, right = (sum(x[k] for x in items) for k in ("mul_tokens_valid", "mul_tokens_correct"))
    return {
        "stop_rate": share(x["stop_reason"] == "eos" for x in items),
        "run_on_rate": share(bool(re.search("\nUser:", x["response"])) for x in items),
        "avg_response_tokens": float(ids.mean()),
        "mul_token_count": facts,
        "mul_tokens_per_response": facts / len(items),
        "mul_token_correct_rate": right / facts if facts else None,
        "mul_token_valid_rate": valid / facts if facts else None,
        "reserved_token_count": sum(x["reserved_tokens"] for x in items),
    }


def gsm8k(items, *, frequent):
    right = [x["strict"] is not None and float(x["strict"]) == float(x["gold"]) for x in items]
    golds = np.array([float(x["gold"]) for x in items])
    _, counts = np.unique(golds, return_counts=True)
    said = [np.nan if x["strict"] is None else float(x["strict"]) for x in items]
    sampled = np.exp([x["g1_log_probs"] for x in items])  # [items, K]
    alone = np.exp([x["g2_log_probs"] for x in items])  # [items, 17]
    half = sampled[:, : sampled.shape[1] // 2]
    return {
        "correct": sum(right),
        "total": len(items),
        "accuracy": share(right),
        "accuracy_interval_95": wilson(sum(right), len(items)),
        "accuracy_flexible": share(
            x["flexible"] is not None and float(x["flexible"]) == float(x["gold"]) for x in items
        ),
        "accuracy_expression_credited": share(
            x["credited"] is not None and float(x["credited"]) == float(x["gold"]) for x in items
        ),
        "training_mode_answer": frequent[0],
        "training_mode_accuracy": share(golds == float(frequent[0])),
        "best_constant_accuracy": float(counts.max() / len(items)),
        "matched_floor": share([[a == b for b in golds] for a in said]),
        "attribution": {
            kind: [(x["first_wrong"] or {}).get("kind") for x in items].count(kind)
            for kind in ("table_fact", "product", "sum", "difference", "quotient", "none")
        },
        **decoding(items),
        "g1": float(sampled.mean()),
        "g1_half": float(half.mean()),
        "g1_log": share(np.log(sampled.mean(axis=1))),
        "g1_log_half": share(np.log(half.mean(axis=1))),
        "g2": share(np.log(alone[:, 0] / alone.sum(axis=1))),
        "g1_rationales": sampled.shape[1],
        "g1_forced_cut_share": sum(x["forced_cuts"] for x in items) / sampled.size,
    }


def arithmetic(items, scores):
    right = np.array([x["strict"] == x["gold"] for x in items])
    credited = [x["credited"] == x["gold"] for x in items]
    kinds = np.array([x["category"] for x in items])
    grid, both = (
        [
            [
                share(
                    line[kind + "log_prob"] - line[kind + "log_sum"]
                    for line in scores
                    if (line["a"], line["b"]) == (a, b)
                )
                for b in range(1, 10)
            ]
            for a in range(1, 10)
        ]
        for kind in ("", "both_")
    )
    asked = {x["prompt"]: float(x["strict"] == x["gold"]) for x in items}
    return {
        "overall_accuracy": share(right),
        "overall_accuracy_interval_95": wilson(int(right.sum()), len(items)),
        "overall_accuracy_expression_credited": share(credited),
        "correct": int(right.sum()),
        "total": len(items),
        "category_accuracies": {
            kind: {
                "accuracy": share(right[kinds == kind]),
                "correct": int(right[kinds == kind].sum()),
                "total": int((kinds == kind).sum()),
            }
            for kind in ("mul_table", "mul_multidigit", "addition")
        },
        "table_grid": [
            [asked[f"What is {a} times {b}?"] for b in range(1, 10)] for a in range(1, 10)
        ],
        "a1": share(np.array(grid).ravel()),
        "a1_grid": grid,
        "a1_both_routes": share(np.array(both).ravel()),
        "a1_both_routes_grid": both,
        "fact_mass": share(line["fact_mass"] for line in scores),
        **decoding(items),
    }
