"""The user's own modules: those that a kernel has imported, and those that a script or cell will."""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from . import literals, repository

#: Files that are looked at, bytes of one file and of all that are kept.
MOST_FILES = 500
MOST_FILE = 256_000
MOST_BYTES = 3_000_000

_LIBRARIES = tuple(
    os.path.realpath(p) + os.sep
    for p in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), sysconfig.get_path("purelib"),
              sysconfig.get_path("platlib")}
    if p
)


@dataclass
class Module:
    """A file of the user's.

    Attributes:
        state: ``tracked`` (as committed), ``changed``, ``untracked``, or ``no repository``.
    """

    name: str
    path: str
    sha256: str = ""
    state: str = "no repository"
    root: str = ""


def is_local(path: str) -> bool:
    """Whether a source file is the user's own, rather than a library's."""
    parts = path.split(os.sep)
    if not path.endswith(".py") or "site-packages" in parts or "dist-packages" in parts:
        return False
    return not os.path.realpath(path).startswith(_LIBRARIES)


def imported() -> dict[str, str]:
    """``{absolute path: module name}`` of the user's modules that this process has imported."""
    found: dict[str, str] = {}
    own = __name__.partition(".")[0]
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if isinstance(path, str) and name.partition(".")[0] != own and name != "__main__" and is_local(path):
            found.setdefault(os.path.abspath(path), name)
            if len(found) >= MOST_FILES:
                break
    return found


def reachable(trees: Iterable[tuple[ast.AST, str]], folders: list[str]) -> dict[str, str]:
    """``{absolute path: module name}`` of the files in ``folders`` that code imports, directly or through each other.

    Args:
        trees: syntax trees, each with the folder that its relative imports start from.
        folders: where absolute imports are looked for.
    """
    found: dict[str, str] = {}
    todo = list(trees)
    while todo and len(found) < MOST_FILES:
        tree, here = todo.pop()
        for bases, name in _imports(tree, here, folders):
            for base in bases:
                for path in _files(base, name):
                    if path in found or not is_local(path):
                        continue
                    found[path] = name
                    source = read(path)
                    below = literals.parse(source) if source is not None else None
                    if below is not None:
                        todo.append((below, os.path.dirname(path)))
    return found


def _imports(tree: ast.AST, here: str, folders: list[str]) -> Iterable[tuple[list[str], str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield folders, alias.name
        elif isinstance(node, ast.ImportFrom):
            bases = folders
            if node.level:
                base = here
                for _ in range(node.level - 1):
                    base = os.path.dirname(base)
                bases = [base]
            for alias in node.names:
                yield bases, f"{node.module}.{alias.name}" if node.module else alias.name


def _files(base: str, name: str) -> Iterable[str]:
    path = base
    for part in name.split("."):
        path = os.path.join(path, part)
        for file in (os.path.join(path, "__init__.py"), path + ".py"):
            if os.path.isfile(file):
                yield os.path.abspath(file)
                break
        if not os.path.isdir(path):
            return


def read(path: str) -> str | None:
    """The text of a source file within the bounds; None where there is none."""
    try:
        if os.path.getsize(path) > MOST_FILE:
            return None
        with open(path, encoding="utf-8", errors="replace") as f:
            return f.read(MOST_FILE)
    except OSError:
        return None


def examine(paths: dict[str, str], patience: float) -> tuple[list[Module], list[str]]:
    """The files with hash and state, and remarks about what could not be found out."""
    modules = [Module(name, path, digest(path), root=repository.root_of(os.path.dirname(path)))
               for path, name in paths.items()]
    remarks = []
    for root in sorted({m.root for m in modules if m.root}):
        mine = [m for m in modules if m.root == root]
        try:
            known, changed = repository.tracked(root, [m.path for m in mine], patience)
        except repository.GitError as error:
            remarks.append(f"{root}: {error}")
            for module in mine:
                module.state = "unknown"
            continue
        for module in mine:
            module.state = (
                "untracked" if module.path not in known else "changed" if module.path in changed else "tracked"
            )
    return sorted(modules, key=lambda m: m.path), remarks


def digest(path: str) -> str:
    """SHA-256 of a file, kept as long as its time and size stay."""
    try:
        info = os.stat(path)
    except OSError:
        return ""
    return _digest(path, info.st_mtime_ns, info.st_size)


@functools.lru_cache(maxsize=2 * MOST_FILES)
def _digest(path: str, mtime: int, size: int) -> str:
    try:
        with open(path, "rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError:
        return ""


def masked(path: str) -> tuple[str, frozenset[str]] | None:
    """A file's source by the rules for secrets, and the values that they found; None where it is too large or gone."""
    try:
        info = os.stat(path)
    except OSError:
        return None
    return _masked(path, info.st_mtime_ns, info.st_size)


@functools.lru_cache(maxsize=2 * MOST_FILES)
def _masked(path: str, mtime: int, size: int) -> tuple[str, frozenset[str]] | None:
    source = read(path)
    if source is None:
        return None
    found: set[str] = set()
    return literals.mask_python(source, found), frozenset(found)


def place(module: Module, folder: str) -> str:
    """Where a module's source lies in the bundle: as in its repository, else as beside the notebook, else by name."""
    for base in (module.root, folder):
        if base and module.path.startswith(base + os.sep):
            return "modules/" + os.path.relpath(module.path, base).replace(os.sep, "/")
    return "modules/elsewhere/" + module.name.replace(".", "/") + ".py"


def to_dict(module: Module, at: str) -> dict[str, Any]:
    """A line of the list of modules; ``at`` is where its source lies, or empty."""
    return {"name": module.name, "path": module.path, "sha256": module.sha256, "state": module.state, "file": at}
