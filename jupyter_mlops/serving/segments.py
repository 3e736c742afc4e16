"""What captured requests look like on disk before they are Parquet, and who may take how much room.

Below ``endpoints/<e>/capture/``, all with mode 0700 and 0600:

    spool/<d>/<YYYYMMDDHH>-<pid>-<random>.rec      appended by the gateway (recorder.py); locked while it is
    data/deployment=<d>/date=YYYY-MM-DD/hour=HH/part-<segment>.parquet     made of segments (collector.py)
    truth/inbox*.rec  truth/part-<digest>.parquet  ground truth as it came, and as Parquet
    lost.json                                      what could not be kept, by deployment and cause
    cleared.json                                   ``{"before": seconds}``: what is older was deleted
    collect.lock                                   one collector at a time

A segment begins with :data:`MAGIC`; then come records: length and CRC-32 of the payload, kind, payload. The first one
is a DESCRIPTION: deployment, model, signature and masked columns, as JSON, so that a segment can be read when its
deployment is long gone. A CALL is one request: when, how long, its id, the canonical SCORE body (``payload.py``) and
the answer. A TRUTH is ``{"at", "rows": [{"correlation_id", "row", "value"}]}``. Whoever was killed leaves a torn tail:
a reader stops there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import Unavailable

MAGIC = b"JMCAP\x00\x00\x01"
HEAD = struct.Struct(">IIB")
DESCRIPTION, CALL, TRUTH = 1, 2, 3
#: Bytes; a longer record is a broken file.
MAX_RECORD = 1 << 30
#: When (seconds since the epoch), milliseconds it took, flags, lengths of id, body and answer.
_CALL = struct.Struct(">ddBHII")
_NO_INPUT, _NO_OUTPUT, _RAW = 1, 2, 4
FOLDER = "capture"
#: Seconds for which another collector is waited for.
PATIENCE = 120.0
#: Bytes that a deployment keeps on disk unless ``max_bytes`` says otherwise.
DEFAULT_MAX_BYTES = 1024 * 1024 * 1024


@dataclass(frozen=True)
class Captured:
    """One request. ``body`` is the SCORE body, or, if ``raw``, what the caller sent; None: not to be captured."""

    at: float
    latency_ms: float
    ident: str
    body: bytes | None
    answer: bytes | None
    raw: bool = False


def pack(kind: int, payload: bytes) -> bytes:
    """A record."""
    return HEAD.pack(len(payload), zlib.crc32(payload), kind) + payload


def pack_call(call: Captured) -> bytes:
    """The record of a request."""
    ident = call.ident.encode("utf-8", "replace")[:65535]
    flags = (_NO_INPUT * (call.body is None)) | (_NO_OUTPUT * (call.answer is None)) | (_RAW * call.raw)
    body, answer = call.body or b"", call.answer or b""
    head = _CALL.pack(call.at, call.latency_ms, flags, len(ident), len(body), len(answer))
    return pack(CALL, b"".join((head, ident, body, answer)))


def unpack_call(payload: bytes) -> Captured:
    """The request in a CALL's payload.

    Raises:
        ValueError: it is none.
    """
    try:
        at, latency, flags, *lengths = _CALL.unpack_from(payload)
    except struct.error as error:
        raise ValueError(f"no request: {error}") from None
    start = _CALL.size
    if start + sum(lengths) != len(payload):
        raise ValueError("no request: its lengths do not fit")
    parts = []
    for length in lengths:
        parts.append(payload[start : start + length])
        start += length
    return Captured(at, latency, parts[0].decode("utf-8", "replace"), None if flags & _NO_INPUT else parts[1],
                    None if flags & _NO_OUTPUT else parts[2], bool(flags & _RAW))


@dataclass
class Read:
    """What reading a segment came to: ``damaged`` records that were skipped, bytes of a ``torn`` tail."""

    damaged: int = 0
    torn: int = 0


def read(path: Path, outcome: Read | None = None) -> Iterator[tuple[int, bytes]]:
    """(kind, payload) of every sound record, as far as the file goes at the moment.

    A record whose sum is wrong is skipped; a length that cannot be ends the reading, as does a torn tail.
    """
    outcome = outcome if outcome is not None else Read()
    with open(path, "rb") as f:
        size = os.fstat(f.fileno()).st_size
        if f.read(len(MAGIC)) != MAGIC:
            outcome.torn += size
            return
        at = len(MAGIC)
        while at < size:
            head = f.read(HEAD.size)
            if len(head) < HEAD.size:
                outcome.torn += size - at
                return
            length, crc, kind = HEAD.unpack(head)
            if length > MAX_RECORD or at + HEAD.size + length > size:
                outcome.torn += size - at
                return
            payload = f.read(length)
            if len(payload) < length:  # it was cut meanwhile
                outcome.torn += size - at
                return
            at += HEAD.size + length
            if zlib.crc32(payload) == crc:
                yield kind, payload
            else:
                outcome.damaged += 1


# -- ground truth ----------------------------------------------------------------------------------------------------


def add_truth(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Keep ground truth, ``{"correlation_id", "row", "value"}`` each; on disk when this returns.

    Raises:
        OSError: the disk is full, or fails; then nothing of it is kept.
    """
    data = pack(TRUTH, json.dumps({"at": time.time(), "rows": rows}).encode("ascii"))
    for made in (folder, folder / "truth"):
        with contextlib.suppress(FileExistsError):
            os.mkdir(made, 0o700)
    while True:
        fd = os.open(folder / "truth" / "inbox.rec", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if not _same(fd, folder / "truth" / "inbox.rec"):
                continue  # a collector took it
            end = os.fstat(fd).st_size
            try:
                _write_at(fd, end, data if end else MAGIC + data)
                os.fsync(fd)
            except OSError:
                os.ftruncate(fd, end)
                raise
            return
        finally:
            os.close(fd)


def _same(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _write_at(fd: int, offset: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


# -- what was lost -----------------------------------------------------------------------------------------------------


def count_lost(folder: Path, deployment: str, losses: dict[str, int]) -> bool:
    """Add to ``lost.json``, shared by gateway and collector; False when it is busy or the disk is full.

    Causes: ``queue`` and ``disk`` (requests that were not written), ``size`` (requests too large), ``damaged`` (records
    that could not be read), ``unfit`` (values written as null), ``removed_files`` and ``removed_bytes`` (the oldest,
    which made room).
    """
    try:
        fd = os.open(folder / "lost.json", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        known = _losses(os.pread(fd, 1 << 20, 0))
        mine = known.setdefault(deployment, {})
        for cause, count in losses.items():
            mine[cause] = mine.get(cause, 0) + count
        text = json.dumps(known).encode("ascii")
        os.pwrite(fd, text, 0)
        os.ftruncate(fd, len(text))
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


def lost(folder: Path) -> dict[str, dict[str, int]]:
    """Deployment → cause → count."""
    try:
        return _losses((folder / "lost.json").read_bytes())
    except OSError:
        return {}


def _losses(text: bytes) -> dict[str, dict[str, int]]:
    try:
        known = json.loads(text)
    except ValueError:
        return {}
    if not isinstance(known, dict):
        return {}
    return {str(d): {str(k): int(v) for k, v in causes.items() if isinstance(v, int)}
            for d, causes in known.items() if isinstance(causes, dict)}


# -- room --------------------------------------------------------------------------------------------------------------


@dataclass(order=True)
class Kept:
    """A file of captured data; ``hour`` as ``YYYYMMDDHH``."""

    hour: str
    changed: float
    size: int = field(compare=False)
    path: Path = field(compare=False)


def kept(folder: Path, deployment: str) -> list[Kept]:
    """All segments and Parquet files of a deployment, the oldest first."""
    found = []
    for entry in _entries(folder / "spool" / deployment):
        if entry.name.endswith(".rec"):
            found.append(_kept(entry, entry.name[:10]))
    for date in _entries(folder / "data" / f"deployment={deployment}"):
        for hour in _entries(Path(date.path)):
            key = date.name.removeprefix("date=").replace("-", "") + hour.name.removeprefix("hour=")
            found += [_kept(e, key) for e in _entries(Path(hour.path)) if e.name.endswith(".parquet")]
    return sorted(k for k in found if k is not None)


def deployments(folder: Path) -> list[str]:
    """Names of the deployments of which something was captured."""
    names = {e.name for e in _entries(folder / "spool")}
    names |= {e.name.removeprefix("deployment=") for e in _entries(folder / "data")}
    return sorted(n for n in names if not n.startswith("."))


def make_room(folder: Path, deployments: Sequence[str], limit: int, spare: Path | None = None) -> int:
    """Remove the oldest files of some deployments until the rest has at most ``limit`` bytes; returns what it has.

    What goes is counted. ``spare``, a segment that is being written, stays.
    """
    files = sorted((k, d) for d in deployments for k in kept(folder, d))
    total = sum(k.size for k, _ in files)
    losses: dict[str, dict[str, int]] = {}
    for k, deployment in files:
        if total <= limit:
            break
        if k.path == spare or (k.path.suffix == ".rec" and being_written(k.path)):
            continue
        with contextlib.suppress(OSError):
            os.unlink(k.path)
            total -= k.size
            lost = losses.setdefault(deployment, {"removed_files": 0, "removed_bytes": 0})
            lost["removed_files"] += 1
            lost["removed_bytes"] += k.size
            if k.path.suffix == ".parquet":
                for parent in (k.path.parent, k.path.parent.parent):
                    os.rmdir(parent)  # raises, and so ends, at the first that is not empty
    for deployment, lost in losses.items():
        count_lost(folder, deployment, lost)
    return total


@contextlib.contextmanager
def locked(folder: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Nobody else collects meanwhile.

    Raises:
        Unavailable: another one has not ended after ``patience`` seconds.
    """
    fd = os.open(folder / "collect.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise Unavailable("captured data is being collected", "try again in a minute") from None
                time.sleep(0.05)
        yield
    finally:
        os.close(fd)


def being_written(path: Path) -> bool:
    """Whether a living process holds the segment's lock."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def hour_of(moment: float) -> str:
    """``YYYYMMDDHH`` in UTC."""
    return time.strftime("%Y%m%d%H", time.gmtime(moment))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _kept(entry: os.DirEntry[str], hour: str) -> Kept | None:
    try:
        info = entry.stat(follow_symlinks=False)
    except OSError:
        return None
    return Kept(hour, info.st_mtime, info.st_size, Path(entry.path))
