"""Model folders: what is known of one before it is loaded, and a safe copy of it.

Loading a model runs its code, so nothing here loads it: the ``MLmodel`` file is YAML, the rest is bytes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ..core.errors import Refused
from .signature import from_mlmodel, read_mlmodel

#: A model folder with more files than this is none.
MAX_FILES = 100_000
_SKLEARN_FORMATS = ("skops", "pickle", "cloudpickle")


def describe_model(folder: Path) -> dict[str, Any]:
    """``{"schema", "signature", "native"}`` of an MLflow model folder.

    ``native`` says how the model is loaded without MLflow (``kind`` and what its loader takes), or is None when MLflow
    has to.

    Raises:
        Refused: it cannot be served; the hint says what to do.
    """
    document = read_mlmodel(folder)
    flavors = document.get("flavors")
    flavors = flavors if isinstance(flavors, dict) else {}
    if not isinstance(flavors.get("python_function"), dict):
        raise Refused("the model has no python_function flavour", "log it with one of MLflow's Python flavours")
    signature = from_mlmodel(document)
    return {"schema": 1, "signature": {**signature.document, "type_hint": signature.type_hint},
            "sklearn": _sklearn(flavors), "native": _native(flavors)}


def _native(flavors: dict[str, Any]) -> dict[str, Any] | None:
    sklearn = _sklearn(flavors)
    return {"kind": "sklearn", **sklearn} if sklearn else None


def _sklearn(flavors: dict[str, Any]) -> dict[str, Any] | None:
    pyfunc, sklearn = flavors["python_function"], flavors.get("sklearn")
    if not isinstance(sklearn, dict) or pyfunc.get("loader_module") != "mlflow.sklearn":
        return None
    if pyfunc.get("code") or sklearn.get("code") or pyfunc.get("config"):
        return None
    file, how = sklearn.get("pickled_model"), sklearn.get("serialization_format")
    if not isinstance(file, str) or how not in _SKLEARN_FORMATS or file != pyfunc.get("model_path", file):
        return None
    if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
        return None
    return {"file": file, "format": how, "trusted": sklearn.get("skops_trusted_types"),
            "predict": str(pyfunc.get("predict_fn") or "predict")}


def _files(folder: Path) -> Iterator[tuple[PurePosixPath, os.DirEntry[str], os.stat_result]]:
    """Every file and folder below ``folder``, parents first.

    Raises:
        Refused: there is a link, or anything but files and folders.
    """
    pending = [(PurePosixPath(), folder)]
    seen = 0
    while pending:
        relative, path = pending.pop()
        with os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                info = entry.stat(follow_symlinks=False)
                name = relative / entry.name
                seen += 1
                if not (stat.S_ISDIR(info.st_mode) or stat.S_ISREG(info.st_mode)):
                    kind = "a link" if stat.S_ISLNK(info.st_mode) else "not a file"
                    raise Refused(f"the model folder has {str(name)!r} in it, which is {kind}",
                                  "a model is plain files; log it again")
                if seen > MAX_FILES:
                    raise Refused(f"the model folder has more than {MAX_FILES} files in it")
                yield name, entry, info
                if stat.S_ISDIR(info.st_mode):
                    pending.append((name, Path(entry.path)))


def fingerprint(folder: Path) -> str:
    """Changes when the model does: names and sizes of all files, and all of ``MLmodel``, which holds a unique id.

    Not their times: the same model fetched again is the same.
    """
    digest = hashlib.sha256((folder / "MLmodel").read_bytes())
    for name, _, info in sorted(_files(folder), key=lambda item: str(item[0])):
        if stat.S_ISREG(info.st_mode):
            digest.update(f"{name}\0{info.st_size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def copy_model(source: Path, target: Path) -> None:
    """Copy a model folder, so that ``target`` is either as before or complete; what was there is replaced.

    A copy and no hard links: an artifact that somebody overwrites in place must not change under a running scorer.

    Raises:
        Refused: links or special files in it, or too little space.
    """
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = list(_files(source))
    size = sum(info.st_size for _, _, info in found)
    free = shutil.disk_usage(target.parent).free
    if size + 64 * 1024 * 1024 > free:
        raise Refused(f"the model needs {size // 2**20} MB and the disk has {free // 2**20} MB left", "make room first")
    new = target.with_name(f".model-{os.urandom(6).hex()}")
    try:
        new.mkdir(mode=0o700)
        for name, entry, info in found:
            if stat.S_ISDIR(info.st_mode):
                (new / name).mkdir(mode=0o700)
            else:
                _copy_file(entry.path, new / name)
        _sync(new)
        if target.exists():
            old = target.with_name(f".gone-{os.urandom(6).hex()}")
            os.replace(target, old)
            os.replace(new, target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(new, target)
        _sync(target.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _copy_file(source: str, target: Path) -> None:
    # O_NOFOLLOW: a file that became a link since it was looked at is not followed.
    reading = os.open(source, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    with open(reading, "rb") as f, open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as g:
        shutil.copyfileobj(f, g, 1 << 20)
        g.flush()
        info = os.fstat(f.fileno())
        os.utime(g.fileno(), ns=(info.st_atime_ns, info.st_mtime_ns))
        os.fsync(g.fileno())


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
