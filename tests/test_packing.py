"""Packing: rows hold every example once, and documents in a row do not see each other."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from domain_tokens.prompts import END, PROMPT, TEXT, Example
from domain_tokens.training.step_plan import build_micro_batch, split_step


def make_example(ids, prompt=2):
    roles = [PROMPT] * prompt + [TEXT] * (len(ids) - prompt - 1) + [END]
    return Example(
        id=str(ids),
        input_ids=np.array(ids, dtype=np.int32),
        token_roles=np.array(roles[: len(ids)], dtype=np.uint8),
        facts=0,
        text_bytes=0,
        match_bytes=0,
        truncated=False,
    )


def random_examples(count, seed=0, low=4, high=40):
    chooser = np.random.default_rng(seed)
    sizes = chooser.integers(low, high, size=count)
    return [make_example(chooser.integers(0, 50000, size=size).tolist()) for size in sizes]


@given(
    lengths=st.lists(st.integers(1, 128), min_size=1, max_size=60),
    at_once=st.integers(1, 8),
    processes=st.integers(1, 3),
    packed=st.booleans(),
)
def test_every_example_stands_in_exactly_one_row_that_fits(lengths, at_once, processes, packed):
    parts = split_step(
        lengths, max_length=128, rows_at_once=at_once, processes=processes, packing=packed
    )
    seen = sorted(i for rows in parts for row in rows for i in row)
    assert seen == list(range(len(lengths)))
    for rows in parts:
        width = max(sum(lengths[i] for i in row) for row in rows)
        assert len(rows) * width <= at_once * 128
    if packed:
        assert all(len(rows) == 1 for rows in parts)
        assert len(parts) % processes == 0 or len(parts) == len(lengths)
    else:
        assert all(len(row) == 1 for rows in parts for row in rows)


def test_packed_micro_batches_hold_no_padding_and_are_balanced():
    """Rows of equal width held 8 % padding in a step of 32 GSM8K rows, which was computed, too."""
    lengths = np.random.default_rng(0).integers(65, 324, size=32).tolist()
    parts = split_step(lengths, max_length=512, rows_at_once=8)
    sizes = [sum(lengths[i] for i in row) for rows in parts for row in rows]
    assert len(parts) == len(sizes) == -(-sum(lengths) // (8 * 512))
    assert max(sizes) - min(sizes) < 65


def test_an_example_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="129 tokens does not fit in 128"):
        split_step([129], max_length=128, rows_at_once=8)


def test_targets_are_shifted_and_never_cross_documents():
    a, b = make_example([1, 2, 3, 4]), make_example([5, 6, 7])
    batch = build_micro_batch([[a, b]], pad_id=9)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert batch.targets.tolist() == [[-100, 3, 4, -100, -100, 7, -100]]


def test_padding_carries_no_loss_and_is_a_document_of_its_own():
    batch = build_micro_batch([[make_example([1, 2, 3, 4])], [make_example([5, 6, 7])]], pad_id=9)
    assert batch.input_ids[1].tolist() == [5, 6, 7, 9]
    assert batch.position_ids[1].tolist() == [0, 1, 2, 0]
    assert batch.targets[1, 2:].tolist() == [-100, -100]


@torch.no_grad()
def test_packed_logits_equal_those_of_the_document_alone(tiny_model):
    """transformers keeps packed documents apart only without a mask and without a cache."""
    tiny_model.eval()
    examples = random_examples(6)
    batch = build_micro_batch([examples[:3], examples[3:]], pad_id=50256)
    ids, positions = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.position_ids)
    packed = tiny_model(input_ids=ids, position_ids=positions, use_cache=False).logits
    for b, row in enumerate([examples[:3], examples[3:]]):
        at = 0
        for example in row:
            alone = tiny_model(
                input_ids=torch.from_numpy(example.input_ids[None].astype(np.int64)),
                use_cache=False,
            ).logits[0]
            size = len(example.input_ids)
            assert (packed[b, at : at + size] - alone).abs().max() < 1e-4
            at += size


@torch.no_grad()
def test_the_table_of_what_breaks_packing_still_holds(tiny_model):
    """An all-ones mask or a cache silently mixes documents; if this fails, the trap has moved."""
    tiny_model.eval()
    examples = random_examples(3)
    batch = build_micro_batch([examples], pad_id=50256)
    ids, positions = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.position_ids)
    good = tiny_model(input_ids=ids, position_ids=positions, use_cache=False).logits
    masked = tiny_model(
        input_ids=ids,
        position_ids=positions,
        attention_mask=torch.ones_like(ids),
        use_cache=False,
    ).logits
    cached = tiny_model(input_ids=ids, position_ids=positions, use_cache=True).logits
    assert (masked - good).abs().max() > 0.1
    assert (cached - good).abs().max() > 0.1
