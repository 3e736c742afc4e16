"""The MLflow child: it starts, comes back, and never stays behind."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from jupyter_mlops.core.errors import NotFound
from jupyter_mlops.runtime import locate
from jupyter_mlops.tracking import child as module
from jupyter_mlops.tracking.api import MlflowApi
from jupyter_mlops.tracking.child import MlflowChild


@pytest.fixture
def folders():
    """(home, folder for sockets) with short paths."""
    home, runtime = Path(tempfile.mkdtemp(prefix="mlops-test-")), Path(tempfile.mkdtemp(prefix="mlops-run-"))
    yield home, runtime
    for folder in (home, runtime):
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def make(folders):
    """Makes children over the same folders, and ends them."""
    made = []

    def new(on_state=None):
        made.append(MlflowChild(*folders, on_state))
        return made[-1]

    yield new
    for one in made:
        await one.stop()


async def test_a_killed_child_comes_back_with_everything(make, folders, monkeypatch):
    monkeypatch.setattr("jupyter_mlops.tracking.api.WAIT", 240.0)  # a busy machine takes longer than a user would
    home, _ = folders
    states = []
    child = make(lambda c: states.append(c.state))
    child.spawn()
    await child.start()
    assert await child.ready(240)
    api = MlflowApi(child)
    try:
        made = await api.post("experiments/create", name="kept")
        first = child.pid
        # In the folders only what is ours, and for nobody else.
        for path in home.rglob("*"):
            assert path.stat().st_mode & 0o077 == 0, path
        assert Path(child.socket).stat().st_mode & 0o077 == 0
        environment = Path(f"/proc/{first}/environ").read_bytes()
        assert b"MLFLOW_DISABLE_TELEMETRY=true" in environment and b"JUPYTER_MLOPS" not in environment
        os.kill(first, signal.SIGKILL)
        # Right away: the call waits for the restart instead of failing.
        found = await api.get("experiments/get", experiment_id=made["experiment_id"])
        assert found["experiment"]["name"] == "kept"
        assert child.restarts == 1 and child.pid != first
        assert states == ["starting", "ready", "restarting", "ready"]
        with pytest.raises(NotFound):
            await api.get("experiments/get", experiment_id="99")
        last = child.pid
    finally:
        await api.close()
        await child.stop()
    assert not locate.start_time(last)
    assert child.state == "stopped"


async def test_what_a_killed_control_plane_left_is_ended(make, folders):
    home, _ = folders
    child = make()
    processes = [
        subprocess.Popen([sys.executable, "-c", code, *arguments], process_group=0)  # noqa: ASYNC220
        for code, arguments in (
            ("import time; time.sleep(100)", ["mlflow", child.socket]),
            ("import time, signal; signal.signal(15, signal.SIG_IGN); time.sleep(100)", ["mlflow", child.socket]),
            ("import time; time.sleep(100)", ["a bystander that got the pid"]),
        )
    ]
    module_timeout = module.STOP_TIMEOUT
    module.STOP_TIMEOUT = 0.5
    try:
        for process, ended in zip(processes, (True, True, False), strict=True):
            await asyncio.sleep(0.2)
            record = {"pid": process.pid, "start_time": locate.start_time(process.pid), "socket": child.socket}
            (home / "mlflow.json").write_text(json.dumps(record))
            child._end_leftover()
            assert (process.poll() is not None) is ended
    finally:
        module.STOP_TIMEOUT = module_timeout
        for process in processes:
            process.kill()
            process.wait()


async def test_a_child_ends_with_its_control_plane(folders):
    code = (
        "import sys, os; from jupyter_mlops.tracking.child import MlflowChild; c = MlflowChild(*sys.argv[1:]); "
        "c.spawn(); print(c.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code, *map(str, folders)], stdout=subprocess.PIPE, check=False
    )
    left = int(done.stdout)
    for _ in range(600):
        if not locate.start_time(left):
            return
        await asyncio.sleep(0.05)
    os.kill(left, signal.SIGKILL)
    raise AssertionError("the child outlived its control plane")


async def test_a_failing_start_is_told_and_tried_otherwise(make, folders, monkeypatch):
    home, _ = folders
    monkeypatch.setattr(module, "BACKOFF", (0.05,))
    monkeypatch.setattr(module, "LEAN_TRIES", 1)
    (home / "mlflow.db").write_bytes(b"this is no database" * 100)
    child = make()
    commands = []
    plain = MlflowChild._command
    # Where MLflow's own command would run: what it is called with is looked at, without its many seconds.
    monkeypatch.setattr(MlflowChild, "_command", lambda self: commands.append(plain(self)) or (
        plain(self) if self.lean else [sys.executable, "-c", "raise SystemExit('no luck')"]))
    await child.start()
    for _ in range(1200):
        if child.state == "failed":
            break
        await asyncio.sleep(0.05)
    assert child.state == "failed"
    assert "no luck" in child.message and "mlflow.log" in child.message
    assert "not a database" in Path(child.log_path).read_text()
    assert [c[1:3] for c in commands[:3]] == [["-m", "jupyter_mlops.tracking.serve"]] + [
        ["-m", "jupyter_mlops.tracking.database"]] * 2
    assert not await child.ready(0.1)


@pytest.mark.slow
async def test_mlflows_own_command_serves_too(make, folders):
    child = make()
    child._lean_failures = module.LEAN_TRIES
    await child.start()
    assert await child.ready(240), Path(child.log_path).read_text()
    api = MlflowApi(child)
    try:
        assert (await api.get("experiments/get", experiment_id="0"))["experiment"]["artifact_location"] == (
            "mlflow-artifacts:/0")
    finally:
        await api.close()


def test_the_database_is_copied_before_another_version_opens_it(folders):
    home, runtime = folders
    with sqlite3.connect(home / "mlflow.db") as database:
        database.execute("CREATE TABLE kept (x)")
        database.execute("INSERT INTO kept VALUES (7)")
    for number in range(5):
        (home / "mlflow.json").write_text(json.dumps({"version": f"3.{number}.0"}))
        MlflowChild(home, runtime)._back_up()
    copies = sorted((home / "backups").iterdir())
    assert 0 < len(copies) <= 3
    with sqlite3.connect(copies[-1]) as copy:
        assert copy.execute("SELECT x FROM kept").fetchall() == [(7,)]
    (home / "mlflow.json").write_text(json.dumps({"version": MlflowChild(home, runtime).version}))
    before = list((home / "backups").iterdir())
    MlflowChild(home, runtime)._back_up()
    assert list((home / "backups").iterdir()) == before


def test_the_log_is_bounded(folders, monkeypatch):
    home, runtime = folders
    monkeypatch.setattr(module, "LOG_BYTES", 1000)
    child = MlflowChild(home, runtime)
    log = Path(child.log_path)
    log.parent.mkdir()
    log.write_bytes(b"a" * 5000 + b"z" * 500)
    child._bound_log()
    assert log.stat().st_size == 0
    assert log.with_name("mlflow.log.1").read_bytes() == b"a" * 500 + b"z" * 500


SPINS = """
import http.server, os, socketserver, sys, time
class Server(socketserver.UnixStreamServer):
    asked = 0
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        Server.asked += 1
        end = time.monotonic() + (1.5 if Server.asked > 1 else 0)
        while time.monotonic() < end:
            pass
        self.wfile.write(b"HTTP/1.1 200 OK\\r\\n\\r\\n")
        open("answered", "a").write("x")
    log_message = lambda *a: None
Server(sys.argv[1], Handler).serve_forever()
"""


class _Impatient(MlflowChild):
    PROBE, FROZEN_IDLE, FROZEN = 0.1, 0.4, 60.0

    def _command(self):
        return [sys.executable, "-c", SPINS, self.socket]


async def test_a_busy_child_is_not_taken_for_a_frozen_one(folders):
    home, _ = folders
    child = _Impatient(*folders)
    try:
        await child.start()
        assert await child.ready(240)
        first = child.pid
        answered = home / "answered"
        await _until(lambda: answered.exists() and len(answered.read_text()) > 3)
        assert child.pid == first and not child.restarts
        os.kill(first, signal.SIGSTOP)
        await _until(lambda: child.restarts == 1 and child.pid not in (None, first))
        assert not locate.start_time(first)
    finally:
        await child.stop()


async def _until(what):
    deadline = asyncio.get_running_loop().time() + 120
    for _ in iter(what, True):
        assert asyncio.get_running_loop().time() < deadline, what
        await asyncio.sleep(0.02)
