"""Jupyter's ``/api/status`` while control plane and MLflow are frozen and a panel polls.

The peer is an extension of ten lines that asks its backend from the handler without awaiting, which is what the
closest published extension does; its time-out is set to 2 s instead of 30 s, so that this ends soon.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from common import REPO, report

PEER = '''
import urllib.request
from jupyter_server.base.handlers import APIHandler
from tornado import web


class Blocking(APIHandler):
    @web.authenticated
    def get(self):
        try:
            urllib.request.urlopen(self.settings["peer_backend"], timeout=2).read()
        except OSError:
            pass
        self.finish("{}")


def _load_jupyter_server_extension(app):
    import os
    app.web_app.settings["peer_backend"] = os.environ["PEER_BACKEND"]
    app.web_app.add_handlers(".*$", [(app.web_app.settings["base_url"] + "peer", Blocking)])


def _jupyter_server_extension_points():
    return [{"module": "peer_extension"}]
'''


def free_port() -> int:
    """A free port on loopback."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def p99_while_polling(folder: Path, home: Path, extension: str, poll: list[str], backend: str = "") -> float:
    """p99 of ``/api/status`` in ms over 6 s, while ``poll`` is asked by four threads and our processes are frozen."""
    port, token = free_port(), "benchmark"
    env = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{REPO}", "JUPYTER_CONFIG_DIR": str(folder / "config"),
           "JUPYTER_DATA_DIR": str(folder / "data"), "JUPYTER_RUNTIME_DIR": str(folder / "run"),
           "JUPYTER_MLOPS_HOME": str(home), "PEER_BACKEND": backend, "JUPYTER_NO_CONFIG": "1"}
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyter_server", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
         f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}",
         f"--ServerApp.jpserver_extensions={{'{extension}': True}}"],
        env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )
    base = f"http://127.0.0.1:{port}/"

    def ask(path: str, timeout: float = 30) -> float:
        request = urllib.request.Request(base + path, headers={"Authorization": f"token {token}"})
        begin = time.perf_counter()
        try:
            urllib.request.urlopen(request, timeout=timeout).read()
        except urllib.error.HTTPError as e:
            e.read()
        return (time.perf_counter() - begin) * 1000

    stop = threading.Event()
    frozen: list[int] = []
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                ask("api/status")
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        if extension == "jupyter_mlops":
            while json.loads(urllib.request.urlopen(urllib.request.Request(
                base + "jupyter-mlops/status", headers={"Authorization": f"token {token}"})).read())["state"] != "up":
                time.sleep(0.1)
            record = json.loads((home / "control.json").read_text())
            frozen = [record["pid"], json.loads((home / "mlflow.json").read_text())["pid"]]
            for pid in frozen:
                os.kill(pid, signal.SIGSTOP)

        def panel() -> None:
            while not stop.is_set():
                for path in poll:
                    try:
                        ask(path, 10)
                    except OSError:
                        pass
                stop.wait(0.2)

        threads = [threading.Thread(target=panel, daemon=True) for _ in range(4)]
        for t in threads:
            t.start()
        samples = []
        end = time.monotonic() + 6
        while time.monotonic() < end:
            samples.append(ask("api/status"))
            time.sleep(0.02)
        samples.sort()
        return samples[int(len(samples) * 0.99)]
    finally:
        stop.set()
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def main() -> None:
    """Print the figure."""
    from conftest import Plane, make_home

    ours, peer = [], []
    listener = socket.socket()  # accepts, never answers: a frozen backend
    listener.bind(("127.0.0.1", 0))
    listener.listen(64)
    backend = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    for _ in range(3):
        folder = Path(tempfile.mkdtemp(prefix="mlops-bench-"))
        (folder / "peer_extension.py").write_text(PEER)
        plane = Plane(make_home()).start().mlflow_ready()
        try:
            api = "jupyter-mlops/api/v1/workspaces/default/"
            ours.append(p99_while_polling(
                folder, plane.home, "jupyter_mlops", [api + "runs", api + "jobs", api[:-1], "jupyter-mlops/status"]
            ))
            peer.append(p99_while_polling(folder, plane.home, "peer_extension", ["peer"], backend))
        finally:
            plane.stop()
            shutil.rmtree(folder, ignore_errors=True)
    listener.close()
    report("/api/status p99, backend frozen / blocking extension", "ms", ours, peer, 100)


if __name__ == "__main__":
    main()
