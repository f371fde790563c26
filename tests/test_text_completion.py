"""Sampling: several checkpoints side by side, facts known by id, seeds that can be repeated."""

import io

import pytest

from tests.conftest import call, load_script

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
    script = load_script(SCRIPT)
    speaker = script.load(arms[1], "fp32")
    fact = speaker.fact_ids[0]
    typed = speaker.renderer.raw_prompt("<MUL_1_1_1>")
    assert fact not in typed
    assert script.shown(speaker, typed, colour=False) == "<MUL_1_1_1>"
    assert script.shown(speaker, [fact], colour=False) == "«<MUL_1_1_1>»"
    assert script.shown(speaker, [fact], colour=True) == "\033[1;33m<MUL_1_1_1>\033[0m"


def test_control_characters_do_not_reach_the_terminal(arms):
    script = load_script(SCRIPT)
    speaker = script.load(arms[0], "fp32")
    ids = speaker.renderer.raw_prompt("a\x1b[2J\tb\nc\x00")
    assert script.shown(speaker, ids, colour=False) == "a\\x1b[2J\tb\nc\\x00"


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
    assert capsys.readouterr().out.count("Assistant:") == 3
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
        (["--prompt", "x", "--num-samples", "0"], "--num-samples is 0"),
        (["--prompt", "x", "--temperature", "-1"], "--temperature is -1.0"),
        (["--prompt", "x", "--temperature", "1", "--top-p", "1.5"], "--top-p is 1.5"),
        (["--prompt", "x", "--question", "y"], "not allowed with"),
        ([], "one of the arguments"),
        (["--prompt", "6*9 " * 600], "what the model can read"),
    ],
)
def test_bad_values_are_refused(arms, capsys, words, complaint):
    assert call(SCRIPT, "--model-path", arms[0], *words) == 2
    assert complaint in capsys.readouterr().err
