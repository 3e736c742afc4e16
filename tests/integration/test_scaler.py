"""The scaler with real scorers: it heals, scales and wakes with no control plane there."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import threading
import time

import pytest
import tiny_model
from conftest import wait_for
from test_instances import Place

from jupyter_mlops.runtime.processes import alive, start_time
from jupyter_mlops.serving import keys
from jupyter_mlops.serving import scaler as module
from jupyter_mlops.serving.scaler import Scaler
from jupyter_mlops.serving.scaling import Load
from jupyter_mlops.serving.scorers import Scorers

KEY = ("e", "blue")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model.save(tmp_path_factory.mktemp("tiny") / "model")


class Gateway(Place):
    """A workspace, the scaler of a gateway, and the load that its dispatcher would see."""

    def __init__(self, model):
        super().__init__(model)
        self.load = Load(settings={"instance_count": 1})
        self.scaler = Scaler(Scorers(self.serving.places))
        self.scaler.observe = lambda: {KEY: self.load}

    def automatic(self, **settings):
        self.load.settings = {"scale_settings": {"type": "target_utilization", **settings}}

    @property
    def scale(self):
        with contextlib.suppress(OSError):
            return json.loads(self.serving.places.scale(*KEY).read_text())
        return {}

    async def until(self, what, timeout=15.0):
        deadline = time.monotonic() + timeout
        while not (value := await asyncio.to_thread(what)):
            assert time.monotonic() < deadline, f"not so after {timeout} s: {self.seen()}"
            await asyncio.sleep(0.02)
        return value

    async def has(self, count, timeout=15.0):
        """So many instances are ready, and no others run."""
        return await self.until(lambda: (s := self.seen()).instances == {"wanted": count, "ready": count}
                                and len(self.pids()) == count and s, timeout)


@pytest.fixture
async def gateway(model, monkeypatch):
    made = Gateway(model)
    made.run = asyncio.create_task(made.scaler.run())
    try:
        yield made
    finally:
        made.run.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await made.run
        made.close()


async def test_what_dies_is_started_again_within_a_second(gateway):
    gateway.load.settings = {"instance_count": 2}
    gateway.start(2)
    await gateway.has(2)
    await gateway.until(lambda: gateway.scaler.wanted(*KEY) == 2)
    before = gateway.pids()
    os.kill(before[1], signal.SIGKILL)
    killed = time.monotonic()
    await gateway.until(lambda: before[1] not in (now := gateway.pids()).values() and 1 in now)
    assert time.monotonic() - killed < 1.0 and gateway.pids()[0] == before[0]
    assert (await gateway.has(2)).restarts == 1
    # A crash loop ends that: the last process stays away, the other one serves.
    launch = gateway.serving.places.instance(*KEY, 1) / "launch.json"
    launch.write_text(json.dumps({**json.loads(launch.read_text()), "crashes": [time.time()] * 4}))
    os.kill(gateway.pids()[1], signal.SIGKILL)
    await gateway.until(lambda: "crash loop" in gateway.seen().reason)
    await asyncio.sleep(0.8)
    assert set(gateway.pids()) == {0} and gateway.scaler.trouble(*KEY) == ""
    # Stopped is stopped.
    gateway.serving.stop(*KEY)
    await asyncio.sleep(0.6)
    assert gateway.processes() == []


async def test_one_three_one_zero_one(gateway, monkeypatch):
    monkeypatch.setattr("jupyter_mlops.serving.scaling.DOWN_AFTER", 0.8)
    gateway.automatic(min_instances=0, max_instances=3, polling_interval=0.2, idle_seconds=2)
    told = []
    gateway.scaler.changed = lambda *key: told.append((gateway.scaler.wanted(*key), set(gateway.scaler.going(*key))))
    gateway.load.last_request_at = time.monotonic()
    gateway.start(1)
    await gateway.has(1)
    gateway.load.queued = 200
    await gateway.has(3)
    assert gateway.scale["wanted"] == 3 and "worth of requests" in gateway.scale["reason"]
    gateway.load.queued, gateway.load.in_flight = 0, 1
    under_way = asyncio.create_task(asyncio.to_thread(gateway.ask, 1.5, 2))
    await gateway.has(1)
    assert await under_way > 0, "what an instance had is answered before it goes"
    assert (3, {2}) not in told and (2, {2}) in told and told.index((2, {2})) < told.index((1, {1})), told
    await gateway.until(lambda: gateway.scaler.going(*KEY) == set())

    gateway.load.in_flight = 0
    gateway.load.last_request_at = time.monotonic()
    await gateway.has(0)
    assert time.monotonic() - gateway.load.last_request_at > 2 and "scaled to zero" in gateway.seen().reason
    assert gateway.scale["reason"] == "no request for 2 s" and gateway.processes() == []

    gateway.load.queued, gateway.load.last_request_at = 1, time.monotonic()
    for _ in range(100):
        gateway.scaler.wake(*KEY)
    await gateway.until(gateway.pids, 1.0)
    await gateway.has(1)
    gateway.load.queued = 0
    assert len(gateway.processes()) == 1


async def test_a_gateway_that_was_killed_is_followed_by_one_that_goes_on(gateway):
    gateway.automatic(min_instances=1, max_instances=4)
    gateway.start(1)
    # As left by a gateway that was killed between its decision and the first start, and while one was on its way out.
    gateway.serving.scale(*KEY, 3, "busy")
    gateway.serving.start_instance(*KEY, 3)
    await gateway.has(3)
    launch = gateway.serving.places.instance(*KEY, 2) / "launch.json"
    before = gateway.pids()
    launch.write_text(json.dumps({**json.loads(launch.read_text()), "going": True}))
    await gateway.until(lambda: gateway.pids().get(2, before[2]) != before[2])
    assert (await gateway.has(3)).restarts == 0
    assert {i: p for i, p in gateway.pids().items() if i < 2} == {i: p for i, p in before.items() if i < 2}


async def test_the_number_in_the_settings_is_kept_to(gateway):
    gateway.start(1)
    await gateway.has(1)
    gateway.load.settings = {"instance_count": 2}
    await gateway.has(2)
    gateway.load.settings = {"instance_count": 1}
    await gateway.has(1)
    # What is not published any more is left alone.
    gateway.scaler.observe = dict
    await asyncio.sleep(0.4)
    pid = gateway.pids()[0]
    os.kill(pid, signal.SIGKILL)
    await asyncio.sleep(0.8)
    assert gateway.pids() == {}


async def test_what_cannot_come_up_says_so_and_is_left_to_the_control_plane(gateway, tmp_path, monkeypatch):
    (tmp_path / "broken").touch()
    env = {"BROKEN": str(tmp_path / "broken")}
    gateway.start(1, env=env)
    await gateway.until(lambda: gateway.scaler.trouble(*KEY))
    assert "before it was ready with exit code 5: the weights are not there" in gateway.seen().reason
    log = gateway.serving.read_log(*KEY).size
    await asyncio.sleep(1.2)
    assert gateway.serving.read_log(*KEY).size == log, "not tried again and again"
    assert gateway.seen().phase == "failed"
    # One that had served is tried again, with growing pauses.
    (tmp_path / "broken").unlink()
    gateway.start(env=env)
    await gateway.has(1)
    (tmp_path / "broken").touch()
    os.kill(gateway.pids()[0], signal.SIGKILL)
    await gateway.until(lambda: gateway.seen().phase == "failed")
    (tmp_path / "broken").unlink()
    await gateway.has(1)
    assert gateway.scaler.trouble(*KEY) == ""


async def test_what_hangs_is_ended(gateway, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PING_EVERY", 0.2)
    probes = {"readiness_probe": {"initial_delay": 0, "period": 1, "failure_threshold": 1},
              "liveness_probe": {"period": 0.5, "failure_threshold": 1}}
    gateway.start(1, env={"HANG": str(tmp_path / "go")}, probes=probes)
    await gateway.until(lambda: gateway.scaler.trouble(*KEY))
    assert gateway.seen().reason == "the model was not loaded within 1 s" and gateway.processes() == []
    (tmp_path / "go").touch()
    gateway.start(env={"HANG": str(tmp_path / "go")})
    await gateway.has(1)
    frozen = gateway.pids()[0]
    os.kill(frozen, signal.SIGSTOP)
    await gateway.until(lambda: gateway.pids().get(0, frozen) != frozen)
    assert (await gateway.has(1)).restarts == 1 and not alive(frozen, start_time(frozen))


class Served(Place):
    """A workspace with a real gateway and no control plane, and callers that count what they get."""

    def __init__(self, model):
        super().__init__(model)
        self.shown, self.records = keys.new_keys()
        self.answers: list[tuple[int, object]] = []
        self.stop = threading.Event()
        self.callers: list[threading.Thread] = []

    def publish(self, **settings):
        assert self.serving.publish("e", {"name": "e", "keys": self.records, "traffic": {"blue": 100},
                                          "deployments": {"blue": settings}})

    def call(self, connection=None, seconds=0.0):
        connection = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("POST", "/endpoints/e/invocations", json.dumps({"inputs": [[seconds]]}), {
            "Authorization": "Bearer " + self.shown["primary"], "Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())

    def load(self, callers, seconds=0.002):
        def work():
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            while not self.stop.is_set():
                self.answers.append(self.call(connection, seconds))
            connection.close()

        for _ in range(callers):
            self.callers.append(threading.Thread(target=work))
            self.callers[-1].start()

    def quiet(self):
        self.stop.set()
        for caller in self.callers:
            caller.join()
        self.callers.clear()
        self.stop.clear()
        answers, self.answers = self.answers, []
        return answers


@pytest.fixture
def served(model):
    made = Served(model)
    try:
        made.port = made.serving.ensure_gateway()["port"]
        yield made
    finally:
        made.quiet()
        made.close()


def test_no_request_is_lost_to_a_kill_a_replacement_or_a_change_of_number(served):
    served.start(2)
    served.publish(instance_count=2)
    served.ready(2)
    served.load(4)
    wait_for(lambda: len({a["predictions"][0] for _, a in list(served.answers)}) == 2)
    for _ in range(3):
        before = served.pids()
        os.kill(before[1], signal.SIGKILL)
        wait_for(lambda before=before: served.pids().get(1) not in (None, before[1]))
        served.ready(2)
    before = served.pids()
    served.start(2, env={"CHANGED": "1"})
    wait_for(lambda: not set(before.values()) & set(served.pids().values()))
    served.ready(2)
    for count in (1, 3, 2):
        served.publish(instance_count=count)
        wait_for(lambda count=count: served.seen().instances == {"wanted": count, "ready": count}
                 and len(served.pids()) == count)
    answers = served.quiet()
    assert len(answers) > 200 and {status for status, _ in answers} == {200}
    launch = json.loads((served.serving.places.instance("e", "blue", 1) / "launch.json").read_text())
    assert launch["version"] and served.seen().phase == "ready"


def test_a_request_wakes_what_sleeps_and_is_answered(served):
    served.start(1)
    asleep = {"type": "target_utilization", "min_instances": 0, "max_instances": 2, "idle_seconds": 1}
    served.publish(scale_settings=asleep)
    served.ready(1)
    wait_for(lambda: served.processes() == [])
    begun = time.monotonic()
    served.load(6, 0.0)
    wait_for(lambda: len(served.answers) >= 60)
    answers = served.quiet()
    assert {status for status, _ in answers} == {200} and time.monotonic() - begun < 15
    # A gateway that was killed finds it asleep, too.
    wait_for(lambda: served.processes() == [])
    os.kill(served.serving.gateway_info()["pid"], signal.SIGKILL)
    wait_for(lambda: served.serving.gateway_info() is None)
    served.port = served.serving.ensure_gateway()["port"]
    assert served.call()[0] == 200 and len(served.processes()) >= 1
