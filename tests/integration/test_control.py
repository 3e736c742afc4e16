"""The control plane as a process: lock, adoption, tokens, ports, feed, idle exit, REST."""

from __future__ import annotations

import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import REPO, Plane, end_all, make_home, processes_of, wait_for

from jupyter_mlops.control import routes
from jupyter_mlops.control.operations import API, TABLE
from jupyter_mlops.core.resources import JobSpec, JobStatus, utcnow
from jupyter_mlops.runtime import locate

assert routes


# -- one per workspace ----------------------------------------------------------------------------------------------


def test_second_process_finds_the_workspace_taken(plane):
    code = subprocess.run(
        [sys.executable, "-m", "jupyter_mlops.control", "--home", str(plane.home)], timeout=30,
        env={**os.environ, "PYTHONPATH": str(REPO)}, capture_output=True,
    ).returncode
    assert code == 3
    assert locate.info(plane.place)["pid"] == plane.process.pid


def test_many_starters_at_once_share_one():
    home = make_home()
    place = locate.Place(str(home), "default")
    answers: list[dict] = []
    try:
        threads = [threading.Thread(target=lambda: answers.append(locate.ensure(place, True))) for _ in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(60)
        assert len(answers) == 4 and len({a["pid"] for a in answers}) == 1
        assert locate.ask(place, "POST", "/local/shutdown", {})[0] == 200
        wait_for(lambda: not processes_of(home), 20)
    finally:
        end_all(home)


def test_killed_one_is_replaced_on_the_same_port_and_tokens_live_on(plane):
    plane.mlflow_ready()
    token, url, first = plane.token(), plane.url, plane.process.pid
    old_mlflow = plane.get("/api/v1/workspaces/default")["mlflow"]["pid"]
    plane.put("computes/lab", {"type": "local"})
    plane.kill()
    plane.start()
    assert plane.process.pid != first and plane.url == url
    assert plane.get("computes/lab", token=token)["name"] == "lab"
    plane.mlflow_ready()
    # The MLflow child of the killed one is gone, not doubled.
    assert not locate.start_time(old_mlflow) or plane.get("/api/v1/workspaces/default")["mlflow"]["pid"] == old_mlflow


def test_port_taken_by_another_program_is_left_to_it(plane):
    port = plane.get("/api/v1/workspaces/default")["url"].split(":")[2].split("/")[0]
    plane.kill()
    wait_for(lambda: not [p for p in processes_of(plane.home) if b"control" in _cmdline(p)], 10)
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("127.0.0.1", int(port)))
        s.listen()
        plane.start()
        assert f":{port}/" not in plane.url
        assert plane.get("computes")["items"]
        # Both names are known as ours: the kernel that still holds the old one follows.
        assert locate.is_ours(plane.url + "/mlflow", plane.place)
        assert not locate.is_ours(f"http://127.0.0.1:{port}/jupyter-mlops/mlflow", plane.place)
        os.environ["JUPYTER_MLOPS_URL"] = f"http://127.0.0.1:{port}/jupyter-mlops"
        try:
            assert locate.is_ours(f"http://127.0.0.1:{port}/jupyter-mlops/mlflow", plane.place)
            assert locate.connect(plane.place, fresh=True).url == plane.url
        finally:
            del os.environ["JUPYTER_MLOPS_URL"]
            locate.forget()


def _cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_silent_holder_is_named_and_not_doubled(plane, monkeypatch):
    monkeypatch.setattr(locate, "SILENT_AFTER", 1.0)
    os.kill(plane.process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(locate.LocateError, match=str(plane.process.pid)) as e:
            locate.ensure(plane.place, True, timeout=12)
        assert "--force" in e.value.hint
    finally:
        os.kill(plane.process.pid, signal.SIGCONT)


def test_ends_when_idle():
    p = Plane(make_home(), idle=1.0).start()
    try:
        assert p.process.wait(30) == 0
        assert not (p.home / "control.json").exists()
        wait_for(lambda: not processes_of(p.home), 10)
    finally:
        p.stop()


def test_stays_while_a_token_holder_lives():
    p = Plane(make_home(), idle=1.0)
    holder = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        p.start()
        assert locate.ask(p.place, "POST", "/local/token", {"pid": holder.pid})[0] == 201
        time.sleep(4)
        assert p.process.poll() is None
        holder.kill()
        holder.wait()
        assert p.process.wait(30) == 0
    finally:
        holder.kill()
        p.stop()


def test_calls_keep_it_up_when_their_holder_cannot_be_seen():
    p = Plane(make_home(), idle=1.5)
    try:
        p.start()
        _, body = locate.ask(p.place, "POST", "/local/token", {"pid": None})
        for _ in range(10):
            assert p.call("GET", "/api/v1/whoami", token=body["token"])[0] == 200
            time.sleep(0.3)
        assert p.process.wait(30) == 0, "and then it ends"
    finally:
        p.stop()


def test_folders_and_sockets_are_private(shared_plane):
    assert shared_plane.home.stat().st_mode & 0o777 == 0o700
    runtime = Path(shared_plane.place.runtime_dir)
    assert runtime.stat().st_mode & 0o777 == 0o700
    for path in runtime.glob("*.sock"):
        assert path.stat().st_mode & 0o077 == 0, path
    for name in ("store.db", "mlflow.db", "control.json", "control.lock"):
        assert (shared_plane.home / name).stat().st_mode & 0o077 == 0, name


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user")
def test_another_local_user_is_kept_out(shared_plane):
    script = (
        "import http.client, os, socket, sys; os.setgid(65534); os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        "try:\n    s.connect(sys.argv[1]); print('socket open')\n"
        "except PermissionError: print('socket closed')\n"
        "c = http.client.HTTPConnection('127.0.0.1', int(sys.argv[2])); c.request('GET', sys.argv[3])\n"
        "r = c.getresponse(); r.read(); print(r.status)\n"
        "c.request('GET', '/local/info'); r = c.getresponse(); r.read(); print(r.status)\n"
        "c.request('POST', '/local/token', '{}'); r = c.getresponse(); print(r.status)\n"
    )
    info = locate.info(shared_plane.place)
    out = subprocess.run(
        ["/usr/bin/python3", "-c", script, os.path.join(shared_plane.place.runtime_dir, "control.sock"),
         str(info["port"]), API + "/workspaces/default"], capture_output=True, text=True, timeout=30, cwd="/",
    )
    assert out.stdout.split("\n")[:4] == ["socket closed", "401", "403", "403"], (out.stdout, out.stderr)


# -- tokens -----------------------------------------------------------------------------------------------------------


def test_token_ends_with_its_holder(shared_plane):
    holder = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    _, body = locate.ask(shared_plane.place, "POST", "/local/token", {"pid": holder.pid})
    assert shared_plane.call("GET", "jobs", token=body["token"])[0] == 200
    holder.kill()
    holder.wait()
    wait_for(lambda: shared_plane.call("GET", "jobs", token=body["token"])[0] == 401, 5)


@pytest.mark.parametrize("token", ["wrong", "mlops_", "\N{LATIN SMALL LETTER E WITH ACUTE}".encode().decode("latin-1")])
def test_bad_tokens(shared_plane, token):
    status, body, headers = shared_plane.call("GET", "jobs", token=token)
    assert (status, body["code"], headers["WWW-Authenticate"]) == (401, "unauthenticated", "Bearer")


def test_tokens_are_hashed_at_rest(shared_plane):
    token = shared_plane.token().encode()
    for path in shared_plane.home.rglob("*"):
        if path.is_file():
            assert token not in path.read_bytes(), path


def test_foreign_host_names_are_refused(shared_plane):
    status, body, _ = shared_plane.call("GET", "jobs", headers={"Host": "evil.example"})
    assert (status, body["code"]) == (403, "forbidden")


@pytest.mark.parametrize(("version", "status"), [("0.1.7", 200), ("0.2.0", 426), ("1.0.0", 426), ("junk", 426)])
def test_version_mismatch(shared_plane, version, status):
    got, body, _ = shared_plane.call("GET", "jobs", headers={locate.VERSION_HEADER: version})
    assert got == status
    if status == 426:
        assert "same jupyter-mlops" in body["hint"]


# -- every route ------------------------------------------------------------------------------------------------------

FILL = {"ws": "default", "name": "nothing", "deployment": "nothing", "rank": "0", "run_id": "0" * 32,
        "model": "nothing", "version": "1", "alias": "champion", "sha256": "0" * 64}


def filled(path: str) -> str:
    path = re.sub(r"{(\w+)}", lambda m: FILL[m.group(1)], path)
    return API[len("/jupyter-mlops"):] + path + ("?q=x" if path.endswith("/search") else "")


# What a job may do beside reading: registering what it trained.
JOB_WRITES = {"register_model", "put_alias"}
JOB_READS = {"workspaces/read", "experiments/read", "runs/read", "models/read", "computes/read"}


@pytest.fixture(scope="module")
def job_token(shared_plane):
    """The token of a job that has ended; its holder is this process."""
    shared_plane.put("jobs/holder", {"command": "true"})
    shared_plane.wait_job("holder", 30)
    return shared_plane.token("owner", "holder")


@pytest.mark.parametrize("op", TABLE, ids=lambda op: f"{op.method} {op.path}")
def test_every_route_asks_for_a_token_and_the_policy(shared_plane, job_token, op):
    def status(token: str) -> int:
        body = {} if op.method != "GET" else None
        return shared_plane.call(op.method, filled(op.path), body, token=token)[0]

    assert status("") == 401
    if op.action.endswith("/read") and op.action not in ("audit/read", "endpoints/data/read"):
        assert status(shared_plane.token("reader")) in (200, 404)
    else:
        assert status(shared_plane.token("reader")) == 403
    if op.function.__name__ in {*JOB_WRITES, "list_jobs"} or op.action in JOB_READS:
        assert status(job_token) in (200, 204, 400, 404)
    else:
        assert status(job_token) == 403  # other jobs among them: the one that is named here is not its own


def test_a_job_sees_itself_only(shared_plane, job_token):
    shared_plane.put("jobs/other", {"command": "true"})
    shared_plane.wait_job("other", 30)
    assert shared_plane.get("jobs/holder", token=job_token)["name"] == "holder"
    assert shared_plane.get("jobs/holder/logs/0", token=job_token)["complete"]
    shared_plane.get("jobs/other", 403, token=job_token)
    shared_plane.get("jobs/other/logs/0", 403, token=job_token)
    assert [j["name"] for j in shared_plane.get("jobs", token=job_token)["items"]] == ["holder"]
    seen = shared_plane.get("changes?since=0", token=job_token)["items"]
    assert {c["name"] for c in seen if c["kind"] == "job"} == {"holder"}


def test_other_verbs_and_routes(shared_plane):
    status, body, headers = shared_plane.call("DELETE", "jobs")
    assert (status, body["code"], headers["Allow"]) == (405, "method_not_allowed", "GET")
    assert shared_plane.call("GET", "/api/contents")[0] == 404, "Jupyter's own routes are not served here"
    assert shared_plane.call("GET", "/api/kernels", token="")[0] == 401


def test_openapi_names_every_route(shared_plane):
    document = shared_plane.get("/api/v1/openapi.json")
    declared = {(m.upper(), p) for p, item in document["paths"].items() for m in item}
    assert declared == {(op.method, API + op.path) for op in TABLE}
    from jupyter_mlops.control import inside
    from jupyter_mlops.control.app import make_app

    class Nobody:
        pass

    patterns = [
        rule.matcher.regex.pattern for rule in make_app(Nobody()).wildcard_router.rules  # type: ignore[arg-type]
    ]
    # A WebSocket is no operation of OpenAPI: docs/clusters.md describes it.
    served = {p for p in patterns if "/api/v1/" in p.replace("\\", "")} - {inside.ROUTE, inside.ROUTE + "$"}
    assert len(served) == len({op.path for op in TABLE}), "a REST route that is in no operation"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "word"),
    [
        ("PUT", "jobs/Bad..Name", {"command": "ls"}, 400, "not valid"),
        ("PUT", "jobs/..%2f..%2fetc", {"command": "ls"}, 400, "not valid"),
        ("PUT", "jobs/a", b"{", 400, "JSON"),
        ("PUT", "jobs/a", b"[1]", 400, "object"),
        ("PUT", "jobs/a", b"[" * 100_000, 400, "JSON"),
        ("PUT", "jobs/a", {"script": "/no/such/file.py"}, 422, "no/such"),
        ("PUT", "jobs/a", {"command": "ls", "compute": "moon"}, 422, "moon"),
        ("PUT", "jobs/a", {"command": "ls", "typo": 1}, 400, "typo"),
        ("GET", "jobs?limit=0", None, 400, "limit"),
        ("GET", "jobs?limit=1&limit=2", None, 400, "twice"),
        ("GET", "jobs?page_token=x", None, 400, "page_token"),
        ("GET", "jobs?phase=Sleeping", None, 400, "phase"),
        ("GET", "jobs/missing", None, 404, "missing"),
        ("DELETE", "computes/local", None, 409, "local"),
        ("GET", "changes?since=999999999", None, 410, "999999999"),
    ],
)
def test_bad_input_gets_one_clear_line(shared_plane, method, path, body, status, word):
    got, answer, _ = shared_plane.call(method, path, body)
    assert got == status, answer
    assert word in answer["message"] and "\n" not in answer["message"]
    assert not [j["name"] for j in shared_plane.get("jobs")["items"] if j["name"] == "a"], "nothing half made"


def test_feed_wakes_a_waiter_and_orders(shared_plane):
    wait_for(lambda: not shared_plane.get("jobs?phase=Running")["items"])  # nothing else changes meanwhile
    seq = shared_plane.get("changes")["seq"]
    got: list[dict] = []
    t = threading.Thread(target=lambda: got.append(shared_plane.get(f"changes?since={seq}&wait=20")))
    t.start()
    time.sleep(0.3)
    shared_plane.put("computes/feed", {"type": "local"})
    t.join(10)
    assert ("compute", "feed", "put") in [(c["kind"], c["name"], c["op"]) for c in got[0]["items"]]
    shared_plane.delete("computes/feed")
    rows = shared_plane.get(f"changes?since={got[0]['seq']}")["items"]
    assert rows[-1]["op"] == "delete"
    audit = shared_plane.get("audit?limit=5")["items"]
    assert ("computes/delete", "computes/feed") in [(a["action"], a["resource"]) for a in audit]


def test_etags(shared_plane):
    created = shared_plane.put("computes/tagged", {"type": "local"}, 201, headers={"If-None-Match": "*"})
    shared_plane.put("computes/tagged", {"type": "local"}, 412, headers={"If-None-Match": "*"})
    spec = {"type": "local", "description": "changed"}
    shared_plane.put("computes/tagged", spec, 412, headers={"If-Match": '"999"'})
    shared_plane.put("computes/tagged", spec, 412, headers={"If-Match": "nonsense"})
    current = shared_plane.get("computes/tagged")
    updated = shared_plane.put("computes/tagged", spec, 200, headers={"If-Match": f'"{current["revision"]}"'})
    assert (created["generation"], updated["generation"]) == (1, 2)
    shared_plane.delete("computes/tagged")


def test_doctor_lists_what_is_ours(shared_plane):
    report = shared_plane.get("doctor")
    assert {"control plane", "MLflow"} <= {p["what"] for p in report["processes"]}
    assert all(c["ok"] for c in report["checks"]), report["checks"]
    assert any(f["path"] == str(shared_plane.home) and f["bytes"] > 0 for f in report["folders"])


def test_a_run_made_just_before_a_crash_is_ended_with_its_job(plane):
    """The control plane dies between making a job's run and noting it; then the job is stopped."""
    spec = JobSpec(command="touch ran", experiment_name="crash").model_dump_json()
    status = JobStatus(phase="Queued", queued_at=utcnow(), stop_requested=True).model_dump_json()
    plane.mlflow_ready()
    experiment = plane.post("/mlflow/api/2.0/mlflow/experiments/create", {"name": "crash"})["experiment_id"]
    run = plane.post("/mlflow/api/2.0/mlflow/runs/create", {
        "experiment_id": experiment, "tags": [{"key": "mlops.job", "value": "early"}],
    })["run"]["info"]["run_id"]
    plane.kill()
    with sqlite3.connect(plane.home / "store.db") as c:
        c.execute(
            "INSERT INTO resource (kind, name, revision, generation, created_by, created_at, updated_at, phase, spec,"
            " status) VALUES ('job', 'early', 1, 1, 'me', ?, ?, 'Queued', ?, ?)", (utcnow(), utcnow(), spec, status),
        )
    plane.start()
    job = plane.wait_job("early", 60)
    assert (job["status"]["phase"], job["status"]["run_id"]) == ("Canceled", run)
    assert plane.get(f"runs/{run}")["status"] == "KILLED"
