"""A small base model trained from scratch on plain text: what the demo starts from."""

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from domain_tokens.data import read_rows
from domain_tokens.errors import UserError
from domain_tokens.prompts import END, TEXT, Example, plain_encoder
from domain_tokens.runs import ModelSection, PretrainingConfig, hash_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SHAPES = {  # of bases with random weights
    "tiny": ModelSection(n_layer=2, n_embd=64, n_head=4, n_positions=1024),
    "gpt2-random": ModelSection(n_layer=12, n_embd=768, n_head=12, n_positions=1024),
}


def load_examples(config: PretrainingConfig, tokenizer: "PreTrainedTokenizerBase") -> list[Example]:
    """Read and encode the documents, each ended by EOS; every token carries loss.

    Raises UserError for a row without a non-empty `text` and for a document that is too long.
    """
    encoder, eos = plain_encoder(tokenizer), tokenizer.eos_token_id
    longest = config.training.max_length
    rows = read_rows(config.data.source, split=config.data.split)
    examples = []
    for number, row in enumerate(islice(rows, config.training.max_train_samples), 1):
        text = row.get("text")
        if not isinstance(text, str) or not text.strip():
            raise UserError(
                f"data.source: {config.data.source}, row {number} has no text; "
                'wanted {"text": "…"} in every row'
            )
        ids = [*encoder.encode(text, add_special_tokens=False).ids, eos]
        if len(ids) > longest:
            raise UserError(
                f"data.source: {config.data.source}, row {number} has {len(ids)} tokens, "
                f"training.max_length is {longest}; raise it, or split the document"
            )
        examples.append(
            Example(
                id=str(number),
                input_ids=np.array(ids, dtype=np.int32),
                token_roles=np.array([TEXT] * (len(ids) - 1) + [END], dtype=np.uint8),
                facts=0,
                text_bytes=len(text.encode()),
                match_bytes=0,
                truncated=False,
            )
        )
    return examples


def new_model(shape: ModelSection, tokenizer: "PreTrainedTokenizerBase", *, seed: int) -> Any:
    """Return an untrained GPT-2 with a row per token, GPT-2's initialisation and no dropout."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        **shape.model_dump(),
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        activation_function="gelu_pytorch_tanh",  # GPT-2's own function as one fused operation
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return GPT2LMHeadModel(config)


def pretrain(
    model: "PreTrainedModel",
    examples: list[Example],
    config: PretrainingConfig,
    folder: Path,
) -> dict[str, Any]:
    """Train a model in place with the one training loop; return what the run card records."""
    from domain_tokens.training.step_plan import plan_steps
    from domain_tokens.training.trainer import train

    settings = config.training
    plan = plan_steps(examples, settings)
    print(
        f"{len(examples)} documents, {sum(plan.tokens)} tokens "
        f"in {len(plan.steps)} optimizer steps",
        flush=True,
    )
    outcome = train(model, examples, plan, settings, folder)
    return {
        "config": config.model_dump(),
        "data": hash_json([example.input_ids.tolist() for example in examples]),
        "documents": len(examples),
        "tokens": sum(plan.tokens),
        "optimizer_steps": len(plan.steps),
        "train_loss": outcome.train_loss,
        "train_runtime": outcome.seconds,
    }
