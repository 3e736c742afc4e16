"""Jobs that misbehave, and damage where nobody died: the rest of the fault matrix."""

from __future__ import annotations

import time

import pytest
from conftest import wait_for
from fault_bench import ALONE, job_name, kill, params


@pytest.mark.parametrize(("fault", "number"), params(["shipper"]))
def test_delivery_is_killed_in_the_middle_of_a_batch(bench, rng, fault, number):
    """The shipper lives in the control plane: it is killed while 20,000 points are on their way."""
    points = 20_000
    source = (
        f"import mlflow\nfor step in range({points}):\n    mlflow.log_metric('value', 2 * step, step=step)\n"
        "print('all logged', flush=True)\nopen('logged', 'w').close()\nimport time\ntime.sleep(1)\n"
    )
    name = bench.submit(job_name(fault, number), source, processes=1)
    wait_for(lambda: "all logged" in bench.log(name), 60)
    for _ in range(4):
        time.sleep(rng.uniform(0.05, 0.4))
        kill(bench.control())
        bench.plane.process.wait()
        bench.plane.start()
    job = bench.ended(name, 120)
    assert job["status"]["phase"] == "Completed", job["status"]
    values = sorted((s, v) for s, v, _ in bench.history(job["status"]["run_id"], "value"))
    assert values == [(s, 2.0 * s) for s in range(points)]
    bench.nothing_left(name)


@pytest.mark.parametrize(("fault", "number"), params(["torn record"]))
def test_a_torn_record(bench, rng, fault, number):
    """What a killed process left half written is skipped; what another one appended behind it is not."""
    name = bench.train(job_name(fault, number), ALONE, processes=1)
    bench.reach(name, rng.randrange(3, 20))
    journal = bench.folder(name) / "journal" / "1-0.bin"
    data = journal.read_bytes()
    with open(journal, "ab") as f:
        f.write(data[:rng.randrange(1, 40)])
    job = bench.verify(name, ranks=1)
    assert job["status"]["delivery"]["damaged"] > 0
    with open(journal, "ab") as f:
        f.write(b"\xa7J\x10")  # behind the end of a job nobody reads any more
    assert bench.plane.get(f"jobs/{name}")["status"]["phase"] == "Completed"


@pytest.mark.parametrize(("fault", "number"), params(["clock"]))
def test_clock_jumps(bench, rng, fault, number):
    """The rank's clock is set back by an hour, then ahead by two: the order of the points stays."""
    jump = (
        "import time\n_real, _real_ns, _shift = time.time, time.time_ns, [0]\n"
        "time.time = lambda: _real() + _shift[0]\ntime.time_ns = lambda: _real_ns() + _shift[0] * 10**9\n"
    )
    body = ALONE.replace("    mlflow.log_metric(", "    _shift[0] = -3600 if 10 <= step < 25 else 3600 * (step >= 25)\n"
                         "    mlflow.log_metric(", 1)
    name = bench.train(job_name(fault, number), jump + body, 0.02, processes=1)
    bench.verify(name, ranks=1)


@pytest.mark.parametrize(("fault", "number"), params(["ignores term"]))
def test_a_job_that_ignores_term_and_forks_daemons(bench, rng, fault, number):
    source = (
        "import os, signal, subprocess, sys, time\n"
        "for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):\n    signal.signal(n, signal.SIG_IGN)\n"
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        for f in range(3):\n            os.close(f)\n        time.sleep(600)\n    os._exit(0)\n"
        "subprocess.Popen(['sh', '-c', 'trap \"\" TERM; sleep 600; sleep 600'], start_new_session=True)\n"
        "print('rank 0 step 0', flush=True)\ntime.sleep(600)\n"
    )
    name = bench.submit(job_name(fault, number), source, processes=1, limits={"grace": 0.5})
    bench.reach(name, 0)
    assert len(bench.of_job(name)) >= 3
    bench.plane.post(f"jobs/{name}/actions/stop")
    job = bench.ended(name, 60)
    assert job["status"]["phase"] == "Canceled", job["status"]
    assert bench.plane.get(f"runs/{job['status']['run_id']}")["status"] == "KILLED"
    bench.nothing_left(name)


@pytest.mark.parametrize(("fault", "number"), params(["prints 10 MB/s"]))
def test_a_job_that_prints_without_end(bench, rng, fault, number):
    limit = 2 << 20
    source = (
        "import time\nline = 'x' * 1023\nuntil = time.time() + 3\nn = 0\n"
        "while time.time() < until:\n    for _ in range(1000):\n        print(n, line)\n        n += 1\n"
        "    time.sleep(0.1)\n"
        "print('the last line')\n"
    )
    name = bench.submit(job_name(fault, number), source, processes=1, limits={"log_bytes": limit})
    job = bench.ended(name, 60)
    assert job["status"]["phase"] == "Completed", job["status"]
    log = bench.folder(name) / "attempts" / "1" / "rank-0.log"
    assert log.stat().st_size > 4 * limit
    assert log.stat().st_blocks * 512 < 2 * limit + (1 << 20)
    part = bench.plane.get(f"jobs/{name}/logs/0?offset=-100&limit=100")
    assert part["text"].endswith("the last line\n")
    first = bench.plane.get(f"jobs/{name}/logs/0?offset=0&limit=100")
    assert first["text"].startswith("0 xxx")
    bench.nothing_left(name)


@pytest.mark.parametrize(("fault", "number"), params(["never logs"]))
def test_a_job_that_never_logs(bench, rng, fault, number):
    name = bench.submit(job_name(fault, number), "x = 1\n", processes=1)
    job = bench.ended(name, 60)
    assert job["status"]["phase"] == "Completed", job["status"]
    run = bench.plane.get(f"runs/{job['status']['run_id']}")
    assert (run["status"], run["metrics"]) == ("FINISHED", {})
    bench.nothing_left(name)
