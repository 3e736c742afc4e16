"""What kind of model a variable holds, seen by its classes; nothing is imported that the variable has not brought.

``predict`` answers as MLflow's ``python_function`` form of that model does, so that a deployment's answer can be
compared with it.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import sys
import types
import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..core.errors import ParameterError, Refused

#: Objects that are looked into when asked what a model is made of.
MOST_OBJECTS = 20_000


@dataclass(frozen=True)
class Flavour:
    """A kind of model.

    Attributes:
        name: MLflow's name of it, and of its module: ``mlflow.<name>``.
        word: for people.
        modules: top-level modules that any model of the kind needs.
    """

    name: str
    word: str
    modules: tuple[str, ...]


SKLEARN = Flavour("sklearn", "scikit-learn model", ("sklearn", "numpy", "pandas", "scipy"))
PYTORCH = Flavour("pytorch", "PyTorch model", ("torch", "numpy", "cloudpickle"))
XGBOOST = Flavour("xgboost", "XGBoost model", ("xgboost", "numpy", "pandas", "scipy"))
LIGHTGBM = Flavour("lightgbm", "LightGBM model", ("lightgbm", "numpy", "pandas", "scipy"))
ONNX = Flavour("onnx", "ONNX model", ("onnx", "onnxruntime", "numpy"))
PYFUNC = Flavour("pyfunc", "Python model", ("cloudpickle", "numpy", "pandas"))

#: (first part of the module, name of a class) of a model's own classes → its kind; the first that fits.
_CLASSES: tuple[tuple[str, frozenset[str], Flavour], ...] = (
    ("mlflow", frozenset({"PythonModel"}), PYFUNC),
    ("torch", frozenset({"Module"}), PYTORCH),
    ("xgboost", frozenset({"Booster", "XGBModel"}), XGBOOST),
    ("lightgbm", frozenset({"Booster", "LGBMModel"}), LIGHTGBM),
    ("onnx", frozenset({"ModelProto"}), ONNX),
    ("sklearn", frozenset({"BaseEstimator"}), SKLEARN),
)


def unwrapped(value: Any) -> Any:
    """The model inside of one that ``mlflow.pyfunc.load_model`` gave; anything else as it is.

    Raises:
        Refused: there is none to be had.
    """
    if not any(c.__name__ == "PyFuncModel" and _root(c) == "mlflow" for c in type(value).__mro__):
        return value
    for method in ("unwrap_python_model", "get_raw_model"):
        try:
            inner = getattr(value, method)()
        except Exception:
            continue
        if inner is not None:
            return inner
    raise Refused(
        "this loaded model does not give out what it wraps", "deploy the version that it was loaded from: NAME/VERSION"
    )


def detect(value: Any) -> Flavour | None:
    """The kind of a fitted model, or None when the value is no model."""
    if isinstance(value, (type, types.ModuleType)):
        return None
    mro = type(value).__mro__
    for root, names, flavour in _CLASSES:
        if any(c.__name__ in names and _root(c) == root for c in mro):
            if flavour is SKLEARN and not callable(getattr(value, "predict", None)):
                return None  # a transformer
            return flavour
    if any(c.__name__ == "PyFuncModel" and _root(c) == "mlflow" for c in mro):
        return PYFUNC
    if inspect.isfunction(value) or (callable(getattr(value, "predict", None)) and _root(type(value)) != __root__):
        return PYFUNC
    own_call = getattr(type(value), "__call__", None)  # noqa: B004 (what the class defines, not whether it is callable)
    return PYFUNC if inspect.isfunction(own_call) and _root(type(value)) not in (__root__, "IPython") else None


__root__ = __name__.partition(".")[0]


def _root(cls: Any) -> str:
    return str(getattr(cls, "__module__", "") or "").partition(".")[0]


def check_fitted(value: Any, flavour: Flavour, name: str) -> None:
    """Raises ParameterError when a scikit-learn style estimator was not fitted."""
    validation = sys.modules.get("sklearn.utils.validation")
    if flavour not in (SKLEARN, XGBOOST, LIGHTGBM) or validation is None or not hasattr(value, "fit"):
        return
    try:
        validation.check_is_fitted(value)
    except Exception as error:
        if type(error).__name__ == "NotFittedError":
            raise ParameterError(f"{name} is not fitted", f"call {name}.fit(X, y) first") from None


def modules_of(value: Any) -> set[str]:
    """Top-level modules of the classes and functions that a model is made of."""
    found: set[str] = set()
    seen: set[int] = set()
    todo: deque[Any] = deque([value])
    while todo and len(seen) < MOST_OBJECTS:
        thing = todo.popleft()
        if thing is None or isinstance(thing, (str, bytes, int, float, complex)) or id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, types.ModuleType):
            found.add(thing.__name__.partition(".")[0])
            continue
        kind = thing if isinstance(thing, (type, types.FunctionType, types.BuiltinFunctionType)) else type(thing)
        found.update(_root(c) for c in getattr(kind, "__mro__", (kind,)))
        if isinstance(thing, dict):
            todo.extend(list(thing.values())[:MOST_OBJECTS])
        elif isinstance(thing, (list, tuple, set, frozenset)):
            todo.extend(list(thing)[:1000])
        elif isinstance(thing, types.FunctionType):
            todo.extend(c.cell_contents for c in thing.__closure__ or () if _filled(c))
            todo.extend(thing.__globals__[n] for n in thing.__code__.co_names if n in thing.__globals__)
        elif isinstance(thing, type):
            if thing.__module__ == "__main__":
                todo.extend(vars(thing).values())
        else:
            state = getattr(thing, "__dict__", None)
            if isinstance(state, dict):
                todo.extend(state.values())
            if type(thing).__module__ == "__main__":
                todo.append(type(thing))
    return found - {"", "builtins", "__main__"}


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 (an empty cell raises)
        return True
    except ValueError:
        return False


def wrapped(value: Any) -> Any:
    """A pyfunc model as ``mlflow.pyfunc`` takes it: a PythonModel, or a function of one argument.

    What has ``predict`` or is called becomes a function that is pickled by value, so that whoever loads the model
    needs nothing of ours.
    """
    if any(c.__name__ == "PythonModel" and _root(c) == "mlflow" for c in type(value).__mro__):
        return value
    target = value.predict if callable(getattr(value, "predict", None)) else value
    space: dict[str, Any] = {"target": target, "__name__": "__main__"}
    exec(_CALL, space)  # noqa: S102 (a constant; made here so that its module is __main__)
    return space["predict"]


_CALL = "def predict(model_input):\n    return target(model_input)\n"


def predict(value: Any, flavour: Flavour, data: Any) -> Any:
    """The model's answer for a sample, as its ``python_function`` form gives it; whatever it raises is raised."""
    if flavour is PYTORCH:
        return _by_torch(value, data)
    if flavour is ONNX:
        return _by_onnx(value, data)
    if flavour is XGBOOST and type(value).__name__ == "Booster":
        return value.predict(sys.modules["xgboost"].DMatrix(data))
    if flavour is PYFUNC:
        return _by_pyfunc(wrapped(value), data)
    return value.predict(data)


def _by_torch(value: Any, data: Any) -> Any:
    import numpy as np
    import torch

    pandas = sys.modules.get("pandas")
    frame = pandas is not None and isinstance(data, pandas.DataFrame)
    array = data.to_numpy(dtype=np.float32) if frame else np.ascontiguousarray(data)
    device = next((p.device for p in value.parameters()), torch.device("cpu"))
    training = value.training
    value.eval()
    try:
        with torch.no_grad():
            out = value(torch.from_numpy(array.copy()).to(device))
    finally:
        value.train(training)
    if not isinstance(out, torch.Tensor):
        raise TypeError(f"the model gives a {type(out).__name__}; MLflow serves models that give one tensor")
    numbers = out.detach().cpu().numpy()
    return pandas.DataFrame(numbers, index=data.index) if frame and pandas is not None else numbers


def _by_onnx(value: Any, data: Any) -> Any:
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(value.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = session.get_inputs()
    if isinstance(data, dict):
        feeds = dict(data)
    elif hasattr(data, "columns"):
        feeds = {inputs[0].name: data.to_numpy()} if len(inputs) == 1 else {i.name: data[i.name].to_numpy()
                                                                           for i in inputs}
    else:
        feeds = {inputs[0].name: data}
    for i in inputs:
        if i.type == "tensor(float)" and getattr(feeds.get(i.name), "dtype", None) == np.float64:
            feeds[i.name] = feeds[i.name].astype(np.float32)
    answers = dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))
    if not hasattr(data, "columns"):
        return answers
    import pandas as pd

    return pd.DataFrame.from_dict({name: np.asarray(answer).reshape(-1) for name, answer in answers.items()})


def _by_pyfunc(model: Any, data: Any) -> Any:
    if not hasattr(model, "predict"):
        return model(data)
    from mlflow.pyfunc import PythonModelContext

    context = PythonModelContext({}, {})
    if hasattr(model, "load_context"):
        model.load_context(context)
    parameters = list(inspect.signature(model.predict).parameters)
    arguments = [data] if "context" not in parameters else [context, data]
    return model.predict(*arguments)


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Without warnings and advice of libraries about choices that are made here, such as pickling."""
    kept = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # MLflow's coloured warnings set filters of their own.
            warnings.showwarning = lambda *_, **__: None  # type: ignore[assignment]
            yield
    finally:
        for name, level in kept.items():
            logging.getLogger(name).setLevel(level)
