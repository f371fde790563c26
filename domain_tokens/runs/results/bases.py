"""What makes of bases write: results, proofs, pretraining; and the manifest of the demo's data."""

from domain_tokens.runs.config import PretrainingConfig
from domain_tokens.runs.results.parts import Condition
from domain_tokens.runs.results.record import NATS, SHA256, Record, given, only, since


class Proof(Record):
    """What was compared with the source's own files before a base was kept."""

    against: str | None = given("what it was compared with; null where there was nothing")
    tensors: int = given("tensors that are equal", "tensors")
    config_keys: int = given("config keys that are equal", "keys")
    tokens: int = given("vocabulary entries that are equal", "tokens")
    merges: int = given("BPE merges that are equal", "merges")
    texts: int = given("texts that both tokenizers encode alike", "texts")
    left_out: dict[str, str] = given("what of the source was not used -> why")
    largest_logit_difference: float = only(
        "the source is a GGUF file", "against a forward pass over its own tensors", "logits"
    )


class ExportProof(Record):
    """What was compared with a nanoGPT checkpoint before its export was kept."""

    file_tensors: int = given("tensors of the file", "tensors")
    file_tensors_used: int = given("of these, tensors that the folder holds", "tensors")
    file_masks: int = given("causal masks, left out", "tensors")
    file_tied_heads: int = given("output layers that are the embedding, left out", "tensors")
    config_keys_compared: int = given("keys of config.json that are as they must be", "keys")
    config_keys_unread: int = given("keys that decide nothing here", "keys")
    folder_tensors: int = given("tensors of the folder", "tensors")
    values_compared: int = given("numbers that are equal bit for bit", "values")
    new_rows_compared: int = given("rows that the file lacks, compared with their rule", "rows")
    logit_positions: int = given("positions of the compared forward pass", "tokens")
    logit_columns: int = given("logits per position", "logits")
    logit_dtype: str = given("number type of the comparison")
    largest_logit: float = given("largest absolute logit", "logits")
    largest_logit_difference: float = given("largest absolute difference", "logits")
    tolerance: float = given("difference beyond which nothing is written", "logits")


class Pretraining(Record):
    """How a small base was trained from scratch."""

    config: PretrainingConfig = given("resolved config")
    data: str = given("hash of the encoded documents", SHA256)
    documents: int = given("documents", "documents")
    tokens: int = given("tokens of all epochs", "tokens")
    optimizer_steps: int = given("optimizer steps", "steps")
    train_loss: float = given("mean over all steps", NATS)
    train_runtime: float = given("training alone", "seconds")


class BaseMade(Record):
    """What results and run card of every base say."""

    command: str = since("2026-11-24", "what a person would type to do the same again")
    parameters: int = since("2026-11-24", "weights, tied ones once", "parameters")
    vocabulary: int = since(
        "2026-11-24", "rows of the embedding: tokens, padding, 45 facts", "tokens"
    )
    first_fact_id: int = since("2026-11-24", "id of `<MUL_1_1_1>`")
    fact_rows: str = given("the rule that made the fact rows, in words")


class MadeFrom(BaseMade):
    """Of a base by make_base.py."""

    dropped_decoding_settings: list[str] = since(
        "2026-11-26", "keys of the source's generation_config.json that the base has not"
    )
    hub_revision: str = only("the source is a hub id", "commit of the hub's repository")
    source_sha256: str = only("the source is a GGUF file", "hash of the file", SHA256)
    proof: Proof = since("2026-11-26", "what was compared with the source")
    pretraining: Pretraining | None = given("null for a base that was not trained here")


class ExportMade(BaseMade):
    """Of a base by export_nanogpt.py."""

    checkpoint_sha256: str = given("hash of the nanoGPT file", SHA256)
    checkpoint_kind: str = given("how the file states its shape: model_args or config")
    checkpoint_vocabulary: int = given("rows of the file's embedding", "tokens")
    activation: str = given("gelu or gelu_pytorch_tanh; such files do not store it")
    largest_logit_difference: float = given("as in the proof", "logits")
    tolerance: float = given("as in the proof", "logits")
    proof: ExportProof = since("2026-11-26", "what was compared with the file")


class BaseOutcome(Record):
    """What the results of every base begin with."""

    condition: Condition = given("arm")
    source: str = given("what it was made from, as given")
    weights: str = given("hash of the weight files", SHA256)
    seal: str = only("it is a file and no copy in a card", "hash of all other keys", SHA256)


class MakeBaseResults(BaseOutcome, MadeFrom):
    """`make_base_results.json`."""


class ExportReport(BaseOutcome, ExportMade):
    """`export_report.json`."""


class Manifest(Record):
    """`data/manifest.json` of the demo."""

    seed: int = given("that all texts are drawn from")
    sizes: dict[str, int] = given("rows by file", "rows")
    vocabulary: int = given("tokens of the demo's tokenizer at most", "tokens")
    generator: str = given("version of what is generated")
