"""Other servers of the same model, as peers of ``serving.py``: MLflow's, a bare ASGI app, LitServe and BentoML.

LitServe and BentoML are installed into environments of their own, once, below the folder that
``JUPYTER_MLOPS_BENCH_PEERS`` names (default: ``jupyter-mlops-bench`` in the temporary folder).
"""

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
from typing import Any

HERE = Path(__file__).resolve().parent

LITSERVE = '''
import pickle, sys
import numpy as np
import litserve as ls

class Api(ls.LitAPI):
    def setup(self, device):
        with open(sys.argv[1], "rb") as f:
            self.model = pickle.load(f)

    def decode_request(self, request):
        return np.array(request["dataframe_split"]["data"], dtype=float)

    def batch(self, inputs):
        self.counts = [len(i) for i in inputs]
        return np.concatenate(inputs)

    def predict(self, x):
        return self.model.predict(x)

    def unbatch(self, output):
        return np.split(output, np.cumsum(self.counts)[:-1])

    def encode_response(self, output):
        return {"predictions": output.tolist()}

if __name__ == "__main__":
    api = Api(max_batch_size=16, batch_timeout=0.001)
    ls.LitServer(api, accelerator="cpu", workers_per_device=1).run(
        host="127.0.0.1", port=int(sys.argv[2]), log_level="error", generate_client_file=False)
'''

BENTOML = '''
import os, pickle
import bentoml
import numpy as np

@bentoml.service(workers=1, traffic={"timeout": 30})
class Digits:
    def __init__(self) -> None:
        with open(os.environ["BENCH_MODEL"], "rb") as f:
            self.model = pickle.load(f)

    @bentoml.api(route="/invocations")
    def invocations(self, dataframe_split: dict) -> dict:
        rows = np.array(dataframe_split["data"], dtype=float)
        return {"predictions": self.model.predict(rows).tolist()}
'''


def free_port() -> int:
    """A port of loopback that is free now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Peer:
    """A server in a process of its own. ``path``: where it is called; ``up``: seconds until its first good answer."""

    def __init__(self, name: str, command: list[str], port: int, path: str, body: bytes,
                 env: dict[str, str] | None = None, cwd: Path | None = None) -> None:
        self.name = name
        self.port = port
        self.path = path
        self.log = tempfile.NamedTemporaryFile("w+", prefix=f"bench-{name}-")  # noqa: SIM115
        begin = time.perf_counter()
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, start_new_session=True, cwd=cwd,
                                        env={**os.environ, **(env or {})})
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, {"Content-Type": "application/json"})
        while True:
            try:
                with urllib.request.urlopen(request, timeout=5) as response:
                    response.read()
                break
            except (urllib.error.URLError, OSError):
                if self.process.poll() is not None or time.perf_counter() - begin > 120:
                    self.stop()
                    self.log.seek(0)
                    raise RuntimeError(f"{name} does not come up: {self.log.read()[-600:]}") from None
                time.sleep(0.03)
        self.up = time.perf_counter() - begin

    def stop(self) -> None:
        """End it and its children."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                break
            deadline = time.monotonic() + 5
            while self.process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
        self.process.wait()


def mlflow_serve(model: Path, body: bytes, name: str = "mlflow") -> Peer:
    """``mlflow models serve`` with one worker."""
    port = free_port()
    env = {"PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"],
           "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model), "-h", "127.0.0.1", "-p", str(port),
               "--env-manager", "local", "-w", "1"]
    return Peer(name, command, port, "/invocations", body, env)


def mlflow_unchecked(model: Path, body: bytes) -> Peer:
    """The same, with the model that has no signature: it lies beside the other one."""
    return mlflow_serve(model.with_name("unchecked"), body, "mlflow without check")


def bare(model: Path, body: bytes) -> Peer:
    """One ASGI function under uvicorn: orjson and predict only."""
    port = free_port()
    return Peer("bare", [sys.executable, str(HERE / "bare_asgi.py"), str(model), str(port)], port, "/", body)


def environment(name: str, *packages: str) -> Path:
    """The Python of an environment with these packages, made when it is not there.

    Raises:
        RuntimeError: it cannot be made.
    """
    root = Path(os.environ.get("JUPYTER_MLOPS_BENCH_PEERS") or Path(tempfile.gettempdir()) / "jupyter-mlops-bench")
    folder = root / name
    python = folder / "bin" / "python"
    if not (folder / ".made").exists():
        shutil.rmtree(folder, ignore_errors=True)
        print(f"installing {', '.join(packages)} into an environment of its own", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        made = subprocess.run([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages],
                              capture_output=True, text=True)
        if made.returncode:
            raise RuntimeError(f"{name} cannot be installed: {made.stderr[-400:]}")
        (folder / ".made").touch()
    return python


def versions(*names: str) -> list[str]:
    """Requirements for the versions that are installed here."""
    from importlib.metadata import version

    return [f"{name}=={version(name)}" for name in names]


def litserve(model: Path, body: bytes) -> Peer:
    """LitServe with batches of up to 16 requests."""
    python = environment("litserve", "litserve", "torch==2.13.0", *versions("scikit-learn", "numpy"))
    script = Path(tempfile.mkdtemp(prefix="bench-litserve-")) / "server.py"
    script.write_text(LITSERVE)
    port = free_port()
    return Peer("litserve", [str(python), str(script), str(model / "model.pkl"), str(port)], port, "/predict", body,
                cwd=script.parent)


def bentoml(model: Path, body: bytes) -> Peer:
    """BentoML with one worker."""
    python = environment("bentoml", "bentoml", *versions("scikit-learn", "numpy"))
    folder = Path(tempfile.mkdtemp(prefix="bench-bentoml-"))
    (folder / "service.py").write_text(BENTOML)
    port = free_port()
    env: dict[str, Any] = {"BENCH_MODEL": str(model / "model.pkl"), "BENTOML_DO_NOT_TRACK": "true",
                           "BENTOML_HOME": str(folder / "home")}
    return Peer("bentoml", [str(python), "-m", "bentoml", "serve", "service:Digits", "--host", "127.0.0.1", "--port",
                            str(port)], port, "/invocations", body, env, folder)
