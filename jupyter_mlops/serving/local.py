"""The local serving driver: models copied into the workspace, detached scorers, the gateway in front.

All calls block (the control plane runs them on its own threads), are idempotent, and may be repeated after a crash at
any point: what is so is read from files and from processes identified by pid and start time, never from memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..compute.base import LogChunk
from ..core.errors import NotFound, ParameterError, Refused
from ..core.resources.base import check_name
from . import keys, tokens
from .archive import unpack
from .instances import MAX_INSTANCES, STOP_GRACE, exclusive
from .keeper import GatewayKeeper
from .observation import ScorerObservation, combine
from .places import NAME, RESERVED, Places, read_json, write_json
from .scorers import Scorers
from .store import copy_model, describe_model, describe_script, fingerprint


class LocalServing(Scorers):
    """Scorers and gateway of one workspace on this machine.

    ``remote`` tells the controllers that instances have neither images nor resources of their own here.

    Args:
        home: the workspace folder.
        runtime_dir: the private folder of its sockets.
    """

    remote = False

    def __init__(self, home: str | os.PathLike[str], runtime_dir: str | os.PathLike[str]) -> None:
        super().__init__(Places(home, runtime_dir))
        self.gateway = GatewayKeeper(self.places, self.children)

    # -- keys ----------------------------------------------------------------------

    def new_key(self) -> str:
        """See :func:`keys.new_key`."""
        return keys.new_key()

    def hash_key(self, key: str) -> dict[str, str]:
        """See :func:`keys.hash_key`."""
        return keys.hash_key(key)

    def new_secret(self) -> str:
        """See :func:`tokens.new_secret`."""
        return tokens.new_secret()

    def mint(self, endpoint: str, secret: str, expires: float) -> tuple[str, str]:
        """A bearer token, see :func:`tokens.mint`, and its public id."""
        token, claims = tokens.mint(endpoint, secret, expires)
        return token, claims.ident

    # -- models --------------------------------------------------------------------

    def check_model(self, model_dir: str | os.PathLike[str]) -> dict[str, Any]:
        """The signature of a model folder, ``{"inputs", "outputs", "params"}`` as MLflow writes it.

        Raises:
            Refused: it cannot be served (no signature, no python_function flavour); the hint says what to do.
        """
        return public(describe_model(Path(model_dir))["signature"])

    def check_script(self, code_zip: Path, script: str, model_dir: Path | None = None) -> dict[str, Any]:
        """The signature of a model beside a scoring script, empty when there is none; see :func:`describe_script`.

        Raises:
            Refused: the zip is none, is not safe, or does not hold the script.
        """
        return public(describe_script(code_zip, script, model_dir)["signature"])

    def check_names(self, endpoint: str, deployment: str) -> None:
        """Raise ParameterError unless both are names that a deployment can have here."""
        self._folder(endpoint, deployment)

    def prepare(self, endpoint: str, deployment: str, model_dir: str | os.PathLike[str] | None = None, *,
                code_zip: Path | None = None, script: str = "") -> dict[str, Any]:
        """Bring a model, a scoring script's code or both into the workspace; does nothing when that is done.

        Args:
            code_zip: a zip of code; ``script`` is the path of the scoring script in it.

        Returns:
            the model's signature, ``{"inputs", "outputs", "params"}`` as MLflow writes it; empty for a script without
            one.

        Raises:
            Refused: no signature (where there is no script), no python_function flavour, links or special files in it,
                a zip that is not safe, or the disk is too small.
        """
        folder = self._folder(endpoint, deployment)
        source = None if model_dir is None else Path(model_dir)
        if code_zip is not None:
            about = describe_script(code_zip, script, source)
        elif source is not None:
            about = describe_model(source)
        else:
            raise Refused("there is neither a model nor code to serve")
        if source is not None:
            about["fingerprint"] = fingerprint(source)
        with self._lock(folder, make=True):
            there = (source is None or (folder / "model" / "MLmodel").is_file()) and (
                code_zip is None or (folder / "code").is_dir())
            if read_json(folder / "model.json") != about or not there:
                if code_zip is not None:
                    unpack(code_zip, folder / "code")
                if source is not None:
                    copy_model(source, folder / "model")
                write_json(folder / "model.json", about)
        return public(about["signature"])

    # -- scorers -------------------------------------------------------------------

    def start(self, endpoint: str, deployment: str, interpreter: str = "", env: dict[str, str] | None = None, *,
              count: int | None = None, probes: dict[str, Any] | None = None, image: str = "",
              resources: dict[str, dict[str, str]] | None = None, scale: dict[str, Any] | None = None) -> None:
        """Start the wanted instances, or do nothing where they run with this model, interpreter and environment.

        Those that run with others are replaced, one after the other: each is told to leave, answers what is under way,
        and its successor is ready before the next one goes.

        Args:
            count: how many the deployment asks for. Kept, and in force until the gateway scales (``scale.json``);
                another count than the last one is in force at once. What runs beyond it is the gateway's to drain.
            probes: the deployment's ``{"readiness_probe", "liveness_probe"}``; kept, too.
            image, resources: of a cluster's pods; not used.
            scale: not used: the gateway scales, as ``endpoint.json`` says.

        Raises:
            NotFound: the deployment was not prepared.
            Refused: there is no such interpreter.
        """
        folder = self._folder(endpoint, deployment)
        about = read_json(folder / "model.json")
        if not about:
            raise NotFound(f"deployment '{deployment}' of endpoint '{endpoint}' is not prepared")
        interpreter = interpreter or sys.executable
        if not os.access(interpreter, os.X_OK) or os.path.isdir(interpreter):
            raise Refused(f"there is no Python at {interpreter}", "give another interpreter in the deployment")
        env = dict(env or {})
        group = self.group(endpoint, deployment)
        with self._lock(folder):
            group.take_over()
            before = group.order()
            order = {"schema": 1, "interpreter": interpreter, "env": env,
                     "digest": _digest([about, interpreter, sorted(env.items())]),
                     "probes": probes or before.get("probes") or {},
                     "count": before.get("count", 1) if count is None else max(0, min(count, MAX_INSTANCES))}
            if order["count"] != before.get("count"):  # or nothing was to run: what was decided then is over
                self.places.scale(endpoint, deployment).unlink(missing_ok=True)
            if order != before:
                write_json(self.places.run(endpoint, deployment), order)
        group.settle()

    def observe(self, endpoint: str, deployment: str) -> ScorerObservation:
        """What is so now; answers within about a second."""
        folder = self._folder(endpoint, deployment)
        signature = public(read_json(folder / "model.json").get("signature") or {})
        group = self.group(endpoint, deployment)
        if not group.order():
            former = (folder / "launch.json").exists()
            reason = "its scorer is from an earlier version" if former else "not started"
            return ScorerObservation("absent", reason=reason, signature=signature)
        seen, about = combine(group.wanted(), group.look())
        seen.signature, seen.log_tail = signature, group.tail(about)
        return seen

    def stop(self, endpoint: str, deployment: str, grace: float = STOP_GRACE) -> None:
        """End all scorers: requests under way are answered, for at most ``grace`` seconds. Counters start anew."""
        folder = self._folder(endpoint, deployment)
        if not folder.is_dir():
            return
        group = self.group(endpoint, deployment)
        with contextlib.suppress(NotFound):
            with self._lock(folder):
                group.call_off()
            group.stop(grace=grace)

    def remove(self, endpoint: str, deployment: str | None = None) -> None:
        """Stop and delete a deployment, or an endpoint with all of its deployments; nothing of it stays."""
        check_name(endpoint, "endpoint name")
        if deployment is None:
            for name in self.deployments(endpoint):
                self.remove(endpoint, name)
            self.unpublish(endpoint)
            _discard(self.places.endpoint(endpoint))
            return
        folder = self._folder(endpoint, deployment)
        if folder.is_dir():
            group = self.group(endpoint, deployment)
            with contextlib.suppress(NotFound), self._lock(folder):
                group.call_off()
                group.stop()
                _discard(folder)

    def read_log(self, endpoint: str, deployment: str, offset: int = 0, limit: int = 65536,
                 instance: int = 0) -> LogChunk:
        """Up to ``limit`` bytes of an instance's log from ``offset``; a negative offset counts from the end."""
        self._folder(endpoint, deployment)
        path = self.places.instance(endpoint, deployment, instance) / "scorer.log"
        try:
            with open(path, "rb") as f:
                size = os.fstat(f.fileno()).st_size
                offset = max(0, size + offset) if offset < 0 else min(offset, size)
                f.seek(offset)
                data = f.read(max(0, limit))
        except FileNotFoundError:
            return LogChunk(b"", 0, 0, 0)
        return LogChunk(data, offset, offset + len(data), max(size, offset + len(data)))

    def deployments(self, endpoint: str) -> list[str]:
        """Names of the deployments of which something is on disk."""
        return [name for name in _subfolders(self.places.endpoint(endpoint)) if name not in RESERVED]

    # -- the gateway ---------------------------------------------------------------

    def publish(self, endpoint: str, config: dict[str, Any]) -> bool:
        """See :meth:`GatewayKeeper.publish`."""
        return self.gateway.publish(endpoint, config)

    def unpublish(self, endpoint: str) -> bool:
        """See :meth:`GatewayKeeper.unpublish`."""
        return self.gateway.unpublish(endpoint)

    def ensure_gateway(self, endpoint: str = "") -> dict[str, Any]:
        """See :meth:`GatewayKeeper.ensure`; it is the same one for every endpoint."""
        return self.gateway.ensure()

    def gateway_info(self) -> dict[str, Any] | None:
        """See :meth:`GatewayKeeper.info`."""
        return self.gateway.info()

    def stop_gateway(self) -> None:
        """See :meth:`GatewayKeeper.stop`."""
        self.gateway.stop()

    async def invoke(self, endpoint: str, body: bytes, content_type: str = "application/json", timeout: float = 60.0,
                     deployment: str = "") -> tuple[int, bytes, dict[str, str]]:
        """See :meth:`GatewayKeeper.invoke`."""
        return await self.gateway.invoke(endpoint, body, content_type, timeout, deployment)

    async def page(self, endpoint: str, what: str) -> tuple[int, bytes, dict[str, str]]:
        """See :meth:`GatewayKeeper.page`."""
        return await self.gateway.page(endpoint, what)

    def stats(self, endpoint: str = "") -> dict[str, Any] | None:
        """See :meth:`GatewayKeeper.stats`; always of all endpoints."""
        return self.gateway.stats()

    def stop_all(self) -> None:
        """End the gateway, then every scorer. What they serve stays on disk."""
        self.stop_gateway()
        for endpoint in _subfolders(self.places.endpoints):
            for deployment in self.deployments(endpoint):
                self.stop(endpoint, deployment, grace=2.0)

    def processes(self) -> list[dict[str, Any]]:
        """What runs: ``{"kind": "gateway" | "scorer", "name", "pid"}``, for ``doctor`` and ``down``."""
        found: list[dict[str, Any]] = []
        if info := self.gateway_info():
            found.append({"kind": "gateway", "name": "gateway", "pid": info["pid"]})
        for endpoint in _subfolders(self.places.endpoints):
            for deployment in self.deployments(endpoint):
                group = self.group(endpoint, deployment)
                pids = [group.former_pid(), *(s.pid for s in group.look(ping=False))]
                found += [{"kind": "scorer", "name": f"{endpoint}/{deployment}", "pid": pid} for pid in pids if pid]
        return found

    # -- inside --------------------------------------------------------------------

    def _folder(self, endpoint: str, deployment: str) -> Path:
        check_name(endpoint, "endpoint name")
        check_name(deployment, "deployment name")
        if deployment in RESERVED:
            raise ParameterError(f"deployment name '{deployment}' is reserved", "give it another name")
        return self.places.deployment(endpoint, deployment)

    @contextlib.contextmanager
    def _lock(self, folder: Path, make: bool = False) -> Iterator[None]:
        """Two control planes, or two threads of one, must not change what is asked of one deployment at once."""
        if make:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with exclusive(folder, f"deployment '{folder.name}' of endpoint '{folder.parent.name}'"):
            yield


def _subfolders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if NAME.match(e.name) and e.is_dir(follow_symlinks=False))
    except OSError:
        return []


def _discard(folder: Path) -> None:
    """Delete a folder, and what an earlier call that was killed left of others."""
    if folder.is_dir() and not folder.is_symlink():
        # No half-deleted folder under a name in use.
        os.replace(folder, folder.with_name(f".gone-{os.urandom(6).hex()}"))
    for gone in folder.parent.glob(".gone-*"):
        shutil.rmtree(gone, ignore_errors=True)


def public(signature: dict[str, Any]) -> dict[str, Any]:
    """A model's signature as MLflow writes it, without what only its loading needs."""
    return {k: v for k, v in signature.items() if k != "type_hint"}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
