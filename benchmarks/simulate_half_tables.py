"""How often half tables claim what is not there, cover what is, and find what they print."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from domain_tokens.comparison import (
    Aim,
    RunNoise,
    detectable_effect,
    half_means,
    randomisation_p,
    redrawn_halves,
    signs_of,
)
from domain_tokens.runs import Parser, code_identity, run_script, write_json
from domain_tokens.statistics import run_means_t
from domain_tokens.treatments import draw_half
from domain_tokens.vocabulary import FACTS

EXAMPLE = "uv run python benchmarks/simulate_half_tables.py --studies 2000 --output-path sim.json"
ALPHA, POWER = 0.05, 0.8
AIM = Aim(ALPHA, POWER, comparisons=2)  # Holm's first step over A1 and G1
SEEDS = (3, 5, 10)
POOL = 2000  # halves of which the studies take theirs
REDRAWS = 499
RUN_SD, UNIT_SD = 0.72, 1.0  # nats: progress/03; a fact in a run, as in issue 18
# How often a fact occurs in training: a few often, most of them seldom (the shape of GSM8K's rows).
OCCURRENCES = {fact: int(400 * 0.9**rank) + 1 for rank, fact in enumerate(FACTS)}


@dataclass(frozen=True)
class Model:
    """What is planted; in nats, or as fractions for items.

    direct: the mean over facts of what its token does to a fact, which differ by uneven (SD).
    spill: what training with tokens does to every unit of such a run. shift: of half A, whole.
    unit_sds: noise of a unit in half A and in half B. rare: noise grows for rare facts. tails:
    degrees of freedom of t noise.
    """

    name: str
    direct: float = 0.0
    uneven: float = 0.0
    spill: float = 0.0
    shift: float = 0.0
    unit_sds: tuple[float, float] = (UNIT_SD, UNIT_SD)
    rare: bool = False
    tails: float | None = None
    run_sd: float = RUN_SD
    items: int = 0


MODELS = (
    Model("null"),
    Model("null, run shift of 3 SD", shift=3 * RUN_SD),
    Model("null, spill-over 0.5", spill=0.5),
    Model("null, half B three times as noisy", unit_sds=(UNIT_SD, 3 * UNIT_SD)),
    Model("null, rare facts noisier", rare=True),
    Model("null, heavy tails", tails=2.5),
    Model("direct 0.5", direct=0.5),
    Model("direct 0.5, run shift of 3 SD", direct=0.5, shift=3 * RUN_SD),
    Model("direct 0.5, spill-over 0.5", direct=0.5, spill=0.5),
    Model("direct 0.5, uneven by 0.5", direct=0.5, uneven=0.5),
    Model("items, null", unit_sds=(0.15, 0.15), run_sd=0.02, items=400),
    Model("items, direct 0.02", direct=0.02, unit_sds=(0.15, 0.15), run_sd=0.02, items=400),
)


def units(model: Model) -> np.ndarray:
    """Return which facts each unit uses, [n, 45]: a fact itself, or one to three for an item."""
    if not model.items:
        return np.eye(len(FACTS), dtype=bool)
    rng = np.random.default_rng(45)
    weights = np.array(list(OCCURRENCES.values()), dtype=float)
    uses = np.zeros((model.items, len(FACTS)), dtype=bool)
    for row in uses:
        count = rng.choice([1, 2, 3], p=[0.6, 0.3, 0.1])
        row[rng.choice(len(FACTS), count, replace=False, p=weights / weights.sum())] = True
    return uses


def study(
    model: Model, uses: np.ndarray, treated: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Return half A less half B [S, n], signs [S, n], two arms' run means [S], and the truth.

    treated: [S, 45] of half A.
    """
    seeds, n = len(treated), len(uses)
    gains = model.direct + model.uneven * rng.standard_normal(len(FACTS))
    gains += (model.direct - gains.mean()) if model.uneven else 0.0
    of_unit = uses @ gains / uses.sum(axis=1)
    noise = np.ones(n)
    if model.rare:
        noise = np.sqrt(100 / (uses @ np.array(list(OCCURRENCES.values())) / uses.sum(axis=1)))

    def run(full: np.ndarray, sd: float) -> np.ndarray:
        """[S, n] of runs; full: the share of a unit's facts that were treated, 0 or 1 counts."""
        tail = (
            rng.standard_normal((seeds, n))
            if model.tails is None
            else rng.standard_t(model.tails, (seeds, n))
        )
        shift = rng.normal(0, model.run_sd, (seeds, 1))
        return of_unit * full + shift + sd * noise * tail

    shares = treated.astype(float) @ uses.T / uses.sum(axis=1)
    d = run(shares, model.unit_sds[0]) - run(1 - shares, model.unit_sds[1])
    # Spill-over is in both halves alike, but each run has its own.
    spills = model.spill * (1 + 0.2 * rng.standard_normal((2, seeds, 1)))
    d = d + model.shift + spills[0] - spills[1]
    whole = run(np.ones((seeds, n)), model.unit_sds[0]) + model.spill
    baseline = run(np.zeros((seeds, n)), model.unit_sds[0])
    return d, signs_of(uses, treated), (whole - baseline).mean(axis=1), float(of_unit.mean())


def cell(
    model: Model, seeds: int, studies: int, pool: np.ndarray, rng: np.random.Generator
) -> dict[str, Any]:
    """Return the shares of studies that reject, cover and find, and errors of both designs."""
    uses = units(model)
    hits: dict[str, list[float]] = {}

    def count(**halves: float) -> None:
        for name, value in halves.items():
            hits.setdefault(name, []).append(value)

    for number in range(studies):
        treated = pool[rng.integers(len(pool), size=seeds)]
        d, signs, two_arms, truth = study(model, uses, treated, rng)
        means = np.array([half_means(x, s) for x, s in zip(d, signs, strict=True)])
        halves, arms = run_means_t(means), run_means_t(two_arms)
        low, high = halves.interval(1 - ALPHA) or (0.0, 0.0)
        noise = RunNoise(float(means.var(ddof=1)) / 2, seeds - 1.0)
        planted = detectable_effect(noise.difference(seeds), AIM)
        # What a new study of this kind finds of what this one prints.
        again, signs_again, _, _ = study(replace(model, direct=0.0), uses, treated, rng)
        later = [half_means(x, s) for x, s in zip(again, signs_again, strict=True)]
        p = run_means_t(np.array(later) + planted).p()
        count(
            estimate=halves.mean,
            se=halves.se,
            two_arm_se=arms.se,
            truth=truth,
            t=(halves.p() or 0.0) < ALPHA,
            two_arm_t=(arms.p() or 0.0) < ALPHA,
            covers=low <= truth <= high,
            printed=(p or 0.0) < ALPHA / 2,
        )
        if number < studies // 4:
            redrawn = [pool[rng.integers(len(pool), size=REDRAWS)] for _ in range(seeds)]
            count(fisher=randomisation_p(d, signs, redrawn, uses) < ALPHA)
    return {name: float(np.mean(values)) for name, values in hits.items()}


def simulate(studies: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield a row per model and number of seeds."""
    pool = redrawn_halves(OCCURRENCES, draw_half, count=POOL, seed=seed)
    cells = [(number, model, s) for number, model in enumerate(MODELS) for s in SEEDS]
    for number, model, seeds in tqdm(cells, desc="cells", disable=None):
        rng = np.random.default_rng([seed, number, seeds])
        yield {"model": model.name, "seeds": seeds, **cell(model, seeds, studies, pool, rng)}


def shift_moves(seed: int) -> float:
    """Return the largest change of an estimate that a shift of 3 SD of one half makes."""
    pool = redrawn_halves(OCCURRENCES, draw_half, count=50, seed=seed)
    estimates = []
    for shift in (0.0, 3 * RUN_SD):
        rng, model = np.random.default_rng(seed), Model("shift", direct=0.5, shift=shift)
        for number in range(100):
            treated = pool[[number % 50, (number + 7) % 50, (number + 19) % 50]]
            d, signs, _, _ = study(model, units(model), treated, rng)
            estimates.append(np.mean([half_means(x, s) for x, s in zip(d, signs, strict=True)]))
    return float(np.abs(np.subtract(estimates[:100], estimates[100:])).max())


def table(rows: Sequence[dict[str, Any]], studies: int) -> str:
    """Return the rows as a Markdown table; shares in percent."""
    bands = [2.326 * (ALPHA * (1 - ALPHA) / n) ** 0.5 for n in (studies, studies // 4)]
    shares = {
        "t": "t rejects",
        "fisher": "randomisation rejects",
        "covers": "t covers",
        "printed": "found at printed",
        "two_arm_t": "two arms reject",
    }
    numbers = {
        "truth": "planted",
        "estimate": "mean estimate",
        "se": "SE",
        "two_arm_se": "two-arm SE",
    }
    head = [*numbers.values(), "ratio", *shares.values()]
    lines = [
        f"{studies:,} studies a cell ({studies // 4:,} for the randomisation test, {REDRAWS} "
        f"redraws); the upper 99 % band of a true 5 % is {ALPHA + bands[0]:.1%} "
        f"({ALPHA + bands[1]:.1%}).",
        "",
        f"| model | seeds | {' | '.join(head)} |",
        "|---|---|" + "---|" * len(head),
    ]
    for row in rows:
        cells = [f"{row[key]:.3f}" for key in numbers] + [f"{row['se'] / row['two_arm_se']:.2f}"]
        cells += [f"{100 * row[key]:.1f}" for key in shares]
        lines.append(f"| {row['model']} | {row['seeds']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Simulate, print the table, write JSON."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    parser.add_argument("--studies", type=int, default=2000, metavar="N", help="per cell")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output-path", metavar="FILE", help="write the rows here as JSON")
    args: argparse.Namespace = parser.parse_args(argv)
    rows = list(simulate(args.studies, args.seed))
    print(table(rows, args.studies))
    moved = shift_moves(args.seed)
    print(f"\nA shift of 3 SD of a whole half moves no estimate by more than {moved:.1e}.")
    if args.output_path:
        content = {"rows": rows, "shift_moves": moved, "code": code_identity()}
        write_json(Path(args.output_path), content)
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
