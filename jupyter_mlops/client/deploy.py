"""Serving a model version: endpoint, deployment, proof, traffic, and what it replaces."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..core.errors import Conflict, MlopsError, NotFound, Refused
from .deployment import Deployment, DeploymentFailed
from .traffic import shared

if TYPE_CHECKING:
    from .serving import Endpoint
    from .sync import Client

#: Deployment names that are made here when none is given.
AUTOMATIC = re.compile(r"v\d+$")


@dataclass
class Options:
    """How a version is deployed; what is None is left to the control plane.

    Attributes:
        env: environment of the scorer.
        interpreter: path of the Python that serves; None: this one; empty: the one that made the model.
        instances, least, most: processes; with ``least`` or ``most`` their number follows the load.
        canary: fields of a CanarySpec less the deployment: it is given ``percent`` and then all or none.
        mirror: percent of the requests that are copied to it.
        traffic: percent of the requests that it takes.
        keep: older deployments stay, at 0 %.
        collect: share of requests whose input and output are kept; ``mask``: columns that are kept as null.
        code: ``{"code": "blob:…", "scoring_script": path}``.
        proof: what it must answer first; None: the model's own example; False: nothing.
        compute: where a new endpoint serves: ``local``, or an attached cluster; None: as the endpoint that is there.
        image: container image on a cluster; None: the compute's.
    """

    env: dict[str, str] = field(default_factory=dict)
    interpreter: str | None = None
    instances: int | None = None
    least: int | None = None
    most: int | None = None
    canary: dict[str, Any] | None = None
    mirror: int | None = None
    traffic: int | None = None
    keep: bool = False
    collect: float | None = None
    mask: list[str] | None = None
    code: dict[str, str] | None = None
    proof: dict[str, Any] | bool | None = None
    compute: str | None = None
    image: str | None = None

    def spec(self, model: str) -> dict[str, Any]:
        """The deployment's spec."""
        spec: dict[str, Any] = {"model": model} if model else {}
        if self.env:
            spec["environment_variables"] = dict(self.env)
        if self.interpreter is None or self.interpreter:
            spec["interpreter"] = self.interpreter or sys.executable
        if self.instances is not None:
            spec["instance_count"] = self.instances
        if self.least is not None or self.most is not None:
            least = 1 if self.least is None else self.least
            most = max(least, 1) if self.most is None else self.most
            spec["scale_settings"] = {
                "type": "target_utilization", "min_instances": least, "max_instances": most,
            }
        if self.collect is not None or self.mask:
            spec["data_collector"] = {
                "sampling_rate": 1.0 if self.collect is None else self.collect, "masked_columns": list(self.mask or ()),
            }
        if self.image:
            spec["environment"] = self.image
        if self.code:
            spec["code_configuration"] = dict(self.code)
        if self.proof is False:
            spec["proof"] = {"origin": "none"}
        elif self.proof:
            spec["proof"] = self.proof
        return spec


@dataclass
class Deployed:
    """A deployment that was made, and what became of others.

    Attributes:
        removed: names of those that it replaced.
        remarks: what else there is to know.
    """

    deployment: Deployment
    removed: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def deploy(
    client: Client, model: str, endpoint: str, name: str | None = None, *, wait: bool = True,
    timeout: float | None = 600, told: Callable[[Deployment], None] | None = None, **options: Any,
) -> Deployed:
    """Serve ``model`` (``NAME@ALIAS``, resolved now, ``NAME/VERSION`` or ``NAME``) at ``endpoint``.

    A deployment never changes, so without ``name`` each version gets its own (``v3``). When it is ready and proven, the
    endpoint's requests go to it, and an older one that was named in this way is removed; with ``name`` the old ones
    stay, at 0 %. ``canary``, ``mirror`` and ``traffic`` give it a part.

    Args:
        model: may be empty when ``code`` is given.
        told: called with the deployment whenever its phase changes.
        options: see :class:`Options`.

    Raises:
        DeploymentFailed: it did not start, or its answer is not the one expected; the endpoint goes on as before.
    """
    from ..core.resources import check_name  # pydantic: only when it is needed

    chosen = Options(**options)
    check_name(endpoint, "endpoint name")
    version = client.version(model) if model else None
    automatic = name is None
    name = check_name(name or (f"v{version.version}" if version else "script"), "deployment name")
    spec = chosen.spec(version.reference if version else "")
    new = not check_compute(client, endpoint, chosen.compute)
    client.create_endpoint(endpoint, {"compute": chosen.compute} if chosen.compute else None)
    try:
        deployment = put(client, endpoint, name, spec)
    except MlopsError:
        if new:  # leave nothing half made
            client.delete_endpoint(endpoint)
        raise
    done = Deployed(deployment)
    if wait:
        try:
            deployment.wait(timeout, told)
        except DeploymentFailed as failed:
            raise failed.serving([d for d, share in client.endpoint(endpoint).shares.items() if share and d != name])
        replaces = _route(client, endpoint, name, chosen, done)
        if automatic and replaces and not chosen.keep:
            done.removed = remove_older(client, endpoint, name)
        deployment.at = _addressed(client, endpoint)
    return done


def check_compute(client: Client, endpoint: str, compute: str | None) -> bool:
    """Whether the endpoint is there already.

    Raises:
        Conflict: it is, and serves elsewhere than on ``compute``.
    """
    try:
        serves = client.endpoint(endpoint).spec.get("compute") or "local"
    except NotFound:
        return False
    if compute and serves != compute:
        raise Conflict(f"endpoint {endpoint} serves on {serves}",
                       "an endpoint stays where it is: give this one another name")
    return True


def remove_older(client: Client, endpoint: str, name: str) -> list[str]:
    """Delete the deployments that were named here, other than ``name``; returns their names."""
    older = [d.name for d in client.deployments(endpoint) if d.name != name and AUTOMATIC.match(d.name)]
    for old in older:
        client.delete_deployment(endpoint, old)
    return older


def _route(client: Client, endpoint: str, name: str, options: Options, done: Deployed) -> bool:
    """Give a ready deployment its part of the traffic; whether that is all of it."""
    at = client.endpoint(endpoint)
    others = {d: share for d, share in at.shares.items() if share and d != name}
    if options.canary is not None and others:
        client.start_canary(endpoint, name, **options.canary)
        return False
    if options.mirror is not None and others:
        client.route(endpoint, mirror={name: options.mirror})
        return False
    if options.canary is not None or options.mirror is not None:
        done.remarks.append(f"no other deployment of {endpoint} takes requests, so {name} takes all of them")
    elif options.traffic is not None and options.traffic < 100:
        if not others and options.traffic:
            done.remarks.append(f"no other deployment of {endpoint} takes requests, so {name} takes all of them")
        elif others or not options.traffic:
            client.route(endpoint, shared(at.shares, name, options.traffic))
            return False
    if at.traffic.get(name) != 100 or at.mirrored.get(name):
        client.route(endpoint, {name: 100}, {} if at.mirrored else None)
    return True


def put(client: Client, endpoint: str, name: str, spec: dict[str, Any]) -> Deployment:
    """Make or change a deployment; one of that name that failed is made anew, with the proof that it had otherwise.

    What does not say which Python made it is served by this one.
    """
    try:
        there = client.deployment(endpoint, name)
    except NotFound:
        pass
    else:
        if there.phase in ("Failed", "Deleting"):
            if there.phase == "Failed":
                client.delete_deployment(endpoint, name)
            _gone(lambda: client.deployment(endpoint, name), f"deployment {endpoint}/{name}")
        elif there.model == spec.get("model", "") and "proof" not in spec and there.spec.get("proof"):
            spec = {**spec, "proof": there.spec["proof"]}  # it was proven by that, which never changes
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
        time.sleep(0.05)
