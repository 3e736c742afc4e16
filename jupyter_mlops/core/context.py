"""The context of a job, as its submitter captured it: tags of the run, files beneath ``inputs/``, artifacts.

What comes from outside is not trusted: only known tags are taken, only plain files within bounds are unpacked. A
context that is damaged or gone fails no job.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import zipfile
from pathlib import Path

from ..runtime import jobfolder, redact, spool
from .blobs import Blobs
from .resources.job import JobSpec

_logger = logging.getLogger(__name__)

#: Folder of the context, beneath ``inputs/`` of the job and among the artifacts of its run.
FOLDER = "context"
MAX_FILES = 1000
#: Bytes of one file and of all.
MAX_FILE = 8_000_000
MAX_BYTES = 32_000_000
_TAGS = re.compile(r"^mlflow\.source\.(name|type|git\.(commit|branch|repoURL))$|^mlops\.(dirty|cells|cell_id|context)$")
_NAME = re.compile(r"^(?!\.{1,2}$)[^/\\\0]{1,200}$")


def tags(blob: Path) -> dict[str, str]:
    """Tags that a context gives its run; empty when it cannot be read."""
    try:
        with zipfile.ZipFile(blob) as archive:
            if archive.getinfo("tags.json").file_size > 100_000:
                return {}
            value = json.loads(archive.read("tags.json"))
    except (OSError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile, NotImplementedError):
        return {}
    if not isinstance(value, dict):
        return {}
    return {k: v[:5000] for k, v in value.items() if isinstance(v, str) and _TAGS.match(k)}


def describe(blobs: Blobs, spec: JobSpec) -> dict[str, str]:
    """The tags of a job's run: those asked for, where it comes from, and what its context says of that."""
    notebook = spec.cell is not None and spec.cell.notebook
    source = notebook or (spec.script or redact.clean(spec.command or "") if spec.cell is None else "notebook cell")
    found = {
        **spec.tags, "mlflow.source.name": source, "mlflow.source.type": "NOTEBOOK" if notebook else "LOCAL",
    }
    return {**found, **(tags(blobs.path(spec.context)) if spec.context else {})}


def deliver(folder: Path, spec: JobSpec) -> None:
    """Unpack ``inputs/context/bundle`` into ``inputs/context/files/`` and spool them as artifacts of the job's run.

    Called before each attempt; what was delivered once is not delivered again.
    """
    place = jobfolder.JobFolder(folder)
    bundle, target = Path(place.inputs, FOLDER, "bundle"), Path(place.inputs, FOLDER, "files")
    run_id = place.run().get("run_id")
    if target.exists() or not run_id or not bundle.exists():
        return
    temporary = target.with_name(".files")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        jobfolder.private_folder(str(temporary))
        for file in _unpack(bundle, temporary):
            below = file.relative_to(temporary).parent.as_posix()
            path = FOLDER if below == "." else f"{FOLDER}/{below}"
            spool.put(place.spool, 0, {"kind": "artifact", "run_id": run_id, "path": path}, str(file))
        # Last: who dies before this spools again, and the same artifact twice is the same artifact.
        temporary.rename(target)
    except (zipfile.BadZipFile, ValueError, RuntimeError, NotImplementedError, EOFError, OSError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        _logger.warning("the context of %s is not delivered: %s", folder.name, error)


def _unpack(blob: Path, target: Path) -> list[Path]:
    files, size = [], 0
    with zipfile.ZipFile(blob) as archive:
        infos = [i for i in archive.infolist() if i.filename != "tags.json"]
        if len(infos) > MAX_FILES:
            raise ValueError("too many files")
        for info in infos:
            parts = info.filename.split("/")
            if info.is_dir() or not all(_NAME.match(p) for p in parts) or len(parts) > 30:
                raise ValueError(f"not a plain file: {info.filename!r}")
            with archive.open(info) as source:
                data = source.read(MAX_FILE + 1)
            size += len(data)
            if len(data) > MAX_FILE or size > MAX_BYTES:
                raise ValueError("too large")
            file = target.joinpath(*parts)
            jobfolder.private_folder(str(file.parent))
            jobfolder.write_file(str(file), data, durable=False)
            files.append(file)
    return files
