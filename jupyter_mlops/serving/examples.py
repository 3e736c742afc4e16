"""Example requests for a model: from the example that was logged with it, else made of zeros.

Every example is one that the gateway takes: it has passed the same checks as a request.
"""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

from ..core.errors import MlopsError
from . import oip
from .payload import canonical
from .signature import NESTED, Signature, Tensor

#: Bytes of a logged example that are looked at; a longer one is left alone.
MAX_FILE = 4 * 1024 * 1024
#: Rows of an example, and values in all of it: more than that is no example but data.
MAX_ROWS, MAX_VALUES = 2, 20_000
_ZERO: dict[str, Any] = {
    "boolean": False, "integer": 0, "long": 0, "float": 0.0, "double": 0.0, "string": "", "binary": "AAAA",
    "datetime": "2026-01-31T12:00:00", "any": "", "sparkml_vector": [0.0],
}


def logged(model_dir: Path) -> dict[str, Any] | None:
    """The request that MLflow wrote beside the model, None when there is none that can be read."""
    path = model_dir / "serving_input_example.json"
    try:
        if path.stat().st_size > MAX_FILE:
            return None
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except (OSError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def requests(signature: Signature, example: dict[str, Any] | None = None) -> dict[str, Any]:
    """Bodies of JSON by the name of their form; none when even one row has too many values.

    Args:
        example: what :func:`logged` found; used when it fits the signature.
    """
    bodies: dict[str, Any] = {}
    if not signature.columns and not signature.tensors:
        return bodies
    params = _params(signature)
    for form, body in _forms(signature, example).items():
        whole = {form: body, **({"params": params} if params else {})}
        if _fits(signature, whole):
            bodies[form] = whole
    if not bodies and example is not None and _size(example) <= MAX_VALUES and _fits(signature, example):
        bodies[next((k for k in example if k != "params"), "inputs")] = example
    return bodies


def table(signature: Signature, example: dict[str, Any] | None = None) -> str | None:
    """A CSV, None when the model cannot be called with one."""
    rows = _rows(signature, example) if signature.columns else None
    if signature.type_hint or rows is None or signature.tensors:
        return None
    if any(isinstance(v, (list, dict)) for row in rows for v in row):
        return None
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([oip.column_name(c, i, len(signature.columns)) for i, c in enumerate(signature.columns)])
    writer.writerows([[_cell(v) for v in row] for row in rows])
    try:
        canonical(signature, out.getvalue().encode(), "text/csv")
    except (MlopsError, UnicodeEncodeError):
        return None
    return out.getvalue()


def tensors(signature: Signature, example: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """A request of the Open Inference Protocol."""
    if not signature.columns and not signature.tensors:
        return None
    filled: list[dict[str, Any]] = []
    values = _tensors(signature, example) if signature.tensors else None
    rows = None if signature.tensors else _rows(signature, example)
    if values is None and rows is None:
        return None
    for at, told in enumerate(oip.inputs_of(signature)):
        if values is not None:
            shape, flat = _flat(values[at])
        elif len(told["shape"]) == 2:
            shape, flat = [len(rows or ()), told["shape"][1]], [v for row in rows or () for v in row]
        else:
            shape, flat = [len(rows or ())], [row[at] for row in rows or ()]
            if signature.columns[at].type in NESTED:
                flat = [json.dumps(v) for v in flat]
        filled.append({"name": told["name"], "shape": shape, "datatype": told["datatype"], "data": flat})
    document: dict[str, Any] = {"inputs": filled}
    if params := _params(signature):
        document["parameters"] = params
    try:
        oip.canonical(signature, document)
    except MlopsError:
        return None
    return document


# -- forms ------------------------------------------------------------------------


def _forms(signature: Signature, example: dict[str, Any] | None) -> dict[str, Any]:
    if signature.type_hint:
        given = example.get("inputs") if example else None
        zeros = [_zero(c.spec or c.type) for c in signature.columns[:1]]
        return {"inputs": given if isinstance(given, list) else zeros}
    if signature.tensors:
        values = _tensors(signature, example)
        if values is None:
            return {}
        if signature.named:
            return {"inputs": {str(t.name): v for t, v in zip(signature.tensors, values, strict=True)}}
        forms: dict[str, Any] = {"inputs": values[0], "instances": values[0]}
        if len(signature.tensors[0].shape) == 2:
            forms["dataframe_split"] = {"data": values[0]}
        return forms
    rows = _rows(signature, example)
    if rows is None:
        return {}
    if not signature.named:
        plain = [row[0] for row in rows] if len(signature.columns) == 1 else rows
        return {"inputs": plain, "instances": plain, "dataframe_split": {"data": rows}}
    names = [str(c.name) for c in signature.columns]
    records = [dict(zip(names, row, strict=True)) for row in rows]
    nested = any(c.type in ("array", "object", "map") for c in signature.columns)
    columns = {name: [row[at] for row in rows] for at, name in enumerate(names)}
    return {"dataframe_split": {"columns": names, "data": rows}, "dataframe_records": records,
            "inputs": records if nested else columns, "instances": records}


def _rows(signature: Signature, example: dict[str, Any] | None) -> list[list[Any]] | None:
    """A few rows in the order of the signature's columns."""
    if not signature.columns or len(signature.columns) > MAX_VALUES:
        return None
    found = _known_rows(signature, example) if example else None
    if found:
        most = max(1, min(MAX_ROWS, MAX_VALUES // max(1, _size(found[0]))))
        if _size(found[:most]) <= MAX_VALUES and _fits(signature, _split(signature, found[:most])):
            return found[:most]
    return [[_zero(c.spec or c.type) for c in signature.columns]]


def _split(signature: Signature, rows: list[list[Any]]) -> dict[str, Any]:
    names = {"columns": [c.name for c in signature.columns]} if signature.named else {}
    return {"dataframe_split": {**names, "data": rows}}


def _known_rows(signature: Signature, example: dict[str, Any]) -> list[list[Any]] | None:
    names = [c.name for c in signature.columns]
    split = example.get("dataframe_split")
    if isinstance(split, dict) and isinstance(split.get("data"), list):
        given, data = split.get("columns"), split["data"]
        if not all(isinstance(row, list) for row in data[:MAX_ROWS]):
            return None
        if not signature.named or not isinstance(given, list):
            return data[:MAX_ROWS]
        place = {name: at for at, name in enumerate(given) if isinstance(name, str)}
        try:
            return [[row[place[n]] if n in place else None for n in names] for row in data[:MAX_ROWS]]
        except IndexError:
            return None
    records = next((example[k] for k in ("dataframe_records", "instances", "inputs") if k in example), None)
    if isinstance(records, list):
        if all(isinstance(r, dict) for r in records):
            return [[r.get(n) for n in names] for r in records[:MAX_ROWS]]
        if len(names) == 1:
            return [r if isinstance(r, list) and len(r) == 1 else [r] for r in records[:MAX_ROWS]]
        return records[:MAX_ROWS] if all(isinstance(r, list) for r in records) else None
    if isinstance(records, dict) and all(isinstance(v, list) for v in records.values()):
        length = min((len(v) for v in records.values()), default=0)
        return [[records[n][at] if n in records else None for n in names] for at in range(min(length, MAX_ROWS))]
    return None


def _tensors(signature: Signature, example: dict[str, Any] | None) -> list[Any] | None:
    """Values of every tensor, a few rows of each."""
    given = next((example[k] for k in ("inputs", "instances") if k in example), None) if example else None
    if given is None and example and isinstance(example.get("dataframe_split"), dict):
        given = example["dataframe_split"].get("data")
    if given is not None:
        values: list[Any] | None
        if signature.named:
            values = [given.get(t.name) for t in signature.tensors] if isinstance(given, dict) else None
        else:
            values = [given]
        if values and all(isinstance(v, list) for v in values):
            cut = [v[:MAX_ROWS] if t.shape[:1] == (-1,) else v for t, v in zip(signature.tensors, values, strict=True)]
            whole = dict(zip([str(t.name) for t in signature.tensors], cut, strict=True)) if signature.named else cut[0]
            if _size(cut) <= MAX_VALUES and _fits(signature, {"inputs": whole}):
                return cut
    if sum(math.prod(_lengths(t)) for t in signature.tensors) > MAX_VALUES:
        return None
    return [_filled(_lengths(t), _tensor_zero(t)) for t in signature.tensors]


def _lengths(tensor: Tensor) -> list[int]:
    return [1 if n == -1 else n for n in tensor.shape]


def _tensor_zero(tensor: Tensor) -> Any:
    if tensor.dtype == "bool":
        return False
    if tensor.dtype == "datetime64":
        return _ZERO["datetime"]
    return "" if tensor.dtype in ("str", "object") else 0.0 if tensor.dtype.startswith("float") else 0


def _filled(shape: list[int], value: Any) -> Any:
    for length in reversed(shape):
        value = [value] * length
    return value


def _zero(spec: Any, depth: int = 0) -> Any:
    kind = spec if isinstance(spec, str) else spec["type"]
    if depth > 8:
        return None
    if kind == "array":
        return [_zero(spec["items"], depth + 1)]
    if kind == "map":
        return {"key": _zero(spec["values"], depth + 1)}
    if kind == "object":
        return {name: _zero(value, depth + 1) for name, value in spec["properties"].items()}
    return _ZERO[kind]


# -- odds and ends ------------------------------------------------------------------


def _params(signature: Signature) -> dict[str, Any]:
    return {p.name: p.default for p in signature.params}


def _fits(signature: Signature, body: Any) -> bool:
    try:
        canonical(signature, json.dumps(body).encode("ascii"), "application/json")
    except (MlopsError, ValueError, TypeError, RecursionError):
        return False
    return True


def _size(value: Any) -> int:
    """How many values there are in it."""
    count, level = 0, [value]
    while level:
        count += len(level)
        if count > 10 * MAX_VALUES:
            break
        level = [v for item in level if isinstance(item, (list, dict))
                 for v in (item.values() if isinstance(item, dict) else item)]
    return count


def _flat(value: Any) -> tuple[list[int], list[Any]]:
    shape: list[int] = []
    level = [value]
    while level and all(isinstance(v, list) for v in level):
        shape.append(len(level[0]))
        level = [v for part in level for v in part]
    return shape, level


def _cell(value: Any) -> Any:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else value
