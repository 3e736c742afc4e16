"""Captured requests as Parquet: types, masks, crashes in between, filters, ground truth."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import wait_for
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_mlops.core.errors import ParameterError, Unavailable
from jupyter_mlops.runtime import frames
from jupyter_mlops.serving import collector, extract, segments, truth
from jupyter_mlops.serving import parts as parts_module
from jupyter_mlops.serving.columns import Columns, is_json
from jupyter_mlops.serving.extract import Wanted
from jupyter_mlops.serving.payload import canonical
from jupyter_mlops.serving.places import Places, write_json
from jupyter_mlops.serving.recorder import Recorder
from jupyter_mlops.serving.segments import Captured
from jupyter_mlops.serving.signature import from_document

HOUR = 3600.0
#: 2026-03-04 05:30 UTC
THEN = 1772602200.0
NUMBERS = {"inputs": [{"name": "x", "type": "double", "required": True}],
           "outputs": [{"type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1]}}]}


def column(name, kind, **more):
    return {"name": name, "type": kind, "required": True, **more}


def tensor(name, dtype, *shape):
    spec = {"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": list(shape)}}
    return spec if name is None else {"name": name, **spec}


def described(signature, **more):
    return {"schema": 1, "endpoint": "digits", "deployment": "v1", "model": {"name": "digits", "version": "3"},
            "masked": [], "signature": signature, **more}


def call(signature, body, answer, at=THEN, ident="r"):
    packed = canonical(from_document(signature), json.dumps(body).encode(), "application/json")
    return Captured(at, 1.5, ident, packed, json.dumps({"predictions": answer}).encode())


def segment(folder: Path, calls, signature=NUMBERS, deployment="v1", name="2026030405-1-0", torn=b""):
    """A finished segment, as a gateway leaves it."""
    path = folder / "spool" / deployment / f"{name}.rec"
    path.parent.mkdir(parents=True, exist_ok=True)
    description = json.dumps(described(signature, deployment=deployment)).encode()
    records = [segments.pack(segments.DESCRIPTION, description), *map(segments.pack_call, calls)]
    path.write_bytes(segments.MAGIC + b"".join(records) + torn)
    return path


def simple(n, at=THEN, ident=None):
    return call(NUMBERS, {"dataframe_records": [{"x": n}]}, [n], at, ident or f"r{n}")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "endpoints" / "digits" / "capture"
    folder.mkdir(parents=True)
    return folder


def everything(folder):
    return pd.concat([pq.ParquetFile(p).read().to_pandas() for p in sorted(folder.glob("data/*/*/*/part-*.parquet"))],
                     ignore_index=True)


# -- tables ------------------------------------------------------------------------


def table(signature, *calls, form="frame"):
    columns = Columns(described(signature), form)
    found = columns.table(list(calls))
    assert found.schema == columns.schema
    return found, columns


def test_every_scalar_type_of_mlflow_keeps_its_type():
    signature = {
        "inputs": [column("flag", "boolean"), column("i", "integer"), column("l", "long"), column("f", "float"),
                   column("d", "double"), column("s", "string"), column("b", "binary"), column("t", "datetime"),
                   column("list", "array", items={"type": "long"}),
                   column("thing", "object", properties={"k": {"type": "string"}})],
        "outputs": [column("score", "double"), column("label", "string"), column("when", "datetime")],
    }
    row = {"flag": True, "i": 1, "l": 2**40, "f": 0.5, "d": None, "s": "text", "b": "aGk=", "t": "2026-01-02T03:04:05",
           "list": [1, 2], "thing": {"k": "v"}}
    answer = [{"score": 0.25, "label": "a", "when": "2026-01-01T00:00:00Z"}]
    found, columns = table(signature, call(signature, {"dataframe_records": [row]}, answer))
    assert columns.unfit == 0
    types = {f.name: str(f.type) for f in found.schema}
    assert types == {
        "correlation_id": "string", "row": "int32", "at": "timestamp[us, tz=UTC]",
        "deployment": "dictionary<values=string, indices=int32, ordered=0>", "model_name": "string",
        "model_version": "string", "latency_ms": "double", "flag": "bool", "i": "int32", "l": "int64", "f": "float",
        "d": "double", "s": "string", "b": "binary", "t": "timestamp[us]", "list": "list<item: int64>",
        "thing": "string", "prediction.score": "double", "prediction.label": "string",
        "prediction.when": "timestamp[us]",
    }
    (only,) = found.to_pylist()
    assert only["d"] is None and only["b"] == b"hi" and only["list"] == [1, 2] and only["l"] == 2**40
    assert json.loads(only["thing"]) == {"k": "v"} and is_json(found.schema.field("thing"))
    assert only["prediction.when"] == pd.Timestamp("2026-01-01") and only["at"].timestamp() == THEN
    assert (only["correlation_id"], only["row"], only["deployment"], only["model_version"]) == ("r", 0, "v1", "3")


def test_requests_of_every_shape_come_out_in_their_order():
    signature = {"inputs": [column("a", "double"), column("b", "double")], "outputs": [column("y", "double")]}
    optional = {"inputs": [column("a", "double"), {"name": "b", "type": "double", "required": False}],
                "outputs": signature["outputs"]}
    calls = [
        call(optional, {"dataframe_split": {"columns": ["b", "a"], "data": [[2, 1], [4, 3]]}}, [1, 2], ident="one"),
        call(optional, {"dataframe_records": [{"a": 5}]}, [3], ident="two"),
        call(signature, {"dataframe_split": {"columns": ["a", "b"], "data": [[6, 7]]}}, [{"y": 4}], ident="three"),
    ]
    found, columns = table(optional, *calls)
    data = found.to_pandas()
    assert data["a"].tolist() == [1, 3, 5, 6] and data["b"].tolist()[:2] == [2, 4] and np.isnan(data["b"][2])
    assert data["correlation_id"].tolist() == ["one", "one", "two", "three"] and data["row"].tolist() == [0, 1, 0, 0]
    assert data["prediction"].tolist() == [1, 2, 3, 4] and columns.unfit == 0


def test_tensors_are_lists_as_deep_as_their_shape():
    signature = {"inputs": [tensor(None, "float32", -1, 2, 3)], "outputs": [tensor(None, "float64", -1, 2)]}
    values = np.arange(12).reshape(2, 2, 3).tolist()
    found, _ = table(signature, call(signature, {"inputs": values}, [[0.1, 0.9], [0.8, 0.2]]), form="tensors")
    assert str(found.schema.field("input").type) == "list<item: list<item: float>>"
    assert found["input"].to_pylist() == values and found["prediction"].to_pylist() == [[0.1, 0.9], [0.8, 0.2]]


def test_blocks_and_tensors_whose_headers_are_the_same_for_all_requests():
    columns = {"inputs": [column("a", "double"), column("b", "double")], "outputs": [column("y", "double")]}
    header = {"form": "block", "code": "d", "width": 2}
    calls = [Captured(THEN, 1, str(i), frames.pack_score(header, [np.array(v, float).tobytes()]), answer)
             for i, (v, answer) in enumerate([([1, 2, 3, np.nan], b'{"predictions":[1,2]}'),
                                              ([5, 6], b'{"predictions":[3]}'),
                                              ([7, 8, 9], b'{"predictions":[4]}')])]
    found, _ = table(columns, *calls, form="block")
    assert found["a"].to_pylist() == [1, 3, 5, None] and found["b"].to_pylist() == [2, None, 6, None]
    assert found["prediction"].to_pylist() == [1, 2, 3, 4]
    for dtype, code, kind in (("float16", "d", "float"), ("bool", "b", "bool"), ("uint8", "B", "uint8")):
        signature = {"inputs": [tensor("t", dtype, -1, 2)]}
        header = {"form": "tensor", "name": "t", "dtype": dtype, "inner": [2], "code": code, "count": 2}
        body = frames.pack_score(header, [np.array([1, 0, 1, 1], code).tobytes()])
        found, columns = table(signature, Captured(THEN, 1, "t", body, b'{"predictions":[1,2]}'), form="tensor")
        assert found["t"].to_pylist() == [[1, 0], [1, 1]] and columns.unfit == 0
        assert str(found.schema.field("t").type) == f"list<item: {kind}>"


def test_named_tensors_in_and_out():
    signature = {"inputs": [tensor("x", "int64", -1), tensor("s", "str", -1)],
                 "outputs": [tensor("p", "float64", -1), tensor("q", "int64", -1, 1)]}
    request = {"inputs": {"x": [1, 2], "s": ["a", "b"]}}
    found, columns = table(signature, call(signature, request, {"p": [0.5, 0.25], "q": [[1], [2]]}), form="tensors")
    assert found["x"].to_pylist() == [1, 2] and found["s"].to_pylist() == ["a", "b"]
    assert found["prediction.p"].to_pylist() == [0.5, 0.25] and found["prediction.q"].to_pylist() == [[1], [2]]
    assert columns.unfit == 0


def test_names_that_are_taken_get_another_and_columns_without_one_their_place():
    clash = {"inputs": [column("row", "long"), column("prediction", "long"), column("input.row", "long")]}
    found, _ = table(clash, call(clash, {"dataframe_records": [{"row": 7, "prediction": 8, "input.row": 9}]}, [1]))
    (only,) = found.to_pylist()
    assert (only["input.row"], only["input.prediction"], only["input.input.row"], only["row"]) == (7, 8, 9, 0)
    unnamed = {"inputs": [{"type": "long"}, {"type": "string"}]}
    found, _ = table(unnamed, call(unnamed, {"instances": [[1, "a"]]}, [1]))
    assert found["0"].to_pylist() == [1] and found["1"].to_pylist() == ["a"]


def test_an_answer_that_is_not_as_told_is_null_and_counted_and_breaks_nothing():
    answers = (["a", 2], [1.5, 1], [True, 3], [2**70, 4], "broken", [1, 2, 3], None)
    calls = [call(NUMBERS, {"dataframe_records": [{"x": 1}, {"x": 2}]}, a, ident=str(i)) for i, a in enumerate(answers)]
    calls.append(Captured(THEN, 1, "torn", calls[0].body, b"no JSON"))
    calls.append(Captured(THEN, 1, "empty", b"no body", b'{"predictions": [9]}'))
    found, columns = table(NUMBERS, *calls)
    assert found["prediction"].to_pylist() == [None, 2, None, 1, None, 3, None, 4, *[None] * 8, 9]
    assert columns.unfit == 4 + 2 + 2
    assert found["x"].to_pylist() == [1, 2] * 8 + [None]


def test_without_outputs_in_the_signature_answers_are_json():
    signature = {"inputs": NUMBERS["inputs"]}
    two = {"dataframe_records": [{"x": 1}, {"x": 2}]}
    calls = [call(signature, two, [1, {"a": 2}]), call(signature, two, {"p": [1, 2], "q": [3, 4]})]
    found, _ = table(signature, *calls)
    assert [json.loads(v) for v in found["prediction"].to_pylist()] == [1, {"a": 2}, {"p": 1, "q": 3}, {"p": 2, "q": 4}]
    assert is_json(found.schema.field("prediction"))


def test_type_hints_params_and_answers_of_the_open_inference_protocol():
    hinted = {"inputs": [{"type": "object", "required": True, "properties": {"q": {"type": "string"}}}],
              "outputs": [{"type": "string"}], "params": [{"name": "k", "dtype": "long", "default": 1, "shape": None}],
              "type_hint": True}
    first = call(hinted, {"inputs": [{"q": "a"}, {"q": "b"}], "params": {"k": 5}}, ["x", "y"])
    oip = {"outputs": [{"name": "out", "shape": [2], "datatype": "BYTES", "data": ["u", "v"]}]}
    second = Captured(THEN, 1, "oip", first.body, json.dumps(oip).encode())
    found, _ = table(hinted, first, second, form="raw")
    assert [json.loads(v) for v in found["input"].to_pylist()] == [{"q": "a"}, {"q": "b"}] * 2
    assert found["prediction"].to_pylist() == ["x", "y", "u", "v"]
    assert [json.loads(v) for v in found["params"].to_pylist()] == [{"k": 5}] * 4


def test_what_a_script_gets_and_says_is_json_as_it_came():
    calls = [Captured(THEN, 1, "a", b'{"data": [1, 2]}', b"[5]", raw=True),
             Captured(THEN, 1, "b", b"text", b'{"y": 1}', raw=True),
             Captured(THEN, 1, "c", frames.pack_score({"form": "script", "rows": 1}, [b'{"n": 1}']), b"3")]
    found, _ = table({"inputs": []}, *calls, form="script")
    assert [json.loads(v) for v in found["input"].to_pylist()] == [{"data": [1, 2]}, "text", {"n": 1}]
    assert [json.loads(v) for v in found["prediction"].to_pylist()] == [[5], {"y": 1}, 3]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.tuples(st.floats(allow_infinity=False), st.text(max_size=5), st.booleans()),
                         min_size=1, max_size=4), min_size=1, max_size=5))
def test_whatever_was_sent_is_what_the_table_says(requests):
    signature = {"inputs": [column("n", "double"), column("s", "string"), column("f", "boolean")]}
    calls = [call(signature, {"dataframe_split": {"columns": ["n", "s", "f"], "data": rows}}, [0] * len(rows))
             for rows in requests]
    found, columns = table(signature, *calls)
    flat = [row for rows in requests for row in rows]
    assert found["n"].to_pylist() == [None if n != n else n for n, _, _ in flat]
    encodable = [s if s.encode("utf-8", "ignore").decode() == s else None for _, s, _ in flat]
    assert found["s"].to_pylist() == encodable and found["f"].to_pylist() == [f for _, _, f in flat]
    assert columns.unfit == encodable.count(None)


# -- collecting --------------------------------------------------------------------


def test_segments_become_parquet_by_hour_which_readers_understand(folder):
    path = segment(folder, [simple(1), simple(2, THEN + HOUR), simple(3, THEN + 24 * HOUR)])
    segment(folder, [simple(4)], deployment="v2")
    assert collector.collect(folder).rows == 4
    assert not path.exists()
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.parquet"))
    assert files == [f"data/deployment=v1/date=2026-03-0{day}/hour={hour}/part-2026030405-1-0.parquet"
                     for day, hour in ((4, "05"), (4, "06"), (5, "05"))] + [
                         "data/deployment=v2/date=2026-03-04/hour=05/part-2026030405-1-0.parquet"]
    assert {p.stat().st_mode & 0o777 for p in folder.rglob("*.parquet")} == {0o600}
    whole = pd.read_parquet(folder / "data")  # the folder is a data set as it is
    assert sorted(whole["x"]) == [1, 2, 3, 4] and set(whole["deployment"]) == {"v1", "v2"}
    about = json.loads(pq.read_schema(folder / files[0]).metadata[b"jupyter_mlops"])
    assert about["model"] == {"name": "digits", "version": "3"} and about["endpoint"] == "digits"


def test_a_segment_that_is_written_is_read_as_far_as_it_goes_and_again_when_there_is_more(tmp_path):
    places = Places(tmp_path, tmp_path)
    places.deployment("digits", "v1").mkdir(parents=True)
    places.config("digits").write_text("{}")
    (places.deployment("digits", "v1") / "model.json").write_text(json.dumps({"signature": NUMBERS}))
    folder = places.endpoint("digits") / "capture"
    recorder = Recorder(places)
    try:
        for number in range(1, 4):
            one = simple(number, at=time.time())
            recorder.take("digits", "v1", {"sampling_rate": 1.0}, one.ident, b"", one.body, one.answer, one.at, 1.0)
            wait_for(lambda n=number: recorder.counts("digits", "v1")[0] == n)
            assert collector.collect(folder).rows == 0
            assert collector.collect(folder, everything=True).rows == number
            assert collector.collect(folder, everything=True).segments == 0  # nothing new, nothing done
            assert sorted(everything(folder)["x"]) == list(range(1, number + 1))
    finally:
        recorder.close()
    assert list(folder.glob("spool/v1/*.rec"))
    collector.collect(folder)
    assert not list(folder.glob("spool/v1/*.rec"))
    assert sorted(everything(folder)["x"]) == [1, 2, 3]


def test_torn_and_damaged_records_are_counted_once_and_cost_nothing_else(folder):
    path = segment(folder, [simple(1), simple(2), simple(3)], torn=segments.pack_call(simple(4))[:-3])
    content = bytearray(path.read_bytes())
    at = content.index(b'{"predictions": [2]}')
    content[at + 3] ^= 1
    path.write_bytes(bytes(content))
    collector.collect(folder)
    assert sorted(everything(folder)["x"]) == [1, 3]
    assert segments.lost(folder) == {"v1": {"damaged": 2}}


KILLER = """
import os, signal, sys
from pathlib import Path
import pyarrow.parquet as pq
from jupyter_mlops.serving import collector, parts
collector.without_pandas()
folder, spare, parts.GROUP = Path(sys.argv[1]), sys.argv[2:], 2
steps, fatal = 0, 0
def die(event, arguments):
    global steps
    if event in ("os.rename", "os.remove", "open") and fatal and arguments and sys.argv[1] in str(arguments[0]):
        steps += 1
        if steps == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(die)
for turn in range(1, 100, 3):
    for old in folder.rglob("*.parquet"):
        old.unlink()
    for name in spare:
        (folder / "spool" / "v1" / Path(name).name).write_bytes(Path(name).read_bytes())
    child = os.fork()
    if not child:
        fatal = turn
        collector.collect(folder)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    child = os.fork()
    if not child:
        collector.collect(folder)
        found = [x for p in folder.rglob("part-*.parquet") for x in pq.ParquetFile(p).read()["x"].to_pylist()]
        sound = sorted(found) == list(range(6))
        left = [*folder.rglob(".part-*"), *folder.rglob("*.rec")]
        os._exit(0 if sound and not left else 1)
    print(code, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    if not code:
        break
"""


def test_a_collector_that_is_killed_anywhere_loses_nothing_and_doubles_nothing(folder, tmp_path):
    written = [simple(n, THEN + HOUR * (n % 2)) for n in range(6)]
    (folder / "spool" / "v1").mkdir(parents=True)
    spare = [segment(tmp_path, written[i : i + 3], name=f"2026030405-1-{i}") for i in (0, 3)]
    done = subprocess.run([sys.executable, "-c", KILLER, str(folder), *map(str, spare)], capture_output=True, text=True,
                          timeout=60, check=True)
    *killed, whole = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(killed) >= 4 and set(killed) == {(-signal.SIGKILL, 0)} and whole == (0, 0)


def test_an_empty_segment_is_left_to_its_gateway_until_it_is_old(folder):
    path = folder / "spool" / "v1" / "2026030405-1-0.rec"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    collector.collect(folder, everything=True)
    assert path.exists()
    os.utime(path, (0, 0))
    collector.collect(folder)
    assert not path.exists() and not list(folder.rglob("*.parquet"))


def test_many_requests_are_written_in_groups(folder, monkeypatch):
    monkeypatch.setattr(parts_module, "GROUP", 10)
    segment(folder, [simple(n) for n in range(35)])
    collector.collect(folder)
    (part,) = folder.rglob("*.parquet")
    assert pq.ParquetFile(part).metadata.num_row_groups == 4 and everything(folder)["x"].tolist() == list(range(35))


def test_the_bound_of_the_published_deployment_holds_after_collecting(folder):
    write_json(folder.parent / "endpoint.json", {"deployments": {"v1": {"data_collector": {"max_bytes": 12_000}}}})
    for number in range(6):
        segment(folder, [simple(number, THEN + number * HOUR)], name=f"20260304{5 + number:02}-1-0")
    collector.collect(folder)
    assert sum(k.size for k in segments.kept(folder, "v1")) <= 12_000
    left = everything(folder)["x"].tolist()
    assert left == list(range(6))[-len(left):] and 0 < len(left) < 6
    assert segments.lost(folder)["v1"]["removed_files"] == 6 - len(left)


def test_deployments_that_are_gone_share_one_bound(folder):
    write_json(folder.parent / "endpoint.json", {"deployments": {"v9": {"data_collector": {"max_bytes": 9_000}}}})
    for number in range(4):
        segment(folder, [simple(number, THEN + number * HOUR)], deployment=f"v{number}")
    segment(folder, [simple(9)], deployment="v9")
    collector.collect(folder)
    left = everything(folder)["x"].tolist()
    assert left[-1] == 9 and left[:-1] == list(range(4))[-len(left) + 1 :] and 1 < len(left) < 5
    assert sum(k.size for d in segments.deployments(folder) for k in segments.kept(folder, d)) <= 18_000


def test_one_collector_at_a_time(folder):
    with segments.locked(folder), pytest.raises(Unavailable), segments.locked(folder, patience=0.1):
        pass


# -- reading -----------------------------------------------------------------------


def rows(folder, tmp_path, **wanted):
    out = tmp_path / "out.parquet"
    summary = extract.read(folder, out, Wanted(**wanted))
    found = pq.read_table(out)
    assert summary["rows"] == found.num_rows
    return found


@pytest.fixture
def filled(folder):
    segment(folder, [simple(n, THEN + n * 600) for n in range(12)])
    segment(folder, [simple(n, THEN + n * 600) for n in range(12, 15)], name="2026030408-1-0")
    other = {"inputs": [column("x", "long"), column("name", "string")], "outputs": [column("y", "string")]}
    asked = {"dataframe_records": [{"x": 50, "name": "n"}]}
    segment(folder, [call(other, asked, ["yes"], THEN + 60, "other")], signature=other, deployment="v2")
    collector.collect(folder)
    return folder


def test_rows_by_time_deployment_columns_and_number(filled, tmp_path):
    assert sorted(rows(filled, tmp_path, deployment="v1")["x"].to_pylist()) == list(range(15))
    some = rows(filled, tmp_path, deployment="v1", since=THEN + 600, until=THEN + 1800)
    assert some["x"].to_pylist() == [1, 2]
    assert rows(filled, tmp_path, deployment="v1", since=THEN + 600.1)["x"].to_pylist()[0] == 2
    newest = rows(filled, tmp_path, deployment="v1", limit=4, columns=("x", "row"))
    assert newest.column_names == ["x", "row"] and newest["x"].to_pylist() == [11, 12, 13, 14]
    for limit in range(1, 16):
        found = rows(filled, tmp_path, deployment="v1", limit=limit)["x"].to_pylist()
        assert sorted(found) == list(range(15 - limit, 15))
    assert rows(filled, tmp_path, deployment="v1", since=THEN + HOUR * 99).num_rows == 0


def test_a_limit_inside_one_request_takes_so_many_rows(folder, tmp_path):
    segment(folder, [call(NUMBERS, {"dataframe_records": [{"x": n} for n in range(10)]}, list(range(10)))])
    collector.collect(folder)
    assert rows(folder, tmp_path, limit=3).num_rows == 3


def test_deployments_with_other_columns_come_together(filled, tmp_path):
    found = rows(filled, tmp_path)
    assert found.num_rows == 16
    assert str(found.schema.field("x").type) == "double" and is_json(found.schema.field("prediction"))
    other = found.filter(pa.compute.equal(found["correlation_id"], "other")).to_pylist()[0]
    assert (other["x"], other["name"], json.loads(other["prediction"])) == (50.0, "n", "yes")
    assert found.column_names[:3] == ["correlation_id", "row", "at"] and found.column_names[-1] == "prediction"


def test_an_unknown_column_is_named_with_its_neighbour(filled, tmp_path):
    with pytest.raises(ParameterError, match="no column 'predicton'") as caught:
        rows(filled, tmp_path, columns=("predicton",))
    assert "prediction" in caught.value.hint


# -- ground truth ------------------------------------------------------------------


def test_truth_is_joined_by_id_and_row_and_the_last_value_wins(filled, tmp_path):
    segments.add_truth(filled, [{"correlation_id": "r1", "row": 0, "value": 7}, {"correlation_id": "r2", "value": 8}])
    segments.add_truth(filled, [{"correlation_id": "r2", "row": 0, "value": 9},
                                {"correlation_id": "nobody", "row": 0, "value": 1}])
    collector.collect(filled)
    segments.add_truth(filled, [{"correlation_id": "r1", "row": 0, "value": 5},
                                {"correlation_id": "r1", "row": 1, "value": 6}])
    collector.collect(filled)
    found = rows(filled, tmp_path, deployment="v1")
    by_id = dict(zip(found["correlation_id"].to_pylist(), found["truth"].to_pylist(), strict=True))
    assert {k: v for k, v in by_id.items() if v is not None} == {"r1": 5, "r2": 9}
    assert str(found.schema.field("truth").type) == "int64" and len(found) == 15
    assert rows(filled, tmp_path, deployment="v1", columns=("truth",)).column_names == ["truth"]


@pytest.mark.parametrize(("values", "kind"), [
    ([1, 2.5], "double"), (["a", "b"], "string"), ([True, False], "bool"), ([1, None], "int64"), ([2**70, 1], "double"),
])
def test_truth_has_the_type_of_its_values(filled, tmp_path, values, kind):
    segments.add_truth(filled, [{"correlation_id": f"r{i}", "value": v} for i, v in enumerate(values)])
    collector.collect(filled)
    found = rows(filled, tmp_path, deployment="v1")
    assert str(found.schema.field("truth").type) == kind and found["truth"].to_pylist()[:2] == values


def test_truth_of_mixed_types_is_json(filled, tmp_path):
    segments.add_truth(filled, [{"correlation_id": "r0", "value": [1]}, {"correlation_id": "r1", "value": "a"}])
    collector.collect(filled)
    found = rows(filled, tmp_path, deployment="v1")
    assert is_json(found.schema.field("truth")) and json.loads(found["truth"].to_pylist()[0]) == [1]


def test_many_files_of_truth_are_merged(filled, monkeypatch):
    monkeypatch.setattr(truth, "MAX_TRUTHS", 3)
    for number in range(9):
        told = {"r1": number, str(number): 0}
        segments.add_truth(filled, [{"correlation_id": k, "value": v} for k, v in told.items()])
        collector.collect(filled)
        assert len(list(filled.glob("truth/part-*.parquet"))) <= 3
    found = {r["correlation_id"]: json.loads(r["value"]) for r in truth.table_of(filled).to_pylist()}
    assert found["r1"] == 8 and len(found) == 10


# -- deleting and counting ---------------------------------------------------------


def test_what_is_older_is_deleted_everywhere_and_does_not_come_back(filled, tmp_path):
    segments.add_truth(filled, [{"correlation_id": "r1", "value": 1}])
    segment(filled, [simple(20, THEN), simple(21, THEN + HOUR)], name="2026030409-1-0")
    assert collector.clear(filled, THEN + HOUR)["rows"] == 7  # v1: 0 to 5, v2: one; 20 never became Parquet
    assert sorted(rows(filled, tmp_path)["x"].to_pylist()) == [*range(6, 15), 21]
    segment(filled, [simple(22, THEN)], name="2026030410-1-0")
    collector.collect(filled)
    assert 22 not in rows(filled, tmp_path)["x"].to_pylist()
    assert truth.table_of(filled).num_rows == 1  # it was told now
    collector.clear(filled, time.time() + 1)
    assert not list(filled.rglob("*.parquet")) and not list(filled.rglob("*.rec"))


def test_info_counts(filled):
    info = extract.info(filled)
    assert info["files"] == 5 and info["rows"] == 16 and info["dropped"] == 0 and info["bytes"] > 1000
    assert info["oldest"] == "2026-03-04T05:30:00.000000Z" and info["newest"] == "2026-03-04T07:50:00.000000Z"
    assert info["deployments"]["v2"]["rows"] == 1
    segments.count_lost(filled, "v1", {"queue": 3, "unfit": 2})
    assert extract.info(filled)["dropped"] == 3


def test_the_process_answers_in_json(filled, tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "jupyter_mlops.serving.collector", "--folder", str(filled), *arguments]
        done = subprocess.run(command, capture_output=True, check=False)
        return done.returncode, json.loads(done.stdout)

    out = str(tmp_path / "rows.parquet")
    assert run("read", "--out", out, "--deployment", "v1", "--limit", "2") == (0, {"rows": 2, "truth": 0})
    assert os.stat(out).st_mode & 0o777 == 0o600


def test_the_process_tells_what_the_caller_got_wrong(filled, tmp_path, capsys):
    arguments = ["--folder", str(filled), "read", "--out", str(tmp_path / "rows.parquet"), "--columns", "nothing"]
    mask = os.umask(0o077)
    try:
        assert collector.main(arguments) == 2
    finally:
        os.umask(mask)
    assert json.loads(capsys.readouterr().out)["code"] == "bad_parameter"
