"""The scorer processes of one deployment: started, observed and ended, by whoever comes first.

Control plane and gateway both call this, from any thread, and either may be killed at any point. What shall run is in
``run.json`` and ``scale.json``; what does run is read from files and from processes identified by pid and start time.
Whoever starts or ends an instance holds its ``start.lock``. Imports nothing heavy: the gateway has it, too.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .. import __version__
from ..core.errors import NotFound
from ..runtime.processes import clock, start_time
from .children import Children, clear_leftovers, end, end_all, mark, open_log
from .environment import scorer_env
from .observation import CRASHES, Instance, liveness_limit, pings, running, state_of, tail
from .places import Places, read_json, write_json

#: Seconds.
STOP_GRACE = 10.0
#: The scorer itself goes on answering for so long after TERM; whoever ends it sets the real bound.
DRAIN_LIMIT = 600.0
#: Most instances of one deployment.
MAX_INSTANCES = 64


class Instances:
    """The scorers of one deployment.

    Args:
        silent: (endpoint, deployment, instance) → the launch that does not answer and since when; shared by all users
            of one process.
    """

    def __init__(self, places: Places, children: Children, silent: dict[tuple[str, str, int], tuple[str, float]],
                 endpoint: str, deployment: str) -> None:
        self.places = places
        self.names = (endpoint, deployment)
        self.folder = places.deployment(endpoint, deployment)
        self._children = children
        self._silent = silent

    # -- what is asked ---------------------------------------------------------------

    def order(self) -> dict[str, Any]:
        """``run.json``, or ``{}`` when nothing shall run."""
        return read_json(self.folder / "run.json")

    def wanted(self) -> int:
        """How many instances shall run: as the gateway decided, else as the last ``start`` said; 0 when stopped."""
        order = self.order()
        if not order:
            return 0
        for value in (read_json(self.folder / "scale.json").get("wanted"), order.get("count")):
            if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_INSTANCES:
                return value
        return 1

    def numbers(self) -> list[int]:
        """The instances of which something is on disk."""
        try:
            return sorted(int(name) for name in os.listdir(self.folder / "instances")
                          if name.isascii() and name.isdigit() and len(name) < 4)
        except OSError:
            return []

    def place(self, number: int) -> Path:
        return self.folder / "instances" / str(number)

    def socket(self, number: int) -> Path:
        return self.places.scorer_socket(*self.names, number)

    # -- what is so ------------------------------------------------------------------

    def look(self, ping: bool = True) -> list[Instance]:
        """Every wanted instance, and every other one that runs; answers within about a second.

        Args:
            ping: ask those that call themselves ready, and take only those for ready that answer.
        """
        order, wanted = self.order(), self.wanted()
        seen = [state_of(self.place(i), i, order, self._children) for i in sorted({*range(wanted), *self.numbers()})]
        seen = [s for s in seen if s.number < wanted or s.pid is not None]
        if ping:
            asked = [s for s in seen if s.phase == "ready"]
            answered = pings({s.number: str(self.socket(s.number)) for s in asked})
            for state in asked:
                self._judge(state, order, state.number in answered)
        return seen

    def _judge(self, state: Instance, order: dict[str, Any], answered: bool) -> None:
        """A ready instance that was asked: does it live?"""
        key = (*self.names, state.number)
        if answered:
            self._silent.pop(key, None)
            return
        launch = str(read_json(self.place(state.number) / "launch.json").get("id"))
        known = self._silent.get(key)
        if known is None or known[0] != launch:
            known = self._silent[key] = (launch, clock())
        silent = clock() - known[1]
        if silent > liveness_limit(order):
            state.phase, state.hung = "absent", True
            state.reason = f"the scorer has not answered for {silent:.0f} s"
        else:
            state.phase, state.reason = "starting", "the scorer does not answer yet"

    def tail(self, number: int) -> list[str]:
        """The last lines of an instance's log."""
        return tail(self.place(number))

    # -- starting and ending -----------------------------------------------------------

    def start(self, number: int, grace: float = STOP_GRACE) -> bool:
        """Start an instance, or do nothing when it runs under the order in force.

        One that is outdated is told to leave first (it answers what is under way, for at most ``grace`` seconds); one
        that hangs is killed.

        Returns:
            whether a process was started; False also when the deployment was stopped meanwhile.

        Raises:
            NotFound: the deployment is gone.
            Refused: its interpreter cannot be used.
        """
        with self._lock(number) as folder:
            order = self.order()
            if not order:
                return False
            launch = read_json(folder / "launch.json")
            state = state_of(folder, number, order, self._children)
            if state.pid:
                silent = self._silent.get((*self.names, number), ("", 0.0))
                hung = state.hung or (silent[0] == launch.get("id") and clock() - silent[1] > liveness_limit(order))
                if not hung and not state.outdated:
                    return False
            # Before anything is ended: an interpreter that cannot be used takes nothing down.
            environment = self._environment(order, number)
            if state.pid:
                self._end(folder, launch, state.pid, 0.0 if hung else grace)
            clear_leftovers(folder, launch.get("pid"))
            self._silent.pop((*self.names, number), None)
            launch = _next(folder, launch, str(order.get("digest")))
            write_json(folder / "launch.json", launch)
            child = self._spawn(number, folder, str(order["interpreter"]), environment, launch["id"])
            launch.update(pid=child.pid, start_time=start_time(child.pid))
            write_json(folder / "launch.json", launch)
            return True

    def settle(self) -> None:
        """Start every wanted instance that does not run; then replace the outdated ones, one after the other.

        A successor that does not become ready ends it: what is left of the old ones goes on serving.
        """
        outdated = []
        for state in self.look(ping=False):
            if state.pid and state.outdated and state.number < self.wanted():
                outdated.append(state.number)
            elif state.number < self.wanted():
                self.start(state.number)
        for number in outdated:
            self.start(number)
            if number != outdated[-1] and not self._becomes_ready(number):
                return

    def _becomes_ready(self, number: int) -> bool:
        while True:
            state = next((s for s in self.look() if s.number == number), None)
            if state is None or state.phase != "starting":
                return state is not None and state.phase == "ready"
            time.sleep(0.1)

    def give_up(self, number: int, reason: str) -> None:
        """End an instance that hangs while it loads; it counts as failed, for this reason, until its next start."""
        with self._lock(number) as folder:
            state = state_of(folder, number, self.order(), self._children)
            if state.pid and state.hung:
                launch = read_json(folder / "launch.json")
                write_json(folder / "launch.json", {**launch, "verdict": reason})
                end(state.pid, 0.0)
                clear_leftovers(folder, launch.get("pid"))

    def stop(self, numbers: Iterable[int] | None = None, grace: float = STOP_GRACE) -> None:
        """End instances (all of them when ``numbers`` is None) at once: what is under way is answered first.

        Their counters start anew, their logs stay.
        """
        with contextlib.ExitStack() as stack:
            # In order, so that two of us never wait for each other.
            chosen = sorted(set(self.numbers() if numbers is None else numbers))
            places = {i: stack.enter_context(self._lock(i)) for i in chosen}
            launches = {i: read_json(place / "launch.json") for i, place in places.items()}
            pids = {i: pid for i, place in places.items() if (pid := running(place, launches[i]))}
            for i in pids:
                self._leave(places[i], launches[i])
            end_all(pids.values(), grace)
            for i, place in places.items():
                clear_leftovers(place, launches[i].get("pid"))
                for path in (place / "launch.json", self.socket(i), Path(f"{self.socket(i)}.new")):
                    path.unlink(missing_ok=True)
                self._silent.pop((*self.names, i), None)

    def call_off(self) -> None:
        """From now on nobody starts anything of this deployment; what runs is left to :meth:`stop`."""
        for path in (self.places.run(*self.names), self.places.scale(*self.names)):
            path.unlink(missing_ok=True)
        self.take_over()

    def take_over(self) -> None:
        """End the one scorer of a deployment that was laid down before there were instances, and tidy up after it."""
        if not (self.folder / "launch.json").exists() and not (self.folder / "scorer.json").exists():
            return
        launch = read_json(self.folder / "launch.json")
        if pid := running(self.folder, launch):
            end(pid, STOP_GRACE)
        clear_leftovers(self.folder, launch.get("pid"))
        first = self.place(0)
        first.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("scorer.log.1", "scorer.log"):
            if (self.folder / name).exists() and not (first / name).exists():
                os.replace(self.folder / name, first / name)
        shutil.rmtree(self.folder / "work", ignore_errors=True)
        former = self.places.former_socket(*self.names)
        for path in (former, Path(f"{former}.new"), *(self.folder / f"scorer.{e}" for e in ("lock", "json", "log"))):
            path.unlink(missing_ok=True)
        (self.folder / "launch.json").unlink(missing_ok=True)

    def former_pid(self) -> int | None:
        """The pid of a scorer from before there were instances, when it still runs."""
        return running(self.folder, read_json(self.folder / "launch.json"))

    # -- inside ------------------------------------------------------------------------

    @contextlib.contextmanager
    def _lock(self, number: int) -> Iterator[Path]:
        """Nobody else starts or ends this instance meanwhile. Yields its folder.

        Raises:
            NotFound: the deployment's folder is gone.
        """
        folder = self.place(number)
        with contextlib.suppress(FileNotFoundError):
            folder.parent.mkdir(mode=0o700, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
        with exclusive(folder, f"deployment '{self.names[1]}' of endpoint '{self.names[0]}'"):
            yield folder

    def _leave(self, folder: Path, launch: dict[str, Any]) -> None:
        """Note that an instance is told to leave: should we be killed now, nobody takes it for one that serves."""
        if launch:
            write_json(folder / "launch.json", {**launch, "going": True})

    def _end(self, folder: Path, launch: dict[str, Any], pid: int, grace: float) -> None:
        if grace:
            self._leave(folder, launch)
        end(pid, grace)

    def _environment(self, order: dict[str, Any], number: int) -> dict[str, str]:
        env = {str(k): str(v) for k, v in dict(order.get("env") or {}).items()}
        sharing = max(self.wanted(), number + 1)
        return scorer_env(str(order["interpreter"]), env, sys.executable, self.places.home / "runtime", sharing)

    def _spawn(self, number: int, folder: Path, interpreter: str, environment: dict[str, str],
               ident: str) -> subprocess.Popen[bytes]:
        work = folder / "work"
        work.mkdir(mode=0o700, exist_ok=True)
        self.places.runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open_log(folder / "scorer.log") as log:
            return self._children.watch(subprocess.Popen(
                [interpreter, "-m", "jupyter_mlops.runtime.scorer", "--folder", str(self.folder), "--instance-folder",
                 str(folder), "--launch", ident, "--socket", str(self.socket(number)), "--grace", f"{DRAIN_LIMIT:g}"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=work, start_new_session=True,
                env={**environment, **mark(folder)},
            ))


@contextlib.contextmanager
def exclusive(folder: Path, what: str) -> Iterator[None]:
    """Hold ``start.lock`` of a folder: of two control planes, threads or gateways only one changes what is in it.

    Raises:
        NotFound: the folder is gone; ``what`` names it.
    """
    while True:
        try:
            f = open(folder / "start.lock", "a")  # noqa: SIM115 (closed below)
        except FileNotFoundError:
            raise NotFound(f"{what} is gone") from None
        with f:
            fcntl.flock(f, fcntl.LOCK_EX)
            # While we waited the folder may have been removed, and made again: then this is another's lock.
            try:
                same = os.path.samestat(os.fstat(f.fileno()), os.stat(folder / "start.lock"))
            except FileNotFoundError:
                same = False
            if same:
                yield
                return


def _next(folder: Path, launch: dict[str, Any], digest: str) -> dict[str, Any]:
    """The record of the launch that follows ``launch``: ends of a ready scorer, and failures to load, are counted."""
    crashes = list(launch.get("crashes") or [])
    restarts, failures = int(launch.get("restarts") or 0), int(launch.get("failures") or 0)
    status = read_json(folder / "scorer.json")
    phase = status.get("phase") if status.get("launch") == launch.get("id") else ""
    if launch.get("digest") != digest or launch.get("going"):
        crashes, restarts, failures = [], 0, 0
    elif phase == "ready":
        restarts, failures = restarts + 1, 0
        crashes.append(time.time())
    elif launch.get("pid"):
        failures += 1
    return {"id": os.urandom(8).hex(), "digest": digest, "restarts": restarts, "crashes": crashes[-CRASHES:],
            "failures": failures, "asked_at": time.time(), "clock": clock(), "version": __version__, "pid": None,
            "start_time": ""}
