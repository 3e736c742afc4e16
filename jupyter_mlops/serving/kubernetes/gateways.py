"""The gateways of endpoints on a cluster: what they serve, how they are reached, what they tell."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ...core.errors import BackendTimeout, MlopsError, Refused, Unavailable
from ...core.resources.compute import ServingOptions
from ...kube import packs
from ...kube import pods as reading
from ...kube.client import Kube
from ...kube.names import DOMAIN
from ..dispatch import most_instances
from ..places import read_json
from . import manifests, packing
from .objects import Objects, digest_of
from .plan import ADMIN, TRUNK, Names
from .state import look, merged

#: Seconds that ``publish`` waits until every gateway that is ready has taken up what it is given.
PUBLISH_WAIT = 10.0
#: Seconds for which an address is believed.
FRESH = 10.0


class Gateways:
    """The gateways of one compute.

    Args:
        folder_of: the local folder of an endpoint, where its deployments were prepared.
        token_of: what gateway and pods of an endpoint show each other.
    """

    def __init__(self, kube: Kube, options: ServingOptions, workspace: str, folder_of: Any, token_of: Any) -> None:
        self.kube = kube
        self.options = options
        self.workspace = workspace
        self._folder_of = folder_of
        self._token_of = token_of
        self._known: dict[str, tuple[float, dict[str, Any]]] = {}

    def objects(self, endpoint: str) -> Objects:
        """The objects of an endpoint."""
        return Objects(self.kube, Names(self.workspace, endpoint))

    def routed(self) -> bool:
        """Whether the cluster's own gateway shares requests out (an HTTPRoute), rather than ours.

        Raises:
            Refused: it is asked for, and the cluster has no Gateway API.
        """
        if self.options.gateway == "own" or not self.options.parent_gateway:
            return False
        there = self.kube.has_group("gateway.networking.k8s.io")
        if self.options.gateway == "gateway-api" and not there:
            raise Refused(f"compute '{self.kube.cluster}' has no Gateway API",
                          "set `gateway: own` in its serving options")
        return there

    # -- what they serve ---------------------------------------------------------------

    def publish(self, endpoint: str, config: dict[str, Any]) -> bool:
        """Have the endpoint's gateways serve this; True when every one that is ready does.

        The Secret is what counts; the pods are only told to look at it at once.

        Raises:
            Refused, Conflict, BackendUnreachable: see :mod:`jupyter_mlops.kube.errors`.
        """
        if not (self.options.gateway_image or self.options.image):
            raise Refused(f"compute '{self.kube.cluster}' has no image for serving",
                          "an operator sets serving.image in it")
        config = {**config, "deployments": {  # samples would be lost with the pod that kept them
            d: {**settings, "data_collector": None} for d, settings in (config.get("deployments") or {}).items()}}
        objects = self.objects(endpoint)
        names, owner = objects.names, objects.owner()
        routed = self.routed()
        scopes = sorted(config.get("deployments") or {}) if routed else [""]
        boot = self._boot(objects, owner)
        for scope in scopes:
            objects.apply(self._config(names, config, scope, owner))
            self._ensure(objects, scope, boot, owner)
        if routed:
            self._route(objects, config, scopes, owner)
        else:
            private = {"service_type": "ClusterIP", "node_port": 0} if config.get("public") is False else {}
            objects.apply(manifests.public_service(names, self.options.model_copy(update=private), owner))
        self._known.pop(endpoint, None)
        return self._wait(names, {scope: self._digest(config, scope) for scope in scopes})

    def _config(self, names: Names, config: dict[str, Any], scope: str, owner: dict[str, Any]) -> dict[str, Any]:
        folder: Path = self._folder_of(names.endpoint)
        served = self._scoped(config, scope)
        trunks, data = {}, {}
        for name, settings in (served.get("deployments") or {}).items():
            # As many connections to a deployment's pods as there may be pods.
            trunks[name] = {"address": f"{names.deployment(name)}:{TRUNK}", "slots": most_instances(settings)}
            about = read_json(folder / name / "model.json")
            data[f"model-{name}.json"] = json.dumps(about).encode()
        data.update({"endpoint.json": json.dumps(served, sort_keys=True).encode(),
                     "trunk.json": json.dumps(trunks, sort_keys=True).encode(),
                     "token": self._token_of(names.endpoint).encode()})
        return manifests.secret(self._config_name(names, scope), names.labels("gateway", scope), owner, data)

    @staticmethod
    def _config_name(names: Names, scope: str) -> str:
        return f"{names.gateway(scope)}-config" if scope else names.config

    @staticmethod
    def _scoped(config: dict[str, Any], scope: str) -> dict[str, Any]:
        """What one gateway serves: all, or one deployment alone."""
        if not scope:
            return config
        only = {scope: (config.get("deployments") or {}).get(scope) or {}}
        return {**config, "deployments": only, "traffic": {scope: 100}, "mirror_traffic": {}}

    def _digest(self, config: dict[str, Any], scope: str) -> str:
        from hashlib import sha256

        return sha256(json.dumps(self._scoped(config, scope), sort_keys=True).encode()).hexdigest()

    def _boot(self, objects: Objects, owner: dict[str, Any]) -> list[str]:
        """Secrets with the gateway's code and modules, made when they are not there; their names, the code's first."""
        data, about = packing.libraries()
        code = packing.gateway_zip()
        stem, labels = objects.names.anchor, objects.names.labels("gateway")
        pieces = {f"{stem}-l-{about['sha256'][:10]}-{i:02d}": piece for i, piece in enumerate(packs.parts(data))}
        first = f"{stem}-g-{packing.digest(code, about)[:10]}"
        there = objects.secrets("gateway", owner)
        made = {first: {"gateway.zip": code, "about.json": json.dumps(about).encode()},
                **{name: {"part": piece} for name, piece in pieces.items()}}
        for name, content in made.items():
            if name not in there:
                objects.put_immutable(manifests.secret(name, labels, owner, content, immutable=True))
        return [first, *pieces]

    def _ensure(self, objects: Objects, scope: str, boot: list[str], owner: dict[str, Any]) -> None:
        names = objects.names
        made = manifests.gateway(names, self.options, boot, self._config_name(names, scope), "", owner, scope)
        digest = packing.digest(made["spec"])
        there = self.kube.get("Deployment", names.gateway(scope))
        if digest_of(there) == digest:
            return
        made = manifests.gateway(names, self.options, boot, self._config_name(names, scope), digest, owner, scope)
        objects.apply(made)
        if self.options.gateway_replicas > 1:
            objects.apply(manifests.disruption(names.gateway(scope), names.labels("gateway", scope),
                                               made["spec"]["selector"]["matchLabels"], owner))
        if scope:
            objects.apply(manifests.public_service(names, self.options, owner, scope))

    def _route(self, objects: Objects, config: dict[str, Any], scopes: list[str], owner: dict[str, Any]) -> None:
        traffic = {d: s for d, s in (config.get("traffic") or {}).items() if s and d in scopes}
        if traffic:
            objects.apply(manifests.route(objects.names, self.options, traffic, config.get("mirror_traffic") or {},
                                          scopes, owner))
        else:
            self.kube.delete("HTTPRoute", objects.names.anchor)
        for item in self.kube.list("Deployment", objects.names.ours(component="gateway")):
            scope = self._scope(item)
            if scope not in scopes:
                for kind in ("Deployment", "Service", "PodDisruptionBudget"):
                    self.kube.delete(kind, item["metadata"]["name"])
                self.kube.delete("Secret", self._config_name(objects.names, scope))

    def _wait(self, names: Names, wanted: dict[str, str]) -> bool:
        """Nudge the pods, and wait until those that are ready serve what they should."""
        deadline = time.monotonic() + PUBLISH_WAIT
        nudged: set[str] = set()
        while True:
            behind = 0
            for pod in self.pods(names.endpoint):
                name = pod["metadata"]["name"]
                scope = self._scope(pod)
                if scope not in wanted:
                    continue
                try:
                    status, answer, _ = self.ask(name, "GET", "/ready", names.endpoint, timeout=3.0)
                    current = status == 200 and json.loads(answer).get("digest") == wanted[scope]
                except (MlopsError, ValueError):
                    current = False
                if not current:
                    behind += 1
                    if name not in nudged:
                        # A node looks at a pod's volumes about once a minute, and at once when the pod changes.
                        nudged.add(name)
                        self.kube.merge("Pod", name, {"metadata": {"annotations": {
                            f"{DOMAIN}/config": wanted[scope][:20]}}})
            if not behind or time.monotonic() > deadline:
                return not behind
            time.sleep(0.2)

    def unpublish(self, endpoint: str) -> bool:
        """Take an endpoint's gateway away; False when it was not there."""
        self._known.pop(endpoint, None)
        objects = self.objects(endpoint)
        count = self.kube.delete("HTTPRoute", objects.names.anchor) if self.routed() else False
        return bool(objects.remove(component="gateway")) or count

    # -- how they are reached ------------------------------------------------------------

    def pods(self, endpoint: str, ready: bool = True) -> list[dict[str, Any]]:
        """The gateways' pods, in the order of their names."""
        found = self.kube.list("Pod", Names(self.workspace, endpoint).ours(component="gateway"))
        found = [p for p in found if not p["metadata"].get("deletionTimestamp") and (reading.ready(p) or not ready)]
        return sorted(found, key=lambda p: str(p["metadata"]["name"]))

    def info(self, endpoint: str) -> dict[str, Any]:
        """``{"url", "phase", "reason", "pods", "pid"}``, seconds old at most; another gateway has another ``pid``."""
        at, known = self._known.get(endpoint, (0.0, {}))
        if known and time.monotonic() - at < (FRESH if known["phase"] == "ready" else 1.0):
            return known
        names = Names(self.workspace, endpoint)
        pods = self.pods(endpoint, ready=False)
        made = {d["metadata"]["name"]: d for d in self.kube.list("Deployment", names.ours(component="gateway"))}
        found = [look(made.get(names.gateway(s)), [p for p in pods if self._scope(p) == s], [])
                 for s in (sorted({self._scope(p) for p in pods}) if self.routed() else [""])]
        worst = next((s for phase in ("failed", "starting", "absent") for s in found if s.phase == phase), None)
        known = {"url": self._url(names, pods), "phase": worst.phase if worst else "ready",
                 "reason": worst.reason if worst and worst.phase != "absent" else "",
                 "pods": [p["metadata"]["name"] for p in pods],
                 "pid": ",".join(sorted(str(d["metadata"].get("uid")) for d in made.values())) or None}
        self._known[endpoint] = (time.monotonic(), known)
        return known

    @staticmethod
    def _scope(item: dict[str, Any]) -> str:
        """The deployment that a gateway, or its pod, is of alone; empty: it serves all."""
        return (item["metadata"].get("labels") or {}).get(f"{DOMAIN}/deployment") or ""

    def _url(self, names: Names, pods: list[dict[str, Any]]) -> str:
        scheme = "https" if self.options.tls_secret else "http"
        if self.options.hostname:
            return f"{scheme}://{self.options.hostname}"
        service = self.kube.get("Service", names.anchor)
        if service is None:
            return ""
        spec = service.get("spec") or {}
        port = (spec.get("ports") or [{}])[0]
        if spec.get("type") == "LoadBalancer":
            for entry in ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []:
                return f"{scheme}://{entry.get('hostname') or entry.get('ip')}"
        if spec.get("type") in ("NodePort", "LoadBalancer") and port.get("nodePort"):
            node = next((p["status"]["hostIP"] for p in pods if (p.get("status") or {}).get("hostIP")), "")
            if node:
                return f"{scheme}://{f'[{node}]' if ':' in node else node}:{port['nodePort']}"
        return f"{scheme}://{names.anchor}.{self.kube.namespace}.svc"

    # -- what they tell --------------------------------------------------------------------

    def ask(self, pod: str, method: str, path: str, endpoint: str, body: bytes | None = None,
            headers: dict[str, str] | None = None, timeout: float = 10.0,
            port: int = ADMIN) -> tuple[int, bytes, dict[str, str]]:
        """A call to a pod, through the API's proxy: (status, body, headers).

        Raises:
            BackendTimeout, BackendUnreachable: there was no answer.
        """
        sent = {"X-Mlops-Token": self._token_of(endpoint), **(headers or {})}
        content_type = sent.pop("Content-Type", "application/json")
        status, given, answer = self.kube.request(
            method, f"{self.kube.path('Pod', f'{pod}:{port}', 'proxy')}{path}", body, content_type=content_type,
            headers=sent, timeout=timeout)
        return status, answer, {k.title(): v for k, v in given.items()}

    def stats(self, endpoint: str) -> dict[str, Any] | None:
        """What ``/admin/stats`` says, of all gateways together, and of each in ``gateways``; None: none answers."""
        answers = []
        for pod in self.pods(endpoint):
            status, answer, _ = self.ask(pod["metadata"]["name"], "GET", "/admin/stats", endpoint)
            if status == 200:
                answers.append(json.loads(answer))
        return {**merged(answers), "gateways": answers} if answers else None

    def page(self, endpoint: str, what: str, timeout: float) -> tuple[int, bytes, dict[str, str]]:
        """``metrics``, ``openapi.json`` or ``docs`` as a gateway shows them, without a key: (status, body, headers).

        Raises:
            Unavailable: no gateway is ready.
        """
        return self.ask(self._ready(endpoint), "GET", f"/endpoints/{quote(endpoint)}/{what}", endpoint,
                        headers={"Accept": "*/*"}, timeout=timeout)

    def invoke(self, endpoint: str, body: bytes, content_type: str, timeout: float, deployment: str,
               headers: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        """Score through a gateway, without a key: (status, body, headers).

        Raises:
            Unavailable: no gateway is ready.
            BackendTimeout: it did not answer in time.
        """
        pod = self._ready(endpoint, deployment)
        sent = {"Content-Type": content_type, **headers}
        if deployment:
            sent["azureml-model-deployment"] = deployment
        try:
            return self.ask(pod, "POST", f"/endpoints/{quote(endpoint)}/invocations", endpoint, body, sent, timeout)
        except BackendTimeout:
            raise BackendTimeout(f"the endpoint did not answer within {timeout:g} s") from None

    def _ready(self, endpoint: str, deployment: str = "") -> str:
        """The name of a gateway's pod that is ready; that of the deployment's own gateway where it has one.

        Raises:
            Unavailable: there is none.
        """
        pods = self.pods(endpoint)
        scoped = [p for p in pods if self._scope(p) == deployment]
        chosen = (scoped if deployment and scoped else pods)[:1]
        if not chosen:
            reason = self.info(endpoint)["reason"]
            raise Unavailable("the endpoint's gateway is not ready", reason or "try again in a moment")
        return str(chosen[0]["metadata"]["name"])
