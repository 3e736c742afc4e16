"""Bodies and queries of the REST API that are no specs."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from ..core.resources import KINDS
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


def page_of(item: type[BaseModel]) -> type[BaseModel]:
    """A part of a list of such rows."""
    return create_model(f"{item.__name__}List", items=(list[item], ...), next_token=(str | None, None))  # type: ignore


JobList, EndpointList, DeploymentList, ComputeList = (page_of(m) for m in (Job, Endpoint, Deployment, Compute))

NewEndpoint = create_model("NewEndpoint", __base__=Endpoint, keys=(dict[str, str], Field(default_factory=dict)))


class Page(Body):
    """Paging of lists."""

    limit: int = Field(default=50, ge=1, le=200)
    page_token: str | None = Field(default=None, max_length=2000)


class Nothing(Body):
    """An empty object."""


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


AuditList = page_of(AuditRow)


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
