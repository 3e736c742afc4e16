"""Environments of conda: made by the image's tool before the ranks start, once for each cache; pods are processes here.

The channels and packages are real. The tool is a stand-in for micromamba, and whichever real one is found on the path.
"""

from __future__ import annotations

import base64
import json
import os
import platform
import shutil
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
sys.path.insert(0, str(Path(__file__).parents[1]))

import channels
from conformance import wait_for
from test_pods import PodBench, server
from wheels import wheel

from jupyter_mlops.compute.kubernetes import watch
from jupyter_mlops.core.errors import Refused
from jupyter_mlops.runtime import conda, packagecache

__all__ = ["server"]

REAL = conda.tool()
MINOR = ".".join(platform.python_version_tuple()[:2])
LOOK = """
import os, sys
import mlops_leaf
print(mlops_leaf.VERSION, sys.prefix.endswith('/env'), os.environ["CONDA_PREFIX"] == sys.prefix)
print(os.environ["MLOPS_LEAF"], "VIRTUAL_ENV" in os.environ, os.environ["PATH"].startswith(sys.prefix + "/bin:"))
"""
SAID = "2.0 True True\nleaf-home False True\n"


@pytest.fixture(params=["stand-in", pytest.param("real", marks=pytest.mark.skipif(
    REAL is None, reason="no micromamba, mamba or conda here"))])
def tool(request, tmp_path, monkeypatch):
    """The one tool of conda that pods find."""
    folder = tmp_path / "tools"
    folder.mkdir()
    if request.param == "real":
        (folder / os.path.basename(REAL)).symlink_to(REAL)
    else:
        script = folder / "micromamba"
        script.write_text(f"#!/bin/sh\nexec {sys.executable} {Path(__file__).parent / 'micromamba.py'} \"$@\"\n")
        script.chmod(0o755)
    for name in ("MAMBA_EXE", "CONDA_EXE", "VIRTUAL_ENV"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.fixture
def channel(tmp_path):
    """``team`` at the alias of these tests."""
    folder = tmp_path / "channels" / "team"
    channels.python(folder)
    channels.pip(folder)
    channels.module(folder, "mlops-root", depends=("python",))
    for version in ("1.0", "2.0"):
        channels.module(folder, "mlops-leaf", version, depends=("python", "mlops-root"),
                        activate="export MLOPS_LEAF=leaf-home\n")
    return folder


@pytest.fixture
def cache(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


@pytest.fixture
def make_bench(server, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "RETRY", 0.1)
    benches = []

    def make(**training):
        given = {"channel_alias": (tmp_path / "channels").as_uri(), **training.pop("conda", {})}
        benches.append(PodBench(server, tmp_path, f"home-{len(benches)}", conda=given, **training))
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


def file(*dependencies, channels=("team",)):
    return {"conda_file": {"channels": list(channels), "dependencies": list(dependencies)}}


def entries(cache):
    return [p for p in (cache / "w" / packagecache.VERSION).iterdir() if p.is_dir()]


def test_an_environment_is_made_before_the_ranks_start_and_found_there_by_the_next(make_bench, tool, channel, cache,
                                                                                    server):
    bench = make_bench(package_cache={"host_path": str(cache)})
    wanted = file("mlops-leaf=2.0", f"python={MINOR}")
    said = set()
    job = bench.job("a", cell={"source": LOOK}, environment=wanted)
    bench.driver.start(job, 1, {})

    def look():
        seen = bench.observe(job)
        said.add(seen.reason)
        return seen.terminal and seen

    seen = wait_for(look, 120, 0.02)
    assert seen.phase == "completed", (seen, bench.log(job))
    assert SAID in bench.log(job) and "jupyter-mlops: installed 2 packages in" in bench.log(job)
    assert any(r.startswith("installing 2 packages") for r in said), said
    (entry,) = entries(cache)
    assert sorted(p.name for p in entry.iterdir()) == [".complete", "env", "specs.txt"], "what it was made with is gone"
    made = (entry / packagecache.COMPLETE).read_text()
    assert json.loads(made)["python"] == platform.python_version() and json.loads(made)["bytes"] > 0
    # The order of what is asked for is another one, the environment is the same.
    other = bench.cell("b", LOOK, environment=file(f"python={MINOR}", "mlops-leaf=2.0"))
    assert bench.ended(other, 60).phase == "completed", bench.log(other)
    assert bench.log(other) == SAID and (entry / packagecache.COMPLETE).read_text() == made
    third = bench.cell("c", "import mlops_leaf; print(mlops_leaf.VERSION)", environment=file("mlops-leaf=1.0"))
    assert bench.ended(third, 120).phase == "completed" and "1.0\n" in bench.log(third)
    assert len(entries(cache)) == 2
    (known,) = bench.driver.images.shown()
    assert known["conda"] is True


def test_pip_goes_on_in_it(make_bench, tool, channel, tmp_path):
    wheel(tmp_path / "simple", "mlops-tiny")
    bench = make_bench(pip={"index_url": (tmp_path / "simple").as_uri()})
    source = ("import mlops_leaf, mlops_tiny, sys\n"
              "print(mlops_leaf.VERSION, mlops_tiny.__file__.startswith(sys.prefix))\n"
              "try:\n    import numpy\nexcept ImportError:\n    print('alone')")
    job = bench.cell("a", source, environment=file("mlops-leaf", {"pip": ["mlops-tiny==1.0"]}))
    assert bench.ended(job, 120).phase == "completed", bench.log(job)
    assert "2.0 True\nalone\n" in bench.log(job), "it sees nothing of the image"


def test_functions_of_the_notebook_run_in_it(make_bench, tool, channel):
    """Their cloudpickle comes along, and Python is that of the kernel, though the file does not say so."""
    bench = make_bench()
    packed = {"python": platform.python_version(), "by_value": True, "packages": {"mlops-leaf": "1.0", "numpy": "2.0"}}
    job = bench.job("a", cell={"source": "import cloudpickle; print('boot' in cloudpickle.__file__)", "packed": packed},
                    environment=file("mlops-leaf=2.0"))
    bench.driver.start(job, 1, {})
    assert bench.ended(job, 120).phase == "completed", bench.log(job)
    assert "True\n" in bench.log(job)
    assert "jupyter-mlops: mlops-leaf is 1.0 here and 2.0 in the conda environment" in bench.log(job)
    assert "numpy is 2.0 here and not in the conda environment: name it in the conda file" in bench.log(job)


def test_what_cannot_be_had_says_why_and_leaves_nothing(make_bench, tool, channel, cache):
    bench = make_bench(package_cache={"host_path": str(cache)})
    job = bench.cell("a", "print(1)", environment=file("mlops-nowhere"))
    seen = bench.ended(job, 120)
    assert (seen.phase, seen.cause) == ("failed", "packages")
    assert seen.reason == "the conda environment could not be made: the channels have no mlops-nowhere", bench.log(job)
    assert entries(cache) == []


def test_an_image_without_a_tool_is_told_of_before_anything_runs_and_before_the_next_submission(
        make_bench, channel, tmp_path, monkeypatch):
    for name in ("MAMBA_EXE", "CONDA_EXE"):
        monkeypatch.delenv(name, raising=False)
    kept = [p for p in os.environ["PATH"].split(os.pathsep) if not any((Path(p) / t).exists() for t in conda.TOOLS)]
    monkeypatch.setenv("PATH", os.pathsep.join(kept))
    bench = make_bench()
    job = bench.job("a", cell={"source": "print('ran')"}, environment=file("mlops-leaf", "mlops-root"))
    spec = json.loads((job.folder / "spec.json").read_text())
    bench.driver.check(spec)
    assert any("has not been seen here" in line for line in bench.driver.preview("a", spec)["warnings"])
    bench.driver.start(job, 1, {})
    seen = bench.ended(job, 60)
    assert (seen.phase, seen.cause) == ("failed", "versions"), seen
    assert seen.reason == (
        "the image image:1 has neither micromamba, mamba nor conda, which make the environment of the conda file: use "
        "an image that has one, or name the packages (mlops-leaf, mlops-root) in the file's pip section")
    assert "ran" not in bench.log(job)
    for ask in (bench.driver.check, lambda s: bench.driver.preview("b", s)):
        with pytest.raises(Refused, match=r"the image image:1 has neither micromamba, mamba nor conda"):
            ask(spec)
    bench.driver.check({**spec, "environment": file(f"python={MINOR}", {"pip": ["a"]})}), "pip alone needs none"


def slow(tmp_path, monkeypatch):
    """Have the stand-in wait in the midst of its work; (there when it has begun, what it waits for)."""
    began, go = tmp_path / "began", tmp_path / "go"
    monkeypatch.setenv("TEST_CONDA_BEGAN", str(began))
    monkeypatch.setenv("TEST_CONDA_GO", str(go))
    return began, go


@pytest.mark.parametrize("tool", ["stand-in"], indirect=True)
def test_one_that_is_killed_leaves_nothing_half_made(make_bench, server, tool, channel, cache, tmp_path, monkeypatch):
    began, go = slow(tmp_path, monkeypatch)
    bench = make_bench(package_cache={"host_path": str(cache)})
    job = bench.cell("a", LOOK, environment=file("mlops-leaf=2.0"))
    wait_for(began.exists, 60)
    os.kill(server._processes[server.pods()[0]["metadata"]["name"]]["packages"].pid, signal.SIGKILL)
    assert bench.ended(job, 60).phase == "failed"
    (half,) = entries(cache)
    assert not (half / packagecache.COMPLETE).exists() and (half / "env").is_dir()
    go.touch()
    other = bench.cell("b", LOOK, environment=file("mlops-leaf=2.0"))
    assert bench.ended(other, 60).phase == "completed", bench.log(other)
    assert SAID in bench.log(other) and entries(cache) == [half], "who comes next begins anew, in the same place"


@pytest.mark.faults
@pytest.mark.parametrize("tool", ["stand-in"], indirect=True)
def test_two_jobs_that_want_the_same_make_it_once_and_a_stop_ends_it(make_bench, tool, channel, cache, tmp_path,
                                                                     monkeypatch):
    began, go = slow(tmp_path, monkeypatch)
    bench = make_bench(package_cache={"host_path": str(cache)})
    jobs = [bench.cell(name, LOOK, environment=file("mlops-leaf=2.0")) for name in ("a", "b")]
    wait_for(began.exists, 60)
    wait_for(lambda: any("waiting for another job" in bench.observe(job).reason for job in jobs), 60)
    stopped = bench.cell("c", LOOK, environment=file("mlops-leaf=1.0"))
    wait_for(lambda: "installing 1" in bench.observe(stopped).reason or "installing 2" in bench.observe(stopped).reason)
    bench.driver.stop(stopped, 1, 1.0)
    assert bench.ended(stopped, 60).phase == "canceled"
    go.touch()
    for job in jobs:
        assert bench.ended(job, 60).phase == "completed", bench.log(job)
    assert sum("jupyter-mlops: installed" in bench.log(job) for job in jobs) == 1
    wait_for(lambda: len(entries(cache)) == 1, 20)


@pytest.mark.parametrize("tool", ["stand-in"], indirect=True)
def test_credentials_of_channels_are_for_the_tool_alone(make_bench, server, tool, channel):
    rc = "channel_alias: https://ann:s3cr3t-pw@conda.example/t/tok3n-of-ann\n"
    server.put("secrets", {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "mirror"}, "data": {
        "condarc": base64.b64encode(rc.encode()).decode()}})
    bench = make_bench(conda={"secret": "mirror"})
    job = bench.job("a", environment=file("mlops-leaf"), cell={"source": "import os\nprint('CONDARC' in os.environ)"})
    bench.driver.start(job, 1, {})
    made = json.dumps([o for (plural, name), o in server.objects.items() if (plural, name) != ("secrets", "mirror")])
    pod = next(o for (plural, _), o in server.objects.items() if plural == "jobs")["spec"]["template"]["spec"]
    assert bench.ended(job, 60).phase == "completed", bench.log(job)
    log = bench.log(job)
    assert "False\n" in log and "Channel alias https://***@conda.example/t/***" in log, log
    assert not any(word in text for word in ("s3cr3t-pw", "tok3n") for text in (log, made))
    mounts = {c["name"]: [m["name"] for m in c["volumeMounts"]] for c in [*pod["initContainers"], *pod["containers"]]}
    assert [name for name, listed in mounts.items() if "conda" in listed] == ["packages"]


def test_the_tool_is_found_as_images_have_it(tmp_path):
    for name in ("conda", "micromamba"):
        path = tmp_path / "a" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    shutil.copy(tmp_path / "a" / "conda", tmp_path / "elsewhere")
    assert conda.tool({"PATH": str(tmp_path / "a")}) == str(tmp_path / "a" / "micromamba")
    assert conda.tool({"PATH": "/nowhere", "CONDA_EXE": str(tmp_path / "elsewhere")}) == str(tmp_path / "elsewhere")
    assert conda.tool({"PATH": "/nowhere", "MAMBA_EXE": "/nowhere/mamba"}) is None
