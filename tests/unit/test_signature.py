"""Signatures read without MLflow, and request bodies checked against them."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from jupyter_mlops.core.errors import MlopsError, ParameterError, Refused, UnsupportedMedia
from jupyter_mlops.runtime.inputs import Builder, Parser, Request
from jupyter_mlops.serving import signature as sig
from jupyter_mlops.serving.fastpath import fast_path
from jupyter_mlops.serving.payload import canonical

FRAME = [
    {"type": "double", "name": "x", "required": True},
    {"type": "long", "name": "n", "required": True},
    {"type": "string", "name": "who", "required": True},
    {"type": "boolean", "name": "ok", "required": True},
    {"type": "datetime", "name": "at", "required": False},
    {"type": "binary", "name": "raw", "required": False},
]
ROW = {"x": 1.5, "n": 3, "who": "a", "ok": True, "at": "2026-01-31T12:00:00", "raw": "aGk="}


def columns(*inputs, params=None):
    return sig.from_mlmodel({"signature": {"inputs": json.dumps(list(inputs)), "params": json.dumps(params)}})


def doubles(*names):
    return columns(*({"type": "double", "name": n, "required": True} for n in names))


def tensor(dtype="float64", shape=(-1, 3), name=None):
    spec = {"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": list(shape)}}
    return spec if name is None else {**spec, "name": name}


def score(signature, body, content_type="application/json"):
    raw = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
    made = canonical(signature, raw, content_type)
    fast = fast_path(signature)
    if fast is not None and content_type == "application/json":
        assert fast(raw) in (None, made)  # the short way leaves it alone, or gives the same bytes
    names = [c.name for c in signature.columns] if signature.named else None
    return Builder(names)([Request(made, Parser())])


def refused(signature, body, content_type="application/json"):
    with pytest.raises(ParameterError) as caught:
        score(signature, body, content_type)
    fast = fast_path(signature)
    raw = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
    assert fast is None or fast(raw) is None
    assert caught.value.status == 400 and "\n" not in caught.value.message
    json.dumps(caught.value.body())
    return caught.value


# -- reading --------------------------------------------------------------------


def test_reads_what_mlflow_writes():
    from mlflow.models import infer_signature
    from mlflow.types import ParamSchema, ParamSpec

    frame = pd.DataFrame({"a": [1.0], "b": ["x"], "c": [[1.0, 2.0]], "d": [{"k": 1}]})
    written = infer_signature(frame, np.array([1]), {"depth": 3, "names": ["a"]})
    written.params = ParamSchema([*written.params.params, ParamSpec("when", "string", "now")])
    document = yaml.safe_load(yaml.safe_dump({"signature": written.to_dict()}))
    read = sig.from_mlmodel(document)
    assert [(c.name, c.type, c.required) for c in read.columns] == [
        ("a", "double", True), ("b", "string", True), ("c", "array", True), ("d", "object", True)]
    assert [(p.name, p.type, p.default, p.shape) for p in read.params] == [
        ("depth", "long", 3, None), ("names", "string", ["a"], (-1,)), ("when", "string", "now", None)]
    assert read.document["outputs"] == json.loads(written.to_dict()["outputs"])


def test_reads_tensors_and_unnamed_columns():
    one = columns(tensor("float32", (-1, 28, 28)))
    assert one.tensors[0].dtype == "float32" and one.tensors[0].shape == (-1, 28, 28) and not one.named
    two = columns(tensor(name="ids", dtype="int64"), tensor(name="mask", dtype="bool"))
    assert two.named and [t.name for t in two.tensors] == ["ids", "mask"]
    assert columns({"type": "long"}, {"type": "long"}).one_type == "long"


@pytest.mark.parametrize("document", [
    {}, {"signature": None}, {"signature": {"inputs": None}}, {"signature": {"inputs": "[]"}}, {"signature": "x"},
])
def test_no_signature_is_refused_with_the_way_to_get_one(document):
    with pytest.raises(Refused) as caught:
        sig.from_mlmodel(document)
    assert caught.value.status == 422 and "input_example=X[:5]" in caught.value.hint


@pytest.mark.parametrize("inputs", [
    '[{"type": "quaternion", "name": "a"}]', "[1]", "{", '[{"name": "a"}]', '[{"type": "array", "name": "a"}]',
    '[{"type": "long", "name": "a"}, {"type": "long", "name": "a"}]',
    '[{"type": "long", "name": "a"}, {"type": "long"}]',
    '[{"type": "tensor", "tensor-spec": {"dtype": "complex128", "shape": [-1]}}]',
])
def test_a_signature_that_cannot_be_served_is_refused(inputs):
    with pytest.raises(Refused):
        sig.from_mlmodel({"signature": {"inputs": inputs}})


def test_a_folder_without_mlmodel(tmp_path):
    with pytest.raises(Refused, match="no MLmodel file"):
        sig.read_mlmodel(tmp_path)
    (tmp_path / "MLmodel").write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(Refused, match="cannot be read"):
        sig.read_mlmodel(tmp_path)


# -- the forms --------------------------------------------------------------------

XY = [[1, 2.5], [3, 4]]


@pytest.mark.parametrize("body", [
    {"dataframe_split": {"columns": ["x", "y"], "data": XY}},
    {"dataframe_split": {"columns": ["y", "x"], "data": [[2.5, 1], [4, 3]], "index": [5, 6]}},
    {"dataframe_records": [{"x": 1, "y": 2.5}, {"y": 4, "x": 3}]},
    {"instances": [{"x": 1, "y": 2.5}, {"x": 3, "y": 4}]},
    {"inputs": {"x": [1, 3], "y": [2.5, 4]}},
    {"instances": {"y": [2.5, 4], "x": [1, 3]}, "params": {}},
    {"inputs": [{"x": 1, "y": 2.5}, {"x": 3, "y": 4}], "params": None},
])
def test_all_forms_are_the_same_dataframe(body):
    data, params = score(doubles("x", "y"), body)
    pd.testing.assert_frame_equal(data, pd.DataFrame({"x": [1.0, 3.0], "y": [2.5, 4.0]}))
    assert params == {}


def test_csv():
    data, _ = score(doubles("x", "y"), "y,x\r\n2.5,1\r\n4,3\r\n", "text/csv; charset=utf-8")
    pd.testing.assert_frame_equal(data, pd.DataFrame({"x": [1.0, 3.0], "y": [2.5, 4.0]}))
    data, _ = score(columns(*FRAME), 'who,x,n,ok,at,raw\n"a, ""b""",,7,true,2026-01-31,\n', "text/csv")
    assert data["who"][0] == 'a, "b"' and math.isnan(data["x"][0]) and data["n"][0] == 7 and data["ok"][0]
    assert "column 'x', row 0: expected double, got the string 'abc'" in refused(
        doubles("x", "y"), "x,y\nabc,1\n", "text/csv").message
    for broken in ("", "x,y\n", "x,y\n1\n", 'x,y\n"1,2\n', "x\n1\n", "x,y\n1,2,3\n", "x,y\n1_0,2\n", "x,y\ninf,2\n"):
        refused(doubles("x", "y"), broken, "text/csv")


def test_types_are_exactly_those_of_the_signature():
    data, _ = score(columns(*FRAME), {"dataframe_records": [ROW, {**ROW, "x": None, "n": 4.0, "at": None}]})
    assert dict(data.dtypes.astype(str).drop("who")) == {
        "x": "float64", "n": "int64", "ok": "bool", "at": "datetime64[ns]", "raw": "object"}
    assert math.isnan(data["x"][1]) and data["n"][1] == 4 and pd.isna(data["at"][1]) and data["raw"][0] == b"hi"
    assert data["at"][0] == pd.Timestamp("2026-01-31 12:00:00")
    data, _ = score(columns({"type": "float", "name": "f"}, {"type": "integer", "name": "i"}),
                    {"inputs": {"f": [1], "i": [2]}})
    assert dict(data.dtypes.astype(str)) == {"f": "float32", "i": "int32"}


def test_optional_columns_may_be_left_out():
    short = {k: ROW[k] for k in ("x", "n", "who", "ok")}
    data, _ = score(columns(*FRAME), {"dataframe_records": [short]})
    assert list(data.columns) == ["x", "n", "who", "ok"]
    data, _ = score(columns(*FRAME), {"dataframe_records": [short, ROW]})
    assert pd.isna(data["at"][0]) and data["raw"][0] is None and data["raw"][1] == b"hi"


def test_agrees_with_mlflows_own_parser():
    from mlflow.models.utils import _enforce_schema
    from mlflow.pyfunc.scoring_server import infer_and_parse_data
    from mlflow.types import Schema

    document = [*FRAME[:4], {"type": "datetime", "name": "at", "required": True},
                {"type": "array", "items": {"type": "double"}, "name": "v", "required": True}]
    schema = Schema.from_json(json.dumps(document))
    rows = [{**ROW, "v": [1.5, 2.5]}, {**ROW, "x": 0.0, "who": "ß", "v": []}]
    for r in rows:
        r.pop("raw", None)
    for body in ({"dataframe_records": rows},
                 {"dataframe_split": {"columns": list(rows[0]), "data": [list(r.values()) for r in rows]}}):
        theirs = _enforce_schema(infer_and_parse_data(json.loads(json.dumps(body)), schema), schema)
        ours, _ = score(columns(*document), body)
        pd.testing.assert_frame_equal(ours, theirs)


def test_tensor_forms():
    signature = columns(tensor("float32", (-1, 2)))
    expected = np.array(XY, dtype="float32")
    for body in ({"inputs": XY}, {"instances": XY}, {"dataframe_split": {"data": XY}},
                 {"dataframe_split": {"columns": ["a", "b"], "data": XY}},
                 {"dataframe_records": [{"a": 1, "b": 2.5}, {"a": 3, "b": 4}]}):
        data, _ = score(signature, body)
        assert data.dtype == np.float32
        np.testing.assert_array_equal(data, expected)
    data, _ = score(signature, "a,b\n1,2.5\n3,4\n", "text/csv")
    np.testing.assert_array_equal(data, expected)
    data[0, 0] = 9  # models may write into their input


def test_named_and_deep_tensors():
    signature = columns(tensor("int64", (-1, 2, 2), "ids"), tensor("bool", (-1,), "mask"))
    deep = [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    for body in ({"inputs": {"ids": deep, "mask": [True, False]}},
                 {"dataframe_records": [{"ids": deep[0], "mask": True}, {"ids": [5, 6, 7, 8], "mask": False}]}):
        data, _ = score(signature, body)
        np.testing.assert_array_equal(data["ids"], deep)
        assert data["ids"].dtype == np.int64 and data["mask"].tolist() == [True, False]
    data, _ = score(columns(tensor("object", (-1,))), {"inputs": ["a", None]})
    assert data.tolist() == ["a", None]
    data, _ = score(columns(tensor("float16", (-1,))), {"inputs": [1.5, None]})
    assert data.dtype == np.float16 and np.isnan(data[1])


def test_single_column_shorthands():
    signature = columns({"type": "string", "name": "text", "required": True})
    for body in ({"inputs": "hi"}, {"inputs": ["hi"]}, {"inputs": {"text": "hi"}}, {"instances": [["hi"]]}):
        data, _ = score(signature, body)
        assert data["text"].tolist() == ["hi"]
    data, _ = score(columns({"type": "array", "items": {"type": "long"}, "name": "v"}), {"inputs": {"v": [1, 2]}})
    assert data["v"].tolist() == [[1, 2]]


def test_type_hint_models_get_the_list_as_it_came():
    document = {"is_signature_from_type_hint": True, "signature": {"inputs": '[{"type": "string", "required": true}]'}}
    data, _ = score(sig.from_mlmodel(document), {"inputs": ["a", "b"]})
    assert data == ["a", "b"]
    assert "got the integer 1" in refused(sig.from_mlmodel(document), {"inputs": ["a", 1]}).message
    refused(sig.from_mlmodel(document), {"dataframe_split": {"data": [["a"]]}})


# -- what is wrong ------------------------------------------------------------------


@pytest.mark.parametrize(("change", "message"), [
    ({"x": "1.5"}, "column 'x', row 1: expected double, got the string '1.5'"),
    ({"x": True}, "column 'x', row 1: expected double, got the boolean true"),
    ({"x": [1]}, "column 'x', row 1: expected double, got a list"),
    ({"x": 10**400}, "column 'x', row 1: the number is too large for double"),
    ({"n": 1.5}, "column 'n', row 1: expected long, got the number 1.5"),
    ({"n": None}, "column 'n', row 1: missing value in a column of type long"),
    ({"n": math.nan}, "column 'n', row 1: missing value in a column of type long"),
    ({"n": 2**63}, "column 'n', row 1: the number does not fit into long"),
    ({"n": False}, "column 'n', row 1: expected long, got the boolean false"),
    ({"who": 5}, "column 'who', row 1: expected string, got the integer 5"),
    ({"ok": 1}, "column 'ok', row 1: expected boolean, got the integer 1"),
    ({"ok": None}, "column 'ok', row 1: missing value, expected boolean"),
    ({"at": "yesterday"}, "column 'at', row 1: 'yesterday' is not an ISO 8601 date or time"),
    ({"at": 5}, "column 'at', row 1: expected datetime, got the integer 5"),
    ({"at": "9999-01-01"}, "is outside the years 1677 to 2262"),
    ({"raw": "%%"}, "column 'raw', row 1: not base64"),
    ({"extra": 1}, "unknown column 'extra'"),
])
def test_a_wrong_value_is_named(change, message):
    assert message in refused(columns(*FRAME), {"dataframe_records": [ROW, {**ROW, **change}]}).message


def test_missing_and_unknown_columns_are_named():
    body = {"dataframe_split": {"columns": ["pixel_1", "pixe_2"], "data": [[1, 2]]}}
    error = refused(doubles("pixel_1", "pixel_2"), body)
    assert error.message == "missing column 'pixel_2'; unknown column 'pixe_2'"
    assert error.hint == "did you mean 'pixel_2'?" and error.detail == {"missing": ["pixel_2"], "unknown": ["pixe_2"]}
    many = refused(doubles(*(f"c{i}" for i in range(64))), {"dataframe_split": {"columns": ["c0"], "data": [[1]]}})
    assert "missing columns 'c1', 'c2', 'c3', 'c4', 'c5' and 58 more" in many.message
    assert "missing in row 1" in refused(doubles("x", "y"), {"instances": [{"x": 1, "y": 1}, {"x": 1}]}).message


@pytest.mark.parametrize(("body", "message"), [
    ({"inputs": [[1, 2]]}, "shape (1, 2) does not match (-1, 3)"),
    ({"inputs": [1, 2, 3]}, "shape (3,) does not match (-1, 3)"),
    ({"inputs": [[[1, 2, 3]]]}, "shape (1, 1, 3) does not match (-1, 3)"),
    ({"inputs": [[1, 2, 3], [1, 2]]}, "ragged"),
    ({"inputs": [[1, 2, 3], 4]}, "ragged"),
    ({"inputs": [[1, 2, 3], [1, "2", 3]]}, "at [1, 1]: expected float64, got the string '2'"),
    ({"inputs": [[1, 2, 1e999]]}, "not a JSON number"),
    ({"inputs": []}, "shape (0,)"),
    ({"inputs": {"a": [1]}}, "has no name"),
    ({"inputs": 5}, "shape ()"),
])
def test_a_wrong_tensor_is_named(body, message):
    assert message in refused(columns(tensor()), body).message


def test_numbers_out_of_range():
    assert "too large for float" in refused(columns({"type": "float", "name": "f"}), {"inputs": {"f": [1e39]}}).message
    assert "too large" in refused(doubles("x"), '{"inputs": {"x": [1, 1e999]}}').message
    assert "does not fit into int8" in refused(columns(tensor("int8", (-1,))), {"inputs": [1, 128]}).message
    assert "too large" in refused(columns(tensor("float16", (-1,))), {"inputs": [70000]}).message
    assert "does not fit" in refused(columns(tensor("uint8", (-1,))), {"inputs": [-1]}).message


@pytest.mark.parametrize(("text", "message"), [
    ("", "empty"), ("{", "not JSON"), ("[1]", "a list, not an object"), ("null", "null, not an object"),
    ('{"dataframe_split": {"columns": ["x"], "data": [[1]', "not JSON"),
    ("{}", "empty object"), ('{"data": []}', "unknown field 'data'"),
    ('{"inputs": [], "instances": []}', "2 input forms"),
    ('{"inputs": {"x": [1]}, "more": 1}', "unknown field 'more'"),
    ('{"inputs": {"x": [Infinity]}}', "Infinity is not a JSON number"),
    ('{"dataframe_split": 5}', "must be an object"), ('{"dataframe_split": {"data": 5}}', "not a list"),
    ('{"dataframe_split": {"columns": 5, "data": [[1]]}}', "not a list"),
    ('{"dataframe_split": {"columns": ["x", "x"], "data": [[1, 2]]}}', "'x' is given twice"),
    ('{"dataframe_split": {"columns": [["x"]], "data": [[1]]}}', "missing column 'x'"),
    ('{"dataframe_split": {"columns": ["x"], "data": []}}', "no row"),
    ('{"dataframe_split": {"columns": ["x"], "data": [[1], [1, 2]]}}', "row 1 has 2 values, expected 1"),
    ('{"dataframe_split": {"columns": ["x"], "data": [[1], 5]}}', "row 1 is the integer 5"),
    ('{"dataframe_split": {"data": [[1]]}}', "not named"),
    ('{"dataframe_records": {"x": 1}}', "list of objects"), ('{"dataframe_records": []}', "no row"),
    ('{"inputs": {"x": []}}', "no row"), ('{"inputs": {"x": 5, "y": [1]}}', "unknown column 'y'"),
    ('{"inputs": {"x": [' + "9" * 5000 + "]}}", "not JSON"), ('{"inputs": {"\\ud800": [1]}}', "unknown column"),
    ('{"inputs": ' + "[" * 100_000, "nested too deeply"), ('{"inputs": ' + '{"a":' * 100_000, "nested too deeply"),
])
def test_a_body_that_cannot_be_read(text, message):
    assert message in refused(doubles("x"), text).message


def test_nested_types():
    inner = {"type": "object", "properties": {"k": {"type": "long", "required": True},
                                              "o": {"type": "string", "required": False}}}
    signature = columns({"type": "array", "items": inner, "name": "v", "required": True},
                        {"type": "map", "values": {"type": "double"}, "name": "m", "required": False},
                        {"type": "any", "name": "a", "required": False})
    row = {"v": [{"k": 1.0, "o": "x"}, {"k": 2}], "m": {"z": 1}, "a": [{}]}
    data, _ = score(signature, {"dataframe_records": [row]})
    assert data["v"][0] == [{"k": 1, "o": "x"}, {"k": 2}] and data["m"][0] == {"z": 1.0} and data["a"][0] == [{}]

    def body(v):
        return {"dataframe_records": [{"v": v}]}

    assert "column 'v', row 0[1]: property 'k' is missing" in refused(signature, body([{"k": 1}, {}])).message
    assert "column 'v', row 0[0].'k': expected long, got the string" in refused(signature, body([{"k": "1"}])).message
    assert "property 'z' is not in the signature" in refused(signature, body([{"k": 1, "z": 1}])).message
    deep = json.loads("[" * 500 + "]" * 500)
    assert "levels deep" in refused(signature, {"dataframe_records": [{"v": [], "a": deep}]}).message


def test_params():
    signature = columns({"type": "double", "name": "x"}, params=[
        {"name": "k", "type": "long", "default": 3, "shape": None},
        {"name": "w", "type": "double", "default": [0.5], "shape": [-1]},
    ])
    body = {"inputs": {"x": [1]}}
    assert score(signature, body)[1] == {"k": 3, "w": [0.5]}
    assert score(signature, {**body, "params": {"k": 5, "w": [1, 2]}})[1] == {"k": 5, "w": [1.0, 2.0]}
    assert "unknown 'z'" in refused(signature, {**body, "params": {"z": 1}}).message
    assert "param 'k': expected long, got the string 'a'" in refused(signature, {**body, "params": {"k": "a"}}).message
    assert "param 'w'[1]: expected double" in refused(signature, {**body, "params": {"w": [1, "b"]}}).message
    assert "a list of double" in refused(signature, {**body, "params": {"w": 1}}).message
    assert "expected an object" in refused(signature, {**body, "params": [1]}).message
    assert "takes no params" in refused(doubles("x"), {**body, "params": {"k": 1}}).hint


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx",
                                          "application/json; charset=latin-1", "image/png", ";", "multipart/form-data"])
def test_other_media_are_415(content_type):
    with pytest.raises(UnsupportedMedia) as caught:
        canonical(doubles("x"), b'{"inputs": {"x": [1]}}', content_type)
    assert caught.value.status == 415 and "application/json" in caught.value.hint


def test_bytes_that_are_no_text():
    assert "not UTF-8" in refused(doubles("x"), b"\xff\xfe{\0}\0").message
    score(doubles("x"), '\ufeff{"inputs": {"x": [1]}}'.encode(), "Application/JSON;charset=UTF-8")


# -- whatever comes, it is a right answer or a 400 --------------------------------------

SIGNATURES = [
    doubles("x", "y"), columns(*FRAME), columns(tensor()), columns({"type": "long"}, {"type": "string"}),
    columns(tensor("int64", (-1,), "x"), tensor("str", (-1, 2), "y")),
    columns({"type": "array", "items": {"type": "long"}, "name": "x"}, {"type": "any", "name": "y", "required": False}),
    sig.from_document({"inputs": [{"type": "any", "required": True}], "type_hint": True}),
]
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just(10**400))
NAMES = st.sampled_from(["x", "y", "n", "who", ""])
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=4) | st.dictionaries(NAMES, v, max_size=4), max_leaves=12,
)
BODIES = st.dictionaries(
    st.sampled_from(["dataframe_split", "dataframe_records", "instances", "inputs", "params", "other"]),
    VALUES | st.fixed_dictionaries({"columns": VALUES, "data": VALUES}), max_size=2,
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(SIGNATURES), BODIES)
def test_any_json_is_scored_or_refused(signature, body):
    try:
        score(signature, body)
    except MlopsError as error:
        assert error.status in (400, 415)
        json.dumps(error.body()).encode("ascii")


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(SIGNATURES),
       st.binary(max_size=60) | st.text(max_size=60).map(lambda t: t.encode("utf-8", "replace")),
       st.sampled_from(["application/json", "text/csv"]))
def test_any_bytes_are_scored_or_refused(signature, raw, content_type):
    try:
        score(signature, raw, content_type)
    except MlopsError as error:
        assert error.status in (400, 415)


@example([(8.988465674311579e307, 8.98846567431158e307)])  # finite, unlike their sum
@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(*[st.floats(allow_infinity=False) | st.none() | st.integers(-2**60, 2**60)] * 2),
                min_size=1, max_size=5))
def test_numbers_arrive_as_they_were_sent(rows):
    data, _ = score(doubles("x", "y"), {"dataframe_split": {"columns": ["x", "y"], "data": rows}})
    np.testing.assert_array_equal(data.to_numpy(), np.array(rows, dtype=float))
