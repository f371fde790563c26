"""The README's commands: each one parses, and what is quick is run on the small demo."""

import re
import shlex

import pytest

from domain_tokens.runs.cli import Parser
from domain_tokens.runs.config import GSM8KEvalConfig, ProbeEvalConfig, SFTConfig, _keys
from tests.conftest import ROOT, call, load_script

README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = ["uv", "run", "python"]
CONFIGS = (SFTConfig, GSM8KEvalConfig, ProbeEvalConfig)

# Commands that are parsed here and not run, and why.
PARSED_ONLY = {
    "scripts/compare_runs.py --arm": "the small demo has two arms",
    "scripts/run_experiment.py": "the whole demo: the fixture `experiment` runs it",
    "scripts/make_base.py --from gpt2-random": "124 M parameters",
    "scripts/export_nanogpt.py": "wants nanoGPT's file; tests/test_export_nanogpt.py has some",
    "eval/": "`experiment` runs both evaluations",
    "scripts/hub.py pull": "wants a hub; tests/test_hub.py has one",
    "sft/sft_gsm8k.py … --set tracking": "shortened in the README; tests/test_tracking.py runs it",
}
# What else stands in the README's blocks, and is no script of ours.
OTHERS = (
    "pip install uv",
    "bash .ci/run",
    "uv sync ",
    "uv run tensorboard",
    "uv run --group sweep",
)


def lines_of_blocks():
    """Yield every command line of the README's bash blocks, loops written out."""
    for block in re.findall(r"```bash\n(.*?)```", README, re.S):
        loop = re.search(r"for (\w+) in (.*?); do\n(.*?)done\n", block, re.S)
        if loop:
            name, values, body = loop.groups()
            told = "".join(body.replace(f"${name}", value) for value in values.split())
            block = block.replace(loop[0], told)
        for line in block.splitlines():
            if line.strip():
                yield line.strip()


def spans():
    """Yield every piece of inline code that stands in the README's text."""
    text = re.sub(r"```.*?```", "", README, flags=re.S)
    for span in re.findall(r"`([^`]+)`", text):
        yield " ".join(span.split())


COMMANDS = [
    shlex.split(line, comments=True)[3:]
    for line in [*lines_of_blocks(), *spans()]
    if shlex.split(line.replace("'", ""), comments=True)[:3] == PYTHON
]
MENTIONED = [s.split() for s in spans() if re.match(r"(sft|eval|scripts|sample)/\w+\.py ", s)]


def reason(words):
    """Why a command is not run here, or None."""
    reasons = (why for start, why in PARSED_ONLY.items() if " ".join(words).startswith(start))
    dry = "--dry-run" in words or "--profile" in words
    return None if dry and words[0] == "scripts/run_experiment.py" else next(reasons, None)


class ParsedError(Exception):
    """Ends a script once it has read its arguments."""


@pytest.fixture
def parser_of(monkeypatch):
    """A function: run a script up to its parser, with its arguments or without reading them."""

    def ready(script, words):
        honest, seen = Parser.parse_args, []

        def parse(self, args=None, namespace=None):
            seen.append(self)
            if words is not None:
                honest(self, words, namespace)
            raise ParsedError

        with monkeypatch.context() as patch:
            patch.setattr(Parser, "parse_args", parse)
            with pytest.raises(ParsedError):
                load_script(script).main(words or [])
        return seen[0]

    return ready


def test_the_readme_has_commands_and_every_line_of_its_blocks_is_known():
    assert len(COMMANDS) > 18
    assert len(MENTIONED) > 1
    for line in lines_of_blocks():
        assert line.startswith((*OTHERS, "uv run python ")), line
    for start in PARSED_ONLY:
        assert any(" ".join(words).startswith(start) for words in COMMANDS), start


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_is_one_that_its_script_takes(words, parser_of):
    script, *rest = words
    assert (ROOT / script).is_file()
    parser_of(script, [word for word in rest if word != "…"] if "…" not in rest else None)
    for name in (word for word in rest if word.endswith((".yaml", ".yml"))):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("words", MENTIONED, ids=" ".join)
def test_every_flag_that_is_mentioned_is_one_of_its_script(words, parser_of):
    script, *rest = words
    flags = {f for action in parser_of(script, None)._actions for f in action.option_strings}
    assert {word for word in rest if word.startswith("--")} <= flags


def test_every_config_key_that_is_mentioned_is_one():
    known = {key for kind in CONFIGS for key in _keys(kind)}
    told = set(re.findall(r"\b((?:training|data|evaluation|tracking)\.[a-z_]+)\b", README))
    assert len(told) > 10
    assert {key for key in told if key.split(".")[1] not in ("pyi", "py", "json")} <= known


SMALL = {"outputs/hf_": "hf_", "outputs/": "", "_10b": ""}
DATA = {"sft/sft_tulu.py": "chat", "sft/sft_gsm8k.py": "train"}
RUN = [words for words in COMMANDS if reason(words) is None]


def on_the_demo(words, demo):
    """A command of the README as it is run on the small demo."""
    script, *rest = words
    small = []
    for word in rest:
        inside = word.startswith("outputs/")
        for old, new in SMALL.items():
            word = word.replace(old, new) if inside else word
        small.append(str(demo / word) if inside else word)
    for at, word in enumerate(small):
        if small[at - 1] == "--output-dir":
            small[at] = f"{word}_again"
    if script in DATA:
        small[small.index("--config") + 1] = f"sft/configs/demo/{script[8:-3]}.yaml"
        keys = {"source": DATA[script], "decontaminate_against": "test"}
        keys |= {"validation_source": "test"} if script == "sft/sft_gsm8k.py" else {}
        for key, name in keys.items():
            small += ["--set", f"data.{key}={demo / 'data' / name}.jsonl"]
        small += ["--dry-run", "--allow-no-injection"]
    if script == "scripts/hub.py":
        small += ["--dry-run"]
    if script == "scripts/run_experiment.py" and "--dry-run" not in small:
        small += ["--dry-run"]
    return script, small


@pytest.mark.parametrize("words", RUN, ids=" ".join)
def test_what_is_quick_is_run(words, demo, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    script, small = on_the_demo(words, demo)
    assert call(script, *small) == 0, capsys.readouterr().err
    assert capsys.readouterr().out


def test_most_commands_are_run():
    assert len(RUN) > 10


@pytest.mark.parametrize("script", ["scripts/audit_injection.py", "scripts/show_runs.py"])
def test_scripts_that_are_named_without_arguments_are_run(script, demo, capsys):
    assert script in README
    words = [demo]
    if script == "scripts/audit_injection.py":
        words = ["--source", demo / "data" / "train.jsonl", "--kind", "problems"]
        words += ["--tokenizer", demo / "data" / "tokenizer"]
    assert call(script, *words) == 0
    assert capsys.readouterr().out
