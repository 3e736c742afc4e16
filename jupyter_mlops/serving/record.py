"""What a bundle did, as one zip to be carried home (``serve.py --record``); merge.py is its other end.

    manifest.json                              of the bundle
    record.json                                its counters (tally.py), without what the last gateway said
    capture/spool/<d>/<segment>.rec            captured requests (segments.py); of one being written, as far as it goes
    capture/data/deployment=<d>/date=…/hour=…/part-<segment>.parquet     where they were collected
    access.log                                 the newest lines, when asked for

A segment's name is never made twice, so that the files of any number of records can be put together by name.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import Refused
from . import manifest, segments
from .places import read_json
from .tally import COUNTED
from .tally import NAME as RECORD

if TYPE_CHECKING:
    from .bundle_server import Bundle

#: Names of segments, as recorder.py makes them: hour, process, random bits.
SEGMENT = r"(\d{10})-\d{1,10}-[0-9a-f]{12}"
SPOOL = re.compile(rf"capture/spool/([a-z][a-z0-9-]{{0,39}})/({SEGMENT})\.rec")
PART = re.compile(rf"capture/data/deployment=([a-z][a-z0-9-]{{0,39}})/date=\d{{4}}-\d\d-\d\d/hour=\d\d/"
                  rf"part-({SEGMENT})\.parquet")
#: Bytes of the access log that go along; seconds in which the counters reach the disk.
_LOG, _SETTLE = 2_000_000, 1.5
_PATIENCE = 60.0


def pack(bundle: Bundle, out: Path, access_log: bool = False) -> dict[str, int]:
    """Write the record of a bundle's site, also while it serves; returns ``{"requests", "files"}``.

    Raises:
        Refused: it has not served yet, or the file cannot be written.
    """
    if not (bundle.state / RECORD).is_file():
        raise Refused(f"there is nothing to record: this bundle has not served from {bundle.state}",
                      "name the folder of its --state")
    if _serves(bundle.state):
        time.sleep(_SETTLE)  # what was answered a moment ago is counted and captured
    known = read_json(bundle.state / RECORD)
    known.pop("last", None)
    known["deployments"] = {d: {k: v for k, v in counts.items() if k in COUNTED}
                            for d, counts in known["deployments"].items()}
    place = bundle.places.endpoint(bundle.endpoint)
    new = out.with_name(f".{out.name}.new")
    count = 0
    try:
        with zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED, compresslevel=3) as archive:
            archive.write(bundle.folder / manifest.NAME, manifest.NAME)
            archive.writestr(RECORD, json.dumps(known))
            captured = place / segments.FOLDER
            if captured.is_dir():
                with segments.locked(captured, _PATIENCE):
                    for name, path, size in _files(place):
                        _add(archive, name, path, size)
                        count += 1
            if access_log:
                archive.writestr("access.log", _tail(bundle.places.logs / "gateway-access.log"))
        os.replace(new, out)
    except OSError as error:
        raise Refused(f"{out} cannot be written: {error.strerror}", "name a file in a folder with room") from None
    finally:
        new.unlink(missing_ok=True)
    return {"requests": sum(int(d.get("requests") or 0) for d in known["deployments"].values()), "files": count}


def _serves(state: Path) -> bool:
    """Whether a server holds the state."""
    try:
        with open(state / "serve.lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _files(place: Path) -> Iterator[tuple[str, Path, int]]:
    """(name, path, bytes) of what was captured; of a segment only whole records."""
    for path in sorted((place / segments.FOLDER).rglob("*")):
        name = path.relative_to(place).as_posix()
        try:
            size = path.stat().st_size
            if SPOOL.fullmatch(name):
                size, count = _whole(path)
                if count > 1:  # the first one describes it
                    yield name, path, size
            elif PART.fullmatch(name) and not path.is_symlink():
                yield name, path, size
        except FileNotFoundError:  # the gateway made room
            continue


def _whole(path: Path) -> tuple[int, int]:
    """(bytes, number) of the whole records of a segment, as far as it goes at the moment."""
    with open(path, "rb") as f:
        size, at, count = os.fstat(f.fileno()).st_size, len(segments.MAGIC), 0
        while at + segments.HEAD.size <= size:
            f.seek(at)
            length = segments.HEAD.unpack(f.read(segments.HEAD.size))[0]
            if at + segments.HEAD.size + length > size:
                break
            at += segments.HEAD.size + length
            count += 1
    return at, count


def _add(archive: zipfile.ZipFile, name: str, path: Path, size: int) -> None:
    info = zipfile.ZipInfo(name, time.gmtime()[:6])
    info.external_attr = 0o600 << 16
    info.compress_type = zipfile.ZIP_STORED if name.endswith(".parquet") else zipfile.ZIP_DEFLATED
    with open(path, "rb") as source, archive.open(info, "w", force_zip64=True) as target:
        while size > 0 and (piece := source.read(min(size, 1 << 20))):
            target.write(piece)
            size -= len(piece)


def _tail(path: Path) -> bytes:
    try:
        with open(path, "rb") as f:
            f.seek(max(0, os.fstat(f.fileno()).st_size - _LOG))
            return f.read(_LOG)
    except OSError:
        return b""


def described(record: dict[str, Any]) -> dict[str, Any]:
    """``requests, errors, scored, captured`` of a record, over its deployments."""
    told = {"requests": 0, "errors": 0, "scored": 0, "captured": 0}
    for counts in (record.get("deployments") or {}).values():
        errors = counts.get("errors") or {}
        told["requests"] += counts.get("requests") or 0
        told["errors"] += sum(errors.get(kind) or 0 for kind in ("5xx", "model", "timeout"))
        told["scored"] += counts.get("rows") or 0
        told["captured"] += counts.get("captured") or 0
    return told


def told(kept: dict[str, Any]) -> dict[str, Any]:
    """A kept record for people: counters over its deployments, times as ISO 8601."""
    named = {k: kept.get(k) or "" for k in ("bundle", "site", "endpoint", "deployment", "model", "version", "run_id")}
    times = {k: _iso(kept.get(k)) for k in ("since", "until", "merged_at")}
    return {**named, **described(kept), **times, "starts": kept.get("starts") or 0,
            "deployments": kept.get("deployments") or {}}


def _iso(seconds: Any) -> str:
    if not isinstance(seconds, int | float) or not seconds:
        return ""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
