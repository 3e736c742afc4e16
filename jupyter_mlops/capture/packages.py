"""The installed packages of this interpreter as a lock file, and what machine it runs on."""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from ..runtime import redact

#: The only environment variables that are recorded.
ENVIRONMENT = (
    "CONDA_DEFAULT_ENV", "VIRTUAL_ENV", "PYTHONHASHSEED", "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG",
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NVIDIA_TF32_OVERRIDE", "TZ", "LANG", "LC_ALL",
    "JUPYTERHUB_USER", "SLURM_JOB_ID", "KUBERNETES_SERVICE_HOST", "PYTORCH_CUDA_ALLOC_CONF", "TOKENIZERS_PARALLELISM",
)
_FIELD = re.compile(r"^(Name|Version):[ \t]*(\S+)", re.M)
_kept: dict[tuple[Any, ...], str] = {}
_devices: list[list[dict[str, str]]] = []


def lock() -> str:
    """``name==version`` of every installed package, one a line; of those installed from elsewhere the address.

    Kept until a folder of ``sys.path`` changes.
    """
    key = tuple((p, _mtime(p)) for p in sys.path)
    if key not in _kept:
        _kept.clear()
        _kept[key] = _lock()
    return _kept[key]


def _mtime(path: str) -> float:
    try:
        return os.stat(path or ".").st_mtime
    except OSError:
        return 0.0


def _lock() -> str:
    lines: dict[str, str] = {}
    for distribution in metadata.distributions():
        try:
            # Reading two lines takes a tenth of the time of parsing what is a mail to importlib.metadata.
            head = (distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or "").partition("\n\n")[0]
            known = dict(_FIELD.findall(head))
            name, version = known.get("Name"), known.get("Version")
            if not name or not version or name.lower() in lines:
                continue  # the first on the path is the one that is imported
            lines[name.lower()] = _line(name, version, distribution.read_text("direct_url.json"))
        except Exception:  # a broken package is none of ours
            continue
    return "\n".join(lines[k] for k in sorted(lines)) + "\n"


def _line(name: str, version: str, direct: str | None) -> str:
    if not direct:
        return f"{name}=={version}"
    try:
        told = json.loads(direct)
        address = redact.clean(str(told.get("url") or ""))
    except (ValueError, AttributeError):
        return f"{name}=={version}"
    vcs = told.get("vcs_info") or {}
    if vcs:
        return f"{name} @ {vcs.get('vcs', 'git')}+{address}@{vcs.get('commit_id', '')}"
    if (told.get("dir_info") or {}).get("editable"):
        return f"-e {address.removeprefix('file://')}  # {name}=={version}"
    return f"{name} @ {address}  # {version}"


def machine() -> dict[str, Any]:
    """Host, processors, memory, devices, interpreter, and versions of what is loaded."""
    facts: dict[str, Any] = {
        "hostname": socket.gethostname(),
        "user": _user(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "executable": sys.executable,
        "cpu": {"model": _cpu(), "count": os.cpu_count(), "usable": _usable()},
        "memory": _memory(),
        "gpus": gpus(),
        "environment": {k: redact.clean(os.environ[k]) for k in ENVIRONMENT if k in os.environ},
    }
    torch = sys.modules.get("torch")
    version = getattr(getattr(torch, "version", None), "cuda", None)
    if torch is not None and hasattr(torch, "__version__"):
        facts["torch"] = {"version": str(torch.__version__), "cuda": version, "initial_seed": _seed(torch)}
    return facts


def _seed(torch: Any) -> int | None:
    try:
        return int(torch.initial_seed())
    except Exception:
        return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid()) if hasattr(os, "getuid") else ""


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Hardware")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def _usable() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _memory() -> dict[str, int]:
    """Bytes: of the machine, and the limit of this process's control group where there is one."""
    import psutil

    found = {"total": int(psutil.virtual_memory().total)}
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = int(Path(path).read_text())
        except (OSError, ValueError):
            continue
        if limit < found["total"]:
            found["limit"] = limit
        break
    return found


def gpus() -> list[dict[str, str]]:
    """Name, memory and driver of each NVIDIA GPU, as nvidia-smi tells within two seconds; asked once a process."""
    if not _devices:
        _devices.append(_gpus())
    return _devices[0]


def _gpus() -> list[dict[str, str]]:
    if shutil.which("nvidia-smi") is None:
        return []
    fields = ["index", "name", "memory.total", "driver_version"]
    try:
        out = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"], capture_output=True,
            text=True, timeout=2, start_new_session=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    if out.returncode:
        return []
    rows = [[part.strip() for part in line.split(",")] for line in out.stdout.splitlines()]
    return [dict(zip(fields, row, strict=True)) for row in rows if len(row) == len(fields)]
