"""The Open Inference Protocol, version 2, over REST: its documents to and from what a scorer takes and answers.

A request names tensors (``name``, ``shape``, ``datatype``, ``data``); it goes through the same checks as MLflow's forms
and ends as the same canonical SCORE body. How a model's inputs look here:

* a model of columns: one input for each column, ``[n]`` or ``[n, 1]``; or, when all columns have one type, one input
  of ``[n, columns]`` under any name;
* a model of tensors: one input for each, by name; what the signature does not name may have any name;
* columns of type array, object, map and any: BYTES, each element the JSON text of a value; an array also as ``[n, k]``.

``parameters`` of a request are the model's params. ``data`` is flat (row-major) or nested. The binary extension is
understood in requests; answers are JSON.
"""

from __future__ import annotations

import json
import math
from array import array
from typing import Any

import jupyter_mlops

from ..core.errors import MlopsError, ModelError, UnsupportedMedia
from ..runtime import frames
from .payload import _check_names, _columns, _constant, _known, _raw, _tensors, block_header
from .signature import CODES, NESTED, SCALARS, Column, Signature, Tensor, quote
from .tensors import CODES as TENSOR_CODES
from .tensors import REQUEST_HINT, Input, family, take_binary
from .values import _flatten, check_params, describe, fail, pack_block

_OF_COLUMN = {"boolean": "BOOL", "integer": "INT32", "long": "INT64", "float": "FP32", "double": "FP64"}
_OF_TENSOR = {
    "bool": "BOOL", "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64", "uint8": "UINT8",
    "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
}
#: Names that the protocol and its common clients put into ``parameters``; they are no params of a model.
_RESERVED = frozenset({
    "binary_data", "binary_data_output", "binary_data_size", "classification", "content_type", "headers", "priority",
    "sequence_end", "sequence_id", "sequence_start", "timeout",
})
#: The only output, or input, of a model that has no name for it.
OUTPUT, INPUT = "predictions", "input"


# -- metadata -------------------------------------------------------------------


def server_metadata() -> dict[str, Any]:
    """The answer to ``GET v2``."""
    return {"name": "jupyter-mlops", "version": jupyter_mlops.__version__, "extensions": []}


def model_metadata(name: str, versions: list[str], signature: Signature) -> dict[str, Any]:
    """The answer to ``GET v2/models/<name>``; -1 in a shape is any length."""
    return {"name": name, "versions": list(versions), "platform": "mlflow", "inputs": inputs_of(signature),
            "outputs": outputs_of(signature)}


def inputs_of(signature: Signature) -> list[dict[str, Any]]:
    """``{"name", "datatype", "shape"}`` of every input."""
    if signature.tensors:
        return [{"name": INPUT if t.name is None else t.name, "datatype": _OF_TENSOR.get(t.dtype, "BYTES"),
                 "shape": list(t.shape)} for t in signature.tensors]
    columns = signature.columns
    if not signature.named and len(columns) > 1 and _one_type(signature):
        return [{"name": INPUT, "datatype": _OF_COLUMN.get(columns[0].type, "BYTES"), "shape": [-1, len(columns)]}]
    return [{"name": column_name(c, at, len(columns)), "datatype": _OF_COLUMN.get(c.type, "BYTES"), "shape": [-1]}
            for at, c in enumerate(columns)]


def column_name(column: Column, at: int, count: int) -> str:
    """What a column is called here, also when the signature has no name for it."""
    return column.name if column.name is not None else INPUT if count == 1 else f"{INPUT}-{at}"


def outputs_of(signature: Signature | None) -> list[dict[str, Any]]:
    """``{"name", "datatype", "shape"}`` of every output that the signature tells; empty when it tells none."""
    found: list[dict[str, Any]] = []
    told = signature.document.get("outputs") if signature else None
    for item in told if isinstance(told, list) else []:
        if not isinstance(item, dict):
            return []
        spec = item.get("tensor-spec")
        shape = spec.get("shape") if isinstance(spec, dict) else [-1]
        if not isinstance(shape, list) or not all(type(n) is int for n in shape):
            shape = [-1]
        datatype = _OF_TENSOR.get(str(spec.get("dtype"))) if isinstance(spec, dict) else _OF_COLUMN.get(
            str(item.get("type")))
        name = item.get("name")
        found.append({"name": OUTPUT if name is None else str(name), "datatype": datatype or "BYTES", "shape": shape})
    if len(found) > 1 and len({o["name"] for o in found}) == 1:  # columns without names
        return [{"name": OUTPUT, "datatype": found[0]["datatype"], "shape": [-1, len(found)]}]
    return found


def error_body(error: MlopsError) -> dict[str, str]:
    """A failure as the protocol has it."""
    return {"error": f"{error.message} ({error.hint})" if error.hint else error.message}


def _one_type(signature: Signature) -> str | None:
    kinds = {c.type for c in signature.columns}
    return next(iter(kinds)) if len(kinds) == 1 and kinds <= set(SCALARS) else None


# -- a request ------------------------------------------------------------------


def read(body: bytes, content_type: str = "application/json", header_length: str = "") -> dict[str, Any]:
    """The request document in a body.

    Args:
        header_length: the header ``Inference-Header-Content-Length``: so many bytes are JSON, binary tensors follow;
            their values are put in the place of ``data``.

    Raises:
        ParameterError: it is none; the message says where.
        UnsupportedMedia: another content type.
    """
    media = content_type.partition(";")[0].strip().lower()
    if media not in ("", "application/json", "application/octet-stream"):
        raise UnsupportedMedia(f"{quote(media)} cannot be scored", "send Content-Type: application/json")
    tail = b""
    if header_length:
        if not (header_length.isascii() and header_length.isdigit()) or len(header_length) > 12:
            raise fail("Inference-Header-Content-Length is not a number")
        size = int(header_length)
        if size > len(body):
            raise fail(f"Inference-Header-Content-Length is {size}, but the body has {len(body)} bytes")
        body, tail = body[:size], body[size:]
    try:
        document = json.loads(body.decode("utf-8-sig"), parse_constant=_constant)
    except UnicodeDecodeError as error:
        raise fail(f"the body is not UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise fail("the body is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise fail(f"the body is not JSON: {error.msg} at line {error.lineno} column {error.colno}") from None
    except ValueError as error:  # for example an integer of more than 4300 digits
        raise fail(f"the body is not JSON that can be read: {str(error).split(';')[0][:100]}") from None
    if not isinstance(document, dict):
        raise fail(f"the body is {describe(document)}, not an object", REQUEST_HINT)
    if header_length:
        take_binary(document, tail)
    return document


def request_id(document: dict[str, Any]) -> str | None:
    """The caller's ``id``, to be told with the answer.

    Raises:
        ParameterError: it is no text of at most 256 characters.
    """
    given = document.get("id")
    if given is None:
        return None
    if type(given) is not str or len(given) > 256:
        raise fail("id: expected a text of at most 256 characters")
    return given


def wanted(document: dict[str, Any]) -> list[str]:
    """The names in ``outputs`` of a request; empty means all.

    Raises:
        ParameterError: not a list of objects with distinct names.
    """
    given = document.get("outputs")
    if given is None:
        return []
    if not isinstance(given, list):
        raise fail(f"outputs: expected a list, got {describe(given)}")
    names: list[str] = []
    for at, item in enumerate(given):
        if not isinstance(item, dict) or type(item.get("name")) is not str:
            raise fail(f"outputs[{at}]: expected an object with a name")
        names.append(item["name"])
    if len(set(names)) != len(names):
        raise fail(f"outputs: {quote(next(n for n in names if names.count(n) > 1))} is asked for twice")
    return names


def canonical(signature: Signature, document: Any) -> bytes:
    """The SCORE body for a request document.

    Raises:
        ParameterError: it is no request of the protocol, or does not fit the signature; the message names the input.
    """
    if not isinstance(document, dict):
        raise fail(f"the body is {describe(document)}, not an object", REQUEST_HINT)
    unknown = [key for key in document if key not in ("id", "parameters", "inputs", "outputs")]
    if unknown:
        raise fail(f"unknown field {quote(unknown[0])}", REQUEST_HINT)
    request_id(document)
    wanted(document)
    params = _params(signature, document.get("parameters"))
    given = document.get("inputs")
    if not isinstance(given, list) or not given:
        raise fail("inputs: expected a list of tensors" if given is None or isinstance(given, list)
                   else f"inputs: expected a list, got {describe(given)}", REQUEST_HINT)
    inputs = [Input(at, item) for at, item in enumerate(given)]
    try:
        if signature.type_hint:
            return _typed(signature, inputs, params)
        if signature.tensors:
            return _by_tensor(signature, inputs, params)
        return _by_column(signature, inputs, params)
    except RecursionError:
        raise fail("the body is nested too deeply") from None


def _params(signature: Signature, given: Any) -> dict[str, Any]:
    if isinstance(given, dict):
        known = {p.name for p in signature.params}
        given = {k: v for k, v in given.items() if k in known or k not in _RESERVED}
    try:
        return check_params(signature.params, given)
    except MlopsError as error:
        raise fail(error.message.replace("params:", "parameters:", 1), error.hint) from None


def _by_tensor(signature: Signature, inputs: list[Input], params: dict[str, Any]) -> bytes:
    tensors = signature.tensors
    if signature.named:
        _check_names(signature, [i.name for i in inputs])
        by_name = {i.name: i for i in inputs}
        chosen = [by_name[str(t.name)] for t in tensors]
    elif len(inputs) == 1:
        chosen = inputs
    else:
        raise fail(f"{len(inputs)} inputs are given, the model takes one")
    values = []
    for tensor, given in zip(tensors, chosen, strict=True):
        wants = _OF_TENSOR.get(tensor.dtype, "BYTES")
        if family(given.datatype) != family(wants) and tensor.dtype != "object":
            raise given.refuse(f"{wants} of shape {list(tensor.shape)}")
        if math.prod(given.shape) == 0:
            raise fail(f"{given.label}: there is no row in it")
        values.append(given.rows())
    return _tensors(signature, values, params)


def _by_column(signature: Signature, inputs: list[Input], params: dict[str, Any]) -> bytes:
    columns = signature.columns
    only = inputs[0] if len(inputs) == 1 else None
    if only is not None and len(columns) > 1 and len(only.shape) == 2 and (
        only.shape[1] > 1 or only.name not in {c.name for c in columns}
    ):
        return _matrix(signature, only, params)
    if signature.named:
        _check_names(signature, [i.name for i in inputs])
        by_name = {i.name: i for i in inputs}
        chosen = [by_name.get(str(c.name)) for c in columns]
    elif len(inputs) == len(columns):
        chosen = list(inputs)
    else:
        raise fail(f"{len(inputs)} inputs are given, the model takes {len(columns)} columns", _known(signature))
    rows = {i.shape[0] for i in inputs}
    if len(rows) > 1:
        odd = next(i for i in inputs if i.shape[0] != max(rows))
        raise fail(f"inputs of different lengths ({quote(odd.name)} has {odd.shape[0]}, others {max(rows)})")
    values = [None if given is None else _values(column, given) for column, given in zip(columns, chosen, strict=True)]
    return _columns(signature, values, params)


def _matrix(signature: Signature, given: Input, params: dict[str, Any]) -> bytes:
    """All columns in one input, in the signature's order."""
    kind, width = _one_type(signature), len(signature.columns)
    if kind is None:
        raise fail(f"{given.label}: the model's columns have different types, so each is an input of its own",
                   _known(signature))
    if given.shape[1] != width:
        raise fail(f"{given.label}: its rows have {given.shape[1]} values, the model takes {width} columns",
                   _known(signature))
    if not given.shape[0]:
        raise fail(f"{given.label}: there is no row in it")
    if kind in CODES and family(given.datatype) == "number" and signature.one_type:
        packed = pack_block(kind, given.values)
        if packed is not None:
            return frames.pack_score(block_header(kind, width, params), (packed,))
    split = [_values(column, given, given.values[at::width]) for at, column in enumerate(signature.columns)]
    return _columns(signature, list(split), params)


def _values(column: Column, given: Input, part: list[Any] | None = None) -> list[Any]:
    """One column's values; whether they fit is seen by ``check_column``."""
    kind, values = column.type, given.values if part is None else part
    flat = part is not None or len(given.shape) == 1 or (len(given.shape) == 2 and given.shape[1] == 1)
    wants = _OF_COLUMN.get(kind, "BYTES")
    if kind in ("array", "sparkml_vector") and given.datatype != "BYTES" and not flat:
        return given.rows()
    if not flat:
        raise given.refuse(f"{wants} of shape [n] or [n, 1]")
    if family(given.datatype) != family(wants):
        raise given.refuse(f"{wants} of shape [{'n, ' + str(given.shape[1]) if part is not None else 'n'}]")
    return _parsed(given, values) if kind in NESTED else values


def _parsed(given: Input, values: list[Any]) -> list[Any]:
    """BYTES whose elements are the JSON text of values."""
    parsed = []
    for at, text in enumerate(values):
        try:
            parsed.append(None if text is None else json.loads(text, parse_constant=_constant))
        except (ValueError, RecursionError):
            raise fail(f"{given.label}, value {at}: not the JSON text of a value") from None
    return parsed


def _typed(signature: Signature, inputs: list[Input], params: dict[str, Any]) -> bytes:
    """A model that checks its own input gets the values as they come; objects as their JSON text."""
    if len(inputs) != 1:
        raise fail(f"{len(inputs)} inputs are given, the model takes one")
    given = inputs[0]
    nested = any(c.type in NESTED for c in signature.columns) and given.datatype == "BYTES"
    return _raw(signature, "inputs", _parsed(given, given.values) if nested else given.rows(), params)


# -- the answer ----------------------------------------------------------------------


def answer(name: str, version: str, request_id: str | None, scores: Any, wanted: list[str] | None = None,
           signature: Signature | None = None) -> dict[str, Any]:
    """The answer of the protocol.

    Args:
        scores: what the scorer answered, ``{"predictions": …}`` as bytes, or its value.
        wanted: names of the outputs that are asked for; none means all.
        signature: gives outputs their names and datatypes where the answer itself has none.

    Raises:
        ParameterError: an output is asked for that the model does not have.
        ModelError: the answer cannot be read.
    """
    if isinstance(scores, (bytes, bytearray)):
        try:
            scores = json.loads(scores)
        except (ValueError, RecursionError):
            raise ModelError("the model's answer nests too deeply, or has numbers that are too long") from None
        if isinstance(scores, dict) and set(scores) == {"predictions"}:
            scores = scores["predictions"]
    declared = outputs_of(signature)
    outputs = [_output(key, value, declared) for key, value in _named(scores, declared).items()]
    if wanted:
        by_name = {o["name"]: o for o in outputs}
        for key in wanted:
            if key not in by_name:
                raise fail(f"outputs: the model has no output {quote(key)}",
                           "it has " + ", ".join(map(quote, list(by_name)[:8])))
        outputs = [by_name[key] for key in wanted]
    result: dict[str, Any] = {"model_name": name, "model_version": version, "outputs": outputs}
    if request_id is not None:
        result["id"] = request_id
    return result


def _named(scores: Any, declared: list[dict[str, Any]]) -> dict[str, Any]:
    """Outputs by name: the columns of a DataFrame, the entries of a mapping, else the one that there is."""
    if isinstance(scores, list) and scores and all(type(row) is dict for row in scores):
        keys: dict[str, None] = {}
        for row in scores:
            keys.update(dict.fromkeys(row))
        if keys:
            return {key: [row.get(key) for row in scores] for key in keys}
    if isinstance(scores, dict) and scores:
        return {key: value if isinstance(value, list) else [value] for key, value in scores.items()}
    only = declared[0]["name"] if len(declared) == 1 else OUTPUT
    return {only: scores if isinstance(scores, list) else [scores]}


def _output(name: str, value: list[Any], declared: list[dict[str, Any]]) -> dict[str, Any]:
    try:
        shape, flat = _flatten(value, Tensor(name, "", ()))
    except MlopsError:  # ragged: a list for each row
        shape, flat = (len(value),), list(value)
    wants = next((o["datatype"] for o in declared if o["name"] == name), "")
    datatype = _datatype(flat, wants)
    if datatype == "BYTES":
        flat = [v if v is None or type(v) is str else json.dumps(v, separators=(",", ":")) for v in flat]
    return {"name": name, "shape": list(shape), "datatype": datatype, "data": flat}


def _datatype(flat: list[Any], wants: str) -> str:
    """The declared datatype when the values fit it, else the one that they have; null among numbers is NaN."""
    kinds = set(map(type, flat))
    if not flat:
        return wants or "FP64"
    if kinds <= {bool}:
        return "BOOL"
    if kinds <= {int}:
        for candidate in (wants, "INT64", "UINT64"):
            if candidate[:1] in ("I", "U"):
                try:
                    array(TENSOR_CODES[candidate], flat)
                    return candidate
                except OverflowError:
                    continue
            if candidate.startswith("FP"):
                return candidate
        return "BYTES"
    if kinds <= {int, float, type(None)} and kinds != {type(None)}:
        return wants if wants in ("FP16", "FP32") else "FP64"
    return "BYTES"
