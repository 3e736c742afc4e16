"""Small models of any behaviour, put into a workspace without a tracking client."""

from __future__ import annotations

import json
import pickle
import sys

from conftest import Plane

MLMODEL = """\
flavors:
  python_function: {loader_module: mlflow.sklearn, model_path: model.pkl, predict_fn: predict, env: {}}
  sklearn: {pickled_model: model.pkl, serialization_format: pickle, sklearn_version: '1'}
signature:
  inputs: '[{"type": "tensor", "tensor-spec": {"dtype": "float64", "shape": [-1, 2]}}]'
"""
ARTIFACTS = "/mlflow/api/2.0/mlflow-artifacts/artifacts/0"


class Planted:
    """Unpickled, it is a model whose ``predict(a)`` is the expression ``code``; ``first`` runs when it is loaded."""

    def __init__(self, code: str, first: str = "None") -> None:
        self.code = code
        self.first = first

    def __reduce__(self):
        predict = f"lambda a: {self.code}"
        return eval, (f"({self.first}) or __import__('types').SimpleNamespace(predict={predict})",)


#: What models do; ``times`` multiplies the first column.
TIMES = "(a[:, 0] * {}).tolist()"
RAISES = "{}['planted']"
#: Answers small inputs, and raises on what callers send later: it passes its proof.
RAISES_LATER = "(a[:, 0] * 2).tolist() if a[0, 0] < 50 else {}['planted']"
DIES = "__import__('os')._exit(7)"
DIES_LATER = "(a[:, 0] * 2).tolist() if a[0, 0] < 50 else __import__('os')._exit(7)"
SLOW = "__import__('time').sleep(0.04) or (a[:, 0] * 2).tolist()"
LATE = "__import__('time').sleep(2) or (a[:, 0] * 2).tolist()"


def registered(plane: Plane, name: str, model: Planted, example: dict | None = None) -> str:
    """NAME/VERSION of the model, and of its example when it has one."""
    run = plane.post("/mlflow/api/2.0/mlflow/runs/create", {"experiment_id": "0"})["run"]["info"]["run_id"]
    files = {"MLmodel": MLMODEL.encode(), "model.pkl": pickle.dumps(model)}
    if example is not None:
        files["serving_input_example.json"] = json.dumps(example).encode()
    for file, data in files.items():
        status, body, _ = plane.call("PUT", f"{ARTIFACTS}/{run}/artifacts/model/{file}", data)
        assert status == 200, body
    made = plane.post(f"models/{name}/versions", {
        "run_id": run, "artifact": "model", "tags": {"mlops.interpreter": sys.executable},
    })
    return f"{name}/{made['version']}"
