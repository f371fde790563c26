"""The plan of an experiment: its stages, what each reads and leaves, for every arm and replicate.

One plan serves `scripts/run_experiment.py` on one machine and `scripts/sweep/Snakefile` beyond it.
"""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from domain_tokens.runs import CONDITIONS, ROOT, in_repository


@dataclass(frozen=True, slots=True)
class Stage:
    """One script call. inputs: files that have to be there; finished: the file that it ends with.

    resumable: whether the script takes --resume.
    """

    script: str
    arguments: list[str]
    inputs: list[Path]
    finished: Path
    resumable: bool = True

    def __str__(self) -> str:
        project = "" if Path.cwd() == ROOT else f" --project {shlex.quote(str(ROOT))}"
        return f"uv run{project} python {in_repository(self.script)} {shlex.join(self.arguments)}"


@dataclass(frozen=True, slots=True)
class Replicate:
    """One lineage of each arm; None means what the configs say."""

    seed: int | None
    learning_rate: float | None

    @property
    def suffix(self) -> str:
        """How its folders are told from those of other replicates."""
        return self.rate_suffix + ("" if self.seed is None else f"_seed_{self.seed}")

    @property
    def rate_suffix(self) -> str:
        """How folders of one learning rate are told from those of others."""
        return "" if self.learning_rate is None else f"_lr_{self.learning_rate!r}"

    @property
    def arguments(self) -> list[str]:
        """What the training scripts are told, next to their configs."""
        rate = self.learning_rate
        found = [] if self.seed is None else ["--seed", str(self.seed)]
        return found + ([] if rate is None else ["--set", f"training.learning_rate={rate!r}"])


class Experiment:
    """The stages of a profile, with the folders that they pass to each other.

    demo: one tiny base under both conditions and generated data. full: the user's two bases and
    the study's data. Folders carry seed and learning rate in their names where those are given.
    """

    def __init__(
        self,
        profile: str,
        output_root: str,
        seeds: Sequence[int] | None = None,
        learning_rates: Sequence[float] | None = None,
    ):
        """Lay out profile "demo" or "full" under a folder; None means the configs' own."""
        self.demo = profile == "demo"
        self.root = Path(output_root) / "demo" if self.demo else Path(output_root)
        self.data = self.root / "data"
        self._moved = output_root != "outputs"
        self._output_root = output_root
        self.learning_rates: list[float | None] = [*learning_rates] if learning_rates else [None]
        self.seeds: list[int | None] = [*seeds] if seeds else [None]

    def corpora(self) -> Stage:
        """Return the stage that writes the demo's corpora."""
        arguments = ["--corpora-only", *(["--output-root", self._output_root] * self._moved)]
        target = self.data / "manifest.json"
        return Stage("scripts/run_experiment.py", arguments, [], target, resumable=False)

    def stages(self) -> Iterator[Stage]:
        """Yield bases, training and evaluations in an order in which they can run."""
        if self.demo:
            yield from self._bases()
        replicates = [Replicate(s, rate) for rate, s in product(self.learning_rates, self.seeds)]
        for replicate, condition in product(replicates, CONDITIONS):
            yield from self._train(condition, replicate)
        for replicate, condition in product(replicates, CONDITIONS):
            yield from self._evaluate(condition, replicate)

    def comparisons(self) -> Iterator[Stage]:
        """Yield, for each learning rate, the stage that compares the arms over all seeds."""
        for rate in self.learning_rates:
            replicates = [Replicate(seed, rate) for seed in self.seeds]
            suffix = replicates[0].rate_suffix
            arguments, inputs = [], []
            for condition in CONDITIONS:
                folders = [self._folder("eval", condition, r) for r in replicates]
                arguments += [f"--{condition.replace('_', '-')}-dir", *map(str, folders)]
                inputs += [
                    stage.finished for r in replicates for stage in self._evaluate(condition, r)
                ]
            target = self.root / f"comparison{suffix}.json"
            arguments += ["--report", str(self.root / f"report{suffix}.html")]
            arguments += ["--output-path", str(target)]
            yield Stage("scripts/compare_runs.py", arguments, inputs, target, resumable=False)

    def check(self) -> Stage:
        """Return the stage that checks the final checkpoints; it leaves no file."""
        folders = [
            self._folder("sft_gsm8k", condition, Replicate(seed, rate))
            for rate, seed, condition in product(self.learning_rates, self.seeds, CONDITIONS)
        ]
        inputs = [folder / "sft_results.json" for folder in folders]
        words = [str(folder) for folder in folders]
        return Stage("scripts/check_checkpoint.py", words, inputs, Path(), resumable=False)

    def base(self, condition: str) -> Path:
        """Return the base folder of an arm."""
        return self.root / f"hf_{condition}{'' if self.demo else '_10b'}"

    def _folder(self, stage: str, condition: str, replicate: Replicate) -> Path:
        return self.root / f"{stage}_{condition}{replicate.suffix}"

    def _config(self, stage: str) -> str:
        return in_repository(f"sft/configs/{'demo/' if self.demo else ''}{stage}.yaml")

    def _sources(self, **keys: str) -> list[str]:
        """Return --set overrides where the demo's corpora lie elsewhere than its YAML says."""
        if not (self.demo and self._moved):
            return []
        return [
            word
            for key, file in keys.items()
            for word in ("--set", f"data.{key}={self.data / file}.jsonl")
        ]

    def _base_file(self, condition: str) -> Path:
        """Return the file that a finished base has; the user's own ones have no results."""
        return self.base(condition) / ("make_base_results.json" if self.demo else "config.json")

    def _bases(self) -> Iterator[Stage]:
        """Yield how the one base is pretrained and saved under both conditions."""
        first, second = CONDITIONS
        pretrain = ["--from", self._config("base"), "--tokenizer", str(self.data / "tokenizer")]
        sources = self._sources(source="pretraining")
        for condition, arguments, parent in (
            (first, [*pretrain, *sources], self.corpora().finished),
            (second, ["--from", str(self.base(first))], self._base_file(first)),
        ):
            target = ["--condition", condition, "--output-dir", str(self.base(condition))]
            yield Stage(
                "scripts/make_base.py",
                [*arguments, *target],
                [parent],
                self._base_file(condition),
            )

    def _train(self, condition: str, replicate: Replicate) -> Iterator[Stage]:
        inject = ["--inject-mul-tokens"] if condition == "mul_tokens" else []
        tulu, gsm8k = (self._folder(s, condition, replicate) for s in ("sft_tulu", "sft_gsm8k"))
        chat = self._sources(source="chat", decontaminate_against="test")
        problems = self._sources(source="train", validation_source="test")
        middle = tulu / "tulu_sft_results.json"
        for stage, parent, before, folder, results, more in (
            ("tulu", self.base(condition), self._base_file(condition), tulu, middle, chat),
            ("gsm8k", tulu, middle, gsm8k, gsm8k / "sft_results.json", [*inject, *problems]),
        ):
            paths = ["--model-path", str(parent), "--output-dir", str(folder)]
            settings = ["--condition", condition, "--config", self._config(stage)]
            words = [*paths, *settings, *replicate.arguments, *more]
            yield Stage(f"sft/sft_{stage}.py", words, [before], results)

    def _evaluate(self, condition: str, replicate: Replicate) -> Iterator[Stage]:
        model, folder = (self._folder(s, condition, replicate) for s in ("sft_gsm8k", "eval"))
        paths = ["--model-path", str(model), "--output-dir", str(folder), "--condition", condition]
        config = ["--config", in_repository("eval/configs/demo/gsm8k.yaml")] if self.demo else []
        problems = [*paths, *config, *self._sources(source="test")]
        before = [model / "sft_results.json"]
        yield Stage("eval/run_gsm8k.py", problems, before, folder / "gsm8k_results.json")
        results = folder / "arithmetic_results.json"
        yield Stage("eval/run_arithmetic_probes.py", paths, before, results)
