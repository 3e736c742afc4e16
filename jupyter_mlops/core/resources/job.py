"""Job: something that executes. It has attempts and owns one MLflow run.

Field names are those of the Azure ML CLI v2 command job; ``script``, ``args``, ``cell``, ``cwd`` and ``interpreter``
are our additions for work that starts from a notebook.
"""

from __future__ import annotations

import os
from typing import Literal

from pydantic import Field, field_validator, model_validator

from .base import Model, Spec, Status

JobPhase = Literal["Queued", "Starting", "Running", "Stopping", "Completed", "Failed", "Canceled"]
TERMINAL = frozenset({"Completed", "Failed", "Canceled"})
ACTIVE = ["Queued", "Starting", "Running", "Stopping"]

#: How a job's end is told to MLflow.
RUN_STATUS = {"Completed": "FINISHED", "Failed": "FAILED", "Canceled": "KILLED"}

MAX_CELL_BYTES = 1_000_000


class CellSource(Model):
    """The code of a notebook cell that runs as a job."""

    source: str = Field(max_length=MAX_CELL_BYTES)
    notebook: str = Field(default="", description="path of the notebook, as Jupyter knows it")
    cell_id: str = ""


class PyTorchDistribution(Model):
    """Processes started by ``torch.distributed.run`` on each node."""

    type: Literal["pytorch"] = "pytorch"
    process_count_per_instance: int = Field(default=1, ge=1, le=1024)


class JobResources(Model):
    """What one job asks of its compute; the local compute has one instance."""

    instance_count: int = Field(default=1, ge=1, le=1)


class JobLimits(Model):
    """Bounds on a job's life."""

    grace: float = Field(default=10.0, ge=0, le=600, description="seconds between SIGTERM and SIGKILL when stopped")


class JobSpec(Spec):
    """What to run: exactly one of ``command``, ``script`` and ``cell``."""

    type: Literal["command"] = "command"
    display_name: str = Field(default="", max_length=250)
    description: str = Field(default="", max_length=5000)
    experiment_name: str = Field(default="Default", min_length=1, max_length=250)
    tags: dict[str, str] = Field(default_factory=dict)
    command: str | None = Field(default=None, min_length=1, description="a shell command line (sh)")
    script: str | None = Field(default=None, min_length=1, description="a Python script: absolute, or relative to cwd")
    args: list[str] = Field(default_factory=list, description="arguments of script")
    cell: CellSource | None = None
    cwd: str = Field(default="", description="absolute working folder; empty: the job folder's own outputs/")
    environment_variables: dict[str, str] = Field(default_factory=dict)
    compute: str = "local"
    distribution: PyTorchDistribution | None = None
    resources: JobResources = Field(default_factory=JobResources)
    limits: JobLimits = Field(default_factory=JobLimits)
    interpreter: str = Field(default="", description="absolute path of the Python to use: the submitting kernel's")

    @field_validator("environment_variables")
    @classmethod
    def _plain_variables(cls, value: dict[str, str]) -> dict[str, str]:
        for key, text in value.items():
            if not key or "=" in key or "\0" in key or "\0" in text:
                raise ValueError(f"environment variable name {key!r} is not valid")
            if key.startswith("JUPYTER_MLOPS_"):
                raise ValueError(f"environment variable {key!r}: names that start with JUPYTER_MLOPS_ are reserved")
        return value

    @model_validator(mode="after")
    def _one_entry(self) -> JobSpec:
        given = [name for name in ("command", "script", "cell") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of command, script and cell (given: {', '.join(given) or 'none'})")
        if self.args and self.script is None:
            raise ValueError("args needs script")
        if self.command is not None and self.processes > 1:
            raise ValueError("distribution needs script or cell, not command")
        for name in ("cwd", "interpreter"):
            path = getattr(self, name)
            if path and not os.path.isabs(path):
                raise ValueError(f"{name} must be an absolute path")
        for text in (self.command, self.script, self.cwd, self.interpreter, *self.args):
            if text and "\0" in text:
                raise ValueError("NUL characters are not allowed")
        return self

    @property
    def processes(self) -> int:
        """Processes per node: 1 without a distribution."""
        return self.distribution.process_count_per_instance if self.distribution else 1


class RankStatus(Model):
    """One process of the running attempt."""

    rank: int
    phase: Literal["Starting", "Running", "Exited"] = "Starting"
    pid: int | None = None
    exit_code: int | None = Field(default=None, description="negative: ended by that signal; null: unknown or running")


class JobStatus(Status):
    """What is so. Times are RFC 3339 in UTC; ``exit_code`` is the first failing rank's, negative for a signal."""

    phase: JobPhase = "Queued"
    run_id: str = ""
    experiment_id: str = ""
    attempt: int = 0
    queued_at: str = ""
    started_at: str = ""
    ended_at: str = ""
    exit_code: int | None = None
    failed_rank: int | None = None
    ranks: list[RankStatus] = Field(default_factory=list)
    log_tail: list[str] = Field(default_factory=list, description="the last log lines, kept when the job failed")
    stop_requested: bool = False
