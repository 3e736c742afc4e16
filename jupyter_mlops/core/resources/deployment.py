"""Deployment: one model version behind an endpoint."""

from __future__ import annotations

import os
from typing import Any, Literal

from pydantic import Field, field_validator

from .base import Model, Spec, Status


class RequestSettings(Model):
    """Bounds on one scoring request."""

    request_timeout_ms: int = Field(default=30_000, ge=100, le=600_000)
    max_request_bytes: int = Field(default=16 * 1024 * 1024, ge=1024, le=1024**3)


class DeploymentSpec(Spec):
    """``model`` is ``name/version`` or ``name@alias``; an alias is resolved once, when the deployment is made."""

    model: str = Field(min_length=3, max_length=600)
    description: str = Field(default="", max_length=5000)
    tags: dict[str, str] = Field(default_factory=dict)
    environment_variables: dict[str, str] = Field(default_factory=dict)
    interpreter: str = Field(default="", description="absolute path of the Python to use; empty: the model's own")
    request_settings: RequestSettings = Field(default_factory=RequestSettings)

    @field_validator("interpreter")
    @classmethod
    def _absolute(cls, value: str) -> str:
        if value and not os.path.isabs(value):
            raise ValueError("interpreter must be an absolute path")
        return value

    @field_validator("model")
    @classmethod
    def _model_reference(cls, value: str) -> str:
        name, at, alias = value.rpartition("@")
        if at and name and alias:
            return value
        name, slash, version = value.rpartition("/")
        if slash and name and version.isascii() and version.isdigit():
            return value
        raise ValueError(f"model {value!r} is neither NAME/VERSION nor NAME@ALIAS")


class DeploymentStatus(Status):
    """What is so of one scorer."""

    phase: Literal["Pending", "Preparing", "Starting", "Ready", "Failed", "Deleting"] = "Pending"
    model_name: str = ""
    model_version: str = ""
    run_id: str = ""
    interpreter: str = ""
    pid: int | None = None
    restarts: int = 0
    ready_at: str = ""
    log_tail: list[str] = Field(default_factory=list)
    signature: dict[str, Any] = Field(default_factory=dict, description="the model's signature as MLflow writes it")
