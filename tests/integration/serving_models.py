"""Real models as MLflow saves them, for the serving tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd

#: A model whose behaviour its parameter asks for; as code, so that no test module has to be importable by the scorer.
ECHO = '''
import os, time
import numpy as np, pandas as pd
import mlflow
from mlflow.models import set_model


class Echo(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        mode = params["mode"]
        if mode == "raise":
            raise ValueError("cannot open '/srv/secret/place/weights.bin'\\nsecond line")
        if mode == "exit":
            raise SystemExit(3)
        if mode == "die":
            time.sleep(params["seconds"])
            os._exit(7)
        if mode == "object":
            return object()
        if mode == "sleep":
            time.sleep(params["seconds"])
        if mode == "nan":
            return pd.DataFrame({"v": [np.nan, np.inf, 1.0], "t": pd.to_datetime(["2026-01-31", None, "2026-02-01"]),
                                 "b": [b"hi", b"", b"x"]})
        if mode == "env":
            return {k: v for k, v in os.environ.items()}
        first = model_input.iloc[0].map(str)
        return pd.DataFrame({"dtypes": [str(t) for t in model_input.dtypes], "first": list(first)})


set_model(Echo())
'''


def save_all(folder: Path) -> tuple[dict[str, Path], pd.DataFrame, object]:
    """Save every kind of model; (name → folder, the digits as a frame, the pipeline fitted on it)."""
    import mlflow
    from mlflow.models import ModelSignature, infer_signature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    X, y = load_digits(return_X_y=True, as_frame=True)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200)).fit(X, y)
    where = {name: folder / name for name in ("frame", "tensor", "echo", "broken", "bare")}

    def save(name, fitted, signature, **more):
        mlflow.sklearn.save_model(fitted, where[name], signature=signature, pip_requirements=[], **more)

    save("frame", model, infer_signature(X[:5], y[:5]))
    by_array = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200)).fit(X.to_numpy(), y)
    save("tensor", by_array, infer_signature(X.to_numpy()[:5]), serialization_format="cloudpickle",
         pyfunc_predict_fn="predict_proba")
    save("bare", model, None)
    inputs = [("n", DataType.long), ("x", DataType.double), ("who", DataType.string), ("ok", DataType.boolean)]
    signature = ModelSignature(
        inputs=Schema([ColSpec(t, n) for n, t in inputs] + [ColSpec(DataType.datetime, "at", required=False)]),
        params=ParamSchema([ParamSpec("mode", "string", "echo"), ParamSpec("seconds", "double", 0.0)]),
    )
    code = folder / "echo_model.py"
    code.write_text(ECHO)
    mlflow.pyfunc.save_model(where["echo"], python_model=str(code), signature=signature, pip_requirements=[])
    shutil.copytree(where["frame"], where["broken"])
    text = (where["broken"] / "MLmodel").read_text()
    text = text.replace("loader_module: mlflow.sklearn", "loader_module: flavor_not_here")
    (where["broken"] / "MLmodel").write_text(text)
    return where, X, model
