"""MLflow as our child runs it, but on TCP, so that MLflow's own client can speak to it without us between."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common import REPO

SERVE = """
import sys
sys.path.insert(0, {repo!r})
from jupyter_mlops.tracking.serve import UNUSED
for name in UNUSED:
    sys.modules.setdefault(name, None)
import uvicorn
from mlflow.server import fastapi_app, handlers
handlers._get_tracking_store()
uvicorn.run(fastapi_app.app, host="127.0.0.1", port={port}, log_level="warning", access_log=False)
"""


@contextmanager
def lean_mlflow() -> Iterator[str]:
    """URL of a fresh one."""
    from jupyter_mlops.tracking.child import MlflowChild

    home = Path(tempfile.mkdtemp(prefix="mlflow-peer-"))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    (home / "artifacts").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE.format(repo=str(REPO), port=port)], cwd=home,
        env=MlflowChild(home, home)._environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(url + "/health", timeout=5).read()
                break
            except (urllib.error.URLError, OSError):
                if time.monotonic() > deadline or process.poll() is not None:
                    raise
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(home, ignore_errors=True)
