"""Where packages stay that jobs have installed: whether that place is there, and whether the namespace allows it."""

from __future__ import annotations

from typing import Any

from ...core.errors import MlopsError
from ...core.resources.compute import TrainingOptions
from ...kube.client import Kube
from . import claims
from .volumes import STRICT


def place(kube: Kube, options: TrainingOptions, level: str, problems: list[dict[str, Any]]) -> dict[str, Any]:
    """Where the cache is, and what is wrong with it.

    Args:
        level: that of Pod Security which the namespace enforces; empty: none, or it may not be seen.
        problems: what stands in the way is added.

    Returns:
        ``{"kind": "pod", "claim" or "host_path", "name", "size", "access_modes"}``
    """
    for field, name, keys in (("pip", options.pip.secret, ("pip.conf", "netrc", "ca.crt")),
                              ("conda", options.conda.secret, ("condarc", "ca.crt"))):
        if name:
            _secret(kube, name, f"training.{field}.secret", keys, problems)
    cache = options.package_cache
    if cache is None:
        return {"kind": "pod", "name": "", "size": "", "access_modes": []}
    if cache.host_path:
        if level in STRICT:
            problems.append({
                "message": f"Pod Security {level} of the namespace admits no folder of a node ({cache.host_path})",
                "hint": "name a claim as package_cache, or leave it out: then each pod installs for itself",
                "fatal": True})
        return {"kind": "host_path", "name": cache.host_path, "size": cache.size, "access_modes": []}
    narrow = "" if options.max_nodes == 1 else "jobs with packages that need several nodes wait for ever"
    claim = claims.survey(kube, cache.claim, "training.package_cache", problems, narrow=narrow)
    return {"kind": "claim", "name": cache.claim, "size": cache.size,
            "access_modes": sorted(claim.modes) if claim else []}


def _secret(kube: Kube, name: str, field: str, keys: tuple[str, ...], problems: list[dict[str, Any]]) -> None:
    try:
        found = kube.get("Secret", name)
    except MlopsError:
        return
    listed = ", ".join(keys[:-1])
    if found is None:
        problems.append({"message": f"there is no Secret '{name}' in namespace '{kube.namespace}'",
                         "hint": f"{field} names it: one with {listed} or {keys[-1]}", "fatal": True})
    elif not set(keys) & set(found.get("data") or {}):
        problems.append({"message": f"the Secret '{name}' has none of {listed} and {keys[-1]}",
                         "hint": f"these are the keys that {field} is looked at for", "fatal": False})
