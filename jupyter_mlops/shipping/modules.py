"""Modules that a job cannot import by itself: those that lie beside the notebook rather than among installed ones."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import io
import os
import site
import sys
import sysconfig
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from ..core import syntax
from ..core.errors import Refused

#: Files of a local package that is sent whole, and bytes of one that is no source.
MAX_FILES = 2000
MAX_DATA = 1 << 20
_PRUNED = {"__pycache__", "node_modules", "site-packages", "dist-packages"}
_OURS = __name__.partition(".")[0]


@cache
def _installed_roots() -> tuple[str, ...]:
    paths = [sysconfig.get_path(k) for k in ("stdlib", "platstdlib", "purelib", "platlib")]
    paths += [*site.getsitepackages(), site.getusersitepackages()]
    return tuple({os.path.realpath(p) + os.sep for p in paths if p})


def is_installed(path: str) -> bool:
    """Whether a file lies where Python or pip put it."""
    real = os.path.realpath(path)
    return real.startswith(_installed_roots()) or bool({"site-packages", "dist-packages"} & set(real.split(os.sep)))


def locations(name: str) -> list[str]:
    """The file of a top-level module or the folders of a package, when it is local; else an empty list.

    Nothing is executed: what is not imported yet is only looked for.
    """
    if name in sys.stdlib_module_names or name in ("__main__", _OURS):
        return []
    module = sys.modules.get(name)
    try:
        spec = getattr(module, "__spec__", None) or importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        spec = None
    folders = list(getattr(module, "__path__", None) or getattr(spec, "submodule_search_locations", None) or [])
    origin = getattr(module, "__file__", None) or getattr(spec, "origin", None)
    if folders:
        found = [f for f in folders if isinstance(f, str) and os.path.isdir(f)]
    else:
        found = [origin] if isinstance(origin, str) and os.path.isfile(origin) else []
    return [os.path.realpath(f) for f in found if not is_installed(f)]


@dataclass
class Sources:
    """Local modules that go with a job, each with its hash, and what they import in turn.

    Attributes:
        found: ``{name: (bytes, sha256)}`` of top-level modules.
    """

    limit: int
    found: dict[str, tuple[int, str]] = field(default_factory=dict)
    _files: dict[str, bytes] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)

    @property
    def named(self) -> frozenset[str]:
        """All top-level modules that were asked for or are imported by local ones, installed ones too."""
        return frozenset(self._seen)

    def add(self, names: Iterable[str]) -> None:
        """Add the local ones among top-level modules, and the local modules that those import.

        Raises:
            Refused: they are too large, or too many files.
        """
        todo = [n for n in names if n]
        while todo:
            name = todo.pop().partition(".")[0]
            if name in self._seen:
                continue
            self._seen.add(name)
            places = locations(name)
            if not places:
                continue
            files: dict[str, bytes] = {}
            for place in places:
                self._read(name, place, files)
            if not files:
                continue
            digest = hashlib.sha256()
            for path in sorted(files):
                digest.update(path.encode() + b"\0" + hashlib.sha256(files[path]).digest())
            self.found[name] = (sum(map(len, files.values())), digest.hexdigest())
            self._files |= files
            for path, data in files.items():
                if path.endswith(".py"):
                    todo += imports(data)

    def _read(self, name: str, place: str, files: dict[str, bytes]) -> None:
        if os.path.isfile(place):
            self._take(os.path.basename(place), place, files)
            return
        for folder, inner, names in os.walk(place):
            inner[:] = sorted(d for d in inner if not _pruned(folder, d))
            for file in sorted(names):
                path = os.path.join(folder, file)
                plain = file.endswith((".py", ".pyi", ".so"))
                if file.startswith(".") or file.endswith((".pyc", ".pyo")) or not os.path.isfile(path):
                    continue
                # A namespace package may be any folder: of that only sources go.
                whole = os.path.exists(os.path.join(place, "__init__.py")) and os.path.getsize(path) <= MAX_DATA
                if plain or whole:
                    self._take(os.path.join(name, os.path.relpath(path, place)), path, files)
            if len(files) > MAX_FILES:
                raise Refused(
                    f"the local package {name} ({place}) has more than {MAX_FILES} files",
                    "install it (pip install), or import it in the cell and use --no-ship",
                )

    def _take(self, arcname: str, path: str, files: dict[str, bytes]) -> None:
        with open(path, "rb") as f:
            files[arcname] = f.read(self.limit + 1)
        total = sum(map(len, files.values())) + sum(size for size, _ in self.found.values())
        if total > self.limit:
            raise Refused(
                f"local modules are larger than what may be shipped ({path})",
                "install the package (pip install), or raise the limit: --ship-limit",
            )

    def archive(self) -> bytes:
        """A zip of all files, the same bytes for the same files; empty without any."""
        if not self._files:
            return b""
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for path in sorted(self._files):
                archive.writestr(zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0)), self._files[path])
        return out.getvalue()


def _pruned(folder: str, name: str) -> bool:
    return name in _PRUNED or name.startswith(".") or os.path.exists(os.path.join(folder, name, "pyvenv.cfg"))


def imports(source: bytes) -> list[str]:
    """Names of the modules that source imports; none where it is no Python."""
    try:
        tree = syntax.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return []
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
    return names


def importable(module: Any) -> bool:
    """Whether a job can get a module by its name."""
    name = getattr(module, "__name__", "")
    if not name or name == "__main__":
        return False
    if sys.modules.get(name) is module and getattr(module, "__spec__", None) is not None:
        return True
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError, AttributeError):
        return False
