"""Counters that outlive the gateway: what it counts since its start, added up over all of its starts.

``record.json`` in a bundle's state is replaced atomically. Its ``site`` is made with the state folder, so that the
counters of one bundle that serves at several places are told apart; ``seq`` grows with each change, so that of two
records of a site the later one is known without trusting a clock.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from .places import read_json, write_json

NAME = "record.json"
SCHEMA = 1
#: What is added up of a deployment; the rest of its statistics are states.
COUNTED = ("requests", "errors", "codes", "latency_ms", "rows", "batches", "retried", "captured", "capture_dropped")


class Tally:
    """The counters of one site.

    Args:
        path: of ``record.json``; what it holds is gone on with.
        bundle: id of the bundle.
    """

    def __init__(self, path: Path, bundle: str) -> None:
        self.path = path
        known = read_json(path)
        if known.get("schema") != SCHEMA or known.get("bundle") != bundle:
            known = {"schema": SCHEMA, "bundle": bundle, "site": os.urandom(8).hex(), "seq": 0, "since": time.time(),
                     "until": time.time(), "starts": 0, "deployments": {}, "last": {}}
        self.data: dict[str, Any] = known

    def add(self, stats: dict[str, Any], endpoint: str) -> bool:
        """Take up what ``GET /admin/stats`` says of an endpoint; False when that is nothing new."""
        found = ((stats.get("endpoints") or {}).get(endpoint) or {}).get("deployments") or {}
        now = {name: {k: _bare(d[k]) for k in COUNTED if k in d} for name, d in found.items()}
        last = self.data["last"]
        if last.get("started_at") != stats.get("started_at"):
            last = {"started_at": stats.get("started_at"), "deployments": {}}
            self.data["starts"] += 1
        elif last["deployments"] == now:
            return False
        totals = self.data["deployments"]
        for name, counts in now.items():
            totals[name] = add(totals.get(name) or {}, counts, last["deployments"].get(name) or {})
        self.data["last"] = {**last, "deployments": now}
        self.data["until"] = time.time()
        self.data["seq"] += 1
        return True

    def save(self) -> None:
        """Put it on disk."""
        write_json(self.path, self.data)


def _bare(value: Any) -> Any:
    """Without what cannot be added: quantiles."""
    return {k: v for k, v in value.items() if not (k[:1] == "p" and k[1:].isdigit())} if isinstance(value, dict) else (
        value)


def add(total: Any, now: Any, last: Any) -> Any:
    """``total + now - last`` of numbers, and of all numbers in objects and histograms of the same shape."""
    if isinstance(now, dict):
        known, before = (v if isinstance(v, dict) else {} for v in (total, last))
        return {**known, **{k: add(known.get(k), v, before.get(k)) for k, v in now.items()}}
    if isinstance(now, list):  # [[bound, count so far], …]
        known, before = ({json.dumps(b): n for b, n in v} if isinstance(v, list) else {} for v in (total, last))
        return [[bound, known.get(json.dumps(bound), 0) + count - before.get(json.dumps(bound), 0)]
                for bound, count in now]
    if isinstance(now, int | float):
        return (total or 0) + now - (last or 0)
    return now
