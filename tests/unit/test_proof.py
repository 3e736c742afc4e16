"""What counts as the same answer."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_mlops.core.proof import compare, differing, packages_line

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=12,
)


@pytest.mark.parametrize(
    ("expected", "answer"),
    [
        ([1, 2, 3], [1.0, 2.0, 3.0]),
        ([1.0, 2.0], [1.0 + 9e-6, 2.0]),
        ([0.0], [1e-9]),
        ([math.nan, None], [None, math.nan]),
        ([math.inf, -math.inf], [math.inf, -math.inf]),
        ([[1.0, 2.0], [3.0, None]], [[1.0, 2.0], [3.0, math.nan]]),
        ([{"p": 0.5, "label": "a"}], [{"label": "a", "p": 0.5000001}]),
        ({"predictions": [1]}, [1]),
        ([1], {"predictions": [1.0]}),
        ({"a": [1, 2]}, {"a": [1, 2]}),
        ("text", "text"),
        ([10**400], [10**400]),
        ([True, False], [True, False]),
    ],
)
def test_equal(expected, answer):
    found = compare(expected, answer)
    assert found.equal and found.message == ""


@pytest.mark.parametrize(
    ("expected", "answer", "words"),
    [
        ([1, 2, 3], [1, 2], ["3 rows expected, 2 came"]),
        ([1.0, 2.0], [1.0, 2.1], ["row 1", "expected 2.0, got 2.1"]),
        ([[1.0, 2.0]], [[1.0, 2.5]], ["row 0, column 1"]),
        ([[1.0, 2.0]], [[1.0]], ["row 0", "2 values expected, 1 came"]),
        ([{"x": 1, "y": "a"}], [{"x": 1, "y": "b"}], ["row 0, column 'y'", "expected 'a', got 'b'"]),
        ([{"x": 1}], [{"z": 1}], ["row 0", "without 'x' and with 'z'"]),
        ({"a": [1, 2]}, {"a": [1, 3]}, ["column 'a', row 1"]),
        ([[[1.0], [2.0]]], [[[1.0], [9.0]]], ["row 0, column 1, in it 0"]),
        ([1, 2], [3, 4], ["row 0", "2 of 2 values differ"]),
        ([None], [0.0], ["nothing (null)"]),
        ([0.0], [None], ["got nothing (null)"]),
        ([math.inf], [1e300], ["inf"]),
        ([True], [1], ["expected True, got 1"]),
        ([1], [True], ["got True"]),
        (["1"], [1], ["expected '1', got 1"]),
        ([1, 2], "12", ["a list of 2", "'12'"]),
        ([10**400], [1.0], ["row 0"]),
    ],
)
def test_the_first_difference_is_named_in_one_line(expected, answer, words):
    found = compare(expected, answer)
    assert not found.equal and "\n" not in found.message
    assert not [w for w in words if w not in found.message], found.message


@given(JSON)
def test_whatever_went_through_json_is_itself(value):
    assert compare(value, json.loads(json.dumps(value))).equal


@given(st.lists(st.floats(allow_nan=False, width=32), min_size=1, max_size=20), st.floats(0, 1e-3))
def test_numbers_agree_as_numpy_has_it(values, rtol):
    other = [float(np.nextafter(np.float32(v), np.float32(0))) for v in values]
    with np.errstate(all="ignore"):
        wanted = bool(np.allclose(other, values, rtol=rtol, atol=1e-8))
    assert compare(values, other, rtol, 1e-8).equal is wanted


def test_rows_and_the_largest_difference_are_told():
    found = compare([1.0, 2.0, 3.0], [1.0, 2.0, 3.000001])
    assert (found.rows, found.equal) == (3, True)
    assert found.max_difference == pytest.approx(1e-6, rel=1e-3)
    assert compare([1.0], [1]).max_difference == 0.0 and compare(["a"], ["a"]).max_difference is None


def test_packages():
    kernel = {"scikit_learn": "1.5", "numpy": "2.4", "matplotlib": "1"}
    found = differing(kernel, {"scikit-learn": "1.4", "NumPy": "2.4"})
    assert found == [{"name": "scikit_learn", "kernel": "1.5", "deployment": "1.4"}], "matplotlib is not used there"
    assert "scikit_learn 1.5 in the notebook, 1.4 in the deployment" in packages_line(found)
    assert differing({"numpy": "2.4"}, {}) == [], "nothing is known of the deployment"
    assert packages_line([]) == ""
    many = differing({f"p{i}": "1" for i in range(9)}, {f"P{i}": "2" for i in range(9)})
    assert packages_line(many).endswith("and 5 more")
