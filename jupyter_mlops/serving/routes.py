"""What the gateway serves: the published endpoints, read from their files, with a dispatcher for each deployment."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256
from typing import Any
from zlib import crc32

from ..core.errors import MlopsError, NotFound, Unavailable
from .dispatch import Dispatcher, Limits, most_instances
from .fastpath import Fast, fast_path
from .places import NAME, Places, read_json
from .signature import Signature, from_document

#: Fractional part of the golden ratio: multiples of it spread evenly, so that shares are exact also of few requests.
_SPREAD = 0.6180339887498949


class Deployment:
    """A published deployment. Its dispatcher outlives changes of everything but its name."""

    #: Attached once the whole file is known to be good.
    dispatcher: Dispatcher

    def __init__(self, name: str, signature: Signature, settings: dict[str, Any], about: dict[str, Any]) -> None:
        self.name = name
        self.signature = signature
        #: One for the event loop, one for the thread that takes large bodies: a parser is not to be shared.
        self.fast: Fast | None = fast_path(signature)
        self.fast_large: Fast | None = fast_path(signature)
        self.limits = Limits(settings.get("request_settings") or {}, settings.get("batching") is not False)
        self.settings = settings
        #: Instances that there are without scaling, and that there may be.
        self.least = max(1, int(settings.get("instance_count") or 1))
        self.instances = most_instances(settings)
        #: Reachable for the control plane only: it has not been proven yet.
        self.proving = bool(settings.get("proving"))
        self.scale = scale = settings.get("scale_settings") or {}
        self.collector: dict[str, Any] | None = settings.get("data_collector") or None
        self.model: dict[str, Any] = settings.get("model") or {}
        #: A scoring script gets the body as it came.
        self.script = bool(about.get("script"))
        #: A request may wait until an instance has been started.
        self.sleeps = scale.get("type") == "target_utilization" and scale.get("min_instances") == 0
        self.header = b"X-Deployment: " + name.encode("ascii") + b"\r\n"


class Endpoint:
    """A published endpoint: hashed keys, shares of traffic, deployments."""

    def __init__(self, name: str, config: dict[str, Any], deployments: dict[str, Deployment]) -> None:
        self.name = name
        self.keys = {str(k): {"salt": str(v["salt"]), "hash": str(v["hash"])} for k, v in config["keys"].items()}
        self.auth_mode = str(config.get("auth_mode") or "key")
        self.token_secret = str(config.get("token_secret") or "")
        self.public = config.get("public") is not False
        self.deployments = deployments
        self.traffic = {str(k): int(v) for k, v in (config.get("traffic") or {}).items()}
        self.sticky = str(config.get("sticky_header") or "").lower().encode("latin-1", "replace")
        shares = [(deployments[d], share) for d, share in sorted(self.traffic.items())
                  if share > 0 and d in deployments and not deployments[d].proving]
        total = sum(share for _, share in shares)
        self._shares: list[tuple[float, Deployment]] = []
        upto = 0.0
        for deployment, share in shares:
            upto += share / total
            self._shares.append((upto, deployment))
        self._last = random.random()
        mirrors = [(deployments[d], int(share) / 100) for d, share in (config.get("mirror_traffic") or {}).items()
                   if int(share) > 0 and d in deployments and not deployments[d].proving]
        self.mirror: tuple[Deployment, float] | None = mirrors[0] if mirrors else None

    def pick(self, stick: bytes = b"") -> Deployment:
        """The deployment that takes the next request; always the same one for equal values of ``stick``.

        Raises:
            Unavailable: none has traffic.
        """
        shares = self._shares
        if len(shares) == 1:
            return shares[0][1]
        if not shares:
            raise Unavailable(f"endpoint '{self.name}' has no deployment with traffic", "deploy a model to it")
        if stick:
            at = crc32(stick) / 2**32
        else:
            self._last = at = (self._last + _SPREAD) % 1.0
        chosen = shares[-1][1]
        for upto, deployment in shares:
            if at < upto:
                chosen = deployment
                break
        if not chosen.dispatcher.ready and not chosen.sleeps:
            # It is down: whoever else has traffic answers meanwhile.
            for _, deployment in shares:
                if deployment.dispatcher.ready:
                    return deployment
        return chosen

    def named(self, name: str, admin: bool) -> Deployment:
        """The deployment that a caller asks for.

        Raises:
            NotFound: there is none of that name; says which there are.
        """
        found = self.deployments.get(name)
        if found is None or (found.proving and not admin):
            known = ", ".join(d.name for d in self.deployments.values() if admin or not d.proving) or "none"
            raise NotFound(f"endpoint '{self.name}' has no deployment {name[:60]!r}", f"there is: {known}")
        return found


class Routes:
    """All endpoints by name; :meth:`reload` takes up what changed on disk and leaves the rest as it is.

    Args:
        wake: called with endpoint and deployment when a request waits and no instance is there.
    """

    def __init__(self, places: Places, wake: Callable[[str, str], None] = lambda e, d: None) -> None:
        self.places = places
        self.wake = wake
        self.retired: set[Dispatcher] = set()
        self._endpoints: dict[str, Endpoint] = {}
        self._dispatchers: dict[tuple[str, str], Dispatcher] = {}
        self._seen: dict[str, tuple[Any, ...]] = {}
        self._state: dict[str, dict[str, str]] = {}

    def get(self, name: str) -> Endpoint | None:
        return self._endpoints.get(name)

    def dispatcher(self, endpoint: str, deployment: str) -> Dispatcher | None:
        """The dispatcher of a deployment that is served."""
        return self._dispatchers.get((endpoint, deployment))

    def all(self) -> Iterator[Endpoint]:
        """Every endpoint."""
        return iter(list(self._endpoints.values()))

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
        used = {(e.name, d) for e in self._endpoints.values() for d in e.deployments}
        for key in set(self._dispatchers) - used:
            dispatcher = self._dispatchers.pop(key)
            dispatcher.retired = True
            self.retired.add(dispatcher)

    def tend(self) -> None:
        """Connect to instances, expire what waits too long, end what has been removed. Called often."""
        for dispatcher in self._dispatchers.values():
            dispatcher.tend()
        for dispatcher in list(self.retired):
            dispatcher.tend()
            if dispatcher.quiet:
                self.retired.discard(dispatcher)
                dispatcher.close()

    def close(self) -> None:
        for dispatcher in (*self._dispatchers.values(), *self.retired):
            dispatcher.close()

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
        for deployment in endpoint.deployments.values():
            self._attach(name, deployment)
        self._endpoints[name] = endpoint
        self._state[name] = {"digest": digest, "error": ""}

    def _parse(self, name: str, config: dict[str, Any]) -> Endpoint:
        """What a file says; nothing is changed by it yet."""
        deployments = {}
        for deployment, settings in config.get("deployments", {}).items():
            if not NAME.match(deployment):
                raise ValueError("a deployment's name is not valid")
            about = read_json(self.places.deployment(name, deployment) / "model.json")
            if not about.get("signature") and not about.get("script"):
                raise ValueError(f"deployment {deployment} is not prepared")
            signature = from_document(about.get("signature") or {"inputs": []})
            deployments[deployment] = Deployment(deployment, signature, settings, about)
        return Endpoint(name, config, deployments)

    def _attach(self, name: str, deployment: Deployment) -> None:
        key = (name, deployment.name)
        found = self._dispatchers.get(key)
        if found is None:
            found = self._dispatchers[key] = Dispatcher(
                partial(self.places.scorer_socket, *key), deployment.limits, partial(self.wake, *key))
        found.limits, found.least, found.instances = deployment.limits, deployment.least, deployment.instances
        deployment.dispatcher = found
