"""The kinds of things a user can name: one module per kind, each a ``spec`` (asked) and a ``status`` (so)."""

from __future__ import annotations

from .base import NAME, Condition, Resource, Spec, Status, check_name, generate_name, utcnow
from .compute import ComputeSpec, ComputeStatus
from .deployment import DeploymentSpec, DeploymentStatus, ProofSpec
from .endpoint import CanarySpec, EndpointSpec, EndpointStatus
from .job import ACTIVE, TERMINAL, CellSource, JobPhase, JobSpec, JobStatus, RankStatus

#: kind → (spec model, status model). A new kind is one module and one line here.
KINDS: dict[str, tuple[type[Spec], type[Status]]] = {
    "job": (JobSpec, JobStatus),
    "endpoint": (EndpointSpec, EndpointStatus),
    "deployment": (DeploymentSpec, DeploymentStatus),
    "compute": (ComputeSpec, ComputeStatus),
}

__all__ = [
    "ACTIVE", "KINDS", "NAME", "TERMINAL", "CanarySpec", "CellSource", "ComputeSpec", "ComputeStatus", "Condition",
    "DeploymentSpec", "DeploymentStatus", "EndpointSpec", "EndpointStatus", "JobPhase", "JobSpec", "JobStatus",
    "ProofSpec", "RankStatus", "Resource", "Spec", "Status", "check_name", "generate_name", "utcnow",
]
