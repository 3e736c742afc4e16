"""The journal: what a rank logs is appended to a file before the call returns; only the machine itself can lose it.

``journal/<attempt>-<rank>.bin`` holds records (:mod:`.records`) one after the other. All processes of a rank append to
the same file, each record by one ``write``. ``docs/job-folder.md`` says what readers may rely on.
"""

import errno
import os
import sys
import threading
import time
import weakref

from . import forks
from .records import MAGIC, MAX_PAYLOAD, Call, Metric, pack, pack_call, pack_metric, read

__all__ = ["MAGIC", "MAX_PAYLOAD", "Call", "Metric", "Writer", "pack", "pack_call", "pack_metric", "read"]

#: Seconds between two ``fdatasync``.
SYNC_PERIOD = 1.0
#: Bytes that wait in memory while the disk is full; beyond them logging waits for the disk.
MAX_HELD = 16 * 1024 * 1024
#: Undelivered bytes of a journal beyond which logging waits for the delivery.
MAX_BACKLOG = 4 * 1024 * 1024 * 1024
_CHECK_BACKLOG = 64 * 1024 * 1024
#: Milliseconds around now in which a stamp is taken for one of now.
_NOW = 2000
#: Points and series of which it is remembered that they were there.
_MAX_POINTS = 1024
_MAX_SERIES = 100000
_ROOMLESS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_sync = getattr(os, "fdatasync", os.fsync)
_writers = weakref.WeakSet()  # type: weakref.WeakSet[Writer]


class Writer:
    """Appends to the journal of one rank; may be used from several threads, and goes on in forked children.

    Args:
        path: the file; its folder is there already.
        backlog: called now and then, says how many bytes of the file are not delivered yet.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path, backlog=None):
        self.path = path
        self._backlog = backlog
        self._fd = self._open()
        self._held = []  # type: list[bytes] # records for which the disk had no room, oldest first
        self._held_bytes = 0
        self._told = False
        self._stamps = {}  # type: dict[tuple[str, str], list] # (run, key) → [last ms, {(step, value)} at that ms]
        self._floor = {}  # type: dict[tuple[str, str], int] # (run, key) → the step up to which points are there
        self._dirty = False
        self._unchecked = 0
        self._syncer = None  # type: threading.Thread | None
        # A signal handler may log, also in the middle of a call: it must not wait for the thread that it interrupts.
        self._lock = threading.RLock()
        _writers.add(self)

    def _open(self):
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)

    def go_on(self):
        """Drop from now on what a process before this one has written to the file already: each key up to its last
        step. It logs them again after it went back to a checkpoint, and the first value counts."""
        offset = 0
        while True:
            records, following, _ = read(self.path, offset, 1 << 20, final=True)
            for record, _ in records:
                if isinstance(record, Metric) and record.step > self._floor.get((record.run, record.key), 0):
                    self._floor[record.run, record.key] = record.step
            if following == offset:
                return
            offset = following

    # -- what is logged

    def metric(self, key, value, step=0, timestamp=None, run=""):
        """Append one point.

        Args:
            value: float.
            timestamp: ms since the epoch, None: now. A stamp of now never runs backwards, and points that are equal
                in key, step, ms and value are kept apart by the next ms, since MLflow would merge them.
            run: run id, empty for the job's own.

        Raises:
            struct.error: a number or the run id does not fit into a record.
        """
        with self._lock:
            if self._floor and step <= self._floor.get((run, key), -1):
                return
            stamp = self._stamp(run, key, step, value, timestamp)
            self._append(pack_metric(key.encode(), value, step, stamp, run.encode()))

    def metrics(self, values, step=0, timestamp=None, run=""):
        """Append several points, ``{key: value}``, by one ``write``."""
        self.points([(key, value, step, timestamp) for key, value in values.items()], run)

    def points(self, points, run=""):
        """Append several points, ``(key, value, step, timestamp)`` each, by one ``write``."""
        raw = run.encode()
        with self._lock:
            if self._floor:
                points = [p for p in points if p[2] > self._floor.get((run, p[0]), -1)]
            self._append(b"".join([
                pack_metric(key.encode(), value, step, self._stamp(run, key, step, value, timestamp), raw)
                for key, value, step, timestamp in points
            ]))

    def call(self, api, body):
        """Append a REST message; it is carried out after all that was logged before it.

        Raises:
            ValueError: it is larger than a record may be, or no JSON.
        """
        record = pack_call(api, body)
        with self._lock:
            self._append(record)

    def _stamp(self, run, key, step, value, timestamp):
        now = time.time_ns() // 1000000
        if timestamp is None:
            timestamp = now
        point = (step, value if value == value else None)  # a NaN is equal to none, but MLflow merges them too
        last = self._stamps.get((run, key))
        if last is None:
            if len(self._stamps) >= _MAX_SERIES:
                self._stamps.clear()
            self._stamps[run, key] = [timestamp, {point}]
            return timestamp
        # MLflow's own client stamps right before it calls us; a clock that was set back must not turn the order round.
        if timestamp < last[0] and -_NOW <= timestamp - now <= _NOW:
            timestamp = last[0]
        if timestamp == last[0]:
            if point not in last[1]:
                if len(last[1]) >= _MAX_POINTS:  # many points with one stamp of the user's own
                    last[1].clear()
                last[1].add(point)
                return timestamp
            timestamp += 1
        last[0] = timestamp
        last[1] = {point}
        return timestamp

    # -- the file

    def _append(self, data):
        if self._held:
            self._hold(data)
            self._retry()
            self._wait_for_room()
            return
        written = self._write(data)
        if written < len(data):
            # A piece that was cut off stays in the file as damage, which readers skip; the whole comes again.
            self._hold(data)
            self._wait_for_room()
        if not self._dirty:
            self._dirty = True
        if self._syncer is None:
            self._start_syncer()
        self._unchecked += len(data)
        if self._unchecked > _CHECK_BACKLOG:
            self._wait_for_delivery()

    def _write(self, data):
        try:
            return os.write(self._fd, data)
        except OSError as error:
            if error.errno in _ROOMLESS:
                return 0
            if error.errno != errno.EBADF or self._fd < 0:
                raise
        # Somebody closed all descriptors of this process, as programs do that become a daemon.
        self._fd = self._open()
        return os.write(self._fd, data)

    def _hold(self, data):
        self._held.append(data)
        self._held_bytes += len(data)
        if not self._told:
            self._told = True
            _say("the disk is full: what is logged waits in memory (%s)" % self.path)

    def _retry(self):
        """Write what is held, as far as there is room; returns whether nothing is left."""
        while self._held:
            data = self._held[0]
            if self._write(data) < len(data):
                return False
            if self._held and self._held[0] is data:  # else a signal handler that logged has written it again
                del self._held[0]
                self._held_bytes -= len(data)
            self._dirty = True
        if self._told:
            self._told = False
            _say("there is room on the disk again: all that was logged is written")
        return True

    def _wait_for_room(self):
        while self._held_bytes > MAX_HELD and not self._retry():
            time.sleep(0.5)

    def _wait_for_delivery(self):
        self._unchecked = 0
        if self._backlog is None:
            return
        told = False
        while self._backlog() > MAX_BACKLOG:
            if not told:
                told = True
                _say("%d GB wait to be delivered to MLflow: logging waits" % (MAX_BACKLOG >> 30))
            time.sleep(0.5)

    def _start_syncer(self):
        thread = threading.Thread(target=self._keep_synced, name="mlops-journal", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is about to end
            return
        self._syncer = thread

    def _keep_synced(self):
        while self._fd >= 0:
            time.sleep(SYNC_PERIOD)
            try:
                if self._held and self._lock.acquire(timeout=SYNC_PERIOD):
                    try:
                        self._retry()
                    finally:
                        self._lock.release()
                if self._dirty and self._fd >= 0:
                    self._dirty = False
                    _sync(self._fd)
            except (OSError, ValueError):
                continue

    def _after_fork(self):
        """In a forked child: what the parent holds is the parent's, its thread is not here, its lock may be taken."""
        self._lock = threading.RLock()
        self._held, self._held_bytes, self._told, self._syncer, self._dirty = [], 0, False, None, False

    def held(self):
        """Bytes that could not be written yet for want of room."""
        return self._held_bytes

    def sync(self, patience=30.0):
        """Write and ``fdatasync`` everything; returns whether that was done within ``patience`` seconds."""
        until = time.monotonic() + patience
        while True:
            left = until - time.monotonic()
            if not self._lock.acquire(timeout=max(left, 0.0)):
                return False
            try:
                if not self._held or self._retry():
                    break
            except OSError:
                return False
            finally:
                self._lock.release()
            if left <= 0:
                return False
            time.sleep(min(0.2, left))
        self._dirty = False
        try:
            _sync(self._fd)
        except OSError:
            return False
        return True

    def close(self):
        """Sync, then close the file; nothing can be logged any more."""
        self.sync(1.0)
        with self._lock:
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)


def _after_fork():
    for writer in list(_writers):
        writer._after_fork()


forks.in_child(_after_fork)


def _say(text):
    try:
        sys.stderr.write("jupyter-mlops: %s\n" % text)
    except Exception:
        pass
