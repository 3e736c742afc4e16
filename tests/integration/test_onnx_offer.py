"""A model is offered as ONNX when that is faster and answers the same, and not when it would not."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pandas as pd
import pytest
from flavour_models import flowers
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.svm import SVC

from jupyter_mlops.client.onnx import Offer, offer
from jupyter_mlops.runtime import loading
from jupyter_mlops.runtime.answers import answer
from jupyter_mlops.serving.store import describe_model

X, Y = flowers()
MIXED = X.assign(who=["ab", "cd", "ef"] * 50, count=range(150))


def fitted(model, data=X, target=Y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(data, target)


def asked(model, sample, expected=None, method="predict") -> tuple[Offer | None, str]:
    reasons: list[str] = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        expected = getattr(model, method)(sample) if expected is None else expected
        found = offer(model, sample, expected, method=method, told=reasons.append)
    assert not said
    assert (found is None) == (len(reasons) == 1) and all("\n" not in r and "/tmp" not in r for r in reasons)
    return found, "".join(reasons)


def served(found, sample, folder):
    """The offer as a deployment loads it."""
    import mlflow.onnx
    from mlflow.models import infer_signature

    mlflow.onnx.save_model(found.model, folder, signature=infer_signature(sample), metadata=found.metadata,
                           pip_requirements=[])
    return loading.load(str(folder), json.loads(json.dumps(describe_model(folder))))


def test_a_pipeline_on_a_table_keeps_columns_answer_and_errors(tmp_path):
    model = fitted(make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)), X, np.array(["a", "b", "c"])[Y])
    found, reason = asked(model, X[:6])
    assert found is not None, reason
    assert found.rows > 1000 and found.after[1] < found.before[1] and found.after[100] < found.before[100]
    assert "µs" in found.line and "\n" not in found.line
    loaded = served(found, X[:6], tmp_path / "m")
    assert (loaded.loader, loaded.wants, loaded.columns, loaded.batch_safe) == ("onnx", "array", list(X.columns), True)
    assert answer(loaded.predict(X, {})) == answer(model.predict(X))
    assert answer(loaded.predict(X.to_numpy(), {})) == answer(model.predict(X))
    for bad, word in ((np.nan, "NaN"), (np.inf, "infinity")):
        with pytest.raises(ValueError, match=word):  # ONNX Runtime alone would answer
            loaded.predict(X.replace(5.1, bad).to_numpy(), {})


def test_text_and_numbers_with_categories_that_nobody_has_seen(tmp_path):
    parts = make_column_transformer(
        (StandardScaler(), ["sl", "count"]), (OneHotEncoder(handle_unknown="ignore"), ["who"]))
    model = fitted(make_pipeline(parts, LogisticRegression(max_iter=300)), MIXED)
    found, reason = asked(model, MIXED[:9])
    assert found is not None, reason
    loaded = served(found, MIXED[:9], tmp_path / "m")
    assert loaded.wants == "frame"
    strange = MIXED[40:80].assign(who=["ab", "zz", None, "cd"] * 10)
    assert answer(loaded.predict(strange, {})) == answer(model.predict(strange))
    parts = make_column_transformer((StandardScaler(), ["sl"]), (OneHotEncoder(), ["who"]))
    found, reason = asked(fitted(make_pipeline(parts, LogisticRegression(max_iter=300)), MIXED), MIXED[:9])
    assert found is None and "refuses unknown text" in reason


def test_columns_by_name_are_cut_from_one_table(tmp_path):
    spaced = X.set_axis(["a b", "c(d)", "é", "pw"], axis=1)
    parts = make_column_transformer((StandardScaler(), ["pw", "a b"]), ("passthrough", ["é"]))
    model = fitted(make_pipeline(parts, LogisticRegression(max_iter=300)), spaced)
    found, reason = asked(model, spaced[:6], method="predict_proba")
    assert found is not None, reason
    loaded = served(found, spaced[:6], tmp_path / "m")
    assert loaded.wants == "array"
    assert np.allclose(loaded.predict(spaced.to_numpy(), {}), model.predict_proba(spaced), atol=1e-5)


@pytest.mark.parametrize("target", [Y.astype(float), Y > 1, np.c_[Y, Y * 0.5]])
def test_answers_keep_their_type_and_shape(tmp_path, target):
    kind = LinearRegression() if target.ndim == 2 else LogisticRegression(max_iter=300)
    model = fitted(kind, X.to_numpy(), target)
    found, reason = asked(model, X.to_numpy()[:6])
    assert found is not None, reason
    loaded = served(found, X.to_numpy()[:6], tmp_path / "m")
    given, wanted = loaded.predict(X.to_numpy(), {}), model.predict(X.to_numpy())
    assert given.dtype == wanted.dtype and given.shape == wanted.shape and np.allclose(given, wanted)


def test_what_differs_or_cannot_be_converted_is_no_offer():
    doubled = fitted(make_pipeline(FunctionTransformer(_double), LogisticRegression(max_iter=300)))
    assert "cannot be converted" in asked(doubled, X[:5])[1]
    model = fitted(LogisticRegression(max_iter=300))
    assert "as it did before" in asked(model, X[:5], expected=model.predict(X[:5]) + 1)[1]
    assert "only models of" in asked({"a": 1}, X[:5], expected=np.zeros(5))[1]
    # Values so close together that 32 bits, which is all that ONNX has for this one, cannot tell them apart.
    near = pd.DataFrame({"v": 1e6 + np.arange(200) * 1e-3})
    assert "answers as ONNX differ" in asked(fitted(SVC(), near, np.arange(200) > 90), near[60:120])[1]


def _double(data):
    return data * 2


def test_what_is_not_faster_is_no_offer(monkeypatch):
    from jupyter_mlops.client import onnx

    monkeypatch.setattr(onnx, "FASTER", 0.0)
    found, reason = asked(fitted(LinearRegression()), X[:5])
    assert found is None and "not faster" in reason and "µs" in reason


def test_torch_modules(tmp_path):
    import torch

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.BatchNorm1d(16), torch.nn.Dropout(), torch.nn.ReLU(),
                              torch.nn.Linear(16, 3)).eval()
    sample = X.to_numpy(np.float32)[:1].copy()
    expected = net(torch.from_numpy(sample)).detach().numpy()
    found, reason = asked(net.train(), sample, expected)
    assert found is not None, reason
    assert net.training  # left as it was
    many = X.to_numpy(np.float32).copy()
    wanted = net.eval()(torch.from_numpy(many)).detach().numpy()
    assert np.allclose(served(found, sample, tmp_path / "a").predict(many, {}), wanted, atol=1e-5)
    # A table in, records out, as MLflow's torch flavour has it.
    table, records = X[:5], pd.DataFrame(net(torch.from_numpy(many[:5])).detach().numpy())
    found, reason = asked(net, table, records)
    assert found is not None or "not faster" in reason
    if found:
        given = json.loads(answer(served(found, table, tmp_path / "b").predict(table, {})))["predictions"]
        assert [list(r) for r in given] == [["0", "1", "2"]] * 5
        assert np.allclose([list(r.values()) for r in given], records.to_numpy(), atol=1e-5)

    class Branch(torch.nn.Module):
        def forward(self, x):
            return x * 2 if x.sum() > 0 else x

    found, reason = asked(Branch(), many[:2], many[:2] * 2)
    assert found is None and "decides by values" in reason
