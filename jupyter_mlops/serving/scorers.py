"""The scorers of a workspace, without models, keys and gateway: as much of the driver as the gateway itself needs.

The gateway heals and scales with it, also while no control plane lives. Names are checked by whoever takes them from
outside. All calls block.
"""

from __future__ import annotations

import time

from .children import Children
from .instances import MAX_INSTANCES, STOP_GRACE, Instances
from .observation import Instance
from .places import Places, read_json, write_json


class Scorers:
    """Scorer processes, by endpoint, deployment and instance."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.children = Children()
        self._silent: dict[tuple[str, str, int], tuple[str, float]] = {}

    def group(self, endpoint: str, deployment: str) -> Instances:
        """The instances of one deployment."""
        return Instances(self.places, self.children, self._silent, endpoint, deployment)

    def wanted(self, endpoint: str, deployment: str) -> int | None:
        """How many instances shall run; None when the deployment was stopped, or never started."""
        group = self.group(endpoint, deployment)
        return group.wanted() if group.order() else None

    def scale(self, endpoint: str, deployment: str, wanted: int, reason: str = "") -> None:
        """Note how many instances of a deployment that is not stopped shall run; nothing is started or ended by it.

        Raises:
            FileNotFoundError: the deployment is gone.
        """
        if not self.group(endpoint, deployment).order():
            return
        wanted = max(0, min(wanted, MAX_INSTANCES))
        write_json(self.places.scale(endpoint, deployment),
                   {"schema": 1, "wanted": wanted, "reason": reason, "at": time.time()})

    def scaled(self, endpoint: str, deployment: str) -> str:
        """Why it has as many instances as it has; empty when nobody scaled it."""
        return str(read_json(self.places.scale(endpoint, deployment)).get("reason") or "")

    def instances(self, endpoint: str, deployment: str, ping: bool = True) -> list[Instance]:
        """See :meth:`Instances.look`."""
        return self.group(endpoint, deployment).look(ping)

    def start_instance(self, endpoint: str, deployment: str, instance: int, grace: float = STOP_GRACE) -> bool:
        """See :meth:`Instances.start`."""
        return self.group(endpoint, deployment).start(instance, grace)

    def stop_instance(self, endpoint: str, deployment: str, instance: int, grace: float = STOP_GRACE) -> None:
        """See :meth:`Instances.stop`."""
        self.group(endpoint, deployment).stop([instance], grace)

    def give_up(self, endpoint: str, deployment: str, instance: int, reason: str) -> None:
        """See :meth:`Instances.give_up`."""
        self.group(endpoint, deployment).give_up(instance, reason)
