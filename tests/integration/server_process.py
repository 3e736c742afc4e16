"""A real Jupyter server with our extension, for the tests of the extension."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import free_port

REPOSITORY = Path(__file__).resolve().parents[2]
TOKEN = "jupyter-token-of-the-test"
BASE_URL = "/user/a%40b/"

#: Decides by a header of the request, so that one server does for all tests.
AUTHORIZER = """
from jupyter_server.auth import Authorizer

class ByHeader(Authorizer):
    def is_authorized(self, handler, user, action, resource):
        if resource != "mlops" and "jupyter-mlops" in handler.request.path:
            raise RuntimeError("asked for resource " + resource)
        allowed = handler.request.headers.get("X-Allow", "read write execute").split()
        return action in allowed

c.ServerApp.authorizer_class = ByHeader
"""


def until(what: str, condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """The first true value of ``condition``; fails naming ``what`` when there is none in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {seconds:g} s")


class Place:
    """Folders of one user: a workspace home, and a private runtime folder that is short enough for sockets."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "home"
        self.runtime = Path(tempfile.mkdtemp(prefix="jm", dir="/tmp"))
        self.sockets = self.runtime / ("jupyter-mlops-" + hashlib.sha256(os.fsencode(self.home)).hexdigest()[:12])
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "MLFLOW", "JPY_", "XDG_"))}
        self.env.update(
            HOME=str(root), JUPYTER_MLOPS_HOME=str(self.home), XDG_RUNTIME_DIR=str(self.runtime),
            JUPYTER_DATA_DIR=str(root / "data"), JUPYTER_RUNTIME_DIR=str(root / "runtime"),
            JUPYTER_CONFIG_DIR=str(root / "config"), IPYTHONDIR=str(root / "ipython"),
            PYTHONPATH=os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")])),
        )

    def record(self) -> dict[str, Any]:
        """What the control plane wrote of itself."""
        try:
            return json.loads((self.home / "control.json").read_text())
        except (OSError, ValueError):
            return {}

    def control_pid(self) -> int:
        """Pid of the control plane, 0 without one."""
        pid = int(self.record().get("pid") or 0)
        return pid if pid and os.path.exists(f"/proc/{pid}") else 0

    def close(self) -> None:
        """End whatever works in this place."""
        for _ in range(3):  # a server that ended may just have started another one
            for pid in self._processes():
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    pass
            time.sleep(0.1)
        shutil.rmtree(self.runtime, ignore_errors=True)

    def _processes(self) -> list[int]:
        """Processes whose command line or environment names this place."""
        marks = (os.fsencode(str(self.home)), os.fsencode(str(self.runtime)))
        found = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == os.getpid():
                continue
            try:
                text = Path(f"/proc/{entry}/cmdline").read_bytes() + Path(f"/proc/{entry}/environ").read_bytes()
            except OSError:
                continue
            if any(mark in text for mark in marks):
                found.append(int(entry))
        return found


class Answer:
    """A response that has been read."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class JupyterServer:
    """``jupyter server`` with the extension enabled by the file that the wheel installs."""

    def __init__(self, place: Place, config: str = "", base_url: str = BASE_URL, name: str = "server") -> None:
        self.place = place
        self.base_url = base_url
        self.port = free_port()
        self.folder = place.root / name
        self.notebooks = self.folder / "notebooks"
        self.notebooks.mkdir(parents=True)
        enabled = self.folder / "config" / "jupyter_server_config.d"
        enabled.mkdir(parents=True)
        shutil.copy(REPOSITORY / "jupyter-config" / "server-config" / "jupyter_mlops.json", enabled)
        others = dict.fromkeys(("jupyterlab", "jupyter_lsp", "notebook_shim", "jupyter_server_terminals"), False)
        (self.folder / "config" / "jupyter_server_config.py").write_text(
            f"c.ServerApp.jpserver_extensions = {others!r}\n{config}"
        )
        env = {**place.env, "JUPYTER_CONFIG_DIR": str(self.folder / "config"),
               "JUPYTER_RUNTIME_DIR": str(self.folder / "runtime")}
        self.log_path = self.folder / "server.log"
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyter_server", "--allow-root", "--no-browser", f"--port={self.port}",
                 "--ServerApp.port_retries=0", f"--ServerApp.base_url={base_url}", f"--IdentityProvider.token={TOKEN}",
                 f"--ServerApp.root_dir={self.notebooks}"],
                env=env, cwd=self.notebooks, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )

    def wait(self) -> JupyterServer:
        """Return when it answers."""

        def answers() -> bool:
            assert self.process.poll() is None, self.log()
            try:
                return self.get("api/status").status == 200
            except OSError:
                return False

        until("Jupyter answers", answers)
        return self

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def call(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None,
        token: bool = True, timeout: float = 30.0,
    ) -> Answer:
        """One request; ``path`` is below the base URL, sent as it stands."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        sent = {"Authorization": f"token {TOKEN}"} if token else {}
        if isinstance(body, dict):
            body = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        try:
            connection.request(method, self.base_url + path, body, {**sent, **(headers or {})})
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def get(self, path: str, **kwargs: Any) -> Answer:
        return self.call("GET", path, **kwargs)

    def status(self) -> dict[str, Any]:
        """The extension's own status."""
        return self.get("jupyter-mlops/status").json

    def wait_state(self, state: str, seconds: float = 40.0) -> dict[str, Any]:
        """Return when the extension says that the control plane is in that state."""
        try:
            return until(f"state {state}", lambda: (s := self.status())["state"] == state and s, seconds)
        except AssertionError as e:
            raise AssertionError(f"{e}; {self.status()}\n{self.log()[-3000:]}") from None

    def cookie(self) -> dict[str, str]:
        """Headers of a browser that has logged in."""
        answer = self.get("api/status?token=" + TOKEN, token=False)
        pairs = [c.split(";")[0] for c in answer.headers.get_all("Set-Cookie") or []]
        assert pairs
        return {"Cookie": "; ".join(pairs)}

    def stop(self) -> None:
        """End it as Ctrl-C would."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
