"""The local serving driver: models copied into the workspace, one detached scorer each, the gateway in front.

All calls block (the control plane runs them on its own threads), are idempotent, and may be repeated after a crash at
any point: what is so is read from files and from processes identified by pid and start time, never from memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..compute.base import LogChunk
from ..core.errors import NotFound, Refused
from ..core.resources.base import check_name
from ..runtime import frames
from ..runtime.processes import alive, start_time
from . import keys
from .children import Children, clear_leftovers, end, how_it_ended, mark
from .environment import scorer_env
from .keeper import GatewayKeeper
from .places import NAME, Places, read_json, write_json
from .store import copy_model, describe_model, fingerprint

#: Seconds.
STOP_GRACE = 10.0
PING_TIMEOUT = 1.0
#: A ready scorer that does not answer pings counts as busy for this long, then as failed.
BUSY_LIMIT = 120.0
#: So many ends of a ready scorer within so many seconds are a crash loop.
CRASHES, CRASH_WINDOW = 5, 300.0
LOG_LIMIT = 10_000_000
TAIL_LINES = 20


@dataclass
class ScorerObservation:
    """What is so of one scorer.

    ``phase``: ``absent`` (not started, or a ready one died: start it again), ``starting``, ``ready`` (a ping was
    answered), ``failed`` (it will not get better by itself: the model cannot be loaded, or a crash loop). ``reason`` is
    one line for people. ``crash_loop``: a scorer that had been ready died too often. ``restarts`` counts starts after a
    ready scorer's death. ``signature`` is as MLflow writes it.
    """

    phase: str
    pid: int | None = None
    reason: str = ""
    restarts: int = 0
    log_tail: list[str] = field(default_factory=list)
    signature: dict[str, Any] = field(default_factory=dict)
    ready_after_s: float | None = None
    crash_loop: bool = False


class LocalServing:
    """Scorers and gateway of one workspace on this machine.

    Args:
        home: the workspace folder.
        runtime_dir: the private folder of its sockets.
    """

    def __init__(self, home: str | os.PathLike[str], runtime_dir: str | os.PathLike[str]) -> None:
        self.places = Places(home, runtime_dir)
        self._children = Children()
        self.gateway = GatewayKeeper(self.places, self._children)
        self._silent: dict[tuple[str, str], float] = {}

    # -- keys ----------------------------------------------------------------------

    def new_key(self) -> str:
        """See :func:`keys.new_key`."""
        return keys.new_key()

    def hash_key(self, key: str) -> dict[str, str]:
        """See :func:`keys.hash_key`."""
        return keys.hash_key(key)

    # -- models --------------------------------------------------------------------

    def check_model(self, model_dir: str | os.PathLike[str]) -> dict[str, Any]:
        """The signature of a model folder, ``{"inputs", "outputs", "params"}`` as MLflow writes it.

        Raises:
            Refused: it cannot be served (no signature, no python_function flavour); the hint says what to do.
        """
        return _public(describe_model(Path(model_dir))["signature"])

    def prepare(self, endpoint: str, deployment: str, model_dir: str | os.PathLike[str]) -> dict[str, Any]:
        """Copy a model into the workspace and read its signature; does nothing when that is done.

        Returns:
            the signature, ``{"inputs", "outputs", "params"}`` as MLflow writes it.

        Raises:
            Refused: no signature, no python_function flavour, links or special files in it, or the disk is too small.
        """
        folder = self._folder(endpoint, deployment)
        about = describe_model(Path(model_dir))
        about["fingerprint"] = fingerprint(Path(model_dir))
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._lock(folder):
            known = read_json(folder / "model.json")
            if known != about or not (folder / "model" / "MLmodel").is_file():
                copy_model(Path(model_dir), folder / "model")
                write_json(folder / "model.json", about)
        return _public(about["signature"])

    # -- scorers -------------------------------------------------------------------

    def start(self, endpoint: str, deployment: str, interpreter: str = "", env: dict[str, str] | None = None) -> None:
        """Start the scorer, or do nothing when one runs with this model, interpreter and environment.

        One that runs with others is stopped first.

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
        wanted = _digest([about["fingerprint"], interpreter, sorted(env.items())])
        with self._lock(folder):
            launch = read_json(folder / "launch.json")
            pid = self._running(folder, launch)
            if pid and launch.get("digest") == wanted:
                return
            if pid:
                end(pid, STOP_GRACE)
            clear_leftovers(folder, launch.get("pid"))
            launch = self._next(folder, launch, wanted)
            write_json(folder / "launch.json", launch)
            child = self._spawn(endpoint, deployment, folder, interpreter, env, launch["id"])
            launch.update(pid=child.pid, start_time=start_time(child.pid))
            write_json(folder / "launch.json", launch)

    def _next(self, folder: Path, launch: dict[str, Any], wanted: str) -> dict[str, Any]:
        """The record of the launch that follows ``launch``; ends of a ready scorer are counted."""
        crashes = list(launch.get("crashes") or [])
        restarts = int(launch.get("restarts") or 0)
        if launch.get("digest") != wanted:
            crashes, restarts = [], 0
        elif read_json(folder / "scorer.json").get("phase") == "ready":
            restarts += 1
            crashes.append(time.time())
        return {"id": os.urandom(8).hex(), "digest": wanted, "restarts": restarts, "crashes": crashes[-CRASHES:],
                "asked_at": time.time(), "pid": None, "start_time": ""}

    def _spawn(self, endpoint: str, deployment: str, folder: Path, interpreter: str, env: dict[str, str],
               ident: str) -> subprocess.Popen[bytes]:
        work = folder / "work"
        work.mkdir(mode=0o700, exist_ok=True)
        self.places.runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / "scorer.log"
        with contextlib.suppress(OSError):
            if path.stat().st_size > LOG_LIMIT:
                os.replace(path, folder / "scorer.log.1")
        environment = scorer_env(interpreter, env, sys.executable, self.places.home / "runtime")
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            return self._children.watch(subprocess.Popen(
                [interpreter, "-m", "jupyter_mlops.runtime.scorer", "--folder", str(folder), "--launch", ident,
                 "--socket", str(self.places.scorer_socket(endpoint, deployment)), "--grace", str(STOP_GRACE)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=work, start_new_session=True,
                env={**environment, **mark(folder)},
            ))
        finally:
            os.close(log)

    def observe(self, endpoint: str, deployment: str) -> ScorerObservation:
        """What is so now; answers within about a second."""
        folder = self._folder(endpoint, deployment)
        signature = _public(read_json(folder / "model.json").get("signature") or {})
        launch = read_json(folder / "launch.json")
        if not launch:
            return ScorerObservation("absent", signature=signature, reason="not started")
        status = read_json(folder / "scorer.json")
        mine = status.get("launch") == launch.get("id")
        seen = ScorerObservation("starting", self._running(folder, launch), "", int(launch.get("restarts") or 0),
                                 self._tail(folder), signature)
        if seen.pid is None:
            return self._dead(seen, launch, status if mine else {})
        if not mine or status.get("phase") != "ready":
            seen.reason = str((mine and status.get("message")) or "starting")
            return seen
        seen.ready_after_s = status.get("ready_after_s")
        key = (endpoint, deployment)
        if self._ping(endpoint, deployment):
            self._silent.pop(key, None)
            seen.phase = "ready"
            return seen
        silent = time.monotonic() - self._silent.setdefault(key, time.monotonic())
        if silent > BUSY_LIMIT:
            seen.phase, seen.reason = "failed", f"the scorer has not answered for {silent:.0f} s"
        else:
            seen.reason = "the scorer does not answer yet"
        return seen

    def _dead(self, seen: ScorerObservation, launch: dict[str, Any], status: dict[str, Any]) -> ScorerObservation:
        """An observation of a scorer whose process is gone."""
        phase = status.get("phase")
        how = how_it_ended(self._children.exit_code(launch.get("pid")))
        if phase == "failed":
            seen.phase, seen.reason = "failed", f"the model cannot be loaded: {_unwrapped(status.get('message'))}"
        elif phase == "stopped":
            seen.phase, seen.reason = "absent", "stopped"
        elif phase == "ready":
            deaths = 1 + sum(time.time() - t < CRASH_WINDOW for t in launch.get("crashes") or [])
            if deaths >= CRASHES:
                seen.phase, seen.crash_loop = "failed", True
                seen.reason = f"crash loop: it ended {deaths} times in {CRASH_WINDOW / 60:.0f} minutes{how}"
            else:
                seen.phase, seen.reason = "absent", f"the scorer ended{how}"
        elif launch.get("pid") is None:
            seen.phase, seen.reason = "absent", "its start was interrupted"
        else:
            last = next((line for line in reversed(seen.log_tail) if line.strip()), "")
            seen.phase = "failed"
            seen.reason = f"the scorer ended before it was ready{how}" + (f": {_unwrapped(last)}" if last else "")
        return seen

    def stop(self, endpoint: str, deployment: str, grace: float = STOP_GRACE) -> None:
        """End the scorer: requests under way are answered, for at most ``grace`` seconds. Its counters start anew."""
        folder = self._folder(endpoint, deployment)
        if not folder.is_dir():
            return
        with self._lock(folder):
            launch = read_json(folder / "launch.json")
            pid = self._running(folder, launch)
            if pid:
                end(pid, grace)
            clear_leftovers(folder, launch.get("pid"))
            for path in (folder / "launch.json", self.places.scorer_socket(endpoint, deployment)):
                path.unlink(missing_ok=True)
            self._silent.pop((endpoint, deployment), None)

    def remove(self, endpoint: str, deployment: str | None = None) -> None:
        """Stop and delete a deployment, or an endpoint with all of its deployments; nothing of it stays."""
        check_name(endpoint, "endpoint name")
        if deployment is None:
            for name in self.deployments(endpoint):
                self.remove(endpoint, name)
            self.unpublish(endpoint)
            folder = self.places.endpoint(endpoint)
        else:
            self.stop(endpoint, deployment)
            folder = self._folder(endpoint, deployment)
        if folder.is_dir() and not folder.is_symlink():
            gone = folder.with_name(f".gone-{os.urandom(6).hex()}")  # no half-deleted folder under a name in use
            os.replace(folder, gone)
            shutil.rmtree(gone, ignore_errors=True)

    def read_log(self, endpoint: str, deployment: str, offset: int = 0, limit: int = 65536) -> LogChunk:
        """Up to ``limit`` bytes of the scorer's log from ``offset``; a negative offset counts from the end."""
        path = self._folder(endpoint, deployment) / "scorer.log"
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
        return _subfolders(self.places.endpoint(endpoint))

    # -- the gateway ---------------------------------------------------------------

    def publish(self, endpoint: str, config: dict[str, Any]) -> bool:
        """See :meth:`GatewayKeeper.publish`."""
        return self.gateway.publish(endpoint, config)

    def unpublish(self, endpoint: str) -> bool:
        """See :meth:`GatewayKeeper.unpublish`."""
        return self.gateway.unpublish(endpoint)

    def ensure_gateway(self) -> dict[str, Any]:
        """See :meth:`GatewayKeeper.ensure`."""
        return self.gateway.ensure()

    def gateway_info(self) -> dict[str, Any] | None:
        """See :meth:`GatewayKeeper.info`."""
        return self.gateway.info()

    def stop_gateway(self) -> None:
        """See :meth:`GatewayKeeper.stop`."""
        self.gateway.stop()

    async def invoke(self, endpoint: str, body: bytes, content_type: str = "application/json",
                     timeout: float = 60.0) -> tuple[int, bytes, str]:
        """See :meth:`GatewayKeeper.invoke`."""
        return await self.gateway.invoke(endpoint, body, content_type, timeout)

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
                folder = self.places.deployment(endpoint, deployment)
                if pid := self._running(folder, read_json(folder / "launch.json")):
                    found.append({"kind": "scorer", "name": f"{endpoint}/{deployment}", "pid": pid})
        return found

    # -- inside --------------------------------------------------------------------

    def _folder(self, endpoint: str, deployment: str) -> Path:
        check_name(endpoint, "endpoint name")
        check_name(deployment, "deployment name")
        return self.places.deployment(endpoint, deployment)

    @contextlib.contextmanager
    def _lock(self, folder: Path) -> Iterator[None]:
        """Two control planes, or two threads of one, must not start or stop the same scorer at once."""
        with open(folder / "start.lock", "a") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            yield

    def _running(self, folder: Path, launch: dict[str, Any]) -> int | None:
        """The pid of the scorer that runs: by the record of its start, or by its own when that was never written."""
        if alive(launch.get("pid") or 0, launch.get("start_time")):
            return int(launch["pid"])
        own = read_json(folder / "scorer.json")
        if own.get("phase") in ("loading", "ready") and alive(own.get("pid") or 0, own.get("start_time")):
            return int(own["pid"])
        return None

    def _ping(self, endpoint: str, deployment: str) -> bool:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(PING_TIMEOUT)
                connection.connect(str(self.places.scorer_socket(endpoint, deployment)))
                connection.sendall(frames.pack(frames.PING, 1))
                return frames.receive(connection)[0] == frames.PONG
        except (OSError, frames.FrameError):
            return False

    def _tail(self, folder: Path) -> list[str]:
        try:
            with open(folder / "scorer.log", "rb") as f:
                f.seek(max(0, os.fstat(f.fileno()).st_size - 8192))
                return f.read().decode("utf-8", "replace").splitlines()[-TAIL_LINES:]
        except OSError:
            return []

def _subfolders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if NAME.match(e.name) and e.is_dir(follow_symlinks=False))
    except OSError:
        return []


def _public(signature: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in signature.items() if k != "type_hint"}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _unwrapped(message: Any) -> str:
    """An exception's line without the class where the message says it all."""
    text = str(message or "unknown cause")
    return text.removeprefix("ModuleNotFoundError: ")
