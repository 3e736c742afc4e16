"""From a request body to what a scorer takes: MLflow's input forms, checked against the signature.

``dataframe_split``, ``dataframe_records``, ``instances``, ``inputs`` (each with ``params``) and ``text/csv`` all end as
one canonical SCORE body: numbers as bytes, everything else as JSON, with the exact types of the signature, so that the
scorer has nothing to guess. Whatever is wrong with a body is a ``ParameterError`` (400) that names it.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from typing import Any

import orjson

from ..core.errors import UnsupportedMedia
from ..runtime import frames
from .signature import CODES, TENSOR_CODES, Column, Signature, Tensor, quote
from .values import check_column, check_params, check_tensor, describe, fail, pack_block

FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
FORM_HINT = 'send {"dataframe_split": {"columns": [...], "data": [[...]]}} or one of ' + ", ".join(FORMS[1:])


def canonical(signature: Signature, body: bytes, content_type: str) -> bytes:
    """The SCORE body for a request.

    Raises:
        ParameterError: the body does not fit the signature, or is no JSON or CSV.
        UnsupportedMedia: neither ``application/json`` nor ``text/csv``, or not UTF-8.
    """
    media, *rest = (part.strip().lower() for part in content_type.split(";"))
    for parameter in rest:
        name, _, value = parameter.partition("=")
        if name.strip() == "charset" and value.strip(" \"'") not in ("utf-8", "utf8", "us-ascii"):
            raise UnsupportedMedia("only UTF-8 is understood", "send Content-Type: application/json")
    if media not in ("application/json", "text/csv"):
        shown = quote(media) if media else "no content type"
        raise UnsupportedMedia(f"{shown} cannot be scored", "send Content-Type: application/json (or text/csv)")
    try:
        if media == "application/json":
            try:
                return document_to_score(signature, orjson.loads(body))
            except orjson.JSONDecodeError:
                pass  # NaN, very large integers, or an error: the standard library knows them and says where
        text = body.decode("utf-8-sig")
        return _csv(signature, text) if media == "text/csv" else document_to_score(signature, _json(text))
    except UnicodeDecodeError as error:
        raise fail(f"the body is not UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise fail("the body is nested too deeply") from None


# -- JSON ---------------------------------------------------------------------


def _constant(name: str) -> float:
    # Python's own json writes NaN for a missing float, so clients send it; it counts as null.
    if name == "NaN":
        return math.nan
    raise fail(f"{name} is not a JSON number", "send a finite number, or null where the column may be missing")


def _json(text: str) -> Any:
    if not text.strip():
        raise fail("the body is empty", FORM_HINT)
    try:
        return json.loads(text, parse_constant=_constant)
    except RecursionError:
        raise
    except json.JSONDecodeError as error:
        raise fail(f"the body is not JSON: {error.msg} at line {error.lineno} column {error.colno}") from None
    except ValueError as error:  # for example an integer of more than 4300 digits
        raise fail(f"the body is not JSON that can be read: {str(error).split(';')[0][:100]}") from None


def document_to_score(signature: Signature, document: Any) -> bytes:
    """The SCORE body for a JSON document in one of MLflow's forms.

    Raises:
        ParameterError: it does not fit the signature.
    """
    if not isinstance(document, dict):
        raise fail(f"the body is {describe(document)}, not an object", FORM_HINT)
    forms = [key for key in document if key in FORMS]
    others = [key for key in document if key not in FORMS and key != "params"]
    if len(forms) != 1 or others:
        what = f"unknown field {quote(others[0])}" if others else f"{len(forms)} input forms in one body"
        if not document:
            what = "the body is an empty object"
        raise fail(what, FORM_HINT)
    params = check_params(signature.params, document.get("params"))
    form, data = forms[0], document[forms[0]]
    if signature.type_hint:
        return _raw(signature, form, data, params)
    if form == "dataframe_split":
        names, rows = _split(data)
        return _from_rows(signature, names, rows, params)
    if form == "dataframe_records":
        return _from_rows(signature, *_records(signature, form, data), params)
    return _open_form(signature, form, data, params)


def _split(data: Any) -> tuple[list[Any] | None, list[Any]]:
    if not isinstance(data, dict) or "data" not in data or not set(data) <= {"columns", "data", "index"}:
        raise fail("dataframe_split must be an object with columns and data (and perhaps index)")
    names, rows = data.get("columns"), data["data"]
    if names is not None and not isinstance(names, list):
        raise fail(f"dataframe_split: columns is {describe(names)}, not a list")
    if not isinstance(rows, list):
        raise fail(f"dataframe_split: data is {describe(rows)}, not a list of rows")
    width = None if names is None else len(names)
    _check_rows(rows, width, "dataframe_split")
    return names, rows


def _check_rows(rows: list[Any], width: int | None, form: str) -> None:
    if not rows:
        raise fail(f"{form}: there is no row in it")
    if not set(map(type, rows)) <= {list}:
        at, bad = next((i, r) for i, r in enumerate(rows) if type(r) is not list)
        raise fail(f"{form}: row {at} is {describe(bad)}, not a list")
    width = len(rows[0]) if width is None else width
    if set(map(len, rows)) != {width}:
        at, bad = next((i, r) for i, r in enumerate(rows) if len(r) != width)
        raise fail(f"{form}: row {at} has {len(bad)} values, expected {width}")


def _records(signature: Signature, form: str, data: Any) -> tuple[list[Any], list[Any]]:
    if not isinstance(data, list) or not set(map(type, data)) <= {dict}:
        raise fail(f"{form} must be a list of objects, one for each row")
    if not data:
        raise fail(f"{form}: there is no row in it")
    # Optional columns may be absent in some rows only; the others must be in every one.
    optional = {c.name for c in signature.columns if not c.required}
    names: dict[Any, None] = {}
    for record in data:
        if record.keys() != names.keys():
            names.update(dict.fromkeys(record))
    wanted = list(names)
    if all(record.keys() == names.keys() for record in data):
        if len(wanted) > 1:
            return wanted, list(map(itemgetter(*wanted), data))
        return wanted, [list(record.values()) for record in data]
    if signature.named:
        _check_names(signature, wanted)
    for row, record in enumerate(data):
        for name in wanted:
            if name not in record and name not in optional:
                raise fail(f"column {quote(name)} is missing in row {row}", column=name[:80], row=row)
    return wanted, [[record.get(name) for name in wanted] for record in data]


def _open_form(signature: Signature, form: str, data: Any, params: dict[str, Any]) -> bytes:
    """``instances`` and ``inputs``: rows, columns or tensors, as the signature says."""
    inputs = signature.columns or signature.tensors
    if isinstance(data, list) and data and set(map(type, data)) == {dict} and signature.named:
        return _from_rows(signature, *_records(signature, form, data), params)
    if isinstance(data, dict):
        if not signature.named:
            raise fail(f"{form} is an object, but the model's input has no name", "send a list")
        return _from_columns(signature, form, data, params)
    if signature.tensors:
        if len(inputs) > 1:
            raise fail(f"{form} must be an object that names the inputs", _known(signature))
        return _tensors(signature, [data], params)
    if len(inputs) == 1:
        # One column: a list of its values, or one value alone.
        values = data if isinstance(data, list) else [data]
        if signature.columns[0].type == "array" and list not in map(type, values):
            values = [values]  # as in MLflow: a flat list is one value of type array
        if signature.columns[0].type not in ("array", "any") and values and set(map(type, values)) == {list}:
            _check_rows(values, 1, form)
            values = [row[0] for row in values]
        return _columns(signature, [values], params)
    if not isinstance(data, list):
        raise fail(f"{form} is {describe(data)}, expected a list of rows", FORM_HINT)
    if signature.named:
        raise fail(f"{form}: the rows must be objects that name the columns", _known(signature))
    _check_rows(data, None, form)
    return _from_rows(signature, None, data, params)


def _from_columns(signature: Signature, form: str, data: dict[str, Any], params: dict[str, Any]) -> bytes:
    if signature.tensors:
        _check_names(signature, list(data))
        return _tensors(signature, [data[str(t.name)] for t in signature.tensors], params)
    nested = any(c.type in ("array", "object", "map") for c in signature.columns)
    if nested or not any(isinstance(v, list) for v in data.values()):
        # As in MLflow: with nested types, or values alone, the object is one row.
        data = {name: [value] for name, value in data.items()}
    _check_names(signature, list(data))
    for name, values in data.items():
        if not isinstance(values, list):
            raise fail(f"column {quote(name)}: expected a list of values, got {describe(values)}")
    lengths = {len(v) for v in data.values()}
    if len(lengths) > 1:
        name = next(n for n, v in data.items() if len(v) != max(lengths))
        raise fail(f"{form}: columns of different lengths ({quote(name)} has {len(data[name])}, others {max(lengths)})")
    return _columns(signature, [data.get(str(c.name)) for c in signature.columns], params)


def _raw(signature: Signature, form: str, data: Any, params: dict[str, Any]) -> bytes:
    if form != "inputs":
        raise fail(f"this model takes its input in the field inputs, not {form}", 'send {"inputs": [...]}')
    if not isinstance(data, list):
        raise fail(f"inputs is {describe(data)}, expected a list", 'send {"inputs": [...]}')
    if not data:
        raise fail("inputs: there is no row in it")
    if len(signature.columns) == 1 and signature.columns[0].name is None:
        packed, values = check_column(signature.columns[0], data)
        data = data if packed is not None else values
    return frames.pack_score({"form": "raw", "rows": len(data), "values": data, "params": params})


# -- CSV ----------------------------------------------------------------------


def _csv(signature: Signature, text: str) -> bytes:
    params = check_params(signature.params, None)
    if signature.type_hint or len(signature.tensors) > 1:
        raise UnsupportedMedia("this model's input cannot be a CSV", "send Content-Type: application/json")
    try:
        lines = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except csv.Error as error:
        raise fail(f"the body is not CSV: {error}") from None
    if len(lines) < 2:
        raise fail("the CSV has no row below its header", "the first line names the columns")
    names, rows = lines[0], lines[1:]
    _check_rows(rows, len(names), "csv")
    if signature.tensors:
        tensor = signature.tensors[0]
        kind = "double" if tensor.dtype.startswith("float") else "long" if "int" in tensor.dtype else "string"
        return _tensors(signature, [[[_cell(v, kind) for v in row] for row in rows]], params)
    types: dict[Any, str] = {c.name: c.type for c in signature.columns}
    if signature.named:
        _check_names(signature, names)
        kinds = [types[name] for name in names]
    else:
        kinds = [c.type for c in signature.columns] if len(names) == len(signature.columns) else ["string"] * len(names)
    parsed = [[_cell(value, kind) for value, kind in zip(row, kinds, strict=True)] for row in rows]
    return _from_rows(signature, list(names), parsed, params)


def _cell(text: str, kind: str) -> Any:
    """What a CSV cell says in a column of this type; text that does not fit stays text and is refused as such."""
    if kind in ("string", "binary", "datetime"):
        return text if text or kind == "string" else None
    plain = text.strip()
    if not plain or plain.lower() in ("nan", "na", "null", "none"):
        return None
    if kind == "boolean":
        return {"true": True, "false": False, "1": True, "0": False}.get(plain.lower(), text)
    if kind in CODES:
        try:
            if "_" in plain or len(plain) > 400:
                return text
            return int(plain) if plain.lstrip("+-").isdigit() else float(plain)
        except ValueError:
            return text
    try:
        return json.loads(plain)
    except (ValueError, RecursionError):
        return text


# -- to the scorer ------------------------------------------------------------


def _known(signature: Signature) -> str:
    inputs: tuple[Column | Tensor, ...] = signature.columns or signature.tensors
    names = [quote(i.name) for i in inputs]
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"the model's inputs are {shown}"


def _check_names(signature: Signature, names: Sequence[Any]) -> None:
    """Every required input is there, none is there twice, none is unknown."""
    inputs: tuple[Column | Tensor, ...] = signature.columns or signature.tensors
    known = {i.name for i in inputs}
    given = {n for n in names if isinstance(n, str)}
    word = "column" if signature.columns else "input"
    missing = [str(i.name) for i in inputs if i.name not in given and getattr(i, "required", True)]
    unknown = [n for n in names if not isinstance(n, str) or n not in known]
    if missing or unknown:
        parts, hint = [], ""
        for title, which in (("missing", missing), ("unknown", unknown)):
            if which:
                more = f" and {len(which) - 5} more" if len(which) > 5 else ""
                shown = ", ".join(quote(n) for n in which[:5]) + more
                parts.append(f"{title} {word}{'s' if len(which) > 1 else ''} {shown}")
        if unknown and len(known) <= 2000 and isinstance(unknown[0], str) and len(unknown[0]) <= 100:
            near = difflib.get_close_matches(unknown[0], [str(n) for n in missing or known], 1)
            hint = f"did you mean {quote(near[0])}?" if near else ""
        raise fail("; ".join(parts), hint or _known(signature), missing=missing[:20],
                   unknown=[str(n)[:80] for n in unknown[:20]])
    if len(given) != len(names):
        twice = next(n for i, n in enumerate(names) if n in names[:i])
        raise fail(f"{word} {quote(twice)} is given twice")


def _from_rows(signature: Signature, names: list[Any] | None, rows: list[Any], params: dict[str, Any]) -> bytes:
    """Rows of equal length, under ``names`` when these matter."""
    if signature.tensors:
        return _tensors(signature, _rows_as_tensors(signature, names, rows), params)
    columns = signature.columns
    if not signature.named:
        if len(rows[0]) != len(columns):
            raise fail(f"the rows have {len(rows[0])} values, the model takes {len(columns)} columns")
        order = list(range(len(columns)))
    else:
        if names is None:
            raise fail("the columns are not named", _known(signature))
        _check_names(signature, names)
        place = {name: i for i, name in enumerate(names)}
        order = [place.get(c.name, -1) for c in columns]
    if signature.one_type:
        if order != list(range(len(order))):
            pick = itemgetter(*order)
            rows = [pick(row) for row in rows]
            order = list(range(len(order)))
        packed = pack_block(signature.one_type, list(chain.from_iterable(rows)))
        if packed is not None:
            return frames.pack_score(block_header(signature.one_type, len(columns), params), (packed,))
    turned = list(zip(*rows, strict=True))
    return _columns(signature, [None if at < 0 else list(turned[at]) for at in order], params)


def _columns(signature: Signature, columns: list[list[Any] | None], params: dict[str, Any]) -> bytes:
    """Values by column, in the signature's order; None for an optional column that was left out."""
    rows = next((len(values) for values in columns if values is not None), 0)
    if not rows:
        raise fail("there is no row in it")
    blocks = []
    for column, values in zip(signature.columns, columns, strict=True):
        if values is not None:
            packed, plain = check_column(column, values)
            blocks.append(((column,), column.type, packed, plain))
    return _frame(signature, rows, blocks, params)


@lru_cache(maxsize=256)
def _block_header(kind: str, width: int) -> bytes:
    return json.dumps({"form": "block", "code": CODES[kind], "width": width}, separators=(",", ":")).encode("ascii")


def block_header(kind: str, width: int, params: dict[str, Any] | None = None) -> bytes:
    """The header of rows of ``width`` numbers of one type."""
    plain = _block_header(kind, width)
    if not params:
        return plain
    return json.dumps({**json.loads(plain), "params": params}, separators=(",", ":")).encode("ascii")


def tensor_header(tensor: Tensor, params: dict[str, Any] | None = None) -> bytes:
    """The header of a numeric tensor whose first dimension is the rows."""
    inner = list(tensor.shape[1:])
    header: dict[str, Any] = {"form": "tensor", "name": tensor.name, "dtype": tensor.dtype, "inner": inner,
                              "code": TENSOR_CODES[tensor.dtype], "count": math.prod(inner)}
    if params:
        header["params"] = params
    return json.dumps(header, separators=(",", ":")).encode("ascii")


def _frame(signature: Signature, rows: int, blocks: Sequence[tuple[Any, ...]], params: dict[str, Any]) -> bytes:
    heads: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for columns, kind, packed, plain in blocks:
        head: dict[str, Any] = {"type": kind, "names": [c.name for c in columns] if signature.named else None,
                                "width": len(columns)}
        if packed is None:
            head["values"] = plain
        else:
            head["code"], head["size"] = CODES[kind], len(packed)
            blobs.append(packed)
        heads.append(head)
    return frames.pack_score({"form": "frame", "rows": rows, "blocks": heads, "params": params}, blobs)


def _rows_as_tensors(signature: Signature, names: list[Any] | None, rows: list[Any]) -> list[Any]:
    """A DataFrame for a tensor model: its matrix for the one unnamed input, else one column for each named input."""
    if signature.named:
        if names is None:
            raise fail("the inputs are not named", _known(signature))
        _check_names(signature, names)
        return [_reshaped([row[names.index(t.name)] for row in rows], t) for t in signature.tensors]
    tensor = signature.tensors[0]
    if len(rows[0]) == 1 and (isinstance(rows[0][0], list) or len(tensor.shape) == 1):
        return [_reshaped([row[0] for row in rows], tensor)]
    return [[list(row) for row in rows]]


def _reshaped(cells: list[Any], tensor: Tensor) -> list[Any]:
    """As MLflow does: a flat list in a cell is a whole tensor of the signature's inner shape, when its length fits."""
    inner = tensor.shape[1:]
    if len(inner) == 1 and inner[0] in (1, -1) and not isinstance(cells[0], list):
        return [[cell] for cell in cells]
    if len(inner) < 2 or -1 in inner:
        return cells
    size = math.prod(inner)

    def shaped(values: list[Any], dims: tuple[int, ...]) -> list[Any]:
        if len(dims) == 1:
            return values
        step = len(values) // dims[0]
        return [shaped(values[i * step : (i + 1) * step], dims[1:]) for i in range(dims[0])]

    def flat(cell: Any) -> bool:
        return isinstance(cell, list) and 0 < len(cell) == size and not isinstance(cell[0], list)

    return [shaped(cell, inner) if flat(cell) else cell for cell in cells]


def _tensors(signature: Signature, values: list[Any], params: dict[str, Any]) -> bytes:
    heads: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    rows = 0
    for tensor, value in zip(signature.tensors, values, strict=True):
        shape, packed, plain = check_tensor(tensor, value)
        if packed is not None and len(signature.tensors) == 1 and shape and 0 not in shape:
            return frames.pack_score(tensor_header(replace(tensor, shape=shape), params), (packed,))
        head: dict[str, Any] = {"name": tensor.name, "dtype": tensor.dtype, "shape": list(shape)}
        if packed is None:
            head["values"] = plain
        else:
            head["size"] = len(packed)
            head["code"] = {"float16": "d"}.get(tensor.dtype, "")
            blobs.append(packed)
        rows = rows or (shape[0] if shape else 1)
        heads.append(head)
    header = {"form": "tensors", "rows": rows, "tensors": heads, "params": params}
    return frames.pack_score(header, blobs)
