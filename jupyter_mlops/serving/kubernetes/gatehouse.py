"""The first process of a gateway's pod: the gateway of :mod:`jupyter_mlops.serving.gateway`, as it is everywhere.

``python -m jupyter_mlops.serving.kubernetes.gatehouse`` needs Python 3.11. What it imports beyond the standard library
comes in parts that are mounted, when the image's Python is of the same kind as the one that sent them; else the image
must have it. The folder ``--config`` is a Secret: ``endpoint.json`` (what the gateway serves), ``model-<d>.json`` of
each deployment, ``trunk.json`` (``{deployment: {"address", "slots"}}``) and ``token``. It is read again whenever it
changes, so nothing restarts for a change of traffic or keys.

On the port, HTTP or HTTPS for callers. On the admin port ``/live``, ``/ready``, and with the token in ``X-Mlops-Token``
whatever the gateway's admin socket answers. SIGTERM: not ready at once, serve on until nobody is sent here any more,
send those that stay connected elsewhere, answer what is under way, leave.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hmac
import json
import os
import signal
import sys
import sysconfig
from hashlib import sha256
from pathlib import Path
from typing import Any

from ...runtime import parcel
from ...runtime.doorway import say, splice

#: Seconds: between looks at the Secret; until nobody is sent here any more; for callers that keep a connection; for
#: what is under way at the end.
POLL, DRAIN, HANDOVER, GRACE = 0.2, 4.0, 4.0, 30.0
TERMINATION = "/dev/termination-log"


def unpacked(boot: Path, work: Path) -> None:
    """Go on as the same program from a folder: what is not Python cannot be read from inside of a zip."""
    code = work / "code"
    parcel.unpack(str(boot / "gateway.zip"), str(code))
    os.execve(sys.executable, [sys.executable, "-m", "jupyter_mlops.serving.kubernetes.gatehouse", *sys.argv[1:]],
              {**os.environ, "PYTHONPATH": str(code)})


def platform() -> str:
    """What compiled modules depend on, such as ``cpython-311-x86_64-linux-gnu``."""
    return str(sysconfig.get_config_var("SOABI") or sys.implementation.cache_tag)


def provide(boot: Path, parts: Path, work: Path) -> None:
    """Make the modules importable that were sent along, where they fit this Python.

    Raises:
        RuntimeError: they do not, and the image has not got them; says what it needs.
    """
    try:
        about: dict[str, Any] = json.loads((boot / "about.json").read_bytes())
    except FileNotFoundError:
        about = {}
    libraries = work / "libraries"
    if about.get("platform") == platform():
        if not libraries.is_dir():
            parcel.join(str(parts), int(about["parts"]), str(work / "libraries.zip"), about["sha256"])
            parcel.unpack(str(work / "libraries.zip"), str(libraries))
            os.unlink(work / "libraries.zip")
        sys.path.append(str(libraries))
    try:
        import httptools  # noqa: F401
    except ImportError as error:
        raise RuntimeError(
            f"the gateway's image has {_python()} without {error.name}, and what was sent along is for "
            f"{about.get('platform') or 'none'}: use an image with that Python, or one with jupyter-mlops installed, "
            "as the compute's gateway_image") from error


def _python() -> str:
    return f"Python {sys.version_info[0]}.{sys.version_info[1]}"


class Config:
    """The mounted Secret, laid out as the gateway reads it.

    Args:
        source: the folder of the mount.
        home: the gateway's workspace folder.
    """

    def __init__(self, source: Path, home: Path) -> None:
        self.source = source
        self.home = home
        self.endpoint = ""
        self.digest = ""
        self.token = ""
        self.trunks: dict[str, dict[str, Any]] = {}
        self._stamp: Any = None

    def look(self) -> bool:
        """Take up what changed; True when something did."""
        # A mount is replaced as a whole, by another link; reading through one link never mixes two versions.
        folder = Path(os.path.realpath(self.source / "..data")) if (self.source / "..data").exists() else self.source
        stamp = (str(folder), folder.stat().st_mtime_ns, *(p.stat().st_mtime_ns for p in sorted(folder.iterdir())))
        if stamp == self._stamp:
            return False
        text = (folder / "endpoint.json").read_bytes()
        config = json.loads(text)
        self.token = (folder / "token").read_text().strip()
        self.trunks = json.loads((folder / "trunk.json").read_bytes())
        self.endpoint = str(config["name"])
        place = self.home / "endpoints" / self.endpoint
        for deployment in config.get("deployments") or {}:
            (place / deployment).mkdir(mode=0o700, parents=True, exist_ok=True)
            _replace(place / deployment / "model.json", (folder / f"model-{deployment}.json").read_bytes())
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        _replace(place / "endpoint.json", text)
        self.digest = sha256(text).hexdigest()
        self._stamp = stamp
        return True


def _replace(path: Path, data: bytes) -> None:
    with contextlib.suppress(OSError):
        if path.read_bytes() == data:
            return
    temporary = path.with_name(f".{path.name}")
    temporary.write_bytes(data)
    os.replace(temporary, path)


class Gatehouse:
    """Gateway, trunks and the admin port of one pod."""

    def __init__(self, config: Config, work: Path) -> None:
        from ..places import Places

        self.config = config
        self.places = Places(work / "home", work / "run")
        self.draining = False
        self.ready = False
        self._trunks: dict[str, Any] = {}

    async def follow(self) -> None:
        """Bring gateway and trunks to what the Secret says."""
        from .trunk import Trunk

        for name, want in list(self.config.trunks.items()):
            key = [want["address"], int(want["slots"]), self.config.token]
            have = self._trunks.get(name)
            if have is not None and have[0] == key:
                continue
            sockets = [self.places.scorer_socket(self.config.endpoint, name, i) for i in range(int(want["slots"]))]
            trunk = Trunk(want["address"], self.config.token, sockets)
            if have is not None:
                have[1].close()
            await trunk.open()
            self._trunks[name] = (key, trunk)
        for name in set(self._trunks) - set(self.config.trunks):
            self._trunks.pop(name)[1].close()

    async def run(self, port: int, admin_port: int, certfile: str, keyfile: str) -> None:
        """Until SIGTERM."""
        from ..accesslog import AccessLog
        from ..gateway import Gateway
        from ..http import Server
        from ..listen import Certificate, bind_unix

        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        certificate = Certificate(certfile, keyfile) if certfile else None
        self.config.look()
        await self.follow()
        gateway = Gateway(self.places, AccessLog(str(self.places.logs / "gateway-access.log")))
        gateway.routes.reload()
        public, admin = Server(gateway), Server(gateway, admin=True)
        await public.listen(_bind(port), certificate.context if certificate else None)
        await admin.listen(bind_unix(self.places.admin_socket), None)
        door = await asyncio.start_server(self.answer, "0.0.0.0", admin_port, limit=16384)
        self.ready = True
        tls = " with TLS" if certificate else ""
        print(f"gatehouse: endpoint {self.config.endpoint} at port {port}{tls}", flush=True)
        tending = asyncio.ensure_future(self._tend(gateway, certificate))
        tending.add_done_callback(lambda _: stop.set())
        await stop.wait()
        self.draining = True
        if not tending.done():
            await asyncio.sleep(DRAIN)
            # Whoever keeps a connection is told with its next answer to make another, which leads elsewhere by now; one
            # that were just closed could cross a request on its way.
            public.draining = True
            await asyncio.sleep(HANDOVER)
        await public.close(GRACE)
        tending.cancel()
        await admin.close(0)
        door.close()
        for _, trunk in self._trunks.values():
            trunk.close()
        gateway.close()
        if tending.done() and not tending.cancelled() and tending.exception():
            raise tending.exception() or RuntimeError()

    async def _tend(self, gateway: Any, certificate: Any) -> None:
        looked = 0.0
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(0.1)
            if loop.time() - looked > POLL:
                looked = loop.time()
                try:
                    if self.config.look():
                        await self.follow()
                        print("gatehouse: the configuration was taken up", flush=True)
                    if certificate is not None and certificate.refresh():
                        print("gatehouse: the certificate was replaced", flush=True)
                except Exception as error:
                    # What was in force stays: a mount that is half there, or a broken file, must not end the gateway.
                    print(f"gatehouse: the configuration was not taken up: {type(error).__name__}: {error}", flush=True)
            gateway.routes.reload()
            gateway.routes.tend()

    # -- the admin port --------------------------------------------------------------

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, for one request."""
        try:
            async with asyncio.timeout(10):
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            line, *rest = head.removesuffix("\r\n\r\n").split("\r\n")
            path = [*line.split(" "), ""][1].partition("?")[0]
            headers = {k.strip().lower(): v.strip() for k, _, v in (entry.partition(":") for entry in rest)}
            if path == "/live":
                say(writer, 200, {"pid": os.getpid()})
            elif path == "/ready":
                say(writer, 503 if self.draining or not self.ready else 200, {"digest": self.config.digest})
            elif not hmac.compare_digest(headers.get("x-mlops-token", "").encode(), self.config.token.encode()):
                say(writer, 401, {"message": "a token is needed"})
            elif path == "/digest":
                say(writer, 200, {"digest": self.config.digest,
                                  "pods": {d: sorted(set(t.pods.values())) for d, (_, t) in self._trunks.items()}})
            else:
                kept = [e for e in rest if e.partition(":")[0].strip().lower() not in ("connection", "x-mlops-token")]
                inner = await asyncio.open_unix_connection(str(self.places.admin_socket), limit=1 << 20)
                inner[1].write("\r\n".join([line, *kept, "Connection: close", "", ""]).encode("latin-1"))
                await splice((reader, writer), inner)
            await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()


def _bind(port: int) -> Any:
    import socket

    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    return socket.create_server(("::" if family == socket.AF_INET6 else "0.0.0.0", port), family=family,
                                dualstack_ipv6=family == socket.AF_INET6, backlog=1024)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gatehouse")
    for name in ("--boot", "--config", "--parts", "--work"):
        parser.add_argument(name, required=True, type=Path)
    for name in ("--port", "--admin-port"):
        parser.add_argument(name, required=True, type=int)
    parser.add_argument("--certfile", default="")
    parser.add_argument("--keyfile", default="")
    args = parser.parse_args(argv)
    os.umask(0o077)
    for folder in ("home/logs", "run"):
        (args.work / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        if sys.version_info < (3, 11):  # noqa: UP036 (an image may have any)
            raise RuntimeError(f"the gateway's image has {_python()}; 3.11 or later is needed")
        if ".zip/" in __file__:
            unpacked(args.boot, args.work)
        provide(args.boot, args.parts, args.work)
        house = Gatehouse(Config(args.config, args.work / "home"), args.work)
        work = house.run(args.port, args.admin_port, args.certfile, args.keyfile)
        try:
            import uvloop
        except ImportError:
            asyncio.run(work)
        else:
            uvloop.run(work)
    except Exception as error:
        print(f"gatehouse: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):
            Path(TERMINATION).write_text(str(error)[:3000])
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
