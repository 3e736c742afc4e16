"""The tensors in a request of the Open Inference Protocol: each with name, shape, datatype and data that agree.

``data`` is flat (row-major) or nested, or bytes behind the JSON (the protocol's binary extension).
"""

from __future__ import annotations

import base64
import math
import struct
import sys
from array import array
from typing import Any

from ..core.errors import MlopsError
from .signature import MAX_DEPTH, Tensor, quote
from .values import _flatten, describe, fail

#: Datatype → code in :mod:`array`; FP16 has none there.
CODES = {
    "BOOL": "b", "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q", "UINT8": "B", "UINT16": "H", "UINT32": "I",
    "UINT64": "Q", "FP32": "f", "FP64": "d",
}
LARGEST = {"FP16": 65504.0, "FP32": 3.4028234663852886e38}
DATATYPES = (*CODES, "FP16", "BYTES")
REQUEST_HINT = 'send {"inputs": [{"name": …, "shape": [n], "datatype": "FP64", "data": […]}]}'


class Input:
    """One tensor of a request, its values flat and checked against its own ``datatype`` and ``shape``."""

    def __init__(self, at: int, item: Any) -> None:
        place = f"inputs[{at}]"
        if not isinstance(item, dict):
            raise fail(f"{place}: expected an object, got {describe(item)}", REQUEST_HINT)
        name = item.get("name")
        if type(name) is not str:
            raise fail(f"{place}: name is missing" if name is None else f"{place}: name is {describe(name)}")
        self.name = name
        self.label = label = f"input {quote(name)}"
        unknown = [key for key in item if key not in ("name", "shape", "datatype", "data", "parameters")]
        if unknown:
            raise fail(f"{label}: unknown field {quote(unknown[0])}", REQUEST_HINT)
        datatype = item.get("datatype")
        if type(datatype) is not str or datatype not in DATATYPES:
            raise fail(f"{label}: datatype {'is missing' if datatype is None else quote(datatype)}",
                       "one of " + ", ".join(DATATYPES))
        self.datatype = datatype
        shape = item.get("shape")
        if not isinstance(shape, list) or not 1 <= len(shape) <= MAX_DEPTH or not all(
            type(n) is int and 0 <= n < 2**63 for n in shape
        ):
            raise fail(f"{label}: shape must be a list of lengths, such as [1, 4]")
        self.shape = tuple(shape)
        if "data" not in item:
            raise fail(f"{label}: data is missing", REQUEST_HINT)
        self.values = self._flat(item["data"])
        self._check()

    def _flat(self, data: Any) -> list[Any]:
        if not isinstance(data, list):
            raise fail(f"{self.label}: data is {describe(data)}, not a list")
        if list in set(map(type, data)):
            shape, flat = _flatten(data, Tensor(self.name, self.datatype, self.shape))
            if shape != self.shape:
                raise fail(f"{self.label}: data has the shape {list(shape)}, but shape says {list(self.shape)}")
            return flat
        size = math.prod(self.shape)
        if size != len(data):
            count = str(size) if size < 10**18 else "far more"
            raise fail(f"{self.label}: data has {len(data)} values, but its shape {list(self.shape)} asks for {count}")
        return data

    def _check(self) -> None:
        values, kinds = self.values, set(map(type, self.values))
        if self.datatype == "BYTES":
            allowed: set[type] = {str, type(None)}
        elif self.datatype == "BOOL":
            allowed = {bool, type(None)}
        elif self.datatype.startswith("FP"):
            allowed = {int, float, type(None)}
        else:
            allowed = {int}
            # Whole numbers may be written 3.0, as in our other forms.
            if float in kinds and all(type(v) is not float or v.is_integer() for v in values):
                self.values = values = [int(v) if type(v) is float else v for v in values]
                kinds = set(map(type, values))
        if not kinds <= allowed:
            at, bad = next((i, v) for i, v in enumerate(values) if type(v) not in allowed)
            hint = "integers have no missing values" if bad is None or bad != bad else ""
            raise fail(f"{self.label}, value {at}: expected {self.datatype}, got {describe(bad)}", hint)
        if self.datatype in LARGEST:
            limit = LARGEST[self.datatype]
            for at, value in enumerate(values):
                if value is not None and abs(value) > limit:
                    raise fail(f"{self.label}, value {at}: the number is too large for {self.datatype}")
        elif self.datatype[0] in "IU":
            code = CODES[self.datatype]
            try:
                array(code, values)
            except OverflowError:
                at = next(i for i, v in enumerate(values) if not _fits(code, v))
                raise fail(f"{self.label}, value {at}: the number does not fit into {self.datatype}") from None

    def rows(self) -> list[Any]:
        """The values as a list of rows: nested when the shape is."""
        return _nested(self.values, self.shape)

    def refuse(self, wanted: str) -> MlopsError:
        return fail(f"{self.label}: {self.datatype} of shape {list(self.shape)} does not fit, expected {wanted}")


def _fits(code: str, value: int) -> bool:
    try:
        array(code, [value])
    except OverflowError:
        return False
    return True


def _nested(values: list[Any], shape: tuple[int, ...]) -> list[Any]:
    for length in reversed(shape[1:]):
        if not length:
            return [[] for _ in range(shape[0])] if len(values) < shape[0] < 1_000_000 else []
        values = [values[at : at + length] for at in range(0, len(values), length)]
    return values


def family(datatype: str) -> str:
    return datatype if datatype in ("BYTES", "BOOL") else "number"


# -- binary tensors in a request -----------------------------------------------------


def take_binary(document: dict[str, Any], tail: bytes) -> None:
    """Put what follows the JSON, in the order of the inputs, into their ``data``."""
    offset = 0
    inputs = document.get("inputs")
    for at, item in enumerate(inputs if isinstance(inputs, list) else []):
        parameters = item.get("parameters") if isinstance(item, dict) else None
        size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
        if size is None:
            continue
        if type(size) is not int or not 0 <= size <= len(tail) - offset:
            raise fail(f"inputs[{at}]: binary_data_size does not fit the body")
        item["data"] = _unpacked(f"inputs[{at}]", str(item.get("datatype")), tail[offset : offset + size])
        offset += size
    if offset != len(tail):
        raise fail(f"the body has {len(tail) - offset} bytes that belong to no input")


def _unpacked(place: str, datatype: str, raw: bytes) -> list[Any]:
    if datatype == "BYTES":
        found, at = [], 0
        while at < len(raw):
            size = int.from_bytes(raw[at : at + 4], "little")
            if at + 4 + size > len(raw):
                raise fail(f"{place}: its binary data is cut off")
            piece = raw[at + 4 : at + 4 + size]
            try:
                found.append(piece.decode("utf-8"))
            except UnicodeDecodeError:
                # No text, so it is for a column of bytes, and these are base64 in all forms.
                found.append(base64.b64encode(piece).decode("ascii"))
            at += 4 + size
        return found
    if datatype == "FP16":
        if len(raw) % 2:
            raise fail(f"{place}: its binary data is cut off")
        return list(struct.unpack(f"<{len(raw) // 2}e", raw))
    code = CODES.get(datatype)
    if code is None:
        raise fail(f"{place}: datatype {quote(datatype)}", "one of " + ", ".join(DATATYPES))
    values = array(code)
    if len(raw) % values.itemsize:
        raise fail(f"{place}: its binary data is cut off")
    values.frombytes(raw)
    if sys.byteorder == "big":
        values.byteswap()
    return [bool(v) for v in values] if datatype == "BOOL" else values.tolist()
