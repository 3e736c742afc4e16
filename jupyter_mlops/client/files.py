"""A model that lies in local files, registered as a version: MLflow's own folders as they are, others for a script."""

from __future__ import annotations

import getpass
import hashlib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import NotFound, Refused
from .code import of_folder

if TYPE_CHECKING:
    from .model import ModelVersion
    from .sync import Client

#: Tag of a version with the hash of the files that it was made from, so that the same files are registered once.
SOURCE_TAG = "mlops.source_sha256"
INTERPRETER_TAG = "mlops.interpreter"


def listed(path: Path) -> list[tuple[str, Path]]:
    """(name below the model's folder, file). A folder of MLflow is the model, any other keeps its name, as a file does.

    So a script finds them below ``AZUREML_MODEL_DIR`` where Azure ML has them.

    Raises:
        NotFound: there is nothing at that path.
    """
    if path.is_file():
        return [(path.name, path)]
    if not path.is_dir():
        raise NotFound(f"there is no model at {path}", "the path is relative to the file that names it")
    prefix = "" if is_mlflow(path) else f"{path.resolve().name}/"
    return [(prefix + name, file) for name, file in of_folder(path)]


def is_mlflow(path: Path) -> bool:
    """Whether it is a folder that MLflow wrote."""
    return (path / "MLmodel").is_file()


def digest(files: list[tuple[str, Path]]) -> str:
    """SHA-256 over names and contents."""
    whole = hashlib.sha256()
    for name, file in sorted(files):
        with open(file, "rb") as f:
            whole.update(f"{name}\0{hashlib.file_digest(f, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def find(client: Client, name: str, sha256: str) -> ModelVersion | None:
    """The version of a model that was made from files of that hash."""
    try:
        versions = client.model(name).versions
    except NotFound:
        return None
    for version in versions:
        if (version._data.get("tags") or {}).get(SOURCE_TAG) == sha256:
            return version
    return None


def register(client: Client, name: str, path: Path, experiment: str, sha256: str = "") -> ModelVersion:
    """Upload a local model into a run of its own and register it; the same files give the version that is there.

    Args:
        sha256: the :func:`digest` of its files, where it is known.

    Raises:
        Refused: there is nothing in it.
    """
    files = listed(path)
    if not files:
        raise Refused(f"the folder {path} is empty", "a model has at least one file")
    sha256 = sha256 or digest(files)
    there = find(client, name, sha256)
    if there is not None:
        return there
    now = int(time.time() * 1000)
    tags = {
        "mlflow.user": os.environ.get("JUPYTERHUB_USER") or getpass.getuser(), "mlflow.source.name": str(path),
        "mlflow.source.type": "LOCAL", INTERPRETER_TAG: sys.executable,
    }
    run_id = client.mlflow("POST", "runs/create", {
        "experiment_id": client.experiment_id(experiment), "start_time": now, "run_name": f"model {name}",
        "tags": [{"key": k, "value": v} for k, v in tags.items()],
    })["run"]["info"]["run_id"]
    status = "FAILED"
    try:
        with tempfile.TemporaryDirectory(prefix="mlops-model-") as folder:
            if not is_mlflow(path):
                about = Path(folder) / "MLmodel"
                # What is no model of MLflow is served by a script alone; the file says that there is nothing to load.
                about.write_text(f"flavors:\n  files: {{}}\nmodel_uuid: {sha256[:32]}\n")
                files.append(("MLmodel", about))
            client.put_artifacts(run_id, [(f"model/{below}", file) for below, file in files])
        status = "FINISHED"
    finally:
        client.mlflow("POST", "runs/update", {
            "run_id": run_id, "status": status, "end_time": int(time.time() * 1000),
        })
    return client.register(run_id, name, artifact="model", tags={SOURCE_TAG: sha256})
