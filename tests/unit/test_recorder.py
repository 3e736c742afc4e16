"""Capture on the gateway's side: records, torn tails, masks, a bounded disk, a full one."""

from __future__ import annotations

import json
import os
import resource
import struct
import threading
import time
from array import array

import numpy as np
import pytest
from conftest import wait_for
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_mlops.runtime import frames
from jupyter_mlops.serving import recorder as recorder_module
from jupyter_mlops.serving import segments
from jupyter_mlops.serving.masking import input_names, mask_input, mask_output
from jupyter_mlops.serving.payload import canonical
from jupyter_mlops.serving.places import Places
from jupyter_mlops.serving.recorder import Recorder
from jupyter_mlops.serving.segments import Captured
from jupyter_mlops.serving.signature import from_document

ON = {"sampling_rate": 1.0, "masked_columns": [], "max_bytes": 1 << 30}
CALLS = st.builds(
    Captured, st.floats(0, 4e9), st.floats(0, 1e6), st.text(max_size=64), st.none() | st.binary(max_size=200),
    st.none() | st.binary(max_size=200), st.booleans(),
)


@pytest.fixture
def places(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder_module, "PAUSE", 0.01)
    places = Places(tmp_path, tmp_path / "run")
    for deployment in ("v1", "v2"):
        places.deployment("digits", deployment).mkdir(parents=True)
        (places.deployment("digits", deployment) / "model.json").write_text('{"signature": {"inputs": []}}')
    models = {d: {"model": {"name": "digits", "version": d[1]}} for d in ("v1", "v2")}
    places.config("digits").write_text(json.dumps({"deployments": models}))
    return places


def score(*numbers: float) -> bytes:
    block = {"type": "double", "names": ["x"], "width": 1, "code": "d", "size": 8 * len(numbers)}
    header = {"form": "frame", "rows": len(numbers), "blocks": [block], "params": {}}
    return frames.pack_score(header, [array("d", numbers).tobytes()])


def calls(places, deployment="v1"):
    """Everything that is in the segments of a deployment, in order."""
    found = []
    spool = places.endpoint("digits") / "capture" / "spool" / deployment
    for path in sorted(spool.glob("*.rec"), key=lambda p: p.stat().st_mtime_ns):
        found += [segments.unpack_call(payload) for kind, payload in segments.read(path) if kind == segments.CALL]
    return found


def fill(recorder, count, deployment="v1", settings=ON, size=0):
    for n in range(count):
        recorder.take("digits", deployment, settings, f"r{n}", b"", score(n) + bytes(size), b'{"predictions":[1]}',
                      time.time(), 2.5)


# -- records ---------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(CALLS, max_size=5), st.data())
def test_records_come_back_and_a_torn_tail_costs_only_the_tail(tmp_path_factory, written, data):
    path = tmp_path_factory.getbasetemp() / "round-trip.rec"
    records = [segments.pack_call(c) for c in written]
    whole = segments.MAGIC + b"".join(records)
    path.write_bytes(whole)
    expected = [Captured(c.at, c.latency_ms, c.ident.encode("utf-8", "replace").decode(), c.body, c.answer, c.raw)
                for c in written]
    assert [segments.unpack_call(p) for _, p in segments.read(path)] == expected
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    outcome = segments.Read()
    found = [segments.unpack_call(p) for _, p in segments.read(path, outcome)]
    ends = [len(segments.MAGIC) + sum(map(len, records[: i + 1])) for i in range(len(records))]
    assert found == expected[: sum(end <= cut for end in ends)]
    clean = cut in (len(segments.MAGIC), *ends) or cut == 0
    assert (outcome.torn == 0) == clean


@settings(max_examples=40, deadline=None)
@given(st.lists(CALLS, min_size=1, max_size=4), st.data())
def test_a_flipped_bit_never_yields_a_record_that_was_not_written(tmp_path_factory, written, data):
    path = tmp_path_factory.getbasetemp() / "flipped.rec"
    whole = bytearray(segments.MAGIC + b"".join(map(segments.pack_call, written)))
    at = data.draw(st.integers(len(segments.MAGIC), len(whole) - 1))
    whole[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(bytes(whole))
    good = [segments.pack_call(c)[segments.HEAD.size :] for c in written]
    outcome = segments.Read()
    assert all(payload in good for _, payload in segments.read(path, outcome))


def test_a_payload_that_is_no_request_is_told_apart():
    for payload in (b"", b"short", struct.pack(">ddBHII", 0, 0, 0, 5, 5, 5) + b"x"):
        with pytest.raises(ValueError, match="no request"):
            segments.unpack_call(payload)


# -- the recorder ----------------------------------------------------------------


def test_requests_are_on_disk_within_a_second_and_private(places):
    recorder = Recorder(places)
    fill(recorder, 3)
    wait_for(lambda: len(calls(places)) == 3, timeout=5)
    fill(recorder, 2, "v2")
    recorder.close()
    assert [c.ident for c in calls(places)] == ["r0", "r1", "r2"]
    assert calls(places)[2].body == score(2) and calls(places)[2].latency_ms == 2.5
    assert recorder.counts("digits", "v1") == (3, 0) and recorder.counts("digits", "v2") == (2, 0)
    capture = places.endpoint("digits") / "capture"
    (segment,) = (capture / "spool" / "v1").iterdir()
    assert segment.stat().st_mode & 0o777 == 0o600 and capture.stat().st_mode & 0o777 == 0o700
    kind, payload = next(segments.read(segment))
    description = json.loads(payload)
    assert kind == segments.DESCRIPTION and description["model"] == {"name": "digits", "version": "1"}
    assert not segments.being_written(segment)


def test_a_segment_is_locked_while_it_is_written_and_a_full_one_is_followed_by_another(places, monkeypatch):
    monkeypatch.setattr(recorder_module, "SEGMENT_BYTES", 2000)
    recorder = Recorder(places)
    spool = places.endpoint("digits") / "capture" / "spool" / "v1"
    for _ in range(3):
        before = len(calls(places))
        fill(recorder, 20)
        wait_for(lambda count=before: len(calls(places)) == count + 20, timeout=5)
    held = sorted(segments.being_written(p) for p in spool.iterdir())
    assert held == [False, False, True]
    recorder.close()
    assert not any(segments.being_written(p) for p in spool.iterdir())


def test_a_new_model_or_mask_begins_a_new_segment(places):
    recorder = Recorder(places)
    fill(recorder, 1)
    wait_for(lambda: len(calls(places)) == 1, timeout=5)
    fill(recorder, 1, settings={**ON, "masked_columns": ["x"]})
    recorder.close()
    spool = places.endpoint("digits") / "capture" / "spool" / "v1"
    told = [json.loads(next(segments.read(p))[1])["masked"] for p in spool.iterdir()]
    assert sorted(told) == [[], ["x"]]


def test_sampling_is_a_share_and_nothing_is_sampled_without_settings():
    recorder = Recorder(Places("/nowhere", "/nowhere"))
    assert not recorder.wants(None) and not recorder.wants({}) and recorder.wants({"sampling_rate": 1})
    share = sum(recorder.wants({"sampling_rate": 0.2}) for _ in range(20_000)) / 20_000
    assert 0.18 < share < 0.22
    off = {"model_inputs": {"enabled": False}, "model_outputs": {"enabled": False}}
    assert not recorder.wants({"sampling_rate": 1.0, "collections": off})
    assert not any(recorder.wants({"sampling_rate": 0.0}) for _ in range(1000))


def test_a_collection_that_is_off_is_not_written(places):
    recorder = Recorder(places)
    fill(recorder, 1, settings={**ON, "collections": {"model_inputs": {"enabled": False}}})
    recorder.close()
    (call,) = calls(places)
    assert call.body is None and json.loads(call.answer) == {"predictions": [1]}


def test_what_the_disk_cannot_take_in_time_is_dropped_and_counted(places, monkeypatch):
    monkeypatch.setattr(recorder_module, "MAX_WAITING", 50)
    monkeypatch.setattr(recorder_module, "PAUSE", 1.0)  # nothing is written while the queue fills
    recorder = Recorder(places)
    fill(recorder, 500)
    recorder.close()
    captured, dropped = recorder.counts("digits", "v1")
    assert captured + dropped == 500 and dropped >= 400 and captured == len(calls(places))
    assert segments.lost(places.endpoint("digits") / "capture") == {"v1": {"queue": dropped}}


def test_the_bytes_that_wait_are_bounded(places, monkeypatch):
    monkeypatch.setattr(recorder_module, "MAX_WAITING_BYTES", 100_000)
    monkeypatch.setattr(recorder_module, "PAUSE", 1.0)
    recorder = Recorder(places)
    fill(recorder, 30, size=20_000)
    recorder.close()
    captured, dropped = recorder.counts("digits", "v1")
    assert captured == 4 and dropped == 26
    assert recorder._bytes == recorder._done


@pytest.mark.parametrize("limit", [200_000, 1_000_000])
def test_the_disk_is_bounded_at_every_moment_and_the_oldest_goes_first(places, limit, monkeypatch):
    monkeypatch.setattr(recorder_module, "PAUSE", 0.0)
    old = places.endpoint("digits") / "capture" / "data" / "deployment=v1" / "date=2020-01-01" / "hour=05"
    old.mkdir(parents=True)
    (old / "part-old.parquet").write_bytes(bytes(limit // 3))
    recorder = Recorder(places)
    capture = places.endpoint("digits") / "capture"
    largest = 0
    for _ in range(60):
        fill(recorder, 20, settings={**ON, "max_bytes": limit}, size=limit // 400)
        wait_for(lambda: not recorder._queue and recorder._bytes == recorder._done, timeout=5, pause=0.002)
        largest = max(largest, sum(k.size for k in segments.kept(capture, "v1")))
    recorder.close()
    assert limit // 2 < largest <= limit
    assert recorder.counts("digits", "v1") == (1200, 0)
    assert not old.exists() and not old.parent.exists()
    losses = segments.lost(capture)["v1"]
    assert losses["removed_files"] >= 2 and losses["removed_bytes"] > limit
    assert calls(places)[-1].ident == "r19"


def test_a_request_that_is_larger_than_its_share_is_left_out(places):
    recorder = Recorder(places)
    fill(recorder, 1, settings={**ON, "max_bytes": 100_000}, size=50_000)
    fill(recorder, 1, settings={**ON, "max_bytes": 100_000})
    recorder.close()
    assert recorder.counts("digits", "v1") == (1, 1)
    assert segments.lost(places.endpoint("digits") / "capture") == {"v1": {"size": 1}}


def test_a_disk_without_room_drops_counts_and_goes_on_when_there_is_room(places):
    recorder = Recorder(places, reserve=1 << 62)
    fill(recorder, 5)
    wait_for(lambda: recorder.counts("digits", "v1")[1] == 5, timeout=5)
    recorder.reserve = 0
    fill(recorder, 2)
    recorder.close()
    assert recorder.counts("digits", "v1") == (2, 5) and len(calls(places)) == 2


def test_a_write_that_fails_in_the_middle_leaves_a_sound_segment(places):
    recorder = Recorder(places, reserve=0)
    fill(recorder, 5)
    wait_for(lambda: len(calls(places)) == 5, timeout=5)
    (segment,) = (places.endpoint("digits") / "capture" / "spool" / "v1").iterdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (segment.stat().st_size + 100, before[1]))
    try:
        fill(recorder, 5)
        wait_for(lambda: recorder.counts("digits", "v1")[1] == 5, timeout=5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    fill(recorder, 5)
    recorder.close()
    assert recorder.counts("digits", "v1") == (10, 5) and len(calls(places)) == 10
    outcome = segments.Read()
    list(segments.read(segment, outcome))
    assert outcome == segments.Read()
    assert segments.lost(places.endpoint("digits") / "capture") == {"v1": {"disk": 5}}


def test_a_deleted_endpoint_does_not_come_back(places):
    import shutil

    recorder = Recorder(places)
    fill(recorder, 1)
    wait_for(lambda: len(calls(places)) == 1, timeout=5)
    shutil.rmtree(places.endpoint("digits"))
    fill(recorder, 3)
    recorder.close()
    assert not places.endpoint("digits").exists()
    assert recorder.counts("digits", "v1") == (1, 3)


def test_closing_ends_the_thread_and_later_requests_are_dropped(places):
    before = threading.active_count()
    recorder = Recorder(places)
    fill(recorder, 10)
    recorder.close()
    assert threading.active_count() == before
    fill(recorder, 1)
    assert recorder.counts("digits", "v1") == (10, 1)


# -- masks -----------------------------------------------------------------------

COLUMNS = [{"name": n, "type": "double", "required": True} for n in ("a", "b", "c")]


def kept_columns(body: bytes) -> dict[str, list[float]]:
    """Numbers by column, as the collector reads them."""
    from jupyter_mlops.serving.bodies import Body

    read = Body(Captured(0.0, 0.0, "", body, None), known=True, names=("a", "b", "c"))
    found: dict[str, list[float]] = {}
    for (names, _, code), data in zip(read.layout[1:], read.data, strict=True):
        values = np.frombuffer(data, code).tolist()
        found.update({name: values[place :: len(names)] for place, name in enumerate(names)})
    return found


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.floats(-1e9, 1e9), min_size=3, max_size=3), min_size=1, max_size=6),
       st.sets(st.sampled_from("abc")))
def test_masked_columns_of_numbers_are_cut_out_and_the_others_stay(rows, masked):
    signature = from_document({"inputs": COLUMNS})
    request = json.dumps({"dataframe_split": {"columns": ["a", "b", "c"], "data": rows}}).encode()
    body = canonical(signature, request, "application/json")
    block = frames.pack_score({"form": "block", "code": "d", "width": 3},
                              [array("d", [v for row in rows for v in row]).tobytes()])
    for form in (body, block):
        kept = mask_input(form, masked, ["a", "b", "c"])
        assert kept_columns(kept) == {n: [row[i] for row in rows] for i, n in enumerate("abc") if n not in masked}


@pytest.mark.parametrize(("inputs", "request_body", "masked", "gone", "stays"), [
    ([{"name": "name", "type": "string"}, {"name": "age", "type": "long"}],
     {"dataframe_records": [{"name": "SECRET", "age": 7}]}, ["name"], b"SECRET", b"age"),
    ([{"type": "string"}], {"inputs": ["SECRET"]}, ["input"], b"SECRET", b"rows"),
    ([{"type": "string"}, {"type": "string"}], {"instances": [["SECRET", "open"]]}, ["0"], b"SECRET", b"open"),
    ([{"name": "t", "type": "tensor", "tensor-spec": {"dtype": "str", "shape": [-1]}},
      {"name": "u", "type": "tensor", "tensor-spec": {"dtype": "str", "shape": [-1]}}],
     {"inputs": {"t": ["SECRET"], "u": ["open"]}}, ["t"], b"SECRET", b"open"),
    ([{"name": "person", "type": "object", "required": True,
       "properties": {"ssn": {"type": "string"}, "city": {"type": "string"}}}],
     {"dataframe_records": [{"person": {"ssn": "SECRET", "city": "open"}}]}, ["ssn"], b"SECRET", b"open"),
])
def test_masks_reach_every_form_of_input(inputs, request_body, masked, gone, stays):
    body = canonical(from_document({"inputs": inputs}), json.dumps(request_body).encode(), "application/json")
    assert gone in body
    kept = mask_input(body, masked, input_names(inputs))
    assert gone not in kept and stays in kept


def test_a_block_whose_columns_are_not_known_is_not_kept_at_all():
    block = frames.pack_score({"form": "block", "code": "d", "width": 2}, [bytes(16)])
    assert mask_input(block, {"a"}, ["a"]) is None and mask_input(block, {"a"}) is None


def test_a_masked_tensor_is_left_out():
    header = {"form": "tensor", "name": None, "dtype": "float32", "inner": [2], "code": "f", "count": 2}
    body = frames.pack_score(header, [bytes(24)])
    kept, blob = frames.unpack_score(mask_input(body, {"input"}))
    assert kept["tensors"] == [] and kept["rows"] == 3 and len(blob) == 0
    kept, blob = frames.unpack_score(mask_input(body, {"other"}))
    assert kept["tensors"][0]["shape"] == [3, 2] and len(blob) == 24


def test_masks_of_params_scripts_and_answers():
    header = {"form": "raw", "rows": 1, "values": [{"ssn": "SECRET", "n": 1}], "params": {"k": "SECRET"}}
    body = frames.pack_score(header)
    assert b"SECRET" not in mask_input(body, {"ssn", "k"})
    script = frames.pack_score({"form": "script", "rows": 1}, [b'{"data": [{"ssn": "SECRET"}], "n": 5}'])
    assert b"SECRET" not in mask_input(script, {"ssn"}) and b'"n":5' in mask_input(script, {"ssn"})
    assert mask_input(frames.pack_score({"form": "script", "rows": 1}, [b"no JSON, SECRET"]), {"ssn"}) is None
    assert mask_input(b'{"data": [{"ssn": "SECRET"}]}', {"ssn"}, raw=True) == b'{"data":[{}]}'
    assert mask_input(b"broken", {"x"}) is None
    answer = b'{"predictions": [{"risk": "SECRET", "n": 1}]}'
    assert mask_output(answer, {"prediction.risk"}) == mask_output(answer, {"risk"}) == b'{"predictions":[{"n":1}]}'
    assert mask_output(answer, {"prediction"}) is None and mask_output(b"broken", {"x"}) is None
    split = b'{"data": {"columns": ["a", "ssn"], "data": [[1, "SECRET"]]}}'
    assert mask_input(split, {"ssn"}, raw=True) == b'{"data":{"columns":["a"],"data":[[1]]}}'


def test_a_masked_column_never_reaches_the_disk(places):
    signature = from_document({"inputs": [{"name": "name", "type": "string"}, {"name": "age", "type": "long"}]})
    body = canonical(signature, b'{"dataframe_records": [{"name": "SECRET-NAME", "age": 7}]}', "application/json")
    recorder = Recorder(places)
    masks = {**ON, "masked_columns": ["name"]}
    recorder.take("digits", "v1", masks, "r1", b"SECRET-NAME", body, b'{"predictions":[1]}', time.time(), 1.0)
    recorder.close()
    assert recorder.counts("digits", "v1") == (1, 0)
    for root, _, files in os.walk(places.home):
        for name in files:
            with open(os.path.join(root, name), "rb") as f:
                assert b"SECRET-NAME" not in f.read()
