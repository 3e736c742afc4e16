"""What the gateway is told of an endpoint, and what its owner reads about it."""

from __future__ import annotations

import pytest

from jupyter_mlops.core.controllers.endpoint import published, state
from jupyter_mlops.core.resources import DeploymentSpec, EndpointSpec
from jupyter_mlops.core.resources.base import Resource


def endpoint(**spec) -> Resource:
    return Resource(kind="endpoint", name="digits", spec=EndpointSpec(**spec).model_dump(mode="json"), status={})


def deployment(name: str, phase: str = "Ready", ready_at: str = "", reason: str = "", **spec) -> Resource:
    told = DeploymentSpec(model="m/3", **spec).model_dump(mode="json")
    return Resource(
        kind="deployment", name=name, parent="digits", spec=told,
        status={"phase": phase, "ready_at": ready_at, "reason": reason, "model_name": "m", "model_version": "3"},
    )


PRIVATE = {"keys": {"primary": {"salt": "s", "hash": "h"}}, "token_secret": "ab", "canary": {"seen": {}}}


def test_only_the_proven_are_published_and_one_to_be_proven_is_marked():
    behind = [
        deployment("ready"), deployment("again", "Starting", "then"), deployment("passed", "Proving", "now"),
        deployment("new", "Proving", data_collector={"sampling_rate": 1.0}), deployment("starting", "Starting"),
        deployment("failed", "Failed", "then"), deployment("pending", "Pending"),
    ]
    told = published(endpoint(), PRIVATE, behind, {"ready": 100})
    assert list(told["deployments"]) == ["ready", "again", "passed", "new"]
    assert [d for d, settings in told["deployments"].items() if settings.get("proving")] == ["new"]
    assert told["deployments"]["new"]["data_collector"] is None, "its sample is nobody's request"


def test_what_is_published():
    spec = {"auth_mode": "token", "public_network_access": "disabled", "sticky_header": "X-User"}
    at = endpoint(**spec, mirror_traffic={"green": 5})
    behind = [deployment("blue", instance_count=2, request_settings={"batching": False}), deployment("green")]
    told = published(at, PRIVATE, behind, {"blue": 100})
    assert told["traffic"] == {"blue": 100} and told["mirror_traffic"] == {"green": 5}
    assert (told["auth_mode"], told["public"], told["sticky_header"]) == ("token", False, "X-User")
    assert published(at, PRIVATE, behind[:1], {"blue": 100})["mirror_traffic"] == {}, "green does not serve"
    assert told["keys"] == PRIVATE["keys"] and told["token_secret"] == "ab" and "canary" not in told
    blue = told["deployments"]["blue"]
    assert (blue["batching"], blue["instance_count"], blue["model"]) == (False, 2, {"name": "m", "version": "3"})
    assert set(blue) == {"model", "batching", "instance_count", "scale_settings", "request_settings", "data_collector"}


@pytest.mark.parametrize(
    ("asked", "behind", "shares", "phase", "words"),
    [
        ({}, [], {}, "Creating", "no deployment yet"),
        ({}, [deployment("blue", "Starting")], {}, "Creating", "no deployment is ready yet"),
        ({}, [deployment("blue", "Failed", reason="no module x")], {}, "Failed", "blue: no module x"),
        ({}, [deployment("blue")], {"blue": 100}, "Ready", "blue serves m version 3"),
        ({"blue": 0}, [deployment("blue")], {}, "Degraded", "no deployment has traffic"),
        ({"blue": 100}, [deployment("blue", "Failed", reason="crash loop")], {}, "Degraded",
         "blue is Failed: crash loop; it has the traffic"),
        ({"blue": 90, "green": 10}, [deployment("blue"), deployment("green")], {"blue": 90, "green": 10}, "Ready",
         "blue 90 %, green 10 %"),
        ({"blue": 90, "green": 10}, [deployment("blue"), deployment("green", "Failed", reason="crash loop")],
         {"blue": 100}, "Degraded", "green is Failed: crash loop; its 10 % go to blue"),
        ({}, [deployment("blue", "Starting", "then", "starting again")], {"blue": 100}, "Degraded",
         "blue: starting again"),
    ],
)
def test_state(asked, behind, shares, phase, words):
    assert state(endpoint(traffic=asked), behind, shares) == (phase, words)
