"""Whether a printed detectable effect is found, a null interaction kept, Holm's family held."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from domain_tokens.comparison import (
    Aim,
    ItemNoise,
    RunNoise,
    detectable_effect,
    item_noise,
    run_noise,
    seeds_needed,
)
from domain_tokens.runs import Parser, code_identity, run_script, write_json
from domain_tokens.statistics import crossed_contrast, crossed_t, holm, holm_levels, run_means_t

EXAMPLE = "uv run python benchmarks/simulate_power.py --studies 2000 --output-path power.json"
ITEM_ARM_SD = (0.0, 0.05, 0.1, 0.2)
ITEMS = (50, 200, 1319)
SEEDS = (2, 3, 5, 10)
RUN_SD = (0.0, 0.02)  # of a run's mean, one arm
REST_SD = 0.15  # item × run, one arm: K = 16 samples of a probability of 0.6 vary by 0.12
PILOT_RUNS = 10
ALPHA, POWER = 0.05, 0.8
AIM = Aim(ALPHA, POWER, comparisons=2)
MAX_SEEDS = 60  # where more were needed, the margin is not tried


def runs(rng: np.random.Generator, count: int, items: int, *, run_sd: float) -> np.ndarray:
    """Return values of runs of one condition less what all of them share, [count, items]."""
    return rng.normal(0, run_sd, (count, 1)) + rng.normal(0, REST_SD, (count, items))


def study(
    rng: np.random.Generator, seeds: int, items: int, *, run_sd: float, item_arm_sd: float
) -> np.ndarray:
    """Return both arms of a study without an effect, [2, seeds, items]."""
    arms = np.stack([runs(rng, seeds, items, run_sd=run_sd) for _ in range(2)])
    arms[1] += rng.normal(0, item_arm_sd, items)
    return arms


def called(arms: np.ndarray, effect: float) -> bool:
    """Return whether a planted effect passes Holm's first step, at α over two primaries."""
    p = crossed_t(arms[1] - arms[0] + effect).p()
    return p is not None and p < ALPHA / 2


def power_cell(
    rng: np.random.Generator, seeds: int, items: int, studies: int, **noise: float
) -> dict[str, float]:
    """Plant what is printed, and count how often it is found.

    piloted: runs' noise from a pilot, items' from the study itself. alone: all from an earlier
    study of the same size. without: the formula before the item term, from the pilot. margin: what
    five seeds detect on average, with the seeds that a pilot and an earlier study ask for.
    """
    hits: dict[str, list[bool]] = {"piloted": [], "alone": [], "without": [], "margin": []}
    run_sd, expected = noise["run_sd"], _expected(items, **noise)
    for _ in range(studies):
        pilot = run_noise([runs(rng, PILOT_RUNS, items, run_sd=run_sd)])
        earlier, arms = (study(rng, seeds, items, **noise) for _ in range(2))
        item = [item_noise(a[1] - a[0]) for a in (earlier, arms)]
        for name, error in (
            ("piloted", pilot.difference(seeds, item[1])),
            ("alone", run_noise(list(earlier)).difference(seeds, item[0])),
            ("without", pilot.difference(seeds)),
        ):
            hits[name].append(called(arms, detectable_effect(error, AIM)))
        if seeds == 5:
            needed = seeds_needed(pilot, expected, AIM, items=item[0], max_seeds=MAX_SEEDS)
            if needed is not None:
                hits["margin"].append(called(study(rng, needed, items, **noise), expected))
    return {name: float(np.mean(values)) for name, values in hits.items() if values}


def _expected(items: int, *, run_sd: float, item_arm_sd: float) -> float:
    """Return what five seeds detect where the noise is known."""
    known = RunNoise(run_sd**2 + REST_SD**2 / items, 1e9)
    item = ItemNoise(item_arm_sd**2 / items, 2 * REST_SD**2 / items, items)
    return detectable_effect(known.difference(5, item), AIM)


def power(studies: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield a row per cell of the grid."""
    cells = [(r, n, i, s) for r in RUN_SD for n in ITEMS for i in ITEM_ARM_SD for s in SEEDS]
    for number, (run_sd, items, item_arm_sd, seeds) in enumerate(
        tqdm(cells, desc="power", disable=None)
    ):
        rng = np.random.default_rng([seed, number])
        row = {"run_sd": run_sd, "items": items, "item_arm_sd": item_arm_sd, "seeds": seeds}
        noise = {"run_sd": run_sd, "item_arm_sd": item_arm_sd}
        yield row | power_cell(rng, seeds, items, studies, **noise)


def interaction(studies: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield how often a null interaction is rejected, items as a sample and as a census."""
    cells = [(i, s, k) for i in ITEM_ARM_SD for s in (2, 5, 10) for k in (50, 300)]
    for item_arm_sd, seeds, chosen in tqdm(cells, desc="interaction", disable=None):
        rng = np.random.default_rng([seed, seeds, chosen, round(100 * item_arm_sd)])
        mask = np.arange(1319) < chosen
        hits, census = [], []
        for _ in range(studies):
            arms = study(rng, seeds, len(mask), run_sd=0.02, item_arm_sd=item_arm_sd)
            d = arms[1] - arms[0]
            means = d[:, mask].mean(axis=1) - d[:, ~mask].mean(axis=1)
            hits.append((crossed_contrast(d, mask).p() or 0) < ALPHA)
            census.append((run_means_t(means).p() or 0) < ALPHA)
        row = {"item_arm_sd": item_arm_sd, "seeds": seeds, "chosen": chosen}
        yield row | {"rejects": float(np.mean(hits)), "census": float(np.mean(census))}


def family(studies: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield how often a study claims anything false of two primaries, and where words and interval
    part."""
    for effect in tqdm((0.0, 0.5, 2.0, 8.0), desc="family", disable=None):  # of the first, in SE
        rng = np.random.default_rng([seed, round(10 * effect)])
        false, parted = 0, 0
        for _ in range(studies):
            means = rng.normal(0, 1, (2, 5))
            means[0] += effect / 5**0.5
            estimates = [run_means_t(m) for m in means]
            p = [estimate.p() or 0.0 for estimate in estimates]
            levels, adjusted = holm_levels(p, ALPHA), holm(p)
            claims = [a < ALPHA for a in adjusted]
            for estimate, level, claim in zip(estimates, levels, claims, strict=True):
                low, high = estimate.interval(1 - level) or (0, 0)
                parted += claim == (low <= 0 <= high)
            false += claims[1] or (effect == 0 and claims[0])
        yield {"effect": effect, "false": false / studies, "parted": parted}


def table(rows: Sequence[dict[str, Any]], shares: Sequence[str]) -> str:
    """Return rows as a Markdown table; shares in percent."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"| {' | '.join(keys)} |", "|" + "---|" * len(keys)]
    for row in rows:
        cells = [
            "" if row.get(k) is None else f"{100 * row[k]:.1f}" if k in shares else f"{row[k]:g}"
            for k in keys
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Simulate, print three tables, write JSON."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    parser.add_argument("--studies", type=int, default=2000, metavar="N", help="per cell")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output-path", metavar="FILE", help="write the rows here as JSON")
    args: argparse.Namespace = parser.parse_args(argv)
    made: dict[str, Any] = {
        "power": list(power(args.studies, args.seed)),
        "interaction": list(interaction(args.studies, args.seed)),
        "family": list(family(10 * args.studies, args.seed)),
    }
    print(
        f"{args.studies:,} studies a cell (family: {10 * args.studies:,}); the lower 99 % band of "
        f"80 % is {POWER - 2.326 * (0.16 / args.studies) ** 0.5:.1%}, the upper one of 5 % is "
        f"{ALPHA + 2.326 * (0.0475 / args.studies) ** 0.5:.1%}."
    )
    shares = ("piloted", "alone", "without", "margin", "rejects", "census", "false")
    for name, rows in made.items():
        print(f"\n{name}\n\n{table(rows, shares)}")
    if args.output_path:
        made["code"] = code_identity()
        write_json(Path(args.output_path), made)
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
