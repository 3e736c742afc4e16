"""Small translations between MLflow's values and ours."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

from ..core.errors import ParameterError


def iso(milliseconds: Any) -> str | None:
    """Milliseconds since the epoch as RFC 3339 in UTC; None for 0 and nothing."""
    try:
        value = int(milliseconds)
        if value <= 0:
            return None
        text = datetime.fromtimestamp(value / 1000, UTC).isoformat(timespec="milliseconds")
    except (TypeError, ValueError, OverflowError, OSError):
        return None
    return text.replace("+00:00", "Z")


#: What MLflow's database keeps for infinities.
_INFINITE = 1.7976931348623157e308


def number(value: Any) -> float | None:
    """A metric's value; None for NaN, infinities and what is no number."""
    try:
        result = float(value)
    except (TypeError, ValueError):
        return None
    return result if math.isfinite(result) and abs(result) < _INFINITE else None


def progress(text: str) -> dict[str, float] | None:
    """``done/total`` as an object; None when it is something else."""
    done, slash, total = text.partition("/")
    a, b = number(done), number(total)
    return {"done": a, "total": b} if slash and a is not None and b is not None else None


def thin(points: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """At most ``limit`` of the points, evenly taken, the first and the last among them."""
    if len(points) <= limit:
        return points
    stride = (len(points) - 1) / (limit - 1)
    return [points[round(i * stride)] for i in range(limit)]


def quoted(text: str) -> str:
    """A text as a string of MLflow's search syntax, which knows no escapes.

    Raises:
        ParameterError: it holds both kinds of quotes.
    """
    for mark in ("'", '"'):
        if mark not in text:
            return f"{mark}{text}{mark}"
    raise ParameterError(f"{text!r} cannot be searched for", "use a name without quotes")
