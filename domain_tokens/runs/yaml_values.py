"""YAML as people read it: version 1.2's core scalars, no key twice, nothing left empty.

PyYAML follows version 1.1: 042 is octal, 1:30 is base 60, 1_000 a number, `no` a boolean, 2e-5 a
string, and of two equal keys the last wins.
"""

import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from domain_tokens.errors import UserError

PREFIX = "tag:yaml.org,2002:"
NULL = re.compile(r"~|null|Null|NULL|")
INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
# YAML 1.2.2, 10.3.2
SCALARS = {
    "null": (NULL, ["~", "n", "N", ""]),
    "bool": (re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    "int": (INT, list("-+0123456789")),
    "float": (
        re.compile(
            r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
            r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
        ),
        list("-+.0123456789"),
    ),
}


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2's core scalars; all others are strings."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (the resolvers are added below, to this class alone)

    def construct_int(self, node: yaml.ScalarNode) -> int:
        """Read decimal, 0o or 0x; a leading 0 means nothing."""
        text = str(node.value)
        self._check(node, INT)
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text[2:] if base != 10 else text, base)

    def construct_float(self, node: yaml.ScalarNode) -> float:
        """Read a decimal number, an infinity or no number."""
        self._check(node, SCALARS["float"][0])
        text = str(node.value)
        return float(text if text[-1:].isdigit() or text.endswith(".") else text.replace(".", ""))

    def construct_bool(self, node: yaml.ScalarNode) -> bool:
        """Read true or false."""
        self._check(node, SCALARS["bool"][0])
        return str(node.value).lower() == "true"

    def _check(self, node: yaml.ScalarNode, pattern: re.Pattern[str]) -> None:
        """Refuse what an explicit tag calls a number and is none."""
        if not pattern.fullmatch(str(node.value)):
            what = f"{node.value!r} is no {node.tag.removeprefix(PREFIX)}"
            raise ConstructorError(None, None, what, node.start_mark)


for _kind, (_pattern, _first) in SCALARS.items():
    _Loader.add_implicit_resolver(PREFIX + _kind, re.compile(f"(?:{_pattern.pattern})\\Z"), _first)
_Loader.add_constructor(PREFIX + "int", _Loader.construct_int)
_Loader.add_constructor(PREFIX + "float", _Loader.construct_float)
_Loader.add_constructor(PREFIX + "bool", _Loader.construct_bool)


def read_yaml(text: str, where: str) -> Any:
    """Return what a YAML document holds; where: its name for messages.

    Raises UserError for what is no YAML, for a key that is there twice and for an empty value.
    """
    return _read(text, where)[0]


def read_yaml_value(text: str, where: str) -> Any:
    """Return the value of `--set KEY=VALUE`; raises UserError as read, and where a part is lost."""
    if not text.strip():
        raise UserError(f"{where}: an empty value; write null to mean none")
    value, node = _read(text, where)
    plain = node is None or (isinstance(node, yaml.ScalarNode) and node.style is None)
    if plain and (node is None or node.value != text.strip()):  # a comment, mostly
        raise UserError(f"{where}: YAML reads {value!r}, not all that is there; quote the value")
    return value


def _read(text: str, where: str) -> tuple[Any, yaml.Node | None]:
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, None
        _check(node, where, "")
        return loader.construct_document(node), node
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None
    except (ValueError, RecursionError) as error:  # 5,000 digits; a thousand brackets
        raise UserError(f"{where}: not valid YAML: {error}") from None


def _check(node: yaml.Node, where: str, path: str) -> None:
    """Walk a document; path: the keys above a node, joined by points."""
    if isinstance(node, yaml.ScalarNode) and node.value == "" and node.style is None:
        raise UserError(f"{where}: {path} is empty (line {_line(node)}); write null to mean none")
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            _check(item, where, f"{path}[{number}]")
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        name, line = str(key.value), _line(key)
        inner = f"{path}.{name}" if path else name
        if name in lines:
            raise UserError(
                f"{where}: {inner} is there twice, in lines {lines[name]} and {line}; keep the one "
                "that is meant"
            )
        lines[name] = line
        _check(value, where, inner)


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1 if node.start_mark else 0
