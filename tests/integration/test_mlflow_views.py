"""Experiments, runs and models as our REST interface shows them."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from jupyter_mlops.core.errors import NotFound, Refused
from jupyter_mlops.tracking.child import MlflowChild
from jupyter_mlops.tracking.shape import progress, quoted, thin
from jupyter_mlops.tracking.views import MlflowViews

pytestmark = pytest.mark.story

API = "/mlflow/api/2.0/mlflow/"
ARTIFACTS = "/mlflow/api/2.0/mlflow-artifacts/artifacts"
MLMODEL = "flavors:\n  python_function:\n    loader_module: mlflow.sklearn\n"


@pytest.fixture(scope="module")
def filled(shared_plane):
    """A plane with an experiment of three runs, the last of which logged a model; (plane, run ids, model id)."""
    p = shared_plane
    experiment = p.post(API + "experiments/create", {"name": "digits (größer)"})["experiment_id"]
    runs = []
    for number in range(3):
        run = p.post(API + "runs/create", {
            "experiment_id": experiment, "run_name": f"r{number}", "start_time": 1_700_000_000_000 + number,
            "tags": [{"key": "mlflow.user", "value": "ann"}, {"key": "mlflow.source.name", "value": "a.ipynb"},
                     {"key": "mlops.progress", "value": "3/10"}, {"key": "mlops.interpreter", "value": "/usr/bin/py"}],
        })["run"]["info"]["run_id"]
        points = [{"key": "loss", "value": 1 / (step + 1), "step": step, "timestamp": step} for step in range(1000)]
        p.post(API + "runs/log-batch", {"run_id": run, "metrics": points})
        p.post(API + "runs/log-batch", {"run_id": run, "params": [{"key": "lr", "value": "0.1"}], "metrics": [
            {"key": "odd", "value": v, "step": i, "timestamp": i} for i, v in enumerate([1.0, "NaN", "Infinity"])
        ]})
        p.post(API + "runs/log-batch", {"run_id": run, "metrics": [
            {"key": "long", "value": 1, "step": 1000 * i, "timestamp": i} for i in range(200)
        ]})
        runs.append(run)
    made = p.post(API + "logged-models", {"experiment_id": experiment, "name": "model", "source_run_id": runs[2]})
    model = made["model"]["info"]["model_id"]
    p.call("PUT", f"{ARTIFACTS}/{experiment}/models/{model}/artifacts/MLmodel", MLMODEL.encode())
    p.call("PATCH", f"{API}logged-models/{model}", {"model_id": model, "status": 2})
    p.post(API + "runs/outputs", {"run_id": runs[2], "models": [{"model_id": model}]})
    p.call("PUT", f"{ARTIFACTS}/{experiment}/{runs[0]}/artifacts/old/MLmodel", MLMODEL.encode())
    return p, runs, model


def test_experiments(filled):
    plane, _, _ = filled
    page = plane.get("experiments")
    assert [e["name"] for e in page["items"]] == ["digits (größer)", "Default"]
    assert page["items"][0]["artifact_location"].startswith("mlflow-artifacts:/")
    first = plane.get("experiments?limit=1")
    rest = plane.get(f"experiments?limit=1&page_token={quote(first['next_token'])}")
    assert [first["items"][0]["name"], rest["items"][0]["name"]] == ["digits (größer)", "Default"]


def test_runs(filled):
    plane, runs, model = filled
    name = quote("digits (größer)")
    items = plane.get(f"runs?experiment={name}")["items"]
    assert [r["run_id"] for r in items] == runs[::-1]
    row = items[0]
    assert row["experiment_name"] == "digits (größer)" and row["user"] == "ann" and row["source"] == "a.ipynb"
    assert row["status"] == "RUNNING" and row["start_time"] == "2023-11-14T22:13:20.002Z" and row["end_time"] is None
    assert row["metrics"] == {"loss": 0.001, "odd": None, "long": 1.0} and row["params"] == {"lr": "0.1"}
    assert row["progress"] == {"done": 3, "total": 10}
    assert [m["model_id"] for m in row["models"]] == [model]
    assert plane.get(f"runs/{runs[2]}")["models"] == [{"model_id": model, "name": "model"}]
    found = plane.get(f"runs?experiment={name}&filter={quote('tags.`mlflow.runName` = ' + repr('r1'))}")["items"]
    assert [r["run_id"] for r in found] == [runs[1]]
    ordered = plane.get(f"runs?experiment={name}&order_by={quote('attributes.start_time ASC')}&limit=2")
    assert [r["run_id"] for r in ordered["items"]] == runs[:2] and ordered["next_token"]
    assert {r["run_id"] for r in plane.get("runs")["items"]} >= set(runs)


def test_what_is_not_there_is_named(filled):
    plane, _, _ = filled
    missing = plane.get(f"runs?experiment={quote('digits (grosser)')}", 404)
    assert "did you mean 'digits (größer)'?" in missing["hint"]
    assert plane.get("runs?experiment=zzz", 404)["code"] == "not_found"
    assert plane.get("runs/" + "0" * 32, 404)["code"] == "not_found"
    assert plane.get("runs?filter=" + quote("metrics.x >>> 1"), 400)["code"] == "bad_parameter"
    assert plane.get("runs?page_token=x", 400)["code"] == "bad_parameter"
    assert plane.get("models/none", 404)["code"] == "not_found"


def test_curves(filled):
    plane, runs, _ = filled
    curves = plane.get(f"runs/{runs[0]}/metrics?max_points=100")
    loss, odd = curves["metrics"]["loss"], curves["metrics"]["odd"]
    assert len(loss["steps"]) == len(loss["values"]) == len(loss["timestamps"]) == 100
    assert (loss["steps"][0], loss["steps"][-1], loss["total"], loss["last"]) == (0, 999, 1000, 0.001)
    assert odd == {"steps": [0, 1, 2], "values": [1.0, None, None], "timestamps": [0, 1, 2], "last": None, "total": 3}
    long = curves["metrics"]["long"]
    assert (len(long["steps"]), long["steps"][0], long["steps"][-1]) == (100, 0, 199_000)
    assert list(plane.get(f"runs/{runs[0]}/metrics?keys=odd,none")["metrics"]) == ["odd"]


def test_delete_and_restore(filled):
    plane, runs, _ = filled
    for _ in range(2):
        plane.delete(f"runs/{runs[1]}")
    assert plane.get(f"runs/{runs[1]}")["lifecycle_stage"] == "deleted"
    assert runs[1] not in [r["run_id"] for r in plane.get("runs")["items"]]
    assert plane.post(f"runs/{runs[1]}/actions/restore")["lifecycle_stage"] == "active"


def test_models(filled):
    plane, runs, model = filled
    body = {"run_id": runs[2], "alias": "champion", "description": "best", "tags": {"a": "b"}}
    made = plane.post("models/digits%20one/versions", body, 201)
    assert made["version"] == "1" and made["aliases"] == ["champion"] and made["status"] == "READY"
    assert made["model_id"] == model and made["run_id"] == runs[2] and made["description"] == "best"
    assert made["tags"] == {"a": "b", "mlops.interpreter": "/usr/bin/py"}
    assert plane.post("models/digits%20one/versions", {"model_id": model}, 201)["version"] == "2"
    assert plane.post("models/digits%20one/versions", {"run_id": runs[2], "artifact": "model"}, 201)["version"] == "3"
    # Models as MLflow 2 logged them: a folder among the run's artifacts.
    old = plane.post("models/digits%20one/versions", {"run_id": runs[0], "artifact": "old"}, 201)
    assert old["model_id"] == "" and old["source"].endswith(f"{runs[0]}/artifacts/old")
    assert plane.post("models/digits%20one/versions", {"run_id": runs[0]}, 201)["version"] == "5"
    assert "its models: model" in plane.post("models/m/versions", {"run_id": runs[2], "artifact": "x"}, 404)["hint"]
    assert "logged no model" in plane.post("models/m/versions", {"run_id": runs[1]}, 404)["message"]
    plane.get("models/m", 404)  # nothing half made
    found = plane.get("models/digits%20one")
    assert [v["version"] for v in found["versions"]] == ["5", "4", "3", "2", "1"]
    assert found["latest_version"] == "5" and found["aliases"] == {"champion": "1"}
    assert found["versions"][-1]["aliases"] == ["champion"]
    assert [m["name"] for m in plane.get("models")["items"]] == ["digits one"]
    plane.put("models/digits%20one/aliases/champion", {"version": "2"})
    assert plane.get("models/digits%20one/versions/2")["aliases"] == ["champion"]
    plane.put("models/digits%20one/aliases/champion", {"version": "9"}, 404)
    assert "did you mean" in plane.get("models/digits%20two", 404)["hint"]
    assert plane.get("models/digits%20one/versions/x", 404)["code"] == "not_found"
    plane.delete("models/digits%20one/aliases/champion")
    plane.delete("models/digits%20one/aliases/champion", 404)
    plane.delete("models/digits%20one/versions/3")
    plane.delete("models/digits%20one/versions/3", 404)


async def test_where_the_files_of_a_version_lie(filled):
    plane, runs, _ = filled
    views = MlflowViews(_Running(plane))
    try:
        row = await views.register("files", run_id=runs[2], alias="a")
        folder = await views.model_dir("files", "1")
        assert (folder / "MLmodel").read_text() == MLMODEL and plane.home in folder.parents
        assert (await views.resolve_model("files@a")) == (await views.resolve_model("files/1")) == row
        assert await views.model_interpreter(row) == "/usr/bin/py"
        await views.register("files", run_id=runs[0], artifact="old")
        assert (await views.model_dir("files", "2")).name == "old"
        for reference in ("files@b", "files/7", "none/1", "none@a"):
            with pytest.raises(NotFound):
                await views.resolve_model(reference)
        (folder / "MLmodel").rename(folder / "x")
        with pytest.raises(Refused, match="MLmodel"):
            await views.model_dir("files", "1")
        (folder / "x").rename(folder / "MLmodel")
        for uri in ("mlflow-artifacts:/../../etc", "mlflow-artifacts:/", "file:///etc", "mlflow-artifacts://h/x", ""):
            assert await views._local(uri) is None, uri
    finally:
        await views.close()


async def test_the_run_of_a_job(filled):
    plane, _, _ = filled
    views = MlflowViews(_Running(plane))
    try:
        make = ("a new experiment", "job-1", "my job", {"mlflow.source.name": "t.py"}, "ann")
        facts = await views.create_job_run(*make)
        run = facts["run_id"]
        assert await views.create_job_run(*make) == facts == await views.job_run(run)
        assert (facts["experiment_name"], facts["run_name"], facts["user"]) == ("a new experiment", "my job", "ann")
        assert facts["start_time"] > 0 and facts["artifact_uri"].endswith(f"/{run}/artifacts")
        row = await views.run(run)
        assert (row["name"], row["job"], row["user"], row["source"]) == ("my job", "job-1", "ann", "t.py")
        for _ in range(2):
            await views.finish_run(run, "FAILED", "exit code 3", 1_700_000_000_000)
        row = await views.run(run)
        assert (row["status"], row["end_time"], row["tags"]["mlops.reason"]) == (
            "FAILED", "2023-11-14T22:13:20.000Z", "exit code 3")
        # A later job of that name is another one.
        assert (await views.create_job_run(*make))["run_id"] != run
        await views.reopen_run(run)
        assert (await views.run(run))["status"] == "RUNNING"
        await views.delete_run(run)
        await views.finish_run(run, "KILLED", "late", None)
        for gone in (run, "0" * 32):
            with pytest.raises(NotFound):
                await views.reopen_run(gone)
            with pytest.raises(NotFound):
                await views.job_run(gone)
        with pytest.raises(NotFound):
            await views.finish_run("0" * 32, "FINISHED", "", None)
    finally:
        await views.close()


class _Running(MlflowChild):
    """The child of a control plane, seen from here."""

    def __init__(self, plane) -> None:
        super().__init__(plane.home, plane.place.runtime_dir)

    async def ready(self, timeout: float = 10.0) -> bool:
        return True


def test_small_translations():
    assert progress("3/10") == {"done": 3, "total": 10} and progress("3") is None and progress("a/b") is None
    points = [{"n": n} for n in range(1001)]
    kept = thin(points, 7)
    assert len(kept) == 7 and kept[0] == points[0] and kept[-1] == points[-1]
    assert thin(points[:3], 7) == points[:3]
    assert quoted("a") == "'a'" and quoted("it's") == '"it\'s"'
