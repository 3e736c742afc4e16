"""A process that has imported torch and waits for one job: its supervisor then, the parent of the job's ranks.

    python -u -m jupyter_mlops.runtime.warm HOME ROOM

It runs in the interpreter of the jobs that it is for. Standard input is a socket whose other end the driver alone
holds: the process says on it that it is ready, and waits. One order starts one job; the end of the socket, also in
the middle of an order, ends the process. So it never outlives the control plane that has started it, and an order that
is cut short starts nothing.

While it waits it has imported torch and done nothing else: no operation, no device, and a single thread. That makes it
safe to fork. ROOM, and the variable ``JUPYTER_MLOPS_JOB_DIR`` that it is started with, only hold places open: there the
process writes whose supervisor, or which rank of which job, it has become, so that it is found like any other one.

Messages are JSON objects, one a line. To the driver: ``{"ready": true, "memory_bytes": …}``. From it:
``{"folder", "attempt", "interpreter", "env"}``.

Exit codes: those of the supervisor; 0 also when it was not needed; 6 it cannot serve here.
"""

import gc
import importlib
import json
import os
import signal
import socket
import sys
import time

from . import jobfolder, launch, supervisor, verdict

#: What is imported before an order comes.
MODULE = "torch"
#: The exit code of a process that found that it cannot be forked safely, or that importing is not silent.
UNFIT = 6
#: Bytes that are held open for a command line, and for the job's entries of the environment.
ROOM = 4096
#: Longest order in bytes.
_MAX_ORDER = 16 * 1024 * 1024


class _Forked(BaseException):
    """Unwinds the stack of a forked child, so that nothing of the supervisor is left beneath the user's code."""

    def __init__(self, index, environment, lock, go):
        super().__init__(index)
        self.index = index
        self.environment = environment
        self.lock = lock
        self.go = go


class Warm(supervisor.Supervisor):
    """A supervisor that forks its ranks instead of starting them: it is their parent, there is no agent."""

    def __init__(self, folder, number):
        super().__init__(folder, number)
        self.forked = []  # pid of each rank

    def _start(self, order):
        env = self._prepare(order)
        shared = self._rendezvous() if self.size > 1 else {}
        read, write = os.pipe()
        gc.freeze()  # a collection would copy the pages that all of us share
        # A signal that comes before the child has its own handlers must neither be lost nor reach ours.
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            for index in range(self.size):
                pid = os.fork()
                if not pid:
                    os.close(write)
                    raise _Forked(index, {**env, **shared, **self._place(index)}, self.lock, read)
                self.forked.append(pid)
            # One write: either all ranks begin or, when we are killed before it, none does.
            os.write(write, b"+" * self.size)
        finally:
            if os.getpid() == self.me["pid"]:
                signal.pthread_sigmask(signal.SIG_SETMASK, masked)
                os.close(read)
                os.close(write)
        self.child = self.forked[0]

    def _rendezvous(self):
        """What ``torch.distributed.run`` tells all ranks of one machine."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        size = str(self.size)
        return {
            "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "GROUP_WORLD_SIZE": "1", "ROLE_WORLD_SIZE": size,
            "GROUP_RANK": "0", "ROLE_NAME": "default", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_MAX_RESTARTS": "0",
            "TORCHELASTIC_RUN_ID": os.urandom(16).hex(), "TORCHELASTIC_USE_AGENT_STORE": "False",
            "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT",
            "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        }

    def _place(self, index):
        """What it tells one rank."""
        if self.size == 1:
            return {}
        rank = str(index)
        folder = jobfolder.private_folder(os.path.join(self.attempt.path, "torchrun", rank))
        return {"RANK": rank, "LOCAL_RANK": rank, "ROLE_RANK": rank,
                "TORCHELASTIC_ERROR_FILE": os.path.join(folder, "error.json")}

    def _agent_runs(self):
        return False

    def _observe(self):
        up = super()._observe()
        for rank, pid in zip(self.ranks, self.forked):
            if rank.pid is None and pid in self.codes:
                rank.pid = pid  # it ended before it signed in
                self._read_exit(rank)
            up = up or pid not in self.codes
        return up

    def _read_exit(self, rank):
        pid = self.forked[rank.index] if rank.index < len(self.forked) else None
        if pid not in self.codes:
            self._reap()  # it may have ended since the last look
        verdict.read_exit(self.attempt, rank, self.size, self.codes.get(pid))


# -- waiting


def _threads():
    return len(os.listdir("/proc/self/task"))


def _memory():
    """Resident bytes of this process."""
    with open("/proc/self/statm", encoding="ascii") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _read_order(link):
    """The order, or None when the other end has gone before all of it was here."""
    data = bytearray()
    while not data.endswith(b"\n"):
        chunk = link.recv(65536)
        if not chunk or len(data) > _MAX_ORDER:
            return None
        data += chunk
    try:
        order = json.loads(bytes(data))
        return order if order["folder"] and order["interpreter"] and isinstance(order["env"], dict) else None
    except (ValueError, KeyError, TypeError):
        return None


class _Title:
    """The places in memory where this process's command line and environment are read from outside."""

    def __init__(self):
        with open("/proc/self/stat", "rb") as f:
            fields = f.read().rpartition(b")")[2].split()
        self.begin, self.end, env, env_end = (int(field) for field in fields[45:49])
        mark = os.fsencode(jobfolder.MARKER + "=")
        with open("/proc/self/environ", "rb") as f:
            block = b"\0" + f.read()
        at = block.find(b"\0" + mark)
        self.variable = env + at
        self.room = block.find(b"\0", at + 1) - at - 1
        if at < 0 or self.room < ROOM or self.variable + self.room > env_end or self.end - self.begin < ROOM:
            raise ValueError("no room to say what this process becomes")

    def write(self, arguments, entries=()):
        """Show another command line, and ``entries`` (``NAME=value``, the first one surely) in the environment."""
        text = b"\0".join(os.fsencode(argument) for argument in arguments)[:self.end - self.begin - 1]
        shown = b"\0".join([*(os.fsencode(entry) for entry in entries), b"_="])
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(self.begin)
            memory.write(text.ljust(self.end - self.begin, b"\0"))
            if entries and len(shown) <= self.room:
                memory.seek(self.variable)
                memory.write(shown.ljust(self.room, b" "))


# -- becoming a rank


def _dispositions():
    """What each signal does in a Python that a supervisor has just started."""
    found = {number: signal.getsignal(number) for number in signal.valid_signals()}
    found.update({signal.SIGHUP: signal.SIG_DFL, signal.SIGTERM: signal.SIG_DFL, signal.SIGPIPE: signal.SIG_IGN,
                  signal.SIGINT: signal.default_int_handler})
    return found


def _restore(dispositions):
    signal.set_wakeup_fd(-1)
    for number, handler in dispositions.items():
        if signal.getsignal(number) != handler:
            signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _descriptors():
    """The open descriptors of this process."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            os.fstat(int(name))
        except OSError:
            continue  # the one of this listing
        found.add(int(name))
    return found


def _environment(env):
    """Replace the environment; what the interpreter itself has added at its start stays (the locale that it chose)."""
    chosen = os.environ.get("LC_CTYPE")
    if chosen is not None:
        env.setdefault("LC_CTYPE", chosen)
    os.environ.clear()
    os.environ.update(env)
    time.tzset()


def _own_state(cwd):
    """Give back what belongs to one process alone and was copied from the parent, or depends on folder and variables.

    Generators of random numbers are seeded anew; ``random`` sees to that itself.
    """
    loaded = sys.modules  # type: dict
    if "multiprocessing.process" in loaded:
        process = loaded["multiprocessing.process"]
        process.current_process().authkey = os.urandom(32)
        process.ORIGINAL_DIR = cwd
    if "tempfile" in loaded:
        loaded["tempfile"].tempdir = None
    if "numpy.random" in loaded:
        loaded["numpy.random"].seed()
    if hasattr(loaded.get("torch"), "default_generator"):
        loaded["torch"].default_generator.seed()
    importlib.invalidate_caches()


def _numeric_threads(at_import):
    """As many threads as a Python started with this environment would use.

    Args:
        at_import: OMP_NUM_THREADS when torch was imported; when it is the same now nothing need be done, and no thread
            is started early.
    """
    asked, cpus = os.environ.get("OMP_NUM_THREADS"), len(os.sched_getaffinity(0))
    torch = sys.modules.get("torch")
    if asked != at_import and torch is not None and hasattr(torch, "set_num_threads"):
        torch.set_num_threads(int(asked or cpus))
    count = os.environ.get("OPENBLAS_NUM_THREADS") or os.environ.get("GOTO_NUM_THREADS") or asked or ""
    _openblas(int(count) if count.isdigit() else cpus)


def _openblas(count):
    """OpenBLAS was loaded with a single thread, or it would have started some."""
    if count < 2:
        return
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as f:
        paths = {line.split(None, 5)[5].strip() for line in f if "openblas" in line}
    if not paths:
        return
    import ctypes

    for path in paths:
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        for name in ("scipy_openblas_set_num_threads64_", "scipy_openblas_set_num_threads",
                     "openblas_set_num_threads64_", "openblas_set_num_threads"):
            if hasattr(library, name):
                getattr(library, name)(count)
                break
        if hasattr(library, "blas_thread_shutdown_"):
            library.blas_thread_shutdown_()  # started again when first needed: the user's code may want to fork


def _become_rank(forked, job, number, found):
    """In the forked child: be what a rank is that was started by exec, then run it. Returns its exit code."""
    arguments = [sys.executable, "-u", "-m", "jupyter_mlops.runtime.launch", job.path, str(number), str(forked.index),
                 str(forked.lock)]
    _restore(found.dispositions)
    if os.read(forked.go, 1) != b"+":
        os._exit(1)  # the parent was killed before all ranks were there: none of them begins
    for fd in _descriptors() - found.descriptors - {0, 1, 2, forked.lock}:
        os.close(fd)
    env = forked.environment
    shown = [name for name in (jobfolder.MARKER, "JUPYTER_MLOPS_HOME", "RANK") if name in env]
    found.title.write(arguments, ["%s=%s" % (name, env[name]) for name in shown])
    _environment(env)
    _own_state(job.cwd(job.spec()))
    _numeric_threads(found.threads)
    if hasattr(sys, "orig_argv"):
        sys.orig_argv[:] = arguments
    return launch.rank(job.path, number, str(forked.index), str(forked.lock), found.ending)


# -- life


class _Found:
    """What a process was before it imported anything, and what the import has left open."""

    def __init__(self):
        self.ending = launch.Ending()  # before torch registers exit handlers: word of the end comes after all others
        self.dispositions = _dispositions()
        self.title = _Title()
        self.threads = os.environ.get("OMP_NUM_THREADS")
        self.descriptors = set()

    def load(self):
        """Import; returns whether this process is fit to be forked."""
        before = _descriptors()
        importlib.import_module(MODULE)
        self.descriptors = _descriptors() - before
        gc.collect()
        return _threads() == 1 and not os.fstat(1).st_size


def main():
    """Wait for an order and carry it out; returns the exit code of what this process has become."""
    sys.modules[__package__ + ".warm"] = sys.modules["__main__"]  # the user's code takes that name
    link = socket.socket(fileno=os.dup(0))
    try:
        found = _Found()
        if not found.load():
            return UNFIT
        link.sendall(json.dumps({"ready": True, "memory_bytes": _memory()}).encode() + b"\n")
        order = _read_order(link)
    except OSError:
        return 0  # the driver has gone
    except Exception:
        return UNFIT
    if order is None:
        return 0
    watching = Warm(order["folder"], order["attempt"])
    _leave_driver(watching, link, found.title)
    if not watching.acquire():
        return 3
    if _threads() != 1:
        return UNFIT
    try:
        os._exit(watching.run(order))  # torch's exit handlers have nothing to do here
    except _Forked as child:
        forked = child.with_traceback(None)
    job, number = watching.job, watching.attempt.number
    del watching, order
    return _become_rank(forked, job, number, found)


def _leave_driver(watching, link, title):
    """Nothing ties this process to the driver any more; its complaints go to the supervisor's log."""
    jobfolder.private_folder(watching.attempt.path)
    log = os.open(watching.attempt.supervisor_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for fd, at in ((null, 0), (log, 1), (log, 2)):
        os.dup2(fd, at)
    os.close(null)
    os.close(log)
    link.close()
    title.write([sys.executable, "-m", "jupyter_mlops.runtime.supervisor", watching.job.path,
                 str(watching.attempt.number)])


if __name__ == "__main__":
    sys.exit(main())
