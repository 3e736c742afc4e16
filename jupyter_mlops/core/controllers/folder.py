"""What the control plane puts into a job folder before an attempt; its end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
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


def remove_folder(folder: Path) -> None:
    """Remove a job's folder (blocking), also where the job left folders in it that cannot be written.

    Of links only they themselves go, never what they lead to.
    """
    if folder.is_symlink():
        folder.unlink(missing_ok=True)
        return
    shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        return
    with contextlib.suppress(OSError):  # somebody else's
        folder.chmod(0o700)
        for place, names, _ in os.walk(folder):
            for name in names:
                path = os.path.join(place, name)
                if not os.path.islink(path):
                    os.chmod(path, 0o700)
    shutil.rmtree(folder, ignore_errors=True)
