"""What a record of a result is, and how a file is held against it when it is written and read.

A key is one line of a model: its type, what it means and its unit. Writers give every key (`since`
included) and no other; readers accept that older files lack what came later.
"""

import json
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Len
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from domain_tokens.errors import UserError
from domain_tokens.runs.files import write_json
from domain_tokens.runs.older_names import Named, named_today

SHARE, NATS, SHA256 = "fraction 0–1", "nats", "SHA-256"
Interval = Annotated[list[float], Len(2, 2)]  # lower and upper bound, in the unit of the value
Grid = Annotated[list[Annotated[list[float], Len(9, 9)]], Len(9, 9)]  # [a - 1][b - 1]


class Record(Named):
    """A JSON object of a results file: strictly typed, other keys refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SchemaError(AssertionError):
    """A program of ours was about to write something else than its model says."""


def given(text: str, unit: str = "") -> Any:
    """Return a key that every file has, also the oldest."""
    return Field(description=text, json_schema_extra={"unit": unit})


def since(date: str, text: str, unit: str = "", *, absent: str = "") -> Any:
    """Return a key that is always written now; files from before that date lack it.

    absent: what it means that a file lacks it, if more than that it was not recorded.
    """
    extra = {"unit": unit, "since": date, "absent": absent}
    return Field(default=None, description=text, json_schema_extra=extra)  # ty: ignore


def only(when: str, text: str, unit: str = "") -> Any:
    """Return a key that is written under a condition alone."""
    extra = {"unit": unit, "when": when}
    return Field(default=None, description=text, json_schema_extra=extra)  # ty: ignore


def copied(kind: Callable[[dict[str, Any]], type[Record]], text: str) -> Any:
    """Return a key that repeats a record of another file as it was found, whatever its age.

    kind: the model of such a record. A writer is not blamed for it; a reader looks into it.
    """
    return Field(description=text, json_schema_extra={"unit": "", "kind": kind})  # ty: ignore


def extra_of(field: Any) -> dict[str, Any]:
    """Return what `given`, `since`, `only` or `copied` kept of a field; {} for a config's."""
    return field.json_schema_extra or {}


def model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model that a key's value, its entries or its alternatives are of, or None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(model_in, typing.get_args(annotation))), None)


def _within(annotation: Any, value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield (where, value) of every model that a value of an annotated key holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield path, value
        return
    inner = next((a for a in typing.get_args(annotation) if model_in(a)), None)
    if inner is None:
        return
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        yield from _within(inner, value, path)
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _within(inner, entry, f"{path}.{key}")
    elif isinstance(value, list):
        for number, entry in enumerate(value):
            yield from _within(inner, entry, f"{path}.{number}")


def _records(
    kind: type[BaseModel], tree: Any, path: str, *, copies: bool
) -> Iterator[tuple[str, type[BaseModel], dict[str, Any]]]:
    """Yield (where, model, JSON object) of a record and of all records within it.

    copies: a file is read, so look into records copied from others, and by the names of today.
    """
    if not isinstance(tree, dict):
        return
    if copies:
        tree = named_today(tree, kind.model_fields)
    yield path, kind, tree
    for name, field in kind.model_fields.items():
        value, copy = tree.get(name), extra_of(field).get("kind")
        if copy is not None and isinstance(value, dict) and copies:
            yield from _records(copy(value), value, _at(path, name), copies=True)
        inner = None if value is None or copy else model_in(field.annotation)
        if inner is not None:
            for where, node in _within(field.annotation, value, _at(path, name)):
                yield from _records(inner, node, where, copies=copies)


def _at(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def unknown_keys(kind: type[BaseModel], tree: Any, *, copies: bool = True) -> Iterator[str]:
    """Yield the dotted keys of a file that its model does not have."""
    for path, model, node in _records(kind, tree, "", copies=copies):
        yield from (_at(path, key) for key in node if key not in model.model_fields)


def missing_keys(kind: type[BaseModel], tree: Any, *, writing: bool) -> Iterator[str]:
    """Yield the dotted keys that a file has to have and lacks.

    writing: also those that older files may lack; records copied from other files are left alone.
    """
    for path, model, node in _records(kind, tree, "", copies=not writing):
        for name, field in model.model_fields.items():
            required = field.is_required() or (writing and "since" in extra_of(field))
            if required and name not in node:
                yield _at(path, name)


def lacked_keys(kind: type[BaseModel], trees: Iterable[Any]) -> set[str]:
    """Return the dotted keys that older files may lack and all of these objects lack.

    What is computed again from a file is not held against these: nobody had computed them then.
    """
    has: dict[str, bool] = {}
    for tree in trees:
        for path, model, node in _records(kind, tree, "", copies=False):
            for name, field in model.model_fields.items():
                if "since" in extra_of(field):
                    key = _at(path, name)
                    has[key] = has.get(key, False) or name in node
    return {key for key, there in has.items() if not there}


def wrong_values(kind: type[BaseModel], tree: Any, *, copies: bool = True) -> Iterator[str]:
    """Yield, in words, the dotted keys whose values are of another type than their model says."""
    yield from _wrong(kind, tree, "")
    for path, model, node in _records(kind, tree, "", copies=copies) if copies else ():
        for name, field in model.model_fields.items():
            copy, value = extra_of(field).get("kind"), node.get(name)
            if copy is not None and isinstance(value, dict):
                yield from _wrong(copy(value), value, _at(path, name))


def _wrong(kind: type[BaseModel], tree: Any, path: str) -> Iterator[str]:
    try:
        kind.model_validate(tree)
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_context=False):
            if problem["type"] not in ("missing", "extra_forbidden"):
                key = _at(path, ".".join(map(str, problem["loc"]))) or "the object"
                shown = repr(problem["input"])
                shown = shown if len(shown) <= 40 else f"{shown[:37]}…"
                yield f"{key} is {shown}: {problem['msg'].lower()}"


def require_record(
    kind: type[Record], tree: Any, where: str, *, later: Collection[str] = ()
) -> None:
    """Raise SchemaError where what a program is about to write is not what its model says.

    later: keys of the outermost object that are not there yet, and must not be.
    """
    plain = json.loads(json.dumps(tree))  # as it will be read back: tuples are lists
    model = f"{kind.__module__}.{kind.__name__}"
    for key in later:
        if key in plain:
            raise SchemaError(f"{where}: {key} is there already; it was to come later")
    for key in unknown_keys(kind, plain, copies=False):
        raise SchemaError(f"{where}: {key} is no key of {model}; add it there")
    for key in missing_keys(kind, plain, writing=True):
        if key not in later:
            raise SchemaError(f"{where}: {key} is missing; {model} has it")
    for words in wrong_values(kind, plain, copies=False):
        raise SchemaError(f"{where}: {words} ({model})")


def write_record(path: Path, kind: type[Record], tree: dict[str, Any]) -> None:
    """Write a JSON file of a model, as it is; raises SchemaError where it is of another shape."""
    require_record(kind, tree, path.name)
    write_json(path, tree)


def check_record(path: object, kind: type[Record], tree: Any) -> str:
    """Return a notice of the keys of a file that this code does not know, "" for none.

    Raises UserError that names the first key that is missing or of another type.
    """
    return check_records(path, kind, [tree])


def check_records(path: object, kind: type[Record], trees: Iterable[Any]) -> str:
    """Do what `check_record` does for all lines of a file, in one notice."""
    unknown: dict[str, None] = {}
    for number, tree in enumerate(trees, 1):
        where = path if str(path).endswith(".json") else f"{path} line {number}"
        for key in missing_keys(kind, tree, writing=False):
            raise UserError(f"{where} has no {key}; make it again")
        for words in wrong_values(kind, tree):
            raise UserError(f"{where}: {words}; restore the file, or make it again")
        unknown |= dict.fromkeys(unknown_keys(kind, tree))
    if not unknown:
        return ""
    return f"{path} has keys that this code does not know and leaves out: {', '.join(unknown)}"
