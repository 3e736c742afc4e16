"""What processes that hold a model get of our environment, and how many of the cores they may use."""

import contextlib
import os

#: Beginnings and parts of the names of variables that never reach a model: settings of MLflow's clients, of Jupyter
#: and of debuggers, and credentials of ours and of others. In upper case; written otherwise, they count, too.
_PREFIXES = ("MLFLOW_", "_MLFLOW_", "JUPYTER", "JPY_", "PYDEVD_")
_PARTS = ("TOKEN", "SECRET", "PASSWORD", "PASSWD", "API_KEY", "ACCESS_KEY", "CREDENTIAL")
_HARMLESS = ("TOKENIZERS_PARALLELISM",)
#: By these libraries are told how many threads to use.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def scrubbed(environ, kept=()):
    """An environment without what is secret or another program's own; variables named in ``kept`` stay."""
    return {name: value for name, value in environ.items() if name in _HARMLESS or name in kept or not _secret(name)}


def _secret(name):
    name = name.upper()
    return name.startswith(_PREFIXES) or any(part in name for part in _PARTS)


def share_cores(env, processes=1):
    """Have libraries use as many threads as one of ``processes`` has cores, where ``env`` (changed) does not say."""
    threads = str(max(1, cores() // max(1, processes)))
    for name in _THREADS:
        env.setdefault(name, threads)


def cores():
    """CPU cores that this process may use: affinity, and the quota of the container that we are in."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = 0.0
    with contextlib.suppress(OSError, ValueError), open("/sys/fs/cgroup/cpu.max", encoding="ascii") as f:
        most, period = f.read().split()
        quota = int(most) / int(period) if most != "max" else 0.0
    if not quota:
        with contextlib.suppress(OSError, ValueError):
            with open("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", encoding="ascii") as f:
                allowed = int(f.read())
            with open("/sys/fs/cgroup/cpu/cpu.cfs_period_us", encoding="ascii") as f:
                quota = allowed / int(f.read()) if allowed > 0 else 0.0
    return max(1, min(count, round(quota) or 1) if quota else count)
