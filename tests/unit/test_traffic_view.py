"""What an endpoint's traffic looks like, and the cell that calls it."""

from __future__ import annotations

import ast
import json
import re

import pytest

from jupyter_mlops.client import calls
from jupyter_mlops.client.history import History
from jupyter_mlops.client.serving import CanaryFailed, Deployment, DeploymentFailed, Endpoint
from jupyter_mlops.client.token import Token
from jupyter_mlops.client.traffic import Traffic, canary_line, counts, shared

TEXT = "<b>&'\"\n\x1b[31m"


class Off:
    """A client that must not be asked: nothing that is displayed may use the network."""

    def __getattr__(self, name):
        raise AssertionError(f"asked for {name}")

    def knows_key(self, name):
        return False


def stats(**more):
    return {"requests": 90, "errors": {"4xx": 7, "5xx": 1, "model": 2, "timeout": 0, "rejected": 3},
            "latency_ms": {"count": 90, "sum": 9.0, "p50": 1.25, "p95": 3.5, "p99": 250.0}, **more}


def view(detailed: bool = False, name: str = "v1", **status) -> Traffic:
    endpoint = Endpoint(Off(), {"name": "digits", "spec": {
        "traffic": {name: 90, "v2": 10}, "mirror_traffic": {"v3": 25}, "sticky_header": "X-User",
        "canary": {"duration": 300.0, "min_requests": 50, "max_error_rate": 0.02, "max_latency_ratio": 2.0},
    }, "status": {"phase": "Ready", "traffic": {name: 90, "v2": 10}, **status}})
    behind = [Deployment(Off(), {"name": n, "parent": "digits", "spec": {"model": f"digits/{i}"},
                                 "status": {"phase": "Ready", "instances": {"wanted": 2, "ready": 1}}})
              for i, n in enumerate((name, "v2", "v3"))]
    figures = {"deployments": {name: stats(), "v2": stats(requests=10, mirror={"compared": 4, "different": 1})}}
    return Traffic(Off(), endpoint, behind, figures, detailed)


@pytest.mark.parametrize(("shares", "percent", "made"), [
    ({"a": 100}, 10, {"a": 90, "b": 10}), ({}, 10, {"b": 100}), ({}, 0, {"b": 0}), ({"b": 100}, 30, {"b": 100}),
    ({"a": 50, "c": 50}, 33, {"a": 34, "c": 33, "b": 33}), ({"a": 60, "b": 40}, 100, {"a": 0, "b": 100}),
])
def test_room_is_made_in_proportion(shares, percent, made) -> None:
    found = shared(shares, "b", percent)
    assert found == made or (sum(found.values()) == 100 and found["b"] == percent)
    assert sum(found.values()) in (0, 100)


def test_errors_are_those_of_the_deployment() -> None:
    assert counts({"deployments": {"v1": stats()}}, "v1")["errors"] == 3
    assert counts({}, "v1") == {"requests": 0, "errors": 0, "rate": None, "p50": None, "p95": None, "p99": None}


def test_shares_and_figures_read_as_text_and_as_html() -> None:
    text, html = view().text(), view().html()
    assert re.search(r"v1 +digits/0 +Ready +90 % +1 of 2 +90 +3 \(3.3 %\) +1.2 ms +3.5 ms", text), text
    assert "4 compared, 1 different" in text and "25 % of requests are copied to v3" in text and "X-User" in text
    assert 'aria-label="traffic: v1 90 %, v2 10 %"' in html and "<script" not in html and "#000" not in html
    assert "250 ms" in view(True).text() and "250 ms" not in text  # p99
    assert repr(view()) == "<Traffic digits v1=90% v2=10%>" and json.dumps(view().to_dict())
    off = Traffic(Off(), view().endpoint, [], None)
    assert "the gateway does not answer" in off.text() and "no deployments" in off.html()
    assert list(view().df()["requests"]) == [90, 10, 0]


def test_a_look_again_shows_as_much_as_the_first() -> None:
    class Plane(Off):
        def traffic(self, name, detailed=False):
            made = view(detailed)
            made.records = [{"id": "b1", "deployment": "v1", "requests": 5}] if detailed else []
            return made

    plane = Plane()
    first = plane.traffic("digits", True)
    for detailed in (True, False):
        again = plane.traffic("digits", detailed)
        again._client, again.stats, again.records = plane, None, []
        assert again.refresh() is again and again.detailed is detailed
        assert again.records == (first.records if detailed else []) and again.stats == first.stats
        assert ("p99" in again._table(html=False)[0]) is detailed


def test_nothing_of_a_name_gets_into_the_page() -> None:
    html = view(name=TEXT).html()
    assert "<b>" not in html and "\x1b" not in html.replace("\x1b", "") and "&lt;b&gt;" in html
    told = History("e", [{"at": "2026-01-01T00:00:00Z", "by": TEXT, "action": TEXT, "detail": {"before": {TEXT: 1}}}])
    assert "<b>" not in told.html() and "\x1b" not in told.text()


def test_a_canary_in_one_line() -> None:
    running = {"phase": "Running", "deployment": "v2", "percent": 10, "started_at": "2026-01-01T00:00:00Z",
               "candidate": {"requests": 34, "error_rate": 0.5, "p95": 12.0},
               "baseline": {"error_rate": 0.0, "p95": 11.0}}
    assert "v2 is on trial with 10 %" in canary_line(running)
    assert "34 requests, errors 50 % against 0 %, p95 12.0 ms against 11.0 ms" in canary_line(running)
    assert canary_line({}) == ""
    over = {**running, "phase": "RolledBack", "reason": "it fails 50 % of its requests", "ended_at": ""}
    assert canary_line(over) == "v2 was rolled back: it fails 50 % of its requests"
    shown = CanaryFailed("digits", over)._render_traceback_()
    assert shown[0].endswith("canary digits/v2 was rolled back: it fails 50 % of its requests")
    assert "after 300 s and 50 requests, unless it has 2 % errors more" in view(canary=running).text()


def test_history_tells_what_was_and_what_is() -> None:
    told = History("e", [
        {"at": "2026-01-01T00:00:00Z", "by": "ann", "action": "traffic",
         "detail": {"before": {"traffic": {"v1": 100}}, "after": {"traffic": {"v1": 90, "v2": 10}}}},
        {"at": "", "by": "", "action": "rotate", "detail": {"key": "primary"}},
    ])
    assert "traffic v1=100 → traffic v1=90 v2=10" in told.text() and "key primary" in told.text()
    assert "nothing was changed" in History("e", []).html() and repr(told) == "<History of endpoint e, 2 changes>"


def test_a_token_is_in_no_output() -> None:
    token = Token("digits", "secret-words", "2026-01-01T00:00:00Z")
    assert str(token) == "secret-words" and f"Bearer {token}" == "Bearer secret-words"
    shown = [repr(token), repr([token]), *token._repr_mimebundle_().values()]
    assert not any("secret" in text for text in shown) and "digits" in shown[0]


def test_a_failed_proof_names_packages_and_who_goes_on() -> None:
    failed = DeploymentFailed(Deployment(Off(), {"name": "v2", "parent": "d", "spec": {}, "status": {
        "phase": "Failed", "reason": "row 0: expected 1, got 2", "log_tail": ["last words"],
        "proof": {"passed": False, "packages": [{"name": "scikit-learn", "kernel": "1.9.1", "deployment": "1.8"}]},
    }})).serving(["v1"])
    shown = "\n".join(failed._render_traceback_())
    assert "row 0: expected 1, got 2" in shown and "last words" in shown and "v1 goes on serving" in shown
    assert "scikit-learn: 1.9.1 in the notebook, 1.8 in the deployment" in shown


@pytest.mark.parametrize(("request_", "rows"), [
    ({"dataframe_split": {"columns": ["a", "b"], "data": [[1, None], [2, "x"], [3, "y"]]}},
     [{"a": 1, "b": None}, {"a": 2, "b": "x"}]),
    ({"inputs": [[1, 2], [3, 4], [5, 6]]}, [[1, 2], [3, 4]]),
    ({"dataframe_records": [{"it's": "\"'\\"}]}, [{"it's": "\"'\\"}]),
])
def test_a_test_call_holds_its_rows(request_, rows) -> None:
    first, *middle, last = calls.cell("digits", request_).split("\n")
    assert (first, last) == ("%load_ext jupyter_mlops", "%mlops invoke digits rows")
    assert ast.literal_eval("\n".join(middle).removeprefix("rows = ")) == rows


def test_rows_that_nobody_would_read_are_sent_by_name() -> None:
    for request in ({"inputs": [[0.1] * 4000]}, {"inputs": {"a": [1]}}, {}, None):
        assert calls.cell("digits", request) == "%load_ext jupyter_mlops\n%mlops invoke digits --example"
