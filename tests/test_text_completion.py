"""Sampling: several checkpoints side by side, facts known by id, seeds that can be repeated."""

import io
import json

import pytest

from domain_tokens.evaluation.chat import ChatSession
from domain_tokens.runs.console import highlighted
from tests.conftest import call, load_script, plant

SCRIPT = "sample/text_completion.py"


def sample(capsys, *words):
    assert call(SCRIPT, *words, "--max-new-tokens", 12) == 0
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def arms(experiment):
    return [experiment / "demo" / f"sft_gsm8k_{c}" for c in ("baseline", "mul_tokens")]


def test_checkpoints_stand_side_by_side_with_their_condition(arms, capsys):
    shown = sample(capsys, "--model-path", *arms, "--question", "What is 6 times 9?")
    assert f"{arms[0]} (sft, baseline)" in shown
    assert f"{arms[1]} (sft, mul_tokens)" in shown
    assert shown.count("fact tokens, stop: ") == 2
    assert shown == sample(
        capsys, "--model-path", arms[0], "--model-path", arms[1], "--question", "What is 6 times 9?"
    )


def test_samples_depend_on_the_seed_and_on_their_number(arms, capsys):
    def draw(*words):
        words = ("--model-path", arms[0], "--prompt", "6*9", "--temperature", 1, *words)
        return sample(capsys, *words)

    four = draw("--num-samples", 4, "--seed", 7)
    assert four == draw("--num-samples", 4, "--seed", 7)
    assert four != draw("--num-samples", 4, "--seed", 8)
    parts = four.split("[sample ")
    assert len({part.split("]")[-1] for part in parts[:4]}) > 1


def test_facts_are_known_by_id_and_not_by_their_name(arms, monkeypatch):
    """A typed <MUL_6_9_54> counted as a fact token would flatter the wrong arm."""
    speaker = ChatSession.load(arms[1], "fp32")
    fact = speaker.fact_ids[0]
    typed = speaker.renderer.raw_prompt("<MUL_1_1_1>")
    assert fact not in typed

    def shown(ids):
        marked = [token in speaker.fact_ids for token in ids]
        return highlighted(speaker.tokenizer, ids, marked)

    assert shown(typed) == "<MUL_1_1_1>"
    assert shown([*typed, fact]) == "<MUL_1_1_1>«<MUL_1_1_1>»"
    plant(monkeypatch, "domain_tokens.runs.console.uses_colour", lambda: True)
    assert shown([fact]) == "\033[1;33m<MUL_1_1_1>\033[0m"


def test_control_characters_do_not_reach_the_terminal(arms):
    speaker = ChatSession.load(arms[0], "fp32")
    ids = speaker.renderer.raw_prompt("a\x1b[2J\tb\nc\x00")
    assert highlighted(speaker.tokenizer, ids, [False] * len(ids)) == "a\\x1b[2J\tb\nc\\x00"


def test_json_holds_every_sample_of_every_checkpoint(arms, capsys):
    words = ["--question", "What is 6 times 9?", "--json", "--temperature", 1, "--num-samples", 2]
    rows = [json.loads(line) for line in sample(capsys, "--model-path", *arms, *words).splitlines()]
    assert [(r["model"], r["sample"]) for r in rows] == [(str(a), n) for a in arms for n in (1, 2)]
    assert {"asked", "response", "token_ids", "fact_tokens", "stop_reason"} < rows[0].keys()


def test_questions_from_a_pipe_are_answered_one_by_one(arms, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("What is 2*3?\nWhat is 3*4?\n"))
    rows = [json.loads(r) for r in sample(capsys, "--model-path", arms[1], "--json").splitlines()]
    assert [row["asked"] for row in rows] == ["What is 2*3?", "What is 3*4?"]
    alone = json.loads(
        sample(capsys, "--model-path", arms[1], "--json", "--question", "What is 3*4?")
    )
    assert rows[1] == alone


def test_checkpoints_stand_in_columns_on_a_terminal(arms, capsys, monkeypatch):
    script = load_script(SCRIPT)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "160")
    words = ["--model-path", *map(str, arms), "--question", "6*9?", "--max-new-tokens", "3"]
    assert script.main(words) == 0
    shown = capsys.readouterr().out
    assert any(line.count("fact tokens") == 2 for line in shown.splitlines()), shown


def test_a_chat_keeps_its_history_as_ids_until_it_is_reset(arms, capsys, monkeypatch):
    script = load_script(SCRIPT)
    prompts = []
    answer = script.respond

    def spy(speaker, prompt, args):
        prompts.append(prompt)
        return answer(speaker, prompt, args)

    monkeypatch.setattr(script, "respond", spy)
    monkeypatch.setattr(
        "sys.stdin", io.StringIO("What is 2*3?\n\nAnd 3*4?\n/reset\nHello!\n/quit\nx")
    )
    words = ["--model-path", str(arms[1]), "--interactive", "--max-new-tokens", "8"]
    assert script.main(words) == 0
    assert capsys.readouterr().out.count("stop: ") == 3
    assert len(prompts) == 3
    assert prompts[1][: len(prompts[0])] == prompts[0]
    assert len(prompts[2]) < len(prompts[0]) + 8


def test_a_chat_that_no_longer_fits_says_so(arms, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("6*9 " * 600 + "\n/quit\n"))
    assert call(SCRIPT, "--model-path", arms[0], "--interactive") == 0
    assert "/reset starts a new one" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--question", " "], "--question is empty"),
        (["--prompt", "x", "--num-samples", "2"], "greedy decoding has one answer"),
        (["--prompt", "x", "--top-k", "5"], "greedy decoding has one answer"),
        (["--prompt", "x", "--num-samples", "0"], "--num-samples: 0 is out of bounds"),
        (["--prompt", "x", "--temperature", "-1"], "--temperature: -1 is out of bounds"),
        (["--prompt", "x", "--temperature", "1", "--top-p", "1.5"], "--top-p: 1.5 is out of"),
        (["--prompt", "x", "--question", "y"], "not allowed with"),
        ([], "give --prompt, --question or --interactive"),
        (["--prompt", "6*9 " * 600], "what the model can read"),
    ],
)
def test_bad_values_are_refused(arms, capsys, monkeypatch, words, complaint):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    assert call(SCRIPT, "--model-path", arms[0], *words) == 2
    assert complaint in capsys.readouterr().err
