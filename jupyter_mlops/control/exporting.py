"""Deployments and model versions handed off as bundles: what is known of them here, brought together for ``pack``."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.controllers.endpoint import proven, published
from ..core.errors import Conflict, NotFound, ParameterError, Refused
from ..core.resources import DeploymentSpec
from ..core.resources.base import NAME, Resource, generate_name, utcnow
from ..serving import bundle, keys
from ..serving.places import read_json
from ..serving.store import describe_model

if TYPE_CHECKING:
    from .plane import ControlPlane

#: Seconds after which a zip that nobody fetched is removed.
_LEFTOVER = 3600.0
#: The deployment's name in the bundle of a model version.
_MODEL_DEPLOYMENT = "v{}"


class Exporter:
    """Makes bundles, one at a time: each writes as much as its model has."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._folder = plane.home / "tmp"
        self._one = asyncio.Semaphore(1)

    async def endpoint(
        self, name: str, deployment: str, same_keys: bool
    ) -> tuple[Path, dict[str, Any], dict[str, str]]:
        """A deployment of an endpoint: (zip, manifest, new keys by name).

        Args:
            deployment: empty: the one with most of the traffic.
            same_keys: keep the hashes of the endpoint's keys, and its way of tokens; else new keys are made.

        Raises:
            NotFound: no such endpoint or deployment.
            Conflict: none is ready.
            Refused: it cannot be handed off.
        """
        def look(tx: Any) -> tuple[Resource, dict[str, Any], list[Resource]]:
            there, _ = tx.page("deployment", parent=name, limit=200)
            return tx.get("endpoint", name), tx.private("endpoint", name), there

        endpoint, private, deployments = await self._plane.store.read(look)
        chosen = _choose(endpoint, deployments, deployment)
        spec = DeploymentSpec.model_validate(chosen.spec)
        shown, kept = ({}, private.get("keys") or {}) if same_keys else keys.new_keys()
        config = published(endpoint, {**private, "keys": kept}, [chosen], {chosen.name: 100})
        if not same_keys:
            config.update(auth_mode="key", token_secret="")
        config.update(public=True, sticky_header="", mirror_traffic={})
        folder = self._plane.serving.places.deployment(name, chosen.name)
        about = await asyncio.to_thread(read_json, folder / "model.json")
        model = folder / "model" if spec.model else None
        if not about or (model is not None and not model.is_dir()):
            raise Refused(f"the files of deployment {name}/{chosen.name} are not here",
                          f"export the model itself: {chosen.status.get('model_name')}/"
                          f"{chosen.status.get('model_version')}")
        subject = bundle.Subject(
            about, model, folder / "code" if spec.code_configuration else None, chosen.status.get("interpreter") or "",
            config,
            {"count": spec.first_instances, "env": spec.environment_variables, "probes": spec.probes},
            self._about(name, chosen.name, chosen.status),
            await asyncio.to_thread(_imported, folder),
        )
        return (*await self._pack(subject, same_keys), shown)

    async def model(self, reference: str, name: str) -> tuple[Path, dict[str, Any], dict[str, str]]:
        """A version of a registered model, as an endpoint of its own: (zip, manifest, keys by name).

        Args:
            reference: ``NAME/VERSION`` or ``NAME@ALIAS``.
            name: of the endpoint in the bundle; empty: the model's, as far as that can be one.

        Raises:
            NotFound: no such version.
            Refused: it cannot be served, or handed off.
        """
        version = await self._plane.views.resolve_model(reference)
        folder = await self._plane.views.model_dir(version["name"], version["version"], version.get("source") or "")
        about = await asyncio.to_thread(describe_model, folder)
        interpreter = await self._plane.views.model_interpreter(version)
        if not interpreter:
            raise Refused(f"model {reference!r} does not say which Python made it",
                          "deploy it with an interpreter, and export that endpoint")
        model = version["name"]
        endpoint = name or (model if NAME.match(model) else generate_name(model).rpartition("-")[0])
        deployment = _MODEL_DEPLOYMENT.format(version["version"])
        spec = DeploymentSpec(model=f"{model}/{version['version']}")
        shown, kept = keys.new_keys()
        config = {
            "name": endpoint, "auth_mode": "key", "public": True, "keys": kept, "token_secret": "",
            "traffic": {deployment: 100}, "mirror_traffic": {}, "sticky_header": "",
            "deployments": {deployment: spec.served(model, version["version"])},
        }
        status = {"model_name": model, "model_version": version["version"], "run_id": version.get("run_id") or ""}
        subject = bundle.Subject(about, folder, None, interpreter, config, {"count": 1, "env": {}, "probes": {}},
                                 self._about(endpoint, deployment, status))
        return (*await self._pack(subject, False), shown)

    def _about(self, endpoint: str, deployment: str, status: dict[str, Any]) -> dict[str, str]:
        return {"workspace": self._plane.name, "endpoint": endpoint, "deployment": deployment,
                "model": status.get("model_name") or "", "version": str(status.get("model_version") or ""),
                "run_id": status.get("run_id") or ""}

    async def _pack(self, subject: bundle.Subject, same_keys: bool) -> tuple[Path, dict[str, Any]]:
        said = ("The keys and tokens of the endpoint that it was made from open it." if same_keys
                else "Its keys were told once, when it was made; only their hashes are in here.")
        async with self._one:
            return await asyncio.to_thread(self._write, subject, said)

    def _write(self, subject: bundle.Subject, said: str) -> tuple[Path, dict[str, Any]]:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for left in self._folder.glob("bundle-*"):  # of one whom nobody waited for
            if time.time() - left.stat().st_mtime > _LEFTOVER:
                left.unlink(missing_ok=True)
        out = self._folder / f"bundle-{os.urandom(8).hex()}.zip"
        return out, bundle.pack(subject, out, utcnow(), said)


def _choose(endpoint: Resource, deployments: list[Resource], wanted: str) -> Resource:
    """The deployment that is asked for, or the one with most of the traffic. Raises NotFound, Conflict."""
    name = endpoint.name
    if wanted:
        found = next((d for d in deployments if d.name == wanted), None)
        if found is None:
            there = ", ".join(d.name for d in deployments) or "none"
            raise NotFound(f"endpoint {name!r} has no deployment {wanted!r}", f"there is: {there}")
        if not proven(found):
            raise Conflict(f"deployment {name}/{wanted} is {found.status.get('phase')}, not ready",
                           found.status.get("reason") or "wait until it is")
        return found
    ready = [d for d in deployments if proven(d)]
    if not ready:
        raise Conflict(f"endpoint {name!r} has no deployment that is ready",
                       "deploy a model to it, or export NAME@ALIAS")
    shares = endpoint.status.get("traffic") or {}
    return max(ready, key=lambda d: (shares.get(d.name, 0), str(d.created_at)))


def _imported(folder: Path) -> dict[str, str]:
    """What a scorer of the deployment said it had imported."""
    for path in sorted(folder.glob("instances/*/scorer.json")):
        found = read_json(path)
        if found.get("phase") == "ready" and isinstance(found.get("packages"), dict):
            return {str(k): str(v) for k, v in found["packages"].items()}
    return {}


def reference_of(source: str) -> str:
    """The model that a text names, ``NAME/VERSION`` or ``NAME@ALIAS``; empty when it is an endpoint's name.

    Raises:
        ParameterError: it is neither.
    """
    if "@" in source or "/" in source:
        return source
    if NAME.match(source):
        return ""
    raise ParameterError(f"{source!r} is neither an endpoint nor NAME@ALIAS nor NAME/VERSION")
