"""Endpoint controller: keys, what the gateway shall know, and the endpoint's own state."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from ..errors import NotFound
from ..identity import Identity
from ..resources.base import Resource
from ..resources.endpoint import EndpointSpec, EndpointStatus
from .base import Controller, Key

KEY_NAMES = ("primary", "secondary")


class Serving(Protocol):
    """What the controllers need of a serving driver; all calls block."""

    def new_key(self) -> str: ...
    def hash_key(self, key: str) -> dict[str, str]: ...
    def publish(self, endpoint: str, config: dict[str, Any]) -> bool: ...
    def unpublish(self, endpoint: str) -> bool: ...
    def ensure_gateway(self) -> dict[str, Any]: ...
    def remove(self, endpoint: str, deployment: str | None = None) -> None: ...


class EndpointController(Controller):
    """Publishes each endpoint to the gateway, and starts the gateway again when it died."""

    kind = "endpoint"
    period = 2.0

    def __init__(self, serving: Serving) -> None:
        super().__init__()
        self._serving = serving
        self._published: dict[str, dict[str, Any]] = {}
        self._gateway_pid: int | None = None

    async def active(self) -> list[Key]:
        def work(tx: Any) -> list[Key]:
            found, _ = tx.page("endpoint", limit=10_000)
            return [("", r.name) for r in found]

        return await self.workspace.store.read(work)

    async def admit(
        self, parent: str, name: str, spec: EndpointSpec, identity: Identity
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        keys = {k: self._serving.new_key() for k in KEY_NAMES}
        private = {"keys": {k: self._serving.hash_key(v) for k, v in keys.items()}}
        status = EndpointStatus(
            phase="Creating", reason="no deployment yet", key_hints={k: v[-4:] for k, v in keys.items()}
        )
        return status.model_dump(), private, {"keys": keys}

    async def rotate(self, name: str, which: str, identity: Identity) -> str:
        """Replace one key; the other goes on working, so that callers can change over. Returns the new key."""
        key = self._serving.new_key()

        def work(tx: Any) -> None:
            endpoint = tx.get("endpoint", name)
            private = tx.private("endpoint", name)
            private.setdefault("keys", {})[which] = self._serving.hash_key(key)
            tx.set_private("endpoint", name, private)
            hints = {**endpoint.status.get("key_hints", {}), which: key[-4:]}
            tx.set_status("endpoint", name, {"key_hints": hints})
            tx.audit(identity, "endpoints/secrets/write", f"endpoints/{name}", {"op": "rotate", "key": which})

        await self.workspace.store.write(work)
        await self.reconcile("", name)
        return key

    async def reconcile(self, parent: str, name: str) -> None:
        store = self.workspace.store

        def look(tx: Any) -> tuple[Resource | None, bool, dict[str, Any], list[Resource]]:
            deployments, _ = tx.page("deployment", parent=name, limit=200)
            kept = [d for d in deployments if not tx.deleting("deployment", d.name, name)]
            return tx.find("endpoint", name), tx.deleting("endpoint", name), tx.private("endpoint", name), kept

        endpoint, deleting, private, deployments = await store.read(look)
        if endpoint is None:
            return
        if deleting:
            await self._delete(name)
            return
        gateway = await asyncio.to_thread(self._serving.ensure_gateway)
        if gateway.get("pid") != self._gateway_pid:
            self._gateway_pid = gateway.get("pid")
            await self.workspace.note_gateway(gateway)
        ready = [d for d in deployments if d.status.get("phase") == "Ready"]
        traffic = {d: share for d, share in endpoint.spec.get("traffic", {}).items() if share}
        if not traffic and ready:
            traffic = {ready[0].name: 100}  # newest first: what was deployed last takes all
        config = {
            "name": name,
            "keys": private.get("keys", {}),
            "traffic": traffic,
            "deployments": {d.name: {"request_settings": d.spec.get("request_settings", {})} for d in ready},
        }
        if self._published.get(name) != {**config, "gateway": self._gateway_pid}:
            await asyncio.to_thread(self._serving.publish, name, config)
            self._published[name] = {**config, "gateway": self._gateway_pid}
        serving = [d for d in ready if d.name in traffic]
        failed = [d for d in deployments if d.status.get("phase") == "Failed"]
        if serving:
            phase, reason = "Ready", f"{serving[0].name} serves {serving[0].status.get('model_name')} version " \
                                     f"{serving[0].status.get('model_version')}"
        elif traffic and any(d.name in traffic for d in deployments):
            phase, reason = "Degraded", "the deployment that has the traffic is not ready"
        elif failed:
            phase, reason = "Failed", f"{failed[0].name}: {failed[0].status.get('reason')}"
        else:
            phase, reason = "Creating", "no deployment is ready yet" if deployments else "no deployment yet"
        uri = f"{gateway['url']}/endpoints/{name}/invocations" if gateway.get("url") else ""
        changes = {"phase": phase, "reason": reason, "scoring_uri": uri}
        await store.write(lambda tx: tx.set_status("endpoint", name, changes))

    async def _delete(self, name: str) -> None:
        store = self.workspace.store
        self._published.pop(name, None)
        await asyncio.to_thread(self._serving.unpublish, name)
        from ..identity import SYSTEM

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
            await asyncio.to_thread(self._serving.remove, name, None)
        except NotFound:
            pass
        await store.write(lambda tx: tx.remove("endpoint", name))
