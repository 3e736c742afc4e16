"""From the canonical form of requests to what a model's ``predict`` takes.

A request is a header and bytes (:func:`jupyter_mlops.runtime.frames.pack_score`). Forms:

    block    all columns of the signature have one numeric type: rows of it, one after the other
    frame    columns of several types: numeric ones as bytes, others as JSON
    tensor   one tensor, its first dimension being the rows
    tensors  several tensors, or one that is not numeric
    raw      the list of values as it came, for models that check their input by type hints
    script   the body as it came, for a scoring script

Requests whose headers are equal (and, for ``frame``, of equal columns) can be stacked: :func:`stack`.
"""

import json

from . import frames

#: Headers of which the parsed form is remembered. Those of the common forms are the same for all requests of a model.
REMEMBERED = 64


class Request:
    """One request as it came.

    Raises:
        frames.FrameError: it is none.
    """

    __slots__ = ("blob", "header", "rows", "text")

    def __init__(self, body, parse):
        self.text, self.blob = frames.split_score(body)
        self.header = header = parse(self.text)
        form = header["form"]
        self.rows = header.get("rows") or 1
        if form == "block":
            self.rows = len(self.blob) // (header["width"] * SIZES[header["code"]])
        elif form == "tensor":
            self.rows = len(self.blob) // (header["count"] * SIZES[header["code"]])

    def key(self):
        """Equal for those that can be stacked, None for one that cannot be. That of a frame takes a while to make."""
        form = self.header["form"]
        if form in ("block", "tensor"):
            return self.text
        if form == "frame":
            blocks = [(b["type"], tuple(b["names"] or ()), b["width"], "size" in b) for b in self.header["blocks"]]
            return json.dumps([blocks, self.header.get("params")]).encode()
        return None


SIZES = {"b": 1, "B": 1, "h": 2, "H": 2, "i": 4, "I": 4, "f": 4, "q": 8, "Q": 8, "d": 8}


class Parser:
    """Remembers parsed headers, by their bytes."""

    def __init__(self):
        self._known = {}

    def __call__(self, text):
        header = self._known.get(text)
        if header is None:
            header = frames.load_header(text)
            if len(text) < 4096 and header.get("form") in ("block", "tensor"):
                if len(self._known) >= REMEMBERED:
                    self._known.clear()
                self._known[text] = header
        return header


class Builder:
    """Makes a model's input.

    Args:
        names: column names of the signature, or None when they have none.
        wants: ``frame``, or ``array`` for a model that takes a block as an array just as well.
    """

    def __init__(self, names, wants="frame"):
        self.names = names
        self.wants = wants

    def __call__(self, requests):
        """(data, params) of one request, or of several with an equal key, stacked in their order."""
        header = requests[0].header
        params = header.get("params") or {}
        form = header["form"]
        if form == "block":
            return self._block(header, _joined(requests)), params
        if form == "tensor":
            return _tensor(header, _joined(requests)), params
        if form == "frame":
            return _frame(requests), params
        if form == "tensors":
            return _tensors(header["tensors"], requests[0].blob), params
        if form == "script":
            return str(requests[0].blob, "utf-8"), params
        return header["values"], params

    def _block(self, header, blob):
        import numpy as np

        values = np.frombuffer(blob, dtype=header["code"]).reshape(-1, header["width"])
        if self.wants == "array":
            return values
        import pandas as pd

        return pd.DataFrame(values, columns=self.names, copy=False)


def _joined(requests):
    """The bytes of all, in one buffer that a model may write into."""
    return bytearray().join([r.blob for r in requests])


def _tensor(header, blob):
    import numpy as np

    dtype = header["dtype"]
    values = np.frombuffer(blob, dtype="int8" if dtype == "bool" else header["code"])
    if values.dtype != dtype:
        values = values.astype(dtype)
    values = values.reshape([-1, *header["inner"]])
    return values if header["name"] is None else {header["name"]: values}


def _frame(requests):
    import numpy as np
    import pandas as pd

    parts = []  # type: list
    offsets = [0] * len(requests)
    rows = sum(r.rows for r in requests)
    for index, block in enumerate(requests[0].header["blocks"]):
        each = [r.header["blocks"][index] for r in requests]
        if "size" in block:
            pieces = []
            for i, (request, own) in enumerate(zip(requests, each)):
                pieces.append(request.blob[offsets[i]:offsets[i] + own["size"]])
                offsets[i] += own["size"]
            values = np.frombuffer(bytearray().join(pieces), dtype=block["code"])
        else:
            values = _column(block["type"], [v for own in each for v in own["values"]], np, pd)
        parts.append((block["names"][0] if block["names"] else len(parts), values))
    return pd.DataFrame(dict(parts), index=pd.RangeIndex(rows))


def _column(kind, values, np, pd):
    if kind == "boolean":
        return np.array(values, dtype=bool) if None not in values else pd.Series(values, dtype=object)
    if kind == "binary":
        return pd.Series([_unbase64(v) for v in values], dtype=object)
    return series(kind, values, np, pd)


def series(kind, values, np, pd):
    """A column of values that are no numbers; datetimes are ISO 8601 texts."""
    if kind == "datetime":
        return pd.to_datetime(pd.Series(values, dtype=object), format="ISO8601").astype("datetime64[ns]")
    if kind == "string" and any(v is not None for v in values):
        return pd.Series(values)
    column = np.empty(len(values), dtype=object)  # lists and dicts, which pandas must not look into
    for i, value in enumerate(values):
        column[i] = value
    return pd.Series(column, dtype=object)


def _unbase64(text):
    import base64

    return None if text is None else base64.b64decode(text)


def _tensors(tensors, blob):
    import numpy as np

    offset = 0
    result = {}
    for tensor in tensors:
        dtype = tensor["dtype"]
        if "size" in tensor:
            raw = "int8" if dtype == "bool" else tensor["code"] or dtype
            values = np.frombuffer(blob[offset:offset + tensor["size"]], dtype=raw).astype(dtype)
            offset += tensor["size"]
        elif dtype == "datetime64":
            values = np.array(["NaT" if v is None else v for v in tensor["values"]], dtype="datetime64[ns]")
        elif dtype == "object":
            values = np.empty(len(tensor["values"]), dtype=object)
            for i, value in enumerate(tensor["values"]):
                values[i] = value
        else:
            values = np.array(tensor["values"], dtype=str)
        result[tensor["name"]] = values.reshape(tensor["shape"])
    return result[None] if list(result) == [None] else result
