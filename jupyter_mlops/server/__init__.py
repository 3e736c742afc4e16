"""The Jupyter Server extension: a thin authenticating proxy in front of the control plane, and a relay of changes."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .app import MlopsApp

__all__ = ["MlopsApp"]


def __getattr__(name: str) -> type[MlopsApp]:
    # Lazy: a kernel may look at this package without having jupyter_server.
    if name == "MlopsApp":
        from .app import MlopsApp

        return MlopsApp
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
