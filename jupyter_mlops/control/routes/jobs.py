"""Jobs."""

from __future__ import annotations

from functools import partial

from ...core.resources import JobSpec
from ...core.resources.base import Resource
from .. import job_schemas, schemas
from ..operations import Answer, Call, operation
from .common import deleting, etag, getting, listing, putting

_WS = "/workspaces/{ws}"


def _as_seen(call: Call, job: Resource) -> Resource:
    """A job with its place in the queue, which is computed when it is read: it changes with every other job."""
    if job.status.get("phase") == "Queued":
        place = call.plane.jobs.slots.place(job.name)
        if place is not None:
            job.status.update(queue=place, reason=place["reason"])
    return job


@operation("GET", _WS + "/jobs", "List jobs", "jobs/read", query=job_schemas.JobQuery, responses={200: schemas.JobList})
async def list_jobs(call: Call) -> Answer:
    """Newest first."""
    phases = [call.query.phase] if call.query.phase else None
    return await listing(call, "job", schemas.JobList, show=partial(_as_seen, call), phases=phases)


@operation("GET", _WS + "/jobs/{name}", "Get a job", "jobs/read", responses={200: schemas.Job})
async def get_job(call: Call) -> Answer:
    return await getting(call, "job", call.path["name"], schemas.Job, show=partial(_as_seen, call))


@operation(
    "PUT", _WS + "/jobs/{name}", "Start a job", "jobs/write", body=JobSpec, preconditions=True,
    responses={201: schemas.Job, 200: schemas.Job}, errors=(409, 422, 502, 504),
)
async def put_job(call: Call) -> Answer:
    """Idempotent: the same spec again gives the same job. A spec never changes."""
    return await putting(call, "job", call.path["name"], schemas.Job)


@operation(
    "DELETE", _WS + "/jobs/{name}", "Delete a job that has ended", "jobs/delete", preconditions=True,
    responses={204: None, 202: schemas.Nothing}, errors=(409,),
)
async def delete_job(call: Call) -> Answer:
    """It can be restored until it is purged: after some days, or when that is asked for. Its MLflow run stays."""
    return await deleting(call, "job", call.path["name"])


@operation(
    "POST", _WS + "/jobs/{name}/actions/preview", "Ask whether a job would run", "jobs/write", body=JobSpec,
    responses={200: job_schemas.Preview}, errors=(422, 502, 504),
)
async def preview_job(call: Call) -> Answer:
    """Whether it fits, which limit is in the way, what it costs, and the manifest that a cluster would get, which the
    cluster's API has checked. Nothing is started."""
    found = await call.plane.jobs.preview(call.path["name"], call.body)
    return Answer(body=job_schemas.Preview.model_validate(found))


@operation(
    "POST", _WS + "/jobs/{name}/actions/stop", "Stop a job", "jobs/write", body=schemas.Nothing,
    responses={200: schemas.Job},
)
async def stop_job(call: Call) -> Answer:
    """SIGTERM to the whole process tree, SIGKILL after the grace period. A job that has ended stays as it is."""
    resource = await call.plane.jobs.request_stop(call.path["name"], call.identity)
    return Answer(body=schemas.Job.model_validate(resource.model_dump()), headers=etag(resource))


@operation(
    "POST", _WS + "/jobs/{name}/actions/resume", "Resume a job", "jobs/write", body=schemas.Nothing,
    responses={200: schemas.Job}, errors=(409, 422, 502, 504),
)
async def resume_job(call: Call) -> Answer:
    """A further attempt of a job that failed or was canceled, under the same MLflow run."""
    resource = await call.plane.jobs.request_resume(call.path["name"], call.identity)
    return Answer(body=schemas.Job.model_validate(resource.model_dump()), headers=etag(resource))
