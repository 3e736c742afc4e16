"""The journal: what a rank logs is appended to a file before the call returns; only the machine itself can lose it.

``journal/<attempt>-<rank>.bin`` holds records one after the other: two bytes ``MAGIC``, length and CRC-32 of the
payload (both unsigned, 32 bits, little-endian), the payload. All processes of a rank append to the same file, each
record by one ``write``. A payload is either a metric,

    b"m" · time (int64, ms since 1970) · step (int64) · value (float64) · length of the run id (uint8) · run id · key

or a call, ``b"c"`` and a JSON object ``{"api": NAME, "body": {…}}``: one of MLflow's REST messages, whose answer nobody
needs. An empty run id is the job's own run. ``docs/job-folder.md`` says what readers may rely on.
"""

import errno
import json
import os
import struct
import sys
import threading
import time
import zlib

MAGIC = b"\xa7J"
_HEAD = struct.Struct("<2sII")
_METRIC = struct.Struct("<cqqdB")
#: Bytes of the largest payload; whatever claims to be longer is damage.
MAX_PAYLOAD = 8 * 1024 * 1024
#: Seconds between two ``fdatasync``.
SYNC_PERIOD = 1.0
#: Bytes that wait in memory while the disk is full; beyond them logging waits for the disk.
MAX_HELD = 16 * 1024 * 1024
#: Undelivered bytes of a journal beyond which logging waits for the delivery.
MAX_BACKLOG = 4 * 1024 * 1024 * 1024
_CHECK_BACKLOG = 64 * 1024 * 1024
_ROOMLESS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_sync = getattr(os, "fdatasync", os.fsync)


def pack(payload):
    """A record of ``payload`` (bytes)."""
    return _HEAD.pack(MAGIC, len(payload), zlib.crc32(payload)) + payload


def pack_metric(key, value, step, timestamp, run=b""):
    """A metric's record. ``key`` and ``run`` are bytes, ``timestamp`` is in ms."""
    payload = _METRIC.pack(b"m", timestamp, step, value, len(run)) + run + key
    return _HEAD.pack(MAGIC, len(payload), zlib.crc32(payload)) + payload


def pack_call(api, body):
    """The record of a REST message."""
    return pack(b"c" + json.dumps({"api": api, "body": body}).encode())


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
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        self._lock = threading.Lock()
        self._held = []  # type: list[bytes] # records for which the disk had no room, oldest first
        self._held_bytes = 0
        self._told = False
        self._stamps = {}  # type: dict[tuple[bytes, bytes], list] # (run, key) → [last ms, {(step, value)} at that ms]
        self._dirty = False
        self._unchecked = 0
        self._syncer = None  # type: threading.Thread | None
        self._pid = os.getpid()

    # -- what is logged

    def metric(self, key, value, step=0, timestamp=None, run=""):
        """Append one point.

        Args:
            value: float.
            timestamp: ms since the epoch, None: now. A stamp of now never runs backwards, and points that are equal
                in key, step, ms and value are kept apart by the next ms, since MLflow would merge them.
            run: run id, empty for the job's own.
        """
        raw, run_raw = key.encode(), run.encode()
        with self._lock:
            stamp = self._stamp(run_raw, raw, step, value, timestamp)
            self._append(pack_metric(raw, value, step, stamp, run_raw))

    def metrics(self, values, step=0, timestamp=None, run=""):
        """Append several points, ``{key: value}``, by one ``write``."""
        run_raw = run.encode()
        with self._lock:
            parts = []
            for key, value in values.items():
                raw = key.encode()
                parts.append(pack_metric(raw, value, step, self._stamp(run_raw, raw, step, value, timestamp), run_raw))
            self._append(b"".join(parts))

    def call(self, api, body):
        """Append a REST message; it is carried out after all that was logged before it."""
        record = pack_call(api, body)
        if len(record) - _HEAD.size > MAX_PAYLOAD:
            raise ValueError("%s is larger than %d bytes" % (api, MAX_PAYLOAD))
        with self._lock:
            self._append(record)

    def _stamp(self, run, key, step, value, timestamp):
        now = time.time_ns() // 1000000
        if timestamp is None:
            timestamp = now
        last = self._stamps.get((run, key))
        if last is None:
            self._stamps[(run, key)] = [timestamp, {(step, value)}]
            return timestamp
        # MLflow's own client stamps right before it calls us; a clock that was set back must not turn the order round.
        if timestamp < last[0] and -2000 <= timestamp - now <= 2000:
            timestamp = last[0]
        if timestamp == last[0]:
            if (step, value) not in last[1]:
                last[1].add((step, value))
                return timestamp
            timestamp += 1
        last[0] = timestamp
        last[1] = {(step, value)}
        return timestamp

    # -- the file

    def _append(self, data):
        if self._pid != os.getpid():
            self._after_fork()
        if self._held:
            self._hold(data)
            self._retry()
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
            if error.errno not in _ROOMLESS:
                raise
            return 0

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
        self._syncer = threading.Thread(target=self._keep_synced, name="mlops-journal", daemon=True)
        self._syncer.start()

    def _keep_synced(self):
        while True:
            time.sleep(SYNC_PERIOD)
            try:
                if self._held:
                    with self._lock:
                        self._retry()
                if self._dirty:
                    self._dirty = False
                    _sync(self._fd)
            except (OSError, ValueError):
                continue

    def _after_fork(self):
        """In a forked child: what the parent holds is the parent's, and its thread is not here."""
        self._pid = os.getpid()
        self._held, self._held_bytes, self._syncer, self._dirty = [], 0, None, False

    def sync(self, patience=30.0):
        """Write and ``fdatasync`` everything; returns whether nothing is held back after ``patience`` seconds."""
        until = time.monotonic() + patience
        while True:
            with self._lock:
                if not self._held or self._retry():
                    break
            if time.monotonic() > until:
                return False
            time.sleep(0.2)
        self._dirty = False
        try:
            _sync(self._fd)
        except OSError:
            return False
        return True

    def close(self):
        """Sync, then close the file."""
        self.sync(1.0)
        os.close(self._fd)


def _say(text):
    try:
        sys.stderr.write("jupyter-mlops: %s\n" % text)
    except Exception:
        pass


# -- reading

class Metric:
    """One point. ``run`` is empty for the job's own run, ``timestamp`` is in ms."""

    __slots__ = ("key", "run", "step", "timestamp", "value")

    def __init__(self, key, value, step, timestamp, run):
        self.key, self.value, self.step, self.timestamp, self.run = key, value, step, timestamp, run

    def __repr__(self):
        return "Metric(%r, %r, %r, %r, %r)" % (self.key, self.value, self.step, self.timestamp, self.run)


class Call:
    """One REST message."""

    __slots__ = ("api", "body")

    def __init__(self, api, body):
        self.api, self.body = api, body

    def __repr__(self):
        return "Call(%r, %r)" % (self.api, self.body)


def read(path, offset=0, limit=1 << 20, final=False):
    """Records of a journal from ``offset``, about ``limit`` bytes of them.

    Damage (a torn record, zeros after a loss of power) is skipped: the next record is found by its magic and CRC. What
    may only be cut off for the moment, at the end of the file, is left for later unless ``final``.

    Args:
        final: nobody writes any more.

    Returns:
        ([(record, offset behind it)], next offset, bytes of damage that were skipped); a missing file has no records.
    """
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        return [], offset, 0
    try:
        size = os.fstat(fd).st_size
        data = os.pread(fd, limit, offset)
        if len(data) >= _HEAD.size and data[:2] == MAGIC:
            # At least one whole record, however large.
            length = _HEAD.unpack_from(data)[1]
            if _HEAD.size + length > len(data) and length <= MAX_PAYLOAD:
                data = os.pread(fd, _HEAD.size + length, offset)
    finally:
        os.close(fd)
    return _parse(data, offset, offset + len(data) >= size, final)


def _parse(data, base, at_end, final):
    records = []
    position = skipped = 0
    size = len(data)
    while position < size:
        record, following = _record(data, position)
        if record is not None:
            records.append((record, base + following))
            position = following
            continue
        # Its end is not here yet; in the middle of a file the next chunk has it, if it is one at all.
        if following > size and not (at_end and final) and (at_end or position or following - position > size):
            break
        after = _next_record(data, position + 1)
        if after < 0:
            if not at_end:
                # All damage, but for what may be the beginning of a record.
                after = max(size - _HEAD.size, position + 1)
            elif final:
                after = size
            else:
                break
        skipped += after - position
        position = after
    return records, base + position, skipped


def _record(data, position):
    """(record or None, offset behind it); beyond the data when it is cut off, 0 when it is none."""
    if position + _HEAD.size > len(data):
        beginning = data[position:position + 2]
        return None, position + _HEAD.size if MAGIC.startswith(beginning) else 0
    magic, length, crc = _HEAD.unpack_from(data, position)
    if magic != MAGIC or length > MAX_PAYLOAD or not length:
        return None, 0
    begin = position + _HEAD.size
    end = begin + length
    if end > len(data):
        return None, end
    payload = data[begin:end]
    if zlib.crc32(payload) != crc:
        return None, 0
    try:
        return _decode(payload), end
    except (ValueError, struct.error, KeyError, IndexError):
        return None, 0


def _decode(payload):
    kind = payload[:1]
    if kind == b"m":
        _, timestamp, step, value, length = _METRIC.unpack_from(payload)
        run = payload[_METRIC.size:_METRIC.size + length].decode()
        return Metric(payload[_METRIC.size + length:].decode(), value, step, timestamp, run)
    if kind == b"c":
        value = json.loads(payload[1:])
        return Call(value["api"], value["body"])
    raise ValueError("unknown kind of record %r" % kind)


def _next_record(data, position):
    """Offset of the next whole record at or after ``position``, -1 when there is none."""
    while True:
        position = data.find(MAGIC, position)
        if position < 0:
            return -1
        if _record(data, position)[0] is not None:
            return position
        position += 1
