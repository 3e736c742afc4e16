"""Shared fixtures: private homes, real control planes, nothing left behind."""

from __future__ import annotations

import ast
import faulthandler
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol

from jupyter_mlops.core.syntax import without_collections
from jupyter_mlops.runtime import locate

pytest_plugins = ["pages", "fault_bench", "fault_table"]  # fixtures of browser and fault tests

# Several workers share few cores: numeric libraries that spin on all of them only steal from each other.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

REPO = Path(__file__).resolve().parent.parent

plain_parse = ast.parse
if sys.version_info < (3, 11, 8):
    # What parses here (hypothesis, inspect) does so beside servers in other threads: see jupyter_mlops/core/syntax.py.
    ast.parse = without_collections(plain_parse)

#: Files that take longest, the longest first: begun last, one of them would leave all workers but one without work.
LONGEST = (
    "faults/test_matrix.py", "browser/test_lab.py", "integration/test_plugin.py", "browser/test_live_output.py",
    "integration/test_quickstart.py", "integration/test_job_store.py", "integration/test_shipper.py",
    "integration/test_gateway.py", "integration/test_serving_notebook.py", "integration/test_serving.py",
    "integration/test_endpoints.py", "integration/test_batch.py", "integration/test_deploy_variables.py",
    "integration/test_flavours.py", "integration/test_captured.py", "integration/test_instances.py",
    "integration/test_scaler.py",
    "drivers/test_pods.py", "integration/test_kube_api.py", "integration/test_kube_pods.py",
    "integration/test_attacks.py", "integration/test_distributed_notebook.py", "drivers/test_local.py",
    "drivers/test_warm.py", "integration/test_job_life.py", "faults/test_misbehaviour.py", "faults/test_survival.py",
    "integration/test_mlflow_child.py", "integration/test_context.py", "integration/test_control.py",
    "integration/test_logs.py", "integration/test_server_life.py", "integration/test_magics_life.py",
    "faults/test_full_disk.py", "integration/test_magics_kernel.py", "integration/test_mlflow_proxy.py",
)


LIMITS, STDERR, REPLAYING = pytest.StashKey(), pytest.StashKey(), pytest.StashKey()


def pytest_configure(config):
    """Have workers take files in the order of collection; by itself xdist begins with those of the most tests."""
    config.stash[STDERR] = os.dup(2)  # what is written to it is not captured
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """The longest files first, the others behind them as they were."""
    place = {str(REPO / "tests" / name): index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(str(item.path), len(place)))


def wait_for(what, timeout: float = 30.0, pause: float = 0.05):
    """What ``what()`` returns as soon as it is true; fails after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = what()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"still not so after {timeout} s: {what}")
        time.sleep(pause)


def pytest_timeout_set_timer(item, settings):
    """Remember what pytest-timeout set: it arms its timer once for a test, not again for the second try."""
    item.stash[LIMITS] = settings


def _arm(item) -> None:
    """The time limit begins anew with each phase of each try, so that no hang is without a limit. Where Python is not
    reached by a signal, its process ends; xdist makes another for the tests that are left."""
    if settings := item.stash.get(LIMITS, None):
        item.config.hook.pytest_timeout_cancel_timer(item=item)
        item.config.hook.pytest_timeout_set_timer(item=item, settings=settings)
        faulthandler.dump_traceback_later(settings.timeout + 60, exit=True, file=item.config.stash[STDERR])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if getattr(item, "execution_count", 0) > 1 and item.get_closest_marker("story"):
        _replay(item)
    _arm(item)


def _replay(item) -> None:
    """Run those before it in its file once more: a second try has fresh fixtures, and a story goes on from them."""
    if item.session.stash.get(REPLAYING, False):
        return
    item.session.stash[REPLAYING] = True
    try:
        for before in item.session.items[:item.session.items.index(item)]:
            if before.path == item.path:
                runtestprotocol(before, log=False, nextitem=item)
    finally:
        item.session.stash[REPLAYING] = False


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item):
    _arm(item)


@pytest.hookimpl(tryfirst=True, wrapper=True)
def pytest_runtest_teardown(item):
    """What failed and is tried once more (``--reruns``) begins with fresh fixtures of every scope: what it left in a
    shared control plane would only make it fail in another way."""
    _arm(item)
    if getattr(item, "execution_count", 0) == 1 and any(getattr(item, "_test_failed_statuses", {}).values()):
        item.session._setupstate.teardown_exact(None)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def pytest_runtest_logreport(report):
    """Failures are told when they happen as well: of a run that is cut short there is no summary to read."""
    if os.environ.get("CI") and report.outcome in ("failed", "rerun") and not os.environ.get("PYTEST_XDIST_WORKER"):
        where = getattr(report.longrepr, "reprcrash", None) or str(report.longrepr)[-500:]
        what = f"{report.outcome.upper()} {report.nodeid} ({report.when}, {report.duration:.0f} s): {where}"
        print("\n" + what, flush=True)


def free_port() -> int:
    """A free port on loopback."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("JUPYTER_MLOPS_", "MLFLOW_", "JUPYTERHUB_", "JPY_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("JUPYTER_MLOPS_WARM", "0")  # how a job is started must not depend on the one before


def make_home() -> Path:
    """A private workspace folder with a short path (sockets lie below a folder of their own anyway).

    MLflow's tables are there: to make them takes a second of each start, and is the subject of other tests.
    """
    home = Path(tempfile.mkdtemp(prefix="mlops-test-"))
    (home / "mlflow.db").touch(0o600)
    (home / "mlflow.db").write_bytes(_tables())
    return home


@functools.cache
def _tables() -> bytes:
    """An empty database as MLflow's child makes it."""
    with tempfile.TemporaryDirectory(prefix="mlops-tables-") as folder:
        subprocess.run([sys.executable, "-m", "jupyter_mlops.tracking.database", "mlflow.db", sys.executable, "-c", ""],
                       cwd=folder, env={**os.environ, "PYTHONPATH": str(REPO)}, check=True, timeout=200)
        return Path(folder, "mlflow.db").read_bytes()


def processes_of(home: Path) -> list[int]:
    """Pids of all processes whose command line or environment names the workspace folder."""
    mark = os.fsencode(str(home))
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if locate.start_time(int(entry.name)) and (
                mark in (entry / "cmdline").read_bytes() or b"JUPYTER_MLOPS_HOME=" + mark in
                (entry / "environ").read_bytes()
            ):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


class Plane:
    """A real control plane in a folder of its own, and a small HTTP client for it.

    ``warm``: whether processes that have imported torch may wait for its jobs.
    """

    def __init__(self, home: Path, idle: float = 900.0, warm: bool = False) -> None:
        self.home = home
        self.idle = idle
        self.warm = warm
        self.place = locate.Place(str(home), "default")
        self.process: subprocess.Popen | None = None
        self._tokens: dict[tuple[str, str], str] = {}

    def start(self) -> Plane:
        """Start it and wait until it answers."""
        env = {**os.environ, "PYTHONPATH": str(REPO), "JUPYTER_MLOPS_WARM": "1" if self.warm else "0"}
        logs = self.home / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        with open(logs / "control.log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyter_mlops.control", "--home", str(self.home), "--workspace", "default",
                 "--idle", str(self.idle)],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, env=env,
            )
        wait_for(lambda: locate.info(self.place) or self._ended(), 30)
        return self

    def _ended(self) -> None:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"ended with {self.process.returncode}: {self.log()}")

    def log(self) -> str:
        """The end of its log."""
        return (self.home / "logs" / "control.log").read_text(errors="replace")[-3000:]

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    @property
    def url(self) -> str:
        return locate.info(self.place)["url"]

    @property
    def tracking_uri(self) -> str:
        return self.url + "/mlflow"

    def token(self, role: str = "owner", job: str = "") -> str:
        """A token held by this test process."""
        if (role, job) not in self._tokens:
            status, body = locate.ask(
                self.place, "POST", "/local/token", {"pid": os.getpid(), "role": role, "job": job or None}
            )
            assert status == 201, body
            self._tokens[role, job] = body["token"]
        return self._tokens[role, job]

    def call(self, method: str, path: str, body=None, *, token: str | None = None, headers=None, timeout: float = 60.0):
        """(status, JSON or None, headers). ``path`` below the workspace, or absolute below /jupyter-mlops with '/'."""
        url = self.url + (path if path.startswith("/") else "/api/v1/workspaces/default/" + path)
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(url, data, method=method, headers={
            "Content-Type": "application/json", **(headers or {}),
        })
        token = self.token() if token is None else token
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                text, status, got = response.read(), response.status, response.headers
        except urllib.error.HTTPError as e:
            text, status, got = e.read(), e.code, e.headers
        try:
            return status, json.loads(text) if text else None, got
        except ValueError:
            return status, text, got

    def get(self, path: str, expect: int = 200, **options):
        """The body of a GET."""
        status, body, _ = self.call("GET", path, **options)
        assert status == expect, (status, body)
        return body

    def put(self, path: str, body, expect: int | tuple[int, ...] = (200, 201), **options):
        """The body of a PUT."""
        status, answer, _ = self.call("PUT", path, body, **options)
        assert status in (expect if isinstance(expect, tuple) else (expect,)), (status, answer)
        return answer

    def post(self, path: str, body=None, expect: int | tuple[int, ...] = (200, 201), **options):
        """The body of a POST."""
        status, answer, _ = self.call("POST", path, body if body is not None else {}, **options)
        assert status in (expect if isinstance(expect, tuple) else (expect,)), (status, answer)
        return answer

    def delete(self, path: str, expect: int = 204, **options):
        """The body of a DELETE."""
        status, answer, _ = self.call("DELETE", path, **options)
        assert status == expect, (status, answer)
        return answer

    def mlflow_ready(self) -> Plane:
        """Wait until MLflow answers."""
        wait_for(lambda: self.get("/api/v1/workspaces/default")["mlflow"]["state"] == "ready", 180)
        return self

    def wait_job(self, name: str, timeout: float = 120.0, phases=("Completed", "Failed", "Canceled")) -> dict:
        """The job when it has reached one of ``phases``."""
        def look():
            job = self.get(f"jobs/{name}")
            return job if job["status"]["phase"] in phases else None

        return wait_for(look, timeout)

    def stop(self) -> None:
        """End everything of this workspace, by SIGTERM and then by SIGKILL, and remove its folders."""
        if self.process is not None and self.process.poll() is None:
            try:
                self.call("POST", "actions/shutdown", {"all": True}, timeout=40)
                self.process.wait(15)
            except Exception:
                self.process.kill()
                self.process.wait()
        end_all(self.home)
        shutil.rmtree(self.place.runtime_dir, ignore_errors=True)
        shutil.rmtree(self.home, ignore_errors=True)


def end_all(home: Path) -> list[int]:
    """Kill what still belongs to a workspace; returns the pids that were left."""
    left = processes_of(home)
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass
    return left


@pytest.fixture
def plane():
    """A control plane of its own for one test."""
    p = Plane(make_home()).start()
    yield p
    p.stop()


@pytest.fixture(scope="module")
def shared_plane():
    """One control plane with MLflow ready for a module's tests that do not disturb it."""
    p = Plane(make_home())
    try:
        yield p.start().mlflow_ready()
    finally:
        p.stop()


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of Chromium; skips without one, fails where skips are not allowed."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        path = shutil.which(name)
        if path:
            return path
    reason = "no Chromium on PATH (Debian: apt-get install chromium)"
    if os.environ.get("TEST_NO_SKIPS"):
        pytest.fail(reason)
    pytest.skip(reason)
