"""What keys and values were called once: one table for configs, commands and finished files.

In a config or a command an older name means today's, and a line on stderr says so, once a run. In
finished files it is read in silence; nothing writes it.
"""

import sys
from collections.abc import Collection, Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel, model_validator

from domain_tokens.injection import OLDER_MODES
from domain_tokens.runs.distributed import is_main_process

# Older name of a key -> today's, wherever a model has today's and not the older one.
KEYS = {
    "rationales": "num_rationales",
    "forced_start": "response_prefix",
    "stop": "stop_reason",
    "injection_rate": "injected_example_share",  # results are written with both
}
# Key -> what its values were called once -> today.
VALUES = {"suite": {"seed": "standard"}, "injection_mode": OLDER_MODES}


class Named(BaseModel):
    """A model that takes keys and values under their older names, too."""

    @model_validator(mode="before")
    @classmethod
    def _by_names_of_today(cls, tree: Any) -> Any:
        return named_today(tree, cls.model_fields) if isinstance(tree, dict) else tree


def named_today(
    tree: Mapping[str, Any], fields: Collection[str] | None = None, *, announce: str = ""
) -> dict[str, Any]:
    """Return a JSON object with the names of today.

    fields: the keys of its model (None: of any). announce: what stands before its keys where a
    person wrote them, who is told. A key that is there under both names keeps both, so that a model
    refuses the older one.
    """
    today: dict[str, Any] = {}
    for key, value in tree.items():
        name = _key(key, tree, fields)
        if announce and name != key:
            say(f"{announce}.{key} is called {announce}.{name} now")
        today[name] = _value(name, value) if fields is None or name in fields else value
        if announce and today[name] is not value:
            say(f"{announce}.{name}={value} is called {today[name]} now")
    return today


def sections_today(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config of a finished folder, sections of keys, with the names of today."""
    return {k: named_today(part) if isinstance(part, dict) else part for k, part in config.items()}


def key_today(dotted: str) -> str:
    """Return a dotted key that a person gave by today's name of its last part, and say so."""
    section, dot, key = dotted.rpartition(".")
    name = f"{section}{dot}{KEYS.get(key, key)}"
    if name != dotted:
        say(f"{dotted} is called {name} now")
    return name


def _key(key: str, tree: Mapping[str, Any], fields: Collection[str] | None) -> str:
    name = KEYS.get(key, key)
    known = fields is None or (name in fields and key not in fields)
    return name if known and name not in tree else key


def _value(key: str, value: Any) -> Any:
    return VALUES.get(key, {}).get(value, value) if isinstance(value, str) else value


@cache
def say(words: str) -> None:
    """Print a notice on stderr, the first time that it is given."""
    if is_main_process():
        print(f"note: {words}", file=sys.stderr, flush=True)
