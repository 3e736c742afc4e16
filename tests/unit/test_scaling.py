"""The rule by which deployments get instances: bounded, monotone, and calm under a constant load."""

from __future__ import annotations

import dataclasses
import itertools

from hypothesis import given
from hypothesis import strategies as st

from jupyter_mlops.serving.instances import MAX_INSTANCES
from jupyter_mlops.serving.observation import Instance, combine
from jupyter_mlops.serving.scaling import DOWN_AFTER, Limits, Load, Past, decide, demand_of

LIMITS = st.builds(
    lambda least, more, target: Limits(True, least, max(1, least + more), target=target / 100),
    st.integers(0, 5), st.integers(0, 20), st.integers(1, 100),
)
DEMAND = st.floats(0, 100, allow_nan=False)
PAST = st.builds(Past, st.integers(0, MAX_INSTANCES), st.none() | st.floats(0, 1000))


@given(limits=LIMITS, demand=DEMAND, waiting=st.integers(0, 1000), idle=st.floats(0, 1000), past=PAST)
def test_it_keeps_within_its_bounds_and_its_pace(limits, demand, waiting, idle, past):
    wanted = decide(limits, demand, waiting, idle, past, 1000.0).wanted
    assert limits.least <= wanted <= limits.most
    assert wanted <= max(2 * past.wanted, limits.least, 1), "at most twice as many at once"
    if wanted == 0:
        assert limits.least == 0 and not waiting and idle >= limits.idle
    if waiting or limits.least or idle < limits.idle:
        assert wanted >= min(past.wanted, limits.most) - 1, "down by one"


@given(limits=LIMITS, one=DEMAND, two=DEMAND, waiting=st.integers(0, 100), more=st.integers(0, 100),
       idle=st.floats(0, 1000), past=PAST)
def test_more_to_do_never_means_fewer(limits, one, two, waiting, more, idle, past):
    low, high = sorted((one, two))
    assert decide(limits, low, waiting, idle, past, 1000.0).wanted \
        <= decide(limits, high, waiting + more, idle, past, 1000.0).wanted


@given(limits=LIMITS, demand=DEMAND, start=st.integers(0, MAX_INSTANCES))
def test_a_constant_load_is_met_and_then_left_alone(limits, demand, start):
    past, now, seen = Past(start), 0.0, []
    for _ in range(MAX_INSTANCES * 2):
        past = decide(limits, demand, 1, 0.0, past, now)
        seen.append(past.wanted)
        now += DOWN_AFTER
    last = seen[-1]
    assert set(seen[-MAX_INSTANCES:]) == {last}, "no flapping"
    ups = [b > a for a, b in itertools.pairwise(seen) if a != b]
    assert all(ups) or not any(ups), "up or down, not both"
    assert last == limits.most or demand <= limits.target * last + 1e-6, "enough"
    floor = max(1, limits.least)
    assert last == floor or demand > 0.9 * limits.target * (last - 1), "and not more than that"


def test_down_takes_a_quiet_minute_and_a_burst_begins_it_anew():
    limits = Limits(True, 1, 8)
    past = Past(4)
    for second in range(59):
        past = decide(limits, 0.1, 0, 5.0, past, float(second))
    assert past.wanted == 4
    past = decide(limits, 2.6, 5, 0.0, past, 59.0)
    assert past.wanted == 4 and past.quiet_since is None
    seen = []
    for second in range(60, 300):
        past = decide(limits, 0.1, 0, 5.0, past, float(second))
        seen.append(past.wanted)
    assert [seen.count(n) for n in (4, 3, 2)] == [60, 60, 60] and seen[-1] == 1


def test_up_at_once_by_doubling():
    limits, past, seen = Limits(True, 1, 10), Past(1), []
    for second in range(5):
        past = decide(limits, 9.0, 900, 0.0, past, float(second))
        seen.append(past.wanted)
    assert seen == [2, 4, 8, 10, 10] and "worth of requests" in past.reason


def test_to_zero_and_back():
    limits = Limits(True, 0, 3, idle=30)
    assert decide(limits, 0.0, 0, 29.0, Past(3), 0.0).wanted == 3
    asleep = decide(limits, 0.0, 0, 30.0, Past(3), 0.0)
    assert (asleep.wanted, asleep.reason) == (0, "no request for 30 s")
    assert decide(limits, 0.0, 1, 31.0, Past(3), 0.0).wanted == 3, "what is under way keeps it awake"
    awake = decide(limits, 0.1, 1, 0.0, asleep, 1.0)
    assert (awake.wanted, awake.reason) == (1, "a request waits")


def test_what_the_settings_ask_for():
    assert Limits.of({}) == Limits()
    fixed = Limits.of({"instance_count": 3, "scale_settings": {"type": "default", "max_instances": 9}})
    assert (fixed.automatic, fixed.least, fixed.most) == (False, 3, 3)
    assert decide(fixed, 50.0, 100, 0.0, Past(1), 0.0).wanted == 3
    found = Limits.of({"instance_count": 2, "request_settings": {"max_concurrent_requests_per_instance": 10},
                       "scale_settings": {"type": "target_utilization", "min_instances": 0, "max_instances": 4,
                                          "target_utilization_percentage": 50, "polling_interval": 2,
                                          "idle_seconds": 60}})
    assert found == Limits(True, 0, 4, 0.5, 10, 2.0, 60.0)
    senseless = {"scale_settings": {"type": "target_utilization", "min_instances": "x", "max_instances": 10**9,
                                    "polling_interval": float("nan"), "target_utilization_percentage": -1},
                 "request_settings": [], "instance_count": True}
    assert dataclasses.astuple(Limits.of(senseless)) == (True, 1, MAX_INSTANCES, 0.01, 64, 1, 300, 30.0)
    crossed = {"type": "target_utilization", "min_instances": 5, "max_instances": 2}
    assert Limits.of({"scale_settings": crossed}).most == 5


def test_demand_is_time_or_requests_whichever_is_more():
    limits = Limits(hold=10)
    assert demand_of(Load(queued=3, in_flight=2), limits, 0.4) == 0.5
    assert demand_of(Load(queued=0, in_flight=2), limits, 1.8) == 1.8
    assert demand_of(Load(), limits, 0.0) == 0.0


def test_a_deployment_is_as_well_as_its_best_instance():
    def say(wanted, *seen):
        found, about = combine(wanted, [Instance(i, *s) for i, s in enumerate(seen)])
        return found.phase, found.reason, found.instances["ready"], about

    up, starting = ("ready", 11), ("starting", 12, "loading the model")
    dead, broken = ("absent", None, "the scorer ended"), ("failed", None, "the model cannot be loaded: x")
    assert say(1, up) == ("ready", "", 1, 0)
    assert say(2, up, up) == ("ready", "", 2, 0)
    assert say(2, up, starting) == ("ready", "instance 1: loading the model", 1, 1)
    assert say(3, broken, up, dead) == ("ready", "instance 0: the model cannot be loaded: x", 1, 0)
    assert say(2, dead, starting)[0] == "starting"
    assert say(2, broken, dead) == ("absent", "the scorer ended", 0, 1)
    assert say(2, broken, broken) == ("failed", "the model cannot be loaded: x", 0, 0)
    assert say(0) == ("ready", "scaled to zero: the next request starts it", 0, 0)
    assert say(1, broken, up)[0] == "failed", "one that is not wanted any more does not count"
    loop = Instance(0, "failed", crash_loop=True)
    assert combine(1, [loop])[0].crash_loop and not combine(2, [loop, Instance(1, "ready", 5)])[0].crash_loop
