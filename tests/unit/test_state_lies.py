"""What a job's own code may write into the files of its attempt: it ends all the same, and can be shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jupyter_mlops.compute.base import JobRef
from jupyter_mlops.compute.kubernetes import verdict
from jupyter_mlops.compute.kubernetes.driver import KubernetesCompute
from jupyter_mlops.compute.kubernetes.images import Images
from jupyter_mlops.compute.kubernetes.watch import node_of
from jupyter_mlops.compute.state import observation
from jupyter_mlops.core.controllers import attempts as tries
from jupyter_mlops.core.identity import Identity
from jupyter_mlops.core.resources.compute import ComputeSpec
from jupyter_mlops.core.resources.job import AttemptStatus
from jupyter_mlops.core.store import Store
from jupyter_mlops.runtime.jobfolder import JobFolder, private_folder, write_file, write_json

DONE = {"status": {"phase": "Succeeded"}, "metadata": {"name": "p"}}
HUGE = 10**400


@pytest.fixture
def place(tmp_path):
    attempt = JobFolder(private_folder(str(tmp_path / "a"))).attempt(1)
    for node in (0, 1):
        private_folder(f"{attempt.path}/node-{node}")
        write_file(f"{attempt.path}/node-{node}/copied", b"")
    return attempt


@pytest.mark.parametrize("note", [{"nodes": 1}, {"nodes": 2}, {"nodes": 1, "most": 2}], ids=["one", "two", "elastic"])
@pytest.mark.parametrize("lie", [
    {"failed_rank": -1}, {"failed_rank": 2_000_000}, {"failed_rank": True}, {"failed_rank": "0"},
    {"reason": "caf\udce9 \ud800"}, {"reason": {"a": [1]}}, {"reason": "x" * 10**6},
    {"traceback": ["\udfff", 1, "y" * 10**6]},
    {"ended_at": "yesterday"}, {"ended_at": [1]}, {"ended_at": float("inf"), "started_at": float("nan")},
    {"ended_at": HUGE, "started_at": -1, "seconds": HUGE}, {"exit_code": HUGE}, {"cause": "lost\n"}, {"cause": 5},
    {"ranks": {"a": 1}}, {"ranks": [{"rank": -5}, {"rank": True}, {"rank": HUGE}, 5, {"rank": 1, "pid": 1e9}]},
    {"ranks": [{"rank": n} for n in range(10_000)]}, {"lost": True}, {"node": 7}, {"incomplete": "very"},
], ids=range(21))
def test_no_lie_keeps_an_attempt_from_ending(place, note, lie):
    for node in (0, 1):
        write_json(f"{place.path}/node-{node}/state.json", {"schema": 1, "phase": "failed", "ranks": [], **lie})
    pods = {node: {**DONE, "metadata": {"name": f"p{node}"}} for node in range(2 if note != {"nodes": 1} else 1)}
    seen = verdict.ended(place, note, pods, {})
    place.write_state(verdict.state(seen))
    seen = observation(1, place.state())
    assert seen.phase == "failed" and not seen.incomplete and seen.cause in ("", "lost")
    assert seen.cause == "" or lie != {"lost": True}, "it is for the cluster to say that a node is lost"
    driver = KubernetesCompute("w", "gpu", ComputeSpec(type="kubernetes", namespace="n", training={"image": "a:1"}))
    assert tries.log_tail(driver, JobRef("a", Path(place.job.path)), 1, seen.failed_rank or 0) == []
    ended = tries.outcome(1, seen)
    assert len(ended.model_dump_json().encode()) < 10_000 and tries.iso(seen.started_at) is not None
    assert len(tries.ranks(seen)) <= 2 * 4096 and json.dumps(seen.traceback, ensure_ascii=False).encode()


@pytest.mark.parametrize("phase", ["absent", "", "Completed", "running ", "\ud800"])
def test_a_phase_that_there_is_not_is_none(place, phase):
    write_json(f"{place.path}/node-0/state.json", {"schema": 1, "phase": phase, "ranks": []})
    seen = verdict.running(place, {"nodes": 1}, {0: DONE}, {}, "")
    assert seen.phase == "starting"
    assert verdict.ended(place, {"nodes": 1}, {0: DONE}, {}).cause == "lost"


def test_words_command_no_terminal():
    """They are printed where the user has typed a command."""
    told = "a\x1b[31mred\x1b[0m\x1b]52;c;cm0gLXJm\x07 \x9b2J tab\tand\nline"
    seen = observation(1, {"phase": "failed", "reason": told, "traceback": [told]})
    assert seen.reason == "ared]52;c;cm0gLXJm 2J tab\tand\nline" and seen.traceback == [seen.reason]


def test_last_words_of_a_container_command_no_terminal(place, monkeypatch):
    driver = KubernetesCompute("w", "gpu", ComputeSpec(type="kubernetes", namespace="n", training={"image": "a:1"}))
    said = {"terminated": {"exitCode": 1, "message": "a\x1b]0;title\x07b \x1b[2Jc"}}
    pod = {"metadata": {"name": "p"}, "status": {"phase": "Failed", "containerStatuses": [
        {"name": "job", "state": said}]}}
    seen = verdict.ended(place, {"nodes": 1}, {0: pod}, {})
    monkeypatch.setattr(driver, "_observe", lambda *_: seen)
    assert driver.observe(JobRef("a", Path(place.job.path)), 1).reason == "a]0;titleb c"


@pytest.mark.parametrize("rank", [-1, 10**9])
def test_there_is_no_log_of_a_rank_that_there_is_not(place, rank):
    driver = KubernetesCompute("w", "gpu", ComputeSpec(type="kubernetes", namespace="n", training={"image": "a:1"}))
    assert tries.log_tail(driver, JobRef("a", Path(place.job.path)), 1, rank) == []


async def test_what_is_stored_can_be_sent(tmp_path):
    """The words of an error name a file that is no UTF-8: one such job would make the list of all unreadable."""
    store = Store(tmp_path / "store.db")
    store.open()
    try:
        ann = Identity("ann", "owner")
        await store.write(lambda tx: tx.put("job", "a", {}, identity=ann, status={"phase": "Running"}))
        told = "no file caf\udce9, and \U0001f600"
        ended = {"attempt": 1, "phase": "Failed", "reason": told, "ended_at": ""}
        job = await store.write(lambda tx: tx.set_status("job", "a", {"reason": told, "outcome": ended}))
        assert job.status["reason"] == "no file caf?, and \U0001f600"
        assert AttemptStatus.model_validate(job.status["outcome"]).model_dump_json()
    finally:
        store.close()


def test_a_pod_tells_of_its_own_image_only(place, monkeypatch):
    """What is known of an image decides about other jobs."""
    driver = KubernetesCompute("w", "gpu", ComputeSpec(type="kubernetes", namespace="n", training={"image": "a:1"}),
                               images=Images())
    path = f"{place.path}/node-0/image.json"
    write_json(path, {"image": "b:1", "python": "2.7", "packages": {}})
    driver._learn(place, {"image": "a:1"}, {})
    assert driver.images.shown() == []
    driver._told.clear()
    write_json(path, {"image": "a:1", "python": "3.1\udce9", "packages": {"torch": "2\ud800", "x": {}}})
    driver._learn(place, {"image": "a:1"}, {})
    (known,) = driver.images.shown()
    assert known["image"] == "a:1" and json.dumps(known, ensure_ascii=False).encode()


@pytest.mark.parametrize("number", ["x", "-1", "²", "1e3", "9" * 30, 5])
def test_a_pod_with_labels_of_somebody_else_stops_no_watch(number):
    labels = {"batch.kubernetes.io/job-completion-index": number, "jupyter-mlops.io/most": number}
    notes = {"batch.kubernetes.io/job-index-failure-count": number}
    assert node_of({"metadata": {"name": "p", "labels": labels, "annotations": notes}}) == 0
