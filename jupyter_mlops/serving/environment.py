"""The environments of gateway and scorers: nothing secret in them that the deployment did not ask for."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ..core.errors import Refused
from ..runtime import bundle
from ..runtime.environ import scrubbed, share_cores

#: What the gateway's own start changed in its environment, as JSON: scorers that it starts get it as it was.
_UNDO = "JUPYTER_MLOPS_GATEWAY_UNDO"


def gateway_env() -> dict[str, str]:
    """The gateway's environment: our package importable from anywhere, few memory arenas so that memory stays flat."""
    before: dict[str, str] = scrubbed(os.environ)
    env = dict(before)
    bundle.prepend(env, package_root())
    env.setdefault("MALLOC_ARENA_MAX", "2")
    env["PYTHONUNBUFFERED"] = "1"
    env[_UNDO] = json.dumps({k: before.get(k) for k, v in env.items() if before.get(k) != v})
    return env


def _inherited() -> dict[str, str]:
    """Our environment, scrubbed; in the gateway the one that it was started from, lest scorers differ."""
    env: dict[str, str] = scrubbed(os.environ)
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
    share_cores(env, instances)
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
