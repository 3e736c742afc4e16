"""Endpoints on a real cluster: deployed, called, shared, replaced under load, scaled, refused, removed."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import ssl
import subprocess
import time
from collections import Counter

import pytest
from cluster_bench import (  # fixtures among them
    Bench,
    bench,
    cluster,
    fresh_namespace,
    models_image,
    namespace,
)

from jupyter_mlops.core.errors import Refused
from jupyter_mlops.kube import pods as reading
from jupyter_mlops.kube.access import role
from jupyter_mlops.serving.kubernetes import manifests
from jupyter_mlops.serving.kubernetes.plan import Order

pytestmark = pytest.mark.cluster
__all__ = ["bench", "cluster", "fresh_namespace", "models_image", "namespace"]


async def load(bench: Bench, url: str, seconds: float, connections: int = 8,
               stop: asyncio.Event | None = None) -> Counter:
    """Calls until the time is over: how often which status or error, and which pods answered."""
    import aiohttp

    seen: Counter = Counter()
    ends = time.monotonic() + seconds

    async def one(session: aiohttp.ClientSession) -> None:
        while time.monotonic() < ends and not (stop and stop.is_set()):
            try:
                async with session.post(f"{url}/endpoints/{bench.endpoint}/invocations", json={"numbers": [1, 2]},
                                        headers={"Authorization": f"Bearer {bench.key}"}) as response:
                    answer = await response.json()
                    good = response.status == 200 and answer["sum"] == 3
                    seen["ok" if good else f"{response.status} {answer.get('message')}"] += 1
                    if good:
                        seen["pod " + answer["pod"]] += 1
                        seen["colour " + answer["colour"]] += 1
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                seen[f"{type(error).__name__}: {error}"] += 1

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
        await asyncio.gather(*(one(session) for _ in range(connections)))
    return seen


def failures(seen: Counter) -> dict:
    return {k: v for k, v in seen.items() if k != "ok" and not k.startswith(("pod ", "colour "))}


def test_deploy_call_and_remove(bench):
    begun = time.monotonic()
    bench.deploy()
    url = bench.url()
    status, answer, headers = bench.call({"numbers": [1, 2, 3]}, url)
    print(f"first answer after {time.monotonic() - begun:.1f} s at {url}")
    assert status == 200 and answer["sum"] == 6 and headers["X-Deployment"] == "blue"
    assert bench.call({}, url, key="wrong")[0] == 401

    async def owner():
        return await bench.driver.invoke(bench.endpoint, b'{"numbers": [5]}', deployment="blue")

    status, body, _ = asyncio.run(owner())
    assert status == 200 and json.loads(body)["sum"] == 5
    stats = bench.driver.stats(bench.endpoint)["endpoints"][bench.endpoint]["deployments"]["blue"]
    assert stats["requests"] >= 2
    status, page, told = asyncio.run(bench.driver.page(bench.endpoint, "metrics"))
    assert status == 200 and b"blue" in page and told["Content-Type"].startswith("text/plain")
    assert b"ready after" in bench.driver.read_log(bench.endpoint, "blue").data
    assert "Secret" in (bench.driver.kube.list("Deployment", bench.driver.gateways.objects(bench.endpoint).names.ours(
        component="scorer"))[0]["metadata"]["annotations"]["jupyter-mlops.io/delivery"])

    bench.driver.remove(bench.endpoint)
    deadline = time.monotonic() + 90
    while left := bench.driver.left(bench.endpoint):
        assert time.monotonic() < deadline, left
        time.sleep(0.5)


def test_traffic_is_shared_and_moved_without_a_lost_request(bench):
    bench.deploy("blue")
    bench.deploy("green")
    url = bench.url()
    bench.publish(blue=80, green=20)

    async def shift() -> tuple[Counter, list[float]]:
        stop = asyncio.Event()
        loading = asyncio.ensure_future(load(bench, url, 60, stop=stop))
        took = []
        for share in (50, 0, 100, 20):
            await asyncio.sleep(1.0)
            begun = time.monotonic()
            await asyncio.to_thread(bench.publish, blue=100 - share, green=share)
            took.append(time.monotonic() - begun)
        stop.set()
        return await loading, took

    seen, took = asyncio.run(shift())
    print(dict(seen), [round(t, 2) for t in took])
    assert not failures(seen) and seen["ok"] > 200
    assert seen["colour blue"] and seen["colour green"]
    seen = asyncio.run(load(bench, url, 5))
    assert 0.1 < seen["colour green"] / seen["ok"] < 0.3
    assert bench.call({"numbers": []}, url, {"azureml-model-deployment": "green"})[1]["colour"] == "green"
    status, answer, _ = bench.call({"numbers": []}, url, {"azureml-model-deployment": "red"})
    assert status == 404 and "blue" in json.dumps(answer)


def test_rolling_update_under_load_loses_nothing(bench):
    bench.deploy("blue", count=2)
    url = bench.url()
    before = {p["metadata"]["name"] for p in bench.driver._pods(bench.endpoint, "blue")}

    async def roll() -> Counter:
        stop = asyncio.Event()
        loading = asyncio.ensure_future(load(bench, url, 240, stop=stop))
        await asyncio.sleep(2.0)
        await asyncio.to_thread(bench.driver.start, bench.endpoint, "blue", "", {"COLOUR": "new"})
        deadline = time.monotonic() + 180
        while True:
            await asyncio.sleep(0.5)
            pods = await asyncio.to_thread(bench.driver._pods, bench.endpoint, "blue")
            if len(pods) == 2 and not before & {p["metadata"]["name"] for p in pods}:
                break
            assert time.monotonic() < deadline, [p["metadata"]["name"] for p in pods]
        await asyncio.sleep(1.0)
        stop.set()
        return await loading

    seen = asyncio.run(roll())
    print({k: v for k, v in seen.items()})
    assert not failures(seen)
    assert seen["ok"] > 500 and seen["colour blue"] > 100 and seen["colour new"] > 100
    # What only the old pods needed has been tidied away.
    bench.until("blue", lambda _: True)
    kept = bench.driver.kube.list("Secret", bench.driver.gateways.objects(bench.endpoint).names.ours(
        component="scorer", deployment="blue"))
    assert len(kept) == 2


def test_the_gateway_is_replaced_under_load_and_loses_nothing(bench):
    bench.deploy("blue")
    url = bench.url()
    before = {p["metadata"]["name"] for p in bench.driver.gateways.pods(bench.endpoint)}

    async def roll() -> Counter:
        stop = asyncio.Event()
        loading = asyncio.ensure_future(load(bench, url, 120, stop=stop))
        await asyncio.sleep(1.0)
        bench.driver.gateways.options.pod_labels = {"turn": "2"}
        await asyncio.to_thread(bench.publish)
        deadline = time.monotonic() + 90
        while True:
            await asyncio.sleep(0.5)
            pods = await asyncio.to_thread(bench.driver.gateways.pods, bench.endpoint, False)
            names = {p["metadata"]["name"] for p in pods}
            if names and not names & before and all(map(reading.ready, pods)):
                break
            assert time.monotonic() < deadline, names
        await asyncio.sleep(12.0)  # the old one drains
        stop.set()
        return await loading

    seen = asyncio.run(roll())
    print(dict(seen))
    assert not failures(seen) and seen["ok"] > 300


def test_what_extensions_need_is_taken_by_the_api(bench):
    """No autoscaler runs where there are no metrics; the API checks what would be sent to it."""
    bench.prepare("blue")
    bench.driver.start(bench.endpoint, "blue", count=2)
    objects = bench.driver.gateways.objects(bench.endpoint)
    order = Order("a:1", scaling={"min": 1, "max": 4, "percent": 70})
    made = objects.apply(manifests.autoscaler(objects.names, "blue", order, objects.owner("blue")), dry_run=True)
    assert made["spec"]["maxReplicas"] == 4 and made["metadata"]["uid"]
    assert bench.driver.kube.get("HorizontalPodAutoscaler", made["metadata"]["name"]) is None
    assert bench.driver.kube.get("PodDisruptionBudget", objects.names.deployment("blue"))
    if bench.driver.kube.has_group("gateway.networking.k8s.io"):
        options = bench.spec.serving.model_copy(update={"parent_gateway": "any"})
        made = manifests.route(objects.names, options, {"blue": 100}, {}, ["blue"], objects.owner())
        objects.apply(made, dry_run=True)


def test_instances_come_and_go(bench):
    bench.deploy("blue")
    url = bench.url()
    bench.config["deployments"]["blue"]["instance_count"] = 3
    bench.driver.start(bench.endpoint, "blue", "", {"COLOUR": "blue"}, count=3)
    bench.publish()
    seen = bench.until_ready("blue", count=3)
    assert seen.instances == {"wanted": 3, "ready": 3}
    deadline = time.monotonic() + 40
    while True:
        seen = asyncio.run(load(bench, url, 2))
        if sum(k.startswith("pod ") for k in seen) == 3:
            break
        assert not failures(seen) and time.monotonic() < deadline, seen
    bench.driver.start(bench.endpoint, "blue", "", {"COLOUR": "blue"}, count=1)

    async def shrink() -> Counter:
        return await load(bench, url, 15)

    seen = asyncio.run(shrink())
    assert not failures(seen), seen
    assert bench.until("blue", lambda s: s.instances == {"wanted": 1, "ready": 1}).phase == "ready"


def test_a_pod_that_dies_under_load(bench):
    bench.deploy("blue", count=2)
    url = bench.url()
    asyncio.run(load(bench, url, 3))

    async def kill() -> Counter:
        stop = asyncio.Event()
        loading = asyncio.ensure_future(load(bench, url, 60, stop=stop))
        await asyncio.sleep(2.0)
        pod = (await asyncio.to_thread(bench.driver._pods, bench.endpoint, "blue"))[0]["metadata"]["name"]
        await asyncio.to_thread(bench.driver.kube.delete, "Pod", pod, 0)  # no grace: as if its node were gone
        await asyncio.sleep(6.0)
        stop.set()
        return await loading

    seen = asyncio.run(kill())
    print(dict(seen))
    assert seen["ok"] > 100 and sum(failures(seen).values()) <= 2, failures(seen)
    bench.until_ready("blue", count=2)


def test_a_large_model_is_brought_by_exec_and_passed_on(bench):
    bench.deploy("blue", count=2, extra=random.Random(1).randbytes(40_000_000), wait=180)
    names = bench.driver.gateways.objects(bench.endpoint).names.ours(component="scorer")
    assert len(bench.driver.kube.list("Secret", names)) == 1
    # A pod that comes while nobody of us is there takes the model from another one.
    old = bench.driver._pods(bench.endpoint, "blue")[0]["metadata"]["name"]
    bench.driver.kube.delete("Pod", old, 0)
    deadline = time.monotonic() + 90
    while True:
        pods = [p for p in bench.driver._pods(bench.endpoint, "blue") if not p["metadata"].get("deletionTimestamp")]
        if len(pods) == 2 and all(map(reading.ready, pods)) and old not in {p["metadata"]["name"] for p in pods}:
            break
        assert time.monotonic() < deadline, [p["status"] for p in pods]
        time.sleep(0.5)


@pytest.mark.parametrize(("image", "words"), [
    ("registry.invalid/no/such:1", "cannot be pulled"), ("Not an image", "no name of an image"),
])
def test_a_bad_image_is_told(bench, image, words):
    bench.prepare("blue")
    begun = time.monotonic()
    bench.driver.start(bench.endpoint, "blue", image=image)
    seen = bench.until("blue", lambda s: words in s.reason, wait=20)
    print(f"after {time.monotonic() - begun:.1f} s: {seen.phase}: {seen.reason}")
    assert seen.phase in ("failed", "starting") and time.monotonic() - begun < 8


def test_a_model_that_cannot_be_loaded_is_told_with_its_log(bench):
    bench.prepare("blue")
    bench.driver.start(bench.endpoint, "blue", "", {"BROKEN": "1"})
    seen = bench.until("blue", lambda s: s.phase == "failed", wait=60)
    assert "No module named 'nowhere'" in seen.reason and any("nowhere" in line for line in seen.log_tail)
    bench.driver.start(bench.endpoint, "blue", "", {})
    bench.until_ready("blue")


def test_no_room_and_quota_are_told(bench, cluster, fresh_namespace, tmp_path):
    bench.prepare("blue")
    bench.driver.start(bench.endpoint, "blue", resources={"requests": {"cpu": "1000"}})
    seen = bench.until("blue", lambda s: "not enough cpu" in s.reason, wait=10)
    assert seen.phase == "starting"
    cluster.call("POST", f"/api/v1/namespaces/{fresh_namespace}/resourcequotas", {
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small"},
        "spec": {"hard": {"requests.cpu": "150m", "requests.memory": "4Gi"}}})
    tight = Bench(tmp_path, fresh_namespace)
    tight.prepare("blue")
    begun = time.monotonic()
    tight.driver.start(tight.endpoint, "blue", resources={"requests": {"cpu": "200m", "memory": "64Mi"}})
    seen = tight.until("blue", lambda s: "quota" in s.reason, wait=15)
    print(f"after {time.monotonic() - begun:.1f} s: {seen.reason}")
    assert "'small'" in seen.reason and "requests.cpu=200m asked for" in seen.reason and seen.phase == "starting"


def test_what_the_cluster_does_not_take_is_refused_before_anything_is_made(bench):
    bench.prepare("blue")
    with pytest.raises(Refused, match="less than or equal to cpu limit"):
        bench.driver.start(bench.endpoint, "blue", resources={"requests": {"cpu": "2"}, "limits": {"cpu": "1"}})
    assert bench.driver.left(bench.endpoint) == []


def test_tls_with_the_operators_certificate(cluster, namespace, tmp_path):
    key, certificate = tmp_path / "tls.key", tmp_path / "tls.crt"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                    "-days", "2", "-subj", "/CN=endpoints.test", "-addext", "subjectAltName=DNS:endpoints.test",
                    "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)

    cluster.call("POST", f"/api/v1/namespaces/{namespace}/secrets", {
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "endpoints-tls"}, "type": "kubernetes.io/tls",
        "data": {"tls.crt": base64.b64encode(certificate.read_bytes()).decode(),
                 "tls.key": base64.b64encode(key.read_bytes()).decode()}})
    bench = Bench(tmp_path, namespace, "secure", tls_secret="endpoints-tls")
    try:
        bench.deploy()
        url = bench.url()
        assert url.startswith("https://")
        context = ssl.create_default_context(cafile=str(certificate))
        context.check_hostname = False  # it is called by the node's address here
        assert bench.call({"numbers": [4]}, url, context=context)[1]["sum"] == 4
    finally:
        bench.driver.remove("secure")


def test_a_private_endpoint_has_no_address_outside(namespace, tmp_path):
    bench = Bench(tmp_path, namespace, "private")
    try:
        bench.deploy()
        outside = bench.url()
        assert bench.call({"numbers": [1]}, outside)[0] == 200
        bench.config["public"] = False  # public_network_access: disabled
        bench.publish()
        assert bench.url().endswith(f".{namespace}.svc")
        deadline = time.monotonic() + 20
        while True:
            try:
                assert bench.call({"numbers": [1]}, outside, timeout=2.0)[0] == 200
            except OSError:
                break
            assert time.monotonic() < deadline
            time.sleep(0.5)
        status, _, _ = asyncio.run(bench.driver.invoke("private", b'{"numbers": [1]}'))
        assert status == 200
    finally:
        bench.driver.remove("private")


def test_the_least_role_is_enough(cluster, namespace, bench, tmp_path):
    """A service account with the role of docs, and with nothing else, serves."""
    base = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    cluster.call("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", {
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "mlops"}})
    cluster.call("POST", f"{base}/roles", role("mlops", namespace))
    cluster.call("POST", f"{base}/rolebindings", {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "mlops"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "mlops"},
        "subjects": [{"kind": "ServiceAccount", "name": "mlops", "namespace": namespace}]})
    token = cluster.call("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts/mlops/token", {
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}})
    configuration = cluster.client().configuration
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps({
        "apiVersion": "v1", "kind": "Config", "current-context": "least",
        "clusters": [{"name": "c", "cluster": {"server": configuration.host,
                                               "certificate-authority": configuration.ssl_ca_cert}}],
        "users": [{"name": "u", "user": {"token": token["status"]["token"]}}],
        "contexts": [{"name": "least", "context": {"cluster": "c", "user": "u"}}]}))
    bench.driver.kube.kubeconfig = str(path)
    assert not bench.driver.kube.may("list", "nodes")
    bench.deploy(extra=random.Random(1).randbytes(20_000_000), wait=120)  # exec, too
    assert bench.call({"numbers": [2]})[1]["sum"] == 2
    bench.publish(blue=0)
    bench.driver.remove(bench.endpoint)


def test_a_model_of_scikit_learn(namespace, tmp_path, models_image):
    import mlflow
    import pandas as pd
    from mlflow.models import infer_signature
    from sklearn.linear_model import LinearRegression

    frame = pd.DataFrame({"x": [0.0, 1.0, 2.0], "y": [1.0, 0.0, 2.0]})
    model = LinearRegression().fit(frame, [1.0, 2.0, 3.0])
    mlflow.sklearn.save_model(model, tmp_path / "model", signature=infer_signature(frame, model.predict(frame)),
                              pip_requirements=[])
    bench = Bench(tmp_path, namespace, "linear", image=models_image)
    try:
        bench.driver.prepare("linear", "blue", tmp_path / "model")
        bench.driver.start("linear", "blue", count=1)
        bench.until_ready("blue", 120)
        bench.config.update(deployments={"blue": {"instance_count": 1}}, traffic={"blue": 100})
        bench.publish()
        status, answer, _ = bench.call({"dataframe_split": {"columns": ["x", "y"], "data": [[1, 2], [0, 0]]}})
        assert status == 200
        wanted = model.predict(pd.DataFrame({"x": [1.0, 0.0], "y": [2.0, 0.0]}))
        assert answer["predictions"] == pytest.approx(list(wanted))
        assert bench.call({"dataframe_split": {"columns": ["x"], "data": [[1]]}})[0] == 400
        assert bench.driver.observe("linear", "blue").packages["scikit-learn"]
    finally:
        bench.driver.remove("linear")
