"""Where a run's fact rows come from: its own seed if untrained, else what the card tells."""

import json
import shutil

import pytest
import torch

from domain_tokens.checkpoints.base import prove_base, resolve_source
from domain_tokens.checkpoints.fact_rows import (
    DRAWN,
    KEPT,
    RULES,
    begin_fact_rows,
    fact_rows_in_words,
    rule_of_base,
)
from domain_tokens.checkpoints.folder import load_model, load_tokenizer
from domain_tokens.checkpoints.hashes import weights_hash
from domain_tokens.errors import UserError
from domain_tokens.runs.files import write_json
from domain_tokens.vocabulary import layout_of
from tests.conftest import call
from tests.small_models import write_folder
from tests.test_make_base import make


def embeddings(folder):
    """The rows of a checkpoint's vocabulary, and its layout."""
    layout = layout_of(load_tokenizer(folder))
    model = load_model(folder, dtype=torch.float32)
    return model.get_input_embeddings().weight.detach().clone(), layout


def begin(folder, seed):
    """The rows with which a stage of this seed begins, and what it says of them."""
    model = load_model(folder, dtype=torch.float32)
    began = begin_fact_rows(model, load_tokenizer(folder), folder, seed=seed)
    return model.get_input_embeddings().weight.detach(), began


def edit(folder, **changes):
    path = folder / "run_card.json"
    write_json(path, {**json.loads(path.read_text()), **changes})


@pytest.mark.parametrize("arm", ["baseline", "mul_tokens"])
def test_replicates_begin_with_rows_of_their_own_in_both_arms(demo, arm):
    """Replicates once differed in their order alone: all had the base's 45 rows."""
    base = demo / f"hf_{arm}"
    before, layout = embeddings(base)
    rows, began = begin(base, 42)  # the base's own seed
    assert torch.equal(rows, before)
    assert began == {"rule": DRAWN, "seed": 42}
    rows, began = begin(base, 7)
    assert began["seed"] == 7
    assert torch.equal(rows[: layout.first_fact_id], before[: layout.first_fact_id])
    assert not (rows[layout.first_fact_id :] == before[layout.first_fact_id :]).all(dim=1).any()
    assert "drawn from seed 7" in fact_rows_in_words(began)
    other = begin(demo / "hf_baseline", 7)[0]
    assert torch.equal(rows, other)


def test_a_base_made_before_its_rule_was_passed_on_is_followed_to_its_source(demo):
    """make_base --from DIR wrote "the source's" into the card of the demo's second base."""
    edit(demo / "hf_mul_tokens", fact_rows=KEPT)
    edit(
        demo / "hf_mul_tokens",
        parent={
            "path": str(demo / "hf_baseline"),
            "weights": weights_hash(demo / "hf_baseline"),
        },
    )
    assert rule_of_base(demo / "hf_mul_tokens") == DRAWN
    shutil.rmtree(demo / "hf_baseline")
    assert rule_of_base(demo / "hf_mul_tokens") == KEPT


@pytest.mark.parametrize("why", ["no card", "source's", "trained"])
def test_rows_that_may_be_trained_are_left_as_they_are(demo, why):
    folder = demo / ("sft_tulu_mul_tokens" if why == "trained" else "hf_baseline")
    if why == "no card":
        (folder / "run_card.json").unlink()
    if why == "source's":
        edit(folder, fact_rows=KEPT)
    before, _ = embeddings(folder)
    rows, began = begin(folder, 7)
    assert torch.equal(rows, before)
    if why == "trained":
        assert began == {"rule": DRAWN, "seed": 42}  # what its own stage began with
    else:
        assert began["seed"] is None
        assert "the base's, whatever the seed" in fact_rows_in_words(began)


def test_the_seed_of_the_rows_reaches_the_last_card_and_the_evaluation(demo, capsys):
    """Rationales are sampled, and fact rows drawn, from the seed of the replicate."""
    base = demo / "hf_baseline"
    words = ["--model-path", base, "--output-dir", demo / "new", "--condition", "baseline"]
    words += ["--config", "sft/configs/demo/gsm8k.yaml", "--seed", 7]
    for key, name in (("source", "train"), ("validation_source", "test")):
        words += ["--set", f"data.{key}={demo / 'data' / name}.jsonl"]
    assert call("sft/sft_gsm8k.py", *words, "--set", "training.warmup_ratio=0") == 0
    assert "fact rows: drawn from seed 7" in capsys.readouterr().out
    card = json.loads((demo / "new" / "run_card.json").read_text())
    assert card["fact_rows"] == {"rule": DRAWN, "seed": 7}
    words = ["--model-path", demo / "new", "--condition", "baseline", "--max-samples", 2]
    words += ["--set", f"data.source={demo / 'data' / 'test.jsonl'}", "--max-new-tokens", 4]
    for folder, more in (("own", []), ("set", ["--set", "evaluation.rationale_seed=5"])):
        assert call("eval/run_gsm8k.py", *words, "--output-dir", demo / folder, *more) == 0
    decode = [
        json.loads((demo / f / "gsm8k_results.json").read_text())["card"]["decode"]
        for f in ("own", "set")
    ]
    assert [d["rationale_seed"] for d in decode] == [7, 5]


@pytest.fixture(scope="module", params=["subtoken_mean", "mean", "random"])
def begun(request, tmp_path_factory):
    """A base whose fact rows began in one of the three ways: (its name, source, folder)."""
    place = tmp_path_factory.mktemp("init")
    source = write_folder(place / "source", "llama", tie_word_embeddings=False)
    assert make(source, place / "base", "--fact-init", request.param) == 0
    return request.param, source, place / "base"


def test_the_card_says_how_fact_rows_began_and_replicates_draw_them_likewise(begun):
    init, _, folder = begun
    rows, began = begin(folder, 42)
    before, layout = embeddings(folder)
    assert torch.equal(rows, before)
    assert began == {"rule": RULES[init], "seed": 42}
    assert json.loads((folder / "run_card.json").read_text())["fact_rows"] == RULES[init]
    rows, began = begin(folder, 7)
    assert torch.equal(rows[: layout.first_fact_id], before[: layout.first_fact_id])
    base, other = rows[: layout.base_size], rows[layout.first_fact_id :]
    spread = ((other - base.mean(0)) / base.std(0)).std().item()
    assert (0.8 < spread < 1.2) == (init == "random")
    assert (0.08 < spread < 0.12) == (init == "mean")
    assert "drawn from seed 7" in fact_rows_in_words(began)


def test_the_proof_knows_one_beginning_from_another(begun):
    """Planted: rows that began in one way under the name of another."""
    init, source, folder = begun
    for claimed in RULES:
        if claimed == init:
            prove_base(resolve_source(str(source), None), folder, seed=42, fact_init=claimed)
            continue
        with pytest.raises(UserError, match="is not what new rows are made of"):
            prove_base(resolve_source(str(source), None), folder, seed=42, fact_init=claimed)


def test_rows_that_a_source_has_are_not_asked_to_begin_otherwise(begun, tmp_path, capsys):
    init, _, folder = begun
    assert make(folder, tmp_path / "same", "--fact-init", init) == 0
    card = json.loads((tmp_path / "same" / "run_card.json").read_text())
    assert card["fact_rows"] == RULES[init]
    other = "mean" if init == "random" else "random"
    assert make(folder, tmp_path / "other", "--fact-init", other) == 2
    assert "has its 45 fact rows already" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
