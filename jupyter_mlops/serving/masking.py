"""Columns that must not be kept, taken out of a request and its answer before anything is written.

Only the standard library, because the gateway does this. A masked name means an input column, a named tensor, a
parameter, a property of a row that is an object, or a column of the answer; ``input`` is an input without a name,
``prediction`` the whole answer, ``prediction.x`` column ``x`` of it. What cannot be taken apart is left out whole.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

from ..runtime import frames

#: Codes of :mod:`array` by MLflow's names of their types.
_TYPES = {"i": "integer", "q": "long", "f": "float", "d": "double"}


def input_names(inputs: Sequence[dict[str, Any]]) -> list[str]:
    """What a signature's inputs are called: their names, else ``input``, or their places when there are several."""
    return [str(i["name"]) if i.get("name") is not None else "input" if len(inputs) == 1 else str(place)
            for place, i in enumerate(inputs)]


def mask_input(body: bytes, masked: Collection[str], names: Sequence[str] = (), raw: bool = False) -> bytes | None:
    """A SCORE body (or with ``raw`` the caller's JSON) without the masked columns; None when nothing may be kept.

    Args:
        names: of the signature's inputs in their order, which a block of numbers does not tell.
    """
    if raw:
        return _mask_json(body, masked)
    try:
        text, blob = frames.split_score(body)
        if text.startswith(b'{"form":"block"') and len(text) < 4096:
            return _cut_of(text, frozenset(masked), tuple(names))(blob)
        header = frames.load_header(text)
        form = header["form"]
        if form == "block":
            return _Cut(header, masked, names)(blob)
        if form == "tensor":
            inner = [len(blob) // (int(header["count"]) * array(header["code"]).itemsize), *header["inner"]]
            header = {"form": "tensors", "rows": inner[0], "params": header.get("params"), "tensors": [
                {"name": header["name"], "dtype": header["dtype"], "shape": inner, "code": header["code"],
                 "size": len(blob)}]}
        form = header["form"]
        if form == "frame":
            header["blocks"], blobs = _frame(header["blocks"], blob, header["rows"], masked)
        elif form == "tensors":
            header["tensors"], blobs = _tensors(header["tensors"], blob, masked)
        else:
            if "input" in masked:
                return None
            header = {k: v if k in ("form", "rows", "params") else _without(v, masked) for k, v in header.items()}
            rest = _mask_json(bytes(blob), masked) if len(blob) else b""  # a script's request, as it came
            if rest is None:
                return None
            blobs = [rest]
    except (frames.FrameError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError):
        return None
    params = header.get("params")
    header["params"] = {k: v for k, v in params.items() if k not in masked} if isinstance(params, dict) else {}
    return frames.pack_score(header, blobs)


class _Cut:
    """Takes columns out of blocks of one header, which a model's requests share; the result says the same as a frame.

    Raises:
        ValueError: the names are those of other columns.
    """

    def __init__(self, header: dict[str, Any], masked: Collection[str], names: Sequence[str]) -> None:
        self.width, self.code = int(header["width"]), str(header["code"])
        if len(names) != self.width:
            raise ValueError("other columns than the signature's")
        self.item = array(self.code).itemsize
        self.keep = [i for i, name in enumerate(names) if name not in masked]
        edges = [i for i in range(self.width) if i in self.keep and i - 1 not in self.keep]
        ends = [i + 1 for i in range(self.width) if i in self.keep and i + 1 not in self.keep]
        self.runs = [(a * self.item, b * self.item) for a, b in zip(edges, ends, strict=True)]
        params = {k: v for k, v in (header.get("params") or {}).items() if k not in masked}
        block = {"type": _TYPES[self.code], "names": [names[i] for i in self.keep], "width": len(self.keep),
                 "code": self.code}
        self.head = json.dumps({"form": "frame", "params": params})[:-1] + ', "blocks": ['
        self.block = json.dumps(block)[:-1] + ', "size": ' if self.keep else ""

    def __call__(self, blob: memoryview) -> bytes:
        """The SCORE body of what stays of a block."""
        line = self.width * self.item
        rows, rest = divmod(len(blob), line)
        if rest:
            raise ValueError("the block has another size")
        if rows * len(self.runs) <= len(self.keep):
            data = b"".join([blob[at + a : at + b] for at in range(0, len(blob), line) for a, b in self.runs])
        else:
            data = _columns(bytes(blob), self.code, rows, self.width, self.keep)
        block = f"{self.block}{len(data)}}}" if self.keep else ""
        return frames.pack_score(f'{self.head}{block}], "rows": {rows}}}'.encode("ascii"), (data,))


@lru_cache(maxsize=64)
def _cut_of(text: bytes, masked: frozenset[str], names: tuple[str, ...]) -> _Cut:
    """How to mask blocks with this header."""
    return _Cut(frames.load_header(text), masked, names)


def mask_output(answer: bytes, masked: Collection[str]) -> bytes | None:
    """An answer without the masked columns; None when nothing may be kept."""
    if "prediction" in masked:
        return None
    return _mask_json(answer, {name.removeprefix("prediction.") for name in masked})


def _mask_json(text: bytes, masked: Collection[str]) -> bytes | None:
    try:
        return json.dumps(_without(json.loads(text), masked), separators=(",", ":")).encode("ascii")
    except (ValueError, RecursionError):
        return None


def _without(value: Any, masked: Collection[str]) -> Any:
    if isinstance(value, dict):
        name = value.get("name")
        if isinstance(name, str) and name in masked and "datatype" in value:
            return {"name": name}  # a tensor of the Open Inference Protocol
        columns, data = value.get("columns"), value.get("data")
        if isinstance(columns, list) and isinstance(data, list):
            return {**value, **_split(columns, data, masked)}
        return {k: _without(v, masked) for k, v in value.items() if k not in masked}
    if isinstance(value, list):
        return [_without(v, masked) for v in value]
    return value


def _split(columns: list[Any], data: list[Any], masked: Collection[str]) -> dict[str, Any]:
    keep = [i for i, name in enumerate(columns) if str(name) not in masked]
    rows = [[_without(row[i], masked) for i in keep if i < len(row)] for row in data if isinstance(row, list)]
    return {"columns": [columns[i] for i in keep], "data": rows}


def _frame(blocks: list[dict[str, Any]], blob: memoryview, rows: int, masked: Collection[str]) -> Any:
    heads, blobs = [], []
    offset = position = 0
    if "input" in masked and len(blocks) == 1 and blocks[0]["width"] == 1 and not blocks[0]["names"]:
        return [], []  # the only column has no name
    for block in blocks:
        width, size = int(block["width"]), int(block.get("size") or 0)
        # Columns without a name are known by their place, which must outlive the removal of others.
        names = block["names"] or [str(position + i) for i in range(width)]
        data: bytes | memoryview = blob[offset : offset + size]
        offset += size
        position += width
        keep = [i for i, name in enumerate(names) if name not in masked]
        if not keep:
            continue
        head = {**block, "names": [names[i] for i in keep], "width": len(keep)}
        if "size" in block:
            if len(keep) < width:
                data = _columns(bytes(data), block["code"], rows, width, keep)
            head["size"] = len(data)
            blobs.append(data)
        elif width == 1:
            head["values"] = [_without(v, masked) for v in block["values"]]
        else:
            raise ValueError("values of several columns in one block")
        heads.append(head)
    return heads, blobs


def _columns(data: bytes, code: str, rows: int, width: int, keep: list[int]) -> bytes:
    """Some columns of a matrix that lies row by row."""
    values = array(code, data)
    if len(values) != rows * width:
        raise ValueError("the block has another size")
    result = array(code, bytes(rows * len(keep) * values.itemsize))
    for place, column in enumerate(keep):
        result[place :: len(keep)] = values[column::width]
    return result.tobytes()


def _tensors(tensors: list[dict[str, Any]], blob: memoryview, masked: Collection[str]) -> Any:
    heads, blobs = [], []
    offset = 0
    for tensor in tensors:
        size = int(tensor.get("size") or 0)
        data = blob[offset : offset + size]
        offset += size
        if (tensor["name"] or "input") in masked:
            continue
        if "values" in tensor:
            tensor = {**tensor, "values": [_without(v, masked) for v in tensor["values"]]}
        heads.append(tensor)
        if "size" in tensor:
            blobs.append(data)
    return heads, blobs
