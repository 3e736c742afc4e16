"""Jupyter MLOps: entry points only. Importing this loads neither mlflow, torch, kubernetes nor pandas."""

from __future__ import annotations

TYPE_CHECKING = False  # typing itself would cost ten times what this module does
if TYPE_CHECKING:
    from typing import Any

    from .runtime.data import inputs, outputs
    from .runtime.record import flush, log

    __version__: str

__all__ = ["__version__", "flush", "inputs", "log", "outputs"]


def __getattr__(name: str) -> Any:
    # Lazy, because importlib.metadata costs more than all the rest of this module.
    if name == "__version__":
        version = globals()["__version__"] = _version()
        return version
    if name in ("flush", "log"):
        from .runtime import record

        function = globals()[name] = getattr(record, name)
        return function
    if name in ("inputs", "outputs"):
        from .runtime import data

        found = globals()[name] = getattr(data, name)
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _version() -> str:
    """The version, whose only source is package.json: read there in a checkout, else from the installed metadata."""
    import json
    import os

    path = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "package.json")
    try:
        with open(path, encoding="utf-8") as f:
            package = json.load(f)
        if package.get("name") == "jupyter-mlops":
            return str(package["version"])
    except (OSError, ValueError, KeyError):
        pass
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("jupyter-mlops")
    except PackageNotFoundError:
        return "0+unknown"


def load_ipython_extension(ip: Any) -> None:
    """``%load_ext jupyter_mlops``: registers ``%mlops`` and ``%%mlops``."""
    from .magics import load

    load(ip)


def unload_ipython_extension(ip: Any) -> None:
    """``%unload_ext jupyter_mlops``: removes magics, completer and hooks."""
    from .magics import unload

    unload(ip)


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    from .server import MlopsApp

    return [{"module": "jupyter_mlops.server", "app": MlopsApp}]


def _jupyter_labextension_paths() -> list[dict[str, str]]:
    return [{"src": "labextension", "dest": "jupyter-mlops"}]
