"""Half tables: what a fact's token does to that fact, within runs and crossed over (design §5)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from domain_tokens.comparison.fact_values import (
    Units,
    occurrences_of,
    treated_facts,
    treatment_record,
    units_of,
    values_of,
)
from domain_tokens.comparison.half_contrast import (
    Draw,
    dose_slopes,
    randomisation_p,
    redrawn_halves,
    signs_of,
)
from domain_tokens.comparison.over_seeds import _shown
from domain_tokens.comparison.power import Aim, RunNoise, detectable_effect, seeds_needed
from domain_tokens.comparison.runs import lineage_clusters, same_base
from domain_tokens.comparison.values import ENDPOINTS, PRIMARIES
from domain_tokens.comparison.words import MAX_SEEDS
from domain_tokens.errors import UserError
from domain_tokens.runs import ArmsPlan
from domain_tokens.statistics import run_means_t
from domain_tokens.vocabulary import FACTS, fact_token

if TYPE_CHECKING:
    from domain_tokens.comparison.runs import Run

NAME = "half table"
UNITS = {endpoint.name: endpoint.unit for endpoint in ENDPOINTS}
EVALUATIONS = {endpoint.name: endpoint.evaluation for endpoint in ENDPOINTS}
Pair = tuple["Run", "Run"]  # half A and half B of one seed


@dataclass(frozen=True, slots=True)
class HalfTables:
    """All seeds of a half-table study. treated: of half A, [S, 45 booleans].

    groups: the seeds' numbers, those together that share a trained ancestor. left_out: facts that
    never occur in the rows that a half was drawn from, so that nobody was treated with them.
    """

    pairs: Sequence[Pair]
    treated: np.ndarray
    groups: list[list[int]]
    left_out: tuple[str, ...]

    def grouped(self, by_seed: np.ndarray) -> np.ndarray:
        """Return the mean over the seeds of each independent lineage."""
        return np.array([by_seed[group].mean() for group in self.groups])


def pair_halves(pairs: Sequence[Pair]) -> HalfTables:
    """Check that the halves of each seed are complements of one base, and return the study.

    Raises UserError, with both folders, where they are not.
    """
    treated = []
    for pair in pairs:
        first, second = (treated_facts(run) for run in pair)
        where = f"{pair[0].folder} and {pair[1].folder}"
        if (first == second).any():
            both = [f for f, a, b in zip(FACTS, first, second, strict=True) if a and b]
            what = f"both treat {both[0]}" if both else "some facts are treated in neither"
            raise UserError(
                f"{where} are no half table: {what}; wanted half_a and half_b of one seed, each "
                "the complement of the other"
            )
        names = {(treatment_record(run) or {}).get("name") for run in pair}
        if len(names) > 1:
            raise UserError(f"{where} have two treatments ({', '.join(sorted(map(str, names)))})")
        if same_base(pair) is False:
            raise UserError(
                f"{where} start from two bases; wanted one base for both halves of a seed"
            )
        if occurrences_of(pair[0]) != occurrences_of(pair[1]):
            raise UserError(
                f"{where} record other occurrences of the facts; wanted halves of one draw"
            )
        treated.append(first)
    counts = [occurrences for occurrences in (occurrences_of(a) for a, _ in pairs) if occurrences]
    left_out = tuple(f for f in FACTS if any(occurrences[f] == 0 for occurrences in counts))
    if len(left_out) == len(FACTS):
        raise UserError(f"{pairs[0][0].folder}: no fact occurs in the rows the half was drawn from")
    return HalfTables(pairs, np.array(treated), lineage_clusters(pairs), left_out)


def analyse_half_tables(
    study: HalfTables,
    plan: ArmsPlan,
    draw: Draw,
    *,
    comparisons: int,
    others: Mapping[str, Sequence["Run"] | None],
) -> dict[str, Any]:
    """Return the half-table contrast of A1 and G1, and next to it what it does not hold.

    comparisons: the size of the family that Holm runs over. others: the runs of `baseline` and of
    `fact_token` (all facts treated), by seed like the pairs, or None where an arm is not there.
    """
    redrawn, notes = _redraw(study, plan, draw)
    rows, missing = [], {}
    halves = [run for pair in study.pairs for run in pair]
    for endpoint in PRIMARIES:
        units = units_of(halves, endpoint)
        measured = units if isinstance(units, str) else _measure(study, endpoint, units)
        if isinstance(units, str) or isinstance(measured, str):
            missing[endpoint] = str(measured)
            continue
        row = _row(measured, endpoint, plan, redrawn, family=comparisons)
        row["beside"] = dict(_next_to_the_contrast(measured, endpoint, units, plan, others))
        whole = row["beside"]["whole"]
        # How much surer the contrast is than two arms on the same runs; None without all arms.
        two_arms = (whole or {}).get("se")
        row["se_ratio"] = row["se"] / two_arms if two_arms else None
        rows.append(row)
    return {
        "name": NAME,
        "seeds": [pair[0].seed for pair in study.pairs],
        "clusters": len(study.groups),
        "same_base": same_base(halves),
        "identical": any(a.card["weights"] == b.card["weights"] for a, b in study.pairs),
        "treated": [int(t.sum()) for t in study.treated],
        "left_out": list(study.left_out),
        "endpoints": rows,
        "missing": missing,
        "grid": fact_grid(study),
        "notes": [*_reductions(study), *notes],
    }


def _redraw(
    study: HalfTables, plan: ArmsPlan, draw: Draw
) -> tuple[list[np.ndarray] | None, list[str]]:
    """Return halves drawn again for each seed, [N, 45] each; None, and why, without a draw."""
    counts = [occurrences_of(pair[0]) for pair in study.pairs]
    unrecorded = [pair[0].folder for pair, c in zip(study.pairs, counts, strict=True) if c is None]
    if unrecorded:
        return None, [
            f"{unrecorded[0]} does not record how its half was drawn (training.treatment.draw): no "
            "randomisation test."
        ]
    pools: dict[str, np.ndarray] = {}
    rng = np.random.default_rng(plan.redraw_seed)
    redrawn = []
    for occurrences in counts:
        key = repr(occurrences)
        if key not in pools:
            pools[key] = redrawn_halves(
                occurrences or {}, draw, count=plan.redraws, seed=plan.redraw_seed
            )
        redrawn.append(pools[key][rng.permutation(plan.redraws)])  # seeds are drawn independently
    return redrawn, []


def _row(
    m: "Measured", endpoint: str, plan: ArmsPlan, redrawn: list[np.ndarray] | None, *, family: int
) -> dict[str, Any]:
    study = m.study
    by_seed = m.with_token - m.without_token
    grouped = study.grouped(by_seed)
    p = None if redrawn is None else randomisation_p(m.differences, m.signs, redrawn, m.uses)
    return {
        "endpoint": endpoint,
        "evaluation": EVALUATIONS[endpoint],
        "unit": UNITS[endpoint],
        "items": m.uses.shape[0],
        "left_out": int((~m.kept).sum()),  # units that use a fact which never occurs
        "in_one_half": (m.signs != 0).sum(axis=1).tolist(),
        "with_token": float(m.with_token.mean()),
        "without_token": float(m.without_token.mean()),
        "by_seed": _by_seed(study, by_seed),
        **_t(grouped, plan.confidence),
        "method": "t over seeds of the crossed-over contrast",
        "randomisation_p": p,
        "redraws": None if redrawn is None else plan.redraws,
        "p_holm": None,
        **_prospects(grouped, plan.margins.get(endpoint), plan, family),
    }


@dataclass(frozen=True, slots=True)
class Measured:
    """The values of one endpoint. S seeds, n units whose facts occur.

    values: [2, S, n], half A and half B; signs: [S, n], 1 where half A treated all facts of a
    unit, −1 where half B did, 0 where each treated some; uses: [n, 45]; kept: which of all units.
    """

    study: HalfTables
    values: np.ndarray
    signs: np.ndarray
    uses: np.ndarray
    kept: np.ndarray

    @property
    def differences(self) -> np.ndarray:
        """Half A less half B, [S, n]."""
        return self.values[0] - self.values[1]

    @property
    def with_token(self) -> np.ndarray:
        """The mean of units in the half that treated them, [S]: both sides of the table alike."""
        return _crossed(self.values[0], self.values[1], self.signs)

    @property
    def without_token(self) -> np.ndarray:
        """The mean of units in the half that did not treat them, [S]."""
        return _crossed(self.values[1], self.values[0], self.signs)


def _crossed(on_plus: np.ndarray, on_minus: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Return ½ [mean of the first where the sign is 1 + mean of the second where it is −1], [S]."""
    return np.array(
        [
            (a[s > 0].mean() + b[s < 0].mean()) / 2
            for a, b, s in zip(on_plus, on_minus, signs, strict=True)
        ]
    )


def _measure(study: HalfTables, endpoint: str, units: Units) -> Measured | str:
    """Return the values of an endpoint, or what keeps it from being measured."""
    kept = units.without(study.left_out)
    signs = signs_of(units.uses[kept], study.treated)
    for (first, _), s in zip(study.pairs, signs, strict=True):
        if not ((s > 0).any() and (s < 0).any()):
            return f"seed {first.seed} has no item whose facts are all in one half, for either half"
    values = [values_of([p[half] for p in study.pairs], endpoint, units) for half in (0, 1)]
    return Measured(study, np.stack(values)[..., kept], signs, units.uses[kept], kept)


def _next_to_the_contrast(
    m: Measured,
    endpoint: str,
    units: Units,
    plan: ArmsPlan,
    others: Mapping[str, Sequence["Run"] | None],
) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Yield what the contrast does not hold; None where an arm that it takes is not there."""
    halves = [run for pair in m.study.pairs for run in pair]
    values = {
        arm: None
        if runs is None or isinstance(units_of([*halves, *runs], endpoint), str)
        else values_of(runs, endpoint, units)[:, m.kept]
        for arm, runs in others.items()
    }
    baseline, whole = values["baseline"], values["fact_token"]

    def row(by_seed: np.ndarray | None) -> dict[str, Any] | None:
        if by_seed is None:
            return None
        grouped = m.study.grouped(by_seed)
        return {"by_seed": _by_seed(m.study, by_seed), **_t(grouped, 1 - plan.alpha)}

    level = None if baseline is None else _crossed(baseline, baseline, m.signs)
    yield "treated_less_baseline", row(None if level is None else m.with_token - level)
    yield "spill_over", row(None if level is None else m.without_token - level)
    both = baseline is not None and whole is not None
    yield "whole", row((whole - baseline).mean(axis=1) if both else None)
    yield "dose", row(_dose(m))


def _dose(m: Measured) -> np.ndarray | None:
    """Return per seed the gain for each factor e of a unit's occurrences in training."""
    counts = [occurrences_of(first) for first, _ in m.study.pairs]
    if None in counts:
        return None
    logs = np.log([max(1, np.mean([c[fact] for c in counts if c])) for fact in FACTS])
    return dose_slopes(m.differences, m.signs, m.uses @ logs / m.uses.sum(axis=1))


def _t(means: np.ndarray, confidence: float) -> dict[str, Any]:
    """Return delta, interval and p of independent means; of one no interval and no p."""
    if len(means) == 1:
        return {"delta": float(means[0]), "confidence": confidence, "interval": None, "p": None}
    return _shown(run_means_t(means), confidence)


def _prospects(
    means: np.ndarray, margin: float | None, plan: ArmsPlan, family: int
) -> dict[str, Any]:
    """Return what such a study can detect; from how seeds differ, never from their mean."""
    row: dict[str, Any] = {"margin": margin, "detectable": None, "seeds_needed": None}
    if len(means) < 2:
        return row
    # RunNoise is of a run in one of two arms; here one value per seed has all of the variance.
    noise = RunNoise(float(means.var(ddof=1)) / 2, len(means) - 1.0)
    aim = Aim(plan.alpha, plan.power, family)
    row["detectable"] = detectable_effect(noise.difference(len(means)), aim)
    if margin is not None:
        row["seeds_needed"] = seeds_needed(noise, margin, aim, max_seeds=MAX_SEEDS)
    return row


def _by_seed(study: HalfTables, values: np.ndarray) -> dict[str, float]:
    return {str(p[0].seed): float(v) for p, v in zip(study.pairs, values, strict=True)}


def _reductions(study: HalfTables) -> Iterator[str]:
    """Yield, in words, where the study is less than its plan."""
    for (first, _), treated in zip(study.pairs, study.treated, strict=True):
        share = int(treated.sum())
        if abs(2 * share - len(FACTS)) > 1:
            yield (
                f"Unequal halves in seed {first.seed}: {share} and {len(FACTS) - share} facts; the "
                "contrast weighs both sides alike, so that the smaller one makes it less sure."
            )
    if study.left_out:
        yield (
            f"{len(study.left_out)} of {len(FACTS)} facts never occur in the rows that the halves "
            f"were drawn from and are left out ({', '.join(study.left_out)})."
        )
    if len({record.get("name") for a, _ in study.pairs if (record := treatment_record(a))}) > 1:
        yield "The seeds do not have the same treatment: their mean is of a mixture."


def fact_grid(study: HalfTables) -> list[list[list[float]]] | None:
    """Return A1 of the 81 cells with a token, without, and their difference, means over seeds.

    Each cell of a seed is taken from the half that treated its fact, and from the other one.
    """
    grids = [[_grid(run) for run in pair] for pair in study.pairs]
    if any(grid is None for pair in grids for grid in pair):
        return None
    with_token, without = [], []
    for pair, treated in zip(grids, study.treated, strict=True):
        in_first = np.array(
            [[treated[FACTS.index(fact_token(a, b))] for b in range(1, 10)] for a in range(1, 10)]
        )
        first, second = (np.array(grid, dtype=np.float64) for grid in pair)
        with_token.append(np.where(in_first, first, second))
        without.append(np.where(in_first, second, first))
    means = np.mean(with_token, axis=0), np.mean(without, axis=0)
    return [means[0].tolist(), means[1].tolist(), (means[0] - means[1]).tolist()]


def _grid(run: "Run") -> list[list[float]] | None:
    evaluation = run.evaluations.get("arithmetic")
    return None if evaluation is None else evaluation.metrics.get("a1_grid")
