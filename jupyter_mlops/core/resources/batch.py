"""Batch runs: files that an endpoint's deployment scores in mini-batches. A run is a job.

Settings are named as those of an Azure ML batch deployment.
"""

from __future__ import annotations

import os
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from .base import NAME_PATTERN, Model

#: Suffixes that an output file may have: what it is written as.
OUTPUT_SUFFIXES = (".csv", ".parquet", ".jsonl")


class BatchRetry(Model):
    """What happens when a mini-batch fails; ``timeout`` in seconds is that of one try."""

    max_retries: int = Field(default=3, ge=0, le=100)
    timeout: float = Field(default=300.0, gt=0, le=86_400)


class BatchSettings(Model):
    """How the input is cut and the output written."""

    mini_batch_size: int | None = Field(
        default=None, ge=1, le=1_000_000, description="rows of a table (default 4096), or images (default 10)"
    )
    max_concurrency_per_instance: int = Field(
        default=2, ge=1, le=256, description="processes that hold the model and score at once"
    )
    output_action: Literal["append_row", "summary_only"] = "append_row"
    output_file_name: str = Field(default="predictions.csv", max_length=200)
    retry_settings: BatchRetry = Field(default_factory=BatchRetry)
    error_threshold: int = Field(
        default=-1, ge=-1, description="failed rows that are put up with; one more fails the job; -1: any number"
    )
    logging_level: Literal["DEBUG", "INFO", "WARNING"] = "INFO"

    @field_validator("output_file_name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if "/" in value or "\0" in value or value.startswith(".") or not value.lower().endswith(OUTPUT_SUFFIXES):
            raise ValueError(f"output_file_name {value!r} must be a name that ends in {', '.join(OUTPUT_SUFFIXES)}")
        if value in ("errors.jsonl", "summary.json"):
            raise ValueError(f"output_file_name {value!r} is the name of another file of the output")
        return value


class _Files(Model):
    input: str = Field(min_length=1, max_length=4096, description="absolute: a file, a folder or a glob pattern")
    output: str = Field(min_length=1, max_length=4096, description="absolute: a folder; it is made when it is missing")
    params: dict[str, Any] = Field(default_factory=dict, description="the model's params")
    settings: BatchSettings = Field(default_factory=BatchSettings)
    overwrite: bool = Field(default=False, description="whether files of an earlier run are replaced")

    @field_validator("input", "output")
    @classmethod
    def _absolute(cls, value: str) -> str:
        if not os.path.isabs(value) or "\0" in value:
            raise ValueError("must be an absolute path")
        return os.path.normpath(value)

    @model_validator(mode="after")
    def _apart(self) -> _Files:
        if self.output == self.input or self.output.startswith(self.input.rstrip(os.sep) + os.sep):
            raise ValueError("output lies in input: the next run would read what this one has written")
        return self


class BatchSpec(_Files):
    """What is asked of an endpoint. An ``output`` that ends in .csv, .parquet or .jsonl names the file itself."""

    name: str = Field(default="", max_length=40, pattern=f"^$|{NAME_PATTERN}", description="of the job")
    deployment: str = Field(default="", max_length=40, description="empty: the one with most of the traffic")
    experiment_name: str = Field(default="Default", min_length=1, max_length=250)
    compute: str = "local"
    tags: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _file_as_output(self) -> BatchSpec:
        if self.output.lower().endswith(OUTPUT_SUFFIXES):
            self.output, name = os.path.split(self.output)
            self.settings = BatchSettings.model_validate({**self.settings.model_dump(), "output_file_name": name})
        return self


class BatchRun(_Files):
    """What a job has to score, and with what: ``payload`` is the blob with the model."""

    endpoint: str = Field(max_length=40)
    deployment: str = Field(max_length=40)
    model: str = Field(default="", max_length=600, description="NAME/VERSION")
    payload: str = Field(pattern=r"^[0-9a-f]{64}$")
