"""Large files of a job folder over HTTP, for whoever reaches this pod through the API server's proxy.

Execution streams pass two servers and are cut into small messages; the proxy is about twice as fast. What is offered
over the stream of :mod:`.mirror` is fetched here with ``GET /<id>?at=<offset>`` and the token that was told there. The
answer is pieces: 4 bytes length, 4 bytes CRC-32, the data.
"""

import hmac
import os
import secrets
import socket
import struct
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

PIECE = 1024 * 1024
HEAD = struct.Struct(">II")
TOKEN = "X-Jupyter-Mlops-Token"
#: Status of an answer for a file that is not any more as it was offered.
CHANGED = 410
#: Seconds without progress after which a connection is given up; connections at a time.
STALL, MOST = 20.0, 8


def length(count):
    """Bytes of an answer with ``count`` bytes of a file."""
    return count + HEAD.size * -(-count // PIECE)


class Outlet(ThreadingHTTPServer):
    """Serves what was offered, and nothing else.

    Args:
        address: of this pod, to listen on.
        root: the job folder.

    Raises:
        OSError: the address is not this pod's.
    """

    daemon_threads = True

    def __init__(self, address, root):
        if ":" in address:
            self.address_family = socket.AF_INET6
        super().__init__((address, 0), _Handler)
        self.root = root
        self.token = secrets.token_hex(16)
        self.offers = {}  # id → (path, size, mtime in ns)
        self._count = 0
        self._room = threading.BoundedSemaphore(MOST)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def offer(self, path, size, mtime):
        """Let a file be fetched as it is now; its id."""
        self._count += 1
        self.offers[str(self._count)] = (path, size, mtime)
        return str(self._count)

    def withdraw(self, path):
        """No longer."""
        for ident in [i for i, offer in self.offers.items() if offer[0] == path]:
            del self.offers[ident]

    def process_request(self, request, client_address):
        """Others in the cluster reach this port, too: they may not tie up the pod."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request, client_address):
        """The other side went; it comes again."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = STALL
    server: "Outlet"

    def do_GET(self):
        self.close_connection = True
        asked = urlsplit(self.path)
        # Compared as bytes: text that is not ASCII cannot be compared in constant time.
        given = self.headers.get(TOKEN, "").encode("utf-8", "replace")
        if not hmac.compare_digest(given, self.server.token.encode()):
            return self.send_error(403)
        offer = self.server.offers.get(asked.path.strip("/"))
        at = parse_qs(asked.query).get("at", ["0"])[0]
        if offer is None or not (at.isascii() and at.isdigit()) or int(at) > offer[1]:
            return self.send_error(404)
        return self._send(offer, int(at))

    def _send(self, offer, at):
        path, size, mtime = offer
        try:
            fd = os.open(os.path.join(self.server.root, path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return self.send_error(CHANGED)
        try:
            info = os.fstat(fd)
            if (info.st_size, info.st_mtime_ns) != (size, mtime):
                return self.send_error(CHANGED)
            self.send_response(200)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(length(size - at)))
            self.send_header("Connection", "close")
            self.end_headers()
            while at < size:
                data = os.pread(fd, min(PIECE, size - at), at)
                if len(data) < min(PIECE, size - at):  # it got shorter: the answer ends too early, and is not whole
                    return None
                self.wfile.write(HEAD.pack(len(data), zlib.crc32(data)) + data)
                at += len(data)
        finally:
            os.close(fd)
        return None

    def log_message(self, *args):
        """Nobody reads it."""
