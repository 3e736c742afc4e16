"""Where serving keeps its files, for the driver, the gateway and the scorer alike.

    <home>/endpoints/<e>/endpoint.json            what the gateway serves: keys (hashed), traffic, deployments
    <home>/endpoints/<e>/<d>/model/               the model, copied from the artifact store
    <home>/endpoints/<e>/<d>/model.json           its signature and how it is loaded
    <home>/endpoints/<e>/<d>/run.json             what ``start`` was asked for; absent: nothing of it shall run
    <home>/endpoints/<e>/<d>/scale.json           how many instances the gateway wants; absent: as ``run.json`` says
    <home>/endpoints/<e>/<d>/instances/<i>/       one scorer process:
        scorer.json                               its own status (runtime/scorer.py)
        launch.json                               who was started, under what, how often it ended
        scorer.log  scorer.lock  start.lock  work/
    <home>/gateway.port  gateway.json  gateway.lock  logs/gateway.log  logs/gateway-access.log
    <runtime>/gateway.sock  gateway-admin.sock  scorer-<digest>.sock
"""

from __future__ import annotations

import json
import os
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

#: As in ``core.resources.base.NAME``; repeated so that the gateway need not import pydantic.
NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?\Z")
#: Folders of an endpoint that are no deployments.
RESERVED = frozenset({"capture"})


class Places:
    """Paths of one workspace. Names are checked by whoever takes them from outside."""

    def __init__(self, home: str | os.PathLike[str], runtime_dir: str | os.PathLike[str]) -> None:
        self.home = Path(home).absolute()
        self.runtime = Path(runtime_dir).absolute()

    @property
    def endpoints(self) -> Path:
        return self.home / "endpoints"

    def endpoint(self, endpoint: str) -> Path:
        return self.endpoints / endpoint

    def config(self, endpoint: str) -> Path:
        return self.endpoints / endpoint / "endpoint.json"

    def deployment(self, endpoint: str, deployment: str) -> Path:
        return self.endpoints / endpoint / deployment

    def instance(self, endpoint: str, deployment: str, instance: int) -> Path:
        return self.endpoints / endpoint / deployment / "instances" / str(int(instance))

    def run(self, endpoint: str, deployment: str) -> Path:
        return self.endpoints / endpoint / deployment / "run.json"

    def scale(self, endpoint: str, deployment: str) -> Path:
        return self.endpoints / endpoint / deployment / "scale.json"

    def scorer_socket(self, endpoint: str, deployment: str, instance: int = 0) -> Path:
        return self._socket(f"{endpoint}/{deployment}/{int(instance)}")

    def former_socket(self, endpoint: str, deployment: str) -> Path:
        """The socket of the one scorer that a deployment had before there were instances."""
        return self._socket(f"{endpoint}/{deployment}")

    def _socket(self, name: str) -> Path:
        # A digest: two names of 40 letters would not fit into a socket's path.
        return self.runtime / f"scorer-{sha256(name.encode()).hexdigest()[:16]}.sock"

    @property
    def gateway_socket(self) -> Path:
        return self.runtime / "gateway.sock"

    @property
    def admin_socket(self) -> Path:
        return self.runtime / "gateway-admin.sock"

    @property
    def gateway_json(self) -> Path:
        return self.home / "gateway.json"

    @property
    def gateway_port(self) -> Path:
        return self.home / "gateway.port"

    @property
    def logs(self) -> Path:
        return self.home / "logs"


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, or ``{}``."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replace a file atomically, readable by its owner only, on disk when this returns."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0), 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as f:
        json.dump(value, f)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
