"""Blobs: files named by their SHA-256, uploaded before the job that needs them.

They lie in ``<home>/blobs/``, 0700, each 0600. A job that starts gets a link of its own, so a blob is only the way
there: it goes with the job, and one that no waiting job names goes after a day.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..runtime import data, jobfolder
from .errors import ParameterError, Refused, TooLarge
from .resources.job import JobSpec, ShippedVariable

#: Most bytes of one blob.
MAX_BLOB = 2 << 30
#: Seconds for which a blob that nobody names is kept.
KEPT = 86_400.0

_DIGEST = re.compile(r"^[0-9a-f]{64}$")


def check_digest(text: str) -> str:
    """The text when it is a SHA-256 in lower-case hexadecimal.

    Raises:
        ParameterError: it is not.
    """
    if not _DIGEST.match(text):
        raise ParameterError(f"{text[:80]!r} is no SHA-256 in lower-case hexadecimal")
    return text


class Blobs:
    """The blobs of one workspace folder."""

    def __init__(self, home: Path) -> None:
        self.folder = home / "blobs"

    def path(self, digest: str) -> Path:
        """Where a blob lies, or would. Raises ParameterError."""
        return self.folder / check_digest(digest)

    def size(self, digest: str) -> int | None:
        """Bytes of a blob, None when it is not there; asking keeps it for another day."""
        path = self.path(digest)
        try:
            os.utime(path)
            return path.stat().st_size
        except FileNotFoundError:
            return None

    def receive(self, digest: str) -> Upload:
        """A new upload of that hash; the caller feeds it."""
        check_digest(digest)
        jobfolder.private_folder(str(self.folder))
        return Upload(self.path(digest))

    def adopt(self, path: Path, digest: str) -> None:
        """Make a blob of a file that lies in :attr:`folder` already."""
        os.replace(path, self.path(digest))

    def require_all(self, spec: JobSpec) -> None:
        """Raise Refused unless everything is there that a job's spec names."""
        for digest in named_by(spec.model_dump()):
            if self.size(digest) is None:
                raise Refused(f"the blob {digest} that the job names was not uploaded, or is gone", "upload it first")

    def place(self, digest: str, target: Path) -> bool:
        """Give a job its own copy, which shares the bytes where the file system can; False when the blob is gone.

        A repeated call changes nothing.
        """
        if target.exists():
            return True
        jobfolder.private_folder(str(target.parent))
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        try:
            os.link(self.path(digest), temporary)
        except FileNotFoundError:
            return False
        except OSError:  # a file system without links, or too many of them
            shutil.copyfile(self.path(digest), temporary)
            temporary.chmod(0o600)
        temporary.replace(target)
        return True

    def remove(self, digest: str) -> None:
        """Remove a blob; the jobs that were given it keep theirs."""
        self.path(digest).unlink(missing_ok=True)

    def sweep(self, named: Collection[str], now: float | None = None) -> list[str]:
        """Remove what nobody names and is older than :data:`KEPT` seconds, and uploads that broke off.

        Args:
            named: hashes that waiting jobs need.
            now: seconds since the epoch.

        Returns:
            names of the files that were removed.
        """
        now = time.time() if now is None else now
        gone = []
        try:
            entries = list(os.scandir(self.folder))
        except FileNotFoundError:
            return []
        for entry in entries:
            try:
                if entry.name not in named and now - entry.stat().st_mtime > KEPT:
                    os.unlink(entry.path)
                    gone.append(entry.name)
            except OSError:
                continue
        return gone


def put_inputs(blobs: Blobs, folder: Path, spec: JobSpec) -> None:
    """Give a job what it needs: ``inputs/payload.pkl``, ``context/bundle``, ``batch.zip``, ``code.zip`` and what its
    named inputs came as, ``data/NAME.zip``.

    Blobs that waiting jobs name are kept. When somebody removed one nevertheless, the rank that misses it says so.
    """
    inputs = Path(jobfolder.JobFolder(folder).inputs)
    if spec.cell is not None and spec.cell.payload:
        blobs.place(spec.cell.payload, inputs / "payload.pkl")
    if spec.context:
        blobs.place(spec.context, inputs / "context" / "bundle")
    if spec.code:
        blobs.place(spec.code, inputs / "code.zip")
    for name, given in spec.files.items():
        place = inputs / data.SHIPPED / name
        if given.blob and not place.exists():
            blobs.place(given.blob, place.with_name(name + data.ZIP))
    if spec.batch is not None and not (folder / "batch" / "model").exists():  # else an earlier attempt has unpacked it
        blobs.place(spec.batch.payload, inputs / "batch.zip")


def named_by(spec: Mapping[str, Any]) -> set[str]:
    """Hashes of the blobs that a job's spec names."""
    named = ((spec.get("cell") or {}).get("payload"), spec.get("context"), spec.get("code"),
             (spec.get("batch") or {}).get("payload"),
             *(given.get("blob") for given in (spec.get("inputs") or {}).values() if isinstance(given, dict)))
    return {digest for digest in named if digest}


def needed_blobs(tx: Any) -> set[str]:
    """Hashes that jobs name which have not started, and deployments with code of their own; for ``store.read``."""
    named: set[str] = set()
    for deployment in tx.page("deployment", limit=10_000)[0]:
        code = (deployment.spec.get("code_configuration") or {}).get("code")
        if code:
            named.add(code.removeprefix("blob:"))
    mark: int | None = None
    while True:
        page, mark = tx.page("job", phases=["Queued"], limit=200, before=mark)
        for job in page:
            named |= named_by(job.spec)
        if mark is None:
            return named


def returned(folder: Path) -> list[dict[str, Any]]:
    """The manifest of what a job brought back, as status; broken or missing: nothing."""
    entries = jobfolder.read_json(os.path.join(jobfolder.JobFolder(folder).returns, "manifest.json")).get("variables")
    found = []
    for entry in entries if isinstance(entries, list) else []:
        try:
            found.append(ShippedVariable.model_validate(entry).model_dump())
        except ValidationError:
            continue
    return found[:100]


class Upload:
    """A blob on its way in: :meth:`write` pieces, then :meth:`finish` or :meth:`abort`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        self._fd = os.open(self._temporary, flags, 0o600)
        self._open = True
        self._lock = threading.Lock()  # a connection may break off while a piece is being written
        self._hash = hashlib.sha256()
        self.count = 0

    def write(self, data: bytes) -> None:
        """Add a piece.

        Raises:
            TooLarge: there are more than :data:`MAX_BLOB` bytes.
        """
        self.count += len(data)
        if self.count > MAX_BLOB:
            raise TooLarge(f"a blob has at most {MAX_BLOB} bytes", "put the data into a file and read that")
        self._hash.update(data)
        view = memoryview(data)
        with self._lock:
            while view and self._open:
                view = view[os.write(self._fd, view):]

    def finish(self) -> None:
        """Make the blob known.

        Raises:
            ParameterError: the bytes do not have the hash that they were announced with; nothing is kept.
        """
        if self._hash.hexdigest() != self._path.name:
            self.abort()
            raise ParameterError("the bytes do not have the SHA-256 in the path", "send the file again")
        with self._lock:
            if self._open:
                os.fsync(self._fd)  # once its name is known nobody sends it again
        self._close()
        os.replace(self._temporary, self._path)

    def abort(self) -> None:
        """Keep nothing."""
        self._close()
        self._temporary.unlink(missing_ok=True)

    def _close(self) -> None:
        with self._lock:
            if self._open:
                self._open = False
                os.close(self._fd)
