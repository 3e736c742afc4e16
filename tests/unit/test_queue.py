"""The queue of a compute: never over capacity, in order, fair, nobody starves; with invented jobs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_mlops.core.queue import Capacity, Holder, Queue, Request, Waiting

TINY = 1e-6


def job(name: str, user: str = "ann", order: int = 0, priority: int = 1, **request) -> Waiting:
    return Waiting(name, user, Request(**request), (f"{order:09d}", name), priority)


def started(queue: Queue) -> list[str]:
    return [start.name for start in queue.grant()]


def reason(queue: Queue, name: str) -> str:
    place = queue.place(name)
    assert place is not None
    return place.reason


requests = st.builds(
    Request, cpus=st.sampled_from([0.5, 1.0, 2.0, 3.0, 4.0]), memory=st.sampled_from([0, 0, 1, 4, 8]),
    gpus=st.sampled_from([0.0, 0.0, 0.25, 0.5, 1.0, 2.0]),
)
jobs = st.lists(
    st.tuples(requests, st.sampled_from("abc"), st.integers(0, 2), st.integers(1, 5)), min_size=1, max_size=40
)
CAPACITY = Capacity(4.0, 8, 2)


class World:
    """Jobs that come, run for a while and end; time is counted in rounds."""

    def __init__(self, capacity: Capacity = CAPACITY) -> None:
        self.queue = Queue(capacity)
        self.left: dict[str, int] = {}
        self.length: dict[str, int] = {}
        self.order: list[str] = []

    def add(self, waiting: Waiting, length: int) -> None:
        self.length[waiting.name] = length
        self.queue.add(waiting)

    def round(self) -> None:
        for start in self.queue.grant():
            self.left[start.name] = self.length[start.name]
            self.order.append(start.name)
            held = self.queue.holders[start.name]
            assert held.gpu_ids == start.gpu_ids
            wanted = held.request.gpus
            assert len(start.gpu_ids) == (int(wanted) if wanted >= 1 else bool(wanted))
        self.check()
        for name in list(self.left):
            self.left[name] -= 1
            if not self.left[name]:
                del self.left[name]
                self.queue.remove(name)

    def check(self) -> None:
        """Never over capacity, and no GPU is given away twice."""
        used, capacity = self.queue.used(), self.queue.capacity
        assert used.cpus <= capacity.cpus + TINY and used.memory <= capacity.memory
        of_each = [0.0] * capacity.gpus
        for holder in self.queue.holders.values():
            for index in holder.gpu_ids:
                of_each[index] += min(holder.request.gpus, 1.0)
        assert all(share <= 1 + TINY for share in of_each)


@settings(max_examples=150, deadline=None)
@given(jobs)
def test_all_run_once_and_never_over_capacity(asked):
    world = World()
    for index, (request, user, priority, length) in enumerate(asked):
        world.add(Waiting(f"j{index}", user, request, (f"{index:09d}", ""), priority), length)
    places = [world.queue.place(f"j{index}") for index in range(len(asked))]
    assert sorted(p.place for p in places) == list(range(1, len(asked) + 1))
    for _ in range(5 * len(asked) + 5):
        world.round()
    assert sorted(world.order) == sorted(world.length) and not world.queue.waiting and not world.queue.holders


@settings(max_examples=60, deadline=None)
@given(jobs, st.integers(0, 2))
def test_a_large_job_is_never_starved_by_a_stream_of_small_ones(asked, running):
    """However others of its priority come and go for ever, it starts once those that ran before it have ended."""
    world = World()
    for index in range(running):
        world.add(job(f"before{index}", "big", index, cpus=1.0), 6)
    world.round()
    world.add(job("large", "big", 100, cpus=3.0, gpus=2.0, memory=8), 1)
    for turn in range(400):
        request, user, _, length = asked[turn % len(asked)]
        world.add(Waiting(f"s{turn}", user, request, (f"{101 + turn:09d}", ""), 1), length)
        world.round()
        if "large" in world.order:
            return
    raise AssertionError("it never started")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.5, 1.0, 2.0]), st.integers(1, 4)), min_size=2, max_size=20))
def test_one_user_is_served_in_order(asked):
    world = World(Capacity(2.0, 0, 0))
    for index, (cpus, length) in enumerate(asked):
        world.add(job(f"j{index:03d}", order=index, cpus=cpus), length)
    for _ in range(5 * len(asked)):
        world.round()
    assert world.order == sorted(world.order)


def test_priority_then_time():
    queue = Queue(Capacity(1.0, 0, 0))
    for index, priority in enumerate([2, 1, 0, 1, 0]):
        queue.add(job(f"j{index}", order=index, priority=priority))
    order = []
    while queue.waiting:
        order += started(queue)
        queue.remove(order[-1])
    assert order == ["j2", "j4", "j1", "j3", "j0"]


def test_users_take_turns_however_many_jobs_one_of_them_has():
    world = World(Capacity(2.0, 0, 0))
    for index in range(40):
        world.add(job(f"a{index}", "ann", index), 2)
    for index in range(4):
        world.add(job(f"b{index}", "bob", 100 + index), 2)
    for _ in range(12):
        world.round()
    assert {"b0", "b1", "b2", "b3"} <= set(world.order[:9])
    one = World(Capacity(1.0, 0, 0))  # all shares are the same whenever somebody is chosen
    for index in range(10):
        one.add(job(f"a{index}", "ann", index), 1)
    one.add(job("b", "bob", 100), 1)
    for _ in range(3):
        one.round()
    assert "b" in one.order[:2]


def test_what_the_head_asks_for_is_set_aside():
    queue = Queue(Capacity(8.0, 0, 2))
    queue.add(job("long", cpus=1.0, gpus=1.0))
    assert started(queue) == ["long"]
    queue.add(job("head", order=1, cpus=4.0, gpus=2.0))
    queue.add(job("gpu", order=2, cpus=1.0, gpus=0.5))
    queue.add(job("wide", order=3, cpus=4.0))
    queue.add(job("small", order=4, cpus=2.0))
    # A GPU is free, but the head will need both; of seven free CPUs it will need four, and `wide` waits for the rest.
    assert started(queue) == []
    queue.remove("wide")
    assert started(queue) == ["small"]
    queue.remove("long")
    assert started(queue) == ["head"]
    assert queue.holders["head"].gpu_ids == (0, 1)


def test_the_head_keeps_its_place():
    """Shares change with every job that ends; who is next once stays next, unless a higher priority comes."""
    queue = Queue(Capacity(4.0, 0, 0))
    queue.hold(Holder("mine", "ann", Request(1.0)))
    for index in range(3):
        queue.hold(Holder(f"b{index}", "bob", Request(1.0)))
    queue.add(job("large", "ann", 0, cpus=3.0))
    assert started(queue) == []
    for index in range(3):
        queue.add(job(f"late{index}", "bob", 1 + index))
        queue.remove(f"b{index}")
        assert started(queue) == (["large"] if index == 2 else [])
    queue.remove("large")
    queue.add(job("again", "ann", 10, cpus=4.0))
    queue.add(job("urgent", "bob", 11, priority=0))
    assert started(queue)[0] == "urgent"


def test_fractions_share_a_gpu_and_whole_ones_are_whole():
    queue = Queue(Capacity(16.0, 0, 2))
    for index, share in enumerate([0.5, 0.25, 0.25, 0.75]):
        queue.add(job(f"j{index}", order=index, gpus=share))
    assert [start.gpu_ids for start in queue.grant()] == [(0,), (0,), (0,), (1,)]
    queue.add(job("whole", order=9, gpus=1.0))
    assert started(queue) == []
    queue.remove("j3")
    assert queue.grant()[0].gpu_ids == (1,)


def test_reasons():
    queue = Queue(Capacity(2.0, 4_000_000_000, 1))
    queue.add(job("train-abc", cpus=1.0, memory=3_000_000_000, gpus=1.0))
    assert started(queue) == ["train-abc"]
    queue.add(job("two", order=1, cpus=2.0))
    queue.add(job("three", order=2))
    queue.add(job("four", order=3))
    assert started(queue) == []
    assert reason(queue, "two") == "waits for 2 of 2 CPUs: in use by train-abc"
    assert reason(queue, "three") == "waits for its turn behind 1 job"
    assert reason(queue, "four") == "waits for its turn behind 2 jobs"
    assert queue.place("train-abc") is None and queue.place("nobody") is None
    queue.remove("two")
    queue.remove("three")
    queue.remove("four")
    queue.add(job("memory", order=4, memory=2_000_000_000))
    assert reason(queue, "memory") == "waits for 2.0 GB of 4.0 GB memory: in use by train-abc"
    queue.remove("memory")
    queue.add(job("gpu", order=5, gpus=0.5))
    assert reason(queue, "gpu") == "waits for 0.5 of 1 GPU: in use by train-abc"


@pytest.mark.parametrize(("request_", "text"), [
    ({"gpus": 4.0}, "needs 4 GPUs, 2 are there"), ({"cpus": 3.0}, "needs 3 CPUs, 2 are there"),
    ({"memory": 9_000_000_000}, "needs 9.0 GB of memory, 4.0 GB are there"), ({"cpus": 2.0, "gpus": 2.0}, ""),
])
def test_what_can_never_be_met_is_said(request_, text):
    assert Capacity(2.0, 4_000_000_000, 2).lacks(Request(**request_)) == text


def test_a_compute_that_becomes_smaller_delays_nobody_else():
    queue = Queue(Capacity(4.0, 0, 0))
    queue.add(job("large", cpus=4.0))
    queue.hold(Holder("runs", "bob", Request(2.0)))
    queue.add(job("small", order=1))
    queue.resize(Capacity(3.0, 0, 0))
    assert reason(queue, "large") == "needs 4 CPUs, 3 are there"
    assert started(queue) == ["small"]
    queue.resize(Capacity(4.0, 0, 0))
    queue.remove("runs")
    queue.remove("small")
    assert started(queue) == ["large"]


def test_a_thousand_waiting_jobs_are_placed_and_granted_without_delay():
    queue = Queue(Capacity(2.0, 0, 0))
    for index in range(1000):
        queue.add(job(f"j{index}", "abcd"[index % 4], index))
    names = started(queue)
    assert len(names) == 2
    places = [queue.place(name) for name in queue.waiting]
    assert [p.place for p in places if p.place == 1] == [1] and all(p.length == 998 for p in places)
