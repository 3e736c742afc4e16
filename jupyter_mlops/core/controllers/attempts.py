"""Attempts of a job: how one ended, whether and when there is a further one, how long it may run."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...compute.base import ComputeDriver, JobRef, Observation
from ..errors import Conflict, MlopsError
from ..resources.base import Resource, utcnow
from ..resources.job import AttemptStatus, JobSpec

PHASES = {
    "starting": "Starting", "running": "Running", "stopping": "Stopping", "completed": "Completed",
    "failed": "Failed", "canceled": "Canceled",
}
#: Most seconds between two attempts.
RETRY_MOST = 60.0
#: Further attempts of a job whose pod or node was lost, and of one that had to make room, whatever it asked for.
LOST_RETRIES, PREEMPTED_RETRIES = 3, 50
#: Causes of an end that a further attempt would meet again, or that somebody wanted.
_FOR_GOOD = ("timeout", "deleted", "packages", "versions")
#: Bytes of the failing rank's log from which the last lines are kept in the status.
_TAIL_BYTES = 8192
_TAIL_LINES = 20


def iso(seconds: float | None) -> str:
    """Seconds since the epoch as RFC 3339 in UTC; empty for None."""
    if seconds is None:
        return ""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def epoch(text: str) -> float:
    """The seconds since the epoch that :func:`iso` has written; 0 for an empty text."""
    return datetime.fromisoformat(text).timestamp() if text else 0.0


def not_run(attempt: int, phase: Any, reason: str) -> AttemptStatus:
    """The end, now, of what could not run, or need not."""
    return AttemptStatus(attempt=attempt, phase=phase, reason=reason, ended_at=utcnow())


def outcome(attempt: int, seen: Observation) -> AttemptStatus:
    """The end that a driver has observed."""
    phase: Any = PHASES[seen.phase]
    return AttemptStatus(
        attempt=attempt, phase=phase, reason=seen.reason, started_at=iso(seen.started_at),
        ended_at=iso(seen.ended_at) or utcnow(), seconds=seen.seconds, exit_code=seen.exit_code,
        failed_rank=seen.failed_rank, metrics_incomplete=seen.incomplete,
        cause=seen.cause if seen.cause in ("lost", "preempted") else "",
    )


def ranks(seen: Observation) -> list[dict[str, Any]]:
    """``ranks`` of the status."""
    return [
        {"rank": r.rank, "phase": "Running" if r.running else ("Exited" if r.pid else "Starting"), "pid": r.pid,
         "exit_code": r.exit_code}
        for r in seen.ranks
    ]


def check_resumable(job: Resource, folder: Path) -> None:
    """Whether a job may have a further attempt by a resume.

    Raises:
        Conflict: it has not ended, has completed, is deleted, or its folder is gone.
    """
    phase, name = job.status.get("phase"), job.name
    if phase not in ("Failed", "Canceled"):
        what = "has completed" if phase == "Completed" else "has not ended"
        raise Conflict(f"job {name!r} {what}", "only a failed or canceled job is resumed")
    if job.status.get("deleted_at"):
        raise Conflict(f"job {name!r} is deleted", "restore it first")
    # The note comes before the removal, which may be under way.
    if job.status.get("folder_removed_at") or (job.status.get("attempt") and not folder.is_dir()):
        raise Conflict(f"the folder of job {name!r} is gone", "submit it again")


def added(attempts: Iterable[dict[str, Any]], ended: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Earlier attempts and one more, unless that is among them, or was never started."""
    kept = list(attempts)
    if ended and ended["attempt"] and all(a["attempt"] != ended["attempt"] for a in kept):
        kept.append(ended)
    return kept


def time_left(status: dict[str, Any], spec: JobSpec, *more: AttemptStatus) -> float | None:
    """Seconds of ``limits.timeout`` that are left to the next attempt; None without a limit."""
    if spec.limits.timeout is None:
        return None
    after = int(status.get("resumed_after") or 0)
    past = [*(AttemptStatus.model_validate(a) for a in status.get("attempts") or []), *more]
    return max(spec.limits.timeout - sum(a.seconds for a in past if a.attempt > after), 0.0)


def retry_pause(status: dict[str, Any], spec: JobSpec, ended: AttemptStatus, cause: str) -> float | None:
    """Seconds until the next attempt: 1, 2, 4 … up to ``RETRY_MOST``; None when there shall be none.

    Who lost a machine, or had to make room, did nothing wrong: each of these kinds is counted by itself.
    """
    if ended.phase != "Failed" or cause in _FOR_GOOD or status.get("stop_requested"):
        return None
    after = int(status.get("resumed_after") or 0)
    kind = _kind(cause, spec)
    past = [_kind(str(a.get("cause") or ""), spec) for a in status.get("attempts") or []
            if after < a["attempt"] < ended.attempt]
    # Earlier attempts that are not listed any more count as failures of the job's own.
    tried = past.count(kind) + 1 + (ended.attempt - after - 1 - len(past) if not kind else 0)
    asked = spec.retry_settings.max_retries
    most = {"lost": max(LOST_RETRIES, asked), "preempted": max(PREEMPTED_RETRIES, asked)}.get(kind, asked)
    if tried > most or time_left(status, spec, ended) == 0:
        return None
    return min(2.0 ** min(tried - 1, 10), RETRY_MOST)


def _kind(cause: str, spec: JobSpec) -> str:
    """What an end counts as; a spot node that is lost is one that was taken away."""
    if cause == "lost" and spec.spot:
        return "preempted"
    return cause if cause in ("lost", "preempted") else ""


def log_tail(driver: ComputeDriver, job: JobRef, attempt: int, rank: int) -> list[str]:
    """The last lines of a rank's log (blocking)."""
    try:
        chunk = driver.read_log(job, attempt, rank, -_TAIL_BYTES, _TAIL_BYTES)
    except (MlopsError, OSError, ValueError):  # the job's own code can write there, too: it ends all the same
        return []
    text = chunk.data.decode("utf-8", "replace")
    text = re.sub(rf'File "[^"\n]*/{re.escape(job.name)}/code/cell\.py"', 'File "cell.py"', text)
    # A progress bar rewrites its line with \r: only what was last shown counts.
    lines = [line.rsplit("\r", 1)[-1] for line in text.replace("\r\n", "\n").split("\n")]
    return [line[:500] for line in lines if line.strip()][-_TAIL_LINES:]
