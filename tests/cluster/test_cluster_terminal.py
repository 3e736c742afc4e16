"""A shell and a port of one of two ranks, from the command line as a user types it, on a real cluster."""

from __future__ import annotations

import os
import signal
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cluster_bench import cluster, fresh_namespace
from conftest import Plane, make_home, wait_for

sys.path.insert(0, str(Path(__file__).parents[1]))

from typist import Typist

pytestmark = pytest.mark.cluster
__all__ = ["cluster", "fresh_namespace"]

CELL = """
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        size = int(self.path[1:] or 0)
        self.send_response(200)
        self.send_header("Rank", os.environ["RANK"])
        self.send_header("Content-Length", str(size))
        self.end_headers()
        self.wfile.write(b"x" * size)

    def log_message(self, *_):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 8080), Handler)
print("up", flush=True)
server.serve_forever()
"""


@pytest.fixture
def plane(fresh_namespace):
    """A control plane with a job that runs on two nodes."""
    image = os.environ.get("CLUSTER_TORCH_IMAGE")
    if not image:
        pytest.skip("needs CLUSTER_TORCH_IMAGE, an image with torch")
    plane = Plane(make_home()).start().mlflow_ready()
    plane.put("computes/gpu", {"type": "kubernetes", "namespace": fresh_namespace, "training": {"image": image}})
    plane.put("jobs/pair", {
        "cell": {"source": CELL}, "compute": "gpu", "distribution": {"type": "pytorch"}, "limits": {"grace": 1},
        "environment_variables": {"COLOUR": "teal"},
        "resources": {"instance_count": 2, "cpus": 0.2, "memory": "512Mi"}})
    logs = [plane.home / "jobs" / "pair" / "attempts" / "1" / f"rank-{rank}.log" for rank in (0, 1)]
    wait_for(lambda: all(log.exists() and "up" in log.read_text() for log in logs), 120)
    yield plane
    plane.stop()


def command(plane: Plane, *words: str) -> Typist:
    return Typist([sys.executable, "-m", "jupyter_mlops.cli", *words], JUPYTER_MLOPS_HOME=str(plane.home))


def test_from_the_command_line(plane):
    forwarding = command(plane, "port-forward", "pair", "8080:0", "--rank", "1")
    try:
        said = forwarding.sees("Ctrl-C ends it")
        assert "is port 8080 of rank 1 of job pair" in said, said
        port = int(said.partition("127.0.0.1:")[2].split()[0])

        def get(size: int) -> tuple[str, int]:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{size}", timeout=60) as response:
                return response.headers["Rank"], len(response.read())

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(get, [100] * 16)) == [("1", 100)] * 16
        assert get(20_000_000) == ("1", 20_000_000)
        forwarding.process.send_signal(signal.SIGINT)
        assert forwarding.process.wait(30) == 130
    finally:
        forwarding.close()
    shell = command(plane, "shell", "pair", "--rank", "1")
    try:
        shell.sees("Rank 1 of job pair")
        shell.type("echo =$COLOUR=$RANK= $(hostname) size $(stty size)\n")
        assert "=teal=1= pair-1-" in shell.sees("size 31 97")
        shell.type("exit 7\n")
        assert shell.process.wait(30) == 7
    finally:
        shell.close()
    assert plane.get("jobs/pair")["status"]["phase"] == "Running"
    closed = command(plane, "port-forward", "pair", "8081:0")
    try:
        port = int(closed.sees("Ctrl-C ends it").partition("127.0.0.1:")[2].split()[0])
        with pytest.raises(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30)
        closed.sees("nothing listens on port 8081 there")
    finally:
        closed.close()
    plane.post("jobs/pair/actions/stop")
    plane.wait_job("pair", 60)
    for words in (("shell", "pair"), ("port-forward", "pair", "8080")):
        late = command(plane, *words)
        try:
            late.sees("pair")
            assert late.process.wait(30) == 1 and "(Canceled)" in late.sees("(Canceled)")
        finally:
            late.close()
