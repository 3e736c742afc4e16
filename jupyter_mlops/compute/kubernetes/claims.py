"""What a PersistentVolumeClaim of a cluster is good for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...core.errors import MlopsError
from ...kube.client import Kube
from ...kube.quantity import count_of

#: Access modes with which pods on several nodes can have a volume: to read, and to write.
READ, WRITE = frozenset({"ReadOnlyMany", "ReadWriteMany"}), frozenset({"ReadWriteMany"})
_SHORT = {"ReadWriteOnce": "one node", "ReadWriteOncePod": "one pod", "ReadOnlyMany": "many nodes, read-only",
          "ReadWriteMany": "many nodes"}


@dataclass(frozen=True)
class Claim:
    """One claim, as the cluster has it now. ``size``: bytes, 0 where it is not known."""

    name: str
    modes: frozenset[str]
    phase: str
    kind: str
    size: float
    leaving: bool

    @property
    def reach(self) -> str:
        """By whom it can be mounted, in words."""
        return ", ".join(_SHORT.get(m, m) for m in sorted(self.modes)) or "nobody"

    @property
    def about(self) -> str:
        """Size, access modes, storage class and phase, for people."""
        parts = [f"{self.size / 2**30:.3g} GiB"] if self.size else []
        parts += [", ".join(sorted(self.modes)), f"storage class '{self.kind}'" if self.kind else "no storage class"]
        return "; ".join([*parts, self.phase.lower()])


def look(kube: Kube, name: str) -> Claim | None:
    """The claim, or None when it is not there.

    Raises:
        NotAllowed: it is not for us to see.
        BackendUnreachable, BackendTimeout: the cluster does not answer.
    """
    found = kube.get("PersistentVolumeClaim", name)
    if found is None:
        return None
    spec, status = found.get("spec") or {}, found.get("status") or {}
    return Claim(name, frozenset(str(m) for m in status.get("accessModes") or spec.get("accessModes") or []),
                 str(status.get("phase") or "Pending"), str(spec.get("storageClassName") or ""),
                 count_of((status.get("capacity") or {}).get("storage") or "0"),
                 bool(found["metadata"].get("deletionTimestamp")))


def waits_for_a_pod(kube: Kube, kind: str) -> bool:
    """Whether volumes of a storage class are made when a pod wants them; also where that is not for us to see."""
    if not kind:
        return False
    try:
        found = kube.call("GET", f"/apis/storage.k8s.io/v1/storageclasses/{kind}", what="reading a storage class")
    except MlopsError:
        return True
    return found.get("volumeBindingMode") == "WaitForFirstConsumer"


def user(kube: Kube, claim: str) -> str:
    """A pod that has a claim now, or empty."""
    for pod in kube.list("Pod"):
        if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            continue
        for volume in (pod.get("spec") or {}).get("volumes") or []:
            if (volume.get("persistentVolumeClaim") or {}).get("claimName") == claim:
                return f"pod {pod['metadata']['name']}"
    return ""


def survey(kube: Kube, name: str, field: str, problems: list[dict[str, Any]], fatal: bool = True,
           narrow: str = "") -> Claim | None:
    """Note what is wrong with a claim that a compute names, when it is attached or shown.

    Args:
        field: of the compute, that names it.
        fatal: whether jobs cannot do without it.
        narrow: what it means when only one node can write to it; empty: nothing.

    Returns:
        the claim; None when it is not there, or not for us to see: then pods tell.
    """
    try:
        claim = look(kube, name)
    except MlopsError:
        return None
    if claim is None:
        problems.append({"message": f"there is no claim '{name}', which {field} names",
                         "hint": f"an operator of the cluster makes it in the namespace '{kube.namespace}'",
                         "fatal": fatal})
        return None
    if claim.phase == "Lost":
        problems.append({"message": f"the claim '{name}' of {field} has lost its volume",
                         "hint": "an operator of the cluster makes it anew", "fatal": fatal})
    if narrow and not claim.modes & WRITE:
        problems.append({"message": f"the claim '{name}' of {field} is for {claim.reach}"
                                    f" ({', '.join(sorted(claim.modes)) or 'no access mode'})",
                         "hint": f"{narrow}: a claim of mode ReadWriteMany has not this limit", "fatal": False})
    return claim
