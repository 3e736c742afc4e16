"""MLflow's process as the system sees it: signals to all of it, what it has used, and whether it is one of ours.

Only the standard library is imported here, see :mod:`.child`.
"""

from __future__ import annotations

import os
import sys


def signal_group(pid: int, number: int) -> None:
    """Send a signal to a process and its group; nothing happens when they are gone."""
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            pass


def cpu_time(pid: int) -> float | None:
    """Processor time that a process has used; None when that cannot be told."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            fields = f.read().rpartition(b")")[2].split()
        return float(int(fields[11]) + int(fields[12]))
    except (OSError, ValueError, IndexError):
        pass
    if sys.platform.startswith("linux"):
        return None
    import psutil

    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return None
    return float(times.user + times.system)


def is_mlflow(pid: int, path: str) -> bool:
    """Whether a process is an MLflow server of ours: its command line names the recorded socket."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            line = f.read().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        if sys.platform.startswith("linux"):
            return False
        import psutil

        try:
            line = " ".join(psutil.Process(pid).cmdline())
        except psutil.Error:
            return False
    return "mlflow" in line and path in line
