"""The environments of gateway and scorers: nothing secret in them that the deployment did not ask for."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ..core.errors import Refused
from ..runtime import bundle

#: Variables that never reach a model: credentials of ours and others', and settings of MLflow clients.
_PREFIXES = ("MLFLOW_", "_MLFLOW_", "JUPYTER_MLOPS_", "JUPYTERHUB_", "JPY_", "PYDEVD_")
_PARTS = ("TOKEN", "SECRET", "PASSWORD", "PASSWD", "API_KEY", "ACCESS_KEY", "CREDENTIAL")
_HARMLESS = ("TOKENIZERS_PARALLELISM",)
#: What the gateway's own start changed in its environment, as JSON: scorers that it starts get it as it was.
_UNDO = "JUPYTER_MLOPS_GATEWAY_UNDO"
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def scrubbed(environ: dict[str, str]) -> dict[str, str]:
    """An environment without credentials and without settings for MLflow clients."""
    return {k: v for k, v in environ.items() if k in _HARMLESS
            or not (k.startswith(_PREFIXES) or any(part in k.upper() for part in _PARTS))}


def gateway_env() -> dict[str, str]:
    """The gateway's environment: our package importable from anywhere, few memory arenas so that memory stays flat."""
    before = scrubbed(dict(os.environ))
    env = dict(before)
    bundle.prepend(env, package_root())
    env.setdefault("MALLOC_ARENA_MAX", "2")
    env["PYTHONUNBUFFERED"] = "1"
    env[_UNDO] = json.dumps({k: before.get(k) for k, v in env.items() if before.get(k) != v})
    return env


def _inherited() -> dict[str, str]:
    """Our environment, scrubbed; in the gateway the one that it was started from, lest scorers differ."""
    env = scrubbed(dict(os.environ))
    try:
        changes = dict(json.loads(os.environ.get(_UNDO, "{}")))
    except (ValueError, TypeError):
        changes = {}
    for name, value in changes.items():
        env.pop(name, None)
        if isinstance(value, str):
            env[name] = value
    return env


def scorer_env(interpreter: str, extra: dict[str, str], own: str, bundles: Path, instances: int = 1) -> dict[str, str]:
    """A scorer's environment: no credentials but those in ``extra``, threads for its part of the cores.

    Args:
        interpreter: absolute path of its Python.
        extra: the deployment's ``environment_variables``.
        own: our own interpreter, which has our package for sure.
        bundles: folder for the zip that brings our runtime to an interpreter that lacks it.
        instances: how many scorers share the cores.

    Raises:
        Refused: the interpreter does not run, or is too old.
    """
    env = _inherited()
    for name in _THREADS:
        env.setdefault(name, str(max(1, cores() // max(1, instances))))
    env.update(PYTHONUNBUFFERED="1", PYTHONFAULTHANDLER="1", MLFLOW_DISABLE_TELEMETRY="true", MPLBACKEND="Agg")
    env.setdefault("TOKENIZERS_PARALLELISM", "false")
    prefix = Path(interpreter).parent.parent
    env.pop("VIRTUAL_ENV", None)
    if (prefix / "pyvenv.cfg").is_file():
        env["VIRTUAL_ENV"] = str(prefix)
    env["PATH"] = os.path.dirname(interpreter) + os.pathsep + env.get("PATH", os.defpath)
    env.update(extra)
    if interpreter == own:
        bundle.prepend(env, package_root())
        return env
    try:
        python = bundle.probe(interpreter, env)["python"]
        if python < bundle.OLDEST:
            raise Refused(f"{interpreter} is Python {python[0]}.{python[1]}", "Python 3.9 or later is needed")
        if bundle.needed(interpreter, env):
            bundle.prepend(env, bundle.ensure(str(bundles)))
    except bundle.ProbeError as error:
        raise Refused(f"the Python {interpreter} cannot be used: {error}", "give another interpreter") from error
    return env


def package_root() -> str:
    """The folder that our package is in."""
    return str(Path(__file__).resolve().parents[2])


def cores() -> int:
    """CPU cores that this process may use: affinity and the cgroup's quota."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:
        count = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            count = min(count, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return max(1, count)
