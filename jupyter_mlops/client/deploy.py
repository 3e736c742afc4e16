"""Serving a model version: endpoint, deployment, traffic, and what it replaces."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..core.errors import Conflict, MlopsError, NotFound, Refused
from .serving import Deployment, Endpoint

if TYPE_CHECKING:
    from .sync import Client

#: Deployment names that are made here when none is given.
_AUTOMATIC = re.compile(r"v\d+$")

#: A deployment, and the names of those that it replaced.
Deployed = tuple[Deployment, list[str]]


def deploy(
    client: Client, model: str, endpoint: str, name: str | None = None, *, env: dict[str, str] | None = None,
    interpreter: str | None = None, wait: bool = True, timeout: float | None = 600,
    told: Callable[[Deployment], None] | None = None,
) -> Deployed:
    """Serve ``model`` (``NAME@ALIAS``, resolved now, ``NAME/VERSION`` or ``NAME``) at ``endpoint``.

    A deployment never changes, so without ``name`` each version gets its own (``v3``): the endpoint's requests
    go to it once it is ready, and an older one that was named in this way is removed.

    Args:
        interpreter: path of the Python that serves; None: this one; empty: the one that made the model.
        told: called with the deployment whenever its phase changes.

    Returns:
        the deployment, and names of those that it replaced.

    Raises:
        DeploymentFailed: it did not start; the endpoint goes on as before.
    """
    from ..core.resources import check_name  # pydantic: only when it is needed

    check_name(endpoint, "endpoint name")
    version = client.version(model)
    automatic = name is None
    name = check_name(name or f"v{version.version}", "deployment name")
    spec: dict[str, Any] = {"model": version.reference}
    if env:
        spec["environment_variables"] = env
    if interpreter is None or interpreter:
        spec["interpreter"] = interpreter or sys.executable
    new = not any(e.name == endpoint for e in client.endpoints())
    at = client.create_endpoint(endpoint)
    try:
        deployment = _put(client, endpoint, name, spec)
    except MlopsError:
        if new:  # leave nothing half made
            client.delete_endpoint(endpoint)
        raise
    removed: list[str] = []
    if wait:
        deployment.wait(timeout, told)
        if at.traffic.get(name) != 100:
            client.route(endpoint, {name: 100})
        if automatic:
            removed = [d.name for d in client.deployments(endpoint) if d.name != name and _AUTOMATIC.match(d.name)]
            for old in removed:
                client.delete_deployment(endpoint, old)
        deployment.at = _addressed(client, endpoint)
    return deployment, removed


def _put(client: Client, endpoint: str, name: str, spec: dict[str, Any]) -> Deployment:
    try:
        there = client.deployment(endpoint, name)
    except NotFound:
        pass
    else:
        if there.phase in ("Failed", "Deleting"):
            if there.phase == "Failed":
                client.delete_deployment(endpoint, name)
            _gone(lambda: client.deployment(endpoint, name), f"deployment {endpoint}/{name}")
    try:
        return Deployment(client, client.call(client.aio.put_deployment(endpoint, name, spec)))
    except Refused as error:
        if "interpreter" in spec or "Python" not in error.message:
            raise
        # The model does not say which Python made it; ours is the best guess.
        spec = {**spec, "interpreter": sys.executable}
        return Deployment(client, client.call(client.aio.put_deployment(endpoint, name, spec)))


def _gone(look: Callable[[], Any], what: str, timeout: float = 30) -> None:
    begun = time.monotonic()
    while True:
        try:
            look()
        except NotFound:
            return
        if time.monotonic() - begun > timeout:
            raise Conflict(f"{what} is still being deleted", "try again in a moment")
        time.sleep(0.2)


def _addressed(client: Client, name: str) -> Endpoint:
    """The endpoint once it has taken its new traffic in, or after two seconds as it is."""
    begun = time.monotonic()
    while True:
        endpoint = client.endpoint(name)
        if (endpoint.phase == "Ready" and endpoint.url) or time.monotonic() - begun > 2:
            return endpoint
        time.sleep(0.1)
