"""From the journal to MLflow: every point once and in order, whatever is killed meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from conftest import REPO, make_home, wait_for

from jupyter_mlops.core.errors import BackendTimeout
from jupyter_mlops.runtime import journal, spool
from jupyter_mlops.runtime.jobfolder import JobFolder, private_folder, write_json
from jupyter_mlops.tracking.child import MlflowChild
from jupyter_mlops.tracking.shipper import Shipper
from jupyter_mlops.tracking.views import MlflowViews

SEED = int(os.environ.get("TEST_SEED", "0")) or random.randrange(1 << 30)


class _Running(MlflowChild):
    """The child of somebody else, seen from here."""

    async def ready(self, timeout: float = 10.0) -> bool:
        return True


class Job:
    """A job folder as control plane and ranks would make it, and its run."""

    def __init__(self, home: Path, name: str, run_id: str) -> None:
        self.home, self.name, self.run_id = home, name, run_id
        self.folder = JobFolder(home / "jobs" / name)
        private_folder(self.folder.journal)
        write_json(os.path.join(self.folder.path, "run.json"), {"run_id": run_id})

    def writer(self, attempt: int = 1) -> journal.Writer:
        return journal.Writer(self.folder.journal_path(attempt, 0))

    def tear(self, attempt: int) -> None:
        """As if killed in the middle of a record."""
        with open(self.folder.journal_path(attempt, 0), "ab") as f:
            f.write(journal.pack_metric(b"loss", 7.0, 100, 1)[:-4])

    def watch(self, shipper: Shipper) -> None:
        shipper.watch(self.name, self.run_id, Path(self.folder.path))

    def progress(self) -> dict:
        try:
            return json.loads(Path(self.folder.delivery_path).read_text())
        except OSError:
            return {}


@asynccontextmanager
async def shipping(child: MlflowChild, home: Path, name: str):
    """(views, shipper, job) over a child that runs."""
    views = MlflowViews(child)
    shipper = Shipper(views.api)
    try:
        run_id = (await views.api.post("runs/create", experiment_id="0", run_name=name))["run"]["info"]["run_id"]
        shipper.start()
        yield views, shipper, Job(home, name, run_id)
    finally:
        await shipper.stop()
        await views.close()


@pytest.fixture
def beside(shared_plane, tmp_path):
    """(child of the shared control plane, a home for jobs of which that knows nothing)."""
    return _Running(shared_plane.home, shared_plane.place.runtime_dir), tmp_path


async def drained(shipper: Shipper, job: Job, seconds: float = 60) -> dict:
    shipper.know(job.name, job.run_id, Path(job.folder.path))
    async with asyncio.timeout(seconds):
        while not await shipper.drain(job.name):
            pass
    return shipper.status(job.name)


async def history(views: MlflowViews, run_id: str, key: str) -> list[tuple[int, float]]:
    """(step, value) in the order of MLflow's rows."""
    rows = await views._history(run_id, key)
    return [(int(r.get("step", 0)), float(r["value"])) for r in rows]


async def test_what_mlflow_refuses_is_dropped_alone(beside):
    async with shipping(*beside, "bad") as (views, shipper, job):
        gone = (await views.api.post("runs/create", experiment_id="0"))["run"]["info"]["run_id"]
        await views.api.post("runs/delete", run_id=gone)
        writer = job.writer()
        writer.call("LogParam", {"run_id": job.run_id, "key": "lr", "value": "1"})
        for step in range(300):
            writer.metric("loss", step / 10, step)
            if step % 100 == 50:
                writer.metric("k" * 300, 1.0, step)
                writer.metric("loss", 1.0, step, run=gone)
                writer.metric("loss", 1.0, step, run="0" * 32)
        writer.call("LogBatch", {"run_id": job.run_id, "params": [
            {"key": "lr", "value": "2"}, {"key": "depth", "value": "3"}]})
        writer.call("SetTag", {"run_id": job.run_id, "key": "a", "value": "1"})
        writer.call("DeleteTag", {"run_id": job.run_id, "key": "a"})
        writer.call("Reboot", {})
        writer.close()
        job.watch(shipper)
        await shipper.flush(job.name, 30)
        status = await drained(shipper, job)
        assert status["rejected"] == 3 * 3 + 1 + 1 and status["delivered"] == 300 + 2 + 2, status
        assert status["pending"] == 0 and "Reboot" in status["message"]
        assert await history(views, job.run_id, "loss") == [(s, s / 10) for s in range(300)]
        row = await views.run(job.run_id)
        assert row["params"] == {"lr": "1", "depth": "3"} and "a" not in row["tags"]


async def test_a_journal_reaches_no_further_than_the_jobs_token(beside):
    """What a job's own code may have put into its journal and spool, by hand."""
    async with shipping(*beside, "forged") as (views, shipper, job):
        other = (await views.api.post("runs/create", experiment_id="0"))["run"]["info"]["run_id"]
        writer = job.writer()
        writer.metric("mine", 1.0, 0)
        writer.metric("loss", 1.0, 0, run=other)
        writer.call("SetTag", {"run_id": other, "key": "a", "value": "1"})
        writer.call("UpdateRun", {"run_id": other, "status": "FAILED"})
        writer.call("UpdateRun", {"run_id": job.run_id, "status": "FINISHED", "end_time": 5})
        writer.call("SetExperimentTag", {"experiment_id": "../runs/delete", "key": "a", "value": "1"})
        writer.call("FinalizeLoggedModel", {"model_id": "../../runs/delete", "status": "LOGGED_MODEL_READY"})
        writer.call("LogOutputs", {"run_id": job.run_id, "models": [{"model_id": "m-1", "step": float("inf")}]})
        theirs = (await views.api.post("logged-models", experiment_id="0", source_run_id=other))["model"]["info"]
        tag = {"model_id": theirs["model_id"], "tags": [{"key": "a", "value": "1"}]}
        writer.call("SetLoggedModelTags", tag)
        writer.call("LogLoggedModelParamsRequest", {**tag, "params": tag["tags"]})
        writer.close()
        entry = Path(job.folder.spool) / f"{1:020d}-0-1"
        (entry / "data").mkdir(parents=True)
        (entry / "data" / "a.txt").write_text("x")
        write_json(str(entry / "entry.json"), {"kind": "artifact", "run_id": other, "path": "", "file": "data/a.txt"})
        for number, more in enumerate((
            {"model_id": theirs["model_id"]}, {"run_id": job.run_id, "path": "../../" + other + "/artifacts"},
            {"run_id": job.run_id, "path": "%2e%2e/x"}, {"run_id": job.run_id, "file": "/etc/hostname"},
            {"run_id": job.run_id, "file": "data/../../../run.json"}, {"kind": "pickle"},
            {"kind": "call", "api": "Reboot"},
        )):
            shutil.copytree(entry, entry.with_name(f"{2 + number:020d}-0-1"))
            write_json(str(entry.with_name(f"{2 + number:020d}-0-1") / "entry.json"),
                       {"kind": "artifact", "path": "", "file": "data/a.txt", **more})
        job.watch(shipper)
        status = await drained(shipper, job)
        assert (status["delivered"], status["rejected"]) == (1, 8 + 2 + 7), status
        row = await views.run(other)
        assert (row["metrics"], row["status"], "a" in row["tags"]) == ({}, "RUNNING", False)
        assert (await views.run(job.run_id))["status"] == "RUNNING"
        for run in (other, job.run_id):
            assert not (await views.api.get("artifacts/list", run_id=run)).get("files")
        assert not (await views.api.get(f"logged-models/{theirs['model_id']}"))["model"]["info"].get("tags")


async def test_repeats_leave_no_trace(beside):
    async with shipping(*beside, "again") as (views, shipper, job):
        made = (await views.api.post("logged-models", experiment_id="0", name="m"))["model"]["info"]["model_id"]
        dataset = {"name": "d", "digest": "1", "source_type": "s", "source": "x"}
        writer = job.writer()
        for call, body in (
            ("SetTag", {"key": "t", "value": "1"}), ("LogParam", {"key": "p", "value": "1"}),
            ("LogInputs", {"datasets": [{"dataset": dataset, "tags": []}]}),
            ("LogOutputs", {"models": [{"model_id": made, "step": 0}]}),
            ("LogModel", {"model_json": json.dumps({"run_id": job.run_id, "artifact_path": "m", "flavors": {},
                                                    "utc_time_created": "2020-01-01 00:00:00"})}),
            ("UpdateRun", {"run_name": "other"}), ("DeleteTag", {"key": "t"}),
        ):
            writer.call(call, {"run_id": job.run_id, **body})
        for _ in range(3):
            writer.metric("same", 1.0, 0)  # equal, but three times
        writer.close()

        async def seen() -> tuple:
            run = (await views.api.get("runs/get", run_id=job.run_id))["run"]
            tags = {t["key"]: t["value"] for t in run["data"]["tags"]}
            return (await history(views, job.run_id, "same"), run["inputs"], run["outputs"], tags, run["info"])

        job.watch(shipper)
        status = await drained(shipper, job)
        once = await seen()
        assert len(once[0]) == 3 and len(once[2]["model_outputs"]) == 1 and "t" not in once[3], status
        assert status["delivered"] == 10 and not status["rejected"], status
        os.unlink(job.folder.delivery_path)
        shipper.forget(job.name)
        job.watch(shipper)
        assert await drained(shipper, job) == status
        assert await seen() == once


async def test_a_resumed_attempt_and_a_torn_record(beside):
    async with shipping(*beside, "resumed") as (views, shipper, job):
        writer = job.writer(1)
        for step in range(100):
            writer.metric("loss", 1.0, step)
        writer.metric("accuracy", 0.5)
        writer.close()
        job.tear(1)
        job.watch(shipper)
        await _until(lambda: shipper.status(job.name)["delivered"] == 101)
        with pytest.raises(BackendTimeout):  # it may still become whole
            await shipper.flush(job.name, 0.3)
        assert not shipper.status(job.name)["damaged"]
        writer = job.writer(2)
        for step in range(60, 150):
            writer.metric("loss", 2.0, step)
        writer.metric("accuracy", 0.6)
        writer.close()
        status = await drained(shipper, job)
        assert status["duplicates"] == 40 and status["damaged"] > 0 and not status["rejected"], status
        assert await history(views, job.run_id, "loss") == [(s, 1.0 if s < 100 else 2.0) for s in range(150)]
        assert [v for _, v in await history(views, job.run_id, "accuracy")] == [0.5, 0.6]


SHIPPER = """
import asyncio, sys
from pathlib import Path
from jupyter_mlops.tracking import shipper as module
from jupyter_mlops.tracking.child import MlflowChild
from jupyter_mlops.tracking.views import MlflowViews

folder, run_id, mlflow_home, sockets, name = sys.argv[1:]
module.SAVE = 0.05


class Running(MlflowChild):
    async def ready(self, timeout=10.0):
        return True


async def main():
    views = MlflowViews(Running(mlflow_home, sockets))
    shipper = module.Shipper(views.api)
    shipper.know(name, run_id, Path(folder))
    shipper.start()
    while not await shipper.drain(name):
        pass
    await shipper.stop()
    await views.close()

asyncio.run(main())
"""


async def test_killed_in_the_middle_again_and_again(beside, shared_plane):
    rng = random.Random(SEED)
    child, home = beside
    async with shipping(child, home, "killed") as (views, shipper, job):
        await shipper.stop()
        nested = (await views.api.post("runs/create", experiment_id="0", tags=[
            {"key": "mlflow.parentRunId", "value": job.run_id}]))["run"]["info"]["run_id"]
        writer = job.writer()
        for step in range(6000):
            writer.metric("loss", float(step), step)
            if step % 3 == 0:
                writer.metric("inner", float(-step), step, run=nested)
            if step % 1000 == 999:
                writer.call("SetTag", {"run_id": job.run_id, "key": "step", "value": str(step)})
        writer.call("UpdateRun", {"run_id": nested, "status": "FINISHED", "end_time": 5})
        writer.close()
        arguments = [job.folder.path, job.run_id, str(child.home), str(Path(child.socket).parent), job.name]
        assert await asyncio.to_thread(_deliver_and_kill, job, rng, arguments), f"TEST_SEED={SEED}"
        assert job.progress()["delivered"] == 6000 + 2000 + 6 + 1, f"TEST_SEED={SEED}"
        assert await history(views, job.run_id, "loss") == [(s, float(s)) for s in range(6000)], f"TEST_SEED={SEED}"
        assert await history(views, nested, "inner") == [(s, float(-s)) for s in range(0, 6000, 3)]
        assert (await views.run(nested))["status"] == "FINISHED"
        assert (await views.run(job.run_id))["tags"]["step"] == "5999"


def _deliver_and_kill(job: Job, rng: random.Random, arguments: list[str]) -> bool:
    """Have it delivered by processes that are killed; whether the last one ended well, and others before it did not."""
    kills = 0
    while True:
        process = subprocess.Popen(
            [sys.executable, "-c", SHIPPER, *arguments], env={**os.environ, "PYTHONPATH": str(REPO)}
        )
        try:
            before, until = job.progress().get("delivered", 0), time.monotonic() + 60
            while kills < 3 and process.poll() is None and job.progress().get("delivered", 0) == before:
                assert time.monotonic() < until, f"nothing is delivered beyond {before}"
                time.sleep(0.01)
            if kills == 3 or process.poll() is not None:
                return process.wait(60) == 0 and kills > 0
            time.sleep(rng.random() * 0.1)
            kills += 1
        finally:
            process.kill()
            process.wait()


class _Quick(MlflowChild):
    PROBE, FROZEN_IDLE = 0.3, 1.0


async def test_mlflow_is_killed_and_frozen_in_the_middle():
    home, sockets = make_home(), Path(tempfile.mkdtemp(prefix="mlops-run-"))
    child = _Quick(home, sockets)
    try:
        await child.start()
        assert await child.ready(240)
        async with shipping(child, home, "frozen") as (views, shipper, job):
            writer = job.writer()
            for step in range(8000):
                writer.metric("loss", float(step), step)
            writer.close()
            job.watch(shipper)
            for number, at in ((signal.SIGKILL, 1000), (signal.SIGSTOP, 4000)):
                await _until(lambda at=at: shipper.status(job.name)["delivered"] >= at)
                first = child.pid
                os.kill(first, number)
                await _until(lambda first=first: child.pid not in (first, None))
            status = await drained(shipper, job)
            assert status["delivered"] == 8000 and not status["rejected"], status
            assert child.restarts == 2
            assert await history(views, job.run_id, "loss") == [(s, float(s)) for s in range(8000)]
    finally:
        await child.stop()
        for folder in (home, sockets):
            shutil.rmtree(folder, ignore_errors=True)


async def test_the_spool(beside, shared_plane, tmp_path):
    async with shipping(*beside, "spooled") as (views, shipper, job):
        folder, local = job.folder.spool, spool.local_id()
        notes, mlmodel = tmp_path / "notes ü.txt", tmp_path / "MLmodel"
        notes.write_bytes(os.urandom(300_000))
        mlmodel.write_text(f"model_id: {local}\nmodel_uuid: x\n")
        spool.put(folder, 0, {"kind": "artifact", "run_id": job.run_id, "path": "a/b"}, str(notes))
        spool.put(folder, 0, {"kind": "artifact", "run_id": "0" * 32, "path": ""}, str(notes))
        spool.put(folder, 0, {
            "kind": "model", "local_id": local, "experiment_id": "0", "name": "net", "source_run_id": job.run_id,
            "model_type": None, "tags": {"k": "v"}, "params": {"depth": "3"}})
        spool.put(folder, 0, {"kind": "artifact", "model_id": local, "path": ""}, str(mlmodel))
        spool.put(folder, 0, {"kind": "call", "api": "FinalizeLoggedModel", "model_id": local,
                              "body": {"model_id": local, "status": "LOGGED_MODEL_READY"}})
        for _ in range(2):  # the second time as after a crash before the entry was removed
            spool.put(folder, 0, {"kind": "call", "api": "LogLoggedModelParamsRequest", "model_id": local,
                                  "body": {"model_id": local, "params": [{"key": "width", "value": "4"}]}})
        writer = job.writer()
        writer.call("LogOutputs", {"run_id": job.run_id, "models": [{"model_id": local, "step": 0}]})
        writer.call("LogOutputs", {"run_id": job.run_id, "models": [{"model_id": spool.local_id(), "step": 0}]})
        writer.close()
        job.watch(shipper)
        status = await drained(shipper, job)
        assert status["delivered"] == 7 and status["rejected"] == 2 and not status["pending"], status
        real = job.progress()["models"][local]
        model = (await views.api.get(f"logged-models/{real}"))["model"]
        assert model["info"]["status"] == "LOGGED_MODEL_READY" and model["info"]["name"] == "net"
        run = (await views.api.get("runs/get", run_id=job.run_id))["run"]
        assert [m["model_id"] for m in run["outputs"]["model_outputs"]] == [real]
        artifacts = shared_plane.home / "artifacts" / "0"
        assert (artifacts / job.run_id / "artifacts" / "a" / "b" / notes.name).read_bytes() == notes.read_bytes()
        assert f"model_id: {real}\n" in (artifacts / "models" / real / "artifacts" / "MLmodel").read_text()
        assert len(os.listdir(Path(folder) / "refused")) == 1 and not spool.names(folder)


async def _until(what, seconds: float = 40):
    deadline = time.monotonic() + seconds
    for _ in iter(what, True):
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


# -- with a whole control plane

LOGS = """
import os, time
import jupyter_mlops
for step in range(4000):
    jupyter_mlops.log(loss=float(step), step=step)
print("flushed", jupyter_mlops.flush(60), flush=True)
while not os.path.exists("go"):
    time.sleep(0.05)
for step in range(4000, 8000):
    jupyter_mlops.log(loss=float(step), step=step)
"""


def test_a_job_outlives_its_control_plane(plane):
    plane.mlflow_ready()
    plane.put("jobs/writes", {"cell": {"source": LOGS}, "interpreter": sys.executable})
    delivery = plane.home / "jobs" / "writes" / "delivery.json"
    log = plane.home / "jobs" / "writes" / "attempts" / "1" / "rank-0.log"
    wait_for(lambda: log.exists() and "flushed True" in log.read_text(), 60)
    run_id = plane.get("jobs/writes")["status"]["run_id"]
    assert plane.get(f"runs/{run_id}/metrics")["metrics"]["loss"]["total"] == 4000
    job_token = plane.token("job", "writes")
    assert plane.post("jobs/writes/actions/flush", {"timeout": 20}, token=job_token)["name"] == "writes"
    (plane.home / "jobs" / "writes" / "outputs" / "go").touch()
    wait_for(lambda: json.loads(delivery.read_text())["delivered"] > 4000, 30)
    plane.kill()
    plane.start().mlflow_ready()
    job = plane.wait_job("writes")
    assert job["status"]["phase"] == "Completed" and job["status"]["delivery"]["delivered"] == 8000, job["status"]
    loss = plane.get(f"runs/{run_id}/metrics?max_points=2000")["metrics"]["loss"]
    assert loss["total"] == 8000 and loss["steps"][-1] == 7999 and loss["steps"] == sorted(loss["steps"])
    plane.post("jobs/writes/actions/flush", {"timeout": 1})
    assert plane.call("POST", "jobs/none/actions/flush", {})[0] == 404
    assert plane.call("POST", "jobs/writes/actions/flush", {}, token=plane.token("reader"))[0] == 403


KERNEL = """
import json, sys, time, urllib.request
from jupyter_mlops.runtime import locate
session = locate.connect()


def post(path, **body):
    request = urllib.request.Request(session.tracking_uri + "/api/2.0/mlflow/" + path, json.dumps(body).encode(), {
        "Authorization": "Bearer " + session.token, "Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request))


if len(sys.argv) > 1:
    post("runs/update", run_id=sys.argv[1], status="RUNNING")
    print(sys.argv[1], flush=True)
else:
    outer = post("runs/create", experiment_id="0")["run"]["info"]["run_id"]
    inner = post("runs/create", experiment_id="0", tags=[{"key": "mlflow.parentRunId", "value": outer}])
    done = post("runs/create", experiment_id="0")["run"]["info"]["run_id"]
    post("runs/update", run_id=done, status="FINISHED")
    print(outer, inner["run"]["info"]["run_id"], done, flush=True)
time.sleep(300)
"""


def test_runs_of_a_killed_kernel_fail(shared_plane):
    plane = shared_plane
    env = {**os.environ, "PYTHONPATH": str(REPO), "JUPYTER_MLOPS_HOME": str(plane.home)}

    def kernel(*args: str) -> tuple[subprocess.Popen, list[str]]:
        process = subprocess.Popen([sys.executable, "-c", KERNEL, *args], stdout=subprocess.PIPE, text=True, env=env)
        assert process.stdout is not None
        return process, process.stdout.readline().split()

    def status(run: str) -> str:
        return plane.get(f"runs/{run}")["status"]

    processes = []
    try:
        (dead, (outer, inner, done)), (resumed, (other, _, _)), (lives, (kept, _, _)) = (kernel() for _ in range(3))
        takes_over, _ = kernel(other)
        processes += [dead, resumed, lives, takes_over]
        for process in (dead, resumed):
            process.kill()
            process.wait()
        wait_for(lambda: status(outer) == status(inner) == "FAILED", 30)
        row = plane.get(f"runs/{outer}")
        assert row["tags"]["mlops.reason"] == "the kernel that opened it ended" and "mlops.holder" not in row["tags"]
        assert row["end_time"] and [status(r) for r in (done, kept, other)] == ["FINISHED", "RUNNING", "RUNNING"]
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()
    wait_for(lambda: status(kept) == status(other) == "FAILED", 30)


def test_what_a_job_leaves_beneath_its_run_ends_with_it(shared_plane):
    plane = shared_plane
    source = KERNEL.replace("time.sleep(300)", "import os; open('runs', 'w').write(outer + ' ' + done); 1/0")
    plane.put("jobs/leaves", {"cell": {"source": source}, "interpreter": sys.executable})
    job = plane.wait_job("leaves")
    assert job["status"]["phase"] == "Failed"
    outer, done = (plane.home / "jobs" / "leaves" / "outputs" / "runs").read_text().split()
    rows = [plane.get(f"runs/{r}") for r in (outer, done)]
    assert [r["status"] for r in rows] == ["FAILED", "FINISHED"] and "ZeroDivision" in rows[0]["tags"]["mlops.reason"]
    assert plane.get(f"runs/{job['status']['run_id']}")["status"] == "FAILED"
