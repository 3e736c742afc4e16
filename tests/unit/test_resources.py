"""Names and specs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_mlops.core.errors import ParameterError
from jupyter_mlops.core.resources import NAME, DeploymentSpec, check_name, generate_name
from jupyter_mlops.core.resources.endpoint import spread
from jupyter_mlops.core.workspace import parse_spec


@pytest.mark.parametrize("name", ["a", "train-1", "a" * 40])
def test_good_names(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "A", "1a", "a-", "-a", "a" * 41, "../x", "a/b", "a\n", "ä", "a b", "a.b", "a%2fb"]
)
def test_bad_names(name):
    with pytest.raises(ParameterError):
        check_name(name)


@given(st.text(max_size=80))
def test_generated_names_are_valid(text):
    assert NAME.match(generate_name(text))


@pytest.mark.parametrize(
    ("kind", "spec", "word"),
    [
        ("job", {}, "exactly one of"),
        ("job", {"script": "a.py", "command": "ls"}, "exactly one of"),
        ("job", {"command": "ls", "args": ["x"]}, "args needs script"),
        ("job", {"script": "a.py", "cwd": "here"}, "absolute"),
        ("job", {"script": "a.py", "surprise": 1}, "surprise"),
        ("job", {"script": "a\0.py"}, "NUL"),
        ("job", {"script": "a.py", "environment_variables": {"JUPYTER_MLOPS_TOKEN": "x"}}, "reserved"),
        ("job", {"script": "a.py", "distribution": {"type": "ray"}}, "distribution"),
        ("job", {"command": "ls", "distribution": {"type": "pytorch", "process_count_per_instance": 2}}, "command"),
        ("deployment", {"model": "digits"}, "neither"),
        ("deployment", {"model": "digits/latest"}, "neither"),
        ("deployment", {"model": "azureml:digits"}, "neither"),
        ("deployment", {"model": "runs:/abc"}, "neither"),
        ("deployment", {}, "model, code_configuration"),
        ("deployment", {"model": "m/1", "interpreter": "python3"}, "interpreter: interpreter must be an absolute"),
        ("deployment", {"model": "m/1", "instance_count": 0}, "instance_count"),
        ("deployment", {"model": "m/1", "scale_settings": {"min_instances": 3, "max_instances": 2}}, "min_instances 3"),
        ("deployment", {"model": "m/1", "request_settings": {"max_queue": 0}}, "request_settings.max_queue"),
        ("deployment", {"model": "m/1", "data_collector": {"sampling_rate": 2}}, "data_collector.sampling_rate"),
        ("deployment", {"model": "m/1", "environment_variables": {"A=B": "x"}}, "A=B"),
        ("deployment", {"model": "m/1", "proof": {"expected": [1]}}, "expected needs request"),
        ("deployment", {"model": "m/1", "proof": {"request": {"inputs": ["x" * 4_000_000]}}}, "fewer rows"),
        ("deployment", {"code_configuration": {"code": "./src", "scoring_script": "a.py"}}, "code_configuration.code"),
        ("deployment", {"code_configuration": {"code": "blob:" + "0" * 64, "scoring_script": "../a.py"}}, "inside"),
        ("deployment", {"model": "m/1", "resources": {"requests": {"cpu": "lots"}}}, "'lots'"),
        ("endpoint", {"auth_mode": "aml_token"}, "auth_mode"),
        ("endpoint", {"traffic": {"blue": 30}}, "0 or 100"),
        ("endpoint", {"traffic": {"blue": 100, "green": 100}}, "add up"),
        ("endpoint", {"traffic": {"blue": 110, "green": -10}}, "'blue' is 110"),
        ("endpoint", {"mirror_traffic": {"blue": 10, "green": 10}}, "at most one"),
        ("endpoint", {"mirror_traffic": {"blue": 0}}, "1 to 100"),
        ("endpoint", {"traffic": {"blue": 100}, "mirror_traffic": {"blue": 10}}, "mirror to another"),
        ("endpoint", {"sticky_header": "X User"}, "sticky_header"),
        ("endpoint", {"canary": {"deployment": "Green"}}, "canary.deployment"),
        ("endpoint", {"canary": {"deployment": "green", "percent": 100}}, "canary.percent"),
        ("compute", {"type": "cloud"}, "type"),
        ("job", [], "must be an object"),
    ],
)
def test_bad_specs_name_the_field_in_one_line(kind, spec, word):
    with pytest.raises(ParameterError) as e:
        parse_spec(kind, spec)
    assert word in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("digits/3", "digits/3"), ("digits@champion", "digits@champion"), ("runs:/0a1b/model", "runs:/0a1b/model"),
        ("azureml:digits:3", "digits/3"), ("azureml:digits@latest", "digits@latest"),
    ],
)
def test_how_a_deployment_may_name_its_model(given, kept):
    assert parse_spec("deployment", {"model": given}).model == kept


def test_how_many_run_at_first_and_which_probes():
    scale = {"type": "target_utilization", "min_instances": 0, "max_instances": 3}
    assert DeploymentSpec(model="m/1", instance_count=2).first_instances == 2
    assert DeploymentSpec(model="m/1", instance_count=5, scale_settings=scale).first_instances == 1
    assert DeploymentSpec(model="m/1", scale_settings={**scale, "min_instances": 2}).first_instances == 2
    assert DeploymentSpec(model="m/1").probes == {}
    found = DeploymentSpec(model="m/1", readiness_probe={"period": 3}).probes
    assert list(found) == ["readiness_probe"] and found["readiness_probe"]["period"] == 3


def test_a_deployment_tells_what_it_ignores():
    spec = parse_spec("deployment", {"model": "m/1", "app_insights_enabled": True, "model_mount_path": "/models"})
    assert spec.ignored == ["app_insights_enabled", "model_mount_path"]


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 100), max_size=6), st.integers(10, 100))
def test_shares_are_spread_without_losing_any(shares, total):
    live = {name for name, share in shares.items() if share}
    found = spread(shares, total)
    assert found.keys() == live
    assert sum(found.values()) == (total if live else 0)
    assert all(share >= 1 for share in found.values())


def test_shares_keep_their_proportions():
    assert spread({"a": 50, "b": 50, "c": 0}, 90) == {"a": 45, "b": 45}
    assert spread({"a": 99, "b": 1}, 50) == {"a": 49, "b": 1}
    assert spread({"a": 100}, 90) == {"a": 90}
