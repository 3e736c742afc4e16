"""A rank's log: read by offset in any part, bounded on disk by a hole in its middle.

Ranks append to their logs themselves, through nobody's pipe, so a log can be neither rotated nor cut. What can be done
is to give the disk blocks of its middle back (``fallocate``, Linux): beginning and newest part stay, offsets stay true.
What is gone is written down first, in ``rank-<r>.hole``, so that no reader takes the zeros of a hole for text.
"""

import errno
import os
import stat
import time

#: Least bytes of the beginning that are kept, unless that were more than a quarter.
_HEAD = 1 << 20
#: How far to look for the end of a line, so that a hole begins and ends with whole lines.
_LINE = 65536
#: Least seconds between two looks at the logs.
_PAUSE = 0.5
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV, errno.ENOTTY)


def hole_path(log):
    """Where it is told what of a log is not kept."""
    return (log[:-4] if log.endswith(".log") else log) + ".hole"


def hole(log):
    """``(begin, end)``: the bytes of a log that are not kept; None when all are."""
    path = hole_path(log)
    if not os.path.lexists(path):
        return None
    from .jobfolder import read_json

    entry = read_json(path)
    begin, end = entry.get("begin"), entry.get("end")
    if not (isinstance(begin, int) and isinstance(end, int) and 0 <= begin < end):
        return None
    return begin, end


def read(log, offset, limit):
    """A chunk of a growing file; a missing file is an empty one.

    A chunk neither starts (after a negative offset) nor ends inside a UTF-8 character, unless that is all there is. It
    holds nothing of the hole: a read that begins there begins at its end instead.

    Args:
        offset: in bytes; a negative one counts from the end.
        limit: most bytes.

    Returns:
        (data, offset, next_offset, size)
    """
    try:
        fd = os.open(log, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
            return b"", 0, 0, 0
        raise
    try:
        info = os.fstat(fd)
        size = info.st_size if stat.S_ISREG(info.st_mode) else 0
        from_end = offset < 0
        offset = max(size + offset, 0) if from_end else min(offset, size)
        gap = hole(log)
        while True:
            begin, end = _around(gap, offset, min(offset + max(limit, 0), size), limit, size)
            data = os.pread(fd, end - begin, begin) if end > begin else b""
            # A hole is written down before it is made: one that came in between is seen now.
            known, gap = gap, hole(log)
            if gap == known:
                break
    finally:
        os.close(fd)
    if from_end and begin:
        cut = 0
        while cut < min(3, len(data)) and data[cut] & 0xC0 == 0x80:
            cut += 1
        data, begin = data[cut:], begin + cut
    data = data[:_whole(data)] or data
    return data, begin, begin + len(data), size


def _around(gap, begin, end, limit, size):
    """The wish ``[begin, end)`` without what lies in the hole."""
    if gap is None or end <= gap[0] or begin >= gap[1]:
        return begin, end
    if begin < gap[0]:
        return begin, gap[0]
    begin = min(gap[1], size)
    return begin, end if end > begin else min(begin + limit, size)


def _whole(data):
    """Length of ``data`` without a UTF-8 character that is cut at its end."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        length = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return len(data) - back if length > back else len(data)
    return len(data)


class Bound:
    """Keeps the logs of an attempt within their bound; for its supervisor.

    Args:
        logs: paths of the logs; they may be missing yet.
        limit: bytes of each that are kept.
        say: called with one line when a log cannot be bounded, once for each reason.
    """

    def __init__(self, logs, limit, say):
        self.logs = list(logs)
        self.limit = limit
        self._say = say
        self._looked = 0.0
        self._off = False
        self._said = set()  # type: set[str]

    def look(self, now=False):
        """Give back what is too much. Cheap; does nothing when called again at once, unless ``now``. Never raises."""
        moment = time.monotonic()
        if self._off or (not now and moment - self._looked < _PAUSE):
            return
        self._looked = moment
        for log in self.logs:
            try:
                if os.stat(log).st_size > self.limit:
                    shrink(log, self.limit)
            except FileNotFoundError:
                continue
            except OSError as error:
                self._off = error.errno in _UNSUPPORTED
                self._complain("%s cannot be kept below %d bytes%s: %s" % (
                    os.path.basename(log), self.limit, " on this file system" if self._off else "", error.strerror))
                if self._off:
                    return

    def _complain(self, text):
        if text not in self._said:
            self._said.add(text)
            self._say(text)


def shrink(log, limit):
    """Give back the middle of a log that keeps more than ``limit`` bytes; returns whether there was something to do.

    Raises:
        OSError: the file system cannot do it (nothing is written down then), or the disk is full.
    """
    head = min(max(limit // 16, _HEAD), limit // 4)
    fd = os.open(log, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    try:
        info = os.fstat(fd)
        gap = hole(log)
        if not stat.S_ISREG(info.st_mode) or info.st_size - (gap[1] - gap[0] if gap else 0) <= limit:
            return False
        begin = gap[0] if gap else _line_end(fd, max(head - _LINE, 0), head, last=True)
        # A quarter less than would be allowed, so that it is not done for every line.
        tail = (limit - begin) * 3 // 4
        target = info.st_size - tail
        end = _line_end(fd, target, min(target + _LINE, info.st_size), last=False)
        if end <= (gap[1] if gap else begin):
            return False
        block = max(info.st_blksize, 512)
        start, stop = -(-begin // block) * block, end // block * block
        if gap is None:
            punch(fd, start, 0)  # asks whether it can be done, before anybody is told that it was
        from .jobfolder import write_json

        write_json(hole_path(log), {"begin": begin, "end": end, "from": start, "to": max(start, stop)})
        if stop > start:
            punch(fd, start, stop - start)
        return True
    finally:
        os.close(fd)


def _line_end(fd, begin, end, last):
    """Where a line ends in ``[begin, end)``: the ``last`` or the first one; else a border between characters."""
    data = os.pread(fd, end - begin, begin)
    for mark in (b"\n", b"\r"):
        at = data.rfind(mark) if last else data.find(mark)
        if at >= 0:
            return begin + at + 1
    if last:
        return begin + _whole(data)
    cut = 0
    while cut < min(3, len(data)) and data[cut] & 0xC0 == 0x80:
        cut += 1
    return begin + cut


def punch(fd, offset, length):
    """Give disk blocks back. ``length`` 0 only asks whether this file system can: raises the error that it would."""
    import ctypes

    try:
        library = ctypes.CDLL(None, use_errno=True)
        call = getattr(library, "fallocate64", None) or library.fallocate  # the first where offsets may have 32 bits
    except (AttributeError, OSError):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if length == 0:
        # Beyond the end: nothing is lost there.
        offset, length = os.fstat(fd).st_size + (1 << 30), 4096
    while call(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length) != 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
