"""The parts that all our pods are made of: each passes Pod Security "restricted"."""

from __future__ import annotations

from typing import Any

from ..core.resources.compute import Toleration
from ..runtime.parcel import PART


def pod(run_as_user: int, grace: float, selector: dict[str, str], tolerations: list[Toleration],
        pull_secrets: list[str]) -> dict[str, Any]:
    """What a pod's spec says beside its containers and volumes: not root, no service-account token, where it may run.

    Args:
        run_as_user: 0: the cluster says, as OpenShift does.
        grace: seconds from SIGTERM to SIGKILL.
    """
    security: dict[str, Any] = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    if run_as_user:
        security.update(runAsUser=run_as_user, runAsGroup=run_as_user, fsGroup=run_as_user)
    result: dict[str, Any] = {
        "automountServiceAccountToken": False, "enableServiceLinks": False, "securityContext": security,
        "terminationGracePeriodSeconds": int(grace),
    }
    if selector:
        result["nodeSelector"] = dict(selector)
    if tolerations:
        result["tolerations"] = [t.model_dump(by_alias=True, exclude_none=True) for t in tolerations]
    if pull_secrets:
        result["imagePullSecrets"] = [{"name": name} for name in pull_secrets]
    return result


def container(name: str, image: str, pull_policy: str, work: str, resources: dict[str, Any]) -> dict[str, Any]:
    """A container with a read-only root, without any capability."""
    return {
        "name": name, "image": image, "imagePullPolicy": pull_policy, "workingDir": work,
        "resources": {key: value for key, value in resources.items() if value},
        "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "privileged": False,
                            "capabilities": {"drop": ["ALL"]}},
    }


def python_env(path: str, home: str) -> list[dict[str, str]]:
    """The environment of a Python that finds us in ``path``, and can write to ``home`` alone."""
    return [{"name": "PYTHONPATH", "value": path}, {"name": "PYTHONUNBUFFERED", "value": "1"},
            {"name": "PYTHONDONTWRITEBYTECODE", "value": "1"}, {"name": "HOME", "value": home}]


def mount(name: str, path: str, read_only: bool = False) -> dict[str, Any]:
    """Where a container sees a volume."""
    return {"name": name, "mountPath": path, **({"readOnly": True} if read_only else {})}


def secret_volume(name: str, secret: str) -> dict[str, Any]:
    """A volume with the keys of a Secret as files."""
    return {"name": name, "secret": {"secretName": secret, "defaultMode": 0o440}}


def parts_volume(parts: list[str]) -> dict[str, Any]:
    """One folder with the parts of all these Secrets, in their order."""
    return {"name": "parts", "projected": {"defaultMode": 0o440, "sources": [
        {"secret": {"name": part, "items": [{"key": "part", "path": PART % number}]}}
        for number, part in enumerate(parts)]}}


def scratch() -> list[dict[str, Any]]:
    """The volumes that a container can write to."""
    return [{"name": "work", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]
