"""The Open Inference Protocol: requests checked and turned into scores, answers with names, shapes and datatypes."""

from __future__ import annotations

import json
import struct

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_mlops.core.errors import MlopsError, ParameterError, UnsupportedMedia
from jupyter_mlops.runtime.answers import answer
from jupyter_mlops.runtime.inputs import Builder, Parser, Request
from jupyter_mlops.serving import oip, payload, tensors
from jupyter_mlops.serving import signature as sig


def signature(*inputs, params=None, outputs=(), type_hint=False):
    return sig.from_document({"inputs": list(inputs), "params": params or [], "outputs": list(outputs),
                              "type_hint": type_hint})


def column(kind, name=None, required=True, **more):
    return {"type": kind, **({} if name is None else {"name": name}), "required": required, **more}


def tensor(dtype, shape, name=None):
    named = {} if name is None else {"name": name}
    return {"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": shape}, **named}


def t(name, datatype, shape, data, **more):
    return {"name": name, "datatype": datatype, "shape": shape, "data": data, **more}


XY = signature(column("double", "x"), column("double", "y"))
MIXED = signature(
    column("double", "x"), column("long", "n"), column("string", "who"), column("boolean", "ok"),
    column("datetime", "at", False), column("binary", "raw", False),
    params=[{"name": "depth", "type": "long", "default": 3, "shape": None}])
NESTED = signature(column("array", "v", items={"type": "double"}), column("any", "a"),
                   column("object", "o", properties={"k": {"type": "long", "required": True}}))
IMAGE = signature(tensor("float32", [-1, 2, 2]))
PAIR = signature(tensor("int64", [-1, 3], "ids"), tensor("bool", [-1, 3], "mask"))
TEXTS = signature(column("string"), type_hint=True)
ALL = [XY, MIXED, NESTED, IMAGE, PAIR, TEXTS, signature(column("long"), column("long"), column("long")),
       signature(column("double")), signature(tensor("str", [-1])), signature(tensor("object", [-1, 2], "o"))]


def build(signature, body):
    names = [c.name for c in signature.columns] if signature.named else None
    return Builder(names)([Request(body, Parser())])


def data(signature, *inputs, **more):
    return build(signature, oip.canonical(signature, {"inputs": list(inputs), **more}))


def refused(signature, *inputs, **more):
    with pytest.raises(ParameterError) as caught:
        data(signature, *inputs, **more)
    assert "\n" not in caught.value.message
    (text,) = oip.error_body(caught.value).values()
    return text


@pytest.mark.parametrize("inputs", [
    [t("x", "FP64", [2], [1, 3]), t("y", "FP32", [2, 1], [2.5, 4])],
    [t("y", "FP64", [2, 1], [[2.5], [4]]), t("x", "INT8", [2], [1, 3])],
    [t("anything", "FP64", [2, 2], [1, 2.5, 3, 4])],
    [t("anything", "FP64", [2, 2], [[1, 2.5], [3, 4]])],
])
def test_columns_come_as_one_input_each_or_as_one_matrix(inputs):
    frame, params = data(XY, *inputs)
    pd.testing.assert_frame_equal(frame, pd.DataFrame({"x": [1.0, 3.0], "y": [2.5, 4.0]}))
    assert params == {}
    split = {"dataframe_split": {"columns": ["x", "y"], "data": [[1, 2.5], [3, 4]]}}
    same = payload.canonical(XY, json.dumps(split).encode(), "application/json")
    pd.testing.assert_frame_equal(frame, build(XY, same)[0])


def test_every_type_of_column_and_params():
    inputs = [t("x", "FP64", [2], [1.5, None]), t("n", "UINT8", [2], [3, 4.0]), t("who", "BYTES", [2], ["a", "ü"]),
              t("ok", "BOOL", [2], [True, False]), t("at", "BYTES", [2], ["2026-01-31", None]),
              t("raw", "BYTES", [2], ["aGk=", None])]
    frame, params = data(MIXED, *inputs, parameters={"depth": 5, "binary_data_output": True, "timeout": 3})
    assert [str(d) for d in frame.dtypes][:4] == ["float64", "int64", "str", "bool"] and params == {"depth": 5}
    assert frame["raw"][0] == b"hi" and frame["at"][0] == pd.Timestamp("2026-01-31") and np.isnan(frame["x"][1])
    assert data(MIXED, *inputs[:4])[1] == {"depth": 3}


def test_nested_columns_are_json_text_or_a_matrix():
    inputs = [t("v", "FP32", [2, 3], [1, 2, 3, 4, 5, 6]), t("a", "BYTES", [2], ["[1]", "null"]),
              t("o", "BYTES", [2], ['{"k": 1}', '{"k": 2}'])]
    frame, _ = data(NESTED, *inputs)
    assert frame["v"].tolist() == [[1, 2, 3], [4, 5, 6]] and frame["o"].tolist() == [{"k": 1}, {"k": 2}]
    assert "property 'j'" in refused(NESTED, *inputs[:2], t("o", "BYTES", [2], ['{"k": 1, "j": 1}'] * 2))
    assert "value 1: not the JSON text" in refused(NESTED, *inputs[:2], t("o", "BYTES", [2], ['{"k": 1}', "{"]))


def test_tensors():
    array, _ = data(IMAGE, t("any name", "FP32", [1, 2, 2], [1, 2, 3, 4]))
    np.testing.assert_array_equal(array, np.array([[[1, 2], [3, 4]]], dtype="float32"))
    both, _ = data(PAIR, t("mask", "BOOL", [1, 3], [[True, False, True]]), t("ids", "INT64", [1, 3], [1, 2, 3]))
    assert both["ids"].tolist() == [[1, 2, 3]] and both["mask"].dtype == bool
    assert data(TEXTS, t("input", "BYTES", [2], ["a", "b"]))[0] == ["a", "b"]


@pytest.mark.parametrize(("model", "inputs", "message"), [
    (XY, [], "inputs: expected a list of tensors"),
    (XY, [3], "inputs[0]: expected an object, got the integer 3"),
    (XY, [{"name": "x"}], "input 'x': datatype is missing"),
    (XY, [t(None, "FP64", [1], [1])], "inputs[0]: name is missing"),
    (XY, [t("x", "FP65", [1], [1])], "input 'x': datatype 'FP65'"),
    (XY, [t("x", "FP64", [-1], [1])], "input 'x': shape must be"),
    (XY, [t("x", "FP64", [True], [1])], "input 'x': shape must be"),
    (XY, [t("x", "FP64", [2**62, 2**62], [1])], "asks for far more"),
    (XY, [t("x", "FP64", [2], [1])], "input 'x': data has 1 values, but its shape [2] asks for 2"),
    (XY, [t("x", "FP64", [1], "1")], "input 'x': data is the string '1', not a list"),
    (XY, [t("x", "FP64", [2, 2], [[1, 2], [3]])], "input 'x': ragged"),
    (XY, [t("x", "FP64", [2, 2], [[1, 2, 3, 4]])], "input 'x': data has the shape [1, 4]"),
    (XY, [t("x", "FP64", [1], [1]), t("z", "FP64", [1], [1])], "missing column 'y'; unknown column 'z'"),
    (XY, [t("x", "FP64", [1], [1]), t("x", "FP64", [1], [1])], "missing column 'y'"),
    (XY, [t("x", "FP64", [1], [1]), t("y", "FP64", [2], [1, 2])], "inputs of different lengths ('x' has 1"),
    (XY, [t("x", "FP64", [1], ["1"]), t("y", "FP64", [1], [1])], "input 'x', value 0: expected FP64, got the string"),
    (XY, [t("x", "BOOL", [1], [True]), t("y", "FP64", [1], [1])], "input 'x': BOOL of shape [1] does not fit"),
    (XY, [t("x", "FP16", [1], [70000]), t("y", "FP64", [1], [1])], "value 0: the number is too large for FP16"),
    (XY, [t("x", "FP64", [1], [10**400]), t("y", "FP64", [1], [1])], "column 'x', row 0: the number is too large"),
    (XY, [t("m", "FP64", [1, 3], [1, 2, 3])], "input 'm': its rows have 3 values, the model takes 2 columns"),
    (XY, [t("m", "FP64", [0, 2], [])], "there is no row in it"),
    (XY, [t("x", "FP64", [0], []), t("y", "FP64", [0], [])], "there is no row in it"),
    (MIXED, [t("m", "FP64", [1, 6], [1] * 6)], "the model's columns have different types"),
    (MIXED, [t("x", "FP64", [1], [1]), t("n", "INT8", [1], [300]), t("who", "BYTES", [1], [""]),
             t("ok", "BOOL", [1], [True])], "input 'n', value 0: the number does not fit into INT8"),
    (MIXED, [t("n", "INT64", [1], [None])], "integers have no missing values"),
    (MIXED, [t("n", "INT64", [1], [1.5])], "input 'n', value 0: expected INT64, got the number 1.5"),
    (IMAGE, [t("i", "FP32", [1, 4], [1, 2, 3, 4])], "shape (1, 4) does not match (-1, 2, 2)"),
    (IMAGE, [t("i", "BYTES", [1, 2, 2], ["a"] * 4)], "input 'i': BYTES of shape [1, 2, 2] does not fit"),
    (PAIR, [t("ids", "INT64", [1, 3], [1, 2, 3])], "missing input 'mask'"),
    (XY, [t("x", "FP64", [1], [1], extra=1)], "input 'x': unknown field 'extra'"),
])
def test_what_does_not_fit_is_named(model, inputs, message):
    assert message in refused(model, *inputs)


def test_the_fields_around_the_tensors():
    good = [t("m", "FP64", [1, 2], [1, 2])]
    for more, message in [({"id": 3}, "id: expected a text"), ({"outputs": {}}, "outputs: expected a list"),
                          ({"outputs": [{}]}, "outputs[0]: expected an object with a name"),
                          ({"outputs": [{"name": "a"}, {"name": "a"}]}, "'a' is asked for twice"),
                          ({"parameters": {"depth": 1}}, "parameters: unknown 'depth'"),
                          ({"parameters": 3}, "parameters: expected an object"),
                          ({"instances": []}, "unknown field 'instances'")]:
        assert message in refused(XY, *good, **more)
    document = {"inputs": good, "id": "7", "outputs": [{"name": "a"}]}
    assert oip.request_id(document) == "7" and oip.wanted(document) == ["a"]


def test_bodies():
    assert oip.read(b'{"inputs": []}', "") == {"inputs": []}
    for body, message in [(b"", "not JSON"), (b"\xff", "not UTF-8"), (b"[]", "a list, not an object"),
                          (b'{"a": Infinity}', "Infinity is not"), (b"[" * 100_000, "nested too deeply"),
                          (b'{"a": ' + b"9" * 5000 + b"}", "can be read")]:
        with pytest.raises(ParameterError, match=message):
            oip.read(body)
    with pytest.raises(UnsupportedMedia):
        oip.read(b"{}", "text/plain")


def binary(*inputs, tail=b""):
    head = json.dumps({"inputs": list(inputs)}).encode()
    return oip.read(head + tail, "application/octet-stream", str(len(head)))


def test_binary_tensors_in_a_request():
    def b(name, datatype, shape, size):
        return {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}

    words = b"".join(struct.pack("<I", len(w)) + w for w in (b"a", "ü".encode()))
    tail = struct.pack("<2d", 1.5, 2.5) + struct.pack("<2q", 3, 4) + words + b"\x01\x00"
    document = binary(b("x", "FP64", [2], 16), b("n", "INT64", [2], 16), b("who", "BYTES", [2], len(words)),
                      b("ok", "BOOL", [2], 2), tail=tail)
    frame, _ = build(MIXED, oip.canonical(MIXED, document))
    assert frame["x"].tolist() == [1.5, 2.5] and frame["who"].tolist() == ["a", "ü"]
    assert frame["ok"].tolist() == [True, False]
    half = binary(b("i", "FP16", [1, 2, 2], 8), tail=np.arange(4, dtype="<f2").tobytes())
    assert build(IMAGE, oip.canonical(IMAGE, half))[0].tolist() == [[[0, 1], [2, 3]]]
    for inputs, rest, message in [([b("x", "FP64", [1], 8)], b"1234", "does not fit the body"),
                                  ([b("x", "FP64", [1], 4)], b"1234", "cut off"),
                                  ([b("x", "BYTES", [1], 4)], b"\xff\xff\xff\xff", "cut off"),
                                  ([b("x", "Q", [1], 4)], b"1234", "datatype 'Q'"),
                                  ([t("x", "FP64", [1], [1])], b"12", "2 bytes that belong to no input")]:
        with pytest.raises(ParameterError, match=message):
            binary(*inputs, tail=rest)
    for length in ("x", "99", "-1", "9" * 50):
        with pytest.raises(ParameterError):
            oip.read(b"{}", "", length)


def test_metadata_says_how_to_send_the_inputs():
    meta = oip.model_metadata("digits", ["blue", "green"], signature(
        column("double", "x"), column("string", "s"), outputs=[{"type": "long", "required": True}]))
    assert meta == {"name": "digits", "versions": ["blue", "green"], "platform": "mlflow",
                    "inputs": [{"name": "x", "datatype": "FP64", "shape": [-1]},
                               {"name": "s", "datatype": "BYTES", "shape": [-1]}],
                    "outputs": [{"name": "predictions", "datatype": "INT64", "shape": [-1]}]}
    assert oip.inputs_of(IMAGE) == [{"name": "input", "datatype": "FP32", "shape": [-1, 2, 2]}]
    assert oip.server_metadata()["name"] == "jupyter-mlops"
    for model in ALL:
        described = oip.inputs_of(model)
        assert described and {i["datatype"] for i in described} <= set(tensors.DATATYPES)


@pytest.mark.parametrize(("scores", "outputs"), [
    ([1, 2], [("predictions", [2], "INT64", [1, 2])]),
    ([[0.25, 0.75]], [("predictions", [1, 2], "FP64", [0.25, 0.75])]),
    ([1, None, 2.5], [("predictions", [3], "FP64", [1, None, 2.5])]),
    ([{"a": 1, "b": "x"}, {"a": 2, "b": None}], [("a", [2], "INT64", [1, 2]), ("b", [2], "BYTES", ["x", None])]),
    ({"p": [[True]], "n": 3}, [("p", [1, 1], "BOOL", [True]), ("n", [1], "INT64", [3])]),
    ([[1], [1, 2]], [("predictions", [2], "BYTES", ["[1]", "[1,2]"])]),
    ([2**63], [("predictions", [1], "UINT64", [2**63])]),
    ([2**70], [("predictions", [1], "BYTES", [str(2**70)])]),
    ("a", [("predictions", [1], "BYTES", ["a"])]),
    ([], [("predictions", [0], "FP64", [])]),
    ([{}], [("predictions", [1], "BYTES", ["{}"])]),
    (None, [("predictions", [1], "BYTES", [None])]),
])
def test_answers(scores, outputs):
    for answered in (scores, answer(scores)):
        result = oip.answer("m", "blue", "7", answered)
        assert [(o["name"], o["shape"], o["datatype"], o["data"]) for o in result["outputs"]] == outputs
        assert (result["model_name"], result["model_version"], result["id"]) == ("m", "blue", "7")


def test_answers_keep_to_the_signature_and_to_what_was_asked_for():
    model = signature(column("double", "x"), outputs=[{"type": "float", "name": "score"}])
    (only,) = oip.answer("m", "b", None, [1, 2], [], model)["outputs"]
    assert (only["name"], only["datatype"]) == ("score", "FP32")
    assert [o["name"] for o in oip.answer("m", "b", None, {"a": 1, "b": 2}, ["b"])["outputs"]] == ["b"]
    with pytest.raises(ParameterError, match="no output 'c'"):
        oip.answer("m", "b", None, {"a": 1}, ["c"])


# -- whatever comes ----------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.floats(allow_infinity=False) | st.text(max_size=5)
    | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=8)
NAMES = st.sampled_from(["x", "y", "n", "who", "ok", "at", "raw", "v", "a", "o", "ids", "mask", "input", ""])
INPUTS = st.fixed_dictionaries({}, optional={
    "name": NAMES | VALUES, "datatype": st.sampled_from(tensors.DATATYPES) | VALUES,
    "shape": st.lists(st.integers(-1, 3), max_size=3) | VALUES, "data": VALUES, "parameters": VALUES})
DOCUMENTS = st.fixed_dictionaries({"inputs": st.lists(INPUTS | VALUES, max_size=4) | VALUES},
                                  optional={"id": VALUES, "parameters": VALUES, "outputs": VALUES})


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(ALL), DOCUMENTS | VALUES)
def test_any_document_is_scored_or_refused(model, document):
    try:
        build(model, oip.canonical(model, document))
    except MlopsError as error:
        assert error.status == 400
        json.dumps(oip.error_body(error)).encode("ascii")


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(ALL), st.data())
def test_any_tensors_of_the_right_make_are_scored_or_refused(model, draw):
    """Much closer to what fits, so that the checks behind the first ones are reached."""
    rows = draw.draw(st.integers(0, 3))
    inputs = []
    for told in oip.inputs_of(model):
        datatype = draw.draw(st.sampled_from([told["datatype"]] * 4 + list(tensors.DATATYPES)))
        shape = [rows if n == -1 else n for n in told["shape"]]
        texts = st.text(max_size=4) | st.sampled_from(["{}", "[1]", '{"k":1}', "1"])
        one = {"BOOL": st.booleans(), "BYTES": texts}.get(
            datatype, st.integers(-200, 2**65) | st.floats(allow_infinity=False) | st.none())
        size = int(np.prod(shape))
        inputs.append(t(told["name"], datatype, shape, draw.draw(st.lists(one, min_size=size, max_size=size))))
    try:
        build(model, oip.canonical(model, {"inputs": inputs}))
    except MlopsError as error:
        assert error.status == 400


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=80) | DOCUMENTS.map(lambda d: json.dumps(d).encode()), st.sampled_from(["", "2", "30", "x"]))
def test_any_bytes_are_read_or_refused(raw, length):
    try:
        oip.canonical(XY, oip.read(raw, "application/json", length))
    except MlopsError as error:
        assert error.status in (400, 415)


@settings(max_examples=80, deadline=None)
@given(VALUES, st.sampled_from([None, *ALL]))
def test_any_answer_becomes_tensors_whose_shape_is_that_of_their_data(scores, model):
    for output in oip.answer("m", "b", None, answer(scores), [], model)["outputs"]:
        assert int(np.prod(output["shape"])) == len(output["data"])
        assert output["datatype"] in tensors.DATATYPES
        if output["datatype"] == "BYTES":
            assert {type(v) for v in output["data"]} <= {str, type(None)}
