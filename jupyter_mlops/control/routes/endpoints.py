"""Endpoints and deployments."""

from __future__ import annotations

import asyncio

from ...core import policy
from ...core.resources import DeploymentSpec, EndpointSpec
from .. import schemas
from ..operations import Answer, Call, operation
from .common import deleting, getting, listing, log_part, putting

_WS = "/workspaces/{ws}"
_DEPLOYMENTS = _WS + "/endpoints/{name}/deployments"


@operation(
    "GET", _WS + "/endpoints", "List endpoints", "endpoints/read", query=schemas.Page,
    responses={200: schemas.EndpointList},
)
async def list_endpoints(call: Call) -> Answer:
    return await listing(call, "endpoint", schemas.EndpointList)


@operation("GET", _WS + "/endpoints/{name}", "Get an endpoint", "endpoints/read", responses={200: schemas.Endpoint})
async def get_endpoint(call: Call) -> Answer:
    return await getting(call, "endpoint", call.path["name"], schemas.Endpoint)


@operation(
    "PUT", _WS + "/endpoints/{name}", "Create an endpoint, or change its traffic", "endpoints/write",
    body=EndpointSpec, preconditions=True, responses={201: schemas.NewEndpoint, 200: schemas.Endpoint},
    errors=(409, 422),
)
async def put_endpoint(call: Call) -> Answer:
    """The answer to its creation holds the keys: they are stored hashed and told only this once."""
    return await putting(call, "endpoint", call.path["name"], schemas.Endpoint, schemas.NewEndpoint)


@operation(
    "DELETE", _WS + "/endpoints/{name}", "Delete an endpoint with its deployments", "endpoints/delete",
    preconditions=True, responses={204: None, 202: schemas.Nothing}, errors=(409,),
)
async def delete_endpoint(call: Call) -> Answer:
    return await deleting(call, "endpoint", call.path["name"])


@operation(
    "POST", _WS + "/endpoints/{name}/actions/rotate-keys", "Replace one key", "endpoints/secrets/write",
    body=schemas.RotateKey, responses={200: schemas.Key},
)
async def rotate_key(call: Call) -> Answer:
    """The other key goes on working meanwhile."""
    value = await call.plane.endpoints.rotate(call.path["name"], call.body.key, call.identity)
    return Answer(body=schemas.Key(key=call.body.key, value=value))


@operation(
    "POST", _WS + "/endpoints/{name}/actions/invoke", "Call an endpoint as its owner", "endpoints/invoke",
    raw_body=True, responses={200: schemas.Scores}, errors=(408, 413, 415, 422, 424, 429, 502, 504),
)
async def invoke_endpoint(call: Call) -> Answer:
    """The body is that of MLflow's scoring protocol; no endpoint key is needed."""
    name = call.path["name"]
    policy.require(call.identity, "endpoints/invoke", name)
    await call.plane.workspace.get(call.identity, "endpoint", name)
    kind = call.headers.get("Content-Type") or "application/json"
    status, body, content_type = await call.plane.serving.invoke(name, call.raw, kind, 600.0)
    return Answer(status, raw=body, content_type=content_type)


@operation(
    "GET", _DEPLOYMENTS, "List an endpoint's deployments", "deployments/read", query=schemas.Page,
    responses={200: schemas.DeploymentList},
)
async def list_deployments(call: Call) -> Answer:
    return await listing(call, "deployment", schemas.DeploymentList, parent=call.path["name"])


@operation(
    "GET", _DEPLOYMENTS + "/{deployment}", "Get a deployment", "deployments/read",
    responses={200: schemas.Deployment},
)
async def get_deployment(call: Call) -> Answer:
    return await getting(call, "deployment", call.path["deployment"], schemas.Deployment, call.path["name"])


@operation(
    "PUT", _DEPLOYMENTS + "/{deployment}", "Deploy a model version", "deployments/write", body=DeploymentSpec,
    preconditions=True, responses={201: schemas.Deployment, 200: schemas.Deployment}, errors=(409, 422, 502, 504),
)
async def put_deployment(call: Call) -> Answer:
    """A spec never changes: another version is another deployment."""
    return await putting(
        call, "deployment", call.path["deployment"], schemas.Deployment, parent=call.path["name"]
    )


@operation(
    "DELETE", _DEPLOYMENTS + "/{deployment}", "Remove a deployment", "deployments/delete", preconditions=True,
    responses={204: None, 202: schemas.Nothing}, errors=(409,),
)
async def delete_deployment(call: Call) -> Answer:
    return await deleting(call, "deployment", call.path["deployment"], call.path["name"])


@operation(
    "GET", _DEPLOYMENTS + "/{deployment}/logs", "Read a scorer's log", "deployments/read", query=schemas.LogQuery,
    responses={200: schemas.LogPart},
)
async def get_deployment_log(call: Call) -> Answer:
    name, deployment = call.path["name"], call.path["deployment"]
    found = await call.plane.workspace.get(call.identity, "deployment", deployment, name)
    chunk = await asyncio.to_thread(
        call.plane.serving.read_log, name, deployment, call.query.offset, call.query.limit
    )
    return Answer(body=log_part(chunk, 0, 1, found.status.get("phase") == "Failed"))
