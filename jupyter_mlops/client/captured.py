"""Captured requests as a DataFrame, and ground truth out of whatever holds it."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ..core.errors import ParameterError, Refused
from .payload import plain

#: Rows and bytes of ground truth that go in one request.
CHUNK, CHUNK_BYTES = 20_000, 4_000_000
#: Columns that may hold the right values, in this order.
VALUES = ("value", "truth")
FORMS = ("a DataFrame with the columns correlation_id, row (if a request has several) and value; a Series whose index "
         "is correlation_id or (correlation_id, row); or a dict {correlation_id: value}")


def frame(file: BinaryIO) -> Any:
    """The rows of a Parquet file of captured requests as a DataFrame, in the order of time, JSON decoded.

    Raises:
        Refused: pandas or pyarrow are missing here.
    """
    try:
        import pandas
        import pyarrow.parquet as pq
    except ImportError as error:
        raise Refused(f"reading captured requests needs pandas and pyarrow ({error})",
                      "pip install pandas pyarrow, or save them in a terminal: jupyter mlops endpoint data NAME "
                      "-o FILE.parquet") from None
    # Not by its folder: "deployment=v1" in a path would mean something to the reader.
    table = pq.ParquetFile(file).read()
    found = table.to_pandas()
    for field in table.schema:
        if field.metadata and field.metadata.get(b"encoding") == b"json":
            values = [None if v is None else json.loads(v) for v in table[field.name].to_pylist()]
            found[field.name] = pandas.Series(values, dtype=object).infer_objects()
    if "deployment" in found:
        found["deployment"] = found["deployment"].astype(str)
    order = [c for c in ("at", "correlation_id", "row") if c in found]
    return found.sort_values(order, kind="stable", ignore_index=True) if "at" in order else found


def truth_rows(truth: Any) -> list[dict[str, Any]]:
    """``{"correlation_id", "row", "value"}`` of each row for which there is a value.

    Raises:
        ParameterError: it is none of the forms that are understood.
    """
    if isinstance(truth, Mapping) and not _is_columns(truth):
        pairs = [(key, value) for key, value in truth.items()]
    elif hasattr(truth, "to_frame") and hasattr(truth, "index") and hasattr(truth, "items"):  # a Series
        pairs = list(truth.items())
    else:
        pairs = _of_table(truth)
    rows = []
    for key, value in pairs:
        ident, row = key if isinstance(key, tuple) and len(key) == 2 else (key, 0)
        if _missing(ident) or not str(ident):
            raise ParameterError("a correlation_id is missing", "it is the X-Request-Id of the answer")
        if isinstance(row, bool) or _missing(row) or float(row) != int(row) or int(row) < 0:
            raise ParameterError(f"row {row!r} of {ident} is no whole number from 0")
        if not _missing(value):
            rows.append({"correlation_id": str(ident), "row": int(row), "value": plain(value)})
    if not rows:
        raise ParameterError("there is no value in the ground truth", f"give {FORMS}")
    return rows


def chunks(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Parts that fit into one request each."""
    part: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        length = len(json.dumps(row))
        if part and (len(part) >= CHUNK or size + length > CHUNK_BYTES):
            yield part
            part, size = [], 0
        part.append(row)
        size += length
    if part:
        yield part


def load(path: Path) -> Any:
    """The table in a CSV, Parquet or JSON file.

    Raises:
        ParameterError: there is no such file, or it is none of these.
    """
    suffix = path.suffix.lower()
    if not path.is_file():
        raise ParameterError(f"there is no file {path}")
    try:
        import pandas as pd

        if suffix == ".parquet":
            return pd.read_parquet(path)
        if suffix in (".json", ".jsonl", ".ndjson"):
            if suffix != ".json":
                return pd.read_json(path, lines=True, dtype={"correlation_id": str})
            return json.loads(path.read_text(encoding="utf-8"))
        if suffix in (".csv", ".txt"):
            return pd.read_csv(path, dtype={"correlation_id": str})
    except ImportError as error:
        raise Refused(f"reading {path.name} needs more packages ({error})", "pip install pandas pyarrow") from None
    except Exception as error:  # whatever the readers raise about a file that is none
        line = str(error).splitlines()[0][:200] if str(error) else ""
        raise ParameterError(f"{path.name} cannot be read: {type(error).__name__}: {line}") from None
    raise ParameterError(f"{path.name}: its ending says neither csv, parquet nor json")


def save(table: Any, path: Path) -> None:
    """Write a DataFrame as CSV."""
    plain_table = table.copy()
    for name in plain_table:
        if plain_table[name].map(lambda v: isinstance(v, (list, dict)) or hasattr(v, "tolist")).any():
            plain_table[name] = [None if v is None else json.dumps(plain(v)) for v in plain_table[name]]
    plain_table.to_csv(path, index=False)


def spool() -> Any:
    """A temporary file that stays in memory while it is small."""
    return tempfile.SpooledTemporaryFile(16 << 20)


def _is_columns(value: Mapping[Any, Any]) -> bool:
    ids = value.get("correlation_id")
    return (isinstance(ids, Sequence) and not isinstance(ids, str)) or hasattr(ids, "__array__")


def _of_table(truth: Any) -> list[tuple[Any, Any]]:
    import pandas as pd

    try:
        table = truth if isinstance(truth, pd.DataFrame) else pd.DataFrame(truth)
    except (TypeError, ValueError):
        raise ParameterError(f"{type(truth).__name__} is no ground truth", f"give {FORMS}") from None
    if "correlation_id" not in table.columns and "correlation_id" in table.index.names:
        table = table.reset_index()
    if "correlation_id" not in table.columns:
        shown = ", ".join(map(str, table.columns[:8])) or "no column"
        raise ParameterError(f"there is no column correlation_id in the ground truth (there are {shown})",
                             f"give {FORMS}")
    names = [n for n in VALUES if n in table.columns]
    others = [c for c in table.columns if c not in ("correlation_id", "row")]
    if not names and len(others) != 1:
        raise ParameterError("it is not clear which column has the right values", "call it value")
    values = table[names[0] if names else others[0]]
    rows = table["row"] if "row" in table.columns else [0] * len(table)
    return list(zip(zip(table["correlation_id"], rows, strict=True), values, strict=True))


def _missing(value: Any) -> bool:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float) and math.isnan(value)
