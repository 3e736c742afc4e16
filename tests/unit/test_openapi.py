"""An endpoint's OpenAPI document: valid, generated from the signature, and what fits it is taken by the gateway."""

from __future__ import annotations

import json

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from jsonschema import Draft202012Validator
from schemathesis.specs.openapi import definitions
from test_oip import IMAGE, MIXED, NESTED, PAIR, TEXTS, XY, column, signature, tensor

from jupyter_mlops.core.errors import ParameterError
from jupyter_mlops.serving import examples, oip, openapi, page, payload, schemas

MODELS = {
    "doubles": XY, "mixed": MIXED, "nested": NESTED, "image": IMAGE, "pair": PAIR, "texts": TEXTS,
    "unnamed": signature(column("long"), column("long")),
    "unnamed mixed": signature(column("double"), column("string")),
    "one": signature(column("float")), "matrix": signature(tensor("float64", [-1, 3])),
    "optional": signature(column("double", "a", False), column("string", "b", False)),
    "params": signature(column("double", "x"), params=[
        {"name": "top", "type": "long", "default": 3, "shape": None},
        {"name": "words", "type": "string", "default": ["a"], "shape": [-1]}]),
}


def described(model, **more):
    return openapi.document("digits", "blue", model, **more)


@pytest.mark.parametrize("name", MODELS)
def test_the_document_is_openapi_and_its_examples_are_taken(name):
    model = MODELS[name]
    document = json.loads(json.dumps(described(model, deployments=["blue", "green"]), allow_nan=False))
    Draft202012Validator(definitions.OPENAPI_31).validate(document)
    content = document["paths"]["/invocations"]["post"]["requestBody"]["content"]
    forms = content["application/json"]["examples"]
    parts = document["components"]["schemas"]
    assert forms and set(forms) == {f for f in payload.FORMS if f.title().replace("_", "") in parts}
    for example in forms.values():
        payload.canonical(model, json.dumps(example["value"]).encode(), "application/json")
    if "text/csv" in content:
        payload.canonical(model, content["text/csv"]["example"].encode(), "text/csv")
    tensors = document["paths"]["/v2/models/digits/infer"]["post"]["requestBody"]["content"]["application/json"]
    oip.canonical(model, tensors["example"])


@pytest.mark.parametrize("name", [n for n in MODELS if n not in ("mixed", "texts")])
def test_what_fits_the_document_is_taken(name):
    """Bodies drawn from the document; binary and dates have more rules than a schema says, so mixed is not here."""
    model = MODELS[name]
    ragged = {"image", "matrix", "pair"} & {name}  # a schema cannot say that all rows of a tensor have one length
    operation = schemathesis.openapi.from_dict(described(model))["/invocations"]["POST"]
    taken = 0

    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    @given(operation.as_strategy())
    def probe(case):
        nonlocal taken
        if case.media_type != "application/json":
            return
        form = next(f for f in payload.FORMS if f in case.body)
        data = case.body[form]
        if form == "dataframe_split" and "columns" in data:  # that their number agrees is said in words
            names = data["columns"]
            needed = {c.name for c in model.columns if c.required}
            if any(len(r) != len(names) for r in data["data"]) or not needed <= set(names):
                return
            if name in ("nested", "optional"):
                return
        if form == "inputs" and isinstance(data, dict) and (len({len(v) for v in data.values()}) != 1):
            return
        try:
            payload.canonical(model, json.dumps(case.body).encode("utf-8", "replace"), "application/json")
        except ParameterError as error:
            if ragged and ("ragged" in error.message or "shape" in error.message):
                return
            raise
        taken += 1

    probe()
    assert taken > 1


def test_types_params_and_security():
    document = described(MIXED)
    row = document["components"]["schemas"]["Row"]
    assert row["required"] == ["x", "n", "who", "ok"] and row["additionalProperties"] is False
    assert row["properties"]["n"] == {"type": "integer", "minimum": -2**63, "maximum": 2**63 - 1}
    assert row["properties"]["raw"]["contentEncoding"] == "base64"
    assert document["components"]["schemas"]["Params"]["properties"]["depth"]["default"] == 3
    assert document["security"] == [{"bearer": []}] and document["servers"] == [{"url": "."}]
    assert "security" not in described(MIXED, auth_mode="")
    image = schemas.tensor(IMAGE.tensors[0])
    assert (image["minItems"], image["items"]["minItems"], image["items"]["items"]["maxItems"]) == (1, 2, 2)
    answer = described(signature(column("double", "x"), outputs=[{"type": "long", "name": "digit"}]))
    assert "digit (long)" in answer["paths"]["/invocations"]["post"]["responses"]["200"]["description"]
    for status, response in document["paths"]["/invocations"]["post"]["responses"].items():
        assert int(status) == 200 or openapi.ERRORS[int(status)][0] in response["description"]


def test_the_logged_example_is_shown(tmp_path):
    text = '{"dataframe_split": {"columns": ["b", "a"], "data": [[1.5, 4.0], [2.5, NaN], [3.5, 6.0]]}}'
    (tmp_path / "serving_input_example.json").write_text(text)
    example = examples.logged(tmp_path)
    document = described(signature(column("double", "a"), column("double", "b")), example=example)
    content = document["paths"]["/invocations"]["post"]["requestBody"]["content"]
    assert content["application/json"]["examples"]["dataframe_split"]["value"] == {
        "dataframe_split": {"columns": ["a", "b"], "data": [[4.0, 1.5], [None, 2.5]]}}
    assert content["text/csv"]["example"] == "a,b\n4.0,1.5\n,2.5\n"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"inputs": NaN}', '{"inputs": {"a": 3}}', '{"dataframe_split": []}',
                                  '{"dataframe_split": {"columns": ["x", "y"], "data": [[1]]}}', "[" * 5000,
                                  '{"dataframe_records": [{"x": "no"}]}', '{"instances": 7}'])
def test_a_logged_example_that_does_not_fit_gives_way_to_zeros(tmp_path, text):
    (tmp_path / "serving_input_example.json").write_text(text)
    for model in MODELS.values():
        bodies = examples.requests(model, examples.logged(tmp_path))
        assert bodies or examples.logged(tmp_path)
    zeros = examples.requests(XY, examples.logged(tmp_path))["dataframe_split"]
    assert zeros["dataframe_split"]["data"] == [[0.0, 0.0]]
    assert examples.logged(tmp_path / "nowhere") is None


def test_a_large_model_has_a_document_without_an_example_too_long_to_read():
    large = signature(tensor("float32", [-1, 3, 224, 224]))
    document = described(large)
    assert "examples" not in document["paths"]["/invocations"]["post"]["requestBody"]["content"]["application/json"]
    wide = signature(*(column("double", f"c{i}") for i in range(5000)))
    assert len(json.dumps(described(wide))) < 3_000_000


def test_a_scoring_script_without_a_model_takes_what_it_takes():
    document = described(signature())
    Draft202012Validator(definitions.OPENAPI_31).validate(document)
    content = document["paths"]["/invocations"]["post"]["requestBody"]["content"]
    assert content == {"application/json": {"schema": {}}}
    assert b"Whatever its scoring script takes" in page.html(document)[0]
