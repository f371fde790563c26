"""The hash of the code that decides a result sees all of it, and nothing else."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from domain_tokens.runs.source_code import PACKAGE, code_hash, imported
from tests.conftest import ROOT, plant

LOADED = """
import sys
import domain_tokens.{name}
print(*(n for n in sys.modules if n.startswith("domain_tokens.")))
"""


@pytest.mark.parametrize("name", ["training.trainer", "data.prepared"])
def test_whatever_python_loads_is_seen(name):
    """The oracle is Python's own import; what is imported within functions comes on top."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED.format(name=name)], cwd=ROOT, capture_output=True, text=True
    )
    loaded = {word.removeprefix("domain_tokens.") for word in done.stdout.split()}
    # The __init__ of a subpackage holds no code.
    loaded = {word for word in loaded if path_of(word).is_file()}
    paths = {path.relative_to(PACKAGE).with_suffix("") for path in imported(path_of(name))}
    seen = {".".join(path.parts).removesuffix(".__init__") for path in paths}
    assert {name, "prompts", "vocabulary"} <= loaded <= seen
    assert not {"comparison.report", "evaluation.responses", "comparison.over_seeds"} & seen


def path_of(name, package=PACKAGE):
    return package / f"{name.replace('.', '/')}.py"


def test_a_change_of_any_module_that_decides_is_seen_and_of_no_other(tmp_path, monkeypatch):
    package = Path(shutil.copytree(ROOT / "domain_tokens", tmp_path / "domain_tokens"))
    plant(monkeypatch, "domain_tokens.runs.source_code.PACKAGE", package)
    plant(monkeypatch, "domain_tokens.runs.source_code.ROOT", tmp_path)
    roots = [path_of(name, package) for name in ("training.trainer", "data.prepared")]
    deciding = set().union(*map(imported, roots))
    # Imported as `from domain_tokens.modeling import …`.
    assert path_of("modeling.chunked_loss", package).resolve() in deciding
    before = code_hash(roots)
    for module in sorted(package.rglob("*.py")):
        text = module.read_text()
        module.write_text(text + "\n# changed\n")
        assert (code_hash(roots) != before) == (module.resolve() in deciding), module
        module.write_text(text)
    assert code_hash(roots) == before


def test_imports_of_every_form_are_followed(tmp_path, monkeypatch):
    package = tmp_path / "domain_tokens"
    (package / "room").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "room" / "__init__.py").write_text("from domain_tokens.room.deep import x\n")
    for name in ("plain", "late", "typed", "dotted"):
        (package / f"{name}.py").touch()
    (package / "room" / "deep.py").write_text("import domain_tokens.dotted as d\n")
    (package / "root.py").write_text(
        "import os\nfrom typing import TYPE_CHECKING\nfrom domain_tokens import plain, room\n"
        "if TYPE_CHECKING:\n    from domain_tokens import typed\n"
        "def f():\n    from domain_tokens.late import y\n"
    )
    plant(monkeypatch, "domain_tokens.runs.source_code.PACKAGE", package)
    paths = imported(package / "root.py")
    names = {path.relative_to(package.resolve()).as_posix() for path in paths}
    expected = "root plain late dotted __init__ room/__init__ room/deep"
    assert names == {f"{name}.py" for name in expected.split()}
