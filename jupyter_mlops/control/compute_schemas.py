"""Bodies of the REST API about computes that are no specs."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..core.resources import ComputeSpec
from .schemas import Body


class CheckCompute(Body):
    """A cluster that somebody would like to attach."""

    spec: ComputeSpec
    create_namespace: bool = False


class Problem(BaseModel):
    """What stands in the way, and what to do; ``fatal``: nothing can run there as it is."""

    message: str
    hint: str = ""
    fatal: bool = False


class Namespace(BaseModel):
    """``exists`` is null where these credentials may not see it; ``level`` is that of Pod Security."""

    name: str
    exists: bool | None = None
    level: str = ""


class QuotaLine(BaseModel):
    """One line of a ResourceQuota; amounts as in Kubernetes."""

    quota: str
    resource: str
    used: str
    hard: str


class Node(BaseModel):
    """A node; amounts are CPUs, bytes (``memory_bytes``) and devices."""

    name: str
    ready: bool
    usable: bool
    capacity: dict[str, float] = Field(default_factory=dict)
    taints: list[str] = Field(default_factory=list)


class Priority(BaseModel):
    """What users call a priority, and its PriorityClass; ``value`` is null where it is not there, or not to be seen."""

    model_config = ConfigDict(populate_by_name=True)

    name: str
    class_: str = Field(alias="class")
    value: int | None = None
    preempts: bool | None = None


class PackageCache(BaseModel):
    """Where installed packages stay: in each ``pod`` alone, in a ``claim``, or in a folder of each node."""

    kind: Literal["pod", "claim", "host_path"]
    name: str = ""
    size: str = Field(default="", description="above this the least recently used go")
    access_modes: list[str] = Field(default_factory=list)


class Image(BaseModel):
    """What an image held when a pod last ran on it; ``packages`` are those that matter most, of ``count``."""

    image: str
    digest: str = ""
    python: str = ""
    packages: dict[str, str] = Field(default_factory=dict)
    count: int = 0
    pip: bool = True
    conda: bool = False
    seen: str = ""


class Transfer(BaseModel):
    """How large files come back from pods: through the API's ``proxy``, or over ``exec`` streams, and why so."""

    way: Literal["proxy", "exec"]
    why: str = ""


class Store(BaseModel):
    """A claim in which the folders of jobs lie, and an object store that large files go through; empty: none."""

    claim: str = ""
    url: str = ""
    trouble: str = Field(default="", description="why the object store is not used; empty: it is")


class Route(BaseModel):
    """Where pods of jobs may call the control plane."""

    listen: str
    address: str = Field(description="the same as pods see it")
    trouble: str = Field(default="", description="why it is not used; empty: it is")


class Survey(BaseModel):
    """What is true of a cluster; null is what these credentials may not see."""

    version: str
    namespace: Namespace
    missing: list[str] = Field(default_factory=list, description="permissions that are needed and not there")
    role: dict[str, Any] | None = Field(default=None, description="the Role that would give them")
    quotas: list[QuotaLine] | None = None
    nodes: list[Node] | None = None
    capacity: dict[str, float] | None = None
    free: dict[str, float] | None = None
    engines: dict[str, bool] = Field(default_factory=dict)
    priorities: list[Priority] = Field(default_factory=list)
    package_cache: PackageCache | None = None
    transfer: Transfer | None = None
    store: Store | None = None
    route: Route | None = None
    images: list[Image] = Field(default_factory=list, description="what pods of jobs have told of their images")
    problems: list[Problem] = Field(default_factory=list)
