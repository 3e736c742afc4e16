"""Capture through the real gateway and a real scorer: masked, restarted, killed in between."""

from __future__ import annotations

import http.client
import json
import os
import pickle
import signal
import struct
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import wait_for
from serving_bench import Workspace
from sklearn.linear_model import LogisticRegression

from jupyter_mlops.serving import collector, extract, keys, segments

pytestmark = pytest.mark.story

#: Looked for byte by byte in everything that is written.
SECRET = 1234.5678901234
COLUMNS = ("a", "secret", "c")


def save(folder: Path) -> LogisticRegression:
    """A model as MLflow saves one, without the time that importing MLflow takes."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(50, 3))
    model = LogisticRegression().fit(X, (X[:, 0] > 0).astype(np.int64))
    folder.mkdir()
    (folder / "model.pkl").write_bytes(pickle.dumps(model))
    inputs = [{"type": "double", "name": name, "required": True} for name in COLUMNS]
    outputs = [{"type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1]}}]
    (folder / "MLmodel").write_text(json.dumps({
        "flavors": {
            "python_function": {"loader_module": "mlflow.sklearn", "model_path": "model.pkl", "predict_fn": "predict"},
            "sklearn": {"pickled_model": "model.pkl", "serialization_format": "cloudpickle", "code": None},
        },
        "model_uuid": "0", "signature": {"inputs": json.dumps(inputs), "outputs": json.dumps(outputs), "params": None},
    }))
    return model


class Bench(Workspace):
    def __init__(self, folder: Path):
        super().__init__()
        self.model = save(folder / "model")
        self.serving.prepare("digits", "v1", folder / "model")
        self.serving.start("digits", "v1")
        told, records = keys.new_keys()
        self.key = told["primary"]
        self.config = {
            "name": "digits", "auth_mode": "key", "public": True, "keys": records, "traffic": {"v1": 100},
            "deployments": {"v1": {
                "model": {"name": "digits", "version": "7"}, "instance_count": 1, "request_settings": {},
                "data_collector": {"sampling_rate": 1.0, "masked_columns": ["secret"], "max_bytes": 1 << 26,
                                   "collections": {"model_inputs": {"enabled": True}}},
            }},
        }
        self.restart()
        self.serving.publish("digits", self.config)
        wait_for(lambda: self.call("first", 0.0)[0] == 200, 30)
        self.answers: dict[str, list[int]] = {}

    def restart(self):
        self.gateway = self.serving.ensure_gateway()
        self.connection = http.client.HTTPConnection("127.0.0.1", self.gateway["port"], timeout=20)

    def call(self, ident: str, a: float):
        body = json.dumps({"dataframe_split": {"columns": COLUMNS, "data": [[a, SECRET, 1], [-a, SECRET, 2]]}})
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json", "X-Request-Id": ident}
        self.connection.request("POST", "/endpoints/digits/invocations", body, headers)
        response = self.connection.getresponse()
        return response.status, json.loads(response.read())

    def send(self, prefix: str, count: int):
        for number in range(count):
            status, answer = self.call(f"{prefix}{number}", float(number))
            assert status == 200, answer
            self.answers[f"{prefix}{number}"] = answer["predictions"]

    @property
    def capture(self) -> Path:
        return self.home / "endpoints" / "digits" / segments.FOLDER


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    made = Bench(tmp_path_factory.mktemp("models"))
    try:
        yield made
    finally:
        made.close()


def captured(bench, tmp_path):
    """Rows by request, as they are read."""
    with segments.locked(bench.capture):
        collector.collect(bench.capture, everything=True)
        extract.read(bench.capture, tmp_path / "rows.parquet", extract.Wanted())
    found: dict[str, list[dict]] = {}
    for row in pq.ParquetFile(tmp_path / "rows.parquet").read().to_pylist():
        found.setdefault(row["correlation_id"], []).append(row)
    return found


def test_what_was_answered_is_what_was_captured_across_restarts_and_kills(bench, tmp_path):
    bench.send("before-", 20)
    bench.serving.stop_gateway()  # what waits is written
    bench.restart()
    bench.send("after-", 20)
    sent: list[tuple[float, str]] = []
    end = time.monotonic() + 1.8
    while time.monotonic() < end:
        ident = f"under-way-{len(sent)}"
        status, answer = bench.call(ident, 1.0)
        assert status == 200
        bench.answers[ident] = answer["predictions"]
        sent.append((time.monotonic(), ident))
    os.kill(bench.gateway["pid"], signal.SIGKILL)
    killed = time.monotonic()
    found = captured(bench, tmp_path)
    expected = {i for i in bench.answers if not i.startswith("under-way")}
    expected |= {ident for at, ident in sent if at < killed - 1.0}
    assert expected <= found.keys() <= bench.answers.keys() | {"first"} and len(expected) > 60
    for ident, answer in bench.answers.items():
        for number, row in enumerate(found.get(ident, ())):
            assert (row["row"], row["prediction"], row["secret"]) == (number, answer[number], None)
            assert row["c"] == number + 1 and (row["model_name"], row["model_version"]) == ("digits", "7")
            assert 0 < row["latency_ms"] < 20_000 and abs(row["at"].timestamp() - time.time()) < 300
        assert len(found.get(ident, ())) in (0, 2)
    for path in bench.capture.rglob("*"):
        assert path.is_dir() or struct.pack("<d", SECRET) not in path.read_bytes()
    bench.restart()
    bench.send("again-", 3)
    assert len(bench.answers.keys() & captured(bench, tmp_path).keys()) >= len(expected) + 3


def test_the_gateway_counts_what_it_captured(bench):
    import asyncio

    import aiohttp

    async def stats():
        connector = aiohttp.UnixConnector(str(bench.serving.places.admin_socket))
        async with aiohttp.ClientSession(connector=connector) as s, s.get("http://gateway/admin/stats") as answer:
            return (await answer.json())["endpoints"]["digits"]["deployments"]["v1"]

    before = asyncio.run(stats())
    bench.send("counted-", 5)
    after = wait_for(lambda: (s := asyncio.run(stats()))["captured"] >= before["captured"] + 5 and s)
    assert after["capture_dropped"] == 0


def test_truth_is_joined_to_what_the_gateway_captured(bench, tmp_path):
    bench.send("known-", 2)
    segments.add_truth(bench.capture, [{"correlation_id": "known-1", "row": 1, "value": 0}])
    wait_for(lambda: "known-1" in captured(bench, tmp_path))
    found = captured(bench, tmp_path)
    assert [r["truth"] for r in found["known-1"]] == [None, 0] and found["known-0"][0]["truth"] is None


def test_capture_is_switched_off_and_thinned_without_a_restart(bench, tmp_path):
    settings = bench.config["deployments"]["v1"]["data_collector"]
    for name, change in (("off-", None), ("thin-", {**settings, "sampling_rate": 0.0})):
        bench.config["deployments"]["v1"]["data_collector"] = change
        bench.serving.publish("digits", bench.config)
        bench.send(name, 5)
    bench.config["deployments"]["v1"]["data_collector"] = settings
    bench.serving.publish("digits", bench.config)
    bench.send("on-", 5)
    wait_for(lambda: "on-4" in captured(bench, tmp_path))
    assert not [i for i in captured(bench, tmp_path) if i.startswith(("off-", "thin-"))]
