"""The attached clusters of a workspace on which jobs run: one driver each, made when it is first needed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.resources.base import Resource
from ...core.resources.compute import ComputeSpec
from ...kube import identity

if TYPE_CHECKING:
    from .driver import KubernetesCompute


class JobClusters:
    """Drivers by the name of their compute.

    Args:
        home: the workspace's folder.
        workspace: its name.
        changed: given to each driver's ``subscribe``.
    """

    def __init__(self, home: Path, workspace: str, changed: Callable[[str], None]) -> None:
        self._home = home
        self._workspace = workspace
        self._changed = changed
        self._specs: dict[str, dict[str, Any]] = {}
        self._drivers: dict[str, KubernetesCompute] = {}
        self._lock = threading.Lock()

    def take(self, computes: list[Resource]) -> None:
        """Learn which clusters there are; drivers of those that changed are made anew, and find their jobs again."""
        specs = {c.name: c.spec for c in computes if c.spec.get("type") == "kubernetes"}
        with self._lock:
            old = [self._drivers.pop(n) for n in list(self._drivers) if specs.get(n) != self._specs.get(n)]
            self._specs = specs
        for driver in old:
            driver.close()
        for name in specs:
            if self._leftovers(name).exists() and (left := self.get(name)) is not None:
                left.tidy()

        for path in (self._home / "computes").glob("*-route.pem"):
            if path.name.removesuffix("-route.pem") not in specs:
                path.unlink(missing_ok=True)

    def _certificate(self, name: str) -> Path:
        return self._home / "computes" / f"{name}-route.pem"

    def _leftovers(self, name: str) -> Path:
        return self._home / "leftovers" / f"{name}.json"

    def get(self, name: str) -> KubernetesCompute | None:
        """The driver of a cluster; None when there is no compute of that name, or it is none."""
        from .driver import KubernetesCompute
        from .images import Images

        with self._lock:
            if name not in self._specs:
                return None
            if name not in self._drivers:
                workspace = identity.workspace(self._home, self._workspace)
                images = Images(self._home / "computes" / f"{name}-images.json")
                spec = ComputeSpec.model_validate(self._specs[name])
                driver = KubernetesCompute(workspace, name, spec, images=images, leftovers=self._leftovers(name),
                                           certificate=self._certificate(name))
                driver.subscribe(self._changed)
                self._drivers[name] = driver
            return self._drivers[name]

    def close(self) -> None:
        """Follow nothing any more; what runs on the clusters goes on."""
        with self._lock:
            drivers, self._drivers = list(self._drivers.values()), {}
        for driver in drivers:
            driver.close()
