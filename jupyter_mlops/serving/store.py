"""Model folders: what is known of one before it is loaded, and a safe copy of it.

Loading a model runs its code, so nothing here loads it: the ``MLmodel`` file is YAML, the rest is bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ..core.errors import Refused
from ..runtime.parcel import sha256
from .archive import check_archive
from .places import sync
from .signature import from_mlmodel, read_mlmodel

#: A model folder with more files than this is none.
MAX_FILES = 100_000
_SKLEARN_FORMATS = ("skops", "pickle", "cloudpickle")
_TORCH_PICKLE = "mlflow.pytorch.pickle_module"
#: Forms of an answer that ``client/onnx.py`` writes into the metadata of the models that it makes.
_ANSWERS = ("array", "records")
_LIGHTGBM = "lightgbm.basic.Booster"


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
    native = _native(flavors, document.get("metadata"))
    if native and native["kind"] == "torch":
        native["file"] = "model.pth" if (folder / native["data"] / "model.pth").is_file() else "model.pt2"
    return {"schema": 1, "signature": {**signature.document, "type_hint": signature.type_hint},
            "native": native}


def describe_script(archive: Path, script: str, model_dir: Path | None = None) -> dict[str, Any]:
    """``{"schema", "signature", "native", "script"}`` of a deployment with a scoring script.

    Args:
        archive: a zip of the code.
        script: path of the script in it.
        model_dir: any folder of files, with or without an MLmodel file; the signature is empty when that has none.

    Raises:
        Refused: the zip is none, is not safe or does not hold the script.
    """
    names = check_archive(archive)
    wanted = str(PurePosixPath(script.replace("\\", "/")))
    if wanted not in names:
        near = [n for n in names if n.endswith(".py")]
        shown = ", ".join(near[:5]) + (" and others" if len(near) > 5 else "")
        raise Refused(f"there is no scoring script {script!r} in the code",
                      f"it has {shown}" if near else "it has no Python file at all")
    signature: dict[str, Any] = {}
    if model_dir is not None and (model_dir / "MLmodel").is_file():
        with contextlib.suppress(Refused):
            found = from_mlmodel(read_mlmodel(model_dir))
            signature = {**found.document, "type_hint": found.type_hint}
    return {"schema": 1, "signature": signature, "native": None,
            "script": {"file": wanted, "sha256": sha256(archive)}}


def _native(flavors: dict[str, Any], metadata: Any) -> dict[str, Any] | None:
    """How ``runtime.loading`` loads a model without MLflow, or None.

    Models with code of their own are left to MLflow; so are those whose MLmodel file is not as MLflow writes it.
    """
    pyfunc = flavors["python_function"]
    for kind in ("sklearn", "pytorch", "xgboost", "lightgbm", "onnx"):
        flavor = flavors.get(kind)
        if pyfunc.get("loader_module") != f"mlflow.{kind}" or not isinstance(flavor, dict):
            continue
        if pyfunc.get("code") or flavor.get("code"):
            return None
        config = pyfunc.get("config") or {}
        if not isinstance(config, dict) or set(config) - ({"device"} if kind == "pytorch" else set()):
            return None
        found = _NATIVE[kind](pyfunc, flavor)
        if found and kind == "onnx" and isinstance(metadata, dict) and metadata.get("mlops.answer") in _ANSWERS:
            found.update(answer=metadata["mlops.answer"], refuses=str(metadata.get("mlops.refuses") or "").split(","))
        return found
    return None


def _inside(path: Any) -> bool:
    """Whether this is the path of something in the model folder."""
    return isinstance(path, str) and bool(path) and not (
        PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts)


def _sklearn(pyfunc: dict[str, Any], flavor: dict[str, Any]) -> dict[str, Any] | None:
    file, how = flavor.get("pickled_model"), flavor.get("serialization_format")
    if not _inside(file) or how not in _SKLEARN_FORMATS or file != pyfunc.get("model_path", file):
        return None
    return {"kind": "sklearn", "file": file, "format": how, "trusted": flavor.get("skops_trusted_types"),
            "predict": str(pyfunc.get("predict_fn") or "predict")}


def _torch(pyfunc: dict[str, Any], flavor: dict[str, Any]) -> dict[str, Any] | None:
    data = flavor.get("model_data")
    # Another pickle module than MLflow's own needs MLflow, which knows how to call it.
    if not _inside(data) or pyfunc.get("pickle_module_name", _TORCH_PICKLE) != _TORCH_PICKLE:
        return None
    device = (pyfunc.get("config") or {}).get("device")
    return {"kind": "torch", "data": data, "device": device if isinstance(device, str) else None}


def _xgboost(pyfunc: dict[str, Any], flavor: dict[str, Any]) -> dict[str, Any] | None:
    if not _inside(flavor.get("data")):
        return None
    return {"kind": "xgboost", "data": flavor["data"], "class": str(flavor.get("model_class", "xgboost.core.Booster"))}


def _lightgbm(pyfunc: dict[str, Any], flavor: dict[str, Any]) -> dict[str, Any] | None:
    how, name = flavor.get("serialization_format", "cloudpickle"), str(flavor.get("model_class", _LIGHTGBM))
    if not _inside(flavor.get("data")) or (name != _LIGHTGBM and how not in _SKLEARN_FORMATS):
        return None
    return {"kind": "lightgbm", "data": flavor["data"], "class": name, "format": how,
            "trusted": flavor.get("skops_trusted_types")}


def _onnx(pyfunc: dict[str, Any], flavor: dict[str, Any]) -> dict[str, Any] | None:
    options = flavor.get("onnx_session_options")
    if not _inside(flavor.get("data")) or not isinstance(options, dict | None):
        return None
    return {"kind": "onnx", "data": flavor["data"], "providers": flavor.get("providers"), "options": options}


_NATIVE = {"sklearn": _sklearn, "pytorch": _torch, "xgboost": _xgboost, "lightgbm": _lightgbm, "onnx": _onnx}


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
    known = (folder / "MLmodel").is_file()
    digest = hashlib.sha256((folder / "MLmodel").read_bytes() if known else b"")
    for name, entry, info in sorted(_files(folder), key=lambda item: str(item[0])):
        if stat.S_ISREG(info.st_mode):
            digest.update(f"{name}\0{info.st_size}\n".encode("utf-8", "surrogateescape"))
            if not known:  # a folder of files for a script: nothing names its version
                digest.update(sha256(entry.path).encode())
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
        sync(new)
        if target.exists():
            old = target.with_name(f".gone-{os.urandom(6).hex()}")
            os.replace(target, old)
            os.replace(new, target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(new, target)
        sync(target.parent)
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
