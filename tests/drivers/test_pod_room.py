"""Outputs of a pod for which there is no room here: what was logged comes, and the job says what does not."""

from __future__ import annotations

from conformance import wait_for
from test_pods import bench, server

from jupyter_mlops.compute.kubernetes import landing

__all__ = ["bench", "server"]
WRITES = "open('model.bin', 'wb').write(b'm' * 1_000_000)\nprint('over', flush=True)"
FULL = "the disk here is nearly full: outputs wait until there is room"


def test_outputs_that_find_no_room_until_the_pod_goes(bench, monkeypatch):
    monkeypatch.setattr(landing, "_room", lambda folder: False)
    bench.driver = bench.make(hold=3)
    job = bench.cell("a", WRITES)
    wait_for(lambda: bench.observe(job).reason == f"its outputs are being copied: {FULL}")
    seen = bench.ended(job, 60)
    assert seen.phase == "completed" and not seen.incomplete and bench.log(job) == "over\n"
    assert seen.reason == f"its pod ended before all outputs had been copied: {FULL}"
    assert not (job.folder / "outputs" / "model.bin").exists()


def test_outputs_come_when_there_is_room_again(bench, monkeypatch):
    room = []
    monkeypatch.setattr(landing, "_room", lambda folder: bool(room))
    job = bench.cell("a", WRITES)
    wait_for(lambda: FULL in bench.observe(job).reason)
    room.append(1)
    seen = bench.ended(job, 60)
    assert (seen.phase, seen.reason) == ("completed", "")
    assert (job.folder / "outputs" / "model.bin").read_bytes() == b"m" * 1_000_000
