"""What the gateway takes up of the endpoints' files, and how many rows it finds in a request."""

from __future__ import annotations

import json

import pytest

from jupyter_mlops.serving import signature as sig
from jupyter_mlops.serving.gateway import rows_of
from jupyter_mlops.serving.instances import MAX_INSTANCES
from jupyter_mlops.serving.payload import canonical
from jupyter_mlops.serving.places import Places, write_json
from jupyter_mlops.serving.routes import Routes

COLUMNS = [{"type": "double", "name": name, "required": True} for name in ("a", "b")]
MIXED = [*COLUMNS, {"type": "string", "name": "c", "required": True}]
PARAMS = [{"name": "rows", "type": "long", "default": 1, "shape": None}]


@pytest.fixture
def places(tmp_path):
    found = Places(tmp_path / "home", tmp_path / "run")
    for name in ("blue", "green"):
        found.deployment("e", name).mkdir(parents=True)
        write_json(found.deployment("e", name) / "model.json", {"signature": {"inputs": COLUMNS}})
    return found


def settings(count=1, **request):
    return {"instance_count": count, "request_settings": request}


def write(places, deployments, **more):
    write_json(places.config("e"), {"keys": {}, "deployments": deployments, "traffic": {"blue": 100}, **more})


async def test_a_refused_file_leaves_everything_as_it_was(places):
    routes = Routes(places)
    write(places, {"blue": settings(2, max_queue=7)})
    routes.reload()
    endpoint = routes.get("e")
    blue = routes.dispatcher("e", "blue")
    assert (blue.limits.max_queue, blue.least, blue.instances) == (7, 2, 2)
    limits = blue.limits
    for bad in ({"keys": None}, {"traffic": {"blue": "x"}}, {"deployments": {"blue": settings(5), "No": {}}}):
        write(places, {**{"blue": settings(5, max_queue=9), "green": settings()}, **bad.pop("deployments", {})}, **bad)
        for _ in range(3):
            routes.reload()
            assert routes.describe()["e"]["error"] and routes.get("e") is endpoint
            assert blue.limits is limits and (blue.least, blue.instances) == (2, 2)
            assert routes.dispatcher("e", "green") is None and not routes.retired
    write(places, {"blue": settings(5, max_queue=9), "green": settings()})
    routes.reload()
    assert not routes.describe()["e"]["error"] and routes.dispatcher("e", "blue") is blue
    assert (blue.limits.max_queue, blue.least, blue.instances) == (9, 5, 5)
    assert routes.get("e").deployments["green"].dispatcher is routes.dispatcher("e", "green")
    routes.close()


async def test_there_may_be_as_many_instances_as_the_settings_say(places):
    routes = Routes(places)
    scale = {"type": "target_utilization", "max_instances": 6}
    for entry, wanted in (({}, (1, 1)), ({"instance_count": 3, "scale_settings": scale}, (3, 6)),
                          ({"instance_count": 3, "scale_settings": {**scale, "type": "default"}}, (3, 3)),
                          ({"scale_settings": {**scale, "max_instances": 999}}, (1, MAX_INSTANCES))):
        write(places, {"blue": entry})
        routes.reload()
        found = routes.dispatcher("e", "blue")
        assert (found.least, found.instances) == wanted
    routes.close()


@pytest.mark.parametrize("params", [{}, {"params": {"rows": 700}}])
@pytest.mark.parametrize("inputs", [
    COLUMNS, MIXED, [{"type": "string", "name": None, "required": True}],
    [{"type": "tensor", "tensor-spec": {"dtype": "float64", "shape": [-1, 2]}}],
    [{"type": "tensor", "name": name, "tensor-spec": {"dtype": "float64", "shape": [-1]}} for name in ("a", "b")],
])
def test_a_parameter_may_be_called_rows(inputs, params):
    signature = sig.from_document({"inputs": inputs, "params": PARAMS})
    if inputs in (COLUMNS, MIXED):
        rows = [[1.5, 2.5, "x"][:len(inputs)]] * 3
        form = {"dataframe_split": {"columns": [c["name"] for c in inputs], "data": rows}}
    elif len(inputs) == 2:
        form = {"inputs": {"a": [1.0, 2.0, 3.0], "b": [1.0, 2.0, 3.0]}}
    else:
        form = {"inputs": ["x", "y", "z"] if inputs[0]["type"] == "string" else [[1.5, 2.5]] * 3}
    assert rows_of(canonical(signature, json.dumps({**form, **params}).encode(), "application/json")) == 3
