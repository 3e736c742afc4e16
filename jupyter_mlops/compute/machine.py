"""Facts of this machine: CPUs, memory, GPUs, within the limits that a container sets."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import subprocess
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from ..runtime import memory

_GPU_TIMEOUT = 5.0


def cpus() -> int:
    """CPUs that this process may use: its affinity and its control group's quota, at least 1."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        count = os.cpu_count() or 1
    quota = _cpu_quota()
    return max(1, min(count, math.ceil(quota)) if quota else count)


def _cpu_quota() -> float | None:
    for group in _groups():
        with contextlib.suppress(OSError, ValueError, IndexError):
            quota, period = (group / "cpu.max").read_text().split()
            return None if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        quota_us = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text())
        return quota_us / int(Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text()) if quota_us > 0 else None
    return None


def _groups() -> list[Path]:
    """Folders of this process's control group (version 2), the innermost first."""
    root = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                inner = root / line[3:].lstrip("/")
                return [inner, root] if inner != root else [root]
    return [root]


def memory_bytes() -> int:
    """Memory of the machine, or the control group's limit when that is less."""
    return memory.limit() or psutil_total()


def psutil_total() -> int:
    """Memory of the machine where the system itself does not tell."""
    import psutil

    return int(psutil.virtual_memory().total)


@lru_cache(maxsize=1)
def gpus() -> tuple[str, ...]:
    """Names of the NVIDIA GPUs that this process may use: from the driver's files, else nvidia-smi (once, 5 s)."""
    names = _all_gpus()
    only = _only()
    return names if only is None else tuple(names[int(i)] if i.isdigit() and int(i) < len(names) else i for i in only)


def visible(gpu_ids: Iterable[int]) -> str:
    """``CUDA_VISIBLE_DEVICES`` for some of :func:`gpus`, by their indices there."""
    only = _only()
    return ",".join(str(i) if only is None else only[i] for i in gpu_ids if only is None or i < len(only))


def _only() -> list[str] | None:
    """The GPUs that this process itself was limited to; None: all."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if value is None else [part.strip() for part in value.split(",") if part.strip()]


def _all_gpus() -> tuple[str, ...]:
    names = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        with contextlib.suppress(OSError):
            for line in path.read_text(errors="replace").splitlines():
                if line.startswith("Model:"):
                    names.append(line.partition(":")[2].strip())
    if names:
        return tuple(names)
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return ()
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            [smi, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=_GPU_TIMEOUT,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode == 0:
            return tuple(line.strip() for line in done.stdout.splitlines() if line.strip())
    return ()
