"""Ground truth from whatever holds it, captured rows as a DataFrame, the words of the verb ``endpoint``."""

from __future__ import annotations

import io
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jupyter_mlops.client import captured
from jupyter_mlops.core.errors import ParameterError
from jupyter_mlops.magics import completion, parser


def pairs(truth):
    return [(r["correlation_id"], r["row"], r["value"]) for r in captured.truth_rows(truth)]


@pytest.mark.parametrize(("truth", "expected"), [
    ({"a": 1, "b": "x"}, [("a", 0, 1), ("b", 0, "x")]),
    ({("a", 1): np.int64(3), ("a", 0): 2.5}, [("a", 1, 3), ("a", 0, 2.5)]),
    ({"correlation_id": ["a", "b"], "value": [1, 2]}, [("a", 0, 1), ("b", 0, 2)]),
    ([{"correlation_id": "a", "row": 2, "value": [1, 2]}], [("a", 2, [1, 2])]),
    (pd.Series({"a": 1, "b": 0}), [("a", 0, 1), ("b", 0, 0)]),
    (pd.Series([7, 8], index=pd.MultiIndex.from_tuples([("a", 0), ("a", 1)])), [("a", 0, 7), ("a", 1, 8)]),
    (pd.DataFrame({"correlation_id": ["a", "b"], "row": [0, 1], "value": [1.5, np.nan]}), [("a", 0, 1.5)]),
    (pd.DataFrame({"correlation_id": ["a"], "label": ["cat"]}), [("a", 0, "cat")]),
    (pd.DataFrame({"x": [1], "prediction": [2], "truth": [3]}, index=pd.Index(["a"], name="correlation_id")),
     [("a", 0, 3)]),
    (pd.DataFrame({"correlation_id": ["a"], "value": [True]}), [("a", 0, True)]),
])
def test_ground_truth_in_every_form(truth, expected):
    found = pairs(truth)
    assert found == expected
    json.dumps(found)


@pytest.mark.parametrize(("truth", "message"), [
    ({}, "no value"), ({"a": None}, "no value"), ({"": 1}, "correlation_id is missing"), (3, "int is no ground truth"),
    (pd.DataFrame({"id": [1], "value": [2]}), r"no column correlation_id .*there are id, value"),
    (pd.DataFrame({"correlation_id": ["a"], "p": [1], "q": [2]}), "not clear which column"),
    ({("a", 1.5): 1}, "row 1.5 of a is no whole number"), ({("a", -1): 1}, "row -1 of a"),
])
def test_what_is_no_ground_truth_is_told(truth, message):
    with pytest.raises(ParameterError, match=message):
        captured.truth_rows(truth)


def test_ground_truth_goes_in_parts_that_fit_into_a_request():
    rows = captured.truth_rows({str(n): "x" * 1000 for n in range(9000)})
    parts = list(captured.chunks(rows))
    assert [row for part in parts for row in part] == rows and len(parts) == 3
    assert all(len(json.dumps(part)) < 5_000_000 for part in parts)


def test_files_of_ground_truth(tmp_path):
    table = pd.DataFrame({"correlation_id": ["007", "b"], "value": [1, 2]})
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_parquet(tmp_path / "t.parquet")
    (tmp_path / "t.json").write_text(json.dumps({"007": 1, "b": 2}))
    (tmp_path / "t.jsonl").write_text('{"correlation_id": "007", "value": 1}\n{"correlation_id": "b", "value": 2}\n')
    for name in ("t.csv", "t.parquet", "t.json", "t.jsonl"):
        assert pairs(captured.load(tmp_path / name)) == [("007", 0, 1), ("b", 0, 2)], name
    (tmp_path / "broken.parquet").write_bytes(b"nothing")
    for name, message in (("none.csv", "no file"), ("broken.parquet", "cannot be read"), ("t.xyz", "no file")):
        with pytest.raises(ParameterError, match=message):
            captured.load(tmp_path / name)


def test_rows_are_in_the_order_of_time_and_json_is_decoded():
    moments = [2_000_000, 1_000_000]
    fields = [pa.field("correlation_id", pa.string()), pa.field("row", pa.int32()),
              pa.field("at", pa.timestamp("us", "UTC")), pa.field("thing", pa.string(), metadata={"encoding": "json"}),
              pa.field("text", pa.string())]
    table = pa.table([["b", "a"], pa.array([0, 0], pa.int32()), pa.array(moments, pa.timestamp("us", "UTC")),
                      ['{"k": [1]}', None], ["1", "2"]], schema=pa.schema(fields))
    file = io.BytesIO()
    pq.write_table(table, file)
    file.seek(0)
    found = captured.frame(file)
    assert found["correlation_id"].tolist() == ["a", "b"] and found["thing"][1] == {"k": [1]}
    assert found["thing"][0] is None and found["text"].tolist() == ["2", "1"]


def test_words():
    given = parser.parse(parser.split("endpoint data digits --since 2h --deployment v3 -n 10 --columns a,b"))
    assert (given.what, given.name, given.since, given.deployment, given.limit, given.columns) == (
        "data", "digits", "2h", "v3", 10, ["a", "b"])
    line = 'endpoint truth digits df[["correlation_id", "y"]].rename(columns={"y": "value"}) -o told'
    given = parser.parse(parser.split(line, lambda text: pytest.fail("Python is not expanded")))
    assert given.values == 'df[["correlation_id", "y"]].rename(columns={"y": "value"})' and given.out == "told"
    given = parser.parse(parser.split("endpoint truth digits {'a': 1}"))
    assert given.values == "{'a': 1}" and given.out is None
    given = parser.parse(["endpoint", "data", "digits", "-o", "rows.parquet"], "cli")
    assert given.out == "rows.parquet"
    with pytest.raises(ParameterError, match="not a variable name"):
        parser.parse(["endpoint", "data", "digits", "-o", "rows.parquet"], "magic")
    with pytest.raises(ParameterError, match="invalid choice"):
        parser.parse(["endpoint", "dat", "digits"])


def test_completion():
    known = {"endpoint": ["digits"], "variable": ["labels"]}
    for before, expected in (("endpoint ", ["data", "truth"]), ("endpoint data d", ["digits"]),
                             ("endpoint truth digits ", ["labels"])):
        found = completion.complete(before, lambda kind: known.get(kind, []))
        assert found is not None and found[1] == expected
