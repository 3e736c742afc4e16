"""Bodies and queries of the jobs' part of the REST API that are no specs: logs, usage, TensorBoard."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from ..core.resources import JobPhase
from .schemas import Body, Page


class JobQuery(Page):
    """Paging, and jobs of one phase only; ``Deleted``: those that can still be restored."""

    phase: JobPhase | Literal["Deleted"] | None = None


class LogQuery(Body):
    """A window of a log in bytes; a negative offset counts from the end."""

    offset: int = Field(default=-65536, ge=-(2**53), le=2**53)
    limit: int = Field(default=262_144, ge=1, le=4_194_304)
    attempt: int | None = Field(default=None, ge=1, le=100_000)


class Flush(Body):
    """How long to wait, in seconds."""

    timeout: float = Field(default=30.0, gt=0, le=3600)


class LogPart(BaseModel):
    """Bytes ``[offset, next_offset)`` of a log as text; ``complete`` when nothing can follow in this attempt.

    ``skipped``: bytes before ``offset`` that were asked for and are not kept; ``hole``: where those are.
    """

    rank: int
    attempt: int
    last_attempt: int = 1
    offset: int
    next_offset: int
    size: int
    skipped: int = 0
    hole: tuple[int, int] | None = None
    text: str
    complete: bool


class SearchQuery(Body):
    """``line``: number of the line at ``offset``, when it is known; ``limit``: most lines that one call finds."""

    q: str = Field(min_length=1, max_length=1000)
    regex: bool = False
    case: bool = False
    offset: int = Field(default=0, ge=0, le=2**53)
    line: int | None = Field(default=None, ge=1, le=2**53)
    limit: int = Field(default=100, ge=1, le=1000)
    attempt: int | None = Field(default=None, ge=1, le=100_000)


class LogMatch(BaseModel):
    """A line that was found; ``offset`` is where it begins, ``line`` its number from 1."""

    offset: int
    line: int | None = None
    text: str


class SearchResult(BaseModel):
    """What one call found; go on with ``next_offset`` and ``next_line`` until ``complete``."""

    rank: int
    attempt: int
    last_attempt: int
    matches: list[LogMatch]
    next_offset: int
    next_line: int | None = None
    size: int
    complete: bool


class UsageQuery(Body):
    """Most points of each attempt."""

    max_points: int = Field(default=300, ge=2, le=2000)


class RankUsage(BaseModel):
    """CPU cores in use, resident bytes, threads, GPU in percent and bytes: lists as long as ``times``.

    ``node`` is the number of its machine.
    """

    rank: int
    node: int = 0
    cpu: list[float | None]
    rss: list[float | None]
    threads: list[float | None]
    gpu: list[float | None]
    gpu_memory: list[float | None]
    peak_rss: float = 0


class UsageSamples(BaseModel):
    """``times`` in milliseconds since the epoch."""

    times: list[int]
    ranks: list[RankUsage]


class AttemptUsage(BaseModel):
    """What the ranks of one attempt used."""

    attempt: int
    started_at: str = ""
    ended_at: str = ""
    samples: UsageSamples


class Usage(BaseModel):
    """What a job's ranks used, and what this machine has; 0 for a job that ran elsewhere."""

    name: str
    cpus: int
    memory_bytes: int
    attempts: list[AttemptUsage]


class Preview(BaseModel):
    """Whether a job would run; ``fits`` is null where that cannot be known, ``manifest`` null on this machine."""

    fits: bool | None
    reasons: list[str] = Field(default_factory=list)
    manifest: dict[str, Any] | None = None
    instances: int = 1
    price_per_hour: float | None = Field(default=None, description="of all instances, at the operator's price")
    warnings: list[str] = Field(default_factory=list, description="versions that differ here and there")
    volumes: list[str] = Field(default_factory=list, description="a line on each claim that is mounted")
    route: str = Field(default="", description="which way large files go to a cluster and come from there, in words")


class OpenTensorboard(Body):
    """What TensorBoard shall show: names of jobs, ids of runs, absolute paths of folders; and a Python that may have
    it, beside those of the control plane and of the jobs."""

    sources: list[Annotated[str, Field(min_length=1, max_length=4096)]] = Field(min_length=1, max_length=20)
    interpreter: str = Field(default="", max_length=4096)


class TensorboardSource(BaseModel):
    """What is shown under a name."""

    name: str
    folder: str


class Tensorboard(BaseModel):
    """Where it is, below ``jupyter-mlops/`` of a Jupyter server, and how many event files there are by now."""

    path: str
    event_files: int
    sources: list[TensorboardSource]
