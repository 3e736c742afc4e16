"""Captured requests as Arrow tables: one row for each row that was scored, columns and types from the signature.

Every table of a deployment has the same schema, whatever its requests were:

    correlation_id string · row int32 · at timestamp[us, UTC] · deployment · model_name · model_version · latency_ms
    one column for each input, by its name (``input`` without one; ``0``, ``1``, … for several without)
    params: JSON, when the model has parameters
    prediction, or prediction.<name> for each of several outputs

MLflow's scalar types become Arrow's; arrays and tensors are lists, nested as deep as they have dimensions beyond that
of the rows. Objects, maps, values of any type, the requests of scripts, and the answers of models whose signature does
not tell them are JSON text, marked ``{"encoding": "json"}`` in the field's metadata. An input whose name is taken
(``row``, ``prediction``, …) is called ``input.<name>``. What is masked, missing or of another type is null.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from .bodies import FORMS, Body, answer_of
from .masking import input_names
from .segments import Captured

FIXED = ("correlation_id", "row", "at", "deployment", "model_name", "model_version", "latency_ms")
#: Names of columns that are never inputs.
TAKEN = frozenset((*FIXED, "params", "prediction", "truth"))
JSON = {b"encoding": b"json"}
_SCALARS = {
    "boolean": pa.bool_(), "integer": pa.int32(), "long": pa.int64(), "float": pa.float32(), "double": pa.float64(),
    "string": pa.string(), "binary": pa.binary(), "datetime": pa.timestamp("us"),
}
_TENSORS = {
    "float64": pa.float64(), "float32": pa.float32(), "float16": pa.float32(), "bool": pa.bool_(),
    "str": pa.string(), "datetime64": pa.timestamp("us"),
    **{f"{sign}int{bits}": getattr(pa, f"{sign}int{bits}")() for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
#: A moment that a timestamp can hold, in seconds.
_LAST = 253_402_300_800.0


def is_json(field: pa.Field) -> bool:
    """Whether its values are JSON text."""
    return bool(field.metadata and field.metadata.get(b"encoding") == b"json")


def type_of(spec: Any) -> pa.DataType | None:
    """The Arrow type of a column or tensor as MLflow writes it; None for what is kept as JSON."""
    if isinstance(spec, str):
        spec = {"type": spec}
    kind = spec.get("type")
    if kind == "tensor":
        tensor = spec["tensor-spec"]
        name = str(tensor["dtype"])
        name = "str" if name.startswith(("<U", "str")) else "datetime64" if name.startswith("datetime64") else name
        scalar = _TENSORS.get(name)
        for _ in list(tensor["shape"])[1:]:
            scalar = None if scalar is None else pa.list_(scalar)
        return scalar
    if kind == "array":
        item = type_of(spec["items"])
        return None if item is None else pa.list_(item)
    return pa.list_(pa.float64()) if kind == "sparkml_vector" else _SCALARS.get(str(kind))


class Output:
    """An output: its column's name, how it is found in the answer, its type."""

    def __init__(self, name: str, key: str | None, place: int, spec: Any) -> None:
        self.name = name
        self.key = key
        self.place = place
        self.type = type_of(spec)


class Columns:
    """Turns requests of one description (the first record of a segment) into tables.

    Args:
        form: of the first request: anything but ``frame``, ``tensors`` and ``raw`` has one input, JSON as it came.
    """

    def __init__(self, description: dict[str, Any], form: str) -> None:
        self.description = description
        signature = description.get("signature") or {}
        self.known = form in FORMS
        self.inputs: dict[str, pa.Field] = {}  # by name in the request
        inputs = list(signature.get("inputs") or ()) if self.known else []
        names = input_names(inputs)
        used = set(TAKEN)
        for place, spec in enumerate(inputs or [{"type": "any"}]):
            key = names[place] if names else "input"
            column = key
            while column in used or column.startswith("prediction."):
                column = "input." + column
            used.add(column)
            self.inputs[key] = _field(column, type_of(spec))
        self.params = bool(signature.get("params"))
        self.outputs = self._outputs(list(signature.get("outputs") or ()) if self.known else [])
        self.schema = self._schema()
        #: Values that did not fit their type, and were written as null.
        self.unfit = 0

    def _outputs(self, specs: list[dict[str, Any]]) -> list[Output]:
        if len(specs) < 2:
            spec = specs[0] if specs else {"type": "any"}
            return [Output("prediction", spec.get("name"), 0, spec)]
        names = [str(place if s.get("name") is None else s["name"]) for place, s in enumerate(specs)]
        return [Output(f"prediction.{n}", n, i, s) for i, (n, s) in enumerate(zip(names, specs, strict=True))]

    def _schema(self) -> pa.Schema:
        text = pa.string()
        fields = [
            pa.field("correlation_id", text), pa.field("row", pa.int32()), pa.field("at", pa.timestamp("us", "UTC")),
            # As readers that find the name in the path have it.
            pa.field("deployment", pa.dictionary(pa.int32(), text)), pa.field("model_name", text),
            pa.field("model_version", text), pa.field("latency_ms", pa.float64()), *self.inputs.values(),
        ]
        if self.params:
            fields.append(_field("params", None))
        fields += [_field(o.name, o.type) for o in self.outputs]
        about = {k: self.description.get(k) for k in ("schema", "endpoint", "deployment", "model", "masked")}
        return pa.schema(fields, metadata={"jupyter_mlops": json.dumps(about)})

    def table(self, calls: list[Captured]) -> pa.Table:
        """All rows of some requests, in their order."""
        groups: dict[Any, _Group] = {}
        for place, call in enumerate(calls):
            body = Body(call, self.known, tuple(self.inputs))
            group = groups.get(body.layout)
            if group is None:
                group = groups[body.layout] = _Group(body)
            group.add(place, call, body)
        tables = [self._group(group) for group in groups.values()]
        if not tables:
            return self.schema.empty_table()
        if len(tables) == 1:
            return tables[0]
        order = np.concatenate([np.repeat(np.array(g.places), g.rows) for g in groups.values()])
        return pa.concat_tables(tables).take(pa.array(np.argsort(order, kind="stable")))

    def _group(self, group: _Group) -> pa.Table:
        rows = np.array(group.rows, dtype=np.int64)
        total = int(rows.sum())
        numbers = np.arange(total) - np.repeat(np.cumsum(rows) - rows, rows)
        model = self.description.get("model") or {}
        moments = np.array([round(c.at * 1e6) for c in group.calls], dtype=np.int64)
        columns: dict[str, Any] = {
            "correlation_id": pa.array([c.ident for c in group.calls], pa.string()).take(
                pa.array(np.repeat(np.arange(len(rows)), rows))),
            "row": pa.array(numbers.astype(np.int32)),
            "at": pa.array(np.repeat(moments, rows)).cast(pa.timestamp("us", "UTC")),
            "deployment": pa.DictionaryArray.from_arrays(
                pa.array(np.zeros(total, np.int32)), pa.array([str(self.description.get("deployment") or "")])),
            "latency_ms": pa.array(np.repeat(np.array([c.latency_ms for c in group.calls], dtype=float), rows)),
        }
        for name, key in (("model_name", "name"), ("model_version", "version")):
            value = model.get(key)
            columns[name] = pa.array([None if value is None else str(value)] * total, pa.string())
        for key, values in self._inputs(group, total).items():
            field = self.inputs.get(key)
            if field is not None:
                columns[field.name] = self._fit(values, field, total)
        if self.params:
            texts = [json.dumps(p) if p else None for p in group.params]
            columns["params"] = pa.array([t for t, n in zip(texts, group.rows, strict=True) for _ in range(n)],
                                         pa.string())
        columns.update(self._predictions(group, total))
        return pa.table([columns[f.name] if f.name in columns else pa.nulls(total, f.type) for f in self.schema],
                        schema=self.schema)

    # -- inputs --------------------------------------------------------------------------------------------------------

    def _inputs(self, group: _Group, total: int) -> dict[str, Any]:
        """Values by input: numpy arrays whose first dimension is the rows, or lists."""
        found: dict[str, Any] = {}
        for part, (names, shape, dtype) in enumerate(group.layout[1:] if group.layout[0] != "text" else ()):
            data = group.data[part]
            if dtype is None:
                found[names[0]] = [v for values in data for v in values]
                continue
            values = np.frombuffer(b"".join(data), dtype=dtype)
            if len(names) > 1:
                matrix = values.reshape(total, len(names))
                found.update({name: matrix[:, i] for i, name in enumerate(names)})
            else:
                found[names[0]] = values.reshape(total, *shape)
        if group.layout[0] == "raw":
            values = found.pop("", [])
            if list(self.inputs) == ["input"]:
                return {"input": values}
            return {key: [v.get(key) if isinstance(v, dict) else None for v in values] for key in self.inputs}
        if group.layout[0] == "text":
            texts = [t for t, n in zip(group.data[0], group.rows, strict=True) for t in [t] + [None] * (n - 1)]
            return {"input": [None if t is None else _Text(t) for t in texts]}
        return found

    # -- outputs -------------------------------------------------------------------------------------------------------

    def _predictions(self, group: _Group, total: int) -> dict[str, pa.Array]:
        values: dict[str, list[Any]] = {o.name: [] for o in self.outputs}
        for call, rows in zip(group.calls, group.rows, strict=True):
            answer = answer_of(call.answer)
            for output in self.outputs:
                found = self._of_output(answer, output, rows)
                if found is None:
                    found = [None] * rows
                    self.unfit += rows if answer is not None else 0
                values[output.name] += found
        fields = {o.name: _field(o.name, o.type) for o in self.outputs}
        return {name: self._fit(found, fields[name], total) for name, found in values.items()}

    def _of_output(self, answer: Any, output: Output, rows: int) -> list[Any] | None:
        """One value for each row, or None when the answer has not that many."""
        if answer is None:
            return None
        if not self.known:
            return [answer]
        only = len(self.outputs) == 1
        if isinstance(answer, dict):
            answer = self._of_arrays(answer, output, rows) if only else answer.get(str(output.key))
            per_row = answer
        elif isinstance(answer, list) and len(answer) == rows:
            per_row = [_member(v, output, only) for v in answer]
        else:
            per_row = answer
        if isinstance(per_row, list) and len(per_row) == rows:
            return per_row
        return [answer] if rows == 1 and answer is not None else None

    def _of_arrays(self, answer: dict[str, Any], output: Output, rows: int) -> Any:
        """The part of a dictionary of arrays, as models with tensors for outputs give it, for the only output."""
        if output.key in answer:
            return answer[output.key]
        if output.type is not None:
            return next(iter(answer.values())) if len(answer) == 1 else answer
        if answer and all(isinstance(v, list) and len(v) == rows for v in answer.values()):
            return [dict(zip(answer, values, strict=True)) for values in zip(*answer.values(), strict=True)]
        return answer

    # -- values --------------------------------------------------------------------------------------------------------

    def _fit(self, values: Any, field: pa.Field, total: int) -> pa.Array:
        """An array of the field's type; what does not fit is null and counted."""
        if isinstance(values, np.ndarray):
            return self._fit_numbers(values, field, total)
        if len(values) != total:
            self.unfit += total
            return pa.nulls(total, field.type)
        if is_json(field):
            return pa.array([_json(v) for v in values], pa.string())
        convert = _CONVERT.get(str(field.type))
        try:
            plain = values if convert is None else [None if v is None else convert(v) for v in values]
            return pa.array(plain, field.type)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, TypeError, ValueError, OverflowError):
            return pa.array([self._one(v, field.type, convert) for v in values], field.type)

    def _one(self, value: Any, kind: pa.DataType, convert: Callable[[Any], Any] | None) -> Any:
        if value is None:
            return None
        try:
            return pa.scalar(value if convert is None else convert(value), kind).as_py()
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, TypeError, ValueError, OverflowError):
            self.unfit += 1
            return None

    def _fit_numbers(self, values: np.ndarray, field: pa.Field, total: int) -> pa.Array:
        depth, kind = 0, field.type
        while pa.types.is_list(kind):
            depth, kind = depth + 1, kind.value_type
        if is_json(field) or values.ndim != depth + 1:
            return self._fit(values.tolist(), field, total)
        if pa.types.is_boolean(kind):
            values = values.astype(bool)
        try:
            # A missing number travels as NaN.
            array = pa.array(np.ascontiguousarray(values).reshape(-1), kind, from_pandas=depth == 0)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
            return self._fit(values.tolist(), field, total)
        for length, count in zip(values.shape[:0:-1], np.cumprod(values.shape)[-2::-1], strict=True):
            array = pa.ListArray.from_arrays(pa.array(np.arange(int(count) + 1, dtype=np.int32) * length), array)
        return array


class _Text(str):
    """Text that is JSON already."""

    __slots__ = ()


class _Group:
    """Requests whose numbers lie alike, so that they become arrays together."""

    def __init__(self, body: Body) -> None:
        self.layout = body.layout
        self.places: list[int] = []
        self.calls: list[Captured] = []
        self.rows: list[int] = []
        self.params: list[Any] = []
        self.data: list[list[Any]] = [[] for _ in body.data]

    def add(self, place: int, call: Captured, body: Body) -> None:
        self.places.append(place)
        self.calls.append(call)
        self.rows.append(body.rows)
        self.params.append(body.params)
        for whole, part in zip(self.data, body.data, strict=True):
            whole.append(part)


def sound(call: Captured) -> bool:
    """Whether its moment is one that a table can hold."""
    return 0 <= call.at < _LAST and call.latency_ms == call.latency_ms


def _field(name: str, kind: pa.DataType | None) -> pa.Field:
    return pa.field(name, pa.string(), metadata=JSON) if kind is None else pa.field(name, kind)


def _member(value: Any, output: Output, only: bool) -> Any:
    """An output's part of the answer for one row."""
    if isinstance(value, dict):
        if output.key is not None and output.key in value:
            return value[output.key]
        if only and len(value) == 1 and output.type is not None:
            return next(iter(value.values()))
        return value if only else value.get(str(output.place))
    if only:
        return value
    return value[output.place] if isinstance(value, list) and output.place < len(value) else None


def _json(value: Any) -> str | None:
    if value is None or isinstance(value, _Text):
        return value
    return json.dumps(value, separators=(",", ":"))


def _moment(value: Any) -> datetime:
    moment = datetime.fromisoformat(value)
    return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("not a number")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError("not a whole number")
    return value


_CONVERT: dict[str, Callable[[Any], Any]] = {
    "timestamp[us]": _moment, "binary": base64.b64decode, "double": _number, "float": _number,
    **{f"{sign}int{bits}": _whole for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
