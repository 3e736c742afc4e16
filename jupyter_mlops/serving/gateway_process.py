"""The gateway's process: ``python -m jupyter_mlops.serving.gateway_process --home H --runtime-dir R``.

It listens on 127.0.0.1 at a port that is kept across restarts (``gateway.port``; another one is chosen, and then kept,
only when somebody else has taken it), on ``gateway.sock`` for Jupyter's public route, on ``gateway-admin.sock`` (0600)
for the control plane, and, where an operator has said so, at another address with TLS. It reads the endpoints' files
again whenever one changes, and owns nothing: killed and started anew it serves as before. Exit code 3: another gateway
holds the lock.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import sys

import jupyter_mlops

from ..core.errors import MlopsError, Refused
from ..runtime.processes import start_time
from .accesslog import AccessLog
from .gateway import Gateway
from .http import Server
from .listen import Certificate, bind_tcp, bind_unix
from .places import Places, write_json
from .scaler import Scaler
from .scorers import Scorers

LOCKED = 3
#: Seconds: between looks at files and instances, for answers that are under way at the end.
POLL, DRAIN = 0.1, 10.0

log = logging.getLogger(__name__)


async def serve(places: Places, address: str = "", port: int = 0, certfile: str = "", keyfile: str = "",
                local_port: int = 0, plain: bool = False) -> None:
    """Run until SIGTERM.

    Args:
        local_port: a port on 127.0.0.1 that must be the one; 0: the one that is kept.
        plain: no TLS at ``address``: inside of a container, whose network others cannot listen to.

    Raises:
        Refused: an address that others can reach, without a certificate that can be used.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    certificate = Certificate(certfile, keyfile) if certfile else None
    if address and certificate is None and not plain:
        raise Refused(f"the gateway listens at {address} with TLS only", "give a certificate, or leave the address out")
    gateway = Gateway(places, AccessLog(str(places.logs / "gateway-access.log")))
    gateway.routes.reload()
    gateway.routes.tend()
    scaler = Scaler(Scorers(places))
    gateway.attach(scaler)
    local = bind_tcp(places.gateway_port, wanted=local_port)
    gateway.port = local.getsockname()[1]
    listeners = [(local, Server(gateway), None), (bind_unix(places.gateway_socket), Server(gateway, public=True), None),
                 (bind_unix(places.admin_socket), Server(gateway, admin=True), None)]
    url = f"http://127.0.0.1:{gateway.port}"
    if address:
        outside = bind_tcp(places.home / "gateway-tls.port", address, port)
        listeners.append((outside, Server(gateway), certificate.context if certificate else None))  # type: ignore[arg-type]
        shown = f"[{address}]" if ":" in address else address
        url = f"{'https' if certificate else 'http'}://{shown}:{outside.getsockname()[1]}"
    for listener, server, tls in listeners:
        await server.listen(listener, tls)
    write_json(places.gateway_json, {
        "schema": 1, "pid": os.getpid(), "start_time": start_time(os.getpid()), "port": gateway.port,
        "url": f"http://127.0.0.1:{gateway.port}", "public_url": url, "started_at": gateway.started_at,
        "version": jupyter_mlops.__version__, "address": [address, port, certfile, keyfile],
    })
    print(f"listening on 127.0.0.1:{gateway.port}" + (f" and at {url}" if address else ""), flush=True)
    scaling = asyncio.create_task(scaler.run())
    watching = asyncio.create_task(watch(gateway, certificate))
    watching.add_done_callback(lambda _: stop.set())
    await stop.wait()
    print("stopping", flush=True)
    scaling.cancel()
    for path in (places.gateway_socket, places.admin_socket):
        with contextlib.suppress(OSError):
            os.unlink(path)
    await asyncio.gather(*(server.close(DRAIN) for _, server, _ in listeners))
    watching.cancel()
    gateway.close()
    with contextlib.suppress(OSError):  # for whoever adds up the counters of several gateways
        write_json(places.home / "gateway-stats.json", gateway.stats())


async def watch(gateway: Gateway, certificate: Certificate | None) -> None:
    """Take up changed files and instances, until the workspace folder is gone.

    Polled: a handful of stat calls works on every file system and cannot be lost.
    """
    while gateway.places.home.is_dir():
        await asyncio.sleep(POLL)
        try:
            gateway.routes.reload()
            gateway.routes.tend()
            if certificate is not None and certificate.refresh():
                print("the certificate has been replaced", flush=True)
        except MlopsError as error:
            log.warning("%s", error)
        except Exception:
            log.exception("reading the endpoints failed")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gateway")
    parser.add_argument("--home", required=True)
    parser.add_argument("--runtime-dir", required=True)
    parser.add_argument("--address", default="")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--certfile", default="")
    parser.add_argument("--keyfile", default="")
    parser.add_argument("--local-port", type=int, default=0)
    parser.add_argument("--plain", action="store_true")
    args = parser.parse_args(argv)
    places = Places(args.home, args.runtime_dir)
    os.umask(0o077)
    places.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = open(places.home / "gateway.lock", "a")  # noqa: SIM115 (held for life)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return LOCKED
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    work = serve(places, args.address, args.port, args.certfile, args.keyfile, args.local_port, args.plain)
    try:
        try:
            import uvloop
        except ImportError:
            asyncio.run(work)
        else:
            uvloop.run(work)
    except (MlopsError, OSError) as error:
        print(f"the gateway cannot listen: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
