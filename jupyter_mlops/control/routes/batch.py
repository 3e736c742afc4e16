"""Batch runs: an endpoint's model scores files, in a job."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import Any

from ...compute import machine
from ...core import policy
from ...core.errors import ParameterError, Refused
from ...core.resources import generate_name
from ...core.resources.base import Resource
from ...core.resources.batch import BatchRun, BatchSpec
from ...runtime import jobfolder, minibatch
from ...serving import batch
from ...serving.places import read_json
from ...serving.signature import from_document
from .. import schemas
from ..operations import Answer, Call, operation
from .common import etag

_WS = "/workspaces/{ws}"


@operation(
    "POST", _WS + "/endpoints/{name}/actions/batch", "Score files with an endpoint's model", "endpoints/invoke",
    body=BatchSpec, responses={201: schemas.Job, 200: schemas.Job}, errors=(409, 422, 502, 504),
)
async def batch_endpoint(call: Call) -> Answer:
    """A job, which is stopped, resumed and followed as others are. The endpoint itself need not run, nor stay."""
    name, asked = call.path["name"], call.body
    job = asked.name or generate_name(f"{name}-batch")
    policy.require(call.identity, "jobs/write", job)
    endpoint = await call.plane.workspace.get(call.identity, "endpoint", name)
    deployment = await _deployment(call, endpoint, asked.deployment)
    folder = call.plane.serving.places.deployment(name, deployment.name)
    if asked.compute == "local":  # elsewhere the paths are those of another machine
        await asyncio.to_thread(_check_files, asked)
    params = await asyncio.to_thread(_params, folder, asked.params)
    payload = await asyncio.to_thread(_pack, call.plane.blobs, folder)
    model, version = deployment.status.get("model_name") or "", deployment.status.get("model_version") or ""
    run = BatchRun(
        endpoint=name, deployment=deployment.name, model=f"{model}/{version}" if model else "", payload=payload,
        input=asked.input, output=asked.output, params=params, settings=asked.settings, overwrite=asked.overwrite,
    )
    variables = deployment.spec.get("environment_variables") or {}
    spec = {
        "batch": run.model_dump(), "display_name": f"{name} batch", "experiment_name": asked.experiment_name,
        "compute": asked.compute, "interpreter": deployment.status.get("interpreter") or "",
        "environment_variables": {k: v for k, v in variables.items() if not k.startswith("JUPYTER_MLOPS_")},
        "resources": {"cpus": float(min(asked.settings.max_concurrency_per_instance, machine.cpus()))},
        "tags": {**asked.tags, "mlops.endpoint": name},
    }
    resource, created, _ = await call.plane.workspace.put(call.identity, "job", job, spec)
    return Answer(201 if created else 200, schemas.Job.model_validate(resource.model_dump()), etag(resource))


async def _deployment(call: Call, endpoint: Resource, wanted: str) -> Resource:
    store = call.plane.workspace.store
    found, _ = await store.read(lambda tx: tx.page("deployment", parent=endpoint.name, limit=1000))
    by_name = {d.name: d for d in found if d.status.get("phase") != "Deleting"}
    traffic = endpoint.status.get("traffic") or endpoint.spec.get("traffic") or {}
    return by_name[batch.choose(endpoint.name, wanted, sorted(by_name), traffic)]


def _check_files(asked: BatchSpec) -> None:
    from ...runtime.batch import check_free  # with all that runs a batch

    try:
        minibatch.look(asked.input)
        if not asked.overwrite:
            check_free(asked.output, asked.settings.output_file_name)
    except minibatch.BatchError as error:
        raise Refused(str(error)) from None
    above = Path(asked.output)
    while not above.exists():
        above = above.parent
    if not above.is_dir():
        raise Refused(f"the output {asked.output} cannot be a folder: {above} is a file", "choose another output")


def _params(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The params of the run, checked and with their defaults, as the gateway does it with those of a request."""
    from ...serving.values import check_params

    signature = read_json(folder / "model.json").get("signature") or {}
    if not signature.get("inputs"):
        if given:
            raise ParameterError("a scoring script takes no params")
        return {}
    return check_params(from_document(signature).params, given)


def _pack(blobs: Any, folder: Path) -> str:
    jobfolder.private_folder(str(blobs.folder))
    temporary = blobs.folder / f".batch-{secrets.token_hex(8)}"
    try:
        digest = batch.pack(folder, temporary)
        blobs.adopt(temporary, digest)
    except OSError as error:
        raise Refused(f"the model cannot be packed for the job: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return digest
