"""The arms of a study: which folders belong to which, and whether they were treated as they say."""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from domain_tokens.comparison.must_equal import CALCULATOR, SAMPLED, Difference, find_differences
from domain_tokens.comparison.pairwise import refuse_unpaired
from domain_tokens.comparison.runs import Run, load_run
from domain_tokens.errors import UserError
from domain_tokens.runs import ArmName

NAMES: tuple[str, ...] = get_args(ArmName)
CALCULATORS = {"facts": "+calculator", "all": "+calculator_all"}  # decode.calculator -> suffix
SEED_FLAGS = {"baseline": "baseline", "mul_tokens": "fact_token"}

Arms = Mapping[str, Sequence[Run]]


def arm_of(run: Run) -> str:
    """Return the arm that a run's cards say it is of.

    A mul_tokens card without a treatment is from before there were any: fact_token, all 45 facts;
    one that was not injected is refused by `injection_faults`.
    """
    training = run.card["training"] or {}
    condition = training.get("condition", run.card["condition"])
    record = training.get("treatment")
    if not record and condition == "mul_tokens":
        record = {"name": "fact_token", "treated_facts": "all"}
    name = "baseline"
    if record:
        half = record.get("treated_facts") or "all"
        name = record["name"]
        if half != "all":
            name = half if name == "fact_token" else f"{name}_{half}"
    evaluation = run.evaluations.get("gsm8k")
    decode = (evaluation.card.get("decode") if evaluation else None) or {}
    return name + CALCULATORS.get(decode.get("calculator"), "")


def load_arms(folders: Mapping[str, Sequence[Path]]) -> dict[str, list[Run]]:
    """Load the evaluation folders of each arm, ordered by seed.

    Raises UserError for an arm that is no arm, a folder of another arm, a seed given twice, or a
    calculator's arm without the arm that it decodes.
    """
    arms: dict[str, list[Run]] = {}
    for name, paths in folders.items():
        plain = name.partition("+")[0]
        if plain not in NAMES or name.removeprefix(plain) not in ("", *CALCULATORS.values()):
            near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else f"arms: {', '.join(NAMES)}"
            raise UserError(f"--arm {name}: no such arm; {hint}")
        if plain not in folders:
            raise UserError(f"--arm {name} needs --arm {plain}=DIR…, the same runs without it")
        condition = "baseline" if plain == "baseline" else "mul_tokens"
        runs = [load_run(Path(path), condition=condition) for path in paths]
        for run in runs:
            refuse_other_arm(run, name)
        seed, count = Counter(run.seed for run in runs).most_common(1)[0]
        if count > 1:
            raise UserError(f"arm {name} has seed {seed} {count} times; give each seed once")
        arms[name] = sorted(runs, key=lambda run: run.seed)
    return arms


def refuse_other_arm(run: Run, name: str) -> None:
    """Raise UserError where the run card is of another arm than the run was given as."""
    if arm_of(run) != name:
        raise UserError(
            f"{run.folder} is of arm {arm_of(run)} and was given as {name}; are the folders "
            f"swapped? Give it as --arm {arm_of(run)}={run.folder}"
        )


def pair_arms(first: Sequence[Run], second: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Return the runs of two arms whose seeds are in both, in order of the seeds."""
    by_seed = {run.seed: run for run in second}
    return [(run, by_seed[run.seed]) for run in first if run.seed in by_seed]


def find_arm_differences(arms: Arms, allowed: Sequence[str]) -> list[Difference]:
    """Return the permitted differences between all arms; raise UserError for any other.

    Every arm is compared, by seed, with `baseline` or else the first one; a calculator's arm with
    the same checkpoints without it, from which it differs in that setting alone. Items, prompts
    and golds have to be the same, too.
    """
    plain = {name: runs for name, runs in arms.items() if "+" not in name}
    reference = "baseline" if "baseline" in plain else next(iter(plain))
    pairs = []
    for name, runs in plain.items():
        paired = pair_arms(plain[reference], runs)
        if not paired:
            raise UserError(
                f"arms {reference} and {name} have no seed in common "
                f"({[r.seed for r in plain[reference]]} and {[r.seed for r in runs]})"
            )
        pairs += paired if name != reference or len(plain) == 1 else []
    calculated = []
    for name in arms.keys() - plain.keys():
        paired = pair_arms(arms[name.partition("+")[0]], arms[name])
        strangers = [pair for pair in paired if pair[0].card["weights"] != pair[1].card["weights"]]
        if strangers or not paired:
            raise UserError(
                f"{name} is not of the checkpoints of {name.partition('+')[0]}; evaluate the same "
                "ones with --calculator"
            )
        calculated += paired
    for pair in [*pairs, *calculated]:
        for evaluation in pair[0].evaluations.keys() & pair[1].evaluations.keys():
            refuse_unpaired(*(run.evaluations[evaluation] for run in pair))
    differences = find_differences(pairs, allowed)
    if calculated:
        differences += find_differences(calculated, allowed, by_design=[CALCULATOR, *SAMPLED])
    return differences


def reductions(arms: Arms) -> list[str]:
    """Return, in words, which arms have fewer seeds than others."""
    seeds: dict[Any, None] = {run.seed: None for runs in arms.values() for run in runs}
    notes = []
    for name, runs in arms.items():
        missing = [str(seed) for seed in seeds if seed not in {run.seed for run in runs}]
        if missing:
            notes.append(
                f"{name} has no seed {', '.join(missing)}: its contrasts rest on the seeds that "
                "both arms have."
            )
    return notes
