"""Every single change of an export must be refused: mutation tests of nanogpt_proof.

The exporter of the first build dropped every attn.c_attn.bias and its proof said "equal", as both
read the same filtered tensors. So the proof is tested by what it must catch; run with -s for the
table of what was changed and what was refused.
"""

import ast
import itertools
import json
import shutil
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file, save_file

from domain_tokens import vocabulary
from domain_tokens.checkpoints.nanogpt import to_gpt2
from domain_tokens.checkpoints.nanogpt_proof import (
    UNREAD_KEYS,
    account_for_file,
    compare_logits,
    compare_values,
    prove_export,
    read_original,
)
from domain_tokens.errors import UserError
from tests.conftest import ROOT, call, plant, tree

WIDTH, LAYERS, HEADS, ROWS = 16, 2, 4, 50_304
BLOCK = WIDTH  # so that wpe has the square shape of attn.c_proj
SEED = 42


def random_state(*, untied=False, seed=0):
    """nanoGPT tensors of which none is ones or zeros, biases and layer norms included."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(shape, generator=generator) * 0.3

    state = {
        "transformer.wte.weight": random(ROWS, WIDTH),
        "transformer.wpe.weight": random(BLOCK, WIDTH),
    }
    linear = {
        "attn.c_attn": (3, 1),
        "attn.c_proj": (1, 1),
        "mlp.c_fc": (4, 1),
        "mlp.c_proj": (1, 4),
    }
    for block in (f"transformer.h.{i}" for i in range(LAYERS)):
        for name, (out, into) in linear.items():
            state[f"{block}.{name}.weight"] = random(out * WIDTH, into * WIDTH)
            state[f"{block}.{name}.bias"] = random(out * WIDTH)
        for name in ("ln_1", "ln_2"):
            state[f"{block}.{name}.weight"] = 1 + random(WIDTH)
            state[f"{block}.{name}.bias"] = random(WIDTH)
        state[f"{block}.attn.bias"] = torch.ones(BLOCK, BLOCK).tril()[None, None]
        state[f"{block}.attn.masked_bias"] = torch.tensor(-1e4)
    state["transformer.ln_f.weight"] = 1 + random(WIDTH)
    state["transformer.ln_f.bias"] = random(WIDTH)
    tied = state["transformer.wte.weight"]
    state["lm_head.weight"] = random(ROWS, WIDTH) if untied else tied
    return state


def content(state):
    sizes = {"n_layer": LAYERS, "n_head": HEADS, "n_embd": WIDTH, "block_size": BLOCK}
    return {"model": state, "model_args": {**sizes, "bias": True, "vocab_size": ROWS}}


def export(checkpoint, folder, *more):
    arguments = ("--checkpoint", checkpoint, "--condition", "baseline", "--output-dir", folder)
    return call("scripts/export_nanogpt.py", *arguments, "--seed", SEED, *more)


@pytest.fixture(scope="module", params=["tied", "untied"])
def finished(request, tmp_path_factory):
    """A checkpoint file and the folder that was exported from it, which nobody may change."""
    root = tmp_path_factory.mktemp(request.param)
    torch.save(content(random_state(untied=request.param == "untied")), root / "ckpt.pt")
    assert export(root / "ckpt.pt", root / "out") == 0
    return root / "ckpt.pt", root / "out"


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished[1], tmp_path / "copy")


def refusal(prove, *arguments, **options):
    """The words with which a proof refuses, or None where it does not."""
    try:
        prove(*arguments, **options)
    except UserError as error:
        return str(error)
    except (RuntimeError, ValueError):  # transformers cannot even load it
        return "cannot be loaded"
    return None


def reshaped_transpose(tensor):
    return tensor.t().reshape(tensor.shape).contiguous()


def first_two_swapped(tensor):
    order = [1, 0, *range(2, len(tensor))]
    return tensor[order].contiguous()


def one_pair_swapped(tensor):
    changed = tensor.flatten().clone()
    changed[[0, -1]] = changed[[-1, 0]]
    return changed.reshape(tensor.shape)


def one_ulp_more(tensor):
    changed = tensor.flatten().clone()
    place = len(changed) // 2
    changed[place] = torch.nextafter(changed[place], torch.tensor(torch.inf))
    return changed.reshape(tensor.shape)


def one_value_zeroed(tensor):
    changed = tensor.flatten().clone()
    changed[-1] = 0
    return changed.reshape(tensor.shape)


def one_value_scaled(tensor):
    changed = tensor.flatten().clone()
    changed[changed.abs().argmax()] *= 1.001
    return changed.reshape(tensor.shape)


def first_row_scaled(tensor):
    changed = tensor.clone()
    changed[0] *= 1.001
    return changed


COARSE = {
    "zero": torch.zeros_like,
    "permute": lambda t: t.roll(1, 0),
    "scale": lambda t: t * 1.01,
    "negate": torch.neg,
}
FINE = {
    "one value zeroed": one_value_zeroed,
    "one ulp": one_ulp_more,
    "one value × 1.001": one_value_scaled,
    "row × 1.001": first_row_scaled,
    "two rows swapped": first_two_swapped,
    "two values swapped": one_pair_swapped,
    "through bfloat16": lambda t: t.bfloat16().float(),
    "stored as float16": lambda t: t.half(),
    "a row less": lambda t: t[:-1].contiguous(),
}


def single_changes(weights, kinds):
    """(kind, tensor, changed weights) for each tensor, each change of one tensor alone."""
    for name, tensor in weights.items():
        for kind, change in kinds.items():
            yield kind, name, {**weights, name: change(tensor)}
        if tensor.dim() == 2:
            yield "transpose", name, {**weights, name: reshaped_transpose(tensor)}
        yield "drop", name, {n: t for n, t in weights.items() if n != name}


def swaps(weights):
    """Every pair of tensors of one shape with their places exchanged."""
    for one, other in itertools.combinations(weights, 2):
        if weights[one].shape == weights[other].shape:
            yield "swap", f"{one} {other}", {**weights, one: weights[other], other: weights[one]}


def table(title, changed, passed):
    """Print how many changes of each kind were made and refused."""
    print(f"\n{title}: {'change':24} made refused")
    for kind, made in changed.items():
        print(f"{title}: {kind:24} {made:4} {made - len(passed[kind]):7}")


def try_all(title, changes, copy, prove):
    changed, passed = Counter(), {}
    for kind, name, weights in changes:
        changed[kind] += 1
        passed.setdefault(kind, [])
        save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
        words = refusal(prove)
        if words is None:
            passed[kind].append(name)
    table(title, changed, passed)
    assert not any(passed.values()), passed
    return changed


def test_every_change_of_a_tensor_is_refused(finished, copy):
    source, _ = finished
    weights = load_file(copy / "model.safetensors")
    assert all(t.unique().numel() > 1 for t in weights.values())  # or a change changes nothing

    def prove():
        prove_export(source, copy, activation="gelu", seed=SEED)

    assert refusal(prove) is None  # unchanged, it passes
    changes = itertools.chain(single_changes(weights, COARSE | FINE), swaps(weights))
    untied = "lm_head.weight" in weights
    if untied:  # the tied case tries all others
        changes = (change for change in changes if "lm_head" in change[1] or "wte" in change[1])
    changed = try_all("values", changes, copy, prove)
    tensors, matrices = (2, 2) if untied else (28, 10)
    assert len(weights) == 28 + untied
    assert changed["transpose"] == matrices
    assert all(changed[kind] == tensors for kind in (*COARSE, *FINE, "drop"))
    assert changed["swap"] == (1 if untied else 99)
    assert changed.total() == (31 if untied else 501)


@pytest.mark.parametrize("finished", ["tied"], indirect=True)
def test_logits_alone_see_what_is_not_small(finished, copy):
    """The forward pass is a proof of its own: it knows nothing of the comparison of values."""
    source, _ = finished
    weights = load_file(copy / "model.safetensors")
    original = read_original(source)

    def prove():
        compare_logits(original, copy, activation="gelu")

    assert refusal(prove) is None
    kinds = {kind: COARSE[kind] for kind in ("zero", "permute")}
    changed = try_all("logits", single_changes(weights, kinds), copy, prove)
    assert changed.total() == 3 * len(weights) + changed["transpose"]


def test_values_see_what_logits_cannot(finished, copy):
    """Softmax drops what a key's bias adds; rows that the export added are in no file's logits."""
    source, _ = finished
    original = read_original(source)
    weights = load_file(copy / "model.safetensors")
    unseen = {
        "transformer.h.1.attn.c_attn.bias": slice(WIDTH, 2 * WIDTH),  # of the keys
        "transformer.wte.weight": slice(ROWS, ROWS + 1),  # a fact's
    }
    for name, part in unseen.items():
        changed = weights[name].clone()
        changed[part] *= 2
        save_file({**weights, name: changed}, copy / "model.safetensors", metadata={"format": "pt"})
        assert refusal(compare_logits, original, copy, activation="gelu") is None
        assert name in refusal(compare_values, original, copy, seed=SEED)


CONFIG = {
    "activation_function": ["gelu_new", "gelu_pytorch_tanh", "relu", None],
    "add_cross_attention": [True],
    "architectures": [["GPT2Model"], []],
    "attn_pdrop": [0.1],
    "bos_token_id": [0],
    "dtype": ["bfloat16"],
    "embd_pdrop": [0.1],
    "eos_token_id": [0, None],
    "layer_norm_epsilon": [1e-6, 1.001e-5, 0],
    "model_type": ["gpt_neo"],
    "n_embd": [WIDTH * 2],
    "n_head": [1, 2, 8],
    "n_inner": [WIDTH * 4],
    "n_layer": [1, 3],
    "n_positions": [BLOCK * 2, BLOCK - 1],
    "reorder_and_upcast_attn": [True],
    "resid_pdrop": [0.1],
    "scale_attn_by_inverse_layer_idx": [True, 0],
    "scale_attn_weights": [False, 1],
    "tie_word_embeddings": [None],
    "vocab_size": [ROWS, ROWS + 46],
    "auto_map": [{"AutoModelForCausalLM": "modeling.Other"}],
    "quantization_config": [{}],
    "attention_bias": [True],
}


def test_every_change_of_the_config_is_refused(finished, copy):
    source, _ = finished
    config = json.loads((copy / "config.json").read_text())
    unread = UNREAD_KEYS
    assert config.keys() <= CONFIG.keys() | unread.keys()  # or a key is neither tried nor excused
    changes = [(key, {**config, key: value}) for key, values in CONFIG.items() for value in values]
    changes.append(("tie", {**config, "tie_word_embeddings": not config["tie_word_embeddings"]}))
    removed = config.keys() - unread.keys()
    changes += [(f"no {key}", {k: v for k, v in config.items() if k != key}) for key in removed]
    passed = []
    for name, changed in changes:
        (copy / "config.json").write_text(json.dumps(changed))
        words = refusal(prove_export, source, copy, activation="gelu", seed=SEED)
        print(f"config: {name:36} {'passed' if words is None else 'refused'}")
        if words is None or "config.json has" not in words:
            passed.append(name)
    assert not passed
    assert (len(changes), len(removed)) == (60, 21)


def test_keys_that_are_not_read_change_no_logit(finished, copy):
    source, _ = finished
    values = {
        "initializer_range": 7.0, "pad_token_id": 5, "use_cache": False, "summary_type": "last",
        "summary_activation": "tanh", "summary_first_dropout": 0.9, "transformers_version": "4",
        "summary_proj_to_labels": False, "summary_use_proj": False,
    }  # fmt: skip
    assert values.keys() == UNREAD_KEYS.keys()
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | values))
    report = prove_export(source, copy, activation="gelu", seed=SEED)
    assert report["config_keys_unread"] == len(values)


def test_other_weights_in_the_folder_are_refused(finished, copy):
    source, _ = finished
    shutil.copy(copy / "model.safetensors", copy / "other.safetensors")
    words = refusal(prove_export, source, copy, activation="gelu", seed=SEED)
    assert "stored twice" in words
    (copy / "other.safetensors").rename(copy / "pytorch_model.bin")
    words = refusal(prove_export, source, copy, activation="gelu", seed=SEED)
    assert "pytorch_model.bin" in words


def test_the_proof_says_what_it_covered(finished):
    source, folder = finished
    report = json.loads((folder / "export_report.json").read_text())
    weights = load_file(folder / "model.safetensors")
    untied = "lm_head.weight" in weights
    proof = report["proof"]
    assert proof["file_tensors"] == 28 + 2 * LAYERS + 1
    assert proof["file_tensors_used"] == 28 + untied
    assert proof["file_masks"] == 2 * LAYERS
    assert proof["file_tied_heads"] == 1 - untied
    assert proof["folder_tensors"] == len(weights)
    assert proof["new_rows_compared"] == 45 * (1 + untied)
    total = sum(t.numel() for t in weights.values())
    assert proof["values_compared"] == total - 45 * WIDTH * (1 + untied)
    assert (proof["logit_positions"], proof["logit_columns"]) == (BLOCK, ROWS)
    assert report["largest_logit_difference"] <= report["tolerance"] < 1e-6
    card = json.loads((folder / "run_card.json").read_text())
    assert card["proof"] == proof
    assert prove_export(source, folder, activation="gelu", seed=SEED) == proof


def test_the_proof_imports_nothing_from_the_conversion():
    code = ast.parse((ROOT / "domain_tokens/checkpoints/nanogpt_proof.py").read_text())
    imported = set()
    for node in ast.walk(code):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    own = {name for name in imported if name.startswith("domain_tokens")}
    assert own == {"domain_tokens.errors", "domain_tokens.errors.UserError"}


# --- faults planted in the conversion ----------------------------------------------------------


def parameter(model, name):
    return model.get_parameter(name).data


def the_first_builds_fault(model):
    """attn.c_attn.bias was taken for the causal mask attn.bias and left at zero."""
    for i in range(LAYERS):
        parameter(model, f"transformer.h.{i}.attn.c_attn.bias").zero_()


def the_historic_fault(model):
    """attn.c_proj is square: not transposed, it loads."""
    for i in range(LAYERS):
        weight = parameter(model, f"transformer.h.{i}.attn.c_proj.weight")
        weight.copy_(weight.t().clone())


def queries_and_keys_swapped(model):
    for part in ("weight", "bias"):
        matrix = parameter(model, f"transformer.h.0.attn.c_attn.{part}")
        query, key, value = matrix.clone().chunk(3, -1)
        matrix.copy_(torch.cat([key, query, value], -1))


def layers_reversed(model):
    model.transformer.h = torch.nn.ModuleList(list(model.transformer.h)[::-1])


def wpe_shifted(model):
    weight = parameter(model, "transformer.wpe.weight")
    weight.copy_(weight.roll(1, 0))


def last_wte_rows_lost(model):
    parameter(model, "transformer.wte.weight")[50_257:] = 0


def rounded_to_bfloat16(model):
    model.bfloat16().float()


def last_bias_lost(model):
    parameter(model, "transformer.ln_f.bias").zero_()


def head_tied(model):
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.transformer.wte.weight


def heads_halved(model):
    model.config.n_head = HEADS // 2


def other_epsilon(model):
    model.config.layer_norm_epsilon = 1e-6


def scores_not_scaled(model):
    model.config.scale_attn_weights = False


def other_activation(model):
    model.config.activation_function = "gelu_new"


PLANTED = (
    the_first_builds_fault, the_historic_fault, queries_and_keys_swapped, layers_reversed,
    wpe_shifted, last_wte_rows_lost, rounded_to_bfloat16, last_bias_lost, head_tied, heads_halved,
    other_epsilon, scores_not_scaled, other_activation,
)  # fmt: skip


@pytest.mark.parametrize("fault", PLANTED, ids=lambda fault: fault.__name__)
def test_a_fault_in_the_conversion_is_caught(tmp_path, monkeypatch, capsys, fault):
    """The script ends with one line and status 2, and leaves nothing, whatever the conversion does
    wrong; the first two are faults that this study's exporters had."""
    torch.save(content(random_state(untied=fault is head_tied)), tmp_path / "ckpt.pt")
    right = to_gpt2

    def wrong(checkpoint, *, activation):
        model = right(checkpoint, activation=activation)
        fault(model)
        return model

    plant(monkeypatch, "domain_tokens.checkpoints.nanogpt.to_gpt2", wrong)
    before = tree(tmp_path)
    assert export(tmp_path / "ckpt.pt", tmp_path / "out") == 2
    shown = capsys.readouterr().err
    assert "is not the same model" in shown
    assert shown.count("\n") == 1
    assert tree(tmp_path) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "value"), [("NOISE_SCALE", 0.2), ("PAD_MULTIPLE", 100)])
def test_other_new_rows_are_caught(tmp_path, monkeypatch, capsys, name, value):
    torch.save(content(random_state()), tmp_path / "ckpt.pt")
    monkeypatch.setattr(vocabulary, name, value)
    assert export(tmp_path / "ckpt.pt", tmp_path / "out") == 2
    assert "is not the same model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("finished", ["tied"], indirect=True)
def test_a_finished_folder_outlives_a_failed_replacement(finished, tmp_path, monkeypatch, capsys):
    source, folder = finished
    shutil.copytree(folder, tmp_path / "out")
    before = tree(tmp_path)
    right = to_gpt2

    def wrong(checkpoint, *, activation):
        model = right(checkpoint, activation=activation)
        the_first_builds_fault(model)
        return model

    plant(monkeypatch, "domain_tokens.checkpoints.nanogpt.to_gpt2", wrong)
    assert export(source, tmp_path / "out", "--overwrite") == 2
    assert "c_attn.bias differs" in capsys.readouterr().err
    assert tree(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    monkeypatch.undo()
    assert export(source, tmp_path / "out", "--overwrite") == 0
    assert export(source, tmp_path / "out", "--resume") == 0


# --- the file's own tensors --------------------------------------------------------------------


def third_layer(state):
    for name in [name for name in state if ".h.1." in name]:
        state[name.replace(".h.1.", ".h.2.")] = state[name]


FILE = {
    "an unknown tensor": (lambda s: s.update(extra=torch.ones(3)), "extra"),
    "a layer too many": (third_layer, "transformer.h.2."),
    "a window for a mask": (
        lambda s: s["transformer.h.0.attn.bias"][0, 0].triu_(-4),
        "transformer.h.0.attn.bias",
    ),
    "another masked_bias": (
        lambda s: s.update({"transformer.h.1.attn.masked_bias": torch.tensor(-1.0)}),
        "transformer.h.1.attn.masked_bias",
    ),
    "a head bias": (lambda s: s.update({"lm_head.bias": torch.ones(ROWS)}), "lm_head.bias"),
    "query norms": (
        lambda s: s.update({"transformer.h.0.attn.q_norm.weight": torch.ones(WIDTH // HEADS)}),
        "transformer.h.0.attn.q_norm",
    ),
}


@pytest.mark.parametrize("finished", ["tied"], indirect=True)
@pytest.mark.parametrize("case", FILE)
def test_a_tensor_that_takes_no_part_is_named(finished, tmp_path, case):
    """By the proof alone, should the conversion let it pass."""
    change, name = FILE[case]
    source, folder = finished
    state = torch.load(source, weights_only=True)["model"]
    change(state)
    torch.save(content(state), tmp_path / "ckpt.pt")
    words = refusal(prove_export, tmp_path / "ckpt.pt", folder, activation="gelu", seed=SEED)
    assert name in words
    original = read_original(tmp_path / "ckpt.pt")
    compare_logits(original, folder, activation="gelu")  # logits do not see it
    assert name in refusal(account_for_file, original)


@pytest.mark.parametrize("finished", ["tied"], indirect=True)
def test_every_change_of_the_file_is_refused(finished, tmp_path):
    """The same the other way round: the folder is right, and the file is another."""
    source, folder = finished
    state = torch.load(source, weights_only=True)["model"]
    state["lm_head.weight"] = state["lm_head.weight"].clone()
    passed, tried = [], 0
    for name in state:
        for kind, change in {"zero": torch.zeros_like, "one ulp": one_ulp_more}.items():
            torch.save(content({**state, name: change(state[name])}), tmp_path / "ckpt.pt")
            tried += 1
            prove = prove_export
            words = refusal(prove, tmp_path / "ckpt.pt", folder, activation="gelu", seed=SEED)
            if words is None:
                passed.append((kind, name))
    assert not passed
    assert tried == 2 * (28 + 2 * LAYERS + 1)
