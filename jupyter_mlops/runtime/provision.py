"""What a supervisor does for a job's named inputs and outputs before it starts the ranks."""

import hashlib
import os
import signal
import socket

from . import data, jobfolder, sources
from .cache import View, size_text


class Provision:
    """The inputs and outputs of one attempt on this machine.

    Args:
        order: what the ranks are started with; ``env`` says where cache and claims are.
        log: path of the log that is told what happens.
    """

    def __init__(self, job, attempt, spec, order, log):
        self.job = job
        self.attempt = attempt
        self.spec = spec
        self.order = order
        self.log = log
        self.view = None  # type: View | None
        self.child = None  # type: int | None # pid of what downloads
        self._pipe = -1

    def begin(self):
        """Start what has to be downloaded, if anything. Raises DataError, OSError."""
        given = (self.spec.get("inputs") or {}).items()
        if not any(isinstance(v, dict) and (downloaded(v) or self._packed(name)) for name, v in given):
            return
        env = dict(self.order["env"])
        try:
            cache = jobfolder.private_folder(env[data.CACHE])
            self.view = View(cache, owner(self.job.path, self.attempt.number))
        except OSError as error:
            raise data.DataError("the cache %s cannot be written: %s" % (env[data.CACHE], error.strerror or error))
        env.update({jobfolder.MARKER: self.job.path, "JUPYTER_MLOPS_ATTEMPT": str(self.attempt.number)})
        read, write = os.pipe()
        append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        try:
            self.child = os.posix_spawn(
                self.order["interpreter"],
                [self.order["interpreter"], "-u", "-m", "jupyter_mlops.runtime.fetch", self.job.path,
                 str(self.attempt.number), self.view.folder], env,
                file_actions=[(os.POSIX_SPAWN_DUP2, read, 0), (os.POSIX_SPAWN_OPEN, 1, self.log, append, 0o600),
                              (os.POSIX_SPAWN_DUP2, 1, 2), (os.POSIX_SPAWN_CLOSE, self.view.descriptor)],
                setsigdef=[signal.SIGPIPE, signal.SIGHUP, signal.SIGINT, signal.SIGTERM], setsigmask=[])
        finally:
            os.close(read)
        self._pipe = write

    def _packed(self, name):
        return os.path.exists(shipped(self.job, name) + data.ZIP)

    def told(self):
        """How far it is, in a few words."""
        now = jobfolder.read_json(self.attempt.inputs_path)
        if not now.get("total"):
            return "looking at its inputs"
        return "downloading %s: %s of %s" % (now.get("name"), size_text(now["done"]), size_text(now["total"]))

    def ended(self, code):
        """What the download came to; call it when it has ended, or when there is none (``code`` None).

        Returns:
            the environment that tells the ranks where everything is

        Raises:
            DataError: something is not there.
        """
        self._close()
        now = jobfolder.read_json(self.attempt.inputs_path) if self.child is not None else {}
        if code is not None and (code or not now.get("ended")):
            raise data.DataError(now.get("error") or "what brings the inputs ended with exit code %d" % code)
        env = {}
        for name, given in (self.spec.get("inputs") or {}).items():
            where = given if not isinstance(given, dict) else (now.get("paths") or {}).get(name) or self._place(
                name, given)
            env[data.INPUT + name] = data.text_of(where)
        for name, given in (self.spec.get("outputs") or {}).items():
            env[data.OUTPUT + name] = self._output(name, given)
        return env

    def _place(self, name, given):
        """Where an input is that was not downloaded."""
        path = given["path"]
        if given.get("blob") or data.scheme(path) in data.MLFLOW:
            return _came(shipped(self.job, name), path)
        if data.scheme(path) == "claim":
            os.environ.setdefault(data.CLAIMS, self.order["env"].get(data.CLAIMS) or "")
            found = sources.mounted(path)
            sources.check_kind(found, given.get("type") or "")
            return found
        if data.scheme(path):
            return path
        sources.check_kind(data.local(path), given.get("type") or "")
        return data.local(path)

    def _output(self, name, given):
        path = given.get("path") or ""
        if data.scheme(path) == "claim":
            claim, inner = data.claim(path)
            found = os.path.join(self.order["env"].get(data.CLAIMS) or "", claim, inner)
        else:
            found = data.local(path) or os.path.join(self.job.outputs, name)
        try:
            os.makedirs(os.path.dirname(found) if given.get("type") == "uri_file" else found, exist_ok=True)
        except OSError as error:
            raise data.DataError("output %s: %s cannot be made: %s" % (name, path or found, error.strerror))
        return found

    def kill(self):
        """End what downloads."""
        self._close()
        if self.child is not None:
            try:
                os.kill(self.child, signal.SIGKILL)
            except OSError:
                pass

    def release(self):
        """The ranks have ended: the cache may forget what they used."""
        if self.view is not None:
            self.view.close()
            self.view = None

    def _close(self):
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1


def owner(path, number):
    """The name of an attempt's view, another one in each pod."""
    return hashlib.sha256(("%s %s %s" % (socket.gethostname(), path, number)).encode()).hexdigest()[:24]


def downloaded(given):
    """Whether an input is fetched by the machine where the job runs."""
    return data.mode(given) == "download" and not given.get("blob") and data.scheme(given["path"]) not in data.MLFLOW


def shipped(job, name):
    """Folder of an input that came with the job."""
    return os.path.join(job.inputs, data.SHIPPED, name)


def _came(folder, path):
    if not os.path.isdir(folder):
        raise data.DataError("the input %s did not come with the job" % data.shown(path))
    inner = os.path.join(folder, data.ONE)
    return os.path.join(inner, os.listdir(inner)[0]) if os.path.isdir(inner) else folder
