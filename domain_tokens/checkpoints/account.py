"""What a proof of a base has accounted for, and how it refuses."""

from dataclasses import dataclass, field
from typing import NoReturn

from domain_tokens.errors import UserError


@dataclass
class Account:
    """What was compared: goes into the results; left_out maps what was not used to its reason."""

    tensors: int = 0
    config_keys: int = 0
    tokens: int = 0
    merges: int = 0
    texts: int = 0
    left_out: dict[str, str] = field(default_factory=dict)


def fail(what: str) -> NoReturn:
    """Raise the UserError of a folder that is not what it was made from."""
    raise UserError(f"the written folder is not its source: {what}; nothing was kept, report this")
