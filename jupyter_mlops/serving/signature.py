"""A model's signature, read from its ``MLmodel`` file without MLflow.

MLflow writes two families: *columns*, each with a type (``double long string …``, or ``array object map any``), for
models that take a DataFrame, and *tensors*, each with a dtype and a shape, for models that take arrays. Both may be
named or not. ``values.py`` checks values against it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..core.errors import Refused

NO_SIGNATURE_HINT = "log it with an example: mlflow.<flavor>.log_model(..., input_example=X[:5])"
SCALARS = ("boolean", "integer", "long", "float", "double", "string", "binary", "datetime")
NESTED = ("array", "object", "map", "any", "sparkml_vector")
#: Types whose columns travel as bytes, with their code in :mod:`array`.
CODES = {"integer": "i", "long": "q", "float": "f", "double": "d"}
TENSOR_CODES = {
    "float64": "d", "float32": "f", "float16": "d", "int8": "b", "int16": "h", "int32": "i", "int64": "q",
    "uint8": "B", "uint16": "H", "uint32": "I", "uint64": "Q", "bool": "b",
}
TENSOR_TEXT = ("str", "object", "datetime64")
#: Levels of nesting in one value of type array, object, map or any.
MAX_DEPTH = 64


@dataclass(frozen=True)
class Column:
    """One input column: ``type`` is a name in ``SCALARS`` or ``NESTED``, ``spec`` what MLflow wrote of it."""

    name: str | None
    type: str
    required: bool = True
    spec: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return "the input" if self.name is None else f"column {quote(self.name)}"


@dataclass(frozen=True)
class Tensor:
    """One input tensor: ``dtype`` as numpy names it; -1 in ``shape`` is any length."""

    name: str | None
    dtype: str
    shape: tuple[int, ...]

    @property
    def label(self) -> str:
        return "the input" if self.name is None else f"input {quote(self.name)}"


@dataclass(frozen=True)
class Param:
    """One inference parameter; ``shape`` is None for a scalar."""

    name: str
    type: str
    default: Any
    shape: tuple[int, ...] | None = None
    spec: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Signature:
    """All inputs of a model. Either ``columns`` or ``tensors`` is filled.

    ``type_hint``: the model checks its input by its own type hints and gets the JSON list as it came.
    """

    columns: tuple[Column, ...] = ()
    tensors: tuple[Tensor, ...] = ()
    params: tuple[Param, ...] = ()
    type_hint: bool = False
    document: dict[str, Any] = field(default_factory=dict, compare=False)

    @cached_property
    def named(self) -> bool:
        return all(c.name is not None for c in self.columns) and all(t.name is not None for t in self.tensors)

    @cached_property
    def one_type(self) -> str | None:
        """The type of all columns when they are equal, numeric and required, so that they travel as one block."""
        types = {c.type for c in self.columns}
        if len(types) != 1 or not all(c.required for c in self.columns):
            return None
        (only,) = types
        return only if only in CODES else None


def quote(text: Any) -> str:
    """A caller's text for a message: short, printable, on one line."""
    shown = ascii(str(text)[:80])
    return shown if len(str(text)) <= 80 else shown[:-1] + "…'"


def read_mlmodel(model_dir: Path) -> dict[str, Any]:
    """The ``MLmodel`` file of a model folder as a dictionary.

    Raises:
        Refused: there is none, or it cannot be read.
    """
    import yaml

    path = model_dir / "MLmodel"
    try:
        text = path.read_text(encoding="utf-8")
        if len(text) > 20_000_000:
            raise ValueError("it is larger than 20 MB")
        document = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        raise Refused("the model folder has no MLmodel file", "register a model that MLflow logged") from None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise Refused(f"the model's MLmodel file cannot be read: {type(error).__name__}") from error
    if not isinstance(document, dict):
        raise Refused("the model's MLmodel file is not a mapping")
    return document


def from_mlmodel(document: dict[str, Any]) -> Signature:
    """The signature in an ``MLmodel`` document.

    Raises:
        Refused: it has none, or one that cannot be served; the hint says how to log the model with one.
    """
    raw = document.get("signature")
    raw = raw if isinstance(raw, dict) else {}
    parsed = {key: _from_json(raw.get(key), key) for key in ("inputs", "outputs", "params")}
    if not parsed["inputs"]:
        raise Refused("the model has no signature, so its input cannot be checked", NO_SIGNATURE_HINT)
    return from_document({**parsed, "type_hint": bool(document.get("is_signature_from_type_hint"))})


def from_document(document: dict[str, Any]) -> Signature:
    """A signature from ``{"inputs": [...], "outputs": [...], "params": [...], "type_hint": bool}``.

    Raises:
        Refused: an input has a type that cannot be served.
    """
    columns: list[Column] = []
    tensors: list[Tensor] = []
    try:
        for item in document["inputs"]:
            name = item.get("name")
            name = None if name is None else str(name)
            if item["type"] == "tensor":
                spec = item["tensor-spec"]
                tensors.append(Tensor(name, _tensor_type(str(spec["dtype"])), tuple(int(n) for n in spec["shape"])))
            else:
                columns.append(Column(name, _column_type(item), bool(item.get("required", True)), item))
        params = tuple(
            Param(str(p["name"]), str(p.get("type") or p.get("dtype")), p.get("default"),
                  None if p.get("shape") is None else tuple(int(n) for n in p["shape"]), p)
            for p in document.get("params") or ()
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Refused(f"the model's signature cannot be read: {error!r}", NO_SIGNATURE_HINT) from error
    names = [c.name for c in columns] + [t.name for t in tensors]
    distinct = len(set(names)) == len(names) and (len(names) == 1 or None not in names)
    if (columns and tensors) or not (distinct or (columns and set(names) == {None})):
        raise Refused("the model's signature mixes kinds of inputs or repeats a name", NO_SIGNATURE_HINT)
    kept = {key: document.get(key) or [] for key in ("inputs", "outputs", "params")}
    return Signature(tuple(columns), tuple(tensors), params, bool(document.get("type_hint")), kept)


def _from_json(value: Any, key: str) -> list[dict[str, Any]]:
    if isinstance(value, str):
        try:
            value = json.loads(value or "null")
        except (ValueError, RecursionError) as error:
            raise Refused(f"the {key} of the model's signature are not JSON", NO_SIGNATURE_HINT) from error
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Refused(f"the {key} of the model's signature are not a list", NO_SIGNATURE_HINT)
    return value


def _column_type(spec: Any, depth: int = 0) -> str:
    kind = spec if isinstance(spec, str) else spec["type"]
    if kind not in SCALARS + NESTED or depth > MAX_DEPTH:
        raise ValueError(f"unknown type {kind!r}")
    if kind == "array":
        _column_type(spec["items"], depth + 1)
    elif kind == "map":
        _column_type(spec["values"], depth + 1)
    elif kind == "object":
        for value in spec["properties"].values():
            _column_type(value, depth + 1)
    return str(kind)


def _tensor_type(dtype: str) -> str:
    if dtype in TENSOR_CODES or dtype in TENSOR_TEXT:
        return dtype
    if dtype.startswith(("str", "<U", "unicode")):
        return "str"
    if dtype.startswith("datetime64"):
        return "datetime64"
    raise ValueError(f"tensors of {dtype} cannot be sent as JSON")
