"""Import a GGUF file through transformers, put right where its reader is known to be wrong.

What the metadata mean is read here again, not where the proof reads it (design §2, rule 12).
"""

from typing import Any

from domain_tokens.checkpoints.folder import quiet_transformers, refuse_disagreement, short_error
from domain_tokens.checkpoints.gguf_forward import GgufFile
from domain_tokens.errors import UserError

# `tokenizer.ggml.pre` -> kind of splitter. Only those whose rules are written out here.
SPLITTERS = {
    **dict.fromkeys(("gpt-2", "gpt2", "phi-2", "mpt", "olmo"), "gpt2"),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), "digits"),
    **dict.fromkeys(("exaone", "minerva-7b"), "digits"),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe"), "llama3"),
    "qwen2": "qwen2",
}
GIVE = "give the model's own with --tokenizer DIR"


def splitter_of(file: GgufFile) -> str:
    """Return the kind of splitter of a file's tokenizer.

    Raises UserError for one whose text splitting is not known: a guess reads text in another way
    than the model was trained on.
    """
    model = file.metadata.get("tokenizer.ggml.model")
    if model != "gpt2" or "tokenizer.ggml.merges" not in file.metadata:
        raise UserError(
            f"{file.path}: a tokenizer of kind {model} cannot be proved from a GGUF; {GIVE}"
        )
    pre = file.metadata.get("tokenizer.ggml.pre")
    if pre in (None, "default") and file.architecture == "gpt2":
        return "gpt2"
    if pre not in SPLITTERS:
        raise UserError(
            f"{file.path}: tokenizer.ggml.pre is {pre!r}, whose splitting of text is not known "
            f"here (known: {', '.join(SPLITTERS)}); {GIVE}"
        )
    return SPLITTERS[pre]


def load_gguf_tokenizer(file: GgufFile) -> Any:
    """Build the file's tokenizer, with the splitter that its merges were learned with.

    transformers splits smollm and its kin like GPT-2, where `\\n\\n1.` comes out otherwise.
    """
    from tokenizers import Regex, normalizers, pre_tokenizers, processors
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    kind = splitter_of(file)
    quiet_transformers()
    try:
        read: Any = AutoTokenizer.from_pretrained(
            file.path.parent, gguf_file=file.path.name, trust_remote_code=False
        )
    except Exception as error:
        raise UserError(
            f"{file.path}: its tokenizer cannot be read: {short_error(error)}; {GIVE}"
        ) from None
    backend = read.backend_tokenizer
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if kind in ("gpt2", "digits"):
        steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] * (kind == "digits")
        backend.pre_tokenizer = pre_tokenizers.Sequence([*steps, gpt2])
    else:
        split = pre_tokenizers.Split(Regex(_split(kind)), behavior="isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_alone])
    backend.normalizer = normalizers.NFC() if kind == "qwen2" else None
    backend.model.ignore_merges = kind == "llama3"
    tokens = file.metadata["tokenizer.ggml.tokens"]
    names = (("eos", "eos"), ("bos", "bos"), ("unk", "unknown"), ("pad", "padding"))
    ids = {n: file.metadata.get(f"tokenizer.ggml.{key}_token_id") for n, key in names}
    special = {f"{n}_token": tokens[i] for n, i in ids.items() if i is not None}
    if special.get("bos_token") and _begins_with_bos(file, kind):
        backend.post_processor = processors.TemplateProcessing(
            single=f"{special['bos_token']} $A",
            special_tokens=[(special["bos_token"], ids["bos"])],
        )
    else:
        backend.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    if read.chat_template:
        tokenizer.chat_template = read.chat_template
    return tokenizer


def _split(kind: str) -> str:
    digits = {"llama3": r"\p{N}{1,3}", "qwen2": r"\p{N}"}[kind]
    return "|".join(
        (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
            r"[^\r\n\p{L}\p{N}]?\p{L}+",
            digits,
            r" ?[^\s\p{L}\p{N}]+[\r\n]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",
            r"\s+",
        )
    )


def load_gguf_model(file: GgufFile) -> Any:
    """Load the file's model in fp32; `gguf_proof` then checks what came of it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    quiet_transformers()
    source: dict[str, Any] = {"gguf_file": file.path.name, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(file.path.parent, **source)
        for key, value in _unread(config.model_type, file).items():
            setattr(config, key, value)
        for key in ("_model_name_or_path", "feed_forward_length", "n_ctx"):
            vars(config).pop(key, None)  # the file's title, and names that GPT-2 does not read
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            file.path.parent,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            **source,
        )
        read, info = loaded
    except Exception as error:
        raise UserError(f"{file.path} cannot be read as GGUF: {short_error(error)}") from None
    refuse_disagreement(read, info, file.path)
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # its weights are fp32 now, and it may be saved again
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, trust_remote_code=False
        )
    model.load_state_dict(read.state_dict())
    return model


def _begins_with_bos(file: GgufFile, kind: str) -> bool:
    """Return what the file says; one that says nothing has it in Llama 3's kind only."""
    return bool(file.metadata.get("tokenizer.ggml.add_bos_token", kind == "llama3"))


def _unread(kind: str, file: GgufFile) -> dict[str, Any]:
    """Return what the file says and transformers 5.23 leaves at its own default."""
    if kind == "gpt2":
        context, inner = file.get("context_length"), file.get("feed_forward_length")
        return {"n_positions": context, "n_inner": inner}
    heads = file.get("attention.head_count")
    size = file.get("attention.key_length") or file.get("rope.dimension_count")
    keys: dict[str, Any] = {
        "num_key_value_heads": file.get("attention.head_count_kv", heads),
        "head_dim": size or file.get("embedding_length") // heads,
    }
    if kind == "qwen2":
        del keys["head_dim"]
    return keys if kind == "llama" else {**keys, "sliding_window": None}
