"""Installed packages, kept for further jobs: a folder with one environment for each key.

    ROOT/v1/KEY/           an environment of Python, or in its folder env/ one of conda
    ROOT/v1/KEY/.complete  {"bytes", "requirements", "made"}: it is whole; its time of change is when it was used last
    ROOT/v1/KEY.lock       held exclusively by who installs or removes it, shared by who uses it

Environments are not moved once they are made, since they hold their own path. What is not marked as complete was left
by somebody who was killed, and is removed by the next who installs.
"""

import fcntl
import os
import shutil
import time

from . import jobfolder

VERSION = "v1"
COMPLETE = ".complete"
#: Seconds after its last use for which an entry is not removed: its user may not hold the lock yet.
FRESH = 600.0


class Entry:
    """One environment of a cache; ``inner``: the folder in it where the environment is, where that is not all."""

    def __init__(self, root, key, inner=""):
        self.folder = os.path.join(root, VERSION)
        self.key = key
        self.path = os.path.join(self.folder, key)
        self.inner = inner
        self.prefix = os.path.join(self.path, inner) if inner else self.path
        self.python = os.path.join(self.prefix, "bin", "python")
        self.held = None  # type: int | None # descriptor of its lock, of who uses it

    def complete(self):
        """What its mark says, ``{}`` when it is not whole."""
        return jobfolder.read_json(os.path.join(self.path, COMPLETE))

    def used(self):
        """Note that it is in use."""
        try:
            os.utime(os.path.join(self.path, COMPLETE))
        except OSError:
            pass  # another user's

    def lock(self, exclusive=False, wait=True):
        """Lock it until the descriptor is closed; None when somebody else has it and ``wait`` is not set."""
        path = self.path + ".lock"
        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        while True:
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError:
                fd = os.open(path, os.O_RDONLY)  # of another user, or on a volume that is read only
            try:
                fcntl.flock(fd, kind if wait else kind | fcntl.LOCK_NB)
                if os.fstat(fd).st_ino == os.stat(path).st_ino:
                    return fd
            except BlockingIOError:
                os.close(fd)
                return None
            except FileNotFoundError:
                pass  # removed while we waited for it: begin anew with the next
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def finish(self, about):
        """Mark it as whole; whoever sees the mark sees all of it, also after a loss of power."""
        os.sync()
        about = dict(about, bytes=size_of(self.path), made=time.time())
        jobfolder.write_json(os.path.join(self.path, COMPLETE), about)
        os.chmod(os.path.join(self.path, COMPLETE), 0o644)

    def remove(self):
        """Remove it; the caller has it exclusively."""
        try:
            os.unlink(os.path.join(self.path, COMPLETE))  # first of all: what is left is not whole
        except OSError:
            pass
        shutil.rmtree(self.path, ignore_errors=True)


def usable(root):
    """Whether entries can be made in a folder."""
    try:
        os.makedirs(os.path.join(root, VERSION), exist_ok=True)
    except OSError:
        return False
    return os.access(os.path.join(root, VERSION), os.W_OK | os.X_OK)


def size_of(folder):
    """Bytes that a folder occupies; what has several names counts once."""
    total, seen = 0, set()
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                info = os.lstat(os.path.join(where, name))
            except OSError:
                continue
            if (info.st_dev, info.st_ino) not in seen:
                seen.add((info.st_dev, info.st_ino))
                total += info.st_blocks * 512
    return total


def evict(root, limit, keep=""):
    """Remove what was not used for the longest time until at most ``limit`` bytes are left.

    What is in use stays, and so does the entry ``keep``. Also removes what nobody finished and nobody works on.

    Returns:
        keys of what was removed
    """
    folder = os.path.join(root, VERSION)
    found, removed = [], []
    for name in os.listdir(folder):
        entry = Entry(root, name)
        if name.endswith(".lock") or not os.path.isdir(entry.path):
            continue
        about = entry.complete()
        try:
            used = os.stat(os.path.join(entry.path, COMPLETE) if about else entry.path).st_mtime
        except OSError:
            continue
        found.append((used, int(about.get("bytes") or 0) if about else -1, entry))
    total = sum(max(size, 0) for _, size, _ in found)
    for used, size, entry in sorted(found, key=lambda f: f[0]):
        if entry.key == keep or time.time() - used < FRESH or (size >= 0 and total <= limit):
            continue
        lock = entry.lock(exclusive=True, wait=False)
        if lock is None:
            continue
        try:
            entry.remove()
            os.unlink(entry.path + ".lock")
            removed.append(entry.key)
            total -= max(size, 0)
        except OSError:
            pass  # another user's
        finally:
            os.close(lock)
    return removed
