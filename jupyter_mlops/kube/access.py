"""The rights that the control plane's account needs in a namespace, no more than that."""

from __future__ import annotations

from typing import Any

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


def role(name: str, namespace: str) -> dict[str, Any]:
    """A Role with the least rights for serving, to be applied by an operator."""
    return {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
            "metadata": {"name": name, "namespace": namespace},
            "rules": [{"apiGroups": [group], "resources": [resource], "verbs": list(verbs)}
                      for group, resource, verbs in SERVING]}


def missing(kube: Kube) -> list[str]:
    """What the account of a compute may not do of it, such as ``"create pods/exec"``."""
    found = []
    for group, resource, verbs in SERVING:
        if group == "gateway.networking.k8s.io" and not kube.has_group(group):
            continue
        name, _, sub = resource.partition("/")
        found += [f"{verb} {resource}" for verb in verbs if not kube.may(verb, name, group, sub)]
    return found
