"""Let one or several checkpoints complete a prompt, answer a question or chat."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domain_tokens.errors import UserError
from domain_tokens.runs import COUNT, SEED, Number, Parser, is_unicode, run_script

if TYPE_CHECKING:
    from domain_tokens.evaluation import ChatSession

EXAMPLE = (
    "uv run python sample/text_completion.py --model-path outputs/sft_gsm8k_baseline "
    'outputs/sft_gsm8k_mul_tokens --question "What is 6 times 9?"'
)
HEAT = Number(float, 0, 1000)
SHARE = Number(float, 1e-9, 1)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    parser.add_argument(
        "--model-path",
        nargs="+",
        action="extend",
        required=True,
        metavar="DIR",
        help="checkpoints to show side by side",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--prompt", metavar="TEXT", help="text to go on from, taken as it is")
    what.add_argument("--question", metavar="TEXT", help="a user turn to answer")
    what.add_argument("--interactive", action="store_true", help="chat; /reset, /quit")
    parser.add_argument("--json", action="store_true", help="print a JSON object per response")
    parser.add_argument("--num-samples", type=COUNT, default=1, metavar="N", help="(%(default)s)")
    parser.add_argument("--temperature", type=HEAT, default=0.0, help="0: greedy (%(default)s)")
    parser.add_argument("--top-k", type=COUNT, metavar="N", help="only the N most likely tokens")
    parser.add_argument("--top-p", type=SHARE, metavar="P", help="only the likeliest mass P")
    parser.add_argument("--max-new-tokens", type=COUNT, default=256, metavar="N", help="(256)")
    parser.add_argument("--seed", type=SEED, default=42, help="(%(default)s)")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    args = parser.parse_args(argv)
    told = args.prompt is not None or args.question is not None or args.interactive
    if not told and asked_at_terminal():
        raise UserError("give --prompt, --question or --interactive, or questions through a pipe")
    if args.temperature == 0 and (args.num_samples > 1 or args.top_k or args.top_p):
        raise UserError(
            "greedy decoding has one answer and no --top-k or --top-p; add --temperature 0.8"
        )
    for name in ("prompt", "question"):
        if getattr(args, name) is not None and not getattr(args, name).strip():
            raise UserError(f"--{name} is empty; wanted a text")
    return args


def asked_at_terminal() -> bool:
    """Return whether a person types, rather than a pipe."""
    return sys.stdin.isatty()


def respond(
    speaker: "ChatSession", prompt: list[int], args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return all samples of one prompt."""
    from domain_tokens.inference import Sampling

    return speaker.respond(
        prompt,
        count=args.num_samples,
        max_new_tokens=args.max_new_tokens,
        sampling=Sampling(args.temperature, args.top_k, args.top_p, args.seed),
    )


def note(sample: dict[str, Any], count: int) -> str:
    """Return the line under a response."""
    number = f"sample {sample['sample']}: " if count > 1 else ""
    tokens, facts = len(sample["token_ids"]), sample["fact_tokens"]
    return f"[{number}{tokens} tokens, {facts} fact tokens, stop: {sample['stop_reason']}]"


def show(
    speakers: Sequence["ChatSession"],
    answers: Sequence[list[dict[str, Any]]],
    args: argparse.Namespace,
    asked: str,
) -> None:
    """Print responses: in columns on a terminal, one below the other elsewhere, or as JSON."""
    from domain_tokens.runs import print_columns

    if args.json:
        for sample in (sample for samples in answers for sample in samples):
            line = {"asked": asked, **{k: v for k, v in sample.items() if k != "shown"}}
            print(json.dumps(line, ensure_ascii=not is_unicode(sys.stdout)), flush=True)
    elif len(speakers) > 1 and sys.stdout.isatty():
        rows = [
            [f"{sample['shown']}\n{note(sample, args.num_samples)}" for sample in row]
            for row in zip(*answers, strict=True)
        ]
        print_columns([speaker.title for speaker in speakers], rows)
    else:
        for speaker, samples in zip(speakers, answers, strict=True):
            print(f"\n{speaker.title}")
            for sample in samples:
                print(f"{sample['shown']}\n  {note(sample, args.num_samples)}", flush=True)


def ask(speakers: Sequence["ChatSession"], args: argparse.Namespace, text: str) -> None:
    """Answer one user turn; every checkpoint keeps a history of its own answers."""
    answers = []
    for speaker in speakers:
        render = speaker.renderer
        prompt = (
            render.next_prompt(speaker.history, text)
            if speaker.history
            else render.prompt([("user", text)])
        )
        answers.append(respond(speaker, prompt, args))
        speaker.history = prompt + answers[-1][0]["token_ids"]
    show(speakers, answers, args, text)


def chat(speakers: Sequence["ChatSession"], args: argparse.Namespace) -> None:
    """Read user turns until the end or /quit; questions from a pipe do not know of each other."""
    if args.interactive and asked_at_terminal():
        import readline  # noqa: F401 (input() then has line history)
    while True:
        try:
            text = input("\nUser: " if asked_at_terminal() else "").strip()
        except EOFError:
            return
        except UnicodeDecodeError as error:
            raise UserError(
                f"a question is not {error.encoding}, as the console is said to be; "
                "set PYTHONIOENCODING=utf-8"
            ) from None
        if text == "/quit":
            return
        if text == "/reset" or not args.interactive:
            for speaker in speakers:
                speaker.history.clear()
        if text == "/reset":
            print("(a new conversation)")
        elif text:
            try:
                ask(speakers, args, text)
            except UserError as error:
                if not args.interactive:
                    raise
                print(f"(the conversation is too long: {error}; /reset starts a new one)")


def main(argv: list[str] | None = None) -> int:
    """Show what every checkpoint writes."""
    args = parse(argv)
    from domain_tokens.evaluation import ChatSession

    speakers = [ChatSession.load(Path(folder), args.precision) for folder in args.model_path]
    if args.prompt is not None:
        prompts = [speaker.renderer.raw_prompt(args.prompt) for speaker in speakers]
        answers = [respond(s, p, args) for s, p in zip(speakers, prompts, strict=True)]
        show(speakers, answers, args, args.prompt)
    elif args.question is not None:
        ask(speakers, args, args.question)
    else:
        chat(speakers, args)
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
