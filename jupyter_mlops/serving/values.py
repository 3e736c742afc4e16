"""Values of a request against a signature: what fits comes back in canonical form, what does not is named.

Stricter than MLflow where MLflow guesses: booleans and strings among numbers, fractions among integers, and missing
values where the type has none are errors that name column, row and type. Numbers come back as bytes, checked by a few
calls into C for a whole block; only when these fail is each value looked at, to find the one that is wrong.
"""

from __future__ import annotations

import base64
import binascii
import math
from array import array
from datetime import UTC, datetime
from itertools import chain
from typing import Any

from ..core.errors import ParameterError
from .signature import CODES, MAX_DEPTH, NESTED, SCALARS, TENSOR_CODES, TENSOR_TEXT, Column, Param, Tensor, quote

#: What a ``datetime64[ns]`` can hold.
_FIRST, _LAST = datetime(1677, 9, 22), datetime(2262, 4, 11)
_FLOAT16_MAX = 65504.0



class At:
    """The place of a value, put into words only when something is wrong there."""

    __slots__ = ("parts",)

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __str__(self) -> str:
        return "".join(map(str, self.parts))


class Index:
    """The index of a tensor's element from its place in the flat list."""

    __slots__ = ("at", "shape")

    def __init__(self, at: int, shape: tuple[int, ...]) -> None:
        self.at = at
        self.shape = shape

    def __str__(self) -> str:
        rest, index = self.at, []
        for length in reversed(self.shape):
            rest, at = divmod(rest, length)
            index.append(at)
        return str(index[::-1])


def fail(message: str, hint: str = "", **detail: Any) -> ParameterError:
    return ParameterError(message, hint, detail or None)


def pack_block(kind: str, values: list[Any]) -> bytes | None:
    """All of ``values`` as bytes when they are plain numbers of this type; None when a closer look is needed."""
    allowed = {int, float} if kind in ("double", "float") else {int}
    if not set(map(type, values)) <= allowed:
        return None
    try:
        packed = array(CODES[kind], values)
        # An infinity comes from a number such as 1e999; a sum finds it (and NaN) at a fraction of the cost of a loop,
        # which then tells it from very large numbers.
        if kind in ("double", "float") and not math.isfinite(sum(packed)) and not all(map(math.isfinite, packed)):
            return None
    except OverflowError:
        return None
    return packed.tobytes()


def check_column(column: Column, values: list[Any]) -> tuple[bytes | None, list[Any] | None]:
    """One column in canonical form: (bytes, None) for numbers, (None, values) for the rest.

    Raises:
        ParameterError: names the column, the row (counted from 0), what was expected and what came.
    """
    kind = column.type
    if kind in CODES:
        packed = pack_block(kind, values)
        if packed is None:
            convert = _float if kind in ("double", "float") else _integer
            canonical = [convert(v, kind, At(column.label, ", row ", row)) for row, v in enumerate(values)]
            packed = array(CODES[kind], canonical).tobytes()
        return packed, None
    if kind == "string" and set(map(type, values)) <= {str}:
        return None, values
    return None, [_value(v, column.spec, column.required, At(column.label, ", row ", row))
                  for row, v in enumerate(values)]


def check_tensor(tensor: Tensor, value: Any) -> tuple[tuple[int, ...], bytes | None, list[Any] | None]:
    """A nested list in canonical form: (shape, bytes, None), or (shape, None, flat values) for text.

    Raises:
        ParameterError: wrong or ragged shape, or a value of another type, with its index.
    """
    shape, flat = _flatten(value, tensor)
    wanted = tensor.shape
    if len(shape) != len(wanted) or any(w not in (-1, got) for w, got in zip(wanted, shape, strict=True)):
        raise fail(
            f"{tensor.label}: shape {_shape(shape)} does not match {_shape(wanted)} of the signature",
            "-1 stands for any length; a single row is still a list of one row",
            input=tensor.name, shape=list(shape), expected=list(wanted),
        )
    if shape and shape[0] == 0:
        raise fail(f"{tensor.label}: there is no row in it")

    def where(index: int) -> At:
        return At(tensor.label, ", at ", Index(index, shape))

    if tensor.dtype in TENSOR_TEXT:
        kind = {"datetime64": "datetime", "str": "string", "object": "any"}[tensor.dtype]
        return shape, None, [_value(v, {"type": kind}, True, where(i)) for i, v in enumerate(flat)]
    if tensor.dtype == "bool":
        if not set(map(type, flat)) <= {bool}:
            i, bad = next((i, v) for i, v in enumerate(flat) if type(v) is not bool)
            raise _wrong(where(i), "bool", bad)
        return shape, array("b", flat).tobytes(), None
    code = TENSOR_CODES[tensor.dtype]
    floating = code in "df"
    if set(map(type, flat)) <= ({int, float} if floating else {int}):
        try:
            packed = array(code, flat)
            limit = tensor.dtype == "float16" and flat and max(map(abs, packed)) > _FLOAT16_MAX
            if not floating or (math.isfinite(sum(packed)) and not limit):
                return shape, packed.tobytes(), None
        except OverflowError:
            pass
    convert = _float if floating else _integer
    values = [convert(v, tensor.dtype, where(i)) for i, v in enumerate(flat)]
    return shape, array(code, values).tobytes(), None


def check_params(params: tuple[Param, ...], given: Any) -> dict[str, Any]:
    """All parameters with their values: the given ones checked, the others by default.

    Raises:
        ParameterError: an unknown name, or a value of another type or shape.
    """
    if given is None:
        given = {}
    if not isinstance(given, dict):
        raise fail(f"params: expected an object, got {describe(given)}")
    known = {p.name: p for p in params}
    unknown = [name for name in given if name not in known]
    if unknown:
        which = ", ".join(map(quote, unknown[:5]))
        hint = "the model knows " + ", ".join(map(quote, known)) if known else "the model takes no params"
        raise fail(f"params: unknown {which}", hint, unknown=unknown[:20])
    return {name: _param(p, given[name]) if name in given else p.default for name, p in known.items()}


def _param(param: Param, value: Any) -> Any:
    if value is None:
        return None
    place = f"param {quote(param.name)}"
    spec = param.spec if param.type in NESTED else {"type": param.type}
    if param.type not in SCALARS + NESTED:
        return value
    if param.shape is None:
        return _value(value, spec, True, At(place))
    if not isinstance(value, list):
        raise _wrong(place, f"a list of {param.type}", value)
    if param.shape[0] not in (-1, len(value)):
        raise fail(f"{place}: {len(value)} values, expected {param.shape[0]}")
    return [_value(v, spec, True, At(place, "[", i, "]")) for i, v in enumerate(value)]


def _float(value: Any, kind: str, where: At) -> float:
    if value is None:
        return math.nan
    if type(value) is not float and type(value) is not int:
        raise _wrong(where, kind, value)
    try:
        result = float(value)
        if kind in ("float", "float32") and math.isfinite(result):
            result = array("f", [result])[0]
    except OverflowError:
        result = math.inf
    if math.isinf(result) or (kind == "float16" and abs(result) > _FLOAT16_MAX):
        raise fail(f"{where}: the number is too large for {kind}")
    return result


def _integer(value: Any, kind: str, where: At) -> int:
    if value is None or value != value:
        raise fail(f"{where}: missing value in a column of type {kind}", "integers have none: send a number, or log "
                   "the model with this column as double")
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int:
        raise _wrong(where, kind, value)
    try:
        array({**CODES, **TENSOR_CODES}[kind], [value])
    except OverflowError:
        raise fail(f"{where}: the number does not fit into {kind}") from None
    return int(value)


def _value(value: Any, spec: Any, required: bool, where: At, depth: int = 0) -> Any:
    """One value in canonical form, of any type."""
    kind = spec if isinstance(spec, str) else spec["type"]
    if depth > MAX_DEPTH:
        raise fail(f"{where}: nested more than {MAX_DEPTH} levels deep")
    if value is None or value != value:
        if kind in ("double", "float"):
            return None
        if kind in ("string", "datetime", "any") or (not required and kind != "boolean"):
            return None
        raise fail(f"{where}: missing value, expected {kind}")
    if kind in ("double", "float"):
        return _float(value, kind, where)
    if kind in ("integer", "long"):
        return _integer(value, kind, where)
    if kind == "boolean" and type(value) is bool:
        return value
    if kind == "string" and type(value) is str:
        return value
    if kind == "datetime" and type(value) is str:
        return _moment(value, where)
    if kind == "binary" and type(value) is str:
        try:
            return base64.b64encode(binascii.a2b_base64("".join(value.split()), strict_mode=True)).decode("ascii")
        except ValueError:
            raise fail(f"{where}: not base64") from None
    if kind in ("array", "sparkml_vector") and type(value) is list:
        item = spec["items"] if kind == "array" else "double"
        return [_value(v, item, required, At(where, "[", i, "]"), depth + 1) for i, v in enumerate(value)]
    if kind == "map" and type(value) is dict:
        return {k: _value(v, spec["values"], required, At(where, "[", quote(k), "]"), depth + 1)
                for k, v in value.items()}
    if kind == "object" and type(value) is dict:
        return _object(value, spec["properties"], where, depth)
    if kind == "any":
        _check_depth(value, where, depth)
        return value
    raise _wrong(where, kind, value)


def _object(value: dict[str, Any], known: dict[str, Any], where: At, depth: int) -> dict[str, Any]:
    for name, spec in known.items():
        if name not in value and (isinstance(spec, str) or spec.get("required", True)):
            raise fail(f"{where}: property {quote(name)} is missing")
    for name in value:
        if name not in known:
            raise fail(f"{where}: property {quote(name)} is not in the signature")
    return {name: _value(v, known[name], isinstance(known[name], str) or known[name].get("required", True),
                         At(where, ".", quote(name)), depth + 1) for name, v in value.items()}


def _check_depth(value: Any, where: At, depth: int) -> None:
    level = [value]
    while level := list(chain.from_iterable(
        v.values() if type(v) is dict else v for v in level if type(v) in (dict, list)
    )):
        depth += 1
        if depth > MAX_DEPTH:
            raise fail(f"{where}: nested more than {MAX_DEPTH} levels deep")


def _moment(value: str, where: At) -> str:
    try:
        moment = datetime.fromisoformat(value.strip()) if len(value) <= 64 else None
    except ValueError:
        moment = None
    if moment is None:
        raise fail(f"{where}: {quote(value)} is not an ISO 8601 date or time", "for example 2026-01-31T12:00:00")
    aware = moment.tzinfo is not None
    try:
        plain = moment.astimezone(UTC).replace(tzinfo=None) if aware else moment
    except OverflowError:
        plain = datetime.min
    if not _FIRST <= plain <= _LAST:
        raise fail(f"{where}: {quote(value)} is outside the years 1677 to 2262")
    return plain.isoformat()


def _flatten(value: Any, tensor: Tensor) -> tuple[tuple[int, ...], list[Any]]:
    """Shape and values of a nested list, level by level, so that no depth of nesting can exhaust the stack."""
    shape: list[int] = []
    level: list[Any] = [value]
    while level and all(type(v) is list for v in level):
        lengths = set(map(len, level))
        if len(lengths) != 1:
            raise fail(f"{tensor.label}: ragged, lists of {min(lengths)} and {max(lengths)} at level {len(shape)}")
        shape.append(lengths.pop())
        if len(shape) > MAX_DEPTH:
            raise fail(f"{tensor.label}: nested more than {MAX_DEPTH} levels deep")
        level = list(chain.from_iterable(level))
    if any(type(v) is list for v in level):
        raise fail(f"{tensor.label}: ragged, lists and values side by side at level {len(shape)}")
    return tuple(shape), level


def _shape(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"


def _wrong(where: At | str, expected: str, value: Any) -> ParameterError:
    hint = "send numbers without quotes" if type(value) is str and expected not in ("boolean", "bool") else ""
    return fail(f"{where}: expected {expected}, got {describe(value)}", hint)


def describe(value: Any) -> str:
    """A value of JSON in words, short enough for a message."""
    if value is None:
        return "null"
    if type(value) is bool:
        return "the boolean " + ("true" if value else "false")
    if type(value) is str:
        return "the string " + (quote(value) if len(value) <= 40 else quote(value[:40])[:-1] + "…'")
    if type(value) is int:
        return f"the integer {value}" if value.bit_length() < 100 else "a very large integer"
    if type(value) is float:
        return f"the number {value!r}"
    return "a list" if type(value) is list else "an object"
