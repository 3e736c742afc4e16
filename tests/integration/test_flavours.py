"""Every flavour's short way answers what ``mlflow.pyfunc`` answers, or leaves the model to it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flavour_models import save_flavours

from jupyter_mlops.runtime import loading
from jupyter_mlops.runtime.answers import answer
from jupyter_mlops.serving.store import describe_model

NAMES = (
    "sklearn-table", "sklearn-proba", "sklearn-tensor", "sklearn-mixed", "torch-tensor", "torch-table", "torch-fixed",
    "torch-exported", "xgboost-classifier", "xgboost-gbtree", "xgboost-gblinear", "xgboost-dart", "lightgbm-classifier",
    "lightgbm-booster", "lightgbm-integers", "onnx-table", "onnx-tensor", "onnx-labels", "onnx-options",
)
ALONE = {"torch-fixed"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_flavours(tmp_path_factory.mktemp("flavours"))


def load(folder: Path) -> loading.Model:
    # As the scorer has it, from a file.
    return loading.load(str(folder), json.loads(json.dumps(describe_model(folder))))


def said(output: Any) -> Any:
    return json.loads(answer(output))["predictions"]


def same(a: Any, b: Any) -> bool:
    """Equal JSON: the same shape and types, numbers equal but for rounding in 32 bits."""
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= 1e-5 * max(abs(a), abs(b)) + 1e-6
    if type(a) is not type(b):
        return False
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(map(same, a.values(), b.values()))
    return bool(a == b)


def by_mlflow(folder: Path, sample: Any) -> Any:
    import mlflow.pyfunc

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return said(mlflow.pyfunc.load_model(str(folder), suppress_warnings=True).predict(sample))


@pytest.mark.parametrize("name", NAMES)
def test_the_short_way_answers_as_mlflow_does(saved, name):
    folder, sample, loader = saved[name]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*feature names")
        model = load(folder)
        assert model.loader == loader
        expected = by_mlflow(folder, sample)
        given = said(model.predict(sample.copy(), {}))
        assert same(given, expected), (given, expected)
        if model.wants == "array":
            array = np.ascontiguousarray(sample.to_numpy(np.result_type(*sample.dtypes)))
            given = said(model.predict(array, {}))
            assert same(given, expected), (given, expected)
            assert model.columns == list(sample.columns)
    assert model.batch_safe == (name not in ALONE)
    if model.batch_safe:  # rows are what is said of them alone
        alone = said(model.predict(sample[2:3].copy(), {}))
        whole = {k: v[2:3] for k, v in expected.items()} if isinstance(expected, dict) else expected[2:3]
        assert same(alone, whole)


def test_all_flavours_were_tried(saved):
    assert set(saved) == {*NAMES, "lightgbm-categories"}


def test_categories_fail_as_they_do_in_mlflow(saved):
    folder, sample, _ = saved["lightgbm-categories"]
    model = load(folder)
    assert model.wants == "frame"
    for predict in (lambda: by_mlflow(folder, sample), lambda: model.predict(sample, {})):
        with pytest.raises(ValueError, match="categorical_feature do not match"):
            predict()


def test_a_model_that_its_library_cannot_load_is_left_to_mlflow(saved, tmp_path, capfd):
    about = describe_model(saved["onnx-table"][0])
    about["native"]["data"] = "not-there.onnx"
    model = loading.load(str(saved["onnx-table"][0]), about)
    assert model.loader == "pyfunc" and model.wants == "frame" and not model.batch_safe
    assert same(said(model.predict(saved["onnx-table"][1], {})), by_mlflow(*saved["onnx-table"][:2]))
    lines = [line for line in capfd.readouterr().out.splitlines() if "without MLflow" in line]
    assert len(lines) == 1 and "/" not in lines[0]


def test_models_with_code_of_their_own_or_odd_paths_are_left_to_mlflow(saved, tmp_path):
    import shutil

    text = (saved["xgboost-gbtree"][0] / "MLmodel").read_text()
    for old, new in (("code: null", "code: code"), ("data: model.ubj", "data: ../model.ubj"),
                     ("data: model.ubj", "data: /etc/passwd")):
        folder = tmp_path / f"m{len(list(tmp_path.iterdir()))}"
        shutil.copytree(saved["xgboost-gbtree"][0], folder)
        (folder / "MLmodel").write_text(text.replace(old, new))
        assert describe_model(folder)["native"] is None


def test_packages_are_named_as_they_are_installed(saved):
    model = load(saved["sklearn-table"][0])
    assert model.packages["scikit-learn"] and model.packages["numpy"] == np.__version__
    assert "json" not in model.packages and "jupyter_mlops" not in model.packages


def test_torch_takes_named_inputs_and_gives_several_outputs(tmp_path):
    """MLflow refuses both."""
    import mlflow.pytorch
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    class Pair(torch.nn.Module):
        def forward(self, left, right):
            return {"sum": left + right, "both": (left, right)}

    schema = Schema([TensorSpec(np.dtype("float32"), (-1, 2), n) for n in ("left", "right")])
    mlflow.pytorch.save_model(Pair(), tmp_path / "pair", signature=ModelSignature(schema), pip_requirements=[],
                              serialization_format="pickle")
    one = np.ones((1, 2), np.float32)
    given = said(load(tmp_path / "pair").predict({"left": one, "right": one * 2}, {}))
    assert given == {"sum": [[3.0, 3.0]], "both": [[[1.0, 1.0]], [[2.0, 2.0]]]}


def test_torch_weights_are_mapped_and_gradients_off(saved):
    import torch

    model = load(saved["torch-tensor"][0])
    module = next(c.cell_contents for c in model.predict.__closure__ if isinstance(c.cell_contents, torch.nn.Module))
    assert not module.training
    maps = Path("/proc/self/maps").read_text()
    assert str(saved["torch-tensor"][0] / "data" / "model.pth") in maps
    frame = pd.DataFrame(saved["torch-tensor"][1])
    frame.flags.writeable = False  # read-only input is no reason to warn
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict(frame.to_numpy(), {})


def test_a_model_of_number_columns_is_loaded_and_called_without_pandas_or_mlflow(saved):
    """Half a second of the way from the command to the first answer, and memory of every instance."""
    import subprocess
    import sys

    folder, sample, _ = saved["sklearn-table"]
    program = """
import json, sys
from jupyter_mlops.runtime.loading import load
model = load(sys.argv[1], json.loads(sys.argv[2]))
import numpy as np
print(json.dumps([model.predict(np.array(json.loads(sys.argv[3])), {}).tolist(),
                  sorted({"pandas", "mlflow", "torch"} & set(sys.modules)), sorted(model.packages)]))
import pandas as pd  # later, by a request that is no block of numbers
print(json.dumps(model.predict(pd.DataFrame(json.loads(sys.argv[3]), columns=json.loads(sys.argv[4])), {}).tolist()))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(folder), json.dumps(describe_model(folder)),
         json.dumps(sample.to_numpy().tolist()), json.dumps(list(sample.columns))],
        capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert first[0] == second == by_mlflow(folder, sample)
    assert first[1] == [] and "scikit-learn" in first[2]
