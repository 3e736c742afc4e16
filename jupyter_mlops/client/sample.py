"""Rows that a model has answered in the notebook: given by the user, or found among the variables.

Neither numpy nor pandas is imported unless the value is a list that becomes an array.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core import syntax
from ..core.errors import ParameterError
from .flavour import PYTORCH, Flavour

#: Rows that are taken of data which was found, and most rows and numbers of a sample that is sent.
FOUND_ROWS, MOST_ROWS, MOST_VALUES = 5, 100, 200_000
#: Variables that are looked at, and those for which the model is asked.
MOST_VARIABLES, MOST_TRIES = 2000, 12


@dataclass
class Sample:
    """Rows, where they are from, and what was noticed about them.

    Attributes:
        data: a DataFrame, a numpy array, a dict of arrays, or a list.
        source: the expression that gives them.
        doubles: integer columns that became double.
    """

    data: Any
    source: str
    remarks: list[str] = field(default_factory=list)
    doubles: list[str] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Number of rows."""
        data = next(iter(self.data.values()), ()) if isinstance(self.data, dict) else self.data
        return len(data)


def given(value: Any, source: str, model: Any, flavour: Flavour, names: Mapping[str, Any]) -> Sample:
    """The user's own sample in the form in which the model gets it.

    Raises:
        ParameterError: it has no rows, or its columns have no names.
    """
    sample = Sample(value, source)
    sample.data = _table(value, source, model)
    if sample.rows == 0:
        raise ParameterError(f"the sample {source} has no rows", "give at least one, such as X[:5]")
    _bound(sample)
    if _is_frame(sample.data):
        _columns(sample)
    if _is_frame(sample.data):
        _widen(sample, names)
    elif flavour is PYTORCH:
        _as_parameters(sample, model)
    return sample


def search(
    model: Any, flavour: Flavour, name: str, names: Mapping[str, Any], answers: Callable[[Any], Any]
) -> tuple[Sample, Any]:
    """The first rows of a variable that fits the model and that it answers, and the answer.

    Args:
        answers: asks the model; what does not fit raises.

    Raises:
        ParameterError: nothing fits; the hint is the line to type.
    """
    columns, width = _features(model)
    candidates: list[tuple[tuple[int, int, int], str, Any]] = []
    for place, (key, value) in enumerate(list(names.items())[-MOST_VARIABLES:]):
        if key.startswith("_") or key in ("In", "Out") or value is model:
            continue
        fit = _fits(value, columns, width, flavour)
        if fit:
            first = 0 if key.lower().startswith(("x", "inputs", "features")) else 1
            candidates.append(((fit, first, -place), key, value))
    for _, key, value in sorted(candidates, key=lambda c: c[0])[:MOST_TRIES]:
        picked, source = value[:FOUND_ROWS], f"{key}[:{FOUND_ROWS}]"
        if _is_frame(value) and columns and list(map(str, value.columns)) != columns:
            picked, source = picked[columns], f"{key}[{columns}][:{FOUND_ROWS}]" if len(columns) < 5 else source
        try:
            sample = given(picked, source, model, flavour, names)
            return sample, answers(sample.data)
        except Exception:  # the model's own word that it does not fit
            continue
    what = f"columns {', '.join(columns[:4])}{' …' if len(columns) > 4 else ''}" if columns else (
        f"{width} columns" if width else "an input that can be recognised")
    raise ParameterError(
        f"no variable of this notebook fits {name}, which takes {what}",
        f"name rows that it has seen: %mlops deploy {name} -e NAME --sample X[:5]",
    )


def _is_frame(value: Any) -> bool:
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.DataFrame)


def _is_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and hasattr(torch, "Tensor") and isinstance(value, torch.Tensor)


def _table(value: Any, source: str, model: Any) -> Any:
    """A DataFrame, array, dict of arrays or list of what was given."""
    pandas = sys.modules.get("pandas")
    columns, width = _features(model)
    if _is_tensor(value):
        value = value.detach().cpu().numpy()
    elif hasattr(value, "toarray") and hasattr(value, "nnz"):
        value = value.toarray()
    elif pandas is not None and isinstance(value, pandas.Series):
        row = columns and list(map(str, value.index)) == columns
        value = value.to_frame().T.infer_objects() if row else value.to_frame(value.name or "value") if (
            columns or width == 1) else value.to_numpy()
    elif type(value).__module__.partition(".")[0] == "polars" and hasattr(value, "to_pandas"):
        value = value.to_pandas()
    if isinstance(value, Mapping):
        return _mapping(value)
    if isinstance(value, (list, tuple)):
        value = _listed(list(value))
    if _is_array(value) and value.ndim == 1 and width and len(value) == width and value.dtype.kind in "fiub":
        return value.reshape(1, -1)  # one row
    if _is_array(value) and value.ndim == 0:
        raise ParameterError(f"the sample {source} is a single value", "give rows, such as X[:5]")
    if not (_is_frame(value) or _is_array(value) or isinstance(value, list)):
        raise ParameterError(
            f"the sample {source} is a {type(value).__name__}", "give a DataFrame, an array, a tensor or a list of rows"
        )
    return value


def _mapping(value: Mapping[Any, Any]) -> Any:
    import numpy as np
    import pandas as pd

    values = {str(k): v.detach().cpu().numpy() if _is_tensor(v) else v for k, v in value.items()}
    if all(_is_array(v) and v.ndim > 1 for v in values.values()):
        return values  # tensors by name
    if all(isinstance(v, (list, tuple)) or _is_array(v) for v in values.values()):
        return pd.DataFrame({k: list(v) if np.ndim(v) > 1 else v for k, v in values.items()})
    return pd.DataFrame([values])


def _listed(rows: list[Any]) -> Any:
    if rows and all(isinstance(r, Mapping) for r in rows):
        import pandas as pd

        return pd.DataFrame(rows)
    import numpy as np

    try:
        array = np.array(rows)
    except ValueError:
        return rows
    return array if array.dtype.kind in "fiubU" else rows


def _bound(sample: Sample) -> None:
    """Keep what is sent small: a proof needs no more than some rows."""
    rows = sample.rows
    values = 1
    for n in getattr(sample.data, "shape", (rows,))[1:]:
        values *= max(1, n)
    most = max(1, min(MOST_ROWS, MOST_VALUES // values))
    if rows > most:
        sample.data = ({k: v[:most] for k, v in sample.data.items()} if isinstance(sample.data, dict)
                       else sample.data[:most])
        sample.remarks.append(f"the first {most} of the {rows} rows of {sample.source} are the sample")


def _columns(sample: Sample) -> None:
    """Column names must be text; a frame without names is an array."""
    frame = sample.data
    if all(isinstance(c, str) for c in frame.columns):
        return
    if not any(isinstance(c, str) for c in frame.columns) and len({d.kind for d in frame.dtypes if hasattr(
            d, "kind")} - set("fiub")) == 0 and list(frame.columns) == list(range(len(frame.columns))):
        sample.data = frame.to_numpy()
        return
    wrong = next(c for c in frame.columns if not isinstance(c, str))
    name = _base(sample.source) or "X"
    raise ParameterError(
        f"the sample {sample.source} has a column {wrong!r}, whose name is no text",
        f"{name}.columns = {name}.columns.astype(str), then fit again",
    )


def _base(source: str) -> str:
    """The variable at the beginning of an expression, or empty."""
    try:
        node: Any = syntax.parse(source, mode="eval").body
    except (SyntaxError, ValueError):
        return ""
    while isinstance(node, (ast.Subscript, ast.Attribute, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _widen(sample: Sample, names: Mapping[str, Any]) -> None:
    """Log integer columns as double where they occur with missing values or fractions.

    MLflow's integers know no missing value: a request with one would be refused, though the model takes it.
    """
    frame = sample.data
    integers = [c for c in frame.columns if getattr(frame[c].dtype, "kind", "") in "iu"]
    if not integers:
        return
    why: dict[str, str] = {c: sample.source for c in integers if frame[c].hasnans}
    base = _base(sample.source)
    for key in sorted(names, key=lambda n: n != base):
        other = names[key]
        if key.startswith("_") or not _is_frame(other) or not set(integers) <= set(other.columns):
            continue
        for column in integers:
            values = other[column]
            if column in why or not hasattr(values, "dtype"):  # two columns of one name are a frame
                continue
            if getattr(values.dtype, "kind", "") == "f" or values.hasnans:
                why[column] = key
    if not why:
        return
    sample.data = frame.astype(dict.fromkeys(why, "float64"))
    sample.doubles = list(why)
    shown = ", ".join(list(why)[:5]) + (" …" if len(why) > 5 else "")
    where = " and ".join(dict.fromkeys(why.values()))
    plural = "columns" if len(why) > 1 else "column"
    sample.remarks.append(
        f"integer {plural} {shown} taken as double: in {where} there are missing values or fractions, which an "
        "integer column of a signature refuses"
    )


def _as_parameters(sample: Sample, model: Any) -> None:
    """Bring numbers to the type of a net's parameters: with others its layers raise."""
    if not _is_array(sample.data) or sample.data.dtype.kind != "f":
        return
    kind = next((str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()), "")
    if kind in ("float32", "float64") and str(sample.data.dtype) != kind:
        sample.remarks.append(f"the sample was {sample.data.dtype}, the net computes in {kind}")
        sample.data = sample.data.astype(kind)


def _features(model: Any) -> tuple[list[str], int]:
    """Names of the columns that a model was fitted with, and their number; empty and 0 when it does not tell."""
    for names in ("feature_names_in_", "feature_names", "feature_name_", "feature_name"):
        found = _attribute(model, names)
        if found is not None and not isinstance(found, str):
            try:
                columns = [str(c) for c in found]
            except TypeError:
                continue
            if columns and not all(c == f"Column_{i}" for i, c in enumerate(columns)):
                return columns, len(columns)
    for width in ("n_features_in_", "n_features_", "num_features", "num_feature"):
        found = _attribute(model, width)
        if isinstance(found, int) and found > 0:
            return [], found
    if hasattr(model, "modules") and hasattr(model, "parameters"):
        for layer in model.modules():
            for width in ("in_features", "in_channels", "input_size"):
                if isinstance(getattr(layer, width, None), int):
                    return [], getattr(layer, width)
    return [], 0


def _attribute(model: Any, name: str) -> Any:
    try:
        found = getattr(model, name, None)
        return found() if callable(found) else found
    except Exception:  # properties of estimators raise when they do not apply
        return None


def _fits(value: Any, columns: list[str], width: int, flavour: Flavour) -> int:
    """How well a variable fits: 1 best, 0 not at all."""
    if _is_frame(value) and len(value):
        there = list(map(str, value.columns))
        if columns:
            return 1 if there == columns else 2 if set(columns) <= set(there) else 0
        return 3 if width and len(there) == width else 0
    if (_is_array(value) or _is_tensor(value)) and getattr(value, "ndim", 0) >= 2 and len(value):
        if flavour is PYTORCH:
            return 1 if width in tuple(value.shape[1:]) else 3
        return 2 if width and value.ndim == 2 and value.shape[1] == width else 0
    return 0
