"""What an evaluation was told on its command line, as one frozen object."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from domain_tokens.runs import Parser, add_evaluation_arguments, load_config, overrides_of

if TYPE_CHECKING:
    from domain_tokens.runs import GSM8KEvalConfig, ProbeEvalConfig

ConfigT = TypeVar("ConfigT", "GSM8KEvalConfig", "ProbeEvalConfig")


@dataclass(frozen=True, slots=True)
class EvaluationRun(Generic[ConfigT]):
    """One evaluation as it was asked for.

    command: what a person would type to do the same. max_samples: how many items of the data, by
    hash, None for all.
    """

    model_path: Path
    output_dir: Path
    condition: str
    config: ConfigT
    command: str
    resume: bool = False
    overwrite: bool = False
    max_samples: int | None = None


def parse_evaluation(
    parser: Parser,
    argv: list[str] | None,
    kind: type[ConfigT],
    *,
    default_config: str,
    flags: Mapping[str, str],
) -> EvaluationRun[ConfigT]:
    """Read an evaluation's command line and its config; raises UserError for a bad one.

    flags: argument -> the config key that it is short for.
    """
    add_evaluation_arguments(parser, default_config)
    args = parser.parse_args(argv)
    given = {key: getattr(args, name) for name, key in flags.items()}
    return EvaluationRun(
        model_path=Path(args.model_path),
        output_dir=Path(args.output_dir),
        condition=args.condition,
        config=load_config(kind, args.config, overrides_of(args.overrides, given)),
        command=args.command,
        resume=args.resume,
        overwrite=args.overwrite,
        max_samples=getattr(args, "max_samples", None),
    )
