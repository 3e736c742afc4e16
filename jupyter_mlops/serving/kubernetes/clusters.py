"""The attached clusters of a workspace: one serving driver each, made, and imported, when it is first needed."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from ...core.errors import MlopsError
from ...core.resources.base import Resource
from ...core.resources.compute import ComputeSpec
from ..local import LocalServing

if TYPE_CHECKING:
    from .driver import KubernetesServing

#: Seconds for which it is believed that a cluster answers, or does not.
FRESH = 15.0


class Clusters:
    """Drivers by the name of their compute.

    Args:
        local: this machine's driver, which prepares models.
        workspace: the workspace's name.
    """

    def __init__(self, local: LocalServing, workspace: str) -> None:
        self._local = local
        self._workspace = workspace
        self._specs: dict[str, dict[str, Any]] = {}
        self._drivers: dict[str, KubernetesServing] = {}
        self._facts: dict[str, tuple[float, dict[str, Any]]] = {}
        self._asking: set[str] = set()
        self._lacks: dict[str, list[str]] = {}
        self._lock = threading.Lock()

    def take(self, computes: list[Resource]) -> None:
        """Learn which clusters there are; drivers of those that changed are made anew."""
        specs = {c.name: c.spec for c in computes if c.spec.get("type") == "kubernetes"}
        with self._lock:
            for name in [n for n in self._drivers if specs.get(n) != self._specs.get(n)]:
                del self._drivers[name]
                self._facts.pop(name, None)
                self._lacks.pop(name, None)
            self._specs = specs

    def get(self, name: str) -> KubernetesServing | None:
        """The driver of a cluster; None when there is no compute of that name, or it is none."""
        with self._lock:
            if name not in self._specs:
                return None
            if name not in self._drivers:
                from .driver import KubernetesServing

                spec = ComputeSpec.model_validate(self._specs[name])
                self._drivers[name] = KubernetesServing(self._local, self._workspace, name, spec)
            return self._drivers[name]

    def facts(self, name: str) -> dict[str, Any]:
        """``phase`` and ``reason`` of the compute as last known; asked anew beside: nobody waits for a cluster."""
        driver = self.get(name)
        if driver is None:
            return {}
        with self._lock:
            at, known = self._facts.get(name, (0.0, {}))
            if time.monotonic() - at > FRESH and name not in self._asking:
                self._asking.add(name)
                threading.Thread(target=self._ask, args=(name, driver), name=f"ask-{name}", daemon=True).start()
        return known or {"phase": "Unreachable", "reason": "not asked yet"}

    def _ask(self, name: str, driver: KubernetesServing) -> None:
        from ...kube.access import missing, purposes

        try:
            version = driver.kube.version()
            lacks = self._lacks.get(name)
            if lacks is None:
                lacks = self._lacks[name] = missing(driver.kube, *purposes(driver.spec))
            told = f"; no permission to {', '.join(lacks[:5])}{' and more' if len(lacks) > 5 else ''}" if lacks else ""
            known = {"phase": "Ready", "reason": f"Kubernetes {version}, namespace {driver.kube.namespace}{told}"}
            if lacks:
                self._lacks.pop(name, None)  # an operator may mend it
        except MlopsError as error:
            known = {"phase": "Unreachable", "reason": error.message}
        finally:
            with self._lock:
                self._asking.discard(name)
        with self._lock:
            self._facts[name] = (time.monotonic(), known)
