"""What runs in pods, as processes here: doorways with real scorers, and a gatehouse with the real gateway in front.

A Service is a few lines here: it takes each connection to one of the doorways that are ready.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest
from conftest import free_port, wait_for

from jupyter_mlops.runtime import parcel
from jupyter_mlops.serving import keys
from jupyter_mlops.serving.kubernetes import manifests
from jupyter_mlops.serving.kubernetes.plan import Delivery, Names, Order

SCRIPT = """\
import json, os, time

def init():
    if os.environ.get("BROKEN"):
        raise ImportError("No module named 'nowhere'")

def run(body):
    asked = json.loads(body)
    if asked.get("die"):
        os._exit(7)
    time.sleep(asked.get("sleep", 0))
    return {"pid": os.getpid(), "sum": sum(asked.get("numbers", [])), "colour": os.environ.get("COLOUR", "")}
"""
TOKEN = "f" * 64


def get(port: int, path: str, token: str = "") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path, headers={"X-Mlops-Token": token} if token else {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


class Pods:
    """Processes that run as pods would, and the Service before them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.processes: dict[str, subprocess.Popen] = {}
        self.doors: dict[str, int] = {}
        self.port = free_port()
        model = home / "made"
        (model / "code").mkdir(parents=True)
        (model / "code" / "score.py").write_text(SCRIPT)
        about = {"schema": 1, "signature": {}, "native": None, "script": {"file": "score.py", "sha256": "0"}}
        (model / "model.json").write_text(json.dumps(about))
        self.model_json = json.dumps(about).encode()
        self.about = parcel.pack(str(home / "whole.zip"), [
            ("code", str(model / "code")), ("model.json", str(model / "model.json"))])
        self._turn = 0
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._service, "127.0.0.1", self.port), self._loop).result(5)

    async def _service(self, reader, writer) -> None:
        """One connection to one of the doorways that say they are ready, in turn."""
        ready = []
        for port in list(self.doors.values()):
            try:
                if (await asyncio.to_thread(get, port, "/ready"))[0] == 200:
                    ready.append(port)
            except OSError:
                pass
        if not ready:
            writer.close()
            return
        self._turn += 1
        inner = await asyncio.open_connection("127.0.0.1", ready[self._turn % len(ready)])

        async def copy(source, target):
            try:
                while data := await source.read(65536):
                    target.write(data)
                    await target.drain()
            except OSError:
                pass
            target.close()

        await asyncio.gather(copy(reader, inner[1]), copy(inner[0], writer))

    def doorway(self, name: str, parts: bool = True, **env: str) -> int:
        place = self.home / name
        for folder in ("boot", "parts", "work"):
            (place / folder).mkdir(parents=True)
        data = (self.home / "whole.zip").read_bytes()
        delivery = Delivery(self.about["sha256"], self.about["size"], ["a", "b"] if parts else [])
        if parts:
            half = len(data) // 2
            (place / "parts" / (parcel.PART % 0)).write_bytes(data[:half])
            (place / "parts" / (parcel.PART % 1)).write_bytes(data[half:])
        told = manifests.pod_json(Names("w", "digits"), "blue", Order("a", env=env), delivery)
        told.update(parts_dir=str(place / "parts"), drain=1.0, grace=5.0)
        if not parts:
            told["peers"] = f"127.0.0.1:{self.port}"
        (place / "boot" / "pod.json").write_text(json.dumps(told))
        (place / "boot" / "token").write_text(TOKEN)
        port = self.doors[name] = free_port()
        self._start(name, ["jupyter_mlops.runtime.doorway", "--boot", str(place / "boot"), "--work",
                           str(place / "work"), "--port", str(port)])
        return port

    def gatehouse(self, key: str, slots: int = 2) -> tuple[int, int]:
        place = self.home / "gate"
        for folder in ("boot", "parts", "config", "work"):
            (place / folder).mkdir(parents=True)
        config = {"name": "digits", "auth_mode": "key", "public": True, "keys": {"primary": keys.hash_key(key)},
                  "token_secret": "aa", "traffic": {"blue": 100}, "mirror_traffic": {}, "sticky_header": "",
                  "deployments": {"blue": {"instance_count": slots, "request_settings": {}}}}
        (place / "boot" / "about.json").write_text("{}")
        self.configure(config)
        (place / "config" / "model-blue.json").write_bytes(self.model_json)
        (place / "config" / "token").write_text(TOKEN)
        (place / "config" / "trunk.json").write_text(json.dumps(
            {"blue": {"address": f"127.0.0.1:{self.port}", "slots": slots}}))
        port, admin = free_port(), free_port()
        self._start("gate", ["jupyter_mlops.serving.kubernetes.gatehouse", "--boot", str(place / "boot"), "--parts",
                             str(place / "parts"), "--config", str(place / "config"), "--work", str(place / "work"),
                             "--port", str(port), "--admin-port", str(admin)])
        self.config = config
        return port, admin

    def configure(self, config: dict) -> str:
        text = json.dumps(config)
        new = self.home / "gate" / "config" / "endpoint.new"
        new.write_text(text)
        os.replace(new, self.home / "gate" / "config" / "endpoint.json")
        return sha256(text.encode()).hexdigest()

    def _start(self, name: str, command: list[str]) -> None:
        with open(self.home / f"{name}.log", "wb") as log:
            self.processes[name] = subprocess.Popen([sys.executable, "-m", *command], stdout=log, stderr=log,
                                                    env={**os.environ, "HOSTNAME": name})

    def log(self, name: str) -> str:
        return (self.home / f"{name}.log").read_text(errors="replace")

    def end(self) -> None:
        for name, process in self.processes.items():
            if process.poll() is None:
                process.send_signal(signal.SIGKILL if name == "gate" else signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(12)
            except subprocess.TimeoutExpired:
                process.kill()
        self._loop.call_soon_threadsafe(self._loop.stop)


@pytest.fixture
def pods():
    # Not pytest's folder: beside other workers its path is too long for the sockets in it.
    home = Path(tempfile.mkdtemp(prefix="mlops-pods-"))
    pods = Pods(home)
    yield pods
    pods.end()
    shutil.rmtree(home, ignore_errors=True)


def ready(port: int) -> bool:
    try:
        return get(port, "/ready")[0] == 200
    except OSError:
        return False


class Callers:
    """Threads that call until the block is left; how often which answer came."""

    def __init__(self, port: int, key: str, threads: int = 3) -> None:
        self.port, self.key = port, key
        self.seen: Counter = Counter()
        self.pids: set[int] = set()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        while not self._stop.is_set():
            try:
                status, answer = call(connection, self.key, {"numbers": [1, 2], "sleep": 0.002})
                self.seen[status if status != 200 or answer["sum"] == 3 else "wrong"] += 1
                self.pids.add(answer.get("pid", 0))
            except (OSError, http.client.HTTPException) as error:
                self.seen[repr(error)] += 1
                connection.close()

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def call(connection, key: str, body: dict) -> tuple[int, dict]:
    connection.request("POST", "/endpoints/digits/invocations", json.dumps(body),
                       {"Authorization": f"Bearer {key}", "Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def test_a_pod_is_replaced_under_load_and_nothing_is_lost(pods):
    first = pods.doorway("one", COLOUR="blue")
    key = keys.new_key()
    port, admin = pods.gatehouse(key)
    wait_for(lambda: ready(first) and ready(admin))

    # What is told to whom: probes to anybody, all else to those with the token.
    assert get(first, "/state")[0] == 401 and get(first, "/trunk", "0" * 64)[0] == 401
    state = json.loads(get(first, "/state", TOKEN)[1])
    assert state["phase"] == "ready" and state["scorer"]["phase"] == "ready"
    assert get(first, "/live")[0] == 200 and get(first, "/nothing", TOKEN)[0] == 404
    assert get(admin, "/admin/stats")[0] == 401 and get(admin, "/admin/stats", TOKEN)[0] == 200
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    assert call(connection, "wrong", {})[0] == 401
    status, answer = call(connection, key, {"numbers": [4]})
    assert status == 200 and answer["sum"] == 4 and answer["colour"] == "blue"

    with Callers(port, key) as callers:
        second = pods.doorway("two", COLOUR="blue")
        wait_for(lambda: ready(second))
        wait_for(lambda: len(callers.pids) == 2, 30)  # a pod that comes gets its share without anybody's doing
        pods.processes["one"].send_signal(signal.SIGTERM)
        wait_for(lambda: not ready(first), 5)
        assert pods.processes["one"].wait(15) == 0
        time.sleep(0.5)
    assert set(callers.seen) == {200} and callers.seen[200] > 200, callers.seen
    assert json.loads(get(admin, "/digest", TOKEN)[1])["pods"]["blue"]

    # A change of what is served needs no restart, and a broken one changes nothing.
    digest = pods.configure({**pods.config, "keys": {"primary": keys.hash_key("another")}})
    wait_for(lambda: json.loads(get(admin, "/ready")[1])["digest"] == digest)
    wait_for(lambda: call(connection, key, {})[0] == 401)
    assert call(connection, "another", {"numbers": [1]})[0] == 200
    (pods.home / "gate/config/endpoint.json").write_text("{broken")
    wait_for(lambda: "not taken up" in pods.log("gate"))
    assert call(connection, "another", {"numbers": [1]})[0] == 200

    # A scorer that dies is there again, and its door stays open.
    call(connection, "another", {"die": True})
    wait_for(lambda: ready(second))
    assert json.loads(get(second, "/state", TOKEN)[1])["restarts"] >= 1
    wait_for(lambda: call(connection, "another", {"numbers": [1]})[0] == 200)
    gate = pods.processes["gate"]
    gate.send_signal(signal.SIGTERM)
    wait_for(lambda: not ready(admin), 5)
    assert call(connection, "another", {"numbers": [1]})[0] == 200  # whoever is still sent here is answered


def test_a_model_passes_from_pod_to_pod(pods):
    first = pods.doorway("one", parts=False)
    wait_for(lambda: b"waiting for the model" in (get(first, "/ready")[1] if _open(first) else b""))
    work = pods.home / "one" / "work"
    done = subprocess.run(
        [sys.executable, "-m", "jupyter_mlops.runtime.parcel", "--into", str(work / "parcel.zip"), "--sha256",
         pods.about["sha256"], "--size", str(pods.about["size"])],
        input=b"".join(parcel.records(str(pods.home / "whole.zip"), 0)), capture_output=True)
    assert done.returncode == 0, done
    wait_for(lambda: ready(first))
    second = pods.doorway("two", parts=False)
    wait_for(lambda: ready(second))
    assert get(second, f"/parcel/{'0' * 64}", TOKEN)[0] == 404
    assert sha256(get(second, f"/parcel/{pods.about['sha256']}", TOKEN)[1]).hexdigest() == pods.about["sha256"]


def _open(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def test_a_model_that_cannot_be_loaded_ends_its_pod(pods):
    pods.doorway("one", BROKEN="1")
    assert pods.processes["one"].wait(20) == 1
    assert "the model cannot be loaded" in pods.log("one") and "nowhere" in pods.log("one")


def test_a_gateway_that_lacks_its_modules_says_what_to_do(pods, tmp_path):
    boot = tmp_path / "boot"
    boot.mkdir()
    (boot / "about.json").write_text(json.dumps({"platform": "cpython-38-other"}))
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['httptools'] = None\n"
         "from jupyter_mlops.serving.kubernetes.gatehouse import main; sys.exit(main())", "--boot", str(boot),
         "--parts", str(tmp_path), "--config", str(tmp_path), "--work", str(tmp_path / "work"), "--port", "1",
         "--admin-port", "2"], capture_output=True, text=True)
    assert done.returncode == 1 and "without httptools" in done.stderr and "cpython-38-other" in done.stderr
    assert "gateway_image" in done.stderr and "Traceback" not in done.stderr
