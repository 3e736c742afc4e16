"""What the Jupyter extension decides by itself: origins, reads and writes, paths, what to tell a kernel."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tornado import web
from tornado.httputil import HTTPHeaders

from jupyter_mlops.core.errors import NotFound
from jupyter_mlops.server.api import LAUNCH
from jupyter_mlops.server.base import Refusal, clean_path, clean_query, error_body
from jupyter_mlops.server.kernels import Interpreters, interpreter
from jupyter_mlops.server.link import same_minor
from jupyter_mlops.server.mlflow import is_read
from jupyter_mlops.server.origin import same_origin
from jupyter_mlops.server.relay import EVERY, MOST_ITEMS, Relay

SITE = ("https", "hub.example.org")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, False),
        ({"Origin": "https://hub.example.org"}, True),
        ({"Origin": "HTTPS://Hub.Example.org:443"}, True),
        ({"Origin": "http://hub.example.org"}, False),
        ({"Origin": "https://hub.example.org:8443"}, False),
        ({"Origin": "https://hub.example.org.evil.org"}, False),
        ({"Origin": "https://evil.org"}, False),
        ({"Origin": "null"}, False),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://outer.example.org"}, True),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://hub.example.org"}, False),
        ({"Sec-Fetch-Site": "none"}, False),
        ({"Origin": "https://outer.example.org", "X-Forwarded-Host": "outer.example.org, inner"}, True),
        ({"Origin": "https://evil.org", "X-Forwarded-Host": "outer.example.org"}, False),
        ({"Referer": "https://hub.example.org/"}, False),
    ],
)
def test_same_origin(headers: dict[str, str], expected: bool) -> None:
    assert same_origin(HTTPHeaders(headers), *SITE) is expected


def test_a_proxy_that_ends_tls_may_tell_the_scheme() -> None:
    headers = HTTPHeaders({"Origin": "https://hub.example.org", "X-Forwarded-Proto": "https"})
    assert same_origin(headers, "http", "hub.example.org")
    del headers["X-Forwarded-Proto"]
    assert not same_origin(headers, "http", "hub.example.org")


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/anything", True),
        ("HEAD", "/anything", True),
        ("POST", "/api/2.0/mlflow/runs/search", True),
        ("POST", "/ajax-api/2.0/mlflow/experiments/search", True),
        ("POST", "/ajax-api/3.0/mlflow/traces/search", True),
        ("POST", "/graphql", True),
        ("POST", "/api/2.0/mlflow/runs/create", False),
        ("POST", "/api/2.0/mlflow/gateway/endpoints/create", False),
        ("GET", "/api/2.0/mlflow/gateway/endpoints/list", True),
        ("POST", "/api/2.0/mlflow/runs/create/search", False),
        ("POST", "/api/2.0/mlflow-artifacts/mpu/create/search", False),
        ("POST", "/api/2.0/mlflow/logged-models/m/search", False),
        ("PUT", "/api/2.0/mlflow/runs/search", False),
        ("PATCH", "/graphql", False),
        ("DELETE", "/api/2.0/mlflow/runs/search", False),
    ],
)
def test_which_mlflow_requests_only_read(method: str, path: str, expected: bool) -> None:
    assert is_read(method, path) is expected


@pytest.mark.parametrize(
    "path",
    ["/api/v1/../local", "/mlflow/%2e%2e/x", "/a%2f..%2fb", "/a%5c..%5cb", "/./x",
     "/a%0ab"],
)
def test_relative_segments_are_refused(path: str) -> None:
    with pytest.raises(Refusal) as caught:
        clean_path(path)
    assert caught.value.status_code == 400


@pytest.mark.parametrize("path", ["/api/v1/workspaces/default/models/a%2Fb%20c", "/..x/x..", "/a//b"])
def test_other_paths_pass_unchanged(path: str) -> None:
    assert clean_path(path) == path


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ""),
        ("limit=5&filter=a%3Db", "?limit=5&filter=a%3Db"),
        ("token=secret", ""),
        ("limit=5&token=secret&x=%2F+1", "?limit=5&x=%2F+1"),
        ("%74oken=secret&a=1", "?a=1"),
        ("page_token=abc", "?page_token=abc"),
    ],
)
def test_jupyters_token_leaves_the_query(query: str, expected: str) -> None:
    assert clean_query(query) == expected


def test_what_runs_code_is_a_launch() -> None:
    base = "/api/v1/workspaces/default/"
    for path in ("jobs/a", "endpoints/e/deployments/d", "endpoints/e/actions/invoke"):
        assert LAUNCH.fullmatch(base + path)
    for path in ("jobs/a/actions/stop", "endpoints/e", "endpoints/e/actions/rotate-keys", "computes/c", "jobs"):
        assert not LAUNCH.fullmatch(base + path)


def test_errors_have_one_form() -> None:
    assert error_body(404, Refusal(NotFound("no 100% x", "look"))) == {
        "message": "no 100% x", "code": "not_found", "hint": "look"}
    assert error_body(403, web.HTTPError(403, "not 100%"))["message"] == "not 100%"
    assert "secret" not in str(error_body(500, RuntimeError("secret")))


def test_importing_the_extension_loads_nothing_heavy() -> None:
    heavy = ("aiohttp", "mlflow", "torch", "pandas", "sqlalchemy", "pydantic", "kubernetes")
    code = f"import sys; from jupyter_mlops.server import MlopsApp; print([m for m in {heavy!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# Events


def item(seq: int, name: str, **more: Any) -> dict[str, Any]:
    return {"seq": seq, "kind": "job", "name": name, "parent": "", "op": "put", "revision": seq, "extra": 1, **more}


async def test_a_burst_becomes_few_events() -> None:
    sent: list[dict[str, Any]] = []
    relay = Relay(sent.append, logging.getLogger())
    for seq in range(1, 51):
        relay.changed([item(seq, f"job-{seq % 5}")], seq)
        await asyncio.sleep(0.01)
    await asyncio.sleep(2 * EVERY)
    assert 2 <= len(sent) <= 2 + 0.6 / EVERY
    last = {i["name"]: i["seq"] for event in sent for i in event["items"]}
    assert last == {f"job-{n % 5}": n for n in range(46, 51)}
    assert sent[-1]["seq"] == 50
    assert all("extra" not in i for event in sent for i in event["items"])
    relay.close()


async def test_a_flood_says_list_anew() -> None:
    sent: list[dict[str, Any]] = []
    relay = Relay(sent.append, logging.getLogger())
    relay.changed([item(n, f"job-{n}") for n in range(MOST_ITEMS + 1)], MOST_ITEMS)
    relay.state("up")
    await asyncio.sleep(0.05)
    assert [i["kind"] for i in sent[0]["items"]] == ["workspace"]
    relay.close()


# Kernels


@pytest.mark.parametrize(("a", "b", "expected"), [
    ("0.1.0", "0.1.7", True), ("0.1.0", "0.2.0", False), ("0.1.0a1", "0.1.0", True), ("1.2+local", "1.2.3", True)])
def test_versions(a: str, b: str, expected: bool) -> None:
    assert same_minor(a, b) is expected


def test_only_pythons_are_asked() -> None:
    assert interpreter(["python", "-m", "x"], {}) == sys.executable
    assert interpreter([sys.executable], {}) == sys.executable
    assert interpreter(["bash", "-c", "python"], os.environ) is None
    assert interpreter(["/usr/bin/R"], os.environ) is None
    assert interpreter([], {}) is None
    assert interpreter(["/nowhere/python3"], os.environ) is None


def fake_python(folder: Path, answer: str) -> Path:
    """A program called python that counts how often it was asked."""
    path = folder / "python3"
    path.write_text(f"#!/bin/sh\necho x >> {folder}/asked\n{answer}\n")
    path.chmod(0o755)
    return path


def test_an_interpreter_is_asked_again_when_its_packages_change(tmp_path: Path) -> None:
    packages = tmp_path / "site-packages"
    packages.mkdir()
    python = fake_python(tmp_path, f"""echo '{{"version": null, "path": ["{packages}"]}}'""")
    interpreters = Interpreters(logging.getLogger())
    for _ in range(3):
        assert not interpreters.has_package(str(python), os.environ)
    assert (tmp_path / "asked").read_text().count("x") == 1
    (packages / "jupyter_mlops").mkdir()
    os.utime(packages, ns=(1, 1))
    assert not interpreters.has_package(str(python), os.environ)
    assert (tmp_path / "asked").read_text().count("x") == 2


@pytest.mark.parametrize(
    "answer", ["exit 1", "echo nonsense", "echo []", """echo '{"version": "9.9.0", "path": []}'"""])
def test_an_interpreter_that_gives_no_good_answer_is_left_alone(tmp_path: Path, answer: str) -> None:
    assert not Interpreters(logging.getLogger()).has_package(str(fake_python(tmp_path, answer)), os.environ)
