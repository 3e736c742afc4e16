"""Who runs next on a compute: accounting of CPUs, memory and GPUs, without any input or output.

The rules, in this order:

1. Priority: high, then medium, then low.
2. Between users of one priority: whoever has the smallest share in use, where a user's share is that of the resource
   of which the user has most; when shares are equal, whoever was served longest ago.
3. Between the jobs of one user: as they were submitted.

The job that these rules choose is the head. It is the head until it starts or a job of a higher priority comes. While
it does not fit, all that it asks for is set aside for it, so that a job behind it may only start with what is left
beyond; a stream of small jobs never delays a large one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

PRIORITIES = {"high": 0, "medium": 1, "low": 2}
#: Shares and fractions are sums of floats.
_TINY = 1e-9
#: Names that a reason gives at most.
_NAMED = 3


@dataclass(frozen=True)
class Request:
    """What a job asks for: CPUs, bytes of memory (0: not counted), GPUs (whole ones, or less than one)."""

    cpus: float = 1.0
    memory: int = 0
    gpus: float = 0.0


@dataclass(frozen=True)
class Capacity:
    """What a compute has for jobs."""

    cpus: float
    memory: int
    gpus: int

    def lacks(self, request: Request) -> str:
        """Why a request can never be met, in words; empty when it can."""
        if request.gpus > self.gpus:
            return f"needs {_number(request.gpus)} {_plural('GPU', request.gpus)}, {_are(self.gpus)} there"
        if request.cpus > self.cpus + _TINY:
            return f"needs {_number(request.cpus)} {_plural('CPU', request.cpus)}, {_are(self.cpus)} there"
        if self.memory and request.memory > self.memory:
            return f"needs {_size(request.memory)} of memory, {_size(self.memory)} are there"
        return ""


@dataclass(frozen=True)
class Holder:
    """A job that has its slots."""

    name: str
    user: str
    request: Request
    gpu_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Waiting:
    """A job that waits; ``order`` grows with the time of submission."""

    name: str
    user: str
    request: Request
    order: tuple[str, str]
    priority: int = PRIORITIES["medium"]


@dataclass(frozen=True)
class Start:
    """A job that starts now, and the indices of the GPUs that it gets."""

    name: str
    gpu_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a job stands: ``place`` 1 is the next of ``length``."""

    place: int
    length: int
    reason: str


@dataclass
class _Free:
    """What is left of a compute."""

    capacity: Capacity
    cpus: float = 0.0
    memory: int = 0
    gpus: list[float] = field(default_factory=list)  # what is free of each

    @classmethod
    def beside(cls, capacity: Capacity, holders: Iterable[Holder]) -> _Free:
        free = cls(capacity, capacity.cpus, capacity.memory, [1.0] * capacity.gpus)
        for holder in holders:
            free.take(holder.request, holder.gpu_ids)
        return free

    def lacking(self, request: Request) -> list[str]:
        """Names of what there is not enough of now."""
        names = []
        if request.cpus > self.cpus + _TINY:
            names.append("cpus")
        if self.capacity.memory and request.memory > self.memory:
            names.append("memory")
        if request.gpus and self.choose(request.gpus) is None:
            names.append("gpus")
        return names

    def choose(self, gpus: float) -> tuple[int, ...] | None:
        """Indices of GPUs for a request; a fraction goes where the least is left of one that it fits on."""
        if not gpus:
            return ()
        if gpus < 1:
            fits = [(left, index) for index, left in enumerate(self.gpus) if left >= gpus - _TINY]
            return (min(fits)[1],) if fits else None
        whole = [index for index, left in enumerate(self.gpus) if left >= 1 - _TINY]
        return tuple(whole[: int(gpus)]) if len(whole) >= gpus else None

    def take(self, request: Request, gpu_ids: Collection[int]) -> None:
        self.cpus -= request.cpus
        self.memory -= request.memory
        for index in gpu_ids:
            if index < len(self.gpus):  # a machine may come back with fewer
                self.gpus[index] -= min(request.gpus, 1.0)

    def set_aside(self, request: Request) -> None:
        """Keep for a job that does not fit what it will need: all of a resource of which there is too little."""
        self.cpus = max(self.cpus - request.cpus, 0.0)
        self.memory = max(self.memory - request.memory, 0)
        if request.gpus:
            chosen = self.choose(request.gpus)
            for index in range(len(self.gpus)) if chosen is None else chosen:
                self.gpus[index] = 0.0 if chosen is None else self.gpus[index] - min(request.gpus, 1.0)


class Queue:
    """The queue of one compute, in memory: jobs are added, granted, and released when they have ended."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self.holders: dict[str, Holder] = {}
        self.waiting: dict[str, Waiting] = {}
        #: Jobs that ask for more than there is since the compute has become smaller: they delay nobody.
        self.impossible: dict[str, Waiting] = {}
        self._served: dict[str, int] = {}  # user → when last served, counted in grants
        self._grants = 0
        self._head = ""
        self._places: dict[str, Place] | None = None

    # -- what happens

    def hold(self, holder: Holder) -> None:
        """A job runs already: found again after a restart."""
        self.waiting.pop(holder.name, None)
        self.holders[holder.name] = holder
        self._places = None

    def add(self, job: Waiting) -> None:
        """A job waits; nothing happens when it does already, or has its slots."""
        if job.name not in self.holders and job.name not in self.waiting and job.name not in self.impossible:
            lacking = self.capacity.lacks(job.request)
            (self.impossible if lacking else self.waiting)[job.name] = job
            self._places = None

    def remove(self, name: str) -> None:
        """A job neither waits nor has slots any more."""
        found = [jobs.pop(name, None) for jobs in (self.waiting, self.impossible)]
        if self.holders.pop(name, None) is not None or any(found):
            self._places = None

    def resize(self, capacity: Capacity) -> None:
        """The compute has become another one. Whoever runs goes on."""
        if capacity != self.capacity:
            self.capacity = capacity
            jobs = [*self.waiting.values(), *self.impossible.values()]
            self.waiting, self.impossible = {}, {}
            self._places = None
            for job in jobs:
                self.add(job)

    # -- who starts

    def grant(self) -> list[Start]:
        """Give slots to all that start now."""
        starts: list[Start] = []
        if not self.waiting:
            return starts
        free = _Free.beside(self.capacity, self.holders.values())
        lines = _Lines(self.waiting.values(), self._shares(), self._served, self._head)
        head = ""
        while free.cpus > _TINY:  # every job needs some
            job = lines.next()
            if job is None:
                break
            if free.lacking(job.request):
                head = head or job.name
                free.set_aside(job.request)
                lines.skip(job)
                continue
            gpu_ids = free.choose(job.request.gpus) or ()
            free.take(job.request, gpu_ids)
            self._serve(job, gpu_ids)
            lines.serve(job, self._share(job.request), self._grants)
            starts.append(Start(job.name, gpu_ids))
        # Chosen also when nothing at all is free, so that it keeps its place from now on.
        if not head:
            chosen = lines.next()
            head = chosen.name if chosen else ""
        self._head = head
        if starts:
            self._places = None
        return starts

    def _serve(self, job: Waiting, gpu_ids: tuple[int, ...]) -> None:
        self._grants += 1
        self._served[job.user] = self._grants
        del self.waiting[job.name]
        self.holders[job.name] = Holder(job.name, job.user, job.request, gpu_ids)

    def _share(self, request: Request) -> float:
        """The dominant share of a request."""
        shares = [request.cpus / self.capacity.cpus if self.capacity.cpus else 1.0]
        if self.capacity.memory:
            shares.append(request.memory / self.capacity.memory)
        if self.capacity.gpus:
            shares.append(request.gpus / self.capacity.gpus)
        return max(shares)

    def _shares(self) -> dict[str, float]:
        """user → dominant share in use."""
        sums: dict[str, Request] = {}
        for holder in self.holders.values():
            a, b = sums.get(holder.user, Request(0.0)), holder.request
            sums[holder.user] = Request(a.cpus + b.cpus, a.memory + b.memory, a.gpus + b.gpus)
        return {user: self._share(request) for user, request in sums.items()}

    # -- what is told

    def used(self) -> Request:
        """What all holders have together."""
        held = [holder.request for holder in self.holders.values()]
        return Request(sum(r.cpus for r in held), sum(r.memory for r in held), sum(r.gpus for r in held))

    def place(self, name: str) -> Place | None:
        """Where a waiting job stands and what it waits for; None when it does not wait here."""
        if self._places is None:
            self._places = self._all_places()
        return self._places.get(name)

    def _all_places(self) -> dict[str, Place]:
        lines = _Lines(self.waiting.values(), self._shares(), self._served, self._head)
        places: dict[str, Place] = {}
        length = len(self.waiting) + len(self.impossible)
        grants = self._grants
        while True:
            job = lines.next()
            if job is None:
                break
            grants += 1
            lines.serve(job, self._share(job.request), grants)
            ahead = len(places)
            reason = self._wants(job) if not ahead else f"waits for its turn behind {ahead} {_plural('job', ahead)}"
            places[job.name] = Place(ahead + 1, length, reason)
        for job in self.impossible.values():
            places[job.name] = Place(len(places) + 1, length, self.capacity.lacks(job.request))
        return places

    def _wants(self, job: Waiting) -> str:
        """What the head waits for, and who has it."""
        free = _Free.beside(self.capacity, self.holders.values())
        lacking = free.lacking(job.request)
        if not lacking:
            return "starts next"
        request, what = job.request, lacking[0]
        if what == "cpus":
            text = f"{_number(request.cpus)} of {_number(self.capacity.cpus)} {_plural('CPU', self.capacity.cpus)}"
            users = [h.name for h in self.holders.values() if h.request.cpus]
        elif what == "memory":
            text = f"{_size(request.memory)} of {_size(self.capacity.memory)} memory"
            users = [h.name for h in self.holders.values() if h.request.memory]
        else:
            text = f"{_number(request.gpus)} of {self.capacity.gpus} {_plural('GPU', self.capacity.gpus)}"
            users = [h.name for h in self.holders.values() if h.gpu_ids]
        more = len(users) - _NAMED
        names = ", ".join(users[:_NAMED]) + (f" and {more} more" if more > 0 else "")
        return f"waits for {text}: in use by {names}"


class _Lines:
    """Waiting jobs, a line for each priority and user; says whose turn it is."""

    def __init__(
        self, waiting: Iterable[Waiting], shares: Mapping[str, float], served: Mapping[str, int], head: str
    ) -> None:
        self._lines: dict[int, dict[str, deque[Waiting]]] = {}
        self._shares = dict(shares)
        self._served = dict(served)
        self._head: Waiting | None = None
        for job in sorted(waiting, key=lambda job: job.order):
            self._lines.setdefault(job.priority, {}).setdefault(job.user, deque()).append(job)
            if job.name == head:
                self._head = job

    def next(self) -> Waiting | None:
        """The job whose turn it is; None when none is left."""
        if not self._lines:
            return None
        priority = min(self._lines)
        if self._head is not None and self._head.priority == priority:
            return self._head
        lines = self._lines[priority]

        def rank(user: str) -> tuple[float, int, tuple[str, str]]:
            return round(self._shares.get(user, 0.0), 9), self._served.get(user, 0), lines[user][0].order

        return lines[min(lines, key=rank)][0]

    def skip(self, job: Waiting) -> None:
        """It stays where it is; whose turn is it then?"""
        line = self._lines[job.priority][job.user]
        line.remove(job)
        if not line:
            del self._lines[job.priority][job.user]
            if not self._lines[job.priority]:
                del self._lines[job.priority]
        if self._head is job:
            self._head = None

    def serve(self, job: Waiting, share: float, when: int) -> None:
        """It starts."""
        self.skip(job)
        self._shares[job.user] = self._shares.get(job.user, 0.0) + share
        self._served[job.user] = when


def _number(value: float) -> str:
    return f"{value:g}"


def _plural(word: str, count: float) -> str:
    return word if count == 1 else word + "s"


def _are(count: float) -> str:
    return f"{_number(count)} {'is' if count == 1 else 'are'}"


def _size(count: int) -> str:
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.1f} {unit}" if unit != "B" else f"{count} B"
