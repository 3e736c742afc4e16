"""Endpoint: a stable name with keys, in front of deployments."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from .base import Spec, Status, check_name


class EndpointSpec(Spec):
    """``traffic`` maps deployment names to percentages that add up to 0 or 100; in this form one takes all."""

    auth_mode: Literal["key"] = "key"
    description: str = Field(default="", max_length=5000)
    tags: dict[str, str] = Field(default_factory=dict)
    traffic: dict[str, int] = Field(default_factory=dict)

    @field_validator("traffic")
    @classmethod
    def _adds_up(cls, value: dict[str, int]) -> dict[str, int]:
        for name, share in value.items():
            check_name(name, "deployment name")
            if share not in (0, 100):
                raise ValueError("a share of traffic is 0 or 100 for now: one deployment takes all")
        if value and sum(value.values()) not in (0, 100):
            raise ValueError("the shares of traffic must add up to 0 or 100")
        return value


class EndpointStatus(Status):
    """``phase``: Creating, Ready, Degraded, Failed. ``scoring_uri`` is on loopback; outside it is behind Jupyter."""

    phase: Literal["Creating", "Ready", "Degraded", "Failed"] = "Creating"
    scoring_uri: str = ""
    key_hints: dict[str, str] = Field(
        default_factory=dict, description="key name → its last four characters; keys themselves are kept hashed"
    )
