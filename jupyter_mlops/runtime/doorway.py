"""The first process of a pod that serves a model: brings the model in, keeps the scorer up, and is its door.

``python -m jupyter_mlops.runtime.doorway --boot DIR --work DIR --port N`` runs in any image with Python 3.9 and
what the model needs. ``boot/pod.json`` says what to do (:mod:`jupyter_mlops.serving.kubernetes.manifests` writes it),
``boot/token`` is what callers from other pods must have.

HTTP on the port, for GET requests without a body:

    /live                 200, but 503 when a scorer that was ready has not answered for two minutes
    /ready                200 when the scorer answers, else 503 and why
    /state                (token) JSON: phase, reason, restarts, scorer.json
    /parcel/<sha256>      (token) the parcel that the model came in, for another pod of the deployment
    /trunk                (token, Upgrade) a connection to the scorer's socket, as it is

The model comes in parts that are mounted, or from another pod that has it, or from whoever executes
:mod:`jupyter_mlops.runtime.parcel` in this pod. A scorer that dies after it was ready is started again, five times in
five minutes; then, and when the model cannot be loaded, this process ends with code 1 and the cause in the termination
message. SIGTERM: not ready at once; the scorer goes on for ``drain`` seconds, until nobody is sent here any more, then
it answers what it has and leaves.
"""

import argparse
import asyncio
import contextlib
import hmac
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

from . import environ, frames, parcel

CRASHES, CRASH_WINDOW = 5, 300.0
#: Seconds for which a scorer that was ready may stay silent.
SILENCE = 120.0
PING_TIMEOUT = 1.0
#: Seconds between looks at the scorer, and between tries to get the parcel from another pod.
LOOK, ASK = 0.1, 2.0
HEAD_LIMIT = 16384
TERMINATION = "/dev/termination-log"
_REASONS = {101: "Switching Protocols", 200: "OK", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed",
            503: "Service Unavailable"}


class Doorway:
    """One pod's scorer and the door to it.

    Args:
        boot: folder with ``pod.json`` and ``token``, read-only.
        work: folder to work in.
    """

    def __init__(self, boot, work):
        with open(os.path.join(boot, "pod.json"), encoding="utf-8") as f:
            self.about = json.load(f)
        with open(os.path.join(boot, "token"), encoding="ascii") as f:
            self.token = f.read().strip()
        self.boot = boot
        self.work = work
        self.folder = os.path.join(work, "deployment")
        self.own = os.path.join(work, "instance")
        self.socket = os.path.join(work, "scorer.sock")
        self.parcel = os.path.join(work, "parcel.zip")
        self.phase, self.reason = "fetching", "waiting for the model"
        self.child = None
        self.crashes = []  # type: list
        self.restarts = 0
        self.draining = False
        self.heard = 0.0

    # -- the model and its scorer -----------------------------------------------------

    async def run(self):
        """Until the scorer is given up (exit code 1) or SIGTERM (0)."""
        loop = asyncio.get_event_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        stopping = asyncio.ensure_future(stop.wait())
        work = asyncio.ensure_future(self._serve_model())
        await asyncio.wait([stopping, work], return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            stopping.cancel()
            self.phase, self.reason = "failed", work.result()
            print("doorway: " + self.reason, flush=True)
            self._last_words(self.reason)
            return 1
        self.draining = True
        self.reason = "stopping"
        if self.child is not None and self.child.poll() is None:
            await asyncio.sleep(float(self.about.get("drain", 5.0)))
            work.cancel()
            grace = float(self.about.get("grace", 10.0))
            self.child.terminate()
            deadline = time.monotonic() + grace + 2.0
            await asyncio.get_event_loop().run_in_executor(None, _ended_by, self.child, deadline)
            if self.child.poll() is None:
                self.child.kill()
        work.cancel()
        return 0

    async def _serve_model(self):
        """Bring the model in and keep its scorer up; returns why it was given up."""
        try:
            await self._fetch()
        except (parcel.ParcelError, OSError) as error:
            return "the model could not be unpacked: %s" % error
        os.makedirs(self.own, mode=0o700, exist_ok=True)
        os.makedirs(os.path.join(self.work, "cwd"), mode=0o700, exist_ok=True)
        while True:
            self.phase, self.reason = "loading", "loading the model"
            self.child = self._spawn()
            was_ready = False
            while self.child.poll() is None:
                await asyncio.sleep(LOOK)
                if not was_ready and self._status().get("phase") == "ready":
                    was_ready = True
                    self.phase, self.reason, self.heard = "ready", "", time.monotonic()
            status = self._status()
            code = self.child.returncode
            how = "with signal %d" % -code if code < 0 else "with code %d" % code
            if not was_ready:
                if status.get("phase") == "failed":
                    return "the model cannot be loaded: %s" % status.get("message")
                return "the scorer ended before it was ready, %s" % how
            self.restarts += 1
            now = time.monotonic()
            self.crashes = [t for t in self.crashes if now - t < CRASH_WINDOW] + [now]
            if len(self.crashes) >= CRASHES:
                return "crash loop: the scorer ended %d times in %d minutes, last %s" % (
                    len(self.crashes), CRASH_WINDOW / 60, how)
            print("doorway: the scorer ended %s; it is started again" % how, flush=True)

    async def _fetch(self):
        loop = asyncio.get_event_loop()
        wanted, parts = self.about["sha256"], int(self.about.get("parts") or 0)
        if os.path.isdir(self.folder):  # the container was started again in its pod
            return
        if parts:
            await loop.run_in_executor(None, parcel.join, self.about["parts_dir"], parts, self.parcel, wanted)
        while not os.path.exists(self.parcel):
            if self.about.get("peers"):
                await loop.run_in_executor(None, self._ask_peers, wanted)
            if not os.path.exists(self.parcel):
                await asyncio.sleep(ASK)
        self.reason = "unpacking the model"
        await loop.run_in_executor(None, parcel.unpack, self.parcel, self.folder)
        if parts:
            os.unlink(self.parcel)  # everybody has the parts

    def _ask_peers(self, wanted):
        """Take the parcel from a pod that has it; leave it be when none has."""
        request = urllib.request.Request("http://%s/parcel/%s" % (self.about["peers"], wanted),
                                         headers={"Authorization": "Bearer " + self.token})
        new = self.parcel + ".peer"
        try:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(request, timeout=10) as response, open(new, "wb") as f:
                for piece in iter(lambda: response.read(parcel.PIECE), b""):
                    f.write(piece)
            if parcel.sha256(new) == wanted and not os.path.exists(self.parcel):
                os.replace(new, self.parcel)
        except (OSError, ValueError):
            pass
        finally:
            with contextlib.suppress(OSError):
                os.unlink(new)

    def _spawn(self):
        launch = os.urandom(8).hex()
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self.own, "scorer.json"))
        names = {"folder": self.folder, "instance": self.own, "socket": self.socket, "launch": launch,
                 "grace": str(self.about.get("grace", 10.0))}
        command = [sys.executable] + [str(a).format(**names) for a in self.about["scorer"]]
        env = dict(os.environ, PYTHONUNBUFFERED="1", PYTHONFAULTHANDLER="1", MPLBACKEND="Agg",
                   MLFLOW_DISABLE_TELEMETRY="true", TOKENIZERS_PARALLELISM="false", HOME=self.work)
        environ.share_cores(env)
        env.update(self.about.get("env") or {})
        print("doorway: starting the scorer (Python %s)" % sys.version.split()[0], flush=True)
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=os.path.join(self.work, "cwd"), env=env)

    def _status(self):
        try:
            with open(os.path.join(self.own, "scorer.json"), encoding="utf-8") as f:
                value = json.load(f)
                return value if isinstance(value, dict) else {}
        except (OSError, ValueError):
            return {}

    def _last_words(self, text):
        with contextlib.suppress(OSError), open(TERMINATION, "w", encoding="utf-8") as f:
            f.write(text[:3000])

    # -- the door ---------------------------------------------------------------------

    async def answer(self, reader, writer):
        """One connection."""
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            lines = head.decode("latin-1").split("\r\n")
            method, path = [*lines[0].split(" "), "", ""][:2]
            headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
            path = path.partition("?")[0]
            if method != "GET":
                say(writer, 405, {"message": "GET is the method here"})
            elif path == "/live":
                hung = self.phase == "ready" and not self.draining and time.monotonic() - self.heard > SILENCE
                say(writer, 503 if hung else 200, {"pid": os.getpid()})
            elif path == "/ready":
                ready = not self.draining and self.phase == "ready" and await self._answers()
                say(writer, 200 if ready else 503, {"ready": ready, "reason": self.reason})
            elif not self._known(headers):
                say(writer, 401, {"message": "a token is needed"})
            elif path == "/state":
                say(writer, 200, {"phase": self.phase, "reason": self.reason, "restarts": self.restarts,
                                  "draining": self.draining, "scorer": self._status()})
            elif path == "/parcel/" + self.about["sha256"] and os.path.exists(self.parcel):
                await self._send_parcel(writer)
            elif path == "/trunk":
                await self._trunk(reader, writer)
            else:
                say(writer, 404, {"message": "there is nothing here"})
            await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.TimeoutError, ConnectionError):
            pass
        finally:
            writer.close()

    def _known(self, headers):
        # The API's proxy keeps Authorization to itself, hence the other one.
        given = headers.get("x-mlops-token") or headers.get("authorization", "").replace("Bearer ", "", 1)
        return hmac.compare_digest(given.encode("utf-8"), self.token.encode("ascii"))

    async def _send_parcel(self, writer):
        loop = asyncio.get_event_loop()
        with open(self.parcel, "rb") as f:  # noqa: ASYNC230 (on a local disk; what takes time is read on a thread)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/zip\r\nContent-Length: %d\r\n"
                         b"Connection: close\r\n\r\n" % os.fstat(f.fileno()).st_size)
            while True:
                piece = await loop.run_in_executor(None, f.read, parcel.PIECE)
                if not piece:
                    return
                writer.write(piece)
                await writer.drain()

    async def _answers(self):
        """Whether the scorer answers a ping."""
        return await asyncio.get_event_loop().run_in_executor(None, self._ping)

    def _ping(self):
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(PING_TIMEOUT)
                connection.connect(self.socket)
                connection.sendall(frames.pack(frames.PING, 1))
                frames.await_pong(connection)
                self.heard = time.monotonic()
                return True
        except (OSError, frames.FrameError):
            return False

    async def _trunk(self, reader, writer):
        """Join the connection with one to the scorer, byte by byte, until either side is done."""
        try:
            inner_reader, inner_writer = await asyncio.open_unix_connection(self.socket, limit=1 << 20)
        except OSError:
            say(writer, 503, {"message": "the scorer is not ready"})
            return
        writer.write(("HTTP/1.1 101 %s\r\nUpgrade: mlops-frames\r\nConnection: Upgrade\r\nX-Pod: %s\r\n\r\n"
                      % (_REASONS[101], os.environ.get("HOSTNAME") or socket.gethostname())).encode("ascii", "replace"))
        await splice((reader, writer), (inner_reader, inner_writer))


def say(writer, status, value):
    """Answer a request with JSON; the connection is for one."""
    body = json.dumps(value).encode("ascii")
    writer.write(b"HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n"
                 b"\r\n%s" % (status, _REASONS[status].encode(), len(body), body))


async def splice(one, other):
    """Copy bytes both ways between two (reader, writer) pairs until either side ends."""
    ways = [asyncio.ensure_future(copy(one[0], other[1])), asyncio.ensure_future(copy(other[0], one[1]))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        for _, writer in (one, other):
            writer.close()


async def copy(reader, writer):
    """Copy bytes until either ends."""
    with contextlib.suppress(ConnectionError, OSError):
        while True:
            data = await reader.read(1 << 18)
            if not data:
                break
            writer.write(data)
            await writer.drain()


def _ended_by(child, deadline):
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(max(0.0, deadline - time.monotonic()))


async def serve(doorway, port):
    server = await asyncio.start_server(doorway.answer, "0.0.0.0", port, backlog=256, limit=HEAD_LIMIT)
    try:
        return await doorway.run()
    finally:
        server.close()


def main(argv=None):
    parser = argparse.ArgumentParser(prog="doorway")
    parser.add_argument("--boot", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args(argv)
    code = asyncio.run(serve(Doorway(args.boot, args.work), args.port))
    sys.stdout.flush()
    os._exit(code)  # a thread that still waits for another pod must not keep the container


if __name__ == "__main__":
    main()
