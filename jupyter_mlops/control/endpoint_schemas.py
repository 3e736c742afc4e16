"""Bodies and queries of the endpoints' part of the REST API that are no specs."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..core.resources.endpoint import checked_mirror, checked_traffic
from .schemas import Body


class TrafficChange(Body):
    """Shares in percent that add up to 0 or 100; what is not given, or empty, stays as it is.

    ``mirror_traffic``: ``{}`` or null ends it. ``sticky_header``: the empty text ends it.
    """

    traffic: dict[str, int] | None = None
    mirror_traffic: dict[str, int] | None = None
    sticky_header: str | None = Field(default=None, max_length=64, pattern=r"^[A-Za-z0-9-]*$")

    @field_validator("traffic")
    @classmethod
    def _adds_up(cls, value: dict[str, int] | None) -> dict[str, int] | None:
        return value if value is None else checked_traffic(value)

    @field_validator("mirror_traffic")
    @classmethod
    def _one_mirror(cls, value: dict[str, int] | None) -> dict[str, int] | None:
        return value if value is None else checked_mirror(value)

    @model_validator(mode="after")
    def _something(self) -> TrafficChange:
        if not self.model_fields_set:
            raise ValueError("give traffic, mirror_traffic or sticky_header")
        return self


class Rollback(Body):
    """Why, for the history."""

    reason: str = Field(default="", max_length=500)


class TokenRequest(Body):
    """``expires_in`` in seconds."""

    expires_in: int = Field(default=3600, ge=60, le=30 * 86_400)


class Token(BaseModel):
    """A bearer token of an endpoint, told once; it opens that endpoint only."""

    token: str
    expires_at: str


class RotateKey(Body):
    """Which key to replace; ``tokens`` ends every bearer token of the endpoint."""

    key: Literal["primary", "secondary", "tokens"] = "primary"


class InvokeQuery(Body):
    """``deployment``: which one answers; absent: as the traffic falls."""

    deployment: str | None = Field(default=None, min_length=1, max_length=40)


class DeploymentLogQuery(Body):
    """A window of the log of one instance in bytes; a negative offset counts from the end."""

    offset: int = Field(default=-65536, ge=-(2**53), le=2**53)
    limit: int = Field(default=262_144, ge=1, le=4_194_304)
    instance: int = Field(default=0, ge=0, le=63)


class HistoryQuery(Body):
    """Most entries, newest first."""

    limit: int = Field(default=50, ge=1, le=1000)


class HistoryEntry(BaseModel):
    """Who changed what of an endpoint. ``detail`` has ``before`` and ``after`` where traffic changed."""

    at: str
    by: str
    action: str
    detail: dict[str, Any] = Field(default_factory=dict)


class History(BaseModel):
    """Changes of an endpoint, newest first."""

    items: list[HistoryEntry]


class LatencyStats(BaseModel):
    """Milliseconds; ``buckets`` are (upper bound, requests up to it)."""

    model_config = ConfigDict(extra="allow")

    count: int = 0
    sum: float = 0.0
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    buckets: list[list[float | None]] = Field(default_factory=list)


class DeploymentStats(BaseModel):
    """Counted since the gateway's start; ``errors`` by what they were, ``mirror``: what became of mirrored requests."""

    model_config = ConfigDict(extra="allow")

    requests: int = 0
    errors: dict[str, int] = Field(default_factory=dict)
    latency_ms: LatencyStats = Field(default_factory=LatencyStats)
    queued: int = 0
    in_flight: int = 0
    rows: int = 0
    batches: int = 0
    retried: int = 0
    instances: dict[str, int] = Field(default_factory=dict)
    mirror: dict[str, int] = Field(default_factory=dict)
    captured: int = 0
    capture_dropped: int = 0


class EndpointStats(BaseModel):
    """What the gateway counted for an endpoint; ``started_at`` in seconds since the epoch."""

    model_config = ConfigDict(extra="allow")

    deployments: dict[str, DeploymentStats] = Field(default_factory=dict)
    started_at: float | None = None
