"""How every script ends: advice that its parser knows, and text that its console can show."""

import errno
import io
import json
import sys

import pytest

from domain_tokens.errors import StoppedError
from domain_tokens.runs.cli import Parser, run_script
from tests.conftest import call, load_script
from tests.test_scripts import SCRIPTS, arguments

ENCODINGS = ("ascii", "cp1252", "latin-1")


def helped(script, capsys):
    """What a script says of itself."""
    with pytest.raises(SystemExit):
        load_script(script).main(["--help"])
    return capsys.readouterr().out


def console(monkeypatch, encoding):
    """Make standard output and errors what they are under PYTHONIOENCODING; return the output."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    for name, stream in zip(("stdout", "stderr"), streams, strict=True):
        monkeypatch.setattr(sys, name, stream)
    return streams[0]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), 1),
        (StoppedError("terminated (SIGTERM)"), 1),
        (OSError(errno.ENOSPC, "No space left on device"), 1),
    ],
)
def test_resuming_is_advised_where_it_can_be_done(
    script, error, status, monkeypatch, capsys, tmp_path
):
    """compare_runs, sample and others advised --resume, which they refuse as unknown."""
    has_it = "--resume" in helped(script, capsys)
    honest = Parser.parse_args

    def parse(self, args=None, namespace=None):
        honest(self, args, namespace)
        raise error

    monkeypatch.setattr(Parser, "parse_args", parse)
    assert call(script, *arguments(script, tmp_path)) == status
    shown = capsys.readouterr().err
    assert ("--resume" in shown) == has_it
    assert ("the same command again" in shown) != has_it


def test_the_script_that_was_called_gives_the_advice(capsys):
    """run_experiment calls stages that have --resume; it has none itself."""

    def main(argv):
        for script in ("scripts/run_experiment.py", "sft/sft_tulu.py"):
            with pytest.raises(SystemExit):
                load_script(script).main(["--help"])
        raise KeyboardInterrupt

    assert run_script(main) == 1
    assert "give the same command again" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_help_fits_every_console(script, encoding, monkeypatch):
    output = console(monkeypatch, encoding)
    with pytest.raises(SystemExit) as end:
        call(script, "--help")
    assert end.value.code == 0
    output.flush()
    assert b"usage" in output.buffer.getvalue()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_text_that_a_console_lacks_ends_no_run(encoding, monkeypatch):
    """The display of the first example raised UnicodeEncodeError under a redirected cp1252."""
    text = "« 你好 🙂 Łódź"
    output = console(monkeypatch, encoding)

    def main(argv):
        print(text)
        print(text, file=sys.stderr)
        return 0

    assert run_script(main) == 0
    output.flush()
    shown = output.buffer.getvalue().decode(encoding)
    assert "\\u4f60" in shown
    assert shown.encode(encoding).decode("unicode_escape").strip() == text


def test_json_stays_json_on_a_console_without_unicode(monkeypatch, tmp_path):
    """Escapes of the console are not those of JSON: `\\xe9` is no valid one."""
    script = load_script("sample/text_completion.py")
    sample = {"response": "é 🙂", "sample": 1}
    for encoding in (*ENCODINGS, "utf-8"):
        with monkeypatch.context() as patch:
            output = console(patch, encoding)
            words = ["--model-path", str(tmp_path), "--question", "é?", "--json"]
            args = script.parse(words)

            def main(argv, args=args):
                script.show([], [[sample]], args, "é?")
                return 0

            assert run_script(main) == 0
            output.flush()
            line = json.loads(output.buffer.getvalue().decode(encoding))
        assert line == {"asked": "é?", **sample}
