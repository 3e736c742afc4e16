"""scikit-learn models, loaded without MLflow and, where their input is numbers only, called without pandas.

An estimator fitted on a DataFrame remembers its columns (``feature_names_in_``) and warns when it is given an array.
Building a DataFrame for each request costs several times what the prediction does. The gateway has put the columns into
the order of the signature already, so an estimator that uses names for nothing but that check gets arrays, and its copy
here forgets the names: it is then as if it had been fitted on an array, which is a state scikit-learn supports.

Estimators that do use names (``ColumnTransformer``), functions and classes from elsewhere keep getting DataFrames.
"""

import os
import sys

from . import weights
from .loading import Model, Refusal, number_columns

#: Estimators that look at columns by their name, or hand their input to a function of the user's.
_BY_NAME = ("ColumnTransformer", "FunctionTransformer")
#: Objects that are looked at in one model at most; one with more (a forest of forests) gets DataFrames.
_LIMIT = 100_000
#: Tree ensembles: their members see arrays in any case, and there may be thousands.
_LEAVES = ("sklearn.tree", "sklearn.ensemble._hist_gradient_boosting.predictor")


def load(folder, native, signature):
    """The model that ``mlflow.sklearn`` would load, given ``native`` (``file format trusted predict``)."""
    path, method = os.path.join(folder, native["file"]), native["predict"]
    if number_columns(signature)[0]:
        _without_pandas()
    estimator = weights.shared(folder, path, lambda: unpickle(path, native),
                               lambda a, b: same_answers(a, b, method, signature))
    return wrap(estimator, method, signature)


def _without_pandas():
    """Import scikit-learn without pandas, which a model that gets arrays does not need: 0.4 s and 60 MB.

    scikit-learn imports it in one place, where it is optional, for its reader of ARFF files. DataFrames are recognised
    as ever if pandas is imported later.
    """
    if "pandas" in sys.modules:
        return
    with Refusal(lambda name: name == "pandas"):
        import sklearn.utils.fixes  # noqa: F401


def same_answers(one, other, method, signature):
    """Whether two estimators answer the same to some rows of numbers; without columns of numbers they are trusted."""
    numbers, names = number_columns(signature)
    if not numbers:
        return True
    import numpy as np

    width = len(signature["inputs"])
    rows = np.random.default_rng(1).normal(size=(3, width)) * np.array([[0.0], [1.0], [100.0]])
    if names is not None:
        import pandas as pd

        rows = pd.DataFrame(rows, columns=names)
    answers = []
    for estimator in (one, other):
        try:
            answers.append(np.asarray(getattr(estimator, method)(rows)))
        except Exception as error:
            answers.append(np.asarray([type(error).__name__]))
    first, second = answers
    return first.dtype == second.dtype and np.array_equal(first, second, equal_nan=first.dtype.kind == "f")


def unpickle(path, native):
    if native["format"] == "skops":
        import skops.io

        return skops.io.load(path, trusted=native.get("trusted"))
    import pickle

    with open(path, "rb") as f:
        return pickle.load(f)  # loading a model is running its code; MLflow does the same


def wrap(estimator, method, signature):
    """A :class:`Model` around a fitted estimator, of which ``method`` answers."""
    numbers, names = number_columns(signature)
    safe = method != "score" and _rows_apart(estimator)
    if (numbers or _one_tensor(signature)) and _takes_arrays(estimator) and _in_order(estimator, names):
        for part in _fed(estimator):
            vars(part).pop("feature_names_in_", None)
        predict = getattr(estimator, method)

        def call(data, params):
            return predict(data.to_numpy() if hasattr(data, "to_numpy") else data)

        return Model(call, "sklearn", "array" if numbers else "frame", names, safe)
    predict = getattr(estimator, method)
    if not numbers or len({c["type"] for c in signature["inputs"]}) > 1:
        return Model(lambda data, params: predict(data), "sklearn", batch_safe=safe)
    # The frame is made around the array here: its index of columns is made once, and nothing is copied.
    import numpy as np
    import pandas as pd

    index = pd.RangeIndex(len(signature["inputs"])) if names is None else pd.Index(names)

    def framed(data, params):
        if isinstance(data, np.ndarray):
            data = pd.DataFrame(data, columns=index, copy=False)
        return predict(data)

    return Model(framed, "sklearn", "array", names, safe)


def _one_tensor(signature):
    inputs = signature.get("inputs") or []
    return len(inputs) == 1 and inputs[0].get("type") == "tensor" and inputs[0].get("name") is None


def _in_order(estimator, names):
    """Whether the signature's columns are those of the fit, in its order; if not, scikit-learn has to say so."""
    try:
        known = getattr(estimator, "feature_names_in_", None)
    except Exception:
        return False
    return known is None or names is None or [str(n) for n in known] == names


def _takes_arrays(estimator):
    """Whether an array gives the same answers as a DataFrame with the same columns of numbers."""
    try:
        return all(_plain(part) for part in _fed(estimator))
    except _Unknown:
        return False


class _Unknown(Exception):
    pass


def _plain(part):
    kind = type(part)
    if not kind.__module__.startswith("sklearn.") or kind.__name__ in _BY_NAME:
        return False
    # With set_output(transform="pandas") the names go on to the next step.
    return vars(part).get("_sklearn_output_config", {}).get("transform", "default") == "default"


def _fed(estimator):
    """The estimators that see the input itself, not what a step before them made of it.

    Raises:
        _Unknown: too many, or objects that cannot be looked into.
    """
    steps = vars(estimator).get("steps") if type(estimator).__name__ == "Pipeline" else None
    if steps and type(estimator).__module__.startswith("sklearn."):
        yield estimator
        if vars(estimator).get("transform_input"):
            raise _Unknown
        for _, step in steps:
            if step is not None and not isinstance(step, str):
                yield from _fed(step)
                return
        return
    yield from _reachable(estimator, _fed)


def _reachable(estimator, inner=None):
    """An estimator and all those that it holds, at any depth."""
    seen = set()
    pending = [estimator]
    while pending:
        item = pending.pop()
        if id(item) in seen or item is None or isinstance(item, (str, bytes, int, float, complex, type)):
            continue
        seen.add(id(item))
        if len(seen) > _LIMIT:
            raise _Unknown
        if isinstance(item, dict):
            pending.extend(item.values())
        elif isinstance(item, (list, tuple, set)):
            pending.extend(item)
        elif hasattr(item, "dtype") and hasattr(item, "tolist"):
            if getattr(item.dtype, "kind", "") == "O" and item.size < _LIMIT:
                pending.extend(item.ravel().tolist())
        elif _estimator_like(item):
            if inner is not None and item is not estimator and type(item).__name__ == "Pipeline":
                yield from inner(item)
                continue
            yield item
            if not type(item).__module__.startswith(_LEAVES):
                pending.extend(vars(item).values())


def _estimator_like(item):
    kind = type(item)
    named = hasattr(kind, "predict") or hasattr(kind, "transform") or hasattr(kind, "get_params")
    return hasattr(item, "__dict__") and (named or kind.__module__.startswith("sklearn."))


def _rows_apart(estimator):
    """Whether a row's answer depends on that row alone: so with everything of scikit-learn's but users' functions."""
    try:
        return all(map(_row_by_row, _reachable(estimator)))
    except _Unknown:
        return False


def _row_by_row(part):
    kind = type(part)
    if kind.__module__.partition(".")[0] not in ("sklearn", "xgboost", "lightgbm"):
        return False
    function = vars(part).get("func")
    return kind.__name__ != "FunctionTransformer" or function is None or type(function).__name__ == "ufunc"
