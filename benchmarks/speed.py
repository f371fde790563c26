"""All speed tables by one command: training on GSM8K and chat rows, decoding, and how cost grows.

On a GPU this is the measurement to record in progress/: GPT-2 124M in bf16, tokens/s, MFU, memory.
"""

import subprocess
import sys
from pathlib import Path

from domain_tokens.runs import Parser, run_script

EXAMPLE = (
    "uv run --group bench python benchmarks/speed.py --model-path outputs/hf_baseline_10b "
    "--decode-path outputs/sft_gsm8k_baseline --gsm8k ../shared/data/gsm8k "
    "--chat ../shared/data/chat/train.jsonl --rows 256 --questions 1319"
)
HERE = Path(__file__).parent
GROWTH = (1, 4, 16)  # times the smallest number of rows


def main(argv: list[str] | None = None) -> int:
    """Run the benchmarks one after the other; the first that fails ends it."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    parser.add_argument("--model-path", required=True, metavar="DIR", help="what is trained")
    parser.add_argument("--decode-path", required=True, metavar="DIR", help="what answers")
    parser.add_argument("--gsm8k", required=True, metavar="DIR", help="train.jsonl, test.jsonl")
    parser.add_argument("--chat", required=True, metavar="FILE")
    parser.add_argument("--rows", type=int, default=32, metavar="N", help="of training (32)")
    parser.add_argument("--questions", type=int, default=96, metavar="N", help="decoded (96)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N")
    args = parser.parse_args(argv)
    problems, test = f"{args.gsm8k}/train.jsonl", f"{args.gsm8k}/test.jsonl"
    train = ["training.py", "--model-path", args.model_path, "--repeats", str(args.repeats)]
    decode = ["decoding.py", "--model-path", args.decode_path, "--data", test]
    alone, once = ["--peers", "ours"], ["--repeats", "1"]
    calls = [
        [*train, "--data", problems, "--rows", str(args.rows)],
        [*train, "--data", args.chat, "--rows", str(args.rows // 2), "--max-length", "1024"],
        [*decode, "--questions", str(args.questions), "--repeats", str(args.repeats)],
    ]
    for times in GROWTH:
        rows, questions = times * args.rows // 4, times * args.questions // 8
        calls.append([*train, "--data", problems, "--rows", str(rows), *alone, *once])
        calls.append([*decode, "--questions", str(questions), *alone, *once])
    for script, *words in calls:
        print(f"\n## {script} {' '.join(words)}\n", flush=True)
        status = subprocess.run([sys.executable, str(HERE / script), *words]).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
