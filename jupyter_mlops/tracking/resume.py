"""Which points of a repeated attempt count: the first value per run, key and step wins.

An attempt that resumes from a checkpoint logs steps again that the attempt before it had logged. Up to the high-water
mark of the earlier attempts those are dropped; points that share a step inside one attempt are all kept.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..runtime import journal
from ..runtime.journal import Metric

#: (run id, empty for the job's own; key)
Curve = tuple[str, str]
#: What a curve that was never stepped has turned out to be in this attempt.
_FREE, _STEPPED = "free", "stepped"
_CHUNK = 1 << 20


class Steps:
    """A set of steps. Those that are evenly spaced take no memory of their own: they are kept as progressions."""

    __slots__ = ("_first", "_last", "_reach", "_stride")

    def __init__(self) -> None:
        self._first, self._last, self._stride = array("q"), array("q"), array("q")
        #: largest of the first n lasts, once sorted by first
        self._reach: array[int] | None = None

    def __len__(self) -> int:
        """Number of progressions."""
        return len(self._first)

    def add(self, step: int) -> None:
        """Put a step in; fastest when steps come in order."""
        if self._first:
            last, stride = self._last[-1], self._stride[-1]
            if step == last:
                return
            if step > last and stride in (0, step - last):
                self._stride[-1] = step - last
                self._last[-1] = step
                self._reach = None
                return
        self._first.append(step)
        self._last.append(step)
        self._stride.append(0)
        self._reach = None

    def _sort(self) -> array[int]:
        order = sorted(range(len(self._first)), key=self._first.__getitem__)
        for name in ("_first", "_last", "_stride"):
            values = getattr(self, name)
            setattr(self, name, array("q", (values[i] for i in order)))
        reach = array("q")
        for last in self._last:
            reach.append(max(last, reach[-1]) if reach else last)
        self._reach = reach
        return reach

    def __contains__(self, step: int) -> bool:
        reach = self._reach if self._reach is not None else self._sort()
        i = bisect_right(self._first, step) - 1
        while i >= 0 and reach[i] >= step:
            first, stride = self._first[i], self._stride[i]
            if step == first or (step <= self._last[i] and stride and (step - first) % stride == 0):
                return True
            i -= 1
        return False

    @property
    def only_zero(self) -> bool:
        """Whether all steps are 0, as they are when nobody names a step."""
        return len(self._first) == 1 and self._first[0] == self._last[0] == 0


class Resume:
    """Looks at each point of one attempt in order and says which count.

    A curve that earlier attempts logged at step 0 only was perhaps never stepped: then its points are final values, and
    both attempts' count. So its first point at step 0 is held back until the next point of the curve tells.

    Args:
        earlier: the journals of all earlier attempts.
        state: what :meth:`state` returned for this attempt.
    """

    def __init__(self, earlier: Iterable[Path], state: dict[str, Any] | None = None) -> None:
        self._steps: dict[Curve, Steps] = {}
        self._known: dict[Curve, str] = {}
        self._held: dict[Curve, Metric] = {}
        for path in earlier:
            self._learn(path)
        try:
            for run, key, what in (state or {}).get("known", []):
                self._known[run, key] = what
            for run, key, value, step, timestamp in (state or {}).get("held", []):
                self._held[run, key] = Metric(key, float(value), step, timestamp, run)
        except (TypeError, ValueError):
            return  # the job's own code can write there too

    def _learn(self, path: Path) -> None:
        offset = 0
        while True:
            records, following, _ = journal.read(path, offset, _CHUNK, final=True)
            for record, _ in records:
                if isinstance(record, Metric):
                    steps = self._steps.get((record.run, record.key))
                    if steps is None:
                        steps = self._steps[record.run, record.key] = Steps()
                    steps.add(record.step)
            if following == offset:
                return
            offset = following

    def admit(self, point: Metric) -> tuple[list[Metric], int]:
        """(points that count now, number of points that are dropped)."""
        curve = (point.run, point.key)
        steps = self._steps.get(curve)
        if steps is None:
            return [point], 0
        if steps.only_zero and self._known.get(curve) != _STEPPED:
            return self._unstepped(curve, point)
        return ([], 1) if point.step in steps else ([point], 0)

    def _unstepped(self, curve: Curve, point: Metric) -> tuple[list[Metric], int]:
        if self._known.get(curve) == _FREE:
            return [point], 0
        held = self._held.pop(curve, None)
        if point.step:
            self._known[curve] = _STEPPED
            return [point], int(held is not None)
        if held is None:
            self._held[curve] = point
            return [], 0
        self._known[curve] = _FREE
        return [held, point], 0

    def finish(self) -> list[Metric]:
        """The attempt has ended: what was held back counts."""
        held, self._held = list(self._held.values()), {}
        return held

    def state(self) -> dict[str, Any]:
        """What cannot be learned from the earlier attempts again; JSON."""
        return {
            "known": [[run, key, what] for (run, key), what in self._known.items()],
            "held": [[m.run, m.key, repr(m.value), m.step, m.timestamp] for m in self._held.values()],
        }
