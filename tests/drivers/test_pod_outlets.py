"""Large files come back through the API server's proxy, and over the stream where they may not."""

from __future__ import annotations

import hashlib
import http.client
import os
import sys
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from conformance import wait_for
from kube_server import status
from pod_server import PodServer
from test_pods import PodBench

from jupyter_mlops.compute.kubernetes import watch
from jupyter_mlops.runtime import outlet

SIZE = 24_000_000


class ProxyServer(PodServer):
    """Whose pods are reached through ``pods/NAME:PORT/proxy``.

    ``refuses``: the status that it answers instead. ``cuts``: after so many bytes an answer breaks off, each time once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.refuses = 0
        self.cuts: list[int] = []
        self.proxied_bytes = 0
        self.tokens: list[str] = []

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if "/proxy/" not in request.path:
            return await super()._answer(request)
        self.calls.append((request.method, request.path))
        assert request.headers["Authorization"] == f"Bearer {self.token}"
        if self.refuses:
            return status(self.refuses, "no", "Forbidden")
        pod, _, rest = request.path.partition("/pods/")[2].partition("/proxy")
        name, _, port = pod.partition(":")
        assert ("pods", name) in self.objects
        self.tokens.append(request.headers[outlet.TOKEN])
        headers = {outlet.TOKEN: request.headers[outlet.TOKEN]}
        url = f"http://127.0.0.1:{port}{rest}?{request.query_string}"
        left = self.cuts.pop(0) if self.cuts else 1 << 40
        async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as answer:
            response = web.StreamResponse(status=answer.status, headers={
                "Content-Length": answer.headers["Content-Length"]})
            await response.prepare(request)
            async for data in answer.content.iter_any():
                await response.write(data[:left])
                self.proxied_bytes += min(left, len(data))
                left -= len(data)
                if left <= 0:
                    assert request.transport is not None
                    request.transport.abort()
                    break
            return response


@pytest.fixture
def server():
    server = ProxyServer().start()
    yield server
    server.stop()


@pytest.fixture
def bench(server, tmp_path, monkeypatch, request):
    monkeypatch.setattr(watch, "RETRY", 0.1)
    bench = PodBench(server, tmp_path, **getattr(request, "param", {}))
    yield bench
    bench.close()


def job_with_output(bench, after=""):
    """A job that leaves a large file; and its digest once it has ended."""
    source = (f"import hashlib, os\ndata = os.urandom({SIZE})\nopen('big', 'wb').write(data)\n"
              f"print(hashlib.sha256(data).hexdigest())\n{after}")
    return bench.cell("a", source)


def came_whole(bench, job):
    seen = bench.ended(job, 60)
    assert seen.phase == "completed" and not seen.incomplete, seen
    data = (job.folder / "outputs" / "big").read_bytes()
    assert len(data) == SIZE and hashlib.sha256(data).hexdigest() == bench.log(job).split()[0]
    assert not list(job.folder.glob("attempts/1/node-0/incoming/*")), "nothing half is left"


def test_large_files_come_through_the_proxy(bench, server):
    job = job_with_output(bench, "open('small', 'w').write('x')")
    came_whole(bench, job)
    assert server.proxied_bytes >= SIZE and (job.folder / "outputs" / "small").read_text() == "x"
    assert sum("/proxy/" in path for _, path in server.calls) == 1, "small ones are no such trouble worth"


def test_what_breaks_off_goes_on_where_it_ended(bench, server):
    server.cuts = [5_000_000, 7_000_000]
    came_whole(bench, job_with_output(bench))
    assert server.proxied_bytes < SIZE + 3 * outlet.PIECE, "not from the beginning"


@pytest.mark.parametrize("code", [403, 502])
def test_without_the_proxy_they_come_over_the_stream(bench, server, code):
    server.refuses = code
    came_whole(bench, job_with_output(bench))
    assert sum("/proxy/" in path for _, path in server.calls) == 1 and not bench.driver.follower.outlets.usable


@pytest.mark.parametrize("bench", [{"transfer": "exec"}], indirect=True)
def test_an_operator_can_have_it_so(bench, server):
    came_whole(bench, job_with_output(bench))
    assert not any("/proxy/" in path for _, path in server.calls)


def test_another_control_plane_goes_on(bench, server):
    """Also when the one before ended in the middle of a file."""
    server.cuts = [9_000_000]
    job = job_with_output(bench)
    wait_for(lambda: server.proxied_bytes > 2_000_000, 30)
    bench.driver.close()
    bench.driver = bench.make()
    came_whole(bench, job)


def test_only_who_was_told_the_token_gets_what_was_offered(tmp_path):
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "big").write_bytes(b"x" * 3_000_000)
    (tmp_path / "secret").write_text("s3cret")
    os.symlink(tmp_path / "secret", tmp_path / "outputs" / "link")
    served = outlet.Outlet("127.0.0.1", str(tmp_path))
    info = (tmp_path / "outputs" / "big").stat()
    big = served.offer("outputs/big", info.st_size, info.st_mtime_ns)
    link = served.offer("outputs/link", info.st_size, info.st_mtime_ns)

    def get(path, token=served.token):
        connection = http.client.HTTPConnection("127.0.0.1", served.server_address[1], timeout=10)
        connection.request("GET", path, headers={outlet.TOKEN: token} if token is not None else {})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, body

    assert get(f"/{big}")[0] == 200 and len(get(f"/{big}?at=1000000")[1]) == outlet.length(2_000_000)
    for token in (None, "", "x", served.token[:-1], "\xff"):
        assert get(f"/{big}", token)[0] == 403
    for path in ("/", "/99", "/outputs/big", "/../secret", f"/{big}?at=-1", f"/{big}?at=9999999", f"/{big}?at=²"):
        assert get(path.encode("ascii", "replace").decode())[0] in (403, 404)
    assert get(f"/{link}")[0] == outlet.CHANGED, "no link is followed"
    with open(tmp_path / "outputs" / "big", "ab") as f:
        f.write(b"y")
    assert get(f"/{big}")[0] == outlet.CHANGED
    served.withdraw("outputs/big")
    assert get(f"/{big}")[0] == 404
    served.shutdown()
    served.server_close()
