"""An endpoint with a compute, as a control plane drives it on a real cluster: proof, traffic, states, outage, end."""

from __future__ import annotations

import hashlib
import json
import time

import pytest
from cluster_bench import IMAGE, SCRIPT, cluster, models_image, namespace, zipped
from conftest import Plane, make_home, wait_for

from jupyter_mlops.core.errors import Conflict
from jupyter_mlops.magics import commands
from jupyter_mlops.magics.context import Context
from jupyter_mlops.magics.expand import expand
from jupyter_mlops.magics.parser import parse, split

pytestmark = pytest.mark.cluster
__all__ = ["cluster", "models_image", "namespace"]


@pytest.fixture
def plane():
    p = Plane(make_home()).start().mlflow_ready()
    yield p
    p.stop()


def test_from_a_compute_to_an_answer_and_back(plane, cluster, namespace):
    made = plane.put("computes/gpu", {"type": "kubernetes", "namespace": namespace, "serving": {
        "image": IMAGE, "service_type": "NodePort"}})
    assert "token" not in json.dumps(made) and "certificate" not in json.dumps(made)
    ready = wait_for(lambda: (c := plane.get("computes/gpu")["status"])["phase"] == "Ready" and c, 20)
    assert ready["reason"].startswith("Kubernetes v1.") and namespace in ready["reason"]

    code = zipped(SCRIPT)
    digest = hashlib.sha256(code).hexdigest()
    assert plane.call("PUT", f"blobs/{digest}", code)[0] in (200, 201, 204)
    key = plane.put("endpoints/digits", {"compute": "gpu"}, 201)["keys"]["primary"]
    spec = {"code_configuration": {"code": f"blob:{digest}", "scoring_script": "score.py"},
            "environment_variables": {"COLOUR": "blue"}}
    begun = time.monotonic()
    plane.put("endpoints/digits/deployments/blue", spec, 201)

    def phase(name: str) -> dict:
        return plane.get(f"endpoints/digits/deployments/{name}")["status"]

    seen = []

    def settled(name: str):
        status = phase(name)
        if (status["phase"], status["reason"]) not in seen:
            seen.append((status["phase"], status["reason"]))
        return status["phase"] in ("Ready", "Failed") and status

    status = wait_for(lambda: settled("blue"), 120, 0.3)
    print(f"\nready after {time.monotonic() - begun:.1f} s:", seen)
    assert status["phase"] == "Ready" and status["instances"] == {"wanted": 1, "ready": 1}
    endpoint = wait_for(lambda: (e := plane.get("endpoints/digits")["status"])["phase"] == "Ready" and e, 30)
    import urllib.request

    def call(body: dict) -> dict:
        request = urllib.request.Request(endpoint["scoring_uri"], json.dumps(body).encode(), {
            "Authorization": f"Bearer {key}", "Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=20) as response:
            return json.load(response)

    assert call({"numbers": [1, 2]})["sum"] == 3
    assert plane.post("endpoints/digits/actions/invoke", {"numbers": [4]})["sum"] == 4
    assert plane.get("endpoints/digits/stats")["deployments"]["blue"]["requests"] >= 2

    # One that cannot be loaded says why, and takes nothing from the one that serves.
    plane.put("endpoints/digits/deployments/green", {**spec, "environment_variables": {"BROKEN": "1"}}, 201)
    failed = wait_for(lambda: settled("green"), 90, 0.3)
    assert failed["phase"] == "Failed" and "nowhere" in failed["reason"] and failed["log_tail"], failed
    assert call({"numbers": [5]})["colour"] == "blue"

    # Without a control plane it serves on; the next one finds everything.
    plane.kill()
    assert call({"numbers": [6]})["sum"] == 6
    plane.start()
    wait_for(lambda: plane.get("endpoints/digits")["status"]["phase"] in ("Ready", "Degraded"), 30)
    assert plane.post("endpoints/digits/actions/invoke?deployment=blue", {"numbers": [7]})["sum"] == 7
    status, answer, _ = plane.call("DELETE", "computes/gpu")
    assert status == 409 and "digits" in answer["message"]
    assert plane.call("DELETE", "endpoints/digits")[0] in (200, 202, 204)
    wait_for(lambda: plane.call("GET", "endpoints/digits")[0] == 404, 60)
    labels = "app.kubernetes.io/managed-by=jupyter-mlops,jupyter-mlops.io/endpoint=digits"

    def left() -> list[str]:
        found = []
        for path in ("apis/apps/v1/namespaces/{}/deployments", "api/v1/namespaces/{}/secrets",
                     "api/v1/namespaces/{}/services", "api/v1/namespaces/{}/configmaps", "api/v1/namespaces/{}/pods"):
            found += cluster.call("GET", "/" + path.format(namespace), query={"labelSelector": labels})["items"]
        return [item["metadata"]["name"] for item in found]

    wait_for(lambda: not left(), 90, 0.5)
    assert plane.call("DELETE", "computes/gpu")[0] in (200, 204)


def test_a_cluster_that_is_not_there_is_told(plane):
    plane.put("computes/away", {"type": "kubernetes", "context": "nowhere", "namespace": "team"})
    status = wait_for(lambda: (c := plane.get("computes/away")["status"])["phase"] == "Unreachable" and
                      "kubeconfig" in c["reason"] and c, 20)
    assert "nowhere" in status["reason"]
    plane.put("endpoints/lost", {"compute": "away"}, 201)
    wait_for(lambda: "kubeconfig" in plane.get("endpoints/lost")["status"]["reason"], 20)
    status, answer, _ = plane.call("POST", "jobs", {})
    assert status != 500, answer


def test_a_variable_of_the_notebook(plane, cluster, namespace, models_image, monkeypatch):
    """``%mlops deploy model -e … --sample X[:5] --compute gpu``: one word more than on this machine."""
    import pandas as pd
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    monkeypatch.setenv("JUPYTER_MLOPS_HOME", str(plane.home))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", plane.tracking_uri)
    monkeypatch.setenv("JUPYTER_MLOPS_URL", plane.url)
    frame = pd.DataFrame({"height": [1.6, 1.7, 1.8, 1.9], "width": [0.4, 0.5, 0.45, 0.6]})
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(frame, [0, 1, 0, 1])
    names = {"X": frame, "model": model}
    plane.put("computes/gpu", {"type": "kubernetes", "namespace": namespace, "serving": {
        "image": models_image, "service_type": "NodePort"}})

    def mlops(line: str):
        return commands.run(parse(split(line, lambda text: expand(text, names))),
                            Context("magic", names, where=plane.place))

    begun = time.monotonic()
    made = mlops("deploy model -e people --sample X[:3] --compute gpu --no-onnx")
    print(f"\nproven after {time.monotonic() - begun:.1f} s: {made}")
    proof = made.proof
    assert proof["passed"] is True and proof["kind"] == "equal" and proof["rows"] == 3
    assert list(mlops("invoke people X")) == list(model.predict(frame))
    with pytest.raises(Conflict, match="serves on gpu"):
        mlops("deploy model -e people --sample X[:3] --compute local --no-onnx")
    assert plane.call("DELETE", "endpoints/people")[0] in (200, 202, 204)
    wait_for(lambda: plane.call("GET", "endpoints/people")[0] == 404, 60)
