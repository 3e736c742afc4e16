"""From a job's journals to requests for MLflow: a reader that runs ahead of what has been acknowledged."""

from __future__ import annotations

import json
import math
import os
import re
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..runtime import journal
from ..runtime.journal import Call, Metric
from .resume import Resume

#: Limits of one ``log-batch``, MLflow's own.
MAX_ITEMS = 1000
MAX_PAIRS = 100
#: Bytes of params and tags in one request; MLflow refuses requests from 1 MB on.
MAX_TEXT = 400_000
#: Bytes of a journal that are read at once.
CHUNK = 256 * 1024
#: Bytes of a journal in one group, about.
MAX_READ = 64 * CHUNK
#: Seconds for which a journal is read for one group: damage can be made so that a few bytes of it take long.
MAX_SECONDS = 0.5
_NAME = re.compile(r"^([0-9]{1,7})-([0-9]{1,7})\.bin$")


def _value(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


@dataclass
class Batch:
    """One ``log-batch`` of a run; items are as MLflow's REST interface takes them."""

    run: str
    metrics: list[dict[str, Any]] = field(default_factory=list)
    params: list[dict[str, str]] = field(default_factory=list)
    tags: list[dict[str, str]] = field(default_factory=list)
    #: Records that are not among the items because later ones say the same or more.
    merged: int = 0
    text: int = 0

    def __len__(self) -> int:
        return len(self.metrics) + len(self.params) + len(self.tags)

    @property
    def full(self) -> bool:
        """Whether it takes nothing more."""
        return len(self) >= MAX_ITEMS or self.text >= MAX_TEXT

    def encode(self, run: str) -> bytes:
        """The body of the request, for the run of that id."""
        body = {"run_id": run, "metrics": self.metrics, "params": self.params, "tags": self.tags}
        return json.dumps({k: v for k, v in body.items() if v}, ensure_ascii=False).encode("utf-8", "replace")

    def halves(self) -> tuple[Batch, Batch]:
        """Two smaller ones in the same order; params first, then metrics, then tags, each kind by itself."""
        kinds = [k for k in ("params", "metrics", "tags") if getattr(self, k)]
        first, second = Batch(self.run, merged=self.merged), Batch(self.run)
        if len(kinds) > 1:
            setattr(first, kinds[0], getattr(self, kinds[0]))
            for kind in kinds[1:]:
                setattr(second, kind, getattr(self, kind))
        else:
            items = getattr(self, kinds[0])
            setattr(first, kinds[0], items[:len(items) // 2])
            setattr(second, kinds[0], items[len(items) // 2:])
        return first, second

    def only(self) -> str:
        """What a batch of one item is, in words."""
        for kind in ("metrics", "params", "tags"):
            for item in getattr(self, kind):
                return f"{kind[:-1]} {item['key'][:100]!r}"
        return "nothing"


@dataclass
class Group:
    """Requests in order, and how far the reader has come when all of them are acknowledged."""

    requests: list[tuple[Batch, bytes] | Call] = field(default_factory=list)
    name: str = ""
    offset: int = 0
    duplicates: int = 0
    damaged: int = 0
    #: State of the resume rule after these, when it has changed: (attempt, state).
    resume: tuple[int, dict[str, Any]] | None = None


class Journals:
    """All journals of a job as one sequence of groups; attempts in order, ranks of an attempt in turn.

    Args:
        folder: ``journal/`` of the job.
        run: id of the job's own run.
        offsets: file name → where to begin.
        resume: attempt → state of the resume rule.
    """

    def __init__(self, folder: Path, run: str, offsets: dict[str, int], resume: dict[str, dict[str, Any]]) -> None:
        self._folder = folder
        self._run = run
        self._offsets = dict(offsets)
        self._states = dict(resume)
        self._resume: tuple[int, Resume] | None = None
        #: file name → (records of the last chunk, index of the next one, offset behind the chunk, damage in it)
        self._chunks: dict[str, tuple[list[Any], int, int, int]] = {}
        self._turn = ""

    def next(self, final: bool) -> Group | None:
        """The next group; None when there is nothing more for now.

        Args:
            final: nobody writes any more.

        Raises:
            OSError: a journal cannot be read.
        """
        attempts = sort_journals(self._folder)
        newest = max(attempts, default=0)
        for attempt, names in sorted(attempts.items()):
            ended = final or attempt < newest  # the next attempt starts when nothing of this one runs any more
            names = [n for n in names if n > self._turn] + [n for n in names if n <= self._turn]
            for name in names:
                if name not in self._chunks and journal_size(self._folder / name) <= self._offsets.get(name, 0):
                    continue
                group = self._read(name, attempt, attempts, ended)
                if group is not None:
                    self._turn = name
                    return group
            if ended:
                group = self._finish(attempt, attempts)
                if group is not None:
                    return group
        return None

    def _rule(self, attempt: int, attempts: dict[int, list[str]]) -> Resume | None:
        first = min(attempts)
        if attempt == first:
            return None
        if self._resume is None or self._resume[0] != attempt:
            earlier = [self._folder / n for a, names in sorted(attempts.items()) if a < attempt for n in names]
            self._resume = (attempt, Resume(earlier, self._states.get(str(attempt))))
        return self._resume[1]

    def _finish(self, attempt: int, attempts: dict[int, list[str]]) -> Group | None:
        held = self._states.get(str(attempt), {}).get("held")
        if not held:
            return None
        rule = self._rule(attempt, attempts)
        assert rule is not None
        building = _Building(self._run)
        for point in rule.finish():
            building.point(point)
        group = Group(building.close())
        self._note(group, attempt, rule)
        return group

    def _note(self, group: Group, attempt: int, rule: Resume | None) -> None:
        if rule is not None:
            state = rule.state()
            if state != self._states.get(str(attempt), {"known": [], "held": []}):
                self._states[str(attempt)] = state
                group.resume = (attempt, state)

    def _read(self, name: str, attempt: int, attempts: dict[int, list[str]], ended: bool) -> Group | None:
        rule = self._rule(attempt, attempts)
        building = _Building(self._run)
        begin = self._offsets.get(name, 0)
        group = Group(name=name, offset=begin)
        until = time.monotonic() + MAX_SECONDS
        # Bounded in bytes and time too: a file that is all damage must not keep the thread from other jobs.
        while building.records < MAX_ITEMS and not building.full and group.offset - begin < MAX_READ and (
                group.offset == begin or time.monotonic() < until):
            chunk = self._chunks.pop(name, None)
            if chunk is None:
                records, behind, damage = journal.read(self._folder / name, group.offset, CHUNK, ended)
                if behind == group.offset:
                    break
                chunk = (records, 0, behind, damage)
            records, index, behind, damage = chunk
            while index < len(records) and building.records < MAX_ITEMS and not building.full:
                record, group.offset = records[index]
                index += 1
                if isinstance(record, Call):
                    building.call(record)
                elif rule is None:
                    building.point(record)
                else:
                    points, dropped = rule.admit(record)
                    group.duplicates += dropped
                    building.records += not points
                    for point in points:
                        building.point(point)
            if index < len(records):
                self._chunks[name] = (records, index, behind, damage)
                break
            group.offset = behind
            group.damaged += damage
        if group.offset == begin:
            return None
        self._offsets[name] = group.offset
        group.requests = building.close()
        self._note(group, attempt, rule)
        return group


def journal_size(path: Path | str) -> int:
    """Bytes of a journal; 0 when there is none, or something else of that name."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


def sort_journals(folder: Path | str) -> dict[int, list[str]]:
    """attempt → names of its journals, sorted; empty when there are none."""
    found: dict[int, list[str]] = {}
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return found
    for name in names:
        match = _NAME.match(name)
        if match:
            found.setdefault(int(match[1]), []).append(name)
    return found


class _Building:
    """Gathers records into batches, one open batch a run; calls that are no params or tags come between."""

    def __init__(self, run: str) -> None:
        self._own = run
        self._open: dict[str, Batch] = {}
        self._requests: list[tuple[Batch, bytes] | Call] = []
        self.records = 0
        self.full = False

    def _batch(self, run: str) -> Batch:
        batch = self._open.get(run)
        if batch is not None and batch.full:
            self._send(run)
            batch = None
        if batch is None:
            batch = self._open[run] = Batch(run)
        return batch

    def _send(self, run: str) -> None:
        batch = self._open.pop(run)
        if len(batch):
            self._requests.append((batch, batch.encode(batch.run)))

    def point(self, point: Metric) -> None:
        """One metric."""
        batch = self._batch(point.run or self._own)
        batch.metrics.append({
            "key": point.key, "value": _value(point.value), "timestamp": point.timestamp, "step": point.step,
        })
        self.records += 1
        if len(batch.metrics) >= MAX_ITEMS:
            self.full = True

    def call(self, call: Call) -> None:
        """One REST message, in its place among the others."""
        self.records += 1
        body = call.body if isinstance(call.body, dict) else {}
        run = str(body.get("run_id") or self._own)
        try:
            pairs = _pairs(call.api, body)
        except TypeError:  # no lists where lists belong: it is refused where it is sent
            pairs = None
        if pairs is None:
            for open_run in list(self._open):
                self._send(open_run)
            self._requests.append(Call(call.api, {**body, "run_id": run} if "run_id" in body else body))
            return
        params, tags = pairs
        items = [("params", p) for p in params] + [("tags", t) for t in tags]
        if not items:
            return
        for kind, item in items:
            batch = self._batch(run)
            present = getattr(batch, kind)
            same = next((p for p in present if p["key"] == item["key"]), None)
            if same is not None and (kind == "tags" or same["value"] == item["value"]):
                same["value"] = item["value"]
                batch.merged += 1
                continue
            if same is not None or len(present) >= MAX_PAIRS:
                self._send(run)
                batch = self._batch(run)
            getattr(batch, kind).append(item)
            batch.text += len(item["key"]) + len(item["value"])

    def close(self) -> list[tuple[Batch, bytes] | Call]:
        """All requests, in order."""
        for run in list(self._open):
            self._send(run)
        return self._requests


def _pairs(api: str, body: dict[str, Any]) -> tuple[list[dict[str, str]], list[dict[str, str]]] | None:
    """(params, tags) of a message that is nothing else; None for any other message."""
    if api == "SetTag":
        return [], [_pair(body)]
    if api == "LogParam":
        return [_pair(body)], []
    if api == "LogBatch" and not body.get("metrics"):
        return [_pair(p) for p in body.get("params") or []], [_pair(t) for t in body.get("tags") or []]
    return None


def _pair(item: Any) -> dict[str, str]:
    item = item if isinstance(item, dict) else {}
    return {"key": str(item.get("key", "")), "value": str(item.get("value") or "")}
