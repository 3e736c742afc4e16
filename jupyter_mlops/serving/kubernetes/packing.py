"""What pods need of us, packed: models into parcels, our own code, the gateway's compiled modules."""

from __future__ import annotations

import io
import json
import os
import zipfile
from functools import lru_cache
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

from ...core.errors import Refused
from ...kube import packs
from ...runtime import bundle, parcel
from ..bundle import GATEWAY
from ..places import read_json, write_json
from .gatehouse import platform

_PACKAGES = ("core", "runtime", "serving", "compute")


def model_parcel(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The parcel of a prepared deployment; packed once.

    Args:
        folder: ``endpoints/<e>/<d>`` with ``model/``, ``model.json`` and perhaps ``code/``.

    Returns:
        its path and ``{"sha256", "size"}``.

    Raises:
        Refused: the folder holds links or special files.
    """
    target, note = folder / "parcel.zip", folder / "parcel.json"
    about = (folder / "model.json").read_bytes()
    entries = [(name, str(folder / name)) for name in ("model", "code", "model.json") if (folder / name).exists()]
    stamp = sha256(about).hexdigest()
    known = read_json(note)
    if known.get("of") == stamp and target.is_file() and target.stat().st_size == known.get("size"):
        return target, known
    try:
        known = {**parcel.pack(str(target), entries), "of": stamp}
    except parcel.ParcelError as error:
        raise Refused(f"the model cannot be sent: {error}", "a model is plain files; log it again") from error
    write_json(note, known)
    return target, known


@lru_cache(maxsize=1)
def gateway_zip() -> bytes:
    """The packages that a gateway is made of, the same for the same sources."""
    root = Path(__file__).resolve().parents[2]
    version = bundle.version()
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w") as archive:
        packs.add(archive, "jupyter_mlops/__init__.py", f'"""Jupyter MLOps, as far as a gateway needs it."""\n\n'
               f"__version__ = {version!r}\n".encode())
        packs.add(archive, "jupyter_mlops/streaming.py", (root / "streaming.py").read_bytes())
        for package in _PACKAGES:
            for path in sorted((root / package).rglob("*")):
                if path.suffix in (".py", ".css", ".js") and "migrations" not in path.parts:
                    packs.add(archive, f"jupyter_mlops/{path.relative_to(root).as_posix()}", path.read_bytes())
    return result.getvalue()


@lru_cache(maxsize=1)
def libraries() -> tuple[bytes, dict[str, Any]]:
    """A parcel of the compiled modules that this interpreter has, and ``about.json`` of it."""
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w") as archive:
        for name in GATEWAY:
            try:
                distribution = metadata.distribution(name)
            except metadata.PackageNotFoundError:
                continue
            for file in sorted(distribution.files or [], key=str):
                if ".." in file.parts or file.suffix in (".pyc", ".pyx", ".pxd", ".c", ".h", ".cpp", ".hpp", ".pyi"):
                    continue
                path = Path(os.fspath(file.locate()))
                if path.is_file():
                    packs.add(archive, file.as_posix(), path.read_bytes())
    data = result.getvalue()
    return data, {"platform": platform(), "sha256": sha256(data).hexdigest(), "parts": packs.part_count(len(data))}


def digest(*values: Any) -> str:
    """A short hash of JSON values and bytes."""
    result = sha256()
    for value in values:
        result.update(value if isinstance(value, bytes) else json.dumps(value, sort_keys=True).encode())
        result.update(b"\0")
    return result.hexdigest()[:20]
