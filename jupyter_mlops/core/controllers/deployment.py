"""Deployment controller: model fetched, scorers started, proven and kept alive under the right interpreter."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

from ..errors import BackendTimeout, BackendUnreachable, MlopsError, Refused, Unavailable
from ..identity import Identity
from ..resources.base import Resource, utcnow
from ..resources.deployment import MAX_PROOF, DeploymentSpec, DeploymentStatus, Instances, ProofStatus
from .base import Controller, Key
from .proving import Subject, prove

#: Starts of a scorer in a row that may fail before the deployment is given up.
MAX_CRASHES = 4
#: Where MLflow keeps an example of a model's input, as a scoring request.
EXAMPLE = "serving_input_example.json"


class ModelSource(Protocol):
    """Where models come from (MLflow's registry and runs)."""

    async def resolve_model(self, reference: str) -> dict[str, Any]:
        """The row that ``name/version``, ``name@alias`` or ``runs:/run/path`` stands for; ``source`` is its URI."""

    async def model_dir(self, name: str, version: str, source: str = "") -> Path:
        """Local folder of a version's files; of those at ``source`` when it has no name."""

    async def model_interpreter(self, version: dict[str, Any]) -> str:
        """Path of the Python that made the model, as it was recorded; empty when it was not."""


class CodeSource(Protocol):
    """Where uploaded code lies."""

    def size(self, digest: str) -> int | None: ...
    def path(self, digest: str) -> Path: ...


class DeploymentController(Controller):
    """Drives the scorers of each deployment.

    Args:
        serving_for: the driver of a compute's name.
    """

    kind = "deployment"
    period = 1.0
    width = 8

    def __init__(self, serving_for: Callable[[str], Any], models: ModelSource, code: CodeSource) -> None:
        super().__init__()
        self._serving_for = serving_for
        self._models = models
        self._code = code
        self._crashes: dict[Key, int] = {}
        self._wait_until: dict[Key, float] = {}
        #: Which generation of a spec the driver was told of; after a start all are told again.
        self._told: dict[Key, int] = {}
        #: Those that failed and of which nothing runs any more.
        self._stopped: set[Key] = set()
        self._look: Callable[[], Awaitable[tuple[list[tuple[str, str, str]], list[Key]]]] | None = None

    async def active(self) -> list[Key]:
        if self._look is None:
            self._look = self.workspace.store.glance(
                lambda tx: (tx.keys("deployment"), tx.deleting_keys("deployment")))
        found, deleting = await self._look()
        return [(parent, name) for parent, name, phase in found
                if phase != "Failed" or (parent, name) not in self._stopped] + deleting

    async def admit(
        self, parent: str, name: str, spec: DeploymentSpec, identity: Identity
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        endpoint = await self.workspace.store.read(lambda tx: tx.get("endpoint", parent))
        here = self._serving_for("")
        here.check_names(parent, name)
        script = spec.code_configuration
        if script and await asyncio.to_thread(self._code.size, script.sha256) is None:
            raise Refused(f"the code {script.code[:17]}… was not uploaded, or is gone", "upload it first")
        version = await self._models.resolve_model(spec.model) if spec.model else {}
        interpreter = spec.interpreter or (await self._models.model_interpreter(version) if version else "")
        if not self._serving_for(endpoint.spec.get("compute") or "").remote:
            self._check_interpreter(spec, interpreter)
        folder = await self._models.model_dir(*_where(version)) if version else None
        if script:
            signature = await asyncio.to_thread(
                here.check_script, self._code.path(script.sha256), script.scoring_script, folder
            )
        else:
            signature = await asyncio.to_thread(here.check_model, folder)
        status = DeploymentStatus(
            phase="Pending", reason="waiting", model_name=version.get("name") or "",
            model_version=version.get("version") or "", model_source=version.get("source") or "",
            run_id=version.get("run_id") or "", interpreter=interpreter, signature=signature, ignored=spec.ignored,
            instances=Instances(wanted=spec.instance_count),
        )
        return status.model_dump(), {}, {}

    def _check_interpreter(self, spec: DeploymentSpec, interpreter: str) -> None:
        if not interpreter:
            what = f"model {spec.model!r}" if spec.model else "a scoring script"
            raise Refused(
                f"{what} does not say which Python made it",
                "deploy it from a notebook (%mlops deploy …), or give `interpreter`",
            )
        if not (os.path.isfile(interpreter) and os.access(interpreter, os.X_OK)):
            raise Refused(f"the Python {interpreter} of this model is not here any more", "give another `interpreter`")

    # -- convergence -----------------------------------------------------------------------------------------------

    async def reconcile(self, parent: str, name: str) -> None:
        store, key = self.workspace.store, (parent, name)

        def look(tx: Any) -> tuple[Resource | None, bool, str]:
            endpoint = tx.find("endpoint", parent)
            compute = endpoint.spec.get("compute") or "" if endpoint else ""
            return tx.find("deployment", name, parent), tx.deleting("deployment", name, parent), compute

        found, deleting, compute = await store.read(look)
        if found is None:
            return
        serving = self._serving_for(compute)
        if deleting:
            await self._delete(found, serving)
            return
        phase = found.status.get("phase")
        if phase == "Failed":
            if key not in self._stopped:
                await asyncio.to_thread(serving.stop, parent, name)
                self._stopped.add(key)
            return
        self._stopped.discard(key)
        if phase in ("Pending", "Preparing"):
            if not await self._prepare(found, serving):
                return
            found = await store.read(lambda tx: tx.get("deployment", name, parent))
        await self._watch(found, key, serving)

    async def _delete(self, d: Resource, serving: Any) -> None:
        key = (d.parent, d.name)
        await self._set(d, phase="Deleting", reason="")
        # The gateway forgets it first: nobody is sent to a scorer that is going away.
        await self.workspace.controllers["endpoint"].reconcile("", d.parent)
        await asyncio.to_thread(serving.stop, d.parent, d.name)
        await asyncio.to_thread(serving.remove, d.parent, d.name)
        await self.workspace.store.write(lambda tx: tx.remove("deployment", d.name, parent=d.parent))
        for table in (self._crashes, self._told, self._wait_until):
            table.pop(key, None)  # type: ignore[attr-defined]
        self._stopped.discard(key)
        self.workspace.wake("endpoint", d.parent)

    async def _prepare(self, d: Resource, serving: Any) -> bool:
        spec = DeploymentSpec.model_validate(d.spec)
        await self._set(d, phase="Preparing", reason="copying the model" if spec.model else "unpacking the code")
        try:
            folder = None
            if spec.model:
                folder = await self._models.model_dir(
                    d.status["model_name"], d.status["model_version"], d.status.get("model_source") or ""
                )
                if spec.proof is None:
                    await self._keep_example(d, folder)
            more: dict[str, Any] = {}
            if spec.code_configuration:
                more = {"code_zip": self._code.path(spec.code_configuration.sha256),
                        "script": spec.code_configuration.scoring_script}
            signature = await asyncio.to_thread(serving.prepare, d.parent, d.name, folder, **more)
        except (Unavailable, BackendUnreachable, BackendTimeout) as e:
            await self._set(d, reason=f"waiting for MLflow: {e.message}")
            return False
        except (MlopsError, OSError, shutil.Error) as e:
            await self._fail(d, f"the model could not be copied: {e}")
            return False
        await self._set(d, phase="Starting", reason="loading the model", signature=signature or {})
        return True

    async def _keep_example(self, d: Resource, folder: Path) -> None:
        """Remember the model's own example: the registry may be away when it is needed."""
        text = await asyncio.to_thread(_read_example, folder / EXAMPLE)
        if text is None:
            return

        def work(tx: Any) -> None:
            tx.set_private("deployment", d.name, {**tx.private("deployment", d.name, d.parent), "example": text},
                           d.parent)

        await self.workspace.store.write(work)

    async def _watch(self, d: Resource, key: Key, serving: Any) -> None:
        loop = asyncio.get_running_loop()
        try:
            seen = await asyncio.to_thread(serving.observe, d.parent, d.name)
        except (BackendUnreachable, BackendTimeout, Unavailable) as e:
            await self._set(d, reason=e.message)  # the cluster is away; what serves there goes on
            return
        phase = d.status.get("phase")
        serves = bool(d.status.get("ready_at"))
        if seen.phase == "ready":
            self._crashes.pop(key, None)
            if not serves:
                await self._prove(d, seen, serving)
                return
            await self._set(d, phase="Ready", reason=seen.reason, **_counted(seen))
            if phase != "Ready":
                self.workspace.wake("endpoint", d.parent)
            if self._told.get(key) != d.generation:
                await self._start(d, key, serving)
            return
        if seen.phase == "starting":
            if phase in ("Ready", "Proving"):
                await self._set(d, phase="Starting", reason="starting again", **_counted(seen))
            elif serving.remote:  # where it waits, for a node or an image, is what there is to tell
                await self._set(d, reason=seen.reason, **_counted(seen))
            # A start takes seconds: look more often than the period, so that `deploy` returns soon after.
            loop.call_later(0.5 if serving.remote else 0.1, self.wake, *key)
            return
        if seen.crash_loop:
            await self._fail(d, seen.reason, seen.log_tail)
            return
        if seen.phase == "failed" and phase != "Ready":
            self._crashes[key] = self._crashes.get(key, 0) + 1
            # A model that cannot be loaded fails alike each time; one that had served gets its chances.
            if not serves or self._crashes[key] >= MAX_CRASHES:
                await self._fail(d, seen.reason, seen.log_tail)
                return
            self._wait_until.setdefault(key, loop.time() + 2.0 ** self._crashes[key])
        if loop.time() < self._wait_until.get(key, 0.0):
            return
        self._wait_until.pop(key, None)
        if phase == "Ready":
            await self._set(d, phase="Starting", reason=f"{seen.reason}; starting again",
                            **{**_counted(seen), "pid": None})
            self.workspace.wake("endpoint", d.parent)
        await self._start(d, key, serving)
        loop.call_later(0.1, self.wake, *key)

    async def _start(self, d: Resource, key: Key, serving: Any) -> None:
        spec = DeploymentSpec.model_validate(d.spec)
        try:
            await asyncio.to_thread(
                serving.start, d.parent, d.name, d.status["interpreter"], spec.environment_variables,
                count=spec.first_instances,  # what scales goes on from here by itself
                probes=spec.probes, image=spec.environment, resources=spec.resources.model_dump(mode="json"),
                scale=spec.scale_settings.model_dump(mode="json"),
            )
        except MlopsError as e:
            if isinstance(e, Refused) and not d.status.get("ready_at"):
                await self._fail(d, e.message)
                return
            await self._set(d, reason=e.message)
            raise
        self._told[key] = d.generation

    async def _prove(self, d: Resource, seen: Any, serving: Any) -> None:
        """Have it answer the sample; it is published to nobody but us until it has."""
        spec = DeploymentSpec.model_validate(d.spec)
        restarts = seen.restarts
        await self._set(d, phase="Proving", reason="answers a sample before it takes traffic", **_counted(seen))
        await self.workspace.controllers["endpoint"].reconcile("", d.parent)
        private = await self.workspace.store.read(lambda tx: tx.private("deployment", d.name, d.parent))

        async def alive() -> str:
            now = await asyncio.to_thread(serving.observe, d.parent, d.name)
            if now.phase in ("absent", "failed"):
                return str(now.reason)
            return "it was started again" if now.restarts > restarts else ""

        try:
            outcome = await prove(
                Subject(
                    d.parent, d.name, spec.proof, private.get("example"), dict(seen.packages),
                    spec.request_settings.request_timeout_ms / 1000, alive,
                ),
                serving.invoke,
            )
        except Unavailable as e:
            await self._set(d, reason=f"cannot be proven yet: {e.message}")
            return
        if outcome.passed is False:
            now = await asyncio.to_thread(serving.observe, d.parent, d.name)
            await self._fail(d, outcome.message, now.log_tail, outcome)
            return
        # Whoever reads that it is ready can call it: the gateway knows first.
        await self._set(d, ready_at=utcnow(), proof=outcome.model_dump())
        await self.workspace.controllers["endpoint"].reconcile("", d.parent)
        await self._set(d, phase="Ready", reason="")
        self.workspace.wake("endpoint", d.parent)

    async def _set(self, d: Resource, **changes: Any) -> None:
        await self.workspace.store.write(lambda tx: tx.set_status("deployment", d.name, changes, d.parent))

    async def _fail(
        self, d: Resource, reason: str, tail: list[str] | None = None, proof: ProofStatus | None = None
    ) -> None:
        """Say so first: whoever waits is told before the scorers have ended, which may take them a while."""
        changes: dict[str, Any] = {"phase": "Failed", "reason": reason, "log_tail": tail or [], "pid": None}
        if proof is not None:
            changes["proof"] = proof.model_dump()
        await self._set(d, **changes)
        self.workspace.wake("endpoint", d.parent)
        self.workspace.wake("canary", d.parent)
        self.wake(d.parent, d.name)  # which stops them


def _where(version: dict[str, Any]) -> tuple[str, str, str]:
    return version.get("name") or "", version.get("version") or "", version.get("source") or ""


def _counted(seen: Any) -> dict[str, Any]:
    return {"pid": seen.pid, "restarts": seen.restarts, "instances": dict(seen.instances)}


def _read_example(path: Path) -> str | None:
    try:
        if path.stat().st_size > MAX_PROOF:
            return None
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
