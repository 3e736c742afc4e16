"""scikit-learn models called with arrays: the answers are those for DataFrames, or DataFrames it is."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier, VotingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Perceptron, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, PowerTransformer, StandardScaler
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils import all_estimators

from jupyter_mlops.runtime import estimators
from jupyter_mlops.runtime.loading import no_needless_torch

RNG = np.random.default_rng(5)
COLUMNS = ["width", "height", "depth", "weight"]
X = pd.DataFrame(RNG.uniform(0.1, 2.0, (60, 4)), columns=COLUMNS)
Y = (X["width"] + X["depth"] > 2.0).astype(int)
SIGNATURE = {"inputs": [{"type": "double", "name": n, "required": True} for n in COLUMNS]}


class Centred(ClassifierMixin, BaseEstimator):
    """A user's class: a row's answer depends on the others."""

    def fit(self, X, y):
        self.names_ = list(X.columns)
        return self

    def predict(self, X):
        return (X[self.names_[0]] > X[self.names_[0]].mean()).to_numpy()


def answers(fitted, method="predict", signature=SIGNATURE, frame=X):
    """(what the estimator says of a DataFrame, what the model says of an array, the model)."""
    expected = getattr(copy.deepcopy(fitted), method)(frame)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*feature names")
        model = estimators.wrap(copy.deepcopy(fitted), method, signature)
        given = model.predict(np.ascontiguousarray(frame), {}) if model.wants == "array" else model.predict(frame, {})
    return expected, given, model


def same(given, expected):
    """Equal types and values, but for what another order of additions makes of the last digits."""
    given, expected = np.asarray(given), np.asarray(expected)
    if given.dtype != expected.dtype or given.shape != expected.shape:
        return False
    return np.allclose(given, expected, 1e-9, 1e-12) if given.dtype.kind == "f" else np.array_equal(given, expected)


def library():
    """Every classifier and regressor of the library that takes a table of positive numbers."""
    found = []
    with no_needless_torch():
        kinds = all_estimators(type_filter=["classifier", "regressor"])
    for name, kind in kinds:
        if name.endswith("CV") or name.startswith("GaussianProcess"):
            continue  # slow, and made of others
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                estimator = kind()
        except (TypeError, FutureWarning):
            continue  # a meta-estimator, which needs another, or one that is on its way out
        if "max_iter" in estimator.get_params() and estimator.get_params()["max_iter"]:
            estimator.set_params(max_iter=10)
        if "n_estimators" in estimator.get_params():
            estimator.set_params(n_estimators=5)
        found.append((name, estimator))
    return found


def test_every_estimator_of_the_library_answers_arrays_as_it_answers_frames():
    tried = 0
    for name, estimator in library():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                estimator.fit(X, Y)
                expected = estimator.predict(X)
            except Exception:
                continue  # several targets, or one feature only
        expected, given, model = answers(estimator)
        assert model.wants == "array" and model.batch_safe, name
        assert same(given, expected), name
        tried += 1
    assert tried > 55


MANY = {
    "pipeline": make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression()),
    "pipeline in it": make_pipeline(make_pipeline(MinMaxScaler(), PowerTransformer()), DecisionTreeClassifier()),
    "pipeline that skips": make_pipeline("passthrough", None, LogisticRegression()),
    "union": make_pipeline(FeatureUnion([("a", StandardScaler()), ("b", MinMaxScaler())]), LogisticRegression()),
    "grid": GridSearchCV(make_pipeline(StandardScaler(), LogisticRegression()), {"logisticregression__C": [0.1, 1]}),
    "vote": VotingClassifier([("a", Perceptron()), ("b", make_pipeline(MinMaxScaler(), KNeighborsClassifier()))]),
    "calibrated": CalibratedClassifierCV(RandomForestClassifier(5), cv=3),
    "target": TransformedTargetRegressor(Ridge(), transformer=StandardScaler()),
}


@pytest.mark.parametrize("name", MANY)
def test_estimators_made_of_others_take_arrays(name):
    expected, given, model = answers(MANY[name].fit(X, Y))
    assert model.wants == "array" and model.columns == COLUMNS and model.batch_safe
    assert same(given, expected)
    if hasattr(MANY[name], "predict_proba"):
        expected, given, _ = answers(MANY[name], "predict_proba")
        assert same(given, expected)


def test_columns_by_name_still_reach_a_column_transformer():
    parts = ColumnTransformer([("a", StandardScaler(), ["weight", "width"]), ("b", MinMaxScaler(), ["depth"])])
    expected, given, model = answers(make_pipeline(parts, LogisticRegression()).fit(X, Y))
    assert same(given, expected) and model.wants == "array" and model.batch_safe
    categories = HistGradientBoostingClassifier(max_iter=5, categorical_features=["height"])
    whole = X.assign(height=(X["height"] * 3).astype(int).astype(float))
    expected, given, _ = answers(categories.fit(whole, Y), frame=whole)
    assert same(given, expected)


def test_names_that_go_on_to_the_next_step_are_kept():
    pandas_between = make_pipeline(StandardScaler(), LogisticRegression()).set_output(transform="pandas")
    expected, given, _ = answers(pandas_between.fit(X, Y))
    assert same(given, expected)


def test_a_users_function_or_class_gets_frames_and_one_request_at_a_time():
    spread = FunctionTransformer(lambda frame: frame - frame.mean())
    expected, given, model = answers(make_pipeline(spread, LogisticRegression()).fit(X, Y))
    assert same(given, expected) and not model.batch_safe
    assert answers(make_pipeline(FunctionTransformer(np.log1p), LogisticRegression()).fit(X, Y))[2].batch_safe
    expected, given, model = answers(Centred().fit(X, Y))
    assert same(given, expected) and not model.batch_safe
    assert not answers(LogisticRegression().fit(X, Y))[2].packages


def test_other_columns_than_those_of_the_fit_are_an_error_as_before():
    fitted = LogisticRegression().fit(X[COLUMNS[::-1]], Y)
    model = estimators.wrap(fitted, "predict", SIGNATURE)
    with pytest.raises(ValueError, match="feature names"):
        model.predict(np.ascontiguousarray(X), {})


def test_missing_and_infinite_values_are_treated_as_before():
    hole = X.copy()
    hole.iloc[3, 1] = np.nan
    expected, given, _ = answers(HistGradientBoostingClassifier(max_iter=5).fit(X, Y), frame=hole)
    assert same(given, expected)
    model = estimators.wrap(LogisticRegression().fit(X, Y), "predict", SIGNATURE)
    with pytest.raises(ValueError, match="NaN"):
        model.predict(hole.to_numpy(), {})
    with pytest.raises(ValueError, match="infinity"):
        model.predict(np.full((1, 4), np.inf), {})


def test_a_frame_may_come_where_an_array_was_asked_for():
    model = estimators.wrap(LogisticRegression().fit(X, Y), "predict", SIGNATURE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(model.predict(X, {}), model.predict(X.to_numpy(), {}))


def test_text_columns_get_frames():
    signature = {"inputs": [{"type": "double", "name": "width"}, {"type": "string", "name": "who"}]}
    fitted = make_pipeline(ColumnTransformer([("a", StandardScaler(), ["width"])]), LogisticRegression()).fit(X, Y)
    assert estimators.wrap(fitted, "predict", signature).wants == "frame"
