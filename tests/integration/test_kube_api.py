"""The serving driver of clusters against an API over real HTTP with the real client: what it makes, and what it says
when the cluster says no, is slow, or is away."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import time

import pytest
from aiohttp import web
from kube_server import KubeServer, status

from jupyter_mlops.core.errors import (
    BackendTimeout,
    BackendUnreachable,
    Conflict,
    NotFound,
    Refused,
    Unavailable,
)
from jupyter_mlops.core.resources.base import Resource
from jupyter_mlops.core.resources.compute import ComputeSpec
from jupyter_mlops.kube import packs
from jupyter_mlops.kube.client import Kube
from jupyter_mlops.runtime import parcel
from jupyter_mlops.serving.kubernetes import packing
from jupyter_mlops.serving.kubernetes.clusters import Clusters
from jupyter_mlops.serving.kubernetes.driver import KubernetesServing
from jupyter_mlops.serving.local import LocalServing

MLMODEL = """\
flavors:
  python_function: {loader_module: mlflow.sklearn, model_path: model.pkl, predict_fn: predict}
signature:
  inputs: '[{"type": "double", "name": "x", "required": true}]'
  outputs: '[{"type": "double", "required": true}]'
model_uuid: m-1
"""
CONFIG = {"name": "digits", "auth_mode": "key", "public": True, "keys": {"primary": {"salt": "aa", "hash": "bb"}},
          "token_secret": "cc", "traffic": {"blue": 100}, "mirror_traffic": {}, "sticky_header": "",
          "deployments": {"blue": {"model": {"name": "digits", "version": "1"}, "instance_count": 2}}}


@pytest.fixture
def server():
    server = KubeServer().start()
    yield server
    server.stop()


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "MLmodel").write_text(MLMODEL)
    (folder / "model.pkl").write_bytes(random.Random(0).randbytes(2_100_000))
    return folder


@pytest.fixture
def driver(server, tmp_path):
    return make(server, tmp_path)


def make(server, tmp_path, **serving) -> KubernetesServing:
    spec = ComputeSpec(type="kubernetes", namespace="team", context="emulated",
                       serving={"image": "models:1", **serving})
    local = LocalServing(tmp_path / "home", tmp_path / "run")
    return KubernetesServing(local, "default", "gpu", spec, server.kubeconfig(tmp_path))


def kinds(server) -> dict[str, int]:
    found: dict[str, int] = {}
    for plural, _ in server.objects:
        found[plural] = found.get(plural, 0) + 1
    return found


def secret_of(server, part: str, key: str) -> bytes:
    found = [s for s in server.of("secrets") if part in s["metadata"]["name"] and key in s["data"]]
    assert found, [s["metadata"]["name"] for s in server.of("secrets")]
    return base64.b64decode(found[0]["data"][key])


def test_a_deployment_is_made_changed_and_removed(server, driver, model, tmp_path):
    assert driver.prepare("digits", "blue", model)["inputs"]
    driver.start("digits", "blue", "/no/such/python", {"GREETING": "hello"}, count=2)
    assert kinds(server) == {"configmaps": 2, "secrets": 4, "services": 1, "deployments": 1, "poddisruptionbudgets": 1}
    managers = {o["metadata"]["labels"]["app.kubernetes.io/managed-by"] for o in server.objects.values()}
    assert managers == {"jupyter-mlops"}
    made = server.of("deployments")[0]
    assert made["spec"]["replicas"] == 2 and "hello" not in json.dumps(made)

    # The parts that are mounted make the parcel, in the order of the mount.
    volumes = {v["name"]: v for v in made["spec"]["template"]["spec"]["volumes"]}
    sources = volumes["parts"]["projected"]["sources"]
    for number, source in enumerate(sources):
        (tmp_path / (parcel.PART % number)).write_bytes(secret_of(server, source["secret"]["name"], "part"))
    about = json.loads(secret_of(server, "-b-", "pod.json"))
    assert about["env"] == {"GREETING": "hello"} and about["parts"] == len(sources) == 3
    parcel.join(str(tmp_path), len(sources), str(tmp_path / "whole.zip"), about["sha256"])
    parcel.unpack(str(tmp_path / "whole.zip"), str(tmp_path / "got"))
    assert (tmp_path / "got/model/model.pkl").read_bytes() == (model / "model.pkl").read_bytes()

    # The same again changes nothing; another count changes no pod, another environment changes all.
    before = made["spec"]["template"]
    driver.start("digits", "blue", "", {"GREETING": "hello"}, count=3)
    again = server.of("deployments")[0]
    assert again["spec"]["template"] == before and again["spec"]["replicas"] == 3
    driver.start("digits", "blue", "", {"GREETING": "hi"})
    changed = server.of("deployments")[0]
    assert changed["spec"]["template"]["metadata"] != before["metadata"] and changed["spec"]["replicas"] == 3

    driver.remove("digits", "blue")
    assert kinds(server) == {"configmaps": 1}
    driver.remove("digits")
    assert server.objects == {} and driver.left("digits") == []
    driver.remove("digits")  # again: nothing there, nothing wrong


def test_the_gateway_gets_what_it_needs(server, driver, model):
    driver.prepare("digits", "blue", model)
    driver.start("digits", "blue", count=2)
    assert driver.publish("digits", CONFIG)
    config = next(s for s in server.of("secrets") if s["metadata"]["name"].endswith("-config"))
    data = {k: base64.b64decode(v) for k, v in config["data"].items()}
    told = json.loads(data["endpoint.json"])
    assert told["deployments"]["blue"].pop("data_collector") is None and told == CONFIG
    assert json.loads(data["trunk.json"])["blue"]["slots"] == 2
    assert json.loads(data["model-blue.json"])["signature"]["inputs"]
    assert data["token"].decode() == driver.token("digits") == secret_of(server, "-b-", "token").decode()
    gateway = next(d for d in server.of("deployments") if "gateway" in d["metadata"]["name"])
    generation = gateway["metadata"]["generation"]
    _, about = packing.libraries()
    assert json.loads(secret_of(server, "-g-", "about.json")) == about
    assert len([s for s in server.of("secrets") if "-l-" in s["metadata"]["name"]]) == about["parts"]

    # A change of traffic is a change of one Secret: no pod is replaced, nothing is sent twice.
    server.calls.clear()
    assert driver.publish("digits", {**CONFIG, "traffic": {"blue": 0}})
    assert next(d for d in server.of("deployments") if "gateway" in d["metadata"]["name"])["metadata"][
        "generation"] == generation
    assert ("POST", "/api/v1/namespaces/team/secrets") not in server.calls
    assert driver.ensure_gateway("digits")["url"].startswith("http://digits-")
    for public, kind in ((True, "NodePort"), (False, "ClusterIP")):
        driver.gateways.options.service_type = "NodePort"
        driver.publish("digits", {**CONFIG, "public": public})
        services = {s["spec"]["ports"][0]["name"]: s["spec"]["type"] for s in server.of("services")}
        assert services == {"http": kind, "trunk": "ClusterIP"}
    driver.unpublish("digits")
    assert not [o for o in server.objects.values() if "gateway" in json.dumps(o["metadata"]["labels"])]


def test_publishing_waits_for_gateways_and_nudges_them(server, driver, model):
    driver.prepare("digits", "blue", model)
    driver.publish("digits", CONFIG)
    labels = {**driver.gateways.objects("digits").names.labels("gateway")}
    server.put("pods", {"metadata": {"name": "gw-1", "labels": labels}, "spec": {}, "status": {
        "conditions": [{"type": "Ready", "status": "True"}]}})
    asked = []

    def proxied(pod, request, body):
        asked.append((pod, request.headers.get("X-Mlops-Token")))
        nudged = "annotations" in server.objects["pods", "gw-1"]["metadata"]
        want = hashlib.sha256(secret_of(server, "-config", "endpoint.json")).hexdigest()
        return web.json_response({"digest": want if nudged and len(asked) > 3 else "an older one"})

    server.proxied = proxied
    begun = time.monotonic()
    assert driver.publish("digits", {**CONFIG, "traffic": {}})
    assert time.monotonic() - begun < 5 and asked[0] == ("gw-1:8471", driver.token("digits"))


async def test_calls_through_a_gateway(server, driver, model):
    with pytest.raises(Unavailable, match="gateway is not ready"):
        await driver.invoke("digits", b"{}")
    labels = driver.gateways.objects("digits").names.labels("gateway")
    for name in ("gw-1", "gw-2"):
        server.put("pods", {"metadata": {"name": name, "labels": labels}, "spec": {}, "status": {
            "conditions": [{"type": "Ready", "status": "True"}]}})

    def proxied(pod, request, body):
        if request.path.endswith("/admin/stats"):
            return web.json_response({"requests": 2, "endpoints": {"digits": {"deployments": {"blue": {
                "requests": 2, "latency_ms": {"p95": len(pod), "buckets": [[1, 1], [2, 2]]}}}}}})
        assert request.path.endswith("/proxy/endpoints/digits/invocations")
        return web.json_response({"got": body.decode(), "for": request.headers.get("azureml-model-deployment"),
                                  "type": request.headers["Content-Type"]}, status=400,
                                 headers={"X-Deployment": "blue", "X-Request-Id": "r-1", "Retry-After": "2"})

    server.proxied = proxied
    code, answer, headers = await driver.invoke("digits", b"x\n1\n", "text/csv", deployment="blue")
    assert code == 400 and json.loads(answer) == {"got": "x\n1\n", "for": "blue", "type": "text/csv"}
    # As those of this machine's gateway: whoever calls as the owner sees which deployment answered.
    assert (headers["X-Deployment"], headers["X-Request-Id"], headers["Retry-After"]) == ("blue", "r-1", "2")
    assert headers["Content-Type"].startswith("application/json")
    stats = driver.stats("digits")
    blue = stats["endpoints"]["digits"]["deployments"]["blue"]
    assert stats["requests"] == 4 and blue["requests"] == 4 and blue["latency_ms"]["buckets"] == [[1, 2], [2, 4]]
    assert [one["requests"] for one in stats["gateways"]] == [2, 2]


def test_another_ones_object_is_never_taken_over(server, driver, model):
    driver.prepare("digits", "blue", model)
    name = driver.gateways.objects("digits").names.deployment("blue")
    server.put("services", {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": {"team": "b"}}})
    with pytest.raises(Conflict, match="is not ours"):
        driver.start("digits", "blue")
    assert server.objects["services", name]["metadata"]["labels"] == {"team": "b"}
    driver.remove("digits")
    assert [k for k in server.objects] == [("services", name)]


def test_a_secret_of_an_earlier_life_is_made_anew(server, driver, model):
    driver.prepare("digits", "blue", model)
    driver.start("digits", "blue")
    lost = [k for k in server.objects if k[0] == "configmaps"]
    for key in lost:
        del server.objects[key]  # its owner is gone; the collector has not come yet
    driver.start("digits", "blue")
    uid = server.objects["configmaps", driver.gateways.objects("digits").names.deployment("blue")]["metadata"]["uid"]
    stale = [s["metadata"]["name"] for s in server.of("secrets") if s["metadata"]["ownerReferences"][0]["uid"] != uid]
    assert stale == []


@pytest.mark.parametrize(("code", "message", "kind", "words"), [
    (403, 'secrets is forbidden: User "a" cannot create resource "secrets" in API group ""', Refused,
     "no permission to create secrets"),
    (401, "Unauthorized", BackendUnreachable, "no longer accepts its credentials"),
    (429, "slow down", Unavailable, "too busy"),
    (500, "etcdserver: leader changed", BackendUnreachable, "leader changed"),
])
def test_refusals(server, driver, model, code, message, kind, words):
    driver.prepare("digits", "blue", model)
    server.fault = lambda request: status(code, message) if request.method in ("POST", "PATCH") else None
    with pytest.raises(kind, match=words):
        driver.start("digits", "blue")
    assert server.objects == {}
    server.fault = None
    driver.start("digits", "blue")  # nothing is in the way of the next try
    assert server.of("deployments")


def test_what_the_api_refuses_leaves_nothing_half_made(server, driver, model):
    driver.prepare("digits", "blue", model)
    server.fault = lambda request: status(422, "Deployment is invalid: image: Required value") if (
        request.query.get("dryRun") == "All") else None
    with pytest.raises(Refused, match="image: Required value"):
        driver.start("digits", "blue")
    assert server.objects == {}


def test_a_conflict_is_told_as_one(server, driver, model):
    driver.prepare("digits", "blue", model)
    server.fault = lambda request: status(409, "the object has been modified", "Conflict") if (
        request.method == "PATCH" and "deployments" in request.path and not request.query.get("dryRun")) else None
    with pytest.raises(Conflict, match="at the same moment"):
        driver.start("digits", "blue")


def test_namespace_and_context_that_are_not_there(server, tmp_path, model):
    path = server.kubeconfig(tmp_path)
    with pytest.raises(Refused, match="namespace 'nowhere' of compute 'gpu' does not exist"):
        Kube("gpu", "emulated", "nowhere", path).list("Pod")
    with pytest.raises(BackendUnreachable, match="kubeconfig of compute 'gpu' has no context 'another'"):
        Kube("gpu", "another", "team", path).version()
    with pytest.raises(BackendUnreachable, match="kubeconfig"):
        Kube("gpu", "", "team", str(tmp_path / "none")).version()
    wrong = Kube("gpu", "emulated", "team", server.kubeconfig(tmp_path, token="old"))
    with pytest.raises(BackendUnreachable, match="no longer accepts"):
        wrong.version()


def test_permissions_and_extensions(server, driver):
    assert driver.kube.version() == "v1.36.0"
    assert driver.kube.may("create", "deployments", "apps") and not driver.kube.may("list", "nodes")
    assert driver.kube.has_group("apps") and not driver.kube.has_group("metrics.k8s.io")


def test_an_outage_is_told_and_over(server, driver, model):
    driver.prepare("digits", "blue", model)
    driver.start("digits", "blue")
    server.delay = 30.0
    begun = time.monotonic()
    with pytest.raises(BackendTimeout, match=r"did not answer within 0\.5 s"):
        driver.kube.call("GET", "/version", timeout=0.5)
    assert time.monotonic() - begun < 3
    server.delay = 0.0
    port = server.port
    server.stop()
    with pytest.raises(BackendUnreachable, match="nobody listens there"):
        driver.observe("digits", "blue")
    back = KubeServer()
    back.port, back.objects = port, server.objects
    back.start()
    try:
        assert driver.observe("digits", "blue").reason == "the cluster creates its pods"
    finally:
        back.stop()
    server.start = server.stop = lambda: None


def test_without_image_or_model(server, tmp_path, driver, model):
    with pytest.raises(NotFound, match="not prepared"):
        driver.start("digits", "blue")
    bare = make(server, tmp_path, image="")
    bare.prepare("digits", "blue", model)
    with pytest.raises(Refused, match="no image for serving"):
        bare.start("digits", "blue")
    with pytest.raises(Refused, match="no image for serving"):
        bare.publish("digits", CONFIG)
    bare.start("digits", "blue", image="own:2")
    assert server.of("deployments")[0]["spec"]["template"]["spec"]["containers"][0]["image"] == "own:2"
    assert bare.observe("nothing", "here").phase == "absent"


def test_scaling_needs_metrics(server, driver, model):
    scale = {"type": "target_utilization", "min_instances": 2, "max_instances": 5, "target_utilization_percentage": 60}
    driver.prepare("digits", "blue", model)
    driver.start("digits", "blue", scale=scale)
    assert server.of("deployments")[0]["spec"]["replicas"] == 2 and not server.of("horizontalpodautoscalers")
    server.groups.add("metrics.k8s.io")
    driver.kube._groups.clear()
    driver.start("digits", "blue", scale=scale)
    scaler = server.of("horizontalpodautoscalers")[0]["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (2, 5)
    assert scaler["metrics"][0]["resource"]["target"]["averageUtilization"] == 60
    driver.start("digits", "blue", scale={"type": "default"}, count=1)
    assert not server.of("horizontalpodautoscalers") and server.of("deployments")[0]["spec"]["replicas"] == 1


def test_a_large_model_is_brought_by_exec_and_resumed(server, driver, model, tmp_path, monkeypatch):
    monkeypatch.setattr(packs, "MAX_PARTS", 1)
    monkeypatch.setattr("jupyter_mlops.serving.kubernetes.driver.WORK", str(tmp_path / "pod"))
    driver.spec.serving.python = "python3"
    (tmp_path / "pod").mkdir()
    (model / "model.pkl").write_bytes(random.Random(0).randbytes(9_000_000))
    driver.prepare("digits", "blue", model)
    driver.start("digits", "blue")
    made = server.of("deployments")[0]
    assert not [s for s in server.of("secrets") if "-m-" in s["metadata"]["name"]]
    assert "one pod" in made["metadata"]["annotations"]["jupyter-mlops.io/delivery"]
    server.put("pods", {
        "metadata": {"name": "p-1", "labels": made["spec"]["template"]["metadata"]["labels"],
                     "annotations": made["spec"]["template"]["metadata"]["annotations"]},
        "spec": {}, "status": {"phase": "Running", "conditions": [], "containerStatuses": [
            {"name": "scorer", "ready": False, "restartCount": 0, "state": {"running": {
                "startedAt": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}}}]}})
    server.cut = 4_000_000
    reasons, have = set(), 0
    deadline = time.monotonic() + 20
    while not (tmp_path / "pod/parcel.zip").exists():
        assert time.monotonic() < deadline, reasons
        seen = driver.observe("digits", "blue")
        assert seen.phase == "starting"
        reasons.add(seen.reason)
        if (tmp_path / "pod/parcel.zip.part").exists():
            have = max(have, (tmp_path / "pod/parcel.zip.part").stat().st_size)
        time.sleep(0.05)
    about = json.loads(secret_of(server, "-b-", "pod.json"))
    assert parcel.sha256(str(tmp_path / "pod/parcel.zip")) == about["sha256"] and about["peers"]
    assert server.cut == 0 and have >= 1_000_000  # it was cut off once, and went on
    assert any("bringing the model (9 MB)" in r for r in reasons)


def test_events_are_read_of_pods_that_wait_for_a_while(server, driver, model):
    driver.prepare("digits", "blue", model)
    driver.start("digits", "blue")
    made = server.of("deployments")[0]["spec"]["template"]["metadata"]
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 2))
    pod = server.put("pods", {"metadata": {"name": "p-1", "labels": made["labels"], "creationTimestamp": now,
                                           "annotations": made["annotations"]}, "spec": {"nodeName": "n-1"},
                              "status": {"phase": "Pending", "conditions": []}})
    server.put("events", {"metadata": {"name": "e-1"}, "involvedObject": {"name": "p-1"}, "type": "Warning",
                          "reason": "FailedMount", "message": "no such volume"})
    events = ("GET", "/api/v1/namespaces/team/events")
    server.calls.clear()
    assert driver.observe("digits", "blue").reason.startswith("its node pulls") and events not in server.calls
    pod["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    assert "no such volume" in driver.observe("digits", "blue").reason and events in server.calls


def test_logs_of_pods(server, driver):
    labels = driver.gateways.objects("digits").names.labels("scorer", "blue")
    server.put("pods", {"metadata": {"name": "p-1", "labels": labels}})
    chunk = driver.read_log("digits", "blue")
    assert chunk.data == b"log of p-1\nsecond line\n" and chunk.next_offset == len(chunk.data)
    assert driver.read_log("digits", "blue", -6).data == b" line\n"
    assert driver.read_log("digits", "blue", instance=4).data == b""
    assert driver.processes() == [{"kind": "pod", "name": "p-1", "pid": None}]


def test_computes_of_a_workspace(server, tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_MLOPS_KUBECONFIG", server.kubeconfig(tmp_path))
    clusters = Clusters(LocalServing(tmp_path / "home", tmp_path / "run"), "default")

    def compute(**more) -> Resource:
        spec = {"type": "kubernetes", "namespace": "team", "context": "emulated", **more}
        return Resource(kind="compute", name="gpu", spec=spec, status={})

    local = Resource(kind="compute", name="local", spec={"type": "local"}, status={})
    clusters.take([compute(), local])
    first = clusters.get("gpu")
    assert first is clusters.get("gpu") and clusters.get("local") is None and clusters.get("none") is None
    server.delay = 0.3
    begun = time.monotonic()
    assert clusters.facts("gpu")["phase"] == "Unreachable" and time.monotonic() - begun < 0.2  # nobody waits for it
    server.delay = 0.0
    deadline = time.monotonic() + 10
    while (facts := clusters.facts("gpu"))["phase"] != "Ready":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert facts["reason"] == "Kubernetes v1.36.0, namespace team; no permission to list events"
    clusters.take([compute(namespace="other"), local])
    assert clusters.get("gpu") is not first
    other = Clusters(LocalServing(tmp_path / "home2", tmp_path / "run2"), "default")
    other.take([compute()])
    again = Clusters(LocalServing(tmp_path / "home", tmp_path / "run"), "default")
    again.take([compute()])
    names = [c.get("gpu").gateways.objects("digits").names.anchor for c in (clusters, other, again)]
    assert names[0] == names[2] != names[1]  # the same workspace again; another one of the same name
