"""What may pass to MLflow: the allow-list, path tricks, places for artifacts, GraphQL."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_mlops.core.errors import Forbidden, MlopsError, ParameterError
from jupyter_mlops.core.identity import Identity
from jupyter_mlops.core.policy import allowed
from jupyter_mlops.tracking import rules
from jupyter_mlops.tracking.proxy import parse_body
from jupyter_mlops.tracking.rules import RULES, artifact_owner, canonical, check_graphql, check_locations, match

READER = Identity("u", "reader")
RUN = "0123456789abcdef0123456789abcdef"

ALLOWED = [
    ("POST", "/api/2.0/mlflow/experiments/search", "experiments/read"),
    ("GET", "/ajax-api/2.0/mlflow/experiments/get", "experiments/read"),
    ("POST", "/api/2.0/mlflow/experiments/create", "experiments/write"),
    ("POST", "/api/2.0/mlflow/experiments/delete", "experiments/delete"),
    ("POST", "/api/2.0/mlflow/runs/create", "runs/write"),
    ("POST", "/api/2.0/mlflow/runs/log-batch", "runs/write"),
    ("POST", "/ajax-api/2.0/mlflow/runs/search", "runs/read"),
    ("POST", "/api/2.0/mlflow/runs/delete", "runs/delete"),
    ("GET", "/ajax-api/2.0/mlflow/metrics/get-history-bulk-interval", "runs/read"),
    ("POST", "/api/2.0/mlflow/logged-models", "runs/write"),
    ("PATCH", "/api/2.0/mlflow/logged-models/m-1", "runs/write"),
    ("GET", "/ajax-api/2.0/mlflow/logged-models/m-1/artifacts/files", "runs/read"),
    ("POST", "/api/3.0/mlflow/traces", "runs/write"),
    ("POST", "/ajax-api/3.0/mlflow/traces/search", "runs/read"),
    ("GET", "/ajax-api/3.0/mlflow/get-trace-artifact", "runs/read"),
    ("POST", "/v1/traces", "runs/write"),
    ("POST", "/ajax-api/3.0/mlflow/datasets/search", "experiments/read"),
    ("GET", "/get-artifact", "runs/read"),
    ("HEAD", "/get-artifact", "runs/read"),
    ("GET", "/model-versions/get-artifact", "models/read"),
    ("GET", "/api/2.0/mlflow-artifacts/artifacts", "runs/read"),
    ("GET", f"/api/2.0/mlflow-artifacts/artifacts/0/{RUN}/artifacts/a/b.txt", "runs/read"),
    ("PUT", f"/api/2.0/mlflow-artifacts/artifacts/0/{RUN}/artifacts/a%20b%25%C3%A4.txt", "runs/write"),
    ("PUT", "/api/2.0/mlflow-artifacts/artifacts/0/models/m-1/artifacts/MLmodel", "runs/write"),
    ("DELETE", f"/api/2.0/mlflow-artifacts/artifacts/0/{RUN}/artifacts", "runs/delete"),
    ("POST", f"/api/2.0/mlflow-artifacts/mpu/create/0/{RUN}/artifacts/x", "runs/write"),
    ("POST", "/api/2.0/mlflow/registered-models/create", "models/write"),
    ("DELETE", "/api/2.0/mlflow/registered-models/delete", "models/delete"),
    ("POST", "/api/2.0/mlflow/registered-models/alias", "models/write"),
    ("POST", "/api/2.0/mlflow/model-versions/create", "models/write"),
    ("POST", "/graphql", "runs/read"),
    ("GET", "/", "workspaces/read"),
    ("GET", "/static-files/static/js/main.js", "workspaces/read"),
    ("GET", "/health", "workspaces/read"),
    ("GET", "/version", "workspaces/read"),
    ("GET", "/ajax-api/3.0/mlflow/server-info", "workspaces/read"),
    ("GET", "/ajax-api/2.0/mlflow/users/current", "workspaces/read"),
]

REFUSED = [
    ("GET", "/ajax-api/3.0/mlflow/assistant/config"),
    ("POST", "/ajax-api/3.0/mlflow/assistant/message"),
    ("GET", "/ajax-api/3.0/mlflow/gateway/secrets/list"),
    ("POST", "/ajax-api/3.0/mlflow/gateway/endpoints/create"),
    ("POST", "/gateway/x/mlflow/invocations"),
    ("POST", "/ajax-api/2.0/mlflow/gateway-proxy"),
    ("GET", "/ajax-api/2.0/mlflow/gateway-proxy"),
    ("POST", "/api/2.0/mlflow/webhooks"),
    ("GET", "/api/2.0/mlflow/webhooks"),
    ("POST", "/ajax-api/3.0/mlflow/jobs"),
    ("GET", "/ajax-api/3.0/mlflow/jobs/x"),
    ("POST", "/ajax-api/3.0/mlflow/scorer/invoke"),
    ("POST", "/ajax-api/3.0/mlflow/genai/evaluate/invoke"),
    ("POST", "/ajax-api/3.0/mlflow/demo/generate"),
    ("POST", "/ajax-api/3.0/mlflow/workspaces"),
    ("POST", "/ajax-api/3.0/mlflow/scorers/register"),
    ("POST", "/ajax-api/2.0/mlflow/runs/create-promptlab-run"),
    ("GET", "/graphql"),
    ("OPTIONS", "/api/2.0/mlflow/runs/search"),
    ("DELETE", "/api/2.0/mlflow/runs/create"),
    ("GET", "/api/2.0/mlflow/runs/create"),
    ("POST", "/api/4.0/mlflow/runs/create"),
    ("POST", "/API/2.0/mlflow/runs/create"),
    ("POST", "/ajax-api/2.0mlflow/experiments/search-datasets"),
    ("POST", "/api/2.0/mlflow/users/create"),
    ("GET", "/build/index.html"),
    ("GET", "/static-filesx"),
    ("GET", "/static-files"),
    ("GET", "/metrics"),
    ("PUT", "/api/2.0/mlflow-artifacts/artifacts/0"),
    ("PUT", "/api/2.0/mlflow-artifacts/artifacts/x"),
    ("PUT", f"/api/2.0/mlflow-artifacts/artifacts/0/{RUN}/other/x"),
    ("DELETE", "/api/2.0/mlflow-artifacts/artifacts/0"),
    ("DELETE", f"/api/2.0/mlflow-artifacts/artifacts/0/{RUN}"),
]

TRICKS = [
    "/api/2.0/mlflow/runs/../assistant", "/api/2.0/mlflow//runs/search", "//api/2.0/mlflow/runs/search",
    "/static-files/../graphql", "/static-files/%2e%2e/graphql", "/static-files/%2E%2E%2Fgraphql",
    "/static-files/%252e%252e/graphql", "/static-files/%25252e%25252e/graphql", "/static-files/..%5cx",
    "/static-files/a%5Cb", "/static-files/a\\b", "/static-files/a%00b", "/static-files/a%0ab", "/static-files/./a",
    "/static-files/a%2fb", "/static-files/a%252fb", "/static-files/%c0%ae%c0%ae/x", "/static-files/%zz",
    "/static-files/%", "/static-files/a/", "/static-files/%7f", "/static-files/%25252525252525252e",
    f"/api/2.0/mlflow-artifacts/artifacts/0/{RUN}/artifacts/../../x",
    f"/api/2.0/mlflow-artifacts/artifacts/0/{RUN}/artifacts/%2e%2e/%2e%2e/x",
    "/get-artifact/", "", "health",
]


@pytest.mark.parametrize(("method", "path", "action"), ALLOWED)
def test_allowed(method, path, action):
    assert match(method, path).rule.action == action


@pytest.mark.parametrize(("method", "path"), REFUSED)
def test_refused(method, path):
    with pytest.raises(Forbidden):
        match(method, path)


@pytest.mark.parametrize("path", TRICKS)
def test_tricks(path):
    with pytest.raises(ParameterError):
        match("GET", path)


@given(st.text(max_size=40))
def test_whatever_passes_is_harmless(text):
    for raw in ("/static-files/" + text, "/static-files/" + quote(text, safe="")):
        try:
            decoded, encoded = canonical(raw)
        except MlopsError:
            continue
        assert encoded.isascii() and unquote(encoded) == decoded
        while True:
            assert not re.search(r"[\x00-\x1f\x7f\\]", decoded)
            assert not {"", ".", ".."} & set(decoded[1:].split("/"))
            further = unquote(decoded, errors="strict")
            if further == decoded:
                break
            decoded = further


def test_a_reader_only_reads():
    for rule in RULES:
        if allowed(READER, rule.action):
            assert rule.reads and not rule.changes and not rule.audit, rule
        else:
            assert rule.action.split("/")[-1] in ("write", "delete", "restore"), rule


def test_what_mlflow_creates_and_deletes_is_audited():
    for rule in RULES:
        family = rule.template.split("/")[0]
        if family in ("registered-models", "model-versions") and not rule.reads:
            assert rule.audit, rule
    audited = {r.operation for r in RULES if r.audit}
    assert {"POST runs/create", "POST runs/delete", "POST runs/restore", "POST experiments/create"} <= audited
    assert all(len(r.methods) == 1 for r in RULES if r.audit)


def test_every_route_of_mlflow_is_decided_on():
    """A new MLflow brings new routes: each family is either in the table or named here as refused."""
    from mlflow.server.handlers import get_endpoints

    refused = {
        "gateway", "webhooks", "jobs", "scorers", "scorer", "prompt-optimization", "workspaces", "issues", "demo",
        "label-schemas", "review-queues", "genai", "invoke", "secrets", "evaluate", "gateway-proxy", "assistant",
        "mcp-servers",
    }
    unknown = set()
    for path, _, methods in get_endpoints():
        sample = re.sub(r"<[^>]*artifact_path>", f"0/{RUN}/artifacts/x", path)
        sample = re.sub(r"<[^>]*>", "x", sample)
        for method in methods:
            try:
                match(method, sample)
            except Forbidden:
                family = re.sub(r"^/(ajax-)?api/\d\.\d/mlflow/", "", path).strip("/").split("/")[0]
                if family not in refused:
                    unknown.add((method, path))
    # A query in an URL, and what seems to be a slip of MLflow's own.
    slips = {f"/{a}api/2.0mlflow/experiments/search-datasets" for a in ("", "ajax-")}
    assert {p for _, p in unknown} <= {"/graphql", *slips}
    assert ("POST", "/graphql") not in unknown


LOCATIONS = [
    ("experiments/create", {"name": "x", "artifact_location": "file:///etc"}),
    ("experiments/create", {"name": "x", "artifactLocation": "/etc"}),
    ("experiments/create", {"name": "x", "artifact_location": "s3://bucket"}),
    ("experiments/create", {"name": "x", "artifact_location": "mlflow-artifacts://evil.example/x"}),
    ("experiments/create", {"name": "x", "artifact_location": "MLFLOW-ARTIFACTS:/x"}),
    ("experiments/create", {"name": "x", "artifact_location": ["file:///etc"]}),
    ("experiments/create", {"name": "x", "tags": [{"key": "mlflow.artifactLocation", "value": "file:///etc"}]}),
    ("model-versions/create", {"name": "m", "source": "file:///etc"}),
    ("model-versions/create", {"name": "m", "source": "/etc"}),
    ("model-versions/create", {"name": "m", "source": "http://x/api/2.0/mlflow-artifacts/artifacts/1"}),
    ("model-versions/create", {"name": "m"}),
    ("model-versions/create", {"name": "m", "source": ""}),
    ("traces", {"trace": {"trace_info": {"tags": {"mlflow.artifactLocation": "file:///etc"}}}}),
    ("traces", {"tags": [{"key": "mlflow.artifactLocation", "value": "file:///etc"}]}),
    ("traces/{trace_id}/tags", {"key": "mlflow.artifactLocation", "value": "file:///etc"}),
]


@pytest.mark.parametrize(("template", "body"), LOCATIONS)
def test_foreign_places_are_refused(template, body):
    rule = next(r for r in RULES if r.template == template and not r.reads)
    assert rule.check
    with pytest.raises(Forbidden):
        check_locations(rule, body)


def test_own_places_are_fine():
    create = next(r for r in RULES if r.template == "model-versions/create")
    for source in ("models:/m-1", f"runs:/{RUN}/model", f"mlflow-artifacts:/0/{RUN}/artifacts/m", "prompt-template"):
        check_locations(create, {"name": "m", "source": source, "tags": [{"key": "a", "value": "file:///etc"}]})
    with pytest.raises(ParameterError):
        check_locations(create, {"name": "m", "source": f"mlflow-artifacts:/0/{RUN}/../../etc"})
    with pytest.raises(ParameterError):
        check_locations(create, {"name": "m", "source": f"mlflow-artifacts:/0/{RUN}/%2e%2e/etc"})


def test_whose_artifacts():
    assert artifact_owner(f"0/{RUN}/artifacts/x/y") == ("run", RUN)
    assert artifact_owner("12/models/m-1/artifacts") == ("model", "m-1")
    assert artifact_owner("12/traces/tr-1/artifacts/traces.json") == ("trace", "tr-1")
    for path in ("", "0", f"0/{RUN}", f"x/{RUN}/artifacts", f"0/{RUN}/artifactsx", "0/models/artifacts"):
        with pytest.raises(Forbidden):
            artifact_owner(path)


@pytest.mark.parametrize("query", [
    "{ a }", "query { a(b: {c: 1}) { d } }", "query Q($x: Int = 1) { a } fragment F on T { b }",
    'query { a(s: "} mutation {") }', "# mutation { x }\n{ a }", 'query { a(s: """ } mutation { """) }',
])
def test_graphql_queries(query):
    check_graphql(query)


@pytest.mark.parametrize("query", [
    "mutation { a }", "{ a } mutation M { b }", "subscription { a }", "query Q { a } subscription S { b }",
    "fragment F on T { b } mutation { a }", '"text" mutation { a }', "schema { a }", "{ a } }", None, 3, ["{a}"],
])
def test_graphql_that_is_no_query(query):
    with pytest.raises(MlopsError):
        check_graphql(query)


def test_bodies_as_mlflow_reads_them():
    assert parse_body(b"") is None
    assert parse_body(b'{"a": 1}') == {"a": 1}
    assert parse_body(b'"{\\"a\\": 1}"') == {"a": 1}
    for bad in (b"[]", b"1", b"{", b"\xff", b'"[]"', b"[" * 100_000):
        with pytest.raises(ParameterError):
            parse_body(bad)


def test_the_table_has_no_route_twice():
    seen = [(r.space, m, r.template) for r in rules.RULES for m in r.methods]
    assert len(seen) == len(set(seen))
