"""What passes through the extension, and for whom. Behind it stands a process that answers with what it got."""

from __future__ import annotations

import http.client
import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from server_process import AUTHORIZER, BASE_URL, TOKEN, Answer, JupyterServer, Place, until

#: A control plane and a gateway that answer with the request itself.
ECHO = '''
import asyncio, json, os, sys
from tornado import web
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_unix_socket
from jupyter_mlops.runtime import locate

where = locate.place()

class Echo(web.RequestHandler):
    async def go(self, *args):
        if self.request.path == "/local/info":
            return self.write({"pid": os.getpid(), "port": 1, "url": "http://127.0.0.1:1/jupyter-mlops"})
        if self.request.path == "/local/token":
            self.set_status(201)
            role = json.loads(self.request.body)["role"]
            return self.write({"url": "http://127.0.0.1:1/jupyter-mlops", "token": role + "-token"})
        if self.request.path.endswith("/changes"):
            if self.get_argument("since", None):
                await asyncio.sleep(20)
            return self.write({"seq": 1, "items": []})
        if self.request.path.endswith("/moved"):
            self.set_header("Location", "/jupyter-mlops/mlflow/there")
            self.set_status(302)
            return
        if self.request.path.endswith("/unknown-token"):
            self.set_status(401)
            return
        if self.request.path.endswith("/data") and self.get_argument("mb", None):
            self.set_header("Content-Type", "application/vnd.apache.parquet")
            self.set_header("Content-Length", int(self.get_argument("mb")) << 20)
            for _ in range(int(self.get_argument("sent"))):
                self.write(b"d" * (1 << 20))
                await self.flush()
            if self.get_argument("sent") != self.get_argument("mb"):
                self.request.connection.stream.close()
            return
        self.set_header("Set-Cookie", "evil=1")
        self.set_header("Access-Control-Allow-Origin", "*")
        self.set_header("ETag", '"7"')
        if self.request.path.endswith("/docs"):
            self.set_header("Content-Security-Policy", "default-src 'none'; script-src 'sha256-abc'")
            self.set_header("Referrer-Policy", "no-referrer")
            self.set_header("Content-Type", "text/html; charset=utf-8")
            return self.write("<p>an endpoint</p>")
        if self.request.path.endswith("/artifact.html"):
            self.set_header("Content-Security-Policy", "sandbox")
            self.set_header("Content-Disposition", "attachment")
        self.write({"method": self.request.method, "uri": self.request.uri, "body": self.request.body.decode(),
                    "headers": {k.lower(): v for k, v in self.request.headers.items()}})
    get = put = post = delete = patch = head = go
    def compute_etag(self):
        return None

async def main():
    os.makedirs(where.home, exist_ok=True)
    folder = locate.private_dir(where.runtime_dir)
    server = HTTPServer(web.Application([("(.*)", Echo)]), max_body_size=1 << 30)
    server.add_socket(bind_unix_socket(os.path.join(folder, "gateway.sock"), 0o600))
    server.add_socket(bind_unix_socket(os.path.join(folder, "control.sock"), 0o600))
    await asyncio.Event().wait()

asyncio.run(main())
'''
WS = "jupyter-mlops/api/v1/workspaces/default"
MLFLOW = "jupyter-mlops/mlflow"
BOARD = "jupyter-mlops/tensorboard"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("routes"))
    yield place
    place.close()


@pytest.fixture(scope="module")
def echo(place: Place) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", ECHO], env=place.env)
    until("the echo listens", lambda: (place.sockets / "control.sock").exists())
    yield process
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def server(place: Place, echo: Any) -> Iterator[JupyterServer]:
    config = AUTHORIZER + "c.ServerApp.allow_unauthenticated_access = False\nc.MlopsApp.max_call_bytes = 100_000\n"
    server = JupyterServer(place, config).wait()
    server.wait_state("up")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def open_server(place: Place, server: JupyterServer) -> Iterator[JupyterServer]:
    """One more, that leaves it to handlers to ask for a login, as Jupyter does by default; and reads only."""
    other = JupyterServer(place, AUTHORIZER + "c.MlopsApp.readonly = True\n", base_url="/", name="open").wait()
    other.wait_state("up")
    yield other
    other.stop()


READS = [
    ("GET", "jupyter-mlops/status"), ("GET", WS), ("GET", WS + "/jobs/a"), ("GET", WS + "/endpoints/e/deployments/d"),
    ("GET", WS + "/endpoints/e/data"), ("GET", WS + "/endpoints/e/data/info"),
    ("GET", "jupyter-mlops/api/v1/openapi.json"), ("GET", MLFLOW), ("GET", MLFLOW + "/"), ("HEAD", MLFLOW + "/x"),
    ("GET", MLFLOW + "/api/2.0/mlflow/runs/get"), ("POST", MLFLOW + "/api/2.0/mlflow/runs/search"),
    ("POST", MLFLOW + "/graphql"),
]
WRITES = [
    ("POST", "jupyter-mlops/status"), ("POST", WS + "/jobs/a/actions/stop"), ("DELETE", WS + "/jobs/a"),
    ("PUT", WS + "/endpoints/e"), ("DELETE", WS + "/endpoints/e/deployments/d"), ("DELETE", WS + "/runs/1"),
    ("DELETE", WS + "/endpoints/e/data"), ("POST", WS + "/endpoints/e/actions/truth"),
    ("PUT", WS + "/models/m/aliases/a"), ("POST", WS + "/actions/shutdown"), ("PUT", WS + "/computes/c"),
    ("POST", MLFLOW + "/api/2.0/mlflow/runs/create"), ("PUT", MLFLOW + "/api/2.0/mlflow-artifacts/artifacts/x"),
    ("PATCH", MLFLOW + "/api/2.0/mlflow/registered-models/update"),
    ("DELETE", MLFLOW + "/api/2.0/mlflow/registered-models/delete"),
    ("GET", BOARD + "/digits/"), ("POST", BOARD + "/digits/data/plugin/x"), ("POST", WS + "/tensorboards"),
]
LAUNCHES = [
    ("PUT", WS + "/jobs/a"), ("PUT", WS + "/endpoints/e/deployments/d"), ("POST", WS + "/endpoints/e/actions/invoke"),
]
UNKNOWN = [("PATCH", WS + "/jobs/a"), ("PUT", "jupyter-mlops/status"), ("DELETE", "jupyter-mlops/status")]


def send(server: JupyterServer, method: str, path: str, **kwargs: Any) -> Answer:
    return server.call(method, path, {} if method in ("PUT", "POST", "PATCH") else None, **kwargs)


@pytest.mark.parametrize("method,path", READS + WRITES + LAUNCHES + UNKNOWN)
@pytest.mark.parametrize("which", ["server", "open_server"])
def test_nothing_without_a_token(which: str, method: str, path: str, request: pytest.FixtureRequest) -> None:
    answer = send(request.getfixturevalue(which), method, path, token=False)
    expected = {403} if which == "server" or (method, path) not in UNKNOWN else {403, 405}
    assert answer.status in expected
    if method != "HEAD" and answer.status == 403:
        assert set(answer.json) == {"message", "code", "hint"}


@pytest.mark.parametrize("method,path", READS + WRITES + LAUNCHES)
def test_rights(server: JupyterServer, method: str, path: str) -> None:
    needed = ("read" if (method, path) in READS else "execute" if (method, path) in LAUNCHES else "write")
    if method == "POST" and path.startswith(MLFLOW) and needed == "read":
        needed = "read"
    for allowed in ("", "read", "read write", "read execute", "read write execute"):
        answer = send(server, method, path, headers={"X-Allow": allowed})
        assert (answer.status < 300) == (needed in allowed), (allowed, answer.status)
        if needed not in allowed:
            assert answer.status == 403


@pytest.mark.parametrize("method,path", READS)
def test_who_may_not_write_gets_a_token_that_cannot(server: JupyterServer, method: str, path: str) -> None:
    if method == "HEAD" or path.endswith("status"):
        return
    for allowed, token in (("read", "reader-token"), ("read write", "owner-token")):
        answer = send(server, method, path, headers={"X-Allow": allowed})
        assert answer.json["headers"]["authorization"] == "Bearer " + token


def test_a_readonly_server(open_server: JupyterServer) -> None:
    assert open_server.status()["readonly"] is True
    for method, path in WRITES + LAUNCHES:
        answer = send(open_server, method, path)
        assert answer.status == 403 and "read" in answer.json["message"], path
    assert open_server.get(WS).json["headers"]["authorization"] == "Bearer reader-token"


def test_jupyter_finds_every_route_guarded(server: JupyterServer, open_server: JupyterServer) -> None:
    assert "jupyter-mlops" not in "".join(s.log().partition("Serving notebooks")[0] for s in (server, open_server))


def test_status_tells_the_version(server: JupyterServer) -> None:
    from jupyter_mlops import __version__

    status = server.status()
    command = status.pop("command")
    said = subprocess.run([*shlex.split(command), "--version"], capture_output=True, text=True)
    assert said.stdout == __version__ + "\n", said
    assert status == {"version": __version__, "workspace": "default", "state": "up", "message": "",
                      "readonly": False, "hide_launch": False}


# What is passed on


def test_nothing_of_jupyters_user_goes_on(server: JupyterServer) -> None:
    headers = {**server.cookie(), "If-Match": "3", "Jupyter-Mlops-Version": "0.1.0"}
    for path in (WS, MLFLOW + "/x"):
        answer = server.get(f"{path}?token={TOKEN}&a=1", headers=headers)
        seen = answer.json["headers"]
        assert "cookie" not in seen and TOKEN not in str(answer.json)
        assert seen["if-match"] == "3" and seen["jupyter-mlops-version"] == "0.1.0"
        assert answer.json["uri"].endswith("?a=1")
        assert "evil" not in str(answer.headers.get_all("Set-Cookie"))
        assert answer.headers["ETag"] == '"7"'


@pytest.mark.parametrize("path", [
    WS + "/models/a%2Fb%20%C3%A4/versions/1?x=%2F&y=1+2", MLFLOW + "/a%2Fb//c%20d?x=%2F&y=1+2",
])
def test_encoded_names_pass_as_they_are(server: JupyterServer, path: str) -> None:
    assert server.get(path).json["uri"] == "/" + path


@pytest.mark.parametrize("path", [
    "jupyter-mlops/api/v1/../../local/shutdown", "jupyter-mlops/api/v1/%2e%2e/%2e%2e/local/shutdown",
    MLFLOW + "/..%2f..%2flocal/shutdown", MLFLOW + "/%2e%2e/api/v1/whoami",
    BOARD + "/digits/../../local/shutdown", BOARD + "/digits%2f..%2f..%2flocal/shutdown", BOARD + "/%2e%2e/mlflow/",
])
def test_no_way_out_of_our_routes(server: JupyterServer, path: str) -> None:
    assert server.call("POST", path, {}).status == 400


def test_a_launch_in_disguise(server: JupyterServer) -> None:
    answer = server.call("PUT", WS + "/%6aobs/a", {}, headers={"X-Allow": "read write"})
    assert answer.status == 404


def test_bodies_and_redirects(server: JupyterServer) -> None:
    answer = server.call("PUT", WS + "/jobs/a", {"x": "ä"})
    assert answer.json["method"] == "PUT" and json.loads(answer.json["body"]) == {"x": "ä"}
    assert server.call("DELETE", WS + "/jobs/a").json["body"] == ""
    assert server.get(MLFLOW + "/moved").headers["Location"] == BASE_URL + "jupyter-mlops/mlflow/there"


def test_captured_data_is_passed_on_however_large_and_never_cut_without_a_word(server: JupyterServer) -> None:
    def read(query: str) -> tuple[int, str | None, int, bool]:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.request("GET", f"{server.base_url}{WS}/endpoints/e/data?{query}",
                           headers={"Authorization": f"token {TOKEN}"})
        with connection.getresponse() as response:
            size = 0
            try:
                while part := response.read(1 << 20):
                    size += len(part)
            except http.client.IncompleteRead as error:
                size += len(error.partial)
            whole = size == int(response.headers["Content-Length"])
            return response.status, response.headers["Content-Type"], size, whole

    assert read("mb=80&sent=80") == (200, "application/vnd.apache.parquet", 80 << 20, True)
    assert read("mb=8&sent=3")[3] is False


def test_the_change_feed_stays_inside(server: JupyterServer) -> None:
    answer = server.get(WS + "/changes?since=0&wait=25")
    assert answer.status == 410 and "event" in answer.json["hint"]


def test_a_lost_token_of_ours_is_no_lost_login(server: JupyterServer) -> None:
    for path in (WS + "/unknown-token", MLFLOW + "/unknown-token"):
        answer = server.get(path)
        assert answer.status == 503 and answer.json["hint"]


def test_an_endpoints_page_comes_with_its_own_policy_and_no_other_answer_with_one(server: JupyterServer) -> None:
    page = server.get(WS + "/endpoints/e/docs")
    assert page.headers["Content-Type"].startswith("text/html")
    assert page.headers["Content-Security-Policy"] == "default-src 'none'; script-src 'sha256-abc'"
    assert page.headers["Referrer-Policy"] == "no-referrer"
    assert "sha256" not in server.get(WS + "/endpoints/e").headers["Content-Security-Policy"]


def test_frames_and_other_origins(server: JupyterServer) -> None:
    page = server.get(MLFLOW + "/")
    assert "frame-ancestors 'self'" in page.headers["Content-Security-Policy"]
    assert "default-src" not in page.headers["Content-Security-Policy"]
    assert page.headers["X-Frame-Options"] == "SAMEORIGIN"
    artifact = server.get(MLFLOW + "/get-artifact/artifact.html")
    assert artifact.headers["Content-Security-Policy"] == "sandbox; frame-ancestors 'none'"
    assert artifact.headers["X-Frame-Options"] == "DENY" and artifact.headers["Content-Disposition"] == "attachment"
    for answer in (page, artifact):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    board = server.get(BOARD + "/digits/data/plugin_entry.html")
    assert board.headers["X-Frame-Options"] == "SAMEORIGIN", "its plugins have frames of their own"
    assert "frame-ancestors 'self'" in board.headers["Content-Security-Policy"]
    with_cookie = server.get(MLFLOW + "/", token=False, headers=server.cookie())
    assert "Access-Control-Allow-Origin" not in with_cookie.headers


# Same origin


def origins(server: JupyterServer) -> list[tuple[dict[str, str], int]]:
    here = f"http://127.0.0.1:{server.port}"
    return [
        ({}, 403),
        ({"Origin": here}, 200),
        ({"Origin": here.replace("http:", "https:")}, 403),
        ({"Origin": here.replace("http:", "https:"), "X-Forwarded-Proto": "https"}, 200),
        ({"Origin": f"http://127.0.0.1:{server.port + 1}"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Origin": here}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "same-site", "Origin": here}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
    ]


@pytest.mark.parametrize("method,path", [
    ("POST", MLFLOW + "/api/2.0/mlflow/runs/create"), ("POST", MLFLOW + "/graphql"),
    ("PUT", MLFLOW + "/api/2.0/mlflow-artifacts/artifacts/x"), ("DELETE", MLFLOW + "/x"), ("PATCH", MLFLOW + "/x"),
    ("POST", BOARD + "/digits/data/plugin/x"),
])
def test_cookies_count_only_from_our_own_pages(server: JupyterServer, method: str, path: str) -> None:
    cookie = server.cookie()
    for headers, status in origins(server):
        answer = send(server, method, path, token=False, headers={**cookie, **headers})
        assert answer.status == status, headers
        assert send(server, method, path, headers=headers).status == 200, "a token needs no origin"


def test_rest_by_cookie_needs_the_xsrf_token(server: JupyterServer) -> None:
    cookie = server.cookie()
    answer = server.call("DELETE", WS + "/jobs/a", token=False, headers=cookie)
    assert answer.status == 403
    page = server.get("login", token=False)
    xsrf = next(c.split(";")[0].split("=", 1)[1] for c in page.headers.get_all("Set-Cookie") or [] if "_xsrf" in c)
    headers = {"Cookie": f"{cookie['Cookie']}; _xsrf={xsrf}", "X-XSRFToken": xsrf}
    assert server.call("DELETE", WS + "/jobs/a", token=False, headers=headers).status == 200


# The public route

CALL = "jupyter-mlops/endpoints/digits/invocations"
KEY = {"Authorization": "Bearer key-of-the-endpoint"}


@pytest.mark.parametrize("which", ["server", "open_server"])
def test_an_endpoint_is_called_by_its_key_alone(which: str, request: pytest.FixtureRequest) -> None:
    server: JupyterServer = request.getfixturevalue(which)
    headers = {**server.cookie(), **KEY, "X-Allow": "", "X-Forwarded-User": "me", "Referer": "http://x/?token=t",
               "Origin": "http://elsewhere.example", "X-XSRFToken": "x", "X-Request-Id": "7", "Host": "models.example"}
    answer = server.call("POST", f"{CALL}?token={TOKEN}&x=1", {"inputs": [1]}, headers=headers, token=False)
    assert answer.status == 200
    seen = answer.json["headers"]
    assert answer.json["uri"] == "/endpoints/digits/invocations?x=1"
    assert json.loads(answer.json["body"]) == {"inputs": [1]}
    assert seen["authorization"] == KEY["Authorization"] and seen["x-request-id"] == "7"
    assert not {"cookie", "referer", "origin", "x-xsrftoken", "x-forwarded-user"} & set(seen)
    assert TOKEN not in str(answer.json)
    assert "Set-Cookie" not in answer.headers and "Access-Control-Allow-Origin" not in answer.headers
    assert server.get("jupyter-mlops/endpoints/digits/health", headers=KEY, token=False).status == 200


def test_jupyters_credentials_open_no_endpoint(server: JupyterServer) -> None:
    for headers in ({}, server.cookie(), {"Authorization": "token " + TOKEN}, {"Authorization": "Bearer " + TOKEN},
                    {"Authorization": "Basic a2V5"}, {"Authorization": "Bearer "}):
        answer = server.call("POST", f"{CALL}?token={TOKEN}", {}, headers=headers, token=False)
        assert answer.status == 401 and answer.json["code"] == "unauthenticated", headers
        assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("method,path,status", [
    ("GET", CALL, 405), ("PUT", CALL, 405), ("DELETE", CALL, 405), ("OPTIONS", CALL, 405), ("PATCH", CALL, 405),
    ("HEAD", CALL, 405), ("POST", "jupyter-mlops/endpoints/digits/health", 405),
    ("GET", "jupyter-mlops/endpoints/digits", 404), ("GET", "jupyter-mlops/endpoints/", 404),
    ("GET", "jupyter-mlops/endpoints/digits/admin", 404), ("GET", "jupyter-mlops/endpoints/Di%2Fg/health", 404),
    ("GET", "jupyter-mlops/endpoints/../health", 404), ("GET", "jupyter-mlops/endpoints/a/health/..", 404),
])
def test_the_public_route_is_narrow(server: JupyterServer, method: str, path: str, status: int) -> None:
    assert server.call(method, path, headers=KEY, token=False).status == status


def test_a_key_opens_nothing_else(server: JupyterServer) -> None:
    for path in (WS, "jupyter-mlops/status", "api/contents", MLFLOW + "/"):
        assert server.get(path, headers=KEY, token=False).status == 403


def test_a_call_that_is_too_long(server: JupyterServer) -> None:
    answer = server.call("POST", CALL, b"x" * 100_001, headers=KEY, token=False)
    assert answer.status == 413 and answer.json["code"] == "too_large"
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request("POST", BASE_URL + CALL, (b"x" * 10_000 for _ in range(11)), KEY, encode_chunked=True)
        status = connection.getresponse().status
    except OSError:
        status = 413  # the connection was closed amid the body
    finally:
        connection.close()
    assert status == 413
    assert server.call("POST", CALL, b"x" * 100_000, headers=KEY, token=False).status == 200


def test_a_socket_of_somebody_else_is_not_trusted(place: Place, server: JupyterServer) -> None:
    path = place.sockets / "gateway.sock"
    aside = place.sockets / "aside.sock"
    os.rename(path, aside)
    try:
        answer = server.call("POST", CALL, {}, headers=KEY, token=False)
        assert answer.status == 503 and answer.json["hint"]
        with socket.socket(socket.AF_UNIX) as foreign:
            foreign.bind(str(path))
            if os.getuid() == 0:
                os.chown(path, 12345, 12345)
                answer = server.call("POST", CALL, {}, headers=KEY, token=False)
                assert answer.status == 503 and "somebody else" in answer.json["message"]
        os.unlink(path)
    finally:
        os.rename(aside, path)
    assert server.call("POST", CALL, {}, headers=KEY, token=False).status == 200
