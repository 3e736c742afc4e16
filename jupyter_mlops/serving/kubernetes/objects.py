"""Making, finding and removing the objects of one endpoint; owners first, so that nothing is ever without one."""

from __future__ import annotations

from typing import Any

from ...core.errors import Conflict
from ...kube.client import Kube
from ...kube.errors import Absent
from ...kube.names import DOMAIN, owner
from . import manifests
from .plan import Names

#: Kinds of what we make, those that run first: they are deleted in this order.
OURS = ("HorizontalPodAutoscaler", "Deployment", "PodDisruptionBudget", "Service", "Secret", "ConfigMap")


class Objects:
    """The objects of one endpoint in one namespace."""

    def __init__(self, kube: Kube, names: Names) -> None:
        self.kube = kube
        self.names = names

    def owner(self, deployment: str = "") -> dict[str, Any]:
        """The reference to the endpoint's anchor, or to the deployment's; made when it is not there."""
        data = {"endpoint": self.names.endpoint, "workspace": self.names.workspace}
        if not deployment:
            made = manifests.anchor(self.names.anchor, self.names.labels("endpoint"), data)
        else:
            made = manifests.anchor(self.names.deployment(deployment), self.names.labels("endpoint", deployment),
                                    {**data, "deployment": deployment}, self.owner())
        return owner(self.apply(made))

    def apply(self, manifest: dict[str, Any], dry_run: bool = False) -> dict[str, Any]:
        """See :meth:`Kube.apply`; another's object of the same name is a conflict."""
        return self.kube.apply(manifest, self.names.ours(), dry_run)

    def secrets(self, component: str, owner: dict[str, Any], deployment: str = "") -> set[str]:
        """Names of the Secrets that are there and belong to this owner, not to one of an earlier life."""
        labels = self.names.ours(component=component, **({"deployment": deployment} if deployment else {}))
        return {item["metadata"]["name"] for item in self.kube.list("Secret", labels)
                if any(o["uid"] == owner["uid"] for o in item["metadata"].get("ownerReferences") or [])}

    def put_immutable(self, manifest: dict[str, Any]) -> None:
        """Create a Secret whose name says its content; does nothing when it is there."""
        path = self.kube.path("Secret")
        name = manifest["metadata"]["name"]
        try:
            self.kube.call("POST", path, manifest, {"fieldManager": "jupyter-mlops"}, what=f"making Secret {name}",
                           timeout=30.0)
        except Conflict:
            there = self.kube.get("Secret", name)
            labels = ((there or {}).get("metadata") or {}).get("labels") or {}
            if there is not None and any(labels.get(k) != v for k, v in self.names.ours().items()):
                raise
            # It may be one of an earlier life whose owner has gone; the collector would take it from under the pods.
            if there is not None and not self._same_owner(there, manifest):
                self.kube.delete("Secret", name)
                self.kube.call("POST", path, manifest, what=f"making Secret {name}", timeout=30.0)

    @staticmethod
    def _same_owner(one: dict[str, Any], other: dict[str, Any]) -> bool:
        def uids(manifest: dict[str, Any]) -> set[str]:
            return {o["uid"] for o in manifest["metadata"].get("ownerReferences") or []}

        return uids(one) == uids(other)

    def remove(self, deployment: str = "", component: str = "") -> int:
        """Delete the endpoint's objects, or a deployment's; how many there were."""
        more = {"deployment": deployment} if deployment else {}
        if component:
            more["component"] = component
        labels = self.names.ours(**more)
        return sum(self._remove(kind, labels) for kind in OURS)

    def _remove(self, kind: str, labels: dict[str, str]) -> int:
        try:
            found = self.kube.list(kind, labels)
        except Absent:
            return 0  # a cluster without such objects
        return sum(self.kube.delete(kind, item["metadata"]["name"]) for item in found)

    def left(self) -> list[str]:
        """Kind and name of everything of the endpoint that is still there, pods among it."""
        found = []
        for kind in (*OURS, "ReplicaSet", "Pod"):
            found += [f"{kind} {item['metadata']['name']}" for item in self.kube.list(kind, self.names.ours())]
        return found

    def sweep(self, deployment: dict[str, Any], name: str) -> int:
        """Delete Secrets of a deployment that its Deployment does not mount any more; how many."""
        used = mounted(deployment)
        count = 0
        for item in self.kube.list("Secret", self.names.ours(deployment=name, component="scorer")):
            if item["metadata"]["name"] not in used:
                count += self.kube.delete("Secret", item["metadata"]["name"])
        return count


def mounted(deployment: dict[str, Any]) -> set[str]:
    """Names of the Secrets that a Deployment's pods mount."""
    found: set[str] = set()
    for volume in ((deployment.get("spec") or {}).get("template") or {}).get("spec", {}).get("volumes") or []:
        if "secret" in volume:
            found.add(volume["secret"]["secretName"])
        for source in (volume.get("projected") or {}).get("sources") or []:
            if "secret" in source:
                found.add(source["secret"]["name"])
    return found


def digest_of(manifest: dict[str, Any] | None) -> str:
    """The digest under which an object was made."""
    annotations = ((manifest or {}).get("metadata") or {}).get("annotations") or {}
    return str(annotations.get(f"{DOMAIN}/digest") or "")


