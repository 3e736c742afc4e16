"""From a variable of the notebook to a proven deployment, and YAML files made so: the verbs, a real control plane."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from jupyter_mlops.client.serving import DeploymentFailed
from jupyter_mlops.core.errors import MlopsError, NotFound, ParameterError, Refused
from jupyter_mlops.magics import commands
from jupyter_mlops.magics.context import Context
from jupyter_mlops.magics.expand import expand
from jupyter_mlops.magics.parser import parse, split

pytestmark = pytest.mark.story

RNG = np.random.default_rng(0)
X = pd.DataFrame({"height": RNG.normal(1.7, 0.1, 60), "width": RNG.normal(0.5, 0.1, 60)})
X["age"] = RNG.integers(1, 90, 60)
Y = (X["height"] + X["width"] > 2.2).to_numpy(dtype="int64")
MODEL = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, Y)
OTHER = LogisticRegression(C=0.01).fit(X, 1 - Y)


class Here:
    """Answers otherwise in every process: no deployment of it can be proven."""

    def predict(self, rows):
        import os

        return [float(os.getpid())] * len(rows)


@pytest.fixture(autouse=True)
def _home(shared_plane, monkeypatch):
    monkeypatch.setenv("JUPYTER_MLOPS_HOME", str(shared_plane.home))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shared_plane.tracking_uri)
    monkeypatch.setenv("JUPYTER_MLOPS_URL", shared_plane.url)


NAMES = {"X": X, "model": MODEL, "other": OTHER, "here": Here(), "np": np}


@pytest.fixture
def mlops(shared_plane, capsys):
    """``mlops(line)`` does what ``%mlops line`` does in a notebook with :data:`NAMES`; ``said()`` is what it told."""
    class Magic:
        def __call__(self, line: str):
            words = split(line, lambda text: expand(text, NAMES))
            return commands.run(parse(words), Context("magic", NAMES, where=shared_plane.place))

        def said(self) -> str:
            return capsys.readouterr().out

        @property
        def client(self):
            return Context("magic", NAMES, where=shared_plane.place).client

    return Magic()


def test_a_variable_is_served_and_proven_by_what_it_answered_here(mlops) -> None:
    deployment = mlops("deploy model -e people --sample X[:5]")
    said = mlops.said()
    assert "answering the sample here" in said and "Ready" in said
    assert deployment.proof["kind"] == "equal" and deployment.proof["passed"] is True and deployment.proof["rows"] == 5
    assert "its answers for 5 rows are those of the notebook" in deployment.text()
    assert np.array_equal(mlops("invoke people X[:7]"), MODEL.predict(X[:7]))
    assert np.array_equal(mlops("invoke people --example"), MODEL.predict(X[:5]))

    version = mlops.client.version("people/1")
    run = mlops.client.run(version.run_id)
    assert run.status == "FINISHED" and [m["name"] for m in run.models] == ["people"]
    import mlflow

    loaded = mlflow.pyfunc.load_model(version.uri)  # for other users of MLflow it is a model like any
    assert np.array_equal(loaded.predict(X[:5]), MODEL.predict(X[:5]))
    folder = mlflow.artifacts.download_artifacts(version.uri)
    with open(f"{folder}/requirements.txt") as f:
        pins = dict(line.split("==") for line in f.read().split())
    assert {"mlflow", "numpy", "pandas", "scikit-learn", "cloudpickle"} <= set(pins) and all(pins.values())
    assert loaded.metadata.signature.inputs.input_names() == ["height", "width", "age"]


def test_the_call_cell_runs_as_it_is(mlops) -> None:
    first, *middle, last = mlops.client.deployment("people", "v1").call_cell.split("\n")
    assert first == "%load_ext jupyter_mlops" and "key" not in "".join(middle).lower()
    names: dict = {}
    exec("\n".join(middle), names)  # noqa: S102 (our own text)
    words = split(last.removeprefix("%mlops "))
    answer = commands.run(parse(words), Context("magic", names, where=mlops.client.aio.transport.where))
    assert np.array_equal(answer, MODEL.predict(X[:2]))


def test_a_failed_proof_says_what_differs_and_the_old_one_goes_on(mlops) -> None:
    with pytest.raises(DeploymentFailed) as failed:
        mlops("deploy here -e people --sample X[:3]")
    shown = "\n".join(failed.value._render_traceback_())
    assert "row 0" in shown and "expected" in shown and "v1 goes on serving" in shown
    assert mlops.client.endpoint("people").shares == {"v1": 100}
    assert np.array_equal(mlops("invoke people X[:3]"), MODEL.predict(X[:3]))
    mlops.client.delete_deployment("people", failed.value.deployment.name)


def test_without_a_sample_one_is_found_and_the_old_one_is_replaced(mlops) -> None:
    deployment = mlops("deploy other -e people --model people-logistic --name v2 --skops")
    assert "the sample is X[:5], 5 rows that fit other" in mlops.said()
    assert deployment.model == "people-logistic/1" and deployment.at.shares == {"v2": 100}
    assert {d.name for d in mlops.client.deployments("people")} == {"v1", "v2"}  # named: the old one stays, at 0 %
    assert np.array_equal(mlops("invoke people X[:4] --deployment v1"), MODEL.predict(X[:4]))
    with pytest.raises(ParameterError, match="no variable"):
        commands.run(parse(split("deploy other -e people")), Context(
            "magic", {"other": OTHER}, where=mlops.client.aio.transport.where))


def test_traffic_is_shared_mirrored_and_taken_back(mlops) -> None:
    view = mlops("traffic people v1=75 v2=25")
    assert view.shares == {"v1": 75, "v2": 25} and 'traffic: v1 75 %, v2 25 %' in view.html()
    assert mlops("traffic people --rollback").shares == {"v2": 100}
    assert mlops("traffic people --mirror v1=50 --sticky X-User").endpoint.mirrored == {"v1": 50}
    for _ in range(8):
        mlops("invoke people X[:2]")
    view = mlops("traffic people --mirror off --sticky off")
    figures = {row["deployment"]: row for row in view.figures()}
    assert figures["v2"]["requests"] >= 8 and figures["v2"]["p95"] > 0 and not view.endpoint.mirrored
    assert "p99" in mlops("endpoints people --stats").text()
    history = mlops("endpoints people --history").text()
    assert re.search(r"traffic v2=100 → traffic v1=75 v2=25", history) and "rollback" in history
    for line, message in (
        ("traffic people v1=50 v2=49", "add up to"), ("traffic people v1=50 v3=50", "no deployment 'v3'"),
        ("traffic people --mirror v1", "DEPLOYMENT=PERCENT"), ("traffic people --promote", "canary"),
        ("traffic nobody", "does not exist"), ("endpoints people --token", "token"),
    ):
        with pytest.raises(MlopsError) as raised:
            mlops(line)
        assert message in raised.value.message, raised.value.message


def test_a_version_is_proven_by_rows_that_it_answers_here(mlops) -> None:
    deployment = mlops("deploy people/1 -e people --sample X[10:14] --traffic 30 --collect 10% --instances 2 --name v3")
    assert deployment.proof["kind"] == "equal" and deployment.spec["proof"]["origin"] == "model"
    assert deployment.at.shares == {"v2": 70, "v3": 30}
    assert deployment.spec["data_collector"]["sampling_rate"] == 0.1 and deployment.spec["instance_count"] == 2
    mlops("delete endpoint people --yes")


def test_torch_is_served_as_it_answered_in_eval_mode(mlops, monkeypatch) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.9), torch.nn.Linear(4, 2))
    rows = torch.rand(6, 3)
    monkeypatch.setitem(NAMES, "net", net)
    monkeypatch.setitem(NAMES, "rows", rows)
    deployment = mlops("deploy net -e net --sample rows[:3]")
    assert deployment.proof["kind"] == "equal" and net.training
    with torch.no_grad():
        assert np.allclose(mlops("invoke net rows"), net.eval()(rows).numpy(), rtol=1e-4)
    mlops("delete endpoint net --yes")


@pytest.mark.parametrize(("line", "message", "kind"), [
    ("deploy X -e d", "X is a DataFrame, not a fitted model", ParameterError),
    ("deploy nothing -e d", "nothing", NotFound),
    ("deploy model", "needs an endpoint's name", ParameterError),
    ("deploy model -e d --sample Q", "undefined variable `Q`", ParameterError),
    ("deploy model -e D --sample X", "endpoint name", ParameterError),
    ("deploy model -e d --sample X --canary 5 --traffic 5", "exclude each other", ParameterError),
    ("deploy model -e d --min 3 --max 2", "--min 3 is more than --max 2", ParameterError),
    ("deploy people/1 -e d --onnx", "--onnx converts a variable", ParameterError),
    ("deploy -e d --script none.py", "no script none.py", NotFound),
])
def test_what_cannot_be_deployed_leaves_nothing(mlops, line, message, kind) -> None:
    before = {m.name for m in mlops.client.models()}
    with pytest.raises(kind) as raised:
        mlops(line)
    assert message in raised.value.message and "\n" not in raised.value.message
    assert not any(e.name == "d" for e in mlops.client.endpoints())
    assert {m.name for m in mlops.client.models()} == before


ENDPOINT = """
$schema: https://azuremlschemas.azureedge.net/latest/managedOnlineEndpoint.schema.json
name: scored
auth_mode: key
traffic: {blue: 80, green: 20}
"""
DEPLOYMENT = """
$schema: https://azuremlschemas.azureedge.net/latest/managedOnlineDeployment.schema.json
name: %s
endpoint_name: scored
model: {path: model/weights.txt}
code_configuration: {code: src, scoring_script: score.py}
environment: {conda_file: conda.yml, image: "mcr.microsoft.com/azureml/minimal:latest"}
environment_variables: {PLUS: %d}
instance_type: Standard_DS3_v2
instance_count: 1
"""
SCRIPT = """
import json, os
from helper import times

def init():
    global weight
    with open(os.path.join(os.environ["AZUREML_MODEL_DIR"], "weights.txt")) as f:
        weight = float(f.read())

def run(raw):
    return [times(v, weight) + int(os.environ["PLUS"]) for v in json.loads(raw)["data"]]
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "src").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "src" / "score.py").write_text(SCRIPT)
    (tmp_path / "src" / "helper.py").write_text("def times(a, b):\n    return a * b\n")
    (tmp_path / "model" / "weights.txt").write_text("3")
    (tmp_path / "all.yml").write_text("---".join([ENDPOINT, DEPLOYMENT % ("blue", 1)]))
    (tmp_path / "green.yml").write_text(DEPLOYMENT % ("green", 2))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_files_are_checked_as_a_whole_then_made_then_left_alone(mlops, project) -> None:
    def actions(applied):
        return {row["name"]: row["action"] for row in applied.to_dict()}

    client = mlops.client
    wrong = (DEPLOYMENT % ("green", 2)).replace("instance_count", "instance_cuont")
    (project / "wrong.yml").write_text(wrong)
    for files, message in (
        ("all.yml wrong.yml", "wrong.yml: deployment YAML: field instance_cuont"),
        ("all.yml", "all.yml, document 1: traffic: endpoint scored has no deployment 'green'"),
        ("green.yml", "green.yml: endpoint_name: there is no endpoint 'scored'"),
        ("none.yml", "none.yml cannot be read"), ("all.yml all.yml", "is in all.yml, document 1 already"),
    ):
        with pytest.raises(MlopsError) as raised:
            mlops(f"apply -f {files}")
        assert message in raised.value.message, raised.value.message
    assert not any(e.name == "scored" for e in client.endpoints())
    dry = mlops("apply -f all.yml green.yml --dry-run")
    assert "would be created" in dry.text() and not any(e.name == "scored" for e in client.endpoints())

    applied = mlops("apply -f all.yml green.yml")
    assert actions(applied) == {"scored": "create", "scored/blue": "create", "scored/green": "create"}
    assert "environment.conda_file" in applied.text() and "model scored-blue/1" in applied.text()
    assert client.endpoint("scored").shares == {"blue": 80, "green": 20}
    assert mlops('invoke scored {"data": [1, 2]} --deployment blue').tolist() == [4.0, 7.0]  # a script's own form
    assert mlops('invoke scored {"data": [1, 2]} --deployment green').tolist() == [5.0, 8.0]

    assert set(actions(mlops("apply -f all.yml green.yml")).values()) == {"unchanged"}
    (project / "green.yml").write_text((DEPLOYMENT % ("green", 2)).replace("instance_count: 1", "instance_count: 2"))
    changed = mlops("apply -f green.yml")
    assert changed.items[0].changed == ["instance_count"] and client.deployment("scored", "green").phase == "Ready"
    (project / "green.yml").write_text(DEPLOYMENT % ("green", 9))
    with pytest.raises(Refused, match="environment_variables cannot change"):
        mlops("apply -f green.yml")
    mlops("delete endpoint scored --yes")
