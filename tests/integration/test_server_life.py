"""The extension and a real control plane: start, share, kill, freeze, stop; and what the browser is told of it."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import websocket
from server_process import TOKEN, JupyterServer, Place, until

from jupyter_mlops.server.relay import SCHEMA_ID

WS = "jupyter-mlops/api/v1/workspaces/default"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("life"))
    yield place
    place.close()


@pytest.fixture(scope="module")
def server(place: Place) -> Iterator[JupyterServer]:
    server = JupyterServer(place).wait()
    server.wait_state("up")
    yield server
    server.stop()


class Events:
    """What a browser hears on Jupyter's event socket."""

    def __init__(self, server: JupyterServer) -> None:
        self.heard: list[dict[str, Any]] = []
        self._socket = websocket.create_connection(
            f"ws://127.0.0.1:{server.port}{server.base_url}api/events/subscribe",
            header=[f"Authorization: token {TOKEN}"], timeout=60,
        )
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            try:
                event = json.loads(self._socket.recv())
            except (OSError, ValueError, websocket.WebSocketException):
                return
            if event.get("schema_id") == SCHEMA_ID:
                self.heard.append(event)

    def wait(self, what: str, matches: Callable[[dict[str, Any]], bool], after: int = 0) -> dict[str, Any]:
        """The first event after so many heard that matches."""
        return until(f"event {what}", lambda: next((e for e in self.heard[after:] if matches(e)), None))

    def close(self) -> None:
        self._socket.close()
        self._thread.join(5)


@pytest.fixture
def events(server: JupyterServer) -> Iterator[Events]:
    server.wait_state("up")
    events = Events(server)
    yield events
    events.close()


def test_the_control_plane_starts_with_jupyter(server: JupyterServer, place: Place) -> None:
    workspace = server.get(WS).json
    assert workspace["pid"] == place.control_pid() and workspace["role"] == "owner"
    assert server.get("jupyter-mlops/api/v1/whoami").json["role"] == "owner"
    missing = server.get(WS + "/jobs/no-such-job")
    assert missing.status == 404 and missing.json["code"] == "not_found"


def test_mlflow_behind_jupyter(server: JupyterServer) -> None:
    def answers() -> Any:
        found = server.call("POST", "jupyter-mlops/mlflow/api/2.0/mlflow/experiments/search", {"max_results": 5})
        return found.status == 200 and found.json

    assert until("MLflow answers", answers)["experiments"][0]["name"] == "Default"
    here = f"http://127.0.0.1:{server.port}"
    made = server.call("POST", "jupyter-mlops/mlflow/ajax-api/2.0/mlflow/experiments/create", {"name": "a/b"},
                       token=False, headers={**server.cookie(), "Origin": here})
    assert made.status == 200, made.body
    page = server.get("jupyter-mlops/mlflow/")
    assert page.status == 200 and b"<html" in page.body.lower()
    assert page.headers["X-Frame-Options"] == "SAMEORIGIN"
    assert server.call("POST", "jupyter-mlops/mlflow/api/2.0/mlflow/gateway/secrets/create", {}).status == 403


def test_changes_become_events(server: JupyterServer, events: Events) -> None:
    made = server.call("PUT", WS + "/endpoints/heard", {})
    assert made.status == 201, made.body
    event = events.wait("of the endpoint", lambda e: any(i["name"] == "heard" for i in e["items"]))
    change = next(i for i in event["items"] if i["name"] == "heard")
    assert change["kind"] == "endpoint" and change["op"] == "put" and event["state"] == "up"
    etag = made.headers["ETag"]
    assert etag and server.get(WS + "/endpoints/heard").status == 200
    assert server.call("PUT", WS + "/endpoints/heard", {}, headers={"If-None-Match": "*"}).status == 412
    heard = len(events.heard)
    assert server.call("DELETE", WS + "/endpoints/heard").status < 300
    events.wait("of its end", lambda e: any(i["name"] == "heard" and i["op"] == "delete" for i in e["items"]), heard)


def test_a_running_job_is_activity(server: JupyterServer) -> None:
    answer = server.call("PUT", WS + "/jobs/sleeper", {"command": "sleep 20"})
    assert answer.status == 201, answer.body
    begun = server.get("api/status").json["last_activity"]
    until("activity", lambda: server.get("api/status").json["last_activity"] > begun)
    assert server.call("POST", WS + "/jobs/sleeper/actions/stop", {}).status == 200
    until("the end", lambda: server.get(WS + "/jobs/sleeper").json["status"]["phase"] in ("Canceled", "Completed"))
    quiet = server.get("api/status").json["last_activity"]
    for path in (WS, WS + "/jobs", "jupyter-mlops/status", "jupyter-mlops/mlflow/"):
        server.get(path)
    assert server.get("api/status").json["last_activity"] == quiet, "looking is no activity"


def test_an_endpoint_answers_from_outside_by_its_key(server: JupyterServer) -> None:
    keys = server.call("PUT", WS + "/endpoints/outside", {}).json["keys"]

    def call(key: str) -> Any:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        return server.call(
            "POST", "jupyter-mlops/endpoints/outside/invocations", b'{"inputs": [1]}', headers=headers, token=False
        )

    # It has no deployment yet, which only who holds a key is told.
    until("the gateway knows it", lambda: "no deployment" in call(keys["primary"]).json["message"])
    refused = call("wrong")
    assert refused.status == 401 and refused.json["code"] == "unauthenticated"
    assert server.call("DELETE", WS + "/endpoints/outside").status < 300


def test_two_servers_share_one_control_plane(server: JupyterServer, place: Place) -> None:
    other = JupyterServer(place, "c.MlopsApp.hide_launch = True\n", base_url="/", name="other").wait()
    try:
        other.wait_state("up")
        assert other.get(WS).json["pid"] == server.get(WS).json["pid"] == place.control_pid()
        refused = other.call("PUT", WS + "/jobs/hidden", {"command": "true"})
        assert refused.status == 403 and "hide_launch" in refused.json["hint"] and other.status()["hide_launch"]
        assert server.get(WS + "/jobs/hidden").status == 404
    finally:
        other.stop()
    assert other.process.returncode is not None
    assert place.control_pid(), "it does not end with a Jupyter server"
    assert server.get(WS).status == 200


def test_a_killed_control_plane_comes_back(server: JupyterServer, place: Place, events: Events) -> None:
    old = place.control_pid()
    os.kill(old, signal.SIGKILL)
    events.wait("that it is down", lambda e: e["state"] == "down")
    heard = len(events.heard)
    back = events.wait("that it is up", lambda e: e["state"] == "up", heard - 1)
    assert back["seq"] >= 0
    events.wait("to list anew", lambda e: any(i["kind"] == "workspace" for i in e["items"]), heard - 1)
    assert server.get(WS).json["pid"] == place.control_pid() != old


def test_stopped_on_purpose_it_stays_down_until_wanted(server: JupyterServer, place: Place) -> None:
    server.wait_state("up")
    pid = place.control_pid()
    assert server.call("POST", WS + "/actions/shutdown", {}).status == 200
    status = server.wait_state("down")
    assert "on purpose" in status["message"]
    until("its end", lambda: not Path(f"/proc/{pid}").exists())
    time.sleep(2)  # as long as a killed one would have taken to come back
    assert server.status()["state"] == "down" and not place.control_pid()
    assert server.call("POST", "jupyter-mlops/status").status == 202
    server.wait_state("up")
    assert server.get(WS).json["pid"] == place.control_pid()


def children(pid: int) -> list[int]:
    """All processes below one."""
    found = []
    for entry in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, entry.read_text().split()):
            found += [child, *children(child)]
    return found


def test_jupyter_does_not_wait_for_a_frozen_control_plane(server: JupyterServer, place: Place, events: Events) -> None:
    pid = place.control_pid()
    frozen = [pid, *children(pid)]
    stop = threading.Event()
    polls: list[int] = []

    def poll(path: str) -> None:  # as several open panels would
        while not stop.is_set():
            polls.append(server.get(path).status)

    panels = [threading.Thread(target=poll, args=(p,)) for p in (WS, WS + "/jobs", "jupyter-mlops/mlflow/") * 2]
    for p in frozen:
        os.kill(p, signal.SIGSTOP)
    try:
        for panel in panels:
            panel.start()
        slow = []
        down = False
        deadline = time.monotonic() + 30
        while not (down and len(slow) > 100) and time.monotonic() < deadline:
            begun = time.monotonic()
            assert server.get("api/status", timeout=3).status == 200
            slow.append(time.monotonic() - begun)
            down = server.get("jupyter-mlops/status", timeout=3).json["state"] == "down"
            time.sleep(0.01)
        assert down
        assert server.get(WS, timeout=3).status == 503
    finally:
        stop.set()
        for p in frozen:
            os.kill(p, signal.SIGCONT)
        for panel in panels:
            panel.join(70)
    print(f"api/status while frozen: {len(slow)} calls, worst {max(slow) * 1000:.0f} ms")
    # Those that came before it was noticed: MLflow's pages wait, the REST API's time is limited.
    assert set(polls) <= {200, 502, 503, 504} and 504 in polls, set(polls)
    server.wait_state("up")
    assert place.control_pid() == pid, "it was waited for, not replaced"


def test_jupyter_ends_quickly_and_alone(place: Place) -> None:
    server = JupyterServer(place, name="ending").wait()
    server.wait_state("up")
    pid = place.control_pid()
    server.stop()
    assert "Traceback" not in server.log(), server.log()[-3000:]
    assert place.control_pid() == pid
