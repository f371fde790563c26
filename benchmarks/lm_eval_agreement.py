"""Evaluate one checkpoint with this repository and with lm-evaluation-harness, item by item."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domain_tokens.answers import extract_flexible, extract_strict
from domain_tokens.checkpoints import load_model, load_tokenizer, verify_folder
from domain_tokens.data import Problem, load_problems
from domain_tokens.runs import Parser, code_identity, run_script, write_json, write_text

if TYPE_CHECKING:
    from domain_tokens.evaluation import LoadedCheckpoint

EXAMPLE = (
    "uv run --group bench python benchmarks/lm_eval_agreement.py --model-path outputs/hf_smollm2 "
    "--data ../shared/data/gsm8k/test.jsonl --max-samples 100 --output-path agreement.json"
)
TASK = Path("eval/lm_eval/gsm8k_user_assistant.yaml")
FILTERS = {"strict-match": "strict", "flexible-extract": "flexible"}


def theirs(subject: "LoadedCheckpoint", data: Path, *, batch_size: int) -> list[dict[str, Any]]:
    """Return response and verdicts per row of a JSONL file, by lm-evaluation-harness."""
    import yaml
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    task = yaml.safe_load(TASK.read_text(encoding="utf-8"))
    task["dataset_kwargs"]["data_files"]["test"] = str(data)
    tokenizer: Any = subject.tokenizer  # annotated more narrowly than it is used
    model: Any = HFLM(
        pretrained=subject.model,
        tokenizer=tokenizer,
        batch_size=batch_size,
        device="cpu",
        dtype="float32",
    )
    results: Any = simple_evaluate(model=model, tasks=[task], bootstrap_iters=0)
    rows: dict[int, dict[str, Any]] = {}
    for sample in results["samples"][task["task"]]:
        row = rows.setdefault(sample["doc_id"], {"response": sample["resps"][0][0]})
        name = FILTERS[sample["filter"]]
        row[name] = bool(sample["exact_match"])
        row[f"{name}_read"] = sample["filtered_resps"][0]
    return [rows[i] for i in sorted(rows)]


def ours(
    subject: "LoadedCheckpoint", problems: list[Problem], *, batch_size: int
) -> list[dict[str, Any]]:
    """Return response and verdicts per problem, as eval/run_gsm8k.py gives them."""
    from domain_tokens.evaluation import gsm8k_questions, read_response
    from domain_tokens.inference import generate

    questions = gsm8k_questions(subject, problems)
    responses = generate(
        subject.model,
        [question.prompt_ids for question in questions],
        eos_id=subject.tokenizer.eos_token_id,
        max_new_tokens=256,
        batch_size=batch_size,
    )
    rows = []
    for problem, response in zip(problems, responses, strict=True):
        text, _ = read_response(subject, response.token_ids)
        gold = extract_strict(problem.answer)
        read = {"strict": extract_strict(text), "flexible": extract_flexible(text)}
        verdicts = {name: value == gold for name, value in read.items()}
        rows.append(
            {"response": text, **verdicts, **{f"{n}_read": str(v) for n, v in read.items()}}
        )
    return rows


def compare(our_rows: list[dict], their_rows: list[dict], ids: list[str]) -> dict[str, Any]:
    """Return shares of agreement, and every item on which the two differ with what each read."""
    differing = []
    for item, a, b in zip(ids, our_rows, their_rows, strict=True):
        for name in ("response", "strict", "flexible"):
            if a[name] != b[name]:
                reads = {
                    "ours": a.get(f"{name}_read", a[name]),
                    "theirs": b.get(f"{name}_read", b[name]),
                }
                differing.append({"id": item, "what": name, **reads, "response": a["response"]})
    total = len(ids)
    same = {
        name: sum(a[name] == b[name] for a, b in zip(our_rows, their_rows, strict=True)) / total
        for name in ("response", "strict", "flexible")
    }
    accuracy = {
        who: {name: sum(r[name] for r in rows) / total for name in ("strict", "flexible")}
        for who, rows in (("ours", our_rows), ("theirs", their_rows))
    }
    return {"items": total, "same": same, "accuracy": accuracy, "differing": differing}


def main(argv: list[str] | None = None) -> int:
    """Run both, print agreement and every difference."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    parser.add_argument("--model-path", required=True, metavar="DIR")
    parser.add_argument("--data", required=True, metavar="FILE", help="GSM8K test rows as JSONL")
    parser.add_argument("--max-samples", type=int, default=100, metavar="N")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N")
    parser.add_argument("--output-path", metavar="FILE", help="write everything here as JSON")
    args = parser.parse_args(argv)
    import torch

    from domain_tokens.evaluation import LoadedCheckpoint
    from domain_tokens.vocabulary import layout_of

    folder = Path(args.model_path)
    verify_folder(folder)
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, dtype=torch.float32).eval()
    subject = LoadedCheckpoint(folder, model, tokenizer, layout_of(tokenizer))
    loaded = load_problems(
        args.data, split="test", limit=args.max_samples, subset_seed=42, key="--data"
    )
    subset = Path(args.output_path or "agreement.json").with_suffix(".questions.jsonl")
    rows = [{"question": p.question, "answer": p.answer} for p in loaded.items]
    write_text(subset, "".join(f"{json.dumps(row)}\n" for row in rows))
    try:
        their_rows = theirs(subject, subset, batch_size=args.batch_size)
    finally:
        subset.unlink()
    our_rows = ours(subject, loaded.items, batch_size=args.batch_size)
    report = compare(our_rows, their_rows, [problem.id for problem in loaded.items])
    for name, share in report["same"].items():
        print(f"{name:<9} equal in {share:.1%} of {report['items']} items")
    print(f"accuracy {report['accuracy']}")
    for row in report["differing"]:
        print(f"{row['id']} {row['what']}: ours {row['ours']!r}, theirs {row['theirs']!r}")
    if args.output_path:
        code = code_identity()
        write_json(Path(args.output_path), {**report, "code": code})
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
