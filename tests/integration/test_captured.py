"""Captured requests through a real control plane: reading, ground truth, deleting, rights, hints."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import REPO, Plane, make_home, wait_for

from jupyter_mlops.client.sync import Client
from jupyter_mlops.core.errors import NotFound, ParameterError
from jupyter_mlops.magics import commands, parser
from jupyter_mlops.magics.context import Context
from jupyter_mlops.serving.payload import canonical
from jupyter_mlops.serving.places import Places
from jupyter_mlops.serving.recorder import Recorder
from jupyter_mlops.serving.signature import from_document

pytestmark = pytest.mark.story

SIGNATURE = {"inputs": [{"name": "age", "type": "double", "required": True},
                        {"name": "name", "type": "string", "required": True}],
             "outputs": [{"type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1]}}]}


class Captured:
    """A control plane with an endpoint, and a recorder as the gateway has one."""

    def __init__(self):
        self.plane = Plane(make_home()).start()
        self.client = Client(self.plane.place)
        for name in ("digits", "empty"):
            self.plane.put(f"endpoints/{name}", {})
        self.places = Places(self.plane.home, self.plane.place.runtime_dir)
        wait_for(lambda: self.places.config("digits").is_file())
        folder = self.places.deployment("digits", "v1")
        folder.mkdir()
        (folder / "model.json").write_text(json.dumps({"signature": SIGNATURE}))
        self.recorder = Recorder(self.places)
        self.count = 0

    def request(self, *ages, ident, answer=None):
        rows = [{"age": age, "name": "Ann"} for age in ages]
        body = canonical(from_document(SIGNATURE), json.dumps({"dataframe_records": rows}).encode(), "application/json")
        settings = {"sampling_rate": 1.0, "masked_columns": ["name"]}
        predictions = json.dumps({"predictions": answer or [0] * len(ages)}).encode()
        self.recorder.take("digits", "v1", settings, ident, b"", body, predictions, time.time(), 2.0)

    def stop(self):
        self.recorder.close()
        self.client.close()
        self.plane.stop()


@pytest.fixture(scope="module")
def captured():
    found = Captured()
    for number in range(5):
        found.request(number, number + 0.5, ident=f"r{number}")
    yield found
    found.stop()


def context(captured, face="magic", **names):
    found = Context(face, names, where=captured.plane.place)
    return found


def run(captured, line, face="magic", **names):
    return commands.run(parser.parse(parser.split(line), face), context(captured, face, **names))


def test_rows_of_a_moment_ago_are_read_while_they_are_written(captured):
    wait_for(lambda: captured.recorder.counts("digits", "v1")[0] == 5)
    status, body, headers = captured.plane.call("GET", "endpoints/digits/data")
    assert status == 200 and headers["Content-Type"] == "application/vnd.apache.parquet"
    assert headers["Content-Disposition"] == 'attachment; filename="digits.parquet"'
    table = pq.ParquetFile(io.BytesIO(body)).read()
    assert table.num_rows == 10 and table["name"].null_count == 10
    assert not list((captured.plane.home / "tmp").glob("captured-*"))
    found = run(captured, "endpoint data digits --limit 3 --columns correlation_id,row,age")
    assert found.columns.tolist() == ["correlation_id", "row", "age"] and found["age"].tolist() == [3.5, 4.0, 4.5]
    found = run(captured, "endpoint data digits --since 1h --deployment v1")
    assert found["age"].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5] and set(found["deployment"]) == {"v1"}


def test_ground_truth_is_joined_in_the_next_reading(captured):
    report = run(captured, "endpoint truth digits {('r1', 1): 1, ('r2', 0): 0, 'nobody': 1}")
    assert report["rows"] == 3
    run(captured, "endpoint truth digits labels", labels={("r1", 1): 2})
    found = run(captured, "endpoint data digits").set_index(["correlation_id", "row"])["truth"]
    assert found[("r1", 1)] == 2 and found[("r2", 0)] == 0 and found.notna().sum() == 2
    audit = captured.plane.get("audit")["items"]
    assert [a["detail"]["rows"] for a in audit if a["action"] == "endpoints/data/write"] == [1, 3]


def test_the_terminal_writes_files_and_prints_tables(captured, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JUPYTER_MLOPS_HOME", str(captured.plane.home))
    from jupyter_mlops.cli import main

    assert main(["endpoint", "data", "digits", "-o", "rows.parquet", "--deployment", "v1"]) == 0
    assert pq.read_table(tmp_path / "rows.parquet").num_rows == 10
    assert main(["endpoint", "data", "digits", "-o", "rows.csv", "--columns", "correlation_id,row,age"]) == 0
    lines = (tmp_path / "rows.csv").read_text().splitlines()
    assert lines[:2] == ["correlation_id,row,age", "r0,0,0.0"] and len(lines) == 11
    (tmp_path / "truth.csv").write_text("correlation_id,row,value\nr3,0,1\n")
    assert main(["endpoint", "truth", "digits", "truth.csv"]) == 0
    capsys.readouterr()
    assert main(["endpoint", "data", "digits", "--json", "--limit", "4"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [r["truth"] for r in shown] == [1, None, None, None] and shown[0]["name"] is None
    assert main(["endpoint", "data", "digits", "--info"]) == 0
    assert "v1" in capsys.readouterr().out
    assert main(["endpoint", "data", "digits", "-o", "rows.xlsx"]) == 2
    assert "neither .parquet nor .csv" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.csv", "rows.parquet", "truth.csv"]


def test_what_is_wrong_is_told(captured):
    for query, message in (
        ("since=yesterday", "since: 'yesterday' is no moment"), ("limit=0", "limit"), ("what=1", "what"),
        ("columns=agee", "no column 'agee'"),
    ):
        status, body, _ = captured.plane.call("GET", f"endpoints/digits/data?{query}")
        assert status == 400 and message in body["message"], body
    assert captured.plane.call("GET", "endpoints/nothing/data")[0] == 404
    status, body, _ = captured.plane.call("GET", "endpoints/digits/data?deployment=v9")
    assert status == 404 and body["hint"] == "there is data of v1"
    wrong = ({"row": 1, "value": 1}, {"correlation_id": "a", "row": -1, "value": 1}, {"correlation_id": "a"})
    for rows in ([], *([row] for row in wrong)):
        assert captured.plane.call("POST", "endpoints/digits/actions/truth", {"rows": rows})[0] == 400
    with pytest.raises(ParameterError, match="undefined variable"):
        run(captured, "endpoint truth digits labels")
    with pytest.raises(ParameterError, match="no ground truth to tell"):
        run(captured, "endpoint truth digits")


def test_nothing_captured_says_how_to_turn_it_on(captured):
    with pytest.raises(NotFound, match="no deployment was asked to") as caught:
        run(captured, "endpoint data empty")
    assert caught.value.hint == "turn it on: %mlops deploy MODEL -e empty --collect 1.0"
    assert run(captured, "endpoint data empty --info")["rows"] == 0
    assert captured.plane.delete("endpoints/empty/data", 200) == {"rows": 0}


def test_readers_see_how_much_there_is_but_not_what(captured):
    reader = captured.plane.token("reader")
    assert captured.plane.call("GET", "endpoints/digits/data/info", token=reader)[0] == 200
    for method, path, body in (("GET", "endpoints/digits/data", None), ("DELETE", "endpoints/digits/data", None),
                               ("POST", "endpoints/digits/actions/truth",
                                {"rows": [{"correlation_id": "a", "value": 1}]})):
        assert captured.plane.call(method, path, body, token=reader)[0] == 403
        assert captured.plane.call(method, path, body, token="wrong")[0] == 401


def test_counting_costs_a_process_only_when_something_changed(captured):
    captured.plane.get("endpoints/digits/data/info")
    begun = time.monotonic()
    for _ in range(20):
        info = captured.plane.get("endpoints/digits/data/info")
    assert time.monotonic() - begun < 2 and info["rows"] == 10 and info["truth"] >= 3
    assert info["deployments"]["v1"]["files"] == info["files"] >= 1 and info["oldest"] <= info["newest"]


def test_the_control_plane_collects_by_itself_and_imports_no_arrow(captured):
    spool = captured.places.endpoint("digits") / "capture" / "spool" / "v1"
    old = next(spool.glob("*.rec"))
    (spool / "2020010100-1-0.rec").write_bytes(old.read_bytes())  # of an hour that is over
    code = ("import asyncio, sys; from pathlib import Path; from jupyter_mlops.control.captured import CapturedData\n"
            f"async def go():\n    c = CapturedData(Path({str(captured.plane.home)!r})); c.sweep(); await c._sweeping\n"
            "asyncio.run(go()); print('pyarrow' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert not (spool / "2020010100-1-0.rec").exists() and old.exists()
    assert "libarrow" not in Path(f"/proc/{captured.plane.process.pid}/maps").read_text()
    doubled = list(captured.places.endpoint("digits").glob("capture/data/*/*/*/part-2020010100-1-0.parquet"))
    assert len(doubled) == 1
    doubled[0].unlink()


def test_deleting_takes_everything_and_what_comes_later_stays(captured):
    run(captured, "endpoint data digits --delete --yes --until 2020-01-01")
    assert len(run(captured, "endpoint data digits")) == 10
    report = run(captured, "endpoint data digits --delete --yes")
    assert report["rows"] == 10
    files = [p for p in (captured.places.endpoint("digits") / "capture").rglob("*") if p.suffix in (".rec", ".parquet")]
    assert files == []
    with pytest.raises(NotFound):
        run(captured, "endpoint data digits")
    captured.request(42, ident="later")
    wait_for(lambda: captured.recorder.counts("digits", "v1")[0] == 6)
    assert run(captured, "endpoint data digits")["age"].tolist() == [42]
    detail = next(a for a in captured.plane.get("audit")["items"] if a["action"] == "endpoints/data/delete")
    assert detail["resource"] == "endpoints/digits" and detail["user"]
