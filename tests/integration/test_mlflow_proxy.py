"""MLflow through the real control plane: what passes, what is refused, what is answered once, what a job may."""

from __future__ import annotations

import http.client
import json
import os
import signal
import sqlite3
import sys
import threading
import uuid
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from jupyter_mlops.runtime import locate
from tests.conftest import wait_for

API = "/mlflow/api/2.0/mlflow/"
ARTIFACTS = "/mlflow/api/2.0/mlflow-artifacts/artifacts"


def raw(plane, method, path, body=b"", headers=(), token=None):
    """(status, headers, body) of a request that no client library has tidied up."""
    url = urlsplit(plane.url)
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=60)
    try:
        connection.putrequest(method, url.path + path, skip_accept_encoding=True)
        connection.putheader("Authorization", f"Bearer {plane.token() if token is None else token}")
        connection.putheader("Content-Length", str(len(body)))
        for name, value in headers:
            connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def new_run(plane, experiment="0", **options):
    return plane.post(API + "runs/create", {"experiment_id": experiment}, **options)["run"]["info"]["run_id"]


@pytest.fixture(scope="module")
def run_id(shared_plane):
    return new_run(shared_plane)


def test_the_web_interface_comes_through(shared_plane):
    status, headers, body = raw(shared_plane, "GET", "/mlflow/")
    assert status == 200 and b"static-files" in body and "sandbox" not in headers.get("Content-Security-Policy", "")
    script = body.decode().split('src="', 1)[1].split('"', 1)[0].removeprefix("./")
    status, headers, _ = raw(shared_plane, "GET", "/mlflow/" + script)
    assert status == 200 and "max-age" in headers["Cache-Control"]
    status, headers, _ = raw(shared_plane, "GET", "/mlflow")
    assert status == 302 and headers["Location"] == "mlflow/"
    assert raw(shared_plane, "GET", "/mlflow/version")[2] == b"3.17.2"
    assert shared_plane.get("/mlflow/ajax-api/3.0/mlflow/server-info")


def test_nothing_else_comes_through(shared_plane):
    for method, path in (
        ("GET", "/mlflow/ajax-api/3.0/mlflow/assistant/config"), ("POST", "/mlflow/api/2.0/mlflow/webhooks"),
        ("POST", "/mlflow/ajax-api/3.0/mlflow/jobs"), ("GET", "/mlflow/ajax-api/3.0/mlflow/gateway/secrets/list"),
        ("POST", "/mlflow/graphqlx"), ("TRACE", "/mlflow/health"),
    ):
        status, body, _ = shared_plane.call(method, path, {} if method == "POST" else None)
        assert status in (403, 405), (method, path, status)
        if status == 403:
            assert body["code"] == "forbidden" and body["error_code"] == "PERMISSION_DENIED"
    for path in ("/mlflow/static-files/../graphql", "/mlflow/static-files/%2e%2e/x", "/mlflow//health",
                 "/mlflow/static-files/%252e%252e/x", "/mlflow/static-files/a%00"):
        assert raw(shared_plane, "GET", path)[0] == 400, path
    assert raw(shared_plane, "GET", "/mlflow/health", token="wrong")[0] == 401
    status, headers, _ = raw(shared_plane, "GET", "/mlflow/", token="")
    assert status == 401 and headers["WWW-Authenticate"] == "Bearer"


def test_mlflow_sees_neither_token_nor_origin(shared_plane):
    # MLflow itself would refuse a foreign host or origin; browsers are checked before us, by the Jupyter extension.
    headers = [("Origin", "http://hub.example"), ("Cookie", "a=b"), ("Content-Type", "application/json"),
               ("X-Forwarded-Host", "hub.example")]
    status, got, _ = raw(shared_plane, "POST", API + "experiments/search", b'{"max_results": 1}', headers)
    assert status == 200
    assert not [name for name in got if name.lower().startswith("access-control") or name.lower() == "set-cookie"]


def test_graphql(shared_plane, run_id):
    query = "query A($id: String) { mlflowGetRun(input: {runId: $id}) { run { info { runId } } } }"
    answer = shared_plane.post("/mlflow/graphql", {"query": query, "variables": {"id": run_id}})
    assert answer["data"]["mlflowGetRun"]["run"]["info"]["runId"] == run_id
    shared_plane.post("/mlflow/graphql", {"query": "mutation { testMutation(inputString: \"x\") { output } }"}, 403)
    shared_plane.post("/mlflow/graphql", {"query": 5}, 400)


@pytest.mark.parametrize(("path", "body"), [
    ("experiments/create", {"name": "evil", "artifact_location": "file:///etc"}),
    ("experiments/create", {"name": "evil", "artifactLocation": "file:///etc"}),
    ("experiments/create", json.dumps({"name": "evil", "artifact_location": "/etc"})),  # encoded twice
    ("model-versions/create", {"name": "evil", "source": "file:///etc"}),
    ("model-versions/create", {"name": "evil", "source": "http://127.0.0.1:1/api/2.0/mlflow-artifacts/artifacts/x"}),
    ("traces", {"experiment_id": "0", "tags": [{"key": "mlflow.artifactLocation", "value": "file:///etc"}]}),
])
def test_places_outside_are_refused(shared_plane, path, body):
    answer = shared_plane.post(API + path, body, 403)
    assert "not allowed" in answer["message"]
    assert shared_plane.call("GET", API + "experiments/get-by-name?experiment_name=evil")[0] == 404


def test_artifacts_are_attachments_in_a_sandbox(shared_plane, run_id):
    page = b"<script>fetch('/api/contents')</script>"
    folder = f"{ARTIFACTS}/0/{run_id}/artifacts"
    for name in ("page.html", "image.svg", "a b & 'c' \"d\" <e> ü 100%.html", "plain"):
        status, _, body = raw(shared_plane, "PUT", f"{folder}/{quote(name)}", page)
        assert status == 200, body
        places = [
            f"{folder}/{quote(name)}",
            f"/mlflow/get-artifact?run_uuid={run_id}&path={quote(name)}",
        ]
        for place in places:
            status, headers, body = raw(shared_plane, "GET", place)
            assert (status, body) == (200, page), (place, status, body)
            assert headers["Content-Disposition"].startswith("attachment")
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Content-Security-Policy"] == "sandbox; default-src 'none'"
    assert raw(shared_plane, "GET", f"{folder}/page.html", headers=[("Range", "bytes=1-6")])[2] == b"script"
    listed = shared_plane.get(f"{API}artifacts/list?run_id={run_id}")["files"]
    assert len(listed) == 4


def test_malicious_artifact_names(shared_plane, run_id):
    folder = f"{ARTIFACTS}/0/{run_id}/artifacts"
    outside = shared_plane.home / "outside.txt"
    for name in ("../../../outside.txt", "..%2f..%2f..%2foutside.txt", "%2e%2e/%2e%2e/%2e%2e/outside.txt",
                 "%252e%252e/outside.txt", "a%00b", "a%0d%0ab", "..%5coutside.txt", "//etc/x"):
        assert raw(shared_plane, "PUT", f"{folder}/{name}", b"x")[0] in (400, 403), name
    for query in ("../../../../store.db", "..%2f..%2fstore.db", "%252e%252e/store.db", "/etc/passwd", "a%00b"):
        for path in (f"/mlflow/get-artifact?run_uuid={run_id}&path={query}",
                     f"{API}artifacts/list?run_id={run_id}&path={query}"):
            assert raw(shared_plane, "GET", path)[0] == 400, path
    assert raw(shared_plane, "PUT", f"{ARTIFACTS}/0/evil.txt", b"x")[0] == 403
    assert raw(shared_plane, "DELETE", f"{ARTIFACTS}/0")[0] == 403
    assert not outside.exists()


def test_bad_bodies(shared_plane):
    for body in (b"{", b"[]", b"\xff"):
        assert raw(shared_plane, "POST", API + "runs/create", body)[0] == 400
    assert raw(shared_plane, "POST", API + "runs/create", b"x" * 20_000_000)[0] == 413
    zipped = [("Content-Encoding", "gzip"), ("Content-Type", "application/json")]
    assert raw(shared_plane, "POST", API + "runs/create", b"\x1f\x8b", zipped)[0] == 400


def test_a_reader_may_look_only(shared_plane, run_id):
    token = shared_plane.token("reader")
    shared_plane.post(API + "runs/search", {"experiment_ids": ["0"]}, token=token)
    shared_plane.get(f"{API}runs/get?run_id={run_id}", token=token)
    for path, body in (("runs/create", {"experiment_id": "0"}), ("runs/log-metric", {"run_id": run_id}),
                       ("registered-models/create", {"name": "x"}), ("runs/delete", {"run_id": run_id})):
        shared_plane.post(API + path, body, 403, token=token)
    assert raw(shared_plane, "PUT", f"{ARTIFACTS}/0/{run_id}/artifacts/x", b"x", token=token)[0] == 403


def ask_id():
    return {"X-Mlops-Request-Id": uuid.uuid4().hex}


def test_a_repeat_is_answered_once(shared_plane):
    again = ask_id()
    body = {"experiment_id": "0", "run_name": "once"}
    first = shared_plane.post(API + "runs/create", body, headers=again)
    assert shared_plane.post(API + "runs/create", body, headers=again) == first
    found = shared_plane.post(API + "runs/search", {"experiment_ids": ["0"], "filter": "run_name = 'once'"})
    assert len(found["runs"]) == 1
    run = first["run"]["info"]["run_id"]
    for path, method, body in (
        ("experiments/create", "POST", {"name": "once"}),
        ("registered-models/create", "POST", {"name": "once"}),
        ("model-versions/create", "POST", {"name": "once", "source": f"runs:/{run}/m", "run_id": run}),
        ("logged-models", "POST", {"experiment_id": "0", "name": "once", "source_run_id": run}),
        ("model-versions/delete", "DELETE", {"name": "once", "version": "1"}),
        ("registered-models/delete", "DELETE", {"name": "once"}),
        ("runs/delete", "POST", {"run_id": run}), ("runs/restore", "POST", {"run_id": run}),
    ):
        again = ask_id()
        answers = [shared_plane.call(method, API + path, body, headers=again)[:2] for _ in range(3)]
        assert answers[0][0] == 200 and answers.count(answers[0]) == 3, (path, answers)
    # A failure is an answer too; and an id belongs to one kind of change.
    again = ask_id()
    for _ in range(2):
        assert shared_plane.post(API + "experiments/create", {"name": "once"}, 400, headers=again)
    shared_plane.post(API + "runs/create", {"experiment_id": "0"}, 409, headers=again)
    shared_plane.post(API + "runs/create", {"experiment_id": "0"}, 400, headers={"X-Mlops-Request-Id": "a b"})


def test_repeats_at_once_are_answered_once(shared_plane):
    again, answers = ask_id(), []

    def create():
        body = {"experiment_id": "0", "run_name": "rush"}
        answers.append(shared_plane.post(API + "runs/create", body, headers=again))

    threads = [threading.Thread(target=create) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 6 and len({a["run"]["info"]["run_id"] for a in answers}) == 1
    found = shared_plane.post(API + "runs/search", {"experiment_ids": ["0"], "filter": "run_name = 'rush'"})
    assert len(found["runs"]) == 1


def test_changes_are_audited(shared_plane, run_id):
    before = shared_plane.get("audit?limit=1")["items"][0]["id"]
    run = new_run(shared_plane)
    shared_plane.post(API + "runs/log-metric", {"run_id": run, "key": "a", "value": 1, "timestamp": 1})
    shared_plane.post(API + "runs/delete", {"run_id": run})
    shared_plane.post(API + "registered-models/create", {"name": "audited"})
    shared_plane.post(API + "registered-models/create", {"name": "audited"}, 400)
    rows = [r for r in shared_plane.get("audit?limit=20")["items"] if r["id"] > before]
    assert [(r["action"], r["resource"], r["outcome"]) for r in reversed(rows)] == [
        ("runs/write", "experiments/0/runs", "done"), ("runs/delete", f"runs/{run}", "done"),
        ("models/write", "models/audited", "done"), ("models/write", "models/audited", "failed"),
    ]


def test_writes_appear_in_the_change_feed(shared_plane, run_id):
    seq = shared_plane.get("changes")["seq"]
    shared_plane.post(API + "runs/set-tag", {"run_id": run_id, "key": "a", "value": "b"})
    shared_plane.post(API + "registered-models/create", {"name": "fed"})
    kinds = set()
    while not {"run", "model"} <= kinds:
        page = shared_plane.get(f"changes?since={seq}&wait=5")
        assert page["items"]
        seq, kinds = page["seq"], kinds | {i["kind"] for i in page["items"]}


def rss(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))


def test_a_large_artifact_takes_no_memory(shared_plane, run_id):
    size, block = 300 * 1024 * 1024, os.urandom(1 << 20)
    url, pid = urlsplit(shared_plane.url), shared_plane.process.pid
    path = f"{url.path}{ARTIFACTS}/0/{run_id}/artifacts/large.bin"
    headers = {"Authorization": f"Bearer {shared_plane.token()}"}
    before = peak = rss(pid)
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=60)
    try:
        connection.request(
            "PUT", path, (block for _ in range(300)), {**headers, "Content-Length": str(size)}, encode_chunked=False
        )
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b"")
        peak = max(peak, rss(pid))
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        assert int(response.headers["Content-Length"]) == size
        for _ in range(300):
            assert response.read(1 << 20) == block
            peak = max(peak, rss(pid))
    finally:
        connection.close()
    assert peak - before < 50 * 1024 * 1024
    assert raw(shared_plane, "DELETE", f"{ARTIFACTS}/0/{run_id}/artifacts/large.bin")[0] in (200, 204)


@pytest.fixture(scope="module")
def job(shared_plane):
    """(name, run id) of a job that runs until the end of the module."""
    spec = {"command": "sleep 300", "experiment_name": "jobs", "interpreter": sys.executable, "limits": {"grace": 0}}
    shared_plane.put("jobs/scoped", spec)

    def running():
        found = shared_plane.get("jobs/scoped")
        return found["status"]["run_id"] if found["status"]["phase"] == "Running" else None

    yield "scoped", wait_for(running, 30)
    shared_plane.post("jobs/scoped/actions/stop")


def test_a_job_writes_to_its_own_runs_only(shared_plane, job, run_id):
    name, own = job
    token = shared_plane.token("job", name)

    def post(path, body, expect=200, method="POST"):
        status, answer, _ = shared_plane.call(method, API + path, body, token=token)
        assert status == expect, (path, answer)
        return answer

    experiment = shared_plane.get(f"runs/{own}")["experiment_id"]
    # Its run, and runs beneath it, which get their parent by themselves.
    post("runs/log-metric", {"run_id": own, "key": "a", "value": 1, "timestamp": 1})
    child = post("runs/create", {"experiment_id": experiment})["run"]["info"]["run_id"]
    assert shared_plane.get(f"runs/{child}")["parent_run_id"] == own
    grandchild = post("runs/create", {
        "experiment_id": experiment, "tags": [{"key": "mlflow.parentRunId", "value": child}],
    })["run"]["info"]["run_id"]
    for run in (own, child, grandchild):
        post("runs/log-batch", {"run_id": run, "metrics": [{"key": "b", "value": 2, "timestamp": 1}]})
        assert raw(shared_plane, "PUT", f"{ARTIFACTS}/{experiment}/{run}/artifacts/x", b"x", token=token)[0] == 200
    # Nothing of others.
    for path, body in (
        ("runs/log-metric", {"run_id": run_id, "key": "a", "value": 1, "timestamp": 1}),
        ("runs/log-metric", {"run_uuid": run_id, "key": "a", "value": 1, "timestamp": 1}),
        ("runs/log-metric", {"run_id": own, "run_uuid": run_id, "key": "a", "value": 1, "timestamp": 1}),
        ("runs/log-metric", {"runId": run_id, "key": "a", "value": 1, "timestamp": 1}),
        ("runs/update", {"run_id": run_id, "status": "FAILED"}),
        ("runs/set-tag", {"run_id": own, "key": "mlflow.parentRunId", "value": run_id}),
        ("runs/create", {"experiment_id": "0", "tags": [{"key": "mlflow.parentRunId", "value": run_id}]}),
        ("logged-models", {"experiment_id": "0", "source_run_id": run_id}),
        ("runs/delete", {"run_id": own}), ("runs/restore", {"run_id": own}),
        ("experiments/delete", {"experiment_id": "0"}), ("experiments/update", {"experiment_id": "0", "new_name": "x"}),
        ("experiments/create", {"name": "x", "artifact_location": "mlflow-artifacts:/0"}),
        ("registered-models/rename", {"name": "x", "new_name": "y"}),
    ):
        post(path, body, 403)
    post("runs/log-metric", {"key": "a", "value": 1, "timestamp": 1}, 400)
    for path in (f"0/{run_id}/artifacts/x", "0/models/m-1/artifacts/x", "0/traces/tr-1/artifacts/x"):
        assert raw(shared_plane, "PUT", f"{ARTIFACTS}/{path}", b"x", token=token)[0] == 403, path
    assert raw(shared_plane, "POST", f"/mlflow/ajax-api/2.0/mlflow/upload-artifact?run_uuid={run_id}&path=x", b"x",
               token=token)[0] == 403
    assert raw(shared_plane, "DELETE", f"{ARTIFACTS}/{experiment}/{own}/artifacts/x", token=token)[0] == 403
    # It reads all, logs models of its own, and registers them.
    assert shared_plane.get(f"{API}runs/get?run_id={run_id}", token=token)
    logged = post("logged-models", {"experiment_id": experiment, "name": "model"})["model"]["info"]
    assert logged["source_run_id"] == own
    path = f"{ARTIFACTS}/{experiment}/models/{logged['model_id']}/artifacts/MLmodel"
    assert raw(shared_plane, "PUT", path, b"x", token=token)[0] == 200
    post(f"logged-models/{logged['model_id']}", {"model_id": logged["model_id"], "status": 2}, method="PATCH")
    other = shared_plane.post(API + "logged-models", {"experiment_id": "0"})["model"]["info"]["model_id"]
    post(f"logged-models/{other}", {"model_id": other, "status": 2}, 403, method="PATCH")
    post("registered-models/create", {"name": "by-job"})
    post("model-versions/create", {
        "name": "by-job", "source": f"models:/{logged['model_id']}", "model_id": logged["model_id"], "run_id": own,
    })
    post("registered-models/alias", {"name": "by-job", "alias": "champion", "version": "1"})
    post("registered-models/delete", {"name": "by-job"}, 403, method="DELETE")
    # Ours beside MLflow's: nothing but its own job.
    assert shared_plane.call("GET", "jobs/scoped", token=token)[0] == 200
    assert shared_plane.call("PUT", "jobs/other", {"command": "true"}, token=token)[0] == 403


def patient(plane, path, body, **options):
    """The answer to a client that asks again after a 503, as MLflow's do: a busy machine takes longer to start MLflow
    than a call waits for it."""

    def ask():
        status, answer, _ = plane.call("POST", API + path, body, **options)
        assert status in (200, 503), (status, answer)
        return [answer] if status == 200 else None

    return wait_for(ask, 120)[0]


def test_a_killed_child_loses_nothing_and_open_intents_are_found_out(plane):
    plane.mlflow_ready()
    run = new_run(plane)
    pid = plane.get("/api/v1/workspaces/default")["mlflow"]["pid"]
    os.kill(pid, signal.SIGKILL)
    # Streamed and inspected calls wait for the restart.
    patient(plane, "runs/log-metric", {"run_id": run, "key": "a", "value": 1, "timestamp": 1})
    again = ask_id()
    created = patient(plane, "runs/create", {"experiment_id": "0", "run_name": "twice"}, headers=again)
    state = plane.get("/api/v1/workspaces/default")["mlflow"]
    assert state["state"] == "ready" and state["restarts"] == 1 and state["pid"] != pid
    assert plane.get(f"runs/{run}/metrics")["metrics"]["a"]["values"] == [1.0]
    # As if the control plane had died between MLflow's answer and the note of it.
    plane.kill()
    with sqlite3.connect(plane.home / "store.db") as store:
        changed = store.execute(
            "UPDATE audit SET outcome = NULL, response_status = NULL, response_body = NULL WHERE request_id = ?",
            (again["X-Mlops-Request-Id"],),
        ).rowcount
    assert changed == 1
    plane.start().mlflow_ready()
    assert locate.start_time(state["pid"]) == ""
    plane._tokens.clear()

    def outcome():
        return next(r["outcome"] for r in plane.get("audit?limit=5")["items"] if r["action"] == "runs/write")

    wait_for(lambda: outcome() == "done", 20)
    repeated = plane.post(API + "runs/create", {"experiment_id": "0", "run_name": "twice"}, headers=again)
    assert repeated["run"]["info"]["run_id"] == created["run"]["info"]["run_id"]
    found = plane.post(API + "runs/search", {"experiment_ids": ["0"], "filter": "run_name = 'twice'"})
    assert len(found["runs"]) == 1
