"""Change any one leaf of any file of a finished chain: it is named, or it stands on a short list.

A seal catches what was changed by accident; here every file is sealed again after the change, and
lines are bound again with their new SHA-256, as somebody would who knows how. What is then still
seen is seen because something else says otherwise. Run with -s to see the list of what is not.
"""

import copy
import json
import re
import shutil
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from domain_tokens.checkpoints.lineage import BrokenLinkError, verify_checkpoint, verify_evaluation
from domain_tokens.comparison.must_equal import find_differences
from domain_tokens.comparison.runs import _load_evaluation, load_run
from domain_tokens.errors import UserError
from domain_tokens.evaluation.verification import verify_data, verify_tokens
from domain_tokens.runs.files import SEAL, file_digest, sealed, write_json
from tests.conftest import call, plant

STAGES = ("hf_baseline", "hf_mul_tokens", "sft_tulu_mul_tokens", "sft_gsm8k_mul_tokens")
EVALUATION = "eval_mul_tokens"
MANY = 64  # a mapping with more entries is of one kind: its first stands for all, as in a list

HOST = "a fact about the machine and the libraries that were there; nothing else records it"
WORDS = "text for a person"
TIME = "a clock was read once"
# Leaves of which there is one witness only, by file and key. Keys of card.training are those of the
# checkpoint's own card and are seen by it.
UNSEEN = {
    "*_results.json card.command": WORDS,
    "*_results.json card.code.commit": "code.tree, the hash of the code itself, is compared",
    "*_results.json card.code.dirty": "code.tree, the hash of the code itself, is compared",
    "*_results.json card.environment.python": HOST,
    "*_results.json card.environment.libraries.*": HOST,
    "*_results.json card.environment.device_name": HOST,
    "*_results.json card.environment.threads": HOST,
}


@pytest.fixture(scope="module")
def chain(experiment, tmp_path_factory):
    """A copy of the finished demo with stories, of which every change is put back."""
    demo = Path(shutil.copytree(experiment / "demo", tmp_path_factory.mktemp("chain") / "demo"))
    for arm in ("baseline", "mul_tokens"):
        words = ["--model-path", demo / f"sft_gsm8k_{arm}", "--output-dir", demo / f"eval_{arm}"]
        words += ["--condition", arm, "--suite", "stories", "--max-new-tokens", 4]
        assert call("eval/run_arithmetic_probes.py", *words) == 0
    return demo


def files_of(chain):
    """Every JSON and JSONL file of base, Tulu, GSM8K and evaluation, below the chain's folder."""
    files = [f for name in (*STAGES, EVALUATION) for f in sorted((chain / name).iterdir())]
    return [f for f in files if f.suffix in (".json", ".jsonl")]


def read(path):
    """A file as one tree: of lines, a list."""
    lines = path.read_text().splitlines()
    return [json.loads(x) for x in lines] if path.suffix == ".jsonl" else json.loads("".join(lines))


def leaves(node, path=()):
    """Yield the path of every leaf and every list; of what there is many of, of the first only."""
    if isinstance(node, (dict, list)) and node:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if isinstance(node, list):
            yield path
        for key in keys if isinstance(node, dict) and len(keys) <= MANY else keys[:1]:
            yield from leaves(node[key], (*path, key))
    else:
        yield path


def changes(node):
    """Yield other values for a leaf or list: of another number, text or truth, shorter, missing."""
    if isinstance(node, bool):
        yield not node
    elif isinstance(node, (int, float)):
        yield node + 1
    elif isinstance(node, str):
        yield node + "x"
    elif isinstance(node, list) and node:
        yield node[:-1]
    else:  # null, or an empty list or mapping
        yield "x"
    if node is not None and not isinstance(node, list):
        yield None


def put(tree, path, value):
    """Return a tree with another value at a path."""
    if not path:
        return value
    tree = copy.deepcopy(tree)
    node = tree
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return tree


def write(path, tree):
    """Write a file as its program does: sealed where it was, also what is sealed within it."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in tree))
        return
    with suppress(TypeError, KeyError):
        if SEAL in tree["card"]["training"]:
            tree["card"]["training"] = sealed(tree["card"]["training"])
    write_json(path, tree)


def bind(path):
    """Let the results name a changed file of lines as it is now, and seal them."""
    name, _, kind = path.stem.partition("_")
    results = path.with_name(f"{name}_results.json")
    tree = json.loads(results.read_text())
    lines = path.read_text().splitlines()
    tree[kind] |= {"sha256": file_digest(path), "count": len(lines)}
    write_json(results, tree)


def complaint(chain, path):
    """Return the first line in which check_checkpoint or compare_runs names what is wrong."""
    try:
        if path.parent.name != EVALUATION:
            verify_checkpoint(chain / STAGES[-1])
            verify_evaluation(chain / EVALUATION / "gsm8k_results.json")
            return None
        name = path.name.partition("_")[0]
        results = path.with_name(f"{name}_results.json")
        verify_evaluation(results)
        # What load_run does for this evaluation; the other one has not changed.
        run = replace(whole(chain, EVALUATION), evaluations={name: load(chain / EVALUATION, name)})
        find_differences([(whole(chain, "eval_baseline"), run)], [])
        verify_tokens(results, chain / STAGES[-1])
        verify_data(results, chain / STAGES[-1])
    except (BrokenLinkError, UserError) as error:
        return str(error)
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        return f"{path.parent}: {error!r}"  # as lineage.check_evaluation says it
    return None


def load(folder, name):
    return _load_evaluation(folder, name)


@cache
def whole(chain, name):
    """A run as it was before anything was changed."""
    return load_run(chain / name, condition=None)


def label(path, leaf):
    """The name of a leaf, whatever the evaluation: places in lists and libraries read `*`."""
    shown = [part if isinstance(part, str) else "*" for part in leaf]
    name = re.sub(r"libraries\.\w+", "libraries.*", ".".join(shown))
    evaluated = path.parent.name == EVALUATION and path.name.endswith("_results.json")
    return f"{'*_results.json' if evaluated else f'{path.parent.name}/{path.name}'} {name}"


def cases(chain):
    """Yield every change: file, its tree, path of the leaf, new value.

    Null is tried where a file ends a chain; what a parent's folder holds is known by its bytes.
    """
    for path in files_of(chain):
        tree = read(path)
        for leaf in leaves(tree):
            if leaf[-1:] == (SEAL,):
                continue  # what is sealed again is no change
            node = tree
            for key in leaf:
                node = node[key]
            values = list(changes(node))
            once = path.parent.name in STAGES[:-1] or leaf[:2] == ("card", "training")
            yield from ((path, tree, leaf, value) for value in (values[:1] if once else values))


def test_a_finished_chain_has_no_complaint(chain):
    """Without this the next test would pass on a chain that is never right."""
    assert complaint(chain, chain / STAGES[-1] / "config.json") is None
    for name in ("gsm8k", "arithmetic", "stories"):
        assert complaint(chain, chain / EVALUATION / f"{name}_items.jsonl") is None
        whole(chain, EVALUATION)
        whole(chain, "eval_baseline")


@pytest.mark.parametrize("kind", ["items", "rationales", "scores"])
def test_lines_that_the_results_do_not_name_are_refused(chain, kind):
    """The seed of this: items of one run next to results of another one went unseen."""
    for path in (chain / EVALUATION).glob(f"*_{kind}.jsonl"):
        before = path.read_bytes()
        for changed in (before.replace(b"1", b"2", 1), before[: before[:-1].rindex(b"\n") + 1]):
            path.write_bytes(changed)
            said = complaint(chain, path) or ""
            results = f"{path.name.partition('_')[0]}_results.json says"  # of fewer items
            assert path.name in said or results in said
        path.write_bytes(before)


@pytest.fixture
def digests(monkeypatch):
    """Hash a file once as long as nobody writes to it: two thousand times are half of the test."""
    honest, known = file_digest, {}

    def remembered(file):
        about = file.stat()
        key = (file, about.st_mtime_ns, about.st_size, about.st_ino)
        if key not in known:
            known[key] = honest(file)
        return known[key]

    plant(monkeypatch, "domain_tokens.runs.files.file_digest", remembered)


@pytest.mark.slow
def test_every_leaf_is_seen_or_listed(chain, digests):
    unseen, unnamed, tried = {}, [], 0
    whole(chain, EVALUATION), whole(chain, "eval_baseline")
    for path, tree, leaf, value in cases(chain):
        results = path.with_name(f"{path.stem.partition('_')[0]}_results.json")
        files = {path} | ({results} if path.parent.name == EVALUATION else set())
        before = {file: file.read_bytes() for file in files}
        write(path, put(tree, leaf, value))
        if path.suffix == ".jsonl" and path.parent.name == EVALUATION:
            bind(path)
        said = complaint(chain, path)
        for file, content in before.items():
            file.write_bytes(content)
        tried += 1
        if said is None:
            unseen.setdefault(label(path, leaf), []).append((path.name, leaf, value))
        elif path.parent.name not in said and path.name not in said:
            unnamed.append(said)
    print(f"\n{tried} changes tried; not seen:")
    for name in sorted(unseen):
        print(f"  {name}: {UNSEEN.get(name, '???')}")
    assert {*unseen} == {*UNSEEN}
    assert not unnamed
