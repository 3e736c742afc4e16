"""What forms share: ipywidgets looked for lazily, and a message where it is not there."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..core.errors import Refused


def widgets() -> Any:
    """The ipywidgets module.

    Raises:
        Refused: it is not installed.
    """
    try:
        return import_module("ipywidgets")
    except ImportError:
        raise Refused(
            "the form needs ipywidgets, which is not installed here", "pip install 'jupyter-mlops[widgets]'"
        ) from None


def rebalanced(shares: dict[str, int], moved: str, percent: int) -> dict[str, int]:
    """Shares in which ``moved`` has ``percent``, and the others keep their proportions and fill up to 100.

    Where the others have nothing, the first of them takes the rest; alone it keeps 100.
    """
    percent = max(0, min(100, percent))
    others = [name for name in shares if name != moved]
    if not others:
        return {moved: 100}
    rest, had = 100 - percent, sum(shares[name] for name in others)
    if had:
        exact = {name: shares[name] * rest / had for name in others}
    else:
        exact = {name: float(rest if name == others[0] else 0) for name in others}
    whole = {name: int(value) for name, value in exact.items()}
    for name in sorted(others, key=lambda n: whole[n] - exact[n])[: rest - sum(whole.values())]:
        whole[name] += 1
    return {name: percent if name == moved else whole[name] for name in shares}
