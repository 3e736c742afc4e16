"""A look inside a rank that runs: a shell on it, or connections to its ports, over a WebSocket.

Binary messages are bytes, both ways. Text messages are JSON: ``{"size": [rows, columns]}`` and ``{"end": true}`` (no
more input) from the client; ``{"exit": code, "message": why}`` from here, the last one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

from tornado import websocket
from tornado.iostream import StreamClosedError

from ..core.errors import Conflict, MlopsError, NotFound, ParameterError, Refused
from ..core.resources import TERMINAL, JobSpec
from ..runtime.locate import ERROR_HEADER
from .base import BaseHandler
from .operations import API

#: Most bytes of one message from a client.
_MOST = 1 << 20
#: Messages from a client that wait for the rank to take them.
_QUEUE = 64


class InsideHandler(websocket.WebSocketHandler, BaseHandler):  # type: ignore[misc]
    """``jobs/{name}/shell?rank=`` and ``jobs/{name}/forward?rank=&port=``; for those who own the workspace."""

    _channel: Any = None
    _entered: contextlib.AsyncExitStack | None = None

    async def prepare(self) -> None:  # type: ignore[override]
        """Find the rank, ask whether the caller may, and connect, all before the upgrade."""
        self.identify()
        workspace, name, what = self.path_args
        action = f"jobs/{what}"
        self.require(action, name)
        if workspace != self.plane.name:
            raise NotFound(f"workspace {workspace!r} is not served here", f"this is workspace {self.plane.name!r}")
        job = await self.plane.workspace.get(self.identity, "job", name)
        rank = self._number("rank", 0, JobSpec.model_validate(job.spec).world_size - 1, 0)
        port = self._number("port", 1, 65535) if what == "forward" else 0
        phase = job.status.get("phase")
        if phase in (*TERMINAL, "Finalizing"):
            raise Conflict(f"job {name!r} has ended ({phase}): nothing of it runs", f"its log: %mlops logs {name}")
        if phase != "Running":
            reason = job.status.get("reason") or ""
            raise Conflict(f"job {name!r} does not run yet ({phase}{f': {reason}' if reason else ''})",
                           "try again when it does")
        driver, ref = self.plane.driver_for(job.spec["compute"]), self.plane.jobs.ref(name)
        make = getattr(driver, what, None)
        if make is None:
            raise Refused(f"ports of jobs on compute {job.spec['compute']!r} need no forwarding",
                          f"it is this machine: use 127.0.0.1:{port}")
        if self.request.headers.get("Upgrade", "").lower() != "websocket":
            raise ParameterError("this route speaks WebSocket only", f"jupyter mlops {_VERBS[what]} {name}")
        arguments = (ref, int(job.status["attempt"]), rank, *((port,) if port else ()))
        self._entered = contextlib.AsyncExitStack()
        self._channel = await self._entered.enter_async_context(await asyncio.to_thread(make, *arguments))
        detail = {"op": what, "rank": rank, **({"port": port} if port else {})}
        await self.plane.store.write(lambda tx: tx.audit(self.identity, action, f"jobs/{name}", detail))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None))[1]
        if isinstance(error, MlopsError):
            # Clients of WebSockets see no body of an answer that is no upgrade.
            self.set_header(ERROR_HEADER, json.dumps(error.body())[:4000])
        super().write_error(status_code, **kwargs)

    def _number(self, name: str, least: int, most: int, default: int | None = None) -> int:
        text = self.get_query_argument(name, "" if default is None else str(default))
        if not (text.isascii() and text.isdigit() and len(text) < 8 and least <= int(text) <= most):
            raise ParameterError(f"{name} {text!r} is none of {least} to {most}")
        return int(text)

    async def get(self, *arguments: Any, **more: Any) -> None:
        await super().get()

    def check_origin(self, origin: str) -> bool:
        """Pages of browsers have no business here, whatever token they hold."""
        return False

    @property
    def max_message_size(self) -> int:
        return _MOST

    async def open(self, *arguments: str) -> None:  # type: ignore[override]
        self.set_nodelay(True)
        self._in: asyncio.Queue[bytes | None] = asyncio.Queue(_QUEUE)
        self._tasks = [asyncio.ensure_future(self._feed()), asyncio.ensure_future(self._tell())]

    async def on_message(self, message: str | bytes) -> None:  # type: ignore[override]
        if isinstance(message, bytes):
            await self._in.put(message)
            return
        try:
            word = json.loads(message)
            if "size" in word:
                rows, columns = (min(max(int(n), 1), 10_000) for n in word["size"])
                await self._channel.resize(rows, columns)
            elif word.get("end"):
                await self._in.put(None)
        except (ValueError, TypeError, AttributeError):
            self.close(1003, "no word of ours")

    async def _feed(self) -> None:
        with contextlib.suppress(OSError, MlopsError):
            while (data := await self._in.get()) is not None:
                await self._channel.send(data)
            if hasattr(self._channel, "end_input"):
                await self._channel.end_input()

    async def _tell(self) -> None:
        message = ""
        try:
            async for data in self._channel.output():
                await self.write_message(data, binary=True)
        except (websocket.WebSocketClosedError, StreamClosedError):
            return
        except (OSError, MlopsError) as error:
            message = getattr(error, "message", "") or str(error)
        code = self._channel.exit_code
        said = bytes(getattr(self._channel, "stderr", b"")).decode("utf-8", "replace").strip().splitlines()
        if not message and code is None:
            message = "the connection to the rank ended"
        elif code and said:
            message = said[-1][:300]
        with contextlib.suppress(websocket.WebSocketClosedError, StreamClosedError):
            await self.write_message(json.dumps({"exit": code, "message": message}))
        self.close()

    def on_close(self) -> None:
        for task in getattr(self, "_tasks", []):
            task.cancel()
        self._leave()

    def on_finish(self) -> None:
        if self.get_status() != 101:  # the upgrade, which finishes the request, did not come about
            self._leave()

    def _leave(self) -> None:
        entered, self._entered = self._entered, None
        if entered is not None:
            leaving = asyncio.ensure_future(entered.aclose())
            _LEAVING.add(leaving)
            leaving.add_done_callback(_LEAVING.discard)


_VERBS = {"shell": "shell", "forward": "port-forward"}
_LEAVING: set[asyncio.Future[None]] = set()
ROUTE = API + r"/workspaces/([^/]+)/jobs/([^/]+)/(shell|forward)"
