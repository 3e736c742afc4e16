"""The gateway's side of capture: sampled requests and their answers, written to segments beside the scoring.

:meth:`Recorder.take` puts references into a bounded queue and returns; one thread masks, frames and appends them to
segments (``segments.py`` has the layout), at the latest a second later. Whatever goes wrong there (a full disk, a
folder that is gone, more requests than the disk takes) costs captured requests, which are counted, and never an answer.

A segment is of one deployment and one hour. It is locked while it is written, so that whoever finds it unlocked knows
that it is finished, also when the gateway was killed. Its deployment keeps at most ``max_bytes`` on disk, segments and
Parquet together: the oldest go first.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from random import random
from typing import Any

from . import segments
from .masking import input_names, mask_input, mask_output
from .places import Places, read_json

log = logging.getLogger(__name__)

#: Requests and bytes that may wait for the disk; over them requests are not captured.
MAX_WAITING = 20_000
MAX_WAITING_BYTES = 64 * 1024 * 1024
#: Bytes after which a segment is followed by another.
SEGMENT_BYTES = 16 * 1024 * 1024
#: Bytes of the disk that capture leaves to others.
RESERVE = 64 * 1024 * 1024
#: Seconds between the first request that waits and the writing: what a kill of the gateway can lose.
PAUSE = 0.2
#: Seconds between looks at segments whose hour is over.
TICK = 5.0
#: Records after which the thread lets others run, and for how long.
_BATCH, _BREATH = 256, 0.0005

_Item = tuple[str, str, Mapping[str, Any], str, bytes, bytes, bytes, float, float]


class Counts:
    """Requests of one deployment since the start: written, and not captured though they were sampled."""

    __slots__ = ("captured", "losses", "refused", "told")

    def __init__(self) -> None:
        self.captured = 0
        self.refused = 0  # changed by the event loop only, all else by the thread only
        self.losses: dict[str, int] = {}
        self.told: dict[str, int] = {}  # what of them lost.json has

    def lose(self, cause: str, count: int = 1) -> None:
        self.losses[cause] = self.losses.get(cause, 0) + count

    @property
    def dropped(self) -> int:
        return self.refused + sum(list(self.losses.values()))

    def untold(self) -> dict[str, int]:
        """Losses that are not in lost.json yet."""
        now = {**self.losses, "queue": self.refused}
        return {cause: n - self.told.get(cause, 0) for cause, n in now.items() if n > self.told.get(cause, 0)}


class Recorder:
    """Writes captured requests; every method but :meth:`close` returns at once and may be called by the event loop.

    Args:
        places: of the workspace.
        reserve: bytes that stay free on the disk.
    """

    def __init__(self, places: Places, reserve: int = RESERVE) -> None:
        self.places = places
        self.reserve = reserve
        self._queue: deque[_Item] = deque()
        self._bytes = 0  # taken in, and written or dropped: two counters, each changed by one thread only
        self._done = 0
        self._counts: dict[tuple[str, str], Counts] = {}
        self._open: dict[tuple[str, str], _Segment] = {}
        self._names: dict[tuple[str, str], tuple[Any, list[str]]] = {}
        self._wake = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None

    def wants(self, settings: Mapping[str, Any] | None) -> bool:
        """Whether a request of a deployment with this ``data_collector`` is in the sample: one draw."""
        if not settings:
            return False
        rate = settings.get("sampling_rate", 1.0)
        if rate < 1.0 and random() >= rate:
            return False
        collections = settings.get("collections") or {}
        return _enabled(collections, "model_inputs") or _enabled(collections, "model_outputs")

    def take(self, endpoint: str, deployment: str, settings: Mapping[str, Any], request_id: str, body: bytes,
             score: bytes, answer: bytes, at: float, latency_ms: float) -> None:
        """Have a request written soon, or count it as dropped.

        Args:
            settings: the deployment's ``data_collector``.
            body: what the caller sent; used when there is no ``score``.
            score: the canonical SCORE body.
            answer: the scorer's JSON.
            at: when it arrived, in seconds since the epoch.
        """
        key = (endpoint, deployment)
        counts = self._counts.get(key)
        if counts is None:
            counts = self._counts[key] = Counts()
        size = len(score) + len(answer) if score else len(body) + len(answer)
        if self._closing or len(self._queue) >= MAX_WAITING or self._bytes - self._done + size > MAX_WAITING_BYTES:
            counts.refused += 1
            return
        self._bytes += size
        self._queue.append((endpoint, deployment, settings, request_id, b"" if score else body, score, answer, at,
                            latency_ms))
        if not self._wake.is_set():
            self._wake.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
                self._thread.start()

    def counts(self, endpoint: str, deployment: str) -> tuple[int, int]:
        """(captured, dropped) of a deployment since the start."""
        counts = self._counts.get((endpoint, deployment))
        return (counts.captured, counts.dropped) if counts else (0, 0)

    def close(self, timeout: float = 5.0) -> None:
        """Write what waits, and finish the segments; what is not written after ``timeout`` seconds is lost."""
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout)

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            self._wake.wait(TICK if self._open else None)
            if not self._closing and self._queue:
                time.sleep(PAUSE)  # what comes meanwhile is written by the same call
            self._wake.clear()
            try:
                self._write_all()
                self._tidy(everything=self._closing and not self._queue)
            except Exception:
                log.exception("capture failed")
            if self._closing and not self._queue:
                return

    def _write_all(self) -> None:
        while self._queue:
            # By the settings too: a request is masked by those under which it was taken.
            groups: dict[tuple[str, str, int], list[_Item]] = {}
            for _ in range(min(_BATCH, len(self._queue))):
                item = self._queue.popleft()
                groups.setdefault((item[0], item[1], id(item[2])), []).append(item)
            for (endpoint, deployment, _), items in groups.items():
                key = (endpoint, deployment)
                counts = self._counts[key]
                before = counts.captured + sum(counts.losses.values())
                try:
                    self._write(key, items, counts)
                except Exception as error:
                    level = logging.WARNING if isinstance(error, OSError) else logging.ERROR
                    log.log(level, "capture of %s/%s: %s", *key, error, exc_info=level == logging.ERROR)
                    counts.lose("disk", before + len(items) - counts.captured - sum(counts.losses.values()))
                    self._finish(key)
                finally:
                    self._done += sum(len(i[4]) + len(i[5]) + len(i[6]) for i in items)
            time.sleep(_BREATH)

    def _write(self, key: tuple[str, str], items: list[_Item], counts: Counts) -> None:
        settings = items[0][2]
        limit = int(settings.get("max_bytes") or segments.DEFAULT_MAX_BYTES)
        masked = frozenset(map(str, settings.get("masked_columns") or ()))
        collections = settings.get("collections") or {}
        inputs, outputs = (_enabled(collections, name) for name in ("model_inputs", "model_outputs"))
        names = self._input_names(key) if masked else []
        records: list[bytes] = []
        size = 0
        for _, _, _, ident, body, score, answer, at, latency in items:
            kept: bytes | None = (score or body) if inputs else None
            said: bytes | None = answer if outputs else None
            if masked:
                kept = None if kept is None else mask_input(bytes(kept), masked, names, raw=not score)
                said = None if said is None else mask_output(bytes(said), masked)
            record = segments.pack_call(segments.Captured(at, latency, ident, kept, said, raw=not score))
            if len(record) > limit // 8:
                counts.lose("size")
                continue
            records.append(record)
            size += len(record)
            if size > limit // 32:
                self._append(key, records, sorted(masked), limit, counts)
                records, size = [], 0
        if records:
            self._append(key, records, sorted(masked), limit, counts)

    def _input_names(self, key: tuple[str, str]) -> list[str]:
        """What the inputs of a deployment's model are called, in their order."""
        about = self.places.deployment(*key) / "model.json"
        stamp = _stamp(about)
        known = self._names.get(key)
        if known is None or (stamp is not None and known[0] != stamp):
            inputs = (read_json(about).get("signature") or {}).get("inputs") or []
            known = self._names[key] = (stamp, input_names(inputs))
        return known[1]

    def _append(self, key: tuple[str, str], records: list[bytes], masked: list[str], limit: int,
                counts: Counts) -> None:
        data = b"".join(records)
        segment = self._segment(key, masked, limit)
        if segment is None or segment.free() < self.reserve + len(data):
            counts.lose("disk", len(records))
            return
        if segment.unchecked + len(data) > limit // 16:
            # The room is made first, and some beyond, so that the bound holds at every moment.
            segment.unchecked = 0
            segments.make_room(segment.folder, key[1:], limit - limit // 16 - len(data), segment.path)
        segment.append(data)
        counts.captured += len(records)

    def _segment(self, key: tuple[str, str], masked: list[str], limit: int) -> _Segment | None:
        """The segment to append to: a new one for each hour, model and set of masked columns; None without a folder."""
        endpoint, deployment = key
        about = self.places.deployment(endpoint, deployment) / "model.json"
        state = (segments.hour_of(time.time()), _stamp(about), masked)
        segment = self._open.get(key)
        if segment is not None:
            same = segment.state == state or (state[1] is None and segment.state[0::2] == state[0::2])
            if same and segment.size < min(SEGMENT_BYTES, limit // 4) and not segment.gone():
                return segment
            self._finish(key)
        home = self.places.endpoint(endpoint)
        if not (home / "endpoint.json").is_file():
            return None  # it was deleted: its folder must not come back
        folder = home / segments.FOLDER
        published = read_json(home / "endpoint.json").get("deployments") or {}
        description = {
            "schema": 1, "endpoint": endpoint, "deployment": deployment, "masked": masked,
            "model": (published.get(deployment) or {}).get("model") or {},
            "signature": read_json(about).get("signature") or {},
        }
        segment = _Segment(folder, deployment, state)
        self._open[key] = segment
        segment.append(segments.MAGIC + segments.pack(segments.DESCRIPTION, json.dumps(description).encode("ascii")))
        segment.unchecked = limit  # whatever lies there from before is looked at first
        return segment

    def _finish(self, key: tuple[str, str]) -> None:
        segment = self._open.pop(key, None)
        if segment is not None:
            segment.close()

    def _tidy(self, everything: bool) -> None:
        hour = segments.hour_of(time.time())
        for key, segment in list(self._open.items()):
            if everything or segment.state[0] != hour or segment.gone():
                self._finish(key)
        for (endpoint, deployment), counts in list(self._counts.items()):
            untold = counts.untold()
            folder = self.places.endpoint(endpoint) / segments.FOLDER
            if untold and segments.count_lost(folder, deployment, untold):
                for cause, count in untold.items():
                    counts.told[cause] = counts.told.get(cause, 0) + count


class _Segment:
    """A file that is appended to, locked as long as it is open."""

    def __init__(self, folder: Path, deployment: str, state: tuple[Any, ...]) -> None:
        self.folder = folder
        self.state = state
        self.size = 0
        self.unchecked = 0
        spool = folder / "spool" / deployment
        for made in (folder, folder / "spool", spool):
            with contextlib.suppress(FileExistsError):
                os.mkdir(made, 0o700)
        # Never a name that was there before, here or on another machine: data is told apart by it.
        self.path = spool / f"{state[0]}-{os.getpid()}-{os.urandom(6).hex()}.rec"
        self.fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.fd, fcntl.LOCK_EX)

    def append(self, data: bytes) -> None:
        """Write all of it, or nothing.

        Raises:
            OSError: the disk is full, or fails.
        """
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self.fd, view) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self.fd, self.size)
                os.lseek(self.fd, self.size, os.SEEK_SET)
            raise
        self.size += len(data)
        self.unchecked += len(data)

    def free(self) -> int:
        """Bytes that are left on its disk."""
        info = os.fstatvfs(self.fd)
        return info.f_bavail * info.f_frsize

    def gone(self) -> bool:
        """Whether somebody removed it."""
        return os.fstat(self.fd).st_nlink == 0

    def close(self) -> None:
        with contextlib.suppress(OSError):
            if not self.size:
                os.unlink(self.path)
        os.close(self.fd)


def _enabled(collections: Mapping[str, Any], name: str) -> bool:
    """Collections are on unless they are switched off."""
    wanted = collections.get(name)
    return not (isinstance(wanted, Mapping) and wanted.get("enabled") is False)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_ino, info.st_mtime_ns
