"""Shells and ports of ranks as drivers give them: in pods that are processes, and on this machine."""

from __future__ import annotations

import asyncio
import json
import os

import pytest
from conformance import Bench, wait_for
from test_pods import bench as pods
from test_pods import server

from jupyter_mlops.compute.local import LocalCompute
from jupyter_mlops.core.errors import Conflict

__all__ = ["pods", "server"]

WAITING = "import os, time\nopen('file', 'w').close()\nprint('up', flush=True)\ntime.sleep(120)"


@pytest.fixture
def local(tmp_path):
    bench = Bench(LocalCompute, tmp_path / "home")
    yield bench
    bench.close()


async def typed(channel, *lines: str, size=(31, 97)) -> tuple[str, int | None]:
    """What a shell answers, and its exit code."""
    seen = ""
    async with asyncio.timeout(60), channel:
        await channel.resize(*size)
        for line in lines:
            await channel.send(line.encode() + b"\n")
        async for data in channel.output():
            seen += data.decode("utf-8", "replace")
    return seen, channel.exit_code


@pytest.mark.parametrize("kind", ["pods", "local"])
def test_a_shell_has_the_ranks_environment_and_folder(request, kind):
    bench = request.getfixturevalue(kind)
    job = bench.cell("a", WAITING, environment_variables={"COLOUR": "teal"})
    bench.says(job, "up")
    wait_for(lambda: bench.observe(job).phase == "running")
    seen, code = asyncio.run(typed(bench.driver.shell(job, 1, 0), "echo =$COLOUR= $(ls)", "stty size", "exit 7"))
    assert "=teal= file" in seen and "31 97" in seen and code == 7, seen
    assert bench.observe(job).phase == "running", "the job goes on"
    # What is left open ends with whoever had asked for it; the attempt does not wait for it.
    bench.driver.stop(job, 1, 1.0)
    assert bench.ended(job).phase == "canceled"
    with pytest.raises(Conflict):
        bench.driver.shell(job, 1, 0)


def test_a_port_of_a_pod(pods, server):
    job = pods.cell("a", """
import os, socket, time
s = socket.create_server(("127.0.0.1", 0))
open("port", "w").write(str(s.getsockname()[1]))
print("up", flush=True)
while True:
    c, _ = s.accept()
    got = b""
    while piece := c.recv(65536):
        got += piece
    c.sendall(got.upper() + b"bye")
    c.close()
""")
    pods.says(job, "up")
    wait_for(lambda: (job.folder / "outputs" / "port").exists())
    port = int((job.folder / "outputs" / "port").read_text())

    async def call(to: int) -> tuple[bytes, int | None, bytes]:
        got = b""
        async with asyncio.timeout(60), pods.driver.forward(job, 1, 0, to) as channel:
            for _ in range(10):
                await channel.send(b"abc" * 10_000)
            await channel.end_input()
            async for data in channel.output():
                got += data
            return got, channel.exit_code, channel.stderr

    for _ in range(2):
        got, code, _said = asyncio.run(call(port))
        assert got == b"ABC" * 100_000 + b"bye" and code == 0
    got, code, said = asyncio.run(call(1))
    assert (got, code) == (b"", 1) and b"nothing listens on port 1 there" in said, said


def test_a_rank_that_is_gone(tmp_path, local):
    job = local.cell("a", "print('up', flush=True)")
    assert local.ended(job).phase == "completed"
    with pytest.raises(Conflict, match="rank 0 of job a does not run"):
        local.driver.shell(job, 1, 0)
    assert "rank" in json.dumps(os.listdir(job.folder / "attempts" / "1"))
