"""Computes: the places where jobs run and models serve, and what is true of an attached cluster."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from ...core.errors import Refused
from ...core.resources import ComputeSpec
from ...core.resources.base import Resource
from .. import compute_schemas, schemas
from ..operations import Answer, Call, operation
from .common import deleting, getting, listing, putting

if TYPE_CHECKING:
    from ...compute.kubernetes.driver import KubernetesCompute

_WS = "/workspaces/{ws}"


def _with_queue(call: Call, compute: Resource) -> Resource:
    """A compute with what is in use of it."""
    compute.status.update(call.plane.jobs.slots.usage(compute.name))
    return compute


@operation(
    "GET", _WS + "/computes", "List computes", "computes/read", query=schemas.Page,
    responses={200: schemas.ComputeList},
)
async def list_computes(call: Call) -> Answer:
    await call.plane.refresh_computes()
    return await listing(call, "compute", schemas.ComputeList, show=partial(_with_queue, call))


@operation("GET", _WS + "/computes/{name}", "Get a compute", "computes/read", responses={200: schemas.Compute})
async def get_compute(call: Call) -> Answer:
    await call.plane.refresh_computes()
    return await getting(call, "compute", call.path["name"], schemas.Compute, show=partial(_with_queue, call))


@operation(
    "PUT", _WS + "/computes/{name}", "Define a compute", "computes/write", body=ComputeSpec, preconditions=True,
    responses={201: schemas.Compute, 200: schemas.Compute}, errors=(409, 422),
)
async def put_compute(call: Call) -> Answer:
    answer = await putting(call, "compute", call.path["name"], schemas.Compute)
    await call.plane.refresh_computes()
    return answer


@operation(
    "DELETE", _WS + "/computes/{name}", "Remove a compute", "computes/delete", preconditions=True,
    responses={204: None, 202: schemas.Nothing}, errors=(409,),
)
async def delete_compute(call: Call) -> Answer:
    """Refused while jobs run there; ``local`` cannot be removed."""
    return await deleting(call, "compute", call.path["name"])


@operation(
    "POST", _WS + "/computes/{name}/actions/check", "Ask a cluster whether it can be attached", "computes/write",
    body=compute_schemas.CheckCompute, responses={200: compute_schemas.Survey}, errors=(403, 422, 502, 503, 504),
)
async def check_compute(call: Call) -> Answer:
    """Whether it answers and accepts the credentials, which permissions are missing, what there is of quotas, nodes and
    extensions. Nothing is saved; with ``create_namespace`` the namespace is made when it is not there."""
    return await _survey(call, call.body.spec, call.body.create_namespace,
                         driver=call.plane.job_clusters.get(call.path["name"]))


@operation(
    "GET", _WS + "/computes/{name}/survey", "Ask a cluster what is free", "computes/read",
    responses={200: compute_schemas.Survey}, errors=(404, 422, 502, 503, 504),
)
async def survey_compute(call: Call) -> Answer:
    """The same of a compute that is there, as it is now."""
    found = await call.plane.store.read(lambda tx: tx.get("compute", call.path["name"]))
    driver = call.plane.job_clusters.get(call.path["name"])
    answer = await _survey(call, ComputeSpec.model_validate(found.spec), driver=driver)
    if driver is not None:
        answer.body.images = [compute_schemas.Image.model_validate(image) for image in driver.images.shown()]
    if driver is not None and driver.by is not None and answer.body.route is not None:
        answer.body.route.trouble = answer.body.route.trouble or driver.by.trouble or driver.by.pods
    if driver is not None and driver.store is not None and answer.body.store is not None:
        answer.body.store.trouble = answer.body.store.trouble or driver.store.pods
    return answer


async def _survey(call: Call, spec: ComputeSpec, create_namespace: bool = False,
                  driver: KubernetesCompute | None = None) -> Answer:
    if spec.type != "kubernetes":
        raise Refused(f"compute {call.path['name']!r} is of type {spec.type}: there is no cluster to ask")
    from ...compute.kubernetes.survey import survey
    from ...kube.client import Kube

    kube = Kube(call.path["name"], spec.context, spec.namespace)
    asked, by = spec.training.route, driver.by if driver is not None else None
    listening = asked is not None and by is not None and by.listening and by.options.listen == asked.listen
    found = await asyncio.to_thread(survey, kube, spec, create_namespace, listening)
    return Answer(body=compute_schemas.Survey.model_validate(found))
