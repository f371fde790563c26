"""The commands of an experiment: which script runs on which folders, for every arm and seed."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from domain_tokens.command_line import CONDITIONS


@dataclass(frozen=True, slots=True)
class Command:
    """One script call; finished: the file that appears last when it is done."""

    script: str
    arguments: list[str]
    finished: Path

    def __str__(self) -> str:
        return f"uv run python {self.script} {shlex.join(self.arguments)}"


class Plan:
    """The commands of a profile, with the folders that they pass to each other.

    demo: one tiny base under both conditions and generated data. full: the user's two bases and
    the study's data. Folders carry a seed in their name where seeds are given.
    """

    def __init__(self, profile: str, output_root: str, seeds: list[int] | None):
        """Lay out profile "demo" or "full" under a folder; seeds None means the configs' own."""
        self.demo = profile == "demo"
        self.root = Path(output_root) / "demo" if self.demo else Path(output_root)
        self.data = self.root / "data"
        self.moved = output_root != "outputs"
        self.seeds: list[int | None] = [*seeds] if seeds else [None]

    def commands(self) -> Iterator[Command]:
        """Yield every command in the order in which they have to run."""
        if self.demo:
            yield from self._bases()
        for seed in self.seeds:
            for condition in CONDITIONS:
                yield from self._train(condition, seed)
        for seed in self.seeds:
            for condition in CONDITIONS:
                yield from self._evaluate(condition, seed)

    def comparison(self) -> Command:
        """Return the command that compares the arms over all seeds."""
        target = self.root / "comparison.json"
        arguments = []
        for condition in CONDITIONS:
            folders = [str(self._folder("eval", condition, seed)) for seed in self.seeds]
            arguments += [f"--{condition.replace('_', '-')}-dir", *folders]
        page = self.root / "report.html"
        arguments += ["--report", str(page), "--output-path", str(target)]
        return Command("scripts/compare_runs.py", arguments, target)

    def check(self) -> Command:
        """Return the command that checks the final checkpoints."""
        folders = [
            str(self._folder("sft_gsm8k", c, seed)) for seed in self.seeds for c in CONDITIONS
        ]
        return Command("scripts/check_checkpoint.py", folders, Path())

    def base(self, condition: str) -> Path:
        """Return the base folder of an arm."""
        return self.root / f"hf_{condition}{'' if self.demo else '_10b'}"

    def _folder(self, stage: str, condition: str, seed: int | None) -> Path:
        return self.root / f"{stage}_{condition}{'' if seed is None else f'_seed_{seed}'}"

    def _config(self, stage: str) -> str:
        return f"sft/configs/{'demo/' if self.demo else ''}{stage}.yaml"

    def _sources(self, **keys: str) -> list[str]:
        """Return --set overrides where the demo's corpora lie elsewhere than its YAML says."""
        if not (self.demo and self.moved):
            return []
        return [
            word
            for key, file in keys.items()
            for word in ("--set", f"data.{key}={self.data / file}.jsonl")
        ]

    def _bases(self) -> Iterator[Command]:
        """Yield how the one base is pretrained and saved under both conditions."""
        first, second = (self.base(condition) for condition in CONDITIONS)
        pretrain = ["--from", self._config("base"), "--tokenizer", str(self.data / "tokenizer")]
        sources = self._sources(source="pretraining")
        for condition, folder, arguments in (
            ("baseline", first, [*pretrain, *sources]),
            ("mul_tokens", second, ["--from", str(first)]),
        ):
            target = ["--condition", condition, "--output-dir", str(folder)]
            yield Command(
                "scripts/make_base.py", [*arguments, *target], folder / "make_base_results.json"
            )

    def _train(self, condition: str, seed: int | None) -> Iterator[Command]:
        seeded = [] if seed is None else ["--seed", str(seed)]
        inject = ["--inject-mul-tokens"] if condition == "mul_tokens" else []
        tulu, gsm8k = (self._folder(s, condition, seed) for s in ("sft_tulu", "sft_gsm8k"))
        chat = self._sources(source="chat", decontaminate_against="test")
        problems = self._sources(source="train", validation_source="test")
        for stage, parent, folder, results, more in (
            ("tulu", self.base(condition), tulu, "tulu_sft_results.json", chat),
            ("gsm8k", tulu, gsm8k, "sft_results.json", [*inject, *problems]),
        ):
            paths = ["--model-path", str(parent), "--output-dir", str(folder)]
            settings = ["--condition", condition, "--config", self._config(stage)]
            yield Command(
                f"sft/sft_{stage}.py", [*paths, *settings, *seeded, *more], folder / results
            )

    def _evaluate(self, condition: str, seed: int | None) -> Iterator[Command]:
        model, folder = (self._folder(s, condition, seed) for s in ("sft_gsm8k", "eval"))
        paths = ["--model-path", str(model), "--output-dir", str(folder), "--condition", condition]
        config = ["--config", "eval/configs/demo/gsm8k.yaml"] if self.demo else []
        problems = [*paths, *config, *self._sources(source="test")]
        yield Command("eval/run_gsm8k.py", problems, folder / "gsm8k_results.json")
        yield Command("eval/run_arithmetic_probes.py", paths, folder / "arithmetic_results.json")
