"""The job folder: paths, atomic files and logs; what each file means is in ``docs/job-folder.md``."""

import json
import os
import time
from _thread import get_ident

from . import processes

SCHEMA = 1
TERMINAL = ("completed", "failed", "canceled")
#: Environment of every process of a job; by it strays are found.
MARKER = "JUPYTER_MLOPS_JOB_DIR"
#: Environment of the process that starts the ranks of one of several machines: ``number/how many/hosts:port``,
#: and ``least:most`` for how many where machines may go and come.
NODES = "JUPYTER_MLOPS_NODES"
#: Environment of the same process where machines take orders of each other: who gives one must know this.
NODES_KEY = "JUPYTER_MLOPS_NODES_KEY"
#: Environment of a process of an elastic attempt: which one it is of all that all its machines ever ran. RANK changes
#: when machines go and come; this number does not, so logs and journals go by it.
SLOT = "JUPYTER_MLOPS_SLOT"
#: Why an attempt ends whose folder is gone.
DELETED = "the job's folder was deleted"
_MAX_JSON = 16 * 1024 * 1024


def private_folder(path):
    """Make a folder, and those above it that are missing, so that only this user can enter them."""
    if not os.path.isdir(path):
        private_folder(os.path.dirname(path))
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            if not os.path.isdir(path):
                raise
    return path


def write_file(path, data, durable=True):
    """Replace a file atomically, mode 0600; ``durable`` also waits until it would survive a loss of power."""
    folder, name = os.path.split(path)
    # Of a long name the beginning: the whole one is perhaps as long as a name can be.
    temporary = os.path.join(folder, "%s.%d.%d.tmp" % (name[:50], os.getpid(), get_ident()))
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)
    fd = os.open(temporary, flags, 0o600)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view):]
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except OSError:
        try:
            os.unlink(temporary)
        except OSError:
            pass
        raise
    if durable:
        try:
            fd = os.open(folder or ".", os.O_RDONLY)
        except OSError:
            return
        try:
            os.fsync(fd)
        except OSError:
            pass  # some file systems cannot sync a folder
        finally:
            os.close(fd)


def write_json(path, value, durable=True):
    """Replace a file by a JSON object, see :func:`write_file`."""
    write_file(path, (json.dumps(value) + "\n").encode(), durable)


def _without_waiting(path, flags):
    """Open a file that a job's own code may have replaced by a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_json(path):
    """The JSON object in a file; ``{}`` when there is none that can be read."""
    try:
        with open(path, "rb", opener=_without_waiting) as f:
            value = json.loads(f.read(_MAX_JSON) or b"")
        return value if isinstance(value, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


class JobFolder:
    """``jobs/<name>/``."""

    def __init__(self, path):
        self.path = os.path.abspath(os.fspath(path))

    @property
    def name(self):
        """The job's name."""
        return os.path.basename(self.path)

    @property
    def marker(self):
        """The environment entry that marks processes of this job, as bytes."""
        return os.fsencode("%s=%s" % (MARKER, self.path))

    @property
    def cell_path(self):
        return os.path.join(self.path, "code", "cell.py")

    @property
    def outputs(self):
        return os.path.join(self.path, "outputs")

    @property
    def figures(self):
        return os.path.join(self.path, "figures")

    @property
    def journal(self):
        """Folder of what ranks have logged, see :mod:`.journal`."""
        return os.path.join(self.path, "journal")

    def journal_path(self, attempt, rank):
        return os.path.join(self.journal, "%d-%d.bin" % (_count(attempt, "attempt", 1), _count(rank, "rank", 0)))

    @property
    def spool(self):
        """Folder of artifacts and models that wait to be delivered."""
        return os.path.join(self.path, "spool")

    @property
    def inputs(self):
        """Folder of what was shipped with the job."""
        return os.path.join(self.path, "inputs")

    @property
    def returns(self):
        """Folder of the variables that the job brings back."""
        return os.path.join(self.path, "returns")

    @property
    def delivery_path(self):
        """How far the control plane has delivered journal and spool."""
        return os.path.join(self.path, "delivery.json")

    def run(self):
        """Facts of the job's MLflow run, as the control plane wrote them before the start, or ``{}``."""
        return read_json(os.path.join(self.path, "run.json"))

    def spec(self):
        """The job's spec as the control plane wrote it, or ``{}``."""
        return read_json(os.path.join(self.path, "spec.json"))

    def cwd(self, spec):
        """The working folder that a spec asks for."""
        return spec.get("cwd") or self.outputs

    def ask_stop(self, attempt, grace):
        """Leave the wish that the attempt ends, with ``grace`` seconds between SIGTERM and SIGKILL."""
        write_json(os.path.join(self.path, "stop"), {"attempt": attempt, "grace": grace})

    def stop_wish(self, attempt):
        """The grace in seconds that was asked for with the stop of this attempt, or None."""
        path = os.path.join(self.path, "stop")
        if not os.path.lexists(path):
            return None
        wish = read_json(path)
        if wish.get("attempt", attempt) != attempt:
            return None
        try:
            return min(max(float(wish.get("grace", 10.0)), 0.0), 3600.0)
        except (TypeError, ValueError):
            return 10.0

    def attempt(self, number):
        return Attempt(self, number)


class Attempt:
    """``jobs/<name>/attempts/<n>/``: one try to run the job."""

    def __init__(self, job, number):
        self.job = job
        self.number = _count(number, "attempt", 1)
        self.path = os.path.join(job.path, "attempts", str(self.number))

    def _file(self, name):
        return os.path.join(self.path, name)

    @property
    def lock_path(self):
        return self._file("lock")

    @property
    def supervisor_log(self):
        return self._file("supervisor.log")

    @property
    def agent_log(self):
        """Output of the process that starts the ranks when there are several."""
        return self._file("torchrun.log")

    @property
    def limits_path(self):
        """What the attempt was started with, for a supervisor that adopts."""
        return self._file("limits.json")

    @property
    def inputs_path(self):
        """How far the download of its inputs is, and where they are, see :mod:`.fetch`."""
        return self._file("inputs.json")

    @property
    def usage_path(self):
        """Samples of what the ranks use, one JSON object a line."""
        return self._file("usage.jsonl")

    def usage_paths(self):
        """Those of all machines, as {number of the machine: path}: of a cluster's a copy is kept here for each."""
        found = {0: self.usage_path}
        try:
            names = os.listdir(self.path)
        except OSError:
            return found
        for name in names:
            number = name[5:]
            if name.startswith("node-") and number.isascii() and number.isdigit() and 0 < int(number) < 100000:
                path = os.path.join(self.path, name, "usage.jsonl")
                if os.path.exists(path):
                    found[int(number)] = path
        return dict(sorted(found.items()))

    def log_path(self, rank):
        return self._file("rank-%d.log" % _count(rank, "rank", 0))

    def log_size(self, rank):
        """Bytes of a rank's log, 0 when there is none."""
        try:
            return os.stat(self.log_path(rank)).st_size
        except OSError:
            return 0

    def pid_path(self, who):
        """Who runs: ``who`` is a rank, or ``"agent"``."""
        return self._file("agent.pid" if who == "agent" else "rank-%d.pid" % _count(who, "rank", 0))

    def exit_path(self, who):
        """How it ended: ``who`` is a rank, or ``"agent"``."""
        return self._file("agent.exit" if who == "agent" else "rank-%d.exit" % _count(who, "rank", 0))

    def state(self):
        """The state as last written, ``{}`` when there is none."""
        state = read_json(self._file("state.json"))
        return state if state.get("schema") == SCHEMA and isinstance(state.get("phase"), str) else {}

    def write_state(self, state, durable=True):
        write_json(self._file("state.json"), dict(state, schema=SCHEMA), durable)

    def sign_in(self, who):
        """Called by a rank (or agent) before any user code: from here on the attempt has been started."""
        pid = os.getpid()
        entry = {"pid": pid, "start_time": processes.start_time(pid), "boot_id": processes.boot_id(),
                 "time": time.time()}
        write_json(self.pid_path(who), entry, durable=False)

    def signed_in(self, who):
        """``{"pid", "start_time", "boot_id", "time"}`` or ``{}``."""
        entry = read_json(self.pid_path(who))
        return entry if isinstance(entry.get("pid"), int) else {}

    def started(self):
        """Whether any rank or agent has signed in, or may have before the machine went down: never start it again."""
        try:
            if any(name.endswith(".pid") for name in os.listdir(self.path)):
                return True
        except OSError:
            return False
        state = self.state()  # survives a loss of power, which the small .pid files need not
        return bool(state) and (state["phase"] != "starting" or state.get("boot_id") != processes.boot_id())

    def locked(self):
        """Whether somebody supervises the attempt, or one of its ranks is about to sign in."""
        import fcntl

        try:
            fd = os.open(self.lock_path, os.O_RDWR)
        except OSError:
            return False
        try:
            # Shared, and let go at once: a supervisor that comes just now is patient.
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        except OSError:
            return True
        finally:
            os.close(fd)

    def sweep(self):
        """Remove what was being written by those that were killed; only when none of the attempt runs any more."""
        try:
            names = os.listdir(self.path)
        except OSError:
            return
        for name in names:
            if name.endswith(".tmp"):
                try:
                    os.unlink(os.path.join(self.path, name))
                except OSError:
                    pass

    def read_log(self, rank, offset, limit):
        """Up to ``limit`` bytes of a rank's log from ``offset``; a negative offset counts from the end.

        A chunk neither starts (after a negative offset) nor ends inside a UTF-8 character, unless that is all there is.

        Returns:
            (data, offset, next_offset, size)
        """
        return read_log(self.log_path(rank), offset, limit)


def read_log(path, offset, limit):
    """A chunk of a growing file, see :func:`.logfile.read`."""
    from . import logfile  # few who know the folder read logs

    return logfile.read(path, offset, limit)


def _count(value, what, least):
    """``value`` as an int of at least ``least``: it becomes part of a path.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError("%s %r is not a number" % (what, value))
    number = int(value) if isinstance(value, int) or (value.isascii() and value.isdigit()) else -1
    if number < least or number > 1000000:
        raise ValueError("%s %r is not a number from %d" % (what, value, least))
    return number
