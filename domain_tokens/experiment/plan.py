"""The plan of an experiment: its stages, what each reads and leaves, for every arm and replicate.

One plan serves `scripts/run_experiment.py` on one machine and `scripts/sweep/Snakefile` beyond it.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from domain_tokens.experiment.layout import DEMO, PROFILES, Layout, Options
from domain_tokens.experiment.stages import (
    BASELINE,
    Arm,
    Lineage,
    Replicate,
    Stage,
    arms_of,
    data_words,
)
from domain_tokens.runs import CONDITIONS, SFTConfig, in_repository, load_config

HALF_TABLES = "eval/configs/half_tables.yaml"


class Experiment:
    """The stages of a profile, with the folders that they pass to each other.

    demo: one tiny base under both conditions and generated data. laptop: one small pretrained base
    under both conditions and GSM8K. full: the user's two bases and the study's data. Folders carry
    arm, seed and learning rate in their names where those are given.
    """

    def __init__(
        self,
        profile: str,
        output_root: str,
        seeds: Sequence[int] | None = None,
        learning_rates: Sequence[float] | None = None,
        options: Options | None = None,
    ):
        """Lay out a profile under a folder; None means the profile's own or the configs'."""
        self.profile = PROFILES[profile]
        self.options = options or Options()
        self.layout = Layout(self.profile, output_root, self.options)
        self._output_root = output_root
        self.design = self.options.design or self.profile.design
        given = self.options.treatments
        self.arms = arms_of(self.design, tuple(self.profile.treatments if given is None else given))
        rates: list[float | None] = [*learning_rates] if learning_rates else [None]
        self.seeds: list[int | None] = [*(seeds or self.profile.seeds or [None])]
        self.learning_rates = rates
        self._replicates = [Replicate(s, rate) for rate, s in product(rates, self.seeds)]

    def corpora(self) -> Stage:
        """Return the stage that writes the demo's corpora."""
        arguments = ["--corpora-only"]
        arguments += ["--output-root", self._output_root] * self.layout.moved
        target = self.layout.data / "manifest.json"
        script = "scripts/run_experiment.py"
        return Stage(script, arguments, [], target, "corpora", resumable=False)

    def bases(self) -> list[Stage]:
        """Return the stages that make the base of each condition; none where the user has them."""
        return [*_bases(self.layout, self.corpora())] if self.profile.makes_base else []

    def base_lineage(self) -> Lineage:
        """Return the bases as what is named `base` where lineages are named."""
        return Lineage("base", self.bases(), [])

    def lineages(self) -> list[Lineage]:
        """Return every replicate of every arm, all arms of a seed before the next seed."""
        return [
            Lineage(
                f"{arm.name}{replicate.suffix}",
                [*_train(self.layout, arm, replicate)],
                [*_evaluate(self.layout, arm, replicate)],
            )
            for replicate, arm in product(self._replicates, self.arms)
        ]

    def stages(self) -> Iterator[Stage]:
        """Yield bases, training and evaluations in an order in which they can run.

        Two arms are evaluated when both are trained; longer plans lineage by lineage, so that there
        is something to look at before the end.
        """
        yield from self.bases()
        lineages = self.lineages()
        if len(self.arms) == 2 and self.profile.jobs is None:
            yield from (stage for lineage in lineages for stage in lineage.training)
            yield from (stage for lineage in lineages for stage in lineage.evaluations)
        else:
            yield from (stage for lineage in lineages for stage in lineage.stages)

    def comparisons(self) -> Iterator[Stage]:
        """Yield, for each learning rate, what compares the arms over all seeds.

        baseline and fact_token by the plan for two arms; where there are more arms, all of them by
        the plan for half tables, too.
        """
        for rate in self.learning_rates:
            replicates = [Replicate(seed, rate) for seed in self.seeds]
            yield self._comparison(self.arms[:2], replicates)
            if len(self.arms) > 2:
                yield self._comparison(self.arms, replicates)

    def _comparison(self, arms: list[Arm], replicates: list[Replicate]) -> Stage:
        arguments, inputs = [], []
        for arm in arms:
            stages = [s for r in replicates for s in _evaluate(self.layout, arm, r)]
            ceiling = [s.finished.parent for s in stages if s.kind == "calculator"]
            folders = [self.layout.folder("eval", arm, r) for r in replicates]
            if len(arms) == 2:
                arguments += [f"--{arm.condition.replace('_', '-')}-dir", *map(str, folders)]
                stages = [stage for stage in stages if stage.kind != "calculator"]
            else:
                arguments += ["--arm", *_named(arm.name, folders)]
                arguments += (
                    ["--arm", *_named(f"{arm.name}+calculator", ceiling)] if ceiling else []
                )
            inputs += [stage.finished for stage in stages]
        name = replicates[0].rate_suffix
        if len(arms) > 2:
            arguments += ["--plan", in_repository(HALF_TABLES)]
            name = f"_arms{name}"
        target = self.layout.root / f"comparison{name}.json"
        arguments += ["--report", str(self.layout.root / f"report{name}.html")]
        arguments += ["--output-path", str(target)]
        script = "scripts/compare_runs.py"
        return Stage(script, arguments, inputs, target, "comparison", resumable=False)

    def check(self) -> Stage:
        """Return the stage that checks the final checkpoints; it leaves no file."""
        pairs = product(self._replicates, self.arms)
        folders = [self.layout.folder("sft_gsm8k", arm, r) for r, arm in pairs]
        inputs = [folder / "sft_results.json" for folder in folders]
        words = [str(folder) for folder in folders]
        return Stage("scripts/check_checkpoint.py", words, inputs, self.layout.root, "check", False)


def _named(name: str, folders: Sequence[Path]) -> list[str]:
    """Return the words NAME=DIR DIR…"""
    first, *more = map(str, folders)
    return [f"{name}={first}", *more]


def _bases(layout: Layout, corpora: Stage) -> Iterator[Stage]:
    """Yield how the one base is made, and saved under both conditions."""
    first, second = CONDITIONS
    if layout.profile is DEMO:
        source = ["--from", layout.config("sft", "base")]
        source += ["--tokenizer", str(layout.data / "tokenizer")]
        source += layout.sources(source="pretraining") + layout.overrides("base")
        inputs = [corpora.finished]
    else:
        source, inputs = ["--from", layout.options.base or ""], []
    again = ["--from", str(layout.base(first))]
    for condition, arguments, before, kind in (
        (first, source, inputs, "base"),
        (second, again, [layout.base_file(first)], "base_copy"),
    ):
        target = ["--condition", condition, "--output-dir", str(layout.base(condition))]
        finished = layout.base_file(condition)
        yield Stage("scripts/make_base.py", [*arguments, *target], before, finished, kind)


def _train(layout: Layout, arm: Arm, replicate: Replicate) -> Iterator[Stage]:
    inject = ["--inject-mul-tokens"] if arm.condition != BASELINE else []
    tulu, gsm8k = (layout.folder(s, arm, replicate) for s in ("sft_tulu", "sft_gsm8k"))
    base, middle = layout.base(arm.condition), tulu / "tulu_sft_results.json"
    chat = layout.sources(source="chat", decontaminate_against="test")
    problems = {"source": "train", "validation_source": "test"}
    if layout.profile is not DEMO:  # whose problems share templates with its test questions
        problems["decontaminate_against"] = "test"
    more = [*inject, *layout.sources(**problems)]
    last = ("gsm8k", base, layout.base_file(arm.condition), gsm8k, "sft_results.json", more)
    stages = [last]
    if layout.profile.chat:
        first = ("tulu", base, layout.base_file(arm.condition), tulu, middle.name, chat)
        stages = [first, ("gsm8k", tulu, middle, *last[3:])]
    if arm.treatment == "matched_merges" and layout.profile.chat:
        chat += _merges_source(layout)
    for stage, parent, before, folder, results, words in stages:
        paths = ["--model-path", str(parent), "--output-dir", str(folder)]
        settings = ["--condition", arm.condition, "--config", layout.config("sft", stage)]
        told = [*replicate.arguments, *words, *arm.arguments, *layout.overrides(stage)]
        arguments = [*paths, *settings, *told]
        yield Stage(f"sft/sft_{stage}.py", arguments, [before], folder / results, stage)


def _merges_source(layout: Layout) -> list[str]:
    """Say to the first stage whose word sequences are merged: those of the problems (design §5)."""
    words = layout.sources(source="train") + layout.overrides("gsm8k")
    data = load_config(SFTConfig, layout.config("sft", "gsm8k"), words[1::2]).data
    return data_words({"merges_source": data.source, "merges_split": data.split})


def _evaluate(layout: Layout, arm: Arm, replicate: Replicate) -> Iterator[Stage]:
    model, folder = (layout.folder(s, arm, replicate) for s in ("sft_gsm8k", "eval"))
    before = [model / "sft_results.json"]

    def words(target: Path) -> list[str]:
        paths = ["--model-path", str(model), "--output-dir", str(target)]
        return [*paths, "--condition", arm.condition]

    config = ["--config", layout.config("eval", "gsm8k")] if layout.profile.configs else []
    how = [*config, *layout.sources(source="test"), *layout.limit()]
    how += layout.overrides("eval_gsm8k")
    results, script = folder / "gsm8k_results.json", "eval/run_gsm8k.py"
    yield Stage(script, [*words(folder), *how], before, results, "eval_gsm8k")
    probes = "eval/run_arithmetic_probes.py"
    told = [*words(folder), *layout.overrides("probes")]
    yield Stage(probes, told, before, folder / "arithmetic_results.json", "probes")
    if "stories" in layout.extra:
        told = [*words(folder), "--suite", "stories", *layout.overrides("stories")]
        yield Stage(probes, told, before, folder / "stories_results.json", "stories")
    if "calculator" in layout.extra and arm.name == BASELINE:
        folder = layout.folder("eval", arm, replicate, more="_calculator")
        # A ceiling of accuracy: no endpoint needs it.
        ceiling = ["--calculator", "facts", "--set", "evaluation.num_rationales=0"]
        told = [*words(folder), *how, *ceiling]
        yield Stage(script, told, before, folder / "gsm8k_results.json", "calculator")
