"""What is so on one cluster: the pods of all our jobs, over one watch."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from ...core.errors import Conflict, MlopsError
from ...kube.client import Kube
from ...kube.errors import from_answer, from_exception
from ...kube.exec import tls
from ...kube.names import DOMAIN
from .manifests import COUNTS, MOST

log = logging.getLogger(__name__)

#: Seconds after which the API ends a watch, which is then begun anew where it was.
WATCH = 240
RETRY, RETRY_MOST = 0.5, 10.0

Pod = dict[str, Any]


class PodWatch:
    """Pods by job and attempt.

    Args:
        labels: those of the pods to look at.
        changed: called with the pod (and whether it is gone) whenever one changes.
        troubled: called when :attr:`trouble` has changed.
    """

    def __init__(self, kube: Kube, labels: dict[str, str], changed: Callable[[Pod, bool], None],
                 troubled: Callable[[], None] = lambda: None) -> None:
        self.kube = kube
        self.labels = labels
        self.changed = changed
        self.troubled = troubled
        self.pods: dict[str, Pod] = {}
        self._attempts: dict[tuple[str, str], dict[str, Pod]] = {}
        #: Monotonic time at which the list was known to be right last; 0: never.
        self.seen = 0.0
        self.trouble = f"compute '{kube.cluster}' has not answered yet"

    def of(self, job: str, attempt: int) -> list[Pod]:
        """The pods of an attempt, by node."""
        return sorted(list(self._attempts.get((job, str(attempt)), {}).values()), key=node_of)

    async def run(self) -> None:
        """For ever; cancel it."""
        pause = RETRY
        version = ""
        while True:
            try:
                if not version:
                    version = await self._list()
                    pause = RETRY
                version = await self._follow(version)
            except Conflict:
                version = ""  # what we have is too old for the API: everything is read again
            except MlopsError as error:
                self._note(error.message)
                await asyncio.sleep(pause)
                pause = min(pause * 2, RETRY_MOST)
                version = ""

    def _note(self, trouble: str) -> None:
        before, self.trouble = self.trouble, trouble
        if trouble != before:
            self.troubled()

    async def _list(self) -> str:
        selector = ",".join(f"{k}={v}" for k, v in sorted(self.labels.items()))
        found: dict[str, Pod] = {}
        query: dict[str, Any] = {"labelSelector": selector, "limit": 500}
        while True:
            page = await asyncio.to_thread(self.kube.call, "GET", self.kube.path("Pod"), None, query,
                                           what="listing pods")
            found.update({p["metadata"]["name"]: p for p in page.get("items") or []})
            query["continue"] = (page.get("metadata") or {}).get("continue")
            if not query["continue"]:
                break
        old, self.pods = self.pods, found
        attempts: dict[tuple[str, str], dict[str, Pod]] = {}
        for name, pod in found.items():
            attempts.setdefault(key(pod), {})[name] = pod
        self._attempts = attempts
        self.seen = time.monotonic()
        self._note("")
        for name, pod in found.items():
            if old.get(name) != pod:
                self.changed(pod, False)
        for name, pod in old.items():
            if name not in found:
                self.changed(pod, True)
        return str((page.get("metadata") or {}).get("resourceVersion") or "")

    async def _follow(self, version: str) -> str:
        import aiohttp

        client = await asyncio.to_thread(self.kube.client)
        path = self.kube.path("Pod")
        _, url, headers, *_ = client.param_serialize(
            "GET", path, header_params={"Accept": "application/json"}, auth_settings=["BearerToken"])
        query = {"watch": "1", "labelSelector": ",".join(f"{k}={v}" for k, v in sorted(self.labels.items())),
                 "resourceVersion": version, "allowWatchBookmarks": "true", "timeoutSeconds": str(WATCH)}
        timeout = aiohttp.ClientTimeout(total=None, connect=10, sock_read=WATCH + 30)
        try:
            async with aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=tls(client.configuration)), timeout=timeout, read_bufsize=1 << 20,
            ) as session, session.get(f"{url}?{urlencode(query)}", headers=headers) as response:
                if response.status != 200:
                    raise from_answer(response.status, await response.read(), "watching pods", self.kube.cluster)
                self._note("")
                async for line in _lines(response.content):
                    event = json.loads(line)
                    if event.get("type") == "ERROR":
                        status = event.get("object") or {}
                        raise from_answer(int(status.get("code") or 500), json.dumps(status), "watching pods",
                                          self.kube.cluster)
                    pod = event["object"]
                    version = pod["metadata"]["resourceVersion"]
                    self.seen = time.monotonic()
                    self._take(event["type"], pod)
        except MlopsError:
            raise
        except (aiohttp.ClientError, OSError, ValueError, KeyError, TimeoutError) as error:
            raise from_exception(error, self.kube.cluster, WATCH) from error
        return version

    def _take(self, what: str, pod: Pod) -> None:
        if what == "BOOKMARK":
            return
        name = pod["metadata"]["name"]
        at = key(pod)
        if what == "DELETED":
            self.pods.pop(name, None)
            of = self._attempts.get(at, {})
            of.pop(name, None)
            if not of:
                self._attempts.pop(at, None)
        else:
            self.pods[name] = pod
            self._attempts.setdefault(at, {})[name] = pod
        self.changed(pod, what == "DELETED")


async def _lines(stream: Any) -> Any:
    """Lines of any length."""
    held = b""
    while data := await stream.readany():
        held += data
        *lines, held = held.split(b"\n")
        for line in lines:
            if line.strip():
                yield line


def key(pod: Pod) -> tuple[str, str]:
    """Job and attempt that a pod belongs to, as its labels say."""
    labels = pod["metadata"].get("labels") or {}
    return str(labels.get(f"{DOMAIN}/job") or ""), str(labels.get(f"{DOMAIN}/attempt") or "")


def node_of(pod: Pod) -> int:
    """The number of a pod within its attempt; in an elastic one each pod that takes another's place has its own."""
    meta = pod["metadata"]
    labels, notes = meta.get("labels") or {}, meta.get("annotations") or {}
    name = "batch.kubernetes.io/job-completion-index"
    most = _number(labels.get(MOST))
    return _number(labels.get(name) or notes.get(name)) + most * sum(_number(notes.get(count)) for count in COUNTS)


def _number(text: Any) -> int:
    """A number of the cluster's; 0 for what somebody else has written there, whose pod stops nobody."""
    return int(text) if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 7 else 0
