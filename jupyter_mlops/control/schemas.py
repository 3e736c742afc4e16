"""Bodies and queries of the REST API that are no specs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from ..core.resources import KINDS, JobPhase
from ..core.resources.base import Resource


class Body(BaseModel):
    """Base of request bodies and queries: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class Error(BaseModel):
    """Every error answer."""

    message: str
    code: str
    hint: str = ""
    detail: Any = None


# -- resources -----------------------------------------------------------------------------------------------


def _typed(kind: str) -> type[BaseModel]:
    spec, status = KINDS[kind]
    return create_model(kind.capitalize(), __base__=Resource, spec=(spec, ...), status=(status, ...))


Job, Endpoint, Deployment, Compute = (_typed(k) for k in ("job", "endpoint", "deployment", "compute"))


def _page(item: type[BaseModel]) -> type[BaseModel]:
    return create_model(f"{item.__name__}List", items=(list[item], ...), next_token=(str | None, None))  # type: ignore


JobList, EndpointList, DeploymentList, ComputeList = (_page(m) for m in (Job, Endpoint, Deployment, Compute))

NewEndpoint = create_model("NewEndpoint", __base__=Endpoint, keys=(dict[str, str], Field(default_factory=dict)))


class Page(Body):
    """Paging of lists."""

    limit: int = Field(default=50, ge=1, le=200)
    page_token: str | None = Field(default=None, max_length=2000)


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


class Nothing(Body):
    """An empty object."""


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


class Key(BaseModel):
    """A new key, told once."""

    key: str
    value: str


class Document(BaseModel):
    """A JSON document of its own kind."""

    model_config = ConfigDict(extra="allow")


class Scores(BaseModel):
    """A scorer's answer."""

    model_config = ConfigDict(extra="allow")

    predictions: Any = None


# -- workspace -----------------------------------------------------------------------------------------------


class WhoAmI(BaseModel):
    """The caller as the policy sees it."""

    user: str
    role: str
    workspace: str
    job: str = ""


class MlflowState(BaseModel):
    """The tracking server below."""

    state: Literal["starting", "ready", "restarting", "failed", "stopped"]
    pid: int | None = None
    restarts: int = 0
    version: str = ""
    message: str = ""


class GatewayState(BaseModel):
    """The gateway in front of scorers; it runs only while there are endpoints."""

    state: Literal["stopped", "starting", "ready", "failed"]
    pid: int | None = None
    port: int | None = None
    url: str = ""


class WorkspaceInfo(BaseModel):
    """What this control plane serves."""

    name: str
    version: str
    pid: int
    owner: str
    role: str
    started_at: str
    home: str
    url: str
    tracking_uri: str
    mlflow: MlflowState
    gateway: GatewayState
    counts: dict[str, int]


class ChangesQuery(Body):
    """``since`` absent: only the newest number. ``wait`` in seconds."""

    since: int | None = Field(default=None, ge=0, le=2**53)
    wait: float = Field(default=0, ge=0, le=60)


class Change(BaseModel):
    """One entry of the change feed."""

    seq: int
    kind: str
    name: str
    parent: str
    op: Literal["put", "delete"]
    revision: int
    phase: str


class Changes(BaseModel):
    """Entries after ``since``; ask again with ``seq``."""

    seq: int
    items: list[Change]


class AuditRow(BaseModel):
    """Who changed what."""

    id: int
    at: str
    user: str
    role: str
    action: str
    resource: str
    outcome: str
    detail: dict[str, Any]


AuditList = _page(AuditRow)


class Check(BaseModel):
    """One finding of the doctor."""

    name: str
    ok: bool
    message: str
    hint: str = ""


class ProcessInfo(BaseModel):
    """A process of ours."""

    pid: int
    what: str
    memory_bytes: int
    command: str


class FolderInfo(BaseModel):
    """A folder of ours and its size."""

    path: str
    bytes: int


class PortInfo(BaseModel):
    """A port or socket of ours."""

    what: str
    address: str


class Doctor(BaseModel):
    """All that is ours on this machine, and what is wrong with it."""

    checks: list[Check]
    processes: list[ProcessInfo]
    folders: list[FolderInfo]
    ports: list[PortInfo]


class Shutdown(Body):
    """``all``: also stop jobs and endpoints; else they go on by themselves."""

    all: bool = False


class Stopped(BaseModel):
    """What was stopped."""

    jobs: list[str]
    endpoints: list[str]
    left: list[str] = []
    """What could not be stopped, a line each."""


# -- views over MLflow ---------------------------------------------------------------------------------------


class View(BaseModel):
    """Base of rows that come from MLflow."""

    model_config = ConfigDict(extra="allow")


class Experiment(View):
    """A named group of runs."""

    experiment_id: str
    name: str
    lifecycle_stage: str = "active"


class Progress(BaseModel):
    """How far a run is."""

    done: float
    total: float


class Run(View):
    """One row of runs; ``metrics`` holds last values, null for NaN and infinities."""

    run_id: str
    name: str = ""
    experiment_id: str
    experiment_name: str = ""
    status: str
    lifecycle_stage: str = "active"
    start_time: str | None = None
    end_time: str | None = None
    user: str = ""
    source: str = ""
    job: str = ""
    parent_run_id: str = ""
    metrics: dict[str, float | None] = Field(default_factory=dict)
    params: dict[str, str] = Field(default_factory=dict)
    tags: dict[str, str] = Field(default_factory=dict)
    models: list[dict[str, Any]] = Field(default_factory=list)
    progress: Progress | None = None


class RunQuery(Page):
    """``experiment`` is a name; ``filter`` and ``order_by`` are MLflow's search syntax."""

    experiment: str | None = Field(default=None, max_length=500)
    filter: str | None = Field(default=None, max_length=5000)
    order_by: str | None = Field(default=None, max_length=500)


class MetricQuery(Body):
    """``keys``: comma-separated metric names; absent: all."""

    max_points: int = Field(default=500, ge=2, le=2500)
    keys: str | None = Field(default=None, max_length=5000)


class Series(BaseModel):
    """One metric: equally long lists; ``timestamps`` in ms since the epoch; ``total`` points before down-sampling."""

    steps: list[int]
    values: list[float | None]
    timestamps: list[int]
    last: float | None = None
    total: int


class RunMetrics(BaseModel):
    """The curves of a run."""

    run_id: str
    status: str = ""
    metrics: dict[str, Series]


class ModelVersion(View):
    """One version of a registered model."""

    name: str
    version: str
    run_id: str = ""
    model_id: str = ""
    source: str = ""
    status: str = ""
    aliases: list[str] = Field(default_factory=list)
    description: str = ""
    tags: dict[str, str] = Field(default_factory=dict)
    created_at: str | None = None


class Model(View):
    """A registered model; ``versions`` only in the detail view."""

    name: str
    description: str = ""
    latest_version: str = ""
    aliases: dict[str, str] = Field(default_factory=dict)
    created_at: str | None = None
    updated_at: str | None = None
    versions: list[ModelVersion] | None = None


class Register(Body):
    """Register a run's model (``artifact`` names which), or a logged model by id."""

    run_id: str | None = Field(default=None, min_length=1, max_length=64, pattern=r"^[0-9a-zA-Z_-]+$")
    model_id: str | None = Field(default=None, min_length=1, max_length=64, pattern=r"^[0-9a-zA-Z_-]+$")
    artifact: str | None = Field(default=None, min_length=1, max_length=500)
    alias: str | None = Field(default=None, min_length=1, max_length=250)
    description: str = Field(default="", max_length=5000)
    tags: dict[str, str] = Field(default_factory=dict)


class Alias(Body):
    """The version that an alias shall name."""

    version: str = Field(pattern=r"^[0-9]{1,9}$")


ExperimentList, RunList, ModelList = (_page(m) for m in (Experiment, Run, Model))
