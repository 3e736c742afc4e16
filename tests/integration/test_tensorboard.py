"""TensorBoard over event files of jobs, runs and folders: a real one, behind tokens, while a job runs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import processes_of, wait_for

from jupyter_mlops.control import boards
from jupyter_mlops.control.boards import Boards, event_files
from jupyter_mlops.core.errors import NotFound, ParameterError, Refused, Unavailable
from jupyter_mlops.magics import commands
from jupyter_mlops.magics.boards import MIME
from jupyter_mlops.magics.context import Context
from jupyter_mlops.magics.parser import parse
from jupyter_mlops.runtime import mirror
from jupyter_mlops.runtime.jobfolder import JobFolder, private_folder

pytest.importorskip("tensorboard")

WRITER = """
import os, sys, time
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

folder, count, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
writer = EventFileWriter(os.path.join(folder, "train"), flush_secs=1)
for step in range(count):
    value = Summary.Value(tag="loss", simple_value=1 / (step + 1))
    writer.add_event(Event(step=step, wall_time=time.time(), summary=Summary(value=[value])))
    writer.flush()
    time.sleep(pause)
"""


@pytest.fixture(scope="module")
def writer(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("writer") / "writer.py"
    path.write_text(WRITER)
    return path


def points(plane, path: str, run: str, least: int) -> list[int]:
    """The steps of a curve as TensorBoard tells them, when there are so many."""
    def look():
        body = "requests=" + json.dumps([{"plugin": "scalars", "tag": "loss", "run": run}])
        status, answer, _ = plane.call(
            "POST", f"/{path}data/plugin/timeseries/timeSeries", body.encode(),
            headers={"Content-Type": "application/x-www-form-urlencoded"})
        assert status == 200, answer
        found = [p["step"] for p in (answer[0].get("runToSeries") or {}).get(run, [])]
        return found if len(found) >= least else None

    return wait_for(look, 60, 0.3)


def test_a_job_is_seen_while_it_runs(shared_plane, writer):
    command = f"{sys.executable} {writer} . 400 0.1"
    shared_plane.put("jobs/curves", {"command": command, "limits": {"grace": 0.5}})
    shared_plane.wait_job("curves", 60, ("Running",))
    opened = shared_plane.post("tensorboards", {"sources": ["curves"]})
    assert opened["path"] == "tensorboard/curves/" and opened["sources"][0]["name"] == "curves"
    early = points(shared_plane, opened["path"], "train", 3)
    later = points(shared_plane, opened["path"], "train", len(early) + 10)
    assert later[: len(early)] == early, "the same curve, and more of it"
    assert shared_plane.get("jobs/curves")["status"]["phase"] == "Running"
    again = shared_plane.post("tensorboards", {"sources": ["curves"]})
    assert again["path"] == opened["path"] and again["event_files"] == 1
    shared_plane.post("jobs/curves/actions/stop")
    shared_plane.wait_job("curves")
    # One of them, reachable by us alone: no port, and a socket in a folder that nobody else enters.
    pids = [p for p in processes_of(shared_plane.home) if "board.py" in Path(f"/proc/{p}/cmdline").read_text()]
    assert len(pids) == 1 and not psutil.Process(pids[0]).net_connections("inet")
    socket = next(Path(shared_plane.place.runtime_dir).glob("tb/*/sock"))
    assert socket.stat().st_mode & 0o077 == 0
    assert all(p.stat().st_mode & 0o077 == 0 for p in (socket.parent, socket.parent.parent))


def test_folders_and_runs_side_by_side(shared_plane, writer, tmp_path):
    os.system(f"{sys.executable} {writer} {tmp_path}/logs 5 0")  # noqa: S605
    opened = shared_plane.post("tensorboards", {"sources": [f"{tmp_path}/logs"]})
    assert re.fullmatch(r"tensorboard/~[0-9a-f]{16}/", opened["path"]) and opened["event_files"] == 1
    assert points(shared_plane, opened["path"], "train", 5) == [0, 1, 2, 3, 4]
    run = shared_plane.post("/mlflow/api/2.0/mlflow/runs/create", {"experiment_id": "0", "run_name": "kept"})
    run_id = run["run"]["info"]["run_id"]
    event = next((tmp_path / "logs" / "train").iterdir())
    kept = f"/mlflow/api/2.0/mlflow-artifacts/artifacts/0/{run_id}/artifacts/train/{event.name}"
    status, _, _ = shared_plane.call("PUT", kept, event.read_bytes())
    assert status == 200
    both = shared_plane.post("tensorboards", {"sources": [run_id, f"{tmp_path}/logs"]})
    assert [s["name"] for s in both["sources"]] == ["kept", "logs"] and both["event_files"] == 2
    assert points(shared_plane, both["path"], "kept/train", 5) == points(shared_plane, both["path"], "logs/train", 5)
    status, page, headers = shared_plane.call("GET", "/" + opened["path"])
    assert status == 200 and b"TensorBoard" in page and headers["X-Content-Type-Options"] == "nosniff"


def test_for_nobody_else(shared_plane):
    shared_plane.put("jobs/quiet", {"command": "true"})
    shared_plane.wait_job("quiet")
    path = shared_plane.post("tensorboards", {"sources": ["quiet"]})["path"]
    assert shared_plane.call("GET", "/" + path)[0] == 200
    for token, status in (("", 401), ("nonsense", 401), (shared_plane.token("reader"), 403),
                          (shared_plane.token("job", "quiet"), 403)):
        for method, where in (("GET", "/" + path), ("POST", "/" + path + "data/runs"),
                              ("GET", "/" + path + "data/runs"), ("GET", "/tensorboard/nowhere/")):
            assert shared_plane.call(method, where, token=token)[0] == status, (token[:4], where)
        assert shared_plane.call("POST", "tensorboards", {"sources": ["/etc"]}, token=token)[0] == status
    for method in ("PUT", "DELETE", "PATCH"):
        assert shared_plane.call(method, "/" + path + "data/runs", {})[0] == 405
    assert shared_plane.call("GET", "/" + path, headers={"Host": "evil.example"})[0] == 403


@pytest.mark.parametrize(("path", "status"), [
    ("quiet/../../store.db", 400), ("quiet/%2e%2e/%2e%2e/store.db", 400), ("quiet/..%2f..%2fstore.db", 400),
    ("quiet/..%5cstore.db", 400), ("..%2f..%2fetc/", 404), ("%7e0123456789abcdef/", 404), ("~0123456789abcdef/", 404),
    ("quiet+nowhere/", 404), ("", 404), ("/", 404), ("a%00b/", 404), ("QUIET/", 404), ("quiet%2fx/", 404),
])
def test_no_way_out(shared_plane, path, status):
    shared_plane.put("jobs/quiet", {"command": "true"})
    assert shared_plane.call("GET", "/tensorboard/" + path)[0] == status


@pytest.mark.parametrize(("sources", "words"), [
    (["nowhere"], "there is no job 'nowhere'"), (["/no/such/folder"], "there is no folder"),
    (["../x"], "no such job, run or folder"), (["a b"], "no such job, run or folder"),
    (["0" * 32], "does not exist"), (["~0123456789abcdef"], "earlier control plane"),
])
def test_what_is_not_there_is_told(shared_plane, sources, words):
    status, body, _ = shared_plane.call("POST", "tensorboards", {"sources": sources})
    assert status in (400, 404) and words in body["message"] and body["hint"], body


def test_what_a_notebook_and_a_terminal_say(shared_plane, tmp_path, monkeypatch, capsys):
    def run(face: str, *words: str):
        return commands.run(parse(["tensorboard", *words], face), Context(face, where=shared_plane.place))

    shared_plane.put("jobs/quiet", {"command": "true"})
    shared_plane.wait_job("quiet")
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "run"))
    bundle = run("magic", "quiet")._repr_mimebundle_()
    assert bundle[MIME]["path"] == "tensorboard/quiet/" and "jupyter-mlops/tensorboard/quiet/" in bundle["text/plain"]
    assert "No event files yet below" in capsys.readouterr().out
    assert "start JupyterLab" in run("cli", "quiet").text()
    monkeypatch.setenv("JUPYTERHUB_PUBLIC_URL", "https://hub.example/user/ann")
    assert "https://hub.example/user/ann/jupyter-mlops/tensorboard/quiet/" in run("cli", "quiet").text()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-events").mkdir()
    assert run("magic", "my-events").path == run("magic", "./my-events").path
    with pytest.raises(NotFound, match="no job, run or folder 'qiet'") as error:
        run("magic", "qiet")
    assert error.value.hint == "did you mean quiet?"
    with pytest.raises(ParameterError, match=r"there is no folder \./none"):
        run("magic", "./none")


# By itself, without a control plane


@pytest.fixture
def many(tmp_path, monkeypatch):
    monkeypatch.setattr(boards, "MOST", 1)
    return Boards(f"/tmp/b{os.getpid()}-{time.monotonic_ns() % 10**6}", tmp_path / "logs" / "tensorboard.log")


async def test_one_that_nobody_looks_at_is_ended(many, tmp_path, monkeypatch):
    first = await many.open("a", [("a", tmp_path)], [sys.executable])
    assert await many.open("a", [("a", tmp_path)], [sys.executable]) is first
    async with first.session.get("http://localhost/") as answer:
        page = await answer.read()
        assert len(page) == int(answer.headers["Content-Length"]) and b"<title>TensorBoard" in page
    font = re.search(rb"url\((/?font-roboto/[^)]+)\)", page)[1].decode()
    assert not font.startswith("/"), "it would be asked of Jupyter"
    async with first.session.get(f"http://localhost/{font}") as answer:
        assert answer.status == 200 and answer.content_type == "font/woff2"
    async with first.session.head("http://localhost/") as answer:
        assert answer.status == 200
    with first.asked():
        with pytest.raises(Unavailable, match="1 TensorBoards are in use"):
            await many.open("b", [("b", tmp_path)], [sys.executable])
        monkeypatch.setattr(boards, "IDLE", 0.0)
        await many.sweep()
        assert first.process.poll() is None, "somebody reads it"
    await many.sweep()
    assert first.process.poll() is not None and not first.folder.exists()
    second = await many.open("b", [("b", tmp_path)], [sys.executable])
    # Who started it is gone: so is it, without being told.
    second.process.stdin.close()
    await asyncio.to_thread(second.process.wait, 30)
    third = await many.open("b", [("b", tmp_path)], [sys.executable])
    assert third is not second and third.process.poll() is None
    await many.stop()
    assert third.process.poll() is not None


async def test_without_the_package_it_says_what_to_install(many, tmp_path):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} -S -I \"$@\"\n")  # without site-packages
    python.chmod(0o755)
    with pytest.raises(Refused, match="TensorBoard is not installed in") as refused:
        await many.open("a", [("a", tmp_path)], [str(python)])
    assert refused.value.hint == f"{python} -m pip install tensorboard"
    board = await many.open("a", [("a", tmp_path)], [str(python), sys.executable])
    assert board.process.poll() is None, "another Python has it"
    await many.stop()
    with pytest.raises(Refused, match="commas and colons"):
        await many.open("c", [("a", tmp_path / "x,y"), ("b", tmp_path)], [sys.executable])


def test_event_files_are_counted(tmp_path):
    (tmp_path / "a" / ".hidden").mkdir(parents=True)
    for name in ("a/events.out.tfevents.1.host.1.0", "a/.hidden/events.out.tfevents.2", "a/model.pt"):
        (tmp_path / name).touch()
    assert event_files(tmp_path) == 1 and event_files(tmp_path / "none") == 0


def test_from_a_pod_they_come_while_they_grow_and_in_pieces(tmp_path, monkeypatch):
    """One step of the mirror each; a model that is being written is not told, event files are, from where they were."""
    job = JobFolder(str(tmp_path / "job"))
    clock, frames = [100.0], []
    monkeypatch.setattr(mirror.time, "monotonic", lambda: clock[0])

    class Out:
        def write(self, data):
            frames.append(data)

        def flush(self):
            pass

    told = mirror.Mirror(job.path, 1, Out())
    folder = private_folder(f"{job.outputs}/lightning_logs/version_0")

    def step() -> list[tuple[str, int, int]]:
        for name in ("events.out.tfevents.1.host.1.0", "model.ckpt"):
            with open(f"{folder}/{name}", "ab") as f:
                f.write(b"x" * 40)
        clock[0] += 2.0
        told.got, before = told.sent, len(frames)
        told.look()
        found = [json.loads(f[8:].partition(b"}")[0] + b"}") for f in frames[before:] if b'"file"' in f]
        return [(os.path.basename(f["file"]), f["at"], f["size"]) for f in found]

    assert step() == [("events.out.tfevents.1.host.1.0", 0, 40)]
    assert step() == [("events.out.tfevents.1.host.1.0", 40, 80)]
