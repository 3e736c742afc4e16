"""The objects of a cluster that serve an endpoint, as plain dicts.

Every pod passes Pod Security "restricted": not root, read-only root, no capabilities, no service-account token.
"""

from __future__ import annotations

import base64
from typing import Any

from ...core.resources.compute import ServingOptions
from ...kube import podspec
from ...kube.names import DOMAIN
from ...kube.podspec import mount
from .plan import ADMIN, BOOT, CONFIG, DRAIN, GRACE, HTTP, HTTPS, PARTS, TLS, TRUNK, WORK, Delivery, Names, Order

#: What a scorer asks for when the deployment does not say; without a request no autoscaler could tell its use.
SCORER_RESOURCES = {"requests": {"cpu": "100m", "memory": "256Mi"}}
GATEWAY_RESOURCES = {"requests": {"cpu": "100m", "memory": "96Mi"}, "limits": {"memory": "512Mi"}}
#: Seconds and counts of probes where the deployment does not say.
READINESS = {"periodSeconds": 1, "timeoutSeconds": 2, "failureThreshold": 3}
LIVENESS = {"periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6}


def meta(name: str, labels: dict[str, str], owner: dict[str, Any] | None = None, **annotations: str) -> dict[str, Any]:
    """Metadata; ``annotations`` are of our domain."""
    result: dict[str, Any] = {"name": name, "labels": labels}
    if owner:
        result["ownerReferences"] = [owner]
    if annotations:
        result["annotations"] = {f"{DOMAIN}/{key.replace('_', '-')}": value for key, value in annotations.items()}
    return result


def anchor(name: str, labels: dict[str, str], data: dict[str, str],
           owner: dict[str, Any] | None = None) -> dict[str, Any]:
    """A ConfigMap that owns others: they go when it goes."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta(name, labels, owner), "data": data}


def secret(name: str, labels: dict[str, str], owner: dict[str, Any], data: dict[str, bytes],
           immutable: bool = False) -> dict[str, Any]:
    """A Secret; an immutable one costs nodes no watch."""
    result: dict[str, Any] = {
        "apiVersion": "v1", "kind": "Secret", "metadata": meta(name, labels, owner), "type": "Opaque",
        "data": {key: base64.b64encode(value).decode("ascii") for key, value in data.items()},
    }
    if immutable:
        result["immutable"] = True
    return result


# -- scorers -----------------------------------------------------------------------


def scorers(names: Names, deployment: str, order: Order, delivery: Delivery, boot: str, digest: str,
            owner: dict[str, Any]) -> dict[str, Any]:
    """The Deployment of a deployment's scorers.

    Args:
        boot: name of the Secret with runtime, ``pod.json`` and token.
        digest: changes when pods must be replaced.
    """
    labels = names.labels("scorer", deployment)
    container: dict[str, Any] = {
        **_container("scorer", order.image, order.options, order.resources or SCORER_RESOURCES),
        "command": [order.options.python, "-m", "jupyter_mlops.runtime.doorway", "--boot", BOOT, "--work", WORK,
                    "--port", str(TRUNK)],
        "env": podspec.python_env(f"{BOOT}/runtime.zip", WORK),
        "ports": [{"name": "trunk", "containerPort": TRUNK, "protocol": "TCP"}],
        "readinessProbe": _probe("/ready", TRUNK, READINESS),
        "livenessProbe": _probe("/live", TRUNK, LIVENESS, order.probes.get("liveness_probe")),
        "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
    }
    volumes = [podspec.secret_volume("boot", boot), *podspec.scratch()]
    container["volumeMounts"] = [mount("boot", BOOT, True), mount("work", WORK), mount("tmp", "/tmp")]
    if delivery.parts:
        volumes.append(podspec.parts_volume(delivery.parts))
        container["volumeMounts"].append(mount("parts", PARTS, True))
    spec = _deployment_spec(names.ours(component="scorer", deployment=deployment), labels, digest,
                            _pod(container, volumes, order.options, DRAIN + GRACE + 10), order.options)
    if order.scaling is None:
        spec["replicas"] = max(1, order.count)
    return {"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": meta(names.deployment(deployment), labels, owner, digest=digest, delivery=delivery.how),
            "spec": spec}


def pod_json(names: Names, deployment: str, order: Order, delivery: Delivery) -> dict[str, Any]:
    """What :mod:`jupyter_mlops.runtime.doorway` reads."""
    return {
        "schema": 1, "endpoint": names.endpoint, "deployment": deployment, "sha256": delivery.sha256,
        "size": delivery.size, "parts": len(delivery.parts), "parts_dir": PARTS,
        "peers": "" if delivery.parts else f"{names.deployment(deployment)}:{TRUNK}",
        "env": order.env, "drain": DRAIN, "grace": GRACE,
        "scorer": ["-m", "jupyter_mlops.runtime.scorer", "--folder", "{folder}", "--instance-folder", "{instance}",
                   "--socket", "{socket}", "--launch", "{launch}", "--grace", "{grace}"],
    }


def trunk_service(names: Names, deployment: str, owner: dict[str, Any]) -> dict[str, Any]:
    """The Service by which gateways find the scorers that are ready."""
    labels = names.labels("scorer", deployment)
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta(names.deployment(deployment), labels, owner),
            "spec": {"type": "ClusterIP", "selector": names.ours(component="scorer", deployment=deployment),
                     "ports": [{"name": "trunk", "port": TRUNK, "targetPort": TRUNK, "protocol": "TCP"}]}}


def autoscaler(names: Names, deployment: str, order: Order, owner: dict[str, Any]) -> dict[str, Any]:
    """The autoscaler of a deployment with ``scaling``."""
    assert order.scaling is not None
    name = names.deployment(deployment)
    return {
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": meta(name, names.labels("scorer", deployment), owner),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": max(1, order.scaling["min"]), "maxReplicas": max(1, order.scaling["max"]),
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {
                "type": "Utilization", "averageUtilization": order.scaling["percent"]}}}],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 120}},
        },
    }


def disruption(name: str, labels: dict[str, str], selector: dict[str, str], owner: dict[str, Any]) -> dict[str, Any]:
    """At most one pod at a time goes when nodes are emptied."""
    return {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": meta(name, labels, owner),
            "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector}}}


# -- gateways ----------------------------------------------------------------------


def gateway(names: Names, options: ServingOptions, boot: list[str], config: str, digest: str, owner: dict[str, Any],
            deployment: str = "") -> dict[str, Any]:
    """The Deployment of the endpoint's gateway (or, with ``deployment``, of the gateway of that deployment alone).

    Args:
        boot: names of the Secrets that hold the gateway's parcel in parts.
        config: name of the Secret that it reads again whenever it changes.
    """
    labels = names.labels("gateway", deployment)
    command = [options.python, "-m", "jupyter_mlops.serving.kubernetes.gatehouse", "--boot", BOOT, "--config", CONFIG,
               "--parts", PARTS, "--work", WORK, "--port", str(HTTPS if options.tls_secret else HTTP),
               "--admin-port", str(ADMIN)]
    if options.tls_secret:
        command += ["--certfile", f"{TLS}/tls.crt", "--keyfile", f"{TLS}/tls.key"]
    container: dict[str, Any] = {
        **_container("gateway", options.gateway_image or options.image, options, GATEWAY_RESOURCES),
        "command": command,
        "env": podspec.python_env(f"{BOOT}/gateway.zip", WORK),
        "ports": [{"name": "https" if options.tls_secret else "http", "protocol": "TCP",
                   "containerPort": HTTPS if options.tls_secret else HTTP},
                  {"name": "admin", "containerPort": ADMIN, "protocol": "TCP"}],
        "readinessProbe": _probe("/ready", ADMIN, READINESS), "livenessProbe": _probe("/live", ADMIN, LIVENESS),
        "volumeMounts": [mount("boot", BOOT, True), mount("parts", PARTS, True), mount("config", CONFIG, True),
                         mount("work", WORK), mount("tmp", "/tmp")],
    }
    volumes = [podspec.secret_volume("boot", boot[0]),
               podspec.parts_volume(boot[1:]) if boot[1:] else {"name": "parts", "emptyDir": {}},
               podspec.secret_volume("config", config), *podspec.scratch()]
    if options.tls_secret:
        volumes.append(podspec.secret_volume("tls", options.tls_secret))
        container["volumeMounts"].append(mount("tls", TLS, True))
    selector = names.ours(component="gateway", **({"deployment": deployment} if deployment else {}))
    spec = _deployment_spec(selector, labels, digest, _pod(container, volumes, options, DRAIN + GRACE + 10), options)
    spec["replicas"] = options.gateway_replicas
    return {"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": meta(names.gateway(deployment), labels, owner, digest=digest), "spec": spec}


def public_service(names: Names, options: ServingOptions, owner: dict[str, Any],
                   deployment: str = "") -> dict[str, Any]:
    """The Service that callers call, or that the cluster's own gateway sends them to."""
    labels = names.labels("gateway", deployment)
    tls = bool(options.tls_secret)
    port: dict[str, Any] = {"name": "https" if tls else "http", "port": 443 if tls else 80, "protocol": "TCP",
                            "targetPort": HTTPS if tls else HTTP}
    if options.node_port and not deployment and options.service_type != "ClusterIP":
        port["nodePort"] = options.node_port
    name = names.gateway(deployment) if deployment else names.anchor
    result: dict[str, Any] = {
        "apiVersion": "v1", "kind": "Service", "metadata": meta(name, labels, owner),
        "spec": {"type": "ClusterIP" if deployment else options.service_type, "ports": [port],
                 "selector": names.ours(component="gateway", **({"deployment": deployment} if deployment else {}))},
    }
    if options.service_annotations and not deployment:
        result["metadata"].setdefault("annotations", {}).update(options.service_annotations)
    return result


def route(names: Names, options: ServingOptions, traffic: dict[str, int], mirror: dict[str, int],
          deployments: list[str], owner: dict[str, Any]) -> dict[str, Any]:
    """An HTTPRoute that shares requests out by weight; a request that names a deployment goes to it."""
    port = 443 if options.tls_secret else 80
    path = {"type": "PathPrefix", "value": f"/endpoints/{names.endpoint}"}
    rules: list[dict[str, Any]] = []
    for deployment in sorted(deployments):
        backend = [{"name": names.gateway(deployment), "port": port, "weight": 1}]
        rules.append({"matches": [
            {"path": path, "headers": [{"type": "Exact", "name": header, "value": deployment}]}
            for header in ("azureml-model-deployment", "x-deployment")], "backendRefs": backend})
    shares: dict[str, Any] = {"matches": [{"path": path}], "backendRefs": [
        {"name": names.gateway(d), "port": port, "weight": share} for d, share in sorted(traffic.items())]}
    if mirror:
        shares["filters"] = [{"type": "RequestMirror", "requestMirror": {
            "backendRef": {"name": names.gateway(d), "port": port}, "percent": share}} for d, share in mirror.items()]
    namespace, _, name = options.parent_gateway.rpartition("/")
    parent = {"name": name, **({"namespace": namespace} if namespace else {})}
    spec: dict[str, Any] = {"parentRefs": [parent], "rules": [*rules, shares]}
    if options.hostname:
        spec["hostnames"] = [options.hostname]
    return {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": meta(names.anchor, names.labels("gateway"), owner), "spec": spec}


# -- parts -------------------------------------------------------------------------


def _deployment_spec(selector: dict[str, str], labels: dict[str, str], digest: str, pod: dict[str, Any],
                     options: ServingOptions) -> dict[str, Any]:
    return {
        "revisionHistoryLimit": 1, "progressDeadlineSeconds": 600, "minReadySeconds": 1,
        # A new pod is ready before an old one goes: no request is without one.
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "selector": {"matchLabels": selector},
        "template": {"metadata": {"labels": {**labels, **options.pod_labels},
                                  "annotations": {f"{DOMAIN}/digest": digest}}, "spec": pod},
    }


def _pod(container: dict[str, Any], volumes: list[dict[str, Any]], options: ServingOptions,
         grace: float) -> dict[str, Any]:
    return {
        **podspec.pod(options.run_as_user, grace, options.node_selector, options.tolerations,
                      options.image_pull_secrets),
        "containers": [container], "volumes": volumes,
    }


def _container(name: str, image: str, options: ServingOptions, resources: dict[str, Any]) -> dict[str, Any]:
    return podspec.container(name, image, options.image_pull_policy, WORK, resources)


def _probe(path: str, port: int, defaults: dict[str, int], given: dict[str, Any] | None = None) -> dict[str, Any]:
    result: dict[str, Any] = {"httpGet": {"path": path, "port": port, "scheme": "HTTP"}, **defaults}
    for ours, theirs in (("initial_delay", "initialDelaySeconds"), ("period", "periodSeconds"),
                         ("timeout", "timeoutSeconds"), ("failure_threshold", "failureThreshold")):
        if given and given.get(ours) is not None:
            result[theirs] = max(0 if ours == "initial_delay" else 1, int(given[ours]))
    return result
