"""What of ours runs and lies on this machine, and what is wrong with it."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from ..core.store import NETWORK_FILE_SYSTEMS, file_system
from . import schemas

if TYPE_CHECKING:
    from .plane import ControlPlane

#: Free bytes below which the doctor complains.
LOW_DISK = 1_000_000_000


def folder_size(path: Path) -> int:
    """Bytes of all files below ``path``; links are not followed."""
    total = 0
    for folder, _, files in os.walk(path, followlinks=False):
        for name in files:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                pass
    return total


def _what(command: list[str]) -> str:
    text = " ".join(command)
    for mark, what in (
        ("jupyter_mlops.control", "control plane"), ("jupyter_mlops.tracking.serve", "MLflow"),
        ("mlflow server", "MLflow"),
        ("jupyter_mlops.serving.gateway", "gateway"), ("jupyter_mlops.runtime.scorer", "scorer"),
        ("jupyter_mlops.runtime.supervisor", "job supervisor"),
        ("jupyter_mlops.runtime.warm", "process that waits for a job"),
        ("jupyter_mlops.runtime.agent", "agent of a job's ranks"),
        ("jupyter_mlops.runtime.launch", "job rank"),
    ):
        if mark in text:
            return what
    return "job process"


def processes(home: Path, runtime_dir: Path) -> list[schemas.ProcessInfo]:
    """Processes of this user that belong to the workspace: named on the command line or in the environment."""
    found = []
    marks = (str(home), str(runtime_dir))
    artifacts = (home / "artifacts").absolute().as_uri()
    me = os.getuid()
    for process in psutil.process_iter(["pid", "cmdline", "uids"]):
        try:
            if not process.info["uids"] or process.info["uids"].real != me:
                continue
            command = process.info["cmdline"] or []
            ours = process.pid == os.getpid() or any(
                argument == mark or argument.startswith(mark + "/") for argument in command for mark in marks
            )
            if not ours:
                environment = process.environ()
                ours = environment.get("JUPYTER_MLOPS_JOB_DIR", "").startswith(str(home) + "/jobs/")
                ours = ours or environment.get("_MLFLOW_SERVER_ARTIFACT_DESTINATION", "") == artifacts
            if ours:
                what = _what(command)
                found.append(schemas.ProcessInfo(
                    pid=process.pid, what=what, memory_bytes=process.memory_info().rss,
                    command=" ".join(command)[:300],
                ))
        except (psutil.Error, OSError):
            continue
    return sorted(found, key=lambda p: p.pid)


def examine(plane: ControlPlane, state: dict[str, Any]) -> schemas.Doctor:
    """Look at everything (blocking, a second or two)."""
    home = plane.home
    runtime_dir = Path(plane.place.runtime_dir)
    checks = []

    def check(name: str, ok: bool, message: str, hint: str = "") -> None:
        checks.append(schemas.Check(name=name, ok=ok, message=message, hint="" if ok else hint))

    mlflow = state["mlflow"]
    check("mlflow", mlflow["state"] == "ready", mlflow.get("message") or f"MLflow is {mlflow['state']}",
          f"see {home / 'logs' / 'mlflow.log'}")
    free = shutil.disk_usage(home).free
    check("disk", free > LOW_DISK, f"{free / 1e9:.1f} GB free at {home}", "delete old jobs and runs, or move the "
          "workspace with JUPYTER_MLOPS_HOME")
    mode = home.stat().st_mode & 0o777
    check("folder", mode == 0o700, f"{home} has mode {mode:o}", f"chmod 700 {home}")
    kind = file_system(home)
    check("file system", kind not in NETWORK_FILE_SYSTEMS, f"{home} lies on {kind or 'an unknown file system'}",
          "a local disk is faster and safer: set JUPYTER_MLOPS_HOME")
    gateway = state["gateway"]
    check("gateway", gateway["state"] != "failed", f"the gateway is {gateway['state']}",
          f"see {home / 'logs' / 'gateway.log'}")
    ports = [
        schemas.PortInfo(what="control plane", address=f"127.0.0.1:{plane.port}"),
        schemas.PortInfo(what="control plane", address=str(runtime_dir / "control.sock")),
    ]
    if gateway.get("port"):
        ports.append(schemas.PortInfo(what="gateway", address=f"127.0.0.1:{gateway['port']}"))
    for path in sorted(runtime_dir.glob("*.sock")):
        if path.name != "control.sock":
            ports.append(schemas.PortInfo(what="socket", address=str(path)))
    folders = [schemas.FolderInfo(path=str(home), bytes=folder_size(home))]
    folders += [
        schemas.FolderInfo(path=str(p), bytes=folder_size(p)) for p in sorted(home.iterdir()) if p.is_dir()
    ]
    folders.append(schemas.FolderInfo(path=str(runtime_dir), bytes=folder_size(runtime_dir)))
    check("host", True, f"{socket.gethostname()}, {os.cpu_count()} CPUs, Python {os.sys.version.split()[0]}")  # type: ignore[attr-defined]
    return schemas.Doctor(
        checks=checks, processes=processes(home, runtime_dir), folders=folders, ports=ports
    )
