"""The objects of a cluster that run one attempt of a job, as plain dicts.

An Indexed Job owns all the rest: what else there is goes when it goes. Every pod passes Pod Security "restricted": not
root, read-only root, no capabilities, no service-account token. Code, inputs and the ranks' environment lie in Secrets,
never in a manifest.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any

from ...core.resources.compute import InstanceType, TrainingOptions
from ...core.resources.job import JobSpec
from ...kube.names import DOMAIN, labels, object_name, ours

#: Where things are in a pod.
BOOT, PARTS, WORK = "/mlops/boot", "/mlops/parts", "/mlops/work"
#: Where the ranks of several pods meet.
PORT = 29400
MAIN, KEEPER = "job", "keeper"
#: What a rank asks for when the job does not say.
CPU, MEMORY = "100m", "128Mi"
KEEPER_RESOURCES = {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "256Mi"}}
#: Seconds after which a Job that nobody collects goes by itself.
FORGOTTEN = 7 * 24 * 3600
#: Seconds by which the cluster's own limit of time is later than ours.
LATER = 120


@dataclass(frozen=True)
class Names:
    """Names and labels of what belongs to one attempt of a job."""

    workspace: str
    job: str
    attempt: int

    @property
    def object(self) -> str:
        """The Job, the headless Service, and what the names of Secrets begin with."""
        return object_name(f"{self.job}-{self.attempt}", self.workspace, self.job, str(self.attempt))

    def labels(self) -> dict[str, str]:
        """Labels of an object."""
        return labels(self.workspace, "job", job=self.job, attempt=str(self.attempt))

    def ours(self) -> dict[str, str]:
        """Labels by which objects of the attempt are found again."""
        return ours(self.workspace, job=self.job, attempt=str(self.attempt))


@dataclass
class Order:
    """What one attempt is started with.

    ``parts`` are names of Secrets; empty: the inputs are brought by exec, or there are none.
    """

    spec: JobSpec
    options: TrainingOptions
    image: str
    timeout: float | None = None
    instance: InstanceType = field(default_factory=InstanceType)
    inputs: dict[str, Any] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)

    @property
    def nodes(self) -> int:
        """Pods of the attempt."""
        return self.spec.resources.instance_count


def job(names: Names, order: Order, suspended: bool) -> dict[str, Any]:
    """The Job. It is made suspended, so that there is an owner for all that its pods need before there are pods."""
    spec: dict[str, Any] = {
        "completionMode": "Indexed", "completions": order.nodes, "parallelism": order.nodes, "suspend": suspended,
        # Whether there is another attempt the control plane decides: it alone knows what the job's owner asked for.
        "backoffLimit": 0, "ttlSecondsAfterFinished": FORGOTTEN,
        "podReplacementPolicy": "Failed",
        "template": {"metadata": {"labels": names.labels()}, "spec": _pod(names, order)},
    }
    labels = names.labels()
    if order.options.queue:
        labels["kueue.x-k8s.io/queue-name"] = order.options.queue  # Kueue lets it begin
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": names.object, "labels": labels}, "spec": spec}


def service(names: Names, owner: dict[str, Any]) -> dict[str, Any]:
    """The headless Service that gives pods their host names; they must be known before a pod is ready."""
    return {"apiVersion": "v1", "kind": "Service", "metadata": _meta(names.object, names, owner), "spec": {
        "clusterIP": "None", "publishNotReadyAddresses": True, "selector": names.ours(),
        "ports": [{"name": "rendezvous", "port": PORT, "targetPort": PORT, "protocol": "TCP"}]}}


def address(names: Names) -> str:
    """Where the ranks of several pods meet."""
    return f"{names.object}-0.{names.object}:{PORT}"


def secret(name: str, names: Names, owner: dict[str, Any], data: dict[str, bytes]) -> dict[str, Any]:
    """An immutable Secret."""
    return {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "immutable": True,
            "metadata": _meta(name, names, owner),
            "data": {key: base64.b64encode(value).decode("ascii") for key, value in data.items()}}


def boot_name(names: Names) -> str:
    """Name of the Secret with our runtime and the order."""
    return f"{names.object}-boot"


def part_name(names: Names, number: int) -> str:
    """Name of a Secret with a part of the inputs."""
    return f"{names.object}-in-{number:02d}"


def _meta(name: str, names: Names, owner: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "labels": names.labels(), "ownerReferences": [owner]}


def _pod(names: Names, order: Order) -> dict[str, Any]:
    options, spec = order.options, order.spec
    security: dict[str, Any] = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    if options.run_as_user:  # 0: the cluster says, as OpenShift does
        security.update(runAsUser=options.run_as_user, runAsGroup=options.run_as_user, fsGroup=options.run_as_user)
    volumes: list[dict[str, Any]] = [
        {"name": "boot", "secret": {"secretName": boot_name(names), "defaultMode": 0o440}},
        {"name": "work", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": spec.resources.shm_size or "2Gi"}},
    ]
    mounts = [_mount("boot", BOOT, True), _mount("work", WORK), _mount("tmp", "/tmp")]
    if order.parts:
        volumes.append({"name": "parts", "projected": {"defaultMode": 0o440, "sources": [
            {"secret": {"name": part, "items": [{"key": "part", "path": f"part-{number:05d}"}]}}
            for number, part in enumerate(order.parts)]}})
        mounts.append(_mount("parts", PARTS, True))
    keeper = {**_container(KEEPER, order, KEEPER_RESOURCES),
              "command": _command(order, "hold", WORK, str(options.hold)),
              "restartPolicy": "Always",  # a native sidecar: it is there before the ranks, and after them
              "volumeMounts": [_mount("boot", BOOT, True), _mount("work", WORK), _mount("tmp", "/tmp")]}
    main = {**_container(MAIN, order, resources(order)), "command": _command(order, "job", BOOT, WORK),
            "volumeMounts": [*mounts, _mount("shm", "/dev/shm")],
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}
    # SIGTERM, the job's own grace, then the keeper's: until all that is new has been copied.
    grace = int(spec.limits.grace + 10 + options.hold)
    result: dict[str, Any] = {
        "restartPolicy": "Never", "automountServiceAccountToken": False, "enableServiceLinks": False,
        "securityContext": security, "terminationGracePeriodSeconds": grace,
        "initContainers": [keeper], "containers": [main], "volumes": volumes,
    }
    if order.nodes > 1:
        result["subdomain"] = names.object
    if order.timeout is not None:
        result["activeDeadlineSeconds"] = int(order.timeout + spec.limits.grace) + LATER
    selector = {**options.node_selector, **order.instance.node_selector}
    if selector:
        result["nodeSelector"] = selector
    tolerations = [*options.tolerations, *order.instance.tolerations]
    if tolerations:
        result["tolerations"] = [t.model_dump(by_alias=True, exclude_none=True) for t in tolerations]
    if options.image_pull_secrets:
        result["imagePullSecrets"] = [{"name": name} for name in options.image_pull_secrets]
    return result


def resources(order: Order) -> dict[str, Any]:
    """Requests and limits of one pod: the instance type's, and what the job asks for in their place."""
    asked, kind = order.spec.resources, order.instance.resources
    memory = _quantity(asked.memory)
    limits = dict(kind.limits)
    # Without a request of its own a container asks for its limit.
    requests = {name: amount for name, amount in (("cpu", CPU), ("memory", MEMORY)) if name not in limits}
    requests.update(kind.requests)
    if asked.cpus:
        requests["cpu"] = f"{int(asked.cpus * 1000)}m"
        limits.pop("cpu", None)
    if memory:
        requests["memory"] = limits["memory"] = memory
    if asked.gpus:
        limits[order.options.gpu_resource] = str(int(asked.gpus))
    return {name: value for name, value in (("requests", requests), ("limits", limits)) if value}


def _quantity(text: str) -> str:
    """A size in Kubernetes' spelling: what we call ``ki`` is ``Ki`` there."""
    return text.replace("ki", "Ki")


def _container(name: str, order: Order, needs: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name, "image": order.image, "imagePullPolicy": order.options.image_pull_policy, "workingDir": WORK,
        "resources": needs,
        "env": [{"name": "PYTHONPATH", "value": f"{BOOT}/runtime.zip"}, {"name": "PYTHONUNBUFFERED", "value": "1"},
                {"name": "PYTHONDONTWRITEBYTECODE", "value": "1"}, {"name": "HOME", "value": WORK}],
        "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "privileged": False,
                            "capabilities": {"drop": ["ALL"]}},
    }


def _command(order: Order, *arguments: str) -> list[str]:
    return [order.options.python, "-m", "jupyter_mlops.runtime.berth", *arguments]


def _mount(name: str, path: str, read_only: bool = False) -> dict[str, Any]:
    return {"name": name, "mountPath": path, **({"readOnly": True} if read_only else {})}


def annotation(key: str) -> str:
    """A name of our domain."""
    return f"{DOMAIN}/{key}"
