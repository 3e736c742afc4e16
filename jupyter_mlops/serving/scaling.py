"""How many instances a deployment should have: a rule without clock, files or processes.

What a deployment has to do is its *demand*, counted in instances: the seconds per second in which instances had
something under way, or the requests that wait or are under way divided by how many one instance holds
(``max_concurrent_requests_per_instance``), whichever is more. Wanted are as many that each has
``target_utilization_percentage`` of its time to do.

Up at once, at most to twice as many per ``polling_interval``. Down by one after each minute in which one fewer would
have had at most nine tenths of the target to do: the gap between both keeps a constant load from being answered by
going up and down. To zero, where ``min_instances`` is 0, after ``idle_seconds`` without a request; the next request
wakes the first one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from .instances import MAX_INSTANCES

#: Seconds of little to do before one instance goes, and each further one.
DOWN_AFTER = 60.0
#: One instance goes when the others would then have at most this part of the target to do.
MARGIN = 0.9


@dataclass
class Load:
    """What a gateway sees of one deployment.

    Attributes:
        queued: requests that wait for an instance.
        in_flight: requests that instances have.
        settings: the deployment's entry in ``endpoint.json`` (``instance_count``, ``scale_settings``,
            ``request_settings``).
        last_request_at: when the last request came, of ``time.monotonic()``; 0: none came yet.
        busy_seconds: seconds in which instances had something under way, added up over those that are there.
    """

    queued: int = 0
    in_flight: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    last_request_at: float = 0.0
    busy_seconds: float = 0.0


@dataclass(frozen=True)
class Limits:
    """What a deployment's settings ask for. ``target`` is 0 to 1, ``hold`` requests, the others are seconds."""

    automatic: bool = False
    least: int = 1
    most: int = 1
    target: float = 0.7
    hold: int = 64
    interval: float = 1.0
    idle: float = 300.0
    timeout: float = 30.0

    @classmethod
    def of(cls, settings: dict[str, Any]) -> Limits:
        """From a deployment's entry in ``endpoint.json``; what is missing or senseless there is as by default."""
        scale, request = _dict(settings.get("scale_settings")), _dict(settings.get("request_settings"))
        hold = int(_number(request.get("max_concurrent_requests_per_instance"), 64, 1, 1_000_000))
        timeout = _number(request.get("request_timeout_ms"), 30_000, 1, 3_600_000) / 1000
        if scale.get("type") != "target_utilization":
            count = int(_number(settings.get("instance_count"), 1, 0, MAX_INSTANCES))
            return cls(False, count, count, hold=hold, timeout=timeout)
        least = int(_number(scale.get("min_instances"), 1, 0, MAX_INSTANCES))
        return cls(
            True, least, max(1, least, int(_number(scale.get("max_instances"), 1, 0, MAX_INSTANCES))),
            target=_number(scale.get("target_utilization_percentage"), 70, 1, 100) / 100, hold=hold,
            interval=_number(scale.get("polling_interval"), 1, 0.1, 3600),
            idle=_number(scale.get("idle_seconds"), 300, 0.1, 10_000_000), timeout=timeout,
        )


@dataclass(frozen=True)
class Past:
    """What was decided before. ``quiet_since``: since when one instance fewer would have done."""

    wanted: int
    quiet_since: float | None = None
    reason: str = ""


def decide(limits: Limits, demand: float, waiting: int, idle: float, past: Past, now: float) -> Past:
    """The next decision.

    Args:
        demand: in instances, see above.
        waiting: requests that wait or are under way.
        idle: seconds since the last request, or since the deployment was woken.
        past: the decision before, a ``polling_interval`` ago.
        now: seconds of a clock that only goes on.
    """
    if not limits.automatic:
        return Past(limits.least, None, "instance_count")
    if limits.least == 0 and not waiting and idle >= limits.idle:
        return Past(0, None, f"no request for {limits.idle:g} s")
    floor = max(1, limits.least)
    if past.wanted < floor:
        return Past(floor, None, "a request waits" if limits.least == 0 else "min_instances")
    if past.wanted > limits.most:
        return Past(limits.most, None, "max_instances")
    needed = min(math.ceil(min(demand, MAX_INSTANCES) / limits.target - 1e-9), limits.most)
    if needed > past.wanted:
        return Past(min(needed, 2 * past.wanted), None, f"{demand:.2g} instances' worth of requests")
    if past.wanted > floor and demand <= MARGIN * limits.target * (past.wanted - 1):
        since = now if past.quiet_since is None else past.quiet_since
        if now - since >= DOWN_AFTER:
            return Past(past.wanted - 1, now, f"less to do for {DOWN_AFTER:g} s")
        return Past(past.wanted, since, past.reason)
    return Past(past.wanted, None, past.reason)


def demand_of(load: Load, limits: Limits, busy: float) -> float:
    """What a deployment has to do, in instances.

    Args:
        busy: seconds per second in which its instances had something under way.
    """
    return max(0.0, busy, (load.queued + load.in_flight) / limits.hold)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any, default: float, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        return default
    return min(max(value, least), most)
