"""Named inputs and outputs of jobs on this machine, from a real S3 server, a web server and the disk."""

from __future__ import annotations

import os
import signal
import sys
import threading

import pytest
from conformance import Bench
from conftest import wait_for
from stores import KEYS, Page, cached, s3, s3_server, site

from jupyter_mlops.compute.base import Grant
from jupyter_mlops.compute.local import LocalCompute
from jupyter_mlops.core.errors import Refused
from jupyter_mlops.runtime import journal, processes, replay
from jupyter_mlops.runtime.jobfolder import JobFolder

__all__ = ["s3", "s3_server", "site"]

READ = """
import os
from jupyter_mlops import inputs, outputs
place = inputs["data"]
for folder, _, names in sorted(os.walk(place)) if os.path.isdir(place) else [(os.path.dirname(place), 0, [place])]:
    for name in sorted(names):
        path = os.path.join(folder, name)
        print("read", os.path.basename(path), open(path).read())
"""


@pytest.fixture
def bench(tmp_path):
    bench = Bench(LocalCompute, tmp_path / "home")
    yield bench
    bench.close()


def run(bench, name, source=READ, phase="completed", **spec):
    spec.setdefault("inputs", {})
    job = bench.job(name, cell={"source": source}, **spec)
    bench.driver.start(job, 1, {"JUPYTER_MLOPS_JOB": name, "JUPYTER_MLOPS_RUN_ID": "1" * 32})
    seen = bench.ended(job)
    assert seen.phase == phase, (seen.reason, bench.log(job))
    return job, bench.log(job) if phase == "completed" else seen.reason


def logged(job) -> dict[str, float]:
    """What the job's journal says of its inputs."""
    folder = JobFolder(job.folder)
    return {r.key: r.value for path in replay.journals(folder.journal, 0) for r, _ in replay.records(path)
            if isinstance(r, journal.Metric)}


def test_a_folder_of_a_bucket_is_read_from_the_disk_the_second_time(bench, s3):
    for name in ("a.txt", "sub/b.txt"):
        s3.pipe(f"data/train/{name}", name.encode() * 1000)
    given = {"data": {"path": "s3://data/train", "type": "uri_folder"}}
    first, log = run(bench, "one", inputs=given)
    assert "read a.txt a.txta.txt" in log and "read b.txt sub/b.txt" in log
    assert "input data: 2 files, 14 kB: 0 B from the cache, 14 kB downloaded" in log
    assert logged(first)["system/inputs/hit_rate"] == 0 and logged(first)["system/inputs/bytes"] == 14_000
    second, log = run(bench, "two", inputs=given)
    assert "2 files, 14 kB: 14 kB from the cache, 0 B downloaded" in log
    assert logged(second)["system/inputs/hit_rate"] == 1.0
    s3.pipe("data/train/a.txt", b"changed")
    _, log = run(bench, "three", inputs=given)
    assert "read a.txt changed" in log and "9 kB from the cache, 7 B downloaded" in log
    s3.rm("data/train/a.txt")
    _, log = run(bench, "four", inputs=given)
    assert "read a.txt" not in log, "what is gone there is not seen here"
    wait_for(lambda: not os.listdir(bench.home / "cache" / "jobs"))  # jobs that have ended hold nothing
    for job in bench.jobs:
        for folder, _, names in os.walk(job.folder):
            for name in names:
                with open(os.path.join(folder, name), "rb") as f:
                    assert KEYS["AWS_SECRET_ACCESS_KEY"].encode() not in f.read(), name


def test_all_that_reads_it_is_told_where_it_is(bench, s3, tmp_path):
    s3.pipe("data/x.csv", b"1,2\n")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "y.csv").write_text("3,4\n")
    inputs = {"data": {"path": "s3://data/x.csv"}, "near": {"path": str(tmp_path / "here")}, "rate": 0.5, "deep": True,
              "there": {"path": "s3://data/x.csv", "mode": "direct"}}
    outputs = {"model": {}, "far": {"path": str(tmp_path / "out" / "far")}}
    job, log = run(bench, "cell", """
import json
from jupyter_mlops import inputs, outputs
print(json.dumps(dict(inputs)))
open(outputs["model"] + "/m", "w").write("model")
open(outputs["far"] + "/f", "w").write("far")
import fsspec
print("there:", fsspec.open(inputs["there"]).open().read())
try:
    inputs["other"]
except KeyError as error:
    print(error)
try:
    open(inputs["data"], "a")
except PermissionError:
    print("read-only")
""", inputs=inputs, outputs=outputs)
    assert '"rate": 0.5' in log and '"deep": true' in log and '"there": "s3://data/x.csv"' in log
    assert f'"near": "{tmp_path}/here"' in log and "/data/x.csv\"" in log and "there: b'1,2\\n'" in log
    assert "the job has no input 'other'; it has: data, deep, near, rate, there" in log
    assert "read-only" in log or os.getuid() == 0
    assert (job.folder / "outputs" / "model" / "m").read_text() == "model"
    assert (tmp_path / "out" / "far" / "f").read_text() == "far"
    spec = {"command": "cat ${{inputs.data}} ${{inputs.near}}/y.csv; echo ${{ inputs.rate }} > ${{outputs.model}}/m",
            "inputs": inputs, "outputs": outputs}
    job = bench.job("command", **spec)
    bench.driver.start(job, 1, {})
    assert bench.ended(job).phase == "completed"
    assert "1,2\n3,4\n" in bench.log(job) and (job.folder / "outputs" / "model" / "m").read_text() == "0.5\n"
    (tmp_path / "s.py").write_text("import sys\nprint(sys.argv[1:])\n")
    job = bench.job("script", script=str(tmp_path / "s.py"), args=["--in=${{inputs.near}}", "${{inputs.deep}}"],
                    inputs=inputs)
    bench.driver.start(job, 1, {})
    assert bench.ended(job).phase == "completed" and f"['--in={tmp_path}/here', 'true']" in bench.log(job)


def test_ranks_share_what_was_brought_once(bench, site):
    pytest.importorskip("torch")
    site.pages["/x.txt"] = (b"hello", '"1"')
    job = bench.cell("two", READ, processes=2, inputs={"data": {"path": site.address + "/x.txt"}})
    assert bench.ended(job, 90).phase == "completed", bench.log(job)
    assert all("read x.txt hello" in bench.log(job, rank) for rank in (0, 1)) and len(site.gets) == 1


def test_a_download_that_breaks_off_is_gone_on_with(bench, site):
    site.pages["/x.txt"] = (b"0123456789" * 1000, '"1"')
    site.cut = [4000]
    _, log = run(bench, "a", inputs={"data": {"path": site.address + "/x.txt?sig=secret"}})
    assert [w for _, w in site.gets] == ["", "bytes=4000-"] and "0123456789" * 1000 in log
    assert "secret" not in log
    site.pages["/x.txt"] = (b"new", '"2"')
    _, log = run(bench, "b", inputs={"data": {"path": site.address + "/x.txt?sig=secret"}})
    assert "read x.txt new" in log
    site.pages["/y.txt"] = (b"y", "")
    for name in ("c", "d"):
        _, log = run(bench, name, inputs={"data": {"path": site.address + "/y.txt"}})
        assert "1 B downloaded" in log and "so it is downloaded each time" in log


@pytest.mark.parametrize(("given", "words"), [
    ({"path": "s3://data/none.csv"}, "there is nothing at s3://data/none.csv"),
    ({"path": "s3://nobucket/a"}, "there is nothing at s3://nobucket/a"),
    ({"path": "s3://data/there.csv", "type": "uri_folder"}, "s3://data/there.csv is a file: say type: uri_file"),
    ({"path": "SITE/none"}, "there is nothing at http://"),
    ({"path": "SITE/", "type": "uri_folder"}, "over HTTP there are files only"),
    ({"path": "gs://bucket/x"}, "gs://bucket/x needs the package gcsfs, which the job's Python lacks: add it to "
                                "environment.pip, or to the image"),
    ({"path": "nowhere://x/y"}, "fsspec knows no nowhere://"),
])
def test_what_cannot_be_had_is_told_in_one_line(bench, s3, site, given, words):
    s3.pipe("data/there.csv", b"1")
    given = {**given, "path": given["path"].replace("SITE", site.address)}
    job, reason = run(bench, "a", phase="failed", inputs={"data": given})
    assert words in reason and "\n" not in reason
    assert bench.observe(job).ranks == [] and not (job.folder / "attempts" / "1" / "rank-0.pid").exists()
    assert not cached(bench.home / "cache")


def test_credentials_that_are_not_enough(bench, s3, monkeypatch):
    s3.pipe("data/a", b"1")
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    _, reason = run(bench, "a", phase="failed", inputs={"data": {"path": "s3://data/a"}})
    assert "access is denied: the job's credentials are missing or not enough" in reason


@pytest.mark.parametrize(("spec", "words"), [
    ({"inputs": {"a": {"path": "claim://datasets/x"}}}, "input a: claims are volumes of a cluster"),
    ({"outputs": {"a": {"path": "claim://datasets/x"}}}, "output a: claims are volumes of a cluster"),
    ({"inputs": {"a": {"path": "/there/is/none"}}}, "input a: there is no /there/is/none"),
    ({"inputs": {"a": {"path": "file:///usr", "type": "uri_file"}}}, "input a: /usr is a folder: say type: uri_folder"),
])
def test_what_is_not_on_this_machine_is_refused(bench, spec, words):
    with pytest.raises(Refused, match=words):
        bench.driver.check({"command": "true", "interpreter": sys.executable, **spec})


def test_it_is_stopped_while_it_is_downloaded(bench, site):
    gate = _gate(site)
    job = bench.job("a", cell={"source": READ}, inputs={"data": {"path": site.address + "/slow"}})
    bench.driver.start(job, 1, {})
    seen = wait_for(lambda: "downloading data: " in (s := bench.observe(job)).reason and s)
    assert seen.phase == "starting" and "of 1 MB" in seen.reason
    bench.driver.stop(job, 1, 1)
    seen = bench.ended(job)
    assert (seen.phase, seen.reason) == ("canceled", "stopped before it started")
    wait_for(lambda: not bench.family(job))
    gate.set()


def test_a_supervisor_that_dies_meanwhile_is_replaced(bench, site):
    """What downloads dies with it; the next one goes on where it was, and the ranks run once."""
    gate = _gate(site)
    job = bench.job("a", cell={"source": "open('count', 'a').write('x')"},
                    inputs={"data": {"path": site.address + "/slow"}})
    bench.driver.start(job, 1, {})
    wait_for(lambda: "downloading data: " in bench.observe(job).reason)
    pid = JobFolder(job.folder).attempt(1).state()["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not processes.start_time(pid) and not bench.family(job))
    gate.set()
    assert wait_for(lambda: bench.observe(job).phase == "absent")
    bench.driver.start(job, 1, {})
    assert bench.ended(job).phase == "completed"
    assert (job.folder / "outputs" / "count").read_text() == "x"
    assert site.gets[-1][1].startswith("bytes="), "the rest was asked for"


def test_time_is_over_while_it_is_downloaded(bench, site):
    gate = _gate(site)
    job = bench.cell("a", READ, grant=Grant(timeout=2), limits={"timeout": 2},
                     inputs={"data": {"path": site.address + "/slow"}})
    seen = bench.ended(job)
    assert (seen.phase, seen.cause, seen.reason) == ("failed", "timeout", "ran longer than limits.timeout (2 s)")
    gate.set()


def _gate(site):
    """``/slow`` gives half of itself, and the rest when the gate that is returned is open."""
    gate = threading.Event()
    site.pages["/slow"] = (b"x" * 1_000_000, '"1"')
    plain = Page._answer

    def answer(page, body):
        if not body or gate.is_set() or page.path != "/slow":
            plain(page, body)
            return
        page.send_response(200)
        page.send_header("ETag", '"1"')
        page.send_header("Content-Length", "1000000")
        page.end_headers()
        page.wfile.write(b"x" * 500_000)
        page.wfile.flush()
        gate.wait(60)

    site.RequestHandlerClass = type("Slow", (Page,), {"_answer": answer})
    return gate
