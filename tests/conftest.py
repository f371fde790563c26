"""Small models and tokenizers that tests share; nothing here needs a network."""

import pytest

from domain_tokens.vocabulary import extend_model, extend_tokenizer, gpt2_tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    """GPT-2's tokenizer with padding and fact tokens (50,349 entries)."""
    extended = gpt2_tokenizer()
    extend_tokenizer(extended)
    return extended


@pytest.fixture
def tiny_model():
    """A random GPT-2 of two layers over the whole extended vocabulary, dropout off."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    plain = gpt2_tokenizer()
    base_size = len(plain)
    layout = extend_tokenizer(plain)
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2,
        n_embd=32,
        n_head=4,
        n_positions=256,
        vocab_size=base_size,
        bos_token_id=50256,
        eos_token_id=50256,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.3,
    )
    model = GPT2LMHeadModel(config)
    extend_model(model, layout, plain, seed=0)
    return model
