"""Volumes of a job's pods that are there before it: claims that it names, and the cache of its inputs.

The operator says which claims jobs may mount (``training.claims``): without that, none, since a claim of a shared
namespace may be somebody's. They are mounted read-only, for an output writable where the operator allows that.
"""

from __future__ import annotations

import contextlib
from fnmatch import fnmatchcase
from typing import Any

from ...core.errors import MlopsError, Refused
from ...core.resources.compute import CacheVolume, ComputeSpec, TrainingOptions
from ...core.resources.job import JobSpec
from ...kube.client import Kube
from ...kube.errors import NotAllowed
from ...kube.podspec import mount
from . import claims

#: Where they are in a pod.
CACHE, CLAIMS = "/mlops/cache", "/mlops/claims"
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
        claim = claims.look(kube, name)
    except NotAllowed:
        raise Refused(f"compute '{kube.cluster}' may not look at the claim '{name}'",
                      "its role needs: get persistentvolumeclaims") from None
    if claim is None:
        raise Refused(f"there is no claim '{name}' in the namespace '{kube.namespace}'", "check its name")
    if claim.leaving:
        raise Refused(f"the claim '{name}' is being deleted", "name another one")
    if claim.phase == "Lost":
        raise Refused(f"the claim '{name}' has lost its volume", "an operator of the cluster looks after it")
    if claim.phase == "Pending" and not claims.waits_for_a_pod(kube, claim.kind):
        raise Refused(f"the claim '{name}' has no volume yet (storage class '{claim.kind or 'none'}')",
                      "wait for the cluster to provide one, or ask an operator")
    if nodes > 1 and not claim.modes & (claims.WRITE if writes else claims.READ):
        raise Refused(f"the claim '{name}' is for {claim.reach}: {nodes} nodes cannot "
                      f"{'write to' if writes else 'read'} it",
                      f"it needs {'ReadWriteMany' if writes else 'ReadOnlyMany or ReadWriteMany'}")
    if writes and claim.modes == {"ReadOnlyMany"}:
        raise Refused(f"the claim '{name}' is read-only", "name another one for the output")
    if "ReadWriteOncePod" in claim.modes and (user := claims.user(kube, name)):
        raise Refused(f"the claim '{name}' is for one pod at a time, and {user} has it", "wait until that has ended")
    return f"claim '{name}' is mounted {'writable' if writes else 'read-only'} ({claim.about})"


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
        cached = field == "training.cache"
        claims.survey(kube, name, field, problems, cached,
                      "all jobs that read files then run on one node" if cached else "")
    for name in options.secrets:
        with contextlib.suppress(MlopsError):  # not for us to see: then pods tell
            if kube.get("Secret", name) is not None:
                continue
            problems.append({"message": f"there is no Secret '{name}', which training.secrets names",
                             "hint": "jobs wait until an operator of the cluster makes it", "fatal": False})
