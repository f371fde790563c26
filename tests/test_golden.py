"""What the tool computes, kept as files: a change of structure may not change a number.

Exact where the machine has no say (prepared data, texts of --help, statistics of stored items); to
stated bounds where it has (losses, log-probabilities). `uv run pytest tests/test_golden.py
--update-golden` writes the files again: a person then reads `git diff tests/golden` and says why.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from domain_tokens.data.demo_corpora import chat_rows
from domain_tokens.data.demo_problems import problem_rows
from domain_tokens.data.examples import Conversation
from domain_tokens.data.prepared import render_table
from domain_tokens.evaluation.checkpoint import LoadedCheckpoint
from domain_tokens.evaluation.endpoints import answer_scores, sample_seed, table_scores
from domain_tokens.evaluation.metrics import table_metrics
from domain_tokens.inference.decoder import generate
from domain_tokens.inference.sampling import Sampling
from domain_tokens.prompts import Renderer
from domain_tokens.training.step_plan import plan_steps
from domain_tokens.training.trainer import train
from domain_tokens.treatments import FACT_TOKENS
from domain_tokens.vocabulary import layout_of
from tests.conftest import ROOT, call, tiny_llama
from tests.test_scripts import SCRIPTS
from tests.test_training import SETTINGS

GOLDEN = Path(__file__).parent / "golden"
LOSS, NATS = 1e-4, 1e-3  # relative, of a loss; absolute, of a log-probability
QUESTIONS = [
    "What is 6 times 9?",
    "Ada has 3 bags with 8 pears in each bag. How many pears does Ada have?",
    "Why is the sky blue?",
    "9*9",
]


def agree(value, expected, **bounds):
    """Assert that a value is the expected one, its numbers within bounds where there are any."""
    if not bounds:
        assert value == expected
        return
    ours, theirs = flat(value), flat(expected)
    assert ours.keys() == theirs.keys()
    for key, due in theirs.items():
        number = isinstance(due, float)
        assert ours[key] == (pytest.approx(due, **bounds) if number else due), key


@pytest.fixture
def golden(request):
    """Return a function that compares a value with a golden file, or writes it on demand."""

    def compare(name, value, **bounds):
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
        agree(value, json.loads(path.read_text()), **bounds)

    return compare


def flat(tree, prefix=""):
    """Return the leaves of a JSON value by path."""
    if isinstance(tree, dict | list):
        pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {k: v for key, part in pairs for k, v in flat(part, f"{prefix}/{key}").items()}
    return {prefix: tree}


def conversations(count):
    """Return chat rows and word problems that every machine makes alike."""
    chat = [
        Conversation(row["id"], tuple((m["role"], m["content"]) for m in row["messages"]), "chat")
        for row in chat_rows(count, 1)
    ]
    problems = [
        Conversation(
            f"p{number}", (("user", row["question"]), ("assistant", row["answer"])), "problems"
        )
        for number, row in enumerate(problem_rows(count, 1, "train"))
    ]
    return chat + problems


def model_of(family, tiny_model):
    return tiny_model if family == "gpt2" else tiny_llama()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_ten_steps_have_the_losses_that_they_had(tiny_model, tokenizer, family, golden, tmp_path):
    """Packed, accumulated, with grouped heads, on rendered rows with facts (as in llm.c)."""
    renderer = Renderer(tokenizer, treatment=FACT_TOKENS)
    examples = [renderer.example(r.id, r.messages, max_length=256) for r in conversations(40)]
    changes = {"max_length": 256, "batch_size": 2, "gradient_accumulation_steps": 4}
    settings = SETTINGS.model_copy(update={**changes, "num_epochs": 1})
    plan = plan_steps(examples, settings)
    assert len(plan.steps) == 10
    train(model_of(family, tiny_model), examples, plan, settings, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "train_log.jsonl").read_text().splitlines()]
    kept = ("step", "loss", "learning_rate", "grad_norm")
    golden(f"losses_{family}.json", [{k: line[k] for k in kept} for line in lines], rel=LOSS)


@pytest.mark.parametrize("inject", [False, True])
def test_prepared_data_are_the_same_to_the_bit(tokenizer, inject, golden):
    table, dropped, listed = render_table(
        Renderer(tokenizer, treatment=FACT_TOKENS if inject else None),
        conversations(200),
        max_length=128,
        test_questions=[row["question"] for row in problem_rows(50, 1, "test")],
    )
    digests = {
        name: hashlib.sha256(json.dumps(table[name].to_pylist()).encode()).hexdigest()
        for name in table.column_names
    }
    shown = {"rows": table.num_rows, "dropped": dict(dropped), "listed": listed, **digests}
    golden(f"prepared_{'injected' if inject else 'plain'}.json", shown)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_responses_are_the_same_token_for_token(tiny_model, tokenizer, family, golden):
    renderer, model = Renderer(tokenizer), model_of(family, tiny_model)
    prompts = [renderer.prompt([("user", question)]) for question in QUESTIONS]
    shown = {}
    for name, sampling in (("greedy", Sampling()), ("sampled", Sampling(1.0, 50, 0.9, 7))):
        responses = generate(
            model, prompts, eos_id=renderer.eos, max_new_tokens=24, batch_size=3, sampling=sampling
        )
        shown[name] = [[*r.token_ids, r.stop_reason] for r in responses]
    golden(f"responses_{family}.json", shown)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_endpoints_are_the_same_to_a_thousandth_of_a_nat(tiny_model, tokenizer, family, golden):
    model = model_of(family, tiny_model).eval()
    subject = LoadedCheckpoint(Path("nowhere"), model, tokenizer, layout_of(tokenizer))
    renderer = Renderer(tokenizer)
    table = table_metrics(table_scores(subject, response_prefix=" The answer is"))
    prompts = [renderer.prompt([("user", question)]) for question in QUESTIONS]
    seeds = tuple(sample_seed(42, str(i)) for i in range(len(prompts) * 4))
    drawn = generate(
        model,
        [prompt for prompt in prompts for _ in range(4)],
        eos_id=renderer.eos,
        max_new_tokens=12,
        batch_size=8,
        sampling=Sampling(temperature=1.0, row_seeds=seeds),
    )
    distractors = [str(n) for n in range(1, 21)]
    scores = answer_scores(
        subject,
        prompts,
        ["54", "24", "1,000", "81"],
        [drawn[i : i + 4] for i in (0, 4, 8, 12)],
        distractors,
    )
    shown = {
        **table,
        "g1_log_probs": [score.g1_log_probs for score in scores],
        "g2_log_probs": [score.g2_log_probs for score in scores],
    }
    golden(f"endpoints_{family}.json", shown, abs=NATS)


def test_a_comparison_of_stored_items_is_the_same(golden, tmp_path):
    """Two seeds of each arm, as an evaluation once wrote them: all that follows is arithmetic."""
    folders = [
        word
        for arm in ("baseline", "mul_tokens")
        for word in (
            f"--{arm.replace('_', '-')}-dir",
            *(str(GOLDEN / "evaluations" / f"{arm}_{seed}") for seed in (1, 2)),
        )
    ]
    target = tmp_path / "comparison.json"
    assert call("scripts/compare_runs.py", *folders, "--output-path", target) == 0
    report = json.loads(target.read_text())
    leaves = {
        k: v for k, v in flat(report).items() if "folder" not in k and not k.startswith("/code")
    }
    golden("comparison.json", leaves, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_what_it_was(script, golden):
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, ROOT / script, "--help"],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    golden(f"help/{Path(script).stem}.json", done.stdout.splitlines())


@pytest.mark.parametrize("change", ["loss", "length", "key", "text"])
def test_a_value_that_differs_from_its_golden_file_is_seen(change):
    """The guard itself, on planted differences."""
    expected = json.loads((GOLDEN / "losses_gpt2.json").read_text())
    agree(expected, expected, rel=LOSS)
    value = json.loads(json.dumps(expected))
    if change == "loss":
        value[4]["loss"] *= 1 + 2 * LOSS
    elif change == "length":
        value.pop()
    elif change == "key":
        value[4]["other"] = value[4].pop("loss")
    else:
        value[4]["step"] = "5"
    with pytest.raises(AssertionError):
        agree(value, expected, rel=LOSS)
