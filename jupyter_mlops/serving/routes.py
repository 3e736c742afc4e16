"""What the gateway serves: the published endpoints, read from their files, with the links to their scorers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

from ..core.errors import MlopsError, Unavailable
from .link import ScorerLink
from .places import NAME, Places, read_json
from .signature import Signature, from_document

DEFAULT_TIMEOUT_MS = 30_000
DEFAULT_MAX_BYTES = 16 * 1024 * 1024


class Deployment:
    """A published deployment. The link outlives changes of everything but its scorer's model."""

    def __init__(self, name: str, signature: Signature, link: ScorerLink, settings: dict[str, Any]) -> None:
        self.name = name
        self.signature = signature
        self.link = link
        self.timeout = int(settings.get("request_timeout_ms") or DEFAULT_TIMEOUT_MS) / 1000
        self.max_bytes = int(settings.get("max_request_bytes") or DEFAULT_MAX_BYTES)


class Endpoint:
    """A published endpoint: hashed keys, shares of traffic, deployments."""

    def __init__(self, name: str, keys: dict[str, dict[str, str]], traffic: dict[str, int],
                 deployments: dict[str, Deployment]) -> None:
        self.name = name
        self.keys = keys
        self.traffic = traffic
        self.deployments = deployments

    def pick(self) -> Deployment:
        """The deployment that takes the next request.

        Raises:
            Unavailable: none has traffic.
        """
        for name, share in self.traffic.items():
            if share > 0 and name in self.deployments:
                return self.deployments[name]
        raise Unavailable(f"endpoint '{self.name}' has no deployment with traffic", "deploy a model to it")


class Routes:
    """All endpoints by name; :meth:`reload` takes up what changed on disk and leaves the rest as it is."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self._endpoints: dict[str, Endpoint] = {}
        self._links: dict[str, ScorerLink] = {}
        self._seen: dict[str, tuple[Any, ...]] = {}
        self._state: dict[str, dict[str, str]] = {}

    def get(self, name: str) -> Endpoint | None:
        return self._endpoints.get(name)

    def describe(self) -> dict[str, dict[str, str]]:
        """name → ``{"digest", "error"}``: the file that was read last, and why it is not in force if it is not."""
        return self._state

    def reload(self) -> None:
        """Compare every endpoint's files with what was read, by their inode, size and times."""
        present = set()
        for name in self._names():
            stamp = self._stamp(name)
            if stamp is None:
                continue
            present.add(name)
            # A file that could not be taken is tried again: what it lacked may be there now.
            if self._seen.get(name) != stamp or self._state[name]["error"]:
                self._take(name)
                self._seen[name] = stamp
        for name in set(self._seen) - present:
            for table in (self._seen, self._endpoints, self._state):
                table.pop(name, None)  # type: ignore[attr-defined]
        used = {d.link.path for e in self._endpoints.values() for d in e.deployments.values()}
        for path in set(self._links) - used:
            self._links.pop(path).close()

    def close(self) -> None:
        for link in self._links.values():
            link.close()

    def _names(self) -> Iterator[str]:
        try:
            with os.scandir(self.places.endpoints) as entries:
                yield from (e.name for e in entries if NAME.match(e.name) and e.is_dir(follow_symlinks=False))
        except OSError:
            return

    def _stamp(self, name: str) -> tuple[Any, ...] | None:
        stamps: list[tuple[int, int, int] | None] = []
        known = self._endpoints.get(name)
        files = [self.places.config(name)]
        files += [self.places.deployment(name, d) / "model.json" for d in (known.deployments if known else ())]
        for path in files:
            try:
                info = os.stat(path)
                stamps.append((info.st_ino, info.st_size, info.st_mtime_ns))
            except OSError:
                stamps.append(None)
        return tuple(stamps) if stamps[0] else None

    def _take(self, name: str) -> None:
        digest = ""
        try:
            text = self.places.config(name).read_bytes()
            digest = sha256(text).hexdigest()
            endpoint = self._parse(name, json.loads(text))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, MlopsError) as error:
            # The old one stays in force: a broken file must not take an endpoint down.
            self._state[name] = {"digest": digest, "error": f"{type(error).__name__}: {error}"[:300]}
            return
        self._endpoints[name] = endpoint
        self._state[name] = {"digest": digest, "error": ""}

    def _parse(self, name: str, config: dict[str, Any]) -> Endpoint:
        deployments = {}
        for deployment, settings in config.get("deployments", {}).items():
            if not NAME.match(deployment):
                raise ValueError("a deployment's name is not valid")
            about = read_json(self.places.deployment(name, deployment) / "model.json")
            if not about.get("signature"):
                raise ValueError(f"deployment {deployment} is not prepared")
            path = str(self.places.scorer_socket(name, deployment))
            link = self._links.setdefault(path, ScorerLink(path))
            deployments[deployment] = Deployment(deployment, from_document(about["signature"]), link,
                                                 settings.get("request_settings") or {})
        records = {str(k): {"salt": str(v["salt"]), "hash": str(v["hash"])} for k, v in config["keys"].items()}
        traffic = {str(k): int(v) for k, v in config.get("traffic", {}).items()}
        return Endpoint(name, records, traffic, deployments)
