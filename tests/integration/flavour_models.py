"""One small real model of every flavour that has a loader of its own, as MLflow saves them."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd


def flowers() -> tuple[pd.DataFrame, pd.Series]:
    """Iris with short names of its columns."""
    from sklearn.datasets import load_iris

    X, y = load_iris(return_X_y=True, as_frame=True)
    return X.set_axis(["sl", "sw", "pl", "pw"], axis=1), y


def save_flavours(folder: Path) -> dict[str, tuple[Path, Any, str]]:
    """Name → (model folder, an input for ``mlflow.pyfunc``, the loader that is to be used)."""
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _Saver(folder).all()


class _Saver:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.X, self.y = flowers()
        self.array = self.X.to_numpy(np.float32)
        self.saved: dict[str, tuple[Path, Any, str]] = {}

    def all(self) -> dict[str, tuple[Path, Any, str]]:
        self.sklearn()
        self.torch()
        self.xgboost()
        self.lightgbm()
        self.onnx()
        return self.saved

    def keep(self, name: str, loader: str, save: Any, model: Any, sample: Any = None, **more: Any) -> None:
        from mlflow.models import infer_signature

        sample = self.X[:7] if sample is None else sample
        signature = more.pop("signature", None) or infer_signature(sample)
        save(model, self.folder / name, signature=signature, pip_requirements=[], **more)
        self.saved[name] = (self.folder / name, sample, loader)

    def tensors(self, *shape: int) -> Any:
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        return ModelSignature(Schema([TensorSpec(np.dtype("float32"), shape)]))

    def sklearn(self) -> None:
        import mlflow.sklearn
        from sklearn.compose import make_column_transformer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import OneHotEncoder, StandardScaler

        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200)).fit(self.X, self.y)
        self.keep("sklearn-table", "sklearn", mlflow.sklearn.save_model, model, serialization_format="cloudpickle")
        self.keep("sklearn-proba", "sklearn", mlflow.sklearn.save_model, model, pyfunc_predict_fn="predict_proba",
                  serialization_format="pickle")
        by_array = LogisticRegression(max_iter=200).fit(self.array, self.y)
        self.keep("sklearn-tensor", "sklearn", mlflow.sklearn.save_model, by_array, self.array[:7],
                  signature=self.tensors(-1, 4), serialization_format="pickle")
        mixed = self.X.assign(who=["ab", "cd", None] * 50)
        parts = make_column_transformer((StandardScaler(), ["pl", "pw"]), (OneHotEncoder(), ["who"]))
        model = make_pipeline(parts, LogisticRegression(max_iter=200)).fit(mixed, self.y)
        self.keep("sklearn-mixed", "sklearn", mlflow.sklearn.save_model, model, mixed[:7],
                  serialization_format="cloudpickle")

    def torch(self) -> None:
        import mlflow.pytorch
        import torch

        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.9), torch.nn.Linear(8, 3))
        save = mlflow.pytorch.save_model
        self.keep("torch-tensor", "torch", save, net, self.array[:7], signature=self.tensors(-1, 4),
                  serialization_format="pickle")
        self.keep("torch-table", "torch", save, net, serialization_format="pickle")
        self.keep("torch-fixed", "torch", save, net, self.array[:2], signature=self.tensors(2, 4),
                  serialization_format="pickle")
        self.keep("torch-exported", "torch", save, net.eval(), self.array[:7], signature=self.tensors(-1, 4),
                  serialization_format="pt2", input_example=self.array[:7])

    def xgboost(self) -> None:
        import mlflow.xgboost
        import xgboost

        save = mlflow.xgboost.save_model
        self.keep("xgboost-classifier", "xgboost", save, xgboost.XGBClassifier(n_estimators=4).fit(self.X, self.y))
        matrix = xgboost.DMatrix(self.X, self.y)
        for kind in ("gbtree", "gblinear", "dart"):
            options = {"objective": "multi:softprob", "num_class": 3, "booster": kind, "verbosity": 0}
            self.keep(f"xgboost-{kind}", "xgboost", save, xgboost.train(options, matrix, 4))

    def lightgbm(self) -> None:
        import lightgbm
        import mlflow.lightgbm

        save = mlflow.lightgbm.save_model
        options = {"n_estimators": 4, "verbose": -1}
        model = lightgbm.LGBMClassifier(**options).fit(self.X, self.y)
        self.keep("lightgbm-classifier", "lightgbm", save, model, serialization_format="cloudpickle")
        self.keep("lightgbm-booster", "lightgbm", save, model.booster_)
        whole = self.X.assign(kind=[0, 1, 2] * 50)
        model = lightgbm.LGBMRegressor(**options).fit(whole, self.y)
        self.keep("lightgbm-integers", "lightgbm", save, model, whole[:7], serialization_format="pickle")
        # MLflow has no type for categories: they arrive as integers, which LightGBM refuses, here as there.
        model = lightgbm.LGBMRegressor(**options).fit(whole.astype({"kind": "category"}), self.y)
        self.keep("lightgbm-categories", "lightgbm", save, model, whole[:7], serialization_format="pickle")

    def onnx(self) -> None:
        import mlflow.onnx
        from skl2onnx import to_onnx
        from sklearn.linear_model import LinearRegression, LogisticRegression

        save = mlflow.onnx.save_model
        line = to_onnx(LinearRegression().fit(self.array, self.y), self.array[:1])
        self.keep("onnx-table", "onnx", save, line)
        self.keep("onnx-tensor", "onnx", save, line, self.array[:7], signature=self.tensors(-1, 4))
        classes = LogisticRegression(max_iter=200).fit(self.array, self.y)
        self.keep("onnx-labels", "onnx", save, to_onnx(classes, self.array[:1]))  # its answer has dictionaries
        self.keep("onnx-options", "onnx", save, line, onnx_session_options={
            "intra_op_num_threads": 1, "execution_mode": "sequential", "graph_optimization_level": 99})
