"""A shell and a port of a rank on a real cluster, as the driver gives them."""

from __future__ import annotations

import asyncio
import json

import pytest
from cluster_bench import IMAGE, cluster, namespace
from conftest import wait_for

from jupyter_mlops.compute.base import JobRef
from jupyter_mlops.compute.kubernetes.driver import KubernetesCompute
from jupyter_mlops.core.errors import Conflict
from jupyter_mlops.core.resources.compute import ComputeSpec

pytestmark = pytest.mark.cluster
__all__ = ["cluster", "namespace"]

CELL = """
import os, socket
open("file", "w").close()
s = socket.create_server(("127.0.0.1", 8080))
print("up", flush=True)
while True:
    c, _ = s.accept()
    got = b""
    while piece := c.recv(65536):
        got += piece
    c.sendall(got.upper() + b"bye")
    c.close()
"""


@pytest.fixture
def running(namespace, tmp_path):
    """(driver, job) of a job that runs."""
    spec = ComputeSpec(type="kubernetes", namespace=namespace, training={"image": IMAGE, "hold": 10})
    driver = KubernetesCompute("inside", "gpu", spec)
    folder = tmp_path / "jobs" / "inside"
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(json.dumps({"cell": {"source": CELL}, "limits": {"grace": 1},
                                                  "environment_variables": {"COLOUR": "teal"}}))
    job = JobRef("inside", folder)
    driver.start(job, 1, {})
    wait_for(lambda: driver.observe(job, 1).phase == "running", 90)
    wait_for(lambda: b"up" in driver.read_log(job, 1, 0, 0, 100).data, 30)
    yield driver, job
    driver.stop(job, 1, 1.0)
    wait_for(lambda: driver.observe(job, 1).terminal, 60)
    with pytest.raises(Conflict):
        driver.shell(job, 1, 0)
    driver.close()


def test_shell_and_port(running):
    driver, job = running

    async def shell() -> tuple[str, int | None]:
        seen = ""
        async with asyncio.timeout(60), driver.shell(job, 1, 0) as channel:
            await channel.resize(31, 97)
            for line in ("echo =$COLOUR= $(ls) $(hostname)", "stty size", "exit 7"):
                await channel.send(line.encode() + b"\n")
            async for data in channel.output():
                seen += data.decode("utf-8", "replace")
        return seen, channel.exit_code

    seen, code = asyncio.run(shell())
    assert "=teal= file inside-1-" in seen and "31 97" in seen and code == 7, (seen, code)

    async def call(port: int) -> tuple[bytes, int | None, bytes]:
        got = b""
        async with asyncio.timeout(60), driver.forward(job, 1, 0, port) as channel:
            for _ in range(10):
                await channel.send(b"abc" * 10_000)
            await channel.end_input()
            async for data in channel.output():
                got += data
        return got, channel.exit_code, channel.stderr

    got, code, _ = asyncio.run(call(8080))
    assert got == b"ABC" * 100_000 + b"bye" and code == 0
    got, code, said = asyncio.run(call(1))
    assert (got, code) == (b"", 1) and b"nothing listens on port 1 there" in said
