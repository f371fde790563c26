"""The code that decides a result: modules of ours, with all that they import of ours, as a hash."""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
ROOT = PACKAGE.parent


def code_hash(modules: Iterable[Path], *, alone: Iterable[Path] = ()) -> str:
    """Return the SHA-256 over modules and whatever of this package they import, however deep.

    alone: files that count by themselves, without what they import.
    """
    files = {path.resolve() for path in alone}.union(*map(imported, modules))
    digest = hashlib.sha256()
    for name, path in sorted((_name(path), path) for path in files):
        digest.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def imported(module: Path) -> set[Path]:
    """Return a module and all modules of this package that it imports, directly or not.

    Imports within functions count; what only a type checker reads does not.
    """
    modules: set[Path] = set()
    waiting = [module.resolve()]
    while waiting:
        path = waiting.pop()
        if path not in modules:
            modules.add(path)
            tree = ast.parse(path.read_text(encoding="utf-8"))
            waiting += [file for name in _names(tree) for file in _files(name)]
    return modules


def _names(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted names of this package that a tree imports."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for branch in node.orelse:
                yield from _names(branch)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
                yield from _source_of(node.module, alias.name)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        else:
            yield from _names(node)


def _source_of(package: str, name: str) -> Iterator[str]:
    """Yield the module that a subpackage's public name comes from, as its stub says."""
    stub = PACKAGE.joinpath(*package.split(".")[1:]) / "__init__.pyi"
    if package.split(".")[0] == PACKAGE.name and stub.is_file():
        for node in ast.parse(stub.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
                yield f"{package}.{node.module}"


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
