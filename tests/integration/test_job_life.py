"""Attempts, limits, resume, queue and delivery of jobs, on real control planes."""

from __future__ import annotations

import json
import os
import signal
import sys

import pytest
from conftest import Plane, make_home, processes_of, wait_for

FAILS = "import os, sys\nprint('try', os.environ['JUPYTER_MLOPS_ATTEMPT'])\n"


@pytest.fixture(scope="module")
def life():
    p = Plane(make_home()).start().mlflow_ready()
    yield p
    p.stop()


def cell(source: str, **spec) -> dict:
    return {"cell": {"source": source}, "interpreter": sys.executable, "experiment_name": "life", **spec}


def test_retries_share_one_run_and_keep_what_happened(life):
    source = FAILS + "n = os.environ['JUPYTER_MLOPS_ATTEMPT']\nif n != '2':\n    raise ValueError('bad ' + n)\n"
    life.put("jobs/retried", cell(source, retry_settings={"max_retries": 1}))

    def waits():
        status = life.get("jobs/retried")["status"]
        return status["retry_at"] and status["phase"] == "Queued" and status

    status = wait_for(waits)
    assert status["reason"] == "attempt 1 failed: ended with exit code 1: ValueError: bad 1; attempt 2 in 1 s"
    assert status["traceback"][-1] == "ValueError: bad 1" and status["log_tail"][-1] == "ValueError: bad 1"
    done = life.wait_job("retried")["status"]
    assert (done["phase"], done["attempt"], done["exit_code"], done["traceback"]) == ("Completed", 2, 0, [])
    (first,) = done["attempts"]
    assert (first["attempt"], first["phase"], first["exit_code"], first["failed_rank"]) == (1, "Failed", 1, 0)
    assert done["outcome"]["attempt"] == 2 and done["run_id"] == status["run_id"]
    assert life.get(f"runs/{done['run_id']}")["status"] == "FINISHED"
    assert len([r for r in life.get("runs?experiment=life")["items"] if r["job"] == "retried"]) == 1
    assert life.get("jobs/retried/logs/0?attempt=1")["text"].startswith("try 1\n")
    run = json.loads((life.home / "jobs" / "retried" / "run.json").read_text())
    assert (run["run_id"], run["experiment_name"], run["run_name"]) == (done["run_id"], "life", "retried")
    assert run["start_time"] > 0 and run["artifact_uri"].startswith("mlflow-artifacts:/") and run["user"]


def test_an_error_may_name_a_file_whose_name_is_no_utf8(life):
    """Neither MLflow nor a browser could take it: the run would never end, and no list of jobs be read."""
    life.put("jobs/latin", cell("import os\nraise ValueError(os.fsdecode(b'caf\\xe9'))"))
    status = life.wait_job("latin")["status"]
    assert (status["phase"], status["reason"]) == ("Failed", "ended with exit code 1: ValueError: caf?")
    run = life.get(f"runs/{status['run_id']}")
    assert (run["status"], run["tags"]["mlops.reason"]) == ("FAILED", status["reason"])
    assert "latin" in {job["name"] for job in life.get("jobs")["items"]}


def test_a_job_that_waits_for_its_next_attempt_is_canceled_at_once(life):
    life.put("jobs/given-up", cell("raise SystemExit(3)", retry_settings={"max_retries": 9}))
    wait_for(lambda: life.get("jobs/given-up")["status"]["attempt"] == 2
             and life.get("jobs/given-up")["status"]["phase"] == "Queued")
    life.post("jobs/given-up/actions/stop")
    status = life.wait_job("given-up")["status"]
    assert (status["phase"], status["reason"]) == ("Canceled", "stopped before attempt 3 started")
    assert life.get(f"runs/{status['run_id']}")["status"] == "KILLED"
    assert [a["exit_code"] for a in status["attempts"]] == [3, 3]


def test_time_that_is_over_is_not_tried_again(life):
    spec = cell("import time\ntime.sleep(60)", limits={"timeout": 0.5, "grace": 1}, retry_settings={"max_retries": 3})
    life.put("jobs/slow", spec)
    status = life.wait_job("slow")["status"]
    assert (status["phase"], status["attempt"]) == ("Failed", 1)
    assert status["reason"] == "ran longer than limits.timeout (0.5 s)"
    run = life.get(f"runs/{status['run_id']}")
    assert (run["status"], run["tags"]["mlops.reason"]) == ("FAILED", status["reason"])


def test_resume_goes_on_in_the_same_run(life):
    source = (
        "import os, time, mlflow\nn = os.environ['JUPYTER_MLOPS_ATTEMPT']\n"
        "with mlflow.start_run():\n    mlflow.log_param('lr', 1)\n"
        "    for step in range(3 if n == '1' else 5):\n        mlflow.log_metric('loss', step, step=step)\n"
        "print('logged', flush=True)\nif n == '1':\n    raise SystemExit(4)\n"
    )
    life.put("jobs/resumed", cell(source, limits={"timeout": 60}))
    failed = life.wait_job("resumed")["status"]
    assert (failed["phase"], failed["exit_code"]) == ("Failed", 4), failed
    assert life.get(f"runs/{failed['run_id']}")["status"] == "FAILED"
    answer = life.post("jobs/resumed/actions/resume")
    assert answer["status"]["phase"] == "Queued" and answer["status"]["ended_at"] == ""
    done = life.wait_job("resumed")["status"]
    assert (done["phase"], done["attempt"], done["run_id"]) == ("Completed", 2, failed["run_id"]), done
    assert [a["exit_code"] for a in done["attempts"]] == [4] and done["resumed_after"] == 1
    assert life.get(f"runs/{done['run_id']}")["status"] == "FINISHED"
    history = life.get(f"/mlflow/api/2.0/mlflow/metrics/get-history?run_id={done['run_id']}&metric_key=loss")
    assert sorted((int(m["step"]), m["value"]) for m in history["metrics"]) == [(s, float(s)) for s in range(5)]
    actions = [(a["action"], a["resource"], a["detail"].get("op")) for a in life.get("audit?limit=50")["items"]]
    assert ("jobs/write", "jobs/resumed", "resume") in actions


def test_what_cannot_be_resumed_is_said_in_one_line(life):
    life.put("jobs/fine", {"command": "true"})
    life.put("jobs/bad", {"command": "false"})
    life.wait_job("fine")
    bad = life.wait_job("bad")["status"]

    def refusal(name: str) -> str:
        return life.post(f"jobs/{name}/actions/resume", expect=409)["message"]

    assert refusal("fine") == "job 'fine' has completed"
    life.delete(f"runs/{bad['run_id']}")
    assert refusal("bad") == "the MLflow run of job 'bad' is deleted"
    life.delete("jobs/bad")
    assert refusal("bad") == "job 'bad' is deleted"
    life.put("jobs/going", {"command": "sleep 60"})
    assert refusal("going") == "job 'going' has not ended"
    life.post("jobs/going/actions/stop")
    life.wait_job("going")
    life.post("jobs/no-such/actions/resume", expect=404)


def test_waiting_jobs_say_what_they_wait_for(life):
    wait_for(lambda: not life.get("computes/local")["status"]["running_jobs"])
    cpus = life.get("computes/local")["status"]["slots"]["cpus"]
    life.put("jobs/all", {"command": "sleep 60", "resources": {"cpus": cpus}})
    life.put("jobs/second", {"command": "true"})
    life.put("jobs/third", {"command": "true"})
    life.put("jobs/urgent", {"command": "true", "queue_settings": {"priority": "high"}})
    urgent, second, third = (life.get(f"jobs/{name}")["status"] for name in ("urgent", "second", "third"))
    assert urgent["queue"] == {"place": 1, "length": 3, "reason": f"waits for 1 of {cpus:g} CPUs: in use by all"}
    assert urgent["reason"] == urgent["queue"]["reason"]
    assert second["queue"]["reason"] == "waits for its turn behind 1 job"
    assert third["queue"]["reason"] == "waits for its turn behind 2 jobs"
    listed = {j["name"]: j["status"]["queue"] for j in life.get("jobs?phase=Queued")["items"]}
    assert listed["third"]["place"] == 3
    compute = life.get("computes/local")["status"]
    assert (compute["running_jobs"], compute["queued_jobs"], compute["used"]["cpus"]) == (1, 3, cpus)
    life.post("jobs/second/actions/stop")
    canceled = life.wait_job("second")["status"]
    assert (canceled["phase"], canceled["reason"]) == ("Canceled", "stopped before it started")
    life.post("jobs/all/actions/stop")
    assert [life.wait_job(name)["status"]["phase"] for name in ("urgent", "third")] == ["Completed"] * 2
    for spec, message in (
        ({"resources": {"gpus": 4}}, "needs 4 GPUs"), ({"resources": {"cpus": 4000}}, "needs 4000 CPUs"),
        ({"resources": {"memory": "900T"}}, "needs 900.0 TB of memory"),
    ):
        assert message in life.put("jobs/too-large", {"command": "true", **spec}, expect=422)["message"]
    assert life.call("GET", "jobs/too-large")[0] == 404


def test_a_job_ends_only_when_what_it_logged_is_delivered(life):
    """MLflow is frozen while the job ends: it waits, without slots; then its run has all, and both have ended."""
    child = life.get("/api/v1/workspaces/default")["mlflow"]["pid"]
    source = ("import time, mlflow\nwith mlflow.start_run():\n    mlflow.log_metric('x', 1)\n"
              "    print('up', flush=True)\n"
              "    while not __import__('os').path.exists('go'):\n        time.sleep(0.05)\n"
              "    for step in range(1, 200):\n        mlflow.log_metric('x', step, step=step)\n")
    life.put("jobs/held", cell(source))
    wait_for(lambda: "up" in life.get("jobs/held/logs/0")["text"], 40)
    os.kill(child, signal.SIGSTOP)
    try:
        (life.home / "jobs" / "held" / "outputs" / "go").touch()
        status = life.wait_job("held", 40, ("Finalizing",))["status"]
        assert status["reason"].startswith("completed; ") and "MLflow" in status["reason"]
        assert status["outcome"]["phase"] == "Completed" and status["ended_at"] == ""
        assert life.get("computes/local")["status"]["running_jobs"] == 0
    finally:
        os.kill(child, signal.SIGCONT)
    status = life.wait_job("held", 60)["status"]
    assert (status["phase"], status["reason"]) == ("Completed", "")
    assert life.get(f"runs/{status['run_id']}")["status"] == "FINISHED"
    history = life.get(f"/mlflow/api/2.0/mlflow/metrics/get-history?run_id={status['run_id']}&metric_key=x")
    assert sorted(int(m["step"]) for m in history["metrics"]) == list(range(200))


def test_a_full_queue_survives_its_control_plane():
    """Killed with -9 in the middle of many short jobs: each runs once, in order, and none is forgotten."""
    count = 24
    p = Plane(make_home())
    try:
        p.start().mlflow_ready()
        ran = p.home / "ran"
        for index in range(count):
            p.put(f"jobs/j-{index:03d}", {"command": f"echo {index} >> {ran}"})
        for part in (4, 12):
            wait_for(lambda part=part: ran.exists() and len(ran.read_text().split()) >= part, 60)
            p.kill()
            p.start()
        p.wait_job(f"j-{count - 1:03d}", 90)
        wait_for(lambda: not p.get("/api/v1/workspaces/default")["counts"]["running_jobs"], 30)
        jobs = p.get(f"jobs?limit={count}")["items"]
        assert {j["status"]["phase"] for j in jobs} == {"Completed"}
        order = [int(n) for n in ran.read_text().split()]
        assert sorted(order) == list(range(count)), "each once"
        slots = int(p.get("computes/local")["status"]["slots"]["cpus"])
        assert all(abs(index - place) < slots for place, index in enumerate(order)), order
        runs = p.get("runs?limit=200")["items"]
        assert len(runs) == count and {r["status"] for r in runs} == {"FINISHED"}
        wait_for(lambda: not [pid for pid in processes_of(p.home) if b"runtime.launch" in _cmdline(pid)], 10)
    finally:
        p.stop()


def _cmdline(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            return f.read()
    except OSError:
        return b""
