"""What becomes of ended jobs: deleted ones are restored, or purged for good."""

from __future__ import annotations

from .. import schemas
from ..operations import Answer, Call, operation
from .common import etag

_JOB = "/workspaces/{ws}/jobs/{name}/actions"


@operation(
    "POST", _JOB + "/restore", "Take a job's deletion back", "jobs/write", body=schemas.Nothing,
    responses={200: schemas.Job}, errors=(409,),
)
async def restore_job(call: Call) -> Answer:
    """Nothing happens to a job that is not deleted."""
    resource = await call.plane.workspace.restore(call.identity, call.path["name"])
    return Answer(body=schemas.Job.model_validate(resource.model_dump()), headers=etag(resource))


@operation(
    "POST", _JOB + "/purge", "Remove an ended job for good", "jobs/delete", body=schemas.Nothing,
    responses={200: schemas.Nothing, 202: schemas.Nothing}, errors=(409,),
)
async def purge_job(call: Call) -> Answer:
    """Its folder with logs and outputs, and its record; its MLflow run stays. There is no way back."""
    gone = await call.plane.workspace.purge(call.identity, call.path["name"])
    return Answer(200 if gone else 202, schemas.Nothing())
