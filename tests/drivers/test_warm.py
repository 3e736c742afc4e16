"""Jobs that a waiting process has started: the conformance suite, and that a rank cannot tell how it was started."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from conformance import STEPS, Bench, Conformance, steps
from conftest import wait_for

from jupyter_mlops.compute import local, warm
from jupyter_mlops.compute.local import LocalCompute
from jupyter_mlops.runtime import processes
from jupyter_mlops.runtime.jobfolder import MARKER, JobFolder

#: Stands for torch where nothing depends on it: what is tested is the forking, and importing takes a second.
STUB = "__version__ = 'stub'\n"


class WarmBench(Bench):
    """Before each job a process waits for it."""

    def __init__(self, home: Path) -> None:
        super().__init__(lambda: LocalCompute(warm=True), home)
        self.waited: dict[str, int] = {}

    def ready(self, threads: str | None = None) -> int:
        """Pid of the process that waits, as soon as one does."""
        pool = self.driver.warm
        pool.want(sys.executable, str(self.home), threads)
        return wait_for(pool.waiting)[0]["pid"]

    def job(self, name: str, **spec):
        job = super().job(name, **spec)
        if not self.driver.warm.waiting():
            self.ready()
        self.waited[name] = self.driver.warm.waiting()[0]["pid"]
        return job

    def close(self) -> None:
        self.driver.warm.close()
        super().close()


@pytest.fixture
def torch_bench(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_RETRY", 0.2)
    monkeypatch.setattr(warm, "QUIET", -1.0)
    monkeypatch.setattr(warm, "_SOON", 0.02)
    monkeypatch.setattr(warm, "FREE_SHARE", 0.0)
    monkeypatch.setattr(WarmPool, "quiet", lambda self: True)
    bench = WarmBench(tmp_path / "home")
    yield bench
    bench.close()


@pytest.fixture
def bench(torch_bench, tmp_path, monkeypatch):
    stub(tmp_path, monkeypatch, STUB)
    return torch_bench


def stub(folder: Path, monkeypatch, source: str) -> None:
    (folder / "lib").mkdir(exist_ok=True)
    (folder / "lib" / "torch.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder / "lib"), os.environ.get("PYTHONPATH")])))


WarmPool = warm.WarmPool


def attempt_of(job):
    return JobFolder(job.folder).attempt(1)


def supervisor_of(job) -> int:
    return wait_for(lambda: attempt_of(job).state().get("pid"))


class TestWarm(Conformance):
    @pytest.fixture(autouse=True)
    def _all_were_waited_for(self, torch_bench):
        yield
        for job in torch_bench.jobs:
            pid = attempt_of(job).state().get("pid")
            assert pid in (None, torch_bench.waited[job.name]), "it was started as usual"

    def test_two_ranks(self, torch_bench):
        super().test_two_ranks(torch_bench)
        (job,) = torch_bench.jobs
        assert supervisor_of(job) == torch_bench.waited["a"]
        assert not attempt_of(job).signed_in("agent")


# -- a rank cannot tell

FACTS = """
import io, json, os, random, signal, sys, tempfile, threading
facts = {}
facts["environ"] = dict(os.environ)
mask = os.umask(0o22); os.umask(mask)
facts["umask"] = mask
facts["signals"] = {int(n): str(signal.getsignal(n)).split(" at ")[0] for n in signal.valid_signals()}
facts["blocked"] = sorted(int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, []))
facts["argv"], facts["flags"], facts["executable"] = sys.argv, str(sys.flags), sys.executable
facts["path"], facts["cwd"] = sys.path, os.getcwd()
facts["main"] = sorted(globals().keys() - {"__annotations__"}), __name__, __file__, str(__loader__).split(" at ")[0]
def where(fd):
    try:
        return os.readlink("/proc/self/fd/%s" % fd)
    except OSError:
        return ""
facts["open"] = {fd: where(fd) for fd in os.listdir("/proc/self/fd") if where(fd)}
facts["open"] = {fd: to for fd, to in facts["open"].items() if not to.startswith("/proc/")}
facts["streams"] = [str((s.name, s.encoding, s.errors, s.line_buffering, s.write_through, s.isatty()))
                    for s in (sys.stdin, sys.stdout, sys.stderr)]
facts["threads"] = len(os.listdir("/proc/self/task")), threading.active_count(), threading.current_thread().name
facts["leads a session"] = os.getsid(0) == os.getpid() == os.getpgid(0)
facts["nice"], facts["locale"] = os.nice(0), __import__("locale").setlocale(0)
facts["temporary"] = tempfile.gettempdir()
facts["hash"] = sys.flags.hash_randomization
facts["marked"] = ("JUPYTER_MLOPS_JOB_DIR=" + os.environ["JUPYTER_MLOPS_JOB_DIR"]
                   in open("/proc/self/environ").read().split(chr(0)))
facts["command"] = open("/proc/self/cmdline").read().split(chr(0))[:6]
import multiprocessing, numpy, torch, torch.utils.data
facts["multiprocessing"] = (multiprocessing.get_start_method(), multiprocessing.current_process().name,
                            str(multiprocessing.process.ORIGINAL_DIR), multiprocessing.parent_process())
facts["torch"] = (torch.get_num_threads(), torch.get_num_interop_threads(),
                  torch.mm(torch.ones(300, 300), torch.ones(300, 300)).sum().item())
facts["numpy"] = float((numpy.ones((300, 300)) @ numpy.ones((300, 300))).sum())
facts["numeric threads"] = len(os.listdir("/proc/self/task"))
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.arange(8.)), batch_size=4, num_workers=1)
facts["loader"] = [batch[0].sum().item() for batch in loader]
luck = [torch.initial_seed(), torch.randn(1).item(), random.random(), float(numpy.random.rand()),
        multiprocessing.current_process().authkey.hex()]
def double(x):
    return 2 * x
if __name__ == "__main__":
    with open(os.environ["OUT"] + os.environ.get("RANK", "0"), "w") as f:
        json.dump({"facts": facts, "luck": luck}, f)
"""
#: Set anew for each job, or only where torchrun has started the rank.
_OTHER = {"TORCHELASTIC_RUN_ID", "MASTER_PORT", "OUT", "TORCHELASTIC_ERROR_FILE"}


def facts_of(bench, processes_count: int, threads: str, short: str) -> list[dict]:
    """What each rank of a job sees and has for itself."""
    out = bench.home.parent / f"facts-{len(bench.jobs)}-"
    job = bench.cell(f"job-{len(bench.jobs)}", FACTS, processes_count, environment_variables={
        "OUT": str(out), "MINE": "ä=1", "TMPDIR": str(short), "OMP_NUM_THREADS": threads, "TZ": "Asia/Tokyo"})
    assert bench.ended(job).phase == "completed", bench.log(job)
    return [json.loads(Path(f"{out}{rank}").read_text().replace(str(job.folder), "<job>"))
            for rank in range(processes_count)]


@pytest.mark.parametrize("count, expected, threads", [(1, "2", "2"), (2, "2", "1")])
def test_a_rank_is_as_after_a_usual_start(torch_bench, count, expected, threads, monkeypatch):
    pytest.importorskip("torch")
    with tempfile.TemporaryDirectory(prefix="mlops-test-") as short:  # sockets must fit into it
        compare(torch_bench, count, expected, threads, monkeypatch, short)


def compare(torch_bench, count, expected, threads, monkeypatch, short):
    monkeypatch.setenv("ONLY_AT_FIRST", "x")
    waiting = torch_bench.ready(expected)
    monkeypatch.delenv("ONLY_AT_FIRST")
    monkeypatch.setenv("ONLY_LATER", "x")
    ours = facts_of(torch_bench, count, threads, short)
    assert supervisor_of(torch_bench.jobs[0]) == waiting
    usual_bench = Bench(lambda: LocalCompute(warm=False), torch_bench.home)
    usual_bench.jobs = [None]
    try:
        usual = facts_of(usual_bench, count, threads, short)
    finally:
        del usual_bench.jobs[0]
        usual_bench.close()
    for mine, theirs in zip(ours, usual, strict=True):
        for entry in (mine, theirs):
            env = entry["facts"]["environ"]
            if count > 1:
                assert os.path.isdir(os.path.dirname(env["TORCHELASTIC_ERROR_FILE"].replace(
                    "<job>", str(torch_bench.jobs[0].folder)))) or entry is theirs
                entry["facts"].pop("command", None)
            entry["facts"]["environ"] = {k: v for k, v in env.items() if k not in _OTHER}
        assert mine["facts"].keys() == theirs["facts"].keys()
        for name, value in theirs["facts"].items():
            assert mine["facts"][name] == value, name
    if count == 2:
        assert all(a != b for a, b in zip(ours[0]["luck"], ours[1]["luck"], strict=True))


def test_spawned_workers_and_imports_beside_the_script(bench, tmp_path):
    (tmp_path / "helper.py").write_text("def triple(x):\n    return 3 * x\n")
    (tmp_path / "script.py").write_text("""
import multiprocessing, os, sys, atexit
from helper import triple
def double(x):
    return 2 * x
if __name__ == "__main__":
    atexit.register(lambda: print("exit file", os.path.exists(sys.argv[1]), flush=True))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(double, [1, 2]), pool.map(triple, [1, 2]), flush=True)
    if os.fork() == 0:
        os._exit(0)
    os.wait()
    sys.exit(5)
""")
    end = bench.home / "jobs" / "a" / "attempts" / "1" / "rank-0.exit"
    job = bench.job("a", script="script.py", cwd=str(tmp_path), args=[str(end)])
    bench.driver.start(job, 1, {})
    seen = bench.ended(job)
    assert bench.log(job) == "[2, 4] [3, 6]\nexit file False\n"
    assert (seen.phase, seen.exit_code, supervisor_of(job)) == ("failed", 5, bench.waited["a"])


# -- what may die


@pytest.mark.parametrize("size", [1, 2])
def test_killed_at_any_moment_runs_once(bench, tmp_path, size):
    """Before its order, after it, between and after the forks; a later control plane starts or adopts, never both."""
    for index, pause in enumerate((None, 0.0, 0.003, 0.006, 0.01, 0.015, 0.03)):
        name, count = f"a{index}", tmp_path / f"count-{index}"
        source = f"open({str(count)!r}, 'a').write('x')\nimport time\ntime.sleep(0.1)"
        job = bench.job(name, cell={"source": source}, distribution={
            "type": "pytorch", "process_count_per_instance": size})
        if pause is not None:
            bench.driver.start(job, 1, {})
            time.sleep(pause)
        os.kill(bench.waited[name], signal.SIGKILL)
        again = WarmBench(bench.home)

        def converge(again=again, job=job):
            seen = again.observe(job)
            if seen.phase == "absent":
                if size > 1:
                    again.ready()  # what stands for torch has no torchrun
                again.driver.start(job, 1, {})
            return seen if seen.terminal else None

        seen = wait_for(converge)
        again.close()
        assert seen.phase == "completed", seen
        assert count.read_text() == "x" * len(seen.ranks) == "x" * size


def test_a_killed_supervisor_is_replaced(bench):
    job = bench.cell("a", STEPS.format(n=20, pause=0.05), processes=2)
    bench.says(job, "step 3\n", 1)
    assert supervisor_of(job) == bench.waited["a"]
    os.kill(bench.waited["a"], signal.SIGKILL)
    seen = bench.ended(job)
    assert (seen.phase, [rank.exit_code for rank in seen.ranks]) == ("completed", [0, 0])
    assert steps(bench.log(job, 0)) == steps(bench.log(job, 1)) == list(range(20))
    job = bench.cell("b", "import time\nprint('up')\ntime.sleep(60)", processes=2)
    for rank in (0, 1):
        bench.says(job, "up", rank)
    os.kill(supervisor_of(job), signal.SIGKILL)
    bench.driver.stop(job, 1, 1.0)
    assert bench.ended(job).phase == "canceled"
    assert not bench.family(job)


def test_its_ranks_are_found_by_their_mark(bench):
    job = bench.cell("a", "import os, time\nif os.fork() == 0:\n    time.sleep(60)\nprint('up')\ntime.sleep(60)")
    bench.says(job, "up")
    found = bench.family(job)
    assert len(found) == 2 and attempt_of(job).signed_in(0)["pid"] in found
    command = Path(f"/proc/{bench.waited['a']}/cmdline").read_text()
    assert "runtime.supervisor\0" + str(job.folder) + "\x001\0" in command


def test_it_ends_with_the_control_plane(tmp_path, bench):
    script = """
import sys, time
from jupyter_mlops.compute import warm
warm.QUIET, warm._SOON, warm.FREE_SHARE = -1.0, 0.02, 0.0
pool = warm.WarmPool(lambda: False, True)
pool.want(sys.executable, sys.argv[1])
until = time.monotonic() + 100
while not pool.waiting() and time.monotonic() < until:
    time.sleep(0.02)
print(pool.waiting()[0]["pid"], flush=True)
time.sleep(60)
"""
    plane = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    pid = int(plane.stdout.readline())
    started = processes.start_time(pid)
    plane.kill()
    plane.communicate()
    wait_for(lambda: not processes.alive(pid, started))


def test_an_order_cut_short_starts_nothing(bench):
    job = bench.job("a", cell={"source": "print(1)"})
    (waiting,) = bench.driver.warm._waiting.values()
    order = json.dumps({"folder": str(job.folder), "attempt": 1, "interpreter": sys.executable, "env": {}})
    waiting.link.sendall(order.encode())  # without its end
    waiting.link.shutdown(socket.SHUT_WR)
    assert waiting.process.wait(20) == 0
    assert not os.path.exists(attempt_of(job).path)
    bench.driver.start(job, 1, {})  # nobody waits any more
    assert bench.ended(job).phase == "completed"


# -- when there is one


def test_started_after_the_first_job_that_uses_torch(bench):
    pool = bench.driver.warm
    plain = Bench.job(bench, "plain", cell={"source": "print(1)"})
    bench.waited["plain"] = 0
    bench.driver.start(plain, 1, {})
    bench.ended(plain)
    assert not pool._wanted
    job = Bench.job(bench, "uses", cell={"source": "import torch"})
    bench.driver.start(job, 1, {})
    bench.ended(job)
    pid = wait_for(pool.waiting)[0]["pid"]
    assert bench.driver.facts()["waiting"] == pool.waiting() != []
    bench.driver.start(Bench.job(bench, "next", cell={"source": ""}), 1, {})
    assert supervisor_of(bench.jobs[-1]) == pid


@pytest.mark.parametrize("reason", ["idle", "memory", "installed", "killed", "off"])
def test_given_up(bench, reason, monkeypatch, tmp_path):
    monkeypatch.setattr(warm, "_LATER", 0.05)
    pid = bench.ready()
    pool = bench.driver.warm
    if reason == "idle":
        monkeypatch.setattr(warm, "IDLE", 0.0)
    elif reason == "memory":
        monkeypatch.setattr(warm, "FREE_LEAST", 1 << 60)
    elif reason == "installed":
        site = tmp_path / "lib"
        monkeypatch.setattr(warm, "_stamp", lambda interpreter, env: os.stat(site).st_mtime_ns)
    elif reason == "off":
        pool.enabled = False
    else:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not processes.start_time(pid))
    if reason in ("installed", "killed"):
        return
    pool._event.set()
    assert not pool.waiting()
    job = Bench.job(bench, "a", cell={"source": "print(1)"})
    bench.driver.start(job, 1, {})
    assert bench.ended(job).phase == "completed"


@pytest.mark.parametrize("source", [
    "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n",
    "import warnings\nwarnings.warn('something that belongs into the log of a rank')\n",
    "raise ImportError('broken')\n",
], ids=["threads", "speaks", "broken"])
def test_an_interpreter_that_cannot_have_one(bench, tmp_path, monkeypatch, source):
    stub(tmp_path, monkeypatch, source)
    pool = bench.driver.warm
    pool.want(sys.executable, str(bench.home))
    wait_for(lambda: pool._unfit)
    assert not pool.waiting() and pool.look(True) is not None and not pool._waiting  # and is not tried again
    job = Bench.job(bench, "a", cell={"source": "print(1)"})
    bench.driver.start(job, 1, {})
    assert bench.ended(job).phase == "completed"


def test_not_while_jobs_run(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(WarmPool, "_start", lambda self, interpreter, wish: started.append(interpreter))
    monkeypatch.setattr(warm, "enough_memory", lambda: True)
    pool = WarmPool(lambda: True, True)
    pool.want("/a", "/home")
    pool.look(False)
    assert not started
    pool.look(True)
    assert "/a" in started
    for name in ("/b", "/c"):
        pool.want(name, "/home")
    assert list(pool._wanted) == ["/b", "/c"]  # no more than two
    pool.close()


CELL = {"cell": {"source": ""}}
BASE = {"HOME": "/h", "PYTHONUNBUFFERED": "1"}


@pytest.mark.parametrize("spec, env, expected", [
    (CELL, {}, True),
    ({"script": "x.py"}, {"ANY": "thing", "CUDA_VISIBLE_DEVICES": "1", "NCCL_DEBUG": "INFO"}, True),
    ({"command": "python x.py"}, {}, False),
    ({**CELL, "resources": {"instance_count": 2}}, {}, False),
    (CELL, {"OMP_NUM_THREADS": "4"}, True),
    (CELL, {"OMP_NUM_THREADS": "4,2"}, False),
    (CELL, {"OMP_NUM_THREADS": ""}, False),
    (CELL, {"OMP_PLACES": "cores"}, False),
    (CELL, {"TORCH_LOGS": "all"}, False),
    (CELL, {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}, True),
    (CELL, {"PYTORCH_CUDA_ALLOC_CONF": "x"}, False),
    (CELL, {"PYTHONHASHSEED": "0"}, False),
    (CELL, {"PYTHONPATH": "/x"}, False),
    (CELL, {"LD_PRELOAD": "/x.so"}, False),
    (CELL, {"MKL_NUM_THREADS": "1"}, False),
    (CELL, {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, False),
    (CELL, {"LANG": "C"}, False),
    (CELL, {"HOME": "/other"}, False),
])
def test_who_may_use_it(spec, env, expected):
    assert warm.fits(spec, {**BASE, **env}, BASE) is expected
    assert warm.fits(spec, {**BASE, **env}, {**BASE, "OMP_NUM_THREADS": "2"}) is expected
    assert MARKER not in warm.early({MARKER: "x"})


def test_switched_off(monkeypatch):
    monkeypatch.delenv("JUPYTER_MLOPS_WARM")
    assert warm.allowed_here() is sys.platform.startswith("linux")
    for value in ("0", "off", "No"):
        monkeypatch.setenv("JUPYTER_MLOPS_WARM", value)
        assert not warm.allowed_here() and not LocalCompute().warm.enabled
