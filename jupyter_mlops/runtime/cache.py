"""A bounded cache of files on a machine's disk, shared by all jobs that are given its folder.

    data/<k>/<key>     a whole file, read-only; its time of change is that of its last use
    partial/<key>      one that is being downloaded, or was when its job died: the next one goes on with it
    locks/<n>          held while a file is downloaded (all keys share 256 of them), ``trim`` while room is made
    jobs/<owner>/      what one job sees: hard links to files in ``data/``; ``<owner>.lock`` is held while it lives

A key is made of a URL and of what tells its versions apart, so a file that changed is another one. What goes first when
there is no room is what was used longest ago; files that a living job has a link to stay.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import time

from . import jobfolder

#: Bytes of the whole cache when nobody says, and the share of a disk that it leaves free.
LIMIT, RESERVE = 50 << 30, 0.05
PIECE = 1 << 20


class NoRoom(OSError):
    """Neither the cache's limit nor the disk leaves room."""


def key(url, version):
    """The name under which a version of a URL is kept."""
    return hashlib.sha256(("%s\0%s" % (url, version)).encode("utf-8", "surrogateescape")).hexdigest()[:40]


class Cache:
    """The cache in ``folder``, of at most ``limit`` bytes."""

    def __init__(self, folder, limit=0):
        self.folder = folder
        self.limit = limit or LIMIT
        for name in ("data", "partial", "locks", "jobs"):
            jobfolder.private_folder(os.path.join(folder, name))

    def path(self, name):
        """Where a file of this key is, or would be."""
        return os.path.join(self.folder, "data", name[:2], name)

    def has(self, name, size):
        """Whether it is there, whole; looking keeps it for longer."""
        path = self.path(name)
        try:
            info = os.stat(path)
            if size is not None and info.st_size != size:
                return False
            os.utime(path)
            return True
        except OSError:
            return False

    def fetch(self, name, size, target, fill):
        """Have a file at ``target``, from here or by ``fill(path)``, which appends to what is at ``path`` already.

        Whoever wants the same file at the same time waits, and finds it.

        Returns:
            whether it was here

        Raises:
            OSError, and what ``fill`` raises. A part that was downloaded stays for the next.
        """
        if self.has(name, size) and self._give(name, target):
            return True
        with Lock(os.path.join(self.folder, "locks", name[:2])):
            if self.has(name, size) and self._give(name, target):
                return True
            partial = os.path.join(self.folder, "partial", name)
            fill(partial)
            got = os.path.getsize(partial)
            if size is not None and got != size:
                os.unlink(partial)
                raise OSError(errno.EIO, "it has %d bytes, %d were announced" % (got, size))
            os.chmod(partial, 0o444)
            fd = os.open(partial, os.O_RDONLY)
            try:
                os.fsync(fd)  # its name says that it is whole, also after a loss of power
            finally:
                os.close(fd)
            os.utime(partial)
            jobfolder.private_folder(os.path.dirname(self.path(name)))
            os.replace(partial, self.path(name))
            if not self._give(name, target):
                raise OSError(errno.ENOENT, "it was removed from the cache")
        return False

    def _give(self, name, target):
        """Let ``target`` be the file, too; False when it has gone meanwhile."""
        try:
            os.link(self.path(name), target)
        except FileNotFoundError:
            return False
        except FileExistsError:
            pass
        except OSError:  # a file system without links, or too many of them
            shutil.copyfile(self.path(name), target)
            os.chmod(target, 0o444)
        return True

    # -- room

    def make_room(self, needed):
        """Remove what was used longest ago until ``needed`` further bytes fit.

        Raises:
            NoRoom: they do not, with all removed that no job uses.
        """
        with Lock(os.path.join(self.folder, "locks", "trim")):
            self.sweep()
            entries, total = self._entries()
            entries.sort()
            while entries and (total + needed > self.limit or self._free() < needed):
                _, size, path = entries.pop(0)
                try:
                    if os.stat(path).st_nlink > 1:
                        continue  # a job reads it
                    os.unlink(path)
                    total -= size
                except OSError:
                    continue
            free = min(self.limit - total, self._free())
        if needed > free:
            raise NoRoom(errno.ENOSPC, "%s are needed, %s are free in the cache" % (
                size_text(needed), size_text(max(free, 0))))

    def _entries(self):
        """[(last use, bytes, path)] of whole files and of parts, and the bytes of all."""
        found, total = [], 0
        for folder, _, names in os.walk(self.folder):
            top = os.path.relpath(folder, self.folder).split(os.sep)[0]
            if top not in ("data", "partial"):
                continue
            for name in names:
                path = os.path.join(folder, name)
                try:
                    info = os.stat(path)
                except OSError:
                    continue
                total += info.st_size
                if top == "data" or time.time() - info.st_mtime > 3600:
                    found.append((info.st_mtime, info.st_size, path))
        return found, total

    def _free(self):
        info = os.statvfs(self.folder)
        return info.f_bavail * info.f_frsize - int(info.f_blocks * info.f_frsize * RESERVE)

    def sweep(self):
        """Remove the views of jobs that have ended."""
        jobs = os.path.join(self.folder, "jobs")
        for name in os.listdir(jobs):
            if not name.endswith(".lock"):
                continue
            path = os.path.join(jobs, name)
            lock = Lock(path)
            try:
                if lock.try_alone():
                    shutil.rmtree(path[:-5], ignore_errors=True)
                    os.unlink(path)
            except OSError:
                continue
            finally:
                lock.close()


class View:
    """What one job sees of a cache: ``folder``; held until :meth:`close`, or until nobody has the descriptor any more.

    Ranks inherit it, so that the view lives as long as one of them, whoever else dies.
    """

    def __init__(self, cache, owner):
        self.folder = os.path.join(cache, "jobs", owner)
        jobfolder.private_folder(os.path.dirname(self.folder))
        while True:
            self._lock = Lock(self.folder + ".lock")
            self._lock.share()
            if self._lock.named():
                break
            self._lock.close()  # it was swept away in between
        os.set_inheritable(self._lock.fd, True)
        jobfolder.private_folder(self.folder)

    @property
    def descriptor(self):
        """What is inherited."""
        return self._lock.fd

    def close(self):
        """Let go; the view is removed when this was the last to hold it."""
        try:
            if self._lock.try_alone():
                shutil.rmtree(self.folder, ignore_errors=True)
                os.unlink(self.folder + ".lock")
        except OSError:
            pass
        self._lock.close()


class Lock:
    """A lock on a file; as a context, it is held alone."""

    def __init__(self, path):
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)

    def __enter__(self):
        fcntl.flock(self.fd, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_):
        self.close()

    def share(self):
        fcntl.flock(self.fd, fcntl.LOCK_SH)

    def try_alone(self):
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return self.named()
        except OSError:
            return False

    def named(self):
        """Whether the path still leads to the file that is locked."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self.fd))
        except OSError:
            return False

    def close(self):
        os.close(self.fd)


def size_text(count):
    """Bytes for people: ``1.2 GB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return "%.3g %s" % (count / size, unit) if count < 999.5 * size else "%.0f %s" % (count / size, unit)
    return "%d B" % count
