"""Names that keys and values had once mean today's: in configs, commands and finished folders."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from domain_tokens.comparison.must_equal import find_differences, must_equal
from domain_tokens.comparison.runs import ARMS, load_run
from domain_tokens.errors import UserError
from domain_tokens.evaluation.checkpoint import evaluation_identity
from domain_tokens.injection import Mode
from domain_tokens.runs.config import (
    GSM8KEvalConfig,
    ProbeEvalConfig,
    SFTConfig,
    as_written_today,
    load_config,
)
from domain_tokens.runs.files import SEAL, read_json, read_lines, sealed, write_json
from domain_tokens.runs.older_names import KEYS, VALUES, key_today, named_today, say
from domain_tokens.runs.output_folder import UNFINISHED_MARKER, State, open_workspace
from domain_tokens.runs.results import evaluation, lines, training
from domain_tokens.runs.results.record import (
    SchemaError,
    check_record,
    require_record,
    unknown_keys,
)
from tests.conftest import ROOT, call, plant

EVALUATIONS = ROOT / "tests" / "golden" / "evaluations"  # they have all the older names
CONFIGS = (
    (SFTConfig, ROOT / "sft/configs/gsm8k.yaml"),
    (GSM8KEvalConfig, ROOT / "eval/configs/gsm8k.yaml"),
    (ProbeEvalConfig, ROOT / "eval/configs/arithmetic_probes.yaml"),
)
# Today's keys that are in files alone; no config has them.
IN_FILES = {"stop_reason": lines.PartialResponse, "injected_example_share": training.StageResults}


def places():
    """Yield (config, file, section, older key, its older value, key and value of today)."""
    for kind, path in CONFIGS:
        for section, field in kind.model_fields.items():
            fields = field.annotation.model_fields
            for older, key in KEYS.items():
                if key in fields:
                    value = yaml.safe_load(path.read_text())[section][key]
                    yield kind, path, section, older, value, key, value
            for key, values in VALUES.items():
                for older, value in values.items() if key in fields else ():
                    yield kind, path, section, key, older, key, value


PLACES = list(places())


@pytest.fixture(autouse=True)
def _nothing_was_said():
    say.cache_clear()


def written(path, folder, section, key, value, *, without):
    """Write a YAML file again with a key of its own, and return where."""
    tree = yaml.safe_load(path.read_text())
    tree[section].pop(without, None)
    tree[section][key] = value
    target = folder / f"{key}.yaml"
    target.write_text(yaml.safe_dump(tree))
    return target


def test_every_older_name_is_met_somewhere():
    keys, values = {p[5] for p in PLACES}, {(p[5], p[4]) for p in PLACES}
    assert keys | IN_FILES.keys() >= set(KEYS.values())
    assert values >= {(key, older) for key, olders in VALUES.items() for older in olders}
    assert not KEYS.keys() & set(KEYS.values())  # named_today twice is named_today
    for key, model in IN_FILES.items():
        assert key in model.model_fields
    assert set(VALUES["injection_mode"].values()) == set(Mode.__args__)


@pytest.mark.parametrize("place", PLACES, ids=lambda p: f"{p[2]}.{p[3]}={p[4]}")
def test_an_older_config_is_todays_and_says_so_once(place, tmp_path, capsys):
    kind, path, section, older, older_value, key, value = place
    today = written(path, tmp_path, section, key, value, without=key)
    expected = load_config(kind, today, [])
    assert capsys.readouterr().err == ""
    old = written(path, tmp_path, section, older, older_value, without=key)
    assert load_config(kind, old, []) == expected
    told = capsys.readouterr()
    name = f"{section}.{key}" if key != older else value
    given = f"{section}.{older}" if key != older else f"{section}.{key}={older_value}"
    assert told.err == f"note: {given} is called {name} now\n"
    assert told.out == ""
    override = f"{section}.{older}={json.dumps(older_value)}"
    assert load_config(kind, today, [override]) == expected
    assert load_config(kind, old, [f"{section}.{key}={json.dumps(value)}"]) == expected
    whole = f"{section}={json.dumps(yaml.safe_load(old.read_text())[section])}"
    assert load_config(kind, today, [whole]) == expected
    assert capsys.readouterr().err == ""  # once a run


def test_the_last_word_counts_under_either_name(tmp_path):
    kind, path = CONFIGS[1]
    older, key = "evaluation.rationales", "evaluation.num_rationales"
    file = written(path, tmp_path, "evaluation", "rationales", 5, without="num_rationales")
    for overrides, expected in (
        ([], 5),
        ([f"{key}=6"], 6),
        ([f"{older}=7"], 7),
        ([f"{older}=7", f"{key}=6"], 6),
        ([f"{key}=6", f"{older}=7"], 7),
    ):
        assert load_config(kind, file, overrides).evaluation.num_rationales == expected
    both = written(path, tmp_path, "evaluation", "rationales", 5, without="")
    with pytest.raises(UserError, match=r"unknown key evaluation\.rationales: did you mean"):
        load_config(kind, both, [])
    with pytest.raises(UserError, match=r"evaluation\.num_rationales is 'many'"):
        load_config(kind, file, [f"{older}=many"])


# --- finished folders -----------------------------------------------------------------------------


def modern(folder):
    """Write a finished evaluation as today's code would: no older name, its seals its own."""

    def config(tree):
        return {k: named_today(v) if isinstance(v, dict) else v for k, v in tree.items()}

    for path in folder.glob("*_results.json"):
        tree = read_json(path)
        card = tree["card"]
        card["decode"] = named_today(card["decode"])
        trained = named_today(card["training"])
        records = [trained, trained["identity"], *trained["ancestors"]]
        for record in records:
            if "config" in record:
                record["config"] = config(record["config"])
        share = trained["results"]["injection_rate"]
        trained["results"]["injected_example_share"] = share
        card["training"] = sealed(trained) if SEAL in trained else trained
        write_json(path, tree)
    return folder


@pytest.fixture
def evaluated(tmp_path):
    """Two seeds of each arm, each as it was stored and as it would be written today."""
    older = Path(shutil.copytree(EVALUATIONS, tmp_path / "older"))
    newer = Path(shutil.copytree(EVALUATIONS, tmp_path / "newer"))
    for folder in newer.iterdir():
        modern(folder)
    return older, newer


def keys_of(tree):
    """Yield all (key, value) of a JSON tree."""
    for key, value in tree.items() if isinstance(tree, dict) else ():
        yield key, value
        yield from keys_of(value)
    for value in tree if isinstance(tree, list) else ():
        yield from keys_of(value)


def test_a_finished_folder_is_verified_and_compared_under_either_name(evaluated, monkeypatch):
    older, newer = evaluated
    for arm in ARMS:
        runs = [load_run(folder / f"{arm}_1", condition=arm) for folder in evaluated]
        for name, old in runs[0].evaluations.items():
            new = runs[1].evaluations[name]
            assert old.notices == new.notices
            pairs = [list(keys_of(e.card)) for e in (old, new)]
            there = [{key for key, _ in p} for p in pairs]
            decoded = {"gsm8k": "rationales", "arithmetic": "forced_start"}[name]
            assert (decoded in there[0], decoded in there[1]) == (True, False)
            assert ("injection_mode", "weak") in pairs[0]
            assert "weak" not in [value for _, value in pairs[1] if isinstance(value, str)]
            assert must_equal(old.card) == must_equal(new.card)
            identities = [evaluation_identity(e.card) for e in (old, new)]
            assert identities[0] == identities[1]
            assert evaluation_identity(new.card)["decode"] == as_written_today(new.card["decode"])
    pairs = [
        tuple(
            load_run(root / f"{arm}_{seed}", condition=arm)
            for arm, root in zip(ARMS, roots, strict=True)
        )
        for seed, roots in ((1, (older, newer)), (2, (newer, older)))
    ]
    assert find_differences(pairs, []) == []
    assert find_differences(pairs, ["decode.rationales", "decode.forced_start"]) == []
    with pytest.raises(UserError, match=r"decode\.rationale: no such key"):
        find_differences(pairs, ["decode.rationale"])
    plant(monkeypatch, "domain_tokens.runs.older_names.named_today", lambda tree, *_, **__: tree)
    with pytest.raises((UserError, KeyError)):
        find_differences(pairs, [])


def test_a_comparison_of_older_and_newer_folders_is_that_of_older_ones(evaluated, tmp_path):
    reports = []
    for number, folders in enumerate(((0, 0), (0, 1), (1, 1))):
        words = [
            word
            for arm, which in zip(ARMS, folders, strict=True)
            for word in (
                f"--{arm.replace('_', '-')}-dir",
                *(evaluated[which] / f"{arm}_{seed}" for seed in (1, 2)),
            )
        ]
        target = tmp_path / f"{number}.json"
        assert call("scripts/compare_runs.py", *words, "--output-path", target) == 0
        report = read_json(target)
        for pair in report["pairs"]:
            for arm in ARMS:
                del pair[arm]["folder"], pair[arm]["files"]
        reports.append(report)
    assert reports[0] == reports[1] == reports[2]


def test_what_is_written_has_the_names_of_today(evaluated):
    older, newer = (folder / "baseline_1" / "gsm8k_results.json" for folder in evaluated)
    assert check_record(older, evaluation.GSM8KResults, read_json(older)) == ""
    old, new = read_json(older)["card"], read_json(newer)["card"]
    assert list(unknown_keys(evaluation.GSM8KDecode, old["decode"])) == []
    require_record(evaluation.GSM8KDecode, as_written_today(new["decode"]), "decode")
    with pytest.raises(SchemaError, match="rationales is no key of"):
        require_record(evaluation.GSM8KDecode, old["decode"], "decode")
    line = {"id": "q1", "token_ids": [1], "stop": "eos"}
    assert check_record("partial.json", lines.PartialResponse, line) == ""
    with pytest.raises(SchemaError, match="stop is no key of"):
        require_record(lines.PartialResponse, line, "partial")
    assert read_lines(EVALUATIONS / "baseline_1" / "gsm8k_items.jsonl")[0]["stop_reason"]


@pytest.mark.parametrize("state", [State.UNFINISHED, State.FINISHED])
def test_a_stage_is_found_finished_under_the_older_name_of_its_setting(tmp_path, state):
    """`--resume` of a chain would train again, or refuse, what is there."""
    today = {"config": {"data": {"injection_mode": "products"}}, "condition": "baseline"}
    older = {"config": {"data": {"injection_mode": "weak"}}, "condition": "baseline"}
    folder = tmp_path / "stage"
    folder.mkdir()
    if state is State.UNFINISHED:
        write_json(folder / UNFINISHED_MARKER, older)
    else:
        write_json(folder / "run_card.json", {"identity": older})
        write_json(folder / "sft_results.json", {})
    given = {"resume": True, "overwrite": False}
    space = open_workspace(folder, "sft_results.json", today, **given)
    assert (space.finished, space.resuming) == (state is State.FINISHED, state is State.UNFINISHED)
    today["config"]["data"]["injection_mode"] = "equations"
    with pytest.raises(UserError, match="injection_mode 'products', now it is 'equations'"):
        open_workspace(folder, "sft_results.json", today, **given)


def test_a_key_that_is_permitted_to_differ_is_named_as_today(capsys):
    assert key_today("decode.rationales") == "decode.num_rationales"
    assert key_today("decode.batch_size") == "decode.batch_size"
    assert (
        capsys.readouterr().err == "note: decode.rationales is called decode.num_rationales now\n"
    )
