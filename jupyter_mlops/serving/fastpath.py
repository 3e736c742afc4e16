"""The quick way from a body to its canonical form, for the bodies that most callers send.

Numbers go from JSON text to one block of bytes inside simdjson, with their types checked, and never become Python
objects. It takes only what it is sure of: named columns of one type as ``dataframe_split`` in the signature's order, or
one tensor as ``inputs`` or ``instances``. Everything else, also everything that is wrong, is left to
:mod:`~jupyter_mlops.serving.payload`, whose messages say what. It gives the same bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from ..runtime import frames
from .payload import block_header, tensor_header
from .signature import Signature, Tensor

try:
    import simdjson
except ImportError:  # a platform without its wheels
    simdjson = None  # type: ignore[assignment]

Fast = Callable[[bytes], "bytes | None"]


def fast_path(signature: Signature) -> Fast | None:
    """A function from a JSON body to its canonical form, or to None for "see for yourself"; None when there is none."""
    if simdjson is None or signature.type_hint or any(p.default is None for p in signature.params):
        return None
    if signature.params:
        return None  # their defaults travel with each request
    if signature.one_type in ("double", "long") and signature.named:
        return _Block(signature)
    if len(signature.tensors) == 1:
        tensor = signature.tensors[0]
        if tensor.dtype in ("float64", "float32", "int64") and tensor.shape[:1] == (-1,) and -1 not in tensor.shape[1:]:
            return _Tensor(tensor)
    return None


class _Path:
    """One simdjson parser, which is used anew for each body."""

    def __init__(self) -> None:
        self.parser = simdjson.Parser()

    def __call__(self, body: bytes) -> bytes | None:
        try:
            return self.take(body)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError):
            return None  # not as expected, or not JSON
        except RuntimeError:  # a number of more than 64 bits, or a document that is still looked at
            self.parser = simdjson.Parser()
            return None

    def take(self, body: bytes) -> bytes | None:
        raise NotImplementedError


class _Block(_Path):
    def __init__(self, signature: Signature) -> None:
        super().__init__()
        assert signature.one_type is not None
        names = [c.name for c in signature.columns]
        self.width = len(names)
        self.header = block_header(signature.one_type, self.width)
        self.kind = {"double": "d", "long": "i"}[signature.one_type]
        document: Any = simdjson.Parser().parse(json.dumps(names).encode("ascii"))
        minified = document.mini
        self.columns = bytes(minified, "utf-8") if isinstance(minified, str) else bytes(minified)
        self.brackets = self.columns.count(b"[")
        #: A bracket may be written as an escape, which the count below does not see.
        self.plain = self.brackets == 1

    def take(self, body: bytes) -> bytes | None:
        document: Any = self.parser.parse(body)
        if len(document) != 1:
            return None
        split = document["dataframe_split"]
        if len(split) != 2:
            return None
        found = split["columns"].mini
        if (found.encode() if isinstance(found, str) else found) != self.columns:
            return None
        data = split["data"]
        rows = len(data)
        # simdjson flattens nested lists: as many brackets as there are lists, and each row of the right length.
        if not rows or not self.plain or body.count(b"[") != rows + 2:
            return None
        for row in data:
            if len(row) != self.width:
                return None
        block = bytes(data.as_buffer(of_type=self.kind))
        if len(block) != rows * self.width * 8:
            return None
        return frames.pack_score(self.header, (block,))


class _Tensor(_Path):
    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.tensor = tensor
        self.inner = tensor.shape[1:]
        self.count = math.prod(self.inner)
        self.header = tensor_header(tensor)
        #: Lists inside of one row, the row itself among them.
        self.lists = sum(math.prod(self.inner[:i]) for i in range(len(self.inner)))
        self.kind = "i" if tensor.dtype == "int64" else "d"
        if tensor.dtype == "float32":
            import numpy

            self.numpy = numpy

    def take(self, body: bytes) -> bytes | None:
        if not self.count:
            return None
        document: Any = self.parser.parse(body)
        if len(document) != 1:
            return None
        (form,) = document.keys()
        if form not in ("inputs", "instances"):
            return None
        data = document[form]
        if self.tensor.name is not None:
            if len(data) != 1 or "[" in self.tensor.name:
                return None
            data = data[self.tensor.name]
        rows = len(data)
        if not rows or body.count(b"[") != 1 + rows * self.lists or not _fits(data, self.inner):
            return None
        block = bytes(data.as_buffer(of_type=self.kind))
        if len(block) != rows * self.count * 8:
            return None
        if self.tensor.dtype == "float32":
            with self.numpy.errstate(over="ignore"):
                values = self.numpy.frombuffer(block).astype("float32")
            if self.numpy.isinf(values).any():
                return None
            block = values.tobytes()
        return frames.pack_score(self.header, (block,))


def _fits(data: Any, inner: tuple[int, ...]) -> bool:
    if not inner:
        return True
    deeper = inner[1:]
    return all(len(row) == inner[0] and (not deeper or _fits(row, deeper)) for row in data)
