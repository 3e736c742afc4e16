"""Endpoint: a stable name with keys, in front of deployments that share its traffic."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ..errors import ParameterError
from .base import Model, Spec, Status, check_name


def _name(name: str, what: str) -> str:
    try:
        return check_name(name, what)
    except ParameterError as error:  # told with the field that it is in
        raise ValueError(f"{error.message}: {error.hint}") from None


def checked_traffic(value: dict[str, int]) -> dict[str, int]:
    """Shares of traffic in percent, unchanged.

    Raises:
        ValueError: naming the share that is outside 0..100, or the sum when it is neither 0 nor 100.
    """
    for name, share in value.items():
        _name(name, "deployment name")
        if not 0 <= share <= 100:
            raise ValueError(f"the share of {name!r} is {share}; shares are 0 to 100 percent")
    total = sum(value.values())
    if total not in (0, 100):
        raise ValueError(f"the shares of traffic must add up to 0 or 100; these add up to {total}")
    return value


def checked_mirror(value: dict[str, int]) -> dict[str, int]:
    """The share of requests that are mirrored, in percent, unchanged.

    Raises:
        ValueError: more than one deployment, or a share outside 1..100.
    """
    if len(value) > 1:
        raise ValueError(f"at most one deployment is mirrored to; these are {', '.join(sorted(value))}")
    for name, share in value.items():
        _name(name, "deployment name")
        if not 1 <= share <= 100:
            raise ValueError(f"the mirrored share of {name!r} is {share}; it is 1 to 100 percent")
    return value


class CanarySpec(Model):
    """A deployment that takes ``percent`` of the traffic for a while, and then all of it or none.

    It is promoted after ``duration`` seconds with at least ``min_requests`` requests, and rolled back as soon as it
    breaks a threshold. Errors are answers 5xx, 424 (the model raised) and 504 among its requests; what share of errors
    the other deployments have in the same time is taken off.
    """

    deployment: str = Field(description="which deployment is the candidate")
    percent: int = Field(default=10, ge=1, le=99)
    duration: float = Field(default=300.0, gt=0, le=2_592_000, description="seconds")
    min_requests: int = Field(default=50, ge=1, le=10_000_000)
    max_error_rate: float = Field(default=0.02, ge=0, le=1)
    max_latency_ratio: float = Field(
        default=2.0, ge=1, le=1000, description="most that its 95th percentile may be of the others'"
    )
    max_latency_ms: float = Field(default=0.0, ge=0, le=600_000, description="bound on its 95th percentile; 0: none")

    @field_validator("deployment")
    @classmethod
    def _a_name(cls, value: str) -> str:
        return _name(value, "deployment name")


class EndpointSpec(Spec):
    """``traffic`` maps deployment names to percentages that add up to 0 or 100.

    Empty: the first deployment that is ready takes all, and later on what was shifted stays. Requests that are mirrored
    go to a deployment in addition: its answers are compared and counted, never returned.
    """

    auth_mode: Literal["key", "token"] = "key"
    description: str = Field(default="", max_length=5000)
    tags: dict[str, str] = Field(default_factory=dict)
    traffic: dict[str, int] = Field(default_factory=dict)
    mirror_traffic: dict[str, int] = Field(default_factory=dict)
    sticky_header: str = Field(
        default="", max_length=64, pattern=r"^[A-Za-z0-9-]*$",
        description="requests that agree in this header's value go to the same deployment",
    )
    compute: str = Field(default="", max_length=40, description="where its deployments run; empty: local")
    public_network_access: Literal["enabled", "disabled"] = Field(
        default="enabled", description="disabled: it is not reachable through Jupyter's public route"
    )
    canary: CanarySpec | None = None

    @field_validator("traffic")
    @classmethod
    def _adds_up(cls, value: dict[str, int]) -> dict[str, int]:
        return checked_traffic(value)

    @field_validator("mirror_traffic")
    @classmethod
    def _one_mirror(cls, value: dict[str, int]) -> dict[str, int]:
        return checked_mirror(value)

    @field_validator("compute")
    @classmethod
    def _a_compute(cls, value: str) -> str:
        return _name(value, "compute") if value else value

    @model_validator(mode="after")
    def _mirror_of_others(self) -> EndpointSpec:
        for name in self.mirror_traffic:
            if self.traffic.get(name):
                raise ValueError(f"mirror_traffic: {name!r} has a share of the traffic itself; mirror to another one")
        return self


class CanaryCounts(Model):
    """What one side of a canary was seen to do since its start. ``error_rate`` is 0..1, latencies are milliseconds."""

    requests: int = 0
    errors: int = 0
    error_rate: float = 0.0
    p50: float | None = None
    p95: float | None = None


class CanaryStatus(Model):
    """How a canary goes, or how the last one ended; ``previous`` is the traffic before it."""

    phase: Literal["Running", "Promoted", "RolledBack", "Stopped"] = "Running"
    deployment: str
    percent: int
    previous: dict[str, int] = Field(default_factory=dict)
    reason: str = ""
    started_at: str = ""
    ended_at: str = ""
    candidate: CanaryCounts = Field(default_factory=CanaryCounts)
    baseline: CanaryCounts = Field(default_factory=CanaryCounts)


class EndpointStatus(Status):
    """``phase``: Creating, Ready, Degraded, Failed. ``scoring_uri`` is on loopback; outside it is behind Jupyter.

    ``traffic`` is in force: what was asked for, less what is not ready.
    """

    phase: Literal["Creating", "Ready", "Degraded", "Failed"] = "Creating"
    scoring_uri: str = ""
    key_hints: dict[str, str] = Field(
        default_factory=dict, description="key name → its last four characters; keys themselves are kept hashed"
    )
    traffic: dict[str, int] = Field(default_factory=dict)
    previous_traffic: dict[str, int] = Field(
        default_factory=dict, description="what a rollback without a canary returns to"
    )
    canary: CanaryStatus | None = None


def spread(shares: dict[str, int], total: int) -> dict[str, int]:
    """The same proportions as whole numbers that add up to ``total``; each that had a share keeps at least 1 of it.

    Empty when nothing has a share.
    """
    live = {name: share for name, share in shares.items() if share > 0}
    have = sum(live.values())
    if not have:
        return {}
    exact: dict[str, Any] = {name: share * total / have for name, share in live.items()}
    whole = {name: max(1, int(value)) for name, value in exact.items()}
    while sum(whole.values()) != total:
        step = 1 if sum(whole.values()) < total else -1
        movable = [n for n in whole if step > 0 or whole[n] > 1]
        if not movable:
            break
        furthest = max(movable, key=lambda n: step * (exact[n] - whole[n]))
        whole[furthest] += step
    return whole
