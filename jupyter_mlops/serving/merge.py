"""Records of bundles come home: captured requests by the names of their files, counters by bundle and site.

The archive is from elsewhere, so nothing in it is believed: its names are of few forms, its sizes are bounded, segments
and Parquet files are read to their end in a folder of their own, by a process that ends with this task, before the
first of them is put in place. A file that is here already, or as much of it, is left as it is, so merging a record
again, or a later one that has the same in it, adds nothing twice. Counters replace those of an earlier state, and are
never added.

    capture/records/<bundle>-<site>.json       what the record said last, and when it was merged
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..core.errors import Refused
from . import manifest, segments
from .collector import Outcome, _bound, _segment
from .columns import is_json
from .parts import cut, source_bytes
from .places import read_json, sync, write_json
from .record import PART, RECORD, SPOOL, told
from .tally import COUNTED

FOLDER = "records"
#: Entries; bytes of them all unpacked; how much they may grow beyond what is small; bytes of the two JSON files.
MAX_FILES, MAX_BYTES, MAX_RATIO, SMALL, MAX_JSON = 100_000, 16 << 30, 200, 256 << 20, 32 << 20
#: Records kept of one endpoint, and deployments of one record.
MAX_RECORDS, MAX_DEPLOYMENTS = 10_000, 50
#: Bytes of memory that reading may take, columns of a table, and levels of lists in one.
MAX_MEMORY, MAX_COLUMNS, MAX_DEPTH = 16 << 30, 20_000, 16
#: Bytes of the disk that are left to others.
RESERVE = 256 << 20
_IDENT = re.compile(r"[0-9a-f]{16}")
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
_FIXED = {"correlation_id": pa.string(), "row": pa.int32(), "at": pa.timestamp("us", "UTC"),
          "model_name": pa.string(), "model_version": pa.string(), "latency_ms": pa.float64()}
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError, KeyError,
           TypeError, RecursionError, AttributeError, MemoryError, pa.ArrowException)


def merge(folder: Path, record: Path) -> dict[str, Any]:
    """Merge a record into an endpoint's ``capture/``; the caller holds the collector's lock.

    Returns:
        ``{"bundle", "site", "rows": new ones, "files", "known": of these here already, "newer": whether the counters
        were taken, …}`` and what :func:`told` says.

    Raises:
        Refused: it is no record, is broken, or is not safe; nothing of it is merged then.
    """
    work = folder / f".merge-{os.urandom(6).hex()}"
    for left in folder.glob(".merge-*"):  # whoever made it was killed
        shutil.rmtree(left, ignore_errors=True)
    try:
        work.mkdir(mode=0o700)
        with zipfile.ZipFile(record) as archive:
            entries = _entries(archive, record.stat().st_size, shutil.disk_usage(work).free)
            about, counters = _identity(archive, entries)
            for name, info in sorted(entries.items()):
                if name.startswith("capture/"):
                    _stage(archive, name, info, work, before=_cleared(folder))
        rows, files, known = _place(work, folder)
        newer = _keep(folder, about, counters)
    except Refused:
        raise
    except _BROKEN as error:
        raise Refused(f"the record is damaged, or is none ({type(error).__name__}: {str(error)[:120]})",
                      "carry it over again") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    _bound(folder, read_json(folder.parent / "endpoint.json").get("deployments") or {})
    return {**told(read_json(_path(folder, counters))), "rows": rows, "files": files, "known": known, "newer": newer}


# -- what is in it -----------------------------------------------------------------------------------------------------


def _entries(archive: zipfile.ZipFile, packed: int, free: int) -> dict[str, zipfile.ZipInfo]:
    """Name → entry, all of them of the names that a record has. Raises Refused."""
    infos = archive.infolist()
    size = sum(info.file_size for info in infos)
    if len(infos) > MAX_FILES:
        raise Refused(f"the record has {len(infos)} files, more than {MAX_FILES}")
    if size > MAX_BYTES or (size > SMALL and size > MAX_RATIO * packed):
        raise Refused(f"the record is {size >> 20} MB when it is unpacked, more than is taken")
    if size + RESERVE > free:
        raise Refused(f"the record needs {size >> 20} MB and the disk has {free >> 20} MB left", "make room first")
    found: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name, kind = info.filename, stat.S_IFMT(info.external_attr >> 16)
        fits = name in (manifest.NAME, RECORD, "access.log") or SPOOL.fullmatch(name) or PART.fullmatch(name)
        if not fits or info.orig_filename != name:
            raise Refused(f"the record has {name[:80]!a} in it, which no record has")
        if kind not in (0, stat.S_IFREG):
            raise Refused(f"the record has {name} in it, which is no plain file")
        if name in found:
            raise Refused(f"the record has {name} twice")
        if info.flag_bits & 1:
            raise Refused("the record is encrypted")
        found[name] = info
    for name in (manifest.NAME, RECORD):
        if name not in found:
            raise Refused(f"this is no record of a bundle: it has no {name}",
                          "make one where the bundle serves: python serve.py --record ZIP")
    return found


def _identity(archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo]) -> tuple[dict[str, str], dict[str, Any]]:
    """(what the bundle is, its counters), checked. Raises Refused, ValueError."""
    about, record = (_json(archive, entries[name]) for name in (manifest.NAME, RECORD))
    if about.get("format") != manifest.FORMAT or about.get("schema") != manifest.SCHEMA or record.get("schema") != 1:
        raise Refused("the record is of another version",
                      "merge it with the version that made the bundle, or a later one")
    bundle, site = str(record.get("bundle")), str(record.get("site"))
    if not _IDENT.fullmatch(bundle) or not _IDENT.fullmatch(site) or about.get("id") != bundle:
        raise Refused("the record does not say of which bundle it is")
    deployments = record.get("deployments")
    if not isinstance(deployments, dict) or len(deployments) > MAX_DEPLOYMENTS:
        raise Refused("the record's counters are none")
    counters: dict[str, Any] = {"bundle": bundle, "site": site, "deployments": {}}
    for key in ("seq", "starts"):
        counters[key] = _count(record.get(key))
    for key in ("since", "until"):
        counters[key] = min(max(0.0, float(record[key])), 253_402_300_799.0)
    for name, counts in deployments.items():
        if not _NAME.fullmatch(name):
            raise Refused("the record's counters are of a deployment whose name is none")
        counters["deployments"][name] = {k: _counts(counts[k]) for k in COUNTED if k in counts}
    texts = {k: str(about.get(k) or "")[:200] for k in ("endpoint", "deployment", "model", "version", "run_id")}
    return texts, counters


def _json(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> dict[str, Any]:
    if info.file_size > MAX_JSON:
        raise Refused(f"the record's {info.filename} is too large")
    value = json.loads(archive.read(info))
    if not isinstance(value, dict):
        raise Refused(f"the record's {info.filename} is none")
    return value


def _count(value: Any) -> int | float:
    """A counter. Raises Refused."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e15:
        raise Refused("the record's counters are none")
    return value


def _counts(value: Any, depth: int = 0) -> Any:
    """Counters, objects of them, and histograms ``[[bound or null, count], …]``. Raises Refused."""
    if isinstance(value, dict) and depth < 2 and len(value) <= 1000:
        return {str(k)[:40]: _counts(v, depth + 1) for k, v in value.items()}
    if isinstance(value, list) and len(value) <= 1000:
        return [[None if bound is None else _count(bound), _count(count)] for bound, count in value]
    return _count(value)


# -- captured requests -------------------------------------------------------------------------------------------------


def _cleared(folder: Path) -> float:
    return float(read_json(folder / "cleared.json").get("before") or 0)


def _stage(archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo, work: Path, before: float) -> None:
    """Unpack a file into ``work`` and read all of it; a segment becomes Parquet there. Raises Refused and others."""
    target = work / name.removeprefix("capture/")
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with archive.open(info) as source, open(target, "xb") as f:
        shutil.copyfileobj(source, f, 1 << 20)  # zipfile stops at the size that was checked, then at the CRC
    spool = SPOOL.fullmatch(name)
    if spool:
        deployment = spool[1]
        kind, payload = next(segments.read(target), (0, b""))
        if kind != segments.DESCRIPTION or json.loads(payload).get("deployment") != deployment:
            raise Refused(f"{name} in the record is no segment of deployment {deployment}")
        _segment(work, deployment, target, False, before, Outcome())
        return
    part = PART.fullmatch(name)
    assert part is not None
    _check_part(target, name, part[1])
    cut(target, pa.scalar(round(before * 1e6), pa.timestamp("us", "UTC")))


def _check_part(path: Path, name: str, deployment: str) -> None:
    """Read a Parquet file to its end. Raises Refused."""
    hour = "".join(c for c in name.rpartition("/")[0].partition("/date=")[2] if c.isdigit())
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        if len(schema) > MAX_COLUMNS or len(set(schema.names)) < len(schema) or not _fits(schema):
            raise Refused(f"{name} in the record has other columns than captured requests have")
        told = [f.name for f in schema if is_json(f)]
        for batch in file.iter_batches(4096):
            batch.validate(full=True)
            moments = batch["at"].cast(pa.int64())
            bounds = pc.min_max(moments).as_py()
            hours = {segments.hour_of(bounds[k] / 1e6) for k in ("min", "max")} if batch.num_rows else {hour}
            if moments.null_count or hours != {hour} or set(batch["deployment"].to_pylist()) - {deployment}:
                raise Refused(f"{name} in the record has rows of another hour or deployment")
            for column in told:
                for text in batch[column].to_pylist():
                    if text is not None:
                        json.loads(text)


def _fits(schema: pa.Schema) -> bool:
    """Whether these are columns of captured requests."""
    if "deployment" not in schema.names or not pa.types.is_dictionary(schema.field("deployment").type):
        return False
    if any(name not in schema.names or schema.field(name).type != kind for name, kind in _FIXED.items()):
        return False
    return all(_plain(f.type) for f in schema if f.name != "deployment")


def _plain(kind: pa.DataType, depth: int = 0) -> bool:
    if pa.types.is_list(kind):
        return depth < MAX_DEPTH and _plain(kind.value_type, depth + 1)
    t = pa.types
    return any(is_it(kind) for is_it in (t.is_boolean, t.is_integer, t.is_floating, t.is_string, t.is_binary,
                                         t.is_timestamp))


def _place(work: Path, folder: Path) -> tuple[int, int, int]:
    """Put what is new in place: (new rows, files, how many of these were here already)."""
    rows = files = known = 0
    for part in sorted(work.glob("data/*/*/*/part-*.parquet")):
        files += 1
        target = folder / part.relative_to(work)
        there = pq.read_metadata(target).num_rows if target.is_file() else 0
        if target.is_file() and source_bytes(target) >= source_bytes(part):
            known += 1
            continue
        for made in reversed(target.relative_to(folder).parents):
            (folder / made).mkdir(mode=0o700, exist_ok=True)
        rows += pq.read_metadata(part).num_rows - there
        os.chmod(part, 0o600)
        sync(part)
        os.replace(part, target)
        sync(target.parent)
    return rows, files, known


# -- counters ----------------------------------------------------------------------------------------------------------


def _path(folder: Path, counters: dict[str, Any]) -> Path:
    return folder / FOLDER / f"{counters['bundle']}-{counters['site']}.json"


def _keep(folder: Path, about: dict[str, str], counters: dict[str, Any]) -> bool:
    """Keep the counters unless a later state of them is here; True when they were taken. Raises Refused."""
    path = _path(folder, counters)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    known = read_json(path)
    if known and known.get("seq", -1) >= counters["seq"]:
        return False
    if not known and len(os.listdir(path.parent)) >= MAX_RECORDS:
        raise Refused(f"there are records of {MAX_RECORDS} sites already")
    write_json(path, {"schema": 1, **about, **counters, "merged_at": time.time()})
    return True
