"""Captured rows out of their Parquet files, filtered, with the ground truth beside them, in flat memory.

The files of several deployments come together under the union of their columns: numbers of different types widen, types
that have nothing in common become JSON text.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..core.errors import ParameterError
from . import segments, truth
from .columns import FIXED, JSON, is_json
from .parts import parquet_writer

#: Rows that are in memory at a time.
BATCH = 4096


@dataclass(frozen=True)
class Wanted:
    """Which rows: of one deployment (empty: all), from ``since`` on and before ``until`` (seconds since the epoch), and
    of these the newest ``limit``; ``columns``: only these, in this order."""

    deployment: str = ""
    since: float | None = None
    until: float | None = None
    columns: tuple[str, ...] = ()
    limit: int | None = None


def parts(folder: Path, wanted: Wanted) -> dict[str, list[Path]]:
    """Hour (``YYYYMMDDHH``, ascending) → files that may hold rows of it."""
    found: dict[str, list[Path]] = {}
    first = segments.hour_of(wanted.since) if wanted.since is not None else ""
    last = segments.hour_of(wanted.until) if wanted.until is not None else "9"
    for path in folder.glob(f"data/deployment={wanted.deployment or '*'}/date=*/hour=*/part-*.parquet"):
        hour = path.parent.parent.name.removeprefix("date=").replace("-", "") + path.parent.name.removeprefix("hour=")
        if first <= hour <= last:
            found.setdefault(hour, []).append(path)
    return {hour: sorted(found[hour]) for hour in sorted(found)}


def read(folder: Path, out: Path, wanted: Wanted) -> dict[str, Any]:
    """Write the wanted rows to ``out``; returns ``{"rows", "truth"}``.

    Raises:
        ParameterError: a column that none of the files has.
    """
    found = parts(folder, wanted)
    told = _Truth(folder)
    schema = _union([schema for paths in found.values() for p in paths if (schema := _schema(p)) is not None])
    if len(told):
        schema = schema.append(told.field)
    if wanted.columns:
        schema = pa.schema([schema.field(_known(c, schema)) for c in wanted.columns])
    found, floor = _newest(found, wanted)
    rows = 0
    with parquet_writer(out, schema) as writer:
        for batch in _rows(found, wanted, floor):
            writer.write_batch(_fitted(batch, schema, told))
            rows += batch.num_rows
    return {"rows": rows, "truth": len(told)}


def info(folder: Path) -> dict[str, Any]:
    """What there is: files, bytes, rows, the first and the last moment, what was lost, and the same by deployment."""
    losses = segments.lost(folder)
    by_deployment: dict[str, dict[str, Any]] = {}
    for name in sorted({*segments.deployments(folder), *losses}):
        files = [k for k in segments.kept(folder, name) if k.path.suffix == ".parquet"]
        about = [_about(k.path) for k in files]
        moments = [m for _, first, last in about for m in (first, last) if m]
        by_deployment[name] = {
            "files": len(files), "bytes": sum(k.size for k in files), "rows": sum(rows for rows, _, _ in about),
            "oldest": min(moments, default=None), "newest": max(moments, default=None),
            "dropped": sum(losses.get(name, {}).get(cause, 0) for cause in ("queue", "disk", "size", "damaged")),
            "lost": losses.get(name, {}),
        }
    every = list(by_deployment.values())
    whole = {key: sum(d[key] for d in every) for key in ("files", "bytes", "rows", "dropped")}
    return {**whole, "oldest": min((d["oldest"] for d in every if d["oldest"]), default=None),
            "newest": max((d["newest"] for d in every if d["newest"]), default=None),
            "truth": truth.table_of(folder).num_rows, "deployments": by_deployment}


def _schema(path: Path) -> pa.Schema | None:
    try:
        return pq.read_schema(path)
    except (OSError, pa.ArrowException):
        return None  # the gateway made room meanwhile


def _about(path: Path) -> tuple[int, str, str]:
    try:
        with pq.ParquetFile(path) as file:
            column = file.schema_arrow.get_field_index("at")
            groups = [file.metadata.row_group(i).column(column).statistics
                      for i in range(file.metadata.num_row_groups)]
            moments = [m for s in groups if s is not None and s.has_min_max for m in (s.min, s.max)]
            shown = [m.strftime("%Y-%m-%dT%H:%M:%S.%fZ") for m in moments]
            return file.metadata.num_rows, min(shown, default=""), max(shown, default="")
    except (OSError, pa.ArrowException):
        return 0, "", ""


# -- columns -----------------------------------------------------------------------------------------------------------


def _union(schemas: list[pa.Schema]) -> pa.Schema:
    """All columns, the fixed ones first and the predictions last, as each was first seen."""
    fields: dict[str, pa.Field] = {}
    for schema in schemas:
        for field in schema:
            known = fields.get(field.name)
            fields[field.name] = field if known is None else _both(known, field)
    names = sorted(fields, key=lambda n: FIXED.index(n) if n in FIXED else len(FIXED) + n.startswith("prediction"))
    return pa.schema([fields[n] for n in names])


def _both(one: pa.Field, other: pa.Field) -> pa.Field:
    if one.type == other.type and is_json(one) == is_json(other):
        return one
    if not is_json(one) and not is_json(other):
        try:
            schemas = [pa.schema([f.remove_metadata()]) for f in (one, other)]
            return pa.unify_schemas(schemas, promote_options="permissive").field(0)
        except pa.ArrowException:
            pass
    return pa.field(one.name, pa.string(), metadata=JSON)


def _known(name: str, schema: pa.Schema) -> str:
    if name in schema.names:
        return name
    near = difflib.get_close_matches(name, schema.names, 1)
    shown = ", ".join(schema.names[:20]) + (" …" if len(schema.names) > 20 else "")
    raise ParameterError(f"there is no column {name!r} in what was captured",
                         f"did you mean {near[0]!r}?" if near else f"there are: {shown}")


def _fitted(batch: pa.RecordBatch, schema: pa.Schema, told: _Truth) -> pa.RecordBatch:
    columns = []
    for field in schema:
        place = batch.schema.get_field_index(field.name)
        if field.name == "truth" and place < 0:
            columns.append(told.of(batch))
        elif place < 0:
            columns.append(pa.nulls(batch.num_rows, field.type))
        else:
            columns.append(_cast(batch.column(place), batch.schema.field(place), field))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _cast(values: pa.Array, source: pa.Field, target: pa.Field) -> pa.Array:
    if values.type == target.type and is_json(source) == is_json(target):
        return values
    if is_json(target):
        texts = [None if v is None else json.dumps(v, default=str) for v in values.to_pylist()]
        return pa.array(texts, pa.string())
    return values.cast(target.type, safe=False)


# -- rows --------------------------------------------------------------------------------------------------------------


def _within(batch: pa.RecordBatch, wanted: Wanted) -> pa.RecordBatch:
    for limit, keeps in ((wanted.since, pc.greater_equal), (wanted.until, pc.less)):
        if limit is not None:
            moment = pa.scalar(round(limit * 1e6), pa.timestamp("us", "UTC"))
            batch = batch.filter(keeps(batch["at"], moment))
    return batch


def _batches(paths: list[Path], wanted: Wanted, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(BATCH, columns=columns):
                    yield _within(batch, wanted)
        except FileNotFoundError:
            continue  # the gateway made room meanwhile


def _newest(
    found: dict[str, list[Path]], wanted: Wanted
) -> tuple[dict[str, list[Path]], tuple[str, int, int] | None]:
    """The hours that hold the newest ``limit`` rows; of the first one count (hour, µs, how many at that µs do not)."""
    if wanted.limit is None:
        return found, None
    left = wanted.limit
    kept: dict[str, list[Path]] = {}
    for hour in reversed(found):
        kept[hour] = found[hour]
        times = [b["at"].cast(pa.int64()).to_numpy() for b in _batches(found[hour], wanted, ["at"])]
        moments = np.concatenate(times) if times else np.array([], dtype=np.int64)
        if len(moments) >= left:
            edge = int(np.partition(moments, len(moments) - left)[len(moments) - left])
            floor = (hour, edge, int((moments >= edge).sum()) - left)
            return {h: kept[h] for h in sorted(kept)}, floor
        left -= len(moments)
    return found, None


def _rows(found: dict[str, list[Path]], wanted: Wanted, floor: tuple[str, int, int] | None) -> Iterator[pa.RecordBatch]:
    for hour, paths in found.items():
        for batch in _batches(paths, wanted):
            if floor is not None and hour == floor[0]:
                moments = batch["at"].cast(pa.int64()).to_numpy()
                ties = np.cumsum(moments == floor[1])
                batch = batch.filter(pa.array((moments > floor[1]) | ((moments == floor[1]) & (ties > floor[2]))))
                floor = (hour, floor[1], max(0, floor[2] - (int(ties[-1]) if len(ties) else 0)))
            if batch.num_rows:
                yield batch


# -- ground truth ------------------------------------------------------------------------------------------------------


class _Truth:
    """The last value told for each row of a request, as one column: numbers or texts if all are, else JSON."""

    def __init__(self, folder: Path) -> None:
        table = truth.table_of(folder)
        rows = zip(table["correlation_id"].to_pylist(), table["row"].to_pylist(), strict=True)
        self._places = {key: place for place, key in enumerate(rows)}
        texts = table["value"].to_pylist()
        values = [json.loads(t) for t in texts]
        self.field = pa.field("truth", pa.string(), metadata=JSON)
        self._values = pa.array(texts, pa.string())
        for kinds, arrow in (((bool,), pa.bool_()), ((int,), pa.int64()), ((int, float), pa.float64()),
                             ((str,), pa.string())):
            if values and all(v is None or type(v) in kinds for v in values):
                try:
                    plain = [None if v is None else float(v) for v in values] if float in kinds else values
                    self._values = pa.array(plain, arrow)
                except (pa.ArrowException, OverflowError):
                    continue
                self.field = pa.field("truth", arrow)
                break

    def __len__(self) -> int:
        return len(self._places)

    def of(self, batch: pa.RecordBatch) -> pa.Array:
        """The truth of each row, null where none was told."""
        rows = zip(batch["correlation_id"].to_pylist(), batch["row"].to_pylist(), strict=True)
        return self._values.take(pa.array([self._places.get(key) for key in rows], pa.int64()))
