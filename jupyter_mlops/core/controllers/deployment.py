"""Deployment controller: model fetched, scorer started and kept alive under the right interpreter."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any, Protocol

from ..errors import BackendTimeout, BackendUnreachable, MlopsError, Refused, Unavailable
from ..identity import Identity
from ..resources.base import Resource, utcnow
from ..resources.deployment import DeploymentSpec, DeploymentStatus
from .base import Controller, Key

#: Starts of a scorer in a row that may fail before the deployment is given up.
MAX_CRASHES = 4


class ModelSource(Protocol):
    """Where models come from (MLflow's registry)."""

    async def resolve_model(self, reference: str) -> dict[str, Any]:
        """The version row that ``name/version`` or ``name@alias`` stands for."""

    async def model_dir(self, name: str, version: str) -> Path:
        """Local folder of a version's files."""

    async def model_interpreter(self, version: dict[str, Any]) -> str:
        """Path of the Python that made the model, as it was recorded; empty when it was not."""


class DeploymentController(Controller):
    """Drives one scorer process per deployment."""

    kind = "deployment"
    period = 1.0
    width = 4

    def __init__(self, serving: Any, models: ModelSource) -> None:
        super().__init__()
        self._serving = serving
        self._models = models
        self._crashes: dict[Key, int] = {}
        self._wait_until: dict[Key, float] = {}

    async def active(self) -> list[Key]:
        def work(tx: Any) -> list[Key]:
            found, _ = tx.page(
                "deployment", phases=["Pending", "Preparing", "Starting", "Ready", "Deleting"], limit=10_000
            )
            return [(r.parent, r.name) for r in found] + tx.deleting_keys("deployment")

        return await self.workspace.store.read(work)

    async def admit(
        self, parent: str, name: str, spec: DeploymentSpec, identity: Identity
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        await self.workspace.store.read(lambda tx: tx.get("endpoint", parent))
        version = await self._models.resolve_model(spec.model)
        interpreter = spec.interpreter or await self._models.model_interpreter(version)
        if not interpreter:
            raise Refused(
                f"model {spec.model!r} does not say which Python made it",
                "deploy it from a notebook (%mlops deploy …), or give `interpreter`",
            )
        if not (os.path.isfile(interpreter) and os.access(interpreter, os.X_OK)):
            raise Refused(f"the Python {interpreter} of this model is not here any more", "give another `interpreter`")
        folder = await self._models.model_dir(version["name"], version["version"])
        signature = await asyncio.to_thread(self._serving.check_model, folder)
        status = DeploymentStatus(
            phase="Pending", reason="waiting", model_name=version["name"], model_version=version["version"],
            run_id=version.get("run_id") or "", interpreter=interpreter, signature=signature,
        )
        return status.model_dump(), {}, {}

    async def reconcile(self, parent: str, name: str) -> None:
        store, key = self.workspace.store, (parent, name)

        def look(tx: Any) -> tuple[Resource | None, bool]:
            return tx.find("deployment", name, parent), tx.deleting("deployment", name, parent)

        found, deleting = await store.read(look)
        if found is None:
            return
        if deleting:
            # The gateway forgets it first: nobody is sent to a scorer that is going away.
            await self.workspace.controllers["endpoint"].reconcile("", parent)
            await asyncio.to_thread(self._serving.stop, parent, name)
            await asyncio.to_thread(self._serving.remove, parent, name)
            await store.write(lambda tx: tx.remove("deployment", name, parent=parent))
            self._crashes.pop(key, None)
            self.workspace.wake("endpoint", parent)
            return
        phase = found.status.get("phase")
        if phase == "Failed":
            return
        if phase in ("Pending", "Preparing"):
            if not await self._prepare(found):
                return
            found = await store.read(lambda tx: tx.get("deployment", name, parent))
        await self._watch(found, key)

    async def _prepare(self, d: Resource) -> bool:
        await self._set(d, phase="Preparing", reason="copying the model")
        try:
            folder = await self._models.model_dir(d.status["model_name"], d.status["model_version"])
            await asyncio.to_thread(self._serving.prepare, d.parent, d.name, folder)
        except (Unavailable, BackendUnreachable, BackendTimeout) as e:
            await self._set(d, reason=f"waiting for MLflow: {e.message}")
            return False
        except (MlopsError, OSError, shutil.Error) as e:
            await self._fail(d, f"the model could not be copied: {e}")
            return False
        await self._set(d, phase="Starting", reason="loading the model")
        return True

    async def _watch(self, d: Resource, key: Key) -> None:
        loop = asyncio.get_running_loop()
        seen = await asyncio.to_thread(self._serving.observe, d.parent, d.name)
        if seen.phase == "ready":
            self._crashes.pop(key, None)
            changes: dict[str, Any] = {"phase": "Ready", "reason": "", "pid": seen.pid, "restarts": seen.restarts}
            if d.status.get("phase") != "Ready":
                changes["ready_at"] = utcnow()
            await self._set(d, **changes)
            if d.status.get("phase") != "Ready":
                self.workspace.wake("endpoint", d.parent)
            return
        if seen.phase == "starting":
            if d.status.get("phase") == "Ready":
                await self._set(d, phase="Starting", reason="starting again", pid=seen.pid)
            # A start takes seconds: look more often than the period, so that `deploy` returns soon after.
            loop.call_later(0.1, self.wake, *key)
            return
        was_ready = d.status.get("phase") == "Ready"
        if seen.crash_loop:
            await self._fail(d, seen.reason, seen.log_tail)
            return
        if seen.phase == "failed" and not was_ready:
            self._crashes[key] = self._crashes.get(key, 0) + 1
            # A model that cannot be loaded fails alike each time; one that had served gets its chances.
            if not d.status.get("ready_at") or self._crashes[key] >= MAX_CRASHES:
                await self._fail(d, seen.reason, seen.log_tail)
                return
            self._wait_until.setdefault(key, loop.time() + 2.0 ** self._crashes[key])
        if loop.time() < self._wait_until.get(key, 0.0):
            return
        self._wait_until.pop(key, None)
        if was_ready:
            await self._set(d, phase="Starting", reason=f"the scorer ended ({seen.reason}); starting again", pid=None)
            self.workspace.wake("endpoint", d.parent)
        environment = d.spec.get("environment_variables", {})
        await asyncio.to_thread(self._serving.start, d.parent, d.name, d.status["interpreter"], environment)
        loop.call_later(0.1, self.wake, *key)

    async def _set(self, d: Resource, **changes: Any) -> None:
        await self.workspace.store.write(lambda tx: tx.set_status("deployment", d.name, changes, d.parent))

    async def _fail(self, d: Resource, reason: str, tail: list[str] | None = None) -> None:
        await asyncio.to_thread(self._serving.stop, d.parent, d.name)
        await self._set(d, phase="Failed", reason=reason, log_tail=tail or [], pid=None)
        self.workspace.wake("endpoint", d.parent)
