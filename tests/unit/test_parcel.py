"""Parcels: the same for the same content, safe to unpack, resumed where they were cut off."""

from __future__ import annotations

import hashlib
import io
import os
import random
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from jupyter_mlops.runtime import parcel


def folder(tmp_path, size=300_000):
    place = tmp_path / "d" / "model"
    (place / "data").mkdir(parents=True)
    (place / "MLmodel").write_text("flavors: {}\n")
    (place / "data" / "weights.bin").write_bytes(random.Random(1).randbytes(size))
    return place


def test_packing_is_repeatable_and_comes_back(tmp_path):
    place = folder(tmp_path)
    one = parcel.pack(str(tmp_path / "1.zip"), [("model", str(place)), ("model.json", b"{}")])
    os.utime(place / "MLmodel", (1, 1))
    two = parcel.pack(str(tmp_path / "2.zip"), [("model.json", b"{}"), ("model", str(place))])
    assert one == two and one["sha256"] == parcel.sha256(str(tmp_path / "1.zip"))
    parcel.unpack(str(tmp_path / "1.zip"), str(tmp_path / "out"))
    assert (tmp_path / "out/model/data/weights.bin").read_bytes() == (place / "data/weights.bin").read_bytes()
    assert (tmp_path / "out/model.json").read_bytes() == b"{}"
    assert not list(tmp_path.glob("*.new")) and sorted(p.name for p in tmp_path.glob("*.zip")) == ["1.zip", "2.zip"]


def test_links_are_refused(tmp_path):
    place = folder(tmp_path)
    (place / "link").symlink_to("/etc/passwd")
    with pytest.raises(parcel.ParcelError, match="link"):
        parcel.pack(str(tmp_path / "1.zip"), [("model", str(place))])
    assert not (tmp_path / "1.zip").exists()


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a\\..\\x"])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("good", b"1")
        archive.writestr(name, b"2")
    with pytest.raises(parcel.ParcelError):
        parcel.unpack(str(tmp_path / "bad.zip"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists() and not (tmp_path / "x").exists()
    (tmp_path / "none.zip").write_bytes(b"no zip")
    with pytest.raises(parcel.ParcelError, match="broken"):
        parcel.unpack(str(tmp_path / "none.zip"), str(tmp_path / "out"))


def test_parts(tmp_path):
    data = random.Random(2).randbytes(5000)
    for number in range(5):
        (tmp_path / (parcel.PART % number)).write_bytes(data[number * 1000:(number + 1) * 1000])
    digest = hashlib.sha256(data).hexdigest()
    parcel.join(str(tmp_path), 5, str(tmp_path / "whole"), digest)
    assert (tmp_path / "whole").read_bytes() == data
    (tmp_path / (parcel.PART % 3)).write_bytes(b"another")
    with pytest.raises(parcel.ParcelError, match="do not make"):
        parcel.join(str(tmp_path), 5, str(tmp_path / "other"), digest)
    with pytest.raises(parcel.ParcelError, match="part 5 of 6"):
        parcel.join(str(tmp_path), 6, str(tmp_path / "other"), digest)
    assert not (tmp_path / "other").exists()


def test_a_transfer_goes_on_where_it_was_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(parcel, "PIECE", 1000)
    data = random.Random(3).randbytes(10_500)
    (tmp_path / "p").write_bytes(data)
    digest, target = hashlib.sha256(data).hexdigest(), str(tmp_path / "got")

    def receive(stream):
        said = []
        try:
            parcel.receive(io.BytesIO(stream), said.append, target, digest, len(data))
        except parcel.ParcelError as error:
            said.append({"error": str(error)})
        return said

    sent = b"".join(parcel.records(str(tmp_path / "p"), 0))
    said = receive(sent[:4500])
    assert said[0] == {"have": 0} and said[-2:] == [{"have": 4000}, {"error": "the connection ended"}]
    damaged = bytearray(b"".join(parcel.records(str(tmp_path / "p"), 4000)))
    damaged[parcel.RECORD.size + 7] ^= 1
    assert "damaged" in receive(bytes(damaged))[-1]["error"]
    assert "where 4000 is next" in receive(sent)[-1]["error"]
    said = receive(b"".join(parcel.records(str(tmp_path / "p"), 4000)))
    assert said[0] == {"have": 4000} and said[-1] == {"done": True}
    assert (tmp_path / "got").read_bytes() == data and not (tmp_path / "got.part").exists()
    assert receive(b"") == [{"done": True}]


def test_the_receiving_end_as_it_is_executed(tmp_path):
    data = b"x" * 3_000_000
    (tmp_path / "p").write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-m", "jupyter_mlops.runtime.parcel", "--into", str(tmp_path / "got"), "--sha256", "0" * 64,
         "--size", str(len(data))], input=b"".join(parcel.records(str(tmp_path / "p"), 0)), capture_output=True)
    assert done.returncode == 1 and b"another one" in done.stdout and not list(tmp_path.glob("got*"))


@pytest.fixture
def store():
    """An object store that answers as ``answers`` says: a status, and how many of its bytes come; then whole."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked += 1
            status, count = self.server.answers.pop(0) if self.server.answers else (200, len(DATA))
            self.send_response(status)
            self.send_header("Content-Length", str(len(DATA)))
            self.end_headers()
            self.wfile.write(DATA[:count])

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.answers = 0, []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


DATA = random.Random(2).randbytes(3_000_000)


@pytest.mark.parametrize(("answers", "asked", "why"), [
    ([], 1, ""),
    ([(500, 0)], 2, ""),
    ([(429, 0), (503, 0)], 3, ""),
    ([(200, 1_500_000)], 2, ""),
    ([(503, 0)] * 3, 3, "Service Unavailable"),
    ([(403, 0)], 1, "Forbidden"),
])
def test_a_download_is_tried_again_when_its_trouble_may_pass(tmp_path, monkeypatch, store, answers, asked, why):
    monkeypatch.setattr(parcel, "PAUSES", (0.0, 0.0))
    store.answers = answers
    said, target = [], tmp_path / "got"
    parcel.fetch(f"http://127.0.0.1:{store.server_port}/p", said.append, str(target), hashlib.sha256(DATA).hexdigest(),
                 len(DATA))
    assert store.asked == asked and said[-1] == ({"why": why} if why else {"done": True})
    assert (not target.exists() if why else target.read_bytes() == DATA) and not list(tmp_path.glob("*.fetched"))


def test_another_parcel_is_not_asked_for_again(tmp_path, store):
    said = []
    parcel.fetch(f"http://127.0.0.1:{store.server_port}/p", said.append, str(tmp_path / "got"), "0" * 64, len(DATA))
    assert store.asked == 1 and said[-1] == {"why": "what is there is another one, or not whole"}
    assert not list(tmp_path.iterdir())
