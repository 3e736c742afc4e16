"""One namespace of one cluster, over the real ``kubernetes`` client's connection.

Plain dicts go in and out: manifests stay readable as YAML, and objects of extensions need no classes. Every call has a
timeout, and every failure is one of our errors (:mod:`jupyter_mlops.kube.errors`).
"""

from __future__ import annotations

import json
import os
import threading
from typing import Any
from urllib.parse import urlencode

from ..core.errors import BackendUnreachable, Conflict, MlopsError, Refused
from .errors import Absent, from_answer, from_exception

#: Who we are in ``managedFields``.
MANAGER = "jupyter-mlops"
#: Seconds for one call.
TIMEOUT = 10.0
#: Context of a control plane that runs in the cluster itself, under its service account.
IN_CLUSTER = "in-cluster"

#: kind → (API group and version, plural). What we make.
KINDS: dict[str, tuple[str, str]] = {
    "ConfigMap": ("v1", "configmaps"), "Secret": ("v1", "secrets"), "Service": ("v1", "services"),
    "Pod": ("v1", "pods"), "Event": ("v1", "events"), "PersistentVolumeClaim": ("v1", "persistentvolumeclaims"),
    "Deployment": ("apps/v1", "deployments"), "ReplicaSet": ("apps/v1", "replicasets"), "Job": ("batch/v1", "jobs"),
    "HorizontalPodAutoscaler": ("autoscaling/v2", "horizontalpodautoscalers"),
    "PodDisruptionBudget": ("policy/v1", "poddisruptionbudgets"),
    "HTTPRoute": ("gateway.networking.k8s.io/v1", "httproutes"),
    "TrainJob": ("trainer.kubeflow.org/v1alpha1", "trainjobs"),
    "TrainingRuntime": ("trainer.kubeflow.org/v1alpha1", "trainingruntimes"),
}


class Kube:
    """Calls to one namespace.

    The client is built at the first call, in the caller's thread; credentials come from the operator's kubeconfig, of
    which only the path is kept here.

    Args:
        cluster: the compute's name, for messages.
        context: a context of the kubeconfig; empty: its current one.
        namespace: where everything is.
        kubeconfig: its path; empty: ``JUPYTER_MLOPS_KUBECONFIG``, else ``KUBECONFIG``, else ``~/.kube/config``.
    """

    def __init__(self, cluster: str, context: str = "", namespace: str = "default", kubeconfig: str = "") -> None:
        self.cluster = cluster
        self.context = context
        self.namespace = namespace
        self.kubeconfig = kubeconfig
        self._client: Any = None
        self._lock = threading.Lock()
        self._groups: dict[str, str] = {}

    # -- the connection ------------------------------------------------------------

    def client(self) -> Any:
        """The ``kubernetes.client.ApiClient``; built once.

        Raises:
            Refused: the ``kubernetes`` package is not installed.
            BackendUnreachable: the kubeconfig cannot be used.
        """
        with self._lock:
            if self._client is None:
                self._client = self._build()
            return self._client

    def _build(self) -> Any:
        try:
            import kubernetes.client as api
            import kubernetes.config as config
        except ImportError as error:
            raise Refused("clusters need the package kubernetes", "pip install 'jupyter-mlops[k8s]'") from error
        settings = api.Configuration()
        settings.retries = False  # every call of ours is repeated by whoever converges; a hidden retry doubles timeouts
        path = self.kubeconfig or os.environ.get("JUPYTER_MLOPS_KUBECONFIG") or os.environ.get("KUBECONFIG") or None
        try:
            if self.context == IN_CLUSTER:
                config.load_incluster_config(client_configuration=settings)
            else:
                config.load_kube_config(path, context=self.context or None, client_configuration=settings,
                                        persist_config=False)
        except Exception as error:  # whatever a broken file makes the loader raise
            raise from_exception(error, self.cluster, TIMEOUT) from error
        settings.retries = False
        return api.ApiClient(settings)

    def request(self, method: str, path: str, body: Any = None, query: dict[str, Any] | None = None, *,
                content_type: str = "application/json", headers: dict[str, str] | None = None,
                timeout: float = TIMEOUT) -> tuple[int, dict[str, str], bytes]:
        """One call; the answer whatever its status.

        Raises:
            BackendTimeout, BackendUnreachable: there was no answer.
        """
        client = self.client()
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode("utf-8")
        try:
            # Address, credentials (renewed where they end) and TLS are the client's; the bytes are ours.
            verb, url, sent, *_ = client.param_serialize(
                method, path, header_params={"Accept": "application/json", **(headers or {})},
                auth_settings=["BearerToken"])
            if query:
                url += "?" + urlencode(query, doseq=True)
            if data is not None:
                sent["Content-Type"] = content_type
            response = client.rest_client.pool_manager.request(
                verb, url, body=data, headers=sent, retries=False, redirect=False,
                timeout=_timeout(timeout))
            return response.status, {k.lower(): v for k, v in response.headers.items()}, response.data or b""
        except Exception as error:
            raise from_exception(error, self.cluster, timeout) from error

    def stream(self, path: str, query: dict[str, Any], headers: dict[str, str], timeout: float) -> Any:
        """A GET whose answer is read as it comes: urllib3's response, which the caller closes.

        Raises:
            BackendTimeout, BackendUnreachable: there was no answer.
        """
        client = self.client()
        try:
            verb, url, sent, *_ = client.param_serialize(
                "GET", path, header_params={"Accept": "*/*", **headers}, auth_settings=["BearerToken"])
            return client.rest_client.pool_manager.request(
                verb, f"{url}?{urlencode(query)}", headers=sent, retries=False, redirect=False,
                timeout=_timeout(timeout), preload_content=False, decode_content=False)
        except Exception as error:
            raise from_exception(error, self.cluster, timeout) from error

    def call(self, method: str, path: str, body: Any = None, query: dict[str, Any] | None = None, *,
             what: str = "", content_type: str = "application/json", timeout: float = TIMEOUT) -> Any:
        """One call, its answer's JSON.

        Raises:
            MlopsError: see :mod:`jupyter_mlops.kube.errors`.
        """
        status, _, answer = self.request(method, path, body, query, content_type=content_type, timeout=timeout)
        if not 200 <= status < 300:
            raise from_answer(status, answer, what or f"{method} {path}", self.cluster)
        try:
            return json.loads(answer) if answer else {}
        except ValueError:
            raise BackendUnreachable(f"compute '{self.cluster}' answers with something else than JSON",
                                     "is the address in the kubeconfig that of a Kubernetes API?") from None

    # -- objects -------------------------------------------------------------------

    def path(self, kind: str, name: str = "", sub: str = "") -> str:
        """The path of an object, or of all of a kind, in this namespace."""
        group, plural = KINDS[kind]
        root = f"/api/{group}" if "/" not in group else f"/apis/{group}"
        parts = [root, "namespaces", self.namespace, plural, *((name,) if name else ()), *((sub,) if sub else ())]
        return "/".join(parts)

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """The object, or None."""
        try:
            found: dict[str, Any] = self.call("GET", self.path(kind, name), what=f"reading {kind} {name}")
            return found
        except Absent:
            return None

    def list(self, kind: str, labels: dict[str, str] | None = None, fields: str = "") -> list[dict[str, Any]]:
        """All objects of a kind with these labels."""
        query: dict[str, Any] = {"limit": 500}
        if labels:
            query["labelSelector"] = ",".join(f"{k}={v}" for k, v in sorted(labels.items()))
        if fields:
            query["fieldSelector"] = fields
        found: list[dict[str, Any]] = []
        while True:
            page = self.call("GET", self.path(kind), query=query, what=f"listing {KINDS[kind][1]}")
            found += page.get("items") or []
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return found
            query["continue"] = token

    def apply(self, manifest: dict[str, Any], owned: dict[str, str], dry_run: bool = False) -> dict[str, Any]:
        """Create an object, or make it as the manifest says; the object as it is then.

        Args:
            owned: labels that an existing object must have: another's object of the same name is never taken over.
            dry_run: have the API check it, with admission and quota, and change nothing.

        Raises:
            Conflict: there is an object of that name which is not ours.
        """
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        there = self.get(kind, name)
        if there is not None:
            labels = there["metadata"].get("labels") or {}
            if any(labels.get(k) != v for k, v in owned.items()):
                raise Conflict(f"{kind} '{name}' in namespace '{self.namespace}' is not ours",
                               "somebody else made an object of that name; choose another name, or delete it")
        query: dict[str, Any] = {"fieldManager": MANAGER, "force": "true"}
        if dry_run:
            query["dryRun"] = "All"
        result: dict[str, Any] = self.call(
            "PATCH", self.path(kind, name), manifest, query, what=f"making {kind} {name}",
            content_type="application/apply-patch+yaml", timeout=30.0)
        return result

    def merge(self, kind: str, name: str, patch: dict[str, Any], sub: str = "") -> dict[str, Any]:
        """Change fields of an object (JSON merge patch)."""
        result: dict[str, Any] = self.call("PATCH", self.path(kind, name, sub), patch, what=f"changing {kind} {name}",
                                           content_type="application/merge-patch+json")
        return result

    def delete(self, kind: str, name: str, grace: int | None = None) -> bool:
        """Delete an object with all that it owns; False when it was not there."""
        body: dict[str, Any] = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        if grace is not None:
            body["gracePeriodSeconds"] = grace
        try:
            self.call("DELETE", self.path(kind, name), body, what=f"deleting {kind} {name}")
            return True
        except Absent:
            return False

    # -- the cluster ---------------------------------------------------------------

    def version(self) -> str:
        """Its version, such as ``v1.34.1``; also the cheapest way to see whether it is there."""
        return str(self.call("GET", "/version", what="asking for the version", timeout=5.0).get("gitVersion", ""))

    def has_group(self, group: str) -> bool:
        """Whether an API group such as ``metrics.k8s.io`` is served; asked once. Errors count as no, for now."""
        return bool(self.group_version(group))

    def group_version(self, group: str) -> str:
        """The version of an API group that the cluster prefers, such as ``v1beta1``; empty where it is not served, or
        does not say so now."""
        if group not in self._groups:
            try:
                found = self.call("GET", f"/apis/{group}", what=f"looking for {group}", timeout=5.0)
                self._groups[group] = str((found.get("preferredVersion") or {}).get("version") or "v1")
            except Absent:
                self._groups[group] = ""
            except MlopsError:
                return ""
        return self._groups[group]

    def may(self, verb: str, resource: str, group: str = "", sub: str = "") -> bool:
        """Whether these credentials may do something in the namespace (SelfSubjectAccessReview)."""
        review = {
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {"namespace": self.namespace, "verb": verb, "resource": resource,
                                            "group": group, "subresource": sub}},
        }
        answer = self.call("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review,
                           what="asking for permissions")
        return bool((answer.get("status") or {}).get("allowed"))


def _timeout(seconds: float) -> Any:
    """For connecting and for each read; a cluster that is not there is told soon."""
    from urllib3 import Timeout

    return Timeout(connect=min(5.0, seconds), read=seconds)
