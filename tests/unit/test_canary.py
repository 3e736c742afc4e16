"""When a canary is promoted and when it is rolled back, from what the gateway counts; against a real store."""

from __future__ import annotations

import math
import shutil
import time
from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_mlops.core import traffic
from jupyter_mlops.core.controllers.canary import CanaryController, Counts, judge
from jupyter_mlops.core.identity import Identity
from jupyter_mlops.core.resources import CanarySpec, DeploymentSpec, EndpointSpec
from jupyter_mlops.core.store import Store

ANN = Identity("ann", "owner")
BOUNDS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, None)


def spec(**more) -> CanarySpec:
    return CanarySpec(deployment="green", **more)


def counts(good: int, failed: int = 0, ms: float = 4.0) -> Counts:
    bound = next((b for b in BOUNDS if b is not None and ms <= b), None)
    return Counts(good + failed, failed, {"inf" if bound is None else repr(bound): good} if good else {})


@pytest.mark.parametrize(
    ("asked", "candidate", "baseline", "seconds", "todo", "words"),
    [
        (spec(), counts(0), counts(0), 1, "wait", "0 of 50"),
        (spec(), counts(49), counts(400), 1000, "wait", "49 of 50"),
        (spec(), counts(50), counts(400), 299, "wait", "50 of 50"),
        (spec(), counts(50), counts(400), 300, "promote", "50 requests in 300 s"),
        (spec(), counts(50), counts(0), 300, "promote", "50 requests"),
        # Errors: judged from 20 on, one alone not before min_requests.
        (spec(), counts(3, 1), counts(400), 5, "wait", "4 of 50"),
        (spec(), counts(0, 4), counts(400), 5, "wait", "4 of 50"),
        (spec(), counts(0, 5), counts(400), 5, "rollback", "all of its 5 requests failed"),
        (spec(min_requests=1), counts(0, 1), counts(400), 5, "rollback", "all of its 1"),
        (spec(), counts(19, 1), counts(400), 5, "wait", "20 of 50"),
        (spec(), counts(18, 2), counts(400), 5, "rollback", "2 of 20 requests failed"),
        (spec(), counts(49, 1), counts(400), 5, "wait", "50 of 50"),
        (spec(), counts(48, 2), counts(400), 5, "rollback", "(4.0%); 2.0% are allowed"),
        (spec(max_error_rate=0.1), counts(46, 4), counts(400), 5, "wait", ""),
        # What fails at the others too is not the candidate's fault.
        (spec(), counts(40, 10), counts(320, 80), 5, "wait", ""),
        (spec(), counts(30, 20), counts(320, 80), 5, "rollback", "20.0% at the others"),
        (spec(), counts(40, 10), counts(0, 3), 5, "rollback", "10 of 50"),
        # Latency.
        (spec(), counts(50, ms=20), counts(400, ms=5), 5, "rollback", "times the others'"),
        (spec(), counts(50, ms=5), counts(400, ms=1), 5, "wait", ""),
        (spec(), counts(10, ms=100), counts(400, ms=1), 5, "wait", "10 of 50"),
        (spec(min_requests=5), counts(10, ms=100), counts(400, ms=1), 400, "rollback", "times"),
        (spec(max_latency_ratio=30), counts(50, ms=20), counts(400, ms=5), 5, "wait", ""),
        (spec(max_latency_ms=8), counts(50, ms=20), counts(0), 5, "rollback", "8 ms are allowed"),
        (spec(), counts(50, ms=20), counts(3, ms=1), 300, "promote", ""),
    ],
)
def test_judgement(asked, candidate, baseline, seconds, todo, words):
    got, reason = judge(asked, candidate, baseline, seconds)
    assert (got, words in reason) == (todo, True), reason
    assert "\n" not in reason


@given(st.lists(st.floats(0.01, 99), min_size=1, max_size=300), st.floats(0.01, 1))
def test_a_quantile_lies_in_its_bucket(values, share):
    bounds = list(BOUNDS[:-1])
    latency = {repr(b): 0 for b in bounds}
    for value in values:
        latency[repr(bounds[bisect_left(bounds, value)])] += 1
    true = sorted(values)[min(len(values), math.ceil(share * len(values))) - 1]
    found = Counts(len(values), 0, latency).quantile(share)
    place = bisect_left(bounds, true)
    assert found is not None
    assert (bounds[place - 1] if place else 0.0) * 0.999 <= found <= bounds[place] * 1.001
    assert Counts().quantile(share) is None


def test_counts_begin_anew_with_the_gateway():
    assert counts(10).since(counts(4)) == counts(6)
    assert counts(3).since(counts(4)) == counts(3)
    assert counts(30, 1).since(counts(4, 2)) == counts(30, 1)


# -- the controller


def stats(started_at: float = 1.0, **deployments) -> dict:
    """What ``/admin/stats`` says: deployment → (good, failed, bad input, milliseconds)."""
    told = {}
    for name, (good, failed, bad, ms) in deployments.items():
        seen, buckets = 0, []
        for bound in BOUNDS:
            if good and not seen and (bound is None or ms <= bound):
                seen = good
            buckets.append([bound, seen])
        told[name] = {
            "requests": good + failed + bad, "latency_ms": {"buckets": buckets},
            "errors": {"4xx": bad, "5xx": 0, "model": failed, "timeout": 0, "rejected": 0},
        }
    return {"started_at": started_at, "endpoints": {"digits": {"deployments": told}}}


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "store.db"
    s = Store(path)
    s.open()

    def fill(tx):
        tx.put("endpoint", "digits", EndpointSpec().model_dump(mode="json"), identity=ANN, status={"phase": "Ready"})
        for name in ("blue", "green"):
            told = DeploymentSpec(model="m/1").model_dump(mode="json")
            tx.put("deployment", name, told, identity=ANN, parent="digits", status={"phase": "Ready"})
        tx.set_status("endpoint", "digits", {"traffic": {"blue": 100}})
        traffic.start_canary(tx, "digits", spec(min_requests=20, duration=60), ANN)

    s._run("BEGIN IMMEDIATE", fill)
    s.close()
    return path


class Trial:
    """One endpoint with a canary that runs; every look is made by a controller that knows nothing."""

    def __init__(self, path):
        self.store = Store(path)

    def run(self, work):
        return self.store._run("BEGIN IMMEDIATE", work)

    def look(self, told, seconds: float = 0.0) -> bool:
        controller = CanaryController(lambda compute: None)
        return self.run(lambda tx: controller.look(tx, "digits", told, time.time() + seconds))

    @property
    def endpoint(self):
        return self.run(lambda tx: tx.get("endpoint", "digits"))

    @property
    def canary(self):
        return self.endpoint.status["canary"]


@pytest.fixture
def trial(filled, tmp_path):
    for path in filled.parent.iterdir():
        shutil.copy(path, tmp_path)
    t = Trial(tmp_path / filled.name)
    yield t
    t.store.close()


def test_what_was_counted_before_does_not_count(trial):
    assert not trial.look(stats(blue=(1000, 0, 0, 4), green=(500, 500, 0, 90)))
    assert trial.canary["candidate"]["requests"] == 0
    assert not trial.look(stats(blue=(1009, 0, 0, 4), green=(502, 500, 7, 90)))
    assert (trial.canary["candidate"]["requests"], trial.canary["baseline"]["requests"]) == (2, 9)
    assert trial.canary["reason"] == "2 of 20 requests"


def test_promotion_gives_it_all(trial):
    trial.look(stats(blue=(0, 0, 0, 4), green=(0, 0, 0, 4)))
    assert not trial.look(stats(blue=(200, 0, 0, 4), green=(25, 0, 0, 4)), 30)
    assert trial.look(stats(blue=(200, 0, 0, 4), green=(25, 0, 0, 4)), 61)
    assert trial.canary["phase"] == "Promoted" and trial.endpoint.spec["traffic"] == {"green": 100}
    row = trial.run(lambda tx: tx.history(["endpoints/digits"], 1))[0]
    assert (row["user"], row["detail"]["op"]) == ("system", "promote")
    assert row["detail"]["after"] == {"traffic": {"green": 100}}
    assert trial.run(lambda tx: "canary" not in tx.private("endpoint", "digits"))


def test_a_bad_model_is_rolled_back_at_once(trial):
    trial.look(stats(blue=(0, 0, 0, 4), green=(0, 0, 0, 4)))
    assert trial.look(stats(blue=(200, 0, 0, 4), green=(10, 12, 0, 4)), 2)
    assert trial.canary["phase"] == "RolledBack" and trial.endpoint.spec["traffic"] == {"blue": 100}
    assert "12 of 22 requests failed" in trial.canary["reason"]
    assert trial.canary["candidate"]["errors"] == 12


def test_what_callers_get_wrong_is_no_error(trial):
    trial.look(stats(blue=(0, 0, 0, 4), green=(0, 0, 0, 4)))
    assert not trial.look(stats(blue=(200, 0, 0, 4), green=(10, 0, 500, 4)), 100)
    assert trial.canary["candidate"] | {"p50": 0, "p95": 0} == {
        "requests": 10, "errors": 0, "error_rate": 0.0, "p50": 0, "p95": 0,
    }


def test_a_gateway_that_begins_at_zero_loses_nothing_that_was_counted(trial):
    trial.look(stats(blue=(100, 0, 0, 4), green=(100, 0, 0, 4)))
    trial.look(stats(blue=(150, 0, 0, 4), green=(112, 0, 0, 4)))
    assert not trial.look(None), "nobody answers"
    trial.look(stats(2.0, blue=(5, 0, 0, 4), green=(3, 0, 0, 4)))
    assert (trial.canary["candidate"]["requests"], trial.canary["baseline"]["requests"]) == (15, 55)
    # More than before the restart, so that only its time tells that it is another one.
    trial.look(stats(3.0, blue=(900, 0, 0, 4), green=(4, 0, 0, 4)))
    assert (trial.canary["candidate"]["requests"], trial.canary["baseline"]["requests"]) == (19, 955)
    trial.look(stats(3.0, blue=(900, 0, 0, 4), green=(4, 0, 0, 4)))
    assert trial.canary["candidate"]["requests"] == 19, "counted once"


def test_each_of_several_gateways_is_counted_from_where_it_was(trial):
    def told(*gateways):
        return {**gateways[0], "started_at": max(g["started_at"] for g in gateways), "gateways": list(gateways)}

    def counted():
        return trial.canary["candidate"]["requests"], trial.canary["baseline"]["requests"]

    one, other = stats(1.0, blue=(5000, 0, 0, 4), green=(5, 0, 0, 4)), stats(2.0, blue=(7000, 0, 0, 4))
    trial.look(told(one, other))
    assert counted() == (0, 0)
    one = stats(1.0, blue=(5010, 0, 0, 4), green=(6, 0, 0, 4))
    trial.look(told(one))  # the other is not ready for a moment
    assert counted() == (1, 10)
    other = stats(2.0, blue=(7030, 0, 0, 4), green=(2, 0, 0, 4))
    trial.look(told(one, other))
    assert counted() == (3, 40)
    new = stats(3.0, blue=(4, 0, 0, 4), green=(1, 0, 0, 4))
    trial.look(told(other, new))  # it takes the place of the first
    assert counted() == (4, 44)
    trial.look(told(other, new))
    assert counted() == (4, 44)
    trial.look(told(one, other, new))
    assert counted() == (4, 44), "what was seen of it once is counted already"


def test_a_candidate_that_failed_is_rolled_back_whoever_answers(trial):
    trial.run(lambda tx: tx.set_status("deployment", "green", {"phase": "Failed", "reason": "crash loop"}, "digits"))
    assert trial.look(None)
    assert trial.canary["phase"] == "RolledBack" and "crash loop" in trial.canary["reason"]


def test_an_ended_canary_is_left_alone(trial):
    trial.run(lambda tx: traffic.change(tx, "digits", {"traffic": {"blue": 100}}, ANN))
    before = trial.endpoint
    assert not trial.look(stats(blue=(0, 0, 0, 4), green=(0, 100, 0, 4)))
    assert trial.endpoint == before


def test_nothing_is_written_while_nothing_happens(trial):
    told = stats(blue=(1, 0, 0, 4), green=(1, 0, 0, 4))
    trial.look(told)
    trial.look(told)
    before = trial.endpoint.revision
    trial.look(told, 10)
    assert trial.endpoint.revision == before
