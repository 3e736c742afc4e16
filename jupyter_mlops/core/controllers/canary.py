"""Canary controller: watches what the gateway counts of a deployment on trial, and promotes it or rolls it back.

Counts are those since the canary's start. What was counted so far and each gateway's counters as they were last seen
are in the store, written together: neither a killed control plane nor a gateway that begins at zero again, or does not
answer for a while beside others that do, loses or doubles a request that was counted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from .. import traffic
from ..identity import SYSTEM
from ..resources.base import Resource
from ..resources.endpoint import CanarySpec
from .base import Controller, Key

#: Requests from which on a share of errors, and a percentile of latencies, say something.
SENSIBLE = 20
#: So many requests of which none was answered well need no more evidence.
ALL_FAILED = 5
#: A candidate that is slower by less than so many milliseconds is not slower: timers and histograms are no finer.
LATENCY_NOISE_MS = 5.0


@dataclass
class Counts:
    """Counters of one or more deployments: cumulative ones of the gateway, or what was added up of them.

    ``requests`` are those that the deployment had to answer: without what callers got wrong (4xx) and what was turned
    away (429). ``latency`` maps the upper bound of a bucket in milliseconds to the good answers in it; infinity is
    ``inf``.
    """

    requests: int = 0
    errors: int = 0
    latency: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, stats: dict[str, Any]) -> Counts:
        """From what ``/admin/stats`` says of a deployment."""
        errors = stats.get("errors") or {}
        failed = sum(int(errors.get(k) or 0) for k in ("5xx", "model", "timeout"))
        not_ours = sum(int(errors.get(k) or 0) for k in ("4xx", "rejected"))
        latency: dict[str, int] = {}
        before = 0
        for bound, cumulative in (stats.get("latency_ms") or {}).get("buckets") or []:
            # Empty ones too: where a bucket begins is known from the one before it.
            latency["inf" if bound is None else repr(float(bound))] = int(cumulative) - before
            before = int(cumulative)
        return cls(max(0, int(stats.get("requests") or 0) - not_ours), failed, latency)

    @classmethod
    def load(cls, value: dict[str, Any] | None) -> Counts:
        """From the store."""
        return cls(**value) if value else cls()

    def __add__(self, other: Counts) -> Counts:
        return self._with(other, 1)

    def __sub__(self, other: Counts) -> Counts:
        return self._with(other, -1)

    def _with(self, other: Counts, sign: int) -> Counts:
        bounds = self.latency.keys() | other.latency.keys()
        latency = {b: self.latency.get(b, 0) + sign * other.latency.get(b, 0) for b in bounds}
        return Counts(self.requests + sign * other.requests, self.errors + sign * other.errors, latency)

    def since(self, earlier: Counts) -> Counts:
        """What was counted after ``earlier``; all of it when the counters have begun anew meanwhile."""
        more = self - earlier
        return self if more.requests < 0 or more.errors < 0 or min(more.latency.values(), default=0) < 0 else more

    @property
    def error_rate(self) -> float:
        """0..1."""
        return self.errors / self.requests if self.requests else 0.0

    def quantile(self, share: float) -> float | None:
        """Milliseconds that a ``share`` of the good answers did not exceed, by the histogram; None: there are none."""
        total = sum(self.latency.values())
        if not total:
            return None
        seen, low, bound = 0, 0.0, 0.0
        for bound, count in sorted((float(b), n) for b, n in self.latency.items()):
            if count and seen + count >= share * total:
                high = low * 2 if bound == float("inf") else bound
                return low + (high - low) * (share * total - seen) / count
            seen, low = seen + count, bound
        return bound

    def told(self) -> dict[str, Any]:
        """As the endpoint's status shows it."""
        p50, p95 = self.quantile(0.5), self.quantile(0.95)
        return {
            "requests": self.requests, "errors": self.errors, "error_rate": round(self.error_rate, 6),
            "p50": None if p50 is None else round(p50, 3), "p95": None if p95 is None else round(p95, 3),
        }

    def dump(self) -> dict[str, Any]:
        """For the store."""
        return {"requests": self.requests, "errors": self.errors, "latency": self.latency}


def judge(spec: CanarySpec, candidate: Counts, baseline: Counts, seconds: float) -> tuple[str, str]:
    """What to do about a canary that has run for ``seconds``: (``wait``, ``promote`` or ``rollback``; one line why)."""
    n, errors = candidate.requests, candidate.errors
    if n >= min(ALL_FAILED, spec.min_requests) and errors == n and spec.max_error_rate < 1:
        return "rollback", f"all of its {n} requests failed"
    if n >= min(spec.min_requests, SENSIBLE) and (errors > 1 or n >= spec.min_requests):
        # What fails everywhere is not the candidate's fault; a few requests of the others prove nothing.
        theirs = baseline.error_rate if baseline.requests >= SENSIBLE else 0.0
        if candidate.error_rate - theirs > spec.max_error_rate:
            beside = f", {theirs:.1%} at the others" if theirs else ""
            return "rollback", f"{errors} of {n} requests failed ({candidate.error_rate:.1%}{beside}); " \
                               f"{spec.max_error_rate:.1%} are allowed"
    ready = seconds >= spec.duration and n >= spec.min_requests
    if n >= max(SENSIBLE, min(spec.min_requests, 50)) or ready:
        p95, other = candidate.quantile(0.95), baseline.quantile(0.95)
        if p95 is not None and spec.max_latency_ms and p95 > spec.max_latency_ms:
            return "rollback", f"its 95th percentile is {p95:.1f} ms; {spec.max_latency_ms:g} ms are allowed"
        if p95 is not None and other is not None and sum(baseline.latency.values()) >= SENSIBLE and (
            p95 > other * spec.max_latency_ratio and p95 - other > LATENCY_NOISE_MS
        ):
            return "rollback", f"its 95th percentile is {p95:.1f} ms, {p95 / other:.1f} times the others' " \
                               f"{other:.1f} ms; {spec.max_latency_ratio:g} times is allowed"
    if ready:
        return "promote", f"{n} requests in {seconds:.0f} s, {errors} failed"
    return "wait", f"{n} of {spec.min_requests} requests"


class CanaryController(Controller):
    """Decides on the canaries of all endpoints, once a second each.

    Args:
        serving_for: the driver of a compute's name.
    """

    kind = "canary"
    period = 1.0

    def __init__(self, serving_for: Callable[[str], Any]) -> None:
        super().__init__()
        self._serving_for = serving_for
        self._look: Callable[[], Awaitable[list[Key]]] | None = None

    async def active(self) -> list[Key]:
        def work(tx: Any) -> list[Key]:
            found, _ = tx.page("endpoint", limit=10_000)
            return [("", r.name) for r in found if traffic.running_canary(r) and r.spec.get("canary")]

        if self._look is None:
            self._look = self.workspace.store.glance(work)
        return list(await self._look())

    async def reconcile(self, parent: str, name: str) -> None:
        endpoint = await self.workspace.store.read(lambda tx: tx.find("endpoint", name))
        if endpoint is None:
            return
        serving = self._serving_for(endpoint.spec.get("compute") or "")
        stats = await asyncio.to_thread(serving.stats, name)
        ended = await self.workspace.store.write(lambda tx: self.look(tx, name, stats, time.time()))
        if ended:
            await self.workspace.controllers["endpoint"].reconcile("", name)

    def look(self, tx: Any, name: str, stats: dict[str, Any] | None, now: float) -> bool:
        """Count and decide, in one transaction; returns whether the canary has ended.

        Args:
            stats: what the gateway says; None when it does not answer.
            now: seconds since the epoch.
        """
        endpoint = tx.find("endpoint", name)
        canary = endpoint and traffic.running_canary(endpoint)
        if not canary or not endpoint.spec.get("canary") or tx.deleting("endpoint", name):
            return False
        spec = CanarySpec.model_validate(endpoint.spec["canary"])
        found = tx.find("deployment", spec.deployment, name)
        if found is None or found.status.get("phase") == "Failed":
            why = f"it failed: {found.status.get('reason')}" if found else "it is not there any more"
            traffic.rollback(tx, name, SYSTEM, why)
            return True
        if stats is None:
            return False
        candidate, baseline = self._count(tx, endpoint, spec.deployment, stats)
        todo, reason = judge(spec, candidate, baseline, now - _epoch(canary["started_at"]))
        seen = {**canary, "candidate": candidate.told(), "baseline": baseline.told(), "reason": reason}
        if seen != canary:
            tx.set_status("endpoint", name, {"canary": seen})
        if todo == "promote":
            traffic.promote(tx, name, SYSTEM, reason)
        elif todo == "rollback":
            traffic.rollback(tx, name, SYSTEM, reason)
        return todo != "wait"

    def _count(self, tx: Any, endpoint: Resource, candidate: str, stats: dict[str, Any]) -> tuple[Counts, Counts]:
        """Add what came since the last look; returns (candidate's, all others') since the canary's start."""
        name = endpoint.name
        private = tx.private("endpoint", name)
        kept = private.get("canary")
        now = {
            str(gateway.get("started_at")): {
                d: Counts.of(told).dump() for d, told in _deployments(gateway, name).items()
            } for gateway in stats.get("gateways") or [stats]
        }
        # At the first look whatever was counted so far was before the canary. Later a gateway that is new began at
        # zero, and one that did not answer for a while goes on from where it was seen last.
        before = now if kept is None else kept["seen"]
        totals = {side: Counts.load((kept or {}).get(side)) for side in ("candidate", "baseline")}
        for gateway, counted in now.items():
            for d, counts in counted.items():
                side = "candidate" if d == candidate else "baseline"
                totals[side] += Counts.load(counts).since(Counts.load(before.get(gateway, {}).get(d)))
        kept = {"seen": {**before, **now}, **{side: counts.dump() for side, counts in totals.items()}}
        if kept != private.get("canary"):
            tx.set_private("endpoint", name, {**private, "canary": kept})
        return totals["candidate"], totals["baseline"]


def _deployments(stats: dict[str, Any], endpoint: str) -> dict[str, dict[str, Any]]:
    return ((stats.get("endpoints") or {}).get(endpoint) or {}).get("deployments") or {}


def _epoch(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()
