"""Let one or several checkpoints complete a prompt, answer a question or chat."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from domain_tokens.command_line import Parser, run
from domain_tokens.errors import UserError

EXAMPLE = (
    "uv run python sample/text_completion.py --model-path outputs/sft_gsm8k_baseline "
    'outputs/sft_gsm8k_mul_tokens --question "What is 6 times 9?"'
)
HIGHLIGHT, PLAIN = "\033[1;33m", "\033[0m"


@dataclass
class Speaker:
    """A checkpoint and the chat that it is having."""

    folder: Path
    title: str
    model: Any
    tokenizer: Any
    renderer: Any
    fact_ids: range
    history: list[int] = field(default_factory=list)  # ids, so that fact tokens stay what they are


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
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", metavar="TEXT", help="text to go on from, taken as it is")
    what.add_argument("--question", metavar="TEXT", help="a user turn to answer")
    what.add_argument("--interactive", action="store_true", help="chat; /reset, /quit")
    parser.add_argument("--num-samples", type=int, default=1, metavar="N", help="(%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy (%(default)s)")
    parser.add_argument("--top-k", type=int, metavar="N", help="only the N most likely tokens")
    parser.add_argument("--top-p", type=float, metavar="P", help="only the likeliest mass P")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="(256)")
    parser.add_argument("--seed", type=int, default=42, help="(%(default)s)")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    args = parser.parse_args(argv)
    for name in ("num_samples", "max_new_tokens", "top_k"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}; wanted 1 or more")
    if args.temperature < 0:
        raise UserError(f"--temperature is {args.temperature}; wanted 0 (greedy) or more")
    if args.top_p is not None and not 0 < args.top_p <= 1:
        raise UserError(f"--top-p is {args.top_p}; wanted more than 0 and at most 1")
    if args.temperature == 0 and (args.num_samples > 1 or args.top_k or args.top_p):
        raise UserError(
            "greedy decoding has one answer and no --top-k or --top-p; add --temperature 0.8"
        )
    for name in ("prompt", "question"):
        if getattr(args, name) is not None and not getattr(args, name).strip():
            raise UserError(f"--{name} is empty; wanted a text")
    return args


def load(folder: Path, precision: str) -> Speaker:
    """Load a checkpoint; its run card, if it has one, gives stage and condition."""
    from domain_tokens import checkpoints, hardware
    from domain_tokens.prompts import Renderer
    from domain_tokens.vocabulary import layout_of

    checkpoints.verify_folder(folder)
    card = checkpoints.read_card(folder)
    tokenizer = checkpoints.load_tokenizer(folder)
    try:
        layout = layout_of(tokenizer)
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from None
    device, dtype = hardware.choose(precision)
    return Speaker(
        folder=folder,
        title=f"{folder}" + (f" ({card['stage']}, {card['condition']})" if card else ""),
        model=checkpoints.load_model(folder, dtype=dtype).to(device),
        tokenizer=tokenizer,
        renderer=Renderer(tokenizer),
        fact_ids=layout.fact_ids,
    )


def shown(speaker: Speaker, token_ids: Sequence[int], *, colour: bool) -> str:
    """Return a response as text: facts (known by id) highlighted, control characters escaped."""
    pieces: list[tuple[bool, list[int]]] = []
    for token in token_ids:
        fact = token in speaker.fact_ids
        if fact or not pieces or pieces[-1][0]:
            pieces.append((fact, []))
        pieces[-1][1].append(token)
    text = ""
    for fact, ids in pieces:
        piece = "".join(
            c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode()
            for c in speaker.tokenizer.decode(ids, skip_special_tokens=True)
        )
        text += (f"{HIGHLIGHT}{piece}{PLAIN}" if colour else f"«{piece}»") if fact else piece
    return text


def respond(speaker: Speaker, prompt: list[int], args: argparse.Namespace) -> list[int]:
    """Decode all samples of one prompt and print them; return the ids of the first."""
    from domain_tokens.generation import Sampling, generate

    responses = generate(
        speaker.model,
        [prompt] * args.num_samples,
        eos_id=speaker.renderer.eos,
        max_new_tokens=args.max_new_tokens,
        batch_size=32,
        sampling=Sampling(args.temperature, args.top_k, args.top_p, args.seed),
    )
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for number, response in enumerate(responses, 1):
        facts = sum(token in speaker.fact_ids for token in response.token_ids)
        sample = f"sample {number}: " if args.num_samples > 1 else ""
        print(shown(speaker, response.token_ids, colour=colour))
        print(
            f"  [{sample}{len(response.token_ids)} tokens, {facts} fact tokens, "
            f"stop: {response.stop}]",
            flush=True,
        )
    return responses[0].token_ids


def chat(speakers: Sequence[Speaker], args: argparse.Namespace) -> None:
    """Chat on the terminal; every checkpoint keeps a history of its own answers."""
    cue = "\nUser: " if sys.stdin.isatty() else ""
    while True:
        try:
            text = input(cue).strip()
        except EOFError:
            return
        if text == "/quit":
            return
        if text == "/reset":
            for speaker in speakers:
                speaker.history.clear()
            print("(a new conversation)")
        elif text:
            for speaker in speakers:
                print(f"\n{speaker.title}\nAssistant:", end="")
                render = speaker.renderer
                prompt = (
                    render.next_prompt(speaker.history, text)
                    if speaker.history
                    else render.prompt([("user", text)])
                )
                try:
                    speaker.history = prompt + respond(speaker, prompt, args)
                except UserError as error:
                    print(f" (the conversation is too long: {error}; /reset starts a new one)")


def main(argv: list[str] | None = None) -> int:
    """Show what every checkpoint writes."""
    args = parse(argv)
    speakers = [load(Path(folder), args.precision) for folder in args.model_path]
    if args.interactive:
        chat(speakers, args)
        return 0
    for speaker in speakers:
        if args.question is not None:
            ids = speaker.renderer.prompt([("user", args.question)])
        else:
            ids = speaker.renderer.raw_prompt(args.prompt)
        print(f"\n{speaker.title}")
        respond(speaker, ids, args)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
