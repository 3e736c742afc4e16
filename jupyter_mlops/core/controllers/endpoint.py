"""Endpoint controller: keys, what the gateway shall know, and the endpoint's own state."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol

from .. import traffic
from ..errors import Conflict, MlopsError, NotFound, Refused, Unavailable
from ..identity import SYSTEM, Identity
from ..resources.base import Resource, utcnow
from ..resources.deployment import DeploymentSpec
from ..resources.endpoint import CanarySpec, EndpointSpec, EndpointStatus
from .base import Controller, Key

log = logging.getLogger(__name__)

KEY_NAMES = ("primary", "secondary")


class Serving(Protocol):
    """What the controllers need of a serving driver; all calls block.

    ``remote``: instances run on a cluster, which may not answer, and where each endpoint has a gateway of its own.
    """

    remote: bool

    def new_key(self) -> str: ...
    def hash_key(self, key: str) -> dict[str, str]: ...
    def new_secret(self) -> str: ...
    def mint(self, endpoint: str, secret: str, expires: float) -> tuple[str, str]: ...
    def publish(self, endpoint: str, config: dict[str, Any]) -> bool: ...
    def unpublish(self, endpoint: str) -> bool: ...
    def ensure_gateway(self, endpoint: str = "") -> dict[str, Any]: ...
    def stats(self, endpoint: str = "") -> dict[str, Any] | None: ...
    def remove(self, endpoint: str, deployment: str | None = None) -> None: ...


def proven(deployment: Resource) -> bool:
    """Whether a deployment has passed its proof and may answer; one that starts again after a crash still may."""
    status = deployment.status
    phase = status.get("phase")
    return phase == "Ready" or (phase in ("Starting", "Proving") and bool(status.get("ready_at")))


class EndpointController(Controller):
    """Publishes each endpoint to the gateway, and starts the gateway again when it died.

    Args:
        serving_for: the driver of a compute's name; empty: this machine's, which makes keys and tokens for all.
    """

    kind = "endpoint"
    period = 2.0

    def __init__(self, serving_for: Callable[[str], Serving]) -> None:
        super().__init__()
        self._serving_for = serving_for
        self._serving = serving_for("")
        self._published: dict[str, dict[str, Any]] = {}
        #: compute → the gateway that was seen last
        self._gateways: dict[str, Any] = {}
        # Two that publish the same endpoint at once could leave the older of two states in force.
        self._publishing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._look: Callable[[], Awaitable[list[tuple[str, str, str]]]] | None = None

    async def active(self) -> list[Key]:
        if self._look is None:
            self._look = self.workspace.store.glance(lambda tx: tx.keys("endpoint"))
        return [("", name) for _, name, _ in await self._look()]

    async def admit(
        self, parent: str, name: str, spec: EndpointSpec, identity: Identity
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if spec.compute and await self.workspace.store.read(lambda tx: tx.find("compute", spec.compute)) is None:
            raise Refused(f"compute {spec.compute!r} does not exist", "`local` is always there")
        self._serving_for(spec.compute)  # it must be one that serves
        keys = {k: self._serving.new_key() for k in KEY_NAMES}
        private = {
            "keys": {k: self._serving.hash_key(v) for k, v in keys.items()}, "token_secret": self._serving.new_secret(),
        }
        status = EndpointStatus(
            phase="Creating", reason="no deployment yet", key_hints={k: v[-4:] for k, v in keys.items()}
        )
        # Keys do not open an endpoint of tokens; its keys are there for the day when that changes, by rotating them.
        return status.model_dump(), private, {"keys": keys if spec.auth_mode == "key" else {}}

    # -- what is asked of an endpoint beside its spec --------------------------------------------------------------

    async def rotate(self, name: str, which: str, identity: Identity) -> str:
        """Replace one key; the other goes on working, so that callers can change over. Returns the new key.

        ``tokens``: every bearer token ends; there is nothing to return then.
        """
        tokens = which == "tokens"
        key = "" if tokens else self._serving.new_key()

        def work(tx: Any) -> None:
            endpoint = tx.get("endpoint", name)
            private = tx.private("endpoint", name)
            if tokens:
                private["token_secret"] = self._serving.new_secret()
            else:
                private.setdefault("keys", {})[which] = self._serving.hash_key(key)
            tx.set_private("endpoint", name, private)
            if not tokens:
                hints = {**endpoint.status.get("key_hints", {}), which: key[-4:]}
                tx.set_status("endpoint", name, {"key_hints": hints})
            tx.audit(identity, "endpoints/secrets/write", f"endpoints/{name}", {"op": "rotate", "key": which})

        await self.workspace.store.write(work)
        await self.reconcile("", name)
        return key

    async def issue_token(self, name: str, seconds: float, identity: Identity) -> tuple[str, str]:
        """A bearer token for the endpoint, and when it ends (RFC 3339).

        Raises:
            NotFound: no such endpoint.
            Conflict: it is opened by keys.
        """
        expires = time.time() + seconds

        def work(tx: Any) -> str:
            endpoint = tx.get("endpoint", name)
            if endpoint.spec.get("auth_mode") != "token":
                raise Conflict(f"endpoint {name!r} is opened by keys, not by tokens", "make it with auth_mode: token")
            token, ident = self._serving.mint(name, _secret(tx, name, self._serving), expires)
            detail = {"op": "token", "id": ident, "expires_at": utcnow(expires)}
            tx.audit(identity, "endpoints/secrets/write", f"endpoints/{name}", detail)
            return token

        token = await self.workspace.store.write(work)
        await self.reconcile("", name)
        return token, utcnow(expires)

    async def change_traffic(
        self, name: str, fields: dict[str, Any], identity: Identity, if_match: int | None = None
    ) -> Resource:
        """Change shares, mirror or sticky header; in force when this returns, if the gateway runs.

        Raises:
            NotFound, Conflict, PreconditionFailed
        """
        return await self._change(name, lambda tx: traffic.change(tx, name, fields, identity, if_match))

    async def promote(self, name: str, identity: Identity) -> Resource:
        """End the running canary in its favour. Raises NotFound, Conflict."""
        return await self._change(name, lambda tx: traffic.promote(tx, name, identity))

    async def rollback(self, name: str, identity: Identity, reason: str = "") -> Resource:
        """Return to the traffic before the canary, or before the last change. Raises NotFound, Conflict."""
        return await self._change(name, lambda tx: traffic.rollback(tx, name, identity, reason))

    async def start_canary(self, name: str, canary: CanarySpec, identity: Identity) -> Resource:
        """Give a deployment a share on trial. Raises NotFound, Conflict."""
        return await self._change(name, lambda tx: traffic.start_canary(tx, name, canary, identity))

    async def _change(self, name: str, work: Any) -> Resource:
        store = self.workspace.store
        await store.write(work)
        try:
            await self.reconcile("", name)
        except Unavailable as e:  # stored already: it is in force as soon as the gateway is back
            log.warning("endpoint %s: %s", name, e)
        self.workspace.wake("canary", name)
        return await store.read(lambda tx: tx.get("endpoint", name))

    async def history(self, name: str, limit: int) -> list[dict[str, Any]]:
        """Who changed what of the endpoint and its deployments, newest first. Raises NotFound."""

        def work(tx: Any) -> list[dict[str, Any]]:
            tx.get("endpoint", name)
            return tx.history([f"endpoints/{name}", f"deployments/{name}/"], limit)

        return [_entry(row) for row in await self.workspace.store.read(work)]

    # -- convergence -----------------------------------------------------------------------------------------------

    async def reconcile(self, parent: str, name: str) -> None:
        async with self._publishing[name]:
            await self._reconcile(name)

    async def _reconcile(self, name: str) -> None:
        store = self.workspace.store

        def look(tx: Any) -> tuple[Resource | None, bool, dict[str, Any], list[Resource]]:
            return (tx.find("endpoint", name), tx.deleting("endpoint", name), tx.private("endpoint", name),
                    traffic.staying(tx, name))

        endpoint, deleting, private, deployments = await store.read(look)
        if endpoint is None:
            self._publishing.pop(name, None)
            return
        if deleting:
            await self._delete(endpoint)
            return
        compute = endpoint.spec.get("compute") or ""
        serving_at = self._serving_for(compute)
        if not private.get("token_secret"):  # made by an older version
            private["token_secret"] = await store.write(partial(_secret, name=name, serving=self._serving))
        try:
            gateway = await asyncio.to_thread(serving_at.ensure_gateway, name)
        except MlopsError as e:
            await self._unreached(endpoint, serving_at, e)
            raise
        where = f"{compute}/{name}" if serving_at.remote else compute
        if gateway.get("pid") != self._gateways.get(where):
            self._gateways[where] = gateway.get("pid")
            await self.workspace.note_gateway(gateway)
        serving = [d.name for d in deployments if proven(d)]
        shares = traffic.in_force(endpoint.spec.get("traffic", {}), endpoint.status.get("traffic", {}), serving)
        config = published(endpoint, private, deployments, shares)
        if self._published.get(name) != {**config, "gateway": gateway.get("pid")}:
            try:
                await asyncio.to_thread(serving_at.publish, name, config)
            except MlopsError as e:
                await self._unreached(endpoint, serving_at, e)
                raise
            self._published[name] = {**config, "gateway": gateway.get("pid")}
        phase, reason = state(endpoint, deployments, shares)
        if gateway.get("reason"):  # on a cluster the gateway may be what does not start
            phase, reason = "Degraded" if shares else phase, f"its gateway: {gateway['reason']}"
        base = gateway.get("public_url") or gateway.get("url")
        uri = f"{base}/endpoints/{name}/invocations" if base else ""
        changes = {"phase": phase, "reason": reason, "scoring_uri": uri, "traffic": shares}
        await store.write(lambda tx: tx.set_status("endpoint", name, changes))

    async def _unreached(self, endpoint: Resource, serving: Any, error: MlopsError, before: str = "") -> None:
        """A cluster that does not answer, or says no, is told to whoever looks; what serves there goes on."""
        if serving.remote:
            phase = "Degraded" if endpoint.status.get("traffic") else "Creating"
            changes = {"phase": phase, "reason": before + error.message}
            await self.workspace.store.write(lambda tx: tx.set_status("endpoint", endpoint.name, changes))

    async def _delete(self, endpoint: Resource) -> None:
        store, name = self.workspace.store, endpoint.name
        serving = self._serving_for(endpoint.spec.get("compute") or "")
        self._published.pop(name, None)
        try:
            await asyncio.to_thread(serving.unpublish, name)
        except MlopsError as e:
            await self._unreached(endpoint, serving, e, "it is deleted as soon as its cluster answers: ")
            raise

        def spread(tx: Any) -> list[Resource]:
            deployments, _ = tx.page("deployment", parent=name, limit=200)
            for d in deployments:
                tx.mark_deleting("deployment", d.name, identity=SYSTEM, parent=name, audit=False)
            return deployments

        left = await store.write(spread)
        if left:
            for d in left:
                self.workspace.wake("deployment", d.name, name)
            return
        try:
            await asyncio.to_thread(serving.remove, name, None)
        except NotFound:
            pass
        await store.write(lambda tx: tx.remove("endpoint", name))
        self._publishing.pop(name, None)


def published(
    endpoint: Resource, private: dict[str, Any], deployments: list[Resource], shares: dict[str, int]
) -> dict[str, Any]:
    """What the gateway is told of an endpoint: ``endpoint.json``.

    Deployments that are still to be proven are among it, marked; the gateway lets nobody but us reach them.
    """
    told: dict[str, Any] = {}
    for d in deployments:
        if not proven(d) and d.status.get("phase") != "Proving":
            continue
        # Without its proof: a sample of megabytes would be checked anew on every pass.
        spec = DeploymentSpec.model_validate({**d.spec, "proof": None})
        told[d.name] = spec.served(d.status.get("model_name", ""), d.status.get("model_version", ""))
        if not proven(d):  # its sample is nobody's request: it is not captured
            told[d.name].update(proving=True, data_collector=None)
    asked = EndpointSpec.model_validate(endpoint.spec)
    return {
        "name": endpoint.name, "auth_mode": asked.auth_mode, "public": asked.public_network_access == "enabled",
        "keys": private.get("keys", {}), "token_secret": private.get("token_secret", ""), "traffic": shares,
        "mirror_traffic": {d: share for d, share in asked.mirror_traffic.items() if d in told},
        "sticky_header": asked.sticky_header, "deployments": told,
    }


def state(endpoint: Resource, deployments: list[Resource], shares: dict[str, int]) -> tuple[str, str]:
    """(phase, reason) of an endpoint whose traffic is shared as ``shares``."""
    by_name = {d.name: d for d in deployments}
    asked = {d: share for d, share in endpoint.spec.get("traffic", {}).items() if share}

    def missing(name: str) -> str:
        gone = by_name.get(name)
        if gone is None:
            return f"{name} is not there"
        return f"{name} is {gone.status.get('phase')}: {gone.status.get('reason') or 'not ready'}"

    if not shares:
        if asked:
            return "Degraded", f"{missing(max(asked, key=lambda d: asked[d]))}; it has the traffic"
        failed = [d for d in deployments if d.status.get("phase") == "Failed"]
        if any(proven(d) for d in deployments):
            return "Degraded", "no deployment has traffic"
        if failed:
            return "Failed", f"{failed[0].name}: {failed[0].status.get('reason')}"
        return "Creating", "no deployment is ready yet" if deployments else "no deployment yet"
    down = [d for d in shares if by_name[d].status.get("phase") == "Starting"]
    away = [d for d in asked if d not in shares]
    if down:
        return "Degraded", f"{down[0]}: {by_name[down[0]].status.get('reason')}"
    if away:
        return "Degraded", f"{missing(away[0])}; its {asked[away[0]]} % go to {', '.join(shares)}"
    if len(shares) == 1:
        only = by_name[next(iter(shares))]
        return "Ready", f"{only.name} serves {_what(only)}"
    return "Ready", traffic.describe(shares)


def _what(deployment: Resource) -> str:
    name, version = deployment.status.get("model_name"), deployment.status.get("model_version")
    return f"{name} version {version}" if name else str(deployment.spec.get("model") or "a scoring script")


def _secret(tx: Any, name: str, serving: Serving) -> str:
    """The secret with which the endpoint's tokens are signed; made when there is none."""
    private = tx.private("endpoint", name)
    if not private.get("token_secret"):
        private["token_secret"] = serving.new_secret()
        tx.set_private("endpoint", name, private)
    return private["token_secret"]


#: How the history names what happens to deployments.
_DEPLOYMENT_OPS = {"create": "deploy", "update": "change", "delete": "remove"}


def _entry(row: dict[str, Any]) -> dict[str, Any]:
    detail = {k: v for k, v in row["detail"].items() if k not in ("op", "token")}
    action = str(row["detail"].get("op") or row["action"])
    if row["resource"].startswith("deployments/"):
        detail["deployment"] = row["resource"].rpartition("/")[2]
        action = _DEPLOYMENT_OPS.get(action, action)
    return {"at": row["at"], "by": row["user"], "action": action, "detail": detail}
