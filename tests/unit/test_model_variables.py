"""A model in a variable: its kind, the sample that fits it, what it needs, and how its answers may differ."""

from __future__ import annotations

import subprocess
import sys
import types

import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from jupyter_mlops.client import flavour, pins, sample, variable
from jupyter_mlops.core.errors import MlopsError, ParameterError

X = pd.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], "b": [0.5, 0.1, 0.2, 0.3]})
Y = np.array([0, 1, 0, 1])
FITTED = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, Y)


class Duck:
    """Has predict, and is of no library."""

    def predict(self, rows):
        return [len(rows)] * len(rows)


class Called:
    def __call__(self, rows):
        return rows


def double(rows):
    return rows * 2


@pytest.mark.parametrize(("value", "name"), [
    (FITTED, "sklearn"), (KMeans(), "sklearn"), (Duck(), "pyfunc"), (Called(), "pyfunc"), (double, "pyfunc"),
    (StandardScaler(), None), (Duck, None), (X, None), (np.zeros(3), None), ("digits", None), (3, None), (np, None),
    (types.SimpleNamespace(), None), (print, None), ({"a": 1}, None), (variable.Logged(None), None),
])
def test_kinds(value: object, name: str | None) -> None:
    found = flavour.detect(value)
    assert (found.name if found else None) == name


def test_looking_at_variables_imports_no_library() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys\nfrom jupyter_mlops.client import flavour, sample, pins\n"
         "class M:\n  def predict(self, x): return x\n"
         "assert flavour.detect(M()).name == 'pyfunc' and flavour.detect({}) is None\n"
         "print([m for m in ('mlflow', 'numpy', 'pandas', 'sklearn', 'torch') if m in sys.modules])"],
        capture_output=True, text=True, timeout=60,
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_a_torch_model_answers_in_eval_mode_and_stays_as_it_was() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.9), torch.nn.Linear(8, 2))
    net.train()
    rows = sample.given(torch.ones(4, 3, dtype=torch.float64), "T", net, flavour.PYTORCH, {})
    assert rows.data.dtype == np.float32 and "float32" in rows.remarks[0]
    first = flavour.predict(net, flavour.PYTORCH, rows.data)
    assert np.array_equal(first, flavour.predict(net, flavour.PYTORCH, rows.data)) and first.shape == (4, 2)
    assert net.training and flavour.detect(net) is flavour.PYTORCH
    assert 1e-5 < variable.tolerance(first)["rtol"] < 1e-2 and variable.tolerance(np.ones(2)) == {}
    for answer in (first, pd.DataFrame(first), pd.Series(first[:, 0]), {"out": first}):
        assert variable.tolerance(answer)["rtol"] == 1e-4
    for answer in (pd.Series([0.5]), pd.DataFrame({"a": ["x"]}), ["x"], {"out": np.ones(1)}, "x"):
        assert variable.tolerance(answer) == {}


def test_what_is_not_fitted_or_no_model_is_refused() -> None:
    with pytest.raises(ParameterError, match="m is not fitted"):
        variable.answer(LogisticRegression(), "m", {"X": X})
    with pytest.raises(ParameterError, match="X is a DataFrame, not a fitted model"):
        variable.answer(X, "X", {})


def search(model, names):
    kind = flavour.detect(model)
    found, answer = sample.search(model, kind, "m", names, lambda data: flavour.predict(model, kind, data))
    assert np.array_equal(answer, model.predict(found.data))
    return found


def test_the_sample_is_found_by_the_models_own_columns() -> None:
    other = pd.DataFrame({"c": [1.0], "d": [2.0]})
    found = search(FITTED, {"other": other, "frame": X.assign(y=Y), "_x": X, "X_test": X[2:], "X_all": X})
    assert found.source == "X_all[:5]" and list(found.data.columns) == ["a", "b"]
    found = search(FITTED, {"other": other, "frame": X.assign(y=Y)})
    assert found.source == "frame[['a', 'b']][:5]" and found.rows == 4
    model = LinearRegression().fit(X.to_numpy(), Y)
    found = search(model, {"y": Y, "Z": np.ones((9, 3)), "A": np.ones((9, 2))})
    assert found.source == "A[:5]" and found.data.shape == (5, 2)


def test_nothing_that_fits_says_what_to_type() -> None:
    with pytest.raises(ParameterError) as raised:
        search(FITTED, {"Z": np.ones((2, 3)), "other": pd.DataFrame({"a": [1.0]})})
    assert "columns a, b" in raised.value.message and "--sample X[:5]" in raised.value.hint


def given(value, source="S", model=FITTED, names=None):
    return sample.given(value, source, model, flavour.SKLEARN, names or {})


def test_forms_of_a_sample() -> None:
    assert list(given(X.iloc[0]).data.columns) == ["a", "b"] and given(X.iloc[0]).rows == 1
    assert given([[1, 2], [3, 4]]).data.shape == (2, 2)
    assert given(np.array([1.0, 2.0])).data.shape == (1, 2)  # one row
    assert list(given([{"a": 1, "b": 2}]).data.columns) == ["a", "b"]
    assert given({"a": [1, 2], "b": [3, 4]}).rows == 2
    assert isinstance(given(pd.DataFrame([[1.0, 2.0]])).data, np.ndarray)  # names that are none
    assert given(["some", "text"]).data.tolist() == ["some", "text"]
    long = given(np.ones((5000, 2)))
    assert long.rows == sample.MOST_ROWS and "the first 100 of the 5000 rows" in long.remarks[0]
    assert given(np.ones((50, 224, 224, 3))).rows == 1


@pytest.mark.parametrize(("value", "message"), [
    (X[:0], "no rows"), (np.ones((0, 2)), "no rows"), (3, "is a int"), (np.array(3), "single value"),
    (pd.DataFrame({"a": [1], 7: [2]}), "column 7"),
])
def test_samples_that_are_none(value: object, message: str) -> None:
    with pytest.raises(ParameterError) as raised:
        given(value)
    assert message in raised.value.message and raised.value.hint


def test_integers_that_may_be_missing_become_double() -> None:
    ages = pd.DataFrame({"age": [30, 41], "n": [1, 2], "x": [0.5, 0.5]})
    whole = pd.DataFrame({"age": [30, None], "n": [1, 2], "x": [0.5, 0.5]})
    found = given(ages, "ages[:2]", names={"ages": ages, "whole": whole, "_hidden": whole.assign(n=0.5)})
    assert found.doubles == ["age"] and found.data["age"].dtype == "float64" and found.data["n"].dtype == "int64"
    assert "integer column age taken as double: in whole" in found.remarks[0]
    nullable = pd.DataFrame({"age": pd.array([1, None], dtype="Int64")})
    assert given(nullable, "nullable").doubles == ["age"] and given(nullable, "nullable").data["age"].isna().sum() == 1
    assert given(ages, "ages", names={"ages": ages}).remarks == []


def test_proofs_are_bounded_and_json() -> None:
    answered = variable.answer(FITTED, "m", {}, X, "X")
    proof = answered.proof()
    assert proof["expected"] == FITTED.predict(X).tolist() and proof["origin"] == "variable"
    assert proof["request"] == {"dataframe_split": {"columns": ["a", "b"], "data": X.to_numpy().tolist()}}
    assert proof["packages"]["scikit-learn"] and "numpy" in proof["packages"]
    wide = np.random.default_rng(0).random((64, 4000))
    short = variable.proof(wide, wide[:, 0], {}, {}, "variable")
    assert 0 < len(short["expected"]) == len(short["request"]["inputs"]) < 64
    with pytest.raises(MlopsError, match="one row"):
        variable.proof(np.ones((1, 400_000)) / 3, np.ones(1), {}, {}, "variable")


def test_a_model_that_fails_is_told_in_one_line() -> None:
    with pytest.raises(ParameterError) as raised:
        variable.answer(FITTED, "m", {}, np.ones((2, 7)), "Z")
    assert "m does not answer the sample Z: ValueError" in raised.value.message and "\n" not in raised.value.message


def test_needs_are_pinned_and_local_code_goes_along(tmp_path, monkeypatch) -> None:
    (tmp_path / "mine_help.py").write_text("import yaml\nK = 2\n")
    (tmp_path / "mine_model.py").write_text(
        "import mine_help\nclass Scaled:\n    def predict(self, rows):\n        return rows * mine_help.K\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import mine_model

    modules = flavour.modules_of({"step": [mine_model.Scaled()], "net": FITTED})
    assert {"mine_model", "sklearn", "numpy"} <= modules
    found = pins.needs(modules)
    assert [p.rpartition("/")[2] for p in sorted(found.code)] == ["mine_help.py", "mine_model.py"]
    assert found.packages["PyYAML"] and "mine_model" not in found.packages
    assert f"scikit-learn=={found.packages['scikit-learn']}" in found.requirements
    assert pins.Needs({"torch": "2.13.0+cpu"}).requirements == ["torch==2.13.0"]
