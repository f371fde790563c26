"""Tokens as text for people: parts of them highlighted, control characters escaped."""

import os
import sys
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from domain_tokens.prompts import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HIGHLIGHT, PLAIN = "\033[1;33m", "\033[0m"
SHOWN_TOKENS = 160  # of an example; a longer one is shown with its middle left out


def uses_colour() -> bool:
    """Return whether the console shows colours, and the user wants them (NO_COLOR unset)."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def highlighted(
    tokenizer: "PreTrainedTokenizerBase",
    token_ids: Sequence[int],
    marked: Sequence[bool],
    *,
    skip_special: bool = True,
) -> str:
    """Return tokens as text, the marked ones in colour or, where there is none, in «»."""
    text, at = "", 0
    for mark, run in groupby(marked):
        count = len(list(run))
        ids = list(token_ids[at : at + count])
        at += count
        decoded: Any = tokenizer.decode(ids, skip_special_tokens=skip_special)
        text += _marked(decoded) if mark else escaped(decoded)
    return text


def highlighted_text(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """Return a text as `highlighted` does; spans: [start, end) of what is marked, in order."""
    pieces, cursor = [], 0
    for start, end in spans:
        pieces += [escaped(text[cursor:start]), _marked(text[start:end])]
        cursor = end
    return "".join([*pieces, escaped(text[cursor:])])


def _marked(text: str) -> str:
    return f"{HIGHLIGHT}{escaped(text)}{PLAIN}" if uses_colour() else f"«{escaped(text)}»"


def escaped(text: str) -> str:
    """Return a text in which nothing can steer a terminal."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )


def shown_example(tokenizer: "PreTrainedTokenizerBase", shown: Example) -> str:
    """Return the text of a training example with its supervised tokens highlighted."""
    size, half = len(shown.input_ids), SHOWN_TOKENS // 2
    parts = [slice(0, size)] if size <= SHOWN_TOKENS else [slice(0, half), slice(size - half, size)]
    texts = [
        highlighted(
            tokenizer,
            shown.input_ids[part].tolist(),
            (shown.token_roles[part] > 0).tolist(),
            skip_special=False,
        )
        for part in parts
    ]
    between = f"\n  … {size - SHOWN_TOKENS} tokens …\n"
    return f"the first example, its supervised tokens marked:\n{between.join(texts)}\n"


def print_columns(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on the terminal, a column per title."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(expand=True, show_lines=True)
    for title in titles:
        table.add_column(Text(title))
    for row in rows:
        table.add_row(*map(Text.from_ansi, row))
    Console(highlight=False).print(table)
