"""JSON Schemas (2020-12) of what a model takes, made from its signature: what fits them, the gateway's checks take."""

from __future__ import annotations

from typing import Any

from .signature import NESTED, SCALARS, Column, Param, Signature, Tensor

Schema = dict[str, Any]
_INTEGER = {"integer": 32, "long": 64}
#: Missing values are null in these, whether the column is required or not.
_NULLABLE = ("double", "float", "string", "datetime", "any")
_WHEN = "ISO 8601 date or time, of the years 1677 to 2262"
#: Largest finite float32 and float16.
_LIMITS = {"float": 3.4028234663852886e38, "float32": 3.4028234663852886e38, "float16": 65504}
_REF = "#/components/schemas/"


def components(signature: Signature) -> dict[str, Schema]:
    """Schemas by name: one for each JSON form that the model takes (``Inputs``, ``DataframeSplit`` …), and parts."""
    found: dict[str, Schema] = {}
    if not signature.columns and not signature.tensors:
        return found  # a scoring script: its body is between the script and its callers
    params = _params(signature.params)
    if signature.params:
        found["Params"] = params
        params = {"$ref": _REF + "Params"}

    def form(name: str, field: str, schema: Schema) -> None:
        found[name] = _object({field: schema, "params": params}, [field])

    if signature.type_hint:
        item = _value(signature.columns[0].spec, True) if signature.columns else {}
        form("Inputs", "inputs", {"type": "array", "minItems": 1, "items": item})
    elif signature.tensors:
        _of_tensors(signature, form)
    else:
        _of_columns(signature, found, form)
    return found


def column(spec: Column) -> Schema:
    """One value of a column."""
    return _value(spec.spec or spec.type, spec.required)


def tensor(spec: Tensor, skip: int = 0) -> Schema:
    """A tensor as nested lists, without its first ``skip`` dimensions."""
    schema: Schema
    if spec.dtype == "bool":
        schema = {"type": "boolean"}
    elif spec.dtype in ("str", "object", "datetime64"):
        schema = {"type": ["string", "null"]} if spec.dtype == "str" else {}
        if spec.dtype == "datetime64":
            schema = {"type": ["string", "null"], "description": _WHEN}
    elif spec.dtype.startswith("float"):
        schema = _float(spec.dtype)
    else:
        bits = int(spec.dtype.strip("uint"))
        low, high = (0, 2**bits - 1) if spec.dtype[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        schema = {"type": "integer", "minimum": low, "maximum": high}
    for length in reversed(spec.shape[skip:]):
        bounds = {"minItems": length, "maxItems": length} if length >= 0 else {}
        schema = {"type": "array", "items": schema, **bounds}
    if not skip and spec.shape[:1] == (-1,):
        schema["minItems"] = 1
    return schema


def outputs(signature: Signature) -> str:
    """What the model answers, in words; empty when its signature does not say."""
    parts = []
    told = signature.document.get("outputs")
    for item in told if isinstance(told, list) else []:
        if not isinstance(item, dict):
            return ""
        spec = item.get("tensor-spec") if isinstance(item.get("tensor-spec"), dict) else None
        kind = f"{spec.get('dtype')} tensor of shape {spec.get('shape')}" if spec else str(item.get("type"))
        parts.append(kind if item.get("name") is None else f"{item['name']} ({kind})")
    shown = ", ".join(parts[:20])
    return shown + (f" and {len(parts) - 20} more" if len(parts) > 20 else "")


# -- forms ------------------------------------------------------------------------


def _of_tensors(signature: Signature, form: Any) -> None:
    if signature.named:
        names = [str(t.name) for t in signature.tensors]
        form("Inputs", "inputs", _object({str(t.name): tensor(t) for t in signature.tensors}, names))
        return
    only = signature.tensors[0]
    form("Inputs", "inputs", tensor(only))
    form("Instances", "instances", tensor(only))
    if len(only.shape) == 2:
        form("DataframeSplit", "dataframe_split", _object({"data": tensor(only)}, ["data"]))


def _of_columns(signature: Signature, found: dict[str, Schema], form: Any) -> None:
    columns = signature.columns
    values = [column(c) for c in columns]
    kinds: list[Schema] = []
    for schema in values:
        if schema not in kinds:
            kinds.append(schema)
    any_of: Schema = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    if not signature.named:
        ordered: Schema = {"type": "array", "minItems": len(columns), "maxItems": len(columns)}
        ordered.update({"items": any_of} if len(kinds) == 1 else {"prefixItems": values})
        found["Row"] = {**ordered, "description": "The values of one row, in the order of the model's columns."}
        rows = {"type": "array", "minItems": 1, "items": {"$ref": _REF + "Row"}}
        form("DataframeSplit", "dataframe_split", _object({"data": rows}, ["data"]))
        plain = {"type": "array", "minItems": 1, "items": values[0]} if len(columns) == 1 else rows
        form("Inputs", "inputs", plain)
        form("Instances", "instances", plain)
        return
    names = [str(c.name) for c in columns]
    required = [str(c.name) for c in columns if c.required]
    found["Row"] = _object(dict(zip(names, values, strict=True)), required)
    if not required:
        found["Row"]["minProperties"] = 1
    rows = {"type": "array", "minItems": 1, "items": {"$ref": _REF + "Row"}}
    form("DataframeSplit", "dataframe_split", {
        "type": "object", "required": ["columns", "data"], "additionalProperties": False,
        "description": "Columns in any order; each row has a value for each of them.",
        "properties": {
            "columns": {"type": "array", "items": {"enum": names}, "uniqueItems": True,
                        "minItems": max(1, len(required)), "maxItems": len(names)},
            "index": {"type": "array", "description": "is ignored"},
            "data": {"type": "array", "minItems": 1,
                     "items": {"type": "array", "items": any_of, "minItems": max(1, len(required)),
                               "maxItems": len(names)}},
        }})
    form("DataframeRecords", "dataframe_records", rows)
    form("Instances", "instances", rows)
    if any(c.type in ("array", "object", "map") for c in columns):
        form("Inputs", "inputs", rows)
    else:
        lists = {n: {"type": "array", "minItems": 1, "items": v} for n, v in zip(names, values, strict=True)}
        form("Inputs", "inputs", {**_object(lists, required),
                                  "description": "A list of values for each column, all of one length."})


# -- values -----------------------------------------------------------------------


def _object(properties: dict[str, Schema], required: list[str]) -> Schema:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _float(kind: str) -> Schema:
    limit = _LIMITS.get(kind)
    return {"type": ["number", "null"], **({"minimum": -limit, "maximum": limit} if limit else {})}


def _value(spec: Any, required: bool) -> Schema:
    kind = spec if isinstance(spec, str) else spec["type"]
    if kind in ("double", "float"):
        return _float(kind)
    schema: Schema
    if kind in _INTEGER:
        bits = _INTEGER[kind]
        schema = {"type": "integer", "minimum": -(2 ** (bits - 1)), "maximum": 2 ** (bits - 1) - 1}
    elif kind == "boolean":
        return {"type": "boolean"}
    elif kind == "string":
        schema = {"type": "string"}
    elif kind == "datetime":
        schema = {"type": "string", "description": _WHEN}
    elif kind == "binary":
        schema = {"type": "string", "contentEncoding": "base64"}
    elif kind == "array":
        schema = {"type": "array", "items": _value(spec["items"], required)}
    elif kind == "sparkml_vector":
        schema = {"type": "array", "items": {"type": ["number", "null"]}}
    elif kind == "map":
        schema = {"type": "object", "additionalProperties": _value(spec["values"], required)}
    elif kind == "object":
        inner = spec["properties"]
        needed = {n: isinstance(v, str) or v.get("required", True) for n, v in inner.items()}
        schema = _object({n: _value(v, needed[n]) for n, v in inner.items()}, [n for n, must in needed.items() if must])
    else:
        return {}
    if kind in _NULLABLE or (not required and kind not in _INTEGER):
        schema["type"] = [schema["type"], "null"]
    return schema


def _params(params: tuple[Param, ...]) -> Schema:
    properties = {}
    for param in params:
        known = param.type in SCALARS + NESTED
        schema = _value(param.spec if param.type in NESTED else param.type, True) if known else {}
        if param.shape is not None:
            length = param.shape[0] if param.shape else -1
            bounds = {"minItems": length, "maxItems": length} if length >= 0 else {}
            schema = {"type": "array", "items": schema, **bounds}
        if "type" in schema and schema["type"] and "null" not in schema["type"]:
            schema["type"] = [schema["type"], "null"] if isinstance(schema["type"], str) else [*schema["type"], "null"]
        properties[param.name] = {**schema, "default": param.default}
    return {"type": ["object", "null"], "additionalProperties": False, "properties": properties}
