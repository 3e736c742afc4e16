"""What the control plane puts into a job folder before an attempt; its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ...runtime import data, jobfolder
from ..errors import Refused
from ..resources.job import JobSpec
from .recorder import RunRecorder


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


async def find_artifacts(recorder: RunRecorder, spec: JobSpec) -> dict[str, Path]:
    """Where that is which the inputs of a job name of MLflow, by their names.

    Raises:
        NotFound, Refused: it is not there, or of another kind; and what is raised while MLflow is away.
    """
    found = {}
    for name, given in spec.files.items():
        if given.scheme in data.MLFLOW:
            path = found[name] = await recorder.artifact(given.path)
            kind = "uri_folder" if await asyncio.to_thread(path.is_dir) else "uri_file"
            if given.type not in ("", kind):
                raise Refused(f"input {name}: {given.path} is a {kind[4:]}", f"say type: {kind}")
    return found


def put_artifacts(places: Mapping[str, Path], folder: Path, spec: JobSpec) -> None:
    """Give a job copies of what its inputs name of MLflow (blocking), once for all attempts.

    Args:
        places: by the name of the input, the file or folder that MLflow keeps.
    """
    for name, source in places.items():
        target = folder / "inputs" / data.SHIPPED / name
        if target.exists():
            continue
        jobfolder.private_folder(str(target.parent))
        new = target.with_name(f".{name}.new")
        shutil.rmtree(new, ignore_errors=True)
        if source.is_dir():
            shutil.copytree(source, new)
        else:
            (new / data.ONE).mkdir(parents=True)
            shutil.copyfile(source, new / data.ONE / source.name)
        new.replace(target)


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
