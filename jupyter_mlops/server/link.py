"""The connection of a Jupyter server to its control plane: found or started, watched, started again when it dies.

Everything that may block runs in threads of its own, so a control plane that is frozen, slow or absent costs Jupyter
nothing. What the rest of the extension sees is :attr:`Link.state`, cached, and :meth:`Link.request`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from logging import Logger
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..core.errors import MlopsError, Unavailable
from ..runtime import locate
from .threads import in_thread

if TYPE_CHECKING:
    import aiohttp
    from multidict import CIMultiDict

PREFIX = "/jupyter-mlops"
#: Seconds between two attempts to start a control plane: the first, and the most.
RETRY_FIRST, RETRY_MOST = 0.5, 30.0
#: Seconds after which a connection that is lost again was a good one, so that the first pause applies.
STEADY = 5.0
#: Seconds between two looks whether somebody else has started it meanwhile.
LOOK_EVERY = 1.0
#: Seconds of silence after which a control plane counts as frozen.
SILENCE = 3.0
STARTING, UP, DOWN = "starting", "up", "down"


class Lost(Exception):
    """The control plane does not answer any more; the text says how that was seen."""


class Link:
    """Owner of the connection; made by the extension app, used on its event loop only.

    Attributes:
        state: ``starting``, ``up`` or ``down``.
        message: why it is not up, in one line.
        pid: of the control plane, None for one elsewhere.
        runtime_dir: folder of the workspace's sockets.
    """

    def __init__(
        self,
        place: locate.Place,
        log: Logger,
        on_state: Callable[[str], None],
        follow: Callable[[], Awaitable[None]],
        may_start: bool = True,
    ) -> None:
        """
        Args:
            on_state: called after each change of :attr:`state`.
            follow: awaited while the link is up; raises :class:`Lost` when nobody answers. Cancelled at suspicion.
            may_start: False when only a running control plane shall be used.
        """
        self.place = place
        self.log = log
        self.state = STARTING
        self.message = "looking for the control plane"
        self.pid: int | None = None
        self.runtime_dir = place.runtime_dir
        self._on_state = on_state
        self._follow = follow
        self._may_start = may_start
        self._session: locate.Session | None = None
        self._reader: locate.Session | None = None
        self._socket = ""
        self._client: aiohttp.ClientSession | None = None
        self._client_socket = ""
        self._closing: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._suspected = asyncio.Event()
        self._resume = asyncio.Event()
        self.stopped_on_purpose = False

    # Life

    def start(self) -> None:
        """Begin to connect, in the background."""
        if self._task is None:
            self._task = asyncio.ensure_future(self._watch())

    async def stop(self) -> None:
        """Close what is open; the control plane runs on."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def resume(self) -> None:
        """Start the control plane again after somebody stopped it on purpose."""
        self._resume.set()

    def _set(self, state: str, message: str = "") -> None:
        changed = (state, message) != (self.state, self.message)
        self.state, self.message = state, message
        if changed:
            self._on_state(state)

    async def _watch(self) -> None:
        pause = RETRY_FIRST
        while True:
            begun = time.monotonic()
            try:
                await self._connect()
                begun = time.monotonic()
                self._set(UP)
                self.log.info("Jupyter MLOps: control plane of workspace %r, pid %s", self.place.name, self.pid)
                await self._stay()
            except Lost as e:
                # Requests under way are left alone: a dead process ends them, one that was only slow answers them.
                self._session = None
                self.log.warning("Jupyter MLOps: control plane lost: %s", e)
                if self._shut_down():
                    self.stopped_on_purpose = True
                    self._set(DOWN, "the control plane was stopped on purpose; any %mlops command starts it again")
                    await self._wait_for_another(None)
                    self.stopped_on_purpose = False
                    continue
                self._set(DOWN, str(e))
                if time.monotonic() - begun > STEADY:
                    pause = RETRY_FIRST
                await asyncio.sleep(pause)
                pause = min(pause * 2, RETRY_MOST)
            except (locate.LocateError, MlopsError, OSError) as e:
                self._session = None
                if (self.state, self.message) != (DOWN, str(e)):
                    self.log.warning("Jupyter MLOps: no control plane: %s", e)
                self._set(DOWN, str(e))
                await self._wait_for_another(pause)
                pause = min(pause * 2, RETRY_MOST)
            except asyncio.CancelledError:
                raise
            except Exception:
                self._session = None
                self._set(DOWN, "an unexpected error; see the log of the Jupyter server")
                self.log.exception("Jupyter MLOps: the watch over the control plane failed")
                await self._wait_for_another(RETRY_MOST)

    def _shut_down(self) -> bool:
        """Whether the control plane ended in good order, so on purpose: it has taken its record away."""
        return not os.path.exists(os.path.join(self.place.home, "control.json"))

    async def _wait_for_another(self, seconds: float | None) -> None:
        """Return after so many seconds (None: never), or as soon as somebody has started a control plane."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while deadline is None or time.monotonic() < deadline:
            wait = LOOK_EVERY if deadline is None else min(LOOK_EVERY, max(0.0, deadline - time.monotonic()))
            try:
                await asyncio.wait_for(self._resume.wait(), wait)
                self._resume.clear()
                return
            except TimeoutError:
                pass
            if os.path.exists(self.place.socket_path) and await self._answers():
                return

    async def _answers(self) -> bool:
        try:
            return await in_thread(locate.info, self.place, SILENCE) is not None
        except (locate.LocateError, OSError):
            return False

    async def _connect(self) -> None:
        session, socket = await in_thread(self._connect_blocking)
        self._session, self._socket, self.pid = session, socket, session.pid
        if socket:
            self.runtime_dir = os.path.dirname(socket)
        self._reader = None
        self._suspected.clear()

    def _connect_blocking(self) -> tuple[locate.Session, str]:
        session = locate.connect(self.place, may=None if self._may_start else False, fresh=True)
        if not session.pid:  # a control plane elsewhere, named by URL and token
            return session, ""
        theirs = str((locate.info(self.place, SILENCE) or {}).get("version") or "")
        if theirs and not same_minor(theirs, __version__):
            raise locate.LocateError(
                f"the control plane that runs has version {theirs}, this Jupyter server {__version__}",
                "`jupyter mlops down` ends it, and this server starts its own; jobs and endpoints go on",
            )
        return session, self.place.socket_path

    async def _stay(self) -> None:
        """Follow until the control plane is lost, or suspected and found silent."""
        following = asyncio.ensure_future(self._follow())
        try:
            while True:
                suspecting = asyncio.ensure_future(self._suspected.wait())
                try:
                    await asyncio.wait({following, suspecting}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    suspecting.cancel()
                if following.done():
                    following.result()
                    raise Lost("the change feed ended")
                self._suspected.clear()
                if self._socket and not await self._answers():
                    raise Lost("the control plane does not answer")
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    # Requests

    def suspect(self) -> None:
        """A request got no answer: look whether the control plane still lives."""
        self._suspected.set()

    @property
    def workspace_path(self) -> str:
        """Path of the workspace's routes, below ``/jupyter-mlops``."""
        return f"/api/v1/workspaces/{self.place.name}"

    def client(self) -> aiohttp.ClientSession:
        """The client session for the control plane's socket (or its URL).

        Raises:
            Unavailable: it is not up, or the socket is not ours.
        """
        if self.state != UP or self._session is None:
            hint = "it is being started; try again in a moment" if not self.stopped_on_purpose else ""
            raise Unavailable(f"the control plane is {self.state}: {self.message}", hint)
        if self._socket:
            check_socket(self._socket, "the control plane")
        if self._client is None or self._client.closed or self._client_socket != self._socket:
            from ..streaming import tcp_session, unix_session

            if self._client is not None:
                self._closing = asyncio.ensure_future(self._client.close())
            self._client = unix_session(self._socket) if self._socket else tcp_session()
            self._client_socket = self._socket
        return self._client

    def target(self, path: str) -> str:
        """Where a path below ``/jupyter-mlops`` is found: as it stands on the socket, else below the URL."""
        if self._socket or self._session is None:
            return PREFIX + path
        return self._session.url + path

    async def bearer(self, writer: bool = True) -> str:
        """The ``Authorization`` header for the owner, or for somebody who may only read.

        Raises:
            Unavailable: no token can be had.
        """
        session = self._session if writer else self._reader
        if session is None and not writer and self._session is not None:
            if not self._socket:
                raise Unavailable("this control plane is elsewhere and gives no reading rights", "ask its operator")
            try:
                session = await in_thread(self._connect_reader)
            except (locate.LocateError, OSError) as e:
                raise Unavailable(f"the control plane gave no token: {e}", "try again in a moment")
            self._reader = session
        if session is None:
            raise Unavailable(f"the control plane is {self.state}: {self.message}", "try again in a moment")
        return "Bearer " + session.token

    def _connect_reader(self) -> locate.Session:
        return locate.connect(self.place, may=False, role="reader", fresh=True)

    async def request(
        self,
        method: str,
        path: str,
        *,
        timeout: float,
        headers: CIMultiDict[str] | dict[str, str] | None = None,
        body: bytes | None = None,
        writer: bool = True,
        limit: int = 64 << 20,
    ) -> tuple[int, Any, bytes]:
        """One whole exchange: (status, response headers, body).

        Args:
            path: below ``/jupyter-mlops``, with query, percent-encoded.
            timeout: seconds for all of it.
            limit: most bytes of a response.

        Raises:
            TimeoutError, OSError (aiohttp.ClientError among them as such), MlopsError.
        """
        async with self.opened(method, path, timeout=timeout, headers=headers, body=body, writer=writer) as response:
            parts, size = [], 0
            async for chunk in response.content.iter_any():
                size += len(chunk)
                if size > limit:
                    raise Unavailable("the answer of the control plane is too long", "ask for fewer items at a time")
                parts.append(chunk)
            return response.status, response.headers, b"".join(parts)

    @contextlib.asynccontextmanager
    async def opened(
        self, method: str, path: str, *, timeout: float, headers: CIMultiDict[str] | dict[str, str] | None = None,
        body: bytes | None = None, writer: bool = True,
    ) -> AsyncIterator[Any]:
        """The response of an exchange, whose body is not read yet; arguments and errors as for :meth:`request`."""
        import aiohttp
        from yarl import URL

        client = self.client()
        where = self.target(path)
        url = URL(where if where.startswith("http") else "http://localhost" + where, encoded=True)
        sent = dict(headers or {})
        sent["Authorization"] = await self.bearer(writer)
        async with client.request(
            method, url, headers=sent, data=body or None, allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=5),
        ) as response:
            yield response


def same_minor(a: str, b: str) -> bool:
    """Whether two versions agree in their first two numbers."""
    return re.split(r"[.+]", a)[:2] == re.split(r"[.+]", b)[:2]


def check_socket(path: str, what: str) -> None:
    """Return when ``path`` is a socket of this user.

    Raises:
        Unavailable: it is not there, or somebody else's.
    """
    try:
        info = os.lstat(path)
    except OSError:
        raise Unavailable(f"{what} does not run", "try again in a moment")
    if not stat.S_ISSOCK(info.st_mode) or info.st_uid != os.getuid():
        raise Unavailable(f"{what} cannot be trusted: its socket belongs to somebody else", f"remove {path}")
