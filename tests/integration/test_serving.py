"""Endpoints for real: models that MLflow saved, one scorer process each, the gateway in front of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import threading
import time
import urllib.error
import urllib.request
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import wait_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_bench import Workspace
from serving_models import save_all

from jupyter_mlops.core.errors import NotFound, ParameterError, Refused, Unavailable
from jupyter_mlops.runtime import frames
from jupyter_mlops.runtime.processes import alive
from jupyter_mlops.serving import keys
from jupyter_mlops.serving.local import LocalServing

pytestmark = pytest.mark.story

SECRETS = {"AWS_SECRET_ACCESS_KEY": "hush-1", "HF_TOKEN": "hush-2", "MLFLOW_TRACKING_TOKEN": "hush-3",
           "JUPYTERHUB_API_TOKEN": "hush-4", "MLFLOW_TRACKING_URI": "http://elsewhere"}


class Bench(Workspace):
    """A workspace with endpoints ``frame``, ``tensor`` and ``echo``, each with a ready deployment ``blue``."""

    def __init__(self, folder: Path):
        self.models, self.X, self.model = save_all(folder)
        super().__init__()
        self.keys: dict[str, dict[str, str]] = {}
        self.records: dict[str, dict] = {}

    def start(self):
        for name in ("frame", "tensor", "echo"):
            self.serving.prepare(name, "blue", self.models[name])
            self.serving.start(name, "blue", env={"MY_SETTING": "here"} if name == "echo" else {})
        self.port = self.serving.ensure_gateway()["port"]
        for name in ("frame", "tensor", "echo"):
            self.keys[name], self.records[name] = keys.new_keys()
            assert self.publish(name)
        for name in ("frame", "tensor", "echo"):
            self.ready(name)

    def publish(self, name, **settings):
        return self.serving.publish(name, {
            "name": name, "keys": self.records[name], "traffic": {"blue": 100},
            "deployments": {"blue": {"request_settings": settings}},
        })

    def ready(self, name):
        def look():
            seen = self.serving.observe(name, "blue")
            assert seen.phase in ("starting", "ready"), seen
            return seen if seen.phase == "ready" else None

        return wait_for(look)

    def call(self, name, body, key="", content_type="application/json", path="invocations", headers=(), method=None):
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/endpoints/{name}/{path}", data, method=method)
        key = key if key is None else key or self.keys[name]["primary"]
        if key:
            request.add_header("Authorization", "Bearer " + key)
        request.add_header("Content-Type", content_type)
        for header, value in headers:
            request.add_header(header, value)
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return response.status, json.loads(response.read()), response.headers
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read()), error.headers


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    before = dict(os.environ)
    os.environ.update(SECRETS)
    made = Bench(tmp_path_factory.mktemp("models"))
    try:
        made.start()
        yield made
    finally:
        made.close()
        for name in SECRETS:
            os.environ.pop(name, None)
        os.environ.update({k: v for k, v in before.items() if k in SECRETS})


ROW = {"n": 1, "x": 2.5, "who": "a", "ok": True}


# -- answers ------------------------------------------------------------------------


def test_answers_are_the_models_own(bench):
    X = bench.X[:50]
    split = {"dataframe_split": X.to_dict(orient="split")}
    status, answer, headers = bench.call("frame", split)
    assert status == 200 and answer == {"predictions": bench.model.predict(X).tolist()}
    assert headers["Content-Type"] == "application/json" and len(headers["X-Request-Id"]) == 16
    assert "aiohttp" not in str(headers) and "Python" not in str(headers)
    assert bench.call("frame", {"dataframe_records": X.to_dict(orient="records")})[1] == answer
    assert bench.call("frame", X.to_csv(index=False).encode(), content_type="text/csv")[1] == answer
    assert bench.call("frame", split, headers=[("X-Request-Id", "mine-1")])[2]["X-Request-Id"] == "mine-1"
    status, answer, _ = bench.call("frame", None, path="health", method="GET")
    assert (status, answer) == (200, {"status": "ready", "deployment": "blue"})


def test_a_tensor_model_with_its_own_method(bench):
    import mlflow.pyfunc

    rows = bench.X.to_numpy()[:7]
    expected = mlflow.pyfunc.load_model(str(bench.models["tensor"])).predict(rows)
    for form in ("inputs", "instances"):
        status, answer, _ = bench.call("tensor", {form: rows.tolist()})
        assert status == 200
        np.testing.assert_allclose(answer["predictions"], expected, rtol=1e-12)


def test_a_pyfunc_gets_the_types_of_its_signature(bench):
    status, answer, _ = bench.call("echo", {"dataframe_records": [{**ROW, "at": "2026-01-31T12:00:00"}]})
    assert status == 200
    assert [p["first"] for p in answer["predictions"]] == ["1", "2.5", "a", "True", "2026-01-31 12:00:00"]
    assert [p["dtypes"] for p in answer["predictions"]][:2] == ["int64", "float64"]
    status, answer, _ = bench.call("echo", {"inputs": ROW, "params": {"mode": "nan"}})
    assert status == 200 and answer["predictions"] == [
        {"v": None, "t": "2026-01-31T00:00:00", "b": "aGk="}, {"v": None, "t": None, "b": ""},
        {"v": 1.0, "t": "2026-02-01T00:00:00", "b": "eA=="}]


def test_invoke_needs_no_key_on_the_owners_socket(bench):
    body = json.dumps({"dataframe_split": bench.X[:3].to_dict(orient="split")}).encode()
    status, answer, headers = asyncio.run(bench.serving.invoke("frame", body, "application/json", 10))
    assert (status, headers["Content-Type"], headers["X-Deployment"]) == (200, "application/json", "blue")
    assert json.loads(answer)["predictions"] == bench.model.predict(bench.X[:3]).tolist()
    assert asyncio.run(bench.serving.invoke("nowhere", body))[0] == 404
    assert asyncio.run(bench.serving.invoke("frame", b"{"))[0] == 400
    for path in (bench.runtime / "gateway-admin.sock", bench.runtime / "gateway.sock",
                 bench.serving.places.scorer_socket("frame", "blue")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


# -- what is refused -------------------------------------------------------------------


def test_wrong_input_is_named(bench):
    good = bench.X[:1].to_dict(orient="records")[0]
    for change, message in (
        ({"pixel_0_0": "dark"}, "column 'pixel_0_0', row 0: expected double, got the string 'dark'"),
        ({"pixel_9_9": 1.0}, "unknown column 'pixel_9_9'"),
    ):
        status, error, _ = bench.call("frame", {"dataframe_records": [{**good, **change}]})
        assert status == 400 and error["code"] == "bad_parameter" and message in error["message"]
    good.pop("pixel_0_0")
    assert "missing column 'pixel_0_0'" in bench.call("frame", {"dataframe_records": [good]})[1]["message"]
    status, error, _ = bench.call("tensor", {"inputs": [[0.0] * 63]})
    assert status == 400 and "shape (1, 63) does not match (-1, 64)" in error["message"]
    status, error, _ = bench.call("echo", {"dataframe_records": [{**ROW, "n": 1.5}]})
    assert status == 400 and "column 'n', row 0: expected long, got the number 1.5" in error["message"]
    status, error, _ = bench.call("echo", {"dataframe_records": [{**ROW, "n": None}]})
    assert status == 400 and "missing value in a column of type long" in error["message"]


def test_without_the_key_there_is_nothing_to_learn(bench):
    answers = []
    for name, key in (("frame", None), ("frame", "jmk_wrong"), ("frame", bench.keys["tensor"]["primary"]),
                      ("nowhere", "jmk_wrong"), ("nowhere", None)):
        status, error, headers = bench.call(name, {"inputs": []}, key=key, headers=[("Cookie", "token=x; _xsrf=y")])
        assert status == 401 and headers["WWW-Authenticate"] == 'Bearer realm="endpoint"'
        answers.append(error)
    assert all(a == answers[0] for a in answers)
    key = bench.keys["frame"]["primary"]
    body = {"dataframe_split": bench.X[:1].to_dict(orient="split")}
    assert bench.call("frame", body, key=None, headers=[("Authorization", "Basic " + key)])[0] == 401
    assert bench.call("frame", body, key=None, headers=[("Authorization", "bearer  " + key)])[0] == 200
    assert bench.call("frame?key=" + key, body, key=None)[0] in (401, 404)
    # The same on the socket that Jupyter's public route uses.
    with socket.socket(socket.AF_UNIX) as public:
        public.connect(str(bench.runtime / "gateway.sock"))
        public.sendall(b"GET /endpoints/frame/health HTTP/1.1\r\nHost: evil.example\r\n\r\n")
        assert public.recv(4096).startswith(b"HTTP/1.1 401")


def test_other_paths_and_methods(bench):
    key = bench.keys["frame"]["primary"]
    for path in ("/", "/endpoints", "/endpoints/frame", "/endpoints/frame/x", "/endpoints/../admin/info", "/admin/info",
                 "/endpoints/%66rame/health", "//endpoints/frame/health", "/endpoints/Frame/health", "/metrics"):
        head = f"Host: x\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n\r\n"
        answer = raw(bench, f"GET {path} HTTP/1.1\r\n{head}")
        assert b" 404 " in answer.split(b"\r\n")[0], path
    assert bench.call("frame", None, method="GET")[0] == 405
    assert bench.call("frame", {}, path="health")[0] == 405
    assert bench.call("frame", {}, content_type="text/plain")[0] == 415
    status, error, _ = bench.call("frame", {}, headers=[("Content-Encoding", "gzip")])
    assert status == 415 and "compressed" in error["message"]


def raw(bench, text):
    """Send bytes as they are, return all that comes back."""
    with socket.create_connection(("127.0.0.1", bench.port), timeout=15) as connection:
        connection.sendall(text if isinstance(text, bytes) else text.encode("latin-1"))
        parts = []
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65536):
                parts.append(part)
        return b"".join(parts)


@pytest.mark.parametrize("text", [
    "{post}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n{key}\r\n0\r\n\r\n",
    "{post}Content-Length: 5\r\nContent-Length: 6\r\n{key}\r\n{{}}   ",
    "{post}Content-Length: -5\r\n{key}\r\n",
    "{post}Transfer-Encoding: chunked\r\n{key}\r\nZZ\r\n{{}}\r\n0\r\n\r\n",
    "{post}Bad Header\r\n{key}\r\n",
    "nonsense\r\n\r\n",
])
def test_malformed_http_is_a_400(bench, text):
    key = "Authorization: Bearer " + bench.keys["frame"]["primary"] + "\r\nConnection: close\r\n"
    post = "POST /endpoints/frame/invocations HTTP/1.1\r\nHost: x\r\n"
    answer = raw(bench, text.format(post=post, key=key))
    assert answer.startswith(b"HTTP/1.1 400 ") or answer.startswith(b"HTTP/1.0 400 "), answer
    for secret in (b"aiohttp", b"Python", bench.keys["frame"]["primary"].encode()):
        assert secret not in answer
    assert answer.count(b"HTTP/1.") == 1


def test_limits(bench):
    assert bench.publish("frame", max_request_bytes=2000, request_timeout_ms=5000)
    try:
        big = json.dumps({"dataframe_split": bench.X[:50].to_dict(orient="split")}).encode()
        status, error, _ = bench.call("frame", big)
        assert status == 413 and "larger than 2000 bytes" in error["message"]
        key = bench.keys["frame"]["primary"]
        chunks = b"".join(b"3e8\r\n" + b" " * 1000 + b"\r\n" for _ in range(3)) + b"0\r\n\r\n"
        head = f"POST /endpoints/frame/invocations HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n" \
               "Transfer-Encoding: chunked\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
        answer = raw(bench, head.encode() + chunks)
        assert answer.startswith(b"HTTP/1.1 413")
    finally:
        assert bench.publish("frame")


def test_a_slow_model_times_out_and_what_waits_behind_it_is_dropped(bench):
    assert bench.publish("echo", request_timeout_ms=400)
    try:
        slow = {"inputs": ROW, "params": {"mode": "sleep", "seconds": 1.0}}
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: bench.call("echo", slow), range(4)))
        assert {a[0] for a in answers} == {504} and "0.4 s" in answers[0][1]["message"]
        # The three that still waited were cancelled: were they computed, this would take longer than is allowed here.
        assert bench.publish("echo", request_timeout_ms=2500)
        assert bench.call("echo", {"inputs": ROW})[0] == 200
    finally:
        assert bench.publish("echo")


def test_a_half_sent_request_blocks_nobody(bench):
    key = bench.keys["frame"]["primary"]
    head = f"POST /endpoints/frame/invocations HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n" \
           "Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
    with contextlib.ExitStack() as stack:
        for text in (head + '{"data', head, "POST /endpoints/frame/invo", "", head[:120]) * 4:
            half = stack.enter_context(socket.create_connection(("127.0.0.1", bench.port)))
            half.sendall(text.encode())
        # Half a frame to the scorer itself, too.
        scorer = stack.enter_context(socket.socket(socket.AF_UNIX))
        scorer.connect(str(bench.serving.places.scorer_socket("frame", "blue")))
        scorer.sendall(frames.pack(frames.BATCH, 1, b"x" * 100)[:50])
        assert bench.call("frame", {"dataframe_split": bench.X[:1].to_dict(orient="split")})[0] == 200
        assert bench.serving.observe("frame", "blue").phase == "ready"


def test_a_broken_frame_costs_its_connection_only(bench):
    path = str(bench.serving.places.scorer_socket("frame", "blue"))
    nonsense = b"".join(frames.pack_batch(5, [b"\xff" * 20]))
    for junk in (b"GET / HTTP/1.1\r\n\r\n", frames.pack(frames.BATCH, 5, b"\xff" * 20), nonsense, b"\xff" * 64):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(path)
            connection.sendall(junk)
            assert frames.receive(connection)[0] == frames.HELLO
            if junk is nonsense:
                kind, ident, body = frames.receive(connection)
                assert (kind, ident) == (frames.ANSWERS, 5) and frames.unpack_answers(body)[0][1] == frames.ERROR
            else:
                with pytest.raises((frames.FrameError, OSError)):
                    frames.receive(connection)
    assert bench.serving.observe("frame", "blue").phase == "ready"


def test_a_model_that_raises_answers_with_its_cause_and_lives(bench):
    pid = bench.serving.observe("echo", "blue").pid
    for mode, message in (("raise", "the model failed: ValueError: cannot open 'weights.bin'"),
                          ("exit", "the model called exit(3)"), ("object", "the model's answer is not JSON")):
        status, error, _ = bench.call("echo", {"inputs": ROW, "params": {"mode": mode}})
        assert status == 424 and error["code"] == "model_error" and message in error["message"]
        assert "/srv" not in json.dumps(error) and "second line" not in json.dumps(error)
    assert bench.call("echo", {"inputs": ROW})[0] == 200
    assert bench.serving.observe("echo", "blue").pid == pid


def test_a_scorer_inherits_no_secret(bench):
    status, answer, _ = bench.call("echo", {"inputs": ROW, "params": {"mode": "env"}})
    assert status == 200 and answer["predictions"]["MY_SETTING"] == "here"
    assert not set(SECRETS) & set(answer["predictions"]) and "hush" not in json.dumps(answer)
    assert int(answer["predictions"]["OMP_NUM_THREADS"]) >= 1


BODIES = st.one_of(
    st.binary(max_size=200),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda v: st.lists(v, max_size=5) | st.dictionaries(
            st.sampled_from(["inputs", "instances", "dataframe_split", "dataframe_records", "columns", "data", "params",
                             "n", "x", "who", "ok", "pixel_0_0"]), v, max_size=5),
        max_leaves=20,
    ).map(lambda v: json.dumps(v).encode()),
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=BODIES, name=st.sampled_from(["frame", "tensor", "echo"]),
       content_type=st.sampled_from(["application/json", "text/csv", "application/json;charset=x", "x"]))
def test_no_body_makes_a_500(bench, body, name, content_type):
    status, answer, _ = bench.call(name, body, content_type=content_type)
    assert status in (200, 400, 415), (status, answer)


# -- keys ------------------------------------------------------------------------------


def test_a_key_is_changed_without_a_restart(bench):
    body = {"dataframe_split": bench.X[:1].to_dict(orient="split")}
    gateway, scorer = bench.serving.gateway_info()["pid"], bench.serving.observe("frame", "blue").pid
    old = bench.keys["frame"]["primary"]
    new = bench.serving.new_key()
    bench.records["frame"]["primary"] = bench.serving.hash_key(new)
    assert bench.publish("frame")
    assert bench.call("frame", body, key=old)[0] == 401
    assert bench.call("frame", body, key=new)[0] == 200
    assert bench.call("frame", body, key=bench.keys["frame"]["secondary"])[0] == 200
    bench.keys["frame"]["primary"] = new
    assert (bench.serving.gateway_info()["pid"], bench.serving.observe("frame", "blue").pid) == (gateway, scorer)


def test_an_endpoint_without_traffic_says_so(bench):
    config = {"name": "frame", "keys": bench.records["frame"], "traffic": {}, "deployments": {}}
    assert bench.serving.publish("frame", config)
    try:
        status, error, headers = bench.call("frame", {"inputs": []})
        assert status == 503 and headers["Retry-After"] and "no deployment with traffic" in error["message"]
        with pytest.raises(ParameterError, match="refused endpoint 'frame'"):
            bench.serving.publish("frame", {**config, "deployments": {"ghost": {}}})
    finally:
        assert bench.publish("frame")
    assert bench.serving.unpublish("frame")
    assert bench.call("frame", {"inputs": []})[0] == 401
    assert bench.publish("frame")


# -- faults -----------------------------------------------------------------------------


def test_a_killed_gateway_comes_back_on_its_port(bench):
    body = {"dataframe_split": bench.X[:1].to_dict(orient="split")}
    before = bench.serving.gateway_info()
    os.kill(before["pid"], signal.SIGKILL)
    wait_for(lambda: bench.serving.gateway_info() is None)
    with pytest.raises(Unavailable):
        asyncio.run(bench.serving.invoke("frame", b"{}"))
    # Two control planes ask for it at once: one gateway.
    other = LocalServing(bench.home, bench.runtime)
    with ThreadPoolExecutor(2) as pool:
        infos = list(pool.map(lambda s: s.ensure_gateway(), (bench.serving, other)))
    assert infos[0]["pid"] == infos[1]["pid"] != before["pid"]
    assert infos[0]["port"] == before["port"]
    assert bench.call("frame", body)[0] == 200
    assert bench.serving.ensure_gateway()["pid"] == infos[0]["pid"]


def test_when_its_port_is_taken_it_keeps_another(bench):
    bench.serving.stop_gateway()
    taken = bench.port
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", taken))
        thief.listen()
        bench.port = bench.serving.ensure_gateway()["port"]
        assert bench.port != taken
    bench.serving.stop_gateway()
    assert bench.serving.ensure_gateway()["port"] == bench.port
    assert bench.call("frame", {"dataframe_split": bench.X[:1].to_dict(orient="split")})[0] == 200


def test_a_killed_scorer_is_started_again(bench):
    body = {"dataframe_split": bench.X[:1].to_dict(orient="split")}
    before = bench.serving.observe("frame", "blue")
    os.kill(before.pid, signal.SIGKILL)
    # By the gateway itself, and by two control planes: one successor.
    other = LocalServing(bench.home, bench.runtime)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda s: s.start("frame", "blue"), (bench.serving, other)))
    after = wait_for(lambda: (o := bench.serving.observe("frame", "blue")).phase == "ready" and o)
    assert after.pid != before.pid and after.restarts == before.restarts + 1
    assert other.observe("frame", "blue").pid == after.pid
    assert bench.call("frame", body)[0] == 200
    bench.serving.start("frame", "blue")
    assert bench.serving.observe("frame", "blue").pid == after.pid


def test_a_model_that_kills_its_process(bench):
    before = bench.serving.observe("echo", "blue")
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(bench.call, "echo", {"inputs": ROW, "params": {"mode": "sleep", "seconds": 0.5}})
        time.sleep(0.2)
        # Its own time, in which the answer to the other leaves the process.
        dying = pool.submit(bench.call, "echo", {"inputs": ROW, "params": {"mode": "die", "seconds": 0.5}})
        assert waiting.result()[0] == 200
        assert dying.result()[0] == 503
    seen = wait_for(lambda: (o := bench.serving.observe("echo", "blue")).phase == "ready" and o)
    assert seen.restarts > before.restarts and bench.call("echo", {"inputs": ROW})[0] == 200
    # The fifth death within five minutes is one too many: the gateway leaves it alone.
    launch = bench.serving.places.instance("echo", "blue", 0) / "launch.json"
    launch.write_text(json.dumps({**json.loads(launch.read_text()), "crashes": [time.time()] * 4}))
    os.kill(seen.pid, signal.SIGKILL)
    seen = wait_for(lambda: (o := bench.serving.observe("echo", "blue")).phase == "failed" and o)
    assert seen.crash_loop and seen.reason.startswith("crash loop: it ended 5 times")
    bench.serving.stop("echo", "blue")
    bench.serving.start("echo", "blue", env={"MY_SETTING": "here"})
    bench.ready("echo")
    assert bench.call("echo", {"inputs": ROW})[0] == 200


def test_a_stopped_scorer_answers_what_is_under_way(bench):
    pid = bench.serving.observe("echo", "blue").pid
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(bench.call, "echo", {"inputs": ROW, "params": {"mode": "sleep", "seconds": 1.0}})
        time.sleep(0.4)
        bench.serving.stop("echo", "blue")
        assert waiting.result()[0] == 200
    seen = bench.serving.observe("echo", "blue")
    assert seen.phase == "absent" and seen.restarts == 0
    wait_for(lambda: not Path(f"/proc/{pid}").exists() or not alive(pid, "x"))
    assert not bench.serving.places.scorer_socket("echo", "blue").exists()
    assert bench.publish("echo", max_queue_wait_ms=300)
    try:
        status, error, headers = bench.call("echo", {"inputs": ROW})
        assert status == 503 and headers["Retry-After"] and error["code"] == "unavailable"
        assert bench.call("echo", None, path="health", method="GET")[0] == 503
    finally:
        assert bench.publish("echo")
    bench.serving.start("echo", "blue", env={"MY_SETTING": "here"})
    bench.ready("echo")


def test_a_gateway_that_is_told_to_stop_answers_first(bench):
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(bench.call, "echo", {"inputs": ROW, "params": {"mode": "sleep", "seconds": 0.8}})
        time.sleep(0.3)
        bench.serving.stop_gateway()
        assert waiting.result()[0] == 200
    assert bench.serving.gateway_info() is None
    assert bench.serving.publish("frame", {"name": "frame", "keys": bench.records["frame"], "traffic": {"blue": 100},
                                           "deployments": {"blue": {}}}) is False
    bench.serving.ensure_gateway()
    assert bench.call("echo", {"inputs": ROW})[0] == 200


def test_a_model_that_cannot_be_loaded_says_why(bench):
    serving = bench.serving
    serving.prepare("broken", "blue", bench.models["broken"])
    serving.start("broken", "blue")
    seen = wait_for(lambda: (o := serving.observe("broken", "blue")).phase != "starting" and o)
    assert seen.phase == "failed" and seen.reason == "the model cannot be loaded: No module named 'flavor_not_here'"
    assert any("flavor_not_here" in line for line in seen.log_tail)
    log = serving.read_log("broken", "blue", -100, 1000)
    assert log.next_offset == log.size and b"flavor_not_here" in log.data
    assert serving.read_log("broken", "blue", 3, 5).data == serving.read_log("broken", "blue", 0, 8).data[3:]
    serving.remove("broken")
    assert not (bench.home / "endpoints" / "broken").exists()
    assert serving.observe("broken", "blue").phase == "absent"
    assert serving.read_log("broken", "blue").size == 0


def test_what_cannot_be_deployed_is_refused(bench, tmp_path):
    serving = bench.serving
    with pytest.raises(Refused) as caught:
        serving.prepare("bare", "blue", bench.models["bare"])
    assert "no signature" in caught.value.message and "input_example=X[:5]" in caught.value.hint
    assert not (bench.home / "endpoints" / "bare").exists()
    with pytest.raises(Refused):
        serving.check_model(tmp_path)
    assert serving.check_model(bench.models["frame"])["inputs"][0]["name"] == "pixel_0_0"
    linked = tmp_path / "linked"
    shutil.copytree(bench.models["frame"], linked)
    (linked / "extra").symlink_to("/etc/passwd")
    with pytest.raises(Refused, match="a link"):
        serving.prepare("linked", "blue", linked)
    with pytest.raises(NotFound):
        serving.start("nowhere", "blue")
    with pytest.raises(Refused, match="no Python at"):
        serving.start("frame", "blue", "/no/such/python")
    for name in ("../x", "a/b", "", "A", ".x", "a" * 41):
        for call in (lambda n: serving.prepare(n, "blue", tmp_path), lambda n: serving.observe("frame", n),
                     lambda n: serving.remove(n), lambda n: serving.publish(n, {}),
                     lambda n: serving.read_log(n, "blue")):
            with pytest.raises(ParameterError):
                call(name)


def test_an_interpreter_that_lacks_our_package(bench, tmp_path, monkeypatch):
    """It gets our runtime as a zip; one that lacks the model's libraries too says which."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    import mlflow

    venv.create(tmp_path / "bare", symlinks=True, with_pip=False)
    venv.create(tmp_path / "full", symlinks=True, with_pip=False)
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    for entry in Path(mlflow.__file__).parents[1].iterdir():
        if not entry.name.lower().startswith(("jupyter_mlops", "_jupyter_mlops", "__editable__", "distutils-")):
            (libraries / entry.name).symlink_to(entry)
    site = next((tmp_path / "full" / "lib").glob("python*/site-packages"))
    (site / "libraries.pth").write_text(str(libraries))
    serving = bench.serving
    serving.prepare("elsewhere", "blue", bench.models["frame"])
    try:
        serving.start("elsewhere", "blue", str(tmp_path / "bare" / "bin" / "python"))
        seen = wait_for(lambda: (o := serving.observe("elsewhere", "blue")).phase != "starting" and o)
        assert seen.phase == "failed" and seen.reason.endswith("No module named 'mlflow'")
        serving.start("elsewhere", "blue", str(tmp_path / "full" / "bin" / "python"))
        seen = wait_for(lambda: (o := serving.observe("elsewhere", "blue")).phase != "starting" and o)
        assert seen.phase == "ready", seen
        assert Path(f"/proc/{seen.pid}/cmdline").read_bytes().startswith(os.fsencode(tmp_path / "full"))
        environment = Path(f"/proc/{seen.pid}/environ").read_bytes().decode()
        assert f"PYTHONPATH={bench.home}/runtime/jupyter_mlops-" in environment
    finally:
        serving.remove("elsewhere")


def test_the_model_is_a_private_copy(bench):
    folder = bench.home / "endpoints" / "frame" / "blue" / "model"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in folder.rglob("*"):
        assert path.stat().st_ino != (bench.models["frame"] / path.relative_to(folder)).stat().st_ino
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077
    before = (folder / "MLmodel").stat().st_ino
    bench.serving.prepare("frame", "blue", bench.models["frame"])
    assert (folder / "MLmodel").stat().st_ino == before  # done already


def test_connections_are_shared_by_many_callers(bench):
    body = {"dataframe_split": bench.X[:2].to_dict(orient="split")}
    expected = bench.model.predict(bench.X[:2]).tolist()
    failures = []

    def ask():
        for _ in range(15):
            status, answer, _ = bench.call("frame", body)
            if (status, answer) != (200, {"predictions": expected}):
                failures.append((status, answer))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_keys_and_bodies_are_in_no_file(bench):
    """Last: after all that the tests above sent."""
    seen = {k for shown in bench.keys.values() for k in shown.values()}
    marks = [k.encode() for k in seen] + [b"hush-"]
    bench.call("echo", {"dataframe_records": [{**ROW, "who": "very-private-name"}]})
    files = [p for p in bench.home.rglob("*") if p.is_file()]
    assert len(files) > 10
    for path in files:
        data = path.read_bytes()
        assert not any(mark in data for mark in marks), path
        if path.suffix == ".log":
            assert b"very-private-name" not in data
    lines = (bench.home / "logs" / "gateway-access.log").read_text().splitlines()
    assert any(" POST frame invocations 200 " in line for line in lines)
