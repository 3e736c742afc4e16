"""From Python values to MLflow's scoring JSON, and back.

Neither numpy nor pandas is imported unless the value or the answer needs it.
"""

from __future__ import annotations

import base64
import json
import math
import sys
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

from ..core.errors import ParameterError

#: Top-level keys of MLflow's scoring protocol.
PROTOCOL = frozenset({"inputs", "instances", "dataframe_split", "dataframe_records"})


def inputs_of(signature: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The input fields of a signature as MLflow writes it (its parts are JSON text or lists)."""
    fields = (signature or {}).get("inputs")
    if isinstance(fields, str):
        try:
            fields = json.loads(fields)
        except ValueError:
            return []
    return [f for f in fields if isinstance(f, dict)] if isinstance(fields, list) else []


def columns_of(signature: Mapping[str, Any] | None) -> list[str] | None:
    """Names of the columns, when the signature has named columns."""
    fields = inputs_of(signature)
    if fields and all(f.get("type") != "tensor" and f.get("name") for f in fields):
        return [str(f["name"]) for f in fields]
    return None


def build(data: Any, signature: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The request body for ``data`` in the form that the model's signature asks for.

    Raises:
        ParameterError: a value cannot be written as JSON.
    """
    if isinstance(data, Mapping):
        if PROTOCOL & set(data):
            return plain(data)
        return _from_mapping(data, signature)
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(data, pandas.Series):
        columns = columns_of(signature)
        if columns and list(map(str, data.index)) == columns:
            data = data.to_frame().T.infer_objects()
        elif columns and len(columns) == 1:
            data = data.to_frame(columns[0])
        else:
            data = data.to_numpy()
    if pandas is not None and isinstance(data, pandas.DataFrame):
        if _tensor(signature):
            return {"inputs": plain(data.to_numpy())}
        rows = plain(data.to_numpy(dtype=object))
        return {"dataframe_split": {"columns": [str(c) for c in data.columns], "data": rows}}
    rows = plain(data)
    if not isinstance(rows, list):
        rows = [rows]
    if rows and all(isinstance(r, dict) for r in rows):
        return {"dataframe_records": rows}
    return _from_rows(rows, signature)


def _from_mapping(data: Mapping[Any, Any], signature: Mapping[str, Any] | None) -> dict[str, Any]:
    values = plain(data)
    if _tensor(signature):
        return {"inputs": values}
    if values and all(isinstance(v, list) for v in values.values()):
        lengths = {len(v) for v in values.values()}
        if len(lengths) > 1:
            raise ParameterError("the columns are not equally long", "give every column the same number of rows")
        rows = [list(row) for row in zip(*values.values(), strict=True)]
        return {"dataframe_split": {"columns": list(values), "data": rows}}
    return {"dataframe_records": [values]}


def _from_rows(rows: list[Any], signature: Mapping[str, Any] | None) -> dict[str, Any]:
    columns = columns_of(signature)
    if columns:
        flat = rows and not any(isinstance(r, list) for r in rows)
        if flat and len(rows) == len(columns):
            rows = [rows]  # one row
        elif flat and len(columns) == 1:
            rows = [[r] for r in rows]
        if all(isinstance(r, list) and len(r) == len(columns) for r in rows):
            return {"dataframe_split": {"columns": columns, "data": rows}}
        return {"inputs": rows}
    fields = inputs_of(signature)
    shape = (fields[0].get("tensor-spec") or {}).get("shape") if len(fields) == 1 else None
    if shape and _depth(rows) == len(shape) - 1 and len(shape) > 1:
        rows = [rows]  # one row of a tensor
    return {"inputs": rows}


def _tensor(signature: Mapping[str, Any] | None) -> bool:
    return any(f.get("type") == "tensor" for f in inputs_of(signature))


def _depth(value: Any) -> int:
    depth = 0
    while isinstance(value, list):
        depth += 1
        value = value[0] if value else None
    return depth


def plain(value: Any) -> Any:
    """JSON values: arrays and tensors become lists, missing values null, times ISO text, bytes base64."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (datetime, date)):
        return None if value != value else value.isoformat()  # NaT is not equal to itself
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(bytes(value)).decode()
    if hasattr(value, "detach"):  # a torch tensor, perhaps on a GPU and with a graph
        value = value.detach().cpu()
    if hasattr(value, "toarray"):  # a sparse matrix
        value = value.toarray()
    for name in ("tolist", "to_numpy", "isoformat"):
        method = getattr(value, name, None)
        if callable(method):
            return plain(method())
    pandas = sys.modules.get("pandas")
    if pandas is not None and value is pandas.NA:
        return None
    raise ParameterError(
        f"a value of type {type(value).__name__} cannot be sent", "give a list, dict, numpy array or pandas DataFrame"
    )


def result(body: Any) -> Any:
    """The predictions as numpy array (numbers), DataFrame (records) or list."""
    values = body.get("predictions", body) if isinstance(body, dict) else body
    if isinstance(values, list) and values:
        if all(isinstance(v, dict) for v in values):
            try:
                import pandas as pd
            except ImportError:
                return values
            return pd.DataFrame(values)
        if _numeric(values):
            try:
                import numpy as np

                return np.array(values)
            except (ImportError, ValueError):
                return values
    return values


def _numeric(values: list[Any]) -> bool:
    return all(_numeric(v) if isinstance(v, list) else isinstance(v, (int, float)) for v in values)


def example(signature: Mapping[str, Any] | None) -> str:
    """JSON of one row that fits the signature, with zeros and empty texts."""
    columns = columns_of(signature)
    fields = inputs_of(signature)
    if columns:
        row = [_zero(str(f.get("type"))) for f in fields]
        return json.dumps({"dataframe_split": {"columns": columns, "data": [row]}})
    shapes = [(f.get("tensor-spec") or {}).get("shape") or [-1] for f in fields]
    if len(fields) == 1 and not fields[0].get("name"):
        return json.dumps({"inputs": _zeros(shapes[0])})
    if fields and all(f.get("name") for f in fields):
        return json.dumps({"inputs": {f["name"]: _zeros(s) for f, s in zip(fields, shapes, strict=True)}})
    return json.dumps({"inputs": [[0]]})


def expression(signature: Mapping[str, Any] | None) -> str:
    """Python code of the request body for the first rows of ``X``."""
    if columns_of(signature):
        return '{"dataframe_split": X[:3].to_dict(orient="split")}'
    return '{"inputs": X[:3].tolist()}'


def _zero(kind: str) -> Any:
    return {"string": "", "boolean": False, "datetime": "2026-01-01T00:00:00", "binary": ""}.get(kind, 0)


def _zeros(shape: list[int]) -> Any:
    count = 1
    for n in shape:
        count *= max(1, n)
    if count > 4096:
        return []  # an image or the like: nobody wants to read that many zeros
    value: Any = 0
    for n in reversed(shape):
        value = [value] * max(1, n)
    return value
