"""How often the tests of the analysis reject a true null and cover it (simulate_power: find)."""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from domain_tokens.comparison import ENDPOINTS, load_pilot, value_matrix
from domain_tokens.runs import Parser, code_identity, run_script, write_json
from domain_tokens.statistics import crossed_t, mcnemar_exact, permutation_of_runs, run_means_t

EXAMPLE = "uv run python benchmarks/simulate_verdicts.py --studies 2000 --output-path sim.json"
SEEDS = (1, 3, 5, 10)
ITEMS = 1319  # questions of GSM8K's test set
LEVEL = 0.05

# A generator returns the values of S runs of an arm pair, [2, S, items], of which the true mean
# difference is `effect`.
Generator = Callable[[np.random.Generator, int, float], np.ndarray]


def crossed(
    rng: np.random.Generator, seeds: int, effect: float, *, run_sd: float, item_arm_sd: float
) -> np.ndarray:
    """Right or wrong: Beta item difficulty of mean 2.5 %, run noise and item × arm in logits."""
    difficulty = np.clip(rng.beta(0.5, 19.5, ITEMS), 1e-5, 1 - 1e-5)
    logits = np.log(difficulty / (1 - difficulty))
    logits = logits + rng.normal(0, item_arm_sd, (2, 1, ITEMS))
    logits = logits + rng.normal(0, run_sd, (2, seeds, 1))
    chance = 1 / (1 + np.exp(-logits))
    chance[1] = np.clip(chance[1] + effect, 0, 1)
    return (rng.random(chance.shape) < chance).astype(float)


def habits(rng: np.random.Generator, seeds: int, effect: float) -> np.ndarray:
    """Right or wrong: items in 100 groups that a run answers with one and the same number."""
    popularity = 1 / np.arange(2, 202)
    popularity /= popularity.sum()
    golds = rng.choice(200, ITEMS, p=popularity)
    groups = rng.integers(100, size=ITEMS)
    said = rng.choice(200, (2, seeds, 100), p=popularity)[..., groups]
    right = (said == golds).astype(float)
    right[1] = np.maximum(right[1], rng.random((seeds, ITEMS)) < effect)
    return right


def collapsed(rng: np.random.Generator, seeds: int, effect: float) -> np.ndarray:
    """Right or wrong, and one run of either arm is wrong everywhere."""
    values = crossed(rng, seeds, effect, run_sd=0.15, item_arm_sd=0.0)
    values[rng.integers(2), rng.integers(seeds)] = 0
    return values


def collapsing(
    rng: np.random.Generator, seeds: int, effect: float, *, level: float, share: float
) -> np.ndarray:
    """Probabilities around a level, and each run of either arm is 0 everywhere now and then."""
    values = np.clip(rng.normal(level, 0.1, ITEMS), 0, 1) + rng.normal(0, 0.02, (2, seeds, 1))
    values = values + rng.normal(0, 0.1, (2, seeds, ITEMS))
    values[rng.random((2, seeds)) < share] = 0
    values[1] += effect
    return values


def heavy(rng: np.random.Generator, seeds: int, effect: float) -> np.ndarray:
    """Log-probabilities: t noise with 2.5 degrees of freedom per item, run SD 0.05 nats."""
    values = rng.normal(-4, 2, ITEMS) + rng.normal(0, 0.05, (2, seeds, 1))
    values = values + rng.standard_t(2.5, (2, seeds, ITEMS))
    values[1] += effect
    return values


def resampled(
    rng: np.random.Generator, seeds: int, effect: float, *, runs: np.ndarray
) -> np.ndarray:
    """Real runs of one condition [R, items], split at random into two arms."""
    chosen = rng.permutation(len(runs))[: 2 * seeds]
    values = runs[chosen].reshape(2, seeds, -1).copy()
    values[1] += effect
    return values


def generators() -> dict[str, Generator]:
    """Return the simulated null models by name."""
    grid = {
        f"(a) run SD {run_sd}, item × arm SD {item_arm}": partial(
            crossed, run_sd=run_sd, item_arm_sd=item_arm
        )
        for run_sd in (0.0, 0.15, 0.3)
        for item_arm in (0.0, 0.7)
    }
    return {
        **grid,
        "(b) answer habits": habits,
        "(c) one collapsed run": collapsed,
        "(c) one run in five collapses": partial(collapsing, level=0.3, share=0.2),
        "(c) every other run collapses": partial(collapsing, level=0.8, share=0.5),
        "(d) heavy-tailed log-probabilities": heavy,
    }


def null_cell(
    make: Generator, seeds: int, studies: int, rng: np.random.Generator, *, census: bool
) -> dict[str, float]:
    """Return the share of studies without an effect that each test rejects, and coverage."""
    hits: dict[str, list[bool]] = {}
    for _ in range(studies):
        values = make(rng, seeds, 0.0)
        d = values[1] - values[0]
        if set(np.unique(values)) <= {0.0, 1.0}:
            b, c = int((d[0] < 0).sum()), int((d[0] > 0).sum())
            hits.setdefault("mcnemar", []).append(mcnemar_exact(b, c) < LEVEL)
        if seeds == 1:
            continue
        estimate = run_means_t(d.mean(axis=1)) if census else crossed_t(d)
        p, interval = estimate.p(), estimate.interval(1 - LEVEL)
        hits.setdefault("t", []).append(p is not None and p < LEVEL)
        hits.setdefault("covered", []).append(
            interval is None or interval[0] <= 0 <= interval[1]  # None: nothing is claimed
        )
        p = permutation_of_runs(d.mean(axis=1))
        hits.setdefault("permutation", []).append(p < LEVEL)
    return {name: float(np.mean(estimate)) for name, estimate in hits.items()}


def simulate(
    models: dict[str, tuple[Generator, bool, Sequence[int]]], studies: int, seed: int
) -> list[dict]:
    """Return a row per model and number of seeds."""
    rows = []
    cells = [(name, *model, s) for name, model in models.items() for s in model[2]]
    for name, make, census, _, seeds in tqdm(cells, desc="cells", disable=None):
        rng = np.random.default_rng([seed, seeds, len(rows)])
        row = {"model": name, "seeds": seeds}
        row |= null_cell(make, seeds, studies, rng, census=census)
        rows.append(row)
    return rows


def table(rows: list[dict], studies: int) -> str:
    """Return the rows as a Markdown table; shares in percent."""
    reach = 2.326 * (LEVEL * (1 - LEVEL) / studies) ** 0.5
    columns = {
        "mcnemar": "McNemar exact",
        "t": "t rejects",
        "covered": "t covers",
        "permutation": "permutation",
    }
    lines = [
        f"{studies:,} studies a cell; the upper 99 % band of a true 5 % is {LEVEL + reach:.1%}.",
        "",
        f"| null model | seeds | {' | '.join(columns.values())} |",
        "|---|---|" + "---|" * len(columns),
    ]
    for row in rows:
        shares = [f"{100 * row[key]:.1f}" if key in row else "" for key in columns]
        lines.append(f"| {row['model']} | {row['seeds']} | {' | '.join(shares)} |")
    return "\n".join(lines)


def real_models(folders: list[str]) -> dict[str, tuple[Generator, bool, Sequence[int]]]:
    """Return the A/A models of real runs: as many seeds as two arms can have of them."""
    if not folders:
        return {}
    runs = load_pilot([Path(folder) for folder in folders])
    sizes = [s for s in SEEDS if s > 1 and 2 * s <= len(runs)]
    models = {}
    for endpoint in ENDPOINTS[:2]:
        values = value_matrix(runs, endpoint)
        if values is not None:
            make = partial(resampled, runs=values)
            models[f"(e) real A/A, {endpoint.name}"] = (make, endpoint.census, sizes)
    return models


def main(argv: list[str] | None = None) -> int:
    """Simulate, print the table, write JSON."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    parser.add_argument("--studies", type=int, default=2000, metavar="N", help="per cell")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument(
        "--aa-dir", nargs="+", default=[], metavar="DIR", help="evaluation folders of one condition"
    )
    parser.add_argument("--only-real", action="store_true", help="only the runs of --aa-dir")
    parser.add_argument("--output-path", metavar="FILE", help="write the rows here as JSON")
    args: argparse.Namespace = parser.parse_args(argv)
    models = real_models(args.aa_dir)
    if not args.only_real:
        models = {n: (make, False, SEEDS) for n, make in generators().items()} | models
    rows = simulate(models, args.studies, args.seed)
    print(table(rows, args.studies))
    if args.output_path:
        code = code_identity()
        write_json(Path(args.output_path), {"rows": rows, "code": code})
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
