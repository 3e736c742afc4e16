"""From nothing to MLflow answering through our proxy, and the memory that it takes; beside ``mlflow server``."""

from __future__ import annotations

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

from common import in_turn, pss, report, tree


def main() -> None:
    """Print both figures."""
    from conftest import Plane, make_home

    memory: dict[str, list[float]] = {"ours": [], "peer": []}

    def ours() -> float:
        plane = Plane(make_home())
        begin = time.perf_counter()
        try:
            plane.start()
            while plane.call("GET", "/mlflow/api/2.0/mlflow/experiments/get?experiment_id=0")[0] != 200:
                pass  # the proxy itself holds a request for up to 10 s
            took = time.perf_counter() - begin
            time.sleep(1)
            memory["ours"].append(sum(pss(p) for p in tree(plane.process.pid)) / 1e6)
            return took
        finally:
            plane.stop()

    def peer() -> float:
        folder = Path(tempfile.mkdtemp(prefix="mlflow-peer-"))
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
                   "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/a"]
        env = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")}
        env["MLFLOW_DISABLE_TELEMETRY"] = "true"
        env["PATH"] = os.path.dirname(sys.executable) + os.pathsep + env["PATH"]
        begin = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, env=env
        )
        try:
            while True:
                try:
                    urllib.request.urlopen(
                        f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get?experiment_id=0", timeout=5
                    ).read()
                    break
                except (urllib.error.URLError, OSError):
                    if time.perf_counter() - begin > 90:
                        raise
                    time.sleep(0.05)
            took = time.perf_counter() - begin
            time.sleep(1)
            memory["peer"].append(sum(pss(p) for p in tree(process.pid)) / 1e6)
            return took
        finally:
            left = tree(process.pid)
            os.killpg(process.pid, signal.SIGTERM)
            time.sleep(2)
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    pass
            process.wait()
            shutil.rmtree(folder, ignore_errors=True)

    a, b = in_turn(3, ours, peer)
    report("start until MLflow answers / mlflow server", "s", a, b, 4.0)
    report("memory of control plane and MLflow (PSS) / mlflow server", "MB", memory["ours"], memory["peer"], 350)


if __name__ == "__main__":
    main()
