"""Packages on top of an image, installed in a pod before its ranks start; see ``docs/clusters.md``.

What was asked for goes into an environment of Python that sees all that the image has: pip takes what is there already,
so a torch of the image is neither fetched again nor replaced. It stays in a cache (:mod:`.packagecache`) under the
hash of the image, its packages and what was asked for.

Where packages of conda are asked for, the image's own tool makes an environment (:mod:`.conda`) that sees nothing of
the image, and pip goes on in that.

Credentials of a package index lie in files that only this container sees. They are in no argument and no environment,
and are blotted out of what pip says.
"""

import json
import os
import signal
import site
import subprocess
import sys
import threading
import time
from hashlib import sha256

from . import conda, jobfolder, packagecache, pipwords, processes, software

#: The operator's files, where there are any; see ``training.pip.secret``.
FILES = "pip"
#: Left in the work folder for the ranks' container: which Python it starts.
CHOSEN = "packages.json"
#: Of these an image's own version is kept unless another one is asked for by name: they come with its drivers.
KEPT = ("torch", "torchvision", "torchaudio", "triton", "tensorflow", "jax", "jaxlib")
#: Names of the environment that would lead pip elsewhere.
_MISLEADING = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "PIP_REQUIREMENT", "PIP_CONSTRAINT", "PIP_DRY_RUN",
               "PIP_REQUIRE_VIRTUALENV", "PIP_LOG", "PIP_REPORT", "PIP_PYTHON", "PYTHONHOME", "PYTHONNOUSERSITE")
_LAST_LINES = 40
#: Seconds between two changes of what is said about an installation.
_SAY = 0.5


class PackagesError(Exception):
    """Packages that cannot be installed; says why in one line."""


class Stopped(Exception):
    """The pod is being ended."""


def key(order, there):
    """What an environment is found again by, in hexadecimal."""
    what = [order["image"], there["python"], sys.base_prefix, sys.prefix, os.uname().machine,
            sorted(there["packages"].items()), sorted(order["requirements"]), order.get("index") or {},
            order.get("options") or []]
    if order.get("conda"):
        what.append(conda.identity(order["conda"]))
    return sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]


class Installation:
    """Makes the environment of one attempt on one node.

    Args:
        order: ``{"image", "requirements", "limit", "timeout", "index", "options", "conda"}``, of which the last is
            null, or as :func:`.conda.arguments` takes it, with a ``timeout`` of its own.
        root: the cache; ``spare`` is used where nothing can be written to it.
        files: folder of the operator's files for pip, beside it those for conda; they need not be there.
        say: called with one line on what goes on.
        log: descriptor to which pip's words are added.
    """

    def __init__(self, order, root, spare, files, say, log):
        self.order = order
        self.files = files
        self.channels = os.path.join(os.path.dirname(files), conda.FILES)
        self.say = say
        self.log = log
        self.shared = packagecache.usable(root)
        self.root = root if self.shared else spare
        if not self.shared and root != spare:
            self._tell("the package cache cannot be written to by user %d: packages are installed for this job only"
                       % os.getuid())
        self.secrets = sorted([*pipwords.secrets(files), *conda.secrets(self.channels)], key=len, reverse=True)
        self.child = None
        self.stopped = False
        self.lines = []

    def stop(self, *_):
        """End it, from a signal handler: what is half made is removed."""
        self.stopped = True
        self._kill()

    def run(self):
        """The entry of the cache with all that was asked for, installed now or earlier.

        Raises:
            PackagesError: it cannot be; nothing half made is left.
            Stopped: see :meth:`stop`.
        """
        there = software.facts()
        entry = packagecache.Entry(self.root, key(self.order, there), conda.PREFIX if self.order.get("conda") else "")
        if entry.complete():
            entry.used()
            return entry
        os.umask(0o022)  # other users of a cache may read what is in it
        os.makedirs(entry.folder, exist_ok=True)
        lock = entry.lock(exclusive=True, wait=False)
        if lock is None:
            self.say("waiting for another job that installs the same packages")
            lock = self._wait(entry)
        try:
            if not entry.complete():
                self._install(entry, there)
        finally:
            os.close(lock)
        if self.shared:
            packagecache.evict(self.root, int(self.order["limit"]), entry.key)
        entry.used()
        return entry

    def _wait(self, entry):
        while not self.stopped:
            lock = entry.lock(exclusive=True, wait=False)
            if lock is not None:
                return lock
            time.sleep(0.2)
        raise Stopped()

    def _install(self, entry, there):
        wanted, order = self.order["requirements"], self.order.get("conda")
        count = len(wanted) + (len(order["specs"]) if order else 0)
        self.count = "%d package%s" % (count, "" if count == 1 else "s")
        self.say("installing " + self.count)
        begun = time.monotonic()
        entry.remove()
        about = {"requirements": wanted, "image": self.order["image"], "python": there["python"]}
        try:
            if order:
                about.update(self._conda(entry, order, wanted))
            else:
                environment(entry.path)
                self._pip(entry, there, wanted)
            entry.finish(about)
        except OSError as error:
            entry.remove()
            raise PackagesError("packages could not be installed: %s" % (error.strerror or error))
        except BaseException:
            entry.remove()
            raise
        self._tell("installed %s in %.1f s" % (self.count, time.monotonic() - begun))

    def _conda(self, entry, order, wanted):
        """Make an environment of conda; what its mark says of it."""
        program = conda.tool()
        if program is None:
            raise PackagesError("the image has neither micromamba, mamba nor conda")
        listed = conda.prepare(entry.path, order["specs"])
        env = conda.environment(program, order, entry.path, self.channels)
        self._run(conda.arguments(program, order, entry.prefix, listed), entry, env, conda,
                  float(order.get("timeout") or 3600))
        conda.clear(entry.path)
        if wanted:
            self._pip(entry, {"pip": True, "packages": {}}, wanted)  # it is among the specs then
        try:
            made = conda.activated(entry.prefix)
        except conda.CondaError as error:
            raise PackagesError("the conda environment cannot be used: %s" % error)
        if self.stopped:
            raise Stopped()
        return dict(made, packages=software.packages(made["site"]), conda=order)

    def _pip(self, entry, there, wanted):
        if not there["pip"]:
            self._run([entry.python, "-m", "ensurepip", "--default-pip"], entry)
        listed, pinned = os.path.join(entry.path, "requirements.txt"), os.path.join(entry.path, "kept.txt")
        with open(listed, "w", encoding="utf-8") as f:
            f.write("".join(line + "\n" for line in wanted))
        with open(pinned, "w", encoding="utf-8") as f:
            f.write("".join(line + "\n" for line in kept(wanted, there["packages"])))
        self._run([entry.python, "-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--no-cache-dir",
                   "--progress-bar", "off", "-r", listed, "-c", pinned, *(self.order.get("options") or [])], entry)

    def _run(self, arguments, entry, env=None, words=pipwords, seconds=0.0):
        """Run a program to its end; its words go to the job's log. Raises PackagesError, Stopped.

        ``words``: the module that understands what it says.
        """
        self.lines = []
        self.child = subprocess.Popen(
            arguments, env=env or self._environment(entry), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True, cwd=entry.path)
        seconds = seconds or float(self.order.get("timeout") or 1800)
        begun = time.monotonic()
        timer = threading.Timer(seconds, self._kill)
        timer.daemon = True
        timer.start()
        if self.stopped:
            self._kill()
        said, last = 0.0, ""
        try:
            for raw in self.child.stdout or ():
                # Of a bar that is drawn over and over the last one counts.
                line = raw.decode("utf-8", "replace").rstrip().rpartition("\r")[2]
                line = conda.blot(pipwords.blot(line, self.secrets))
                self.lines = [*self.lines[1 - _LAST_LINES:], line]
                self._write(line)
                step = words.progress(line)
                # Of the few steps of conda each one may be the long one.
                if step and (time.monotonic() - said >= _SAY or (words is conda and step != last)):
                    said, last = time.monotonic(), step
                    self.say("installing %s: %s" % (self.count, step))
            code = self.child.wait()
        finally:
            timer.cancel()
            self._kill()
        if self.stopped:
            raise Stopped()
        if code and time.monotonic() - begun >= seconds:
            raise PackagesError("packages were not installed within %g s (training.%s.timeout)" % (
                seconds, "pip" if words is pipwords else "conda"))
        if code:
            raise PackagesError(words.explain(self.lines, code))

    def _environment(self, entry):
        env = {k: v for k, v in os.environ.items() if k not in _MISLEADING and not k.startswith("JUPYTER_MLOPS_")}
        env.pop("PYTHONPATH", None)  # ours
        if entry.inner:
            env.pop("VIRTUAL_ENV", None)
        env.update({"PYTHONUNBUFFERED": "1", "CONDA_PREFIX" if entry.inner else "VIRTUAL_ENV": entry.prefix})
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        env["PATH"] = os.path.join(entry.prefix, "bin") + os.pathsep + env.get("PATH", os.defpath)
        index = self.order.get("index") or {}
        if index or os.path.exists(os.path.join(self.files, "pip.conf")):
            env = {k: v for k, v in env.items() if not k.startswith("PIP_")}  # the operator knows better than the image
        for name, value in (("PIP_INDEX_URL", index.get("index_url")), ("PIP_TRUSTED_HOST", index.get("trusted_hosts")),
                            ("PIP_EXTRA_INDEX_URL", index.get("extra_index_urls"))):
            if value:
                env[name] = value if isinstance(value, str) else " ".join(value)
        for name, file in (("PIP_CONFIG_FILE", "pip.conf"), ("NETRC", "netrc"), ("PIP_CERT", "ca.crt")):
            path = os.path.join(self.files, file)
            if os.path.exists(path):
                env[name] = path
        return env

    def _kill(self):
        child = self.child
        if child is not None and child.poll() is None:
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except OSError:
                pass

    def _tell(self, text):
        self._write("jupyter-mlops: " + text)

    def _write(self, line):
        os.write(self.log, (line + "\n").encode("utf-8", "replace"))


def environment(path):
    """Make an environment of Python in which all is seen that this interpreter sees."""
    import venv

    venv.EnvBuilder(system_site_packages=True, with_pip=False, symlinks=True).create(path)
    if sys.prefix == sys.base_prefix:
        return
    # An image whose Python is an environment itself: of a second one Python knows only what both are made from.
    (own,) = [p for p in os.listdir(os.path.join(path, "lib")) if p.startswith("python")]
    lines = ["import site; site.addsitedir(%r)\n" % p for p in site.getsitepackages([sys.prefix])]
    with open(os.path.join(path, "lib", own, "site-packages", "_image.pth"), "w", encoding="utf-8") as f:
        f.writelines(lines)


def kept(wanted, installed):
    """Constraints by which what comes with an image's drivers stays as it is, unless it is asked for by name."""
    if any("--hash=" in line for line in wanted):
        return []  # then pip wants a hash of everything, and installs nothing that is not listed
    named = {pipwords.name_of(line) for line in wanted}
    return ["%s==%s" % (name, installed[name]) for name in KEPT if name in installed and name not in named]


def install(boot, work, cache, order, folder, attempt, first, compare=None):
    """Install what an order asks for, and leave word for the ranks' container.

    Args:
        cache: folder of the cache.
        compare: what a notebook has packed and an environment of conda is compared with, see :func:`.software.compare`.
        first: number of this node's first rank, to whose log pip's words go.

    Returns:
        an empty text, or why it failed; the attempt's state says so then.
    """
    me = {"pid": os.getpid(), "boot_id": processes.boot_id(), "ranks": []}

    def say(reason):
        attempt.write_state(dict(me, phase="starting", reason=reason, heartbeat=time.time()), durable=False)

    jobfolder.private_folder(attempt.path)
    log = os.open(attempt.log_path(first), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    files = os.path.join(os.path.dirname(boot), FILES)
    try:
        installation = Installation(order, cache, os.path.join(work, "packages"), files, say, log)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, installation.stop)
        entry = installation.run()
        if order.get("conda") and compare and not first:
            why, remarks = software.compare(there=dict(entry.complete(), conda=True), image="", **compare)
            if why:
                raise PackagesError(why)
            for line in remarks:
                os.write(log, ("jupyter-mlops: %s\n" % line).encode("utf-8", "replace"))
    except Stopped:
        reason = "stopped: the supervisor got signal 15 while packages were installed"
        attempt.write_state(dict(me, phase="canceled", reason=reason, ended_at=time.time()))
        return reason
    except PackagesError as error:
        attempt.write_state(dict(me, phase="failed", cause="packages", reason=str(error), ended_at=time.time(),
                                 failed_rank=first if first else None))
        return str(error)
    finally:
        os.close(log)
    jobfolder.write_json(os.path.join(work, CHOSEN), {"root": entry.folder, "key": entry.key, "inner": entry.inner},
                         durable=False)
    say("starting")
    return ""


def chosen(work):
    """The entry that :func:`install` has left word of, held for as long as this process lives; None: there is none.

    Raises:
        PackagesError: it is gone.
    """
    note = jobfolder.read_json(os.path.join(work, CHOSEN))
    if not note:
        return None
    entry = packagecache.Entry(os.path.dirname(note["root"]), note["key"], note.get("inner") or "")
    try:
        entry.held = entry.lock()
    except OSError:
        entry.held = None
    if not entry.complete():
        raise PackagesError("the packages that were installed for this job are gone from the cache")
    return entry
