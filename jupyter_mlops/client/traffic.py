"""Shares of an endpoint's traffic: how one deployment's part is made room for, and how they look with their figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def shared(shares: Mapping[str, int], name: str, percent: int) -> dict[str, int]:
    """Shares in which ``name`` has ``percent`` and the others keep their proportions; they add up to 100.

    Where no other has a share, ``name`` takes all, or with 0 percent nobody does.
    """
    from ..core.resources.endpoint import spread  # pydantic: only when it is needed

    others = {d: share for d, share in shares.items() if d != name and share}
    if not others:
        return {name: 100 if percent else 0}
    rest = spread(others, 100 - percent) if percent < 100 else dict.fromkeys(others, 0)
    return {**rest, name: percent}


def counts(stats: Mapping[str, Any], deployment: str) -> dict[str, Any]:
    """``requests, errors, p50, p95`` (milliseconds or None) of one deployment from what the gateway counts.

    Errors are the deployment's own: answers 5xx, 424 and 504; what callers got wrong is none.
    """
    found = ((stats or {}).get("deployments") or {}).get(deployment) or {}
    errors, latency = found.get("errors") or {}, found.get("latency_ms") or {}
    return {
        "requests": int(found.get("requests") or 0),
        "errors": sum(int(errors.get(kind) or 0) for kind in ("5xx", "model", "timeout")),
        "p50": latency.get("p50"),
        "p95": latency.get("p95"),
    }
