"""What a captured request and its answer are made of, taken apart for a table."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from ..runtime import frames
from .segments import Captured

#: Forms of a request that have a row for each row; what a script gets is one, whatever it is.
FORMS = ("block", "frame", "tensor", "tensors", "raw")


def form_of(call: Captured) -> str:
    """The form of a request's body: ``frame``, ``tensors``, ``raw``, or another for what a script gets."""
    if call.body is None:
        return ""
    if call.raw:
        return "script"
    try:
        return str(frames.unpack_score(call.body)[0].get("form"))
    except frames.FrameError:
        return ""


class Body:
    """A SCORE body taken apart: ``layout`` is (form, (names, shape, dtype or None for plain values), …)."""

    def __init__(self, call: Captured, known: bool, names: tuple[str, ...] = ()) -> None:
        self.rows, self.params = 1, None
        self.layout: tuple[Any, ...] = ("none",)
        self.data: list[Any] = []
        if call.body is None or (call.raw and known):
            self._by_answer(call, known)
            return
        if call.raw:
            self.layout, self.data = ("text",), [_text(call.body)]
            return
        try:
            header, blob = frames.unpack_score(call.body)
            self.params = header.get("params")
            self._take(header, blob, known, names)
        except (frames.FrameError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError):
            self.layout, self.data = ("none",), []
            self._by_answer(call, known)

    def _by_answer(self, call: Captured, known: bool) -> None:
        answer = answer_of(call.answer) if known else None
        self.rows = len(answer) if isinstance(answer, list) and answer else 1

    def _take(self, header: dict[str, Any], blob: memoryview, known: bool, names: tuple[str, ...]) -> None:
        form = header.get("form") if known else "script"
        self.rows = max(0, int(header.get("rows", 1)))
        if form in ("block", "tensor"):
            self._numbers(header, blob, names)
        elif form == "raw":
            values = list(header["values"])
            if len(values) != self.rows:
                raise ValueError("other rows than told")
            self.layout, self.data = ("raw", (("",), (), None)), [values]
        elif form == "frame":
            self._blocks(header["blocks"], blob)
        elif form == "tensors":
            self._tensors(header["tensors"], blob)
        else:
            rest = {k: v for k, v in header.items() if k not in ("form", "rows", "params", "size")}
            self.rows = 1
            self.layout, self.data = ("text",), [_text(bytes(blob)) if len(blob) else json.dumps(rest)]

    def _numbers(self, header: dict[str, Any], blob: memoryview, names: tuple[str, ...]) -> None:
        """One matrix whose columns are the signature's, or one tensor: the header has no number of rows."""
        dtype = np.dtype(header["code"])
        block = header["form"] == "block"
        width = int(header["width"] if block else header["count"])
        self.rows, rest = divmod(len(blob), width * dtype.itemsize)
        if rest or not self.rows or (block and width != len(names)):
            raise ValueError("numbers of another size")
        if block:
            self.layout = ("frame", (names, (), dtype.str))
        else:
            name = "input" if header["name"] is None else str(header["name"])
            self.layout = ("tensors", ((name,), tuple(map(int, header["inner"])), dtype.str))
        self.data = [bytes(blob)]

    def _blocks(self, blocks: list[dict[str, Any]], blob: memoryview) -> None:
        parts: list[Any] = []
        offset = position = 0
        several = sum(int(b["width"]) for b in blocks) > 1
        for block in blocks:
            width = int(block["width"])
            names = tuple(map(str, block["names"] or (range(position, position + width) if several else ("input",))))
            position += width
            if "size" in block:
                size = int(block["size"])
                data: Any = bytes(blob[offset : offset + size])
                offset += size
                dtype = np.dtype(block["code"])
                if len(data) != self.rows * width * dtype.itemsize:
                    raise ValueError("a block of another size")
                parts.append((names, (), dtype.str))
            else:
                data = block["values"]
                if len(data) != self.rows:
                    raise ValueError("a column of another length")
                parts.append((names, (), None))
            self.data.append(data)
        self.layout = ("frame", *parts)

    def _tensors(self, tensors: list[dict[str, Any]], blob: memoryview) -> None:
        parts: list[Any] = []
        offset = 0
        for tensor in tensors:
            shape = [int(n) for n in tensor["shape"]]
            size = int(tensor.get("size") or 0)
            data: Any = bytes(blob[offset : offset + size])
            offset += size
            rows = shape[0] if shape else 1
            if rows != self.rows:
                continue  # of other rows than the rest: there is no row to write it to
            name = str(tensor["name"] if tensor.get("name") is not None else "input")
            if "size" in tensor:
                dtype = np.dtype("int8" if tensor["dtype"] == "bool" else tensor.get("code") or tensor["dtype"])
                if len(data) != math.prod(shape) * dtype.itemsize:
                    raise ValueError("a tensor of another size")
                parts.append(((name,), tuple(shape[1:]), dtype.str))
            else:
                data = _nested(list(tensor["values"]), shape)
                if len(data) != rows:
                    raise ValueError("a tensor of another size")
                parts.append(((name,), tuple(shape[1:]), None))
            self.data.append(data)
        self.layout = ("tensors", *parts)


def answer_of(text: bytes | None) -> Any:
    """What was predicted, without what is around it."""
    if text is None:
        return None
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(answer, dict) and "predictions" in answer:
        return answer["predictions"]
    outputs = answer.get("outputs") if isinstance(answer, dict) else None
    if isinstance(outputs, list) and outputs and all(isinstance(o, dict) and "datatype" in o for o in outputs):
        named = {str(o.get("name")): _nested(o["data"], o["shape"]) for o in outputs
                 if isinstance(o.get("data"), list) and isinstance(o.get("shape"), list)}
        return next(iter(named.values())) if len(named) == 1 else named
    return answer


def _text(data: bytes) -> str:
    """A body as JSON text: as it came when it is JSON, else as a JSON string."""
    text = data.decode("utf-8", "replace")
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return json.dumps(text)
    return text


def _nested(flat: list[Any], shape: list[int]) -> list[Any]:
    for length in reversed(shape[1:]):
        flat = [flat[i : i + length] for i in range(0, len(flat), length)] if length else []
    return flat
