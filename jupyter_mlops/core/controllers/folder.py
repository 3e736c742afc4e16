"""What the control plane puts into a job folder before an attempt."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ...runtime import jobfolder
from ..resources.job import JobSpec


def write_folder(
    folder: Path, spec: JobSpec, run: dict[str, Any], prepare: Iterable[Callable[[Path, JobSpec], None]]
) -> None:
    """Write ``spec.json`` and ``run.json``, then let each of ``prepare`` add what it has for the job (blocking).

    Raises:
        OSError: the disk is full, or read-only.
        MlopsError: something that the job needs is not there.
    """
    place = jobfolder.JobFolder(folder)
    for path in (place.outputs, str(folder / "attempts")):
        jobfolder.private_folder(path)
    for name, value in (("spec.json", spec.model_dump()), ("run.json", run)):
        # Not synced: after a loss of power before the start they are written again.
        jobfolder.write_file(str(folder / name), json.dumps(value, indent=1).encode(), durable=False)
    for add in prepare:
        add(folder, spec)
