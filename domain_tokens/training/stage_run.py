"""What a training stage was told on its command line, as one frozen object."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from domain_tokens.errors import UserError
from domain_tokens.runs import (
    CONDITIONS,
    SEED,
    Parser,
    add_config_arguments,
    add_output_arguments,
    overrides_of,
)

if TYPE_CHECKING:
    from domain_tokens.data import UsualValidation
    from domain_tokens.runs import SFTConfig


@dataclass(frozen=True, slots=True)
class StageRun:
    """One run of a training stage as it was asked for.

    inject: whether products in assistant turns become fact tokens. usual_validation: what the stage
    validates on where the config names nothing. command: what a person would type to do the same.
    """

    model_path: Path
    output_dir: Path
    condition: str
    config: "SFTConfig"
    inject: bool
    usual_validation: "UsualValidation"
    command: str
    resume: bool = False
    overwrite: bool = False
    cross_base: bool = False
    allow_no_injection: bool = False
    dry_run: bool = False


def add_stage_arguments(parser: argparse.ArgumentParser, default_config: str) -> None:
    """Add the arguments that both training stages take."""
    parser.add_argument("--model-path", required=True, metavar="DIR", help="parent checkpoint")
    parser.add_argument("--condition", required=True, choices=CONDITIONS)
    parser.add_argument("--seed", type=SEED, help="overrides training.seed")
    parser.add_argument(
        "--cross-base",
        action="store_true",
        help="accept a parent of the other arm (a base × SFT factorial)",
    )
    parser.add_argument(
        "--allow-no-injection",
        action="store_true",
        help="condition mul_tokens without a fact token in its training text, where that is meant",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show data, steps, estimated time and memory; stop"
    )
    add_output_arguments(parser)
    add_config_arguments(parser, default_config)


def parse_stage(
    parser: Parser, argv: list[str] | None, *, usual_validation: "UsualValidation"
) -> StageRun:
    """Read a stage's command line and its config; raises UserError for what cannot be meant.

    A stage whose parser has --inject-mul-tokens injects where that is given, another one wherever
    the condition is mul_tokens.
    """
    from domain_tokens.runs import SFTConfig, load_config

    args = parser.parse_args(argv)
    inject = getattr(args, "inject_mul_tokens", args.condition == "mul_tokens")
    if inject and args.condition == "baseline":
        raise UserError(
            "--inject-mul-tokens with --condition baseline; the baseline has no fact tokens: "
            "leave the flag out, or give --condition mul_tokens"
        )
    overrides = overrides_of(args.overrides, {"training.seed": args.seed})
    return StageRun(
        model_path=Path(args.model_path),
        output_dir=Path(args.output_dir),
        condition=args.condition,
        config=load_config(SFTConfig, args.config, overrides),
        inject=inject,
        usual_validation=usual_validation,
        command=args.command,
        resume=args.resume,
        overwrite=args.overwrite,
        cross_base=args.cross_base,
        allow_no_injection=args.allow_no_injection,
        dry_run=args.dry_run,
    )
