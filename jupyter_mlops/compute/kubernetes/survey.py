"""What is true of a cluster: asked before a compute is saved, and whenever somebody wants to see what is free there."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from ...core.errors import MlopsError, Refused
from ...core.resources.compute import ComputeSpec
from ...kube import access
from ...kube.client import Kube
from ...kube.errors import Absent, NotAllowed, from_answer
from ...kube.quantity import count_of
from . import cache, claims, priority, queue, trainjob, volumes
from . import route as routes
from .store import ObjectStore

#: API group → what it brings.
ENGINES = {
    "kueue.x-k8s.io": "kueue", "trainer.kubeflow.org": "trainer", "kubeflow.org": "mpi",
    "gateway.networking.k8s.io": "gateway_api", "metrics.k8s.io": "metrics",
}
_LEVEL = "pod-security.kubernetes.io/enforce"
#: Nodes and quotas that are told one by one.
_SHOWN = 100


def survey(kube: Kube, spec: ComputeSpec, create_namespace: bool = False, listening: bool = False) -> dict[str, Any]:
    """Ask a cluster for everything that matters to whoever attaches or uses it.

    Args:
        create_namespace: make the namespace when it is not there.
        listening: whether this control plane listens at the route already.

    Returns:
        ``{"version", "namespace": {"name", "exists", "level"}, "missing", "role", "quotas", "nodes", "capacity",
        "free", "engines", "priorities": [{"name", "class", "value", "preempts"}], "package_cache",
        "transfer": {"way", "why"}, "store": {"claim", "url", "trouble"}, "route": {"listen", "address", "trouble"},
        "problems": [{"message", "hint", "fatal"}]}``;
        None for what these credentials may not see.

    Raises:
        BackendUnreachable, BackendTimeout, Refused: there is no use in asking any further.
    """
    problems: list[dict[str, Any]] = []
    version = kube.version()
    namespace = _namespace(kube, create_namespace, problems)
    serving, training = access.purposes(spec)
    trainjobs = training and spec.training.flavour == "trainjob"
    lacks = access.missing(kube, serving, training, trainjobs)
    if lacks:
        problems.append({
            "message": f"no permission to {', '.join(lacks[:6])}{f' and {len(lacks) - 6} more' if lacks[6:] else ''}",
            "hint": "an operator of the cluster applies the role that is shown, and binds it to these credentials",
            "fatal": True,
        })
    engines = {name: kube.has_group(group) for group, name in ENGINES.items()}
    if trainjobs:
        try:
            trainjob.check(kube)
        except Refused as error:
            problems.append({"message": error.message, "hint": error.hint, "fatal": True})
    if spec.training.queue:
        _queue(kube, spec.training.queue, engines["kueue"], problems)
    classes = _classes(kube, spec, problems) if training else []
    packages = cache.place(kube, spec.training, namespace["level"], problems) if training else None
    if training:
        volumes.survey(kube, spec, namespace["level"], problems)
    limits = optional(lambda: quotas(kube))
    machines = optional(lambda: nodes(kube))
    capacity = _total(n["capacity"] for n in machines if n["usable"]) if machines is not None else None
    free = None
    if capacity is not None:
        used = optional(lambda: _used(kube))
        free = {k: max(v - used.get(k, 0), 0) for k, v in capacity.items()} if used is not None else None
        if not capacity:
            problems.append({"message": "no node of the cluster takes pods", "hint": "is it still starting?",
                             "fatal": False})
        _types(spec, machines or [], problems)
    return {
        "version": version, "namespace": namespace, "missing": lacks,
        "role": access.role("jupyter-mlops", kube.namespace, serving, training, trainjobs) if lacks else None,
        "quotas": limits, "nodes": machines[:_SHOWN] if machines is not None else None,
        "capacity": capacity, "free": free, "engines": engines, "priorities": classes, "problems": problems,
        "package_cache": packages, "transfer": _transfer(kube, spec) if training else None,
        "store": _store(kube, spec, problems) if training else None,
        "route": _route(spec, listening, problems) if training else None,
    }


def _route(spec: ComputeSpec, listening: bool, problems: list[dict[str, Any]]) -> dict[str, str] | None:
    """Where pods may call; whether we can listen there. Whether pods get there turns out later."""
    options = spec.training.route
    if options is None:
        return None
    trouble = "" if listening else routes.check(options)
    if trouble:
        problems.append({"message": f"training.route cannot be used: {trouble}",
                         "hint": "until then all goes over the cluster's API", "fatal": False})
    return {"listen": options.listen, "address": options.address or options.listen, "trouble": trouble}


def _store(kube: Kube, spec: ComputeSpec, problems: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Claim and object store of a compute; the store is tried from here. Whether pods reach it turns out later."""
    options = spec.training.store
    if options is None:
        return None
    if options.claim:
        narrow = "" if spec.training.max_nodes == 1 else "jobs on several nodes are refused"
        claims.survey(kube, options.claim, "training.store", problems, narrow=narrow)
    if not options.url:
        return {"claim": options.claim, "url": "", "trouble": ""}
    trouble = ObjectStore(kube, options, "jupyter-mlops-check").check()
    if trouble:
        problems.append({"message": f"training.store cannot be used: {trouble}",
                         "hint": "until then all goes over the cluster's API", "fatal": False})
    return {"claim": options.claim, "url": options.url, "trouble": trouble}


def optional(what: Any) -> Any:
    """What a question answers; None when it is not for us to ask."""
    try:
        return what()
    except (NotAllowed, Absent):
        return None


def _transfer(kube: Kube, spec: ComputeSpec) -> dict[str, str]:
    """How large files come back."""
    if spec.training.transfer == "exec":
        return {"way": "exec", "why": "the operator wants it so"}
    lacks = [f"{verb} {resource}" for _, resource, verbs in access.TRAINING_FASTER for verb in verbs
             if not kube.may(verb, resource.partition("/")[0], sub=resource.partition("/")[2])]
    return {"way": "exec", "why": f"no permission to {', '.join(lacks)}"} if lacks else {"way": "proxy", "why": ""}


def _namespace(kube: Kube, create: bool, problems: list[dict[str, Any]]) -> dict[str, Any]:
    path = "/api/v1/namespaces"
    code, _, body = kube.request("GET", f"{path}/{kube.namespace}")
    if code == 403:
        # Only of what is in it we may know; what is not there cannot be told from what is empty.
        return {"name": kube.namespace, "exists": None, "level": ""}
    if code == 404 and not create:
        problems.append({"message": f"there is no namespace '{kube.namespace}'", "hint": "--create-namespace makes it",
                         "fatal": True})
        return {"name": kube.namespace, "exists": False, "level": ""}
    if code == 404:
        found = kube.call("POST", path, {"apiVersion": "v1", "kind": "Namespace", "metadata": {
            "name": kube.namespace, "labels": {_LEVEL: "restricted"}}}, what="making the namespace")
    elif code != 200:
        raise from_answer(code, body, "reading the namespace", kube.cluster)
    else:
        found = json.loads(body)
    if (found.get("status") or {}).get("phase") == "Terminating":
        problems.append({"message": f"the namespace '{kube.namespace}' is being deleted", "hint": "choose another one",
                         "fatal": True})
    return {"name": kube.namespace, "exists": True,
            "level": str((found["metadata"].get("labels") or {}).get(_LEVEL) or "")}


def _queue(kube: Kube, name: str, kueue: bool, problems: list[dict[str, Any]]) -> None:
    if not kueue:
        problems.append({"message": f"a queue '{name}' is named, but the cluster has no Kueue",
                         "hint": "leave the queue out, or install Kueue", "fatal": True})
        return
    try:
        kube.call("GET", queue.path(kube, queue.GROUP, f"localqueues/{name}"), what="reading the queue")
    except Absent:
        problems.append({"message": f"there is no LocalQueue '{name}' in namespace '{kube.namespace}'",
                         "hint": "an operator of the cluster makes it", "fatal": True})
    except MlopsError:
        return  # not for us to see


def _classes(kube: Kube, spec: ComputeSpec, problems: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The PriorityClasses of jobs, by what users call them; ``value`` is None where it is not for us to see."""
    found = []
    for name, chosen in priority.offered(spec.training).items():
        there = priority.lookup(kube, chosen)
        found.append({"name": name, "class": chosen, **(there or {"value": None, "preempts": None})})
        if there is not None and there["value"] is None:
            problems.append({"message": f"there is no PriorityClass '{chosen}', which jobs of '{name}' are to have",
                             "hint": "make it, or correct training.priorities and training.spot", "fatal": True})
    return found


def quotas(kube: Kube) -> list[dict[str, Any]]:
    """The lines of the namespace's quotas."""
    answer = kube.call("GET", f"/api/v1/namespaces/{kube.namespace}/resourcequotas", what="listing quotas")
    found = []
    for quota in answer.get("items") or []:
        status = quota.get("status") or {}
        hard = status.get("hard") or (quota.get("spec") or {}).get("hard") or {}
        found += [{"quota": quota["metadata"]["name"], "resource": resource, "hard": most,
                   "used": (status.get("used") or {}).get(resource, "0")} for resource, most in sorted(hard.items())]
    return found[:_SHOWN]


def nodes(kube: Kube) -> list[dict[str, Any]]:
    """All nodes, with what pods may have of them."""
    answer = kube.call("GET", "/api/v1/nodes", query={"limit": 1000}, what="listing nodes")
    found = []
    for node in answer.get("items") or []:
        spec, status = node.get("spec") or {}, node.get("status") or {}
        ready = any(c.get("type") == "Ready" and c.get("status") == "True" for c in status.get("conditions") or [])
        taints = [f"{t.get('key')}{'=' + t['value'] if t.get('value') else ''}:{t.get('effect')}"
                  for t in spec.get("taints") or []]
        found.append({
            "name": node["metadata"]["name"], "ready": ready, "usable": ready and not spec.get("unschedulable"),
            "capacity": amounts(status.get("allocatable") or status.get("capacity") or {}), "taints": taints,
            "labels": node["metadata"].get("labels") or {},
        })
    return found


def amounts(quantities: dict[str, str]) -> dict[str, float]:
    """CPUs, bytes of memory, and devices of what Kubernetes calls resources."""
    found = {"cpus": count_of(quantities.get("cpu") or "0"), "memory_bytes": count_of(quantities.get("memory") or "0")}
    for name, value in quantities.items():
        if "/" in name and not name.startswith(("hugepages-", "attachable-volumes-")):
            found[name] = count_of(value)
    return found


def _total(parts: Iterable[dict[str, float]]) -> dict[str, float]:
    result: Counter[str] = Counter()
    for part in parts:
        result.update(part)
    return dict(result)


def _used(kube: Kube) -> dict[str, float]:
    """What pods of all namespaces ask for."""
    query: dict[str, Any] = {"limit": 500, "fieldSelector": "status.phase!=Succeeded,status.phase!=Failed"}
    parts = []
    while True:
        page = kube.call("GET", "/api/v1/pods", query=query, what="listing pods of all namespaces")
        for pod in page.get("items") or []:
            if (pod.get("spec") or {}).get("nodeName"):
                parts += [amounts((c.get("resources") or {}).get("requests") or {})
                          for c in pod["spec"].get("containers") or []]
        query["continue"] = (page.get("metadata") or {}).get("continue")
        if not query["continue"]:
            return _total(parts)


def _types(spec: ComputeSpec, machines: list[dict[str, Any]], problems: list[dict[str, Any]]) -> None:
    """Instance types that no node can ever hold."""
    for name, kind in spec.instance_types.items():
        fitting = [n for n in machines if all(n["labels"].get(k) == v for k, v in kind.node_selector.items())]
        if not fitting:
            problems.append({"message": f"no node has the labels that instance type '{name}' wants",
                             "hint": "check its nodeSelector", "fatal": False})
            continue
        wants = amounts({**kind.resources.requests, **kind.resources.limits})
        if not any(all(n["capacity"].get(k, 0) >= v for k, v in wants.items()) for n in fitting):
            problems.append({"message": f"instance type '{name}' asks for more than any of its nodes has",
                             "hint": "check its resources", "fatal": False})
