"""Batch runs: files scored by an endpoint's model, in a job."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ..core.errors import ParameterError

if TYPE_CHECKING:
    from .job import Job
    from .sync import Client


def batch(
    client: Client, endpoint: str, input: str | os.PathLike[str], output: str | os.PathLike[str], *,
    deployment: str = "", name: str = "", params: dict[str, Any] | None = None, overwrite: bool = False,
    experiment: str = "Default", compute: str = "local", format: str = "", mini_batch_size: int | None = None,
    concurrency: int | None = None, error_threshold: int = -1, retries: int | None = None,
    timeout: float | None = None, summary_only: bool = False, logging_level: str = "INFO",
) -> Job:
    """Score files with the model of an endpoint; returns at once with the job.

    The job goes on when the endpoint is stopped or deleted. ``input`` is a file, a folder or a glob pattern of csv,
    parquet, jsonl or images; ``output`` a folder, or a file that ends in .csv, .parquet or .jsonl. Both are relative to
    the working folder. Beside the predictions come ``errors.jsonl``, with the rows that failed, and ``summary.json``.

    Args:
        deployment: which one scores; empty: the one with most of the traffic.
        name: of the job; empty: made from the endpoint's.
        overwrite: replace what an earlier run has left there.
        format: csv (the default), parquet or jsonl.
        mini_batch_size: rows of a table (default 4096), or images (default 10), that are scored at once.
        concurrency: processes that hold the model (default 2).
        error_threshold: failed rows that are put up with; -1: any number.
        retries: how often a mini-batch that fails is tried again (default 3).
        timeout: seconds that one try may take (default 300).

    Raises:
        ParameterError, Refused, NotFound: it cannot be done; no job was made.
    """
    body: dict[str, Any] = {
        "input": absolute(input), "output": absolute(output), "deployment": deployment, "name": name,
        "params": params or {}, "overwrite": overwrite, "experiment_name": experiment, "compute": compute,
    }
    settings: dict[str, Any] = {"error_threshold": error_threshold, "logging_level": logging_level}
    if format:
        if format not in ("csv", "parquet", "jsonl"):
            raise ParameterError(f"{format!r} is none of the formats", "csv, parquet or jsonl")
        settings["output_file_name"] = f"predictions.{format}"
    if mini_batch_size is not None:
        settings["mini_batch_size"] = mini_batch_size
    if concurrency is not None:
        settings["max_concurrency_per_instance"] = concurrency
    if summary_only:
        settings["output_action"] = "summary_only"
    retry = {"max_retries": retries, "timeout": timeout}
    settings["retry_settings"] = {k: v for k, v in retry.items() if v is not None}
    from .job import Job

    return Job(client, client.call(client.aio.batch(endpoint, {**body, "settings": settings})))


def absolute(path: str | os.PathLike[str]) -> str:
    """A path, or a glob pattern, of the working folder. Raises ParameterError."""
    text = os.path.expanduser(os.fspath(path))
    if not text.strip() or "\0" in text:
        raise ParameterError("the path is empty", "name a file, a folder or a pattern such as data/*.csv")
    return os.path.abspath(text)
