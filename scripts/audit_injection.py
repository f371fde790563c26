"""Show what injection touches in a data set: shares, samples, and the tokens of each treatment."""

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from tqdm import tqdm

from domain_tokens import checkpoints
from domain_tokens.data import Conversation, load_conversations, load_problems, problem_messages
from domain_tokens.errors import UserError
from domain_tokens.injection import OLDER_MODES, Mode, find_facts, near_misses
from domain_tokens.merges import choose_merges
from domain_tokens.runs import (
    COUNT,
    Parser,
    Rationale,
    named_today,
    run_script,
    write_json,
    write_text,
)
from domain_tokens.treatments import NAMES, Name, Treatment
from domain_tokens.vocabulary import FACTS, extend_tokenizer, gpt2_tokenizer

if TYPE_CHECKING:
    from domain_tokens.prompts import Renderer

EXAMPLE = (
    "uv run python scripts/audit_injection.py --source openai/gsm8k --kind problems "
    "--output-path outputs/audit_gsm8k.json"
)
CONTEXT = 30  # characters shown on both sides
SAMPLES = 5  # of each kind
ASSISTANT = "assistant"
WHOLE = 2**31 - 1  # tokens: no row is cut


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


def facts_of(row: Conversation, mode: Any) -> int:
    """Return how many facts injection would write into a row."""
    return sum(len(find_facts(text, mode=mode)) for role, text in row.messages if role == ASSISTANT)


def row_line(row: Conversation, kind: str) -> str:
    """Return a row as a line of JSONL that the training scripts read, with the same id."""
    texts = [content for _, content in row.messages]
    if kind == "problems":
        fields: dict[str, Any] = dict(zip(("question", "answer"), texts, strict=True))
    else:
        messages = [{"role": role, "content": content} for role, content in row.messages]
        fields = {"messages": messages, "source": row.source}
    return json.dumps({"id": row.id, **fields}, ensure_ascii=False) + "\n"


def audit(rows: list[Conversation], renderer: "Renderer", mode: Any) -> dict[str, Any]:
    """Count rows, tokens and facts that injection touches in assistant turns; sample matches."""
    touched = tokens = injected = 0
    facts: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    samples: dict[str, list[str]] = defaultdict(list)
    for row in tqdm(rows, desc="audit", delay=2, disable=None):
        matches_of_row = 0
        for text in (content for role, content in row.messages if role == ASSISTANT):
            tokens += len(renderer.encode(text))
            matches = find_facts(text, mode=mode)
            matches_of_row += len(matches)
            facts.update(match.token for match in matches)
            named = [(p.start, p.end, f"match: {p.form}") for p in matches]
            misses = [(*m[:2], f"near miss: {m[2]}") for m in near_misses(text, mode=mode)]
            for start, end, kind in named + misses:
                kinds[kind] += 1
                if len(samples[kind]) < SAMPLES:
                    samples[kind].append(shown(text, start, end))
        touched += matches_of_row > 0
        injected += matches_of_row
    return {
        "rows": len(rows),
        "rows_touched": touched,
        "row_share": touched / len(rows),
        "assistant_tokens": tokens,
        "facts_injected": injected,
        "facts_per_1000_tokens": 1000 * injected / max(tokens, 1),
        "different_facts": len(facts),
        "facts": {fact: facts[fact] for fact in FACTS},
        "kinds": dict(kinds.most_common()),
        "samples": dict(samples),
    }


def count_tokens(
    rows: list[Conversation], tokenizer: Any, names: Sequence[Name], mode: Any
) -> dict[str, dict[str, Any]]:
    """Return what an epoch of all rows has to read and to learn under each treatment, per arm.

    tokens, supervised_tokens: of all rows together; supervised_tokens_per_row: their mean; places:
    what was treated; rows_longer, rows_shorter: rows of more, or fewer, tokens than the baseline's.
    """
    from domain_tokens.prompts import Renderer

    plain = Renderer(tokenizer)
    texts = [f" {text}" for row in rows for role, text in row.messages if role == ASSISTANT]
    counts: dict[str, dict[str, Any]] = {}
    lengths: dict[str, list[int]] = {}
    for name in ("baseline", *names):
        treatment = Treatment(name) if name in NAMES else None
        if name == "matched_merges":
            merges = choose_merges(texts, FACTS, length=lambda t: len(plain.encode(t)), mode=mode)
            treatment = Treatment(name, merges=merges)
        renderer = Renderer(tokenizer, treatment=treatment, injection_mode=mode)
        made = [renderer.example(row.id, row.messages, max_length=WHOLE) for row in rows]
        examples = [example for example in made if not isinstance(example, str)]
        lengths[name] = [len(example.input_ids) for example in examples]
        longer = [a - b for a, b in zip(lengths[name], lengths["baseline"], strict=True)]
        supervised = sum(example.supervised for example in examples)
        counts[name] = {
            "rows": len(examples),
            "tokens": sum(lengths[name]),
            "supervised_tokens": supervised,
            "supervised_tokens_per_row": supervised / max(len(examples), 1),
            "places": sum(example.facts for example in examples),
            "rows_longer": sum(change > 0 for change in longer),
            "rows_shorter": sum(change < 0 for change in longer),
        }
    return counts


def shown(text: str, start: int, end: int) -> str:
    """Return a span in brackets, with its surroundings in one line."""
    before, after = text[max(0, start - CONTEXT) : start], text[end : end + CONTEXT]
    return " ".join(f"{before}⟦{text[start:end]}⟧{after}".split())


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
    report = audit(rows, Renderer(tokenizer), args.mode)
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
        touched = [row_line(row, args.kind) for row in rows if facts_of(row, args.mode)]
        write_text(Path(args.touched_path), "".join(touched))
        print(f"\n{len(touched)} rows written to {args.touched_path}")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
