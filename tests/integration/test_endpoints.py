"""Endpoints as the control plane drives them: proof before traffic, shares, canaries; with real gateway and scorers."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import sys
import threading
import time
import zipfile
from collections import Counter
from urllib.parse import urlsplit

import pytest
from conftest import Plane, make_home, wait_for
from endpoint_models import (
    DIES,
    DIES_LATER,
    LATE,
    RAISES,
    RAISES_LATER,
    SLOW,
    TIMES,
    Planted,
    registered,
)

pytestmark = pytest.mark.story

ROWS = {"inputs": [[1.0, 0.0], [2.0, 0.0]]}
LATER = {"inputs": [[99.0, 0.0]]}


@pytest.fixture(scope="module")
def plane():
    p = Plane(make_home()).start().mlflow_ready()
    yield p
    p.stop()


@pytest.fixture(scope="module")
def models(plane):
    """name → NAME/VERSION."""
    planted = {
        "twice": Planted(TIMES.format(2)), "thrice": Planted(TIMES.format(3)), "raises": Planted(RAISES),
        "late": Planted(LATE),
        "later": Planted(RAISES_LATER), "dies": Planted(DIES), "dying": Planted(DIES_LATER), "slow": Planted(SLOW),
        "broken": Planted("a", "print('no left_pad', flush=True) or __import__('os')._exit(3)"),
    }
    return {name: registered(plane, name, model) for name, model in planted.items()}


def proof(expected=(2.0, 4.0), **more) -> dict:
    return {"request": ROWS, "expected": list(expected), "origin": "variable", **more}


class At:
    """One endpoint, called as its callers do."""

    def __init__(self, plane: Plane, name: str, **spec) -> None:
        self.plane, self.name = plane, name
        made = plane.put(f"endpoints/{name}", spec, 201)
        self.key = made["keys"].get("primary", "")

    def deploy(self, name: str, model: str, wait=("Ready", "Failed"), **spec) -> dict:
        self.plane.put(f"endpoints/{self.name}/deployments/{name}", {"model": model, **spec}, 201)
        return wait_for(lambda: (d := self.deployment(name))["status"]["phase"] in wait and d, 40)

    def deployment(self, name: str) -> dict:
        return self.plane.get(f"endpoints/{self.name}/deployments/{name}")

    def act(self, action: str, body=None, expect=(200, 202)) -> dict:
        return self.plane.post(f"endpoints/{self.name}/actions/{action}", body or {}, expect)

    @property
    def spec(self) -> dict:
        return self.plane.get(f"endpoints/{self.name}")["spec"]

    @property
    def status(self) -> dict:
        return self.plane.get(f"endpoints/{self.name}")["status"]

    def connection(self) -> http.client.HTTPConnection:
        uri = wait_for(lambda: self.status["scoring_uri"])
        return http.client.HTTPConnection("127.0.0.1", urlsplit(uri).port, timeout=30)

    def call(self, body=ROWS, key: str | None = None, connection=None, **headers) -> tuple[int, dict, str]:
        """(status, JSON, which deployment answered)."""
        c = connection or self.connection()
        c.request("POST", f"/endpoints/{self.name}/invocations", json.dumps(body), {
            "Content-Type": "application/json", "Authorization": f"Bearer {self.key if key is None else key}",
            **headers,
        })
        r = c.getresponse()
        return r.status, json.loads(r.read()), r.headers.get("X-Deployment", "")


class Load:
    """Callers that go on until the block is left; ``seen`` counts (status, deployment)."""

    def __init__(self, at: At, body=ROWS, threads: int = 2, pause: float = 0.0) -> None:
        self.at, self.body, self.pause = at, body, pause
        self.seen: Counter = Counter()
        self.errors: list = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def _run(self) -> None:
        connection = self.at.connection()
        while not self._stop.is_set():
            try:
                status, body, who = self.at.call(self.body, connection=connection)
            except (OSError, http.client.HTTPException) as error:
                self.errors.append(repr(error))
                connection.close()
                continue
            self.seen[status, who] += 1
            if status != 200 and len(self.errors) < 20:
                self.errors.append(body)
            if self.pause:
                time.sleep(self.pause)

    def __enter__(self):
        for t in self._threads:
            t.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for t in self._threads:
            t.join(30)


@pytest.fixture(scope="module")
def main(plane, models):
    """An endpoint whose proven deployment ``blue`` doubles."""
    at = At(plane, "main")
    at.deploy("blue", models["twice"], proof=proof())
    wait_for(lambda: at.status["phase"] == "Ready")
    return at


# -- proof


def test_a_proven_deployment_takes_the_traffic(main):
    status = main.deployment("blue")["status"]
    assert (status["proof"]["passed"], status["proof"]["kind"], status["proof"]["rows"]) == (True, "equal", 2)
    assert status["ready_at"] and status["instances"] == {"wanted": 1, "ready": 1}
    assert main.status["traffic"] == {"blue": 100}
    assert main.call() == (200, {"predictions": [2.0, 4.0]}, "blue")


@pytest.mark.parametrize(
    ("model", "more", "words"),
    [
        ("thrice", {"proof": proof()}, "its answer is not the notebook's: row 0: expected 2.0, got 3.0"),
        ("raises", {"proof": proof()}, "the model raised on the sample: KeyError"),
        ("dies", {"proof": proof()}, "it ended while it answered the sample"),
        ("twice", {"proof": {"request": {"inputs": [[1.0]]}, "expected": [2.0]}}, "the sample was refused"),
        ("broken", {}, "the scorer ended before it was ready with exit code 3: no left_pad"),
    ],
)
def test_what_fails_its_proof_or_start_never_takes_traffic(main, models, model, more, words):
    before = main.status["traffic"]
    with Load(main, threads=1) as load:
        begun = time.monotonic()
        found = main.deploy("bad", models[model], **more)["status"]
        took = time.monotonic() - begun
    assert found["phase"] == "Failed" and words in found["reason"], found
    assert "\n" not in found["reason"]
    assert not load.errors and set(load.seen) == {(200, "blue")}
    assert took < 10  # of which most is the start of a process
    if model in ("broken", "raises"):
        assert any("left_pad" in line or "planted" in line for line in found["log_tail"]), found["log_tail"]
    assert main.status["traffic"] == before and main.status["phase"] == "Ready"
    main.plane.delete("endpoints/main/deployments/bad")


def test_the_models_own_example_is_tried(plane, main):
    model = registered(plane, "example", Planted(TIMES.format(2)), example=ROWS)
    found = main.deploy("shown", model)["status"]
    assert (found["phase"], found["proof"]["kind"], found["proof"]["passed"]) == ("Ready", "answered", True)
    bad = registered(plane, "example", Planted(RAISES), example=ROWS)
    found = main.deploy("unshown", bad)["status"]
    assert found["phase"] == "Failed" and "raised on the sample" in found["reason"]
    for name in ("shown", "unshown"):
        plane.delete(f"endpoints/main/deployments/{name}")


def test_other_packages_are_named(plane, main):
    twice, thrice = (
        registered(plane, "numeric", Planted(TIMES.format(k), "__import__('numpy') and None")) for k in (2, 3)
    )
    found = main.deploy("odd", twice, proof=proof(packages={"numpy": "0.0.1", "no-such-package": "1"}))
    told = found["status"]["proof"]
    assert found["status"]["phase"] == "Ready", "that alone is no reason to refuse it"
    assert [(p["name"], p["kernel"]) for p in told["packages"]] == [("numpy", "0.0.1")]
    assert "numpy 0.0.1 in the notebook" in told["message"]
    found = main.deploy("wrong", thrice, proof=proof(packages={"numpy": "0.0.1"}))["status"]
    assert found["phase"] == "Failed" and "packages differ: numpy 0.0.1" in found["reason"]
    for name in ("odd", "wrong"):
        plane.delete(f"endpoints/main/deployments/{name}")


def test_the_sample_is_left_out_of_lists(main):
    listed = main.plane.get("endpoints/main/deployments")["items"][-1]["spec"]["proof"]
    assert listed["request"] is None and main.deployment("blue")["spec"]["proof"]["request"] == ROWS


# -- traffic


@pytest.fixture(scope="module")
def pair(plane, models):
    """An endpoint with ``blue`` (doubles, has the traffic) and ``green`` (does, too)."""
    at = At(plane, "pair")
    at.deploy("blue", models["twice"], proof=proof())
    at.deploy("green", models["twice"], proof=proof())
    wait_for(lambda: at.status["traffic"] == {"blue": 100})
    return at


def test_the_second_takes_nothing_by_itself(pair):
    assert {pair.call()[2] for _ in range(5)} == {"blue"}


def test_shares_move_under_load_without_a_lost_request(pair):
    with Load(pair) as load:
        for share in (10, 90, 50, 0, 100, 30):
            answer = pair.act("traffic", {"traffic": {"blue": 100 - share, "green": share}})
            assert answer["status"]["traffic"] == {d: s for d, s in (("blue", 100 - share), ("green", share)) if s}
            time.sleep(0.2)
    assert not load.errors
    assert {status for status, _ in load.seen} == {200} and {who for _, who in load.seen} == {"blue", "green"}
    before = Counter(pair.call()[2] for _ in range(100))
    assert 20 <= before["green"] <= 40, before
    items = pair.plane.get("endpoints/pair/history?limit=10")["items"]
    assert items[0]["action"] == "traffic" and items[0]["by"] == pair.plane.get("/api/v1/whoami")["user"]
    assert items[0]["detail"]["before"] == {"traffic": {"green": 100}}
    assert items[0]["detail"]["after"] == {"traffic": {"blue": 70, "green": 30}}


@pytest.mark.parametrize(
    ("action", "body", "status", "words"),
    [
        ("traffic", {"traffic": {"pink": 100}}, 404, "no deployment 'pink'"),
        ("traffic", {"traffic": {"blue": 99}}, 400, "add up to 99"),
        ("traffic", {}, 400, "give traffic"),
        ("traffic", {"mirror_traffic": {"blue": 10}}, 409, "share of the traffic itself"),
        ("canary", {"deployment": "pink"}, 404, "no deployment 'pink'"),
        ("canary", {"deployment": "green", "percent": 0}, 400, "percent"),
        ("promote", {}, 409, "no canary runs"),
        ("token", {}, 409, "opened by keys"),
        ("token", {"expires_in": 3_000_000}, 400, "expires_in"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(pair, action, body, status, words):
    before = pair.spec
    got, answer, _ = pair.plane.call("POST", f"endpoints/pair/actions/{action}", body)
    assert (got, words in answer["message"]) == (status, True), answer
    assert "\n" not in answer["message"] and pair.spec == before


def test_one_deployment_can_be_asked_for(pair):
    pair.act("traffic", {"traffic": {"blue": 100}})
    path = "endpoints/pair/actions/invoke?deployment="
    status, body, _ = pair.plane.call("POST", path + "green", ROWS)
    assert (status, body) == (200, {"predictions": [2.0, 4.0]})
    assert pair.call(**{"azureml-model-deployment": "green"})[2] == "green"
    status, body, _ = pair.plane.call("POST", path + "pink", ROWS)
    assert status == 404 and "pink" in body["message"]


def test_who_has_traffic_is_not_removed(pair):
    status, body, _ = pair.plane.call("DELETE", "endpoints/pair/deployments/blue")
    assert status == 409 and "'blue' has 100 % of the traffic" in body["message"] and "%mlops traffic" in body["hint"]
    assert pair.call()[0] == 200


def test_what_may_change_while_it_serves(pair, models):
    path = "endpoints/pair/deployments/green"
    spec = pair.deployment("green")["spec"]
    got, answer, _ = pair.plane.call("PUT", path, {**spec, "model": models["thrice"]})
    assert got == 409 and "model differs" in answer["message"]
    pair.plane.put(path, {**spec, "instance_count": 2, "description": "two of them"}, 200)
    wait_for(lambda: pair.deployment("green")["status"]["instances"] == {"wanted": 2, "ready": 2}, 30)
    pair.plane.put(path, {**spec, "instance_count": 1}, 200)
    wait_for(lambda: pair.deployment("green")["status"]["instances"] == {"wanted": 1, "ready": 1}, 30)
    actions = [(i["action"], i["detail"].get("changed")) for i in pair.plane.get("endpoints/pair/history")["items"]]
    assert ("change", ["description", "instance_count"]) in actions


# -- what an endpoint tells of itself, tokens, scripts


def test_its_owner_reads_its_pages_without_a_key(main):
    base = "endpoints/main/"
    main.call()
    stats = main.plane.get(base + "stats")
    blue = stats["deployments"]["blue"]
    assert blue["requests"] > 0 and blue["latency_ms"]["buckets"] and stats["started_at"]
    status, text, headers = main.plane.call("GET", base + "metrics")
    assert status == 200 and headers["Content-Type"].startswith("text/plain") and b'deployment="blue"' in text
    document = main.plane.get(base + "openapi.json")
    assert document["openapi"].startswith("3.") and "/invocations" in document["paths"]
    status, page, headers = main.plane.call("GET", base + "docs")
    assert status == 200 and headers["Content-Type"].startswith("text/html")
    assert "sha256-" in headers["Content-Security-Policy"] and b"actions/invoke" in page
    assert main.key.encode() not in page


def test_a_token_opens_an_endpoint_of_tokens_until_all_are_ended(plane, models):
    at = At(plane, "locked", auth_mode="token")
    assert at.key == "", "keys do not open it: none is told"
    at.deploy("blue", models["twice"], proof=proof())
    wait_for(lambda: at.status["phase"] == "Ready")
    token = at.act("token", {"expires_in": 60})["token"]
    other = at.act("token")["token"]
    assert token.startswith("jmt_") and token != other
    assert at.call(key=token)[0] == 200 and at.call(key=other)[0] == 200
    assert at.call(key="")[0] == at.call(key=token[:-2] + "AA")[0] == 401
    key = plane.post("endpoints/locked/actions/rotate-keys", {"key": "primary"})["value"]
    assert at.call(key=key)[0] == 401, "it is an endpoint of tokens"
    plane.post("endpoints/locked/actions/rotate-keys", {"key": "tokens"})
    assert at.call(key=token)[0] == at.call(key=other)[0] == 401
    assert at.call(key=at.act("token")["token"])[0] == 200
    history = plane.get("endpoints/locked/history")["items"]
    assert [i["action"] for i in history if i["action"] == "token"] == ["token"] * 3
    assert token not in json.dumps(history)
    for path in plane.home.rglob("*"):
        if path.is_file() and "logs" in path.parts:
            assert token.encode() not in path.read_bytes(), path


def test_a_scoring_script_is_deployed_and_proven(plane, main):
    def zipped(**files: str) -> str:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as z:
            for name, text in files.items():
                z.writestr(f"{name}.py", text)
        digest = hashlib.sha256(buffer.getvalue()).hexdigest()
        assert plane.call("PUT", f"blobs/{digest}", buffer.getvalue())[0] == 201
        return digest

    code = "import json\nimport helper\n\ndef run(raw):\n    return helper.total(json.loads(raw)['rows'])\n"
    digest = zipped(score=code, helper="def total(rows):\n    return {'sums': [sum(r) for r in rows]}\n")
    request = {"rows": [[1, 2], [3, 4]]}
    spec = {"code_configuration": {"code": f"blob:{digest}", "scoring_script": "score.py"},
            "interpreter": sys.executable, "proof": {"request": request, "expected": {"sums": [3, 7]}}}
    for wrong, words in (
        ({"code_configuration": {"code": "blob:" + "0" * 64, "scoring_script": "score.py"}}, "was not uploaded"),
        ({"code_configuration": {"code": f"blob:{digest}", "scoring_script": "nope.py"}}, "nope.py"),
        ({"interpreter": ""}, "which Python"),
    ):
        status, body, _ = plane.call("PUT", "endpoints/main/deployments/script", {**spec, **wrong})
        assert status == 422 and words in body["message"], body
    plane.put("endpoints/main/deployments/script", spec, 201)
    found = wait_for(
        lambda: (d := main.deployment("script"))["status"]["phase"] in ("Ready", "Failed") and d["status"], 40
    )
    assert (found["phase"], found["proof"]["kind"]) == ("Ready", "equal"), found
    assert main.call(request, **{"azureml-model-deployment": "script"}) == (200, {"sums": [3, 7]}, "script")
    plane.delete("endpoints/main/deployments/script")

# -- canaries

QUICK = {"percent": 30, "duration": 1.0, "min_requests": 20}


def ended(at: At, timeout: float = 20.0) -> dict:
    return wait_for(lambda: (c := at.status["canary"]) and c["phase"] != "Running" and c, timeout)


def test_a_good_canary_is_promoted(pair):
    pair.act("traffic", {"traffic": {"blue": 100}})
    with Load(pair, pause=0.005) as load:
        begun = pair.act("canary", {"deployment": "green", **QUICK})
        assert begun["spec"]["traffic"] == {"blue": 70, "green": 30}
        assert begun["status"]["canary"]["previous"] == {"blue": 100}
        canary = ended(pair)
    assert canary["phase"] == "Promoted", canary
    assert not load.errors
    assert canary["candidate"]["requests"] >= 20 and canary["candidate"]["errors"] == 0
    assert pair.spec["traffic"] == {"green": 100} and pair.spec["canary"] is None
    assert {pair.call()[2] for _ in range(5)} == {"green"}
    top = pair.plane.get("endpoints/pair/history?limit=1")["items"][0]
    assert (top["action"], top["by"]) == ("promote", "system")
    pair.act("rollback", {"reason": "back to blue"})
    assert pair.spec["traffic"] == {"blue": 100}


@pytest.mark.parametrize(
    ("model", "more", "words"),
    [
        ("later", {}, "failed"),
        ("slow", {"max_latency_ratio": 2.0}, "95th percentile"),
    ],
)
def test_a_planted_bad_model_is_rolled_back(pair, models, model, more, words):
    pair.act("traffic", {"traffic": {"blue": 100}})
    assert pair.deploy("planted", models[model], proof=proof())["status"]["phase"] == "Ready"
    with Load(pair, body=LATER, pause=0.005):
        pair.act("canary", {"deployment": "planted", "percent": 20, "duration": 600, "min_requests": 20, **more})
        canary = ended(pair)
        wait_for(lambda: pair.call(LATER)[2] == "blue")
    assert canary["phase"] == "RolledBack" and words in canary["reason"], canary
    assert pair.spec["traffic"] == {"blue": 100}
    pair.plane.delete("endpoints/pair/deployments/planted")


def test_a_candidate_in_a_crash_loop_is_rolled_back_with_its_cause(pair, models):
    pair.act("traffic", {"traffic": {"blue": 100}})
    pair.deploy("planted", models["dying"], proof=proof())
    with Load(pair, body=LATER, pause=0.01):
        # Errors would end it sooner; here the crash loop shall.
        pair.act("canary", {"deployment": "planted", "percent": 50, "duration": 600, "max_error_rate": 1.0})
        canary = ended(pair, 60)
    assert canary["phase"] == "RolledBack" and "crash loop" in canary["reason"], canary
    failed = pair.deployment("planted")["status"]
    assert failed["phase"] == "Failed" and "crash loop" in failed["reason"] and failed["log_tail"]
    assert pair.call()[0] == 200 and pair.status["phase"] == "Ready"
    pair.plane.delete("endpoints/pair/deployments/planted")


def test_a_canary_and_a_proof_outlive_a_killed_control_plane(pair, models):
    pair.act("traffic", {"traffic": {"blue": 100}})
    with Load(pair, pause=0.01) as load:
        pair.act("canary", {"deployment": "green", "percent": 50, "duration": 6, "min_requests": 20})
        wait_for(lambda: pair.status["canary"]["candidate"]["requests"] > 5)
        pair.deploy("late", models["late"], wait=("Proving",), proof=proof())
        pair.plane.kill()
        time.sleep(1)
        pair.plane.start()
        seen = pair.status["canary"]
        assert seen["phase"] == "Running" and seen["candidate"]["requests"] > 5
        canary = ended(pair, 40)
    assert canary["phase"] == "Promoted", canary
    assert not load.errors, "the gateway went on"
    late = wait_for(lambda: (d := pair.deployment("late"))["status"]["phase"] == "Ready" and d["status"])
    assert late["proof"]["passed"] and late["proof"]["kind"] == "equal"
    # Every request of the trial was counted, those in the gap too.
    answered = load.seen[200, "green"]
    assert canary["candidate"]["requests"] <= answered
    assert canary["candidate"]["requests"] > 8 * answered / 10 - 50, (canary, answered)
