"""The streaming reverse proxy: flat memory both ways, exact bytes, clear errors; tornado's handlers and Jupyter's."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import subprocess
import sys
import time

import aiohttp
import pytest
from aiohttp import web as aioweb
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, HTTPError, RequestHandler, stream_request_body
from yarl import URL

from jupyter_mlops.core.errors import Forbidden
from jupyter_mlops.streaming import StreamingProxy, Upstream, forward_headers, tcp_session, unix_session

SIZE = 300 * 1024 * 1024
BLOCK = bytes(range(256)) * 1024

#: The proxy in its own process, so that its memory can be seen: Jupyter's handler when argv[3] is "jupyter".
PROXY = r"""
import asyncio, sys
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler, stream_request_body
from jupyter_mlops.streaming import StreamingProxy, Upstream, forward_headers, unix_session

path, kind = sys.argv[1], sys.argv[2]

async def main():
    session = unix_session(path)
    settings = {"compress_response": True}
    if kind == "jupyter":
        from jupyter_server.base.handlers import APIHandler as Base
        from jupyter_server.auth import IdentityProvider
        settings["identity_provider"] = IdentityProvider(token="tok")
        settings["allow_remote_access"] = True
        settings["xsrf_cookies"] = True
        settings["base_url"] = "/"
        settings["cookie_secret"] = b"secret"
    else:
        Base = RequestHandler

    @stream_request_body
    class Proxy(StreamingProxy, Base):
        async def route(self, path):
            return Upstream(session, self.request.uri, forward_headers(self.request, drop=("Authorization",)))

    server = HTTPServer(Application([("(/.*)", Proxy)], **settings))
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    print(sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def upstream_app(path):
    """An upstream on a unix socket (``path``) or TCP (None): echoes, serves, refuses early, breaks off."""

    async def upload(request):
        digest, size = hashlib.sha256(), 0
        async for chunk in request.content.iter_any():
            digest.update(chunk)
            size += len(chunk)
        return aioweb.json_response({
            "size": size, "sha": digest.hexdigest(), "headers": dict(request.headers), "uri": request.raw_path,
        })

    async def download(request):
        size = int(request.query["size"])
        response = aioweb.StreamResponse(headers={"Content-Type": "text/plain"})
        if "chunked" not in request.query:
            response.content_length = size
        await response.prepare(request)
        while size > 0 and request.method != "HEAD":
            part = BLOCK[:size]
            await response.write(part)
            size -= len(part)
        return response

    async def early(request):
        return aioweb.json_response({"message": "no"}, status=403)

    async def broken(request):
        response = aioweb.StreamResponse()
        if "chunked" not in request.query:
            response.content_length = 1000
        await response.prepare(request)
        await response.write(b"x" * 10)
        request.transport.abort()
        return response

    async def endless(request):
        app["open"] += 1
        response = aioweb.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(BLOCK)
                await asyncio.sleep(0.01)
        finally:
            app["open"] -= 1

    async def ranged(request):
        return aioweb.FileResponse(app["file"])

    async def empty(request):
        return aioweb.Response(status=204)

    async def absorbing(request):
        app["open"] += 1
        try:
            async for _ in request.content.iter_any():
                pass
        finally:
            app["open"] -= 1
        return aioweb.Response()

    app = {"open": 0}
    site = aioweb.Application(client_max_size=1 << 40)
    site.router.add_route("*", "/upload{tail:.*}", upload)
    site.router.add_route("*", "/download", download)
    site.router.add_post("/early", early)
    site.router.add_get("/broken", broken)
    site.router.add_get("/endless", endless)
    site.router.add_get("/file", ranged)
    site.router.add_route("*", "/empty", empty)
    site.router.add_post("/absorbing", absorbing)
    runner = aioweb.AppRunner(site, handler_cancellation=True)
    await runner.setup()
    if path:
        await aioweb.UnixSite(runner, path).start()
        return app, runner, path
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    await aioweb.SockSite(runner, sock).start()
    return app, runner, f"http://127.0.0.1:{sock.getsockname()[1]}"


def rss(pid):
    with open(f"/proc/{pid}/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmRSS"))


async def body(size):
    while size > 0:
        part = BLOCK[:size]
        size -= len(part)
        yield part


def digest_of(size):
    digest = hashlib.sha256()
    while size > 0:
        part = BLOCK[:size]
        digest.update(part)
        size -= len(part)
    return digest.hexdigest()


@pytest.mark.parametrize("kind", ["tornado", "jupyter"])
async def test_large_bodies_pass_with_flat_memory(tmp_path, kind):
    path = str(tmp_path / "u.sock")
    _, runner, _ = await upstream_app(path)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROXY, path, kind, stdout=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        port = int(await asyncio.wait_for(process.stdout.readline(), 30))
        base = f"http://127.0.0.1:{port}"
        headers = {"Authorization": "token tok"} if kind == "jupyter" else {}
        async with aiohttp.ClientSession(headers=headers, auto_decompress=False) as client:
            async with client.post(f"{base}/upload", data=body(1000)) as response:
                assert (await response.json())["size"] == 1000
            before = rss(process.pid)
            peak = before
            async with client.post(
                URL(f"{base}/upload?a=%2F", encoded=True), data=body(SIZE), headers={"Content-Length": str(SIZE)}
            ) as response:
                answer = await response.json()
                peak = max(peak, rss(process.pid))
            assert (answer["size"], answer["sha"]) == (SIZE, digest_of(SIZE))
            assert answer["uri"] == "/upload?a=%2F"
            assert answer["headers"]["Content-Length"] == str(SIZE)
            assert "Authorization" not in answer["headers"]
            for query in ("", "&chunked"):
                digest, size, seen = hashlib.sha256(), 0, 0
                async with client.get(
                    f"{base}/download?size={SIZE}{query}", headers={"Accept-Encoding": "gzip"}
                ) as response:
                    assert "Content-Encoding" not in response.headers
                    assert response.headers.get("Content-Length") == (None if query else str(SIZE))
                    async for chunk in response.content.iter_any():
                        digest.update(chunk)
                        size += len(chunk)
                        seen += 1
                        if seen % 200 == 0:
                            peak = max(peak, rss(process.pid))
                assert (size, digest.hexdigest()) == (SIZE, digest_of(SIZE))
            assert peak - before < 50 * 1024 * 1024
            if kind == "jupyter":
                async with client.post(f"{base}/upload", data=b"x", headers={"Authorization": ""}) as response:
                    assert response.status == 403
    finally:
        process.kill()
        await process.wait()
        await runner.cleanup()


@pytest.fixture(params=["unix", "tcp"])
async def proxy(request, tmp_path):
    """(base URL, upstream app, its runner) of a proxy in this process."""
    app, runner, where = await upstream_app(str(tmp_path / "u.sock") if request.param == "unix" else None)
    app["file"] = tmp_path / "file.bin"
    app["file"].write_bytes(BLOCK)
    session = unix_session(where) if request.param == "unix" else tcp_session()
    prefix = "" if request.param == "unix" else where

    @stream_request_body
    class Proxy(StreamingProxy, RequestHandler):
        async def route(self, path):
            if path.startswith("/refused"):
                raise Forbidden("not for you", "ask")
            if path.startswith("/http-error"):
                raise HTTPError(404)
            if path.startswith("/here"):
                return None
            if path.startswith("/buffered"):
                return Upstream(session, prefix + "/upload", forward_headers(self.request), buffer=100)
            return Upstream(session, prefix + self.request.uri, forward_headers(self.request))

        async def inspect(self, upstream, body):
            if body == b"stop":
                self.finish("stopped")
                return None
            return body + b"!"

        async def answer_here(self, body):
            self.finish({"here": len(body)})

    server = HTTPServer(Application([("(/.*)", Proxy)], compress_response=True))
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    yield f"http://127.0.0.1:{sockets[0].getsockname()[1]}", app, runner
    server.stop()
    await server.close_all_connections()
    await session.close()
    await runner.cleanup()


async def test_answers_pass_unchanged(proxy):
    base, _, _ = proxy
    async with aiohttp.ClientSession() as client:
        async with client.head(f"{base}/file") as response:
            assert (response.status, response.headers["Content-Length"]) == (200, str(len(BLOCK)))
        async with client.head(f"{base}/download?size=5&chunked") as response:
            assert response.status == 200
        async with client.get(f"{base}/file", headers={"Range": "bytes=5-9"}) as response:
            assert (response.status, await response.read()) == (206, BLOCK[5:10])
            etag = response.headers["Etag"]
        async with client.get(f"{base}/file", headers={"If-None-Match": etag}) as response:
            assert response.status == 304
        for method in ("GET", "POST", "DELETE"):
            async with client.request(method, f"{base}/empty") as response:
                assert (response.status, await response.read()) == (204, b"")
        for data in (b"", b"x" * 70_000, body(70_000)):
            async with client.put(URL(f"{base}/upload/%2e%2E%2Fx%00?q=a%20b", encoded=True), data=data) as response:
                answer = await response.json()
                assert answer["uri"] == "/upload/%2e%2E%2Fx%00?q=a%20b"
        assert answer["size"] == 70_000
        headers = {"Connection": "X-Secret", "X-Secret": "1", "TE": "trailers", "X-Kept": "2"}
        async with client.get(f"{base}/upload", headers=headers) as response:
            sent = (await response.json())["headers"]
            assert sent["X-Kept"] == "2"
            assert not {"X-Secret", "TE", "Te"} & set(sent)


async def test_refusals_reach_a_client_that_is_still_sending(proxy):
    base, _, _ = proxy
    async with aiohttp.ClientSession() as client:
        for path, status in (("/refused", 403), ("/http-error", 404), ("/early", 403)):
            for data in (b"", b"x" * 10, body(40_000_000)):
                async with client.post(base + path, data=data) as response:
                    assert response.status == status, path
        async with client.post(f"{base}/refused") as response:
            assert await response.json() == {"message": "not for you", "code": "forbidden", "hint": "ask"}


async def test_bodies_that_are_inspected(proxy):
    base, _, _ = proxy
    async with aiohttp.ClientSession() as client:
        async with client.post(f"{base}/buffered", data=b"abc") as response:
            assert (await response.json())["size"] == 4
        async with client.post(f"{base}/buffered", data=b"stop") as response:
            assert await response.text() == "stopped"
        for data in (b"x" * 101, body(2_000_000)):
            async with client.post(f"{base}/buffered", data=data) as response:
                assert response.status == 413
        async with client.post(f"{base}/here", data=b"abc") as response:
            assert await response.json() == {"here": 3}


async def test_an_answer_that_breaks_off_is_seen(proxy):
    base, _, _ = proxy
    async with aiohttp.ClientSession() as client:
        for query in ("", "?chunked"):
            with pytest.raises(aiohttp.ClientError):
                async with client.get(f"{base}/broken{query}") as response:
                    await response.read()


async def settle(app, count):
    for _ in range(500):
        if app["open"] == count:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{app['open']} requests are open at the upstream, not {count}")


async def test_a_client_that_leaves_ends_the_upstream_request(proxy):
    base, app, _ = proxy
    async with aiohttp.ClientSession() as client:
        async with client.get(f"{base}/endless") as response:
            await response.content.read(10)
            await settle(app, 1)
            response.close()
        await settle(app, 0)

        async def half():
            yield BLOCK
            await asyncio.sleep(60)

        task = asyncio.create_task(client.post(f"{base}/absorbing", data=half()))
        await settle(app, 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await settle(app, 0)


async def test_no_upstream_is_a_json_error(proxy):
    base, _, runner = proxy
    await runner.cleanup()
    async with aiohttp.ClientSession() as client:
        for data in (None, b"x" * 2_000_000):
            started = time.monotonic()
            async with client.post(f"{base}/upload", data=data) as response:
                answer = json.loads(await response.read())
                assert (response.status, answer["code"]) == (502, "backend_unreachable")
            assert time.monotonic() - started < 10
