"""Endpoints and deployments."""

from __future__ import annotations

import asyncio
from typing import Any

from ...core import policy
from ...core.errors import Unavailable
from ...core.resources import CanarySpec, DeploymentSpec, EndpointSpec
from ...core.resources.base import Resource
from .. import endpoint_schemas, job_schemas, schemas
from ..operations import Answer, Call, operation
from .common import deleting, etag, getting, listing, log_part, putting

_WS = "/workspaces/{ws}"
_ENDPOINT = _WS + "/endpoints/{name}"
_ACTIONS = _ENDPOINT + "/actions"
_DEPLOYMENTS = _ENDPOINT + "/deployments"


@operation(
    "GET", _WS + "/endpoints", "List endpoints", "endpoints/read", query=schemas.Page,
    responses={200: schemas.EndpointList},
)
async def list_endpoints(call: Call) -> Answer:
    return await listing(call, "endpoint", schemas.EndpointList)


@operation("GET", _ENDPOINT, "Get an endpoint", "endpoints/read", responses={200: schemas.Endpoint})
async def get_endpoint(call: Call) -> Answer:
    return await getting(call, "endpoint", call.path["name"], schemas.Endpoint)


@operation(
    "PUT", _ENDPOINT, "Create an endpoint, or change its traffic", "endpoints/write",
    body=EndpointSpec, preconditions=True, responses={201: schemas.NewEndpoint, 200: schemas.Endpoint},
    errors=(409, 422),
)
async def put_endpoint(call: Call) -> Answer:
    """The answer to its creation holds the keys: they are stored hashed and told only this once."""
    return await putting(call, "endpoint", call.path["name"], schemas.Endpoint, schemas.NewEndpoint)


@operation(
    "DELETE", _ENDPOINT, "Delete an endpoint with its deployments", "endpoints/delete",
    preconditions=True, responses={204: None, 202: schemas.Nothing}, errors=(409,),
)
async def delete_endpoint(call: Call) -> Answer:
    return await deleting(call, "endpoint", call.path["name"])


@operation(
    "POST", _ACTIONS + "/rotate-keys", "Replace one key", "endpoints/secrets/write",
    body=endpoint_schemas.RotateKey, responses={200: schemas.Key},
)
async def rotate_key(call: Call) -> Answer:
    """The other key goes on working meanwhile. `tokens` ends every bearer token instead; the answer is empty then."""
    value = await call.plane.endpoints.rotate(call.path["name"], call.body.key, call.identity)
    return Answer(body=schemas.Key(key=call.body.key, value=value))


@operation(
    "POST", _ACTIONS + "/token", "Make a bearer token", "endpoints/secrets/write",
    body=endpoint_schemas.TokenRequest, responses={200: endpoint_schemas.Token}, errors=(409,),
)
async def make_token(call: Call) -> Answer:
    """For an endpoint with `auth_mode: token`; it opens nothing else, and is told only this once."""
    token, expires = await call.plane.endpoints.issue_token(
        call.path["name"], call.body.expires_in, call.identity
    )
    return Answer(body=endpoint_schemas.Token(token=token, expires_at=expires))


@operation(
    "POST", _ACTIONS + "/traffic", "Shift traffic", "endpoints/write", body=endpoint_schemas.TrafficChange,
    preconditions=True, responses={200: schemas.Endpoint}, errors=(409,),
)
async def shift_traffic(call: Call) -> Answer:
    """In force when the answer comes, without a lost request. Ends a canary that runs."""
    fields: dict[str, Any] = {}
    if call.body.traffic:
        fields["traffic"] = call.body.traffic
    if "mirror_traffic" in call.body.model_fields_set:
        fields["mirror_traffic"] = call.body.mirror_traffic or {}
    if call.body.sticky_header is not None:
        fields["sticky_header"] = call.body.sticky_header
    name = call.path["name"]
    return _endpoint(await call.plane.endpoints.change_traffic(name, fields, call.identity, call.if_match))


@operation(
    "POST", _ACTIONS + "/canary", "Start a canary", "endpoints/write", body=CanarySpec,
    responses={202: schemas.Endpoint}, errors=(409,),
)
async def start_canary(call: Call) -> Answer:
    """Give a deployment a share on trial: it is promoted, or rolled back, by itself; see `status.canary`."""
    return _endpoint(await call.plane.endpoints.start_canary(call.path["name"], call.body, call.identity), 202)


@operation(
    "POST", _ACTIONS + "/promote", "Promote the canary", "endpoints/write", body=schemas.Nothing,
    responses={200: schemas.Endpoint}, errors=(409,),
)
async def promote_canary(call: Call) -> Answer:
    """It takes all the traffic now."""
    return _endpoint(await call.plane.endpoints.promote(call.path["name"], call.identity))


@operation(
    "POST", _ACTIONS + "/rollback", "Roll back", "endpoints/write", body=endpoint_schemas.Rollback,
    responses={200: schemas.Endpoint}, errors=(409,),
)
async def roll_back(call: Call) -> Answer:
    """Return to the traffic before the canary that runs; without one, to that before the last change."""
    return _endpoint(await call.plane.endpoints.rollback(call.path["name"], call.identity, call.body.reason))


async def _serving(call: Call) -> Any:
    """The driver of the endpoint's compute."""
    endpoint = await call.plane.workspace.get(call.identity, "endpoint", call.path["name"])
    return call.plane.serving_for(endpoint.spec.get("compute") or "")


def _endpoint(resource: Resource, status: int = 200) -> Answer:
    return Answer(status, schemas.Endpoint.model_validate(resource.model_dump()), etag(resource))


#: Headers of the gateway's answers to calls that go on to the caller.
_CALL_HEADERS = ("X-Deployment", "X-Request-Id", "Retry-After")


@operation(
    "POST", _ACTIONS + "/invoke", "Call an endpoint as its owner", "endpoints/invoke",
    query=endpoint_schemas.InvokeQuery, raw_body=True, responses={200: schemas.Scores},
    errors=(408, 413, 415, 422, 424, 429, 502, 504),
)
async def invoke_endpoint(call: Call) -> Answer:
    """The body is that of MLflow's scoring protocol; no endpoint key is needed. `X-Deployment` tells who answered."""
    name, deployment = call.path["name"], call.query.deployment or ""
    policy.require(call.identity, "endpoints/invoke", name)
    serving = await _serving(call)
    if deployment:
        await call.plane.workspace.get(call.identity, "deployment", deployment, name)
    kind = call.headers.get("Content-Type") or "application/json"
    status, body, headers = await serving.invoke(name, call.raw, kind, 600.0, deployment)
    kept = {k: headers[k] for k in _CALL_HEADERS if k in headers}
    return Answer(status, raw=body, content_type=headers.get("Content-Type", "application/json"), headers=kept)


@operation(
    "GET", _ENDPOINT + "/stats", "Read an endpoint's counters", "endpoints/read",
    responses={200: endpoint_schemas.EndpointStats},
)
async def get_stats(call: Call) -> Answer:
    """Counted since the gateway's start."""
    name = call.path["name"]
    serving = await _serving(call)
    stats = await asyncio.to_thread(serving.stats, name)
    if stats is None:
        raise Unavailable("the gateway does not answer", "it is started again within seconds; try again")
    found = stats.get("endpoints", {}).get(name, {})
    return Answer(body=endpoint_schemas.EndpointStats.model_validate({**found, "started_at": stats.get("started_at")}))


@operation(
    "GET", _ENDPOINT + "/history", "Read who changed an endpoint", "endpoints/read",
    query=endpoint_schemas.HistoryQuery, responses={200: endpoint_schemas.History},
)
async def get_history(call: Call) -> Answer:
    """Traffic with its shares before and after, canaries, keys, deployments; newest first."""
    items = await call.plane.endpoints.history(call.path["name"], call.query.limit)
    return Answer(body=endpoint_schemas.History.model_validate({"items": items}))


@operation(
    "GET", _ENDPOINT + "/metrics", "Read an endpoint's metrics", "endpoints/read",
    responses={200: None}, produces="text/plain",
)
async def get_metrics(call: Call) -> Answer:
    """In Prometheus' text format."""
    return await _page(call, "metrics")


@operation(
    "GET", _ENDPOINT + "/openapi.json", "Describe how an endpoint is called", "endpoints/read",
    responses={200: schemas.Document},
)
async def get_endpoint_openapi(call: Call) -> Answer:
    """An OpenAPI document made from the model's signature."""
    return await _page(call, "openapi.json")


@operation(
    "GET", _ENDPOINT + "/docs", "Show how an endpoint is called", "endpoints/read",
    responses={200: None}, produces="text/html",
)
async def get_endpoint_docs(call: Call) -> Answer:
    """A page with a form to try it; no endpoint key is needed here."""
    return await _page(call, "docs")


#: Headers of the gateway's pages that say what a browser may do with them.
_PAGE_HEADERS = ("Content-Security-Policy", "Referrer-Policy", "X-Frame-Options")


async def _page(call: Call, what: str) -> Answer:
    serving = await _serving(call)
    status, body, headers = await serving.page(call.path["name"], what)
    # Whatever comes is shown on Jupyter's origin: without a policy of its own it may do nothing there.
    kept = {"Content-Security-Policy": "default-src 'none'; sandbox"}
    if status == 200:
        kept.update({k: headers[k] for k in _PAGE_HEADERS if k in headers})
    return Answer(status, raw=body, content_type=headers.get("Content-Type", "application/json"), headers=kept)


@operation(
    "GET", _DEPLOYMENTS, "List an endpoint's deployments", "deployments/read", query=schemas.Page,
    responses={200: schemas.DeploymentList},
)
async def list_deployments(call: Call) -> Answer:
    """Without what their proofs ask and expect, which may be large."""
    return await listing(call, "deployment", schemas.DeploymentList, _without_sample, parent=call.path["name"])


def _without_sample(deployment: Resource) -> Resource:
    proof = deployment.spec.get("proof")
    if proof:
        deployment.spec["proof"] = {**proof, "request": None, "expected": None}
    return deployment


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
    """Another model is another deployment; what may change while it serves are description, tags, instance_count,
    scale_settings, request_settings and data_collector."""
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
    "GET", _DEPLOYMENTS + "/{deployment}/logs", "Read a scorer's log", "deployments/read",
    query=endpoint_schemas.DeploymentLogQuery, responses={200: job_schemas.LogPart},
)
async def get_deployment_log(call: Call) -> Answer:
    name, deployment = call.path["name"], call.path["deployment"]
    found = await call.plane.workspace.get(call.identity, "deployment", deployment, name)
    serving = await _serving(call)
    chunk = await asyncio.to_thread(
        serving.read_log, name, deployment, call.query.offset, call.query.limit, call.query.instance
    )
    return Answer(body=log_part(chunk, 0, 1, found.status.get("phase") == "Failed"))
