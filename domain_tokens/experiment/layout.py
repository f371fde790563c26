"""What a profile consists of, what may be chosen, and where everything lies."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from domain_tokens.errors import UserError
from domain_tokens.experiment.stages import CONTROLS, Arm, Replicate, data_words
from domain_tokens.runs import in_repository

# Stages whose config keys --set reaches, as in gsm8k.training.num_epochs=3.
KINDS = ("base", "tulu", "gsm8k", "eval_gsm8k", "probes", "stories")
DESIGNS = ("two-arms", "half-tables")
# Evaluations of the laptop profile that no primary endpoint needs.
EXTRA = ("stories", "calculator")


@dataclass(frozen=True, slots=True)
class Profile:
    """What tells one kind of study from another; the rest is in the YAML files of `configs`.

    folder: below the output root. base: how a base folder's name ends. configs: folder of YAML
    files below sft/configs and eval/configs. makes_base: whether the base is made by a stage.
    chat: whether there is a chat stage before GSM8K. max_samples: GSM8K test items, None for all.
    extra: which of EXTRA are evaluated, too. jobs: how many lineages run side by side; None for one
    process that runs everything.
    """

    name: str
    folder: str
    base: str
    configs: str
    makes_base: bool
    chat: bool
    design: str = "two-arms"
    treatments: tuple[str, ...] = ()
    seeds: tuple[int, ...] | None = None
    max_samples: int | None = None
    extra: tuple[str, ...] = ()
    jobs: int | None = None


DEMO = Profile("demo", "demo", "", "demo/", makes_base=True, chat=True)
FULL = Profile("full", "", "_10b", "", makes_base=False, chat=True)
LAPTOP = Profile(
    "laptop",
    "laptop",
    "",
    "laptop/",
    makes_base=True,
    chat=False,  # its base is already instruction-tuned
    design="half-tables",
    treatments=("operands", "generic"),
    seeds=(1, 2, 3, 4, 5),
    max_samples=500,
    extra=EXTRA,
    jobs=1,
)
PROFILES = {profile.name: profile for profile in (DEMO, LAPTOP, FULL)}


@dataclass(frozen=True, slots=True)
class Options:
    """What a study may be told; None means what the profile or its YAML files say.

    base: what the laptop's base is made from. data: a folder with train and test rows of GSM8K, or
    a hub id. max_samples: GSM8K test items, 0 for all. overrides: STAGE.KEY=VALUE. without: which
    of EXTRA are left out.
    """

    design: str | None = None
    treatments: Sequence[str] | None = None
    base: str | None = None
    data: str | None = None
    max_samples: int | None = None
    overrides: Sequence[str] = ()
    without: Sequence[str] = ()


class Layout:
    """Where the stages of a study read and write, and the words that tell them so."""

    def __init__(self, profile: Profile, output_root: str, options: Options):
        """Raise UserError for options that the profile has no use for, or lacks."""
        _refuse_misfit(profile, options)
        self.profile, self.options = profile, options
        self.root = Path(output_root) / profile.folder
        self.data = self.root / "data"
        self.moved = output_root != "outputs"
        self.extra = [kind for kind in profile.extra if kind not in options.without]

    def base(self, condition: str) -> Path:
        """Return the base folder of a condition."""
        return self.root / f"hf_{condition}{self.profile.base}"

    def base_file(self, condition: str) -> Path:
        """Return the file that a finished base has; the user's own ones have no results."""
        made = "make_base_results.json" if self.profile.makes_base else "config.json"
        return self.base(condition) / made

    def folder(self, stage: str, arm: Arm, replicate: Replicate, more: str = "") -> Path:
        """Return the folder of a stage of one lineage."""
        return self.root / f"{stage}_{arm.folder}{more}{replicate.suffix}"

    def config(self, part: str, name: str) -> str:
        """Return a YAML file of the profile; part: "sft" or "eval"."""
        return in_repository(f"{part}/configs/{self.profile.configs}{name}.yaml")

    def sources(self, **keys: str) -> list[str]:
        """Return --set overrides for data that lie elsewhere than the YAML files say.

        keys: config key -> the file of the demo's corpora.
        """
        if self.profile is DEMO and self.moved:
            chosen = {key: f"{self.data / file}.jsonl" for key, file in keys.items()}
        elif self.options.data is not None:
            # One folder or data set has both splits; each stage's YAML says which it reads.
            chosen = dict.fromkeys((k for k in keys if k != "validation_source"), self.options.data)
        else:
            chosen = {}
        return data_words(chosen)

    def overrides(self, kind: str) -> list[str]:
        """Return the --set words that the user gave for a kind of stage."""
        given = [text.partition(".") for text in self.options.overrides]
        return [word for stage, _, text in given if stage == kind for word in ("--set", text)]

    def limit(self) -> list[str]:
        """Return how many GSM8K test items the evaluation is told to take."""
        given = self.options.max_samples
        count = self.profile.max_samples if given is None else given
        return ["--max-samples", str(count)] if count else []


def _refuse_misfit(profile: Profile, options: Options) -> None:
    laptop = profile is LAPTOP
    for flag, value in (("--from", options.base), ("--source", options.data)):
        if value is not None and not laptop:
            raise UserError(
                f"{flag} {value} with --profile {profile.name}, which has its own; "
                f"leave it out, or give --profile {LAPTOP.name}"
            )
    if laptop and options.base is None:
        raise UserError(
            "--profile laptop has no base; give --from with a GGUF file, a model folder or a hub "
            "id, as in --from HuggingFaceTB/SmolLM2-135M-Instruct"
        )
    for kind in options.without:
        if kind not in profile.extra:
            raise UserError(
                f"--without {kind} with --profile {profile.name}: wanted some of "
                f"{', '.join(EXTRA)}, and --profile {LAPTOP.name}"
            )
    if options.data is not None and Path(options.data).is_file():
        raise UserError(
            f"--source {options.data} is a file; wanted a folder that holds train.jsonl and "
            "test.jsonl, or a hub id"
        )
    for text in options.overrides:
        kind, dot, rest = text.partition(".")
        if kind not in KINDS or not dot or "=" not in rest:
            near = difflib.get_close_matches(kind, KINDS, n=1)
            hint = f"did you mean {near[0]}?" if near and kind not in KINDS else "as in " + EXAMPLE
            raise UserError(
                f"--set {text}: wanted STAGE.KEY=VALUE, STAGE one of {', '.join(KINDS)}; {hint}"
            )
    if options.design not in (None, *DESIGNS):
        raise UserError(f"design {options.design!r}; wanted one of {', '.join(DESIGNS)}")
    names = list(options.treatments or ())
    for name in names:
        if name not in CONTROLS or names.count(name) > 1:
            what = "is named twice" if name in CONTROLS else "is no control"
            raise UserError(
                f"treatment {name!r} {what}; wanted each at most once of {', '.join(CONTROLS)}"
            )


EXAMPLE = "gsm8k.training.num_epochs=3"
