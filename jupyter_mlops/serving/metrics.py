"""The gateway's counters in Prometheus' text format, from what ``GET /admin/stats`` says.

Counters start at 0 with the gateway, whose start time is among them. Durations are in seconds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: Key in ``errors`` of the statistics → label ``code``.
_CODES = {"4xx": "4xx", "5xx": "5xx", "model": "424", "timeout": "504", "rejected": "429"}
#: (name, type, help, path in a deployment's statistics).
_SIMPLE: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("requests_total", "counter", "Requests that were answered, whatever the answer.", ("requests",)),
    ("rows_total", "counter", "Rows that the model was given.", ("rows",)),
    ("batches_total", "counter", "Calls of the model; rows of several requests may share one.", ("batches",)),
    ("retries_total", "counter", "Requests tried once more because their instance died.", ("retried",)),
    ("captured_total", "counter", "Requests whose input and output were kept.", ("captured",)),
    ("capture_dropped_total", "counter", "Requests that should have been kept and were not.", ("capture_dropped",)),
    ("queued", "gauge", "Requests that wait for an instance.", ("queued",)),
    ("in_flight", "gauge", "Requests that an instance works on.", ("in_flight",)),
    ("instances_ready", "gauge", "Instances that answer.", ("instances", "ready")),
    ("instances_wanted", "gauge", "Instances that there should be.", ("instances", "wanted")),
)
_PREFIX = "mlops_endpoint_"


def for_endpoint(stats: dict[str, Any], endpoint: str) -> bytes:
    """The metrics of one endpoint; nothing of others is in it."""
    found = stats.get("endpoints") or {}
    return _text(_lines({endpoint: found[endpoint]} if endpoint in found else {}))


def for_all(stats: dict[str, Any]) -> bytes:
    """The metrics of all endpoints and of the gateway itself."""
    lines = list(_lines(stats.get("endpoints") or {}))
    for name, kind, text, key in (
        ("mlops_gateway_requests_total", "counter", "Requests of any kind.", "requests"),
        ("mlops_gateway_resident_memory_bytes", "gauge", "Memory of the gateway.", "rss_bytes"),
        ("mlops_gateway_start_time_seconds", "gauge", "Start of the gateway, since the epoch.", "started_at"),
    ):
        if _number(stats.get(key)) is not None:
            lines += _head(name, kind, text)
            lines.append(f"{name} {_shown(stats[key])}")
    return _text(lines)


def _text(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")


def _lines(endpoints: dict[str, Any]) -> Iterable[str]:
    rows = [({"endpoint": e, "deployment": d}, stats) for e, about in sorted(endpoints.items())
            for d, stats in sorted((about.get("deployments") or {}).items())]
    for name, kind, text, path in _SIMPLE:
        yield from _family(name, kind, text, ((labels, _at(stats, path)) for labels, stats in rows))
    yield from _family("errors_total", "counter", "Requests that ended in an error, by status.", (
        ({**labels, "code": code}, _at(stats, ("errors", key))) for labels, stats in rows
        for key, code in _CODES.items()))
    yield from _family("mirror_total", "counter", "Requests that were mirrored, by what became of the comparison.", (
        ({**labels, "result": key}, _at(stats, ("mirror", key))) for labels, stats in rows
        for key in ("compared", "different", "failed", "dropped")))
    yield from _histogram(rows)


def _family(name: str, kind: str, text: str, samples: Iterable[tuple[dict[str, str], Any]]) -> Iterable[str]:
    shown = [f"{_PREFIX}{name}{_labels(labels)} {_shown(value)}" for labels, value in samples if value is not None]
    if shown:
        yield from _head(_PREFIX + name, kind, text)
        yield from shown


def _histogram(rows: list[tuple[dict[str, str], Any]]) -> Iterable[str]:
    name = _PREFIX + "request_duration_seconds"
    shown: list[str] = []
    for labels, stats in rows:
        latency = stats.get("latency_ms") or {}
        count = _number(latency.get("count"))
        if count is None:
            continue
        for bound, below in latency.get("buckets") or []:
            limit = _number(bound)
            if limit is not None and math.isfinite(limit):
                shown.append(f"{name}_bucket{_labels({**labels, 'le': _shown(limit / 1000)})} {_shown(below)}")
        shown.append(f"{name}_bucket{_labels({**labels, 'le': '+Inf'})} {_shown(count)}")
        shown.append(f"{name}_sum{_labels(labels)} {_shown((_number(latency.get('sum')) or 0) / 1000)}")
        shown.append(f"{name}_count{_labels(labels)} {_shown(count)}")
    if shown:
        yield from _head(name, "histogram", "Time from a request's arrival to its answer.")
        yield from shown


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _at(stats: dict[str, Any], path: tuple[str, ...]) -> float | None:
    value: Any = stats
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return _number(value)


def _number(value: Any) -> float | None:
    return value if type(value) in (int, float) else None


def _shown(value: Any) -> str:
    number = _number(value)
    if number is None or number != number:
        return "NaN"
    if math.isinf(number):
        return "+Inf" if number > 0 else "-Inf"
    return repr(int(number)) if number == int(number) and abs(number) < 2**53 else repr(float(f"{number:.12g}"))


def _labels(labels: dict[str, str]) -> str:
    return "{" + ",".join(f'{k}="{_escaped(v)}"' for k, v in labels.items()) + "}"


def _escaped(text: str) -> str:
    return re.sub(r'[\\"\n]', lambda m: {"\\": "\\\\", '"': '\\"', "\n": "\\n"}[m[0]], str(text))
