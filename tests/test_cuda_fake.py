"""What the CUDA path does to devices, host and memory, seen on fake tensors; faults are planted."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from domain_tokens.inference import cuda_graphs, decoder
from domain_tokens.inference.decoder import generate
from domain_tokens.inference.forward import PackedForward
from domain_tokens.inference.log_probs import continuation_log_probs
from domain_tokens.inference.sampling import GREEDY, Sampling
from domain_tokens.modeling import packed_tokens, without_dropout, without_head
from domain_tokens.runs.device import Device
from domain_tokens.training import loss
from domain_tokens.training.loss import evaluate_loss, half_precision, summed_loss, to_device
from domain_tokens.training.step_graphs import StepGraphs, graphs_pay, planned_shapes
from domain_tokens.training.step_plan import plan_steps
from domain_tokens.training.trainer import MicroBatches
from tests.conftest import plant, tiny_llama
from tests.fake_cuda import FreedError, RecordingError, fake_cuda
from tests.test_packing import random_examples
from tests.test_training import SETTINGS

EXAMPLES = random_examples(9, seed=3, low=3, high=20)
PROMPTS = [e.input_ids.tolist() for e in EXAMPLES]
FAMILIES = pytest.mark.parametrize("family", ["gpt2", "llama"])
AUTO = SETTINGS.model_copy(update={"precision": "auto"})
LAYERS, HEAD = 2, 50_349


def model_of(family, dtype):
    """Make a small model on the pretended device."""
    torch.set_default_dtype(dtype)
    try:
        with torch.device("cuda"):
            shape = {"n_layer": LAYERS, "n_embd": 64, "n_head": 4, "n_positions": 256}
            if family == "llama":
                return tiny_llama().eval()
            return GPT2LMHeadModel(GPT2Config(**shape, vocab_size=HEAD)).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def decode(family, sampling=GREEDY):
    """Decode; return the mode, and how many looks the scheduler took at the device."""
    looks = []
    with pytest.MonkeyPatch.context() as patch, fake_cuda() as mode:
        for name in ("_admit", "_write_ahead"):
            honest = getattr(decoder._Scheduler, name)
            patch.setattr(decoder._Scheduler, name, lambda *a, f=honest: looks.append(1) or f(*a))
        model = model_of(family, torch.bfloat16)
        mode.waits.clear()
        mode.calls.clear()
        words = {"eos_id": -1, "max_new_tokens": 20, "batch_size": 4, "sampling": sampling}
        responses = generate(model, PROMPTS, **words)
        assert [len(r.token_ids) for r in responses] == [20] * len(PROMPTS)
    return mode, len(looks)


@FAMILIES
@pytest.mark.parametrize(
    "sampling", [GREEDY, Sampling(0.8, seed=5), Sampling(1.0, 50, 0.9)], ids=["greedy", "t", "p"]
)
def test_the_host_looks_once_at_a_prefill_and_once_at_eight_steps(family, sampling):
    mode, looks = decode(family, sampling)
    assert dict(mode.waits) == {"tolist": looks}
    assert looks == 3 * (1 + 3)  # 9 rows in 4 slots: 20 tokens are 1 and 8, 8, 3


@FAMILIES
def test_logits_of_bf16_weights_are_fp32_wherever_they_are_used(family):
    mode, _ = decode(family)
    assert mode.count("mm.dtype", "bfloat16", "bfloat16") > 0
    assert mode.count("aten.max.dim", "bfloat16") == 0
    with fake_cuda() as mode:
        model = model_of(family, torch.bfloat16)
        for many in ([[5, 6]], [[5, 6], [7, 8]]):
            continuation_log_probs(model, PROMPTS, [many] * 9)
    assert mode.count("log_softmax", "float32") > 0
    assert mode.count("log_softmax", "bfloat16") == 0


@FAMILIES
def test_scoring_looks_at_the_device_once_a_group(family):
    with fake_cuda() as mode:
        model = model_of(family, torch.bfloat16)
        mode.waits.clear()
        continuation_log_probs(model, PROMPTS, [[[5, 6, 7]]] * 9)
        assert mode.waits == {"copy to the host": 1}


def forward(family):
    """Run a training forward pass under autocast; return the mode."""
    with fake_cuda() as mode:
        model = model_of(family, torch.float32)
        without_dropout(model.train())
        inputs = MicroBatches(EXAMPLES, plan_steps(EXAMPLES, AUTO), pad_id=50256)[0]
        mode.waits.clear()
        mode.calls.clear()
        with packed_tokens(model), without_head(model) as head, torch.no_grad():
            inputs = to_device(inputs, "cuda")
            with half_precision("cuda", torch.bfloat16):
                summed_loss(model, inputs, head)
    return mode


@FAMILIES
def test_a_training_forward_pass_waits_for_nothing(family):
    mode = forward(family)
    assert not mode.waits
    assert mode.count("_varlen_attn", "bfloat16", "bfloat16", "bfloat16") == LAYERS


def replayed(family, run=summed_loss):
    """Pass three micro-batches of one shape, the first of which is recorded; return the mode."""
    many = [*EXAMPLES] * 8
    with fake_cuda() as mode:
        model = model_of(family, torch.float32)
        without_dropout(model.train())
        plan = plan_steps(many, AUTO)
        assert graphs_pay(model, plan, AUTO, Device("cuda", torch.bfloat16))
        shapes = planned_shapes(many, plan)
        batches = MicroBatches(many, plan, pad_id=50256, shapes=shapes)
        alike = [number for number, shape in enumerate(shapes) if shape == shapes[0]]
        graphs = StepGraphs(model)
        mode.waits.clear()
        mode.calls.clear()
        with packed_tokens(model), without_head(model) as head, torch.no_grad():

            def forward(inputs):
                with half_precision("cuda", torch.bfloat16):
                    return run(model, inputs, head)

            for number in alike[:3]:
                graphs(to_device(batches[number], "cuda"), forward)
    return mode


@FAMILIES
def test_recorded_passes_wait_for_nothing_and_are_launched_once(family):
    mode = replayed(family)
    assert not mode.waits
    assert mode.count("_varlen_attn", "bfloat16") == 2 * LAYERS  # run once, and recorded


@FAMILIES
def test_products_under_autocast_are_of_bf16_factors(family):
    mode = forward(family)
    for name in ("aten.mm", "aten.addmm", "aten.bmm"):
        assert mode.count(name, "float32") == 0, name
    assert mode.count("mm.dtype", "bfloat16", "bfloat16") >= 3  # logits and both gradients


@FAMILIES
def test_an_evaluation_looks_once_at_a_micro_batch(family):
    with fake_cuda() as mode:
        model = model_of(family, torch.float32)
        mode.waits.clear()
        evaluate_loss(model, EXAMPLES, AUTO, Device("cuda", torch.bfloat16))
    assert mode.waits == {"copy to the host": 1}
    assert mode.count("_varlen_attn", "bfloat16") == LAYERS
    assert mode.count("aten.mm", "float32") == 0


# Planted faults: each of the checks above sees what it is there for.


def test_a_graph_over_freed_memory_is_seen(monkeypatch):
    def forgetful(self, forward, slots, sampling, honest=cuda_graphs.CudaGraphRunner._recorded):
        record = self._record
        self._record = lambda body, keep: record(body, keep=None)
        return honest(self, forward, slots, sampling)

    monkeypatch.setattr(cuda_graphs.CudaGraphRunner, "_recorded", forgetful)
    with pytest.raises(FreedError):
        decode("gpt2")


def test_a_wait_while_recording_is_seen(monkeypatch):
    def curious(self, ids, *more, honest=PackedForward.hidden):
        int(ids[0])
        return honest(self, ids, *more)

    monkeypatch.setattr(PackedForward, "hidden", curious)
    with pytest.raises(RecordingError, match="item"):
        decode("llama")


def test_a_wait_while_a_training_pass_is_recorded_is_seen():
    def curious(model, inputs, head):
        int(inputs["keep"][0])
        return summed_loss(model, inputs, head)

    with pytest.raises(RecordingError, match="item"):
        replayed("gpt2", curious)


def test_a_training_graph_over_freed_inputs_is_seen(monkeypatch):
    """As if the inputs that a pass was recorded with were those of its micro-batch, soon gone."""

    def forgetful(self, inputs, run, honest=StepGraphs.__call__):
        self._record._kept = []
        loss = honest(self, inputs, run)
        fresh = {n: x.clone() if torch.is_tensor(x) else x for n, x in inputs.items()}
        self._graphs = {shape: (fresh, replay) for shape, (_, replay) in self._graphs.items()}
        self._record._kept = []
        return loss

    monkeypatch.setattr(StepGraphs, "__call__", forgetful)
    with pytest.raises(FreedError):
        replayed("llama")


def test_a_blocking_copy_is_seen(monkeypatch):
    plant(monkeypatch, "domain_tokens.inference.kv_cache.to_device", lambda x, d: x.to(d))
    mode, _ = decode("gpt2")
    assert mode.waits["blocking copy to the device"] > 0


def test_a_tensor_left_on_the_cpu_is_seen(monkeypatch):
    plant(monkeypatch, "domain_tokens.inference.kv_cache.to_device", lambda x, d: x)
    with pytest.raises(AssertionError, match="takes a tensor on the CPU"):
        decode("gpt2")


def test_a_mask_of_truths_is_seen(monkeypatch):
    def masked(model, inputs, head):
        known = torch.zeros(inputs["input_ids"].shape, dtype=torch.bool, device="cuda")
        return model(input_ids=inputs["input_ids"], use_cache=False).logits[known]

    plant(monkeypatch, "domain_tokens.training.loss.hidden_states", masked)
    with fake_cuda() as mode:
        model = model_of("gpt2", torch.float32)
        inputs = to_device(
            MicroBatches(EXAMPLES, plan_steps(EXAMPLES, AUTO), pad_id=50256)[0], "cuda"
        )
        inputs["targets"] = inputs["targets"][:0]
        mode.waits.clear()
        with without_head(model) as head, torch.no_grad():
            loss.hidden_states(model, inputs, head)
    assert mode.waits["boolean index"] == 1


def test_rotated_queries_in_fp32_are_seen(monkeypatch):
    """Under autocast they stand next to bf16 values; varlen attention was never reached."""

    def widened(
        module, query, key, value, mask, *, cu_seqlens=None, max_seqlen=0, scaling=None, **rest
    ):
        flat = [x.transpose(1, 2).flatten(0, 1) for x in (query, key, value)]
        return flat[0].to(flat[2].dtype)[None] * 0 + flat[0][None].float(), None

    from transformers import AttentionInterface

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(AttentionInterface._global_mapping, "packed", widened)
        mode = forward("llama")
    assert mode.count("_varlen_attn", "bfloat16") == 0


def test_a_product_in_fp32_is_seen(monkeypatch):
    plant(monkeypatch, "domain_tokens.modeling.output_layer.factor_dtype", lambda x: torch.float32)
    assert forward("gpt2").count("aten.mm", "float32") > 0
