"""Packages on top of an image: installed by a pod before its ranks, once for each cache; pods are processes here."""

from __future__ import annotations

import base64
import json
import os
import platform
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
sys.path.insert(0, str(Path(__file__).parents[1]))

from conformance import wait_for
from test_pods import PodBench, server
from wheels import wheel

from jupyter_mlops.compute.kubernetes import watch
from jupyter_mlops.core.controllers.attempts import retry_pause
from jupyter_mlops.core.errors import Refused
from jupyter_mlops.core.resources.job import AttemptStatus, JobSpec
from jupyter_mlops.runtime import packagecache

__all__ = ["server"]

LOOK = "import mlops_tiny, sys\nprint(mlops_tiny.VERSION, sys.prefix != sys.base_prefix)\nimport numpy"
#: A package whose building says when it began, and waits until it may go on.
SLOW = "import os, time\nopen({began!r}, 'w').close()\nwhile not os.path.exists({go!r}):\n    time.sleep(0.05)\n"


@pytest.fixture
def index(tmp_path):
    folder = tmp_path / "simple"
    wheel(folder, "mlops-tiny")
    wheel(folder, "mlops-tiny", "2.0")
    return folder


@pytest.fixture
def cache(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


@pytest.fixture
def make_bench(server, index, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "RETRY", 0.1)
    benches = []

    def make(**training):
        pip = {"index_url": index.as_uri(), **training.get("pip", {})}
        benches.append(PodBench(server, tmp_path, f"home-{len(benches)}", **{**training, "pip": pip}))
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


def asks(*pip):
    return {"pip": list(pip)}


def entries(cache):
    """Of the workspace of these tests, which has a folder of its own in the cache."""
    return [p for p in (cache / "w" / packagecache.VERSION).iterdir() if p.is_dir()]


def test_a_package_is_installed_before_the_ranks_start(make_bench, server):
    bench = make_bench()
    said = set()
    job = bench.job("a", cell={"source": LOOK}, environment=asks("mlops-tiny==1.*"))
    bench.driver.start(job, 1, {})

    def look():
        seen = bench.observe(job)
        said.add(seen.reason)
        return seen.terminal and seen

    seen = wait_for(look, 90, 0.02)
    assert seen.phase == "completed", (seen, bench.log(job))
    assert "1.0 True\n" in bench.log(job) and "jupyter-mlops: installed 1 package in" in bench.log(job)
    assert any(r.startswith("installing 1 package") for r in said), said
    pods = [o for (plural, _), o in server.objects.items() if plural == "pods"]
    assert not any(v["name"] == "packages" for p in pods for v in p["spec"]["volumes"]), "the pod's own folder"


def test_the_second_job_finds_them_there(make_bench, cache):
    bench = make_bench(package_cache={"host_path": str(cache)})
    job = bench.cell("a", LOOK, environment=asks("mlops-tiny==1.0"))
    assert bench.ended(job, 90).phase == "completed", bench.log(job)
    (entry,) = entries(cache)
    made = (entry / packagecache.COMPLETE).read_text()
    other = bench.cell("b", LOOK, environment=asks("mlops-tiny==1.0"))
    assert bench.ended(other, 90).phase == "completed", bench.log(other)
    assert bench.log(other) == "1.0 True\n", "nothing is installed, nothing is said"
    assert entries(cache) == [entry] and (entry / packagecache.COMPLETE).read_text() == made
    third = bench.cell("c", LOOK, environment=asks("mlops-tiny"))
    assert bench.ended(third, 90).phase == "completed" and "2.0 True\n" in bench.log(third)
    assert len(entries(cache)) == 2, "other requirements are another environment"


def test_what_cannot_be_installed_says_why_and_is_not_tried_again(make_bench, cache):
    bench = make_bench(package_cache={"host_path": str(cache)})
    job = bench.cell("a", "print(1)", environment=asks("mlops-tiny==9.1"))
    seen = bench.ended(job, 90)
    assert (seen.phase, seen.cause) == ("failed", "packages")
    assert seen.reason == (f"packages could not be installed: the package index has no mlops-tiny==9.1 for Python "
                           f"{sys.version_info[0]}.{sys.version_info[1]}; there is 1.0, 2.0")
    assert "No matching distribution found for mlops-tiny==9.1" in bench.log(job)
    assert entries(cache) == [], "nothing half made is left"
    ended = AttemptStatus(attempt=1, phase="Failed")
    spec = JobSpec.model_validate({"cell": {"source": "1"}, "retry_settings": {"max_retries": 5}})
    assert retry_pause({}, spec, ended, seen.cause) is None and retry_pause({}, spec, ended, "") == 1.0


def slow_source(index, tmp_path):
    """A source package in the index that takes as long as it is told to."""
    import io
    import tarfile

    began, go = tmp_path / "began", tmp_path / "go"
    setup = SLOW.format(began=str(began), go=str(go)) + (
        "from setuptools import setup\nsetup(name='mlops-slow', version='1.0', py_modules=[])\n")
    folder = index / "mlops-slow"
    folder.mkdir()
    with tarfile.open(folder / "mlops-slow-1.0.tar.gz", "w:gz") as archive:
        about = "Metadata-Version: 2.1\nName: mlops-slow\nVersion: 1.0\n"
        for name, text in (("setup.py", setup), ("PKG-INFO", about)):
            info = tarfile.TarInfo(f"mlops-slow-1.0/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    (folder / "index.html").write_text('<a href="mlops-slow-1.0.tar.gz">mlops-slow-1.0.tar.gz</a>')
    return began, go


def test_an_installation_that_is_killed_leaves_nothing_half_made(make_bench, server, index, cache, tmp_path):
    began, _ = slow_source(index, tmp_path)
    bench = make_bench(package_cache={"host_path": str(cache)}, pip={"options": ["--no-build-isolation"]})
    job = bench.cell("a", "print(1)", environment=asks("mlops-slow", "mlops-tiny"))
    wait_for(began.exists, 60)
    pod = server.pods()[0]["metadata"]["name"]
    os.kill(server._processes[pod]["packages"].pid, signal.SIGKILL)
    assert bench.ended(job, 60).phase == "failed"
    (half,) = entries(cache)
    assert not (half / packagecache.COMPLETE).exists()
    os.utime(half, (1, 1))
    assert packagecache.evict(str(cache / "w"), 1 << 40) == [half.name], "who comes next removes it"
    other = bench.cell("b", LOOK, environment=asks("mlops-tiny"))
    assert bench.ended(other, 90).phase == "completed", bench.log(other)


def test_a_stop_ends_an_installation(make_bench, index, cache, tmp_path):
    began, _ = slow_source(index, tmp_path)
    bench = make_bench(package_cache={"host_path": str(cache)}, pip={"options": ["--no-build-isolation"]})
    job = bench.cell("a", "print(1)", environment=asks("mlops-slow"))
    wait_for(began.exists, 60)
    assert wait_for(lambda: "installing 1 package" in (s := bench.observe(job)).reason and s).phase == "starting"
    bench.driver.stop(job, 1, 1.0)
    assert bench.ended(job, 60).phase == "canceled"
    wait_for(lambda: entries(cache) == [], 20)


def test_two_jobs_that_want_the_same_install_it_once(make_bench, index, cache, tmp_path):
    began, go = slow_source(index, tmp_path)
    bench = make_bench(package_cache={"host_path": str(cache)}, pip={"options": ["--no-build-isolation"]})
    jobs = [bench.cell(name, LOOK, environment=asks("mlops-slow", "mlops-tiny")) for name in ("a", "b")]
    wait_for(began.exists, 60)
    wait_for(lambda: any("waiting for another job" in bench.observe(job).reason for job in jobs), 60)
    go.touch()
    for job in jobs:
        assert bench.ended(job, 90).phase == "completed", bench.log(job)
    assert sum("installed 2 packages" in bench.log(job) for job in jobs) == 1 and len(entries(cache)) == 1


def test_a_claim_serves_as_cache(make_bench, server):
    bench = make_bench(package_cache={"claim": "packages"})
    for name, made in (("a", True), ("b", False)):
        job = bench.cell(name, LOOK, environment=asks("mlops-tiny==1.0"))
        assert bench.ended(job, 90).phase == "completed", bench.log(job)
        assert ("installed 1 package" in bench.log(job)) is made


def test_a_cache_that_cannot_be_written_to_is_told_of(make_bench, cache, monkeypatch):
    (cache / "w").mkdir()
    if os.getuid() == 0:
        (cache / "w" / packagecache.VERSION).write_text("no folder")  # root may write anywhere
    else:
        (cache / "w").chmod(0o500)
    bench = make_bench(package_cache={"host_path": str(cache)})
    job = bench.cell("a", LOOK, environment=asks("mlops-tiny"))
    assert bench.ended(job, 90).phase == "completed", bench.log(job)
    assert "the package cache cannot be written to by user" in bench.log(job) and "2.0 True" in bench.log(job)


def test_credentials_are_for_the_installation_alone(make_bench, server, index, tmp_path):
    """They are neither in a manifest, nor in arguments, environment or log, and ranks do not see them."""
    conf = f"[global]\nindex-url = https://ann:s3cr3t-pw@127.0.0.1:9/simple\nfind-links = {index}/mlops-tiny\n"
    server.put("secrets", {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "index"}, "data": {
        "pip.conf": base64.b64encode(conf.encode()).decode()}})
    bench = make_bench(pip={"index_url": "", "secret": "index", "options": ["--retries=0", "--timeout=1"]})
    job = bench.job("a", environment=asks("mlops-tiny==2.0"), cell={"source": LOOK + """
import os
for path in ("/mlops/pip", os.environ["PYTHONPATH"].split("/boot/")[0] + "/pip-of-the-ranks"):
    print(os.path.exists(path))
print("s3cr3t-pw" in str(os.environ))
"""})
    bench.driver.start(job, 1, {})
    made = json.dumps([o for (plural, name), o in server.objects.items() if (plural, name) != ("secrets", "index")])
    pod = next(o for (plural, _), o in server.objects.items() if plural == "jobs")["spec"]["template"]["spec"]
    seen = bench.ended(job, 120)
    log = bench.log(job)
    assert seen.phase == "completed", (seen, log)
    assert "False\nFalse\nFalse\n" in log and "2.0 True" in log
    assert "s3cr3t-pw" not in log and "s3cr3t-pw" not in made and "https://***@127.0.0.1:9" in log, log
    mounts = {c["name"]: [m["name"] for m in c["volumeMounts"]] for c in [*pod["initContainers"], *pod["containers"]]}
    assert "pip" in mounts["packages"] and "pip" not in mounts["job"] and "pip" not in mounts["keeper"]


def test_two_nodes_each_have_their_packages(make_bench, cache):
    pytest.importorskip("torch")
    bench = make_bench(package_cache={"host_path": str(cache)})
    source = "import mlops_tiny, os\nprint('rank', os.environ['RANK'], mlops_tiny.VERSION)"
    job = bench.job("a", cell={"source": source},
                    environment=asks("mlops-tiny"), resources={"instance_count": 2},
                    distribution={"type": "pytorch", "process_count_per_instance": 1})
    bench.driver.start(job, 1, {"GLOO_SOCKET_IFNAME": "lo"})
    seen = bench.ended(job, 120)
    assert seen.phase == "completed", (seen, bench.log(job), bench.log(job, 1))
    assert "rank 0 2.0" in bench.log(job) and "rank 1 2.0" in bench.log(job, 1)
    assert len(entries(cache)) == 1


# -- versions --------------------------------------------------------------------------------------------------------


def packed(python="", by_value=True, **packages):
    named = {k.replace("_", "-"): v for k, v in packages.items()}
    return {"python": python or platform.python_version(), "by_value": by_value, "packages": named}


def test_an_image_is_known_after_its_first_job_and_compared_before_the_next(make_bench):
    bench = make_bench()
    assert bench.driver.images.shown() == []
    job = bench.cell("a", "print(1)")
    assert bench.ended(job).phase == "completed" and bench.log(job) == "1\n"
    (known,) = bench.driver.images.shown()
    assert known["image"] == "image:1" and known["python"] == platform.python_version()
    assert known["packages"]["cloudpickle"] and known["pip"] is True

    def spec(**more):
        return {"cell": {"source": "1", "packed": packed(**more)}}

    bench.driver.check(spec())
    with pytest.raises(Refused, match=r"are of Python 3\.8 and do not run under Python .* of the image image:1"):
        bench.driver.check(spec(python="3.8.1"))
    bench.driver.check(spec(python="3.8.1", by_value=False))
    differs = JobSpec.model_validate(spec(mlops_nowhere="3.1+cpu", torch="1.2.0"))
    assert bench.driver.images.check(differs, "image:1")[0] == (
        "mlops-nowhere is 3.1+cpu here and not in the image: --pip mlops-nowhere==3.1 installs it")
    wants = {"conda_file": {"dependencies": ["python=3.8"]}}
    with pytest.raises(Refused, match=r"the conda file asks for Python 3\.8, and the image image:1 has Python"):
        bench.driver.check({**spec(), "environment": wants})


def test_an_unknown_image_is_compared_in_the_pod_before_anything_is_unpickled(make_bench):
    bench = make_bench()
    job = bench.job("a", cell={"source": "print('ran')", "packed": packed("3.8.1")}, environment=asks("mlops-tiny==9"))
    bench.driver.check(json.loads((job.folder / "spec.json").read_text()))  # nothing is known yet
    bench.driver.start(job, 1, {})
    seen = bench.ended(job, 60)
    assert (seen.phase, seen.cause) == ("failed", "versions"), seen
    assert "use an image with Python 3.8, or a kernel with Python" in seen.reason
    assert "ran" not in bench.log(job) and "Collecting" not in bench.log(job), "nothing is installed for it either"
    with pytest.raises(Refused):
        bench.driver.check(json.loads((job.folder / "spec.json").read_text()))


def test_what_differs_is_told_in_the_log_where_it_was_not_known_before(make_bench):
    bench = make_bench()
    for name, told in (("a", True), ("b", False)):
        job = bench.job(name, cell={"source": "print('ran')", "packed": packed(numpy="0.1.0")})
        bench.driver.start(job, 1, {})
        assert bench.ended(job, 60).phase == "completed"
        assert ("jupyter-mlops: numpy is 0.1.0 here and" in bench.log(job)) is told and "ran\n" in bench.log(job)
