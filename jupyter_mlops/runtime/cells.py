"""Single values of a batch run's input, and whole columns of them, in the types of the model's signature."""

import base64
import datetime
import json
import math

_MISSING = frozenset(("", "nan", "na", "null", "none"))
_TRUTH = {"true": True, "false": False, "1": True, "0": False}
_LIMITS = {"integer": (-(2**31), 2**31 - 1), "long": (-(2**63), 2**63 - 1)}
_NESTED = ("array", "object", "map", "any", "sparkml_vector")
_FIRST, _LAST = datetime.datetime(1677, 9, 22), datetime.datetime(2262, 4, 11)


#: What a row has that lacks a name of the others.
ABSENT = object()


class Wrong(Exception):
    """A value that does not fit; its text says what is wrong with it."""


def column(spec, values, text):
    """(array or list, [(index, message)]) of one column; what is wrong has any value."""
    import numpy as np

    kind = spec["type"]
    dtype = {"double": "float64", "float": "float32", "integer": "int32", "long": "int64"}.get(kind)
    if dtype is not None:
        packed = _packed(values, kind, dtype, text, np)
        if packed is not None:
            return packed, []
    wrong = []
    out = []  # type: list
    for at, value in enumerate(values):
        try:
            out.append(value_of(spec, value, text, spec.get("required", True)))
        except Wrong as error:
            wrong.append((at, "column %r: %s" % (spec.get("name"), error) if spec.get("name") else str(error)))
            out.append(0 if dtype else False if kind == "boolean" else None)
    if dtype is not None:
        return np.array(out, dtype=dtype), wrong
    if kind == "boolean" and None not in out:
        return np.array(out, dtype=bool), wrong
    return out, wrong


def _packed(values, kind, dtype, text, np):
    """Numbers all at once; None when one needs a closer look."""
    try:
        if kind in ("double", "float"):
            if text:
                packed = np.array(list(map(float, values)), dtype="float64")
                if any("_" in v for v in values):
                    return None
            elif set(map(type, values)) <= {int, float}:
                packed = np.array(values, dtype="float64")
            else:
                return None
            with np.errstate(over="ignore"):
                packed = packed.astype(dtype)
            return None if np.isinf(packed).any() else packed
        if text:
            if any("_" in v for v in values):
                return None
            values = list(map(int, values))
        elif not set(map(type, values)) <= {int}:
            return None
        low, high = _LIMITS[kind]
        return np.array(values, dtype=dtype) if low <= min(values) and max(values) <= high else None
    except (ValueError, TypeError, OverflowError):
        return None


def _shown(value):
    if value is None or value is ABSENT:
        return "nothing"
    return ascii(value)[:60]


def value_of(spec, value, text, required, depth=0):
    """One value in the type that the signature asks for.

    Raises:
        Wrong: it does not fit.
    """
    kind = spec if isinstance(spec, str) else spec["type"]
    if value is ABSENT:
        if required:
            raise Wrong("it is missing")
        value = None
    if text and isinstance(value, str):
        value = _cell(value, kind)
    if value is None or (isinstance(value, float) and value != value):
        if kind in ("double", "float"):
            return math.nan
        if kind in ("string", "datetime", "any") or (not required and kind in ("binary", *_NESTED)):
            return None
        raise Wrong("missing value, expected %s" % kind)
    if kind in ("double", "float"):
        return _float(value, kind)
    if kind in _LIMITS:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int:
            raise Wrong("expected %s, got %s" % (kind, _shown(value)))
        if not _LIMITS[kind][0] <= value <= _LIMITS[kind][1]:
            raise Wrong("the number does not fit into %s" % kind)
        return value
    if kind == "boolean" and isinstance(value, bool):
        return value
    if kind == "string" and isinstance(value, str):
        return value
    if kind == "datetime" and isinstance(value, (str, datetime.date)):
        return _moment(value)
    if kind == "binary" and isinstance(value, (str, bytes)):
        try:
            return value if isinstance(value, bytes) else base64.b64decode("".join(value.split()), validate=True)
        except ValueError:
            raise Wrong("not base64") from None
    return _nested(spec, kind, value, text, required, depth)


def _nested(spec, kind, value, text, required, depth):
    if depth > 64:
        raise Wrong("nested more than 64 levels deep")
    if kind in ("array", "sparkml_vector") and isinstance(value, list):
        item = spec["items"] if kind == "array" else "double"
        return [value_of(item, v, False, required, depth + 1) for v in value]
    if kind == "map" and isinstance(value, (dict, list)):
        pairs = value.items() if isinstance(value, dict) else value  # Parquet has maps as lists of pairs
        return {str(k): value_of(spec["values"], v, False, required, depth + 1) for k, v in pairs}
    if kind == "object" and isinstance(value, dict):
        known = spec["properties"]
        strange = [k for k in value if k not in known]
        if strange:
            raise Wrong("property %s is not in the signature" % _shown(strange[0]))
        out = {}
        for name, inner in known.items():
            must = isinstance(inner, str) or inner.get("required", True)
            if name not in value and must:
                raise Wrong("property %r is missing" % name)
            out[name] = value_of(inner, value.get(name), False, must, depth + 1)
        return out
    if kind == "any":
        return value
    raise Wrong("expected %s, got %s" % (kind, _shown(value)))


def _float(value, kind):
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Wrong("expected %s, got %s" % (kind, _shown(value)))
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if math.isinf(result) or (kind == "float" and abs(result) > 3.4028235677973366e38):
        raise Wrong("the number is too large for %s" % kind)
    return result


def _cell(value, kind):
    """What a cell of a CSV says in a column of this type; text that does not fit stays text."""
    if kind == "string":
        return value
    plain = value.strip()
    if plain.lower() in _MISSING and not (kind in ("binary", "datetime") and plain):
        return None
    if kind == "boolean":
        return _TRUTH.get(plain.lower(), value)
    if kind in _LIMITS or kind in ("double", "float"):
        try:
            if "_" in plain or len(plain) > 400:
                return value
            return int(plain) if plain.lstrip("+-").isdigit() else float(plain)
        except ValueError:
            return value
    if kind in _NESTED:
        try:
            return json.loads(plain)
        except (ValueError, RecursionError):
            return value
    return plain


def _moment(value):
    if not isinstance(value, datetime.date):
        try:
            text = value.strip()
            value = datetime.datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith(("Z", "z")) else text)
        except ValueError:
            raise Wrong("%s is not an ISO 8601 date or time" % _shown(value)) from None
    if not isinstance(value, datetime.datetime):
        value = datetime.datetime(value.year, value.month, value.day)
    try:
        if value.tzinfo is not None:
            value = value.astimezone(datetime.timezone.utc).replace(tzinfo=None)
    except OverflowError:
        value = datetime.datetime.min
    if not _FIRST <= value <= _LAST:
        raise Wrong("the date is outside the years 1677 to 2262")
    return value.isoformat()
