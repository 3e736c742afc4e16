"""Which jobs are looked at when: pauses of single jobs, calm ones, and how many endings are under way at once.

All of it is in memory only; after a start everything is looked at.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

#: Seconds between looks at a job that simply runs; its end is told by its supervisor's.
CALM = 2.0
#: Jobs that have ended whose rest is delivered at once: while MLflow is away they wait, and others must be looked at.
ENDING = 4


class Pace:
    """For the jobs of one event loop; whatever is not named here is looked at every round."""

    def __init__(self) -> None:
        #: job → (when, by the loop's clock, its pause is over; how long that was, in seconds)
        self._paused: dict[str, tuple[float, float]] = {}
        #: When a job that simply runs is looked at again: each look costs the processors on which it trains.
        self._calm: dict[str, float] = {}
        #: Jobs that are Finalizing: those due, and those that are at it.
        self._ended: deque[str] = deque()
        self._ending: set[str] = set()

    def due(self, name: str) -> bool:
        """Whether no pause of the job is left."""
        return self._paused.get(name, (0.0, 0.0))[0] <= asyncio.get_running_loop().time()

    def wanted(self, names: Iterable[str]) -> list[str]:
        """Those that are to be looked at: without a pause, and not simply running and looked at a moment ago."""
        now = asyncio.get_running_loop().time()
        calm, paused = self._calm, self._paused
        return [n for n in names if calm.get(n, 0.0) <= now and (n not in paused or paused[n][0] <= now)]

    def runs(self, name: str, seconds: float = CALM) -> None:
        """The job simply runs: it is looked at again after so many seconds, unless something is told of it."""
        self._calm[name] = asyncio.get_running_loop().time() + seconds

    def paused(self, name: str) -> bool:
        """Whether the job was given a pause, over or not."""
        return name in self._paused

    def pause(self, name: str, seconds: float) -> float:
        """Leave the job alone for a while; returns until when, by the loop's clock."""
        until = asyncio.get_running_loop().time() + seconds
        self._paused[name] = (until, seconds)
        return until

    def back_off(self, name: str, least: float, most: float) -> None:
        """Leave the job alone for twice as long as the last time."""
        self.pause(name, min(max(self._paused.get(name, (0.0, 0.0))[1] * 2, least), most))

    def go_on(self, name: str) -> None:
        """No pause any more."""
        self._paused.pop(name, None)

    def forget(self, name: str) -> None:
        """The job has ended, or is gone."""
        self._paused.pop(name, None)
        self._calm.pop(name, None)

    def ended(self, names: Iterable[str]) -> list[str]:
        """Told all that are Finalizing; returns those whose turn it is, a few at a time."""
        self._ended = deque(name for name in names if self.due(name) and name not in self._ending)
        return self._next()

    def looked_at(self, name: str) -> list[str]:
        """One look at a job is over; returns those whose turn it is instead, when it was Finalizing."""
        if name not in self._ending:
            return []
        self._ending.discard(name)
        return self._next()

    def _next(self) -> list[str]:
        names = []
        while self._ended and len(self._ending) < ENDING:
            names.append(self._ended.popleft())
            self._ending.add(names[-1])
        return names
