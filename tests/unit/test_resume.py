"""What of a repeated attempt counts, and how journals become requests."""

from __future__ import annotations

import json
import math
import random

import pytest

from jupyter_mlops.runtime import journal
from jupyter_mlops.runtime.journal import Call, Metric
from jupyter_mlops.tracking import batches
from jupyter_mlops.tracking.batches import MAX_ITEMS, MAX_PAIRS, Journals
from jupyter_mlops.tracking.resume import Resume, Steps
from jupyter_mlops.tracking.shipper import Progress

RUN = "r" * 32


def write(folder, name, *records):
    """A journal of ``(key, value, step)`` and calls."""
    folder.mkdir(exist_ok=True)
    writer = journal.Writer(str(folder / name))
    for record in records:
        if isinstance(record, Call):
            writer.call(record.api, record.body)
        else:
            writer.metric(*record)
    writer.close()
    return folder / name


def drain(journals, final=True):
    """(all groups, bodies of the batches and calls in order)."""
    groups, sent = [], []
    while (group := journals.next(final)) is not None:
        groups.append(group)
        sent += [r if isinstance(r, Call) else json.loads(r[1]) for r in group.requests]
    return groups, sent


def points(sent):
    """(key, value, step) of all metrics, in order."""
    return [(m["key"], m["value"], m["step"]) for b in sent if not isinstance(b, Call) for m in b.get("metrics", [])]


# -- steps


@pytest.mark.parametrize("seed", range(5))
def test_steps_know_what_was_put_in(seed):
    rng = random.Random(seed)
    steps, plain = Steps(), set()
    for _ in range(30):  # pieces of curves, with other spacings, overlapping, and single steps
        first, stride, count = rng.randrange(-50, 400), rng.choice([1, 1, 2, 5, 7]), rng.choice([1, 2, 40])
        for step in range(first, first + stride * count, stride):
            steps.add(step)
            plain.add(step)
    assert {s for s in range(-100, 900) if s in steps} == plain
    assert len(steps) <= 90


@pytest.mark.parametrize("stride", [1, 10, 1000])
def test_evenly_spaced_steps_take_no_memory(stride):
    steps = Steps()
    for step in range(0, 100_000 * stride, stride):
        steps.add(step)
        steps.add(step)  # two points at a step
    assert len(steps) == 1 and 99_999 * stride in steps and (1 in steps) == (stride == 1)
    assert 100_000 * stride not in steps and not steps.only_zero


def admitted(rule, *records):
    kept, dropped = [], 0
    for key, value, step in records:
        got, more = rule.admit(Metric(key, value, step, 1, ""))
        kept += [(m.key, m.value, m.step) for m in got]
        dropped += more
    return kept, dropped


def test_the_first_value_of_a_step_wins(tmp_path):
    earlier = write(tmp_path, "1-0.bin", *(("loss", float(s), s) for s in range(10)), ("few", 1.0, 8))
    rule = Resume([earlier])
    kept, dropped = admitted(rule, *(("loss", -1.0, s) for s in range(8, 12)), ("new", 1.0, 3), ("few", 2.0, 4),
                             ("few", 2.0, 8), ("loss", -2.0, 10), ("loss", -3.0, 10))
    # Points that share a step within the attempt are kept, and steps that nobody had logged below the mark too.
    assert kept == [("loss", -1.0, 10), ("loss", -1.0, 11), ("new", 1.0, 3), ("few", 2.0, 4), ("loss", -2.0, 10),
                    ("loss", -3.0, 10)]
    assert dropped == 3


def test_curves_of_other_runs_are_other_curves(tmp_path):
    folder = tmp_path
    writer = journal.Writer(str(folder / "1-0.bin"))
    writer.metric("loss", 1.0, 5, run=RUN)
    writer.close()
    rule = Resume([folder / "1-0.bin"])
    assert rule.admit(Metric("loss", 2.0, 5, 1, ""))[1] == 0
    assert rule.admit(Metric("loss", 2.0, 5, 1, RUN)) == ([], 1)


def test_final_values_of_both_attempts_count(tmp_path):
    earlier = write(tmp_path, "1-0.bin", ("final", 1.0, 0), ("final", 2.0, 0), ("loss", 1.0, 0))
    rule = Resume([earlier])
    assert admitted(rule, ("final", 3.0, 0)) == ([], 0)  # held back
    again = Resume([earlier], json.loads(json.dumps(rule.state())))  # a new control plane
    assert admitted(again, ("final", 4.0, 0), ("final", 5.0, 0)) == (
        [("final", 3.0, 0), ("final", 4.0, 0), ("final", 5.0, 0)], 0)
    # This one turns out to be a curve.
    assert admitted(again, ("loss", 9.0, 0), ("loss", 9.0, 1), ("loss", 9.0, 0)) == ([("loss", 9.0, 1)], 2)
    assert again.finish() == []
    third = Resume([earlier])
    assert admitted(third, ("final", 3.0, 0)) == ([], 0)
    assert [m.value for m in third.finish()] == [3.0]


# -- groups


def test_full_batches_and_offsets(tmp_path):
    path = write(tmp_path / "journal", "1-0.bin", *(("loss", float(s), s) for s in range(2500)))
    groups, sent = drain(Journals(path.parent, RUN, {}, {}))
    assert [len(b["metrics"]) for b in sent] == [MAX_ITEMS, MAX_ITEMS, 500]
    assert points(sent) == [("loss", float(s), s) for s in range(2500)]
    assert groups[-1].offset == path.stat().st_size
    # From any acknowledged offset the rest follows.
    _, rest = drain(Journals(path.parent, RUN, {"1-0.bin": groups[0].offset}, {}))
    assert points(rest) == [("loss", float(s), s) for s in range(1000, 2500)]


def test_several_runs_and_calls_keep_their_order(tmp_path):
    path = tmp_path / "journal" / "1-0.bin"
    path.parent.mkdir()
    writer = journal.Writer(str(path))
    for step in range(700):
        writer.metric("a", 1.0, step)
        writer.metric("b", float("nan"), step, run=RUN[::-1] + "x")
    writer.call("UpdateRun", {"run_id": "x", "status": "FINISHED"})
    writer.metric("a", math.inf, 700)
    writer.close()
    groups, sent = drain(Journals(path.parent, RUN, {}, {}))
    assert [c.api for c in sent if isinstance(c, Call)] == ["UpdateRun"]
    at = next(i for i, c in enumerate(sent) if isinstance(c, Call))
    assert sum(len(b["metrics"]) for b in sent[:at]) == 1400 and sent[at + 1]["metrics"][0]["value"] == "Infinity"
    assert {m["value"] for b in sent[:at] if b["run_id"] != RUN for m in b["metrics"]} == {"NaN"}
    assert all(len(b["metrics"]) <= MAX_ITEMS for b in sent if not isinstance(b, Call))
    assert groups[-1].offset == path.stat().st_size


def test_params_and_tags_travel_together(tmp_path):
    calls = [Call("LogParam", {"run_id": RUN, "key": f"p{i}", "value": "1"}) for i in range(MAX_PAIRS + 5)]
    calls += [Call("SetTag", {"key": "progress", "value": str(i)}) for i in range(50)]
    calls += [Call("LogBatch", {"run_id": RUN, "params": [{"key": "p0", "value": "2"}], "tags": []})]
    path = write(tmp_path / "journal", "1-0.bin", ("loss", 1.0, 0), *calls)
    _, sent = drain(Journals(path.parent, RUN, {}, {}))
    assert len(sent) <= 3 and all(len(b.get("params", [])) <= MAX_PAIRS for b in sent)
    assert [t["value"] for b in sent for t in b.get("tags", [])] == ["49"]
    # Another value for a param is MLflow's to refuse: it travels, but not beside the first.
    assert [(p["key"], p["value"]) for b in sent for p in b.get("params", []) if p["key"] == "p0"] == [
        ("p0", "1"), ("p0", "2")]
    assert not any({"1", "2"} <= {p["value"] for p in b.get("params", []) if p["key"] == "p0"} for b in sent)


def test_attempts_in_order_and_their_duplicates(tmp_path):
    folder = tmp_path / "journal"
    write(folder, "1-0.bin", *(("loss", 1.0, s) for s in range(10)), ("acc", 0.5, 0))
    with open(folder / "1-0.bin", "ab") as f:
        f.write(journal.pack_metric(b"loss", 1.0, 10, 1)[:-3])  # killed in the middle of a record
    write(folder, "2-0.bin", *(("loss", 2.0, s) for s in range(5, 12)), ("acc", 0.6, 0))
    first = Journals(folder, RUN, {}, {})
    groups, sent = drain(first, final=False)
    assert points(sent) == [*(("loss", 1.0, s) for s in range(10)), ("acc", 0.5, 0), ("loss", 2.0, 10),
                            ("loss", 2.0, 11)]
    assert sum(g.duplicates for g in groups) == 5 and sum(g.damaged for g in groups) > 0
    # Interrupted here: what is held back is found in the state.
    state = {str(g.resume[0]): g.resume[1] for g in groups if g.resume}
    offsets = {g.name: g.offset for g in groups}
    groups, sent = drain(Journals(folder, RUN, offsets, state), final=True)
    assert points(sent) == [("acc", 0.6, 0)] and groups[-1].resume == (2, {"known": [], "held": []})
    assert not drain(Journals(folder, RUN, offsets, {"2": groups[-1].resume[1]}), final=True)[1]


@pytest.mark.parametrize("text", [
    "[" * 100_000, '{"files": {"1-0.bin": {"offset": 1%s}}}' % ("0" * 300),
    '{"resume": {"2": {"known": [1], "held": 5}}}', '{"resume": {"2": {"held": [["", "loss", "x", 0, 0]]}}}',
])
def test_nonsense_in_the_progress_counts_as_none(tmp_path, text):
    path = tmp_path / "delivery.json"
    path.write_text(text)
    progress = Progress(str(path), "r")
    for attempt in (1, 2):
        writer = journal.Writer(str(tmp_path / f"{attempt}-0.bin"))
        writer.metric("loss", 1.0, attempt)
        writer.close()
    reader = Journals(tmp_path, "r", progress.offsets, progress.resume)
    groups = iter(lambda: reader.next(True), None)
    assert [m["step"] for g in groups for batch, _ in g.requests for m in batch.metrics] == [1, 2]


def test_a_journal_of_nothing_but_damage_is_read_in_turns(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "CHUNK", 4096)
    monkeypatch.setattr(batches, "MAX_READ", 8192)
    with open(tmp_path / "1-0.bin", "wb") as f:
        f.truncate(100_000)
    writer = journal.Writer(str(tmp_path / "1-1.bin"))
    writer.metric("loss", 1.0)
    writer.close()
    reader = Journals(tmp_path, "r", {}, {})
    groups = list(iter(lambda: reader.next(True), None))
    assert [g.name for g in groups][:3] == ["1-0.bin", "1-1.bin", "1-0.bin"]
    assert sum(g.damaged for g in groups) == 100_000 and sum(len(g.requests) for g in groups) == 1
