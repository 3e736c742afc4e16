"""Records of a journal: how they look in the file, and reading them back, whatever happened to the file.

Two bytes ``MAGIC``, length and CRC-32 of the payload (both unsigned, 32 bits, little-endian), the payload. A payload is
either a metric,

    b"m" · time (int64, ms since 1970) · step (int64) · value (float64) · length of the run id (uint8) · run id · key

or a call, ``b"c"`` and a JSON object ``{"api": NAME, "body": {…}}`` in ASCII: one of MLflow's REST messages, whose
answer nobody needs. An empty run id is the job's own run. No whole record is ever part of another one's payload.
"""

import errno
import json
import os
import stat
import struct
import zlib

MAGIC = b"\xa7J"
HEAD = struct.Struct("<2sII")
_METRIC = struct.Struct("<cqqdB")
#: Bytes of the largest payload; whatever claims to be longer is damage.
MAX_PAYLOAD = 8 * 1024 * 1024


class Metric:
    """One point. ``run`` is empty for the job's own run, ``timestamp`` is in ms."""

    __slots__ = ("key", "run", "step", "timestamp", "value")

    def __init__(self, key, value, step, timestamp, run):
        self.key, self.value, self.step, self.timestamp, self.run = key, value, step, timestamp, run

    def __repr__(self):
        return "Metric(%r, %r, %r, %r, %r)" % (self.key, self.value, self.step, self.timestamp, self.run)


class Call:
    """One REST message: ``api`` is the name of its protobuf message, ``body`` its JSON object."""

    __slots__ = ("api", "body")

    def __init__(self, api, body):
        self.api, self.body = api, body

    def __repr__(self):
        return "Call(%r, %r)" % (self.api, self.body)


def pack(payload):
    """A record of ``payload`` (bytes)."""
    return HEAD.pack(MAGIC, len(payload), zlib.crc32(payload)) + payload


def pack_metric(key, value, step, timestamp, run=b"", _metric=_METRIC.pack, _head=HEAD.pack, _crc=zlib.crc32):
    """A metric's record. ``key`` and ``run`` are bytes, ``timestamp`` is in ms.

    Raises:
        struct.error: a number or the run id does not fit.
    """
    payload = _metric(b"m", timestamp, step, value, len(run)) + run + key
    return _head(MAGIC, len(payload), _crc(payload)) + payload


def pack_call(api, body):
    """The record of a REST message.

    Raises:
        ValueError: it is larger than a record may be.
    """
    payload = b"c" + json.dumps({"api": api, "body": body}).encode("ascii")
    if len(payload) > MAX_PAYLOAD:
        raise ValueError("%s is larger than %d bytes" % (api, MAX_PAYLOAD))
    return pack(payload)


def read(path, offset=0, limit=1 << 20, final=False):
    """Records of a journal from ``offset``, about ``limit`` bytes of them.

    Damage (a torn record, zeros after a loss of power) is skipped: the next record is found by its magic and CRC. What
    may only be cut off for the moment, at the end of the file, is left for later unless ``final``.

    Args:
        final: nobody writes any more.

    Returns:
        ([(record, offset behind it)], next offset, bytes of damage that were skipped); a missing file, or what is no
        file, has no records. All has been read when the next offset is that of the call.
    """
    try:
        # The job's own code can put anything there: a pipe must hold up nobody.
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            return [], offset, 0
        raise
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            return [], offset, 0
        size = info.st_size
        data = os.pread(fd, max(limit, HEAD.size), offset)
        following = _record(data, 0)[1]
        if following > len(data):
            # At least one whole record, however large.
            data = os.pread(fd, following, offset)
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
        if following > size and position and not at_end:
            break  # the next chunk begins with it
        # A record that is being written is the last thing in the file; with a whole one behind, it was torn.
        after, whole = _next_record(data, position + 1)
        if not whole:
            if at_end and not final:
                break  # on a network file system the end of a file may still show zeros
            if at_end:
                after = size
        skipped += after - position
        position = after
        if not whole:
            break
    return records, base + position, skipped


def _record(data, position):
    """(record or None, offset behind it); beyond the data when it is cut off, 0 when it is none."""
    if position + HEAD.size > len(data):
        return None, position + HEAD.size if MAGIC.startswith(data[position:position + 2]) else 0
    magic, length, crc = HEAD.unpack_from(data, position)
    if magic != MAGIC or length > MAX_PAYLOAD or not length:
        return None, 0
    begin = position + HEAD.size
    end = begin + length
    if end > len(data):
        return None, end
    payload = data[begin:end]
    if zlib.crc32(payload) != crc:
        return None, 0
    try:
        return _decode(payload), end
    except (ValueError, struct.error, KeyError, TypeError, RecursionError):
        return None, 0


def _decode(payload):
    kind = payload[:1]
    if kind == b"m":
        _, timestamp, step, value, length = _METRIC.unpack_from(payload)
        begin = _METRIC.size + length
        run = payload[_METRIC.size:begin].decode() if length else ""
        return Metric(payload[begin:].decode(), value, step, timestamp, run)
    if kind == b"c":
        value = json.loads(payload[1:])
        return Call(value["api"], value["body"])
    raise ValueError("unknown kind of record %r" % kind)


def _next_record(data, position):
    """(offset, True) of the next whole record from ``position`` on.

    When there is none: the offset of the first that may be one, but for its missing end, and False.
    """
    cut = len(data)
    while True:
        position = data.find(MAGIC[:1], position)
        if position < 0:
            return cut, False
        record, following = _record(data, position)
        if record is not None:
            return position, True
        if following > len(data):
            cut = min(cut, position)
        position += 1
