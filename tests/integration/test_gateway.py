"""The gateway under load and under attack: batches, shares, mirrors, retries, and clients that behave badly."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest
from conftest import wait_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from load import Load, request_bytes
from serving_bench import Workspace
from serving_models import save_all

from jupyter_mlops.serving import keys, tokens
from jupyter_mlops.serving.local import LocalServing

COLUMNS = ["a", "b"]

#: Answers the sum of each row, says which process it is, and does as its first value asks.
ODD = '''
import os, time
import numpy as np
from mlflow.models import set_model
import mlflow

class Odd(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        values = model_input.to_numpy()
        if (values[:, 0] == -666).any():
            os._exit(9)
        if (values[:, 0] == -1).any():
            raise ValueError("minus one")
        if (values[:, 0] < -1000).any():
            time.sleep(-values[:, 0].min() / 1e6)
        return values.sum(axis=1) + float(os.environ.get("PLUS", "0"))

set_model(Odd())
'''


class Bench(Workspace):
    """Endpoint ``sum`` with ``blue`` (two instances) and ``green`` (adds one), and ``digits`` of scikit-learn."""

    def __init__(self, folder: Path):
        import mlflow
        import numpy as np
        import pandas as pd
        from mlflow.models import infer_signature

        super().__init__()
        code = folder / "odd.py"
        code.write_text(ODD)
        frame = pd.DataFrame({c: np.array([1.0, 2.0]) for c in COLUMNS})
        mlflow.pyfunc.save_model(folder / "odd", python_model=str(code), pip_requirements=[],
                                 signature=infer_signature(frame, np.array([1.0])))
        models, self.X, self.model = save_all(folder / "more")
        for name, count, env in (("blue", 2, {}), ("green", 1, {"PLUS": "1"})):
            self.serving.prepare("sum", name, folder / "odd")
            self.serving.start("sum", name, env=env, count=count)
        self.serving.prepare("digits", "v1", models["frame"])
        self.serving.start("digits", "v1")
        self.shown, self.records = keys.new_keys()
        self.key = self.shown["primary"]
        self.port = self.serving.ensure_gateway()["port"]
        self.publish()
        self.publish_digits()
        for endpoint, name in (("sum", "blue"), ("sum", "green"), ("digits", "v1")):
            wait_for(lambda e=endpoint, d=name: self.serving.observe(e, d).phase == "ready")
        wait_for(lambda: self.stats()["blue"]["instances"]["ready"] == 2)

    def publish(self, traffic=None, **more):
        settings = more.pop("settings", {})
        self.serving.publish("sum", {
            "name": "sum", "keys": self.records, "traffic": traffic or {"blue": 100}, **more,
            "deployments": {"blue": {"instance_count": 2, "request_settings": settings},
                            "green": {"request_settings": settings}},
        })

    def publish_digits(self, **more):
        self.serving.publish("digits", {"name": "digits", "keys": self.records, "traffic": {"v1": 100},
                                        "deployments": {"v1": {"request_settings": {}, **more}}})

    def stats(self, endpoint="sum"):
        return self.serving.gateway._admin("GET", "/admin/stats")["endpoints"][endpoint]["deployments"]

    def body(self, *rows):
        return {"dataframe_split": {"columns": COLUMNS, "data": [list(r) for r in rows]}}

    def request(self, *rows, headers=None, endpoint="sum"):
        return request_bytes(f"/endpoints/{endpoint}/invocations", self.body(*rows), self.key, headers)

    def ask(self, data, timeout=15.0, end=False):
        """All that comes back for raw bytes, until the peer closes or falls silent."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            connection.sendall(data)
            if end:
                connection.shutdown(socket.SHUT_WR)
            found = b""
            with contextlib.suppress(TimeoutError, ConnectionError):
                while part := connection.recv(65536):
                    found += part
            return found

    def call(self, *rows, headers=None, key=None, endpoint="sum"):
        """(status, JSON, headers) of one request on a connection of its own."""
        raw = request_bytes(f"/endpoints/{endpoint}/invocations", self.body(*rows),
                            self.key if key is None else key, {"Connection": "close", **(headers or {})})
        head, _, body = self.ask(raw).partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        found = dict(line.lower().split(": ", 1) for line in lines[1:])
        return int(lines[0].split()[1]), json.loads(body), found

    def pids(self, deployment):
        listed = self.serving.processes()
        return [p["pid"] for p in listed if p["kind"] == "scorer" and p["name"].startswith(f"sum/{deployment}")]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    made = Bench(tmp_path_factory.mktemp("odd"))
    try:
        yield made
    finally:
        made.close()


# -- routing ------------------------------------------------------------------------


def test_shares_are_kept_and_changed_under_load_without_a_lost_request(bench):
    bench.publish({"blue": 75, "green": 25})
    load = Load(bench.port, bench.request([1, 2]), connections=8, count=4000)
    runner = threading.Thread(target=load.run)
    runner.start()
    wait_for(lambda: len(load.result.latencies) > 1000)
    first = dict(load.result.answers)
    bench.publish({"blue": 0, "green": 100})
    runner.join(60)
    assert load.result.failures == [] and len(load.result.latencies) >= 4000
    assert abs(first["green"] / sum(first.values()) - 0.25) < 0.02
    assert load.result.answers["green"] > 2500
    bench.publish()


def test_a_caller_sticks_and_may_ask_for_a_deployment(bench):
    bench.publish({"blue": 50, "green": 50}, sticky_header="X-User")
    try:
        seen = set()
        for user in range(12):
            answers = {bench.call([1, 2], headers={"X-User": f"u{user}"})[2]["x-deployment"] for _ in range(4)}
            assert len(answers) == 1
            seen |= answers
        assert seen == {"blue", "green"}
        for name in ("azureml-model-deployment", "X-Deployment"):
            status, answer, headers = bench.call([1, 2], headers={name: "green"})
            assert (status, answer["predictions"], headers["x-deployment"]) == (200, [4.0], "green")
        status, error, _ = bench.call([1, 2], headers={"X-Deployment": "nobody"})
        assert status == 404 and "blue, green" in error["hint"]
    finally:
        bench.publish()


def test_a_mirror_is_compared_and_never_answers(bench):
    before = bench.stats()["green"]["mirror"]
    bench.publish(mirror_traffic={"green": 100})
    try:
        for _ in range(20):
            status, answer, headers = bench.call([1, 2])
            assert (status, answer["predictions"], headers["x-deployment"]) == (200, [3.0], "blue")
        assert bench.call([-1, 2])[0] == 424
        wait_for(lambda: bench.stats()["green"]["mirror"]["compared"] - before["compared"] == 20)
        assert bench.stats()["green"]["mirror"]["different"] - before["different"] == 20
    finally:
        bench.publish()


def test_a_deployment_that_is_still_to_be_proven_is_nobodys_but_the_control_planes(bench):
    config = {"name": "sum", "keys": bench.records, "traffic": {"blue": 100, "green": 0},
              "deployments": {"blue": {"instance_count": 2}, "green": {"proving": True}}}
    bench.serving.publish("sum", config)
    try:
        status, error, _ = bench.call([1, 2], headers={"X-Deployment": "green"})
        assert status == 404 and "green" not in error["hint"]
        from jupyter_mlops.runtime.locate import UnixConnection

        connection = UnixConnection(str(bench.serving.places.admin_socket), 5.0)
        connection.request("POST", "/endpoints/sum/invocations", json.dumps(bench.body([1, 2])),
                           {"Content-Type": "application/json", "X-Deployment": "green"})
        assert json.loads(connection.getresponse().read()) == {"predictions": [4.0]}
        connection.close()
    finally:
        bench.publish()


# -- batches -------------------------------------------------------------------------


def test_requests_of_different_callers_are_batched_and_told_apart(bench):
    X = bench.X
    wanted = bench.model.predict(X[:70]).tolist()
    wrong = []

    def caller(first):
        for at in range(first, 64, 8):
            rows = X[at:at + 1 + at % 3]
            raw = request_bytes("/endpoints/digits/invocations",
                                {"dataframe_split": rows.to_dict(orient="split")}, bench.key, {"Connection": "close"})
            answer = json.loads(bench.ask(raw).partition(b"\r\n\r\n")[2])
            if answer != {"predictions": wanted[at:at + len(rows)]}:
                wrong.append((at, answer))

    before = bench.stats("digits")["v1"]
    threads = [threading.Thread(target=caller, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    body = {"dataframe_split": X[:1].to_dict(orient="split")}
    result = Load(bench.port, request_bytes("/endpoints/digits/invocations", body, bench.key), count=2000).run()
    assert result.failures == []
    after = bench.stats("digits")["v1"]
    requests, batches = after["requests"] - before["requests"], after["batches"] - before["batches"]
    assert requests >= 2064 and batches < requests / 2, (requests, batches)
    assert after["rows"] - before["rows"] >= 2064


def test_one_bad_row_in_a_batch_is_its_callers_alone(bench):
    done = threading.Event()
    bad = Load(bench.port, request_bytes("/endpoints/digits/invocations", {"inputs": [1]}, bench.key), connections=2,
               count=300)
    body = {"dataframe_split": bench.X[:2].to_dict(orient="split")}
    good = Load(bench.port, request_bytes("/endpoints/digits/invocations", body, bench.key), connections=8, count=1500)
    runner = threading.Thread(target=lambda: (bad.run(), done.set()))
    runner.start()
    assert good.run().failures == []
    assert done.wait(60)
    assert {f[1][:3] for f in bad.result.failures} == {"400"} and not bad.result.latencies


# -- death ----------------------------------------------------------------------------


def test_a_killed_instance_costs_no_request(bench):
    load = Load(bench.port, bench.request([1, 2]), connections=8, seconds=5)
    runner = threading.Thread(target=load.run)
    runner.start()
    wait_for(lambda: len(load.result.latencies) > 300)
    os.kill(bench.pids("blue")[0], signal.SIGKILL)
    wait_for(lambda: bench.stats()["blue"]["instances"]["ready"] == 1)
    bench.serving.start("sum", "blue", count=2)
    runner.join(60)
    assert len(load.result.failures) <= 1, load.result.failures[:3]
    wait_for(lambda: bench.stats()["blue"]["instances"]["ready"] == 2)


def test_a_request_that_kills_takes_nobody_along(bench):
    before = bench.stats()["blue"]["retried"]
    killer = threading.Thread(target=lambda: statuses.append(bench.call([-666, 0])[0]))
    statuses: list[int] = []
    load = Load(bench.port, bench.request([1, 2]), connections=6, seconds=6)
    runner = threading.Thread(target=load.run)
    runner.start()
    wait_for(lambda: len(load.result.latencies) > 200)
    killer.start()
    for _ in range(60):  # what the gateway or the control plane does in production
        bench.serving.start("sum", "blue", count=2)
        time.sleep(0.1)
    runner.join(60)
    killer.join(60)
    assert statuses == [503]
    assert load.result.failures == [], load.result.failures[:3]
    assert bench.stats()["blue"]["retried"] > before
    wait_for(lambda: bench.stats()["blue"]["instances"]["ready"] == 2)


def test_a_rolling_replacement_under_load_loses_nothing(bench):
    load = Load(bench.port, bench.request([1, 2]), connections=8, seconds=8)
    runner = threading.Thread(target=load.run)
    runner.start()
    wait_for(lambda: len(load.result.latencies) > 200)
    bench.serving.start("sum", "blue", env={"PLUS": "0"}, count=2)  # another environment: both are replaced
    wait_for(lambda: bench.stats()["blue"]["instances"]["ready"] == 2)
    runner.join(60)
    assert load.result.failures == [], load.result.failures[:3]


def test_requests_of_a_removed_deployment_are_answered(bench):
    bench.publish({"green": 100})
    slow = [threading.Thread(target=lambda: got.append(bench.call([-500_000, 1])[0])) for _ in range(3)]
    got: list[int] = []
    for thread in slow:
        thread.start()
    wait_for(lambda: bench.stats()["green"]["queued"] + bench.stats()["green"]["in_flight"] == 3)
    bench.serving.publish("sum", {"name": "sum", "keys": bench.records, "traffic": {"blue": 100},
                                  "deployments": {"blue": {"instance_count": 2}}})
    assert got == [200, 200, 200] or wait_for(lambda: got == [200, 200, 200], 5)
    for thread in slow:
        thread.join()
    bench.publish()


# -- limits ----------------------------------------------------------------------------


def test_a_full_queue_says_when_to_come_back(bench):
    bench.publish({"green": 100}, settings={"max_queue": 3})
    try:
        answers: list[tuple] = []
        callers = [threading.Thread(target=lambda: answers.append(bench.call([-300_000, 1]))) for _ in range(10)]
        for thread in callers:
            thread.start()
        for thread in callers:
            thread.join()
        refused = [a for a in answers if a[0] == 429]
        assert refused and len(refused) < 10 and all(a[0] in (200, 429) for a in answers)
        assert refused[0][1]["code"] == "too_many_requests" and int(refused[0][2]["retry-after"]) >= 1
    finally:
        bench.publish()


def test_pipelined_requests_are_answered_in_order(bench):
    one = request_bytes("/endpoints/sum/invocations", bench.body([1, 2]), bench.key)
    two = request_bytes("/endpoints/sum/invocations", bench.body([-300_000, 2]), bench.key)
    bad = request_bytes("/endpoints/sum/invocations", b"{", bench.key)
    last = request_bytes("/endpoints/sum/invocations", bench.body([5, 5]), bench.key, {"Connection": "close"})
    found = bench.ask(two + one + bad + last)
    bodies = [p for p in found.split(b"\r\n") if p.startswith(b"{")]
    assert [b.partition(b"HTTP/1.1")[0][:30] for b in bodies][:2] == [
        b'{"predictions":[-299998.0]}', b'{"predictions":[3.0]}']
    assert found.count(b"HTTP/1.1 200") == 3 and found.count(b"HTTP/1.1 400") == 1
    assert found.rstrip().endswith(b'{"predictions":[10.0]}')


def test_a_client_that_says_goodbye_early_still_gets_its_answer(bench):
    found = bench.ask(bench.request([1, 2]), end=True)
    assert found.startswith(b"HTTP/1.1 200") and found.endswith(b'{"predictions":[3.0]}')


SMUGGLED = b"POST /endpoints/sum/invocations HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("head", [
    b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
    b"Content-Length: 4\r\nContent-Length: 40\r\n", b"Content-Length: 4, 4\r\n", b"Content-Length: +4\r\n",
    b"Content-Length: 0x4\r\n", b"Content-Length : 4\r\n", b"Transfer-Encoding: xchunked\r\n",
    b"Transfer-Encoding: chunked, identity\r\n", b"Transfer-Encoding: identity, chunked\r\n",
    b"Transfer-Encoding:\x0bchunked\r\n", b"X: y\r\n Content-Length: 4\r\n", b"X: a\nContent-Length: 4\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
])
def test_what_two_servers_may_read_differently_ends_the_connection(bench, head):
    authorization = b"Authorization: Bearer " + bench.key.encode() + b"\r\nContent-Type: application/json\r\n"
    raw = SMUGGLED[:-2] + authorization + head + b"\r\n0\r\n\r\n" + SMUGGLED
    found = bench.ask(raw, timeout=3.0)
    assert found.count(b"HTTP/1.1 ") == 1 and found.startswith((b"HTTP/1.1 400", b"HTTP/1.1 4")), found
    assert b"Connection: close" in found


def test_slow_and_silent_clients_disturb_nobody(bench):
    with contextlib.ExitStack() as stack:
        for text in (b"", b"POST /endp", bench.request([1, 2])[:200], b"POST / HTTP/1.1\r\nX: " + b"a" * 3000) * 25:
            half = stack.enter_context(socket.create_connection(("127.0.0.1", bench.port)))
            half.sendall(text)
        result = Load(bench.port, bench.request([1, 2]), connections=4, count=400).run()
        assert result.failures == []


def test_a_reader_that_does_not_read_is_not_fed(bench):
    with socket.create_connection(("127.0.0.1", bench.port)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(2)
        many = bench.request(*[[1, 2]] * 2000) * 20
        with contextlib.suppress(TimeoutError):
            for _ in range(20):
                connection.sendall(many)
        rss = bench.serving.gateway._admin("GET", "/admin/stats")["rss_bytes"]
        assert rss < 400e6
    assert bench.call([1, 2])[0] == 200


def test_heads_are_bounded(bench):
    for raw, status in ((b"GET /" + b"a" * 60_000 + b" HTTP/1.1\r\n\r\n", b"431"),
                        (b"GET / HTTP/1.1\r\nX: " + b"a" * 60_000 + b"\r\n\r\n", b"431"),
                        (b"GET / HTTP/1.1\r\n" + b"".join(b"x%d: y\r\n" % n for n in range(200)) + b"\r\n", b"431"),
                        (b"GET / HTTP/1.1\r\nX: " + b"a" * 60_000, b"431")):
        assert bench.ask(raw, timeout=3.0).startswith(b"HTTP/1.1 " + status)


@pytest.mark.parametrize("path", [
    "/endpoints/sum/../digits/invocations", "/endpoints/sum/invocations/", "/endpoints/sum/%69nvocations",
    "//endpoints/sum/invocations", "/endpoints/SUM/invocations", "/endpoints/sum\\invocations", "/admin/stats",
    "/endpoints/sum/invocations;x", "http://x/endpoints/sum/invocations", "/endpoints/../admin/info", "*",
    "/endpoints/sum/v2/models/sum/../../invocations", "/endpoints/sum/admin/info",
])
def test_path_tricks_lead_nowhere(bench, path):
    raw = request_bytes(path, bench.body([1, 2]), bench.key, {"Connection": "close"})
    status = int(bench.ask(raw, timeout=5.0).split()[1])
    assert status in (400, 401, 404)


# -- whatever comes ---------------------------------------------------------------------------


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400)
_VALUES = st.recursive(
    _SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=3), v, max_size=3), max_leaves=8)
_FORMS = st.sampled_from(["dataframe_split", "dataframe_records", "inputs", "instances", "params", "columns", "data"])
_DOCUMENTS = st.one_of(
    st.dictionaries(_FORMS, _VALUES, max_size=3), _VALUES,
    st.builds(lambda rows, names: {"dataframe_split": {"columns": names, "data": rows}},
              st.lists(st.lists(_SCALARS, max_size=3), max_size=3),
              st.sampled_from([COLUMNS, ["a"], ["b", "a"], [], 5])),
)
_BODIES = _DOCUMENTS.map(lambda d: json.dumps(d).encode()) | st.binary(max_size=60) | st.builds(
    lambda d, cut: json.dumps(d).encode()[:-cut], _DOCUMENTS, st.integers(1, 5))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(body=_BODIES,
       kind=st.sampled_from(["application/json"] * 4 + ["text/csv", "text/plain", "", "application/json;"]),
       path=st.sampled_from(["sum/invocations", "digits/invocations", "digits/v2/models/digits/infer", "sum/score"]))
def test_no_body_breaks_it(bench, body, kind, path):
    raw = request_bytes(f"/endpoints/{path}", body, bench.key, {"Connection": "close"})
    raw = raw.replace(b"Content-Type: application/json", b"Content-Type: " + kind.encode(), 1)
    head, _, answer = bench.ask(raw).partition(b"\r\n\r\n")
    status = int(head.split()[1])
    assert status in (200, 400, 413, 415), (status, answer)
    if status != 200:
        error = json.loads(answer)
        message = error.get("message") or error.get("error")
        assert message and "\n" not in message and len(message) < 1000


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.data())
def test_no_bytes_break_it(bench, data):
    raw = bytearray(request_bytes("/endpoints/sum/invocations", bench.body([1, 2]), bench.key, {"Connection": "close"}))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at:at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    found = bench.ask(bytes(raw), timeout=3.0, end=True)
    assert not found or int(found.split()[1]) in (200, 400, 401, 404, 405, 408, 413, 415, 424, 431)


def test_every_operation_of_its_own_document_answers_as_declared(bench):
    """schemathesis over the OpenAPI document that the endpoint itself publishes."""
    import schemathesis
    from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance, unsupported_method

    raw = "GET /endpoints/digits/openapi.json HTTP/1.1\r\nConnection: close\r\nAuthorization: Bearer "
    document = json.loads(bench.ask(f"{raw}{bench.key}\r\n\r\n".encode()).partition(b"\r\n\r\n")[2])
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=f"http://127.0.0.1:{bench.port}/endpoints/digits")
    count = 0
    for found in schema.get_all_operations():
        count += 1

        @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        @given(case=found.ok().as_strategy())
        def probe(case):
            case.call_and_validate(headers={"Authorization": f"Bearer {bench.key}"}, timeout=30, excluded_checks=[
                positive_data_acceptance, negative_data_rejection, unsupported_method])

        probe()
    assert count >= 8


# -- credentials --------------------------------------------------------------------------


def test_tokens_open_an_endpoint_that_wants_tokens_and_keys_do_not(bench):
    secret = tokens.new_secret()
    good, _ = tokens.mint("sum", secret, time.time() + 60)
    late, _ = tokens.mint("sum", secret, time.time() - 1)
    other, _ = tokens.mint("digits", secret, time.time() + 60)
    assert bench.call([1, 2], key=good)[0] == 401
    bench.publish(auth_mode="token", token_secret=secret)
    try:
        assert bench.call([1, 2], key=good)[0] == 200
        for wrong in (late, other, good[:-1] + ("A" if good[-1] != "A" else "B"), bench.key, "", "jmt_"):
            assert bench.call([1, 2], key=wrong)[0] == 401
        log = (bench.home / "logs" / "gateway-access.log").read_text()
        assert good not in log and bench.key not in log
    finally:
        bench.publish()


# -- capture ---------------------------------------------------------------------------------


def test_sampled_requests_are_captured_without_masked_columns(bench):
    collector = {"sampling_rate": 1.0, "masked_columns": ["pixel_0_1"],
                 "collections": {"model_inputs": {"enabled": True}, "model_outputs": {"enabled": True}}}
    bench.publish_digits(data_collector=collector)
    try:
        body = {"dataframe_split": bench.X[:2].to_dict(orient="split")}
        result = Load(bench.port, request_bytes("/endpoints/digits/invocations", body, bench.key), connections=2,
                      count=10).run()
        assert result.failures == []
        wait_for(lambda: bench.stats("digits")["v1"]["captured"] >= 10)
        assert list((bench.home / "endpoints" / "digits" / "capture").rglob("*.rec"))
    finally:
        bench.publish_digits()


# -- another address -----------------------------------------------------------------------


def test_tls_where_an_operator_asks_for_it(tmp_path, monkeypatch):
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"

    def make(name):
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate,
                        "-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.2"], check=True,
                       capture_output=True)

    make("first")
    home, runtime = Path(tempfile.mkdtemp(prefix="mlops-tls-")), Path(tempfile.mkdtemp(prefix="mlops-tlr-"))
    serving = LocalServing(home, runtime)
    monkeypatch.setenv("JUPYTER_MLOPS_GATEWAY_ADDRESS", "127.0.0.2:0")
    from jupyter_mlops.core.errors import Refused

    with pytest.raises(Refused, match="TLS only"):
        serving.ensure_gateway()
    monkeypatch.setenv("JUPYTER_MLOPS_GATEWAY_CERTFILE", str(certificate))
    monkeypatch.setenv("JUPYTER_MLOPS_GATEWAY_KEYFILE", str(key))
    try:
        info = serving.ensure_gateway()
        port = int(info["public_url"].rpartition(":")[2])
        assert info["public_url"] == f"https://127.0.0.2:{port}"

        def subject():
            context = ssl.create_default_context(cafile=str(certificate))
            with socket.create_connection(("127.0.0.2", port)) as plain, context.wrap_socket(
                    plain, server_hostname="127.0.0.2") as secure:
                secure.sendall(b"GET /endpoints/x/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert secure.recv(100).startswith(b"HTTP/1.1 401")
                return dict(part[0] for part in secure.getpeercert()["subject"])["commonName"]

        assert subject() == "first"
        make("second")

        def renewed():
            with contextlib.suppress(ssl.SSLError):
                return subject() == "second"

        wait_for(renewed)
        with socket.create_connection(("127.0.0.2", port)) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
            plain.settimeout(3)
            with contextlib.suppress(ConnectionError):
                assert not plain.recv(100).startswith(b"HTTP")
        assert serving.ensure_gateway()["pid"] == info["pid"]
        monkeypatch.delenv("JUPYTER_MLOPS_GATEWAY_ADDRESS")
        assert serving.ensure_gateway()["pid"] != info["pid"]
    finally:
        serving.stop_all()
        shutil.rmtree(home, ignore_errors=True)
        shutil.rmtree(runtime, ignore_errors=True)
