"""Parquet files of captured requests: written hour by hour in flat memory, cut, removed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from . import segments
from .bodies import form_of
from .columns import Columns
from .places import sync

#: Requests and bytes that become a row group.
GROUP, GROUP_BYTES = 20_000, 32 * 1024 * 1024


class PartWriter:
    """The Parquet files of one segment, an hour each, in flat memory."""

    def __init__(self, folder: Path, segment: Path, size: int) -> None:
        self.folder = folder
        self.segment = segment
        self.size = size
        self.description: dict[str, Any] = {}
        self.rows = 0
        self._columns: Columns | None = None
        self._waiting: dict[str, list[segments.Captured]] = {}
        self._bytes = self._count = 0
        self._open: dict[str, tuple[pq.ParquetWriter, Path, Path]] = {}

    @property
    def unfit(self) -> int:
        return self._columns.unfit if self._columns else 0

    def add(self, call: segments.Captured) -> None:
        self._waiting.setdefault(segments.hour_of(call.at), []).append(call)
        self._count += 1
        self._bytes += len(call.body or b"") + len(call.answer or b"")
        if self._count >= GROUP or self._bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        for hour, calls in self._waiting.items():
            if self._columns is None:
                form = next((form_of(c) for c in calls if c.body is not None), "frame")
                self._columns = Columns(self.description, form)
            table = self._columns.table(calls)
            self.rows += table.num_rows
            self._writer(hour).write_table(table)
        self._waiting = {}
        self._bytes = self._count = 0

    def _writer(self, hour: str) -> pq.ParquetWriter:
        if hour not in self._open:
            assert self._columns is not None
            name = f"part-{self.segment.stem}.parquet"
            target = self._folder(hour) / name
            temporary = target.with_name(f".{name}.new")
            schema = self._columns.schema
            about = {**(schema.metadata or {}), b"source_bytes": str(self.size).encode()}
            writer = parquet_writer(temporary, schema.with_metadata(about))
            self._open[hour] = (writer, temporary, target)
        return self._open[hour][0]

    def _folder(self, hour: str) -> Path:
        data = self.folder / "data" / f"deployment={self.segment.parent.name}"
        folder = data / f"date={hour[:4]}-{hour[4:6]}-{hour[6:8]}" / f"hour={hour[8:]}"
        for made in (data.parent, data, folder.parent, folder):
            with contextlib.suppress(FileExistsError):
                os.mkdir(made, 0o700)
        return folder

    def finish(self) -> set[Path]:
        """Put all in place; returns where."""
        self._flush()
        done = set()
        for writer, temporary, target in self._open.values():
            writer.close()
            sync(temporary)
            os.replace(temporary, target)
            sync(target.parent)
            done.add(target)
        self._open = {}
        return done

    def abort(self) -> None:
        """Leave nothing of what is not in place."""
        for writer, temporary, _ in self._open.values():
            with contextlib.suppress(OSError, pa.ArrowException):
                writer.close()
            temporary.unlink(missing_ok=True)


def parquet_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer of a new private file."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
    return pq.ParquetWriter(path, schema, compression="zstd")


def source_bytes(part: Path) -> int:
    """The size of the segment that a part was made of; -1 when it cannot be told."""
    try:
        return int((pq.read_schema(part).metadata or {}).get(b"source_bytes", -1))
    except (OSError, pa.ArrowException, ValueError):
        return -1


def cut(path: Path, moment: pa.Scalar) -> int:
    """Rewrite a file without what is older; returns how many rows went."""
    with pq.ParquetFile(path) as source:
        schema, total, left = source.schema_arrow, source.metadata.num_rows, 0
        temporary = path.with_name(f".{path.name}.new")
        with parquet_writer(temporary, schema) as writer:
            for batch in source.iter_batches(4096):
                kept = batch.filter(pc.greater_equal(batch["at"], moment))
                left += kept.num_rows
                if kept.num_rows:
                    writer.write_batch(kept)
    if left == total:
        temporary.unlink()
    elif left:
        sync(temporary)
        os.replace(temporary, path)
    else:
        temporary.unlink()
        remove(path)
    return total - left


def remove(path: Path) -> None:
    """Delete a file, and the folders that it leaves empty."""
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        for parent in (path.parent, path.parent.parent):
            os.rmdir(parent)
