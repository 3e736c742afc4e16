"""The serving driver of one cluster; answers the same calls as :class:`jupyter_mlops.serving.local.LocalServing`.

Nothing but the cluster's API is needed: no registry, no shared volume, no way from pods to here. Models, our code and
what the gateway imports go into Secrets; a model too large for that is brought into one pod by exec, and pods take it
from each other. What serves goes on when nobody is connected.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import threading
import time
from pathlib import Path
from typing import Any

from ...compute.base import LogChunk
from ...core.errors import MlopsError, NotFound, Refused
from ...core.resources.base import check_name
from ...core.resources.compute import ComputeSpec
from ...kube import identity, packs
from ...kube.client import Kube
from ...kube.exec import send_parcel
from ...kube.pods import age
from ..local import LocalServing, public
from ..observation import ScorerObservation, load_limit
from ..places import read_json, write_json
from . import manifests, packing
from .gateways import Gateways
from .objects import Objects, digest_of
from .plan import TRUNK, WORK, Delivery, Order
from .state import Seen, look

log = logging.getLogger(__name__)

TAIL_LINES = 20
#: Bytes of a pod's log that are read at most; nodes keep about 10 MB of it.
LOG_LIMIT = 16 * 1024 * 1024
#: Seconds for which nobody asks what a new pod waits for: a start is looked at twice a second.
MOMENT = 2.0


class KubernetesServing:
    """Endpoints of one workspace on one compute.

    ``remote`` tells the controllers that instances have images and resources here.

    Args:
        local: the workspace's own driver, which prepares models here.
        workspace: its name; part of all labels, with what tells it from others of that name.
        compute: the compute's name.
        spec: of type ``kubernetes``.
        kubeconfig: path; empty: see :class:`Kube`.
    """

    remote = True

    def __init__(self, local: LocalServing, workspace: str, compute: str, spec: ComputeSpec,
                 kubeconfig: str = "") -> None:
        self.local = local
        # Others may serve into the same namespace from a workspace of the same name.
        self.workspace = identity.workspace(local.places.home, workspace)
        self.spec = spec
        self.kube = Kube(compute, spec.context, spec.namespace, kubeconfig)
        self.gateways = Gateways(self.kube, spec.serving, self.workspace, local.places.endpoint, self.token)
        self._swept: dict[tuple[str, str], str] = {}
        self._deliveries: dict[tuple[str, str], threading.Thread] = {}
        self._troubles: dict[tuple[str, str], str] = {}
        self._packages: dict[str, tuple[dict[str, str], float | None]] = {}

    def token(self, endpoint: str) -> str:
        """What the pods of an endpoint show each other: made of a secret of the workspace, the same at any time."""
        secret = identity.secret(self.local.places.home)
        return hmac.new(secret, f"{self.kube.namespace}/{endpoint}".encode(), "sha256").hexdigest()

    def _objects(self, endpoint: str) -> Objects:
        return self.gateways.objects(endpoint)

    # -- models ----------------------------------------------------------------------

    def prepare(self, endpoint: str, deployment: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Prepare a model here, as :meth:`LocalServing.prepare` does, and pack it. Returns what that returns."""
        signature: dict[str, Any] = self.local.prepare(endpoint, deployment, *args, **kwargs)
        packing.model_parcel(self.local.places.deployment(endpoint, deployment))
        return signature

    # -- scorers ---------------------------------------------------------------------

    def start(self, endpoint: str, deployment: str, interpreter: str = "", env: dict[str, str] | None = None, *,
              count: int | None = None, probes: dict[str, Any] | None = None, image: str = "",
              resources: dict[str, dict[str, str]] | None = None, scale: dict[str, Any] | None = None) -> None:
        """Have the cluster run the deployment's scorers as asked; pods that run otherwise are replaced one by one.

        Args:
            interpreter: not used: the image has its own.
            count: instances; kept from the last call when None.
            probes: ``{"readiness_probe", "liveness_probe"}`` of the deployment.
            image: empty: the compute's.
            resources: ``{"requests", "limits"}`` of one instance.
            scale: ``scale_settings``; kept, like probes and resources, when None.

        Raises:
            NotFound: the deployment was not prepared.
            Refused: the cluster does not take it, or there is no image.
        """
        folder = self._folder(endpoint, deployment)
        if not read_json(folder / "model.json"):
            raise NotFound(f"deployment '{deployment}' of endpoint '{endpoint}' is not prepared")
        before = read_json(folder / "order.json")
        asked = {"schema": 1, "env": dict(env or {}), "image": image or before.get("image") or "",
                 "count": before.get("count", 1) if count is None else max(1, count),
                 "probes": before.get("probes") or {} if probes is None else probes,
                 "resources": before.get("resources") or {} if resources is None else resources,
                 "scale": before.get("scale") or {} if scale is None else scale}
        order = self._order(asked)
        path, about = packing.model_parcel(folder)
        self._apply(endpoint, deployment, order, path, about)
        write_json(folder / "order.json", asked)
        self._troubles.pop((endpoint, deployment), None)

    def _order(self, asked: dict[str, Any]) -> Order:
        image = asked["image"] or self.spec.serving.image
        if not image:
            raise Refused(f"compute '{self.kube.cluster}' has no image for serving",
                          "give `environment` in the deployment, or an operator sets serving.image in the compute")
        scale, scaling = asked["scale"], None
        count = asked["count"]
        if scale.get("type") == "target_utilization":
            count = max(1, int(scale.get("min_instances") or 1))
            if self.kube.has_group("metrics.k8s.io"):
                scaling = {"min": count, "max": int(scale.get("max_instances") or 1),
                           "percent": int(scale.get("target_utilization_percentage") or 70)}
        resources = {key: dict(value) for key, value in asked["resources"].items() if value}
        if scaling and "cpu" not in (resources.get("requests") or {}):
            resources.setdefault("requests", {})["cpu"] = "100m"
        return Order(image, count, asked["env"], resources, asked["probes"], scaling, self.spec.serving)

    def _apply(self, endpoint: str, deployment: str, order: Order, path: Path, about: dict[str, Any]) -> None:
        objects = self._objects(endpoint)
        names, name = objects.names, objects.names.deployment(deployment)
        count = packs.part_count(about["size"])
        delivery = Delivery(about["sha256"], about["size"])
        if count <= packs.MAX_PARTS:
            delivery.parts = [f"{name}-m-{about['sha256'][:10]}-{i:02d}" for i in range(count)]
        boot = {"runtime.zip": packs.runtime_zip(), "token": self.token(endpoint).encode(),
                "pod.json": json.dumps(manifests.pod_json(names, deployment, order, delivery), sort_keys=True).encode()}
        boot_name = f"{name}-b-{packing.digest(*boot.values())[:10]}"
        there = self.kube.get("Deployment", name)
        nobody = {"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": "none"}
        made = manifests.scorers(names, deployment, order, delivery, boot_name, "", nobody)
        digest = packing.digest(made["spec"]["template"], names.labels("scorer", deployment))
        if there is None:
            # Whatever the API refuses it refuses before anything is made.
            objects.apply({**made, "metadata": {k: v for k, v in made["metadata"].items() if k != "ownerReferences"}},
                          dry_run=True)
        owner = objects.owner(deployment)
        labels = names.labels("scorer", deployment)
        known = objects.secrets("scorer", owner, deployment)
        if boot_name not in known:
            objects.put_immutable(manifests.secret(boot_name, labels, owner, boot, immutable=True))
        if any(part not in known for part in delivery.parts):
            with open(path, "rb") as f:
                for part in delivery.parts:
                    data = f.read(packs.PART)
                    if part not in known:
                        objects.put_immutable(manifests.secret(part, labels, owner, {"part": data}, immutable=True))
        objects.apply(manifests.trunk_service(names, deployment, owner))
        objects.apply(manifests.scorers(names, deployment, order, delivery, boot_name, digest, owner))
        if order.scaling:
            objects.apply(manifests.autoscaler(names, deployment, order, owner))
        elif self.kube.get("HorizontalPodAutoscaler", name) is not None:
            self.kube.delete("HorizontalPodAutoscaler", name)
        if order.count > 1 or order.scaling:
            chosen = names.ours(deployment=deployment, component="scorer")
            objects.apply(manifests.disruption(name, labels, chosen, owner))

    def observe(self, endpoint: str, deployment: str) -> ScorerObservation:
        """What is so now.

        Raises:
            BackendUnreachable, BackendTimeout: the cluster does not answer; what serves goes on.
        """
        folder = self._folder(endpoint, deployment)
        about, asked = read_json(folder / "model.json"), read_json(folder / "order.json")
        signature = public(about.get("signature") or {})
        objects = self._objects(endpoint)
        found = self.kube.get("Deployment", objects.names.deployment(deployment))
        pods: list[dict[str, Any]] = []
        if found is not None:
            pods = self.kube.list("Pod", objects.names.ours(deployment=deployment, component="scorer"))
        limit = load_limit({"probes": asked.get("probes") or {}})
        seen = look(found, pods, [], limit)
        if seen.phase == "starting" and found is not None:
            seen = look(found, pods, self._events(pods), limit)
            self._deliver(endpoint, deployment, found, seen)
            seen.reason = self._troubles.get((endpoint, deployment)) or seen.reason
        if seen.settled and found is not None and self._swept.get((endpoint, deployment)) != digest_of(found):
            objects.sweep(found, deployment)
            self._swept[endpoint, deployment] = digest_of(found)
        result = ScorerObservation(
            seen.phase, None, seen.reason, seen.restarts, signature=signature, crash_loop=seen.crash_loop,
            instances={"wanted": seen.wanted, "ready": seen.ready})
        if seen.ready_pod:
            result.packages, result.ready_after_s = self._facts(endpoint, seen.ready_pod)
        elif seen.phase == "failed":
            result.log_tail = self._tail(seen.about)
        return result

    def _events(self, pods: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Events of pods that wait for more than a moment: what their status does not tell."""
        names = {p["metadata"]["name"] for p in pods if age(p) > MOMENT}
        try:
            found = self.kube.list("Event", fields="involvedObject.kind=Pod,type=Warning") if names else []
        except MlopsError:
            return []  # not allowed to: then the status has to do
        found = [e for e in found if (e.get("involvedObject") or {}).get("name") in names]
        return sorted(found, key=lambda e: str(e.get("lastTimestamp") or e.get("eventTime") or ""))

    def _facts(self, endpoint: str, pod: str) -> tuple[dict[str, str], float | None]:
        """What the scorer in a pod imports, and how long it took to load; asked once a pod."""
        if pod not in self._packages:
            try:
                status, answer, _ = self.gateways.ask(pod, "GET", "/state", endpoint, timeout=3.0, port=TRUNK)
                scorer = json.loads(answer).get("scorer") or {} if status == 200 else {}
            except (MlopsError, ValueError):
                return {}, None
            while len(self._packages) > 500:
                self._packages.pop(next(iter(self._packages)))
            packages = scorer.get("packages")
            self._packages[pod] = (packages if isinstance(packages, dict) else {}, scorer.get("ready_after_s"))
        return self._packages[pod]

    def _tail(self, pod: str) -> list[str]:
        for previous in ("false", "true"):
            try:
                _, _, text = self.kube.request("GET", self.kube.path("Pod", pod, "log"),
                                               query={"tailLines": TAIL_LINES, "previous": previous})
            except MlopsError:
                return []
            lines = text.decode("utf-8", "replace").splitlines()
            if lines and not lines[0].startswith('{"kind":"Status"'):
                return lines
        return []

    # -- models that are brought by exec -----------------------------------------------

    def _deliver(self, endpoint: str, deployment: str, found: dict[str, Any], seen: Seen) -> None:
        """Bring the model into a pod that waits for it, beside whatever else goes on; one at a time."""
        key = (endpoint, deployment)
        folder = self._folder(endpoint, deployment)
        about = read_json(folder / "parcel.json")
        if not seen.waiting or packs.part_count(int(about.get("size") or 0)) <= packs.MAX_PARTS:
            return
        running = self._deliveries.get(key)
        if running is not None and running.is_alive():
            return
        pod = seen.waiting[0]
        thread = threading.Thread(target=self._bring, args=(key, pod, folder / "parcel.zip", about["sha256"]),
                                  name=f"deliver-{endpoint}-{deployment}", daemon=True)
        self._deliveries[key] = thread
        thread.start()

    def _bring(self, key: tuple[str, str], pod: str, path: Path, digest: str) -> None:
        self._troubles[key] = f"bringing the model ({path.stat().st_size / 1e6:.0f} MB) into the pod"
        try:
            begun = time.monotonic()
            sent = asyncio.run(send_parcel(self.kube, pod, "scorer", self.spec.serving.python, path,
                                           f"{WORK}/parcel.zip", digest))
            if sent:
                log.info("brought %d bytes into %s in %.1f s", sent, pod, time.monotonic() - begun)
            self._troubles.pop(key, None)
        except (MlopsError, OSError) as error:
            self._troubles[key] = f"the model is on its way: {error}"

    # -- ends ----------------------------------------------------------------------------

    def stop(self, endpoint: str, deployment: str, grace: float = 0.0) -> None:
        """End all scorers; what they have taken is answered. Their Secrets go, too."""
        self._objects(endpoint).remove(deployment=check_name(deployment, "deployment name"), component="scorer")

    def remove(self, endpoint: str, deployment: str | None = None) -> None:
        """Delete a deployment, or an endpoint with all that it has; nothing of it stays, there or here."""
        check_name(endpoint, "endpoint name")
        objects = self._objects(endpoint)
        if deployment is not None:
            objects.remove(deployment=check_name(deployment, "deployment name"))
        else:
            self.gateways.unpublish(endpoint)
            objects.remove()
        self.local.remove(endpoint, deployment)

    def left(self, endpoint: str) -> list[str]:
        """Kind and name of what is still there of an endpoint."""
        return self._objects(endpoint).left()

    # -- logs and processes ----------------------------------------------------------------

    def read_log(self, endpoint: str, deployment: str, offset: int = 0, limit: int = 65536,
                 instance: int = 0) -> LogChunk:
        """Up to ``limit`` bytes of an instance's log from ``offset``; a negative offset counts from the end.

        An instance is a pod, counted in the order of their ages; a log ends with its pod.
        """
        pods = self._pods(endpoint, deployment)
        if not 0 <= instance < len(pods):
            return LogChunk(b"", 0, 0, 0)
        query: dict[str, Any] = {"container": "scorer", "limitBytes": LOG_LIMIT}
        status, _, data = self.kube.request("GET", self.kube.path("Pod", pods[instance]["metadata"]["name"], "log"),
                                            query=query, timeout=30.0)
        if status != 200:
            return LogChunk(b"", 0, 0, 0)
        size = len(data)
        offset = max(0, size + offset) if offset < 0 else min(offset, size)
        part = data[offset:offset + max(0, limit)]
        return LogChunk(part, offset, offset + len(part), size)

    def processes(self) -> list[dict[str, Any]]:
        """What runs there: ``{"kind": "pod", "name", "pid": None}``."""
        return [{"kind": "pod", "name": p["metadata"]["name"], "pid": None}
                for p in self.kube.list("Pod", {k: v for k, v in self._objects("x").names.ours().items()
                                                if not k.endswith("/endpoint")})]

    # -- gateways ----------------------------------------------------------------------------

    def publish(self, endpoint: str, config: dict[str, Any]) -> bool:
        """See :meth:`Gateways.publish`."""
        return self.gateways.publish(endpoint, config)

    def unpublish(self, endpoint: str) -> bool:
        """See :meth:`Gateways.unpublish`."""
        return self.gateways.unpublish(endpoint)

    def ensure_gateway(self, endpoint: str = "") -> dict[str, Any]:
        """See :meth:`Gateways.info`; a gateway is made by :meth:`publish`, and again when its ``pid`` has changed."""
        return self.gateways.info(endpoint)

    def stats(self, endpoint: str = "") -> dict[str, Any] | None:
        """See :meth:`Gateways.stats`."""
        return self.gateways.stats(endpoint)

    async def page(self, endpoint: str, what: str, timeout: float = 10.0) -> tuple[int, bytes, dict[str, str]]:
        """See :meth:`Gateways.page`."""
        return await asyncio.to_thread(self.gateways.page, endpoint, what, timeout)

    async def invoke(self, endpoint: str, body: bytes, content_type: str = "application/json", timeout: float = 60.0,
                     deployment: str = "", headers: dict[str, str] | None = None,
                     ) -> tuple[int, bytes, dict[str, str]]:
        """See :meth:`Gateways.invoke`."""
        return await asyncio.to_thread(self.gateways.invoke, endpoint, body, content_type, timeout, deployment,
                                       headers or {})

    # -- inside --------------------------------------------------------------------------------

    def _folder(self, endpoint: str, deployment: str) -> Path:
        return self.local.places.deployment(check_name(endpoint, "endpoint name"),
                                            check_name(deployment, "deployment name"))

    def _pods(self, endpoint: str, deployment: str) -> list[dict[str, Any]]:
        labels = self._objects(endpoint).names.ours(deployment=deployment, component="scorer")
        return sorted(self.kube.list("Pod", labels), key=lambda p: (p["metadata"].get("creationTimestamp") or "",
                                                                    p["metadata"]["name"]))
