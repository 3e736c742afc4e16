"""One control plane per workspace: lock, listeners, signals, orderly end."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import logging
import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_unix_socket

from ..runtime import locate

if TYPE_CHECKING:
    from ..tracking.child import MlflowChild

log = logging.getLogger(__name__)

#: Exit code of a process that found the workspace taken.
LOCKED = 3


class Lock:
    """``flock`` on ``control.lock``, with pid, start time and host of the holder for people to read."""

    def __init__(self, home: Path) -> None:
        self.path = home / "control.lock"
        self._file: int | None = None

    def take(self) -> bool:
        """Whether the workspace is ours now; never waits."""
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            return False
        holder = {"pid": os.getpid(), "started": locate.start_time(os.getpid()), "host": socket.gethostname()}
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(holder).encode(), 0)
        self._file = file
        return True

    def release(self) -> None:
        """Let the next one in."""
        if self._file is not None:
            os.ftruncate(self._file, 0)
            os.close(self._file)
            self._file = None


def bind_port(where: locate.Place) -> socket.socket:
    """A listening socket on loopback at the port that this workspace keeps; another one, kept from now, if taken."""
    port = locate.reserved_port(where)
    for candidate in (port, 0):
        s = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.setblocking(False)
        try:
            s.bind(("127.0.0.1", candidate))
            s.listen(128)
        except OSError as e:
            s.close()
            if e.errno not in (errno.EADDRINUSE, errno.EACCES) or candidate == 0:
                raise
            log.warning("port %d is taken by another program: using another one", port)
            continue
        if candidate == 0:
            path = Path(where.home) / "port"
            temporary = path.with_name(f".port.{os.getpid()}")
            temporary.write_text(str(s.getsockname()[1]))
            os.replace(temporary, path)
        return s
    raise OSError("no port")  # not reached: port 0 always binds or raises


async def serve(where: locate.Place, lock: Lock, idle: float, mlflow: MlflowChild) -> None:
    """Run until told to end; the lock is ours and MLflow's start is under way."""
    from .. import __version__
    from .app import make_app
    from .base import MAX_BODY
    from .plane import ControlPlane

    plane = ControlPlane(where, __version__, mlflow, idle)
    await mlflow.start()
    await asyncio.to_thread(plane.store.open)
    listener = bind_port(where)
    plane.port = listener.getsockname()[1]
    socket_path = os.path.join(where.runtime_dir, "control.sock")
    server = HTTPServer(make_app(plane), max_body_size=2 * MAX_BODY, xheaders=False, idle_connection_timeout=300)
    # Callers wait in the listener's queue until tokens are known: none is refused for having come early.
    await plane.remember_jobs()
    await plane.start()
    server.add_socket(listener)
    Path(socket_path).unlink(missing_ok=True)  # whatever lies there: the folder and the lock are ours
    server.add_socket(bind_unix_socket(socket_path, 0o600))
    plane.write_record(socket_path)
    log.info("control plane of %s at %s, pid %d", where.name, plane.url, os.getpid())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, plane.exit.set)
    await plane.exit.wait()
    log.info("ending")
    server.stop()
    for path in (Path(socket_path), Path(where.home) / "control.json"):
        path.unlink(missing_ok=True)
    await plane.stop()
    await server.close_all_connections()
    lock.release()


def main(home: str | None, name: str | None, idle: float) -> int:
    """Entry of the process. Returns its exit code."""
    os.umask(0o077)
    where = locate.place(home, name)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for noisy in ("tornado.access", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    from ..tracking.child import MlflowChild

    mlflow = MlflowChild(where.home, where.runtime_dir)
    try:
        Path(where.home).mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chmod(where.home, 0o700)
        locate.private_dir(where.runtime_dir)
        lock = Lock(Path(where.home))
        if not lock.take():
            return LOCKED
        mlflow.spawn()  # takes longest to start: it goes first, all else is imported meanwhile
    except (OSError, locate.LocateError) as e:
        log.error("the workspace folder %s cannot be used: %s", where.home, e)
        return 1
    from ..core.errors import MlopsError

    try:
        asyncio.run(serve(where, lock, idle, mlflow))
    except MlopsError as e:
        log.error("%s", e)
        return 1
    finally:
        mlflow.stop_now()
    return 0
