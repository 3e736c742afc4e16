"""An endpoint's page in Chromium, under its own policy: the form, the door, and names that want to be markup."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from jupyter_mlops.core.errors import MlopsError
from jupyter_mlops.serving import openapi, page, payload
from jupyter_mlops.serving import signature as sig

pytestmark = pytest.mark.browser
EVIL = "</script><img src=x onerror=alert(1)>"
SIGNATURE = sig.from_document({"inputs": [
    {"type": "double", "name": "height", "required": True}, {"type": "long", "name": EVIL, "required": True},
    {"type": "string", "name": "site", "required": False}, {"type": "boolean", "name": "ok", "required": True}]})
EXAMPLE = {"dataframe_records": [{"height": 1.5, EVIL: 7, "site": "Weiß", "ok": True}]}
DOCUMENT = openapi.document("digits", "blue", SIGNATURE, model={"name": EVIL, "version": "1"},
                            deployments=["blue", "green"], example=EXAMPLE)


class Server(BaseHTTPRequestHandler):
    """Serves the page as the gateway does, and answers what came in."""

    seen: list = []

    def log_message(self, *args):
        pass

    def answer(self, status, body, content_type, policy=""):
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Security-Policy", policy or "default-src 'none'")
        self.send_header("X-Deployment", "blue")
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        known = self.headers.get("Authorization") == "Bearer secret"
        if "/key/" in self.path and not known:
            return self.answer(401, page.door()[0], page.CONTENT_TYPE, page.door()[1])
        if not self.path.endswith("/docs"):
            return self.answer(404, b"", "text/plain")
        body, policy = page.html(DOCUMENT, "key" if "/key/" in self.path else "owner")
        return self.answer(200, body, page.CONTENT_TYPE, policy)

    def do_POST(self):
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append((self.path, dict(self.headers.items()), raw))
        try:
            payload.canonical(SIGNATURE, raw, self.headers["Content-Type"])
            self.answer(200, b'{"predictions":[12345678901234567890]}', "application/json")
        except MlopsError as error:
            self.answer(error.status, json.dumps(error.body()).encode(), "application/json")


@pytest.fixture(scope="module")
def address():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def view(browser):
    context = browser.new_context()
    view = context.new_page()
    view.bad = []
    view.on("pageerror", lambda e: view.bad.append(str(e)))
    view.on("dialog", lambda d: (view.bad.append("a dialog: " + d.message), d.dismiss()))
    view.on("console", lambda m: view.bad.append(m.text) if "Content Security Policy" in m.text else None)
    yield view
    assert not view.bad and not view.query_selector("img")
    context.close()


def send(view):
    view.click("#send")
    view.wait_for_selector("#answer:not([hidden])")
    return view.inner_text("#status"), view.inner_text("#answer")


def test_through_the_door_and_the_form(view, address):
    view.goto(address + "/user/a%40b/key/digits/docs")
    assert "digits" not in view.content()
    view.fill("#key", "wrong")
    view.click("#send")
    view.wait_for_selector("#status.bad")
    view.fill("#key", "secret")
    view.click("#send")
    view.wait_for_selector("#try")
    assert view.title() == "digits · endpoint" and view.input_value("#key") == "secret"
    assert view.inner_text("[data-address] >> nth=0") == address + "/user/a%40b/key/digits/invocations"
    status, answer = send(view)
    assert status.startswith("200 OK") and "deployment blue" in status
    assert "12345678901234567890" in answer  # not as JavaScript would round it
    path, headers, raw = Server.seen[-1]
    assert path.endswith("/user/a%40b/key/digits/invocations") and json.loads(raw) == EXAMPLE
    assert headers["Authorization"] == "Bearer secret" and "Cookie" not in headers
    view.fill("#f0", "tall")
    view.select_option("#deployment", "green")
    status, answer = send(view)
    assert status.startswith("400") and "column 'height', row 0: expected double" in answer
    assert Server.seen[-1][1]["azureml-model-deployment"] == "green"
    view.select_option("#mode", "json")
    assert '"tall"' in view.input_value("#body")
    view.select_option("#example", label="CSV")
    assert send(view)[0].startswith("200") and Server.seen[-1][1]["Content-Type"] == "text/csv"
    with view.expect_download() as saved:
        view.click("#download")
    assert json.loads(saved.value.path().read_text()) == DOCUMENT


def test_the_owner_needs_no_key(view, address):
    view.context.add_cookies([{"name": "_xsrf", "value": "2|abc", "url": address}])
    view.goto(address + "/api/v1/workspaces/default/endpoints/digits/docs")
    assert not view.query_selector("#key")
    view.select_option("#deployment", "green")
    assert send(view)[0].startswith("200")
    path, headers, _ = Server.seen[-1]
    assert path == "/api/v1/workspaces/default/endpoints/digits/actions/invoke?deployment=green"
    assert headers["X-XSRFToken"] == "2|abc" and "Authorization" not in headers
    assert address + "/endpoints/digits/invocations" in view.inner_text("main")
