"""The hash of the code that decides a result sees all of it, and nothing else."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from domain_tokens import source_code
from tests.conftest import ROOT

LOADED = """
import sys
from domain_tokens import {name}
print(*(n for n in sys.modules if n.startswith("domain_tokens.")))
"""


@pytest.mark.parametrize("name", ["training", "preparation"])
def test_whatever_python_loads_is_seen(name):
    """The oracle is Python's own import; what is imported within functions comes on top."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED.format(name=name)], cwd=ROOT, capture_output=True, text=True
    )
    loaded = {word.removeprefix("domain_tokens.") for word in done.stdout.split()}
    seen = {path.stem for path in source_code.imported(source_code.PACKAGE / f"{name}.py")}
    assert {name, "prompts", "vocabulary"} <= loaded <= seen
    assert not {"report", "comparison", "evaluation", "analysis"} & seen


def test_a_change_of_any_module_that_decides_is_seen_and_of_no_other(tmp_path, monkeypatch):
    package = Path(shutil.copytree(ROOT / "domain_tokens", tmp_path / "domain_tokens"))
    monkeypatch.setattr(source_code, "PACKAGE", package)
    monkeypatch.setattr(source_code, "ROOT", tmp_path)
    roots = [package / "training.py", package / "preparation.py"]
    deciding = set().union(*map(source_code.imported, roots))
    before = source_code.code_hash(roots)
    for module in sorted(package.glob("*.py")):
        text = module.read_text()
        module.write_text(text + "\n# changed\n")
        assert (source_code.code_hash(roots) != before) == (module.resolve() in deciding), module
        module.write_text(text)
    assert source_code.code_hash(roots) == before


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
    monkeypatch.setattr(source_code, "PACKAGE", package)
    found = source_code.imported(package / "root.py")
    names = {path.relative_to(package.resolve()).as_posix() for path in found}
    wanted = "root plain late dotted __init__ room/__init__ room/deep"
    assert names == {f"{name}.py" for name in wanted.split()}
