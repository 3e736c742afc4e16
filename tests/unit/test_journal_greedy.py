"""A journal that takes long to read on purpose: other jobs' are read meanwhile."""

from __future__ import annotations

from jupyter_mlops.runtime.records import HEAD, MAGIC, MAX_PAYLOAD, pack_metric
from jupyter_mlops.tracking import batches
from jupyter_mlops.tracking.batches import Journals


def test_damage_that_is_dear_is_read_little_by_little(tmp_path, monkeypatch):
    """Everywhere a record may begin that claims to be as long as one can be."""
    monkeypatch.setattr(batches, "MAX_SECONDS", 0.0)
    (tmp_path / "1-0.bin").write_bytes(HEAD.pack(MAGIC, MAX_PAYLOAD, 0) * ((MAX_PAYLOAD + 100_000) // HEAD.size))
    journals = Journals(tmp_path, "r", {}, {})
    offsets = []
    for _ in range(3):
        group = journals.next(False)
        assert group is not None and not group.requests and group.damaged == group.offset - (offsets or [0])[-1]
        offsets.append(group.offset)
    assert 0 < offsets[0] < offsets[1] < offsets[2] < 1000, "one look each"


def test_what_is_no_damage_is_read_as_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "MAX_SECONDS", 0.0)
    (tmp_path / "1-0.bin").write_bytes(b"".join(pack_metric(b"loss", 1.0, step, 1) for step in range(20_000)))
    journals, steps = Journals(tmp_path, "r", {}, {}), []
    while (group := journals.next(True)) is not None:
        for batch, _ in group.requests:
            steps += [point["step"] for point in batch.metrics]
    assert steps == list(range(20_000))
