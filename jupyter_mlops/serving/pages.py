"""What the gateway tells of an endpoint: health, counters, OpenAPI, and the metadata of the Open Inference Protocol."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.errors import NotFound, Unavailable
from . import examples, metrics, oip, openapi, page
from .http import JSON, Request

if TYPE_CHECKING:
    from .gateway import Gateway
    from .routes import Deployment, Endpoint

_MODEL = re.compile(r"/models/(?P<model>[A-Za-z0-9._-]{1,64})(?:/versions/(?P<version>[A-Za-z0-9._-]{1,64}))?"
                    r"(?P<verb>/ready|/infer)?\Z")


@dataclass
class Inference:
    """A path of the Open Inference Protocol below ``/v2``. ``verb``: server, live, ready, model, model-ready, infer."""

    verb: str
    model: str = ""
    version: str = ""


def inference(endpoint: str, rest: str) -> Inference:
    """What a path below ``/v2`` asks for.

    Raises:
        NotFound: there is no such path, or another model's name in it.
    """
    plain = {"": "server", "/": "server", "/health/live": "live", "/health/ready": "ready"}.get(rest)
    if plain:
        return Inference(plain)
    match = _MODEL.match(rest)
    if match is None:
        raise NotFound("there is no such path of the Open Inference Protocol", f"…/v2/models/{endpoint}/infer")
    if match["model"] != endpoint:
        raise NotFound(f"there is no model {match['model']!r} here", f"the model of this endpoint is {endpoint!r}")
    verb = {"/ready": "model-ready", "/infer": "infer", None: "model"}[match["verb"]]
    return Inference(verb, match["model"], match["version"] or "")


def documented(endpoint: Endpoint, deployment: Deployment, folder: Any) -> dict[str, Any]:
    """The OpenAPI document of an endpoint, by the signature of ``deployment``."""
    return openapi.document(
        endpoint.name, deployment.name, deployment.signature, auth_mode=endpoint.auth_mode, model=deployment.model,
        deployments=[d.name for d in endpoint.deployments.values() if not d.proving],
        example=examples.logged(folder))


async def answer(gateway: Gateway, request: Request, endpoint: Endpoint, action: str,
                 asked: Inference | None = None) -> None:
    """Answer a GET.

    Args:
        asked: what the path below ``/v2`` asks for, where it is one.

    Raises:
        NotFound, Unavailable: as the message says.
    """
    if action == "metrics":
        gateway.reply(request, 200, metrics.for_endpoint(gateway.stats(), endpoint.name),
                      metrics.CONTENT_TYPE.encode("ascii"))
        return
    if asked is not None:
        await _inference(gateway, request, endpoint, asked)
        return
    deployment = gateway.choose(request, endpoint)
    if action == "health":
        await _health(deployment)
        gateway.respond_json(request, {"status": "ready", "deployment": deployment.name})
        return
    folder = gateway.places.deployment(endpoint.name, deployment.name) / "model"
    document = documented(endpoint, deployment, folder)
    if action == "openapi.json":
        gateway.reply(request, 200, json.dumps(document).encode("ascii"), JSON)
        return
    _show(gateway, request, 200, *page.html(document, "owner" if request.admin else "key"))


def door(gateway: Gateway, request: Request) -> None:
    """Answer a browser that asks for the page without a key: with a page that asks for the key."""
    _show(gateway, request, 401, *page.door())


def _show(gateway: Gateway, request: Request, status: int, body: bytes, policy: str) -> None:
    gateway.reply(request, status, body, page.CONTENT_TYPE.encode("ascii"),
                  b"Content-Security-Policy: " + policy.encode("ascii") + b"\r\nReferrer-Policy: no-referrer\r\n")


async def _health(deployment: Deployment) -> None:
    if not deployment.sleeps and not await deployment.dispatcher.ping():
        raise Unavailable("the deployment does not answer", "it may be starting")


async def _inference(gateway: Gateway, request: Request, endpoint: Endpoint, asked: Inference) -> None:
    if asked.verb == "server":
        gateway.respond_json(request, oip.server_metadata())
    elif asked.verb == "live":
        gateway.respond_json(request, {"live": True})
    else:
        deployment = endpoint.named(asked.version, request.admin) if asked.version \
            else gateway.choose(request, endpoint)
        if asked.verb == "model":
            versions = [d.name for d in endpoint.deployments.values() if not d.proving]
            gateway.respond_json(request, oip.model_metadata(endpoint.name, versions, deployment.signature))
            return
        await _health(deployment)
        gateway.respond_json(request, {"ready": True, **({"name": endpoint.name} if asked.model else {})})
