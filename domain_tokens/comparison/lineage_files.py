"""What lies next to the evaluations: the training folders that a checkpoint came through."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from domain_tokens.checkpoints import read_card
from domain_tokens.comparison.runs import Run
from domain_tokens.runs import CARD_NAME, named_today, read_json

STAGE_RESULTS = {"tulu_sft": "tulu_sft_results.json", "sft": "sft_results.json"}
STAGE_NAMES = {"tulu_sft": "Tulu-3 SFT", "sft": "GSM8K SFT"}


def lineage(run: Run) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield folder and run card of the checkpoint and of its parents, as far as they are there."""
    folder: Path | None = Path(run.card["model_path"])
    while folder is not None and (folder / CARD_NAME).is_file():
        card = read_card(folder)
        assert card is not None
        yield folder, card
        parent = card.get("parent")
        folder = Path(parent["path"]) if parent else None


def stage_files(chain: list[tuple[Path, dict[str, Any]]], stage: str) -> dict[str, Any] | None:
    """Return results and training log of a stage; None where its folder is no longer there."""
    for folder, card in chain:
        results, log = folder / STAGE_RESULTS[stage], folder / "train_log.jsonl"
        if card["stage"] == stage and results.is_file():
            lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
            told = named_today(read_json(results))
            return {"results": told, "log": [json.loads(line) for line in lines]}
    return None
