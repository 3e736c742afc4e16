"""What a batch run takes from an endpoint: which deployment, and its model as one file that goes with the job."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ..core.errors import NotFound, Refused

#: What of a deployment's folder goes with a job.
_PARTS = ("model", "code")


def choose(endpoint: str, wanted: str, names: Sequence[str], traffic: Mapping[str, int]) -> str:
    """The deployment that scores: the named one, else the one with most of the traffic, else the only one.

    Raises:
        NotFound: there is none of that name, or none at all.
        Refused: there are several, and none has traffic.
    """
    if wanted:
        if wanted not in names:
            raise NotFound(f"endpoint {endpoint!r} has no deployment {wanted!r}",
                           "it has " + ", ".join(names) if names else "deploy a model to it first")
        return wanted
    busy = [name for name in names if traffic.get(name, 0) > 0]
    if busy:
        return max(busy, key=lambda name: traffic[name])
    if len(names) == 1:
        return names[0]
    if not names:
        raise NotFound(f"endpoint {endpoint!r} has no deployment", "deploy a model to it first")
    raise Refused(f"no deployment of endpoint {endpoint!r} has traffic", "name one with --deployment: "
                  + ", ".join(names))


class _Hashing:
    """A file that hashes what is written to it; it cannot be sought, so the zip is written straight on."""

    def __init__(self, f: Any) -> None:
        self._f = f
        self.hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        return cast(int, self._f.write(data))

    def flush(self) -> None:
        self._f.flush()


def pack(folder: Path, target: Path) -> str:
    """Write the model of a deployment's folder, with its ``model.json`` and code, as a zip; the SHA-256 of that.

    The same model gives the same bytes. Blocking; nothing is compressed, since weights hardly are.

    Raises:
        Refused: the deployment has no model yet, or none any more.
    """
    if not (folder / "model.json").is_file():
        raise Refused("the deployment has no model yet", "wait until it is ready")
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o600)
    try:
        with os.fdopen(fd, "wb") as f:
            out = _Hashing(f)
            with zipfile.ZipFile(cast(Any, out), "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
                for name, path in _files(folder):
                    entry = zipfile.ZipInfo(name)  # with the same date for all
                    entry.external_attr = 0o600 << 16
                    with open(path, "rb") as source, archive.open(entry, "w", force_zip64=True) as sink:
                        while piece := source.read(1 << 20):
                            sink.write(piece)
            f.flush()
            os.fsync(f.fileno())
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return out.hash.hexdigest()


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    yield "model.json", folder / "model.json"
    for part in _PARTS:
        for place, folders, names in os.walk(folder / part):
            folders.sort()
            for name in sorted(names):
                path = Path(place, name)
                if path.is_file() and not path.is_symlink():
                    yield str(path.relative_to(folder)), path
