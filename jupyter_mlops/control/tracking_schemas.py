"""Bodies, queries and rows of the REST API's views over MLflow."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from .schemas import Body, Page, page_of


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


ExperimentList, RunList, ModelList = (page_of(m) for m in (Experiment, Run, Model))
