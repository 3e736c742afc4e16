"""A job folder in a pod, told to whoever keeps a copy of it.

``python -m jupyter_mlops.runtime.mirror FOLDER ATTEMPT`` is executed in the pod and speaks over its standard input and
output. What it writes are frames: 4 bytes length of the header, 4 bytes length of the data, a JSON header, the data.

    {"file": P, "at": N, "size": S, "mtime": NS, "crc": C}   bytes of a file from offset N on, S when looked at
    {"offer": P, "at", "size", "mtime", "port", "id", "token"}   a large file that can be fetched, see ``outlet``
    {"file": P, …, "crc": C, "key": K, "bytes": B}           the same of B bytes that were put into an object store
    {"want": N}                                               N addresses of objects are wanted
    {"store": T}                                              the store does not take them, and why
    {"pong": true}                                            the answer to "ping"
    {"even": true, "ended": E}                                everything that there was has been told; E: for good
    {"bye": true}                                             the answer to "done", the last

What it reads are lines of JSON:

    {"have": {P: [S, NS]}, "parts": {P: [S, NS, bytes]}, "outlet": A}   first of all: what is there already, and what
                                                              in part; at which address large files may be offered;
                                                              "store", if there is one, as :mod:`.depot` takes it;
                                                              "aside": large files are told while all else goes on
    {"urls": [[K, URL]], "good": S}                           addresses of objects for S seconds; an empty K: there is
                                                              none, and why
    {"got": N}                                                N frames have been taken, all in all
    {"fetched": P, "bytes": N, "again": B}                    so much of a large file is there, and whether the rest of
                                                              it, and others, may be offered
    {"ping": true}                                            whether anybody is there
    {"put": P, "text": T}                                     a wish to be left in the folder: ``stop``
    {"gone": P}                                               an entry of the spool that was delivered
    {"done": true}                                            the whole is there, for good: the pod may go

Files that only grow (logs, journals, samples, TensorBoard's event files) are told from where the copy ends, and anew
when they got shorter, as samples do that are thinned; all others are told anew, as a whole, when size or time of change
differ. Small ones first, so that a large output holds up no metric. What else a job leaves in ``outputs/`` is told when
nobody has written to it for a while. A connection that breaks is made again and goes on.

What comes after a silence is told at once, and so are all files but those that grow. What grows slowly and steadily is
told together every ``PACE`` seconds: each time costs the copy's side, which may have hundreds of us.
"""

import json
import os
import queue
import shutil
import stat
import struct
import sys
import threading
import time
import zlib

from . import jobfolder, logfile
from .depot import Depot

HEAD = struct.Struct(">II")
PIECE = 1024 * 1024
#: Frames that may be on their way without an answer.
WINDOW = 16
#: Addresses of objects that are asked for at once.
WANT = 8
#: Seconds between tellings of what grows slowly and steadily: of what a lost node had logged, no more is missing.
PACE = 1.7
#: Seconds between tellings of samples of what the ranks use.
PACE_USAGE = 6.0
#: Bytes of growth that wait for nothing.
BURST = 64 * 1024
#: Seconds between looks at what changes all the time, and at everything.
LOOK, LOOK_ALL = 0.15, 1.0
#: Seconds without a change after which a file of the user's counts as written.
SETTLED = 2.0
#: Bytes from which on a file is offered.
LARGE = 8 * 1024 * 1024
#: Left in the folder: by the pod's keeper when the pod ends; by us when the copy is complete.
ENDING, DRAINED = ".ending", ".drained"
_GROWING = (".log", ".bin", ".jsonl")
#: In the names of TensorBoard's event files, which grow while one looks at them.
_EVENTS = ".tfevents."
#: Where the copy comes from, or what is of no use elsewhere.
_OURS = frozenset({"spec.json", "run.json", "stop", "inputs", "code", "delivery.json", ENDING, DRAINED})
_FREE = ("outputs", "figures", "returns")


def grows(path):
    """Whether a file is only ever appended to."""
    top = path.split("/", 1)[0]
    if top == "outputs":
        return _EVENTS in path.rsplit("/", 1)[-1]
    return top in ("attempts", "journal") and path.endswith(_GROWING)


class Mirror:
    """Tells what is in a folder, and what comes to be there.

    Args:
        folder: the job's.
        attempt: number of the attempt that runs here.
        out: a binary stream.
    """

    def __init__(self, folder, attempt, out):
        self.job = jobfolder.JobFolder(folder)
        self.attempt = self.job.attempt(attempt)
        self.out = out
        self.sent = 0
        self.got = 0
        self.have = {}  # path → [size, mtime in ns] as told, or as the copy said
        self.parts = {}  # path → [size, mtime in ns, bytes]
        self.changed = threading.Condition()
        self.writing = threading.Lock()
        self.closed = False
        self._state = b""
        self._ended_before = False  # whether the attempt had ended when the files to tell were looked for
        self.outlet_at = ""  # the address to offer large files at; empty: they are told like all others
        self._outlet = None
        self._offered = {}  # path → (size, mtime in ns)
        self.aside = False  # whether large files are told in a thread of their own
        self._large = queue.Queue()  # type: queue.Queue
        self._larger = None
        self.depot = Depot(None, self)
        self._urls = []  # (key, address, until when) of objects that nobody has taken yet
        self._wanted = 0  # those that were asked for, and have not come
        self._even = None  # whether the other side knows that everything, and everything for good, was told
        self._told = self._whole = 0.0  # when something was told last, and when everything was looked at
        self._sampled = 0.0  # when samples were told last

    # -- what is asked

    def listen(self, lines):
        """Take what the other side says, until it hangs up."""
        try:
            self._hear(lines)
        except (OSError, ValueError, LookupError, TypeError) as error:
            # Who does not listen must not speak on: the connection is made anew, and all is said again.
            sys.stderr.write("%s: %s\n" % (type(error).__name__, error))
            sys.stderr.flush()
        finally:
            with self.changed:
                self.closed = True
                self.changed.notify_all()

    def _hear(self, lines):
        for line in lines:
            word = json.loads(line)
            if not isinstance(word, dict):
                raise ValueError("what is said is no object: %.100r" % line)
            with self.changed:
                if "got" in word:
                    self.got = max(self.got, int(word["got"]))
                if "urls" in word:
                    until = time.monotonic() + float(word.get("good") or 0)
                    self._urls += [(key, url, until) for key, url in word["urls"]]
                    self._wanted = max(0, self._wanted - len(word["urls"]))
                if "fetched" in word:
                    self._fetched(word["fetched"], int(word["bytes"]), bool(word.get("again")))
                self.changed.notify_all()
            if "put" in word and word["put"] == "stop":
                jobfolder.private_folder(self.job.path)  # it may come before all else
                jobfolder.write_file(os.path.join(self.job.path, "stop"), word["text"].encode())
            elif "gone" in word and word["gone"].startswith("spool/") and ".." not in word["gone"]:
                shutil.rmtree(os.path.join(self.job.path, *word["gone"].split("/")[:2]), ignore_errors=True)
            elif "ping" in word:
                self._write({"pong": True})
                self._flush()
            elif word.get("done"):
                jobfolder.write_file(os.path.join(self.job.path, DRAINED), b"")
                self._write({"bye": True})
                self._flush()
                return

    # -- what is told

    def run(self):
        """Until the other side hangs up."""
        while not self.closed:
            self.look()
            with self.changed:
                if not self.closed:
                    self.changed.wait(LOOK)

    def look(self):
        """Tell what there is to tell by now."""
        ended = self._ended_before = self._ended()
        now = time.monotonic()
        whole = ended or now - self._whole >= LOOK_ALL
        if whole:
            self._whole = now
        paths, urgent = self._changed(whole, ended)
        if paths and (urgent or ended or now - self._told >= PACE):
            for path in paths:
                self._tell(path)
                if self.closed:
                    return
            self._told = time.monotonic()
        good = ended and not self._offered
        if self._even is None or (good and not self._even):
            self._even = good
            self._frame({"even": True, "ended": good})
        self._flush()

    def _ended(self):
        return (self.attempt.state().get("phase") in jobfolder.TERMINAL
                or os.path.exists(os.path.join(self.job.path, ENDING)))

    def _changed(self, whole, ended):
        """Paths below the folder that the copy lacks, small and important ones first; and whether they are urgent."""
        found = []
        urgent, growth = False, 0
        tops = [os.path.join("attempts", str(self.attempt.number)), "journal"]
        if whole:
            tops = [name for name in listing(self.job.path) if name not in _OURS]
        for top in tops:
            for path, info in self._files(top):
                if path in self._offered:
                    continue
                known = self.have.get(path)
                if known is not None and known[0] == info.st_size and (grows(path) or known[1] == info.st_mtime_ns):
                    continue
                free = path.split("/", 1)[0] in _FREE and not grows(path)
                if free and not ended and time.time() - info.st_mtime < SETTLED:
                    continue
                if path.endswith("/state.json") and self._not_yet(path):
                    continue
                if not grows(path):
                    urgent = True
                elif not path.endswith("/usage.jsonl"):
                    growth += info.st_size - known[0] if known else BURST
                elif not ended and time.monotonic() - self._sampled < PACE_USAGE:
                    continue
                found.append((path.split("/", 1)[0] in _FREE, not grows(path), info.st_size, path))
        # The state last among its like: who reads it finds what it speaks of.
        found.sort(key=lambda f: (f[0], f[3].endswith("/state.json"), f[2]))
        return [f[3] for f in found], urgent or growth >= BURST

    def _files(self, top):
        """(path, its stat) of all plain files; an entry of the spool only when it is whole."""
        root = os.path.join(self.job.path, top)
        try:
            info = os.lstat(root)
        except OSError:
            return
        if stat.S_ISREG(info.st_mode):
            yield top, info
            return
        for folder, folders, names in os.walk(root):
            folders[:] = sorted(f for f in folders if not os.path.islink(os.path.join(folder, f)))
            if top == "spool" and os.path.dirname(folder) == root and "entry.json" not in names:
                folders[:] = []
                continue
            for name in sorted(names, key=lambda n: (n == "entry.json", n)):
                if name.endswith(".tmp") or name == "lock":
                    continue
                full = os.path.join(folder, name)
                try:
                    info = os.lstat(full)
                except OSError:
                    continue
                if stat.S_ISREG(info.st_mode):
                    yield os.path.relpath(full, self.job.path), info

    def _not_yet(self, path):
        """Whether a state is no news, or is an end that all journals must be told before."""
        state = jobfolder.read_json(os.path.join(self.job.path, path))
        if state.get("phase") in jobfolder.TERMINAL and not self._ended_before:
            return True
        state.pop("heartbeat", None)
        told = json.dumps(state, sort_keys=True).encode()
        if told == self._state:
            return True
        self._state = told
        return False

    def _tell(self, path):
        if path.endswith("/usage.jsonl"):
            self._sampled = time.monotonic()
        full = os.path.join(self.job.path, path)
        try:
            fd = os.open(full, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return
        try:
            info = os.fstat(fd)
            size, mtime = info.st_size, info.st_mtime_ns
            at = 0
            if grows(path):
                at = (self.have.get(path) or [0])[0]
                if at > size:  # usage.jsonl was halved: it is told anew
                    at = 0
            else:
                part = self.parts.pop(path, None)
                if part is not None and part[:2] == [size, mtime]:
                    at = min(part[2], size)
                if self.depot.takes(size - at):
                    self._offered[path] = (size, mtime)
                    self.depot.submit(self._store, path, at)
                    return
                large = size - at >= LARGE
                if large and (self._offer(path, at, size, mtime) or self._put_aside(path, at, size, mtime)):
                    return
            gap = logfile.hole(full) if path.endswith(".log") else None
            if at >= size:
                self._frame({"file": path, "at": at, "size": size, "mtime": mtime, "crc": 0})
            while at < size and not self.closed:
                if gap is not None and gap[0] <= at < gap[1]:
                    at = min(gap[1], size)
                    continue
                end = min(at + PIECE, size, gap[0] if gap is not None and at < gap[0] else size)
                data = os.pread(fd, end - at, at)
                if not data:
                    break
                self._frame({"file": path, "at": at, "size": size, "mtime": mtime, "crc": zlib.crc32(data)}, data)
                at += len(data)
            if at >= size:
                self.have[path] = [size, mtime]
        finally:
            os.close(fd)

    def _offer(self, path, at, size, mtime):
        """Let a large file be fetched, while other things are told; False when that cannot be."""
        if not self.outlet_at:
            return False
        if self._outlet is None:
            from .outlet import Outlet  # most pods never need it

            try:
                self._outlet = Outlet(self.outlet_at, self.job.path)
            except OSError:
                self.outlet_at = ""
                return False
        self._offered[path] = (size, mtime)
        self._frame({"offer": path, "at": at, "size": size, "mtime": mtime, "port": self._outlet.server_address[1],
                     "id": self._outlet.offer(path, size, mtime), "token": self._outlet.token})
        return True

    def _fetched(self, path, count, again):
        """A large file is there, or a part of it; the rest is offered ``again``, or told like all others."""
        if path not in self._offered or self._outlet is None:
            return
        self._outlet.withdraw(path)
        size, mtime = self._offered[path]
        if count >= size:
            self.have[path] = [size, mtime]
        else:
            self.parts[path] = [size, mtime, count]
        if not again:
            self.outlet_at = ""
        del self._offered[path]  # at last: until here it is not looked at

    def _put_aside(self, path, at, size, mtime):
        """Let a large file be told while other things are; False when it is to be told like all others."""
        if not self.aside:
            return False
        self._offered[path] = (size, mtime)
        self._large.put((path, at))
        if self._larger is None:
            self._larger = threading.Thread(target=self._tell_large, daemon=True)
            self._larger.start()
        return True

    def _tell_large(self):
        """Tell large files, one after the other; in a thread."""
        while not self.closed:
            path, at = self._large.get()
            self._tell_aside(path, at, self._tell_pieces)

    def _tell_pieces(self, fd, path, at, size, mtime):
        """Tell a file over this connection; yields up to where it was told."""
        while at < size and not self.closed:
            data = os.pread(fd, min(PIECE, size - at), at)
            if not data:
                break
            self._frame({"file": path, "at": at, "size": size, "mtime": mtime, "crc": zlib.crc32(data)}, data)
            at += len(data)
            yield at
        self._flush()

    def _tell_aside(self, path, at, tell):
        """Tell a large file with ``tell(fd, path, at, size, mtime)``; what it does not tell is looked at again."""
        size, mtime = self._offered[path]
        try:
            fd = os.open(os.path.join(self.job.path, path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                info = os.fstat(fd)
                if (info.st_size, info.st_mtime_ns) == (size, mtime):
                    for told in tell(fd, path, at, size, mtime):
                        at = told  # it counts also when the rest breaks off
            finally:
                os.close(fd)
        except OSError:
            pass  # it is gone, or nobody listens any more
        with self.changed:
            if at >= size:
                self.have[path] = [size, mtime]
            else:
                self.parts[path] = [size, mtime, at]
            del self._offered[path]  # at last: until here it is not looked at
            self.changed.notify_all()

    def _store(self, path, at):
        """Let a large file go through the object store, while other things are told; in a thread."""
        self._tell_aside(path, at, self._store_pieces)

    def _store_pieces(self, fd, path, at, size, mtime):
        """Put a file into the object store, and tell what is there; yields up to where it was told."""
        if not self.depot.takes(size - at):
            return
        for begin, count, crc, key in self.depot.pieces(fd, at, size):
            self._frame({"file": path, "at": begin, "size": size, "mtime": mtime, "crc": crc, "key": key,
                         "bytes": count})
            self._flush()
            yield begin + count
        if self.depot.trouble:
            self._frame({"store": self.depot.trouble})
            self._flush()

    def address(self):
        """A key and a signed address for one object, from any thread; ("", why) when there is none."""
        while True:
            with self.changed:
                self._urls = [one for one in self._urls if one[2] > time.monotonic()]
                asks = len(self._urls) + self._wanted < 2
                if asks:
                    self._wanted += WANT
            if asks:
                self._write({"want": WANT})
                self._flush()
            with self.changed:
                while not self._urls and not self.closed:
                    self.changed.wait()
                if not self._urls:
                    return "", ""
                key, url, until = self._urls.pop(0)
            if not key or until > time.monotonic():
                return key, url

    def _frame(self, header, data=b""):
        if self.sent - self.got >= WINDOW:
            self._flush()
        with self.changed:
            while self.sent - self.got >= WINDOW and not self.closed:
                self.changed.wait()
            if self.closed:
                return
            self.sent += 1
        self._write(header, data)

    def _write(self, header, data=b""):
        head = json.dumps(header).encode()
        with self.writing:
            self.out.write(HEAD.pack(len(head), len(data)) + head)
            if data:
                self.out.write(data)

    def _flush(self):
        """Send what was written; many small frames go together."""
        with self.writing:
            self.out.flush()


def listing(folder):
    """Names in a folder, in order; none when it is not there."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def main(arguments):
    """Run as ``FOLDER ATTEMPT``."""
    lines = iter(sys.stdin.buffer.readline, b"")
    mirror = Mirror(arguments[0], arguments[1], sys.stdout.buffer)
    first = json.loads(next(lines))
    mirror.have = dict(first.get("have") or {})
    mirror.parts = dict(first.get("parts") or {})
    mirror.outlet_at = str(first.get("outlet") or "")
    mirror.aside = bool(first.get("aside"))
    mirror.depot = Depot(first.get("store"), mirror)
    threading.Thread(target=mirror.listen, args=(lines,), daemon=True).start()
    try:
        mirror.run()
    except BrokenPipeError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
