"""An API server of a cluster, as far as our drivers use one, over real HTTP: storage, watches of nobody, and faults.

It keeps objects as they are applied, runs nothing, and does what a test tells it to: deny a verb, answer with an error,
hang, be away. Executing in a pod runs the command on this machine. Pods are made by the tests.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

from jupyter_mlops.compute.terminal import Terminal

GROUPS = {"apps": "v1", "autoscaling": "v2", "policy": "v1"}


def status(code: int, message: str, reason: str = "") -> web.Response:
    return web.json_response({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message,
                              "reason": reason, "code": code}, status=code)


def merge(base: Any, patch: Any) -> Any:
    """RFC 7386, which is close enough to a server-side apply for objects of one manager."""
    if not isinstance(patch, dict):
        return patch
    result = dict(base) if isinstance(base, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


class KubeServer:
    """``objects``: (plural, name) → object. ``calls``: every (method, path). Faults are set by tests."""

    def __init__(self, namespace: str = "team") -> None:
        self.namespace = namespace
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.calls: list[tuple[str, str]] = []
        self.groups = set(GROUPS)
        self.token = "a-token"
        #: asked before every call: a response to give instead
        self.fault: Callable[[web.Request], web.Response | None] | None = None
        #: whether these credentials may do what a SelfSubjectAccessReview asks for
        self.allowed: Callable[[dict[str, Any]], bool] = lambda asked: asked["resource"] not in ("nodes", "events")
        #: storage class → volumeBindingMode
        self.classes: dict[str, str] = {}
        self.delay = 0.0
        self.proxied: Callable[[str, web.Request, bytes], web.Response] | None = None
        self.env: dict[str, str] = {}
        #: bytes of standard input after which an execution is cut off; 0: never
        self.cut = 0
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._started = threading.Event()
        self._runner: web.AppRunner | None = None

    def start(self) -> KubeServer:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen())
        self._started.set()
        self._loop.run_forever()
        assert self._runner is not None
        self._loop.run_until_complete(self._runner.cleanup())

    async def _listen(self) -> None:
        app = web.Application(client_max_size=1 << 28)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    def kubeconfig(self, folder: Path, token: str = "") -> str:
        """A kubeconfig for it; the context is ``emulated``."""
        path = folder / "kubeconfig"
        path.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "emulated",
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
            "users": [{"name": "u", "user": {"token": token or self.token}}],
            "contexts": [{"name": "emulated", "context": {"cluster": "c", "user": "u"}}]}))
        return str(path)

    def of(self, plural: str) -> list[dict[str, Any]]:
        return [o for (p, _), o in sorted(self.objects.items()) if p == plural]

    def put(self, plural: str, manifest: dict[str, Any]) -> dict[str, Any]:
        manifest.setdefault("metadata", {}).setdefault("uid", str(uuid.uuid4()))
        manifest["metadata"].setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
        self.objects[plural, manifest["metadata"]["name"]] = manifest
        return manifest

    # -- answers -------------------------------------------------------------------

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = "/" + request.match_info["path"]
        self.calls.append((request.method, path))
        if self.delay:
            await asyncio.sleep(self.delay)
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return status(401, "Unauthorized", "Unauthorized")
        if self.fault is not None and (answer := self.fault(request)) is not None:
            return answer
        parts = path.strip("/").split("/")
        if path == "/version":
            return web.json_response({"gitVersion": "v1.36.0"})
        if path.endswith("/selfsubjectaccessreviews"):
            asked = (await request.json())["spec"]["resourceAttributes"]
            return web.json_response({"status": {"allowed": self.allowed(asked)}})
        if "storageclasses" in parts and parts[-1] in self.classes:
            return web.json_response({"volumeBindingMode": self.classes[parts[-1]]})
        if parts[0] == "apis" and len(parts) == 2:
            return web.json_response({}) if parts[1] in self.groups else status(404, "not found", "NotFound")
        parts = parts[2:] if parts[0] == "api" else parts[3:]
        if parts[0] != "namespaces" or len(parts) < 3:
            return status(404, "not found", "NotFound")
        if parts[1] != self.namespace:
            return status(404, f'namespaces "{parts[1]}" not found', "NotFound")
        plural, name, sub = parts[2], *[*parts[3:5], "", ""][:2]
        if sub == "exec":
            return await self._exec(request)
        if sub == "proxy":
            assert self.proxied is not None
            return self.proxied(name, request, await request.read())
        if sub == "log":
            return web.Response(text=f"log of {name}\nsecond line\n")
        return await self._object(request, plural, name)

    async def _object(self, request: web.Request, plural: str, name: str) -> web.Response:
        there = self.objects.get((plural, name))
        if request.method == "GET" and not name:
            found = [o for o in self.of(plural) if self._selected(o, request.query.get("labelSelector", ""))]
            return web.json_response({"items": found, "metadata": {}})
        if request.method == "POST":
            made = await request.json()
            name = made["metadata"]["name"]
            if (plural, name) in self.objects:
                return status(409, f'{plural} "{name}" already exists', "AlreadyExists")
            return web.json_response(self.put(plural, made), status=201)
        if request.method == "PATCH":
            patch = json.loads(await request.read())
            apply = "apply-patch" in request.headers["Content-Type"]
            if there is None and not apply:
                return status(404, f'{plural} "{name}" not found', "NotFound")
            made = merge(there or {}, patch)
            if request.query.get("dryRun") == "All":
                return web.json_response(made)
            made["metadata"]["generation"] = int((there or {}).get("metadata", {}).get("generation", 0)) + 1
            return web.json_response(self.put(plural, made))
        if there is None:
            return status(404, f'{plural} "{name}" not found', "NotFound")
        if request.method == "DELETE":
            wanted = (json.loads(await request.read() or b"{}").get("preconditions") or {}).get("uid")
            if wanted and wanted != there["metadata"]["uid"]:
                return status(409, "the UID in the precondition does not match", "Conflict")
            del self.objects[plural, name]
            self._collect()
        return web.json_response(there)

    def _collect(self) -> None:
        """What is owned by what is gone goes, too."""
        while True:
            uids = {o["metadata"]["uid"] for o in self.objects.values()}
            orphans = [k for k, o in self.objects.items() if any(r["uid"] not in uids for r in
                                                                 o["metadata"].get("ownerReferences") or [])]
            if not orphans:
                return
            for key in orphans:
                del self.objects[key]

    @staticmethod
    def _selected(item: dict[str, Any], selector: str) -> bool:
        labels = item["metadata"].get("labels") or {}
        return all(labels.get(k) == v for k, _, v in (p.partition("=") for p in selector.split(",") if p))

    def command(self, request: web.Request) -> list[str]:
        """What is executed here in the place of the pod."""
        return request.query.getall("command")

    async def _exec(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=("v5.channel.k8s.io",), max_msg_size=0)
        await socket.prepare(request)
        if request.query.get("tty"):
            return await self._terminal(socket, self.command(request))
        process = await asyncio.create_subprocess_exec(
            *self.command(request), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, env={**os.environ, **self.env})
        assert process.stdin and process.stdout and process.stderr

        async def copy(stream: asyncio.StreamReader, channel: int) -> None:
            while data := await stream.read(65536):
                await socket.send_bytes(bytes((channel,)) + data)

        async def feed() -> None:
            taken = 0
            async for message in socket:
                if message.type is WSMsgType.BINARY and message.data == b"\xff\0":
                    process.stdin.close()  # type: ignore[union-attr]
                elif message.type is WSMsgType.BINARY and message.data[:1] == b"\0":
                    taken += len(message.data) - 1
                    process.stdin.write(message.data[1:])  # type: ignore[union-attr]
                    await process.stdin.drain()  # type: ignore[union-attr]
                    if self.cut and taken > self.cut:
                        self.cut = 0
                        process.kill()
                        return

        feeding = asyncio.ensure_future(feed())
        await asyncio.gather(copy(process.stdout, 1), copy(process.stderr, 2))
        code = await process.wait()
        feeding.cancel()
        await self._exited(socket, code)
        return socket

    @staticmethod
    async def _exited(socket: web.WebSocketResponse, code: int) -> None:
        if not socket.closed:
            failed = {"status": "Failure", "reason": "NonZeroExitCode", "message": f"exit code {code}",
                      "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]}}
            await socket.send_bytes(b"\3" + json.dumps({"status": "Success"} if code == 0 else failed).encode())
            await socket.close()

    async def _terminal(self, socket: web.WebSocketResponse, command: list[str]) -> web.WebSocketResponse:
        """The same with a terminal, of which sizes are told on channel 4."""
        terminal = Terminal(command, {**os.environ, **self.env})

        async def feed() -> None:
            async for message in socket:
                if message.type is WSMsgType.BINARY and message.data[:1] == b"\0":
                    await terminal.send(message.data[1:])
                elif message.type is WSMsgType.BINARY and message.data[:1] == b"\4":
                    size = json.loads(message.data[1:])
                    await terminal.resize(size["Height"], size["Width"])

        async with terminal:
            feeding = asyncio.ensure_future(feed())
            async for data in terminal.output():
                await socket.send_bytes(b"\1" + data)
            feeding.cancel()
        await self._exited(socket, terminal.exit_code or 0)
        return socket
