"""A look inside a rank that runs: a shell and ports, on this machine and in pods that are processes."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from conftest import REPO, Plane, free_port, make_home, wait_for

sys.path.insert(0, str(Path(__file__).parents[1] / "drivers"))

from pod_server import PodServer

from jupyter_mlops.client.transport import Transport
from jupyter_mlops.core.errors import Conflict, Forbidden, NotFound, ParameterError, Refused
from jupyter_mlops.magics import commands
from jupyter_mlops.magics.context import Context
from jupyter_mlops.magics.parser import parse, split

WAITING = """
import os, socketserver, threading, time
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(65536):
            self.request.sendall(data.upper())
        self.request.sendall(b"bye")
server = socketserver.ThreadingTCPServer(("127.0.0.1", int(os.environ["PORT"])), Echo)
threading.Thread(target=server.serve_forever, daemon=True).start()
open("here", "w").close()
print("up", flush=True)
time.sleep(120)
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(plane, port of the cell on the cluster) with a job on this machine and one on a cluster, both running."""
    server = PodServer().start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_MLOPS_KUBECONFIG", server.kubeconfig(tmp_path_factory.mktemp("kube")))
        plane = Plane(make_home()).start().mlflow_ready()
    plane.put("computes/gpu", {"type": "kubernetes", "namespace": "team", "context": "emulated",
                               "training": {"image": "image:1", "hold": 10}})
    port = free_port()
    for name, compute in (("here", "local"), ("there", "gpu")):
        plane.put(f"jobs/{name}", {
            "compute": compute, "cell": {"source": WAITING}, "limits": {"grace": 1},
            "environment_variables": {"PORT": str(port if compute == "gpu" else free_port()), "COLOUR": name}})
    for name in ("here", "there"):
        log = plane.home / "jobs" / name / "attempts" / "1" / "rank-0.log"
        wait_for(lambda p=log: p.exists() and "up" in p.read_text(), 60)
    yield plane, port
    plane.stop()
    server.stop()


class Typist:
    """The command line in a terminal of its own."""

    def __init__(self, plane: Plane, *words: str) -> None:
        self.master, theirs = pty.openpty()
        self.size(31, 97)
        env = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "MLFLOW"))}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jupyter_mlops.cli", *words], stdin=theirs, stdout=theirs, stderr=theirs,
            env={**env, "JUPYTER_MLOPS_HOME": str(plane.home), "PYTHONPATH": str(REPO), "PS1": "$ "},
            start_new_session=True)
        os.close(theirs)
        self.seen = ""

    def size(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def sees(self, text: str, timeout: float = 30.0) -> str:
        until = time.monotonic() + timeout
        while text not in self.seen:
            assert time.monotonic() < until, self.seen
            if select.select([self.master], [], [], 0.2)[0]:
                with contextlib.suppress(OSError):
                    self.seen += os.read(self.master, 65536).decode("utf-8", "replace")
        return self.seen

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.mark.parametrize("job", ["here", "there"])
def test_a_shell_beside_a_rank(served, job):
    plane, _ = served
    typist = Typist(plane, "shell", job)
    try:
        typist.sees("the job goes on")
        typist.type("echo colour=$COLOUR rank=$RANK files=$(ls)\n")
        assert f"colour={job}" in typist.sees("files=here\r\n")
        typist.type("stty size\n")
        typist.sees("31 97")
        typist.size(40, 120)
        os.kill(typist.process.pid, signal.SIGWINCH)
        time.sleep(0.5)
        typist.type("stty size\n")
        typist.sees("40 120")
        # Ctrl-C is for what the shell runs, not for the command line.
        typist.type("sleep 600; echo slept=$?\n")
        time.sleep(0.5)
        typist.type("\x03")
        typist.type("echo alive=$((40+2))\n")
        typist.sees("alive=42")
        typist.type("exit 7\n")
        assert typist.process.wait(20) == 7
    finally:
        typist.close()
    assert plane.get(f"jobs/{job}")["status"]["phase"] == "Running", "the job goes on"
    row = next(r for r in plane.get("audit")["items"] if r["action"] == "jobs/shell" and r["resource"] == f"jobs/{job}")
    assert row["detail"] == {"op": "shell", "rank": 0}, row


def test_a_terminal_that_is_closed_ends_its_shell(served):
    plane, _ = served
    typist = Typist(plane, "shell", "here")
    typist.sees("the job goes on")
    typist.type("echo pid=$$.\n")
    seen = typist.sees(".\r\n")
    pid = int(seen.rsplit("pid=", 1)[1].split(".")[0])
    typist.close()
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), 20)


def test_a_port_is_forwarded(served):
    plane, port = served
    here = free_port()
    typist = Typist(plane, "port-forward", "there", f"{port}:{here}")
    try:
        typist.sees("Ctrl-C ends it")
        for round_ in range(2):
            with socket.create_connection(("127.0.0.1", here), timeout=20) as s:
                data = b"abc" * 100_000 + str(round_).encode()
                s.sendall(data)
                s.shutdown(socket.SHUT_WR)
                got = b""
                while piece := s.recv(65536):
                    got += piece
                assert got == data.upper() + b"bye"
        typist.type("\x03")
        os.kill(typist.process.pid, signal.SIGINT)
        assert typist.process.wait(20) in (0, 130)
    finally:
        typist.close()
    typist = Typist(plane, "port-forward", "there", f"{free_port()}:{free_port()}")
    try:
        typist.sees("Ctrl-C ends it")
        with socket.create_connection(("127.0.0.1", int(typist.seen.split("127.0.0.1:")[1].split()[0])), 20) as s:
            assert s.recv(10) == b""
        typist.sees("nothing listens on port")
    finally:
        typist.close()


def test_what_is_refused(served):
    plane, _ = served

    def run(line: str):
        return commands.run(parse(split(line), "cli"), Context("cli", where=plane.place))

    async def connect(path, **params):
        role = params.pop("role", None)
        transport = Transport(plane.place, role=role)
        try:
            async with transport.websocket(path, params):
                pass
        finally:
            await transport.close()

    with pytest.raises(Refused, match="needs a terminal"):
        run("shell here")
    with pytest.raises(ParameterError, match="no rank 3"):
        run("shell here --rank 3")
    for line in ("port-forward there 0", "port-forward there x:1", "port-forward there 1:"):
        with pytest.raises(ParameterError, match="is not PORT"):
            run(line)
    plane.put("jobs/over", {"command": "true"})
    wait_for(lambda: plane.get("jobs/over")["status"]["phase"] == "Completed", 30)
    with pytest.raises(Conflict, match="has ended"):
        run("shell over")
    with pytest.raises(Conflict, match="has ended"):
        asyncio.run(connect("/jobs/over/shell", rank=0))
    with pytest.raises(NotFound):
        asyncio.run(connect("/jobs/none/shell", rank=0))
    with pytest.raises(Refused, match="need no forwarding"):
        asyncio.run(connect("/jobs/here/forward", rank=0, port=8080))
    with pytest.raises(ParameterError, match="rank '9'"):
        asyncio.run(connect("/jobs/here/shell", rank=9))
    with pytest.raises(Forbidden, match="may not jobs/shell"):
        asyncio.run(connect("/jobs/here/shell", rank=0, role="reader"))
    status, body = plane.call("GET", "jobs/here/shell?rank=0")[:2]
    assert status == 400 and "WebSocket only" in json.dumps(body)


def test_in_a_notebook_it_says_what_to_type(served):
    plane, _ = served
    made = commands.run(parse(split("shell here"), "magic"), Context("magic", where=plane.place))
    bundle = made._repr_mimebundle_()
    assert bundle["text/plain"] == "In a terminal: jupyter mlops shell here --rank 0"
    assert bundle["application/vnd.jupyter-mlops.shell+json"]["name"] == "here"
