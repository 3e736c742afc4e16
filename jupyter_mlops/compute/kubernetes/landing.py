"""Where what comes out of a pod's folder lands: in the job's own folder, see :mod:`.copy`.

Everything that reads a job's folder (journals, spool, logs, outputs) finds a job on a cluster as it finds one on this
machine. What the pods of several nodes would both write lies in ``attempts/<n>/node-<k>/``, and the outputs of all but
the first node in ``outputs/node-<k>/``.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import re
import shutil
import zlib
from collections.abc import Callable
from concurrent.futures import Future
from hashlib import sha256
from pathlib import Path
from typing import Any

from ...runtime import jobfolder, logfile, mirror, spool
from ...runtime.berth import PARCEL
from ...runtime.route import NOTE as CALL
from .manifests import CALL_KEY, COPIED, LEFT, NOTE, ROUTE, ROUTED
from .outlets import Outlets

log = logging.getLogger(__name__)

#: Bytes written to a large file after which they are on their way to the disk, so that its end has not to wait for all.
_WRITEBACK = 64 * 1024 * 1024
#: Bytes of a piece that are dealt with on the loop itself.
_SMALL = 64 * 1024
#: Files that grow of which it is remembered where they lie.
_PLACES = 1000
#: Folders of the job that its pods may write to here.
_TOPS = frozenset({"attempts", "journal", "spool", "outputs", "returns", "figures"})
_PER_NODE = frozenset({"state.json", "limits.json", "inputs.json", "supervisor.log", "torchrun.log", "agent.pid",
                       "agent.exit", "image.json", CALL})
#: What is noted of an attempt here, and nobody there may write to.
_OURS = frozenset({NOTE, CALL_KEY, PARCEL, COPIED, LEFT, ROUTE, ROUTED, "incoming"})
#: What is wrong with a path, and stays so: a pod's file system takes names that this one does not.
_UNFIT = frozenset({errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.ELOOP, errno.EFBIG, errno.ENOTDIR,
                    errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY})
#: What comes as long as there is any room; and bytes of the disk that all else leaves to others, a tenth at most.
_NEEDED, ROOM = ("attempts", "journal"), 256 << 20
#: Folders in each other, of which those who remove them can take no more.
_DEEPEST = 100
#: Paths that are noted as left out, and those of which it is remembered.
_SHOWN, _REMEMBERED = 10, 1000


def number(header: dict[str, Any], name: str, least: int = 0) -> int:
    """A number that a pod tells, as far as it is one.

    Raises:
        ValueError, KeyError: it is not.
    """
    value = header[name]
    if type(value) is not int or not least <= value < 1 << 63:
        raise ValueError(f"the pod tells of {name} {value!r}"[:200])
    return value


class Landing:
    """What has come of one pod's folder.

    Args:
        folder: the job's, here.
        changed: called when something came that may have moved the attempt on: its state; not for data.
        outlets: threads in which files are brought to the disk.
    """

    def __init__(self, folder: Path | str, attempt: int, node: int, changed: Callable[[], None],
                 outlets: Outlets) -> None:
        self.job = jobfolder.JobFolder(folder)
        self.attempt = self.job.attempt(attempt)
        self._journal = re.compile(rf"journal/{self.attempt.number}-[0-9]{{1,7}}\.bin")
        self.node = node
        self.changed = changed
        #: Bytes that came.
        self.bytes = 0
        #: Entries that wait here to be delivered.
        self.spool: set[str] = set()
        self._outlets = outlets
        self._dirty: set[str] = set()
        self._places: dict[str, str] = {}
        self._left: dict[str, str] = {}
        self._unsynced = 0
        self._syncing: Future[None] | None = None

    @property
    def notes(self) -> str:
        """The folder of what is noted of this node; it is made when it is not there."""
        return jobfolder.private_folder(os.path.join(self.attempt.path, f"node-{self.node}"))

    def note_way(self, name: str, about: dict[str, Any], count: int) -> None:
        """Note, for those who look at the job, which way its data take, and how many further bytes have taken it.

        Args:
            name: of the note.
            about: the way, and as ``trouble`` why it is not taken.
        """
        path = os.path.join(self.notes, name)
        before = jobfolder.read_json(path)
        now = {**about, "bytes": int(before.get("bytes") or 0) + count}
        if now != before:
            jobfolder.write_json(path, now, durable=False)

    def note(self) -> None:
        """Leave word that all of the pod is here."""
        jobfolder.write_file(os.path.join(self.notes, COPIED), b"", durable=False)

    # -- where things are

    def place(self, path: str) -> str | None:
        """The path here of a file there; None for one that has no business here."""
        parts = path.split("/")
        if parts[0] not in _TOPS or len(parts) < 2 or any(p in ("", ".", "..") or "\0" in p for p in parts):
            return None
        if parts[0] == "attempts":
            if parts[1] != str(self.attempt.number) or len(parts) < 3 or parts[2] in _OURS:
                return None
            if len(parts) == 3 and _of_a_node(parts[2]):
                return None
            if parts[2] in _PER_NODE or len(parts) > 3 or (parts[2] == "usage.jsonl" and self.node):
                parts.insert(2, f"node-{self.node}")
        elif (parts[0] == "journal" and not self._journal.fullmatch(path)) or (
                parts[0] == "spool" and (len(parts) < 3 or spool.parse(parts[1]) is None)):
            return None  # another attempt's, or nothing that would ever be delivered
        elif self.node and parts[0] in ("outputs", "figures"):
            parts.insert(1, f"node-{self.node}")
        elif self.node and parts[0] == "returns":
            return None
        return os.path.join(self.job.path, *parts)

    def _there(self, path: str) -> str | None:
        """The path there of a file here, as far as it is this node's."""
        parts = os.path.relpath(path, self.job.path).split(os.sep)
        own = f"node-{self.node}"
        for at in (1, 2):
            if len(parts) > at + 1 and parts[at].startswith("node-") and parts[0] in ("attempts", "outputs", "figures"):
                if parts[at] != own:
                    return None
                del parts[at]
                break
        there = "/".join(parts)
        return there if self.place(there) == path else None

    def here(self) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
        """What has come already: sizes and times; and what of large files."""
        self._places.clear()  # somebody may have taken a folder away meanwhile
        have: dict[str, list[int]] = {}
        for top in sorted(_TOPS):
            for folder, _, names in os.walk(os.path.join(self.job.path, top)):
                for name in names:
                    full = os.path.join(folder, name)
                    there = self._there(full)
                    if there is None or name.endswith(".tmp"):
                        continue
                    with contextlib.suppress(OSError):
                        info = os.lstat(full)
                        have[there] = [info.st_size, info.st_mtime_ns]
        parts: dict[str, list[int]] = {}
        with contextlib.suppress(OSError):
            for name in os.listdir(self._incoming):
                full = os.path.join(self._incoming, name)
                with contextlib.suppress(OSError, ValueError):
                    begin, _, there = name.partition("-p-")
                    size, _, mtime = begin.partition("-")  # which has a sign before 1970
                    parts[os.fsdecode(bytes.fromhex(there))] = [int(size), int(mtime), os.path.getsize(full)]
        return have, parts

    @property
    def _incoming(self) -> str:
        return os.path.join(self.attempt.path, f"node-{self.node}", "incoming")

    # -- what comes

    async def take(self, header: dict[str, Any], data: bytes) -> None:
        path, at, size = str(header["file"]), number(header, "at"), number(header, "size")
        mtime = number(header, "mtime", -1 << 63)
        target = self._places.get(path) or self.place(path)
        if target is None:
            return
        if data and zlib.crc32(data) != header["crc"]:
            raise ValueError(f"a piece of {path!r} arrived damaged")
        if len(data) > _SMALL:  # the loop has other copies to serve
            self.written(await asyncio.to_thread(self.keep, path, target, at, size, mtime, data), len(data))
        else:
            self.keep(path, target, at, size, mtime, data)
        self.bytes += len(data)
        if path.startswith("attempts/") and not mirror.grows(path):
            self.changed()

    def written(self, where: str, count: int) -> None:
        """Have what came for large files brought to the disk as it comes; the end has not to wait for all of it."""
        self._unsynced += count
        if self._unsynced >= _WRITEBACK and (self._syncing is None or self._syncing.done()):
            self._unsynced = 0
            self._syncing = self._outlets.submit(_to_disk, where, os.fdatasync)

    def keep(self, path: str, target: str, at: int, size: int, mtime: int, data: bytes) -> str:
        """Write a piece where it belongs; returns the file that has it now.

        What can have no place here is left out, and noted: all else goes on coming.

        Raises:
            OSError: it cannot be written now.
            ValueError: it does not go on where the file here ends.
        """
        try:
            if path.count("/") > _DEEPEST:
                raise OSError(errno.ENAMETOOLONG, "too many folders in each other")
            try:
                return self._keep(path, target, at, size, mtime, data)
            except (FileExistsError, NotADirectoryError, IsADirectoryError):
                self._make_way(target)
                return self._keep(path, target, at, size, mtime, data)
        except UnicodeEncodeError:
            self._leave_out(path, "its name cannot be written here")
        except OSError as error:
            if error.errno not in _UNFIT:
                raise
            self._leave_out(path, error.strerror or str(error))
        return target

    def _make_way(self, target: str) -> None:
        """Take away a file where a folder is there now, or a folder where a file is; none that is another node's."""
        where = self.job.path
        for part in os.path.relpath(target, where).split(os.sep):
            inside = where != self.job.path
            where = os.path.join(where, part)
            if not os.path.lexists(where):
                return
            if os.path.isdir(where) == (where != target) or not inside or _of_a_node(part):
                continue
            if where == target and not os.path.islink(where):
                shutil.rmtree(where)
            else:
                os.unlink(where)

    def _leave_out(self, path: str, why: str) -> None:
        """Note, for those who look at the job, that a file of the pod cannot be kept here."""
        if path in self._left or len(self._left) >= _REMEMBERED:
            return
        self._left[path] = why
        log.warning("job %s: %.300r of pod %d is not kept: %s", self.job.name, path, self.node, why)
        shown = [[repr(name)[1:-1][:300], said] for name, said in list(self._left.items())[:_SHOWN]]
        jobfolder.write_json(os.path.join(self.notes, LEFT), {"count": len(self._left), "paths": shown}, durable=False)

    def _keep(self, path: str, target: str, at: int, size: int, mtime: int, data: bytes) -> str:
        if data and path.split("/", 1)[0] not in _NEEDED and not _room(self.job.path):
            raise OSError(errno.ENOSPC, "the disk here is nearly full: outputs wait until there is room")
        if mirror.grows(path):
            if path not in self._places:
                jobfolder.private_folder(os.path.dirname(target))
                if len(self._places) < _PLACES:
                    self._places[path] = target  # it comes again and again
            self._append(path, target, at, data)
            return target
        jobfolder.private_folder(os.path.dirname(target))
        where = target
        if len(data) == size and not at:
            self._replace(target, data, mtime)
        else:
            where = self._piece(path, target, at, size, mtime, data)
        if path.startswith("spool/") and path.endswith("/entry.json"):
            self.spool.add(path.split("/")[1])
        if path.endswith(".hole") and path.startswith("attempts/"):
            self._punch(target)
        return where

    def _append(self, path: str, target: str, at: int, data: bytes) -> None:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            there = os.fstat(fd).st_size
            if at < there:  # it was written anew there, shorter
                os.ftruncate(fd, at)
            if at > there and not path.endswith(".log"):  # only those have holes: zeros would be read for hours
                raise _gap(path)
            _pwrite(fd, data, at)
        finally:
            os.close(fd)
        self._dirty.add(target)

    def _replace(self, target: str, data: bytes, mtime: int) -> None:
        jobfolder.write_file(target, data, durable=False)
        os.utime(target, ns=(mtime, mtime))
        self._dirty.add(target)

    def _piece(self, path: str, target: str, at: int, size: int, mtime: int, data: bytes) -> str:
        """A piece of a large file, which is put in its place when it is whole."""
        name = os.fsencode(path).hex()
        if len(name) > 180:
            name = sha256(os.fsencode(path)).hexdigest()  # then it cannot be gone on with
        part = os.path.join(jobfolder.private_folder(self._incoming), f"{size}-{mtime}-p-{name}")
        if at + len(data) > size:
            raise _gap(path)
        with contextlib.suppress(FileNotFoundError):
            os.lstat(target)  # raises where it could never be put
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            if at > os.fstat(fd).st_size:
                raise _gap(path)
            _pwrite(fd, data, at)
        finally:
            os.close(fd)
        if at + len(data) >= size:
            os.utime(part, ns=(mtime, mtime))
            os.replace(part, target)
            self._dirty.add(target)
            return target
        return part

    @staticmethod
    def _punch(target: str) -> None:
        """Give back here, too, what is not kept of a log there."""
        entry = jobfolder.read_json(target)
        begin, end = entry.get("from"), entry.get("to")
        if isinstance(begin, int) and isinstance(end, int) and 0 <= begin < end:
            with contextlib.suppress(OSError):
                fd = os.open(target[:-5] + ".log", os.O_RDWR | os.O_NOFOLLOW)
                try:
                    logfile.punch(fd, begin, end - begin)
                finally:
                    os.close(fd)

    def sync(self) -> None:
        """After this the copy there may go."""
        for path in sorted(self._dirty):
            _to_disk(path, os.fsync)
        self._dirty.clear()


def left_out(place: jobfolder.Attempt, node: int) -> str:
    """Which files of a pod could have no place here, in words; empty when all could be kept."""
    found = jobfolder.read_json(os.path.join(place.path, f"node-{node}", LEFT))
    if not found.get("paths"):
        return ""
    (path, why), count = found["paths"][0], int(found["count"])
    return f"{path} could not be kept here: {why}" + (f"; nor could {count - 1} other files" if count > 1 else "")


def _of_a_node(name: str) -> bool:
    """Whether a folder of that name is one node's, see the module."""
    return name.startswith("node-") and name[5:].isdigit()


def _room(folder: str) -> bool:
    """Whether the disk has room for more than what is needed: whoever fills it stops all else that runs here."""
    try:
        info = os.statvfs(folder)
    except FileNotFoundError:
        return True  # it is about to be made
    return info.f_bavail * info.f_frsize >= min(ROOM, info.f_blocks * info.f_frsize // 10)


def _gap(path: str) -> ValueError:
    return ValueError(f"a piece of {path!r} does not go on where the file ends")


def _pwrite(fd: int, data: bytes, at: int) -> None:
    left = memoryview(data)
    while left:
        count = os.pwrite(fd, left, at)
        left, at = left[count:], at + count


def _to_disk(path: str, sync: Callable[[int], None]) -> None:
    """Have ``os.fsync`` or ``os.fdatasync`` done to a file, if it is there."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            sync(fd)
        finally:
            os.close(fd)
