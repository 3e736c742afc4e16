"""From what a model's ``predict`` returned to the JSON for the callers: ``{"predictions": ...}`` as MLflow has it.

Numbers that JSON does not know (NaN, infinities) are null, dates ISO 8601 text, bytes base64, frames records.
"""

import json
import re
import sys

#: Characters of a model's own error that go to the caller.
CAUSE_LIMIT = 300

_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class NotSplittable(ValueError):
    """The answer is not one item for each row, so requests cannot be told apart in it."""


def answer(output, wrap=True):
    """The JSON of one request's answer, as bytes.

    Raises:
        TypeError: something in it is not JSON.
    """
    return _dump(_plain(output), wrap)


def split(output, counts, wrap=True):
    """The JSON for each of several requests whose rows were stacked; ``counts`` are their numbers of rows.

    Raises:
        NotSplittable: the answer has not as many items as there are rows.
        TypeError: something in it is not JSON.
    """
    if len(counts) == 1:
        return [answer(output, wrap)]
    total = sum(counts)
    if isinstance(output, dict):
        columns = {k: _rows(v, total) for k, v in output.items()}
        if not columns:
            raise NotSplittable("an empty answer")
        parts, at = [], 0
        for count in counts:
            parts.append({k: v[at:at + count] for k, v in columns.items()})
            at += count
    else:
        rows = _rows(output, total)
        parts, at = [], 0
        for count in counts:
            parts.append(rows[at:at + count])
            at += count
    return [_dump(part, wrap) for part in parts]


def _rows(output, total):
    plain = _plain(output)
    if not isinstance(plain, list) or len(plain) != total:
        raise NotSplittable("%s for %d rows" % (type(output).__name__, total))
    return plain


def _dump(plain, wrap):
    value = {"predictions": plain} if wrap else plain
    try:
        text = _encode(value)
    except (ValueError, TypeError):
        text = json.dumps(_without_nan(value), allow_nan=False, separators=(",", ":"))
    return text.encode("ascii")


def _plain(value):
    np, pd = sys.modules.get("numpy"), sys.modules.get("pandas")
    if np is not None and isinstance(value, np.ndarray):
        return np.datetime_as_string(value).tolist() if value.dtype.kind == "M" else value.tolist()
    if pd is not None and isinstance(value, (pd.DataFrame, pd.Series)):
        return pd.DataFrame(value).to_dict(orient="records")
    if hasattr(value, "toarray") and hasattr(value, "nnz"):  # a sparse matrix of scipy
        return value.toarray().tolist()
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "Tensor") and isinstance(value, torch.Tensor):
        return value.detach().cpu().numpy().tolist()
    return value


def _default(value):
    """Whatever JSON does not know: numpy, pandas, dates, bytes, pydantic."""
    import base64
    import datetime
    import decimal

    plain = _plain(value)
    if plain is not value:
        return plain
    np, pd = sys.modules.get("numpy"), sys.modules.get("pandas")
    if pd is not None and (value is pd.NaT or value is pd.NA):
        return None
    if np is not None and isinstance(value, np.datetime64):
        return None if np.isnat(value) else str(value)
    if np is not None and isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(bytes(value)).decode("ascii")
    if isinstance(value, (datetime.date, datetime.datetime, datetime.time)):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    if hasattr(value, "model_dump"):
        return value.model_dump()
    raise TypeError("the model's answer has a %s in it, which is not JSON" % type(value).__name__)


def _without_nan(value):
    if isinstance(value, float):
        return value if value - value == 0 else None
    if value is None or isinstance(value, (str, int, bool)):
        return value
    if isinstance(value, dict):
        return {k if isinstance(k, str) else str(k): _without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    return _without_nan(_default(value))


_PATH = re.compile(r"(?:(?<=[\s'\"(=:,])|^)(?:~|[A-Za-z]:)?[/\\](?:[^\s'\":,;()]*[/\\])+([^\s'\":,;()/\\]*)")


def cause(error, limit=CAUSE_LIMIT):
    """An exception in one line, without folders of this machine."""
    text = str(error).strip()
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    line = _PATH.sub(r"\1", "%s: %s" % (type(error).__name__, first) if first else type(error).__name__)
    line = "".join(c if c.isprintable() else " " for c in line)
    return line if limit is None or len(line) <= limit else line[:limit] + "…"


def error_body(code, message):
    """The body of an ERROR."""
    return json.dumps({"code": code, "message": message}).encode("ascii")
