"""What the pods of :mod:`pod_server` have mounted: Secrets as files, claims and folders of a node as links."""

from __future__ import annotations

import base64
import json
import os
import sys
from pathlib import Path
from typing import Any

from conftest import free_port

from jupyter_mlops.compute.kubernetes.manifests import BOOT, PARTS, WORK

MLOPS = os.path.dirname(BOOT)


class PodMounts:
    """Part of an emulated API server."""

    folder: Path
    objects: dict[tuple[str, str], dict[str, Any]]

    def _here(self, text: str, pod: str) -> str:
        """A path in a pod as a path here."""
        return text.replace(MLOPS + "/", f"{self.folder / pod}/").replace("python3", sys.executable)

    def _mount(self, pod: dict[str, Any]) -> None:
        name = pod["metadata"]["name"]
        claimed = {v["name"] for v in pod["spec"]["volumes"] if "persistentVolumeClaim" in v}
        for sub in {"boot", "parts", "work"} - claimed:
            (self.folder / name / sub).mkdir(parents=True)

        def data(secret: str) -> dict[str, bytes]:
            found = self.objects["secrets", secret]["data"]
            return {k: base64.b64decode(v) for k, v in found.items()}

        for volume in pod["spec"]["volumes"]:
            there = self.folder / name / volume["name"]
            if volume["name"] in ("pip", "conda"):
                there.mkdir()
                for key, value in data(volume["secret"]["secretName"]).items():
                    (there / key).write_bytes(value)
            elif "secret" in volume:
                for key, value in data(volume["secret"]["secretName"]).items():
                    if key == "order.json":
                        value = self._address(value)
                    (self.folder / name / "boot" / key).write_bytes(value)
            for source in (volume.get("projected") or {}).get("sources") or []:
                item = source["secret"]["items"][0]
                (self.folder / name / "parts" / item["path"]).write_bytes(data(source["secret"]["name"])[item["key"]])
        self._mount_volumes(pod)
        assert BOOT.endswith("/boot") and PARTS.endswith("/parts") and WORK.endswith("/work")

    def _mount_volumes(self, pod: dict[str, Any]) -> None:
        """Claims and folders of a node are folders here; what containers see of them are links."""
        name = pod["metadata"]["name"]
        volumes = {v["name"]: v for v in pod["spec"]["volumes"]}
        containers = [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]
        index = pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]
        mounts = {m["mountPath"]: m for c in containers for m in c["volumeMounts"]}
        for mounted in mounts.values():
            volume = volumes[mounted["name"]]
            if "persistentVolumeClaim" in volume:
                place = self.claim(volume["persistentVolumeClaim"]["claimName"])
            elif "hostPath" in volume:
                place = Path(volume["hostPath"]["path"])
            else:
                continue
            inner = mounted.get("subPathExpr", "").replace("$(JOB_COMPLETION_INDEX)", index)
            place = place / (inner or mounted.get("subPath", ""))
            place.mkdir(parents=True, exist_ok=True)
            there = Path(self._here(mounted["mountPath"], name))
            there.parent.mkdir(parents=True, exist_ok=True)
            there.symlink_to(place)

    def claim(self, name: str, **spec: Any) -> Path:
        """The folder of a PersistentVolumeClaim; made, bound, when ``spec`` is given."""
        if spec:
            self.put("persistentvolumeclaims", {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
                "spec": {"storageClassName": "fast", **spec},
                "status": {"phase": "Bound", "accessModes": spec["accessModes"], "capacity": {"storage": "10Gi"}}})
        place = self.folder / "claims" / name
        place.mkdir(parents=True, exist_ok=True)
        return place

    def _address(self, order: bytes) -> bytes:
        """Host names of pods do not resolve here."""
        value = json.loads(order)
        if value.get("address"):
            port = self.__dict__.setdefault("_ports", {}).setdefault(value["address"], free_port())
            value["address"] = f"127.0.2.%d:{port}"
        return json.dumps(value).encode()
