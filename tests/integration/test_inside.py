"""The way from a terminal here to a rank: command line's end, WebSocket and driver are the real ones; the rest of the
control plane, which has no part in it, is left out."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import free_port, wait_for
from tornado import web
from tornado.httpserver import HTTPServer

sys.path.insert(0, str(Path(__file__).parents[1] / "drivers"))
sys.path.insert(0, str(Path(__file__).parents[1]))

from conformance import Bench
from typist import Typist

from jupyter_mlops.client.transport import Transport
from jupyter_mlops.compute.local import LocalCompute
from jupyter_mlops.control.inside import ROUTE, InsideHandler
from jupyter_mlops.core.errors import Conflict, Forbidden, MlopsError, ParameterError, Refused, Unauthenticated
from jupyter_mlops.core.identity import Identity
from jupyter_mlops.magics import arguments
from jupyter_mlops.magics.opener import MIME, Opener

WAITING = "import os, time\nopen('file', 'w').close()\nprint('up', flush=True)\ntime.sleep(120)"
MAIN = """
import asyncio, os, sys
from jupyter_mlops.client import inside
from jupyter_mlops.client.transport import Transport

async def run():
    transport = Transport(url=os.environ["TEST_URL"], token="owner")
    try:
        return await inside.shell(transport, "a", 0)
    finally:
        await transport.close()

sys.exit(asyncio.run(run()))
"""


class Served:
    """A job that runs, and the route that leads into it."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.job = bench.cell("a", WAITING, environment_variables={"COLOUR": "teal"})
        bench.says(self.job, "up")
        wait_for(lambda: bench.observe(self.job).phase == "running")
        self.phase = "Running"
        self.audited: list[tuple] = []
        self.port = free_port()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(20)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/jupyter-mlops"

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen())
        self._ready.set()
        self._loop.run_forever()

    async def _listen(self) -> None:
        def identify(token: str) -> Identity:
            if token not in ("owner", "reader"):
                raise Unauthenticated("no")
            return Identity(user="ann", role=token)

        async def get(identity, kind, name):
            return SimpleNamespace(name=name, spec={"compute": "local", "cell": {"source": "1"}},
                                   status={"phase": self.phase, "attempt": 1, "reason": "because"})

        async def write(work):
            return work(SimpleNamespace(audit=lambda who, *row: self.audited.append((who.user, *row))))

        plane = SimpleNamespace(
            name="default", version="0", identify=identify, workspace=SimpleNamespace(get=get),
            store=SimpleNamespace(write=write), driver_for=lambda compute: self.bench.driver,
            jobs=SimpleNamespace(ref=lambda name: self.job))
        HTTPServer(web.Application([(ROUTE, InsideHandler)], plane=plane)).listen(self.port, "127.0.0.1")

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


@pytest.fixture
def served(tmp_path, monkeypatch):
    monkeypatch.setattr("jupyter_mlops.control.base.compatible", lambda theirs, ours: True)
    bench = Bench(LocalCompute, tmp_path / "home")
    served = Served(bench)
    yield served
    served.stop()
    bench.close()


def shell_of(served: Served) -> Typist:
    """A terminal in which a shell is asked for."""
    return Typist([sys.executable, "-c", MAIN], TEST_URL=served.url)


def test_a_shell_in_a_terminal(served):
    typist = shell_of(served)
    try:
        typist.type("echo =$COLOUR= $(ls)\n")
        typist.sees("=teal= file")
        typist.type("stty size\n")
        typist.sees("31 97")
        typist.size(40, 120)
        os.kill(typist.process.pid, signal.SIGWINCH)
        until = time.monotonic() + 30
        while "40 120" not in typist.seen and time.monotonic() < until:
            typist.type("stty size; echo told\n")
            typist.sees("told\r\n")
            typist.seen = typist.seen.replace("told\r\n", "")
        typist.sees("40 120", 1)
        # Ctrl-C is for what runs in the shell.
        typist.type("echo begun; sleep 600\n")
        typist.sees("begun\r\n")
        typist.type("\x03")
        typist.type("echo pid=$$ alive=$((40+2))\n")
        pid = int(typist.sees("alive=42").rsplit("pid=", 1)[1].split()[0])
        typist.type("exit 7\n")
        assert typist.process.wait(60) == 7
        wait_for(lambda: not os.path.exists(f"/proc/{pid}"), 30)
    finally:
        typist.close()
    assert served.audited == [("ann", "jobs/shell", "jobs/a", {"op": "shell", "rank": 0})]
    assert served.bench.observe(served.job).phase == "running", "the job goes on"


def test_a_terminal_that_is_closed_ends_its_shell(served):
    typist = shell_of(served)
    typist.type("echo pid=$$ here=$((40+2))\n")
    pid = int(typist.sees("here=42").rsplit("pid=", 1)[1].split()[0])
    typist.close()
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), 30)


def test_what_is_refused(served):
    async def connect(path: str, token: str = "owner", **params) -> None:
        transport = Transport(url=served.url, token=token)
        try:
            async with transport.websocket(path, params):
                pass
        finally:
            await transport.close()

    def refused(kind: type[MlopsError], words: str, *given, **params) -> None:
        with pytest.raises(kind, match=words):
            asyncio.run(connect(*given, **params))

    refused(Unauthenticated, "no", "/jobs/a/shell", "stranger", rank=0)
    refused(Forbidden, "may not jobs/shell", "/jobs/a/shell", "reader", rank=0)
    refused(ParameterError, "rank '9' is none of 0 to 0", "/jobs/a/shell", rank=9)
    refused(ParameterError, "port '0' is none of", "/jobs/a/forward", rank=0, port=0)
    refused(Refused, "need no forwarding", "/jobs/a/forward", rank=0, port=8080)
    for phase, words in (("Completed", "has ended"), ("Starting", "does not run yet .Starting: because")):
        served.phase = phase
        refused(Conflict, words, "/jobs/a/shell", rank=0)
    assert not served.audited


def test_in_a_notebook_it_says_what_to_type():
    bundle = Opener("digits", 1, "default")._repr_mimebundle_()
    assert bundle["text/plain"] == "In a terminal: jupyter mlops shell digits --rank 1"
    assert (bundle[MIME]["name"], bundle[MIME]["rank"]) == ("digits", 1)


@pytest.mark.parametrize(("text", "ports"), [("8080", (8080, 8080)), ("80:9090", (80, 9090)), ("80:0", (80, 0))])
def test_ports(text, ports):
    assert arguments.ports(text) == ports
    for wrong in ("0", "x:1", "1:", "70000", "", "1:2:3"):
        with pytest.raises(Exception, match="is not PORT"):
            arguments.ports(wrong)
