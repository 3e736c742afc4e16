"""Endpoints and deployments in YAML."""

from __future__ import annotations

import pytest
import yaml

from jupyter_mlops.core.errors import MlopsError
from jupyter_mlops.core.resources.manifest import from_yaml

SCHEMA = "$schema: https://azuremlschemas.azureedge.net/latest/"
ENDPOINT = SCHEMA + """managedOnlineEndpoint.schema.json
name: digits
auth_mode: aml_token
description: digits of people
tags: {team: 7, live: true}
compute: azureml:lab
identity: {type: system_assigned}
location: westeurope
public_network_access: disabled
traffic: {blue: 90, green: 10}
mirror_traffic: {grey: 5}
"""
DEPLOYMENT = SCHEMA + """kubernetesOnlineDeployment.schema.json
name: blue
endpoint_name: digits
type: kubernetes
model: azureml:digits:3
code_configuration:
  code: ../onlinescoring
  scoring_script: score.py
environment:
  image: ghcr.io/lab/scoring:1
  conda_file: env.yml
  inference_config: {scoring_route: {path: /score, port: 5001}}
environment_variables: {WORKERS: 2, DEBUG: true, NAME: x}
instance_type: Standard_DS3_v2
instance_count: 2
app_insights_enabled: true
egress_public_network_access: disabled
scale_settings: {type: target_utilization, min_instances: 1, max_instances: 4, target_utilization_percentage: 60}
request_settings: {request_timeout_ms: 5000, max_concurrent_requests_per_instance: 1, max_queue_wait_ms: 500}
liveness_probe: {initial_delay: 5, period: 7, timeout: 3, success_threshold: 1, failure_threshold: 10}
resources: {requests: {cpu: 1, memory: 1Gi, nvidia.com/gpu: 1}, limits: {cpu: "2"}}
data_collector:
  sampling_rate: 0.1
  rolling_rate: Day
  collections:
    model_inputs: {enabled: 'True', data: {name: seen}}
    request: {enabled: 'True'}
"""


def read(text: str, **more):
    return from_yaml(yaml.safe_load(text), **more)


def test_an_endpoint():
    kind, parent, name, spec, ignored = read(ENDPOINT)
    assert (kind, parent, name) == ("endpoint", "", "digits")
    assert spec == {
        "auth_mode": "token", "description": "digits of people", "tags": {"team": "7", "live": "true"},
        "compute": "lab", "public_network_access": "disabled", "traffic": {"blue": 90, "green": 10},
        "mirror_traffic": {"grey": 5},
    }
    assert ignored == ["identity", "location"]


def test_a_deployment():
    kind, parent, name, spec, ignored = read(DEPLOYMENT)
    assert (kind, parent, name) == ("deployment", "digits", "blue")
    assert spec["model"] == "azureml:digits:3" and spec["environment"] == "ghcr.io/lab/scoring:1"
    assert spec["code_configuration"] == {"code": "../onlinescoring", "scoring_script": "score.py"}
    assert spec["environment_variables"] == {"WORKERS": "2", "DEBUG": "true", "NAME": "x"}
    assert spec["resources"]["requests"] == {"cpu": "1", "memory": "1Gi", "nvidia.com/gpu": "1"}
    assert spec["request_settings"]["request_timeout_ms"] == 5000 and spec["instance_count"] == 2
    assert spec["data_collector"] == {
        "sampling_rate": 0.1,
        "collections": {"model_inputs": {"enabled": True}, "model_outputs": {"enabled": False}},
    }
    assert set(ignored) == {
        "type", "environment.conda_file", "environment.inference_config", "app_insights_enabled",
        "egress_public_network_access", "data_collector.rolling_rate", "data_collector.collections.request",
        "data_collector.collections.model_inputs.data",
    }


@pytest.mark.parametrize(
    ("model", "reference"),
    [
        ("digits/3", "digits/3"), ("digits@champion", "digits@champion"), ("runs:/0a1b/model", "runs:/0a1b/model"),
        ("azureml:digits@latest", "azureml:digits@latest"), ("{name: digits, version: 3, path: ./x}", "digits/3"),
        ("{path: runs:/0a1b/model, type: mlflow_model}", "runs:/0a1b/model"),
    ],
)
def test_models(model, reference):
    assert read(f"name: blue\nendpoint_name: digits\nmodel: {model}")[3]["model"] == reference


def test_an_endpoint_may_be_named_beside_the_file():
    text = SCHEMA + "managedOnlineDeployment.schema.json\nname: blue\nmodel: m/1"
    assert read(text, endpoint="digits")[1] == "digits"


def test_an_environment_of_a_registry_is_ignored():
    _, _, _, spec, ignored = read("name: blue\nendpoint_name: digits\nmodel: m/1\nenvironment: azureml:env:4")
    assert "environment" not in spec and ignored == ["environment"]


def test_what_is_ours_may_stand_beside():
    spec = read("name: digits\nsticky_header: X-User\ncanary: {deployment: green, percent: 5}")[3]
    assert spec == {"sticky_header": "X-User", "canary": {"deployment": "green", "percent": 5}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a", "no mapping"),
        ("auth_mode: key", "name is missing"),
        ("name: 7", "name must be text"),
        ("name: My_Endpoint", "'My_Endpoint' is not valid"),
        ("name: digits\nauthmode: key", "field authmode is not known (did you mean auth_mode?)"),
        ("name: digits\ntraffic: {blue: 50}", "traffic: the shares"),
        ("name: digits\nauth_mode: password", "auth_mode"),
        (SCHEMA + "managedOnlineDeployment.schema.json\nname: blue", "endpoint_name is missing"),
        ("name: blue\nendpoint_name: digits", "give model, code_configuration"),
        ("name: blue\nendpoint_name: digits\nmodel: m/1\ninstance_cont: 2", "did you mean instance_count?"),
        ("name: blue\nendpoint_name: digits\nmodel: m/1\nrequest_settings: {timeout: 2}", "request_settings.timeout"),
        ("name: blue\nendpoint_name: digits\nmodel: {path: ./m}", "'./m' are not registered"),
        ("name: blue\nendpoint_name: digits\nmodel: m/1\ndata_collector: {colections: {}}",
         "data_collector.colections is not known (did you mean data_collector.collections?)"),
        ("name: blue\nendpoint_name: digits\nmodel: m/1\nenvironment_variables: {A: [1]}", "environment_variables.A"),
        ("name: blue\nendpoint_name: digits\ncode_configuration: {code: ./src}", "code_configuration.scoring_script"),
        (SCHEMA + "batchEndpoint.schema.json\nname: digits", "%mlops batch"),
        (SCHEMA + "commandJob.schema.json\nname: digits", "neither an online endpoint, a deployment nor a compute"),
    ],
)
def test_mistakes_are_named_in_one_line(text, words):
    with pytest.raises(MlopsError) as e:
        read(text)
    assert words in str(e.value) and "\n" not in str(e.value)
