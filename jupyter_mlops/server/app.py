"""The extension app: settings, the handler table, and what lives as long as the Jupyter server."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jupyter_server.extension.application import ExtensionApp
from traitlets import Bool, Integer, Unicode

from .. import __version__
from ..core.errors import Unavailable
from ..runtime import locate

if TYPE_CHECKING:
    import aiohttp
    from jupyter_events import EventLogger

    from .kernels import KernelEnvironment
    from .link import Link
    from .relay import Relay

#: Seconds between two reports that jobs run, for whoever culls idle servers.
ACTIVITY_EVERY = 30.0


class MlopsApp(ExtensionApp):
    """Jupyter MLOps: tracking, training, registering and deploying models from notebooks."""

    name = "jupyter_mlops"
    load_other_extensions = True

    home = Unicode(
        "", config=True,
        help="Folder of the workspace. Default: $JUPYTER_MLOPS_HOME, else mlops/<workspace> in Jupyter's data folder.",
    )
    workspace = Unicode(
        "", config=True, help="Name of the workspace. Default: $JUPYTER_MLOPS_WORKSPACE, else 'default'."
    )
    readonly = Bool(
        False, config=True,
        help="Whether browsers may only read through this server. Kernels and terminals are not affected.",
    )
    hide_launch = Bool(
        False, config=True,
        help="Whether training, deploying and calling models from the browser are hidden and refused.",
    )
    autostart = Bool(
        True, config=True,
        help="Whether the control plane is started with this server, and again when it dies. False: only a running"
        " one is used.",
    )
    kernel_environment = Bool(
        True, config=True,
        help="Whether kernels that have this package are told where the workspace is (addresses only, no secret).",
    )
    max_call_bytes = Integer(
        64 << 20, min=1024, config=True, help="Largest body of a call of an endpoint from outside, in bytes."
    )

    def initialize_settings(self) -> None:
        """Make the parts that live with the server, and start them when its event loop runs."""
        from .link import Link
        from .relay import SCHEMA_ID, Relay

        assert self.serverapp is not None
        self.place = locate.place(self.home or None, self.workspace or None)
        self._in_use: dict[str, int] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._gateway: aiohttp.ClientSession | None = None
        self._gateway_socket = ""
        self._kernels: KernelEnvironment | None = None
        self._stopped = False
        logger: EventLogger = self.serverapp.event_logger  # type: ignore[assignment]
        logger.register_event_schema(Path(__file__).parent / "events" / "changes.yaml")

        def emit(data: dict[str, Any]) -> None:
            logger.emit(schema_id=SCHEMA_ID, data=data)

        self.relay: Relay = Relay(emit, self.log, self._note_activity)
        self.link: Link = Link(
            self.place, self.log, self.relay.state, lambda: self.relay.follow(self.link), may_start=self.autostart
        )
        if self.kernel_environment:
            from .kernels import KernelEnvironment

            self._kernels = KernelEnvironment(self.serverapp, self.place, self.log)
            self._kernels.wrap()
        # Not _start_jupyter_server_extension: that is only called by servers that are started from a command line.
        self.serverapp.io_loop.add_callback(self._begin)

    def initialize_handlers(self) -> None:
        """The routes, below ``<base_url>jupyter-mlops``."""
        from .api import LAUNCH, ApiHandler, LaunchHandler, StatusHandler
        from .endpoint import EndpointHandler
        from .mlflow import MlflowHandler, TensorboardHandler

        self.handlers.extend([
            (r"/jupyter-mlops/status", StatusHandler),
            (rf"/jupyter-mlops({LAUNCH.pattern.replace('(', '(?:')})", LaunchHandler),
            (r"/jupyter-mlops/api/v1/(.*)", ApiHandler),
            (r"/jupyter-mlops/mlflow(/.*)?", MlflowHandler),
            (r"/jupyter-mlops/tensorboard(/.*)?", TensorboardHandler),
            (r"/jupyter-mlops/endpoints/(.*)", EndpointHandler, {"app": self}),
        ])

    # Life

    async def _begin(self) -> None:
        if self._stopped:
            return
        self.link.start()
        if self._kernels is not None:
            self._kernels.look_ahead()
        self._tasks.append(asyncio.ensure_future(self._report_activity()))

    async def stop_extension(self) -> None:
        """Close what is open. The control plane, jobs and endpoints run on."""
        self._stopped = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.relay.close()
        if self._kernels is not None:
            self._kernels.unwrap()
        await self.link.stop()
        if self._gateway is not None:
            await self._gateway.close()

    async def _report_activity(self) -> None:
        """While jobs run the server is not idle, whatever its kernels and pages do."""
        while True:
            self._note_activity()
            await asyncio.sleep(ACTIVITY_EVERY)

    def _note_activity(self) -> None:
        if self.relay.running_jobs and self.serverapp is not None:
            # Jupyter takes the latest of all settings that are called so.
            self.serverapp.web_app.settings["jupyter_mlops_last_activity"] = datetime.now(UTC)

    def current_activity(self) -> dict[str, int] | None:
        """Running jobs, which keep a server with ``shutdown_no_activity_timeout`` alive."""
        return {"running_jobs": self.relay.running_jobs} if self.relay.running_jobs else None

    # For the handlers

    @property
    def base_url(self) -> str:
        """Path of the Jupyter server, with a slash at both ends."""
        assert self.serverapp is not None
        return str(self.serverapp.web_app.settings["base_url"])

    def status(self) -> dict[str, Any]:
        """What the status route answers, from memory."""
        return {
            "version": __version__,
            "workspace": self.place.name,
            "state": self.link.state,
            "message": self.link.message,
            "readonly": self.readonly,
            "hide_launch": self.hide_launch,
            "command": self._command(),
        }

    def _command(self) -> str:
        """Our command line as a terminal of this server calls it: login shells often forget the PATH that it has."""
        script = os.path.join(os.path.dirname(sys.executable), "jupyter-mlops")
        words = [script] if os.access(script, os.X_OK) else [sys.executable, "-m", "jupyter_mlops.cli"]
        where = f"JUPYTER_MLOPS_HOME={shlex.quote(self.place.home)} " if self.home else ""
        return where + shlex.join(words)

    def public(self, location: str) -> str:
        """A path of the control plane as it is called through this server."""
        for prefix in (self.link.target("/"), "http://localhost/jupyter-mlops/", "/jupyter-mlops/"):
            if location.startswith(prefix):
                return f"{self.base_url}jupyter-mlops/{location[len(prefix):]}"
        return location

    def take(self, kind: str, most: int) -> None:
        """Count a request that begins.

        Raises:
            Unavailable: as many as allowed are under way.
        """
        if self._in_use.get(kind, 0) >= most:
            raise Unavailable("too many requests at once", "try again in a moment")
        self._in_use[kind] = self._in_use.get(kind, 0) + 1

    def release(self, kind: str) -> None:
        """Count a request that ended."""
        self._in_use[kind] -= 1

    @contextmanager
    def slot(self, kind: str, most: int) -> Iterator[None]:
        """:meth:`take` and :meth:`release` around a block."""
        self.take(kind, most)
        try:
            yield
        finally:
            self.release(kind)

    def gateway_client(self, socket: str) -> aiohttp.ClientSession:
        """The client session for the gateway of the endpoints."""
        from ..streaming import unix_session

        if self._gateway is None or self._gateway.closed or self._gateway_socket != socket:
            if self._gateway is not None:
                self._tasks.append(asyncio.ensure_future(self._gateway.close()))
            self._gateway, self._gateway_socket = unix_session(socket), socket
        return self._gateway
