"""Blobs: what arrives is what was announced, a job gets its own, nothing stays for ever."""

from __future__ import annotations

import hashlib
import os
import time

import pytest

from jupyter_mlops.core import blobs as core
from jupyter_mlops.core.blobs import Blobs
from jupyter_mlops.core.errors import ParameterError, Refused, TooLarge
from jupyter_mlops.core.resources import JobSpec

DATA = b"some bytes" * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def blobs(tmp_path) -> Blobs:
    return Blobs(tmp_path / "home")


def put(blobs: Blobs, data: bytes = DATA) -> str:
    digest = hashlib.sha256(data).hexdigest()
    upload = blobs.receive(digest)
    for start in range(0, len(data), 999):
        upload.write(data[start:start + 999])
    upload.finish()
    return digest


def test_an_upload_is_private_and_can_be_repeated(blobs) -> None:
    assert blobs.size(DIGEST) is None
    for _ in range(2):
        put(blobs)
        assert blobs.path(DIGEST).read_bytes() == DATA and blobs.size(DIGEST) == len(DATA)
    assert blobs.path(DIGEST).stat().st_mode & 0o777 == 0o600
    assert blobs.folder.stat().st_mode & 0o777 == 0o700
    assert os.listdir(blobs.folder) == [DIGEST]


def test_wrong_bytes_leave_nothing(blobs) -> None:
    upload = blobs.receive(DIGEST)
    upload.write(DATA[:-1])
    with pytest.raises(ParameterError, match="do not have the SHA-256"):
        upload.finish()
    broken = blobs.receive(DIGEST)
    broken.write(b"x")
    broken.abort()
    broken.abort()
    assert os.listdir(blobs.folder) == []
    for name in ("", "..", "../x", DIGEST.upper(), DIGEST + "0"):
        with pytest.raises(ParameterError):
            blobs.receive(name)


def test_too_large_is_told_while_it_arrives(blobs, monkeypatch) -> None:
    monkeypatch.setattr(core, "MAX_BLOB", 5)
    upload = blobs.receive(DIGEST)
    upload.write(b"12345")
    with pytest.raises(TooLarge, match="at most 5 bytes"):
        upload.write(b"6")
    upload.abort()


def test_a_job_gets_its_own_and_keeps_it(blobs, tmp_path) -> None:
    digest, context = put(blobs), put(blobs, b"context")
    spec = JobSpec.model_validate({"cell": {"source": "1", "payload": digest}, "context": context})
    assert core.named_by(spec.model_dump()) == {digest, context}
    blobs.require_all(spec)
    for _ in range(2):
        core.put_inputs(blobs, tmp_path / "job", spec)
    blobs.remove(digest)
    payload = tmp_path / "job" / "inputs" / "payload.pkl"
    assert payload.read_bytes() == DATA and payload.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "job" / "inputs" / "context" / "bundle").read_bytes() == b"context"
    with pytest.raises(Refused, match=digest):
        blobs.require_all(spec)
    core.put_inputs(blobs, tmp_path / "other", spec)  # the rank that misses it says so
    assert not (tmp_path / "other" / "inputs" / "payload.pkl").exists()


def test_a_file_system_without_links(blobs, tmp_path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    assert blobs.place(put(blobs), tmp_path / "job" / "payload.pkl")
    assert (tmp_path / "job" / "payload.pkl").read_bytes() == DATA
    assert (tmp_path / "job" / "payload.pkl").stat().st_mode & 0o777 == 0o600


def test_only_what_nobody_names_and_is_old_goes(blobs) -> None:
    old, named, fresh = put(blobs, b"old"), put(blobs, b"named"), put(blobs, b"fresh")
    half = blobs.receive(DIGEST)
    for path in blobs.folder.iterdir():
        if path.name != fresh:
            os.utime(path, (1, 1))
    gone = blobs.sweep({named})
    assert old in gone and len(gone) == 2 and set(os.listdir(blobs.folder)) == {named, fresh}
    half.abort()
    assert blobs.size(named) and not blobs.sweep(())  # asking has renewed it
    assert set(blobs.sweep((), time.time() + 100_000)) == {named, fresh}
    assert Blobs(blobs.folder / "nowhere").sweep(()) == []
