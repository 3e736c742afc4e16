"""Volumes of a job's pods that are there before it: claims that it names, and the cache of its inputs.

The operator says which claims jobs may mount (``training.claims``): without that, none, since a claim of a shared
namespace may be somebody's. They are mounted read-only, for an output writable where the operator allows that.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from ...core.errors import MlopsError, Refused
from ...core.resources.compute import CacheVolume, ComputeSpec, TrainingOptions
from ...core.resources.job import JobSpec
from ...kube.client import Kube
from ...kube.errors import NotAllowed
from ...kube.podspec import mount
from ...kube.quantity import count_of

#: Where they are in a pod.
CACHE, CLAIMS = "/mlops/cache", "/mlops/claims"
#: Access modes with which pods on several nodes can have a volume: to read, and to write.
_READ, _WRITE = {"ReadOnlyMany", "ReadWriteMany"}, {"ReadWriteMany"}
_SHORT = {"ReadWriteOnce": "one node", "ReadWriteOncePod": "one pod", "ReadOnlyMany": "many nodes, read-only",
          "ReadWriteMany": "many nodes"}
#: Levels of Pod Security that admit no folder of a node.
STRICT = ("baseline", "restricted")


def named(spec: JobSpec) -> dict[str, bool]:
    """The claims that a job names, and whether it writes to them."""
    found = {given.claim: False for given in spec.files.values() if given.claim}
    found.update({given.claim: True for given in spec.outputs.values() if given.claim})
    return found


def of_pod(
    spec: JobSpec, options: TrainingOptions, workspace: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Volumes of a pod, and where the ranks' container sees them.

    Of the cache each workspace has a folder of its own, which the others do not see.
    """
    volumes, mounts = [], []
    for number, (name, writes) in enumerate(sorted(named(spec).items())):
        source = {"claimName": name, **({} if writes else {"readOnly": True})}
        volumes.append({"name": f"claim-{number}", "persistentVolumeClaim": source})
        mounts.append(mount(f"claim-{number}", f"{CLAIMS}/{name}", not writes))
    cache = options.cache
    if cache is not None and spec.files:
        volumes.append(of_cache("cache", cache))
        mounts.append({**mount("cache", CACHE), "subPath": workspace})
    return volumes, mounts


def of_cache(name: str, cache: CacheVolume) -> dict[str, Any]:
    """The volume of a pod in which a cache lies."""
    return {"name": name, **({"persistentVolumeClaim": {"claimName": cache.claim}} if cache.claim else
                             {"hostPath": {"path": cache.host_path, "type": "Directory"}})}


def check(kube: Kube, options: TrainingOptions, spec: JobSpec) -> list[str]:
    """Refuse a claim that a job may not, or cannot, mount.

    Returns:
        a line on each that it will

    Raises:
        Refused: see its message.
        BackendUnreachable, BackendTimeout: the cluster does not answer.
    """
    for name, writes in sorted(named(spec).items()):
        _allowed(kube.cluster, options, name, writes)
    return [_mountable(kube, name, writes, spec.resources.instance_count)
            for name, writes in sorted(named(spec).items())]


def _allowed(cluster: str, options: TrainingOptions, name: str, writes: bool) -> None:
    rules = [rule for rule in options.claims if fnmatchcase(name, rule.name)]
    if not rules:
        raise Refused(f"compute '{cluster}' lets jobs mount no claim '{name}'",
                      "an operator names the claims in training.claims of the compute")
    if writes and not any(rule.writable for rule in rules):
        raise Refused(f"compute '{cluster}' lets jobs read the claim '{name}', not write to it",
                      "an operator allows it with {name: …, writable: true} in training.claims")


def _mountable(kube: Kube, name: str, writes: bool, nodes: int) -> str:
    try:
        found = kube.get("PersistentVolumeClaim", name)
    except NotAllowed:
        raise Refused(f"compute '{kube.cluster}' may not look at the claim '{name}'",
                      "its role needs: get persistentvolumeclaims") from None
    if found is None:
        raise Refused(f"there is no claim '{name}' in the namespace '{kube.namespace}'", "check its name")
    if found["metadata"].get("deletionTimestamp"):
        raise Refused(f"the claim '{name}' is being deleted", "name another one")
    spec, status = found.get("spec") or {}, found.get("status") or {}
    phase, kind = status.get("phase") or "Pending", spec.get("storageClassName") or ""
    if phase == "Lost":
        raise Refused(f"the claim '{name}' has lost its volume", "an operator of the cluster looks after it")
    if phase == "Pending" and not _waits_for_a_pod(kube, kind):
        raise Refused(f"the claim '{name}' has no volume yet (storage class '{kind or 'none'}')",
                      "wait for the cluster to provide one, or ask an operator")
    modes = set(status.get("accessModes") or spec.get("accessModes") or [])
    if nodes > 1 and not modes & (_WRITE if writes else _READ):
        told = ", ".join(_SHORT.get(m, m) for m in sorted(modes))
        raise Refused(f"the claim '{name}' is for {told}: {nodes} nodes cannot {'write to' if writes else 'read'} it",
                      f"it needs {'ReadWriteMany' if writes else 'ReadOnlyMany or ReadWriteMany'}")
    if writes and modes == {"ReadOnlyMany"}:
        raise Refused(f"the claim '{name}' is read-only", "name another one for the output")
    if "ReadWriteOncePod" in modes and (user := _user(kube, name)):
        raise Refused(f"the claim '{name}' is for one pod at a time, and {user} has it", "wait until that has ended")
    size = (status.get("capacity") or {}).get("storage") or ""
    about = [f"{count_of(size) / 2**30:.3g} GiB"] if size else []
    about += [", ".join(sorted(modes)), f"storage class '{kind}'" if kind else "no storage class", phase.lower()]
    return f"claim '{name}' is mounted {'writable' if writes else 'read-only'} ({'; '.join(about)})"


def _waits_for_a_pod(kube: Kube, kind: str) -> bool:
    """Whether volumes of a storage class are made when a pod wants them; also where that is not for us to see."""
    if not kind:
        return False
    try:
        found = kube.call("GET", f"/apis/storage.k8s.io/v1/storageclasses/{kind}", what="reading a storage class")
    except MlopsError:
        return True
    return found.get("volumeBindingMode") == "WaitForFirstConsumer"


def _user(kube: Kube, claim: str) -> str:
    """A pod that has a claim now, or empty."""
    for pod in kube.list("Pod"):
        if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            continue
        for volume in (pod.get("spec") or {}).get("volumes") or []:
            if (volume.get("persistentVolumeClaim") or {}).get("claimName") == claim:
                return f"pod {pod['metadata']['name']}"
    return ""


def survey(kube: Kube, spec: ComputeSpec, level: str, problems: list[dict[str, Any]]) -> None:
    """What is wrong with the volumes that a compute names; ``level``: the namespace's Pod Security."""
    options = spec.training
    cache = options.cache
    if cache is not None and cache.host_path and level in STRICT:
        problems.append({"message": f"training.cache is a folder of the nodes, which Pod Security '{level}' of the"
                                    f" namespace '{kube.namespace}' forbids",
                         "hint": "name a claim, or leave it out", "fatal": True})
    wanted = {rule.name: "training.claims" for rule in options.claims if not any(c in rule.name for c in "*?[")}
    if cache is not None and cache.claim:
        wanted[cache.claim] = "training.cache"
    for name, field in sorted(wanted.items()):
        _survey_claim(kube, name, field, problems)
    for name in options.secrets:
        if _there(kube, "Secret", name) is False:
            problems.append({"message": f"there is no Secret '{name}', which training.secrets names",
                             "hint": "jobs wait until an operator of the cluster makes it", "fatal": False})


def _survey_claim(kube: Kube, name: str, field: str, problems: list[dict[str, Any]]) -> None:
    found = _there(kube, "PersistentVolumeClaim", name)
    if found is None:
        return
    if found is False:
        problems.append({"message": f"there is no claim '{name}', which {field} names",
                         "hint": "an operator of the cluster makes it", "fatal": field == "training.cache"})
        return
    modes = (found.get("status") or {}).get("accessModes") or (found.get("spec") or {}).get("accessModes") or []
    if field == "training.cache" and "ReadWriteMany" not in modes:
        problems.append({"message": f"the claim '{name}' of training.cache is for one node ({', '.join(modes)})",
                         "hint": "all jobs that read files then run on one node", "fatal": False})


def _there(kube: Kube, kind: str, name: str) -> Any:
    """The object; False when it is not there, None when that is not for us to see."""
    try:
        found: Mapping[str, Any] | None = kube.get(kind, name)
    except MlopsError:
        return None
    return found if found is not None else False
