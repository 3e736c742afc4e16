"""Brings the inputs of a job that are to be downloaded, before its ranks start.

    python -m jupyter_mlops.runtime.fetch FOLDER ATTEMPT VIEW < pipe

It runs in the interpreter of the ranks, with their environment, since it is there that fsspec and credentials are. How
far it is lies in ``attempts/<n>/inputs.json``: ``{"done", "total", "name", "error", "paths": {name: path}, "ended"}``.
It ends when its standard input does: then its supervisor is dead.
"""

import os
import sys
import threading
import time

from . import cache as caches
from . import data, jobfolder, parcel, provision, sources

#: Files that are downloaded at the same time, and seconds between two notes of how far it is, in the log and beside it.
PARALLEL, NOTE, LOG = 8, 0.5, 10.0
TRIES = 3


class Progress:
    """How far it is: bytes that are here, those of them from the cache, and all there will be."""

    def __init__(self, path):
        self.path = path
        self.done = self.total = self.cached = self.files = self.hits = 0
        self.name = ""
        self.paths = {}  # type: dict[str, str]
        self._lock = threading.Lock()
        self._logged = time.monotonic()

    def add(self, count, cached=False):
        with self._lock:
            self.done += count
            if cached:
                self.cached += count

    def file(self, hit):
        with self._lock:
            self.files += 1
            self.hits += hit

    def note(self, error="", ended=False):
        jobfolder.write_json(self.path, {
            "done": self.done, "total": self.total, "cached": self.cached, "files": self.files, "hits": self.hits,
            "name": self.name, "error": error, "paths": self.paths, "ended": ended}, durable=False)
        if not ended and time.monotonic() - self._logged > LOG:
            self._logged = time.monotonic()
            say("input %s: %s of %s" % (self.name, caches.size_text(self.done), caches.size_text(self.total)))


def say(text):
    sys.stdout.write("jupyter-mlops: %s\n" % text)
    sys.stdout.flush()


class Fetch:
    """All inputs of one attempt that are downloaded. ``view``: folder of what the job sees of the cache."""

    def __init__(self, job, attempt, view):
        self.job = job
        self.attempt = attempt
        self.view = view
        self.cache = caches.Cache(os.environ[data.CACHE], int(os.environ.get(data.LIMIT) or 0))
        self.inputs = [(name, given) for name, given in sorted((job.spec().get("inputs") or {}).items())
                       if isinstance(given, dict)]
        self.progress = Progress(attempt.inputs_path)
        self.failed = []  # type: list[BaseException]

    def run(self):
        """Bring all. Raises DataError."""
        began = time.monotonic()
        for name, _ in self.inputs:
            self._unpack(provision.shipped(self.job, name))
        plans = [self._plan(name, given) for name, given in self.inputs if provision.downloaded(given)]
        total = self.progress.total = sum(size or 0 for _, _, files in plans for _, _, _, size in files)
        missing = sum(size or 0 for _, _, files in plans for _, _, version, size in files
                      if not self.cache.has(version, size))
        if missing:
            try:
                self.cache.make_room(missing)
            except caches.NoRoom as error:
                raise data.DataError("the inputs do not fit on this machine: %s" % error.strerror)
        for plan in plans:
            self._bring(*plan)
        self._tell(time.monotonic() - began, total)

    @staticmethod
    def _unpack(place):
        """Lay out what came with the job as a zip."""
        if not os.path.exists(place + data.ZIP):
            return
        try:
            parcel.unpack(place + data.ZIP, place)
        except parcel.ParcelError as error:
            raise data.DataError("an input is not what was sent: %s" % error)
        os.unlink(place + data.ZIP)

    def _plan(self, name, given):
        """(name, source, [(relative path, what the source opens, key, bytes)]), and where it will be."""
        self.progress.name = name
        self.progress.note()
        source = sources.of(given["path"], given.get("type") or "")
        target = os.path.join(self.view, name)
        jobfolder.private_folder(target)
        files = []
        for relative, what, version, size in source.files():
            if version is None:
                say("input %s: nothing tells versions of %s apart, so it is downloaded each time" % (
                    name, data.shown(what)))
                version = "%s %s" % (self.view, time.time_ns())
            files.append((relative, what, caches.key(what, version), size))
        if not files:
            raise data.DataError("%s has no files" % data.shown(given["path"]))
        self.progress.paths[name] = target if source.folder else os.path.join(target, files[0][0])
        return name, source, files

    def _bring(self, name, source, files):
        from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

        self.progress.name = name
        before = self.progress.done, self.progress.cached
        began = time.monotonic()
        with ThreadPoolExecutor(PARALLEL) as pool:
            waiting = {pool.submit(self._file, name, source, *file) for file in files}
            while waiting:
                done, waiting = wait(waiting, NOTE, FIRST_EXCEPTION)
                for one in done:
                    error = one.exception()
                    if error is not None:
                        self.failed.append(error)
                        for other in waiting:
                            other.cancel()
                        raise error
                self.progress.note()
        count, cached = self.progress.done - before[0], self.progress.cached - before[1]
        say("input %s: %s, %s: %s from the cache, %s downloaded in %.1f s" % (
            name, "1 file" if len(files) == 1 else "%d files" % len(files), caches.size_text(count),
            caches.size_text(cached), caches.size_text(count - cached), time.monotonic() - began))

    def _file(self, name, source, relative, what, version, size):
        target = os.path.join(self.view, name, *relative.split("/"))
        jobfolder.private_folder(os.path.dirname(target))

        def fill(path):
            for number in range(1, TRIES + 1):
                at = os.path.getsize(path) if os.path.exists(path) else 0
                if at and size is None:  # nobody knows whether that is all
                    os.unlink(path)
                    at = 0
                try:
                    with open(path, "ab") as f:
                        self.progress.add(at)
                        for piece in source.read(what, at) if size is None or at < size else ():
                            if self.failed:
                                raise data.DataError("given up")
                            f.write(piece)
                            f.flush()  # the next one goes on here, whatever becomes of this process
                            self.progress.add(len(piece))
                    if size is not None and os.path.getsize(path) < size:
                        raise ConnectionError("the connection ended")
                    return
                except Exception as error:
                    got = os.path.getsize(path) if os.path.exists(path) else 0
                    self.progress.add(-got)
                    told = sources.explain(error, what)
                    if self.failed or number == TRIES or not sources.passes(error):
                        raise told
                    say("%s; tried again" % told)
                    time.sleep(number)

        try:
            hit = self.cache.fetch(version, size, target, fill)
        except OSError as error:
            raise data.DataError("%s: %s" % (data.shown(what), error.strerror or error))
        self.progress.file(hit)
        if hit:
            self.progress.add(os.path.getsize(target), cached=True)

    def _tell(self, seconds, total):
        """Metrics of the job's run, by the first of several machines."""
        from . import record

        place = record.place()
        if place is None or place.writer is None or not self.progress.files:
            return
        done, step = max(self.progress.done, 1), self.attempt.number - 1
        place.writer.metrics({
            "system/inputs/bytes": float(self.progress.done), "system/inputs/cached_bytes": float(self.progress.cached),
            "system/inputs/hit_rate": self.progress.cached / done, "system/inputs/seconds": round(seconds, 3)}, step)
        place.writer.sync(5.0)


def _watch():
    """End when the supervisor does, whatever becomes of it."""
    try:
        while os.read(0, 512):
            pass
    except OSError:
        pass
    os._exit(1)


def main(arguments):
    """See the module; 0 when all is there."""
    threading.Thread(target=_watch, daemon=True).start()
    job = jobfolder.JobFolder(arguments[0])
    attempt = job.attempt(arguments[1])
    fetch = Fetch(job, attempt, arguments[2])
    error = ""
    try:
        fetch.run()
    except data.DataError as found:
        error = str(found)
    except Exception as found:
        error = "the inputs could not be brought: %s" % sources.one_line(found)
    fetch.progress.note(error, ended=True)
    if error:
        say(error)
    sys.stdout.flush()
    os._exit(1 if error else 0)  # threads of libraries keep nobody waiting


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
