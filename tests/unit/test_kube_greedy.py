# ruff: noqa: ASYNC110 - short waits
"""A pod that asks for too much, or sends nothing: others are served meanwhile. Real sockets on this machine."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import threading
import time
import zlib
from contextlib import asynccontextmanager, closing
from types import SimpleNamespace

import pytest
from conftest import free_port

from jupyter_mlops.compute.kubernetes import deposits, follower, outlets
from jupyter_mlops.compute.kubernetes import route as routes
from jupyter_mlops.compute.kubernetes.deposits import Deposits
from jupyter_mlops.compute.kubernetes.follower import Follower
from jupyter_mlops.compute.kubernetes.outlets import Outlets
from jupyter_mlops.compute.kubernetes.route import Route
from jupyter_mlops.core.errors import BackendTimeout, MlopsError
from jupyter_mlops.core.resources.compute import RouteOptions, TrainingOptions
from jupyter_mlops.kube import exec as kube_exec
from jupyter_mlops.kube.client import Kube
from jupyter_mlops.runtime import outlet, route

KEY = "ab" * 32


# -- a large file that is fetched from a pod


class Trickle(threading.Thread):
    """An API whose proxy leads to a pod that answers with ``head`` and then a byte now and then."""

    def __init__(self, head: bytes, every: float = 0.02) -> None:
        super().__init__(daemon=True)
        self.head, self.every = head, every
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.start()

    def run(self) -> None:
        while True:
            try:
                caller, _ = self.listener.accept()
            except OSError:
                return
            with caller:
                caller.recv(65536)
                try:
                    caller.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + self.head)
                    for _ in range(500):
                        time.sleep(self.every)
                        caller.sendall(b"x")
                except OSError:
                    continue


@pytest.fixture
def kube(tmp_path):
    """``kube(address)``: a cluster at that address."""
    def make(address):
        config = tmp_path / "config"
        config.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{address[1]}"}}], "users": [],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": ""}}]}))
        return Kube("gpu", "", "team", str(config))

    return make


@pytest.mark.parametrize("head", [b"", outlet.HEAD.pack(1000, 0)], ids=["head", "piece"])
def test_a_pod_that_sends_a_byte_now_and_then_is_not_fetched_from(kube, monkeypatch, head):
    """The threads are those of all jobs."""
    monkeypatch.setattr(outlets, "SLOWEST", 0.5)
    pod = Trickle(head, 0.1)
    offer = {"offer": "outputs/a", "at": 0, "size": 1000, "mtime": 1, "port": 1, "id": "1", "token": "t"}
    with closing(pod.listener), pytest.raises(BackendTimeout, match="has not sent a piece of a file within"):
        list(Outlets(kube(pod.listener.getsockname()), True).fetch("p", offer))


@pytest.mark.parametrize(("head", "words"), [
    (outlet.HEAD.pack(0, 0), "something else than ours"), (outlet.HEAD.pack(2**31, 0), "something else than ours"),
    (outlet.HEAD.pack(1001, 0), "something else than ours"), (outlet.HEAD.pack(3, 7) + b"abc", "arrived damaged"),
    (outlet.HEAD.pack(3, zlib.crc32(b"abc")) + b"abc" + outlet.HEAD.pack(998, 0), "something else than ours")])
def test_a_pod_that_sends_something_else(kube, head, words):
    pod = Trickle(head)
    offer = {"offer": "outputs/a", "at": 0, "size": 1000, "mtime": 1, "port": 1, "id": "1", "token": "t"}
    with closing(pod.listener), pytest.raises(ValueError, match=words):
        list(Outlets(kube(pod.listener.getsockname()), True).fetch("p", offer))


@pytest.mark.parametrize("more", [{"id": "../../x"}, {"port": "80/proxy"}, {"token": "a\r\nX: y"}, {"token": "\ud800"}])
def test_an_offer_leads_nowhere_else(kube, more):
    """Not to another path of the API, nor with further headers."""
    asked = []

    class Api(Kube):
        def stream(self, path, query, headers, timeout):
            asked.append((path, query))
            return super().stream(path, query, headers, timeout)

    pod = Trickle(b"")
    offer = {"offer": "outputs/a", "at": 0, "size": 1000, "mtime": 1, "port": 1, "id": "1", "token": "t", **more}
    cluster = kube(pod.listener.getsockname())
    cluster.__class__ = Api
    with closing(pod.listener), pytest.raises((ValueError, MlopsError)):
        list(Outlets(cluster, True).fetch("p", offer))
    assert asked in ([], [("/api/v1/namespaces/team/pods/p:1/proxy/1", {"at": 0})])


# -- addresses of an object store


class Store:
    """One that signs slowly."""

    usable = True
    trouble = ""

    def __init__(self):
        self.signed = 0

    def key(self, attempt, name=""):
        self.signed += 1
        return f"{attempt}/{self.signed}"

    def put_address(self, key):
        return f"https://store/{key}"

    def took(self, trouble):
        pass

    def failed(self, error):
        pass


class Channel:
    def __init__(self):
        self.said = []

    async def send(self, data):
        self.said.append(json.loads(data))

    async def hang_up(self):
        pass


@pytest.fixture
def wishes():
    landing = SimpleNamespace(attempt=SimpleNamespace(number=1, job=SimpleNamespace(path="/jobs/a")))
    return Deposits(Store(), landing)


async def test_a_pod_gets_no_more_addresses_than_it_can_use(wishes, monkeypatch):
    monkeypatch.setattr(deposits, "_UNUSED", 64)
    channel = Channel()
    wishes.begin(channel)
    with pytest.raises(ValueError, match="more addresses"):
        for _ in range(1000):  # without waiting for an answer
            wishes.want(10**9)
    await wishes.end()
    wishes.begin(channel)
    with pytest.raises(ValueError, match="more addresses"):
        for _ in range(1000):
            before = len(channel.said)
            wishes.want(10**9)
            while len(channel.said) == before:
                await asyncio.sleep(0.001)
    assert 64 < len(wishes._keys) <= 64 + deposits.MOST
    # An hour later they are good for nothing, and there are others.
    wishes._keys = dict.fromkeys(wishes._keys, time.monotonic() - 1)
    wishes.want(1)
    while not channel.said[-1]["urls"] or len(wishes._keys) != 1:
        await asyncio.sleep(0.001)
    await wishes.end()


async def test_a_pod_cannot_tell_of_more_objects_than_there_can_be(wishes):
    wishes.begin(Channel())
    with pytest.raises(ValueError, match="more objects"):
        for _ in range(10_000):
            wishes.put({"key": "k", "file": "outputs/a", "bytes": 1})
    await wishes.end()


# -- the route


@asynccontextmanager
async def listening(tmp_path):
    there = Route(RouteOptions(listen=f"127.0.0.1:{free_port()}"), tmp_path / "route.pem")
    task = asyncio.ensure_future(there.run())
    while not there.listening:
        await asyncio.sleep(0.01)
    try:
        yield there
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def call(there, node, attempt=1, more=b""):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    host, port = there.address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    writer.write(json.dumps({"job": "a", "attempt": attempt, "node": node, "token": route.token(KEY, node)}).encode()
                 + b"\n")
    await writer.drain()
    if more:
        writer.write(more)
    return reader, writer


def waiting(there):
    return sum(calls.waits for calls in there._calls.values())


async def test_one_job_does_not_take_the_places_of_all(tmp_path, monkeypatch):
    """A pod knows the secret of its attempt, and so may call as any node of it."""
    monkeypatch.setattr(routes, "WAITING", 6)
    async with listening(tmp_path) as there:
        there.know("a", 1, KEY, pods=1)
        there.know("a", 2, KEY, pods=3)
        open_ones = [await call(there, node) for node in range(8)]
        refused = 0
        for reader, _ in open_ones:
            try:
                async with asyncio.timeout(0.3):
                    refused += await reader.read(1) == b""
            except TimeoutError:
                continue
        assert refused == 6 and waiting(there) == 2 and len(there._calls) == 2
        # The same node again and again: the newest counts.
        for _ in range(20):
            open_ones.append(await call(there, 0))
        open_ones += [await call(there, node, attempt=2) for node in range(3)]
        async with asyncio.timeout(5):
            while waiting(there) != 5:
                await asyncio.sleep(0.02)
        # A pod that is known here is heard whatever others have said in its name.
        known = there.calls("a", 1, 77)
        known.ring = lambda: None
        open_ones.append(await call(there, 77))
        async with asyncio.timeout(5):
            while not known.waits:
                await asyncio.sleep(0.02)
        for _, writer in open_ones:
            writer.transport.abort()


async def test_who_is_not_heard_yet_holds_little_memory(tmp_path):
    async with listening(tmp_path) as there:
        there.know("a", 1, KEY)
        _, writer = await call(there, 0)
        async with asyncio.timeout(5):
            while not waiting(there):
                await asyncio.sleep(0.02)
        for _ in range(64):
            writer.write(b"x" * (1 << 20))
        await asyncio.sleep(1.0)
        (calls,) = there._calls.values()
        assert len(calls._newest._reader._buffer) < 2 << 20, "the rest waits on the other side"
        writer.transport.abort()


async def test_strangers_leave_nothing_behind(tmp_path, monkeypatch):
    """Those who are silent, who speak no TLS, who break off, and who say too much."""
    monkeypatch.setattr(routes, "GREETING", 0.5)
    async with listening(tmp_path) as there:
        host, port = there.address.rsplit(":", 1)
        before = len(os.listdir("/proc/self/fd"))
        for said in (b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\0" * 5000, b"GET / HTTP/1.1\r\n\r\n"):
            some = [await asyncio.open_connection(host, int(port)) for _ in range(60)]
            for number, (_, writer) in enumerate(some):
                writer.write(said)
                if number % 2:
                    writer.transport.abort()
            for number, (reader, writer) in enumerate(some):
                if not number % 2:
                    async with asyncio.timeout(10):
                        try:
                            while await reader.read(1000):
                                pass
                        except ConnectionError:
                            pass
                    writer.close()
        async with asyncio.timeout(10):
            while there._greeting or len(os.listdir("/proc/self/fd")) > before + 2:
                await asyncio.sleep(0.02)
        there.know("a", 1, KEY)
        _, writer = await call(there, 0)
        async with asyncio.timeout(5):
            while not waiting(there):
                await asyncio.sleep(0.02)
        writer.transport.abort()


# -- inputs that are brought into a pod


@pytest.mark.parametrize("said", [[b"x" * 32768] * 10_000, [b"[" * 60_000 + b"\n"], [b"[]\n"], [b'{"have": "1"}\n'],
                                  [b'{"have": -1}\n'], [b'{"have": 1e999}\n'], [b"\xff\n"]], ids=range(7))
async def test_what_a_pod_answers_is_bounded(said):
    heard = []

    class Talks:
        async def output(self):
            for data in said:
                heard.append(data)
                yield data

    with pytest.raises(MlopsError, match="something else than ours"):
        async for _ in kube_exec._lines(Talks()):
            pass
    assert len(heard) < 5


# -- a state that changes all the time


async def test_a_state_that_changes_all_the_time_has_its_job_looked_at_now_and_then(monkeypatch):
    monkeypatch.setattr(follower, "TELL", 0.5)
    told = []
    there = Follower(Kube("gpu"), "w", TrainingOptions(image="a:1"), None, None)
    there.changed.append(told.append)
    there._moved("a")
    there._moved("b")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert told == ["a", "b"], "the first at once"
    for _ in range(10_000):
        there._moved("a")
    async with asyncio.timeout(10):
        while told.count("a") < 2:
            await asyncio.sleep(0.01)
    assert told == ["a", "b", "a"], "and the last is not forgotten"
