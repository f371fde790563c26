"""The forward pass written out for reading: what transformers computes, in one row."""

import pytest
import torch

from domain_tokens.inference.forward import _gated, packed_forward
from domain_tokens.inference.kv_cache import PagedCache, SlotCache
from domain_tokens.modeling.packed_attention import attend_within_documents
from tests.conftest import plant, tiny_llama

LENGTHS = [5, 1, 9]
CU_SEQLENS = torch.tensor([0, 5, 6, 15], dtype=torch.int32)


@pytest.fixture(params=["gpt2", "llama"])
def model(request, tiny_model):
    return tiny_model.eval() if request.param == "gpt2" else tiny_llama().eval()


def within_documents(layer, query, key, value, scaling):
    return attend_within_documents(query, key, value, CU_SEQLENS, max(LENGTHS), scaling)


def read(model, ids, dtype=torch.float32):
    positions = torch.cat([torch.arange(size) for size in LENGTHS])
    with torch.inference_mode(), packed_forward(model.to(dtype)) as read:
        return read(ids, positions, within_documents)


@pytest.mark.parametrize("compiled", [True, False], ids=["numba", "torch"])
def test_packed_texts_get_the_logits_that_each_has_alone(model, compiled, monkeypatch):
    plant(monkeypatch, "domain_tokens.inference.forward._compiled", lambda x: compiled)
    ids = torch.randint(0, 50_000, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))
    logits = read(model, ids)
    for part, text in zip(logits.split(LENGTHS), ids.split(LENGTHS), strict=True):
        expected = model(text[None]).logits[0]
        torch.testing.assert_close(part, expected, atol=1e-4, rtol=1e-4)


def test_half_precision_and_other_architectures_read_alike(model, monkeypatch):
    ids = torch.arange(100, 100 + sum(LENGTHS))
    own = read(model, ids)
    half = read(model, ids, torch.bfloat16)
    torch.testing.assert_close(half.float(), own, atol=0.5, rtol=0.1)
    plant(
        monkeypatch, "domain_tokens.inference.forward._own_body", lambda model: None
    )  # as for any other architecture
    torch.testing.assert_close(read(model, ids, torch.bfloat16), half, atol=0.5, rtol=0.1)


@pytest.mark.parametrize(("heads", "shared", "size"), [(2, 1, 8), (3, 3, 64), (1, 4, 20)])
def test_pages_are_attended_to_as_slots_are(heads, shared, size, tiny_model):
    """Several tokens of a slot in one pass, slots that end and free their pages, long rows."""
    noise = torch.Generator().manual_seed(heads)
    tiny_model.config.update({"n_head": heads * shared, "num_key_value_heads": heads})
    caches = PagedCache(3, 70, layers=2), SlotCache(tiny_model, 3, 70)
    lengths = [40, 17, 3]

    def tokens(count, heads):
        return torch.randn(count, heads, size, generator=noise)

    for layer in range(2):
        slot = torch.arange(3).repeat_interleave(torch.tensor(lengths))
        position = torch.cat([torch.arange(n) for n in lengths])
        new = tokens(60, heads), tokens(60, heads)
        for cache in caches:
            cache.begin(slot, position)
            cache.write(layer, *new)
    for counts in ([1, 1, 1], [3, 1, 2], [1, 16, 1], [2, 5]):
        if len(counts) < len(lengths):  # the second row ends: the third takes its slot
            for cache in caches:
                cache.free(1, 2, lengths[2])
            lengths = [lengths[0], lengths[2]]
        slot = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        position = torch.cat([n + torch.arange(c) for n, c in zip(lengths, counts, strict=True)])
        for layer in range(2):
            total = sum(counts)
            new = tokens(total, heads * shared), tokens(total, heads), tokens(total, heads)
            attended = []
            for cache in caches:
                cache.plan_attention(slot, position)
                attended.append(cache.attend(layer, *new, None))
            torch.testing.assert_close(*attended, atol=2e-6, rtol=2e-5)
        lengths = [n + c for n, c in zip(lengths, counts, strict=True)]


def test_memory_is_taken_for_what_is_held_and_given_back():
    cache = PagedCache(4, 160, layers=1)
    free = len(cache._free)
    slot = torch.zeros(33, dtype=torch.long)
    cache.begin(slot, torch.arange(33))
    assert free - len(cache._free) == 2  # pages of 32
    cache.write(0, torch.ones(33, 1, 8), torch.ones(33, 1, 8))
    cache.copy(0, 1, 33)
    assert free - len(cache._free) == 4
    assert set(cache._table[0, :2]).isdisjoint(cache._table[1, :2])
    cache.free(0, 1, 33)
    assert free - len(cache._free) == 2
    cache.free(0, 0, 33)
    assert len(cache._free) == free


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("silu", torch.nn.functional.silu),
        ("gelu_new", lambda x: torch.nn.functional.gelu(x, approximate="tanh")),
    ],
)
def test_activations_are_those_of_torch(name, expected):
    x = torch.cat([torch.linspace(-200, 200, 4001), torch.linspace(-8, 8, 4001)]).view(2, -1)
    exact = expected(x.double())
    gated = _gated(x.clone(), name).double()
    torch.testing.assert_close(gated, exact, atol=2e-7, rtol=2e-6)
    both = _gated(torch.cat([x, x.flip(1)], 1), name, times=True).double()
    torch.testing.assert_close(both, exact * x.flip(1), atol=1e-4, rtol=2e-6)
