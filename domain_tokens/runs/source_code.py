"""The code that decides a result: modules of ours, with all that they import of ours, as a hash."""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
ROOT = PACKAGE.parent


def code_hash(modules: Iterable[Path], *, alone: Iterable[Path] = ()) -> str:
    """Return the SHA-256 over modules and whatever of this package they import, however deep.

    alone: files that count by themselves, without what they import.
    """
    files = {path.resolve() for path in alone} | imported(*modules)
    digest = hashlib.sha256()
    for name, path in sorted((_name(path), path) for path in files):
        digest.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def imported(*modules: Path) -> set[Path]:
    """Return modules and all modules of this package that they import, directly or not.

    Imports within functions count; what only a type checker reads does not.
    """
    files: set[Path] = set()
    waiting = [module.resolve() for module in modules]
    while waiting:
        path = waiting.pop()
        if path not in files:
            files.add(path)
            for module, name in _imports(path.read_text(encoding="utf-8")):
                waiting += _files(module)
                if name:
                    waiting += _files(f"{module}.{name}")
                    waiting += [
                        file for source in _source_of(module, name) for file in _files(source)
                    ]
    return files


@cache
def _imports(text: str) -> frozenset[tuple[str, str]]:
    """Return the (module, name) that a source imports; no name where it is the module itself."""
    return frozenset(_names(ast.parse(text)))


def _names(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for branch in node.orelse:
                yield from _names(branch)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        else:
            yield from _names(node)


def _source_of(package: str, name: str) -> list[str]:
    """Return the modules that a subpackage's public name comes from, as its stub says."""
    first, *parts = package.split(".")
    stub = PACKAGE.joinpath(*parts) / "__init__.pyi"
    if first != PACKAGE.name or not stub.is_file():
        return []
    exports = _exports(stub.read_text(encoding="utf-8"))
    return [f"{package}.{module}" for module, exported in exports if exported == name]


@cache
def _exports(text: str) -> frozenset[tuple[str, str]]:
    """Return the (module, name) that a stub takes from modules next to it."""
    return frozenset(
        (node.module, alias.name)
        for node in ast.parse(text).body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    )


def _files(name: str) -> list[Path]:
    """Return the files of a dotted name: of a package its `__init__`, too; of others none."""
    first, *parts = name.split(".")
    if first != PACKAGE.name:
        return []
    stem = PACKAGE.joinpath(*parts)
    candidates = (stem.with_suffix(".py") if parts else None, stem / "__init__.py")
    return [path.resolve() for path in candidates if path and path.is_file()]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
