"""What is so of scorers: each by its files, its process and its answer to a ping, and all as one deployment."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import __version__
from ..runtime import frames
from ..runtime.processes import alive, clock
from .children import Children, how_it_ended
from .places import read_json

#: Seconds.
PING_TIMEOUT = 1.0
#: A ready scorer that answers no ping for so long is ended, where the deployment has no ``liveness_probe``.
BUSY_LIMIT = 120.0
#: A model that is not loaded by then never will be, where the deployment has no ``readiness_probe``.
LOAD_LIMIT = 300.0
#: So many ends of a ready scorer within so many seconds are a crash loop.
CRASHES, CRASH_WINDOW = 5, 300.0
#: The longest pause before an instance that failed to load is tried again beside others that serve.
RETRY_LIMIT = 60.0
TAIL_LINES = 20


@dataclass
class Instance:
    """What is so of one scorer process.

    ``phase``: ``absent`` (it does not run: start it), ``starting``, ``ready``, ``failed`` (it does not get better by
    itself). ``hung``: it runs, but over its time. ``outdated``: it runs under an older order, or was told to leave.
    ``retry_at``: when a failed one may be tried again (:func:`runtime.processes.clock`); None: not by itself.
    """

    number: int
    phase: str
    pid: int | None = None
    reason: str = ""
    restarts: int = 0
    ready_after_s: float | None = None
    crash_loop: bool = False
    hung: bool = False
    outdated: bool = False
    retry_at: float | None = None
    packages: dict[str, str] = field(default_factory=dict)


@dataclass
class ScorerObservation:
    """What is so of one deployment.

    ``phase``: ``absent`` (not started, or its scorers died: start it), ``starting``, ``ready`` (an instance answered a
    ping, or it was scaled to zero and will be woken), ``failed`` (it will not get better by itself: the model cannot be
    loaded, is not loaded in time, or a crash loop). ``reason`` is one line for people, also of a ready one whose other
    instances are not. ``instances``: how many are wanted and ready. ``crash_loop``: scorers that had been ready died
    too often. ``restarts`` counts starts after a ready scorer's death. ``signature`` is as MLflow writes it,
    ``packages`` what the scorer imports (name → version).
    """

    phase: str
    pid: int | None = None
    reason: str = ""
    restarts: int = 0
    log_tail: list[str] = field(default_factory=list)
    signature: dict[str, Any] = field(default_factory=dict)
    ready_after_s: float | None = None
    crash_loop: bool = False
    instances: dict[str, int] = field(default_factory=lambda: {"wanted": 0, "ready": 0})
    packages: dict[str, str] = field(default_factory=dict)


def combine(wanted: int, seen: list[Instance]) -> tuple[ScorerObservation, int]:
    """The deployment's state from that of its instances, and the number of the one that its reason is about."""
    asked = [s for s in seen if s.number < wanted]
    ready = [s for s in asked if s.phase == "ready"]
    counts = {"wanted": wanted, "ready": len(ready)}
    if not asked:
        return ScorerObservation("ready", reason="scaled to zero: the next request starts it", instances=counts), 0
    # What gets better by itself goes before what does not; a ready one before all.
    first = next(s for phase in ("ready", "starting", "absent", "failed") for s in asked if s.phase == phase)
    about = first
    if ready and len(ready) < wanted:
        about = next(s for phase in ("failed", "absent", "starting") for s in asked if s.phase == phase)
    return ScorerObservation(
        first.phase, first.pid, f"instance {about.number}: {about.reason}" if about is not first else about.reason,
        sum(s.restarts for s in asked), ready_after_s=first.ready_after_s, instances=counts,
        crash_loop=first.phase == "failed" and any(s.crash_loop for s in asked),
        packages=next((s.packages for s in ready if s.packages), {}),
    ), about.number


def state_of(folder: Path, number: int, order: dict[str, Any], children: Children) -> Instance:
    """The state of the instance whose folder this is, as files and the table of processes tell it.

    Args:
        order: ``run.json`` of the deployment.
        children: knows how processes ended that were ours.
    """
    launch = read_json(folder / "launch.json")
    state = Instance(number, "absent", reason="not started")
    if not launch:
        return state
    status = read_json(folder / "scorer.json")
    if status.get("launch") != launch.get("id"):
        status = {}
    state.restarts = int(launch.get("restarts") or 0)
    state.pid = running(folder, launch)
    if state.pid is None:
        return _dead(folder, state, launch, status, children)
    state.phase = "starting"
    state.outdated = bool(launch.get("going")) or launch.get("digest") != order.get("digest") \
        or _version(launch.get("version")) < _version(__version__)
    loading = clock() - float(launch.get("clock") or 0)
    if launch.get("going"):
        state.reason = "the scorer is leaving"
    elif status.get("phase") == "ready":
        packages = status.get("packages")
        state.phase, state.reason = "ready", ""
        state.packages = packages if isinstance(packages, dict) else {}
        state.ready_after_s = status.get("ready_after_s")
    elif loading > (limit := load_limit(order)):
        state.phase, state.hung, state.reason = "failed", True, f"the model was not loaded within {limit:g} s"
    else:
        state.reason = str(status.get("message") or "starting")
    return state


def _dead(folder: Path, state: Instance, launch: dict[str, Any], status: dict[str, Any],
          children: Children) -> Instance:
    """The state of an instance whose process is gone."""
    phase = status.get("phase")
    how = how_it_ended(children.exit_code(launch.get("pid")))
    if launch.get("verdict") or phase == "failed":
        state.phase = "failed"
        state.reason = str(launch.get("verdict") or f"the model cannot be loaded: {_unwrapped(status['message'])}")
    elif phase == "stopped":
        state.reason = "stopped"
    elif phase == "ready":
        deaths = 1 + sum(time.time() - t < CRASH_WINDOW for t in launch.get("crashes") or [])
        if deaths >= CRASHES:
            state.phase, state.crash_loop = "failed", True
            state.reason = f"crash loop: it ended {deaths} times in {CRASH_WINDOW / 60:.0f} minutes{how}"
        else:
            state.reason = f"the scorer ended{how}"
    elif launch.get("pid") is None:
        state.reason = "its start was interrupted"
    else:
        last = next((line for line in reversed(tail(folder)) if line.strip()), "")
        state.phase = "failed"
        state.reason = f"the scorer ended before it was ready{how}" + (f": {_unwrapped(last)}" if last else "")
    if state.phase == "failed" and not state.crash_loop:
        pause = min(RETRY_LIMIT, 2.0 ** min(10, int(launch.get("failures") or 0)))
        # The clock begins anew with the machine.
        state.retry_at = min(float(launch.get("clock") or 0), clock()) + pause
    return state


def load_limit(order: dict[str, Any]) -> float:
    """Seconds in which a model must have been loaded: ``initial_delay + period * failure_threshold``, else 300."""
    probe = _probe(order, "readiness_probe")
    if not probe:
        return LOAD_LIMIT
    return probe.get("initial_delay", 10.0) + probe.get("period", 10.0) * probe.get("failure_threshold", 30.0)


def liveness_limit(order: dict[str, Any]) -> float:
    """Seconds for which a ready scorer may stay silent: ``period * failure_threshold``, else 120."""
    probe = _probe(order, "liveness_probe")
    return probe.get("period", 10.0) * probe.get("failure_threshold", 30.0) if probe else BUSY_LIMIT


def _probe(order: dict[str, Any], name: str) -> dict[str, float]:
    probe = (order.get("probes") or {}).get(name) or {}
    return {k: float(v) for k, v in probe.items() if isinstance(v, (int, float)) and v >= 0}


def _version(text: Any) -> tuple[int, ...]:
    """To compare. Only an older scorer is outdated: two of us of different versions must not fight over one."""
    return tuple(int(part) for part in re.findall(r"\d+", str(text or "")))


def running(folder: Path, launch: dict[str, Any]) -> int | None:
    """The pid of the scorer that runs: by the record of its start, or by its own when that was never written."""
    if alive(launch.get("pid") or 0, launch.get("start_time")):
        return int(launch["pid"])
    own = read_json(folder / "scorer.json")
    if own.get("phase") in ("loading", "ready") and alive(own.get("pid") or 0, own.get("start_time")):
        return int(own["pid"])
    return None


def pings(paths: dict[int, str]) -> set[int]:
    """Which of these sockets answer a ping; all are asked at once."""
    answered = set()
    deadline = time.monotonic() + PING_TIMEOUT
    with contextlib.ExitStack() as stack:
        asked: dict[int, socket.socket] = {}
        for number, path in paths.items():
            connection = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            connection.settimeout(max(0.01, deadline - time.monotonic()))
            with contextlib.suppress(OSError):
                connection.connect(path)
                connection.sendall(frames.pack(frames.PING, 1))
                asked[number] = connection
        for number, connection in asked.items():
            connection.settimeout(max(0.01, deadline - time.monotonic()))
            with contextlib.suppress(OSError, frames.FrameError):
                frames.await_pong(connection)
                answered.add(number)
    return answered


def tail(folder: Path) -> list[str]:
    """The last lines of the log of the instance whose folder this is."""
    try:
        with open(folder / "scorer.log", "rb") as f:
            f.seek(max(0, os.fstat(f.fileno()).st_size - 8192))
            return f.read().decode("utf-8", "replace").splitlines()[-TAIL_LINES:]
    except OSError:
        return []


def _unwrapped(message: Any) -> str:
    """An exception's line without the class where the message says it all."""
    text = str(message or "unknown cause")
    return text.removeprefix("ModuleNotFoundError: ")
