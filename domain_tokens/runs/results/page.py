"""`docs/results.md` from the models: every file, every key, its type, unit and meaning."""

import types
import typing
from typing import Any

from annotated_types import Len
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from domain_tokens.runs.results.evaluation import CONFIGURED
from domain_tokens.runs.results.files import FILES
from domain_tokens.runs.results.record import Record, extra_of, model_in

HEAD = """\
# Results

Every JSON file that the project writes, key by key. This page is made from the models that the
files are written and read through (`domain_tokens/runs/results/`):

```bash
uv run python -m domain_tokens.runs.results > docs/results.md
```

A key without a remark is in every file. **Since** a date: always written now, and not recorded in
older files. **Only** where something holds: absent otherwise. Older files stay readable, and keys
that this code does not know are named when a file is read. `seal` is a checksum of all other keys
against accidents. Rates are fractions 0–1, log-probabilities are in nats, hashes are SHA-256 in
hexadecimal.
Configs (`SFTConfig`, `GSM8KSection`, …) are those of `domain_tokens/runs/config.py`.
"""
SIMPLE = {int: "int", float: "float", str: "str", bool: "bool", type(None): "null", Any: "any"}


def page() -> str:
    """Return the page, in Markdown."""
    lines = [HEAD, "| file | written by | keys |", "|---|---|---|"]
    for file in FILES:
        models = ", ".join(f"[{m.__name__}](#{m.__name__.lower()})" for m in file.models)
        lines.append(f"| `{file.name}` | {file.writer} | {models} |")
    for model in models_of_files():
        lines += ["", *section(model)]
    return "\n".join(lines) + "\n"


def models_of_files() -> list[type[BaseModel]]:
    """Return the models of all files and all models within them, each once, outer ones first."""
    models: dict[type[BaseModel], None] = {}
    waiting: list[type[BaseModel]] = [model for file in FILES for model in file.models]
    while waiting:
        model = waiting.pop(0)
        if issubclass(model, Record) or model in CONFIGURED:
            models[model] = None
            inner = [model_in(field.annotation) for field in model.model_fields.values()]
            waiting += [m for m in inner if m is not None and m not in models and m not in waiting]
    return list(models)


def section(model: type[BaseModel]) -> list[str]:
    """Return the lines of one model."""
    rows = [
        f"| `{name}` | {type_in_words(field)} | {meaning(field)} |"
        for name, field in model.model_fields.items()
        if field.description
    ]
    others = [name for name, field in model.model_fields.items() if not field.description]
    own = f"Also the keys of its config section: {', '.join(f'`{n}`' for n in others)}."
    told = [str(model.__doc__).split("\n")[0], *([own] if others else [])]
    head = ["| key | type | meaning |", "|---|---|---|"]
    return [f"## {model.__name__}", "", *told, "", *head, *rows]


def type_in_words(field: FieldInfo) -> str:
    """Return a key's type as people read it."""
    words = _type(field.annotation)
    size = next((m for m in field.metadata if isinstance(m, Len)), None)
    return f"{words} of {size.min_length}" if size else words


def _type(annotation: Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in SIMPLE:
        return SIMPLE[annotation]
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_type, inner))
    if origin is typing.Annotated:
        return f"{_type(inner[0])} of {inner[1].min_length}"
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin is list:
        return f"list of {_type(inner[0])}"
    if origin is dict:
        return "object" if inner[1] is Any else f"object of {_type(inner[1])}"
    assert issubclass(annotation, BaseModel), annotation
    name = annotation.__name__
    known = issubclass(annotation, Record) or annotation in CONFIGURED
    return f"[{name}](#{name.lower()})" if known else name


def meaning(field: FieldInfo) -> str:
    """Return what a key means, its unit, and when it is there."""
    extra = extra_of(field)
    words = str(field.description)
    words += f" ({extra['unit']})" if extra["unit"] else ""
    if "since" in extra:
        words += f". **Since** {extra['since']}"
        words += f"; absent: {extra['absent']}" if extra["absent"] else ""
    if "when" in extra:
        words += f". **Only** where {extra['when']}"
    if "kind" in extra:
        words += ". As `run_card.json` of the checkpoint"
    return words.replace("|", "\\|")
