"""The waiting processes of the local compute: who may use one, when one is started and when it is given up.

What such a process is, and what it becomes, is in :mod:`jupyter_mlops.runtime.warm`. Nothing here is needed for a job
to run: whenever no process waits that fits, the job is started as usual.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runtime import bundle
from ..runtime.jobfolder import MARKER, Attempt, read_json
from ..runtime.warm import ROOM
from . import environment, machine

log = logging.getLogger(__name__)

#: Seconds without a job that uses torch after which the process is given up.
IDLE = 600.0
#: Seconds that no job may run before one is started: a queue of short jobs is not slowed by it.
QUIET = 1.0
#: Most interpreters that have one.
MOST = 2
#: Share of the memory, and bytes, that must be free for one to be started or kept.
FREE_SHARE, FREE_LEAST = 0.15, 1_000_000_000
#: Seconds that importing torch may take.
IMPORT = 60.0
#: Seconds within which a process that waits must take its order.
_PATIENCE = 5.0
#: Seconds between looks while one is wanted, and while it waits.
_SOON, _LATER = 0.25, 5.0

#: Variables that count at the start of the interpreter or when torch is imported: too late for a process that waits.
_EARLY = re.compile(
    r"^(PYTHON|LD_|LC_|LANG|GLIBC_TUNABLES$|MALLOC_|OMP_(?!NUM_THREADS$)|GOMP_|KMP_|MKL_|OPENBLAS_|GOTO_|BLIS_|NPY_|NUMPY_"
    r"|TORCH(?!ELASTIC_|_NCCL_|_DISABLE_SHARE_RDZV_TCP_STORE$)|PYTORCH_|ATEN_|C10_|CAFFE2_|DNNL_|ONEDNN_|KINETO_|TRITON_"
    r"|CUDA_(?!VISIBLE_DEVICES$)|HIP_|ROCM_|CONDA_|COVERAGE_|(HOME|VIRTUAL_ENV)$)"
)


def allowed_here() -> bool:
    """Whether the operator lets processes wait: ``JUPYTER_MLOPS_WARM`` is not 0, and the system is Linux."""
    off = os.environ.get("JUPYTER_MLOPS_WARM", "").strip().lower() in ("0", "off", "no", "false")
    return not off and sys.platform.startswith("linux")


def early(env: Mapping[str, str]) -> dict[str, str]:
    """The variables of an environment that a waiting process must have been started with."""
    return {name: value for name, value in env.items() if _EARLY.match(name)}


def fits(spec: Mapping[str, Any], env: Mapping[str, str], started_with: Mapping[str, str]) -> bool:
    """Whether a job with this environment behaves in a process that was started with another one as in a new one."""
    if spec.get("cell") is None and spec.get("script") is None:
        return False  # a command line starts programs of its own
    if int((spec.get("resources") or {}).get("instance_count") or 1) != 1:
        return False
    if spec.get("inputs"):
        return False  # a warm rank keeps no descriptor, and one of them says that its inputs are in use
    if (spec.get("distribution") or {}).get("type") in ("tensorflow", "mpi"):
        return False
    threads = env.get("OMP_NUM_THREADS")
    if threads is not None and not (threads.isascii() and threads.isdigit() and int(threads) > 0):
        return False
    return early(env) == early(started_with)


@dataclass
class _Wish:
    """That a process waits: when torch was last used, and with what."""

    used: float
    home: str
    threads: str | None


class _Waiting:
    """One process that waits, or is about to, and the socket over which it gets its order."""

    def __init__(self, interpreter: str, env: dict[str, str], home: str, stamp: tuple[Any, ...]) -> None:
        self.env = env
        self.stamp = stamp
        self.since = time.monotonic()
        self.memory_bytes = 0  # known once it is ready
        self.link, other = socket.socketpair()
        self.link.settimeout(_PATIENCE)
        with other, tempfile.TemporaryFile() as out:
            # OpenBLAS, which numpy brings, starts threads when it is loaded; a rank sets their number itself.
            given = {**env, "OPENBLAS_NUM_THREADS": "1", MARKER: " " * ROOM}
            self.process = subprocess.Popen(
                [interpreter, "-u", "-m", "jupyter_mlops.runtime.warm", home, " " * ROOM], env=given, cwd="/",
                stdin=other.fileno(), stdout=out, stderr=out, start_new_session=True,
            )

    def ready(self) -> bool:
        """Whether it can take an order; learns that from the socket, without waiting."""
        if not self.memory_bytes and select.select([self.link], [], [], 0)[0]:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                self.memory_bytes = int(json.loads(self.link.recv(4096))["memory_bytes"])
        return bool(self.memory_bytes) and self.process.poll() is None

    def end(self) -> None:
        """End it now; nothing of a job is in it."""
        self.link.close()
        self.process.kill()
        self.process.wait()


class WarmPool:
    """At most one waiting process for each of the two interpreters that used torch last.

    Args:
        busy: whether a job runs: then none is started.
        enabled: None: as :func:`allowed_here` says.
    """

    def __init__(self, busy: Callable[[], bool], enabled: bool | None = None) -> None:
        self.enabled = allowed_here() if enabled is None else enabled
        self._busy = busy
        self._wanted: dict[str, _Wish] = {}  # by interpreter
        self._threads: dict[str, str | None] = {}  # job folder → OMP_NUM_THREADS of the job that runs
        self._waiting: dict[str, _Waiting] = {}
        self._unfit: dict[str, tuple[Any, ...]] = {}  # interpreter → stamp with which it failed
        self._lock = threading.Lock()
        self._event = threading.Event()
        self._thread: threading.Thread | None = None

    # -- for the driver

    def take(self, place: Attempt, order: Mapping[str, Any]) -> subprocess.Popen[bytes] | None:
        """Have a waiting process carry out an order; returns it, or None when the job must be started as usual."""
        interpreter = order["interpreter"]
        with self._lock:
            if self.enabled:
                self._threads[place.job.path] = order["env"].get("OMP_NUM_THREADS")
            waiting = self._waiting.get(interpreter)
            if waiting is None or not self.enabled or not waiting.ready():
                return None
            if waiting.stamp != _stamp(interpreter, waiting.env) or not fits(
                place.job.spec(), order["env"], waiting.env
            ):
                return None
            del self._waiting[interpreter]
        message = {**order, "folder": place.job.path, "attempt": place.number}
        try:
            with waiting.link:
                waiting.link.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            waiting.end()  # it died just now; what it may have got of the order was not the whole
            return None
        return waiting.process

    def ended(self, place: Attempt) -> None:
        """An attempt has ended: when it used torch, the next one of its interpreter shall find a process waiting."""
        if not self.enabled:
            return
        threads = self._threads.pop(place.job.path, None)
        spec = place.job.spec()
        several = int((spec.get("distribution") or {}).get("process_count_per_instance") or 1) > 1
        if several or read_json(place.exit_path(0)).get("torch") is True:
            home = os.path.dirname(os.path.dirname(place.job.path))
            self.want(spec.get("interpreter") or sys.executable, home, threads)

    def want(self, interpreter: str, home: str, threads: str | None = None) -> None:
        """Have a process wait for jobs of an interpreter as soon as it is quiet.

        Args:
            home: the workspace folder.
            threads: OMP_NUM_THREADS that the next job will most likely have.
        """
        with self._lock:
            self._wanted.pop(interpreter, None)
            self._wanted[interpreter] = _Wish(time.monotonic(), home, threads)
            for name in list(self._wanted)[:-MOST]:
                del self._wanted[name]
            if self._thread is None:
                event = self._event
                gone = weakref.ref(self, lambda _: event.set())
                self._thread = threading.Thread(target=_tend, args=(gone, event), daemon=True, name="warm-pool")
                self._thread.start()
        self._event.set()

    def waiting(self) -> list[dict[str, Any]]:
        """``[{"interpreter", "pid", "memory_bytes"}]`` of the processes that wait."""
        with self._lock:
            return [{"interpreter": name, "pid": w.process.pid, "memory_bytes": w.memory_bytes}
                    for name, w in self._waiting.items() if w.ready()]

    def close(self) -> None:
        """Give up all of them, for good."""
        self.enabled = False
        self._event.set()
        with self._lock:
            given_up = list(self._waiting.values())
            self._waiting.clear()
        for waiting in given_up:
            waiting.end()

    # -- tending

    def look(self, quiet: bool) -> float | None:
        """Start what is wanted and give up what is not; returns seconds until the next look, None: nothing to tend.

        Args:
            quiet: no job has run for a while.
        """
        for interpreter, waiting in list(self._waiting.items()):
            reason = self._reason_against(interpreter, waiting)
            with self._lock:
                if not reason or self._waiting.get(interpreter) is not waiting:
                    continue
                del self._waiting[interpreter]
            log.info("process that waits for jobs of %s given up: %s", interpreter, reason)
            waiting.end()
        soon = False
        for interpreter, wish in list(self._wanted.items()):
            if time.monotonic() - wish.used > IDLE:
                with self._lock:
                    if self._wanted.get(interpreter) is wish:
                        del self._wanted[interpreter]
            elif interpreter not in self._waiting:
                soon = True
                if quiet and self.enabled and enough_memory():
                    self._start(interpreter, wish)
        if not self._waiting and not self._wanted:
            return None
        return _SOON if soon or not all(w.memory_bytes for w in self._waiting.values()) else _LATER

    def _reason_against(self, interpreter: str, waiting: _Waiting) -> str:
        if not self.enabled:
            return "switched off"
        if interpreter not in self._wanted or time.monotonic() - self._wanted[interpreter].used > IDLE:
            return "not used"
        if not waiting.ready():
            code = waiting.process.poll()
            late = time.monotonic() - waiting.since > IMPORT
            if late or (code is not None and code >= 0):
                # Not again before something was installed or changed.
                self._unfit[interpreter] = waiting.stamp
            elif code is not None and self._wanted[interpreter].used < waiting.since:
                with self._lock:
                    self._wanted.pop(interpreter, None)  # somebody wants it away: not before torch is used again
            if late or code is not None:
                return "importing torch takes too long" if late else f"it ended with exit code {code}"
        if waiting.stamp != _stamp(interpreter, waiting.env):
            return "installed packages have changed"
        return "" if enough_memory() else "memory is short"

    def _start(self, interpreter: str, wish: _Wish) -> None:
        given = {} if wish.threads is None else {"OMP_NUM_THREADS": wish.threads}
        try:
            env = environment.for_ranks(interpreter, {}, given, 1, machine.cpus())
            if bundle.needed(interpreter, env):
                bundle.prepend(env, bundle.ensure(os.path.join(wish.home, "runtime")))
            stamp = _stamp(interpreter, env)
            if stamp == self._unfit.get(interpreter) or not bundle.probe(interpreter, env)["torch"]:
                return
            waiting = _Waiting(interpreter, env, wish.home, stamp)
        except (bundle.ProbeError, OSError) as error:
            log.info("no process waits for jobs of %s: %s", interpreter, error)
            return
        with self._lock:
            if self.enabled:
                self._waiting[interpreter] = waiting
                return
        waiting.end()

    def quiet(self) -> bool:
        """Whether no job runs now."""
        return not self._busy()


def _tend(reference: weakref.ref[WarmPool], event: threading.Event) -> None:
    """The pool's thread. It ends with the pool, whose sockets are closed then: all that waited ends, too."""
    pause: float | None = _SOON
    quiet_since: float | None = None
    while True:
        event.wait(pause)
        event.clear()
        pool = reference()
        if pool is None:
            return
        quiet_since = (quiet_since or time.monotonic()) if pool.quiet() else None
        try:
            pause = pool.look(quiet_since is not None and time.monotonic() - quiet_since >= QUIET)
        except Exception:
            log.exception("tending the waiting processes failed")
            pause = _LATER
        if not pool.enabled:
            pool.close()
            return
        del pool


def _stamp(interpreter: str, env: Mapping[str, str]) -> tuple[Any, ...]:
    """Something else as soon as interpreter, installed packages or our own code have changed."""
    stamps = []
    folders = []
    with contextlib.suppress(bundle.ProbeError):
        folders = bundle.probe(interpreter, dict(env))["folders"]
    ours = [entry.path for entry in os.scandir(os.path.dirname(bundle.__file__)) if entry.name.endswith(".py")]
    for path in (interpreter, *folders, *(os.path.join(folder, "torch", "version.py") for folder in folders), *ours):
        with contextlib.suppress(OSError):
            stamps.append((path, os.stat(path).st_mtime_ns))
    return tuple(sorted(stamps))


def enough_memory() -> bool:
    """Whether enough memory is left for a process that only might be of use."""
    free = available_bytes()
    return free is None or free >= max(FREE_LEAST, FREE_SHARE * machine.memory_bytes())


def available_bytes() -> int | None:
    """Memory that can be had without swapping, within the control group's limit; None when nobody can tell."""
    free = None
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    for group in machine._groups():
        with contextlib.suppress(OSError, ValueError):
            limit = int((group / "memory.max").read_text())
            used = int((group / "memory.current").read_text())
            for line in (group / "memory.stat").read_text().splitlines():
                if line.startswith("inactive_file "):
                    used -= int(line.split()[1])  # given back when somebody needs it
            free = min(limit - used, limit if free is None else free)
    return free
