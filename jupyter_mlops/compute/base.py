"""The compute driver protocol: the only thing that the control plane knows of a place where jobs run.

A driver is found by name in the entry point group ``jupyter_mlops.compute``. All calls are blocking (the control
plane runs them on its own threads), idempotent, and may be repeated after a crash at any point. The interface
between both sides is the job folder, see ``docs/job-folder.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class JobRef:
    """A job as a driver sees it: its folder holds all that it needs.

    Attributes:
        name: the resource's name.
        folder: ``jobs/<name>/``, mode 0700, with ``spec.json`` written by the control plane before ``start``.
    """

    name: str
    folder: Path


@dataclass(frozen=True)
class Grant:
    """What an attempt was given.

    Attributes:
        gpu_ids: indices of its GPUs; empty: it asked for none.
        timeout: seconds that it may run, enforced also while no control plane is there; None: no limit.
    """

    gpu_ids: tuple[int, ...] = ()
    timeout: float | None = None


#: No GPU, no limit.
NOTHING = Grant()


@dataclass
class RankObservation:
    """One rank: ``exit_code`` is negative for a signal, None while running or when it cannot be known."""

    rank: int
    pid: int | None = None
    running: bool = False
    exit_code: int | None = None


@dataclass
class Observation:
    """What a driver sees of an attempt.

    ``phase`` is one of ``absent`` (never started), ``starting``, ``running``, ``stopping``, ``completed``, ``failed``,
    ``canceled``. ``reason`` is one line for people. ``cause`` says in one word why it ended, where that matters:
    ``timeout`` (its time was over), ``memory`` (killed for lack of it), ``reboot``, ``lost`` (what it ran on is gone),
    ``preempted`` (it had to make room), ``deleted`` (taken away on purpose); else empty. Times are seconds since the
    epoch, except ``seconds``: how long it ran, by a clock that nobody can set. ``traceback`` is the end of the failing
    rank's, one line an item. ``incomplete``: a machine was lost with what its ranks had logged last.
    ``route``: which way large files come from there, in words; empty on this machine.
    """

    phase: str
    reason: str = ""
    attempt: int = 0
    exit_code: int | None = None
    failed_rank: int | None = None
    started_at: float | None = None
    ended_at: float | None = None
    seconds: float = 0.0
    cause: str = ""
    traceback: list[str] = field(default_factory=list)
    ranks: list[RankObservation] = field(default_factory=list)
    incomplete: bool = False
    route: str = ""

    @property
    def terminal(self) -> bool:
        """Whether nothing of this attempt can change any more."""
        return self.phase in ("completed", "failed", "canceled")


@dataclass(frozen=True)
class LogChunk:
    """Bytes ``[offset, next_offset)`` of one rank's log, whose size was ``size`` when read.

    ``hole``: begin and end of what is not kept of it, see ``docs/logs.md``.
    """

    data: bytes
    offset: int
    next_offset: int
    size: int
    hole: tuple[int, int] | None = None


class ComputeDriver(Protocol):
    """What every place where jobs run must offer; ``tests/drivers`` is its conformance suite.

    ``attempt`` counts from 1. A further attempt is only ever started when the one before is terminal; all attempts
    share the job's folder.
    """

    def check(self, spec: dict[str, Any]) -> None:
        """Refuse a job spec that this compute cannot run.

        Raises:
            jupyter_mlops.core.errors.Refused: with the limit that is in the way.
        """

    def facts(self) -> dict[str, Any]:
        """``{"cpus": int, "memory_bytes": int, "gpus": [str]}``, of which the control plane makes the slots."""

    def subscribe(self, changed: Callable[[str], None]) -> None:
        """Have ``changed(job name)`` called, from any thread, when an attempt may have moved on.

        A hint that saves waiting: the control plane observes every active job twice a second anyway, and one that
        simply runs every few seconds. A driver that tells of all that moves an attempt on may say in an attribute
        ``calm`` that less is enough, in seconds.
        """

    def start(self, job: JobRef, attempt: int, env: dict[str, str], grant: Grant = NOTHING) -> None:
        """Start the attempt, or do nothing when it was started before. ``env`` is added to the ranks' environment.

        Raises:
            jupyter_mlops.core.errors.MlopsError: it cannot be started, now or ever; nothing of it runs.
        """

    def observe(self, job: JobRef, attempt: int) -> Observation:
        """What is so now; also puts right what can be (adopts ranks whose supervisor died)."""

    def stop(self, job: JobRef, attempt: int, grace: float) -> None:
        """Ask for the end: TERM to the whole process tree, KILL after ``grace`` seconds. Returns at once.

        An attempt that was not started yet is never started: ``start`` then ends it as ``canceled``.
        """

    def read_log(self, job: JobRef, attempt: int, rank: int, offset: int, limit: int) -> LogChunk:
        """Up to ``limit`` bytes of a rank's log from ``offset``; a negative offset counts from the end."""

    def delete(self, job: JobRef) -> None:
        """Remove what the driver holds for a job that has ended; the folder itself is the caller's.

        Raises:
            jupyter_mlops.core.errors.Conflict: an attempt of it still runs.
        """
