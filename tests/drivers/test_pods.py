"""The driver of a cluster against an emulated API whose pods are processes here: the conformance suite, and faults."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
import zipfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from conformance import STEPS, Bench, Conformance, steps, wait_for
from kube_server import status
from pod_server import PodServer

from jupyter_mlops.compute.base import JobRef
from jupyter_mlops.compute.kubernetes import watch
from jupyter_mlops.compute.kubernetes.driver import KubernetesCompute
from jupyter_mlops.core.errors import BackendUnreachable, Refused
from jupyter_mlops.core.resources.compute import ComputeSpec
from jupyter_mlops.kube import packs
from jupyter_mlops.runtime import processes
from jupyter_mlops.runtime.berth import FOLDER
from jupyter_mlops.runtime.jobfolder import JobFolder


class PodBench(Bench):
    """Jobs whose processes belong to pods here."""

    def __init__(self, server: PodServer, folder: Path, home: str = "home", certificate: Path | None = None,
                 **training: object) -> None:
        self.server, self.drivers = server, []
        self.training = {"image": "image:1", "hold": 30, **training}
        self._kubeconfig, self._certificate = server.kubeconfig(folder), certificate
        super().__init__(self.another, folder / home)

    def another(self, workspace: str = "w", **training: object) -> KubernetesCompute:
        """The driver of a further control plane; ``training``: what it is told otherwise than the first."""
        spec = ComputeSpec(type="kubernetes", namespace="team", context="emulated",
                           training={**self.training, **training})
        self.drivers.append(KubernetesCompute(workspace, "gpu", spec, self._kubeconfig, certificate=self._certificate))
        return self.drivers[-1]

    def family(self, job: JobRef) -> list[int]:
        found: list[int] = []
        for pod in self.server.folder.iterdir():
            found += processes.family([], set(), JobFolder(self.server.work(pod.name) / FOLDER).marker)
        return found

    def close(self) -> None:
        for driver in self.drivers:
            driver.close()


@pytest.fixture
def server():
    server = PodServer().start()
    yield server
    server.stop()


@pytest.fixture
def bench(server, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "RETRY", 0.1)
    bench = PodBench(server, tmp_path)
    yield bench
    bench.close()


class TestPods(Conformance):
    pass


def attempt_of(job, number=1):
    return JobFolder(job.folder).attempt(number)


def objects(server) -> list[str]:
    return [f"{plural} {name}" for plural, name in server.objects]


def running(bench, job):
    return wait_for(lambda: bench.observe(job).phase == "running")


def test_nothing_is_left_on_the_cluster(bench, server):
    job = bench.cell("a", "print(1)")
    assert bench.ended(job).phase == "completed"
    wait_for(lambda: not server.objects, 20)
    bench.driver.delete(job)
    made = [path for method, path in server.calls if method in ("POST", "PATCH")]
    assert made and not any("/pods" in path and not path.endswith("/exec") for path in made), "pods are the cluster's"


def test_what_could_not_be_removed_is_tried_again(bench, server, tmp_path, monkeypatch):
    """Until it succeeds, by a later control plane too, and never what somebody else made under the name."""
    monkeypatch.setattr("jupyter_mlops.compute.kubernetes.leftovers.RETRY", 0.1)
    made, kept = [], tmp_path / "leftovers" / "gpu.json"

    def driver():
        spec, config = bench.driver.spec, bench.driver.kube.kubeconfig
        made.append(KubernetesCompute("w", "gpu", spec, config, leftovers=kept))
        bench.drivers.append(made[-1])
        return made[-1]

    tries = []

    def refuse(request):
        if request.method == "DELETE" and "/jobs/" in request.path:
            tries.append(request.path)
            return status(500, "not now", "InternalError")
        return None

    server.fault = refuse
    first = driver()
    for name in ("a", "b"):
        job = bench.job(name, cell={"source": "print(1)"})
        first.start(job, 1, {})
        wait_for(lambda j=job: first.observe(j, 1).phase == "completed")
    wait_for(lambda: len(tries) > 5)  # two by those who looked; the others by itself, nobody asks any more
    first.close()
    assert len(json.loads(kept.read_text())["jobs"]) == 2 and len(server.of("jobs")) == 2
    server.of("jobs")[0]["metadata"]["uid"] = "of somebody else"
    server.fault = None
    driver().tidy()  # the next control plane
    wait_for(lambda: not kept.exists(), 20)
    assert [j["metadata"]["uid"] for j in server.of("jobs")] == ["of somebody else"]
    assert not made[-1]._leftovers


def test_the_api_is_away_for_a_while(bench, server):
    job = bench.cell("a", STEPS.format(n=40, pause=0.05))
    bench.says(job, "step 3")
    server.fault = lambda request: status(503, "away", "ServiceUnavailable")
    server.cut_connections()
    seen = wait_for(lambda: (s := bench.observe(job)).reason and s)
    assert seen.phase == "running" and "the job goes on" in seen.reason and "gpu" in seen.reason
    time.sleep(1.0)
    server.fault = None
    assert bench.ended(job).phase == "completed"
    assert steps(bench.log(job)) == list(range(40)), "nothing is missing, nothing doubled"


def test_it_ends_while_the_api_is_away(bench, server):
    job = bench.cell("a", STEPS.format(n=20, pause=0.05) + "\nopen('model', 'w').write('m' * 100000)")
    bench.says(job, "step 3")
    server.fault = lambda request: status(503, "away", "ServiceUnavailable")
    server.cut_connections()
    time.sleep(2.5)  # it ends meanwhile: its pod waits for us
    server.fault = None
    assert bench.ended(job).phase == "completed"
    assert steps(bench.log(job)) == list(range(20))
    assert (job.folder / "outputs" / "model").stat().st_size == 100_000


def test_a_watch_that_is_too_old_is_begun_anew(bench, server):
    server.too_old = 3
    job = bench.cell("a", "print(1)")
    assert bench.ended(job).phase == "completed" and server.watches >= 3


def test_one_watch_and_one_stream(bench, server):
    jobs = [bench.cell(f"j{i}", STEPS.format(n=10, pause=0.1)) for i in range(4)]
    for job in jobs:
        assert bench.ended(job, 60).phase == "completed"
    assert server.watches == 1
    assert sum(1 for method, path in server.calls if path.endswith("/exec")) == 4


def test_credentials_that_end(bench, server):
    job = bench.cell("a", STEPS.format(n=100, pause=0.1))
    bench.says(job, "step 2")
    server.token = "another"
    server.cut_connections()
    seen = wait_for(lambda: "no longer accepts its credentials" in (s := bench.observe(job)).reason and s)
    assert seen.phase == "running" and seen.reason.count("compute 'gpu'") == 1
    server.token = "a-token"
    assert bench.ended(job).phase == "completed"
    assert steps(bench.log(job)) == list(range(100))


def test_a_cluster_that_is_not_there_starts_nothing(bench, server):
    server.fault = lambda request: status(500, "broken", "InternalError")
    job = bench.job("a", cell={"source": "print(1)"})
    with pytest.raises(BackendUnreachable):
        bench.driver.start(job, 1, {})
    assert bench.observe(job).phase == "absent"
    server.fault = None
    bench.driver.start(job, 1, {})
    assert bench.ended(job).phase == "completed"


@pytest.mark.parametrize("at", ["jobs", "secrets", "services"])
def test_what_is_refused_leaves_nothing(bench, server, at):
    message = 'pods "x" is forbidden: exceeded quota: small, requested: count=1, used: count=3, limited: count=3'

    def refuse(request):
        wanted = request.method in ("POST", "PATCH") and f"/{at}" in request.path
        return status(403, message, "Forbidden") if wanted else None

    server.fault = refuse
    job = bench.job("a", cell={"source": "print(1)"}, resources={"instance_count": 2})
    with pytest.raises(Refused, match="the quota 'small' of the namespace is used up"):
        bench.driver.start(job, 1, {})
    server.fault = None
    assert objects(server) == [] and bench.observe(job).phase == "absent"


def test_a_start_that_was_cut_short_is_finished(bench, server):
    """Killed between any two calls, the next start goes on; the ranks run once."""
    job = bench.job("a", cell={"source": "open('count', 'a').write('x')"})
    for allowed in range(1, 6):
        left = [allowed]

        def stop(request, left=left):
            if request.method in ("POST", "PATCH"):
                left[0] -= 1
            return status(500, "gone", "InternalError") if left[0] < 0 else None

        server.fault = stop
        with contextlib.suppress(BackendUnreachable):
            bench.make().start(job, 1, {})
    server.fault = None
    bench.driver.start(job, 1, {})
    assert bench.ended(job).phase == "completed"
    assert (job.folder / "outputs" / "count").read_text() == "x"
    wait_for(lambda: not server.objects, 20)


def test_a_pod_that_is_deleted(bench, server):
    job = bench.cell("a", "import time\nprint('up')\nopen('kept', 'w').write('x')\ntime.sleep(60)")
    bench.says(job, "up")
    server._loop.call_soon_threadsafe(server._terminate, server.pods()[0]["metadata"]["name"], 5)
    seen = bench.ended(job)
    assert (seen.phase, seen.cause) == ("failed", "lost") and "the cluster ended the pod" in seen.reason
    assert (job.folder / "outputs" / "kept").read_text() == "x" and bench.log(job) == "up\n"
    assert not seen.incomplete and not bench.make().observe(job, 1).incomplete, "its keeper told all before it went"


def test_a_node_that_is_lost(bench, server):
    job = bench.cell("a", "import time\nprint('up')\ntime.sleep(60)")
    bench.says(job, "up")
    wait_for(lambda: bench.observe(job).started_at)  # it is known a moment after the ranks are there
    server.lose_node(server.pods()[0]["metadata"]["name"])
    seen = bench.ended(job)
    assert (seen.phase, seen.cause, seen.reason) == ("failed", "lost", "its node is lost")
    assert bench.log(job) == "up\n" and seen.started_at
    assert seen.incomplete and bench.make().observe(job, 1).incomplete
    bench.driver.start(job, 2, {})
    bench.driver.stop(job, 2, 1.0)
    assert bench.ended(job, attempt=2).phase == "canceled"


def test_a_node_that_does_not_answer(bench, server):
    """It may come back; it is lost when the cluster takes the pod away, though nobody tells of the pod's end."""
    def says(ready, **more):
        containers = [{"name": "job", "ready": True, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]
        conditions = [{"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"}, *more.values()]
        keeper = [{**c, "ready": True} for c in server.pods()[0]["status"]["initContainerStatuses"]]
        server._loop.call_soon_threadsafe(lambda: server._set(
            name, phase="Running", containerStatuses=containers, conditions=conditions, initContainerStatuses=keeper))

    job = bench.cell("a", "import time\nprint('up')\ntime.sleep(60)")
    bench.says(job, "up")
    wait_for(lambda: bench.observe(job).started_at)
    name = server.pods()[0]["metadata"]["name"]
    says("False")
    seen = wait_for(lambda: (s := bench.observe(job)).reason and s)
    assert seen.phase == "running" and "has not answered for" in seen.reason
    says("True")
    wait_for(lambda: not bench.observe(job).reason)
    server.pods()[0]["metadata"]["deletionTimestamp"] = "2026-01-01T00:05:00Z"
    says("False", gone={"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"})
    seen = bench.ended(job)
    assert (seen.phase, seen.cause, seen.reason) == ("failed", "lost", "its node is lost") and seen.incomplete


def test_pods_that_go_while_nobody_looks(bench, server, monkeypatch):
    monkeypatch.setattr("jupyter_mlops.compute.kubernetes.driver.APPEAR", 0.1)
    job = bench.cell("a", "import time\nprint('up')\ntime.sleep(60)")
    bench.says(job, "up")
    bench.driver.close()  # the control plane dies
    server.lose_node(server.pods()[0]["metadata"]["name"])
    (made,) = server.of("jobs")
    made["status"] = {"conditions": [{"type": "Failed", "status": "True", "message": "Job has failed"}]}
    other = bench.make()
    seen = wait_for(lambda: (s := other.observe(job, 1)).terminal and s)
    assert (seen.phase, seen.cause) == ("failed", "lost") and "its pods are gone" in seen.reason and seen.incomplete
    assert bench.log(job) == "up\n"


def test_a_job_that_somebody_deletes_on_the_cluster(bench, server, monkeypatch):
    job = bench.cell("a", "import time\nprint('up')\ntime.sleep(60)")
    bench.says(job, "up")

    def delete():
        server.objects = {k: v for k, v in server.objects.items() if k[0] != "jobs"}
        server._collect()

    server._loop.call_soon_threadsafe(delete)
    seen = bench.ended(job)
    assert (seen.phase, seen.cause, seen.reason) == ("failed", "deleted", "its Job was deleted on the cluster")
    assert bench.log(job) == "up\n"


def test_a_pod_that_waits_says_why_and_can_be_stopped(bench, server):
    server.hold_pods = [{"type": "PodScheduled", "status": "False",
                         "message": "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."}]
    job = bench.cell("a", "print(1)")
    seen = wait_for(lambda: (s := bench.observe(job)).reason.startswith("no node") and s)
    assert seen.phase == "starting" and "not enough nvidia.com/gpu on 2 of 2 nodes" in seen.reason
    bench.driver.stop(job, 1, 1.0)
    assert bench.ended(job).phase == "canceled" and not bench.observe(job).incomplete
    wait_for(lambda: not server.objects, 20)


def test_inputs_that_are_too_large_for_secrets_are_brought(bench, server, monkeypatch):
    monkeypatch.setattr(packs, "MAX_PARTS", 0)
    job = bench.job("a", cell={"source": "import hashlib, os\n"
                               "data = open(os.environ['JUPYTER_MLOPS_JOB_DIR'] + '/inputs/x', 'rb').read()\n"
                               "print(hashlib.sha256(data).hexdigest())"})
    data = random.Random(3).randbytes(5_000_000)
    (job.folder / "inputs").mkdir()
    (job.folder / "inputs" / "x").write_bytes(data)
    server.cut = 2_000_000  # and the first try breaks off
    bench.driver.start(job, 1, {})
    assert bench.ended(job).phase == "completed", bench.log(job)
    import hashlib

    assert bench.log(job).strip() == hashlib.sha256(data).hexdigest()
    assert not any("-in-" in name for name in objects(server))


def test_the_keeper_is_killed(bench, server):
    """A kubelet starts it again; here it stays away, and the job's end is known from the pod."""
    job = bench.cell("a", "import time\nprint('up')\ntime.sleep(2)")
    bench.says(job, "up")
    os.kill(server._processes[server.pods()[0]["metadata"]["name"]]["keeper"].pid, signal.SIGKILL)
    assert bench.ended(job).phase in ("completed", "failed")


def test_two_nodes(bench, server):
    pytest.importorskip("torch")
    job = bench.job("a", cell={"source": """
import os, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor(float(dist.get_rank() + 1))
dist.all_reduce(total)
print("rank", dist.get_rank(), "of", dist.get_world_size(), "sum", total.item())
open(f"by-{dist.get_rank()}", "w").close()
dist.destroy_process_group()
"""}, distribution={"type": "pytorch", "process_count_per_instance": 1}, resources={"instance_count": 2})
    bench.driver.start(job, 1, {"GLOO_SOCKET_IFNAME": "lo"})
    seen = bench.ended(job, 90)
    assert seen.phase == "completed", (seen, bench.log(job), bench.log(job, 1))
    assert [(r.rank, r.exit_code) for r in seen.ranks] == [(0, 0), (1, 0)]
    for rank in (0, 1):
        assert f"rank {rank} of 2 sum 3.0" in bench.log(job, rank)
    assert (job.folder / "outputs" / "by-0").exists() and (job.folder / "outputs" / "node-1" / "by-1").exists()


def test_no_secret_leaves_the_secrets(bench, server):
    secret = {"API_KEY": "s3cr3t-value"}
    job = bench.cell("a", "import os\nprint(len(os.environ['API_KEY']))", environment_variables=secret)
    assert bench.ended(job).phase == "completed" and bench.log(job) == "12\n"
    job = bench.job("b", cell={"source": "1"}, environment_variables=secret)
    bench.driver.start(job, 1, {})
    assert "s3cr3t-value" not in json.dumps([o for (p, _), o in server.objects.items() if p != "secrets"])
    assert bench.ended(job).phase == "completed"


def test_a_script_runs_in_the_folder_that_came_with_it(bench, server):
    job = bench.job("a", script="train.py", args=["--epochs", "3"], code="0" * 64, cwd="/home/ann/project")
    (job.folder / "inputs").mkdir()
    with zipfile.ZipFile(job.folder / "inputs" / "code.zip", "w") as archive:
        archive.writestr("train.py", "import sys, helper\nprint(helper.NAME, sys.argv, open('data/x.txt').read())\n"
                                     "open('outputs/model', 'w').write('m')\n")
        archive.writestr("helper.py", "NAME = 'helper'\n")
        archive.writestr("data/x.txt", "of the folder")
    bench.driver.check(json.loads((job.folder / "spec.json").read_text()))
    bench.driver.start(job, 1, {})
    assert bench.ended(job).phase == "completed", bench.log(job)
    assert bench.log(job) == "helper ['train.py', '--epochs', '3'] of the folder\n"
    assert (job.folder / "outputs" / "model").read_text() == "m"
    assert not (job.folder / "src").exists()


def test_a_folder_that_leads_elsewhere_is_not_unpacked(bench, server):
    job = bench.job("a", script="train.py", code="0" * 64)
    (job.folder / "inputs").mkdir()
    with zipfile.ZipFile(job.folder / "inputs" / "code.zip", "w") as archive:
        archive.writestr("../../evil.py", "1")
    bench.driver.start(job, 1, {})
    seen = bench.ended(job)
    assert seen.phase == "failed" and "could not be unpacked" in seen.reason, seen
