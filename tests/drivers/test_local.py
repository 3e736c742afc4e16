"""The local driver: the conformance suite, and all that may die or change under it."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conformance import STEPS, Bench, Conformance, steps
from conftest import wait_for

from jupyter_mlops.compute import environment, local, machine
from jupyter_mlops.compute.base import Grant
from jupyter_mlops.compute.local import LocalCompute
from jupyter_mlops.core.errors import Conflict, Refused
from jupyter_mlops.runtime import processes, supervisor
from jupyter_mlops.runtime.jobfolder import JobFolder, write_json


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_RETRY", 0.2)
    bench = Bench(LocalCompute, tmp_path / "home")
    yield bench
    bench.close()


class TestLocal(Conformance):
    pass


def attempt_of(job):
    return JobFolder(job.folder).attempt(1)


def supervisor_of(job) -> int:
    """Pid of the supervisor, once it has written it."""
    return wait_for(lambda: attempt_of(job).state().get("pid"))


def kill_supervisor(job) -> int:
    pid = supervisor_of(job)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not processes.start_time(pid))
    return pid


# -- adoption


@pytest.mark.parametrize("size", [1, 2])
def test_supervisor_killed_midway_is_replaced(bench, size):
    if size > 1:
        pytest.importorskip("torch")
    job = bench.cell("a", STEPS.format(n=30, pause=0.05), processes=size)
    bench.says(job, "step 5\n")
    pid = attempt_of(job).signed_in(0)["pid"]
    old = kill_supervisor(job)
    assert bench.observe(job).phase == "running"
    new = wait_for(lambda: bench.observe(job) and attempt_of(job).state()["pid"] not in (old, None)
                   and attempt_of(job).state()["pid"])
    os.kill(new, signal.SIGKILL)  # and once more
    seen = bench.ended(job)
    assert (seen.phase, seen.exit_code, seen.reason) == ("completed", 0, ""), seen
    assert [rank.exit_code for rank in seen.ranks] == [0] * size
    assert seen.ranks[0].pid == pid
    for rank in range(size):
        assert steps(bench.log(job, rank)) == list(range(30))


def test_ranks_survive_their_agent(bench):
    pytest.importorskip("torch")
    job = bench.cell("a", STEPS.format(n=30, pause=0.05), processes=2)
    bench.says(job, "step 2\n", 1)
    os.kill(attempt_of(job).signed_in("agent")["pid"], signal.SIGKILL)
    seen = bench.ended(job)
    assert (seen.phase, [rank.exit_code for rank in seen.ranks]) == ("completed", [0, 0])
    assert steps(bench.log(job, 0)) == steps(bench.log(job, 1)) == list(range(30))


def test_ranks_that_ended_unwatched(bench):
    good = bench.cell("good", STEPS.format(n=5, pause=0.05))
    bad = bench.cell("bad", "import time\nprint('up')\ntime.sleep(0.3)\nraise OSError('late')")
    gone = bench.cell("gone", "import os, time\nprint('up')\ntime.sleep(0.3)\nos._exit(0)")
    ranks = {}
    for job, text in ((good, "step 0"), (bad, "up"), (gone, "up")):
        bench.says(job, text)
        ranks[job.name] = attempt_of(job).signed_in(0)
        kill_supervisor(job)
    for entry in ranks.values():
        wait_for(lambda entry=entry: not processes.alive(entry["pid"], entry["start_time"]))
    seen = bench.ended(good)
    assert (seen.phase, seen.exit_code) == ("completed", 0)
    seen = bench.ended(bad)
    assert (seen.phase, seen.exit_code, seen.reason) == ("failed", 1, "ended with exit code 1: OSError: late")
    seen = bench.ended(gone)
    assert (seen.phase, seen.exit_code) == ("failed", None)
    assert "exit unknown" in seen.reason


def test_time_goes_on_while_nobody_supervises(bench):
    """Control plane and supervisor die; whoever adopts keeps the time that the first one began with."""
    job = bench.cell("a", "import time\nprint('up')\ntime.sleep(60)", limits={"timeout": 2}, grant=Grant(timeout=2.0))
    bench.says(job, "up")
    begun = json.loads(Path(attempt_of(job).limits_path).read_text())["clock"]
    kill_supervisor(job)
    bench.driver = bench.make()
    seen = bench.ended(job)
    assert (seen.phase, seen.cause, seen.reason) == ("failed", "timeout", "ran longer than limits.timeout (2 s)")
    assert json.loads(Path(attempt_of(job).limits_path).read_text())["clock"] == begun
    assert not bench.family(job)


def test_a_supervisor_killed_while_time_is_over(bench):
    job = bench.cell("a", "import signal, time\nsignal.signal(15, signal.SIG_IGN)\nprint('up')\ntime.sleep(60)",
                     limits={"timeout": 1, "grace": 1}, grant=Grant(timeout=0.5))
    wait_for(lambda: attempt_of(job).state().get("cause") == "timeout")
    kill_supervisor(job)
    seen = bench.ended(job)
    assert (seen.phase, seen.cause, seen.reason) == ("failed", "timeout", "ran longer than limits.timeout (1 s)")


def test_time_is_not_read_off_the_calendar():
    """Setting the calendar while a rank runs neither ends nor prolongs it: only the clock since boot counts."""
    supervising = supervisor.Supervisor.__new__(supervisor.Supervisor)
    supervising.timeout, supervising.begun = 10.0, processes.clock() - 9.0
    supervising.stopping, supervising.restarted, supervising.child = False, False, 1
    supervising.started_at = time.time() + 86400
    assert 9.0 <= supervising._seconds(time.time()) < 9.9
    supervising.started_at = time.time() - 86400
    assert 9.0 <= supervising._seconds(time.time()) < 9.9


def test_gpus_that_were_granted_are_the_only_ones_seen(bench, monkeypatch):
    source = "import os\nprint(os.environ.get('CUDA_VISIBLE_DEVICES'))"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    some = bench.cell("some", source, grant=Grant(gpu_ids=(1, 3)))
    none = bench.cell("none", source)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,5,7")
    part = bench.cell("part", source, grant=Grant(gpu_ids=(0, 2)))
    for job in (some, none, part):
        assert bench.ended(job).phase == "completed"
    assert [bench.log(job) for job in (some, none, part)] == ["1,3\n", "None\n", "GPU-a,7\n"]


def test_the_driver_tells_when_a_job_has_ended(bench):
    told = []
    bench.driver.subscribe(told.append)
    job = bench.cell("a", "print(1)")
    wait_for(lambda: told)
    assert told == ["a"] and bench.observe(job).terminal


def test_stop_while_nobody_supervises(bench):
    job = bench.cell("a", "import time\nprint('up')\ntime.sleep(60)")
    bench.says(job, "up")
    kill_supervisor(job)
    bench.driver.stop(job, 1, 1.0)
    assert bench.ended(job).phase == "canceled"
    assert not bench.family(job)


def test_supervisor_killed_while_it_stops(bench):
    job = bench.cell("a", "import signal, time\nsignal.signal(15, signal.SIG_IGN)\nprint('up')\ntime.sleep(60)")
    bench.says(job, "up")
    bench.driver.stop(job, 1, 1.0)
    wait_for(lambda: attempt_of(job).state().get("phase") == "stopping")
    kill_supervisor(job)
    assert bench.ended(job).phase == "canceled"
    assert not bench.family(job)


def test_terminated_supervisor_takes_its_job_along(bench):
    job = bench.cell("a", "import time\nprint('up')\ntime.sleep(60)")
    bench.says(job, "up")
    os.kill(supervisor_of(job), signal.SIGTERM)
    seen = bench.ended(job)
    assert (seen.phase, seen.exit_code) == ("canceled", -15)
    assert "signal 15" in seen.reason


def test_what_failed_before_the_supervisor_was_told_to_end_stays_the_reason(bench):
    """As when the cluster ends all pods of a job because one has failed."""
    job = bench.job("a", limits={"grace": 5}, cell={"source": """
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: print("told", flush=True))
if os.environ["RANK"] == "1":
    raise ValueError("mine")
while True:
    time.sleep(0.1)
"""}, distribution={"type": "tensorflow", "process_count_per_instance": 2})
    bench.driver.start(job, 1, {})
    bench.says(job, "told")
    os.kill(supervisor_of(job), signal.SIGTERM)
    seen = bench.ended(job)
    assert (seen.phase, seen.failed_rank) == ("failed", 1) and seen.reason.endswith("ValueError: mine"), seen
    assert not bench.family(job)


def test_restart_of_the_machine(bench):
    """What a restart leaves behind: no process, and records with another boot id."""

    def restart(job):
        attempt = attempt_of(job)
        state, entry = attempt.state(), attempt.signed_in(0)
        os.kill(state["pid"], signal.SIGKILL)
        wait_for(lambda: not processes.start_time(state["pid"]))
        os.kill(entry["pid"], signal.SIGKILL)
        wait_for(lambda: not processes.start_time(entry["pid"]))
        # The pid and start time of a process that lives now: only the boot id tells that it is another one.
        me = {"pid": os.getpid(), "start_time": processes.start_time(os.getpid()), "boot_id": "another"}
        attempt.write_state({**state, **me})
        write_json(attempt.pid_path(0), {**entry, **me})

    half = bench.cell("half", "import time\nprint('up')\ntime.sleep(60)")
    done = bench.cell("done", "import time\nprint('up')\ntime.sleep(60)")
    for job in (half, done):
        bench.says(job, "up")
        wait_for(lambda job=job: attempt_of(job).state().get("phase") == "running")
    restart(done)
    write_json(attempt_of(done).exit_path(0), {"code": 0, "error": "", "time": time.time()})
    restart(half)
    seen = bench.ended(half)
    assert (seen.phase, seen.exit_code, seen.reason) == ("failed", None, "the machine restarted")
    assert bench.ended(done).phase == "completed"


def test_restart_of_the_machine_while_it_started(bench):
    """Nothing but the state has survived: nobody knows whether a rank ran, so none is started again."""
    job = bench.job("a", cell={"source": "print(1)"})
    os.makedirs(attempt_of(job).path)
    attempt_of(job).write_state({"phase": "starting", "boot_id": "another", "pid": 1, "start_time": "1"})
    bench.driver.start(job, 1, {})
    seen = bench.ended(job)
    assert (seen.phase, seen.reason, bench.log(job)) == ("failed", "the machine restarted", "")


# -- start


def test_killed_at_any_moment_of_the_start_runs_once(bench, tmp_path):
    """Control plane and supervisor are killed; a later control plane starts or adopts, never both."""
    script = """
import sys
from jupyter_mlops.compute.base import JobRef
from jupyter_mlops.compute.base import Grant
from jupyter_mlops.compute.local import LocalCompute
from pathlib import Path
LocalCompute().start(JobRef("x", Path(sys.argv[1])), 1, {})
print("started", flush=True)
sys.stdin.read()
"""
    for index, pause in enumerate((0.0, 0.01, 0.02, 0.03, 0.045, 0.06)):
        count = tmp_path / f"count-{index}"
        job = bench.job(f"a{index}", cell={
            "source": f"open({str(count)!r}, 'a').write('x')\nimport time\ntime.sleep(0.2)"})
        plane = subprocess.Popen([sys.executable, "-c", script, str(job.folder)], stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE)
        assert plane.stdout.readline() == b"started\n"
        time.sleep(pause)
        for pid in children_of(plane.pid):
            os.kill(pid, signal.SIGKILL)
        plane.kill()
        plane.communicate()
        driver = LocalCompute()

        def converge(driver=driver, job=job):
            seen = driver.observe(job, 1)
            if seen.phase == "absent":
                driver.start(job, 1, {})
            return seen if seen.terminal else None

        seen = wait_for(converge)
        assert count.read_text() == "x"
        assert seen.phase == "completed", seen


def children_of(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_an_order_cut_short_starts_nothing(bench):
    job = bench.job("a", cell={"source": "print(1)"})
    attempt = attempt_of(job)
    os.makedirs(attempt.path)
    done = subprocess.run([sys.executable, "-m", "jupyter_mlops.runtime.supervisor", str(job.folder), "1"],
                          input=b'{"interpreter": "/usr/bin/py', timeout=20)
    assert done.returncode == 5
    assert bench.observe(job).phase == "absent"


def test_an_interpreter_that_vanished(bench, tmp_path):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} \"$@\"\n")
    python.chmod(0o755)
    job = bench.job("a", cell={"source": "print(1)"}, interpreter=str(python))
    bench.driver.check(json.loads((job.folder / "spec.json").read_text()))
    python.unlink()
    with pytest.raises(Refused, match="cannot be used: No such file"):
        bench.driver.start(job, 1, {})
    assert bench.observe(job).phase == "absent"


def test_ranks_that_never_start_are_explained(bench, tmp_path):
    """An interpreter that breaks between the check and the start."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n[ \"$1\" = -c ] && exec {sys.executable} \"$@\"\necho no luck >&2\nexit 9\n")
    python.chmod(0o755)
    job = bench.cell("a", "print(1)", interpreter=str(python))
    seen = bench.ended(job)
    assert (seen.phase, seen.exit_code, seen.reason) == ("failed", 9, "ended with exit code 9: no luck")
    assert bench.log(job) == "no luck\n"
    pytest.importorskip("torch")
    job = bench.cell("b", "print(1)", interpreter=str(python), processes=2)
    seen = bench.ended(job)
    assert (seen.phase, seen.reason) == ("failed", "the ranks did not start: no luck")
    assert bench.log(job) == "no luck\n"


# -- what runs


def test_script_with_arguments(bench, tmp_path):
    (tmp_path / "helper.py").write_text("VALUE = 42\n")
    (tmp_path / "train.py").write_text("import sys, os, helper\nprint(sys.argv, os.getcwd(), helper.VALUE)\n")
    job = bench.job("a", script="train.py", args=["--lr", "0.1", "ä b"], cwd=str(tmp_path))
    bench.driver.start(job, 1, {})
    assert bench.ended(job).phase == "completed"
    assert bench.log(job) == f"['train.py', '--lr', '0.1', 'ä b'] {tmp_path} 42\n"


def test_command(bench, tmp_path):
    job = bench.job("a", command="echo $0 $GIVEN | tr a-z A-Z; pwd; exit 4", cwd=str(tmp_path))
    bench.driver.start(job, 1, {"GIVEN": "x"})
    seen = bench.ended(job)
    assert (seen.phase, seen.exit_code, seen.reason) == ("failed", 4, "ended with exit code 4")
    assert bench.log(job) == f"/BIN/SH X\n{tmp_path}\n"
    job = bench.job("b", command="kill -11 $$")
    bench.driver.start(job, 1, {})
    seen = bench.ended(job)
    assert (seen.exit_code, seen.reason) == (-11, "killed by signal 11 (SIGSEGV)")
    job = bench.job("c", command="echo up; sleep 60; echo never")
    bench.driver.start(job, 1, {})
    bench.says(job, "up")
    bench.driver.stop(job, 1, 5.0)
    assert bench.ended(job).phase == "canceled"
    assert not bench.family(job)


def test_working_folder_and_modes(bench):
    job = bench.cell("a", "import os\nprint(os.getcwd())\nopen('result.txt', 'w').write('x')")
    assert bench.ended(job).phase == "completed"
    assert bench.log(job).strip() == str(job.folder / "outputs")
    assert (job.folder / "outputs" / "result.txt").exists()
    for path in job.folder.rglob("*"):
        if path.name in ("spec.json", "run.json", "result.txt") or "__pycache__" in str(path):
            continue  # the test's, the user's
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o077 == 0, (path, oct(mode))


def test_environment_of_ranks(bench, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "secret")
    monkeypatch.setenv("JUPYTER_TOKEN", "secret")
    monkeypatch.setenv("JPY_API_TOKEN", "secret")
    monkeypatch.setenv("JUPYTER_MLOPS_TOKEN", "secret")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("MPLBACKEND", "module://inline")
    monkeypatch.setenv("MY_OWN", "kept")
    job = bench.cell("a", "import json, os\nprint(json.dumps(dict(os.environ)))")
    assert bench.ended(job).phase == "completed"
    env = json.loads(bench.log(job))
    assert "secret" not in env.values() and "RANK" not in env and "WORLD_SIZE" not in env
    assert env["MY_OWN"] == "kept" and env["MPLBACKEND"] == "Agg"
    assert env["PATH"].split(":")[0] == os.path.dirname(sys.executable)
    assert env["JUPYTER_MLOPS_JOB_DIR"] == str(job.folder)
    two = environment.for_ranks(sys.executable, {"OMP_NUM_THREADS": "7"}, {}, 2, 8)
    assert two["OMP_NUM_THREADS"] == "7" and two["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert environment.for_ranks(sys.executable, {}, {}, 2, 8)["OMP_NUM_THREADS"] == "4"


def test_delete_refuses_a_running_job(bench):
    job = bench.cell("a", "import time\nprint('up')\ntime.sleep(60)")
    bench.says(job, "up")
    with pytest.raises(Conflict):
        bench.driver.delete(job)


# -- check


def refusal(spec, driver=None) -> str:
    with pytest.raises(Refused) as info:
        (driver or LocalCompute()).check(spec)
    assert info.value.hint
    return str(info.value)


def test_refusals(tmp_path):
    cell = {"cell": {"source": ""}}
    many = {**cell, "distribution": {"process_count_per_instance": 4096}}
    assert f"at most {max(machine.cpus(), 2)} per job" in refusal(many)
    assert "at most 3 per job" in refusal({**cell, "distribution": {"process_count_per_instance": 4}}, LocalCompute(3))
    assert "2 instances" in refusal({**cell, "resources": {"instance_count": 2}})
    assert "/no/python is not an executable file" in refusal({**cell, "interpreter": "/no/python"})
    plain = tmp_path / "plain"
    plain.write_text("")
    assert "not an executable" in refusal({**cell, "interpreter": str(plain)})
    assert "is no Python that works" in refusal({**cell, "interpreter": "/bin/true"})
    assert "working folder" in refusal({**cell, "cwd": str(tmp_path / "no")})
    assert "working folder" in refusal({**cell, "cwd": str(plain)})
    assert f"{tmp_path}/x.py does not exist" in refusal({"script": "x.py", "cwd": str(tmp_path)})
    assert "does not exist" in refusal({"script": ".", "cwd": str(tmp_path)})
    assert "has no working folder" in refusal({"script": "x.py"})


def test_missing_torch_is_named_with_its_command(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "v")], check=True, timeout=60)
    python = str(tmp_path / "v" / "bin" / "python")
    driver = LocalCompute()
    driver.check({"cell": {"source": ""}, "interpreter": python})
    spec = {"cell": {"source": ""}, "interpreter": python, "distribution": {"process_count_per_instance": 2}}
    assert "pip install 'jupyter-mlops[torch]'" in refusal(spec, driver)
    site = next((tmp_path / "v" / "lib").glob("python*/site-packages"))
    (site / "torch.py").write_text("")
    driver.check(spec)  # seen at once, though the interpreter is known already


def test_the_log_of_a_job_that_is_over_at_once_is_bounded_too(bench):
    job = bench.cell("a", "import os; os.write(1, b'line\\n' * 4_000_000)", limits={"log_bytes": 2 << 20})
    assert bench.ended(job).phase == "completed"
    path = attempt_of(job).log_path(0)
    assert os.path.getsize(path) == 20_000_000 and os.stat(path).st_blocks * 512 <= 2 << 20
