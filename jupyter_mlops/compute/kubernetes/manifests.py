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
from ...core.resources.job import JobSpec, parse_bytes
from ...kube import podspec
from ...kube.names import DOMAIN, labels, object_name, ours
from ...kube.podspec import mount
from ...runtime import software
from ...runtime.berth import LOST, TOLD
from . import priority, trainjob
from . import volumes as given

#: Where things are in a pod.
BOOT, PARTS, WORK = "/mlops/boot", "/mlops/parts", "/mlops/work"
CACHE, PIP, CONDA = "/mlops/packages", "/mlops/pip", "/mlops/conda"
#: The workspace's part of the claim in which job folders lie.
SHELF = "/mlops/shelf"
#: Where the ranks of several pods meet.
PORT = 29400
MAIN, KEEPER, PACKAGES = "job", "keeper", "packages"
#: Label of the pods of an elastic attempt: how many there may be at once.
MOST = f"{DOMAIN}/most"
#: Annotations in which the cluster counts the pods of one index that ended before: disturbed ones, and all others.
COUNTS = ("batch.kubernetes.io/job-index-ignored-failure-count", "batch.kubernetes.io/job-index-failure-count")
#: Left in a node's folder here when all of its pod has come.
COPIED = "copied"
#: Beside it: which files of the pod can have no place here.
LEFT = "left.json"
#: Beside it: what came through an object store, and over a route to here.
ROUTE, ROUTED = "route.json", "routed.json"
#: What is noted of an attempt here, beside what its pods tell; and the secret of pods that call.
NOTE, CALL_KEY = "cluster.json", "call.key"
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

    ``parts`` are names of Secrets; empty: the inputs are brought by exec, or there are none. ``shelf``: name of the
    folder of the attempt, where job folders lie in a claim.
    """

    spec: JobSpec
    options: TrainingOptions
    image: str
    timeout: float | None = None
    instance: InstanceType = field(default_factory=InstanceType)
    parts: list[str] = field(default_factory=list)
    shelf: str = "preview"

    @property
    def nodes(self) -> int:
        """Pods of the attempt; of an elastic one, those with which it begins."""
        return self.spec.resources.instance_count

    @property
    def requirements(self) -> list[str]:
        """What pip installs, on top of the image or in the environment of conda."""
        return self.spec.environment.requirements if self.spec.environment else []

    @property
    def specs(self) -> list[str]:
        """What an environment of conda is made of; empty: there is none."""
        packed = self.spec.cell.packed if self.spec.cell else None
        # Code of a notebook that is sent runs in its own version of Python alone.
        ours = software.minor(packed.python) if packed and packed.by_value else ""
        return self.spec.environment.specs(ours) if self.spec.environment else []

    @property
    def installs(self) -> bool:
        """Whether packages are installed before the ranks start."""
        return bool(self.requirements or self.specs)

    @property
    def most(self) -> int:
        """Pods that there may be at once."""
        return max(self.nodes, self.spec.resources.max_instance_count or 1)

    @property
    def shelved(self) -> bool:
        """Whether job folders lie in a claim. Those of elastic attempts do not: pods that follow each other under one
        number would share one."""
        return self.options.store is not None and bool(self.options.store.claim) and not self.elastic

    @property
    def elastic(self) -> bool:
        """Whether pods may come and go while the attempt runs."""
        return self.most > self.nodes


def job(names: Names, order: Order, suspended: bool) -> dict[str, Any]:
    """The Job. It is made suspended, so that there is an owner for all that its pods need before there are pods."""
    spec: dict[str, Any] = {
        "completionMode": "Indexed", "completions": order.most, "parallelism": order.most, "suspend": suspended,
        "ttlSecondsAfterFinished": FORGOTTEN, "podReplacementPolicy": "Failed", **_failures(order),
        "template": {"metadata": {"labels": names.labels()}, "spec": _pod(names, order)},
    }
    if order.elastic:
        # By it the number of a pod that took another one's place is known.
        spec["template"]["metadata"]["labels"] = {**names.labels(), MOST: str(order.most)}
    labels = names.labels()
    if order.options.queue:
        labels["kueue.x-k8s.io/queue-name"] = order.options.queue  # Kueue lets it begin
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": names.object, "labels": labels}, "spec": spec}


def _failures(order: Order) -> dict[str, Any]:
    """What the end of a pod means for the Job.

    Whether there is another attempt the control plane decides: it alone knows what the job's owner asked for. So one
    pod that fails ends the Job, and its rules only make the Job's last word say whether the ranks failed or the
    cluster took the pod. Of an elastic attempt a pod that the cluster took is replaced, and the others go on.
    """
    disturbed: dict[str, Any] = {"onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}

    def code(operator: str, *values: int) -> dict[str, Any]:
        return {"onExitCodes": {"containerName": MAIN, "operator": operator, "values": list(values)}}

    if not order.elastic:
        return {"backoffLimit": 0, "podFailurePolicy": {"rules": [
            {"action": "FailJob", **disturbed}, {"action": "FailJob", **code("NotIn", 0)}]}}
    return {"backoffLimitPerIndex": 0, "podFailurePolicy": {"rules": [
        {"action": "Ignore", **disturbed}, {"action": "Ignore", **code("In", TOLD)},
        {"action": "FailJob", **code("NotIn", 0)}]},
        # The first pod holds all together, and ends last.
        "successPolicy": {"rules": [{"succeededIndexes": "0"}]}}


def service(names: Names, owner: dict[str, Any]) -> dict[str, Any]:
    """The headless Service that gives pods their host names; they must be known before a pod is ready."""
    return {"apiVersion": "v1", "kind": "Service", "metadata": _meta(names.object, names, owner), "spec": {
        "clusterIP": "None", "publishNotReadyAddresses": True, "selector": names.ours(),
        "ports": [{"name": "rendezvous", "port": PORT, "targetPort": PORT, "protocol": "TCP"}]}}


def controller(names: Names, order: Order) -> str:
    """The Job that makes the pods."""
    return trainjob.job_name(names.object) if order.options.flavour == "trainjob" else names.object


def address(names: Names, order: Order) -> str:
    """Host name of each pod, with ``%d`` for its number, and the port at which the ranks meet at the first one."""
    return f"{controller(names, order)}-%d.{names.object}:{PORT}"


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
    shm = {"medium": "Memory", "sizeLimit": spec.resources.shm_size or "2Gi"}
    volumes = [podspec.secret_volume("boot", boot_name(names)), *podspec.scratch(), {"name": "shm", "emptyDir": shm}]
    both = [mount("boot", BOOT, True), mount("work", WORK), mount("tmp", "/tmp")]
    own = [mount("shm", "/dev/shm")]
    if order.parts:
        volumes.append(podspec.parts_volume(order.parts))
        own.insert(0, mount("parts", PARTS, True))
    theirs, mounts = given.of_pod(spec, options, names.workspace)
    volumes += theirs
    own += mounts
    kept = _shelve(names, order, volumes, both)
    where = [f"{SHELF}/{order.shelf}"] if kept else []
    keeper = {**_container(KEEPER, order, KEEPER_RESOURCES),
              "command": _command(order, "hold", BOOT, WORK, str(options.hold), *where),
              "restartPolicy": "Always",  # a native sidecar: it is there before the ranks, and after them
              "volumeMounts": [*both, *kept]}
    # SIGTERM, the job's own grace, then the keeper's: until all that is new has been copied.
    grace = spec.limits.grace + 10 + options.hold
    spot = options.spot if spec.spot else None
    selector = {**options.node_selector, **order.instance.node_selector, **(spot.node_selector if spot else {})}
    tolerations = [*options.tolerations, *order.instance.tolerations, *(spot.tolerations if spot else [])]
    before = [keeper]
    if order.installs:
        before.append(_packages(names, order, [*both], volumes, own))
    main = {**_container(MAIN, order, resources(order)), "command": _command(order, "job", BOOT, WORK),
            "volumeMounts": [*both, *own],
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}
    result: dict[str, Any] = {
        **podspec.pod(options.run_as_user, grace, selector, tolerations, options.image_pull_secrets),
        "restartPolicy": "Never", "initContainers": before, "containers": [main], "volumes": volumes,
    }
    if (chosen := priority.chosen(spec, options)):
        result["priorityClassName"] = chosen
    if options.secrets:
        main["envFrom"] = [{"secretRef": {"name": name}} for name in options.secrets]
    if theirs or kept or (options.package_cache and order.installs):
        # Else all files of a large volume would be given to the group at each start.
        result["securityContext"]["fsGroupChangePolicy"] = "OnRootMismatch"
    if order.elastic:
        for name, annotation in zip(LOST, COUNTS, strict=True):
            field = {"fieldRef": {"fieldPath": f"metadata.annotations['{annotation}']"}}
            for container in (main, *before):
                container["env"].append({"name": name, "valueFrom": field})
    if order.most > 1:
        result["subdomain"] = names.object
    if order.timeout is not None:
        before_it = (options.pip.timeout if order.requirements else 0) + (options.conda.timeout if order.specs else 0)
        result["activeDeadlineSeconds"] = int(order.timeout + spec.limits.grace) + LATER + before_it
    return result


def _shelve(names: Names, order: Order, volumes: list[dict[str, Any]],
            mounts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Have job folders lie in a claim, where the operator has named one; what the keeper mounts beside, to tidy up."""
    store = order.options.store
    if store is None or not order.shelved:
        return []
    for volume in volumes:
        if volume["name"] == "work":
            del volume["emptyDir"]
            volume["persistentVolumeClaim"] = {"claimName": store.claim}
    for at in mounts:
        if at["name"] == "work":
            at["subPathExpr"] = f"{names.workspace}/{order.shelf}/$(JOB_COMPLETION_INDEX)"
    return [{**mount("work", SHELF), "subPath": names.workspace}]


def _packages(names: Names, order: Order, mounts: list[dict[str, Any]], volumes: list[dict[str, Any]],
              ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """The container that installs packages. It alone sees the operator's credentials, and writes to the cache."""
    cache, options = order.options.package_cache, order.options
    where = f"{WORK}/packages"
    if cache is not None:
        where = CACHE
        volumes.append(given.of_cache("packages", cache))
        part = {} if cache.shared else {"subPath": names.workspace}
        mounts.append({**mount("packages", CACHE), **part})
        ranks.append({**mount("packages", CACHE, True), **part})
    for name, secret, place in (("pip", options.pip.secret if order.requirements else "", PIP),
                                ("conda", options.conda.secret if order.specs else "", CONDA)):
        if secret:
            volumes.append(podspec.secret_volume(name, secret))
            mounts.append(mount(name, place, True))
    needs = resources(order)
    # No GPU is needed for that, and a device cannot be asked for twice.
    needs = {kind: {k: v for k, v in amounts.items() if "/" not in k} for kind, amounts in needs.items()}
    return {**_container(PACKAGES, order, needs), "command": _command(order, "packages", BOOT, WORK, where),
            "volumeMounts": mounts, "terminationMessagePolicy": "File"}


def packages(order: Order) -> dict[str, Any] | None:
    """What that container is told, see :mod:`jupyter_mlops.runtime.packages`; None: nothing is installed."""
    if not order.installs:
        return None
    pip, cache = order.options.pip, order.options.package_cache
    index = {"index_url": pip.index_url, "extra_index_urls": pip.extra_index_urls, "trusted_hosts": pip.trusted_hosts}
    return {"image": order.image, "requirements": order.requirements, "timeout": pip.timeout, "options": pip.options,
            "index": {k: v for k, v in index.items() if v}, "limit": parse_bytes(cache.size) if cache else 0,
            "conda": _conda(order)}


def _conda(order: Order) -> dict[str, Any] | None:
    """The part of it for :mod:`jupyter_mlops.runtime.conda`."""
    if not order.specs or order.spec.environment is None:
        return None
    options = order.options.conda
    return {"specs": order.specs, "channels": order.spec.environment.channels or options.channels,
            "alias": options.channel_alias, "cuda": options.cuda if order.spec.resources.gpus else "",
            "timeout": options.timeout}


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
    return {**podspec.container(name, order.image, order.options.image_pull_policy, WORK, needs),
            "env": podspec.python_env(f"{BOOT}/runtime.zip", WORK)}


def _command(order: Order, *arguments: str) -> list[str]:
    return [order.options.python, "-m", "jupyter_mlops.runtime.berth", *arguments]
