"""How the fact rows of a run began: drawn from its own seed where the base's are untrained."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from domain_tokens.checkpoints.folder import read_card
from domain_tokens.checkpoints.hashes import weights_hash
from domain_tokens.vocabulary import FactInit, layout_of, redraw_fact_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DRAWN = "mean of the rows of a*b=c + noise"
# What a run card says of fact rows that were drawn, by how they were.
RULES: dict[FactInit, str] = {
    "subtoken_mean": DRAWN,
    "mean": "mean of all base rows + noise",
    "random": "random, with mean and deviation of the base rows",
}
KEPT = "the source's"


def rule_of_base(folder: Path) -> str | None:
    """Return how the fact rows of a base began, or None where no card tells.

    A base that was made from another one of ours has that one's rows, as long as it is still here
    and unchanged.
    """
    card = read_card(folder)
    if card is None or card["stage"] != "base":
        return None
    rule, parent = card.get("fact_rows"), card.get("parent")
    if rule != KEPT or not parent:
        return rule
    source = Path(parent["path"])
    here = source.is_dir() and weights_hash(source) == parent["weights"]
    return (rule_of_base(source) if here else None) or rule


def begin_fact_rows(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", parent: Path, *, seed: int
) -> dict[str, Any]:
    """Draw untrained fact rows again from a stage's own seed, in place; return how they began.

    A replicate differs from the next in these rows, too, in both arms alike. Rows that came with
    the base's source, or of a base without a card, are left as they are (seed: None); a stage that
    goes on from a trained checkpoint passes on what its card says.
    """
    card = read_card(parent)
    if card is not None and card["stage"] != "base":
        return card.get("fact_rows") or {"rule": None, "seed": None}
    rule = rule_of_base(parent)
    inits = {words: init for init, words in RULES.items()}
    if rule not in inits:
        return {"rule": rule, "seed": None}
    layout = layout_of(tokenizer)
    redraw_fact_rows(model, layout, tokenizer, seed=seed, init=inits[rule])
    return {"rule": rule, "seed": seed}


def fact_rows_in_words(began: dict[str, Any]) -> str:
    """Return in one line how the fact rows of a run began."""
    if began["seed"] is not None:
        return f"fact rows: drawn from seed {began['seed']} ({began['rule']})"
    return f"fact rows: the base's, whatever the seed ({began['rule'] or 'no card tells how'})"
