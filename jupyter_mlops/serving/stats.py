"""Counters of one deployment: cheap to bump for each request, read by whoever watches."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

#: Upper bounds of the latency histogram in milliseconds.
BUCKETS = (0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 50.0, 75.0, 100.0, 150.0, 250.0, 500.0, 1000.0,
           2500.0, 5000.0, 10_000.0, 30_000.0, 60_000.0)
#: Statuses that are counted under a name of their own among the errors.
_NAMED = {"model": 424, "timeout": 504, "rejected": 429}


class Stats:
    """Cumulative since the gateway's start."""

    __slots__ = ("_buckets", "batches", "codes", "compared", "different", "dropped", "failed", "retried", "rows",
                 "total_ms")

    def __init__(self) -> None:
        self.rows = self.batches = self.retried = 0
        self.compared = self.different = self.failed = self.dropped = 0
        #: status → requests that were answered with it
        self.codes: dict[int, int] = {}
        #: of the good answers, as the histogram
        self.total_ms = 0.0
        self._buckets = [0] * (len(BUCKETS) + 1)

    def count(self, status: int, took_ms: float) -> None:
        """One request was answered with ``status`` after ``took_ms`` milliseconds."""
        self.codes[status] = self.codes.get(status, 0) + 1
        if status == 200:
            self.total_ms += took_ms
            self._buckets[bisect_left(BUCKETS, took_ms)] += 1

    def quantile(self, share: float) -> float | None:
        """Latency in milliseconds that a ``share`` of the good answers did not exceed, by the histogram; None: none."""
        total = sum(self._buckets)
        if not total:
            return None
        wanted, seen, low = share * total, 0, 0.0
        for bound, count in zip((*BUCKETS, BUCKETS[-1] * 2), self._buckets, strict=True):
            if count and seen + count >= wanted:
                return low + (bound - low) * (wanted - seen) / count
            seen += count
            low = bound
        return low

    def describe(self) -> dict[str, Any]:
        """As JSON; the histogram is cumulative, its last bound (infinity) is null."""
        buckets: list[list[Any]] = []
        seen = 0
        for bound, count in zip((*BUCKETS, None), self._buckets, strict=True):
            seen += count
            buckets.append([bound, seen])
        codes = self.codes
        other = {code: n for code, n in codes.items() if code != 200 and code not in _NAMED.values()}
        return {
            "requests": sum(codes.values()),
            "errors": {"4xx": sum(n for code, n in other.items() if code < 500),
                       "5xx": sum(n for code, n in other.items() if code >= 500),
                       **{name: codes.get(code, 0) for name, code in _NAMED.items()}},
            "codes": {str(k): v for k, v in sorted(codes.items())},
            "latency_ms": {"count": seen, "sum": round(self.total_ms, 3),
                           **{f"p{int(q * 100)}": self.quantile(q) for q in (0.5, 0.95, 0.99)}, "buckets": buckets},
            "rows": self.rows, "batches": self.batches, "retried": self.retried,
            "mirror": {"compared": self.compared, "different": self.different, "failed": self.failed,
                       "dropped": self.dropped},
        }
