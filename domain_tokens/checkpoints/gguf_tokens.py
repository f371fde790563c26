"""A GGUF file's tokenizer against a byte-pair encoder of our own."""

import itertools
import unicodedata
from pathlib import Path
from typing import Any

from domain_tokens.checkpoints.account import Account, fail
from domain_tokens.checkpoints.gguf_forward import GgufFile
from domain_tokens.checkpoints.tokenizer_proof import probe_texts, refuse_other_ids
from domain_tokens.errors import UserError
from domain_tokens.runs import read_json

PROBE = (2, 64)  # rows and tokens of the logits that are compared
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # kinds of GGUF tokens
JOIN = "join the parts first (llama-gguf-split --merge) and give the whole file"


class BytePairs:
    """Byte-level BPE as llama.cpp does it: the oracle for a GGUF's tokenizer."""

    def __init__(self, file: GgufFile, splits: tuple[str, ...], *, nfc: bool, whole: bool):
        """Take tokens and merges from the file; whole: a piece that is a token is not split."""
        import regex

        meta = file.metadata
        self.tokens: list[str] = meta["tokenizer.ggml.tokens"]
        self.ids = {token: i for i, token in enumerate(self.tokens)}
        self.merges = [tuple(m.split(" ", 1)) for m in meta["tokenizer.ggml.merges"]]
        self.ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self.spelled = _byte_letters()
        kinds = meta.get("tokenizer.ggml.token_type") or [NORMAL] * len(self.tokens)
        self.atoms = {
            token: i
            for i, (token, kind) in enumerate(zip(self.tokens, kinds, strict=True))
            if kind in (CONTROL, USER_DEFINED)
        }
        longest = sorted(self.atoms, key=len, reverse=True)
        self._atoms = regex.compile("|".join(map(regex.escape, longest)) or r"(?!)")
        self._splits = [regex.compile(split) for split in splits]
        self._nfc, self._whole = nfc, whole

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text in which control tokens count as such."""
        ids, at = [], 0
        for match in self._atoms.finditer(text):
            ids += [*self._plain(text[at : match.start()]), self.atoms[match[0]]]
            at = match.end()
        return ids + self._plain(text[at:])

    def _plain(self, text: str) -> list[int]:
        pieces = [unicodedata.normalize("NFC", text) if self._nfc else text]
        for split in self._splits:
            pieces = [part for piece in pieces for part in _parts(split, piece)]
        return [i for piece in pieces for i in self._merged(piece)]

    def _merged(self, piece: str) -> list[int]:
        letters = "".join(self.spelled[byte] for byte in piece.encode())
        if self._whole and letters in self.ids:
            return [self.ids[letters]]
        symbols = list(letters)
        while len(symbols) > 1:
            ranked = [
                (self.ranks[pair], at)
                for at, pair in enumerate(itertools.pairwise(symbols))
                if pair in self.ranks
            ]
            if not ranked:
                break
            _, at = min(ranked)
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        return [self.ids[symbol] for symbol in symbols]


def _parts(split: Any, text: str) -> list[str]:
    """Return a text's matches and what lies between them, in order."""
    parts, at = [], 0
    for match in split.finditer(text):
        parts += [text[at : match.start()], match[0]]
        at = match.end()
    return [part for part in (*parts, text[at:]) if part]


def _byte_letters() -> list[str]:
    """Return GPT-2's letter for each byte: itself if it prints, else the next one above 255."""
    prints = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in prints else chr(next(others)) for byte in range(256)]


_CONTRACTIONS = r"'s|'t|'re|'ve|'m|'ll|'d"
_GPT2 = rf"{_CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"


def _cased(digits: str) -> str:
    return (
        rf"(?i:{_CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


# Kind of splitter -> the splits that follow each other, and the options of BytePairs.
ORACLES: dict[str, tuple[tuple[str, ...], dict[str, bool]]] = {
    "gpt2": ((_GPT2,), {"nfc": False, "whole": False}),
    "digits": ((r"\p{N}", _GPT2), {"nfc": False, "whole": False}),
    "llama3": ((_cased(r"\p{N}{1,3}"),), {"nfc": False, "whole": True}),
    "qwen2": ((_cased(r"\p{N}"),), {"nfc": True, "whole": False}),
}


def prove_gguf_tokenizer(
    file: GgufFile, tokenizer: Any, account: Account, *, splitter: str, written: Path
) -> None:
    """Compare vocabulary, merges, special ids and the ids of probe texts with own byte pairs."""
    from tokenizers import Tokenizer

    plain = Tokenizer.from_file(str(written / "tokenizer.json"))
    splits, options = ORACLES[splitter]
    oracle = BytePairs(file, splits, **options)
    saved = read_json(written / "tokenizer.json")
    merges = [
        tuple(m) if isinstance(m, list) else tuple(m.split(" "))
        for m in saved["model"].get("merges", [])
    ]
    if merges != oracle.merges:
        fail(f"tokenizer.json has {len(merges)} merges, the file {len(oracle.merges)}")
    for number, token in enumerate(oracle.tokens):
        spelled = "".join(oracle.spelled[byte] for byte in token.encode())
        if tokenizer.convert_ids_to_tokens(number) not in (token, spelled):
            fail(f"token {number} is not the file's {token!r}")
    for key, expected in (("eos", tokenizer.eos_token_id), ("bos", tokenizer.bos_token_id)):
        given = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if given != expected:
            fail(f"the tokenizer's {key} is {expected}, the file's {given}")
    controls = [f"a {token} b" for token in list(oracle.atoms)[:40]]
    for text in [*probe_texts(), *controls]:
        refuse_other_ids(tokenizer, plain, text, oracle.encode(text))
        account.texts += 1
    account.tokens, account.merges = len(oracle.tokens), len(merges)
    start = [file.metadata["tokenizer.ggml.bos_token_id"]] if adds_bos(file, splitter) else []
    if tokenizer.encode("") != start:
        fail(f"a text begins with {tokenizer.encode('')}, by the file with {start}")


def adds_bos(file: GgufFile, splitter: str) -> bool:
    """Tell whether a text begins with BOS: as the file says, else as llama.cpp does."""
    said = file.metadata.get("tokenizer.ggml.add_bos_token")
    bos = file.metadata.get("tokenizer.ggml.bos_token_id")
    return bos is not None and (splitter == "llama3" if said is None else bool(said))


def prove_given_tokenizer(file: GgufFile, tokenizer: Any) -> None:
    """Check a tokenizer from elsewhere: the file's normal tokens lie at the same ids."""
    tokens = file.metadata.get("tokenizer.ggml.tokens") or []
    kinds = file.metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        given = tokenizer.convert_ids_to_tokens(number) if number < len(tokenizer) else None
        if kind == NORMAL and given != token:
            raise UserError(
                f"--tokenizer has {given!r} at id {number}, {file.path} {token!r}; give the "
                "tokenizer of this very model"
            )
