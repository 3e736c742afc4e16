"""Logs of jobs, search in them, and what their ranks use; see ``docs/logs.md``."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

from ...compute import machine
from ...core.errors import NotFound, ParameterError
from ...core.resources import TERMINAL, JobSpec
from ...core.resources.base import Resource
from ...runtime import usage
from ...runtime.jobfolder import JobFolder
from .. import job_schemas
from ..operations import Answer, Call, operation
from ..search import Expression, Words, search
from .common import log_part

_WS = "/workspaces/{ws}"
#: Expressions are tried in processes; no more than these at a time.
_expressions = asyncio.Semaphore(2)


class _Log:
    """One rank's log in one attempt, as a request names it.

    Raises:
        ParameterError, NotFound: no such job, attempt or rank; or the log is gone.
    """

    def __init__(self, call: Call, job: Resource) -> None:
        name, rank = job.name, call.path["rank"]
        if not (rank.isascii() and rank.isdigit() and len(rank) < 7):
            raise ParameterError(f"rank {rank!r} is not a number")
        self.rank = int(rank)
        processes = JobSpec.model_validate(job.spec).most_ranks
        if self.rank >= processes:
            raise NotFound(f"job {name!r} has no rank {self.rank}", f"its ranks are 0 to {processes - 1}")
        _kept(job)
        self.last_attempt = int(job.status.get("attempt") or 0) or 1
        self.attempt: int = call.query.attempt or self.last_attempt
        if self.attempt > self.last_attempt:
            raise NotFound(f"job {name!r} has no attempt {self.attempt}", f"its last one is {self.last_attempt}")
        self.ended = self.attempt < self.last_attempt or job.status.get("phase") in TERMINAL
        try:
            self._driver = call.plane.driver_for(job.spec["compute"])
        except NotFound:
            self._driver = call.plane.driver_for("local")  # the compute is gone; what is left of its jobs lies here
        self._ref = call.plane.jobs.ref(name)

    def read(self, offset: int, limit: int) -> Any:
        """Blocking read of a piece."""
        return self._driver.read_log(self._ref, self.attempt, self.rank, offset, limit)


def _kept(job: Resource) -> None:
    removed = job.status.get("folder_removed_at")
    if removed:
        raise NotFound(f"the folder of job {job.name!r} was removed on {removed[:10]}, its logs with it",
                       "how long folders are kept: %mlops config")


@operation(
    "GET", _WS + "/jobs/{name}/logs/{rank}", "Read a rank's log", "jobs/read", query=job_schemas.LogQuery,
    responses={200: job_schemas.LogPart},
)
async def get_job_log(call: Call) -> Answer:
    """Offsets are bytes; follow by asking again with ``next_offset`` until ``complete``."""
    log = _Log(call, await call.plane.workspace.get(call.identity, "job", call.path["name"]))
    chunk = await asyncio.to_thread(log.read, call.query.offset, call.query.limit)
    part = log_part(chunk, log.rank, log.attempt, log.ended)
    part.last_attempt = log.last_attempt
    part.hole = chunk.hole
    if chunk.hole is not None and chunk.hole[0] <= call.query.offset < part.offset:
        part.skipped = part.offset - call.query.offset
    return Answer(body=part)


@operation(
    "GET", _WS + "/jobs/{name}/logs/{rank}/search", "Search in a rank's log", "jobs/read",
    query=job_schemas.SearchQuery, responses={200: job_schemas.SearchResult},
)
async def search_job_log(call: Call) -> Answer:
    """Looks at a stretch; ask again with ``next_offset`` and ``next_line`` until ``complete``."""
    log = _Log(call, await call.plane.workspace.get(call.identity, "job", call.path["name"]))
    query = call.query

    def work() -> job_schemas.SearchResult:
        finder = Expression(query.q, query.case) if query.regex else Words(query.q, query.case)
        try:
            found = search(log.read, finder, query.offset, query.line, query.limit, log.ended)
        finally:
            finder.close()
        return job_schemas.SearchResult(
            rank=log.rank, attempt=log.attempt, last_attempt=log.last_attempt, **vars(found)
        )

    if not query.regex:
        return Answer(body=await asyncio.to_thread(work))
    async with _expressions:
        return Answer(body=await asyncio.to_thread(work))


@operation(
    "GET", _WS + "/jobs/{name}/usage", "What a job's ranks use", "jobs/read", query=job_schemas.UsageQuery,
    responses={200: job_schemas.Usage},
)
async def get_job_usage(call: Call) -> Answer:
    """CPU, memory and GPU of each rank over time, of all attempts; at most ``max_points`` of each attempt."""
    job = await call.plane.workspace.get(call.identity, "job", call.path["name"])
    _kept(job)
    folder = JobFolder(call.plane.jobs.ref(job.name).folder)
    last = int(job.status.get("attempt") or 0)
    most = call.query.max_points

    def work() -> job_schemas.Usage:
        attempts = []
        # A job that was tried very often: the newest of them.
        for number in range(max(1, last - 19), last + 1):
            attempt = folder.attempt(number)
            state = attempt.state()
            attempts.append(job_schemas.AttemptUsage(
                attempt=number, started_at=_moment(state.get("started_at")), ended_at=_moment(state.get("ended_at")),
                samples=_samples(attempt.usage_paths(), most),
            ))
        here = job.spec.get("compute", "local") == "local"
        return job_schemas.Usage(name=job.name, cpus=machine.cpus() if here else 0,
                             memory_bytes=machine.memory_bytes() if here else 0, attempts=attempts)

    return Answer(body=await asyncio.to_thread(work))


def _samples(paths: dict[int, str], most: int) -> job_schemas.UsageSamples:
    """What the ranks of all machines used, at most ``most`` rows."""
    read = {node: usage.read(path) for node, path in paths.items()}
    thinned = {node: usage.thin(rows, most) for node, (rows, _) in read.items()}
    node_of = {entry[0]: node for node, rows in thinned.items() for row in rows for entry in row["ranks"]}
    wide = max((every * max(len(rows) / max(len(thinned[node]), 1), 1) for node, (rows, every) in read.items()))
    found = usage.series(usage.thin(usage.together(list(thinned.values()), wide), most))
    for rank in found["ranks"]:
        rank["node"] = node_of.get(rank["rank"], 0)
    return job_schemas.UsageSamples.model_validate(found)


def _moment(seconds: Any) -> str:
    """Seconds since the epoch as RFC 3339; the job's own code can write there too."""
    valid = isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 < seconds < 1 << 33
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if valid else ""
