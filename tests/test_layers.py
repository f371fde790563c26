"""Outside a subpackage only its public API is used: what its `__init__.pyi` names."""

import ast
import importlib
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "domain_tokens"
SUBPACKAGES = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
FOLDERS = ("domain_tokens", "sft", "eval", "sample", "scripts", "benchmarks")
FILES = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))


def imports(file):
    """Yield (module, name) of every import from the package, wherever it stands."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("domain_tokens"):
            yield from ((node.module, alias.name) for alias in node.names)


def test_the_walk_sees_subpackages_and_imports():
    assert len(SUBPACKAGES) == 9
    assert sum(len(list(imports(file))) for file in FILES) > 300


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_other_subpackages_are_used_by_their_public_api(file):
    own = file.relative_to(PACKAGE).parts[0] if file.is_relative_to(PACKAGE) else None
    for module, name in imports(file):
        parts = module.split(".")
        inside = len(parts) > 2 and parts[1] in SUBPACKAGES and parts[1] != own
        assert not inside, f"{module}.{name}: wanted `from domain_tokens.{parts[1]} import {name}`"
        if len(parts) == 2 and parts[1] in SUBPACKAGES:
            assert parts[1] != own, f"{name}: within a subpackage import the module"
            assert name in importlib.import_module(module).__all__


@pytest.mark.parametrize("subpackage", SUBPACKAGES)
def test_every_name_of_a_public_api_is_there(subpackage):
    module = importlib.import_module(f"domain_tokens.{subpackage}")
    assert module.__all__
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_a_subpackage_loads_nothing_until_it_is_used():
    names = ", ".join(f"domain_tokens.{subpackage}" for subpackage in SUBPACKAGES)
    code = f"import sys, {names}; print([n for n in ('torch', 'pydantic') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("proof", ["base_proof", "tokenizer_proof", "gguf_proof", "nanogpt_proof"])
def test_a_proof_reads_no_rule_from_what_it_proves(proof):
    """Our exporter and its proof once read the same filtered tensors, and agreed."""
    subpackage, files = PACKAGE / "checkpoints", set()
    waiting = [subpackage / f"{proof}.py"]
    while waiting:
        file = waiting.pop()
        files.add(file)
        near = {m for m, _ in imports(file) if m.startswith("domain_tokens.checkpoints.")}
        neighbours = [subpackage / f"{module.rpartition('.')[2]}.py" for module in near]
        waiting += [file for file in neighbours if file not in files and file.name != "folder.py"]
    names = {file.stem for file in files}
    assert not names & {"base", "gguf", "nanogpt", "fact_rows"}, names
    for file in files - {subpackage / "hashes.py"}:
        assert "domain_tokens.vocabulary" not in {module for module, _ in imports(file)}, file


LIMITS = {ast.ClassDef: 120, ast.FunctionDef: 60, ast.AsyncFunctionDef: 60}  # lines


def too_long(text):
    """Yield (name, lines) of every class and function that is longer than it may be."""
    for node in ast.walk(ast.parse(text)):
        size = (getattr(node, "end_lineno", None) or 0) - getattr(node, "lineno", 0) + 1
        if size > LIMITS.get(type(node), size):
            yield node.name, size


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_is_longer_than_one_can_read(file):
    text = file.read_text(encoding="utf-8")
    assert not list(too_long(text))
    if file.is_relative_to(PACKAGE):
        assert text.count("\n") <= 400


def test_what_is_too_long_is_seen():
    body = "\n".join(["    x = 1"] * 60)
    assert list(too_long(f"def long():\n{body}\n")) == [("long", 61)]
    assert not list(too_long(f"class Fine:\n{body}\n"))


# Names that say nothing of what they hold, and words that plain English has better ones for.
NAMELESS = set("found wanted most one other two three place places starts anew behind mend".split())
WORDS = re.compile(
    r"\b(mend(s|ed|ing)?|anew|behind|beside(?!\"))\b"
)  # a key of results is "beside"


def nameless(text):
    """Yield every identifier that this code does without, and `longest` as a parameter."""
    for node in ast.walk(ast.parse(text)):
        name = next(
            (getattr(node, f) for f in ("id", "arg", "attr", "name") if hasattr(node, f)), ""
        )
        if name in NAMELESS or (isinstance(node, ast.arg) and name == "longest"):
            yield name


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_name_says_what_it_holds(file):
    text = file.read_text(encoding="utf-8")
    assert not list(nameless(text))
    assert not WORDS.search(text)


def test_a_name_that_says_nothing_is_seen():
    text = "found = 1\ndef f(starts, *, longest): return g(wanted=x.places)\nlongest = 2\n"
    assert sorted(nameless(text)) == ["found", "longest", "places", "starts", "wanted"]
    assert WORDS.search("what is behind it")
    assert not WORDS.search('row["beside"]')
