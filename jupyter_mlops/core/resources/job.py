"""Job: something that executes. It has attempts and owns one MLflow run.

Field names are those of the Azure ML CLI v2 command job; ``script``, ``args``, ``cell``, ``cwd`` and ``interpreter``
are our additions for work that starts from a notebook.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ..errors import Conflict
from .base import Model, Spec, Status
from .batch import BatchRun
from .data import Digest, Input, JobInput, JobOutput, Named, check_references
from .environment import JobEnvironment

JobPhase = Literal["Queued", "Starting", "Running", "Stopping", "Finalizing", "Completed", "Failed", "Canceled"]
TERMINAL = frozenset({"Completed", "Failed", "Canceled"})
ACTIVE = ["Queued", "Starting", "Running", "Stopping", "Finalizing"]

#: Where a job's phase may go from each phase; to stay is always allowed. See docs/jobs.md.
TRANSITIONS: dict[str, frozenset[str]] = {
    "Queued": frozenset({"Starting", "Finalizing", "Failed", "Canceled"}),
    # Back to Queued: the attempt failed, a further one is due.
    "Starting": frozenset({"Queued", "Running", "Stopping", "Finalizing", *TERMINAL}),
    "Running": frozenset({"Queued", "Stopping", "Finalizing", *TERMINAL}),
    # Back to Queued: its cluster took the pods away, which nobody asked for.
    "Stopping": frozenset({"Queued", "Finalizing", *TERMINAL}),
    "Finalizing": TERMINAL,
    "Completed": frozenset(),
    # By a resume.
    "Failed": frozenset({"Queued"}),
    "Canceled": frozenset({"Queued"}),
}

#: How a job's end is told to MLflow.
RUN_STATUS = {"Completed": "FINISHED", "Failed": "FAILED", "Canceled": "KILLED"}

MAX_CELL_BYTES = 1_000_000


class ShippedVariable(Model):
    """One line of the manifest: a name that the cell needs, and how it travels."""

    name: str = Field(max_length=250)
    type: str = Field(default="", max_length=250)
    bytes: int = Field(default=0, ge=0)
    sha256: Digest = ""
    how: Literal["value", "import", "module", "reference"] = "value"
    detail: str = Field(default="", max_length=500, description="what is imported, or why")


class Packed(Model):
    """What packed the variables of a cell: versions that are compared with those of an image.

    ``by_value``: functions or classes of the notebook are among them, which only the same Python runs.
    """

    python: str = Field(default="", max_length=50)
    by_value: bool = False
    packages: dict[str, str] = Field(default_factory=dict, max_length=500)


class CellSource(Model):
    """The code of a notebook cell that runs as a job."""

    source: str = Field(max_length=MAX_CELL_BYTES)
    notebook: str = Field(default="", description="path of the notebook, as Jupyter knows it")
    cell_id: str = ""
    payload: Digest = Field(default="", description="blob with the variables that the cell needs")
    packed: Packed | None = None
    variables: list[ShippedVariable] = Field(default_factory=list, max_length=1000)
    returns: list[str] = Field(default_factory=list, max_length=100, description="names brought back at the end")


class PyTorchDistribution(Model):
    """Processes started by ``torch.distributed.run`` on each node."""

    type: Literal["pytorch"] = "pytorch"
    process_count_per_instance: int = Field(default=1, ge=1, le=1024)


class TensorFlowDistribution(Model):
    """Workers that find each other by ``TF_CONFIG``, as ``MultiWorkerMirroredStrategy`` wants it.

    ``worker_count`` is that of all instances together; without it there is one for each instance, or
    ``process_count_per_instance``.
    """

    type: Literal["tensorflow"]
    worker_count: int = Field(default=0, ge=0, le=4096)
    parameter_server_count: int = Field(default=0, ge=0)
    process_count_per_instance: int = Field(default=1, ge=1, le=1024, description="ours; worker_count decides")

    @field_validator("parameter_server_count")
    @classmethod
    def _none(cls, value: int) -> int:
        if value:
            raise ValueError("parameter servers are not started: leave it out, and use workers alone")
        return value


class MpiDistribution(Model):
    """Processes started by ``mpirun``: that of the interpreter or of the path, on a cluster that of the image."""

    type: Literal["mpi"]
    process_count_per_instance: int = Field(default=1, ge=1, le=1024)


Distribution = Annotated[PyTorchDistribution | TensorFlowDistribution | MpiDistribution, Field(discriminator="type")]


class JobResources(Model):
    """What one job asks of its compute, for each of its instances.

    The local compute has one instance, and counts what is asked for; a cluster gives each instance (a pod) that much.
    """

    instance_count: int = Field(default=1, ge=1, le=1000)
    max_instance_count: int | None = Field(
        default=None, ge=1, le=1000,
        description="elastic: it begins with instance_count of them, and takes up to this many when there is room"
    )
    instance_type: str = Field(default="", max_length=253, description="a kind of node that the operator has named")
    shm_size: str = Field(
        default="", max_length=20, pattern=r"^([0-9]+(\.[0-9]+)?([kMGT]i?)?)?$",
        description="most bytes of /dev/shm, on a cluster; 2Gi"
    )
    cpus: float | None = Field(default=None, gt=0, le=4096, description="CPUs; none: one for each process")
    memory: str = Field(
        default="", max_length=20, pattern=r"^([0-9]+(\.[0-9]+)?([kMGT]i?)?)?$", description="bytes, such as 4Gi"
    )
    gpus: float = Field(default=0, ge=0, le=1024, description="GPUs: whole ones, or a fraction of one such as 0.5")

    @model_validator(mode="after")
    def _not_fewer(self) -> JobResources:
        if self.max_instance_count is not None and self.max_instance_count < self.instance_count:
            raise ValueError("max_instance_count is less than instance_count")
        return self

    @field_validator("gpus")
    @classmethod
    def _whole_or_less_than_one(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError("ask for whole GPUs, or for a fraction of one")
        return value


class JobLimits(Model):
    """Bounds on a job's life."""

    grace: float = Field(default=10.0, ge=0, le=600, description="seconds between SIGTERM and SIGKILL when stopped")
    timeout: float | None = Field(
        default=None, gt=0, le=31_536_000, description="seconds that all attempts together may run"
    )
    log_bytes: int = Field(
        default=1 << 30, ge=1 << 20, le=1 << 50, description="bytes of each rank's log that are kept: its begin and end"
    )


class RetrySettings(Model):
    """What happens when an attempt fails. A job that was stopped or ran out of time is not tried again."""

    max_retries: int = Field(default=0, ge=0, le=100, description="further attempts after the first")


class QueueSettings(Model):
    """Who goes first when the compute is full, and who may be told to go.

    ``spot``: on a cluster, cheaper room that can be taken away; the job then goes on from its last checkpoint as soon
    as there is room again. ``spot: true`` says the same.
    """

    priority: Literal["low", "medium", "high"] = "medium"
    job_tier: Literal["spot", "standard"] = "standard"

    @model_validator(mode="before")
    @classmethod
    def _in_short(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("spot"), bool):
            value = {**value}
            if value.pop("spot"):
                value["job_tier"] = "spot"
        return value


class JobSpec(Spec):
    """What to run: exactly one of ``command``, ``script``, ``cell`` and ``batch``."""

    type: Literal["command"] = "command"
    display_name: str = Field(default="", max_length=250)
    description: str = Field(default="", max_length=5000)
    experiment_name: str = Field(default="Default", min_length=1, max_length=250)
    tags: dict[str, str] = Field(default_factory=dict)
    command: str | None = Field(default=None, min_length=1, description="a shell command line (sh)")
    script: str | None = Field(default=None, min_length=1, description="a Python script: absolute, or relative to cwd")
    args: list[str] = Field(default_factory=list, description="arguments of script")
    code: Digest = Field(default="", description="blob: a zip of the script's folder, for where that folder is not")
    cell: CellSource | None = None
    batch: BatchRun | None = Field(default=None, description="files that a model scores")
    cwd: str = Field(default="", description="absolute working folder; empty: the job folder's own outputs/")
    environment_variables: dict[str, str] = Field(default_factory=dict)
    inputs: dict[Named, Input] = Field(
        default_factory=dict, max_length=100, description="files and values under names, see docs/data.md"
    )
    outputs: dict[Named, JobOutput] = Field(default_factory=dict, max_length=100)
    compute: str = "local"
    environment: JobEnvironment | None = None
    distribution: Distribution | None = None
    resources: JobResources = Field(default_factory=JobResources)
    limits: JobLimits = Field(default_factory=JobLimits)
    retry_settings: RetrySettings = Field(default_factory=RetrySettings)
    queue_settings: QueueSettings = Field(default_factory=QueueSettings)
    context: Digest = Field(default="", description="blob with what was captured at submission")
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

    @field_validator("distribution", mode="before")
    @classmethod
    def _pytorch(cls, value: Any) -> Any:
        return {"type": "pytorch", **value} if isinstance(value, dict) and "type" not in value else value

    @model_validator(mode="after")
    def _workers(self) -> JobSpec:
        if isinstance(self.distribution, TensorFlowDistribution) and self.distribution.worker_count:
            each, rest = divmod(self.distribution.worker_count, self.resources.instance_count)
            if rest or not each:
                raise ValueError(f"worker_count {self.distribution.worker_count} is no multiple of instance_count")
            self.distribution.process_count_per_instance = each
        if self.elastic and (not isinstance(self.distribution, PyTorchDistribution) or not (self.script or self.cell)):
            raise ValueError("max_instance_count needs distribution pytorch, and a script or cell")
        return self

    @model_validator(mode="after")
    def _one_entry(self) -> JobSpec:
        given = [name for name in ("command", "script", "cell", "batch") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of command, script, cell and batch (given: {', '.join(given) or 'none'})"
            )
        if (self.args or self.code) and self.script is None:
            raise ValueError(f"{'args' if self.args else 'code'} needs script")
        if (self.command is not None or self.batch is not None) and self.world_size > 1:
            raise ValueError(f"several processes need script or cell, not {given[0]}")
        if self.batch is not None and (self.inputs or self.outputs):
            raise ValueError("inputs and outputs are for command, script and cell; a batch run has its own")
        check_references([self.command or "", *self.args], self.inputs, self.outputs)
        for name in ("cwd", "interpreter"):
            path = getattr(self, name)
            if path and not os.path.isabs(path):
                raise ValueError(f"{name} must be an absolute path")
        for text in (self.command, self.script, self.cwd, self.interpreter, *self.args):
            if text and "\0" in text:
                raise ValueError("NUL characters are not allowed")
        return self

    @property
    def files(self) -> dict[str, JobInput]:
        """The inputs that are files rather than values."""
        return {name: given for name, given in self.inputs.items() if isinstance(given, JobInput)}

    @property
    def processes(self) -> int:
        """Processes per node: 1 without a distribution."""
        return self.distribution.process_count_per_instance if self.distribution else 1

    @property
    def elastic(self) -> bool:
        """Whether instances may come and go while it runs."""
        return (self.resources.max_instance_count or 0) > self.resources.instance_count

    @property
    def most_ranks(self) -> int:
        """Ranks that may have a log: in an elastic job those that take a lost one's place have numbers of their own."""
        if not self.elastic:
            return self.world_size
        return self.processes * (self.resources.max_instance_count or 1) * 20

    @property
    def spot(self) -> bool:
        """Whether what it runs on may be taken away at any time."""
        return self.queue_settings.job_tier == "spot"

    @property
    def world_size(self) -> int:
        """Ranks of all instances together."""
        return self.processes * self.resources.instance_count


_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
          "ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def parse_bytes(text: str) -> int:
    """Bytes that a checked size such as ``4Gi`` or ``1.5G`` names; 0 for an empty one."""
    number = text.rstrip("kMGTi")
    return int(float(number) * _UNITS[text[len(number):]]) if number else 0


def check_transition(name: str, old: str, new: str) -> None:
    """Refuse a change of phase that :data:`TRANSITIONS` does not know.

    Raises:
        Conflict: naming both phases.
    """
    if new != old and new not in TRANSITIONS[old]:
        raise Conflict(f"job {name!r} is {old} and cannot become {new}")


class RankStatus(Model):
    """One process of the running attempt."""

    rank: int
    phase: Literal["Starting", "Running", "Exited"] = "Starting"
    pid: int | None = None
    exit_code: int | None = Field(default=None, description="negative: ended by that signal; null: unknown or running")


class AttemptStatus(Model):
    """An attempt that has ended; ``seconds`` is how long it ran, by a clock that nobody can set."""

    attempt: int
    phase: Literal["Completed", "Failed", "Canceled"]
    reason: str = ""
    started_at: str = ""
    ended_at: str = ""
    seconds: float = 0.0
    exit_code: int | None = None
    failed_rank: int | None = None
    metrics_incomplete: bool = Field(default=False, description="a node was lost with what its ranks logged last")
    cause: str = Field(default="", max_length=20, description="lost or preempted, where what it ran on was taken away")


class Delivery(Model):
    """What of the job's journal has reached MLflow; counts of records, ``pending`` in bytes."""

    delivered: int = 0
    pending: int = 0
    duplicates: int = Field(default=0, description="points of a resumed attempt that an earlier one had logged")
    rejected: int = Field(default=0, description="records that MLflow refused")
    damaged: int = Field(default=0, description="bytes of torn records that were skipped")
    message: str = Field(default="", description="why delivery waits, or what was refused last")


class QueuePlace(Model):
    """Where a waiting job stands."""

    place: int = Field(description="1: the next to start")
    length: int = Field(description="number of waiting jobs")
    reason: str = Field(default="", description="what it waits for")


class JobStatus(Status):
    """What is so. Times are RFC 3339 in UTC; ``exit_code`` is the first failing rank's, negative for a signal.

    ``started_at`` and what follows it until ``traceback`` are those of attempt number ``attempt``.
    """

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
    traceback: list[str] = Field(default_factory=list, description="of the failing rank, when it was Python's")
    stop_requested: bool = False
    attempts: list[AttemptStatus] = Field(default_factory=list, description="earlier attempts, oldest first")
    outcome: AttemptStatus | None = Field(default=None, description="the last attempt's end, which decides the job's")
    resumed_after: int = Field(default=0, description="attempts up to this one came before the last resume")
    retry_at: str = Field(default="", description="when the next attempt is due")
    gpu_ids: list[int] = Field(default_factory=list, description="indices of the GPUs that were given to it")
    delivery: Delivery | None = None
    metrics_incomplete: bool = Field(default=False, description="that of any attempt; the run's tag says it too")
    route: str = Field(default="", max_length=500, description="which way large files come from a cluster, in words")
    queue: QueuePlace | None = Field(default=None, description="while it waits; computed when it is read")
    returned: list[ShippedVariable] = Field(default_factory=list, description="what `returns` brought back")
    deleted_at: str = Field(default="", description="when it was deleted; it can be restored until it is purged")
    folder_removed_at: str = Field(default="", description="when retention removed its folder and logs")
