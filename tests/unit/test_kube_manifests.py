"""What is sent to a cluster is valid in three Kubernetes minors, and every pod passes Pod Security "restricted"."""

from __future__ import annotations

import base64
import copy
import json

import kubernetes_validate
import pytest

from jupyter_mlops.core.resources.compute import ComputeSpec, ServingOptions
from jupyter_mlops.kube.names import object_name, owner
from jupyter_mlops.serving.kubernetes import manifests
from jupyter_mlops.serving.kubernetes.objects import mounted
from jupyter_mlops.serving.kubernetes.plan import Delivery, Names, Order

MINORS = ("1.35", "1.36", "1.37")
NAMES = Names("default", "digits")
OWNER = {"apiVersion": "v1", "kind": "ConfigMap", "name": "digits-0", "uid": "7d1c", "controller": False,
         "blockOwnerDeletion": False}
OPTIONS = ServingOptions(
    image="registry.example/models:1", gateway_image="registry.example/gateway:1", service_type="NodePort",
    node_port=30080, tls_secret="digits-tls", node_selector={"pool": "serving"}, image_pull_secrets=["pull"],
    tolerations=[{"key": "gpu", "operator": "Exists", "effect": "NoSchedule", "tolerationSeconds": None}],
    gateway_replicas=2, pod_labels={"team": "a"}, service_annotations={"lb/internal": "true"})
ORDER = Order("registry.example/models:1", 3, {"GREETING": "hello"}, {
    "requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"memory": "1Gi", "nvidia.com/gpu": "1"}},
    {"liveness_probe": {"initial_delay": 10, "period": 10, "timeout": 2, "failure_threshold": 30}}, None, OPTIONS)
PARTS = Delivery("ab" * 32, 1_900_000, ["digits-blue-m-00", "digits-blue-m-01"])
WHOLE = Delivery("ab" * 32, 90_000_000)


def everything() -> dict[str, dict]:
    scaled = Order(**{**vars(ORDER), "scaling": {"min": 1, "max": 4, "percent": 70}})
    return {
        "anchor": manifests.anchor(NAMES.anchor, NAMES.labels("endpoint"), {"endpoint": "digits"}),
        "secret": manifests.secret("a", NAMES.labels("scorer", "blue"), OWNER, {"part": b"\0\1"}, immutable=True),
        "scorers": manifests.scorers(NAMES, "blue", ORDER, PARTS, "digits-blue-b", "d1", OWNER),
        "scorers by exec": manifests.scorers(NAMES, "blue", ORDER, WHOLE, "digits-blue-b", "d1", OWNER),
        "scorers scaled": manifests.scorers(NAMES, "blue", scaled, PARTS, "digits-blue-b", "d1", OWNER),
        "scorers bare": manifests.scorers(NAMES, "blue", Order("python:3.11-slim"), PARTS, "b", "d1", OWNER),
        "trunk": manifests.trunk_service(NAMES, "blue", OWNER),
        "autoscaler": manifests.autoscaler(NAMES, "blue", scaled, OWNER),
        "disruption": manifests.disruption("a", NAMES.labels("scorer", "blue"), NAMES.ours(component="scorer"), OWNER),
        "gateway": manifests.gateway(NAMES, OPTIONS, ["g", "l-00", "l-01"], NAMES.config, "d1", OWNER),
        "gateway of one": manifests.gateway(NAMES, ServingOptions(image="a:1"), ["g"], "c", "d1", OWNER, "blue"),
        "service": manifests.public_service(NAMES, OPTIONS, OWNER),
        "service of one": manifests.public_service(NAMES, OPTIONS, OWNER, "blue"),
    }


@pytest.mark.parametrize("minor", MINORS)
def test_every_object_fits_the_schema(minor):
    for what, manifest in everything().items():
        kubernetes_validate.validate(manifest, minor, strict=True)
        assert manifest["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "jupyter-mlops", what
        if what != "anchor":
            assert manifest["metadata"]["ownerReferences"], what
    broken = everything()["scorers"]
    broken["spec"]["template"]["spec"]["containers"][0]["imagepullpolicy"] = "Never"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, minor, strict=True)


def violations(pod: dict) -> list[str]:
    """What Pod Security "restricted" has against a pod's spec."""
    found = []
    security = pod.get("securityContext") or {}
    if any(pod.get(k) for k in ("hostNetwork", "hostPID", "hostIPC")):
        found.append("host namespaces")
    if security.get("runAsUser") == 0:
        found.append("root")
    if security.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        found.append("seccomp")
    for volume in pod["volumes"]:
        if not set(volume) - {"name"} <= {"configMap", "secret", "emptyDir", "projected", "persistentVolumeClaim"}:
            found.append(f"volume {volume['name']}")
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        own = container.get("securityContext") or {}
        if own.get("privileged") or own.get("allowPrivilegeEscalation") is not False:
            found.append("privileges")
        if own.get("capabilities", {}).get("drop") != ["ALL"] or own.get("capabilities", {}).get("add"):
            found.append("capabilities")
        if not (own.get("runAsNonRoot") or security.get("runAsNonRoot")):
            found.append("may be root")
        if any("hostPort" in port for port in container.get("ports") or []):
            found.append("host port")
    return found


def test_every_pod_is_restricted_and_has_no_token():
    pods = {k: m["spec"]["template"]["spec"] for k, m in everything().items() if m["kind"] == "Deployment"}
    assert len(pods) == 6
    for what, pod in pods.items():
        assert violations(pod) == [], what
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            writable = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
            assert writable == {"/mlops/work", "/tmp"}
    loose = copy.deepcopy(pods["gateway"])
    del loose["securityContext"]["seccompProfile"]
    loose["containers"][0]["securityContext"]["capabilities"] = {}
    assert violations(loose) == ["seccomp", "capabilities"]


def test_nothing_secret_is_in_a_manifest_but_in_secrets():
    order = Order(**{**vars(ORDER), "env": {"PASSWORD": "swordfish"}})
    for what in (manifests.scorers(NAMES, "blue", order, PARTS, "b", "d", OWNER),
                 manifests.trunk_service(NAMES, "blue", OWNER)):
        assert "swordfish" not in json.dumps(what)
    assert manifests.pod_json(NAMES, "blue", order, PARTS)["env"] == {"PASSWORD": "swordfish"}
    made = manifests.secret("a", {}, OWNER, {"pod.json": b"swordfish"})
    assert base64.b64decode(made["data"]["pod.json"]) == b"swordfish"


def test_a_new_pod_is_there_before_an_old_one_goes():
    for what in ("scorers", "gateway"):
        spec = everything()[what]["spec"]
        assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
        assert spec["template"]["spec"]["terminationGracePeriodSeconds"] >= 40
        assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    assert "replicas" not in everything()["scorers scaled"]["spec"]
    assert everything()["scorers"]["spec"]["replicas"] == 3


def test_parts_and_whole_parcels():
    parts, whole = everything()["scorers"], everything()["scorers by exec"]
    assert mounted(parts) == {"digits-blue-b", *PARTS.parts}
    assert mounted(whole) == {"digits-blue-b"}
    assert manifests.pod_json(NAMES, "blue", ORDER, PARTS)["peers"] == ""
    assert manifests.pod_json(NAMES, "blue", ORDER, WHOLE)["peers"] == f"{NAMES.deployment('blue')}:8470"
    assert "2 Secrets" in PARTS.how and "one pod" in WHOLE.how


def test_a_route_shares_by_weight_and_follows_the_header():
    options = ServingOptions(image="a:1", gateway="gateway-api", parent_gateway="edge/public", hostname="m.example")
    made = manifests.route(NAMES, options, {"blue": 90, "green": 10}, {"red": 5}, ["blue", "green", "red"], OWNER)
    spec = made["spec"]
    assert spec["parentRefs"] == [{"name": "public", "namespace": "edge"}] and spec["hostnames"] == ["m.example"]
    *named, shares = spec["rules"]
    assert [(b["name"], b["weight"]) for b in shares["backendRefs"]] == [
        (NAMES.gateway("blue"), 90), (NAMES.gateway("green"), 10)]
    assert shares["filters"][0]["requestMirror"]["percent"] == 5
    assert {m["headers"][0]["value"] for rule in named for m in rule["matches"]} == {"blue", "green", "red"}
    assert all(m["path"]["value"] == "/endpoints/digits" for rule in spec["rules"] for m in rule["matches"])


def test_names_fit_and_differ():
    longest = "a" * 40
    names = Names("default", longest)
    made = [names.anchor, names.gateway(), names.gateway(longest), names.deployment(longest)]
    assert len(set(made)) == 4 and max(map(len, made)) <= 46
    assert Names("one", "digits").anchor != Names("two", "digits").anchor
    assert object_name("9x-Ä", "i")[0].isalpha()
    assert owner({"apiVersion": "v1", "kind": "A", "metadata": {"name": "n", "uid": "u"}})["uid"] == "u"


@pytest.mark.parametrize(("spec", "complaint"), [
    ({"type": "kubernetes"}, "needs a namespace"),
    ({"type": "kubernetes", "namespace": "A b"}, "pattern"),
    ({"type": "kubernetes", "namespace": "a", "serving": {"image": "-x;rm"}}, "no name of an image"),
    ({"type": "kubernetes", "namespace": "a", "serving": {"gateway": "gateway-api"}}, "parent_gateway"),
    ({"type": "kubernetes", "namespace": "a", "serving": {"kubeconfig": "/etc/passwd"}}, "Extra inputs"),
    ({"type": "kubernetes", "namespace": "a", "kubeconfig": "/etc/passwd"}, "Extra inputs"),
])
def test_what_an_operator_may_not_write(spec, complaint):
    with pytest.raises(ValueError, match=complaint):
        ComputeSpec(**spec)
