"""Would a job run on a cluster: what its API says to the manifest, which limit is in the way, and what it costs."""

from __future__ import annotations

from typing import Any

from ...core.errors import Refused
from ...kube.client import Kube
from ...kube.errors import OverQuota
from ...kube.quantity import count_of
from . import manifests, shelf, trainjob, volumes
from .manifests import Names, Order
from .survey import amounts, nodes, optional, quotas

#: What a quota limits → what of our pods counts there.
_QUOTAS = {
    "cpu": ("requests", "cpus"), "requests.cpu": ("requests", "cpus"), "limits.cpu": ("limits", "cpus"),
    "memory": ("requests", "memory_bytes"), "requests.memory": ("requests", "memory_bytes"),
    "limits.memory": ("limits", "memory_bytes"),
}


def preview(kube: Kube, names: Names, order: Order) -> dict[str, Any]:
    """Ask without making anything.

    Returns:
        ``{"fits": True, False or None (it cannot be known), "reasons": [what is in the way], "manifest": the Job,
        "instances", "price_per_hour": of all instances, or None, "volumes": [a line on each claim]}``

    Raises:
        BackendUnreachable, BackendTimeout: the cluster does not answer.
    """
    manifest = job = manifests.job(names, order, suspended=True)
    runtime = None
    if order.options.flavour == "trainjob":
        runtime, train = trainjob.of(job)
        manifest = {"apiVersion": "v1", "kind": "List", "items": [runtime, train]}
    reasons: list[str] = []
    try:
        told = volumes.check(kube, order.options, order.spec)
        if (line := shelf.check(kube, order.options, order.spec)):
            told.append(line)
    except Refused as error:
        return _answer(False, [error.message], manifest, order)
    try:
        if runtime is not None:
            trainjob.check(kube)
            kube.apply(runtime, names.ours(), dry_run=True)  # without it a TrainJob would be refused
        kube.apply(job, names.ours(), dry_run=True)
    except OverQuota as error:
        reasons.append(error.message)
    except Refused as error:
        return _answer(False, [error.message], manifest, order)
    wants = manifests.resources(order)
    found = optional(lambda: nodes(kube))
    fits: bool | None = None
    if found is not None:
        lacking = _no_node(found, job, wants)
        if lacking:
            return _answer(False, [*reasons, lacking], manifest, order)
        fits = True
    over = _over_quota(optional(lambda: quotas(kube)) or [], wants, order.nodes, order.options.gpu_resource)
    return {**_answer(False if reasons or over else fits, [*reasons, *over], manifest, order), "volumes": told}


def _answer(fits: bool | None, reasons: list[str], manifest: dict[str, Any], order: Order) -> dict[str, Any]:
    price = order.instance.price * order.nodes
    return {"fits": fits, "reasons": reasons, "manifest": manifest, "instances": order.nodes, "volumes": [],
            "price_per_hour": round(price, 6) if price else None}


def _no_node(found: list[dict[str, Any]], manifest: dict[str, Any], wants: dict[str, Any]) -> str:
    """Why no node could hold a pod even if it were empty; empty when one could."""
    pod = manifest["spec"]["template"]["spec"]
    usable = [n for n in found if n["usable"]]
    if not usable:
        return "no node of the cluster takes pods now"
    labelled = [n for n in usable if all(n["labels"].get(k) == v for k, v in (pod.get("nodeSelector") or {}).items())]
    if not labelled:
        return "no node has the labels that are asked for"
    tolerated = [n for n in labelled if all(_tolerated(t, pod.get("tolerations") or []) for t in n["taints"])]
    if not tolerated:
        return f"the nodes with taint {labelled[0]['taints'][0]} are not for it"
    asked = amounts({**wants.get("limits", {}), **wants.get("requests", {})})
    for name, value in asked.items():
        most = max(n["capacity"].get(name, 0) for n in tolerated)
        if most < value:
            return f"no node has {_number(name, value)}: the largest has {_number(name, most)}"
    return ""


def _tolerated(taint: str, tolerations: list[dict[str, Any]]) -> bool:
    head, _, effect = taint.rpartition(":")
    if effect == "PreferNoSchedule":
        return True
    key, _, value = head.partition("=")
    for one in tolerations:
        if one.get("effect") not in (None, effect) or one.get("key") not in (None, key):
            continue
        if one.get("operator") == "Exists" or (one.get("value") or "") == value:
            return True
    return False


def _over_quota(lines: list[dict[str, Any]], wants: dict[str, Any], count: int, gpu: str) -> list[str]:
    found = []
    for line in lines:
        resource = line["resource"]
        if resource == "pods" or resource == "count/pods":
            need = float(count)
        elif resource == "count/jobs.batch":
            need = 1.0
        elif resource == f"requests.{gpu}":
            need = count_of((wants.get("limits") or {}).get(gpu) or "0") * count
        elif resource in _QUOTAS:
            kind, name = _QUOTAS[resource]
            need = amounts(wants.get(kind) or {}).get(name, 0) * count
        else:
            continue
        left = count_of(line["hard"]) - count_of(line["used"])
        if need > left + 1e-9:
            found.append(f"the quota '{line['quota']}' leaves {_number(resource, max(left, 0))} of {resource}, "
                         f"{_number(resource, need)} are asked for; it waits until others end")
    return found


def _number(name: str, value: float) -> str:
    if "memory" in name:
        return f"{value / 2**30:.1f} GiB"
    if name == "cpus":
        return f"{value:g} CPUs"
    return f"{value:g} {name}" if "/" in name and not name.startswith(("requests.", "count/")) else f"{value:g}"
