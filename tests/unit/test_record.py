"""jupyter_mlops.log in a job: into the journal, without MLflow, with steps that count on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from jupyter_mlops.runtime import bundle, journal

RUN = "a" * 32
#: MLflow cannot be imported, and nothing can be connected to.
ALONE = """
import sys, socket
sys.modules["mlflow"] = None
class Refuse(socket.socket):
    def connect(self, *a):
        raise AssertionError("the network was touched")
socket.socket = Refuse
import jupyter_mlops
from jupyter_mlops import log
"""


@pytest.fixture
def in_job(tmp_path):
    """Runs code as an attempt of a job; returns (what it printed, what it said)."""
    folder = tmp_path / "jobs" / "x"
    folder.mkdir(parents=True)

    def run(code, attempt=1, expect=0, **more):
        env = {**os.environ, "JUPYTER_MLOPS_HOME": str(tmp_path), "JUPYTER_MLOPS_JOB": "x", "JUPYTER_MLOPS_RUN_ID": RUN,
               "JUPYTER_MLOPS_JOB_DIR": str(folder), "JUPYTER_MLOPS_ATTEMPT": str(attempt), **more}
        done = subprocess.run([sys.executable, "-c", ALONE + textwrap.dedent(code)], env=env, capture_output=True,
                              text=True, timeout=60, check=False)
        assert done.returncode == expect, done.stderr
        return done.stdout, done.stderr

    run.folder = folder
    return run


def points(folder, attempt=1, rank=0):
    return [(r.key, r.value, r.step) for r, _ in journal.read(str(folder / "journal" / f"{attempt}-{rank}.bin"))[0]]


def test_values_and_steps(in_job):
    in_job("""
        import os
        class Scalar:
            def __init__(self, v): self.v = v
            def __float__(self): return self.v
        log(loss=0.5, step=7)
        log(loss=1, acc=True, other=Scalar(2.5), step=8)
        log({"val/loss": 3}, acc=0.25)          # steps count on by themselves
        log(loss=0.1); log(loss=0.2)
        log()
        if os.fork() == 0:
            log(forked=1)
            os._exit(0)
        os.wait()
        log(loss=float("nan"), step=-3)
    """)
    found = points(in_job.folder)
    assert found[:-1] == [
        ("loss", 0.5, 7), ("loss", 1.0, 8), ("acc", 1.0, 8), ("other", 2.5, 8), ("val/loss", 3.0, 0), ("acc", 0.25, 9),
        ("loss", 0.1, 9), ("loss", 0.2, 10), ("forked", 1.0, 0),
    ]
    assert found[-1][2] == -3 and found[-1][1] != found[-1][1]
    # The next attempt goes on behind the last one.
    in_job("log(loss=1.0); log(new=1.0); log(loss=2.0)", attempt=2)
    assert points(in_job.folder, 2) == [("loss", 1.0, 11), ("new", 1.0, 0), ("loss", 2.0, 12)]


@pytest.mark.parametrize("call, said", [
    ("log(loss='0.5')", "TypeError: metric 'loss' must be a number, not str"),
    ("log(loss=None)", "TypeError: metric 'loss' must be a number, not NoneType"),
    ("log(a=1, loss={'train': 1})", "TypeError: metric 'loss' must be a number, not dict"),
    ("import numpy; log(a=numpy.ones((2, 3)))", "TypeError: metric 'a' must be a number, not ndarray of shape (2, 3)"),
    ("log(loss=1, step=1.5)", "TypeError: step must be a whole number of 64 bits, not 1.5"),
    ("log(loss=1, step=2**70)", "TypeError: step must be a whole number of 64 bits"),
    ("log({'a//b': 1})", "ValueError: MLflow takes no metric 'a//b'"),
    ("log({'ä*': 1})", "ValueError: MLflow takes no metric 'ä*'"),
    ("log({3: 1})", "TypeError: the name of a metric must be a str, not int"),
])
def test_what_is_no_metric_is_named_and_nothing_is_logged(in_job, call, said):
    _, error = in_job(call, expect=1, PYTHONIOENCODING="utf-8")
    assert error.strip().splitlines()[-1].startswith(said)
    assert points(in_job.folder) == []


def test_further_ranks_are_silent(in_job):
    out, _ = in_job("log(loss=1); print(jupyter_mlops.flush(1))", RANK="1")
    assert out.strip() == "True" and not (in_job.folder / "journal").exists()


def test_flush_tells_that_nobody_delivers(in_job):
    (in_job.folder.parent.parent / "port").write_text("9")
    code = """
        log(loss=1)
        import time
        began = time.monotonic()
        socket.socket.connect = lambda *a: (_ for _ in ()).throw(ConnectionRefusedError())
        print(jupyter_mlops.flush(20), time.monotonic() - began < 15)
    """
    assert in_job(code)[0].split() == ["False", "True"]
    assert points(in_job.folder) == [("loss", 1.0, 0)]


def test_it_is_there_in_foreign_interpreters(in_job, tmp_path):
    path = bundle.ensure(str(tmp_path / "runtime"))
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import jupyter_mlops; jupyter_mlops.log(loss=1); print(jupyter_mlops.__file__)"],
        env={"PYTHONPATH": path, "JUPYTER_MLOPS_JOB": "x", "JUPYTER_MLOPS_RUN_ID": RUN, "JUPYTER_MLOPS_ATTEMPT": "1",
             "JUPYTER_MLOPS_JOB_DIR": str(in_job.folder)},
        capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(path) and points(in_job.folder) == [("loss", 1.0, 0)]


def test_outside_of_jobs_it_goes_to_mlflow(tmp_path):
    code = """
        import json, jupyter_mlops, mlflow
        jupyter_mlops.log(loss=0.5)                    # starts a run, as MLflow does
        jupyter_mlops.log({"val/loss": 1}, loss=0.25)
        jupyter_mlops.log(loss=0.1, step=9)
        run = mlflow.active_run().info.run_id
        history = [(m.step, m.value) for m in mlflow.MlflowClient().get_metric_history(run, "loss")]
        print(json.dumps([history, mlflow.get_run(run).data.metrics, jupyter_mlops.flush()]))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/m.db"}, timeout=120,
                          check=False)
    assert done.returncode == 0, done.stderr
    history, metrics, flushed = json.loads(done.stdout.splitlines()[-1])
    assert history == [[0, 0.5], [1, 0.25], [9, 0.1]] and metrics == {"loss": 0.1, "val/loss": 1.0} and flushed is True
    assert not Path(tmp_path / "jobs").exists()
