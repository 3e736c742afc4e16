"""The workspace: what faces may ask of the core. Checks policy and specs, writes the store, wakes controllers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from . import policy, traffic
from .controllers.base import Controller
from .errors import Conflict, ParameterError, PreconditionFailed
from .identity import SYSTEM, Identity
from .resources import ACTIVE, KINDS, TERMINAL, check_name, deployment
from .resources.base import Resource, Spec, parameter_error, utcnow
from .store import Store

log = logging.getLogger(__name__)

#: Fields that may change of specs that else never do: another run or another model version is another resource.
MUTABLE: dict[str, frozenset[str]] = {"job": frozenset(), "deployment": deployment.MUTABLE}
#: Seconds that a delete waits for the belongings of a resource to be gone.
DELETE_WAIT = 30.0


def parse_spec(kind: str, spec: Any) -> Spec:
    """The validated spec model.

    Raises:
        ParameterError: naming the first wrong field; ``detail`` lists all of them.
    """
    if not isinstance(spec, dict):
        raise ParameterError(f"the spec of a {kind} must be an object")
    try:
        return KINDS[kind][0].model_validate(spec)
    except ValidationError as e:
        raise parameter_error(e, f"{kind} spec") from e


def _check_revision(kind: str, found: Resource, if_match: int | None) -> None:
    if if_match is not None and if_match != found.revision:
        raise PreconditionFailed(f"{kind} {found.name!r} has changed meanwhile", "read it again")


def _check_ended(job: Resource) -> None:
    if job.status.get("phase") not in TERMINAL:
        raise Conflict(f"job {job.name!r} has not ended", f"stop it first: %mlops stop {job.name}")


class Workspace:
    """All resources of one workspace. ``home`` is its folder, 0700."""

    def __init__(self, name: str, home: Path, store: Store) -> None:
        self.name = name
        self.home = home
        self.store = store
        self.controllers: dict[str, Controller] = {}
        self.on_gateway: Callable[[dict[str, Any]], Awaitable[None]] | None = None

    def add(self, controller: Controller) -> None:
        """Let a controller care for its kind."""
        controller.workspace = self
        self.controllers[controller.kind] = controller

    def start(self) -> None:
        """Begin to converge."""
        for controller in self.controllers.values():
            controller.start()

    async def stop(self) -> None:
        """Stop converging; what runs goes on by itself."""
        await asyncio.gather(*(c.stop() for c in self.controllers.values()))

    def wake(self, kind: str, name: str, parent: str = "") -> None:
        """Have the controller of a kind look at a resource now."""
        controller = self.controllers.get(kind)
        if controller is not None:
            controller.wake(parent, name)

    async def note_gateway(self, gateway: dict[str, Any]) -> None:
        """Told by the endpoint controller when the gateway was started (again)."""
        if self.on_gateway is not None:
            await self.on_gateway(gateway)

    # -- resources -------------------------------------------------------------------------------------------------

    async def get(self, identity: Identity, kind: str, name: str, parent: str = "") -> Resource:
        """One resource. Raises NotFound, Forbidden."""
        policy.require(identity, f"{kind}s/read", name)
        return await self.store.read(lambda tx: tx.get(kind, name, parent))

    async def page(
        self,
        identity: Identity,
        kind: str,
        *,
        parent: str | None = None,
        phases: list[str] | None = None,
        limit: int = 50,
        page_token: str | None = None,
    ) -> tuple[list[Resource], str | None]:
        """A page, newest first, and the token of the next page."""
        policy.require(identity, f"{kind}s/read")
        before = None
        if page_token:
            if not (page_token.isascii() and page_token.isdigit() and len(page_token) < 19):
                raise ParameterError("page_token is not one of ours", "list again without it")
            before = int(page_token)

        def work(tx: Any) -> tuple[list[Resource], int | None]:
            if parent:
                tx.get("endpoint", parent)
            return tx.page(kind, parent=parent, phases=phases, limit=limit, before=before)

        items, mark = await self.store.read(work)
        if identity.role == "job" and kind == "job":
            items = [r for r in items if r.name == identity.job]
        return items, None if mark is None else str(mark)

    async def put(
        self,
        identity: Identity,
        kind: str,
        name: str,
        spec: Any,
        *,
        parent: str = "",
        if_match: int | None = None,
        if_none_match: bool = False,
    ) -> tuple[Resource, bool, dict[str, Any]]:
        """Create or update. Returns (resource, created, what its creator is told once)."""
        policy.require(identity, f"{kind}s/write", name)
        check_name(name)
        model = parse_spec(kind, spec)
        plain = model.model_dump(mode="json")
        existing = await self.store.read(lambda tx: tx.find(kind, name, parent))
        status: dict[str, Any] = {}
        private: dict[str, Any] = {}
        told: dict[str, Any] = {}
        controller = self.controllers.get(kind)
        if existing is None:
            if parent:
                await self.store.read(lambda tx: tx.get("endpoint", parent))
            if controller is not None and if_match is None:
                status, private, told = await controller.admit(parent, name, model, identity)

        def work(tx: Any) -> tuple[Resource, bool]:
            options: dict[str, Any] = {
                "status": status, "private": private, "if_match": if_match, "if_none_match": if_none_match,
            }
            if kind == "endpoint":
                return traffic.put(tx, name, plain, identity=identity, **options)
            if parent:
                tx.get("endpoint", parent)  # it may be gone since it was looked for above
            if parent and tx.deleting("endpoint", parent):
                raise Conflict(f"endpoint {parent!r} is being deleted", "wait a moment, then try again")
            return tx.put(kind, name, plain, identity=identity, parent=parent, mutable=MUTABLE.get(kind), **options)

        resource, created = await self.store.write(work)
        self.wake(kind, name, parent)
        if parent:
            self.wake("endpoint", parent)
        return resource, created, (told if created else {})

    async def delete(
        self, identity: Identity, kind: str, name: str, *, parent: str = "", if_match: int | None = None
    ) -> bool:
        """Delete; returns whether it is gone already (else a controller is still at it).

        A job can be restored afterwards until it is purged, see :meth:`restore` and :meth:`purge`.

        Raises:
            Conflict: a job that has not ended, the compute ``local``, a deployment that has traffic while others stand
                beside it.
        """
        policy.require(identity, f"{kind}s/delete", name)
        if kind == "job":
            await self._mark_deleted(identity, name, if_match)
            return True
        return await self._remove(identity, kind, name, parent, if_match)

    async def purge(self, identity: Identity, name: str) -> bool:
        """Remove a job that has ended for good: folder, logs, what was shipped, its record. Its MLflow run stays.

        Raises:
            NotFound, Conflict: it has not ended.
        """
        policy.require(identity, "jobs/delete", name)
        return await self._remove(identity, "job", name, "", None)

    async def restore(self, identity: Identity, name: str) -> Resource:
        """Take a job's deletion back; nothing happens when it is not deleted.

        Raises:
            NotFound: no such job (any more).
            Conflict: it is being purged.
        """
        policy.require(identity, "jobs/write", name)

        def work(tx: Any) -> Resource:
            found = tx.get("job", name)
            if tx.deleting("job", name):
                raise Conflict(f"job {name!r} is being purged", "its MLflow run stays")
            if not found.status.get("deleted_at"):
                return found
            tx.audit(identity, "jobs/write", f"jobs/{name}", {"op": "restore"})
            return tx.set_status("job", name, {"deleted_at": ""})

        return await self.store.write(work)

    async def _mark_deleted(self, identity: Identity, name: str, if_match: int | None) -> None:
        def work(tx: Any) -> None:
            found = tx.get("job", name)
            _check_revision("job", found, if_match)
            _check_ended(found)
            if not found.status.get("deleted_at"):
                tx.audit(identity, "jobs/delete", f"jobs/{name}", {"op": "delete"})
                tx.set_status("job", name, {"deleted_at": utcnow()})

        await self.store.write(work)

    async def _remove(self, identity: Identity, kind: str, name: str, parent: str, if_match: int | None) -> bool:
        def work(tx: Any) -> None:
            found = tx.get(kind, name, parent)
            _check_revision(kind, found, if_match)
            if kind == "job":
                _check_ended(found)
            if kind == "deployment":
                traffic.leave(tx, parent, name, identity)
            if kind == "compute" and name == "local":
                raise Conflict("the compute `local` is this machine; it cannot be deleted")
            if kind == "compute":
                live, _ = tx.page("job", phases=ACTIVE, limit=10_000)
                users = [job.name for job in live if job.spec.get("compute") == name]
                if users:
                    raise Conflict(f"compute {name!r} is in use by {', '.join(users[:5])}", "stop these jobs first")
                endpoints, _ = tx.page("endpoint", limit=10_000)
                served = [e.name for e in endpoints if e.spec.get("compute") == name]
                if served:
                    raise Conflict(f"compute {name!r} serves {', '.join(served[:5])}", "delete these endpoints first")
            tx.mark_deleting(kind, name, identity=identity, parent=parent)
            if kind not in self.controllers:
                tx.remove(kind, name, parent=parent)

        await self.store.write(work)
        self.wake(kind, name, parent)
        deadline = asyncio.get_running_loop().time() + DELETE_WAIT
        while asyncio.get_running_loop().time() < deadline:
            if await self.store.read(lambda tx: tx.find(kind, name, parent)) is None:
                return True
            await asyncio.sleep(0.05)
        return False

    async def ensure_local_compute(self, facts: dict[str, Any]) -> None:
        """There is always a compute named ``local``; its facts are those of this machine now."""

        def work(tx: Any) -> None:
            if tx.find("compute", "local") is None:
                spec = parse_spec("compute", {"type": "local", "description": "this machine"})
                tx.put("compute", "local", spec.model_dump(mode="json"), identity=SYSTEM)
            tx.set_status("compute", "local", {"phase": "Ready", "reason": "", "conditions": [], **facts})

        await self.store.write(work)

    async def deployments_using(self, model: str, version: str | None = None) -> list[str]:
        """``endpoint/deployment`` names that serve a model (version)."""

        def work(tx: Any) -> list[str]:
            found, _ = tx.page("deployment", limit=10_000)
            return [
                f"{d.parent}/{d.name}"
                for d in found
                if d.status.get("model_name") == model
                and (version is None or d.status.get("model_version") == version)
                and d.status.get("phase") != "Failed"
            ]

        return await self.store.read(work)
