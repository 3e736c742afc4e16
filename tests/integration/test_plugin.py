"""Plain MLflow calls from notebooks and jobs, through our entry points, on a real control plane."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from jupyter_mlops.runtime import locate
from tests.conftest import wait_for

pytestmark = pytest.mark.slow


def environment(plane, **more):
    """As the Jupyter extension sets it for a kernel: addresses, no secret."""
    uri = plane.tracking_uri
    return {
        **os.environ, "JUPYTER_MLOPS_HOME": str(plane.home), "JUPYTER_MLOPS_WORKSPACE": "default",
        "JUPYTER_MLOPS_URL": uri.removesuffix("/mlflow"), "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_EXPERIMENT_NAME": "from a notebook", "JPY_SESSION_NAME": "/notes/a b.ipynb",
        "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONWARNINGS": "ignore", **more,
    }


def script(plane, code, timeout=200, **env):
    """What a Python process prints that runs ``code``; its last line as JSON when it is such."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment(plane, **env), capture_output=True, text=True,
        timeout=timeout, cwd=plane.home, check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_autolog_and_the_rest_of_mlflow_land_here(shared_plane):
    told = script(shared_plane, """
        import json, os, sys
        import mlflow
        mlflow.sklearn.autolog()
        from sklearn.datasets import load_digits
        from sklearn.linear_model import LogisticRegression
        X, y = load_digits(return_X_y=True)
        model = LogisticRegression(max_iter=20).fit(X[:200] / 16, y[:200])
        auto = mlflow.last_active_run().info.run_id
        mlflow.autolog(disable=True)
        version = mlflow.register_model(f"runs:/{auto}/model", "digits")
        loaded = mlflow.pyfunc.load_model("models:/digits/1")
        assert (loaded.predict(X[:5] / 16) == model.predict(X[:5] / 16)).all()
        with mlflow.start_run(run_name="by hand", nested=True) as run:
            mlflow.log_params({"a": 1})
            mlflow.log_metric("m", 1.5, step=3)
            mlflow.log_text("hello", "folder/ä b.txt")
            mlflow.set_tag("t", "u")
        assert mlflow.artifacts.load_text(run.info.artifact_uri + "/folder/ä b.txt") == "hello"
        client = mlflow.MlflowClient()
        assert [f.path for f in client.list_artifacts(run.info.run_id)] == ["folder"]
        assert [f.path for f in client.list_artifacts(run.info.run_id, "folder")] == ["folder/ä b.txt"]
        assert client.list_artifacts(run.info.run_id, "folder/ä b.txt") == []
        @mlflow.trace
        def traced(x):
            return x + 1
        traced(1)
        mlflow.flush_trace_async_logging()
        traces = mlflow.search_traces(return_type="list")
        store = client._tracking_client.store
        print(json.dumps({"auto": auto, "hand": run.info.run_id, "python": sys.executable, "traces": len(traces),
                          "spans": len(traces[0].data.spans), "store": type(store).__module__,
                          "environment": [k for k in os.environ if "TOKEN" in k and "MLFLOW" in k.upper()]}))
    """, JUPYTERHUB_USER="ann")
    assert told["store"] == "jupyter_mlops.runtime.mlflow_stores" and told["environment"] == []
    assert (told["traces"], told["spans"]) == (1, 1)
    auto, hand = shared_plane.get(f"runs/{told['auto']}"), shared_plane.get(f"runs/{told['hand']}")
    assert auto["experiment_name"] == "from a notebook" and auto["status"] == "FINISHED"
    assert auto["metrics"]["training_accuracy_score"] > 0.8 and auto["params"]["max_iter"] == "20"
    assert auto["source"] == "/notes/a b.ipynb" and auto["user"] == "ann"
    assert auto["tags"]["mlflow.source.type"] == "NOTEBOOK" and auto["tags"]["mlops.interpreter"] == told["python"]
    assert auto["models"][0]["name"] == "model"
    assert (hand["name"], hand["params"], hand["metrics"]) == ("by hand", {"a": "1"}, {"m": 1.5})
    version = shared_plane.get("models/digits/versions/1")
    assert version["run_id"] == told["auto"] and version["model_id"] == auto["models"][0]["model_id"]


def peak_memory(pid: int) -> int:
    """The largest resident set of a process so far, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


@pytest.mark.faults
def test_a_gigabyte_takes_no_memory(shared_plane):
    before = peak_memory(shared_plane.process.pid)
    told = script(shared_plane, """
        import json, os, mlflow
        def rss():
            return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")) // 1024
        block = os.urandom(1 << 20)
        with open("large.bin", "wb") as f:
            for _ in range(1024):
                f.write(block)
        with mlflow.start_run() as run:
            mlflow.log_text("warm", "warm.txt")
            mlflow.artifacts.load_text(run.info.artifact_uri + "/warm.txt")
            before = rss()
            mlflow.log_artifact("large.bin")
            os.unlink("large.bin")
            path = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="large.bin", dst_path=".")
            after = rss()
        with open(path, "rb") as f:
            same = all(f.read(1 << 20) == block for _ in range(1024)) and not f.read(1)
        os.unlink(path)
        print(json.dumps({"grown": after - before, "same": same}))
    """)
    assert told["same"] and told["grown"] < 50
    assert peak_memory(shared_plane.process.pid) - before < 50, "the control plane"
    for stored in (shared_plane.home / "artifacts").rglob("large.bin"):
        stored.unlink()


class Recorder:
    """A tiny HTTP server that remembers what it was asked, and with which headers."""

    def __init__(self, port=0):
        requests = self.requests = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self):
                requests.append((self.command, self.path, dict(self.headers)))
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                body = json.dumps({"experiments": [], "files": [], "experiment": {"experiment_id": "7", "name": "x"}})
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            do_GET = do_POST = do_PUT = answer

            def log_message(self, *_):
                pass

        http.server.ThreadingHTTPServer.allow_reuse_address = True
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def test_a_foreign_server_is_none_of_our_business(shared_plane):
    recorder = Recorder()
    try:
        told = script(shared_plane, f"""
            import json, mlflow
            client = mlflow.MlflowClient()
            client.search_experiments()  # ours first: the token is known to this process
            foreign = mlflow.MlflowClient("{recorder.url}", "{recorder.url}")
            foreign.search_experiments()
            foreign.search_registered_models()
            same = mlflow.MlflowClient("{recorder.url}/jupyter-mlops/mlflow")  # a name like ours is not ours
            same.search_experiments()
            from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
            repository = get_artifact_repository("mlflow-artifacts:/1/x/artifacts", tracking_uri="{recorder.url}")
            repository.list_artifacts()
            open("f.txt", "w").write("x")
            repository.log_artifact("f.txt")
            other = get_artifact_repository("mlflow-artifacts://{recorder.url[7:]}/1/x/artifacts",
                                            tracking_uri=mlflow.get_tracking_uri())
            other.list_artifacts()
            mlflow.set_tracking_uri("{recorder.url}")
            from jupyter_mlops.runtime.mlflow_plugin import NotebookContext
            print(json.dumps([type(foreign._tracking_client.store).__module__,
                              type(foreign._get_registry_client().store).__module__, NotebookContext().in_context()]))
        """)
    finally:
        recorder.close()
    assert told == ["mlflow.store.tracking.rest_store", "mlflow.store.model_registry.rest_store", False]
    assert len(recorder.requests) >= 6
    for _, path, headers in recorder.requests:
        assert not {"authorization", "x-mlops-request-id"} & {h.lower() for h in headers}, path


def test_without_our_server_mlflow_is_as_ever(tmp_path):
    code = """
        import mlflow
        from mlflow.tracking._tracking_service import utils
        builder = utils._tracking_store_registry.get_store_builder(mlflow.get_tracking_uri())
        print(builder.__module__, len(list(mlflow.tracking.context.registry._run_context_provider_registry)))
    """
    env = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/m.db"}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=env, cwd=tmp_path, capture_output=True,
                          text=True, timeout=60, check=False)
    assert done.returncode == 0 and done.stdout.startswith("mlflow."), done.stderr
    assert "Failure attempting" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def jobs(shared_plane):
    """Runs a script as a job of one or more processes; returns (job, its run, its log)."""

    def run(name, code, processes=1, phase="Completed", **more):
        path = shared_plane.home / f"{name}.py"
        path.write_text(textwrap.dedent(code))
        spec = {
            "script": str(path), "experiment_name": "jobs", "interpreter": sys.executable, **more,
            "environment_variables": {"PYTHONWARNINGS": "ignore", "MLFLOW_DISABLE_TELEMETRY": "true",
                                      **more.get("environment_variables", {})},
        }
        if processes > 1:
            spec["distribution"] = {"type": "pytorch", "process_count_per_instance": processes}
        shared_plane.put(f"jobs/{name}", spec)
        job = shared_plane.wait_job(name, 180)
        log = shared_plane.get(f"jobs/{name}/logs/0")["text"]
        assert job["status"]["phase"] == phase, (job["status"], log)
        return job, shared_plane.get(f"runs/{job['status']['run_id']}"), log

    return run


def children(plane, run_id):
    found = plane.get("runs?experiment=jobs&limit=200")["items"]
    return [r for r in found if r["parent_run_id"] == run_id]


def test_the_first_run_of_a_job_is_its_own(shared_plane, jobs):
    job, run, log = jobs("first-run", """
        import os, mlflow
        own = os.environ["JUPYTER_MLOPS_RUN_ID"]
        mlflow.log_metric("implicit", 1)
        assert mlflow.active_run().info.run_id == own
        mlflow.end_run()
        assert mlflow.get_run(own).info.status == "RUNNING"
        with mlflow.start_run(run_name="later", tags={"k": "v"}) as later:
            assert later.info.run_id != own
            with mlflow.start_run(nested=True) as nested:
                mlflow.log_metric("deep", 2)
        with mlflow.start_run(run_id=own):
            mlflow.log_param("again", 1)
            mlflow.MlflowClient().update_run(own, name="My job, renamed")
        print("done", later.info.run_id, nested.info.run_id)
    """, display_name="My job")
    later, nested = log.split("done ")[1].split()[:2]
    assert run["status"] == "FINISHED" and run["name"] == "My job, renamed" and run["job"] == "first-run"
    assert run["metrics"] == {"implicit": 1.0} and run["params"] == {"again": "1"}
    assert run["tags"]["mlops.interpreter"] == sys.executable
    assert shared_plane.get(f"runs/{later}")["parent_run_id"] == run["run_id"]
    assert shared_plane.get(f"runs/{nested}")["parent_run_id"] == later
    assert shared_plane.get(f"runs/{later}")["source"] == job["spec"]["script"]
    assert [r["run_id"] for r in children(shared_plane, run["run_id"])] == [later]


def test_autolog_in_a_job_that_fails(shared_plane, jobs):
    _, run, _ = jobs("autologged", """
        import mlflow
        mlflow.sklearn.autolog(log_models=False)
        from sklearn.linear_model import LinearRegression
        LinearRegression().fit([[0], [1]], [0, 1])
        raise SystemExit(3)
    """, phase="Failed")
    assert run["status"] == "FAILED" and run["name"] == "autologged"
    assert run["metrics"]["training_r2_score"] == 1.0
    assert children(shared_plane, run["run_id"]) == []


DDP = """
    import os, mlflow, torch, torch.distributed as dist
    from sklearn.linear_model import LinearRegression
    from torch.nn.parallel import DistributedDataParallel
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mlflow.set_experiment("jobs")
    with mlflow.start_run() as run:
        mlflow.log_params({"lr": 0.1})
        for step in range(5):
            loss = model(torch.full((2, 4), float(rank + 1))).pow(2).mean()
            optimizer.zero_grad(); loss.backward(); optimizer.step()
            mlflow.log_metric("loss", loss.item() if rank == 0 else -1.0, step=step)
        mlflow.set_tag("rank", rank)
        mlflow.log_text(str(rank), f"rank-{rank}.txt")
        mlflow.log_dict({"rank": rank}, "same.json")
        mlflow.sklearn.log_model(LinearRegression(), name="m", pip_requirements=["scikit-learn"],
                                 registered_model_name=os.environ["MODEL"])
        with mlflow.start_run(nested=True):
            mlflow.log_metric("inner", rank)
    print("run", run.info.run_id)
    dist.destroy_process_group()
"""


def test_two_ranks_make_one_run(shared_plane, jobs):
    _, run, log = jobs("ddp", DDP, processes=2, environment_variables={"MODEL": "ddp"})
    assert f"run {run['run_id']}" in log
    assert f"run {run['run_id']}" in shared_plane.get("jobs/ddp/logs/1")["text"]
    curve = shared_plane.get(f"runs/{run['run_id']}/metrics")["metrics"]["loss"]
    assert curve["steps"] == [0, 1, 2, 3, 4] and min(curve["values"]) >= 0
    assert run["tags"]["rank"] == "0" and run["params"] == {"lr": "0.1"} and len(run["models"]) == 1
    files = shared_plane.get(f"/mlflow/api/2.0/mlflow/artifacts/list?run_id={run['run_id']}")["files"]
    assert sorted(f["path"] for f in files) == ["rank-0.txt", "same.json"]
    assert len(shared_plane.get("models/ddp")["versions"]) == 1
    beneath = children(shared_plane, run["run_id"])
    assert len(beneath) == 1 and beneath[0]["metrics"] == {"inner": 0.0}


def test_further_ranks_log_when_asked(shared_plane):
    spec = {"command": "sleep 300", "experiment_name": "jobs", "interpreter": sys.executable, "limits": {"grace": 0}}
    shared_plane.put("jobs/asked", spec)
    own = wait_for(lambda: shared_plane.get("jobs/asked")["status"]["run_id"], 30)
    code = """
        import json, os, mlflow
        with mlflow.start_run() as run:
            mlflow.log_metric("seen", 1)
        print(json.dumps(run.info.run_id))
    """
    env = {"JUPYTER_MLOPS_JOB": "asked", "JUPYTER_MLOPS_RUN_ID": own, "RANK": "3", "JPY_SESSION_NAME": "",
           "MLFLOW_EXPERIMENT_NAME": "jobs"}
    try:
        assert script(shared_plane, code, **env) == own
        made = script(shared_plane, code, JUPYTER_MLOPS_LOG_ALL_RANKS="1", **env)
    finally:
        shared_plane.post("jobs/asked/actions/stop")
    row = shared_plane.get(f"runs/{made}")
    assert made != own and row["parent_run_id"] == own and row["name"] == "rank 3" and row["metrics"] == {"seen": 1.0}
    assert shared_plane.get(f"runs/{own}")["metrics"] == {}


def test_logging_goes_on_over_restarts_and_a_new_port(plane):
    plane.mlflow_ready()
    old = plane.tracking_uri
    code = """
        import sys, time, mlflow
        from jupyter_mlops.runtime import locate
        run = mlflow.start_run()
        print(run.info.run_id, flush=True)
        for step in range(40):
            mlflow.log_metric("loss", step, step=step)
            if step == 10:
                print("ten", flush=True)
                sys.stdin.readline()
        mlflow.log_text("x", "late.txt")
        mlflow.end_run()
        print(mlflow.get_tracking_uri(), locate.connect().url)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment(plane), stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True, cwd=plane.home,
    )
    recorder = None
    try:
        run_id = process.stdout.readline().strip()
        assert process.stdout.readline().strip() == "ten"
        plane.kill()
        # Somebody else takes the port; whoever calls the old address must not tell him the token.
        recorder = Recorder(int(old.split(":")[2].split("/")[0]))
        process.stdin.write("\n")
        process.stdin.flush()
        # The kernel starts a control plane when it finds none.
        output = process.stdout.read()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            stream.close()
        if recorder is not None:
            recorder.close()
    assert not any("Authorization" in headers for _, _, headers in recorder.requests)
    uri, url = output.split()
    assert uri == old and url == locate.info(plane.place)["url"] != old.removesuffix("/mlflow")
    plane._tokens.clear()
    wait_for(lambda: plane.get("/api/v1/workspaces/default")["mlflow"]["state"] == "ready", 30)
    curve = plane.get(f"runs/{run_id}/metrics")["metrics"]["loss"]
    assert curve["steps"] == list(range(40))
    assert plane.get(f"runs/{run_id}")["status"] == "FINISHED"
