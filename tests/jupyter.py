"""A real Jupyter Server (or JupyterLab) of our own in a folder of its own, and kernels started through it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from conftest import REPO, end_all, free_port, make_home, wait_for

from jupyter_mlops.runtime import locate


class Jupyter:
    """A Jupyter Server with token and prefix; ``lab`` adds JupyterLab. Ends and removes everything at :meth:`stop`."""

    token = "test-token"

    def __init__(self, *, lab: bool = False, base: str = "/user/ann%40lab/", home: Path | None = None) -> None:
        self.lab = lab
        self.base = base
        self.home = home or make_home()
        self.folder = Path(tempfile.mkdtemp(prefix="mlops-jupyter-"))
        self.root = self.folder / "work"
        self.root.mkdir()
        self.port = free_port()
        self.process: subprocess.Popen | None = None
        self.place = locate.Place(str(self.home), "default")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.base}"

    @property
    def env(self) -> dict[str, str]:
        f = self.folder
        env = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "JPY_", "MLFLOW"))}
        return {
            **env, "PYTHONPATH": str(REPO), "JUPYTER_CONFIG_DIR": str(f / "config"),
            "JUPYTER_DATA_DIR": str(f / "data"), "JUPYTER_RUNTIME_DIR": str(f / "run"), "IPYTHONDIR": str(f / "ipy"),
            "JUPYTERLAB_SETTINGS_DIR": str(f / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(f / "workspaces"),
            "JUPYTER_MLOPS_HOME": str(self.home), "MLFLOW_DISABLE_TELEMETRY": "true",
            "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"],
        }

    def start(self) -> Jupyter:
        """Start it and wait until it answers."""
        settings = self.folder / "settings" / "@jupyterlab" / "apputils-extension"
        settings.mkdir(parents=True, exist_ok=True)
        (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
        command = [
            sys.executable, "-m", "jupyterlab" if self.lab else "jupyter_server", "--no-browser", "--allow-root",
            "--ip=127.0.0.1", f"--port={self.port}", "--ServerApp.port_retries=0",
            f"--IdentityProvider.token={self.token}", f"--ServerApp.base_url={self.base}",
            f"--ServerApp.root_dir={self.root}", "--ServerApp.jpserver_extensions={'jupyter_mlops': True}",
        ]
        if self.lab:
            command += ["--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly"]
        with open(self.folder / "jupyter.log", "ab") as log:
            self.process = subprocess.Popen(
                command, env=self.env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
                cwd=self.root,
            )
        wait_for(lambda: self._answers(), 60)
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError((self.folder / "jupyter.log").read_text()[-3000:])
        try:
            return self.call("GET", "api/status")[0] == 200
        except OSError:
            return False

    def call(self, method: str, path: str, body=None, *, headers=None, token: bool = True, timeout: float = 30):
        """(status, JSON or bytes) of a request below the base URL."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **(headers or {})}
        request = urllib.request.Request(self.url + path, data, method=method, headers=headers)
        if token:
            request.add_header("Authorization", f"token {self.token}")
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                status, text = response.status, response.read()
        except urllib.error.HTTPError as e:
            status, text = e.code, e.read()
        try:
            return status, json.loads(text) if text else None
        except ValueError:
            return status, text

    def put_bytes(self, url: str, content: bytes) -> None:
        """Upload to an absolute URL of this server."""
        headers = {"Authorization": f"token {self.token}", "Content-Type": "application/octet-stream"}
        request = urllib.request.Request(url, content, method="PUT", headers=headers)
        urllib.request.urlopen(request, timeout=30).read()

    def up(self) -> Jupyter:
        """Wait until the control plane behind it is up, with MLflow ready."""
        def look():
            status, body = self.call("GET", "jupyter-mlops/api/v1/workspaces/default")
            return status == 200 and body["mlflow"]["state"] == "ready"

        wait_for(look, 60, 0.2)
        return self

    def kernel(self, path: str = "notebook.ipynb"):
        """(kernel id, pid, blocking client) of a kernel that a notebook's session started."""
        from jupyter_client import BlockingKernelClient

        status, body = self.call("POST", "api/sessions", {
            "path": path, "name": path, "type": "notebook", "kernel": {"name": "python3"},
        })
        assert status == 201, body
        kernel_id = body["kernel"]["id"]
        file = self.folder / "run" / f"kernel-{kernel_id}.json"
        wait_for(file.exists)
        client = BlockingKernelClient(connection_file=str(file))
        client.load_connection_file()
        client.start_channels()
        client.wait_for_ready(timeout=60)
        client.execute("0", store_history=False)
        out = run(client, "import os; print(os.getpid())")
        return kernel_id, int(out), client

    def kill(self) -> None:
        """kill -9 of the server alone; kernels are left, as they are when a server dies."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End the server, its kernels, the control plane and all that belongs to it."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        locate.ask(self.place, "POST", "/local/shutdown", {})
        deadline = time.monotonic() + 10
        while locate.info(self.place) and time.monotonic() < deadline:
            time.sleep(0.1)
        end_all(self.home)
        end_all(self.folder)
        for folder in (self.place.runtime_dir, self.home, self.folder):
            shutil.rmtree(folder, ignore_errors=True)


def run(client, code: str, timeout: float = 120) -> str:
    """Execute a cell; its text output. Raises AssertionError with the traceback when it failed."""
    out: list[str] = []

    def hook(message):
        content = message["content"]
        if message["msg_type"] == "stream":
            out.append(content["text"])
        elif message["msg_type"] in ("execute_result", "display_data"):
            out.append(content["data"].get("text/plain", ""))

    reply = client.execute_interactive(code, timeout=timeout, output_hook=hook, allow_stdin=False)
    if reply["content"]["status"] != "ok":
        raise AssertionError("\n".join(reply["content"].get("traceback") or [str(reply["content"])]))
    return "".join(out)
