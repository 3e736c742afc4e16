"""The rights that the control plane's account needs in a namespace, no more than that."""

from __future__ import annotations

from typing import Any

from ..core.resources.compute import ComputeSpec
from .client import Kube

#: (API group, resource, verbs) that serving needs.
SERVING: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("", "configmaps", ("get", "list", "create", "patch", "delete")),
    ("", "secrets", ("get", "list", "create", "patch", "delete")),
    ("", "services", ("get", "list", "create", "patch", "delete")),
    ("", "pods", ("get", "list", "patch")),
    ("", "pods/log", ("get",)),
    ("", "pods/exec", ("get", "create")),
    ("", "pods/proxy", ("get", "create")),
    ("", "events", ("list",)),
    ("apps", "deployments", ("get", "list", "create", "patch", "delete")),
    ("apps", "replicasets", ("list",)),
    ("autoscaling", "horizontalpodautoscalers", ("get", "list", "create", "patch", "delete")),
    ("policy", "poddisruptionbudgets", ("get", "list", "create", "patch", "delete")),
    ("gateway.networking.k8s.io", "httproutes", ("get", "list", "create", "patch", "delete")),
)


#: (API group, resource, verbs) that jobs need.
TRAINING: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("batch", "jobs", ("get", "create", "patch", "delete")),
    ("", "secrets", ("get", "create", "delete")),
    ("", "services", ("get", "create", "patch")),
    ("", "pods", ("list", "watch")),
    ("", "pods/exec", ("get", "create")),
    ("", "persistentvolumeclaims", ("get",)),
    ("", "events", ("list",)),
)

#: What jobs use when they may: large files come back faster through the proxy.
TRAINING_FASTER: tuple[tuple[str, str, tuple[str, ...]], ...] = (("", "pods/proxy", ("get",)),)


#: What they need as well where they are TrainJobs of Kubeflow Trainer.
TRAINJOBS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("trainer.kubeflow.org", "trainjobs", ("get", "create", "patch", "delete")),
    ("trainer.kubeflow.org", "trainingruntimes", ("get", "create", "patch", "delete")),
)


def rules(*needs: tuple[tuple[str, str, tuple[str, ...]], ...]) -> list[dict[str, Any]]:
    """The rules of a Role for one or both of :data:`SERVING` and :data:`TRAINING`."""
    verbs: dict[tuple[str, str], list[str]] = {}
    for need in needs:
        for group, resource, wanted in need:
            there = verbs.setdefault((group, resource), [])
            there += [verb for verb in wanted if verb not in there]
    return [{"apiGroups": [group], "resources": [resource], "verbs": wanted}
            for (group, resource), wanted in verbs.items()]


def role(name: str, namespace: str, serving: bool = True, training: bool = True,
         trainjobs: bool = False) -> dict[str, Any]:
    """A Role with the least rights for what a compute is for, to be applied by an operator."""
    needs = [*((SERVING,) if serving else ()), *((TRAINING, TRAINING_FASTER) if training else ()),
             *((TRAINJOBS,) if trainjobs else ())]
    return {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
            "metadata": {"name": name, "namespace": namespace}, "rules": rules(*needs)}


def purposes(spec: ComputeSpec) -> tuple[bool, bool]:
    """Whether a compute is for serving, and whether it is for jobs: for what it has an image; without any, for both."""
    serving, training = bool(spec.serving.image), bool(spec.training.image)
    return (serving, training) if serving or training else (True, True)


def missing(kube: Kube, serving: bool = True, training: bool = False, trainjobs: bool = False) -> list[str]:
    """What the account of a compute may not do of it, such as ``"create pods/exec"``."""
    found = []
    needs = [*((SERVING,) if serving else ()), *((TRAINING,) if training else ()), *((TRAINJOBS,) if trainjobs else ())]
    for rule in rules(*needs):
        group, resource = rule["apiGroups"][0], rule["resources"][0]
        if group == "gateway.networking.k8s.io" and not kube.has_group(group):
            continue
        name, _, sub = resource.partition("/")
        found += [f"{verb} {resource}" for verb in rule["verbs"] if not kube.may(verb, name, group, sub)]
    return found
