"""Ranks of MPI: with pods that are processes and a real mpirun, on this machine too, and who may give orders.

The mpirun is that of MPICH: to Open MPI two such pods are one machine, and their ranks would mistake each other's
shared memory for their own. That is tried on a real cluster.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import threading
from types import SimpleNamespace

import pytest
from conformance import Bench, wait_for
from test_pods import bench, server

from jupyter_mlops.compute.local import LocalCompute
from jupyter_mlops.runtime import journal, mpi
from jupyter_mlops.runtime.jobfolder import NODES, NODES_KEY
from jupyter_mlops.runtime.nodes import Nodes, free_ports

__all__ = ["bench", "server"]
KINDS = {"type": "mpi", "process_count_per_instance": 2}
SUM = """
import os
from mpi4py import MPI
from jupyter_mlops import log
ranks = MPI.COMM_WORLD.allgather(MPI.COMM_WORLD.Get_rank())
assert MPI.COMM_WORLD.Get_rank() == int(os.environ["RANK"])
if ranks[0] == MPI.COMM_WORLD.Get_rank():
    log({"sum": MPI.COMM_WORLD.Get_size()}, step=0)
told = [os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")]
print(ranks, *told, any("NODES" in name for name in os.environ))
"""
#: All wait for all; what happens to rank 3 meanwhile is the test's.
WAIT = """
import os, time
from mpi4py import MPI
MPI.COMM_WORLD.Barrier()
print("pid", os.getpid(), flush=True)
if os.environ["RANK"] == "3":
    {what}
MPI.COMM_WORLD.Barrier()
"""


@pytest.fixture(autouse=True)
def _mpirun():
    pytest.importorskip("mpi4py")
    if mpi.find(sys.executable, os.environ["PATH"]) is None:
        pytest.skip("there is no mpirun")


def started(bench, source, nodes=2, **more):
    job = bench.job("mpi", cell={"source": source}, distribution=KINDS, resources={"instance_count": nodes}, **more)
    bench.driver.start(job, 1, {"JUPYTER_MLOPS_JOB": "mpi", "JUPYTER_MLOPS_RUN_ID": "0" * 32})
    return job


def agent_logs(bench, job):
    return [p.read_text() for p in bench.server.folder.glob("*/work/job/attempts/1/agent.log")]


def test_ranks_of_two_machines_hear_each_other(bench, server):
    job = started(bench, SUM)
    seen = bench.ended(job, 120)
    assert seen.phase == "completed", (seen, bench.log(job), agent_logs(bench, job))
    assert [(r.rank, r.exit_code) for r in seen.ranks] == [(n, 0) for n in range(4)]
    for rank in range(4):
        assert bench.log(job, rank) == f"[0, 1, 2, 3] {rank} {rank % 2} 4 2 False\n"
    records, _, _ = journal.read(job.folder / "journal" / "1-0.bin", 0, 1 << 20, final=True)
    assert [(r.key, r.value) for r, _ in records if isinstance(r, journal.Metric)] == [("sum", 4.0)]
    wait_for(lambda: not server.objects, 20)


def test_an_error_of_one_rank_ends_all_and_speaks(bench, server):
    job = started(bench, WAIT.format(what="raise ValueError('mine')"))
    seen = bench.ended(job, 120)
    assert (seen.phase, seen.failed_rank) == ("failed", 3), (seen, agent_logs(bench, job))
    assert seen.reason == "rank 3 ended with exit code 1: ValueError: mine"
    wait_for(lambda: not server.objects, 20)
    assert not bench.family(job)


def test_a_rank_that_is_killed_is_named(bench, server):
    job = started(bench, WAIT.format(what="time.sleep(100)"))
    pid = int(bench.says(job, "pid", 3).split()[1])
    bench.kill(pid)
    seen = bench.ended(job, 120)
    assert seen.phase == "failed" and "ended by mpirun: a rank on 127.0.2.1 ended with 9" in seen.reason, (
        seen, agent_logs(bench, job), [p.read_text() for p in job.folder.glob("attempts/1/node-*/state.json")])


def test_a_machine_that_is_taken_is_no_error_of_the_job(bench, server):
    job = started(bench, WAIT.format(what="time.sleep(100)"))
    bench.says(job, "pid", 3)
    pod = next(p["metadata"]["name"] for p in server.pods()
               if p["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] == "1")
    server.evict(pod)
    seen = bench.ended(job, 120)
    assert (seen.phase, seen.cause, seen.reason) == (
        "failed", "preempted", "evicted: its node is being emptied"), (seen, agent_logs(bench, job))


def test_a_stop_ends_all(bench, server):
    job = started(bench, WAIT.format(what="time.sleep(100)"))
    bench.says(job, "pid", 0)
    bench.driver.stop(job, 1, 2.0)
    assert bench.ended(job, 60).phase == "canceled"
    assert not bench.family(job)


# -- on this machine ------------------------------------------------------------------------------------------------


@pytest.fixture
def local(tmp_path):
    bench = Bench(LocalCompute, tmp_path)
    yield bench
    bench.close()


def test_on_this_machine(local):
    job = local.job("mpi", cell={"source": SUM}, distribution=KINDS)
    local.driver.start(job, 1, {"JUPYTER_MLOPS_JOB": "mpi", "JUPYTER_MLOPS_RUN_ID": "0" * 32})
    seen = local.ended(job, 60)
    assert seen.phase == "completed", (seen, local.log(job))
    assert local.log(job, 1) == "[0, 1] 1 1 2 2 False\n"


# -- orders ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch):
    """A machine that waits for its order."""
    (port,) = free_ports(1)
    monkeypatch.setenv(NODES_KEY, "ab" * 32)
    monkeypatch.setenv(NODES, f"0/2/127.0.2.%d:{port}")
    told: list[int] = []
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(mpi.serve(Nodes(f"1/2/127.0.2.%d:{port}"), 1.0, told)))
    thread.start()

    def connect():
        """A connection to it, as soon as it listens."""
        def attempt():
            with contextlib.suppress(OSError):
                return socket.create_connection(("127.0.2.1", port), 5)

        return wait_for(attempt)

    yield SimpleNamespace(connect=connect, codes=codes, thread=thread)
    told.append(15)
    thread.join(20)
    assert not thread.is_alive()


def test_an_order_is_obeyed_like_that_of_a_shell(machine, capfdbinary):
    assert mpi.call("127.0.2.1", "echo 'a b'; echo c >&2; exit 7") == 7
    machine.thread.join(20)
    assert machine.codes == [7]
    assert capfdbinary.readouterr().out == b"a b\nc\n"


def test_who_does_not_know_the_key_gives_no_orders(machine, tmp_path, monkeypatch):
    there = tmp_path / "obeyed"
    command = f"touch {there}".encode()
    for proof in (b"\0" * 32, mpi._proof(b"ab" * 32, b"another nonce", command)):
        with machine.connect() as s:
            assert len(s.recv(32, socket.MSG_WAITALL)) == 32
            s.sendall(proof + struct.pack(">I", len(command)) + command)
            assert s.recv(1) == b"", "it hangs up"
    with machine.connect() as s:
        s.sendall(b"\0" * 32 + b"\xff\xff\xff\xff")
        assert len(s.recv(100, socket.MSG_WAITALL)) in (32, 100)
    assert not there.exists() and machine.thread.is_alive()
    assert mpi.call("127.0.2.1", "true") == 0, "it still waits for the one that knows it"


def test_an_order_ends_with_who_gave_it(machine, tmp_path):
    """When mpirun has died, what it started on other machines does not go on."""
    started_ = tmp_path / "started"
    command = f"touch {started_}; exec sleep 100".encode()
    with machine.connect() as s:
        nonce = s.recv(32, socket.MSG_WAITALL)
        s.sendall(mpi._proof(b"ab" * 32, nonce, command) + struct.pack(">I", len(command)) + command)
        wait_for(started_.exists)
    machine.thread.join(20)
    assert machine.codes == [-15]
