"""Compute: a named place where jobs run or models serve, made by an operator."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from .base import Model, Spec, Status
from .environment import channel

_DNS = r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?"
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,499}")


class Toleration(Model):
    """A taint of nodes that pods put up with; names as in Kubernetes."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    key: str | None = None
    operator: Literal["Exists", "Equal"] | None = None
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: int | None = Field(default=None, alias="tolerationSeconds", ge=0)


def _image(value: str) -> str:
    if value and not _IMAGE.fullmatch(value):
        raise ValueError(f"{value!r} is no name of an image")
    return value


class ServingOptions(Model):
    """How endpoints are served on a cluster.

    ``image`` needs Python 3.9 and what the models import; ``gateway_image`` (default: ``image``) Python 3.11. Nothing
    of ours has to be in them. ``gateway``: ``own``, ``gateway-api`` (an HTTPRoute of ``parent_gateway``), or ``auto``:
    the second where the cluster has it and ``parent_gateway`` is given.
    """

    image: str = Field(default="", max_length=500)
    gateway_image: str = Field(default="", max_length=500)
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    image_pull_secrets: list[str] = Field(default_factory=list, max_length=10)
    python: str = Field(default="python3", pattern=r"^[A-Za-z0-9._/-]{1,200}$", description="its name in the images")
    service_type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    node_port: int = Field(default=0, ge=0, le=65535, description="0: the cluster chooses")
    service_annotations: dict[str, str] = Field(default_factory=dict)
    tls_secret: str = Field(default="", max_length=253, description="a Secret of type kubernetes.io/tls there")
    gateway: Literal["auto", "own", "gateway-api"] = "auto"
    parent_gateway: str = Field(default="", max_length=300, description="NAME or NAMESPACE/NAME of a Gateway")
    hostname: str = Field(default="", max_length=253, description="under which callers reach the endpoints")
    gateway_replicas: int = Field(default=1, ge=1, le=16)
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: list[Toleration] = Field(default_factory=list, max_length=50)
    pod_labels: dict[str, str] = Field(default_factory=dict)
    run_as_user: int = Field(default=1000, ge=0, le=2**31 - 1, description="0: the cluster or the image says")

    @field_validator("image", "gateway_image")
    @classmethod
    def _an_image(cls, value: str) -> str:
        return _image(value)

    @field_validator("tls_secret", "hostname")
    @classmethod
    def _a_dns_name(cls, value: str) -> str:
        if value and not re.fullmatch(_DNS, value):
            raise ValueError(f"{value!r} is not valid: lower-case letters, digits, dashes and dots")
        return value

    @model_validator(mode="after")
    def _a_parent(self) -> ServingOptions:
        if self.gateway == "gateway-api" and not self.parent_gateway:
            raise ValueError("gateway: gateway-api needs parent_gateway, the Gateway that its routes belong to")
        return self


#: Taints that clouds and autoscalers put on nodes which can be taken away, in their own words.
SPOT_TAINTS = ("cloud.google.com/gke-spot", "cloud.google.com/gke-provisioning", "eks.amazonaws.com/capacityType",
               "karpenter.sh/capacity-type", "kubernetes.azure.com/scalesetpriority")


class SpotOptions(Model):
    """Where jobs run that can be told to go.

    Without anything set such a job puts up with the taints that clouds give to their spot nodes, may also run
    elsewhere, and has the PriorityClass of low priority.
    """

    allowed: bool = True
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: list[Toleration] = Field(
        default_factory=lambda: [Toleration(key=key, operator="Exists") for key in SPOT_TAINTS], max_length=50)
    priority_class: str = Field(default="", pattern=rf"^({_DNS})?$", description="empty: that of low priority")


#: Options of pip that say what it installs and where, which is not the operator's part.
_PLACES = frozenset({"--target", "--prefix", "--root", "--user", "--python", "--requirement", "--constraint", "--src",
                     "--editable", "--dry-run", "--report", "--log", "--break-system-packages", "--ignore-installed"})


class PipOptions(Model):
    """Where packages of jobs come from. Credentials are in none of it: they lie in ``secret``, a Secret of the
    namespace with one or more of the keys ``pip.conf``, ``netrc`` and ``ca.crt``, which only the installation can read.
    """

    index_url: str = Field(default="", max_length=1000, description="empty: that of the image, else PyPI")
    extra_index_urls: list[str] = Field(default_factory=list, max_length=20)
    trusted_hosts: list[str] = Field(default_factory=list, max_length=20, description="hosts without https")
    options: list[str] = Field(default_factory=list, max_length=50, description="of pip install: --only-binary=:all:")
    secret: str = Field(default="", pattern=rf"^({_DNS})?$")
    timeout: int = Field(default=1800, ge=10, le=86_400, description="seconds that an installation may take")

    @field_validator("index_url", "extra_index_urls", "options")
    @classmethod
    def _without_credentials(cls, value: str | list[str]) -> str | list[str]:
        for text in [value] if isinstance(value, str) else value:
            if re.search(r"://[^/\s]*@", text):
                raise ValueError("an address with credentials belongs into pip.conf of a Secret: training.pip.secret")
        return value

    @field_validator("index_url", "extra_index_urls")
    @classmethod
    def _addresses(cls, value: str | list[str]) -> str | list[str]:
        for text in [value] if isinstance(value, str) else value:
            if text and not re.fullmatch(r"(https?|file)://\S+", text):
                raise ValueError(f"{text!r} is no address of a package index")
        return value

    @field_validator("options")
    @classmethod
    def _plain(cls, value: list[str]) -> list[str]:
        for text in value:
            if not re.fullmatch(r"--[a-z][a-z-]*(=\S*)?", text) or text.partition("=")[0] in _PLACES:
                raise ValueError(f"{text!r} cannot be given to pip here; options are such as --only-binary=:all:")
        return value


class CondaOptions(Model):
    """Where packages of conda come from. ``secret``: a Secret of the namespace with ``condarc``, ``ca.crt`` or both,
    which only the installation can read; credentials are in nothing else.
    """

    channels: list[str] = Field(default_factory=list, max_length=20, description="of files that name none")
    channel_alias: str = Field(default="", max_length=500, pattern=r"^((https?|file)://[^@\s]+)?$",
                               description="before the name of each channel: an own mirror")
    cuda: str = Field(default="", pattern=r"^([0-9]{1,3}(\.[0-9]{1,3})?)?$",
                      description="of the nodes' drivers, for jobs with GPUs: none is there while installing")
    secret: str = Field(default="", pattern=rf"^({_DNS})?$")
    timeout: int = Field(default=3600, ge=10, le=86_400, description="seconds that making an environment may take")

    @field_validator("channels")
    @classmethod
    def _channels(cls, value: list[str]) -> list[str]:
        return [channel(name, files=True) for name in value]


class CacheVolume(Model):
    """Where what was downloaded stays for further jobs: a PersistentVolumeClaim of the namespace, or a folder of each
    node.

    ``size``: most bytes; when there is more, that goes which was not used for the longest time.
    """

    claim: str = Field(default="", pattern=rf"^({_DNS})?$")
    host_path: str = Field(default="", max_length=500)
    size: str = Field(default="50Gi", max_length=20, pattern=r"^[0-9]+(\.[0-9]+)?([kMGT]i?)?$")

    @model_validator(mode="after")
    def _one_place(self) -> CacheVolume:
        if bool(self.claim) == bool(self.host_path):
            raise ValueError("it needs one of claim and host_path")
        if self.host_path and (not self.host_path.startswith("/") or ".." in self.host_path.split("/")):
            raise ValueError("host_path must be an absolute path")
        return self


class PackageCache(CacheVolume):
    """The same of installed packages. ``shared``: by all workspaces that use the volume. Who installs runs an image and
    code of their own choice: they could change what the others import.
    """

    shared: bool = Field(default=False, description="else each workspace has a folder of its own in it")
    size: str = Field(default="20Gi", max_length=20, pattern=r"^[0-9]+(\.[0-9]+)?([kMGT]i?)?$")


class ClaimRule(Model):
    """Claims that jobs may mount: ``name`` is one, or a pattern such as ``datasets-*``. Text alone is a name."""

    name: str = Field(min_length=1, max_length=253, pattern=r"^[a-z0-9.*?\[\]!-]+$")
    writable: bool = Field(default=False, description="whether outputs of jobs may be written there")

    @model_validator(mode="before")
    @classmethod
    def _text(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value


class StoreOptions(Model):
    """Where files of jobs lie and go, in place of a volume that goes with the pod, and of the cluster's API.

    ``claim``: a PersistentVolumeClaim of the namespace in which the folders of pods lie, so that they outlive a lost
    node. ``url``: an object store (S3's API) that large files go through.

    Pods get signed addresses of single objects, never credentials: the control plane has those of ``secret``, a Secret
    of the namespace with ``AWS_ACCESS_KEY_ID`` and ``AWS_SECRET_ACCESS_KEY``; without one, those of its environment.
    """

    claim: str = Field(default="", pattern=rf"^({_DNS})?$", description="in which the folders of pods lie")
    url: str = Field(default="", pattern=r"^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9._/=-]{0,500})?)?$")
    endpoint_url: str = Field(default="", max_length=500, description="of the store; empty: AWS")
    pod_endpoint_url: str = Field(default="", max_length=500, description="the same for pods; empty: endpoint_url")
    region: str = Field(default="", pattern=r"^[A-Za-z0-9-]{0,50}$")
    secret: str = Field(default="", pattern=rf"^({_DNS})?$")

    @model_validator(mode="after")
    def _something(self) -> StoreOptions:
        if not self.claim and not self.url:
            raise ValueError("it needs claim, or url, or both")
        return self

    @field_validator("endpoint_url", "pod_endpoint_url")
    @classmethod
    def _an_address(cls, value: str) -> str:
        if value and not re.fullmatch(r"https?://[^/@\s]+/?", value):
            raise ValueError(f"{value!r} is no address such as https://HOST:PORT; credentials belong into a Secret")
        return value


_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.]{2,60}\]|[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?):([0-9]{1,5})")


def host_and_port(address: str) -> tuple[str, int]:
    """The parts of ``HOST:PORT``, or of ``[HOST]:PORT`` where the host is an address of IPv6.

    Raises:
        ValueError: it is no such address.
    """
    match = _HOST_PORT.fullmatch(address)
    if match is None or not 0 < int(match[3]) < 65536:
        raise ValueError(f"{address!r} is no address such as 10.0.0.5:7443 or mlops.example:7443")
    return match[1].strip("[]"), int(match[3])


class RouteOptions(Model):
    """Where the control plane listens for pods of jobs, which then bring everything by themselves: over TLS, past the
    cluster's API.

    ``listen``: ``HOST:PORT`` of the control plane's machine. ``address``: the same as pods see it, where that differs.
    """

    listen: str = Field(max_length=300)
    address: str = Field(default="", max_length=300, description="empty: that of listen")

    @field_validator("listen", "address")
    @classmethod
    def _an_address(cls, value: str) -> str:
        if value:
            host_and_port(value)
        return value

    @model_validator(mode="after")
    def _a_place(self) -> RouteOptions:
        if not self.listen:
            raise ValueError("listen is missing: HOST:PORT on the control plane's machine")
        if not self.address and host_and_port(self.listen)[0] in ("0.0.0.0", "::"):
            raise ValueError(f"who listens on {self.listen} has to say as address where pods find that")
        return self


class TrainingOptions(Model):
    """How jobs run on a cluster.

    ``image`` needs Python 3.9 and what the jobs import; nothing of ours has to be in it. ``hold``: seconds for which a
    pod that has ended stays, with all that it was given, until its outputs have been copied.
    """

    image: str = Field(default="", max_length=500)
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    image_pull_secrets: list[str] = Field(default_factory=list, max_length=10)
    python: str = Field(default="python3", pattern=r"^[A-Za-z0-9._/-]{1,200}$", description="its name in the images")
    gpu_resource: str = Field(
        default="nvidia.com/gpu", pattern=r"^[A-Za-z0-9][A-Za-z0-9./_-]{0,252}$",
        description="what a GPU is called there: amd.com/gpu, nvidia.com/mig-1g.5gb, …"
    )
    hold: int = Field(default=300, ge=0, le=86_400)
    transfer: Literal["auto", "exec"] = Field(
        default="auto", description="how large files come back: through the API's proxy where it may be, or never so")
    queue: str = Field(default="", max_length=253, description="a LocalQueue of Kueue in the namespace")
    flavour: Literal["job", "trainjob"] = Field(
        default="job", description="trainjob: jobs are TrainJobs of Kubeflow Trainer, which has to be there"
    )
    max_nodes: int = Field(default=0, ge=0, le=1000, description="most pods of one job; 0: no limit of ours")
    priorities: dict[Literal["low", "medium", "high"], str] = Field(
        default_factory=dict, description="PriorityClass of each priority that users may ask for; empty: none, and any")
    spot: SpotOptions = Field(default_factory=SpotOptions)
    pip: PipOptions = Field(default_factory=PipOptions)
    conda: CondaOptions = Field(default_factory=CondaOptions)
    package_cache: PackageCache | None = Field(default=None, description="none: each pod installs for itself")
    claims: list[ClaimRule] = Field(default_factory=list, max_length=200, description="claims that jobs may mount")
    cache: CacheVolume | None = Field(default=None, description="none: each pod downloads its inputs anew")
    secrets: list[Annotated[str, Field(pattern=rf"^{_DNS}$")]] = Field(
        default_factory=list, max_length=20, description="Secrets whose keys become variables of jobs: credentials"
    )
    store: StoreOptions | None = Field(default=None, description="none: all goes over the cluster's API")
    route: RouteOptions | None = Field(default=None, description="none: pods cannot call the control plane")
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: list[Toleration] = Field(default_factory=list, max_length=50)
    run_as_user: int = Field(default=1000, ge=0, le=2**31 - 1, description="0: the cluster or the image says")

    @field_validator("image")
    @classmethod
    def _an_image(cls, value: str) -> str:
        return _image(value)

    @field_validator("priorities")
    @classmethod
    def _classes(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value.values():
            if not re.fullmatch(_DNS, name):
                raise ValueError(f"{name!r} is no name of a PriorityClass")
        return value


class ContainerResources(Model):
    """What one instance asks of a cluster: ``cpu``, ``memory``, ``nvidia.com/gpu`` in Kubernetes' notation."""

    requests: dict[str, str] = Field(default_factory=dict)
    limits: dict[str, str] = Field(default_factory=dict)

    @field_validator("requests", "limits")
    @classmethod
    def _quantities(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not re.fullmatch(r"[A-Za-z0-9./_-]{1,100}", name):
                raise ValueError(f"{name!r} is no name of a resource")
            if not re.fullmatch(r"[0-9]+(\.[0-9]+)?(m|k|Ki|[MGTPE]i?)?", text):
                raise ValueError(f"{name}: {text!r} is no quantity such as 500m, 2 or 4Gi")
        return value


class InstanceType(Model):
    """A kind of node under a name that users know; field names are those of Azure ML's InstanceType.

    ``price``: for one instance and hour, in the operator's currency.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    node_selector: dict[str, str] = Field(default_factory=dict, alias="nodeSelector")
    tolerations: list[Toleration] = Field(default_factory=list, max_length=50)
    resources: ContainerResources = Field(default_factory=ContainerResources)
    price: float = Field(default=0, ge=0)
    description: str = Field(default="", max_length=1000)


#: The instance type of a job that names none, where the operator has defined one of this name.
DEFAULT_INSTANCE = "default"


class ComputeSpec(Spec):
    """``type`` names a driver from the entry point group ``jupyter_mlops.compute``.

    A cluster is named by a ``context`` of the kubeconfig that the control plane has; credentials are never part of it.
    """

    type: Literal["local", "kubernetes"] = "local"
    context: str = Field(default="", max_length=253, description="of the kubeconfig; empty: its current one")
    namespace: str = Field(default="", pattern=r"^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)?$")
    serving: ServingOptions = Field(default_factory=ServingOptions)
    training: TrainingOptions = Field(default_factory=TrainingOptions)
    instance_types: dict[str, InstanceType] = Field(default_factory=dict)
    description: str = Field(default="", max_length=5000)
    max_processes: int = Field(
        default=0, ge=0, le=4096, description="most processes of one job; 0: the number of CPUs, at least 2"
    )
    cpus: float = Field(default=0, ge=0, le=4096, description="CPUs for jobs; 0: those of the machine, at least 2")
    memory: str = Field(
        default="", pattern=r"^([0-9]+(\.[0-9]+)?([kMGT]i?)?)?$", description="memory for jobs; empty: the machine's"
    )

    @field_validator("instance_types")
    @classmethod
    def _names(cls, value: dict[str, InstanceType]) -> dict[str, InstanceType]:
        for name in value:
            if not re.fullmatch(_DNS, name):
                raise ValueError(f"instance type {name!r} is not valid: lower-case letters, digits, dashes and dots")
        return value

    @model_validator(mode="after")
    def _a_namespace(self) -> ComputeSpec:
        if self.type == "kubernetes" and not self.namespace:
            raise ValueError("a compute of type kubernetes needs a namespace")
        return self


class WaitingProcess(Model):
    """A process that has imported torch and waits for a job of its interpreter."""

    interpreter: str
    pid: int
    memory_bytes: int


class Slots(Model):
    """An amount of what jobs ask for."""

    cpus: float = 0
    memory_bytes: int = 0
    gpus: float = 0


class ComputeStatus(Status):
    """Facts of the machine: ``cpus`` count, ``memory_bytes`` total, ``gpus`` names; and its queue, when it is read.

    ``slots`` is what there is for jobs, ``used`` what running jobs have of it: CPUs, memory in bytes, GPUs.
    """

    phase: Literal["Ready", "Unreachable"] = "Ready"
    cpus: int = 0
    memory_bytes: int = 0
    gpus: list[str] = Field(default_factory=list)
    running_jobs: int = 0
    waiting: list[WaitingProcess] = Field(default_factory=list)
    queued_jobs: int = 0
    slots: Slots = Field(default_factory=Slots)
    used: Slots = Field(default_factory=Slots)
