"""Show what injection touches in a data set: shares, samples, and the tokens of each treatment."""

import argparse
import sys
from pathlib import Path
from typing import Any, get_args

from domain_tokens import checkpoints
from domain_tokens.data import (
    Conversation,
    audit,
    count_tokens,
    load_conversations,
    load_problems,
    problem_messages,
    row_line,
)
from domain_tokens.errors import UserError
from domain_tokens.injection import OLDER_MODES, Mode
from domain_tokens.runs import (
    COUNT,
    Parser,
    Rationale,
    named_today,
    run_script,
    write_json,
    write_text,
)
from domain_tokens.treatments import NAMES
from domain_tokens.vocabulary import extend_tokenizer, gpt2_tokenizer

EXAMPLE = (
    "uv run python scripts/audit_injection.py --source openai/gsm8k --kind problems "
    "--output-path outputs/audit_gsm8k.json"
)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    parser.add_argument("--source", required=True, metavar="FILE|DIR|HUB_ID")
    parser.add_argument("--kind", required=True, choices=("conversations", "problems"))
    parser.add_argument("--split", default="train")
    parser.add_argument(
        "--mode",
        default="products",
        choices=(*get_args(Mode), *OLDER_MODES),
        metavar="{products,equations}",
        help="whether bare products are facts, too, or only what has a result",
    )
    parser.add_argument(
        "--rationale",
        default="full",
        choices=get_args(Rationale),
        help="what is read of a problem's solution, as data.rationale (full)",
    )
    parser.add_argument("--max-samples", type=COUNT, metavar="N", help="only N rows, by hash")
    parser.add_argument(
        "--treatment",
        nargs="+",
        choices=NAMES,
        default=[],
        metavar="NAME",
        help=f"count its tokens and those with loss: {', '.join(NAMES)}",
    )
    parser.add_argument("--tokenizer", metavar="DIR", help="default: GPT-2's")
    parser.add_argument("--output-path", metavar="FILE", help="write everything here as JSON")
    parser.add_argument(
        "--touched-path", metavar="FILE", help="write the rows that hold a fact here as JSONL"
    )
    args = parser.parse_args(argv)
    if args.kind == "conversations" and args.rationale != "full":
        raise UserError(
            f"--rationale {args.rationale} with --kind conversations, which have no calculator "
            "annotations; leave it out"
        )
    if args.touched_path and Path(args.touched_path).exists():
        raise UserError(f"--touched-path {args.touched_path} is there already; name a new file")
    args.mode = named_today({"injection_mode": args.mode}, announce="data")["injection_mode"]
    return args


def load(args: argparse.Namespace) -> list[Conversation]:
    """Load the rows, problems as conversations."""
    options: dict[str, Any] = {"split": args.split, "limit": args.max_samples, "subset_seed": 42}
    if args.kind == "conversations":
        loaded = load_conversations(args.source, key="--source", **options)
        rows = loaded.items
    else:
        options["rationale"] = args.rationale
        loaded = load_problems(args.source, key="--source", **options)
        rows = [Conversation(p.id, problem_messages(p), args.source, p.row) for p in loaded.items]
    print(*loaded.notes(), sep="\n", end="\n" * bool(loaded.dropped))
    return rows


def main(argv: list[str] | None = None) -> int:
    """Audit one data set."""
    args = parse(argv)
    from domain_tokens.prompts import Renderer
    from domain_tokens.runs import refuse_unwritable

    refuse_unwritable(args.output_path)
    refuse_unwritable(args.touched_path)
    rows = load(args)
    tokenizer = (
        checkpoints.load_tokenizer(Path(args.tokenizer)) if args.tokenizer else gpt2_tokenizer()
    )
    extend_tokenizer(tokenizer)
    report, touched = audit(rows, Renderer(tokenizer), args.mode)
    if args.treatment:
        report["treatments"] = count_tokens(rows, tokenizer, args.treatment, args.mode)
    print(
        f"{report['rows_touched']} of {report['rows']} rows ({report['row_share']:.1%}), "
        f"{report['facts_injected']} facts of {report['different_facts']} kinds in "
        f"{report['assistant_tokens']:,} assistant tokens"
    )
    for name, counts in report.get("treatments", {}).items():
        print(
            f"{name:<16} {counts['tokens']:>11,} tokens, {counts['supervised_tokens']:>11,} with "
            f"loss, {counts['supervised_tokens_per_row']:.2f} a row, {counts['places']:,} treated"
        )
    for kind, count in report["kinds"].items():
        print(f"\n{kind}: {count}")
        for sample in report["samples"][kind]:
            print(f"  {sample}")
    if args.output_path:
        Path(args.output_path).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(args.output_path), report)
        print(f"\nwritten to {args.output_path}")
    if args.touched_path:
        Path(args.touched_path).parent.mkdir(parents=True, exist_ok=True)
        lines = [row_line(row, as_problem=args.kind == "problems") for row in touched]
        write_text(Path(args.touched_path), "".join(lines))
        print(f"\n{len(touched)} rows written to {args.touched_path}")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
