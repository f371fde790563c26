"""The tokenizer of a base against its source: vocabulary, merges and the ids of probe texts."""

import json
import random
from pathlib import Path
from typing import Any

from domain_tokens.checkpoints.account import FACT_PAIRS, Account, fail, rows_of
from domain_tokens.errors import UserError
from domain_tokens.runs import read_json


def check_ends(config: dict[str, Any], *, rows: int, eos: int) -> None:
    """Check the keys that an import may change: the number of rows and where to stop."""
    for key, expected in (("vocab_size", rows), ("eos_token_id", eos)):
        values = [v for k, v in config.items() if k in (key, f"text_config.{key}")]
        if not values or values[-1] != expected:
            fail(f"config.json says {key} {values}, wanted {expected}")
    if not isinstance(config.get("architectures"), list) or not all(
        "CausalLM" in str(name) or "LMHead" in str(name) for name in config["architectures"]
    ):
        fail(f"config.json says architectures {config.get('architectures')}")


def probe_texts(*, seed: int = 0) -> list[str]:
    """Return texts that tell tokenizers apart: digits, spaces, line ends, scripts, contractions."""
    texts = [
        *("6*9=54", "6 × 9 = 54", "\n\n1.", "1234567", "3.14159", "$1,204.50", "x2y3", "1st 2nd"),
        *("User: What is 6 times 9?\nAssistant: 54", "#### 72", "<<48/2=24>>24", "a\tb\r\nc"),
        *("  two  spaces ", "trailing   ", "\n", "\n \n", "don't we'll I'M THEY'RE", "it’s"),
        *("Élan naïve café", "e\u0301 combining", "日本語のテキスト", "Привет, мир", "½ ² ① Ⅷ ٣"),
        *(
            "👩🏽‍🚀 ok",
            "def f(x):\n    return x ** 2  # ok",
            "{'a': [1, 2]}",
            "http://a.b/c?d=1&e=2",
        ),
        *("ALLCAPS CamelCase snake_case", "......!!!???", "“quoted”—dash…", "\u00a0nbsp\u200bzero"),
    ]
    generator = random.Random(seed)
    pieces = [*"0123456789", *" \n\t.,;:!?()+-*/=$%#'\"_<>|", *"aeinorstAEINORST", "é", "ß", "中"]
    pieces += [" the", " and", "ing", "'s", "'re", "  ", "\n\n", " 12", " 7", "\r\n", "²", "😀"]
    for _ in range(200):
        texts.append("".join(generator.choices(pieces, k=generator.randint(1, 24))))
    return texts


def prove_folder_tokenizer(source: Path, written: Path, tokenizer: Any, account: Account) -> None:
    """Compare vocabulary, merges, the ids of probe texts and what begins a text.

    tokenizer: the written folder's, as a stage loads it. Raises UserError at a difference.
    """
    from tokenizers import Tokenizer

    layout = rows_of(tokenizer)
    ours = read_json(written / "tokenizer.json")
    theirs = _source_tokenizer(source)
    plain, file = (Tokenizer.from_str(json.dumps(tree)) for tree in (theirs, ours))
    known = {token: i for token, i in _vocabulary(ours).items() if i < layout.base_size}
    expected = {token: i for token, i in _vocabulary(theirs).items() if i < layout.base_size}
    if known != expected:
        token = min(known.items() ^ expected.items())[0]
        fail(f"tokenizer.json has token {token!r} at {known.get(token)}, not {expected.get(token)}")
    account.tokens = len(known)
    merges = [_merges(tree) for tree in (ours, theirs)]
    if merges[0] != merges[1]:
        fail(f"tokenizer.json has {len(merges[0])} merges, not the source's {len(merges[1])}")
    account.merges = len(merges[0])
    for text in [*probe_texts(), *(f"a {entry['content']} b" for entry in theirs["added_tokens"])]:
        if any(name in text for name in ("<MUL_", "<|padding_")):
            continue
        expected_ids = plain.encode(text, add_special_tokens=False).ids
        refuse_other_ids(tokenizer, file, text, expected_ids)
        account.texts += 1
    if tokenizer.encode("") != plain.encode("").ids:
        fail("a text begins with other tokens than the source's tokenizer.json puts there")


def refuse_other_ids(loaded: Any, file: Any, text: str, expected: list[int]) -> None:
    """Fail where a text's ids are not the wanted ones, as a stage loads the tokenizer or as the
    written tokenizer.json alone says: transformers takes some splitters from its own classes.
    """
    for ids in (
        loaded.encode(text, add_special_tokens=False),
        file.encode(text, add_special_tokens=False).ids,
    ):
        if ids != expected:
            fail(f"the tokenizer reads {text!r} as {ids}, the source's as {expected}")


def _source_tokenizer(folder: Path) -> dict[str, Any]:
    if (folder / "tokenizer.json").is_file():
        return read_json(folder / "tokenizer.json")
    if not all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        raise UserError(
            f"{folder} has no tokenizer.json, against which the import could be proved; save it "
            "with one, or give --tokenizer DIR"
        )
    # GPT-2's two files, from before tokenizer.json: the splitter is GPT-2's by definition.
    vocabulary = read_json(folder / "vocab.json")
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    ends = [token for token in ("<|endoftext|>",) if token in vocabulary]
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": vocabulary[token], "content": token, "special": True}
            | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            for token in ends
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level | {"use_regex": True},
        "post_processor": None,
        "decoder": byte_level | {"use_regex": True},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    }


def _vocabulary(tree: dict[str, Any]) -> dict[str, int]:
    vocabulary = tree["model"]["vocab"]
    if isinstance(vocabulary, list):  # Unigram: [piece, score] in order of id
        vocabulary = {piece: i for i, (piece, _) in enumerate(vocabulary)}
    return {**vocabulary, **{entry["content"]: entry["id"] for entry in tree["added_tokens"]}}


def _merges(tree: dict[str, Any]) -> list[tuple[str, ...]]:
    merges = tree["model"].get("merges") or []
    return [tuple(m.split(" ") if isinstance(m, str) else m) for m in merges]


def spellings_of(written: Path) -> list[list[int]]:
    """Return the ids of `a*b=c` for every fact, read with the written tokenizer.json alone."""
    from tokenizers import Tokenizer

    plain = Tokenizer.from_file(str(written / "tokenizer.json"))
    return [plain.encode(f"{a}*{b}={a * b}", add_special_tokens=False).ids for a, b in FACT_PAIRS]
