"""Delivery of what a job has logged."""

from __future__ import annotations

from ...core.resources import TERMINAL
from .. import job_schemas, schemas
from ..operations import Answer, Call, operation
from .common import getting


@operation(
    "POST", "/workspaces/{ws}/jobs/{name}/actions/flush", "Wait until what a job has logged is in MLflow", "jobs/flush",
    body=job_schemas.Flush, responses={200: schemas.Job}, errors=(504,),
)
async def flush_job(call: Call) -> Answer:
    """Answers when all that was journalled and spooled before this call is in MLflow, or refused by it for good."""
    name = call.path["name"]
    job = await call.plane.workspace.get(call.identity, "job", name)
    if job.status.get("phase") not in TERMINAL:  # an end is told only after everything is delivered
        if job.status.get("run_id"):
            call.plane.shipper.know(name, job.status["run_id"], call.plane.jobs.ref(name).folder)
        await call.plane.shipper.flush(name, call.body.timeout)
    return await getting(call, "job", name, schemas.Job)
