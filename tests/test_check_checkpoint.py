"""The checkpoint check finds each fault that once went, or could go, unnoticed."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from domain_tokens.checkpoints.hashes import (
    DECISIVE_FILES,
    checkpoint_hashes,
    weights_hash,
)
from domain_tokens.errors import UserError
from domain_tokens.runs.files import hash_files, read_json, write_json
from tests.conftest import call, edit


def check(folder, capsys):
    """Return the exit status and the lines of checks that found a fault."""
    status = call("scripts/check_checkpoint.py", folder)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    return status, [line for line in lines if line.startswith("fault")]


@pytest.fixture
def checkpoint(demo):
    return demo / "sft_gsm8k_mul_tokens"


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def not_a_number(tensors):
    tensors["transformer.wpe.weight"][0, 0] = torch.nan


def one_row_less(tensors):
    tensors["transformer.wte.weight"] = tensors["transformer.wte.weight"][:-1].clone()


def shift(tensors):
    tensors["transformer.h.0.mlp.c_fc.weight"] += 0.01


BREAK = {
    "the weights hold NaN": (
        lambda folder: change_weights(folder, not_a_number),
        "finite weights",
    ),
    "a vocabulary row is missing": (
        lambda folder: change_weights(folder, one_row_less),
        "vocabulary",
    ),
    "the weights are not those of the card": (
        lambda folder: change_weights(folder, shift),
        "run card",
    ),
    "the weights are cut off": (
        lambda folder: (folder / "model.safetensors").write_bytes(
            (folder / "model.safetensors").read_bytes()[:-500]
        ),
        "files",
    ),
    "generation does not stop at EOS": (
        lambda folder: change_json(folder / "generation_config.json", eos_token_id=5),
        "EOS",
    ),
    "the run was killed": (
        lambda folder: (folder / "unfinished.json").write_text("{}"),
        "finished",
    ),
    "the results are missing": (
        lambda folder: (folder / "sft_results.json").unlink(),
        "finished",
    ),
    "the card is missing": (lambda folder: (folder / "run_card.json").unlink(), "run card"),
    "a file is missing": (lambda folder: (folder / "config.json").unlink(), "files"),
}


def forget_a_fact(folder):
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["added_tokens"] = [
        token for token in tokenizer["added_tokens"] if token["content"] != "<MUL_9_9_81>"
    ]
    path.write_text(json.dumps(tokenizer))


def make_facts_special(folder):
    """Special tokens vanish from decoded text: every response would have lost its facts."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    for token in tokenizer["added_tokens"]:
        token["special"] = True
    path.write_text(json.dumps(tokenizer))


BREAK["a fact token is missing"] = (forget_a_fact, "vocabulary")
BREAK["fact tokens are special"] = (make_facts_special, "fact tokens")


def say_more_heads(folder):
    """Weights of four and of two heads have the same shapes, and config.json was in no hash."""
    change_json(folder / "config.json", n_head=2)


BREAK["another number of heads"] = (say_more_heads, "run card")
BREAK["another epsilon"] = (
    lambda folder: change_json(folder / "config.json", layer_norm_epsilon=1e-3),
    "run card",
)
BREAK["another pad token"] = (
    lambda folder: change_json(folder / "tokenizer_config.json", pad_token="!"),
    "run card",
)
BREAK["sampling by default"] = (
    lambda folder: change_json(folder / "generation_config.json", max_new_tokens=3),
    "run card",
)


def test_a_folder_keeps_its_hashes_wherever_it_lies(checkpoint, tmp_path):
    before = checkpoint_hashes(checkpoint)
    assert {*before} == {"weights", "tokenizer", "model"}
    assert checkpoint_hashes(Path(shutil.copytree(checkpoint, tmp_path / "copied"))) == before
    (tmp_path / "copied" / "notes.txt").write_text("is not of the model")
    assert checkpoint_hashes(tmp_path / "copied") == before
    card = read_json(checkpoint / "run_card.json")
    assert {key: card[key] for key in before} == before


@pytest.mark.parametrize("name", [*DECISIVE_FILES, "pytorch_model.bin.index.json"])
def test_every_file_that_decides_is_in_the_hash(checkpoint, name):
    (checkpoint / name).touch()
    one = checkpoint_hashes(checkpoint)["model"]
    (checkpoint / name).write_text("other")
    assert checkpoint_hashes(checkpoint)["model"] != one


def test_a_base_of_bin_files_is_known_by_them(checkpoint, tmp_path, capsys):
    """Its hash was that of nothing, for every such parent: any change went unseen."""
    source = Path(shutil.copytree(checkpoint, tmp_path / "source"))
    for name in ("run_card.json", "sft_results.json", "train_log.jsonl"):
        (source / name).unlink()
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    words = ["--from", source, "--condition", "baseline", "--output-dir", tmp_path / "base"]
    assert call("scripts/make_base.py", *words) == 0
    recorded = read_json(tmp_path / "base" / "run_card.json")["parent"]
    assert recorded["weights"] == hash_files([source / "pytorch_model.bin"])
    capsys.readouterr()
    assert check(tmp_path / "base", capsys) == (0, [])
    flip_a_byte(source / "pytorch_model.bin")
    _, faults = check(tmp_path / "base", capsys)
    assert any("lineage" in fault and "source: weights is" in fault for fault in faults)


def test_a_folder_without_weights_has_no_hash(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    for function in (weights_hash, checkpoint_hashes):
        with pytest.raises(UserError, match="holds no weights"):
            function(checkpoint)


def test_a_card_of_an_older_version_is_said_and_not_refused(checkpoint, capsys):
    card = read_json(checkpoint / "run_card.json")
    for key in ("model", "files", "results", "seal"):
        del card[key]
    write_json(checkpoint / "run_card.json", card)
    assert check(checkpoint, capsys) == (0, [])
    assert call("scripts/check_checkpoint.py", checkpoint) == 0
    assert "written before cards had model and seal" in capsys.readouterr().out


def test_a_sound_folder_has_no_fault(checkpoint, capsys):
    assert check(checkpoint, capsys) == (0, [])


@pytest.mark.parametrize("fault", BREAK)
def test_a_fault_is_found(checkpoint, capsys, fault):
    damage, named = BREAK[fault]
    damage(checkpoint)
    status, faults = check(checkpoint, capsys)
    assert status == 1
    assert any(line.removeprefix("fault").strip().startswith(named) for line in faults), faults


def flip_a_byte(path):
    """Flip one bit in the middle of a file: no length, no header changes."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def another_row(demo):
    """Let the card name a copy of its data and change one row of the copy."""
    card, copy = demo / "sft_gsm8k_mul_tokens" / "run_card.json", demo / "copy.jsonl"
    copy.write_bytes((demo / "data" / "train.jsonl").read_bytes())
    edit(card, "sources", {str(copy): hash_files([copy])})
    copy.write_text(copy.read_text().replace("How", "Hew", 1))


CHAIN = {
    "one byte of the base's weights": (
        lambda demo: flip_a_byte(demo / "hf_mul_tokens" / "model.safetensors"),
        "hf_mul_tokens: weights",
    ),
    "one byte of the parent's weights": (
        lambda demo: flip_a_byte(demo / "sft_tulu_mul_tokens" / "model.safetensors"),
        "sft_tulu_mul_tokens: weights",
    ),
    "one config key of the parent": (
        lambda demo: edit(
            demo / "sft_tulu_mul_tokens" / "run_card.json", "config.training.learning_rate", 1.0
        ),
        "sft_tulu_mul_tokens: card_hash",
    ),
    "one config key of the checkpoint": (
        lambda demo: edit(
            demo / "sft_gsm8k_mul_tokens" / "run_card.json", "config.training.learning_rate", 1.0
        ),
        "training.learning_rate is another one",
    ),
    "the prompt version": (
        lambda demo: edit(demo / "sft_gsm8k_mul_tokens" / "run_card.json", "formats.prompt", "0"),
        "prompt version is 0",
    ),
    "one data row": (another_row, "copy.jsonl are not those"),
}


@pytest.mark.parametrize("change", CHAIN)
def test_a_changed_link_is_caught_by_name(demo, capsys, change):
    """A checkpoint was once trained from a parent that had been exported again in between."""
    alter, named = CHAIN[change]
    alter(demo)
    status, faults = check(demo / "sft_gsm8k_mul_tokens", capsys)
    assert status == 1
    assert any(f.removeprefix("fault").strip().startswith("lineage") for f in faults), faults
    assert any(named in fault for fault in faults), faults


def test_a_chain_verifies_from_the_evaluation_to_the_base(demo, capsys):
    assert check(demo / "eval_mul_tokens", capsys) == (0, [])
    call("scripts/check_checkpoint.py", demo / "eval_mul_tokens")
    line = next(x for x in capsys.readouterr().out.splitlines() if "lineage, gsm8k" in x)
    stages = [part.split()[0] for part in line.split("lineage, gsm8k")[1].split(" <- ")]
    assert stages == ["gsm8k", "sft", "tulu_sft", "base", "base"]


def test_an_evaluation_of_other_weights_is_caught(demo, capsys):
    flip_a_byte(demo / "sft_gsm8k_mul_tokens" / "model.safetensors")
    status, faults = check(demo / "eval_mul_tokens", capsys)
    assert status == 1
    assert all("was measured on" in fault for fault in faults)
    assert len(faults) == 2


def test_a_record_of_ancestors_that_is_not_theirs_is_caught(demo, capsys):
    """The comparison believes what a card says of the stages before it: the chain has to agree."""
    folder = demo / "sft_gsm8k_mul_tokens"
    card = read_json(folder / "run_card.json")
    assert [record["stage"] for record in card["ancestors"]] == ["tulu_sft", "base"]
    for change in (
        lambda records: records[0]["config"]["training"].update(learning_rate=5e-3),
        lambda records: records[0].update(injected_tokens=0),
        lambda records: records[1].update(weights="0" * 64),
        lambda records: records.pop(),
    ):
        changed = json.loads(json.dumps(card))
        change(changed["ancestors"])
        write_json(folder / "run_card.json", changed)
        status, faults = check(folder, capsys)
        assert status == 1
        assert any("ancestors" in fault for fault in faults), faults
    write_json(folder / "run_card.json", card)
