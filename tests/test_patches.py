"""What changes a model: which changes may be there together, and that each is undone."""

import ast
import platform
from contextlib import ExitStack

import pytest
import torch

from domain_tokens.inference.cpu.packed_weights import prepack_, prepacked
from domain_tokens.modeling.packed_attention import packed_tokens
from domain_tokens.modeling.patches import (
    fuse_activations,
    replaced_forward,
    without_dropout,
    without_head,
)
from tests.conftest import ROOT, tiny_llama

IDS = torch.tensor([[5, 6, 7, 8], [9, 8, 7, 6]])
PATCHES = {"head": without_head, "tokens": packed_tokens, "weights": prepacked}
REFUSED = {("head", "head"), ("head", "weights"), ("weights", "head")}
packs = pytest.mark.skipif(
    platform.machine() not in {"x86_64", "AMD64"}, reason="packs weights for x86 only"
)


@pytest.fixture(params=["gpt2", "llama"])
def model(request, tiny_model):
    return tiny_model.eval() if request.param == "gpt2" else tiny_llama().eval()


def state(model):
    """All that a patch could leave when it goes."""
    with torch.inference_mode():
        logits = model(IDS, use_cache=False).logits
    return {
        "forward": [n for n, m in model.named_modules() if replaced_forward(m) is not None],
        "attention": model.config._attn_implementation,
        "weights": {n: t.clone() for n, t in model.state_dict().items()},
        "modules": [(n, type(m)) for n, m in model.named_modules()],
        "logits": logits,
    }


def assert_same(model, before):
    after = state(model)
    for key in ("forward", "attention", "modules"):
        assert after[key] == before[key], key
    torch.testing.assert_close(after["weights"], before["weights"], rtol=0, atol=0)
    assert torch.equal(after["logits"], before["logits"])


@packs
@pytest.mark.parametrize("second", PATCHES)
@pytest.mark.parametrize("first", PATCHES)
def test_which_patches_may_be_active_together(model, first, second):
    """One that took the output layer from another was undone with it: its forward was deleted."""
    before = state(model)
    with PATCHES[first](model):
        alone = [n for n, m in model.named_modules() if replaced_forward(m) is not None]
        if (first, second) in REFUSED:
            with pytest.raises(RuntimeError, match="replaced already"), PATCHES[second](model):
                pass
        else:
            with PATCHES[second](model):
                pass
        left = [n for n, m in model.named_modules() if replaced_forward(m) is not None]
        assert left == alone  # the first one is as it was
    assert_same(model, before)


@packs
@pytest.mark.parametrize("name", PATCHES)
def test_a_patch_ends_with_an_exception(model, name):
    before = state(model)
    with pytest.raises(KeyboardInterrupt), PATCHES[name](model):
        raise KeyboardInterrupt
    assert_same(model, before)


@packs
@pytest.mark.parametrize("name", PATCHES)
def test_a_patch_does_something(model, name):
    """Or the tests of its end would pass for a patch that is none."""
    before = state(model)
    with PATCHES[name](model):
        replaced = [n for n, m in model.named_modules() if replaced_forward(m) is not None]
        assert replaced or model.config._attn_implementation != before["attention"]


@packs
def test_packed_for_good_keeps_its_output_layer(model):
    """The loss of a packed model was computed without its head, and the head then left unpacked."""
    prepack_(model)
    before = state(model)
    with pytest.raises(RuntimeError, match="replaced already"), without_head(model):
        pass
    with packed_tokens(model), prepacked(model):
        pass
    assert_same(model, before)


@packs
def test_what_is_changed_for_good_goes_with_everything(model):
    for _ in range(2):  # twice is as good as once
        fuse_activations(model)
        without_dropout(model)
    before = state(model)
    for first, second in (("tokens", "head"), ("tokens", "weights")):
        with ExitStack() as stack:
            stack.enter_context(PATCHES[first](model))
            stack.enter_context(PATCHES[second](model))
        assert_same(model, before)


def test_nothing_else_replaces_a_forward_pass():
    """Every place that assigns or deletes `.forward` is in modeling/patches.py."""
    names = []
    for file in sorted((ROOT / "domain_tokens").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            stored = isinstance(getattr(node, "ctx", None), ast.Store | ast.Del)
            if isinstance(node, ast.Attribute) and node.attr == "forward" and stored:
                names.append(file.name)
            if isinstance(node, ast.Constant) and node.value == "forward":
                names.append(file.name)
    assert set(names) == {"patches.py"}
