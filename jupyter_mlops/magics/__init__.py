"""The ``%mlops`` magics: parser, commands, completion, display. Thin over the client."""

from __future__ import annotations

from typing import Any


def load(ip: Any) -> None:
    """Register magics, completer and environment in an IPython shell."""
    from .magics import load as register

    register(ip)


def unload(ip: Any) -> None:
    """Undo :func:`load`."""
    from .magics import unload as remove

    remove(ip)
