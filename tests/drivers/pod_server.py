"""The emulated API server of :mod:`kube_server`, whose Jobs have pods: processes on this machine that run what their
containers would, with real Secrets as files, signals in the order of a kubelet, and a real watch."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import json
import os
import shutil
import signal
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import psutil
from aiohttp import web
from kube_server import KubeServer, status
from pod_mounts import PodMounts

from jupyter_mlops.compute.kubernetes.manifests import COUNTS


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class PodServer(PodMounts, KubeServer):
    """``hold_pods``: pods of new Jobs stay pending, with these conditions. ``too_old``: watches are told 410, once.
    ``room``: so many pods may run at once; the others wait for their turn."""

    def __init__(self, namespace: str = "team") -> None:
        super().__init__(namespace)
        self.groups |= {"batch"}
        self.folder = Path(tempfile.mkdtemp(prefix="mlops-pods-", dir="/tmp"))
        self.hold_pods: list[dict[str, Any]] | None = None
        self.too_old = 0
        self.room = 1000
        self._inside = 0
        self.watches = 0
        self.version = 1
        self.events: list[tuple[int, str, dict[str, Any]]] = []
        self._news: asyncio.Condition | None = None
        self._processes: dict[str, dict[str, asyncio.subprocess.Process]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[asyncio.Task[Any]] = set()

    def stop(self) -> None:
        async def end() -> None:
            tasks = [*self._tasks, *self._open]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for both in self._processes.values():
                for process in both.values():
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        super().stop()
        self._end_strays()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end_strays(self) -> None:
        """End what has left its group, as agents and pip do: on a cluster it goes with the container."""
        mark = os.fsencode(str(self.folder))
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and any(mark in (entry / n).read_bytes() for n in ("cmdline", "environ")):
                    os.kill(int(entry.name), signal.SIGKILL)

    def spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def pods(self) -> list[dict[str, Any]]:
        return self.of("pods")

    def work(self, pod: str) -> Path:
        return self.folder / pod / "work"

    def cut_connections(self) -> None:
        """End every watch and execution that is open."""
        def cut() -> None:
            for task in list(self._open):
                task.cancel()

        self._loop.call_soon_threadsafe(cut)

    # -- objects -----------------------------------------------------------------------------------------------------

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("watch") and request.path.endswith("/pods"):
            self.calls.append(("WATCH", request.path))
            if self.fault is not None and (answer := self.fault(request)) is not None:
                return answer
            return await self._watch(request)
        return await super()._answer(request)

    def command(self, request: web.Request) -> list[str]:
        pod = request.path.split("/")[-2]
        return [self._here(part, pod) for part in super().command(request)]

    async def _exec(self, request: web.Request) -> web.WebSocketResponse:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            return await super()._exec(request)
        finally:
            self._open.discard(task)

    async def _object(self, request: web.Request, plural: str, name: str) -> web.Response:
        if request.method == "GET" and not name:
            found = [o for o in self.of(plural) if self._selected(o, request.query.get("labelSelector", ""))]
            return web.json_response({"items": found, "metadata": {"resourceVersion": str(self.version)}})
        if request.method == "DELETE" and plural == "pods":
            there = self.objects.get((plural, name))
            if there is None:
                return status(404, "not found", "NotFound")
            body = json.loads(await request.read() or b"{}")
            self._terminate(name, body.get("gracePeriodSeconds"))
            return web.json_response(there)
        before = copy.deepcopy(self.objects.get((plural, name)))
        answer = await super()._object(request, plural, name)
        made = self.objects.get((plural, name or ""))
        if plural in ("jobs", "trainjobs") and made is not None and made["spec"].get("suspend") is False and (
                before is None or before["spec"].get("suspend") is not False):
            if plural == "trainjobs":
                made = self._train(made)
            for index in range(made["spec"].get("completions", 1)):
                self.spawn(self._pod(made, index, 0))
        return answer

    def _train(self, train: dict[str, Any]) -> dict[str, Any]:
        """What Kubeflow Trainer, and JobSet after it, make of a TrainJob: the Job of its runtime."""
        reference, name = train["spec"]["runtimeRef"], train["metadata"]["name"]
        assert reference["kind"] == "TrainingRuntime"
        runtime = self.objects["trainingruntimes", reference["name"]]
        (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
        template = copy.deepcopy(replicated["template"])
        return self.put("jobs", {
            "apiVersion": "batch/v1", "kind": "Job", "spec": {**template["spec"], "suspend": False},
            "metadata": {"name": f"{name}-{replicated['name']}-0", "labels": template["metadata"]["labels"],
                         "ownerReferences": [{"apiVersion": train["apiVersion"], "kind": "TrainJob", "name": name,
                                              "uid": train["metadata"]["uid"]}]}})

    def _collect(self) -> None:
        """Pods are terminated first; the rest goes at once, and with it what it owned."""
        uids = {o["metadata"]["uid"] for o in self.objects.values()}
        went = False
        for (plural, name), found in list(self.objects.items()):
            owners = found["metadata"].get("ownerReferences") or []
            if owners and any(o["uid"] not in uids for o in owners):
                if plural == "pods":
                    self._terminate(name, None)
                else:
                    del self.objects[plural, name]
                    went = True
        if went:
            self._collect()

    # -- pods --------------------------------------------------------------------------------------------------------

    def _set(self, name: str, **changes: Any) -> None:
        pod = self.objects.get(("pods", name))
        if pod is None:
            return
        pod["status"] = {**pod["status"], **changes}
        self._publish("MODIFIED", pod)

    def _publish(self, what: str, pod: dict[str, Any]) -> None:
        self.version += 1
        pod["metadata"]["resourceVersion"] = str(self.version)
        self.events.append((self.version, what, copy.deepcopy(pod)))
        if self._news is not None:
            self.spawn(self._notify())

    async def _notify(self) -> None:
        assert self._news is not None
        async with self._news:
            self._news.notify_all()

    def _new_pod(self, job: dict[str, Any], index: int, name: str, before: int) -> dict[str, Any]:
        """Make a pod of a Job, and tell of it; ``before``: how many of this index were disturbed before."""
        template = job["spec"]["template"]
        labels = {**template["metadata"]["labels"], "batch.kubernetes.io/job-completion-index": str(index)}
        pod = self.put("pods", {
            "apiVersion": "v1", "kind": "Pod", "spec": template["spec"], "status": {"phase": "Pending"},
            "metadata": {"name": name, "labels": labels, "creationTimestamp": now(), "annotations": {
                COUNTS[0]: str(before)}, "ownerReferences": [{
                "apiVersion": "batch/v1", "kind": "Job", "name": job["metadata"]["name"],
                "uid": job["metadata"]["uid"]}]}})
        self._publish("ADDED", pod)
        return pod

    async def _pod(self, job: dict[str, Any], index: int, before: int) -> None:
        """A pod from its beginning to its end; ``before``: how many of this index were disturbed before."""
        name = f"{job['metadata']['name']}-{index}-{uuid.uuid4().hex[:5]}"
        pod = self._new_pod(job, index, name, before)
        if self.hold_pods is not None:
            self._set(name, conditions=self.hold_pods)
            return
        while self._inside >= self.room:
            await asyncio.sleep(0.05)
            if ("pods", name) not in self.objects:
                return
        self._inside += 1
        try:
            await self._life(job, pod, name, index)
        finally:
            self._inside -= 1
        pod = self.objects.get(("pods", name)) or pod
        disturbed = any(c["type"] == "DisruptionTarget" for c in pod["status"].get("conditions") or [])
        gone = pod["metadata"].get("deletionTimestamp")
        if gone:
            self.objects.pop(("pods", name), None)
            self._publish("DELETED", pod)
        if disturbed and "backoffLimitPerIndex" in job["spec"] and ("jobs", job["metadata"]["name"]) in self.objects:
            await self._pod(job, index, before + 1)

    async def _life(self, job: dict[str, Any], pod: dict[str, Any], name: str, index: int) -> None:
        self._mount(pod)
        spec = pod["spec"]
        both = self._processes[name] = {}
        if "initContainers" not in spec:
            await self._alone(pod, index)
            return
        ended = {"phase": "Succeeded"}
        try:
            both["keeper"] = await self._container(pod, spec["initContainers"][0], index)
            states = [_state("keeper", running={"startedAt": now()})]
            self._set(name, initContainerStatuses=states, podIP="127.0.0.1")
            for init in spec["initContainers"][1:]:
                running = _state(init["name"], running={"startedAt": now()})
                self._set(name, initContainerStatuses=[*states, running])
                both[init["name"]] = await self._container(pod, init, index)
                code = await both[init["name"]].wait()
                self._end_group(both[init["name"]])
                states.append(_state(init["name"], terminated={"exitCode": code if code >= 0 else 128 - code}))
                self._set(name, initContainerStatuses=states)
                if code:
                    ended = {"phase": "Failed"}
                    raise ChildFailed
            both["job"] = await self._container(pod, spec["containers"][0], index)
            self._set(name, phase="Running", containerStatuses=[_state("job", running={"startedAt": now()})])
            code = await both["job"].wait()
            self._end_group(both["job"])
            terminated = {"exitCode": code if code >= 0 else 128 - code, "reason": "Error" if code else "Completed"}
            self._set(name, containerStatuses=[_state("job", terminated=terminated)])
            if code:
                ended = {"phase": "Failed"}
            disturbed = any(c["type"] == "DisruptionTarget" for c in pod["status"].get("conditions") or [])
            if (code and not (disturbed and "backoffLimitPerIndex" in job["spec"])) or (
                    not code and index == 0 and "successPolicy" in job["spec"]):
                self._end_others(name, job)
        except ChildFailed:
            self._end_others(name, job)
        except ProcessLookupError:
            pass
        with contextlib.suppress(ProcessLookupError, KeyError):
            both["keeper"].terminate()
            await both["keeper"].wait()
        self._set(name, **ended, initContainerStatuses=[_state("keeper", terminated={"exitCode": 0})])

    async def _alone(self, pod: dict[str, Any], index: int) -> None:
        """A pod of one container."""
        name, container = pod["metadata"]["name"], pod["spec"]["containers"][0]
        process = self._processes[name]["job"] = await self._container(pod, container, index)
        running = _state(container["name"], running={"startedAt": now()})
        self._set(name, phase="Running", containerStatuses=[running])
        code = await process.wait()
        self._end_group(process)
        over = _state(container["name"], terminated={"exitCode": code if code >= 0 else 128 - code})
        self._set(name, phase="Failed" if code else "Succeeded", containerStatuses=[over])

    def _end_others(self, name: str, job: dict[str, Any]) -> None:
        """A pod of a Job has failed: backoffLimit 0."""
        for other in self.pods():
            if other["metadata"]["name"] != name and self._of(other) == job["metadata"]["uid"]:
                self._terminate(other["metadata"]["name"], None)

    @staticmethod
    def _of(pod: dict[str, Any]) -> str:
        return pod["metadata"]["ownerReferences"][0]["uid"]

    async def _container(self, pod: dict[str, Any], container: dict[str, Any],
                         index: int) -> asyncio.subprocess.Process:
        name = pod["metadata"]["name"]
        env = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "MLFLOW", "PYTEST", "PIP_"))}
        for entry in container["env"]:
            if "value" in entry:
                env[entry["name"]] = self._here(entry["value"], name)
            else:
                path = entry["valueFrom"]["fieldRef"]["fieldPath"]
                env[entry["name"]] = pod["metadata"]["annotations"].get(path.split("'")[1], "")
        for source in container.get("envFrom") or []:
            secret = self.objects["secrets", source["secretRef"]["name"]]
            env.update({k: base64.b64decode(v).decode() for k, v in secret["data"].items()})
        env["JOB_COMPLETION_INDEX"] = str(index)
        env["KUBERNETES_SERVICE_HOST"] = "10.0.0.1"
        env["PIP_CONFIG_FILE"] = os.devnull  # a pod knows nothing of this machine's settings
        command = [self._here(part, name) for part in container["command"]]
        with open(self.folder / name / f"{container['name']}.log", "wb") as log:  # noqa: ASYNC230
            return await asyncio.create_subprocess_exec(
                *command, cwd=self.folder / name / "work", env=env, stdin=asyncio.subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True)

    def _end_group(self, process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)

    def _terminate(self, name: str, grace: int | None) -> None:
        """What a kubelet does with a pod that is deleted: SIGTERM to the ranks' container, later SIGKILL."""
        pod = self.objects.get(("pods", name))
        if pod is None or pod["metadata"].get("deletionTimestamp"):
            return
        pod["metadata"]["deletionTimestamp"] = now()
        self._publish("MODIFIED", pod)
        both = self._processes.get(name, {})
        main = both.get("job") or both.get("packages")
        if main is None or pod["status"].get("phase") in ("Succeeded", "Failed"):  # nothing of it runs
            self.objects.pop(("pods", name), None)
            self._publish("DELETED", pod)
            return
        if main.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                main.terminate()
            seconds = pod["spec"]["terminationGracePeriodSeconds"] if grace is None else grace
            self.spawn(self._kill_later(name, seconds))

    async def _kill_later(self, name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        for process in self._processes.get(name, {}).values():
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def evict(self, name: str, reason: str = "EvictionByEvictionAPI") -> None:
        """A pod must go, as the cluster wants it."""
        def begin() -> None:
            conditions = [{"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "",
                           "lastTransitionTime": now()}]
            self._set(name, conditions=conditions)
            self._terminate(name, None)

        self._loop.call_soon_threadsafe(begin)

    def lose_node(self, name: str) -> None:
        """A pod's node is gone with all that was on it."""
        def lose() -> None:
            family = []
            for process in self._processes.get(name, {}).values():
                with contextlib.suppress(psutil.NoSuchProcess):
                    root = psutil.Process(process.pid)
                    for one in (root, *root.children(recursive=True)):  # ranks have sessions of their own
                        family.append(one)
                        with contextlib.suppress(psutil.NoSuchProcess):
                            one.suspend()  # all at once: nobody there sees another one go
            for one in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            pod = self.objects.pop(("pods", name), None)
            if pod is not None:
                pod["status"]["conditions"] = [
                    {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager", "message": ""}]
                self._publish("DELETED", pod)

        self._loop.call_soon_threadsafe(lose)

    # -- watching ----------------------------------------------------------------------------------------------------

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return status(401, "Unauthorized", "Unauthorized")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        self.watches += 1
        if self._news is None:
            self._news = asyncio.Condition()
        try:
            if self.too_old:
                self.too_old -= 1
                gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
                await response.write(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
                return response
            seen = int(request.query["resourceVersion"])
            while True:
                for version, what, pod in list(self.events):
                    if version > seen and self._selected(pod, request.query.get("labelSelector", "")):
                        await response.write(json.dumps({"type": what, "object": pod}).encode() + b"\n")
                    seen = max(seen, version)
                async with self._news:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._news.wait(), 1.0)
        except ConnectionError:
            return response
        finally:
            self._open.discard(task)


class ChildFailed(Exception):
    """A container before the main one has failed."""


def _state(name: str, **state: Any) -> dict[str, Any]:
    return {"name": name, "image": "image:1", "imageID": "", "ready": "running" in state, "state": state,
            "restartCount": 0}
