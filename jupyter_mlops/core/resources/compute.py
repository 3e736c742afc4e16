"""Compute: a named place where jobs run, made by an operator."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .base import Model, Spec, Status


class ComputeSpec(Spec):
    """``type`` names a driver from the entry point group ``jupyter_mlops.compute``."""

    type: Literal["local"] = "local"
    description: str = Field(default="", max_length=5000)
    max_processes: int = Field(
        default=0, ge=0, le=4096, description="most processes of one job; 0: the number of CPUs, at least 2"
    )
    cpus: float = Field(default=0, ge=0, le=4096, description="CPUs for jobs; 0: those of the machine, at least 2")
    memory: str = Field(
        default="", pattern=r"^([0-9]+(\.[0-9]+)?([kMGT]i?)?)?$", description="memory for jobs; empty: the machine's"
    )


class WaitingProcess(Model):
    """A process that has imported torch and waits for a job of its interpreter."""

    interpreter: str
    pid: int
    memory_bytes: int


class Slots(Model):
    """An amount of what jobs ask for."""

    cpus: float = 0
    memory_bytes: int = 0
    gpus: float = 0


class ComputeStatus(Status):
    """Facts of the machine: ``cpus`` count, ``memory_bytes`` total, ``gpus`` names; and its queue, when it is read.

    ``slots`` is what there is for jobs, ``used`` what running jobs have of it: CPUs, memory in bytes, GPUs.
    """

    phase: Literal["Ready", "Unreachable"] = "Ready"
    cpus: int = 0
    memory_bytes: int = 0
    gpus: list[str] = Field(default_factory=list)
    running_jobs: int = 0
    waiting: list[WaitingProcess] = Field(default_factory=list)
    queued_jobs: int = 0
    slots: Slots = Field(default_factory=Slots)
    used: Slots = Field(default_factory=Slots)
