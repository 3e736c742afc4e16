"""Settings and where each comes from: default < config file < environment < flag."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

from ..core.errors import ParameterError
from ..runtime import locate
from .arguments import size

#: What ``%mlops config KEY VALUE`` can set: key → (meaning, default).
KEYS: dict[str, tuple[str, str]] = {
    "experiment": ("experiment of new runs and jobs; default: the folder's name", ""),
    "ship_limit": ("most bytes of variables that go with a cell, such as 256Mi or 2G", "256Mi"),
    "refresh": ("seconds between updates of a job's output where JupyterLab does not draw it; 0: only at its end", "5"),
    "retention": ("how long folders of ended jobs are kept, by age and size; off: for ever", "30d 20GB"),
}

def path_of(where: locate.Place) -> str:
    """The config file of a workspace."""
    return os.path.join(where.home, "config.json")


def read(where: locate.Place) -> dict[str, str]:
    """What the config file sets."""
    return {k: str(v) for k, v in locate.read_json(path_of(where)).items() if k in KEYS}


def write(where: locate.Place, key: str, value: str) -> None:
    """Set a key, or remove it when ``value`` is empty.

    Raises:
        ParameterError: no such key, or a value that does not fit.
    """
    if key not in KEYS:
        from .parser import nearest

        close = nearest(key, KEYS)
        raise ParameterError(
            f"there is no setting {key!r}", f"did you mean {close}?" if close else "settings: " + ", ".join(KEYS)
        )
    if key == "refresh" and value:
        try:
            if not 0 <= float(value) <= 3600:
                raise ValueError
        except ValueError:
            raise ParameterError(f"refresh {value!r} is not a number of seconds from 0 to 3600") from None
    if key == "retention":
        from ..core.resources.retention import parse_retention  # brings pydantic, which loading us must not

        parse_retention(value)
    if key == "ship_limit" and value:
        try:
            size(value)
        except argparse.ArgumentTypeError as error:
            raise ParameterError(f"ship_limit: {error}") from None
    config = read(where)
    config.pop(key, None)
    if value:
        config[key] = value
    os.makedirs(where.home, mode=0o700, exist_ok=True)
    temporary = f"{path_of(where)}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as f:
        json.dump(config, f, indent=1)
    os.replace(temporary, path_of(where))


@dataclass(frozen=True)
class Value:
    """A setting's value and where it comes from."""

    value: str
    source: str


def folder_experiment(folder: str | None = None) -> str:
    """The experiment that a folder stands for: its name."""
    return os.path.basename((folder or os.getcwd()).rstrip("/")) or "Default"


def experiment(where: locate.Place) -> Value:
    """The experiment of new runs and jobs."""
    default = folder_experiment()
    named = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    configured = read(where).get("experiment")
    if named and named != default and named != configured:
        return Value(named, "environment MLFLOW_EXPERIMENT_NAME")
    if configured:
        return Value(configured, path_of(where))
    return Value(default, "default: the folder's name")


def refresh(where: locate.Place) -> float:
    """Seconds between updates of a job's output where nothing else draws it."""
    try:
        return float(read(where).get("refresh") or KEYS["refresh"][1])
    except ValueError:
        return 5.0


def ship_limit(where: locate.Place) -> int:
    """Most bytes of variables that go with a cell."""
    try:
        return size(read(where).get("ship_limit") or KEYS["ship_limit"][1])
    except argparse.ArgumentTypeError:
        return size(KEYS["ship_limit"][1])


def mlflow_uri_set() -> str:
    """The tracking URI that ``mlflow.set_tracking_uri`` gave, or empty; never imports mlflow."""
    if "mlflow" not in sys.modules:
        return ""
    try:
        from mlflow.tracking._tracking_service import utils

        return str(getattr(utils, "_tracking_uri", None) or "")
    except Exception:
        return ""


def tracking(where: locate.Place) -> Value:
    """The tracking URI that plain MLflow calls in this process go to."""
    given = mlflow_uri_set()
    if given:
        return Value(given, "mlflow.set_tracking_uri")
    named = os.environ.get("MLFLOW_TRACKING_URI")
    if named:
        ours = locate.is_ours(named, where)
        return Value(named, "set by jupyter_mlops" if ours else "environment MLFLOW_TRACKING_URI")
    if "mlflow" in sys.modules:
        try:
            return Value(str(sys.modules["mlflow"].get_tracking_uri()), "MLflow's default")
        except Exception:
            pass
    return Value("", "not set: MLflow would use a local file")


def tracks_here(where: locate.Place) -> bool:
    """Whether plain MLflow calls go to this workspace; true as well when nothing else was named."""
    value = tracking(where)
    return not value.value or value.source == "MLflow's default" or locate.is_ours(value.value, where)


def enter(where: locate.Place, environ: MutableMapping[str, str] = os.environ) -> dict[str, str]:
    """Point this process's MLflow at the workspace, unless the user named another server. Starts nothing.

    Sets addresses only, never a token.

    Returns:
        what was set, for :func:`leave`.
    """
    changed: dict[str, str] = {}

    def put(name: str, value: str) -> None:
        if environ.get(name) != value:
            changed[name] = environ[name] = value

    theirs = environ.get("MLFLOW_TRACKING_URI")
    if not (mlflow_uri_set() or (theirs and not locate.is_ours(theirs, where))):
        url = locate.base_url(where)
        put("JUPYTER_MLOPS_URL", url)
        put("JUPYTER_MLOPS_HOME", where.home)
        put("JUPYTER_MLOPS_WORKSPACE", where.name)
        put("MLFLOW_TRACKING_URI", url + "/mlflow")
        chosen = experiment(where)
        if not environ.get("MLFLOW_EXPERIMENT_ID"):
            put("MLFLOW_EXPERIMENT_NAME", chosen.value)
    return changed


def leave(changed: dict[str, str], environ: MutableMapping[str, str] = os.environ) -> None:
    """Undo :func:`enter`, except for what was changed since."""
    for name, value in changed.items():
        if environ.get(name) == value:
            del environ[name]


def nearby(folder: str | None = None) -> list[str]:
    """MLflow stores of earlier work in a folder: a non-empty ``mlruns/`` or an ``mlflow.db``."""
    folder = folder or os.getcwd()
    found = []
    runs = os.path.join(folder, "mlruns")
    try:
        if any(entry.is_dir() and entry.name not in (".trash",) for entry in os.scandir(runs)):
            found.append(runs)
    except OSError:
        pass
    database = os.path.join(folder, "mlflow.db")
    if os.path.isfile(database):
        found.append(database)
    return found


def nearby_remark(folder: str | None = None) -> str:
    """One line that names what :func:`nearby` found, or empty."""
    found = nearby(folder)
    if not found:
        return ""
    uris = [f"sqlite:///{f}" if f.endswith(".db") else f"file://{f}" for f in found]
    names = " and ".join(os.path.basename(f) + ("" if f.endswith(".db") else "/") for f in found)
    return (
        f"note: {names} in this folder {'hold' if len(found) > 1 else 'holds'} earlier runs; "
        f"see them with: mlflow ui --backend-store-uri {uris[0]}"
        + "".join(f" (or {uri})" for uri in uris[1:])
    )


def rows(where: locate.Place) -> list[dict[str, Any]]:
    """Every setting with its value and source."""
    from .. import __version__

    def env_or(name: str, value: str, source: str) -> tuple[str, str]:
        return (os.environ[name], f"environment {name}") if os.environ.get(name) else (value, source)

    home, home_source = env_or("JUPYTER_MLOPS_HOME", where.home, "default")
    name, name_source = env_or("JUPYTER_MLOPS_WORKSPACE", where.name, "default")
    url = locate.base_url(where)
    record = locate.read_json(os.path.join(where.home, "control.json")).get("url")
    uri = tracking(where)
    chosen = experiment(where)
    configured = read(where)
    wait, kept, limit = configured.get("refresh"), configured.get("retention"), configured.get("ship_limit")
    listed = [
        ("workspace", name, name_source),
        ("home", home, home_source),
        ("url", str(record or url), "running control plane" if record else "kept port, not running"),
        ("tracking uri", uri.value, uri.source),
        ("experiment", chosen.value, chosen.source),
        ("refresh", wait or KEYS["refresh"][1], path_of(where) if wait else "default"),
        ("ship_limit", limit or KEYS["ship_limit"][1], path_of(where) if limit else "default"),
        ("retention", kept or KEYS["retention"][1], path_of(where) if kept else "default"),
        ("python", sys.executable, "kernel" if "ipykernel" in sys.modules else "process"),
        ("jupyter_mlops", __version__, "package"),
    ]
    return [{"name": n, "value": v, "source": s} for n, v, s in listed]
