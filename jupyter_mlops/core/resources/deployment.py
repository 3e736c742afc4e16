"""Deployment: one model version, or one scoring script, behind an endpoint."""

from __future__ import annotations

import json
import os
import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from .base import Model, Spec, Status
from .compute import ContainerResources

#: Fields of a spec that may change while it serves; any other change is another deployment.
MUTABLE = frozenset({
    "description", "tags", "instance_count", "scale_settings", "request_settings", "data_collector",
})
#: Fields of Azure ML that are accepted, and on which nothing depends here.
IGNORED = ("app_insights_enabled", "egress_public_network_access", "model_mount_path")
#: Bytes of request and expected answer of a proof, as JSON.
MAX_PROOF = 4_000_000

_AZUREML = re.compile(r"azureml:(?P<name>[^:@/]+)(?::(?P<version>[0-9]+)|@(?P<alias>[^:@/]+))")
_RUN = re.compile(r"runs:/[A-Za-z0-9]{1,64}/[^\0]+")


class RequestSettings(Model):
    """Bounds on scoring requests, and how they share the model. Times are milliseconds."""

    request_timeout_ms: int = Field(default=30_000, ge=100, le=600_000)
    max_concurrent_requests_per_instance: int = Field(default=64, ge=1, le=10_000)
    max_queue_wait_ms: int = Field(default=0, ge=0, le=600_000, description="0: request_timeout_ms")
    max_queue: int = Field(default=512, ge=1, le=100_000, description="requests that wait; more are answered 429")
    max_request_bytes: int = Field(default=16 * 1024 * 1024, ge=1024, le=1024**3)
    max_batch_rows: int = Field(default=4096, ge=1, le=1_000_000, description="rows of several requests in one call")
    batching: bool = Field(default=True, description="off for a model whose answer for a row depends on the others")
    max_batch_wait_ms: float = Field(default=0.0, ge=0, le=1000, description="added to wait for more rows")
    retry: bool = Field(default=True, description="a request whose instance dies is tried once more on another")


class ScaleSettings(Model):
    """``default``: ``instance_count`` instances; ``target_utilization``: between min and max, by queue and use."""

    type: Literal["default", "target_utilization"] = "default"
    min_instances: int = Field(default=1, ge=0, le=64, description="0: none while nothing asks; a request wakes one")
    max_instances: int = Field(default=1, ge=1, le=64)
    target_utilization_percentage: int = Field(default=70, ge=1, le=100)
    polling_interval: float = Field(default=1.0, ge=0.1, le=3600, description="seconds between looks")
    idle_seconds: float = Field(default=300.0, ge=1, le=2_592_000, description="without a request before it goes to 0")

    @model_validator(mode="after")
    def _in_order(self) -> ScaleSettings:
        if self.min_instances > self.max_instances:
            raise ValueError(f"min_instances {self.min_instances} is more than max_instances {self.max_instances}")
        return self


class ProbeSettings(Model):
    """How an instance is asked whether it lives, or can take requests; seconds and counts."""

    initial_delay: int = Field(default=10, ge=0, le=86_400)
    period: int = Field(default=10, ge=1, le=86_400)
    timeout: int = Field(default=2, ge=1, le=86_400)
    success_threshold: int = Field(default=1, ge=1, le=1000)
    failure_threshold: int = Field(default=30, ge=1, le=10_000)


class Collection(Model):
    """Whether one side of the requests is kept."""

    enabled: bool = True


class Collections(Model):
    """What of a request is kept."""

    model_inputs: Collection = Field(default_factory=Collection)
    model_outputs: Collection = Field(default_factory=Collection)


class DataCollector(Model):
    """A sample of requests and answers, kept as Parquet by hour."""

    sampling_rate: float = Field(default=1.0, ge=0, le=1)
    rolling_rate: Literal["Hour"] = "Hour"
    collections: Collections = Field(default_factory=Collections)
    masked_columns: list[str] = Field(default_factory=list, max_length=10_000, description="kept without their values")
    max_bytes: int = Field(default=1 << 30, ge=1 << 20, le=1 << 50, description="the oldest files go first")


class CodeConfiguration(Model):
    """A scoring script with ``init()`` and ``run(data)``, in a zip that was uploaded as a blob."""

    code: str = Field(pattern=r"^blob:[0-9a-f]{64}$", description="blob:<sha256> of a zip")
    scoring_script: str = Field(min_length=1, max_length=500, description="path of the script in it")

    @field_validator("scoring_script")
    @classmethod
    def _inside(cls, value: str) -> str:
        if "\0" in value or os.path.isabs(value) or ".." in value.replace("\\", "/").split("/"):
            raise ValueError("scoring_script is a path inside of code")
        return value

    @property
    def sha256(self) -> str:
        """The blob's hash."""
        return self.code.removeprefix("blob:")


class ProofSpec(Model):
    """What a new deployment must answer before it takes traffic.

    ``request`` is a body in one of MLflow's forms; ``expected`` what the notebook's own model answered to it (null:
    that it answers at all is enough). Numbers may differ by ``atol + rtol * |expected|``.
    """

    request: dict[str, Any] | None = None
    expected: Any = None
    rtol: float = Field(default=1e-5, ge=0, le=1)
    atol: float = Field(default=1e-8, ge=0, le=1e9)
    packages: dict[str, str] = Field(
        default_factory=dict, max_length=5000, description="packages of the notebook and their versions"
    )
    origin: Literal["variable", "model", "example", "none"] = "none"

    @model_validator(mode="after")
    def _bounded(self) -> ProofSpec:
        size = len(json.dumps([self.request, self.expected]))
        if size > MAX_PROOF:
            raise ValueError(f"request and expected have {size} bytes, at most {MAX_PROOF} are taken: use fewer rows")
        if self.expected is not None and self.request is None:
            raise ValueError("expected needs request")
        return self


class DeploymentSpec(Spec):
    """What serves: a model, a script, or a model with a script.

    ``model`` is ``NAME/VERSION``, ``NAME@ALIAS`` or ``runs:/RUN/PATH`` (also ``azureml:NAME:VERSION``); an alias is
    resolved once, when the deployment is made.
    """

    model: str = Field(default="", max_length=600)
    code_configuration: CodeConfiguration | None = None
    description: str = Field(default="", max_length=5000)
    tags: dict[str, str] = Field(default_factory=dict)
    environment_variables: dict[str, str] = Field(default_factory=dict)
    interpreter: str = Field(
        default="", max_length=4096, description="absolute path of the Python to use; empty: the model's own"
    )
    environment: str = Field(default="", max_length=1000, description="container image, on a cluster")
    instance_type: str = Field(default="", max_length=250, description="kind of node, on a cluster")
    instance_count: int = Field(default=1, ge=1, le=64)
    scale_settings: ScaleSettings = Field(default_factory=ScaleSettings)
    request_settings: RequestSettings = Field(default_factory=RequestSettings)
    liveness_probe: ProbeSettings | None = None
    readiness_probe: ProbeSettings | None = None
    data_collector: DataCollector | None = None
    resources: ContainerResources = Field(default_factory=ContainerResources)
    app_insights_enabled: bool | None = Field(default=None, description="accepted and ignored")
    egress_public_network_access: Literal["enabled", "disabled"] | None = Field(
        default=None, description="accepted and ignored"
    )
    model_mount_path: str | None = Field(default=None, max_length=4096, description="accepted and ignored")
    proof: ProofSpec | None = None

    @field_validator("interpreter")
    @classmethod
    def _absolute(cls, value: str) -> str:
        if value and (not os.path.isabs(value) or "\0" in value):
            raise ValueError("interpreter must be an absolute path")
        return value

    @field_validator("environment_variables")
    @classmethod
    def _plain_variables(cls, value: dict[str, str]) -> dict[str, str]:
        for key, text in value.items():
            if not key or "=" in key or "\0" in key or "\0" in text:
                raise ValueError(f"environment variable name {key!r} is not valid")
        return value

    @field_validator("model")
    @classmethod
    def _model_reference(cls, value: str) -> str:
        if not value or _RUN.fullmatch(value):
            return value
        azure = _AZUREML.fullmatch(value)
        if azure:
            return f"{azure['name']}@{azure['alias']}" if azure["alias"] else f"{azure['name']}/{azure['version']}"
        name, at, alias = value.rpartition("@")
        if at and name and alias:
            return value
        name, slash, version = value.rpartition("/")
        if slash and name and version.isascii() and version.isdigit():
            return value
        raise ValueError(f"model {value!r} is neither NAME/VERSION nor NAME@ALIAS nor runs:/RUN/PATH")

    @model_validator(mode="after")
    def _something_serves(self) -> DeploymentSpec:
        if not self.model and self.code_configuration is None:
            raise ValueError("give model, code_configuration, or both")
        return self

    @property
    def ignored(self) -> list[str]:
        """Fields that were given and on which nothing depends here."""
        return [name for name in IGNORED if getattr(self, name) is not None]

    @property
    def first_instances(self) -> int:
        """How many run at first; one also where none shall be while nobody asks."""
        scale = self.scale_settings
        return max(1, scale.min_instances) if scale.type == "target_utilization" else self.instance_count

    @property
    def probes(self) -> dict[str, Any]:
        """Those that were given, as drivers take them."""
        return self.model_dump(mode="json", include={"liveness_probe", "readiness_probe"}, exclude_none=True)

    def served(self, name: str, version: str) -> dict[str, Any]:
        """What a gateway is told of it: how it serves, and which model this is."""
        settings = self.model_dump(
            mode="json", include={"instance_count", "scale_settings", "request_settings", "data_collector"}
        )
        return {"model": {"name": name, "version": version}, "batching": self.request_settings.batching, **settings}


class Instances(Model):
    """How many instances there shall be, and how many answer."""

    wanted: int = 1
    ready: int = 0


class PackageDifference(Model):
    """A package that the deployment uses in another version than the notebook."""

    name: str
    kernel: str
    deployment: str


class ProofStatus(Model):
    """How the proof went; ``passed`` is null when there was nothing to compare with, and nothing was asked.

    ``kind``: ``equal`` (its answer was compared with the notebook's), ``answered`` (it answered its model's own example
    or a sample without an expected answer), ``none``.
    """

    passed: bool | None = None
    kind: Literal["equal", "answered", "none"] = "none"
    message: str = ""
    rows: int | None = None
    max_difference: float | None = None
    packages: list[PackageDifference] = Field(default_factory=list, description="those whose versions differ")
    took_ms: float | None = None


class DeploymentStatus(Status):
    """What is so of a deployment; ``pid`` is that of its first instance, ``restarts`` counts over all."""

    phase: Literal["Pending", "Preparing", "Starting", "Proving", "Ready", "Failed", "Deleting"] = "Pending"
    model_name: str = ""
    model_version: str = ""
    model_source: str = Field(default="", description="where its files are, as MLflow names it")
    run_id: str = ""
    interpreter: str = ""
    pid: int | None = None
    restarts: int = 0
    ready_at: str = ""
    log_tail: list[str] = Field(default_factory=list)
    signature: dict[str, Any] = Field(default_factory=dict, description="the model's signature as MLflow writes it")
    instances: Instances = Field(default_factory=Instances)
    proof: ProofStatus | None = None
    ignored: list[str] = Field(default_factory=list, description="fields of the spec that have no effect here")
