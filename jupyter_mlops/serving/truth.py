"""Ground truth: what turned out to be right for a row of a request, told later, as Parquet below ``truth/``.

It arrives in ``inbox.rec`` (``segments.add_truth``), which is renamed and becomes ``part-<digest>.parquet``; many of
these are merged. Columns: ``correlation_id``, ``row``, ``value`` (JSON), ``at`` (when it was told) and ``number`` (in
which order). The last value of a row wins.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from . import segments
from .parts import parquet_writer
from .places import sync

#: Files of ground truth beyond which they are merged.
MAX_TRUTHS = 32
SCHEMA = pa.schema([("correlation_id", pa.string()), ("row", pa.int32()), ("value", pa.string()),
                    ("at", pa.timestamp("us", "UTC")), ("number", pa.int64())])


def take(folder: Path) -> None:
    truth = folder / "truth"
    if not truth.is_dir():
        return
    for leftover in truth.glob(".part-*"):
        leftover.unlink(missing_ok=True)
    inbox = truth / "inbox.rec"
    with contextlib.suppress(FileNotFoundError), open(inbox, "rb") as f:
        fcntl.flock(f, fcntl.LOCK_EX)  # whoever writes has it; see add_truth
        if os.fstat(f.fileno()).st_nlink:
            os.replace(inbox, truth / f"inbox-{time.time_ns()}.rec")
    for path in sorted(truth.glob("inbox-*.rec")):
        number = int(path.stem.removeprefix("inbox-"))
        rows = [(*row, number) for kind, payload in segments.read(path) if kind == segments.TRUTH
                for row in _rows(payload)]
        if rows:
            columns = zip(*rows, strict=True)
            arrays = [pa.array(values, kind) for values, kind in zip(columns, SCHEMA.types, strict=True)]
            _write(truth, pa.table(arrays, schema=SCHEMA), path.name)
        path.unlink()
    parts = sorted(truth.glob("part-*.parquet"))
    if len(parts) > MAX_TRUTHS:
        _write(truth, table_of(folder), *(p.name for p in parts))
        for part in parts:
            part.unlink()
        sync(truth)


def _rows(payload: bytes) -> Iterator[tuple[str, int, str, int]]:
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, OverflowError):
        document = json.loads(payload)
        at = round(float(document["at"]) * 1e6)
        for row in document["rows"]:
            yield str(row["correlation_id"]), int(row.get("row") or 0), json.dumps(row["value"]), at


def _write(truth: Path, table: pa.Table, *sources: str) -> None:
    if not table.num_rows:
        return
    name = f"part-{hashlib.sha256(chr(10).join(sources).encode()).hexdigest()[:16]}.parquet"
    temporary = truth / f".{name}.new"
    with parquet_writer(temporary, SCHEMA) as writer:
        writer.write_table(table)
    sync(temporary)
    os.replace(temporary, truth / name)
    sync(truth)


def table_of(folder: Path) -> pa.Table:
    """All ground truth, one value for each row of a request: the last one told."""
    parts = sorted((folder / "truth").glob("part-*.parquet"))
    if not parts:
        return SCHEMA.empty_table()
    table = pa.concat_tables([pq.read_table(p, schema=SCHEMA, partitioning=None) for p in parts])
    place = pa.array(range(table.num_rows), pa.int64())
    order = pc.sort_indices(table.append_column("place", place), sort_keys=[("number", "ascending"),
                                                                            ("place", "ascending")])
    table = table.take(order).append_column("place", place)
    last = table.group_by(["correlation_id", "row"]).aggregate([("place", "max")])["place_max"]
    return table.take(last).drop_columns(["place"])
