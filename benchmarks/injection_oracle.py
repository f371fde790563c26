"""Judge injection in many random texts by an arithmetic evaluator that shares nothing with it."""

import sys

from domain_tokens.runs import Parser, run_script

EXAMPLE = "uv run python benchmarks/injection_oracle.py --texts 50000 --seed 1"
SHOWN = 20  # changed values
CHUNK = 5000  # texts


def main(argv: list[str] | None = None) -> int:
    """Print how many facts were judged and every one that changes a value; 1 if there is one."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    parser.add_argument("--texts", type=int, default=50_000, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    from tests.oracles.injected_texts import texts
    from tests.oracles.injection_oracle import judge

    verdict = judge(texts(args.texts, seed=args.seed))
    print(verdict)
    for text, fact in verdict.changed[:SHOWN]:
        print(f"  {fact!r} in {text!r}")
    return int(bool(verdict.changed))


if __name__ == "__main__":
    sys.exit(run_script(main))
