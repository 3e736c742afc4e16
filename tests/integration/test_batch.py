"""Batch runs for real: jobs of a control plane that score files, are killed, stopped and resumed."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
import time
from pathlib import Path

import cloudpickle
import numpy as np
import pandas as pd
import pytest
from conftest import Plane, make_home, wait_for

from jupyter_mlops.client.batch import batch
from jupyter_mlops.client.sync import Client

ML = "/mlflow/api/2.0/mlflow/"
MLMODEL = """\
flavors:
  python_function:
    loader_module: mlflow.sklearn
    model_path: model.pkl
    predict_fn: predict
  sklearn:
    pickled_model: model.pkl
    serialization_format: cloudpickle
    sklearn_version: "1"
model_uuid: {uuid}
signature:
  inputs: '{inputs}'
"""
TABLE = [{"type": "double", "name": "x", "required": True}, {"type": "string", "name": "do", "required": False}]
IMAGE = [{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 4, 6, 3]}}]


class Doubles:
    """Answers 2x; what else it does is in the column ``do``."""

    def predict(self, frame):
        import os
        import time

        for word in frame["do"].fillna(""):
            if word.startswith("sleep"):
                time.sleep(float(word[6:]))
            elif word == "raise":
                raise ValueError("cannot score this row")
            elif word == "print":
                print("a model that prints to its standard output")
            elif word.startswith("die "):  # once: the file says that it has been done
                if not os.path.exists(word[4:]):
                    open(word[4:], "w").close()
                    os.kill(os.getpid(), 9)
            elif word == "env":
                assert "HUSH" not in str(dict(os.environ)) and os.environ["MY_TOKEN"] == "given"
        return frame["x"].to_numpy() * 2


class Means:
    def predict(self, images):
        return images.mean(axis=(1, 2))


def deploy(plane: Plane, endpoint: str, model: object, inputs: list, **spec) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    run = plane.post(ML + "runs/create", {"experiment_id": "0"})["run"]["info"]["run_id"]
    text = MLMODEL.format(uuid=endpoint, inputs=json.dumps(inputs))
    for file, data in (("MLmodel", text.encode()), ("model.pkl", cloudpickle.dumps(model))):
        path = f"/mlflow/api/2.0/mlflow-artifacts/artifacts/0/{run}/artifacts/model/{file}"
        assert plane.call("PUT", path, data)[0] == 200
    tags = {"mlops.interpreter": sys.executable}
    made = plane.post(f"models/{endpoint}/versions", {"run_id": run, "artifact": "model", "tags": tags})
    plane.put(f"endpoints/{endpoint}", {})
    plane.put(f"endpoints/{endpoint}/deployments/blue", {"model": f"{endpoint}/{made['version']}", **spec})


@pytest.fixture(scope="module")
def plane():
    p = Plane(make_home())
    os.environ["SOME_SECRET"] = "HUSH"
    try:
        p.start().mlflow_ready()
    finally:
        del os.environ["SOME_SECRET"]
    deploy(p, "doubles", Doubles(), TABLE, environment_variables={"MY_TOKEN": "given"})
    deploy(p, "means", Means(), IMAGE)
    for name in ("doubles", "means"):
        wait_for(lambda name=name: (p.home / "endpoints" / name / "blue" / "model.json").exists(), 30)
    yield p
    p.stop()


def start(plane, tmp_path, source, endpoint="doubles", expect=201, **more):
    settings = {"max_concurrency_per_instance": 1, "retry_settings": {"max_retries": 1}, **more.pop("settings", {})}
    body = {"input": str(tmp_path / source), "output": str(tmp_path / "scores"), "settings": settings, **more}
    return plane.post(f"endpoints/{endpoint}/actions/batch", body, expect)


def finished(plane, job, phase="Completed"):
    status = plane.wait_job(job["name"], 120)["status"]
    log = plane.get(f"jobs/{job['name']}/logs/0")["text"]
    assert status["phase"] == phase, (status["reason"], log[-2000:])
    return status, log


def table(path: Path, rows, header="x,do") -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(header + "\n" + "".join(f"{row}\n" for row in rows))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_folder_of_csv_with_rows_that_fail(plane, tmp_path):
    table(tmp_path / "in" / "b.csv", ["1,", "2,raise", '"3",print', "four,", "5,env"])
    table(tmp_path / "in" / "a.csv", [f"{i},," for i in range(3)], "x,do,id")
    (tmp_path / "in" / "notes.md").write_text("no data")
    status, log = finished(plane, start(plane, tmp_path, "in", settings={"mini_batch_size": 4}))
    with open(tmp_path / "scores" / "predictions.csv", newline="") as f:
        rows = list(csv.reader(f))
    assert rows == [["file", "row", "prediction"], ["a.csv", "0", "0.0"], ["a.csv", "1", "2.0"], ["a.csv", "2", "4.0"],
                    ["b.csv", "0", "2.0"], ["b.csv", "2", "6.0"], ["b.csv", "4", "10.0"]]
    assert lines(tmp_path / "scores" / "errors.jsonl") == [
        {"file": "b.csv", "row": 1, "message": "ValueError: cannot score this row"},
        {"file": "b.csv", "row": 3, "message": "column 'x': expected double, got 'four'"}]
    summary = json.loads((tmp_path / "scores" / "summary.json").read_text())
    told = {k: summary[k] for k in ("rows", "failed_rows", "mini_batches", "model")}
    assert told == {"rows": 6, "failed_rows": 2, "mini_batches": 3, "model": "doubles/1"}
    assert "a model that prints" in log and "6 rows scored, 2 failed" in log
    run = plane.get(f"runs/{status['run_id']}")
    assert run["progress"] == {"done": 100, "total": 100} and run["tags"]["mlops.endpoint"] == "doubles"
    metrics = run["metrics"] if isinstance(run["metrics"], dict) else {m["key"]: m["value"] for m in run["metrics"]}
    assert metrics["rows"] == 6 and metrics["failed_rows"] == 2
    again = start(plane, tmp_path, "in", expect=422)
    assert "predictions.csv is there already" in again["message"]


def test_parquet_in_parquet_out_and_too_many_errors(plane, tmp_path):
    frame = pd.DataFrame({"do": ["", "raise"] * 5, "x": np.arange(10.0), "more": range(10)})
    frame.loc[4, "x"] = np.nan
    frame.to_parquet(tmp_path / "in.parquet", row_group_size=3)
    job = start(plane, tmp_path, "in.parquet", settings={"mini_batch_size": 5, "error_threshold": 4})
    status, _ = finished(plane, job, "Failed")
    assert "5 rows failed, more than error_threshold 4 allows" in status["reason"]
    assert len(lines(tmp_path / "scores" / "errors.jsonl")) in (3, 5)
    assert not (tmp_path / "scores" / "predictions.csv").exists()
    good = frame[frame["do"] == ""].assign(do=None)
    good.to_parquet(tmp_path / "in.parquet")
    finished(plane, start(plane, tmp_path, "*.parquet", output=str(tmp_path / "p" / "out.parquet")))
    out = pd.read_parquet(tmp_path / "p" / "out.parquet")
    assert list(out.columns) == ["file", "row", "prediction"] and out["row"].tolist() == list(range(5))
    np.testing.assert_array_equal(out["prediction"], good["x"] * 2)


def test_images_and_json_lines_by_the_python_client(plane, tmp_path, monkeypatch):
    from PIL import Image

    (tmp_path / "in" / "sub").mkdir(parents=True)
    for i in range(12):
        Image.new("RGB", (6, 4), (i, 0, 255)).save(tmp_path / "in" / f"{i:02}.png")
    Image.new("RGB", (5, 5)).save(tmp_path / "in" / "sub" / "odd.jpg")
    (tmp_path / "in" / "sub" / "torn.png").write_bytes(b"\x89PNG\r\n")
    monkeypatch.chdir(tmp_path)
    with Client(plane.place) as client:
        job = batch(client, "means", "in", "scores/means.jsonl", concurrency=1, retries=0)
    assert "endpoint means, deployment blue, over " in job.text()
    finished(plane, {"name": job.name})
    rows = lines(tmp_path / "scores" / "means.jsonl")
    assert [r["file"] for r in rows] == [f"{i:02}.png" for i in range(12)]
    assert rows[7] == {"file": "07.png", "row": 0, "prediction_0": 7.0, "prediction_1": 0.0, "prediction_2": 255.0}
    errors = lines(tmp_path / "scores" / "errors.jsonl")
    assert [e["file"] for e in errors] == ["sub/odd.jpg", "sub/torn.png"]
    assert errors[0]["message"] == "the image has the shape [5, 5, 3], the model takes [4, 6, 3]"


def test_a_worker_that_dies_and_a_mini_batch_that_takes_too_long(plane, tmp_path):
    table(tmp_path / "in.csv", ["1,", f"2,die {tmp_path}/died", "3,", "4,sleep 60", "5,", "6,"])
    settings = {"mini_batch_size": 2, "retry_settings": {"max_retries": 1, "timeout": 2},
                "max_concurrency_per_instance": 2}
    _, log = finished(plane, start(plane, tmp_path, "in.csv", settings=settings))
    assert "killed by signal 9): try 2 of 2" in log
    frame = pd.read_csv(tmp_path / "scores" / "predictions.csv")
    assert frame["row"].tolist() == [0, 1, 4, 5] and frame["prediction"].tolist() == [2, 4, 10, 12]
    assert [e["message"] for e in lines(tmp_path / "scores" / "errors.jsonl")] == ["it took longer than 2 s"] * 2


def parts(plane, job) -> list[Path]:
    return sorted((plane.home / "jobs" / job["name"] / "batch" / "parts").glob("part-*"))


def test_stop_kill_and_resume_lose_nothing_and_do_nothing_twice(plane, tmp_path):
    table(tmp_path / "in.csv", [f"{i},sleep 0.01" for i in range(100)])
    job = start(plane, tmp_path, "in.csv", settings={"mini_batch_size": 5})
    wait_for(lambda: len(parts(plane, job)) > 2, 30)
    plane.post(f"jobs/{job['name']}/actions/stop")
    finished(plane, job, "Canceled")
    stopped = {p.name: p.stat().st_mtime_ns for p in parts(plane, job)}
    assert 2 < len(stopped) < 20 and not (tmp_path / "scores" / "predictions.csv").exists()
    # The endpoint is not needed any more.
    plane.post(f"jobs/{job['name']}/actions/resume")
    wait_for(lambda: len(parts(plane, job)) > len(stopped) + 1, 30)
    assert stopped.items() <= {p.name: p.stat().st_mtime_ns for p in parts(plane, job)}.items()
    # Everything is killed that was alive: control plane, supervisor, rank and its workers.
    plane.kill()
    state = json.loads(next((plane.home / "jobs" / job["name"] / "attempts" / "2").glob("state.json")).read_text())
    os.kill(state["pid"], signal.SIGKILL)
    rank = json.loads((plane.home / "jobs" / job["name"] / "attempts" / "2" / "rank-0.pid").read_text())["pid"]
    os.kill(rank, signal.SIGKILL)
    plane.start()
    finished(plane, job, "Failed")
    killed = {p.name: p.stat().st_mtime_ns for p in parts(plane, job)}
    plane.post(f"jobs/{job['name']}/actions/resume")
    wait_for(lambda: len(parts(plane, job)) > len(killed) or plane.get(f"jobs/{job['name']}")["status"]["phase"] in (
        "Finalizing", "Completed"), 30)
    kept = {p.name: p.stat().st_mtime_ns for p in parts(plane, job)}
    assert not kept or killed.items() <= kept.items()
    finished(plane, job)
    frame = pd.read_csv(tmp_path / "scores" / "predictions.csv")
    assert frame["row"].tolist() == list(range(100)) and frame["prediction"].tolist() == [2.0 * i for i in range(100)]
    assert sorted(os.listdir(tmp_path / "scores")) == ["predictions.csv", "summary.json"]
    assert time.time() - (tmp_path / "scores" / "predictions.csv").stat().st_mtime < 60


@pytest.mark.parametrize(("body", "message"), [
    ({"input": "data"}, "input: must be an absolute path"),
    ({"input": "/nowhere/at/all.csv"}, "the input /nowhere/at/all.csv is not there"),
    ({"input": "/etc/hostname"}, "none of the files that are understood"),
    ({"output": "/dev/null/x"}, "/dev/null is a file"),
    ({"input": "IN", "output": "IN/scores"}, "output lies in input"),
    ({"settings": {"output_file_name": "../x.csv"}}, "output_file_name '../x.csv'"),
    ({"settings": {"mini_batch_size": 0}}, "settings.mini_batch_size"),
    ({"params": {"a": 1}}, "params: unknown 'a'"),
    ({"deployment": "green"}, "endpoint 'doubles' has no deployment 'green'"),
    ({"name": "Not a name"}, "name"),
])
def test_what_cannot_be_is_refused_before_a_job_is_made(plane, tmp_path, body, message):
    table(tmp_path / "in" / "a.csv", ["1,"])
    body = {"input": "IN", "output": "/tmp/nothing-is-written-here", **body}
    body = {k: v.replace("IN", str(tmp_path / "in")) if isinstance(v, str) else v for k, v in body.items()}
    before = plane.get("jobs")["items"]
    status, answer, _ = plane.call("POST", "endpoints/doubles/actions/batch", body)
    assert status in (400, 404, 422) and message in answer["message"] and "\n" not in answer["message"]
    assert plane.get("jobs")["items"] == before
    plane.post("endpoints/doubles/actions/batch", body, 403, token=plane.token("reader"))
