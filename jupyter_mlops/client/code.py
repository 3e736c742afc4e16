"""The code of a scoring script as a zip: a folder, or one file with the local modules that it imports."""

from __future__ import annotations

import ast
import hashlib
import os
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..core import syntax
from ..core.errors import NotFound, ParameterError, Refused
from ..shipping.modules import imports

if TYPE_CHECKING:
    from .sync import Client

#: Most files and bytes of a folder that is sent.
MOST_FILES, MOST_BYTES = 20_000, 1 << 30
_PRUNED = {"__pycache__", "node_modules", "site-packages"}


def of_script(path: str | os.PathLike[str]) -> list[tuple[str, Path]]:
    """(name in the zip, file) of a script and of the modules beside it that it imports, directly or through each other.

    Raises:
        NotFound: there is no such file.
        ParameterError: it is no Python, or defines no ``run``.
    """
    script = Path(path)
    if not script.is_file():
        raise NotFound(f"there is no script {path}", "give the path of a Python file with init() and run(data)")
    check_script(script)
    root = script.resolve().parent
    found: dict[Path, str] = {script.resolve(): script.name}
    todo = [script.resolve()]
    while todo:
        for name in imports(todo.pop().read_bytes()):
            for file in _beside(root, name.partition(".")[0]):
                if file not in found and len(found) < MOST_FILES:
                    found[file] = file.relative_to(root).as_posix()
                    if file.suffix == ".py":
                        todo.append(file)
    return [(name, file) for file, name in found.items()]


def check_script(path: Path) -> None:
    """Raises ParameterError when a file is no Python, or has no ``run`` at its top."""
    try:
        tree = syntax.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, OSError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise ParameterError(f"{path.name} is no Python{line}: {str(error).splitlines()[0]}") from None
    names = {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))}
    names |= {t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
    names |= {a.asname or a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names}
    if "run" not in names:
        raise ParameterError(f"{path.name} has no function run(data)", "it is called with each request; init() once")


def _beside(root: Path, name: str) -> Iterator[Path]:
    if (root / f"{name}.py").is_file():
        yield root / f"{name}.py"
    elif (root / name / "__init__.py").is_file():
        yield from (file for _, file in of_folder(root / name))


def of_folder(path: str | os.PathLike[str]) -> list[tuple[str, Path]]:
    """(name in the zip, file) of all files of a folder but hidden and compiled ones.

    Raises:
        NotFound: there is no such folder.
        Refused: it is too large.
    """
    root = Path(path)
    if not root.is_dir():
        raise NotFound(f"there is no folder {path}", "code_configuration.code is a path relative to the file")
    found: list[tuple[str, Path]] = []
    total = 0
    for folder, inner, names in os.walk(root):
        inner[:] = sorted(
            d for d in inner if d not in _PRUNED and not d.startswith(".")
            and not os.path.exists(os.path.join(folder, d, "pyvenv.cfg"))
        )
        for name in sorted(names):
            file = Path(folder, name)
            if name.startswith(".") or name.endswith((".pyc", ".pyo")) or not file.is_file():
                continue
            total += file.stat().st_size
            found.append((file.relative_to(root).as_posix(), file))
            if len(found) > MOST_FILES or total > MOST_BYTES:
                raise Refused(
                    f"the folder {path} has more than {MOST_FILES} files or {MOST_BYTES >> 20} MB",
                    "keep data out of the folder of the code",
                )
    return found


def reference(files: list[tuple[str, Path]]) -> str:
    """``blob:<sha256>`` of the zip that :func:`upload` makes of files."""
    with tempfile.TemporaryDirectory(prefix="mlops-code-") as folder:
        return f"blob:{_zip(files, Path(folder) / 'code.zip')}"


def upload(client: Client, files: list[tuple[str, Path]]) -> str:
    """Send files as one zip, the same bytes for the same files; returns ``blob:<sha256>``."""
    with tempfile.TemporaryDirectory(prefix="mlops-code-") as folder:
        path = Path(folder) / "code.zip"
        digest = _zip(files, path)
        client.upload(path, digest)
    return f"blob:{digest}"


def _zip(files: list[tuple[str, Path]], path: Path) -> str:
    """Write the zip; returns its SHA-256."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, file in sorted(files):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            with archive.open(info, "w", force_zip64=True) as target, open(file, "rb") as source:
                while chunk := source.read(1 << 20):
                    target.write(chunk)
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
