"""From the rows of a mini-batch to what a model takes.

Each value is checked against the model's signature, as the gateway does with requests; a row that does not fit is left
out and told, the others go on. Columns that the signature does not know are not looked at.
"""

import csv
import io
import json
import math
import os

from .cells import ABSENT, Wrong, column, value_of
from .inputs import series
from .minibatch import BatchError
from .predictions import plain


def build(batch, files, about, wants, columns):
    """(data for ``predict``, numbers of the rows in it, ``[[row, message]]`` of those that are not).

    Args:
        batch: of :func:`.minibatch.read`.
        files: paths of the run's files.
        about: the model's ``model.json``.
        wants, columns: of the loaded :class:`.loading.Model`.

    Raises:
        BatchError: none of the file's rows can be used, for instance since a column is missing.
    """
    signature = about.get("signature") or {}
    inputs = signature.get("inputs") or []
    if "images" in batch:
        return _images([files[i] for i in batch["images"]], inputs)
    quick = _numbers(batch, inputs, wants) if "header" in batch and not signature.get("type_hint") else None
    if quick is not None:
        return quick, list(range(batch["rows"])), []
    names, given, bad, text = _given(batch)
    if signature.get("type_hint"):
        kept = [i for i in range(len(given)) if i not in bad]
        return [_single(given[i]) for i in kept], kept, _told(bad)
    if not inputs:
        return _document(names, given, bad, text)
    if inputs[0].get("type") == "tensor":
        return _tensors(names, given, bad, text, inputs)
    return _frame(names, given, bad, text, inputs, wants, columns)


def warm(about, wants):
    """Import what :func:`build` will need, so that it is not done in the time of the first mini-batch."""
    inputs = (about.get("signature") or {}).get("inputs") or []
    try:
        if inputs:
            import numpy  # noqa: F401
        if inputs and inputs[0].get("type") != "tensor" and wants != "array":
            import pandas  # noqa: F401
    except ImportError:
        pass  # told when it is needed


# -- what a mini-batch holds --------------------------------------------------


def _given(batch):
    """(names or None, rows as lists or single values, {row: message}, whether the values are text)."""
    if "header" in batch:
        return _from_csv(batch)
    bad = {}  # type: dict[int, str]
    if batch["kind"] == "parquet":
        import pyarrow as pa

        table = pa.ipc.open_stream(batch["data"]).read_all()
        columns = [column.to_pylist() for column in table.columns]
        return table.schema.names, [list(row) for row in zip(*columns)] if columns else [], bad, False
    found = []  # type: list
    for row, line in enumerate(batch["data"].split(b"\n")[:-1]):
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            bad[row] = "not JSON: %s" % str(error).splitlines()[0][:100]
            found.append(None)
    objects = [row for row in found if isinstance(row, dict)]
    if not objects:
        return None, found, bad, False
    names = {}  # type: dict[str, None]
    for entry in objects:
        names.update(dict.fromkeys(entry))
    rows = []
    for at, entry in enumerate(found):
        if not isinstance(entry, dict):
            bad.setdefault(at, "it is no JSON object as the others are")
            entry = {}
        rows.append([entry.get(name, ABSENT) for name in names])
    return list(names), rows, bad, False


def _from_csv(batch):
    bad = {}  # type: dict[int, str]
    delimiter = "\t" if batch["tab"] else ","
    csv.field_size_limit(2**31 - 1)
    try:
        names = next(csv.reader(io.StringIO(batch["header"].decode("utf-8"), newline=""), delimiter=delimiter))
    except UnicodeDecodeError:
        raise BatchError("its header is not UTF-8") from None
    text = batch["data"].decode("utf-8", "surrogateescape").replace("\0", "\udc00")
    strange = not text.isascii() and any("\udc00" <= c <= "\udcff" for c in text)
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]
    for at, row in enumerate(rows):
        if len(row) != len(names):
            bad[at] = "it has %d values, the header %d" % (len(row), len(names))
            rows[at] = [""] * len(names)
        elif strange and any("\udc00" <= c <= "\udcff" for value in row for c in value):
            bad[at] = "it is not UTF-8"
            rows[at] = [""] * len(names)
    if len(rows) != batch["rows"]:
        raise BatchError("its quotes do not fit together")
    return names, rows, bad, True


def _numbers(batch, inputs, wants):
    """A CSV of nothing but numbers at once, by pandas' parser; None when it needs a closer look."""
    data = batch["data"]
    if batch["tab"] or not all(c.get("type") in ("double", "float") and c.get("name") for c in inputs):
        return None
    if not inputs or data.translate(None, b"0123456789+-.eE,\r\n"):
        return None
    try:
        import pandas as pd

        names = next(csv.reader(io.StringIO(batch["header"].decode("utf-8"), newline="")))
        place = {name: at for at, name in enumerate(names)}
        order = [place[c["name"]] for c in inputs]
        lines = data.split(b"\n")[:-1]
        if len(lines) != batch["rows"] or any(line.count(b",") != len(names) - 1 for line in lines):
            return None
        exact = {} if int(pd.__version__.partition(".")[0]) >= 3 else {"float_precision": "round_trip"}
        frame = pd.read_csv(io.BytesIO(data), header=None, dtype="float64", skip_blank_lines=False, **exact)
    except (ImportError, ValueError, KeyError, StopIteration):
        return None
    values = frame.to_numpy()[:, order]
    if not abs(values[values == values]).max(initial=0.0) <= 3.4e38:  # else it may not fit into a float
        return None
    if wants == "array":
        if all(c["type"] == "float" for c in inputs):
            return values.astype("float32")
        for at, spec in enumerate(inputs):
            if spec["type"] == "float":
                values[:, at] = values[:, at].astype("float32")
        return values
    frame = pd.DataFrame(values, columns=[c["name"] for c in inputs])
    return frame.astype({c["name"]: "float32" for c in inputs if c["type"] == "float"})


def _told(bad):
    return [[row, bad[row]] for row in sorted(bad)]


def _single(row):
    return row[0] if isinstance(row, list) and len(row) == 1 else row


def _document(names, rows, bad, text):
    """For a scoring script without a signature: the body that the endpoint would be sent."""
    kept = [i for i in range(len(rows)) if i not in bad]
    values = [rows[i] for i in kept]
    if text:
        values = [[_guess(v) for v in row] for row in values]
    if names is None:
        return {"inputs": values}, kept, _told(bad)
    values = [[None if v is ABSENT else plain(v) for v in row] for row in values]
    return {"dataframe_split": {"columns": names, "data": values}}, kept, _told(bad)


def _guess(value):
    try:
        return None if value == "" else float(value) if "." in value or "e" in value.lower() else int(value)
    except ValueError:
        return value


# -- columns ------------------------------------------------------------------


def _frame(names, rows, bad, text, inputs, wants, columns):
    import numpy as np

    if inputs[0].get("name") is None:  # columns without names: by their place
        order = list(range(len(inputs)))
        if names is None:
            rows = [row if isinstance(row, list) else [row] for row in rows]
        for at, row in enumerate(rows):
            if at not in bad and len(row) != len(inputs):
                bad[at] = "it has %d values, the model takes %d" % (len(row), len(inputs))
    else:
        if names is None:
            raise BatchError("its rows do not name their columns: write JSON objects")
        place = {name: at for at, name in enumerate(names)}
        missing = [str(c["name"]) for c in inputs if c["name"] not in place and c.get("required", True)]
        if missing:
            shown = ", ".join(map(repr, missing[:5])) + (" and %d more" % (len(missing) - 5) if missing[5:] else "")
            raise BatchError("the column%s %s %s missing" % (
                "s" if missing[1:] else "", shown, "are" if missing[1:] else "is"))
        order = [place.get(c["name"], -1) for c in inputs]
    whole = [i for i in range(len(rows)) if i not in bad]
    turned = list(zip(*[rows[i] for i in whole])) if whole else []
    converted = []  # type: list
    for spec, at in zip(inputs, order):
        if at < 0 or not whole:
            converted.append(None)
            continue
        values, wrong = column(spec, turned[at], text)
        for i, message in wrong:
            bad.setdefault(whole[i], message)
        converted.append(values)
    good = [n for n, i in enumerate(whole) if i not in bad]
    kept = [whole[n] for n in good]
    if not kept:
        return None, [], _told(bad)
    if len(good) < len(whole):
        converted = [None if v is None else v[good] if isinstance(v, np.ndarray) else [v[n] for n in good]
                     for v in converted]
    if wants == "array":
        dtype = np.result_type(*[v.dtype for v in converted])
        return np.ascontiguousarray(np.column_stack(converted), dtype=dtype), kept, _told(bad)
    return _dataframe(inputs, converted, len(kept)), kept, _told(bad)


def _dataframe(inputs, converted, count):
    import numpy as np

    try:
        import pandas as pd
    except ImportError:
        raise BatchError("tables need pandas in the model's Python") from None
    parts = {}
    for at, (spec, values) in enumerate(zip(inputs, converted)):
        if values is None:
            continue
        if not hasattr(values, "dtype"):
            values = series(spec["type"], values, np, pd)
        parts[at if spec.get("name") is None else spec["name"]] = values
    return pd.DataFrame(parts, index=pd.RangeIndex(count))


# -- tensors ------------------------------------------------------------------


def _tensors(names, rows, bad, text, inputs):
    import numpy as np

    parts = {}  # type: dict
    for spec in inputs:
        name, dtype = spec.get("name"), str(spec["tensor-spec"]["dtype"])
        inner = [int(n) for n in spec["tensor-spec"]["shape"]][1:]
        if name is None or names is None:
            if name is not None:
                raise BatchError("its rows do not name their inputs: write JSON objects")
            values = rows
        else:
            if name not in names:
                raise BatchError("the input %r is missing" % name)
            at = names.index(name)
            values = [row[at] for row in rows]
        parts[name] = [None if i in bad else _tensor_row(value, inner, dtype, text, i, bad, np)
                       for i, value in enumerate(values)]
    kept = [i for i in range(len(rows)) if i not in bad]
    if not kept:
        return None, [], _told(bad)
    arrays = {}
    for name, values in parts.items():
        shapes = {values[i].shape for i in kept}
        if len(shapes) > 1:
            raise BatchError("its rows have different shapes: %s" % ", ".join(map(str, sorted(shapes)[:3])))
        arrays[name] = np.stack([values[i] for i in kept])
    return arrays[None] if list(arrays) == [None] else arrays, kept, _told(bad)


def _tensor_row(value, inner, dtype, text, row, bad, np):
    try:
        if text:
            kind = "double" if dtype.startswith("float") else "long" if "int" in dtype else "string"
            many = isinstance(value, (list, tuple))
            cells = [value_of(kind, v, True, True) for v in value] if many else value_of(kind, value, True, True)
            array = np.array(cells)
        else:
            array = np.array(plain(value))
        if array.dtype == object or (array.dtype.kind in "US") != (dtype in ("str", "object")):
            raise Wrong("its values are not all %s" % dtype)
        if array.dtype.kind == "f" and "int" in dtype and not np.equal(np.mod(array, 1), 0).all():
            raise Wrong("its values are not all whole numbers")
        if "int" in dtype and array.size:
            limits = np.iinfo(dtype)
            if array.min() < limits.min or array.max() > limits.max:
                raise Wrong("a number does not fit into %s" % dtype)
        if np.issubdtype(array.dtype, np.floating) and np.isinf(array).any():
            raise Wrong("a number is too large for %s" % dtype)
        fixed = [n for n in inner if n >= 0]
        if len(array.shape) != len(inner) and len(fixed) == len(inner) and array.size == math.prod(inner):
            array = array.reshape(inner)  # as MLflow: a flat row is a whole tensor when its length fits
        if len(array.shape) != len(inner) or any(w not in (-1, n) for w, n in zip(inner, array.shape)):
            raise Wrong("its shape is %s, expected %s" % (list(array.shape), inner))
        return array.astype(str if dtype == "str" else dtype)
    except (Wrong, ValueError, TypeError, OverflowError) as error:
        bad[row] = str(error).splitlines()[0][:200]
        return None


# -- images -------------------------------------------------------------------


def _images(paths, inputs):
    import numpy as np

    only = inputs[0] if len(inputs) == 1 else {}
    bad = {}  # type: dict[int, str]
    made = []  # type: list
    binary = only.get("type") == "binary"
    if not binary and only.get("type") != "tensor":
        raise BatchError("images are for a model that takes one tensor, or one column of type binary")
    for row, path in enumerate(paths):
        try:
            if binary:
                with open(path, "rb") as f:
                    made.append(f.read())
            else:
                made.append(_pixels(path, only["tensor-spec"], np))
        except (Wrong, OSError, ValueError, SyntaxError) as error:
            bad[row] = str(error).replace(os.path.dirname(path) + os.sep, "").splitlines()[0][:200]
            made.append(None)
    kept = [i for i in range(len(paths)) if i not in bad]
    if not kept:
        return None, [], _told(bad)
    if binary:
        return _dataframe([only], [[made[i] for i in kept]], len(kept)), kept, _told(bad)
    if len({made[i].shape for i in kept}) > 1:
        raise BatchError("images of different sizes are in one mini-batch: use a mini-batch size of 1")
    array = np.stack([made[i] for i in kept])
    return (array if only.get("name") is None else {only["name"]: array}), kept, _told(bad)


def _pixels(path, spec, np):
    """One image as the tensor's inner shape: height and width, with channels before or behind when there are three."""
    try:
        from PIL import Image
    except ImportError:
        raise BatchError("images need Pillow in the model's Python") from None
    inner = [int(n) for n in spec["shape"]][1:]
    if len(inner) not in (2, 3):
        raise BatchError("the model's tensor of shape %s takes no images" % (spec["shape"],))
    first = len(inner) == 3 and inner[0] in (1, 3, 4) and inner[2] not in (1, 3, 4)
    channels = 1 if len(inner) == 2 else inner[0] if first else inner[2]
    modes = {1: "L", 3: "RGB", 4: "RGBA", -1: "RGB"}
    if channels not in modes:
        raise BatchError("the model's tensor of shape %s takes no images" % (spec["shape"],))
    with Image.open(path) as image:
        array = np.asarray(image.convert(modes[channels]))
    if len(inner) == 3 and array.ndim == 2:
        array = array[:, :, None]
    if first:
        array = np.moveaxis(array, -1, 0)
    if any(w not in (-1, n) for w, n in zip(inner, array.shape)):
        raise Wrong("the image has the shape %s, the model takes %s" % (list(array.shape), inner))
    return array.astype(str(spec["dtype"]))


def cut(data, begin, end):
    """The rows from ``begin`` up to ``end`` of what :func:`build` gave."""
    if isinstance(data, dict):
        if "dataframe_split" in data:  # for a scoring script
            split = data["dataframe_split"]
            return {"dataframe_split": dict(split, data=split["data"][begin:end])}
        return {name: cut(value, begin, end) for name, value in data.items()}
    if hasattr(data, "iloc"):
        return data.iloc[begin:end].reset_index(drop=True)
    return data[begin:end]
