"""What is wanted of a cluster for one endpoint, before it becomes manifests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...core.resources.compute import ServingOptions
from ...kube.names import labels, object_name, ours

#: Ports: scorers to gateways, callers to gateways (plain, TLS), control plane to gateways.
TRUNK, HTTP, HTTPS, ADMIN = 8470, 8080, 8443, 8471
#: Seconds: until nobody is sent to a pod that goes any more; for what it has to answer then.
DRAIN, GRACE = 5.0, 30.0
#: Where things are in a pod.
BOOT, PARTS, WORK, CONFIG, TLS = "/mlops/boot", "/mlops/parts", "/mlops/work", "/mlops/config", "/mlops/tls"


@dataclass(frozen=True)
class Names:
    """Names and labels of what belongs to one endpoint of one workspace."""

    workspace: str
    endpoint: str

    @property
    def anchor(self) -> str:
        """The ConfigMap that owns all the rest, and the Service that callers call."""
        return object_name(self.endpoint, self.workspace, self.endpoint)

    @property
    def config(self) -> str:
        """The Secret that the gateway reads."""
        return f"{self.anchor}-config"

    def gateway(self, deployment: str = "") -> str:
        """The gateway's Deployment; with a route of the cluster's own gateway, one for each deployment."""
        stem = f"{self.endpoint}-{deployment}" if deployment else self.endpoint
        return object_name(f"{stem}-gateway", self.workspace, self.endpoint, deployment, "gateway")

    def deployment(self, deployment: str) -> str:
        """The scorers' Deployment, Service and anchor."""
        return object_name(f"{self.endpoint}-{deployment}", self.workspace, self.endpoint, deployment)

    def labels(self, component: str, deployment: str = "") -> dict[str, str]:
        """Labels of an object."""
        more = {"deployment": deployment} if deployment else {}
        return labels(self.workspace, component, endpoint=self.endpoint, **more)

    def ours(self, **more: str) -> dict[str, str]:
        """Labels by which objects are found again; ``component`` is the one of ``app.kubernetes.io``."""
        component = more.pop("component", "")
        found = ours(self.workspace, endpoint=self.endpoint, **more)
        return {**found, "app.kubernetes.io/component": component} if component else found


@dataclass
class Delivery:
    """How a parcel comes into pods: in ``parts`` (names of Secrets), or through exec when there are none."""

    sha256: str
    size: int
    parts: list[str] = field(default_factory=list)

    @property
    def how(self) -> str:
        """In words, for status and log."""
        if self.parts:
            count = len(self.parts)
            return f"in {count} Secret{'s' if count > 1 else ''} (pods need nobody to get it again)"
        return "through the API into one pod, from which the others take it"


@dataclass
class Order:
    """What ``start`` was asked for.

    ``digest`` changes when pods must be replaced. ``scaling`` is None for a fixed ``count``, else
    ``{"min", "max", "percent"}``.
    """

    image: str
    count: int = 1
    env: dict[str, str] = field(default_factory=dict)
    resources: dict[str, dict[str, str]] = field(default_factory=dict)
    probes: dict[str, Any] = field(default_factory=dict)
    scaling: dict[str, int] | None = None
    options: ServingOptions = field(default_factory=ServingOptions)
