"""Attempts whose nodes come and go, and TensorFlow's workers: with pods that are processes, and torchrun itself."""

from __future__ import annotations

import json

import pytest
from conformance import wait_for
from test_pods import bench, server

from jupyter_mlops.core.resources.job import JobSpec
from jupyter_mlops.runtime import journal

__all__ = ["bench", "server"]
#: Steps with an all-reduce; rank 0 keeps a checkpoint, and tells the others what it says.
TRAIN = """
import os, time, torch, torch.distributed as dist
from jupyter_mlops import log
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
start = torch.tensor([int(open("checkpoint").read()) if rank == 0 and os.path.exists("checkpoint") else 0])
dist.broadcast(start, src=0)  # of a tensor: broadcast_object_list needs numpy
start = start.tolist()
print("begin", start[0], "world", world, flush=True)
for step in range(start[0], {steps}):
    total = torch.ones(1)
    dist.all_reduce(total)
    if rank == 0:
        log({{"world": total.item(), "x": float(step)}}, step=step)
        with open("new", "w") as f:
            f.write(str(step + 1))
        os.replace("new", "checkpoint")
    if {fail}:
        raise ValueError("mine")
    time.sleep(0.1)
dist.barrier()
print("done", world, flush=True)
dist.destroy_process_group()
"""


def elastic(bench, name, steps=60, fail="False", least=1, most=2, **more):
    pytest.importorskip("torch")
    job = bench.job(name, cell={"source": TRAIN.format(steps=steps, fail=fail)}, distribution={"type": "pytorch"},
                    resources={"instance_count": least, "max_instance_count": most}, **more)
    env = {"GLOO_SOCKET_IFNAME": "lo", "JUPYTER_MLOPS_JOB": name, "JUPYTER_MLOPS_RUN_ID": "0" * 32}
    bench.driver.start(job, 1, env)
    return job


def points(job, key):
    found = []
    offset = 0
    while True:
        records, following, _ = journal.read(job.folder / "journal" / "1-0.bin", offset, 1 << 20, final=True)
        found += [(r.step, r.value) for r, _ in records if isinstance(r, journal.Metric) and r.key == key]
        if following == offset:
            return found
        offset = following


def test_it_begins_with_the_least_and_ends_with_them(bench, server):
    server.room = 1
    job = elastic(bench, "few", steps=5)
    seen = bench.ended(job, 180)
    assert seen.phase == "completed", (seen, bench.log(job))
    assert bench.log(job).splitlines()[-2:] == ["begin 0 world 1", "done 1"]
    wait_for(lambda: not server.objects, 20)


@pytest.mark.faults
def test_a_node_joins_and_one_is_taken_and_its_place_is_filled(bench, server):
    """One, then two, then one, then two again; no step is missing, and none is counted twice."""
    server.room = 1
    job = elastic(bench, "many", steps=400)
    wait_for(lambda: "begin 0 world 1" in bench.log(job), 120)
    assert wait_for(lambda: (s := bench.observe(job)).reason and s).reason == "on 1 of 1 to 2 nodes"
    server.room = 2
    wait_for(lambda: "world 2" in bench.log(job), 120)
    assert "world 2" in wait_for(lambda: bench.log(job, 1))
    second = next(p for p in server.pods() if p["metadata"]["labels"][
        "batch.kubernetes.io/job-completion-index"] == "1")
    server.room = 1
    server.evict(second["metadata"]["name"])
    wait_for(lambda: bench.log(job).count("world 1") == 2, 180)
    server.room = 2
    wait_for(lambda: bench.log(job).count("world 2") == 2, 180)
    assert "world 2" in wait_for(lambda: bench.log(job, 3)), "who takes a place has a number of its own"
    seen = bench.ended(job, 240)
    assert seen.phase == "completed", (seen, bench.log(job))
    assert bench.log(job).splitlines()[-1] == "done 2"
    steps = [step for step, _ in points(job, "x")]
    assert steps == list(range(400))
    worlds = [value for _, value in points(job, "world")]
    assert {1.0, 2.0} == set(worlds)
    assert (job.folder / "attempts" / "1" / "node-3" / "state.json").exists()


def test_an_error_of_its_own_ends_all(bench, server):
    job = elastic(bench, "wrong", fail="rank == 1 and step == 2", least=2, most=3)
    seen = bench.ended(job, 180)
    assert (seen.phase, seen.cause, seen.failed_rank) == ("failed", "", 1), seen
    assert "ValueError: mine" in seen.reason
    assert bench.log(job, 1).count("begin") == 1, "it is not tried again"


@pytest.mark.faults
def test_the_first_node_holds_all_together(bench, server):
    job = elastic(bench, "first", steps=1000, least=2, most=3)
    wait_for(lambda: "begin" in bench.log(job), 120)
    first = next(p for p in server.pods() if p["metadata"]["labels"][
        "batch.kubernetes.io/job-completion-index"] == "0")
    server.evict(first["metadata"]["name"], "PreemptionByScheduler")
    seen = bench.ended(job, 180)
    assert (seen.phase, seen.cause, seen.reason) == (
        "failed", "preempted", "preempted by a job of higher priority"), seen


def test_a_stop_ends_an_elastic_job(bench, server):
    server.room = 1
    job = elastic(bench, "stopped", steps=1000)
    wait_for(lambda: "world" in bench.log(job), 120)
    bench.driver.stop(job, 1, 1.0)
    assert bench.ended(job, 240).phase == "canceled"
    wait_for(lambda: not server.objects, 20)


# -- TensorFlow's workers -------------------------------------------------------------------------------------------

#: What TensorFlow does with TF_CONFIG, as far as addresses go: each worker listens on its own and calls all others.
TALK = """
import json, os, socket, threading, time
config = json.loads(os.environ["TF_CONFIG"])
workers, me = config["cluster"]["worker"], config["task"]["index"]
assert config["task"]["type"] == "worker" and int(os.environ["RANK"]) == me
host, port = workers[me].rsplit(":", 1)
server = socket.create_server((host, int(port)))  # on all addresses other tests would be in the way
heard = set()
def listen():
    while len(heard) < len(workers):
        other, _ = server.accept()
        with other:
            heard.add(int(other.recv(10)))
thread = threading.Thread(target=listen)
thread.start()
for address in workers:
    host, port = address.rsplit(":", 1)
    for _ in range(300):
        try:
            with socket.create_connection((host, int(port)), 5) as s:
                s.sendall(str(me).encode())
            break
        except OSError:
            time.sleep(0.1)
thread.join(60)
print("worker", me, "of", len(workers), "heard", sorted(heard))
"""


def test_workers_find_each_other_by_tf_config(bench, server):
    job = bench.job("flow", cell={"source": TALK}, distribution={"type": "tensorflow", "worker_count": 4},
                    resources={"instance_count": 2})
    spec = JobSpec.model_validate(json.loads((job.folder / "spec.json").read_text()))
    assert spec.processes == 2 and spec.world_size == 4
    (job.folder / "spec.json").write_text(spec.model_dump_json())
    bench.driver.start(job, 1, {})
    seen = bench.ended(job, 180)
    assert seen.phase == "completed", (seen, bench.log(job))
    for rank in range(4):
        assert bench.log(job, rank) == f"worker {rank} of 4 heard [0, 1, 2, 3]\n"


def test_one_worker_that_fails_ends_the_others(bench, server):
    source = "import os, time\nassert os.environ['RANK'] != '1', 'worker 1'\ntime.sleep(60)"
    job = bench.job("flow", cell={"source": source}, limits={"grace": 1}, distribution={
        "type": "tensorflow", "process_count_per_instance": 2})
    bench.driver.start(job, 1, {})
    seen = bench.ended(job, 240)
    assert (seen.phase, seen.failed_rank) == ("failed", 1) and "AssertionError: worker 1" in seen.reason, seen
