"""What strangers, careless scripts and bad luck may try against a real control plane, and what must come of it."""

from __future__ import annotations

import os
import pickle
import signal
import sqlite3
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

import pytest
from conftest import Plane, make_home, processes_of, wait_for

from jupyter_mlops.compute.base import JobRef
from jupyter_mlops.compute.local import LocalCompute
from jupyter_mlops.core.controllers.base import Controller
from jupyter_mlops.core.errors import NotFound
from jupyter_mlops.core.identity import SYSTEM
from jupyter_mlops.core.store import Store
from jupyter_mlops.core.workspace import Workspace
from jupyter_mlops.runtime import locate
from jupyter_mlops.runtime.jobfolder import JobFolder

ML = "/mlflow/api/2.0/mlflow/"
SLEEP = {"command": "sleep 60", "limits": {"grace": 0.5}}


def spans(trace: str, tags: dict[str, str]) -> dict:
    """An OpenTelemetry export of one root span whose attributes ask for tags of its trace."""
    now = time.time_ns()
    attributes = [{"key": "mlflow.traceTag." + k, "value": {"stringValue": v}} for k, v in tags.items()]
    span = {"traceId": trace, "spanId": "00f067aa0ba902b7", "name": "x", "kind": 1, "startTimeUnixNano": str(now),
            "endTimeUnixNano": str(now + 5), "attributes": attributes}
    return {"resourceSpans": [{"resource": {"attributes": []}, "scopeSpans": [{"spans": [span]}]}]}


class TestMlflow:
    @pytest.mark.parametrize("key", ["mlflow.artifactLocation", "mlflow.trace.archiveLocation"])
    def test_spans_cannot_say_where_a_trace_keeps_its_files(self, shared_plane, tmp_path, key):
        secret = tmp_path / "attachments" / str(uuid.uuid4())
        secret.parent.mkdir()
        secret.write_text("secret")
        archive = tmp_path / "traces.pb"
        archive.write_text("not ours to delete")
        trace = uuid.uuid4().hex
        tags = {key: tmp_path.as_uri(), "mlflow.trace.spansLocation": "ARCHIVE_REPO"}
        status, body, _ = shared_plane.call(
            "POST", "/mlflow/v1/traces", spans(trace, tags), headers={"x-mlflow-experiment-id": "0"}
        )
        assert status == 403 and key in body["message"]
        status, body, _ = shared_plane.call(
            "GET", f"/mlflow/ajax-api/2.0/mlflow/get-trace-artifact?request_id=tr-{trace}&path={secret.name}"
        )
        assert status == 404 and b"secret" not in str(body).encode()
        shared_plane.call("POST", ML + "traces/delete-traces", {"experiment_id": "0", "request_ids": [f"tr-{trace}"]})
        assert archive.exists()

    def test_plain_spans_pass(self, shared_plane):
        trace = uuid.uuid4().hex
        status, body, _ = shared_plane.call(
            "POST", "/mlflow/v1/traces", spans(trace, {"team": "a"}), headers={"x-mlflow-experiment-id": "0"}
        )
        assert status == 200, body
        found = shared_plane.get(f"/mlflow/api/3.0/mlflow/traces/tr-{trace}")
        assert found["trace"]["trace_info"]["tags"]["team"] == "a"

    def test_a_models_name_is_decoded_once(self, shared_plane):
        shared_plane.post(ML + "registered-models/create", {"name": "a%20b"}, expect=200)
        assert shared_plane.get("models/a%2520b")["name"] == "a%20b"
        shared_plane.get("models/a%20b", expect=404)


class TestJobTokens:
    def test_a_job_restores_no_run_and_removes_no_alias(self, shared_plane):
        shared_plane.put("jobs/own", SLEEP)
        token = shared_plane.token("job", "own")
        other = shared_plane.post(ML + "runs/create", {"experiment_id": "0"})["run"]["info"]["run_id"]
        assert shared_plane.call("POST", f"runs/{other}/actions/restore", {}, token=token)[0] == 403
        assert shared_plane.call("DELETE", "models/m/aliases/champion", token=token)[0] == 403
        shared_plane.post("jobs/own/actions/stop")

    def test_an_empty_parent_does_not_free_a_run(self, shared_plane):
        shared_plane.put("jobs/parent", SLEEP)
        job = wait_for(lambda: next((j for j in [shared_plane.get("jobs/parent")] if j["status"]["run_id"]), None))
        status, body, _ = shared_plane.call(
            "POST", ML + "runs/create", token=shared_plane.token("job", "parent"),
            body={"experiment_id": "0", "tags": [{"key": "mlflow.parentRunId", "value": ""}]},
        )
        assert status == 200, body
        tags = {t["key"]: t["value"] for t in body["run"]["data"]["tags"]}
        assert tags["mlflow.parentRunId"] == job["status"]["run_id"]
        shared_plane.post("jobs/parent/actions/stop")


class TestJobs:
    def test_one_job_comes_of_many_submissions_at_once(self, shared_plane):
        got = []
        threads = [
            threading.Thread(target=lambda: got.append(shared_plane.call("PUT", "jobs/once", SLEEP)[0]))
            for _ in range(6)
        ]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert sorted(got) == [200, 200, 200, 200, 200, 201]
        shared_plane.post("jobs/once/actions/stop")

    @pytest.mark.parametrize("orphan", [False, True], ids=["supervised", "unsupervised"])
    def test_a_job_that_deletes_its_folder_is_ended(self, plane, orphan):
        plane.mlflow_ready()
        plane.put("jobs/gone", {
            "command": 'while [ ! -e "$TEST/go" ]; do sleep 0.1; done; rm -rf "$JUPYTER_MLOPS_JOB_DIR"; sleep 90',
            "environment_variables": {"TEST": str(plane.home)}, "limits": {"grace": 0.5},
        })
        plane.wait_job("gone", phases=("Running",))
        folder = plane.home / "jobs" / "gone"
        if orphan:
            state = locate.read_json(str(folder / "attempts" / "1" / "state.json"))
            plane.kill()
            os.kill(state["pid"], signal.SIGKILL)
        (plane.home / "go").touch()
        wait_for(lambda: not folder.exists())
        if orphan:
            plane.start()
        job = plane.wait_job("gone", 40)
        assert job["status"]["phase"] == "Failed" and "deleted" in job["status"]["reason"]
        wait_for(lambda: not [p for p in processes_of(folder)])
        plane.delete("jobs/gone")

    def test_a_compute_in_use_stays(self, shared_plane):
        shared_plane.put("computes/annex", {"type": "local"})
        shared_plane.put("jobs/there", {"command": "echo done; sleep 60", "compute": "annex", "limits": {"grace": 0.5}})
        shared_plane.delete("computes/annex", expect=409)
        shared_plane.post("jobs/there/actions/stop")
        shared_plane.wait_job("there")
        shared_plane.delete("computes/annex")
        shared_plane.get("computes")
        shared_plane.get("jobs/there/logs/0")  # what is left of it can still be read


class TestHome:
    def test_an_odd_folder_name(self):
        outer = Path(tempfile.mkdtemp(prefix="mlops-test-"))
        odd = outer / "Ärger 100%25 what?x=1#y {z} %s"
        odd.mkdir()
        plane = Plane(odd).start()
        try:
            plane.mlflow_ready()
            plane.put("jobs/odd", {"command": "echo hi; pwd", "limits": {"grace": 1}})
            assert plane.wait_job("odd")["status"]["phase"] == "Completed"
            run = plane.get("jobs/odd")["status"]["run_id"]
            path = f"/mlflow/api/2.0/mlflow-artifacts/artifacts/0/{run}/artifacts/a.bin"
            assert plane.call("PUT", path, b"bytes")[0] == 200
            assert plane.call("GET", path)[1] == b"bytes"
            assert (odd / "artifacts" / "0" / run / "artifacts" / "a.bin").read_bytes() == b"bytes"
            with sqlite3.connect(odd / "mlflow.db") as db:
                assert db.execute("select count(*) from runs").fetchone() == (1,)
            assert {p["what"] for p in plane.get("doctor")["processes"]} >= {"control plane"}
            assert [f.name for f in outer.iterdir()] == [odd.name]
        finally:
            plane.stop()
            outer.rmdir()

    @pytest.mark.parametrize("text", ["", "99999999", "-3", "junk"])
    def test_a_broken_port_file_is_replaced(self, tmp_path, text):
        place = locate.Place(str(tmp_path), "default")
        (tmp_path / "port").write_text(text)
        port = locate.reserved_port(place)
        assert 0 < port < 65536 and locate.reserved_port(place) == port
        assert locate.is_ours(locate.url_for(port) + "/mlflow", place)

    def test_what_lies_in_the_way_of_the_sockets_is_removed(self):
        plane = Plane(make_home())
        folder = Path(locate.private_dir(plane.place.runtime_dir))
        for name in ("control.sock", "mlflow.sock"):
            (folder / name).write_text("junk")
        (plane.home / "control.json").write_text("[1, 2")
        (plane.home / "control.lock").write_text('{"pid": 1, "host": "elsewhere"}')
        try:
            plane.start().mlflow_ready()
        finally:
            plane.stop()

    def test_a_folder_that_cannot_be_used_is_one_line(self, tmp_path):
        (tmp_path / "home").write_text("a file")
        with pytest.raises(locate.LocateError, match="cannot be used"):
            locate.ensure(locate.Place(str(tmp_path / "home"), "default"), may=True)
        broken = tmp_path / "broken"
        broken.mkdir()
        (broken / "store.db").write_text("no database " * 100)
        with pytest.raises(locate.LocateError, match=r"ended with code 1 at its start: store\.db .* is not a database"):
            locate.ensure(locate.Place(str(broken), "default"), may=True)


MODEL = """\
flavors:
  python_function: {loader_module: mlflow.sklearn, model_path: model.pkl, predict_fn: predict, env: {}}
  sklearn: {pickled_model: model.pkl, serialization_format: pickle, sklearn_version: '1'}
signature:
  inputs: '[{"type": "tensor", "tensor-spec": {"dtype": "float64", "shape": [-1, 2]}}]'
"""


class Daemon:
    """Unpickled, it runs code that leaves a process behind, and is a model that counts rows."""

    CODE = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        time.sleep(300)\n"
        "    os._exit(0)\n"
    )

    def __reduce__(self):
        return eval, (f"exec({self.CODE!r}) or __import__('types').SimpleNamespace(predict=len)",)


def registered(plane: Plane, name: str, pickled: bytes) -> str:
    """NAME/VERSION of a model that is made of these very bytes."""
    run = plane.post(ML + "runs/create", {"experiment_id": "0"})["run"]["info"]["run_id"]
    for file, data in (("MLmodel", MODEL.encode()), ("model.pkl", pickled)):
        path = f"/mlflow/api/2.0/mlflow-artifacts/artifacts/0/{run}/artifacts/model/{file}"
        assert plane.call("PUT", path, data)[0] == 200
    tags = {"mlops.interpreter": sys.executable}
    made = plane.post(f"models/{name}/versions", {"run_id": run, "artifact": "model", "tags": tags})
    return f"{name}/{made['version']}"


def scorers(home: Path) -> list[int]:
    """Pids of the scorers of a workspace, and of what their models made."""
    return [p for p in processes_of(home) if b"runtime.scorer" in Path(f"/proc/{p}/cmdline").read_bytes()]


class TestServing:
    def test_what_a_model_leaves_behind_goes_with_it(self, plane):
        plane.mlflow_ready()
        model = registered(plane, "daemon", pickle.dumps(Daemon()))
        plane.put("endpoints/e", {})
        plane.put("endpoints/e/deployments/d", {"model": model})
        wait_for(lambda: plane.get("endpoints/e")["status"]["phase"] == "Ready", 30)
        answer = plane.post("endpoints/e/actions/invoke", {"inputs": [[1, 2], [3, 4]]})
        assert answer == {"predictions": 2}
        assert len(scorers(plane.home)) == 2  # it and its stray
        plane.delete("endpoints/e")
        assert scorers(plane.home) == []


async def test_no_deployment_comes_after_its_endpoint(tmp_path):
    """The endpoint goes while the model of a new deployment is looked at."""

    class Slow(Controller):
        kind = "deployment"

        async def admit(self, parent, name, spec, identity):
            await self.workspace.store.write(lambda tx: tx.remove("endpoint", parent))
            return {}, {}, {}

    store = Store(tmp_path / "store.db")
    store.open()
    try:
        workspace = Workspace("default", tmp_path, store)
        workspace.add(Slow())
        await workspace.put(SYSTEM, "endpoint", "e", {})
        with pytest.raises(NotFound):
            await workspace.put(SYSTEM, "deployment", "d", {"model": "m/1"}, parent="e")
        assert await store.read(lambda tx: tx.count("deployment")) == 0
    finally:
        store.close()


@pytest.mark.parametrize("state", [
    {"ranks": "abc", "started_at": "later", "pid": "x"},
    {"ranks": [{}, 7, {"rank": "0"}], "ended_at": 1e300, "exit_code": "0", "reason": ["x"]},
    {"ranks": [{"rank": 0, "pid": 10**30}], "ended_at": -1},
])
@pytest.mark.parametrize("phase", ["running", "completed"])
def test_nonsense_in_a_state_file_stops_nobody(tmp_path, phase, state):
    attempt = JobFolder(tmp_path / "j").attempt(1)
    Path(attempt.path).mkdir(parents=True)
    attempt.write_state({"phase": phase, **state})
    seen = LocalCompute().observe(JobRef("j", tmp_path / "j"), 1)
    assert (seen.ended_at, seen.started_at, seen.exit_code) == (None, None, None)
    assert all(r.pid is None for r in seen.ranks)
