"""Several scorers behind one deployment: real processes that are started, killed, frozen, replaced and found again."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tiny_model
from conftest import wait_for
from serving_bench import Workspace

from jupyter_mlops.core.errors import NotFound, ParameterError
from jupyter_mlops.runtime import frames
from jupyter_mlops.runtime.environ import cores
from jupyter_mlops.runtime.processes import alive, family, start_time
from jupyter_mlops.serving.children import MARKER
from jupyter_mlops.serving.instances import Instances
from jupyter_mlops.serving.local import LocalServing


class Place(Workspace):
    """A workspace folder and the driver of it."""

    def __init__(self, model: Path):
        super().__init__()
        self.model = model

    def start(self, count=None, name="blue", **more):
        self.serving.prepare("e", name, self.model)
        self.serving.start("e", name, count=count, **more)

    def seen(self, name="blue"):
        return self.serving.observe("e", name)

    def ready(self, count, name="blue"):
        return wait_for(lambda: (s := self.seen(name)).instances["ready"] == count and s)

    def pids(self, name="blue"):
        return {s.number: s.pid for s in self.serving.instances("e", name, ping=False) if s.pid}

    def ask(self, seconds=0.0, instance=0, name="blue"):
        """The pid that answered."""
        header = {"form": "tensors", "rows": 1, "params": {}, "tensors": [
            {"name": None, "dtype": "float64", "code": "<f8", "shape": [1, 1], "size": 8}]}
        score = frames.pack_score(header, [struct.pack("<d", seconds)])
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(20)
            connection.connect(str(self.serving.places.scorer_socket("e", name, instance)))
            connection.sendall(b"".join(frames.pack_batch(1, [score])))
            while (frame := frames.receive(connection))[0] != frames.ANSWERS:
                assert frame[0] in (frames.HELLO, frames.GOING), frame
        (_, kind, body), = frames.unpack_answers(frame[2])
        assert kind == frames.RESULT, body
        return json.loads(body)["predictions"][0]

    def processes(self):
        """All processes that carry the mark of a scorer below this home."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                environ = Path(f"/proc/{pid}/environ").read_bytes()
            except OSError:
                continue
            if f"{MARKER}={self.home}".encode() in environ and start_time(int(pid)):
                found.append(int(pid))
        return found

    def close(self):
        self.serving.stop_all()
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        super().close()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model.save(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def place(model):
    made = Place(model)
    try:
        yield made
    finally:
        made.close()


def test_two_instances_from_start_to_end(place, monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    place.start(2)
    seen = place.ready(2)
    assert (seen.phase, seen.reason, seen.instances) == ("ready", "", {"wanted": 2, "ready": 2})
    pids = place.pids()
    assert {place.ask(instance=i) for i in (0, 1)} == set(pids.values()) and len(set(pids.values())) == 2
    for pid in pids.values():
        environ = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
        assert f"OMP_NUM_THREADS={max(1, cores() // 2)}" in environ
    assert b"ready after" in place.serving.read_log("e", "blue", instance=1).data
    assert sorted(p["pid"] for p in place.serving.processes()) == sorted(pids.values())

    place.start(2)
    place.start()
    assert place.pids() == pids, "what runs is left alone"

    os.kill(pids[1], signal.SIGKILL)
    died = "instance 1: the scorer ended by SIGKILL (perhaps out of memory)"
    seen = wait_for(lambda: (s := place.seen()).reason == died and s)
    assert seen.phase == "ready" and seen.instances == {"wanted": 2, "ready": 1}
    # Control plane and gateway at once: one successor.
    others = [LocalServing(place.home, place.runtime) for _ in range(3)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda s: s.start("e", "blue"), [place.serving, *others]))
    seen = place.ready(2)
    assert seen.restarts == 1 and place.pids()[0] == pids[0] and place.pids()[1] != pids[1]
    assert len(place.processes()) == 2

    place.start(3)
    assert place.ready(3).instances == {"wanted": 3, "ready": 3}
    place.serving.stop("e", "blue")
    assert place.processes() == [] and list(place.runtime.iterdir()) == []
    seen = place.seen()
    assert seen.phase == "absent" and seen.instances == {"wanted": 0, "ready": 0}
    assert place.serving.start_instance("e", "blue", 0) is False, "what was stopped is not started by a gateway"
    place.serving.remove("e", "blue")
    assert list((place.home / "endpoints" / "e").iterdir()) == []


def test_the_gateways_number_goes_before_the_specs_until_that_changes(place):
    place.start(1)
    place.ready(1)
    place.serving.scale("e", "blue", 2, "busy")
    place.start(1)
    assert place.ready(2).instances["wanted"] == 2 and place.serving.scaled("e", "blue") == "busy"
    place.serving.scale("e", "blue", 0, "idle")
    place.serving.stop_instance("e", "blue", 0)
    place.serving.stop_instance("e", "blue", 1)
    seen = place.seen()
    assert seen.phase == "ready" and seen.instances == {"wanted": 0, "ready": 0} and "scaled to zero" in seen.reason
    place.start(1)
    assert place.processes() == []
    place.start(2)
    assert place.ready(2).instances["wanted"] == 2
    # Nonsense in the file is no order.
    for text in ("{", '{"wanted": "many"}', '{"wanted": -1}', '{"wanted": 65}', '{"wanted": true}', "[]"):
        place.serving.places.scale("e", "blue").write_text(text)
        assert place.serving.wanted("e", "blue") == 2
    # Nor is what was decided before it was stopped, or just after.
    place.serving.stop("e", "blue")
    place.serving.scale("e", "blue", 0, "idle")
    assert not place.serving.places.scale("e", "blue").exists() and place.serving.wanted("e", "blue") is None
    place.serving.places.scale("e", "blue").write_text('{"wanted": 0}')
    place.start(2)
    assert place.ready(2).instances["wanted"] == 2
    with pytest.raises(ParameterError, match="reserved"):
        place.serving.prepare("e", "capture", place.model)


def test_a_deployment_of_the_former_version_is_taken_over(place):
    place.serving.prepare("e", "blue", place.model)
    folder = place.home / "endpoints" / "e" / "blue"
    former = place.serving.places.former_socket("e", "blue")
    (folder / "work").mkdir()
    with open(folder / "scorer.log", "wb") as log:
        old = subprocess.Popen(
            [sys.executable, "-m", "jupyter_mlops.runtime.scorer", "--folder", str(folder), "--instance-folder",
             str(folder), "--socket", str(former), "--launch", "old", "--grace", "10"],
            stdout=log, stderr=log, cwd=folder / "work", start_new_session=True,
            env={**os.environ, MARKER: str(folder)})
    threading.Thread(target=old.wait, daemon=True).start()
    (folder / "launch.json").write_text(json.dumps(
        {"id": "old", "digest": "x", "restarts": 0, "crashes": [], "pid": old.pid, "start_time": start_time(old.pid)}))
    wait_for(former.exists)
    assert [p["pid"] for p in place.serving.processes()] == [old.pid]
    seen = place.seen()
    assert seen.phase == "absent" and seen.reason == "its scorer is from an earlier version"
    place.start(1)
    place.ready(1)
    assert not alive(old.pid, start_time(old.pid)) and place.ask() == place.pids()[0] != old.pid
    assert sorted(p.name for p in folder.iterdir()) == ["instances", "model", "model.json", "run.json", "start.lock"]
    assert not former.exists() and place.serving.read_log("e", "blue").data.count(b"ready after") == 2
    # One that is only to be stopped, too.
    (folder / "launch.json").write_text("{}")
    place.serving.stop("e", "blue")
    assert not (folder / "launch.json").exists() and place.processes() == []


def test_a_model_that_hangs_while_it_loads_fails_with_the_reason(place, tmp_path):
    probes = {"readiness_probe": {"initial_delay": 0.2, "period": 0.2, "failure_threshold": 2}}
    place.start(1, env={"HANG": str(tmp_path / "go")}, probes=probes)
    assert place.seen().phase == "starting"
    seen = wait_for(lambda: (s := place.seen()).phase == "failed" and s, 5)
    assert seen.reason == "the model was not loaded within 0.6 s" and not seen.crash_loop
    # Whoever watches gives it up: the reason stays, the process does not.
    place.serving.give_up("e", "blue", 0, seen.reason)
    assert place.processes() == [] and place.seen().reason == seen.reason and place.seen().phase == "failed"
    # An order to start is one, whatever was before.
    (tmp_path / "go").touch()
    place.start()
    assert place.ready(1).reason == ""
    place.serving.give_up("e", "blue", 0, "nothing hangs")
    assert place.seen().phase == "ready"


def test_a_scorer_that_answers_no_ping_is_replaced(place):
    place.start(2, probes={"liveness_probe": {"period": 0.4, "failure_threshold": 1}})
    place.ready(2)
    frozen = place.pids()[1]
    os.kill(frozen, signal.SIGSTOP)
    seen = wait_for(lambda: "has not answered" in (s := place.seen()).reason and s, 10)
    assert seen.phase == "ready" and seen.instances == {"wanted": 2, "ready": 1}
    place.start()
    seen = place.ready(2)
    assert seen.restarts == 1 and place.pids()[1] != frozen and frozen not in place.processes()


def test_crash_loops_are_counted_for_each_instance(place):
    place.start(2)
    place.ready(2)
    launch = place.serving.places.instance("e", "blue", 0) / "launch.json"
    record = json.loads(launch.read_text())
    launch.write_text(json.dumps({**record, "crashes": [time.time()] * 4}))
    os.kill(place.pids()[0], signal.SIGKILL)
    seen = wait_for(lambda: "crash loop" in (s := place.seen()).reason and s)
    assert seen.phase == "ready" and not seen.crash_loop
    assert seen.reason.startswith("instance 0: crash loop: it ended 5 times in 5 minutes")
    os.kill(place.pids()[1], signal.SIGKILL)
    # The other one may still get better.
    seen = wait_for(lambda: (s := place.seen()).phase == "absent" and s)
    assert seen.reason.startswith("the scorer ended")


def test_a_change_replaces_one_after_the_other(place, tmp_path):
    place.start(2)
    place.ready(2)
    before = place.pids()
    stop, answers, refused = threading.Event(), [], []

    def call(instance):
        # As the gateway does: what a scorer that leaves refuses goes to another one.
        while not stop.is_set():
            try:
                answers.append(place.ask(0.01, instance))
            except (OSError, AssertionError, frames.FrameError):
                refused.append(instance)
                answers.append(place.ask(0.01, 1 - instance))

    with ThreadPoolExecutor(2) as pool:
        callers = [pool.submit(call, i) for i in (0, 1)]
        try:
            wait_for(lambda: set(before.values()) == set(answers))
            place.start(2, env={"CHANGED": "1"})
            place.ready(2)
            wait_for(lambda: set(place.pids().values()) <= set(answers))
        finally:
            stop.set()
        for caller in callers:
            caller.result()
    after = place.pids()
    assert not set(before.values()) & set(after.values()) and set(answers) == {*before.values(), *after.values()}
    assert all(b"CHANGED=1" in Path(f"/proc/{pid}/environ").read_bytes() for pid in after.values())
    # A successor that does not come up ends it: the other old one serves on.
    (tmp_path / "broken").touch()
    place.start(2, env={"BROKEN": str(tmp_path / "broken")})
    died = "instance 0: the scorer ended before it was ready with exit code 5: the weights are not there"
    seen = wait_for(lambda: (s := place.seen()).reason == died and s)
    assert seen.phase == "ready" and seen.instances == {"wanted": 2, "ready": 1}
    assert place.ask(instance=1) == after[1]


DRIVER = """
import sys
from jupyter_mlops.serving.local import LocalServing
home, runtime, model = sys.argv[1:]
serving = LocalServing(home, runtime)
print("up", flush=True)
while True:
    serving.prepare("e", "blue", model)
    serving.start("e", "blue", count=2)
    serving.scale("e", "blue", 1)
    serving.stop_instance("e", "blue", 1)
    serving.start("e", "blue", count=3)
    serving.stop("e", "blue", grace=1.0)
    serving.remove("e", "blue")
"""


def test_a_driver_that_is_killed_anywhere_leaves_nothing_that_is_not_found(place):
    chance = random.Random(4)
    for _ in range(2):
        drivers = [subprocess.Popen([sys.executable, "-c", DRIVER, place.home, place.runtime, place.model],
                                    stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(2)]
        try:
            for driver in drivers:
                driver.stdout.readline()
            time.sleep(chance.uniform(0.05, 0.6))
        finally:
            for driver in drivers:
                driver.kill()
                driver.wait()
                driver.stdout.close()
        place.start(2)
        place.serving.scale("e", "blue", 2)
        place.start(2)
        place.ready(2)
        wanted = set(place.pids().values())
        extra = [s.number for s in place.serving.instances("e", "blue", ping=False) if s.number >= 2]
        for number in extra:
            place.serving.stop_instance("e", "blue", number)
        wait_for(lambda wanted=wanted: set(place.processes()) <= wanted, 5)
    place.serving.remove("e")
    assert place.processes() == [] and list(place.runtime.iterdir()) == []
    assert list((place.home / "endpoints").iterdir()) == []


def test_a_lock_of_a_deployment_that_was_removed_locks_nothing(place):
    place.start(1)
    place.ready(1)
    group = Instances(place.serving.places, place.serving.children, {}, "e", "blue")
    done = []
    with group._lock(0):

        def start():
            with pytest.raises(NotFound, match="deployment 'blue' of endpoint 'e' is gone"):
                place.serving.start_instance("e", "blue", 0)
            done.append(True)

        waiting = threading.Thread(target=start)
        waiting.start()
        time.sleep(0.1)
        # As `remove` and a new `prepare` would have it, had they not waited for the lock.
        os.replace(group.folder, group.folder.with_name(".gone-x"))
        place.serving.prepare("e", "blue", place.model)
    waiting.join(5)
    assert done == [True] and len(family([], set(), os.fsencode(f"{MARKER}={group.place(0)}"))) == 1
