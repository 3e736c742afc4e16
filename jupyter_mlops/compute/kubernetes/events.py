"""What a cluster tells of objects that wait."""

from __future__ import annotations

import time
from typing import Any

from ...core.errors import MlopsError
from ...kube.client import Kube

#: Seconds between two looks at events of one object, and of how many objects they are kept.
PAUSE, KEPT = 3.0, 500


class Events:
    """Those of one namespace."""

    def __init__(self, kube: Kube) -> None:
        self.kube = kube
        self._found: dict[str, tuple[float, list[dict[str, Any]]]] = {}

    def of(self, kind: str, name: str) -> list[dict[str, Any]]:
        """The events of an object, oldest first; asked for every few seconds at most."""
        at, found = self._found.get(name, (0.0, []))
        if time.monotonic() - at > PAUSE:
            try:
                found = self.kube.list("Event", fields=f"involvedObject.kind={kind},involvedObject.name={name}")
            except MlopsError:
                found = []  # not allowed to: then the status has to do
            found.sort(key=lambda e: str(e.get("lastTimestamp") or e.get("eventTime") or ""))
            while len(self._found) > KEPT:
                self._found.pop(next(iter(self._found)))
            self._found[name] = (time.monotonic(), found)
        return found
