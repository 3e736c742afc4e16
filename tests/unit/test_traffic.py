"""How traffic is shared, changed, tried and taken back; against a real store."""

from __future__ import annotations

import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_mlops.core import traffic
from jupyter_mlops.core.errors import Conflict, NotFound
from jupyter_mlops.core.identity import Identity
from jupyter_mlops.core.resources import CanarySpec, DeploymentSpec, EndpointSpec
from jupyter_mlops.core.store import Store

ANN = Identity("ann", "owner")


def in_one_thread(store, work):
    return store._run("BEGIN IMMEDIATE", work)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A database with one endpoint and three deployments, to be copied."""
    path = tmp_path_factory.mktemp("store") / "store.db"
    s = Store(path)
    s.open()

    def fill(tx):
        tx.put("endpoint", "digits", EndpointSpec().model_dump(mode="json"), identity=ANN, status={"phase": "Ready"})
        for name in ("blue", "green", "grey"):
            spec = DeploymentSpec(model="m/1").model_dump(mode="json")
            tx.put("deployment", name, spec, identity=ANN, parent="digits", status={"phase": "Ready"})
        tx.set_status("endpoint", "digits", {"traffic": {"blue": 100}})

    in_one_thread(s, fill)
    s.close()
    return path


@pytest.fixture
def store(filled, tmp_path):
    for path in filled.parent.iterdir():
        shutil.copy(path, tmp_path)
    s = Store(tmp_path / filled.name)
    yield s
    s.close()


@pytest.fixture
def do(store):
    """Run a function on a transaction, with the endpoint's name and a caller where it takes them."""
    return lambda function, *args, **kw: in_one_thread(store, lambda tx: function(tx, "digits", *args, **kw))


@pytest.fixture
def look(store):
    return lambda: in_one_thread(store, lambda tx: tx.get("endpoint", "digits"))


def canary(**more):
    return CanarySpec(deployment="green", **more)


# -- what is in force


@pytest.mark.parametrize(
    ("asked", "before", "serving", "expected"),
    [
        ({}, {}, [], {}),
        ({}, {}, ["new", "old"], {"new": 100}),
        ({}, {"old": 100}, ["new", "old"], {"old": 100}),
        ({}, {"gone": 100}, ["new"], {"new": 100}),
        ({"blue": 90, "green": 10}, {}, ["green", "blue"], {"blue": 90, "green": 10}),
        ({"blue": 90, "green": 10}, {}, ["blue"], {"blue": 100}),
        ({"blue": 90, "green": 10}, {}, [], {}),
        ({"blue": 50, "green": 30, "grey": 20}, {}, ["blue", "green"], {"blue": 63, "green": 37}),
        ({"blue": 0}, {"blue": 100}, ["blue"], {}),
        ({"blue": 100}, {"green": 100}, ["green"], {}),
    ],
)
def test_in_force(asked, before, serving, expected):
    assert traffic.in_force(asked, before, serving) == expected


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(0, 100)), st.sets(st.sampled_from("abcd")))
def test_what_is_in_force_adds_up_and_serves(asked, serving):
    found = traffic.in_force(asked, {}, sorted(serving))
    assert set(found) <= serving and sum(found.values()) in (0, 100)


def test_what_is_being_deleted_does_not_stay(do):
    assert [d.name for d in do(traffic.staying)] == ["grey", "green", "blue"]
    do(lambda tx, name: tx.mark_deleting("deployment", "green", identity=ANN, parent=name))
    assert [d.name for d in do(traffic.staying)] == ["grey", "blue"]


# -- changes


def test_a_change_is_audited_with_before_and_after(do, store, look):
    do(traffic.change, {"traffic": {"blue": 90, "green": 10}}, ANN)
    assert look().spec["traffic"] == {"blue": 90, "green": 10}
    row = in_one_thread(store, lambda tx: tx.history(["endpoints/digits"], 1))[0]
    assert (row["user"], row["detail"]["op"]) == ("ann", "traffic")
    assert row["detail"]["before"] == {"traffic": {"blue": 100}}
    assert row["detail"]["after"] == {"traffic": {"blue": 90, "green": 10}}
    assert look().status["previous_traffic"] == {"blue": 100}


def test_unknown_deployments_are_named_with_those_there_are(do):
    with pytest.raises(NotFound, match="no deployment 'pink'") as e:
        do(traffic.change, {"traffic": {"pink": 100}}, ANN)
    assert "blue" in e.value.hint


def test_a_mirror_ends_when_its_deployment_gets_a_share(do, look):
    do(traffic.change, {"mirror_traffic": {"green": 20}}, ANN)
    assert look().spec["mirror_traffic"] == {"green": 20}
    do(traffic.change, {"traffic": {"blue": 50, "green": 50}}, ANN)
    assert look().spec["mirror_traffic"] == {}
    with pytest.raises(Conflict, match="share of the traffic itself"):
        do(traffic.change, {"mirror_traffic": {"green": 20}}, ANN)


def test_a_rollback_returns_and_returns_again(do, look):
    with pytest.raises(Conflict, match="never changed"):
        do(traffic.rollback, ANN)
    do(traffic.change, {"traffic": {"green": 100}}, ANN)
    do(traffic.rollback, ANN)
    assert look().spec["traffic"] == {"blue": 100}
    do(traffic.rollback, ANN)
    assert look().spec["traffic"] == {"green": 100}


# -- canaries


def test_a_canary_takes_its_share_and_ends_either_way(do, look):
    do(traffic.change, {"traffic": {"blue": 60, "grey": 40}}, ANN)
    do(traffic.start_canary, canary(percent=10), ANN)
    assert look().spec["traffic"] == {"blue": 54, "grey": 36, "green": 10}
    assert look().status["canary"]["previous"] == {"blue": 60, "grey": 40}
    do(traffic.rollback, ANN, "too slow")
    assert look().spec["traffic"] == {"blue": 60, "grey": 40} and look().spec["canary"] is None
    ended = look().status["canary"]
    assert (ended["phase"], ended["reason"]) == ("RolledBack", "too slow") and ended["ended_at"]
    do(traffic.rollback, ANN)
    assert look().spec["traffic"] == {"blue": 60, "grey": 40}, "not to the candidate that was rolled back"
    do(traffic.start_canary, canary(), ANN)
    do(traffic.promote, ANN)
    assert look().spec["traffic"] == {"green": 100}
    assert look().status["canary"]["phase"] == "Promoted"
    do(traffic.rollback, ANN)
    assert look().spec["traffic"] == {"blue": 60, "grey": 40}, "not to the split of the trial"


def test_shares_set_by_hand_end_a_canary(do, look):
    do(traffic.start_canary, canary(), ANN)
    do(traffic.change, {"traffic": {"blue": 50, "green": 50}}, ANN)
    assert look().status["canary"]["phase"] == "Stopped" and look().spec["canary"] is None
    with pytest.raises(Conflict, match="no canary runs"):
        do(traffic.promote, ANN)


def test_a_description_changes_beside_a_canary(do, look):
    do(traffic.start_canary, canary(), ANN)
    do(traffic.put, {**look().spec, "description": "digits of people"}, identity=ANN)
    assert look().status["canary"]["phase"] == "Running" and look().spec["description"] == "digits of people"


def test_a_description_without_shares_undoes_nothing(do, look):
    do(traffic.change, {"traffic": {"blue": 70, "green": 30}}, ANN)
    applied = EndpointSpec(description="applied again").model_dump(mode="json")
    do(traffic.put, applied, identity=ANN)
    assert look().spec["traffic"] == {"blue": 70, "green": 30} and look().spec["description"] == "applied again"
    do(traffic.change, {"traffic": {"blue": 100}}, ANN)
    do(traffic.start_canary, canary(), ANN)
    do(traffic.put, {**applied, "description": "and again"}, identity=ANN)
    assert look().status["canary"]["phase"] == "Running" and look().spec["traffic"] == {"blue": 90, "green": 10}


def test_the_same_canary_applied_again_goes_on_and_another_replaces_it(do, look):
    spec = EndpointSpec(canary=canary(percent=20)).model_dump(mode="json")
    do(traffic.put, spec, identity=ANN)
    first = look().status["canary"]
    do(traffic.put, spec, identity=ANN)
    assert look().status["canary"] == first and look().spec["traffic"] == {"blue": 80, "green": 20}
    do(traffic.put, EndpointSpec(canary=canary(percent=40)).model_dump(mode="json"), identity=ANN)
    assert look().spec["traffic"] == {"blue": 60, "green": 40}
    assert look().status["canary"]["previous"] == {"blue": 100}
    do(traffic.promote, ANN)
    do(traffic.put, spec, identity=ANN)
    assert look().spec["traffic"] == {"green": 100}, "promoted already"


@pytest.mark.parametrize(
    ("before", "spec", "words"),
    [
        ({"traffic": {"green": 100}}, canary(), "all the traffic already"),
        ({"traffic": {"blue": 0}}, canary(), "to compare 'green' with"),
        ({}, CanarySpec(deployment="pink"), "no deployment 'pink'"),
        ({"traffic": {"blue": 50, "grey": 50}}, canary(percent=99), "too little"),
    ],
)
def test_a_canary_that_cannot_begin_changes_nothing(do, look, before, spec, words):
    if before:
        do(traffic.change, before, ANN)
    was = look()
    with pytest.raises((Conflict, NotFound), match=words):
        do(traffic.start_canary, spec, ANN)
    assert look() == was


def test_a_canary_waits_for_the_proof(do, store):
    in_one_thread(store, lambda tx: tx.set_status("deployment", "green", {"phase": "Proving"}, "digits"))
    with pytest.raises(Conflict, match="is Proving, not Ready"):
        do(traffic.start_canary, canary(), ANN)


# -- removal


def test_a_deployment_with_traffic_is_removed_only_when_nothing_else_could_answer(do, store, look):
    do(traffic.change, {"traffic": {"blue": 90, "green": 10}, "mirror_traffic": {"grey": 5}}, ANN)
    with pytest.raises(Conflict, match="'green' has 10 % of the traffic") as e:
        do(traffic.leave, "green", ANN)
    assert "%mlops traffic digits" in e.value.hint
    do(traffic.leave, "grey", ANN)
    assert look().spec["mirror_traffic"] == {}
    in_one_thread(store, lambda tx: tx.set_status("deployment", "green", {"phase": "Failed"}, "digits"))
    do(traffic.leave, "green", ANN)
    assert look().spec["traffic"] == {"blue": 100}, "one that failed serves nobody"
    for name in ("green", "grey"):
        in_one_thread(store, lambda tx, name=name: tx.remove("deployment", name, parent="digits"))
    do(traffic.leave, "blue", ANN)
    assert look().spec["traffic"] == {}


def test_who_has_the_traffic_without_having_been_given_it_counts_too(do):
    with pytest.raises(Conflict, match="'blue' has 100 %"):
        do(traffic.leave, "blue", ANN)


def test_a_candidate_is_removed_only_when_its_canary_has_ended(do, store, look):
    do(traffic.start_canary, canary(), ANN)
    with pytest.raises(Conflict) as e:
        do(traffic.leave, "green", ANN)
    assert "--rollback" in e.value.hint
    in_one_thread(store, lambda tx: tx.set_status("deployment", "green", {"phase": "Failed"}, "digits"))
    do(traffic.leave, "green", ANN)
    assert look().status["canary"]["phase"] == "RolledBack" and look().spec["traffic"] == {"blue": 100}


def test_where_deployments_run_does_not_change_beneath_them(do, look):
    with pytest.raises(Conflict, match="has deployments on its compute"):
        do(traffic.put, {**look().spec, "compute": "lab"}, identity=ANN)
