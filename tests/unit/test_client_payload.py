"""From Python values to MLflow's scoring JSON, and back."""

from __future__ import annotations

import datetime as dt
import json
import math
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_mlops.client.payload import build, columns_of, example, plain, result
from jupyter_mlops.core.errors import ParameterError

COLUMNS = {"inputs": json.dumps([{"type": "double", "name": "a"}, {"type": "long", "name": "b"}])}
ONE = {"inputs": [{"type": "string", "name": "text"}]}
TENSOR = {"inputs": json.dumps([{"type": "tensor", "tensor-spec": {"dtype": "float64", "shape": [-1, 2]}}])}
NAMED = {"inputs": [
    {"type": "tensor", "name": "x", "tensor-spec": {"dtype": "float64", "shape": [-1, 2]}},
    {"type": "tensor", "name": "y", "tensor-spec": {"dtype": "float64", "shape": [-1]}},
]}
FRAME = pd.DataFrame({"a": [1.5, 2.5], "b": [1, 2]})
SPLIT = {"dataframe_split": {"columns": ["a", "b"], "data": [[1.5, 1], [2.5, 2]]}}


@pytest.mark.parametrize(
    ("data", "signature", "expected"),
    [
        (FRAME, COLUMNS, SPLIT),
        (FRAME, None, SPLIT),
        (np.array([[1.5, 1], [2.5, 2]]), COLUMNS, SPLIT),
        ([[1.5, 1], [2.5, 2]], COLUMNS, SPLIT),
        ([1.5, 1], COLUMNS, {"dataframe_split": {"columns": ["a", "b"], "data": [[1.5, 1]]}}),
        ({"a": [1.5, 2.5], "b": [1, 2]}, COLUMNS, SPLIT),
        ({"a": 1.5, "b": 1}, COLUMNS, {"dataframe_records": [{"a": 1.5, "b": 1}]}),
        ([{"a": 1.5, "b": 1}], COLUMNS, {"dataframe_records": [{"a": 1.5, "b": 1}]}),
        (FRAME.iloc[0], COLUMNS, {"dataframe_split": {"columns": ["a", "b"], "data": [[1.5, 1.0]]}}),
        (["x", "y"], ONE, {"dataframe_split": {"columns": ["text"], "data": [["x"], ["y"]]}}),
        ("x", ONE, {"dataframe_split": {"columns": ["text"], "data": [["x"]]}}),
        (pd.Series(["x", "y"]), ONE, {"dataframe_split": {"columns": ["text"], "data": [["x"], ["y"]]}}),
        ([[1, 2, 3]], COLUMNS, {"inputs": [[1, 2, 3]]}),  # the server names what is wrong
        (np.zeros((1, 2)), TENSOR, {"inputs": [[0.0, 0.0]]}),
        (np.zeros(2), TENSOR, {"inputs": [[0.0, 0.0]]}),
        (FRAME, TENSOR, {"inputs": [[1.5, 1.0], [2.5, 2.0]]}),
        ({"x": np.zeros((1, 2)), "y": [1.0]}, NAMED, {"inputs": {"x": [[0.0, 0.0]], "y": [1.0]}}),
        ({"inputs": np.zeros((1, 2))}, COLUMNS, {"inputs": [[0.0, 0.0]]}),
        ({"dataframe_split": SPLIT["dataframe_split"], "params": {"t": 1}}, None, {**SPLIT, "params": {"t": 1}}),
        (np.zeros((1, 2)), None, {"inputs": [[0.0, 0.0]]}),
        (3, None, {"inputs": [3]}),
    ],
)
def test_build(data, signature, expected) -> None:
    made = build(data, signature)
    assert made == expected
    json.dumps(made, allow_nan=False)


def test_unequal_columns() -> None:
    with pytest.raises(ParameterError, match="not equally long"):
        build({"a": [1], "b": [1, 2]}, COLUMNS)


def test_plain_values() -> None:
    assert plain(np.float32(0.5)) == 0.5 and plain(np.int64(3)) == 3 and plain(math.nan) is None
    assert plain(pd.Timestamp("2026-01-01")) == "2026-01-01T00:00:00" and plain(pd.NaT) is None
    assert plain(pd.NA) is None and plain(b"a") == "YQ==" and plain(dt.date(2026, 1, 1)) == "2026-01-01"
    assert plain((1, [np.nan])) == [1, [None]]
    with pytest.raises(ParameterError, match="type object"):
        plain(object())


if find_spec("torch"):

    def test_tensors_with_a_graph() -> None:
        import torch

        assert plain(torch.ones(1, 2, requires_grad=True)) == [[1.0, 1.0]]


@settings(max_examples=100, deadline=None)
@given(st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
                    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4)),
                    max_leaves=12))
def test_anything_of_json_is_sent(value) -> None:
    for signature in (None, COLUMNS, TENSOR):
        try:
            json.dumps(build(value, signature), allow_nan=False)
        except ParameterError:
            pass


def test_results() -> None:
    array = result({"predictions": [1, 2]})
    assert isinstance(array, np.ndarray) and array.tolist() == [1, 2]
    assert result({"predictions": [[0.1, 0.9]]}).shape == (1, 2)
    assert result({"predictions": ["a", "b"]}) == ["a", "b"]
    assert list(result({"predictions": [{"a": 1}]}).columns) == ["a"]
    assert result({"predictions": []}) == [] and result([1]).tolist() == [1] and result("x") == "x"
    assert result({"predictions": [[1], [1, 2]]}) == [[1], [1, 2]]


@pytest.mark.parametrize("signature", [None, {}, COLUMNS, ONE, TENSOR, NAMED, {"inputs": "nonsense"}, {"inputs": None}])
def test_example_is_json(signature) -> None:
    json.loads(example(signature))
    columns_of(signature)


def test_example_names_every_column() -> None:
    wide = {"inputs": [{"type": "double", "name": f"pixel_{i}"} for i in range(64)]}
    split = json.loads(example(wide))["dataframe_split"]
    assert len(split["columns"]) == len(split["data"][0]) == 64
