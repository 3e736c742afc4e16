"""The short way from a body to its canonical form gives the same bytes as the long one, or leaves the body alone."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_mlops.core.errors import MlopsError
from jupyter_mlops.serving import signature as sig
from jupyter_mlops.serving.fastpath import fast_path
from jupyter_mlops.serving.payload import canonical


def columns(kind, *names):
    return sig.from_document({"inputs": [{"type": kind, "name": n, "required": True} for n in names]})


def tensor(dtype, *shape, name=None):
    spec = {"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": list(shape)}}
    return sig.from_document({"inputs": [spec if name is None else {**spec, "name": name}]})


SIGNATURES = {
    "double": columns("double", "a", "b"), "long": columns("long", "a", "b"), "one": columns("double", "x[0]"),
    "odd": columns("double", "ä\"\\", "b"), "plain": tensor("float64", -1, 2), "float": tensor("float32", -1, 2),
    "deep": tensor("float64", -1, 2, 2), "named": tensor("int64", -1, 2, name="x"), "flat": tensor("float64", -1),
}
NUMBERS = st.one_of(
    st.integers(-5, 5), st.integers(), st.floats(), st.floats(width=32), st.sampled_from(
        [2**53 + 1, 2**63, 2**64, -2**63 - 1, 1e400, 1e39, -0.0, 5e-324]),
    st.none(), st.booleans(), st.text(max_size=2), st.just([]), st.just([1.0]), st.just({}))
ROWS = st.lists(st.lists(NUMBERS, min_size=1, max_size=3) | NUMBERS, max_size=4)
CLEAN = st.lists(st.lists(st.integers(-9, 9) | st.floats(-9, 9), min_size=2, max_size=2), min_size=1, max_size=5)
BODIES = st.one_of(
    st.builds(lambda names, rows: {"dataframe_split": {"columns": names, "data": rows}},
              st.sampled_from([["a", "b"], ["b", "a"], ["a"], ["x[0]"], ["ä\"\\", "b"], []]), ROWS | CLEAN),
    st.builds(lambda form, rows: {form: rows}, st.sampled_from(["inputs", "instances", "x"]),
              ROWS | CLEAN | st.lists(CLEAN, max_size=3)),
    st.builds(lambda rows: {"inputs": {"x": rows}}, ROWS | CLEAN),
    st.builds(lambda rows, more: {"inputs": rows, **more}, CLEAN, st.just({"params": {}}) | st.just({"index": 1})),
    NUMBERS,
)


def both(signature, body):
    fast = fast_path(signature)
    assert fast is not None
    found = fast(body)
    try:
        wanted = canonical(signature, body, "application/json")
    except MlopsError:
        wanted = None
    return found, wanted


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(SIGNATURES)), BODIES, st.booleans())
def test_the_short_way_agrees_with_the_long_one(name, document, spaced):
    body = json.dumps(document, separators=(", ", ": ") if spaced else (",", ":")).encode()
    found, wanted = both(SIGNATURES[name], body)
    assert found is None or found == wanted


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(SIGNATURES)), CLEAN, st.data())
def test_torn_and_changed_bodies_too(name, rows, data):
    split = {"dataframe_split": {"columns": ["a", "b"], "data": rows}}
    form = split if name in ("double", "long") else {"inputs": rows}
    body = bytearray(json.dumps(form).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        change = data.draw(st.sampled_from(
            [b"", b"[", b"]", b",", b"{", b'"', b"0", b"-", b"\xff", b"e", b" ", b"1e999"]))
        body[at:at + data.draw(st.integers(0, 2))] = change
    found, wanted = both(SIGNATURES[name], bytes(body))
    assert found is None or found == wanted


@pytest.mark.parametrize("name, form", [
    ("double", {"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2.5], [3, 4]]}}),
    ("long", {"dataframe_split": {"data": [[1, 2], [3, 4]], "columns": ["a", "b"]}}),
    ("plain", {"inputs": [[1, 2]]}), ("float", {"instances": [[1, 2.5], [0.1, 3]]}),
    ("named", {"inputs": {"x": [[1, 2]]}}),
    ("deep", {"inputs": [[[1, 2], [3, 4]]]}), ("flat", {"inputs": [1, 2.5]}),
])
def test_what_most_callers_send_takes_the_short_way(name, form):
    found, wanted = both(SIGNATURES[name], json.dumps(form).encode())
    assert found is not None and found == wanted
