"""Stores that inputs come from, real and on loopback: an S3 server (moto), a web server with versions and ranges."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import wait_for

KEYS = {"AWS_ACCESS_KEY_ID": "ann", "AWS_SECRET_ACCESS_KEY": "s3cret-of-ann", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """Its address."""
    with s3_at("127.0.0.1", tmp_path_factory.mktemp("moto")) as address:
        yield address


@contextmanager
def s3_at(host: str, folder: Path) -> Iterator[str]:
    """An S3 server at an address of this machine; its log is in the folder."""
    with socket.socket() as s:
        s.bind((host, 0))
        port = s.getsockname()[1]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", host, "-p", str(port)],
                                   stdout=log, stderr=log)

    def answers():
        assert process.poll() is None
        with socket.socket() as s:
            return s.connect_ex((host, port)) == 0

    try:
        wait_for(answers, 60)
        yield f"http://{host}:{port}"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def s3(s3_server, monkeypatch):
    """A bucket ``data`` of its own, as an fsspec file system; jobs on this machine find it by their environment."""
    import s3fs

    for name, value in {**KEYS, "AWS_ENDPOINT_URL": s3_server}.items():
        monkeypatch.setenv(name, value)
    fs = s3fs.S3FileSystem(endpoint_url=s3_server, key=KEYS["AWS_ACCESS_KEY_ID"], anon=False,
                           secret=KEYS["AWS_SECRET_ACCESS_KEY"], skip_instance_cache=True, use_listings_cache=False)
    fs.mkdir("data")
    yield fs
    fs.rm("data", recursive=True)


class Site(ThreadingHTTPServer):
    """Files by their path: ``{path: (bytes, etag)}``. ``cut``: bytes after which an answer breaks off, once each."""

    daemon_threads = True

    def __init__(self, host: str = "127.0.0.1") -> None:
        super().__init__((host, 0), Page)
        self.pages: dict[str, tuple[bytes, str]] = {}
        self.cut: list[int] = []
        self.gets: list[tuple[str, str]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Page(BaseHTTPRequestHandler):
    server: Site

    def do_HEAD(self):
        self._answer(False)

    def do_GET(self):
        self._answer(True)

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        if path not in self.server.pages:
            self.send_error(404)
            return
        content, tag = self.server.pages[path]
        wanted = self.headers.get("Range") or ""
        start = int(wanted[6:-1]) if wanted else 0
        self.send_response(206 if wanted else 200)
        if tag:
            self.send_header("ETag", tag)
        content = content[start:]
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.server.gets.append((path, wanted))
            cut = self.server.cut.pop(0) if self.server.cut else len(content)
            self.wfile.write(content[:cut])
            if cut < len(content):
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_):
        pass


@pytest.fixture
def site():
    server = Site()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def cached(folder) -> int:
    """Files that a cache has."""
    return sum(len(names) for _, _, names in os.walk(folder / "data"))
