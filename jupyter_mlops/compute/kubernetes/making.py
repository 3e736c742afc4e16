"""What of an attempt is made on a cluster: its Job, the Secrets and the Service that the Job owns."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

from ...core.errors import Conflict
from ...core.resources.job import parse_bytes
from ...kube import packs
from ...kube.client import Kube
from ...kube.names import owner
from ...runtime import data, parcel
from ...runtime.jobfolder import Attempt, JobFolder
from . import manifests, parcels, shelf, trainjob
from .images import comparison
from .manifests import Names, Order


def make(kube: Kube, names: Names, order: Order, folder: JobFolder, place: Attempt, env: dict[str, str],
         remarks: bool, route: dict[str, Any] | None = None) -> dict[str, Any]:
    """Make the Job of an attempt, what it needs, and let it begin; may be repeated.

    Args:
        env: what the control plane gives to the ranks.
        remarks: whether its first pod is to say what in its image is not as here.
        route: where its pods may call, see :mod:`jupyter_mlops.runtime.route`.

    Returns:
        what is noted of it here

    Raises:
        Refused: the cluster does not take it.
        BackendUnreachable, BackendTimeout: it does not answer; call it again.
    """
    path = parcels.pack(folder, place)
    about = {"sha256": parcel.sha256(str(path)), "size": path.stat().st_size} if path else {}
    count = packs.part_count(int(about.get("size") or 0))
    if about and count <= packs.MAX_PARTS:
        order.parts = [manifests.part_name(names, number) for number in range(count)]
        about["parts"] = count
    order.shelf = shelf.name_of(names, folder.run())
    made = _root(kube, names, order)
    mine = owner(made)
    what = {"schema": 1, "job": names.job, "attempt": names.attempt, "spec": order.spec.model_dump(),
            "run": folder.run(),
            "env": {**env, "JUPYTER_MLOPS_ATTEMPT": str(names.attempt), **_cache_limit(order)},
            "timeout": order.timeout, "nodes": order.nodes, "most": order.most if order.elastic else 0,
            "inputs": about, "image": order.image, "packages": manifests.packages(order),
            "compare": comparison(order.spec), "remarks": remarks,
            "address": manifests.address(names, order) if order.most > 1 else "", "key": secrets.token_hex(32),
            "route": route}
    data_of = [(manifests.boot_name(names), {
        "runtime.zip": packs.runtime_zip(), "cloudpickle.zip": packs.cloudpickle_zip(),
        "order.json": json.dumps(what).encode(),
    })]
    if path and order.parts:
        data_of += zip(order.parts, ({"part": piece} for piece in packs.parts(path.read_bytes())), strict=True)
    for name, content in data_of:
        _put(kube, manifests.secret(name, names, mine, content))
    if order.most > 1 and made["kind"] == "Job":  # a TrainJob's pods have one
        kube.apply(manifests.service(names, mine), names.ours())
    if not order.options.queue:
        kube.merge(made["kind"], names.object, {"spec": {"suspend": False}})
    return {
        "schema": 1, "started": True, "compute": kube.cluster, "namespace": kube.namespace,
        "job": names.object, "kind": made["kind"], "controller": manifests.controller(names, order),
        "uid": mine["uid"], "nodes": order.nodes, "image": order.image, "time": time.time(),
        "most": order.most if order.elastic else 0,
        "bring": bool(path) and not order.parts, "hold": order.options.hold, "queue": order.options.queue,
        "shelf": order.shelf if order.shelved else "",
    }


def _root(kube: Kube, names: Names, order: Order) -> dict[str, Any]:
    """Make what owns all the rest, suspended; as the API has it then."""
    job = manifests.job(names, order, suspended=True)
    if order.options.flavour != "trainjob":
        return kube.apply(job, names.ours())
    trainjob.check(kube)
    runtime, train = trainjob.of(job)
    kube.apply(runtime, names.ours())
    made = kube.apply(train, names.ours())
    runtime["metadata"]["ownerReferences"] = [owner(made)]
    kube.apply(runtime, names.ours())
    return made


def _put(kube: Kube, manifest: dict[str, Any]) -> None:
    try:
        kube.call("POST", kube.path("Secret"), manifest, what=f"making {manifest['metadata']['name']}",
                  timeout=30.0)
    except Conflict:
        there = kube.get("Secret", manifest["metadata"]["name"])
        wanted = manifest["metadata"]["ownerReferences"][0]["uid"]
        if any(o["uid"] == wanted for o in (there or {}).get("metadata", {}).get("ownerReferences") or []):
            return
        kube.delete("Secret", manifest["metadata"]["name"])
        kube.call("POST", kube.path("Secret"), manifest, timeout=30.0)


def _cache_limit(order: Order) -> dict[str, str]:
    cache = order.options.cache
    return {data.LIMIT: str(parse_bytes(cache.size))} if cache else {}
