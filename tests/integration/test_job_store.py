"""MLflow in a job never waits for a server that is away; all arrives once there is one; own writes are read back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from conftest import wait_for

from jupyter_mlops.runtime import journal, spool
from jupyter_mlops.runtime.jobfolder import JobFolder

RUN = "a" * 32
DEAD = """
    import json, os, socket, sys, time
    touched = []
    class Watched(socket.socket):
        def connect(self, address):
            touched.append(address)
            return super().connect(address)
    socket.socket = Watched
    import mlflow
    own = os.environ["JUPYTER_MLOPS_RUN_ID"]
    assert mlflow.set_experiment("exp").experiment_id == "7"
    with mlflow.start_run(tags={"k": "v"}, run_name="renamed") as run:
        assert run.info.run_id == own == mlflow.active_run().info.run_id
        mlflow.log_param("a", 1)
        mlflow.log_params({"b": 2, "c": "x"})
        mlflow.log_metric("m", 1.5, step=3)
        mlflow.log_metrics({"m": 2.5, "n": 4}, step=4)
        mlflow.set_tags({"t": "v", "gone": 1})
        mlflow.delete_tag("gone")
        mlflow.log_metric("late", 1.0, synchronous=False)
        mlflow.flush_async_logging()
        mlflow.MlflowClient().log_metric(own, "d", 1.0, dataset_name="train", dataset_digest="1234")
        mlflow.log_input(mlflow.data.from_numpy(__import__("numpy").zeros((2, 2))), "training")
        mlflow.log_param("a", 1)
        refused = 0
        for wrong in (lambda: mlflow.log_param("a", 2), lambda: mlflow.log_metric("a//b", 1),
                      lambda: mlflow.MlflowClient().log_metric(own, "m", 1.0, step=2**70),
                      lambda: mlflow.log_metric("m", 1, timestamp=-5)):
            try:
                wrong()
            except mlflow.exceptions.MlflowException:
                refused += 1
    assert mlflow.active_run() is None
    assert not touched, touched
    began = time.monotonic()
    seen = mlflow.get_run(own)
    history = [(m.step, m.value) for m in mlflow.MlflowClient().get_metric_history(own, "m")]
    with mlflow.start_run(run_id=own):
        mlflow.log_text("hello", "notes/hello.txt")
    quick = time.monotonic() - began < 20
    print(json.dumps({"refused": refused, "metrics": seen.data.metrics, "params": seen.data.params, "quick": quick,
                      "tags": seen.data.tags, "name": seen.info.run_name, "status": seen.info.status,
                      "history": history}))
"""


@pytest.fixture
def lone_job(tmp_path):
    """A job folder without any server, and the environment of its rank."""
    folder = tmp_path / "jobs" / "x"
    folder.mkdir(parents=True)
    facts = {"run_id": RUN, "experiment_id": "7", "experiment_name": "exp", "run_name": "x", "user": "ann",
             "start_time": 1_700_000_000_000, "artifact_uri": f"mlflow-artifacts:/7/{RUN}/artifacts"}
    (folder / "run.json").write_text(json.dumps(facts))
    env = {**os.environ, "JUPYTER_MLOPS_HOME": str(tmp_path), "JUPYTER_MLOPS_JOB": "x", "JUPYTER_MLOPS_RUN_ID": RUN,
           "JUPYTER_MLOPS_JOB_DIR": str(folder), "JUPYTER_MLOPS_ATTEMPT": "1", "PYTHONWARNINGS": "ignore",
           "JUPYTER_MLOPS_URL": "http://127.0.0.1:9/jupyter-mlops", "MLFLOW_EXPERIMENT_NAME": "exp",
           "MLFLOW_TRACKING_URI": "http://127.0.0.1:9/jupyter-mlops/mlflow"}
    return folder, env


def run_script(code, env, cwd):
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=env, cwd=cwd, capture_output=True,
                          text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_without_any_server_nothing_waits_and_all_is_kept(lone_job, tmp_path):
    folder, env = lone_job
    told, _ = run_script(DEAD, env, tmp_path)
    assert told["refused"] == 4 and told["quick"]
    assert told["metrics"] == {"m": 2.5, "n": 4.0, "late": 1.0, "d": 1.0}
    assert told["history"] == [[3, 1.5], [4, 2.5]] and told["params"] == {"a": "1", "b": "2", "c": "x"}
    assert (told["name"], told["status"]) == ("renamed", "RUNNING")
    assert told["tags"]["k"] == told["tags"]["t"] == "v" and "gone" not in told["tags"]
    found = [r for r, _ in journal.read(str(folder / "journal" / "1-0.bin"))[0]]
    assert [(r.key, r.value, r.step, r.run) for r in found if isinstance(r, journal.Metric)] == [
        ("m", 1.5, 3, ""), ("m", 2.5, 4, ""), ("n", 4.0, 4, ""), ("late", 1.0, 0, "")]
    calls = [(r.api, r.body) for r in found if isinstance(r, journal.Call)]
    apis = [api for api, _ in calls]
    assert {"LogBatch", "DeleteTag", "LogInputs", "UpdateRun"} == set(apis)
    assert dict(calls)["UpdateRun"] == {"run_id": RUN, "run_name": "renamed"}, "the end of the own run is held back"
    special = [b["metrics"] for api, b in calls if api == "LogBatch" and b.get("metrics")]
    assert [(m[0]["key"], m[0]["dataset_name"], m[0]["dataset_digest"]) for m in special] == [("d", "train", "1234")]
    spooled = spool.names(str(folder / "spool"))
    assert [spool.entry(str(folder / "spool"), n) for n in spooled] == [
        {"kind": "artifact", "run_id": RUN, "path": "notes", "file": "data/hello.txt"}]


def test_a_journal_that_cannot_be_written_is_said_once(lone_job, tmp_path):
    folder, env = lone_job
    (folder / "journal").write_text("in the way")
    code = """
        import json, mlflow
        from jupyter_mlops.runtime import mlflow_http
        mlflow_http.PATIENCE_IN_JOB = 0.1
        try:
            mlflow.MlflowClient().log_metric("a" * 32, "m", 1.0)
        except mlflow.exceptions.MlflowException as e:
            print(json.dumps(str(e)))
    """
    told, said = run_script(code, env, tmp_path)
    assert "the workspace cannot be reached" in told
    assert said.count("the journal cannot be written") == 1


def submit(plane, name, code, **more):
    path = plane.home / f"{name}.py"
    path.write_text(textwrap.dedent(code))
    plane.put(f"jobs/{name}", {
        "script": str(path), "experiment_name": "jobs", "interpreter": sys.executable,
        "environment_variables": {"PYTHONWARNINGS": "ignore", "MLFLOW_DISABLE_TELEMETRY": "true"}, **more,
    })


def finished(plane, name, timeout=90):
    job = plane.wait_job(name, timeout)
    assert job["status"]["phase"] == "Completed", (job["status"], plane.get(f"jobs/{name}/logs/0")["text"])
    return job, plane.get(f"runs/{job['status']['run_id']}")


def test_own_writes_are_read_back(shared_plane):
    submit(shared_plane, "reader", """
        import os, mlflow, jupyter_mlops
        own = os.environ["JUPYTER_MLOPS_RUN_ID"]
        client = mlflow.MlflowClient()
        with mlflow.start_run():
            for step in range(200):
                jupyter_mlops.log(loss=step * 0.5)
            mlflow.log_params({"lr": 0.1})
            assert jupyter_mlops.flush(30)
            data = mlflow.get_run(own).data
            assert data.metrics == {"loss": 99.5} and data.params == {"lr": "0.1"}, data
            for step in range(200, 300):
                mlflow.log_metric("loss", step * 0.5, step=step)
            points = client.get_metric_history(own, "loss")   # flushes by itself
            assert [(p.step, p.value) for p in points] == [(s, s * 0.5) for s in range(300)]
            mlflow.set_tag("found", "yes")
            assert list(mlflow.search_runs(filter_string="tags.found = 'yes'").run_id) == [own]
            with mlflow.start_run(nested=True, run_name="inner") as inner:
                mlflow.log_metric("deep", 2, step=1)
            done = mlflow.get_run(inner.info.run_id)
            assert (done.info.status, done.data.metrics) == ("FINISHED", {"deep": 2.0}), done
            try:
                client.log_metric("0" * 32, "m", 1.0)
                raise SystemExit("a run that does not exist")
            except mlflow.exceptions.MlflowException as e:
                assert "not found" in str(e), e
    """)
    _, run = finished(shared_plane, "reader")
    curve = shared_plane.get(f"runs/{run['run_id']}/metrics")["metrics"]["loss"]
    assert curve["steps"] == list(range(300)) and run["status"] == "FINISHED" and run["tags"]["found"] == "yes"


@pytest.mark.faults
def test_a_model_logged_while_everything_is_away_arrives(plane):
    plane.mlflow_ready()
    submit(plane, "modeller", """
        import os, time, mlflow
        from sklearn.linear_model import LogisticRegression
        own = os.environ["JUPYTER_MLOPS_RUN_ID"]
        model = LogisticRegression().fit([[0.0], [1.0]], [0, 1])
        mlflow.start_run()
        mlflow.log_text("first", "a/note.txt")
        print("ready", flush=True)
        while not os.path.exists("go"):
            time.sleep(0.05)
        mlflow.log_metric("acc", 0.5, step=0)
        info = mlflow.sklearn.log_model(model, name="clf", pip_requirements=["scikit-learn"], params={"p": 1})
        mlflow.log_metric("late", 0.75, step=1, model_id=info.model_id)
        mlflow.set_logged_model_tags(info.model_id, {"stage": "new"})
        mlflow.log_text("second", "a/note.txt")
        print("logged", info.model_id, flush=True)
    """)
    folder = JobFolder(plane.home / "jobs" / "modeller")
    log = plane.home / "jobs" / "modeller" / "attempts" / "1" / "rank-0.log"
    wait_for(lambda: log.exists() and "ready" in log.read_text(), 60)
    plane.kill()
    (plane.home / "jobs" / "modeller" / "outputs" / "go").touch()
    wait_for(lambda: folder.attempt(1).state().get("phase") == "completed", 60)
    local = log.read_text().split("logged ")[1].split()[0]
    assert spool.is_local(local) and spool.pending(folder.spool, 0)
    plane._tokens.clear()
    plane.start().mlflow_ready()
    _, run = finished(plane, "modeller")
    assert not spool.names(folder.spool)
    assert run["status"] == "FINISHED" and run["metrics"] == {"acc": 0.5, "late": 0.75}
    real = run["models"][0]["model_id"]
    assert len(run["models"]) == 1 and not spool.is_local(real) and run["models"][0]["name"] == "clf"
    api = "/mlflow/api/2.0/mlflow/"
    model = plane.get(f"{api}logged-models/{real}")["model"]
    assert not plane.get("jobs/modeller")["status"]["delivery"]["rejected"], plane.get("jobs/modeller")["status"]
    assert model["info"]["status"] == "LOGGED_MODEL_READY" and model["info"]["source_run_id"] == run["run_id"]
    assert {"key": "stage", "value": "new"} in model["info"]["tags"]
    assert {"key": "p", "value": "1"} in model["data"]["params"]
    assert {m["key"] for m in model["data"]["metrics"]} == {"acc", "late"}
    artifacts = plane.home / "artifacts" / run["experiment_id"]
    text = (artifacts / "models" / real / "artifacts" / "MLmodel").read_text()
    assert real in text and local not in text
    assert (artifacts / run["run_id"] / "artifacts" / "a" / "note.txt").read_text() == "second"
    env = {**os.environ, "JUPYTER_MLOPS_HOME": str(plane.home), "MLFLOW_TRACKING_URI": plane.tracking_uri}
    loaded, _ = run_script(f"""
        import json, mlflow
        print(json.dumps(mlflow.sklearn.load_model("models:/{real}").predict([[0.0], [1.0]]).tolist()))
    """, env, plane.home)
    assert loaded == [0, 1]


def test_a_server_that_is_frozen_blocks_no_training(plane):
    """Metrics, start and end of the run are answered while the control plane is stopped, not dead."""
    plane.mlflow_ready()
    submit(plane, "frozen", """
        import os, time, mlflow
        mlflow.set_experiment("jobs")
        print("ready", flush=True)
        while not os.path.exists("go"):
            time.sleep(0.05)
        with mlflow.start_run():
            for step in range(1000):
                mlflow.log_metric("loss", 1.0, step=step)
        print("trained", flush=True)
    """)
    folder = plane.home / "jobs" / "frozen"
    log = folder / "attempts" / "1" / "rank-0.log"
    wait_for(lambda: log.exists() and "ready" in log.read_text(), 60)
    os.kill(plane.process.pid, signal.SIGSTOP)
    try:
        (folder / "outputs" / "go").touch()
        wait_for(lambda: JobFolder(folder).attempt(1).state().get("phase") == "completed", 30)
        assert "trained" in log.read_text()
    finally:
        os.kill(plane.process.pid, signal.SIGCONT)
    _, run = finished(plane, "frozen")
    assert run["metrics"] == {"loss": 1.0}
    assert len(plane.get(f"runs/{run['run_id']}/metrics?max_points=2500")["metrics"]["loss"]["steps"]) == 1000
