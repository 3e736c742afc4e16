"""Mini-batches of a batch run: how files are cut, what their rows become, what is kept of the answers."""

from __future__ import annotations

import csv
import io
import json
import math
import os

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_mlops.runtime import minibatch, parts, predictions, rows
from jupyter_mlops.runtime.minibatch import BatchError

COLUMNS = [
    {"type": "double", "name": "x", "required": True}, {"type": "long", "name": "n", "required": True},
    {"type": "string", "name": "who", "required": True}, {"type": "boolean", "name": "ok", "required": True},
    {"type": "datetime", "name": "at", "required": False}, {"type": "binary", "name": "raw", "required": False},
    {"type": "array", "name": "v", "required": False, "items": {"type": "double"}},
]


def about(*inputs, **more):
    return {"signature": {"inputs": list(inputs), **more}}


def batches(path, size=3, columns=None, done=()):
    made = minibatch.plan(str(path), size)
    for batch in minibatch.read(made, columns, done.__contains__):
        batch["kind"] = made["kind"]
        yield batch


def built(path, described, size=1000, wants="frame"):
    (batch,) = batches(path, size)
    return rows.build(batch, [], described, wants, None)


def save(path, text):
    path.write_text(text) if isinstance(text, str) else path.write_bytes(text)
    return path


# -- files ------------------------------------------------------------------------


def test_what_is_found(tmp_path):
    for name in ("b/2.csv", "a.csv", "b/.hidden.csv", ".git/x.csv", "b/readme.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save(tmp_path / name, "x\n1\n")
    os.symlink(tmp_path, tmp_path / "b" / "loop")

    def names(path):
        root, files, kind = minibatch.find(str(path))
        assert kind == "csv"
        return [os.path.relpath(f, root) for f in files]

    assert names(tmp_path) == ["a.csv", "b/2.csv"]
    assert names(tmp_path / "a.csv") == ["a.csv"] and names(tmp_path / "b" / "*.csv") == ["2.csv"]
    assert names(tmp_path / "**" / "2.csv")[0] == "b/2.csv"
    save(tmp_path / "b" / "c.jsonl", "{}\n")
    for path, message in [(tmp_path, "several kinds"), (tmp_path / "none", "is not there"),
                          (tmp_path / "b" / "readme.md", "none of the files"), (tmp_path / "*.txt", "holds none")]:
        with pytest.raises(BatchError, match=message):
            minibatch.find(str(path))


def test_a_plan_notices_what_has_changed(tmp_path):
    path = save(tmp_path / "a.csv", "x\n1\n")
    made = minibatch.plan(str(path))
    minibatch.check_unchanged(made)
    save(path, "x\n12\n")
    with pytest.raises(BatchError, match=r"a\.csv has changed"):
        minibatch.check_unchanged(made)
    path.unlink()
    with pytest.raises(BatchError, match="is gone"):
        minibatch.check_unchanged(made)


def test_records_with_line_breaks_are_not_torn(tmp_path):
    path = save(tmp_path / "a.csv", '\ufeffx,who\r\n1,"a\nb"\r\n\n2,"say ""hi"""\n3,c\n4,"d\n\n\ne"')
    found = list(batches(path, 2))
    assert [(b["number"], b["first"], b["rows"]) for b in found] == [(0, 0, 2), (1, 2, 2)]
    assert found[-1]["share"] == 1.0
    texts = [r for b in found for r in rows._from_csv(b)[1]]
    assert texts == [["1", "a\nb"], ["2", 'say "hi"'], ["3", "c"], ["4", "d\n\n\ne"]]
    assert [b["number"] for b in batches(path, 2, done={0})] == [1]
    torn = save(tmp_path / "torn.csv", 'x\n1\n"2\n')
    assert "never closed" in list(batches(torn))[-1]["error"]
    assert "no header" in next(iter(batches(save(tmp_path / "empty.csv", ""))))["error"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6),
                         min_size=2, max_size=2), min_size=1, max_size=12), st.integers(1, 5))
def test_any_csv_comes_in_rows_as_it_was_written(tmp_path_factory, table, size):
    out = io.StringIO(newline="")
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows([["a", "b"], *table])
    path = save(tmp_path_factory.mktemp("csv") / "t.csv", out.getvalue().encode())
    found = list(batches(path, size))
    assert [r for b in found for r in rows._from_csv(b)[1]] == table
    assert [b["first"] for b in found] == list(range(0, len(table), size))


# -- rows -------------------------------------------------------------------------


def test_every_type_from_csv_json_lines_and_parquet(tmp_path):
    text = "who,x,ok,n,at,raw,v,more\na,1.5,true,3,2026-01-31,aGk=,\"[1, 2]\",z\n,nan,0,9007199254740993,,,,\n"
    json_lines = "\n".join(json.dumps(row) for row in [
        {"x": 1.5, "n": 3.0, "who": "a", "ok": True, "at": "2026-01-31T00:00:00Z", "raw": "aGk=", "v": [1, 2], "z": 1},
        {"x": None, "n": 9007199254740993, "who": "", "ok": False}])
    frame = pd.DataFrame({"x": [1.5, None], "n": [3, 9007199254740993], "who": ["a", ""], "ok": [True, False],
                          "at": pd.to_datetime(["2026-01-31", None]), "raw": [b"hi", None], "v": [[1.0, 2.0], None]})
    frame.to_parquet(tmp_path / "p.parquet")
    for path in (save(tmp_path / "c.csv", text), save(tmp_path / "j.jsonl", json_lines), tmp_path / "p.parquet"):
        data, kept, bad = built(path, about(*COLUMNS))
        assert (kept, bad) == ([0, 1], [])
        assert list(data.columns) == ["x", "n", "who", "ok", "at", "raw", "v"]
        assert data["x"][0] == 1.5 and math.isnan(data["x"][1]) and data["n"].tolist() == [3, 9007199254740993]
        assert data["n"].dtype == "int64" and data["ok"].dtype == bool and data["who"].tolist() == ["a", ""]
        assert data["at"][0] == pd.Timestamp("2026-01-31") and pd.isna(data["at"][1])
        assert data["raw"].tolist() == [b"hi", None] and data["v"].tolist() == [[1.0, 2.0], None]


def test_rows_that_do_not_fit_are_left_out_and_told(tmp_path):
    text = ("x,n,who,ok\n1,1,a,true\nx,1,a,true\n1,1.5,a,true\n1,,a,true\n1,1,a,maybe\n1,1\n1e999,1,a,true\n"
            "1_0,1,a,1\n2,99999999999999999999,a,1\n3,2.0,,0\n")
    data, kept, bad = built(save(tmp_path / "a.csv", text), about(*COLUMNS[:4]))
    assert kept == [0, 9] and data["x"].tolist() == [1.0, 3.0] and data["n"].tolist() == [1, 2]
    assert [row for row, _ in bad] == list(range(1, 9))
    messages = dict(bad)
    assert messages[1] == "column 'x': expected double, got 'x'"
    assert messages[2] == "column 'n': expected long, got 1.5"
    assert messages[3] == "column 'n': missing value, expected long" and "2 values, the header 4" in messages[5]
    assert messages[6] == "column 'x': the number is too large for double"
    assert messages[8] == "column 'n': the number does not fit into long"
    with pytest.raises(BatchError, match="the columns 'n', 'who' are missing"):
        built(save(tmp_path / "b.csv", "x,ok\n1,1\n"), about(*COLUMNS[:4]))
    torn = b"x\n1\n\xff\n3\n"
    assert built(save(tmp_path / "c.csv", torn), about(COLUMNS[0]))[1:] == ([0, 2], [[1, "it is not UTF-8"]])
    _, kept, bad = built(save(tmp_path / "d.jsonl", '{"x": 1}\n{\n[1]\n{"y": 1}\n{"x": true}\n'), about(COLUMNS[0]))
    assert kept == [0] and [m[:12] for _, m in bad] == ["not JSON: Ex", "it is no JSO", "column 'x': ", "column 'x': "]
    assert built(save(tmp_path / "e.csv", "x\nno\n"), about(COLUMNS[0]))[:2] == (None, [])


ODD = ["", "1e400", "-", "1.", ".5", "+3", "1e", "--1", "1.2.3", "00012", "4e-320", "3.5e38"]
CELL = st.floats(allow_nan=False, allow_infinity=False).map(repr) | st.integers(-(10**20), 10**20).map(str) \
    | st.sampled_from(ODD)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(CELL, min_size=2, max_size=2), min_size=1, max_size=5), st.sampled_from(["array", "frame"]))
def test_a_table_of_numbers_is_the_same_by_the_short_way(tmp_path_factory, table, wants):
    text = "y,x\n" + "".join(",".join(row) + "\n" for row in table)
    path = save(tmp_path_factory.mktemp("n") / "t.csv", text)
    inputs = [{"type": "double", "name": "x"}, {"type": "float", "name": "y"}]
    (batch,) = batches(path, 1000)
    short = rows._numbers(batch, inputs, wants)
    if short is not None:
        names, given, bad, is_text = rows._given(batch)
        slow, kept, bad = rows._frame(names, given, bad, is_text, inputs, wants, None)
        assert kept == list(range(len(table))) and not bad
        np.testing.assert_array_equal(np.asarray(short), np.asarray(slow))
        assert wants == "array" or list(short.dtypes) == list(slow.dtypes)


def test_arrays_where_the_model_wants_them(tmp_path):
    path = save(tmp_path / "a.csv", "b,a,c\n2,1,z\n4,3,z\n")
    described = about({"type": "double", "name": "a"}, {"type": "double", "name": "b"})
    data, _, _ = built(path, described, wants="array")
    np.testing.assert_array_equal(data, [[1, 2], [3, 4]])
    assert data.flags.c_contiguous and data.dtype == "float64"
    unnamed = about({"type": "long"}, {"type": "long"}, {"type": "string"})
    assert built(path, unnamed)[0].iloc[0].tolist() == [2, 1, "z"]


def test_tensors_from_tables_and_json_lines(tmp_path):
    def tensor(dtype, shape, name=None):
        return {"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": shape}, **({"name": name} if name else {})}

    path = save(tmp_path / "a.csv", "p,q,r,s\n1,2,3,4\n5,6,7,x\n")
    data, kept, bad = built(path, about(tensor("float32", [-1, 2, 2])))
    assert data.tolist() == [[[1, 2], [3, 4]]] and data.dtype == "float32" and kept == [0] and bad[0][0] == 1
    path = save(tmp_path / "b.jsonl", '{"ids": [1, 2], "m": [true, false]}\n{"ids": [1], "m": [true, true]}\n')
    data, kept, bad = built(path, about(tensor("int64", [-1, 2], "ids"), tensor("bool", [-1, 2], "m")))
    assert data["ids"].tolist() == [[1, 2]] and bad == [[1, "its shape is [1], expected [2]"]]
    path = save(tmp_path / "c.jsonl", "[[1, 2], [3, 4]]\n[[1, 2], [3, 300]]\n")
    data, kept, bad = built(path, about(tensor("uint8", [-1, 2, 2])))
    assert data.tolist() == [[[1, 2], [3, 4]]] and "does not fit into uint8" in bad[0][1]
    path = save(tmp_path / "d.jsonl", '"a"\n"b"\n')
    assert built(path, about(tensor("str", [-1])))[0].tolist() == ["a", "b"]
    assert built(path, about({"type": "string"}, type_hint=True))[0] == ["a", "b"]


def test_a_script_without_a_signature_gets_what_the_endpoint_would(tmp_path):
    data, kept, _ = built(save(tmp_path / "a.csv", "x,w\n1,a\n2.5,\n"), {"signature": {}})
    assert data == {"dataframe_split": {"columns": ["x", "w"], "data": [[1, "a"], [2.5, None]]}} and kept == [0, 1]
    assert rows.cut(data, 1, 2)["dataframe_split"]["data"] == [[2.5, None]]
    assert built(save(tmp_path / "b.jsonl", "[1]\n[2]\n"), {})[0] == {"inputs": [[1], [2]]}


VALUES = st.recursive(st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.floats() | st.text(max_size=5),
                      lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=2), v, max_size=2),
                      max_leaves=5)
NAMES = st.sampled_from([c["name"] for c in COLUMNS])
LINES = st.lists(st.dictionaries(NAMES, VALUES) | VALUES, min_size=1, max_size=6)


@settings(max_examples=50, deadline=None)
@given(LINES)
def test_any_json_lines_are_scored_or_told(tmp_path_factory, values):
    path = save(tmp_path_factory.mktemp("j") / "t.jsonl", "".join(json.dumps(v) + "\n" for v in values))
    described = about(*({**c, "required": False} for c in COLUMNS))
    try:
        data, kept, bad = built(path, described)
    except BatchError:
        return
    assert sorted([*kept, *(row for row, _ in bad)]) == list(range(len(values)))
    assert data is None or len(data) == len(kept)


# -- answers and parts ------------------------------------------------------------


@pytest.mark.parametrize(("output", "names", "first"), [
    (np.array([1, 2]), ["prediction"], [1]),
    (np.array([[1.5, np.nan], [2, 3]]), ["prediction_0", "prediction_1"], [1.5, None]),
    (np.zeros((2, 1)), ["prediction"], [0.0]), (np.zeros((2, 2, 2)), ["prediction"], [[[0.0, 0.0], [0.0, 0.0]]]),
    (pd.DataFrame({"a": [1, 2], "row": pd.to_datetime(["2026-01-31", None])}), ["a", "prediction_row"],
     [1, "2026-01-31T00:00:00"]),
    (pd.Series([np.float32(0.5), 1]), ["prediction"], [0.5]), ([{"p": b"hi"}, {"q": 1}], ["p", "q"], ["aGk=", None]),
    ({"a": np.array([1, 2]), "b": ["x", "y"]}, ["a", "b"], [1, "x"]), (["a", None], ["prediction"], ["a"]),
    ((True, False), ["prediction"], [True]),
])
def test_answers_become_columns(output, names, first):
    found, columns = predictions.table(output, 2)
    assert found == names and [c[0] for c in columns] == first
    json.dumps(columns, allow_nan=False)
    with pytest.raises(ValueError, match="answered 2 rows for 3"):
        predictions.table(output, 3)


def test_parts_are_merged_in_order_whatever_their_columns(tmp_path):
    folder = str(tmp_path)
    parts.write(folder, 1, ["b", "a"], [[1, 0, "x", 2.5], [1, 1, None, None]], [])
    parts.write(folder, 0, ["a"], [[0, 0, 1], [0, 2, 2**70]], [[0, 1, "bad"]])
    parts.write(folder, 2, [], [], [[1, None, "worse"]])
    assert parts.numbers(folder) == [0, 1, 2] and parts.head(folder, 0)["errors"] == [[0, 1, "bad"]]
    names = ["one.csv", "two, or ü.csv"]
    parts.merge(folder, 3, names, str(tmp_path / "o.csv"), "csv")
    assert (tmp_path / "o.csv").read_text() == (
        f'file,row,a,b\none.csv,0,1,\none.csv,2,{2**70},\n"two, or ü.csv",0,2.5,x\n"two, or ü.csv",1,,\n')
    parts.merge(folder, 3, names, str(tmp_path / "o.jsonl"), "jsonl")
    assert json.loads((tmp_path / "o.jsonl").read_text().splitlines()[2]) == {
        "file": "two, or ü.csv", "row": 0, "a": 2.5, "b": "x"}
    parts.merge(folder, 3, names, str(tmp_path / "o.parquet"), "parquet")
    assert pd.read_parquet(tmp_path / "o.parquet")["a"].fillna("-").tolist() == ["1", str(2**70), "2.5", "-"]
    parts.write_errors(folder, 3, names, str(tmp_path / "errors.jsonl"))
    assert [json.loads(e)["row"] for e in (tmp_path / "errors.jsonl").read_text().splitlines()] == [1, None]
    torn = parts.path(folder, 0)
    with open(torn, "r+b") as f:
        f.truncate(os.path.getsize(torn) - 1)
    assert parts.head(folder, 0) is None and parts.head(folder, 9) is None
    parts.merge(folder, 0, names, str(tmp_path / "none.parquet"), "parquet")
    assert len(pd.read_parquet(tmp_path / "none.parquet")) == 0
    assert not [n for n in os.listdir(tmp_path) if n.endswith(".tmp")]
