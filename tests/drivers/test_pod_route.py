"""Pods that call the control plane by a route of the operator's: pods are processes, the way between is a real one."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conformance import wait_for
from conftest import free_port

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from test_pods import PodBench, server
from ways import Way

from jupyter_mlops.compute.kubernetes import calls, watch
from jupyter_mlops.compute.kubernetes import route as routes
from jupyter_mlops.compute.kubernetes.survey import survey
from jupyter_mlops.core.resources.compute import ComputeSpec
from jupyter_mlops.runtime import jobfolder, route
from jupyter_mlops.runtime.jobfolder import JobFolder

__all__ = ["server"]
SIZE = 30_000_000
LINES = 400
#: A large file whose hash the job tells, and a log that grows meanwhile.
WRITES = f"""
import hashlib, random, time
data = random.Random(1).randbytes({SIZE})
open("model.bin", "wb").write(data)
open("small.txt", "w").write("small")
for i in range({LINES}):
    print("line", i, flush=True)
    time.sleep(0.005)
print(hashlib.sha256(data).hexdigest())
"""


@pytest.fixture
def bench(server, tmp_path, monkeypatch):
    """``bench.options``: what the compute says of its route."""
    monkeypatch.setattr(watch, "RETRY", 0.1)
    options = {"listen": f"127.0.0.1:{free_port()}"}
    bench = PodBench(server, tmp_path, certificate=tmp_path / "computes" / "gpu-route.pem", route=options)
    bench.options = options
    yield bench
    bench.close()


@pytest.fixture
def way(bench):
    """Pods come to the control plane through this, which can be cut; the address is another one than it listens at."""
    way = Way(bench.options["listen"])
    bench.options["address"] = way.address
    bench.driver = bench.make()
    yield way
    way.close()


def came(bench, job) -> None:
    """All is here, as it was written, and once."""
    found = (job.folder / "outputs" / "model.bin").read_bytes()
    *lines, digest = bench.log(job).splitlines()
    assert len(found) == SIZE and hashlib.sha256(found).hexdigest() == digest
    assert lines == [f"line {i}" for i in range(LINES)]
    assert (job.folder / "outputs" / "small.txt").read_text() == "small"
    assert not list(job.folder.glob("attempts/1/node-0/incoming/*")), "nothing half is left"


def noted(job) -> dict:
    return jobfolder.read_json(os.path.join(JobFolder(job.folder).attempt(1).path, "node-0", "routed.json"))


def executions(server) -> int:
    return sum(path.endswith("/exec") for _, path in server.calls)


def test_all_comes_by_the_route(bench, server, tmp_path):
    address = bench.options["listen"]
    job = bench.cell("a", WRITES)
    seen = bench.ended(job, 60)
    assert seen.phase == "completed" and seen.route == f"by the route {address}", seen
    came(bench, job)
    assert executions(server) == 0, "large files need neither the proxy nor an execution"
    assert not any("/proxy" in path for _, path in server.calls)
    assert noted(job)["bytes"] >= SIZE and noted(job)["trouble"] == ""
    assert bench.driver.preview("b", {"command": "true"})["route"] == f"by the route {address}"
    pem = tmp_path / "computes" / "gpu-route.pem"
    assert pem.stat().st_mode & 0o777 == 0o600
    key = JobFolder(job.folder).attempt(1).path + "/call.key"
    assert os.stat(key).st_mode & 0o777 == 0o600


def test_a_stop_reaches_the_pod_by_the_route(bench, server):
    job = bench.cell("a", "import time\nprint('here', flush=True)\ntime.sleep(600)")
    bench.says(job, "here")
    bench.driver.stop(job, 1, 5)
    assert bench.ended(job, 40).phase == "canceled" and executions(server) == 0


def test_several_nodes_call_each_for_itself(bench, server):
    pytest.importorskip("torch")
    job = bench.job("a", cell={"source": "import os\nprint('rank', os.environ['RANK'])\n"
                               "open('o' + os.environ['RANK'], 'w').write('x')"},
                    resources={"instance_count": 2}, distribution={"type": "pytorch"})
    bench.driver.start(job, 1, {})
    assert bench.ended(job, 90).phase == "completed", bench.log(job)
    assert [bench.log(job, rank) for rank in (0, 1)] == ["rank 0\n", "rank 1\n"] and executions(server) == 0
    assert (job.folder / "outputs" / "o0").exists() and (job.folder / "outputs" / "node-1" / "o1").exists()


def test_a_pod_that_does_not_reach_it(bench, server, way, monkeypatch):
    """The copy goes over the API, the job says why; the next one does not wait."""
    monkeypatch.setattr(calls, "FIRST", 0.5)
    way.close()
    job = bench.cell("a", WRITES)
    seen = bench.ended(job, 60)
    words = f"over the cluster's API: the route {way.address} is configured, but pods do not reach it"
    assert seen.phase == "completed" and seen.route == f"{words}: [Errno 111] Connection refused", seen
    came(bench, job)
    assert not bench.driver.by.awaited and bench.driver.preview("b", {"command": "true"})["route"] == words


def test_an_address_that_is_taken(bench, server, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        bench.options["listen"] = f"127.0.0.1:{other.getsockname()[1]}"
        bench.driver = bench.make()
        job = bench.cell("a", "print(1)")
        seen = bench.ended(job, 60)
        assert seen.phase == "completed" and bench.log(job) == "1\n"
        trouble = f"the control plane cannot listen on {bench.options['listen']}: Address already in use"
        assert seen.route == f"over the cluster's API: {trouble}"
        spec = bench.driver.spec
        server.put("namespaces", {"metadata": {"name": "team", "labels": {}}})
        found = survey(bench.driver.kube, spec)
        assert "Address already in use" in found["route"]["trouble"]
        (problem,) = [p for p in found["problems"] if "training.route" in p["message"]]
        assert not problem["fatal"]
    found = survey(bench.driver.kube, spec)
    assert found["route"] == {"listen": bench.options["listen"], "address": bench.options["listen"], "trouble": ""}


def test_a_route_that_is_cut_in_the_middle(bench, server, way):
    """What has come stays, executions take over, and a pod that calls again is heard again."""
    way.cut_after = 9_000_000
    job = bench.cell("a", WRITES + "import time\ntime.sleep(2)\n")
    wait_for(lambda: (bench.observe(job), way.cuts)[1] == 1, 40)
    way.pause()
    wait_for(lambda: executions(server) >= 1, 30)
    assert "broke" in bench.observe(job).route
    seen = bench.ended(job, 60)
    assert seen.phase == "completed" and not seen.incomplete
    came(bench, job)
    assert noted(job)["bytes"] < SIZE


def test_a_pod_that_calls_again_is_taken_again(bench, server, way):
    """Executions end, and the rest comes by the route."""
    job = bench.cell("a", "import os, time\nprint('here', flush=True)\n"
                          "while not os.path.exists('go'):\n    time.sleep(0.05)\n" + WRITES)
    bench.says(job, "here")
    way.pause()
    wait_for(lambda: executions(server) == 1, 30)
    way.resume()
    wait_for(lambda: bench.observe(job).route == f"by the route {way.address}", 60)
    (pod,) = server.pods()
    (server.work(pod["metadata"]["name"]) / "job" / "outputs" / "go").write_text("")
    seen = bench.ended(job, 60)
    assert seen.phase == "completed" and seen.route == f"by the route {way.address}"
    found = (job.folder / "outputs" / "model.bin").read_bytes()
    assert hashlib.sha256(found).hexdigest() in bench.log(job) and bench.log(job).count("line") == LINES
    assert executions(server) == 1


def test_many_cuts_lose_nothing_and_double_nothing(bench, way):
    way.cut_after = 3_000_000
    way.again = True
    job = bench.cell("a", WRITES)
    assert bench.ended(job, 90).phase == "completed"
    came(bench, job)
    assert way.cuts > 2


def test_another_control_plane_takes_the_call(bench, server):
    """The one before was killed in the middle; certificate and tokens are those of before."""
    job = bench.cell("a", "import time\nprint('here', flush=True)\ntime.sleep(3)\n" + WRITES)
    bench.says(job, "here")
    bench.driver.close()
    bench.driver = bench.make()
    seen = bench.ended(job, 60)
    assert seen.phase == "completed" and seen.route.startswith("by the route"), seen
    lines = bench.log(job).splitlines()
    assert lines[0] == "here" and lines[1:-1] == [f"line {i}" for i in range(LINES)]
    found = (job.folder / "outputs" / "model.bin").read_bytes()
    assert hashlib.sha256(found).hexdigest() == lines[-1]


#: A control plane as far as its driver is concerned: it starts a job and looks at it.
OTHER = """
import json, sys, time
from pathlib import Path
from jupyter_mlops.compute.base import JobRef
from jupyter_mlops.compute.kubernetes.driver import KubernetesCompute
from jupyter_mlops.core.resources.compute import ComputeSpec
spec, kubeconfig, certificate, name, folder = json.loads(sys.argv[1])
driver = KubernetesCompute("w", "gpu", ComputeSpec.model_validate(spec), kubeconfig, certificate=Path(certificate))
job = JobRef(name, Path(folder))
driver.start(job, 1, {})
while True:
    driver.observe(job, 1)
    time.sleep(0.1)
"""


def test_a_control_plane_that_was_killed(bench, server, tmp_path):
    """In the middle of all; the pod calls on, and the next one takes it."""
    job = bench.job("a", cell={"source": "import time\nprint('here', flush=True)\ntime.sleep(4)\n" + WRITES})
    given = [bench.driver.spec.model_dump(), bench.driver.kube.kubeconfig, str(bench.driver.by.certificate), "a",
             str(job.folder)]
    other = subprocess.Popen([sys.executable, "-c", OTHER, json.dumps(given)])
    try:
        log = Path(JobFolder(job.folder).attempt(1).log_path(0))
        wait_for(lambda: log.exists() and b"here" in log.read_bytes(), 60)
        assert noted(job) == {"route": bench.options["listen"], "trouble": "", "bytes": 0}
    finally:
        other.kill()
        other.wait()
    seen = bench.ended(job, 60)
    assert seen.phase == "completed" and seen.route.startswith("by the route"), seen
    lines = bench.log(job).splitlines()
    assert lines[0] == "here" and lines[1:-1] == [f"line {i}" for i in range(LINES)] and executions(server) == 0
    assert hashlib.sha256((job.folder / "outputs" / "model.bin").read_bytes()).hexdigest() == lines[-1]


def test_pods_speak_only_with_the_certificate_they_were_told_of(bench, server, tmp_path, monkeypatch):
    monkeypatch.setattr(calls, "FIRST", 0.5)
    order = routes.Route.order
    monkeypatch.setattr(routes.Route, "order", lambda self, key: {**order(self, key), "fingerprint": "0" * 64})
    job = bench.cell("a", "print(1)")
    seen = bench.ended(job, 60)
    assert seen.phase == "completed" and bench.log(job) == "1\n" and executions(server) > 0
    assert "the certificate there is not the control plane's" in seen.route


def test_who_does_not_know_the_token_is_nobody(bench, server, monkeypatch):
    """Another token, another node's, one of an attempt that is not there, and whoever says nothing at all."""
    monkeypatch.setattr(routes, "GREETING", 1.0)
    monkeypatch.setattr(routes, "STRANGERS", 4)
    job = bench.cell("a", "import time\nprint('here', flush=True)\ntime.sleep(8)\nprint('there')")
    bench.says(job, "here")
    key = (Path(JobFolder(job.folder).attempt(1).path) / "call.key").read_text()

    def say(data: bytes) -> bytes:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        host, _, port = bench.options["listen"].partition(":")
        with socket.create_connection((host, int(port)), 5) as plain, context.wrap_socket(plain) as tls:
            tls.sendall(data)
            try:
                return tls.recv(100)
            except ConnectionError:
                return b""

    def hello(**changes) -> bytes:
        said = {"job": "a", "attempt": 1, "node": 0, "token": route.token(key, 0), **changes}
        return json.dumps(said).encode() + b"\n"

    for wrong in (hello(token="0" * 64), hello(token=""), hello(token="\xe9"), hello(token=route.token(key, 1)),
                  hello(node=1), hello(attempt=2), hello(job="b"), hello(node=-1), hello(node=True), hello(token=1),
                  b"[]\n", b"{}\n", b"\n", b"x" * 5000, hello() + hello(), b"GET / HTTP/1.1\r\n\r\n"):
        assert say(wrong) == b"", wrong
    begun = time.monotonic()
    assert say(b"") == b"" and time.monotonic() - begun < 20, "who is silent is not waited for"
    host, _, port = bench.options["listen"].partition(":")
    silent = [socket.create_connection((host, int(port)), 5) for _ in range(12)]
    for one in silent:
        one.settimeout(20)
        assert one.recv(1) == b"", "nor who does not speak TLS"
        one.close()
    assert bench.observe(job).route.startswith("by the route")
    seen = bench.ended(job, 40)
    assert seen.phase == "completed" and bench.log(job) == "here\nthere\n" and executions(server) == 0


def test_a_pod_that_falls_silent_is_not_waited_for(bench, server, way, monkeypatch):
    """The connection stays open, and nothing comes any more."""
    monkeypatch.setattr(calls, "PING", 0.7)
    job = bench.cell("a", "import time\nprint('here', flush=True)\ntime.sleep(3)\nprint('there', flush=True)")
    bench.says(job, "here")
    time.sleep(2.0)
    assert executions(server) == 0, "a job that says nothing is not silent"
    way.swallow = True
    wait_for(lambda: executions(server) >= 1, 30)
    assert bench.ended(job, 60).phase == "completed" and bench.log(job) == "here\nthere\n"


@pytest.mark.parametrize(("given", "words"), [
    ({"listen": "7443"}, "is no address such as"),
    ({"listen": "10.0.0.1:0"}, "is no address such as"),
    ({"listen": "10.0.0.1:70000"}, "is no address such as"),
    ({"listen": "http://a:1"}, "is no address such as"),
    ({"listen": "0.0.0.0:7443"}, "has to say as address"),
    ({"listen": "[::]:7443"}, "has to say as address"),
    ({"listen": ""}, "listen is missing"),
    ({"listen": "a:7443", "address": "b"}, "is no address such as"),
])
def test_what_is_wrong_with_a_route_is_said(given, words):
    with pytest.raises(ValueError, match=words):
        ComputeSpec(type="kubernetes", namespace="team", training={"image": "a:1", "route": given})
