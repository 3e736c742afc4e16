"""Starts, finds and stops the gateway, and tells it what to serve. All calls but ``invoke`` block."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import http.client
import ipaddress
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jupyter_mlops

from ..core.errors import BackendTimeout, ParameterError, Refused, Unavailable
from ..core.resources.base import check_name
from ..runtime.locate import UnixConnection
from ..runtime.processes import alive
from .children import Children, end, how_it_ended, open_log
from .environment import gateway_env
from .places import Places, read_json, write_json

#: Seconds.
START_TIMEOUT = 15.0
PUBLISH_WAIT = 5.0
STOP_GRACE = 12.0
#: Says which deployment shall answer a request.
DEPLOYMENT_HEADER = "azureml-model-deployment"


@dataclass(frozen=True)
class Outside:
    """Where an operator has the gateway listen beside loopback: ``JUPYTER_MLOPS_GATEWAY_ADDRESS`` (``ADDRESS[:PORT]``,
    an IP address; ``[::]:8443`` for IPv6), ``…_CERTFILE`` and ``…_KEYFILE`` (PEM). All is TLS there.
    """

    address: str = ""
    port: int = 0
    certfile: str = ""
    keyfile: str = ""

    @classmethod
    def configured(cls, environ: Mapping[str, str]) -> Outside:
        """What the environment says.

        Raises:
            Refused: no address, or an address without a certificate.
        """
        given = environ.get("JUPYTER_MLOPS_GATEWAY_ADDRESS", "").strip()
        if not given:
            return cls()
        match = _ADDRESS.match(given)
        try:
            address = str(ipaddress.ip_address((match[1] or match[2]) if match else given))
        except ValueError:
            raise Refused(f"JUPYTER_MLOPS_GATEWAY_ADDRESS: {given!r} is no IP address with a port",
                          "for example 0.0.0.0:8443 or [::]:8443") from None
        certfile = environ.get("JUPYTER_MLOPS_GATEWAY_CERTFILE", "")
        if not certfile:
            raise Refused("the gateway listens at other addresses than loopback with TLS only",
                          "set JUPYTER_MLOPS_GATEWAY_CERTFILE (and …_KEYFILE)")
        port = int(match[3] or 0) if match else 0
        return cls(address, port, os.path.abspath(certfile),
                   os.path.abspath(environ.get("JUPYTER_MLOPS_GATEWAY_KEYFILE") or certfile))

    def arguments(self) -> list[str]:
        """For the gateway's command line."""
        if not self.address:
            return []
        return ["--address", self.address, "--port", str(self.port), "--certfile", self.certfile, "--keyfile",
                self.keyfile]


_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::([0-9]{1,5}))?\Z")


class GatewayKeeper:
    """The gateway of one workspace, as the control plane sees it."""

    def __init__(self, places: Places, children: Children) -> None:
        self.places = places
        self.children = children

    @property
    def outside(self) -> Outside:
        """What an operator has configured. Raises Refused."""
        return Outside.configured(os.environ)

    def _current(self, info: dict[str, Any]) -> bool:
        """Whether a gateway is of our version and listens where it should."""
        asked = self.outside
        listens = info.get("address") or ["", 0, "", ""]
        return info.get("version") == jupyter_mlops.__version__ and listens == list(dataclasses.astuple(asked))

    def publish(self, endpoint: str, config: dict[str, Any]) -> bool:
        """Have the gateway serve ``config``; returns when it does.

        Returns:
            False when no gateway runs: the next one takes it up at its start.

        Raises:
            ParameterError: the gateway refused the configuration.
            Unavailable: it did not take it up within 5 s.
        """
        check_name(endpoint, "endpoint name")
        for name in [*config.get("traffic", {}), *config.get("deployments", {})]:
            check_name(name, "deployment name")
        self.places.endpoint(endpoint).mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.places.config(endpoint)
        write_json(path, config)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()

        def taken(endpoints: dict[str, Any]) -> bool:
            state = endpoints.get(endpoint) or {}
            if state.get("digest") == digest and state.get("error"):
                raise ParameterError(f"the gateway refused endpoint '{endpoint}': {state['error']}")
            return state.get("digest") == digest

        return self._await_gateway(taken)

    def unpublish(self, endpoint: str) -> bool:
        """Have the gateway forget an endpoint: its keys open nothing any more when this returns."""
        check_name(endpoint, "endpoint name")
        self.places.config(endpoint).unlink(missing_ok=True)
        return self._await_gateway(lambda endpoints: endpoint not in endpoints)

    def _await_gateway(self, done: Callable[[dict[str, Any]], bool]) -> bool:
        deadline = time.monotonic() + PUBLISH_WAIT
        while True:
            info = self._admin("POST", "/admin/reload")
            if info is not None and done(info["endpoints"]):
                return True
            if self.info() is None:
                return False
            if time.monotonic() > deadline:
                raise Unavailable("the gateway did not take up the change in time", "its log is logs/gateway.log")
            time.sleep(0.05)

    def ensure(self) -> dict[str, Any]:
        """The running gateway: ``{"pid", "port", "url", …}``; started when there is none of our version.

        Raises:
            Unavailable: it does not come up; says where its log is.
        """
        info = self.info()
        if info and self._current(info) and self._admin("GET", "/admin/info") is not None:
            return info
        with self._one_at_a_time():
            info = self.info()
            if info is not None and not self._current(info):
                self._end(STOP_GRACE)  # the frames between gateway and scorers may have changed with the version
            elif info is not None and self._admin("GET", "/admin/info") is not None:
                return info
            return self._start()

    def _start(self) -> dict[str, Any]:
        self.places.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.places.runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.places.logs / "gateway.log"
        with open_log(path) as log:
            child = self.children.watch(subprocess.Popen(
                [sys.executable, "-m", "jupyter_mlops.serving.gateway_process", "--home", str(self.places.home),
                 "--runtime-dir", str(self.places.runtime), *self.outside.arguments()],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.places.home, start_new_session=True,
                env=gateway_env(),
            ))
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            info = self.info()
            if info and self._admin("GET", "/admin/info") is not None:
                return info
            code = self.children.exit_code(child.pid)
            if code not in (None, 3):  # 3: another one holds the lock and will answer
                raise Unavailable(f"the gateway ended at its start{how_it_ended(code)}", f"its log is {path}")
            time.sleep(0.03)
        end(child.pid, 0)  # not to come up later, when nobody expects it
        raise Unavailable(f"the gateway did not answer within {START_TIMEOUT:g} s", f"its log is {path}")

    def info(self) -> dict[str, Any] | None:
        """``{"pid", "start_time", "port", "url", "started_at"}`` of the gateway that runs, or None."""
        info = read_json(self.places.gateway_json)
        return info if alive(info.get("pid") or 0, info.get("start_time")) else None

    def stop(self, grace: float = STOP_GRACE) -> None:
        """End the gateway; requests under way are answered first."""
        with self._one_at_a_time():
            self._end(grace)

    def _end(self, grace: float) -> None:
        info = self.info()
        if info:
            end(int(info["pid"]), grace)
        self.places.gateway_json.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """Whoever starts or stops waits for the other, lest a gateway that comes up late outlives the order to stop."""
        self.places.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(self.places.home / "gateway-start.lock", "a") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            yield

    async def invoke(self, endpoint: str, body: bytes, content_type: str = "application/json", timeout: float = 60.0,
                     deployment: str = "") -> tuple[int, bytes, dict[str, str]]:
        """Score through the gateway's own socket, without a key: (status, body, headers).

        Args:
            deployment: which one shall answer, also one that is still to be proven; empty: as the traffic falls.

        Raises:
            Unavailable: no gateway answers.
            BackendTimeout: it did not answer in time.
        """
        headers = {"Content-Type": content_type}
        if deployment:
            headers[DEPLOYMENT_HEADER] = check_name(deployment, "deployment name")
        return await self._ask("POST", endpoint, "invocations", body, headers, timeout)

    async def page(self, endpoint: str, what: str, timeout: float = 10.0) -> tuple[int, bytes, dict[str, str]]:
        """What the gateway shows of an endpoint, without a key: (status, body, headers).

        Args:
            what: ``metrics``, ``openapi.json`` or ``docs``.

        Raises:
            Unavailable, BackendTimeout
        """
        return await self._ask("GET", endpoint, what, None, {}, timeout)

    async def _ask(self, method: str, endpoint: str, what: str, body: bytes | None, headers: dict[str, str],
                   timeout: float) -> tuple[int, bytes, dict[str, str]]:
        import aiohttp

        check_name(endpoint, "endpoint name")
        connector = aiohttp.UnixConnector(str(self.places.admin_socket))
        try:
            async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session, session.request(
                method, f"http://gateway/endpoints/{endpoint}/{what}", data=body, headers=headers,
                timeout=aiohttp.ClientTimeout(total=timeout),
            ) as response:
                return response.status, await response.read(), {k.title(): v for k, v in response.headers.items()}
        except TimeoutError:
            raise BackendTimeout(f"the endpoint did not answer within {timeout:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable("the gateway does not answer", "it is started again within seconds; try again") from error

    def stats(self) -> dict[str, Any] | None:
        """What ``GET /admin/stats`` says, counted since the gateway's ``started_at``; None when no gateway answers."""
        return self._admin("GET", "/admin/stats")

    def _admin(self, method: str, path: str) -> dict[str, Any] | None:
        connection = UnixConnection(str(self.places.admin_socket), PUBLISH_WAIT)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            value = json.loads(response.read())
            return value if response.status == 200 and isinstance(value, dict) else None
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            connection.close()
