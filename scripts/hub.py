"""Publish a checkpoint on a Hugging Face hub with its run card as model card, or fetch one."""

import argparse
import sys
from pathlib import Path

from domain_tokens.runs import Parser, run_script

EXAMPLE = "uv run python scripts/hub.py push outputs/sft_gsm8k_baseline NAME/REPOSITORY"


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    parser.add_argument("action", choices=("push", "pull"))
    parser.add_argument("source", metavar="FROM", help="push: a folder; pull: a repository")
    parser.add_argument("target", metavar="TO", help="push: a repository; pull: a new folder")
    parser.add_argument(
        "--eval-dir", nargs="+", default=[], metavar="DIR", help="push: its numbers, for the card"
    )
    parser.add_argument(
        "--private", action="store_true", help="push: make a new repository private"
    )
    parser.add_argument("--revision", metavar="REF", help="pull: a branch, tag or commit")
    parser.add_argument("--dry-run", action="store_true", help="push: show files and card, stop")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Push or pull one checkpoint."""
    args = parse(argv)
    from domain_tokens.checkpoints import files_of, model_card, pull_checkpoint, push_checkpoint

    if args.action == "pull":
        weights = pull_checkpoint(args.source, Path(args.target), revision=args.revision)
        print(f"{args.target}: weights {weights[:12]}, as its run card says")
        return 0
    folder, evaluations = Path(args.source), [Path(name) for name in args.eval_dir]
    if args.dry_run:
        print(*(path.name for path in files_of(folder)), sep="\n")
        print(model_card(folder, evaluations))
        return 0
    url = push_checkpoint(folder, args.target, evaluations=evaluations, private=args.private)
    print(f"{folder} is at {url}")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
