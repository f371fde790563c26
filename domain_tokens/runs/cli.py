"""How every script reads its arguments and ends: one-line errors, exit 0, 1 or 2."""

import argparse
import difflib
import errno
import io
import os
import re
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from domain_tokens.errors import FailedError, StoppedError, UserError
from domain_tokens.runs.distributed import leave_distributed
from domain_tokens.runs.memory import is_out_of_memory
from domain_tokens.runs.output_folder import release_locks
from domain_tokens.runs.threads import settle_threads

CONDITIONS = ("baseline", "mul_tokens")  # the two arms
ROOT = Path(__file__).parents[2]
NO_MEMORY = "not enough memory"  # in the last line of whatever ran out of it
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@dataclass(frozen=True, slots=True)
class Number:
    """The type of an argument that is a number within bounds, both of which are allowed."""

    kind: type[int] | type[float]
    low: float
    high: float

    def __call__(self, text: str) -> float:
        """Read the number; raises argparse's error where it is none or out of bounds."""
        what = "a whole number" if self.kind is int else "a number"
        expected = f"wanted {what} from {self.low:g} to {self.high:.12g}"
        try:
            value = self.kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is none; {expected}") from None
        if not self.low <= value <= self.high:  # which NaN is not
            raise argparse.ArgumentTypeError(f"{text} is out of bounds; {expected}")
        return value


SEED = Number(int, 0, 2**32 - 1)
COUNT = Number(int, 1, 2**31 - 1)


def in_repository(path: str) -> str:
    """Return a path below the repository's root as it has to be typed in the working directory."""
    return path if Path.cwd() == ROOT else str(ROOT / path)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and name the nearest valid flag.

    resumable: whether the script that was called (not one that it calls) has --resume; None before
    its arguments were read.
    """

    resumable: bool | None = None

    def __init__(self, description: str, *, example: str):
        super().__init__(
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._call = example[: example.index(".py") + 3]

    def parse_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:
        """Read the arguments; `command` is what a person would type to do the same from the start.

        That is what run cards keep.
        """
        words = list(sys.argv[1:] if args is None else args)
        if Parser.resumable is None:
            Parser.resumable = any("--resume" in a.option_strings for a in self._actions)
        parsed = super().parse_args(words, namespace)
        kept = [word for word in words if word not in ("--resume", "--overwrite")]
        parsed.command = f"{self._call} {shlex.join(kept)}"
        return parsed

    def error(self, message: str) -> NoReturn:
        """Raise the complaint as a `UserError`, naming the nearest flag where one is close."""
        unknown = re.match(r"unrecognized arguments: (.*)", message)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            got = next((w for w in unknown[1].split() if w.startswith("-")), unknown[1])
            near = difflib.get_close_matches(got.split("=")[0], flags, n=1)
            hint = f"did you mean {near[0]}?" if near else "see --help for the flags there are"
            message = f"unknown argument {got}: {hint}"
        raise UserError(f"{message} (see {self.prog} --help)" if not unknown else message)


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --output-dir and the two ways to go on in a folder that is already in use."""
    parser.add_argument("--output-dir", required=True, metavar="DIR", help="folder for the results")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="continue an unfinished run")
    again.add_argument(
        "--overwrite", action="store_true", help="replace what the folder holds, after success"
    )


def add_config_arguments(parser: argparse.ArgumentParser, default: str) -> None:
    """Add --config and --set, the two sources of every setting.

    default: a path below the repository's root, wherever the script is called; a path that is given
    is one from the working directory.
    """
    path = in_repository(default)
    parser.add_argument("--config", default=path, metavar="FILE", help=f"YAML ({default})")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override one key, as in --set training.batch_size=2; may be repeated",
    )


def add_evaluation_arguments(parser: argparse.ArgumentParser, default_config: str) -> None:
    """Add the arguments that both evaluations take."""
    parser.add_argument("--model-path", required=True, metavar="DIR")
    parser.add_argument("--condition", required=True, choices=CONDITIONS)
    parser.add_argument("--batch-size", type=COUNT, metavar="N", help="rows that decode together")
    parser.add_argument("--max-new-tokens", type=COUNT, metavar="N")
    add_output_arguments(parser)
    add_config_arguments(parser, default_config)


def add_forbidding_argument(parser: argparse.ArgumentParser) -> None:
    """Add --forbid-fact-tokens, which both evaluations take."""
    parser.add_argument(
        "--forbid-fact-tokens",
        action="store_const",
        const="true",
        help="write no fact token while decoding",
    )


def overrides_of(overrides: Sequence[str], flags: Mapping[str, object]) -> list[str]:
    """Return the --set overrides, followed by the flags that were given.

    flags: config key -> the value of the flag that is short for it, None where it was not given.
    """
    return [*overrides, *(f"{k}={v}" for k, v in flags.items() if v is not None)]


def run_script(main: Callable[[list[str] | None], int], argv: list[str] | None = None) -> int:
    """Call a script's main; its exit status is 0 when done, 1 for a failed run, 2 for bad input."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not {"-h", "--help"} & set(sys.argv[1:] if argv is None else argv):
        settle_threads()
    warnings.filterwarnings("ignore", category=FutureWarning)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, _terminate)
    if os.environ.get("RANK", "0") != "0":
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (it stays so until the process ends)
    _escape_what_consoles_cannot_show()
    Parser.resumable = None
    try:
        return main(argv)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; {_going_on()}", file=sys.stderr)
        return 1
    except Exception as error:
        words = _failure(error)
        if words is None:
            raise
        print(f"failed: {' '.join(words.split())}", file=sys.stderr)
        return 1
    finally:
        release_locks()
        leave_distributed()


def _escape_what_consoles_cannot_show() -> None:
    r"""Write `\u2026` where a console or a log has no such character: that must not end a run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def is_unicode(stream: Any) -> bool:
    """Return whether any text can be written to a stream as it is."""
    return (getattr(stream, "encoding", None) or "").lower().replace("-", "").startswith("utf")


def _terminate(number: int, frame: object) -> NoReturn:
    raise StoppedError("terminated (SIGTERM)")


def _going_on() -> str:
    """Return how to go on after a run that ended early."""
    return f"{_again()} continues the run" if Parser.resumable else f"give {_again()}"


def _again() -> str:
    return "--resume" if Parser.resumable else "the same command again"


def _failure(error: Exception) -> str | None:
    """Return the line for a failure that is the run's or the machine's, None for a bug of ours."""
    if isinstance(error, StoppedError):
        return f"{error}; {_going_on()}"
    if isinstance(error, FloatingPointError | FailedError):
        return str(error)
    text = str(error)
    if is_out_of_memory(error):
        first = text.split("\n")[0] or "MemoryError"
        return f"{NO_MEMORY} ({first}); end other programs, then {_again()}"
    space = isinstance(error, OSError) and error.errno in NO_ROOM
    # safetensors and torch raise errors of their own for a write that fails.
    if space or "os error 28" in text or "os error 27" in text or "failed writing file" in text:
        where = f" {error.filename}" if isinstance(error, OSError) and error.filename else ""
        return f"cannot write{where}: {text.split(chr(10))[0]}; make room, then {_again()}"
    return None
