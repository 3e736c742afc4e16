"""The gateway: what it answers. One detached process per workspace, in front of all scorers (``gateway_process.py``).

    POST /endpoints/<e>/invocations    score (also under /score); body and errors are JSON
    GET  /endpoints/<e>/health         200 when a deployment that has traffic answers, else 503
    GET  /endpoints/<e>/metrics, …/openapi.json, …/docs, …/v2/…

A request comes with one of the endpoint's keys, or with a token where the endpoint wants tokens. The header
``azureml-model-deployment`` (or ``X-Deployment``) asks for a deployment by name. Over the trusted socket no key is
wanted, deployments that are still to be proven answer, too, and there are ``GET /admin/info``, ``GET /admin/stats``,
``GET /admin/metrics`` and ``POST /admin/reload``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import re
import time
from typing import Any

from ..core.errors import MlopsError, NotFound, ParameterError, Unauthenticated, UnsupportedMedia
from ..runtime import frames
from ..runtime.inputs import SIZES as ROW_SIZES
from ..runtime.processes import start_time
from . import keys, metrics, mirror, oip, pages, tokens
from .accesslog import AccessLog
from .dispatch import RETRY_AFTER, Pending
from .fastpath import Fast
from .http import JSON, Request
from .payload import canonical
from .places import Places
from .recorder import Recorder
from .routes import Deployment, Endpoint, Routes
from .scaler import Scaler
from .scaling import Load

#: Bytes of a body from which on it is parsed on a thread, so that small requests need not wait for it. One at a time:
#: parsed, a body takes several times its size.
THREAD_FROM = 256 * 1024
#: Bytes of a body where none is needed.
SMALL = 64 * 1024
#: Seconds that a reload waits for requests of deployments that have been removed.
DRAIN_REMOVED = 4.0

_PATH = re.compile(rb"/endpoints/([a-z](?:[a-z0-9-]{0,38}[a-z0-9])?)/([a-z0-9.]{1,20})(/[A-Za-z0-9._/-]{1,200})?\Z")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_METHODS = {"invocations": "POST", "score": "POST", "health": "GET", "metrics": "GET", "openapi.json": "GET",
            "docs": "GET", "v2": "GET"}

#: The header of a body that goes to a scoring script as it came.
_SCRIPT = b'{"form":"script"}'

log = logging.getLogger(__name__)


class MethodNotAllowed(MlopsError):
    """The path is right, the method is not."""

    code = "method_not_allowed"
    status = 405


class Call:
    """What the gateway knows of a request: whom it is for, and what it asks.

    ``inference``: the path of the Open Inference Protocol that it came by, None for MLflow's; ``document`` is its body.
    """

    __slots__ = ("action", "deployment", "document", "endpoint", "inference", "name", "wall", "wants_page")

    def __init__(self) -> None:
        self.inference: pages.Inference | None = None
        self.document: dict[str, Any] = {}
        self.name = "-"
        self.action = "-"
        self.endpoint: Endpoint | None = None
        self.deployment: Deployment | None = None
        self.wall = 0.0
        #: A browser asks for the page.
        self.wants_page = False


class Gateway:
    """Answers requests; the application of all listeners."""

    def __init__(self, places: Places, access: AccessLog) -> None:
        self.places = places
        self.access = access
        self.routes = Routes(places, self.wake)
        self.started_at = time.time()
        self.requests = 0
        self.port = 0
        self.recorder = Recorder(places)
        self.scaler: Scaler | None = None
        self._large = asyncio.Semaphore(1)
        self._tasks: set[asyncio.Task[None]] = set()

    # -- instances ---------------------------------------------------------------------

    def attach(self, scaler: Scaler) -> None:
        """Let ``scaler`` start and end instances by the load."""
        self.scaler = scaler
        scaler.observe = self.loads
        scaler.in_flight = self._in_flight
        scaler.changed = self._scaled

    def wake(self, endpoint: str, deployment: str) -> None:
        """A request waits for a deployment of which no instance is there."""
        if self.scaler is not None:
            self.scaler.wake(endpoint, deployment)

    def loads(self) -> dict[tuple[str, str], Load]:
        """What each deployment has to do; without those that are still to be proven."""
        found = {}
        scaler = self.scaler
        for endpoint in self.routes.all():
            for deployment in endpoint.deployments.values():
                if not deployment.proving:
                    d = deployment.dispatcher
                    if scaler is not None and (wanted := scaler.wanted(endpoint.name, deployment.name)) is not None:
                        d.instances = wanted  # no use in knocking at the doors of those that are not
                    found[endpoint.name, deployment.name] = Load(
                        queued=d.queued, in_flight=d.in_flight, settings=deployment.settings,
                        last_request_at=d.last_request, busy_seconds=d.busy_seconds())
        return found

    def _in_flight(self, endpoint: str, deployment: str, instance: int) -> int:
        dispatcher = self.routes.dispatcher(endpoint, deployment)
        link = dispatcher.links.get(instance) if dispatcher is not None else None
        return link.in_flight if link is not None else 0

    def _scaled(self, endpoint: str, deployment: str) -> None:
        dispatcher = self.routes.dispatcher(endpoint, deployment)
        if dispatcher is not None and self.scaler is not None:
            dispatcher.leaving = frozenset(self.scaler.going(endpoint, deployment))
            if (wanted := self.scaler.wanted(endpoint, deployment)) is not None:
                dispatcher.instances = wanted
            dispatcher.tend()

    # -- a request's head ------------------------------------------------------------

    def admit(self, request: Request) -> int:
        """See :class:`~jupyter_mlops.serving.http.Application`."""
        call = request.context = Call()
        given = request.header(b"x-request-id") or request.header(b"x-ms-client-request-id")
        request.id = given if _REQUEST_ID.match(given) else f"{random.getrandbits(64):016x}"
        path = request.target.partition(b"?")[0]
        if request.admin and path.startswith(b"/admin/"):
            call.action = path[7:].decode("latin-1")
            return SMALL
        match = _PATH.match(path)
        if match is None:
            raise NotFound("there is nothing here", "POST /endpoints/<name>/invocations with the endpoint's key")
        action = match[2].decode("ascii")
        name = match[1].decode("ascii")
        endpoint = call.endpoint = self.routes.get(name)
        call.wants_page = action == "docs" and "text/html" in request.header(b"accept")
        if not request.admin:
            self._authenticate(request, endpoint)
        call.name, call.action = name, action if action in _METHODS else "-"
        if endpoint is None:
            raise NotFound(f"endpoint '{name}' is not published")
        wanted = _METHODS.get(action)
        if wanted is None or (match[3] and action != "v2"):
            raise NotFound("there is nothing here", f"POST /endpoints/{name}/invocations")
        if action == "v2":
            call.inference = pages.inference(name, (match[3] or b"").decode("ascii"))
            wanted = "POST" if call.inference.verb == "infer" else "GET"
        if request.method != wanted:
            raise MethodNotAllowed(f"{wanted} is the method here", detail={"allow": wanted})
        if wanted == "GET":
            return SMALL
        if request.headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
            raise UnsupportedMedia("compressed bodies are not understood", "send the body as it is")
        if call.inference is not None and call.inference.version:
            call.deployment = endpoint.named(call.inference.version, request.admin)
        else:
            call.deployment = self.choose(request, endpoint)
        return call.deployment.limits.max_bytes

    def _authenticate(self, request: Request, endpoint: Endpoint | None) -> None:
        """The same answer, after the same work, for no key, a wrong key and an endpoint that is not there."""
        scheme, _, credential = request.header(b"authorization").strip().partition(" ")
        credential = credential.strip() if scheme.lower() == "bearer" else ""
        by_token = endpoint is not None and endpoint.auth_mode == "token"
        if credential.startswith(tokens.PREFIX):
            secret = endpoint.token_secret if endpoint is not None and by_token else ""
            good = tokens.check(credential, endpoint.name if endpoint else "", secret, time.time())
        else:
            good = keys.check(credential, endpoint.keys if endpoint is not None and not by_token else keys.NOBODY)
        outside = request.connection.server.public
        if endpoint is None or not good or (outside and not endpoint.public):
            raise Unauthenticated("a valid key of this endpoint is needed", "send Authorization: Bearer <key>")

    def choose(self, request: Request, endpoint: Endpoint) -> Deployment:
        """The deployment that a request goes to. Raises NotFound, Unavailable."""
        headers = request.headers
        named = headers.get(b"azureml-model-deployment") or headers.get(b"x-deployment")
        if named:
            return endpoint.named(named.decode("latin-1"), request.admin)
        return endpoint.pick(headers.get(endpoint.sticky, b"") if endpoint.sticky else b"")

    # -- a whole request ---------------------------------------------------------------

    def handle(self, request: Request) -> None:
        """See :class:`~jupyter_mlops.serving.http.Application`."""
        self.requests += 1
        if request.context is None:  # its head could not be read
            request.context = Call()
            request.id = f"{random.getrandbits(64):016x}"
        call: Call = request.context
        if request.refusal is not None:
            self.refuse(request, request.refusal)
            return
        try:
            if call.endpoint is None:
                self._admin(request, call.action)
            elif call.deployment is None:
                self._later(pages.answer(self, request, call.endpoint, call.action, call.inference), request)
            elif len(request.body) > THREAD_FROM:
                self._later(self._score_large(request, call.deployment), request)
            else:
                self._submit(request, call.deployment, self.canonical(request, call.deployment, call.deployment.fast))
        except MlopsError as error:
            self.refuse(request, error)
        except Exception:
            self._broken(request)

    def canonical(self, request: Request, deployment: Deployment, fast: Fast | None) -> bytes:
        """The request's body in canonical form. Raises ParameterError, UnsupportedMedia."""
        call: Call = request.context
        if call.inference is not None:
            call.document = oip.read(request.body, request.header(b"content-type"),
                                     request.header(b"inference-header-content-length"))
            return oip.canonical(deployment.signature, call.document)
        if deployment.script:
            try:
                request.body.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ParameterError(f"the body is not UTF-8 (byte {error.start})") from None
            return frames.pack_score(_SCRIPT, (request.body,))
        content_type = request.header(b"content-type")
        if fast is not None and content_type == "application/json":
            score = fast(request.body)
            if score is not None:
                return score
        return canonical(deployment.signature, request.body, content_type)

    async def _score_large(self, request: Request, deployment: Deployment) -> None:
        async with self._large:
            score = await asyncio.to_thread(self.canonical, request, deployment, deployment.fast_large)
        if not request.gone:
            self._submit(request, deployment, score)

    def _submit(self, request: Request, deployment: Deployment, score: bytes) -> None:
        call: Call = request.context
        call.wall = time.time()
        rows = rows_of(score)

        def done(answer: bytes | None, error: MlopsError | None) -> None:
            if answer is None:
                assert error is not None
                self.refuse(request, error)
            else:
                self._answer(request, call, deployment, score, answer, rows)

        deployment.dispatcher.submit(Pending(score, done, time.monotonic(), rows))

    def _answer(self, request: Request, call: Call, deployment: Deployment, score: bytes, answer: bytes,
                rows: int) -> None:
        body = answer
        if call.inference is not None:
            try:
                document = call.document
                value = oip.answer(call.name, deployment.name, oip.request_id(document), answer, oip.wanted(document),
                                   deployment.signature)
            except MlopsError as error:
                self.refuse(request, error)
                return
            body = json.dumps(value).encode("ascii")
        took = self.reply(request, 200, body)
        stats = deployment.dispatcher.stats
        stats.rows += rows
        collector = deployment.collector
        if collector is not None and self.recorder.wants(collector):
            self.recorder.take(call.name, deployment.name, collector, request.id, request.body, score, answer,
                               call.wall, took)
        endpoint = call.endpoint
        if endpoint is not None and endpoint.mirror is not None:
            mirror.send(self, request, endpoint, deployment, score, answer)

    # -- answers ---------------------------------------------------------------------

    def reply(self, request: Request, status: int, body: bytes, content_type: bytes = JSON,
              extra: bytes = b"") -> float:
        """Answer a request, and note it. Returns the milliseconds since it came."""
        call: Call = request.context
        lines = b"X-Request-Id: " + request.id.encode("ascii") + b"\r\n" + extra
        if call.deployment is not None:
            lines += call.deployment.header
        request.respond(status, body, content_type, lines)
        took = (time.monotonic() - request.arrived) * 1000
        if call.deployment is not None:
            call.deployment.dispatcher.stats.count(status, took)
        self.access.note(request.id, request.method[:10] or "-", call.name, call.action, status, took, request.size,
                         len(body))
        return took

    def respond_json(self, request: Request, value: Any, status: int = 200) -> None:
        """Answer with JSON."""
        self.reply(request, status, json.dumps(value).encode("ascii"))

    def refuse(self, request: Request, error: MlopsError) -> None:
        """Answer with an error."""
        call: Call = request.context
        extra = b""
        if error.status == 401:
            if call.wants_page and not request.connection.server.public:
                pages.door(self, request)
                return
            extra = b'WWW-Authenticate: Bearer realm="endpoint"\r\n'
        elif error.status in (429, 503):
            extra = b"Retry-After: %d\r\n" % RETRY_AFTER
        elif error.status == 405:
            extra = b"Allow: " + str((error.detail or {}).get("allow", "GET")).encode("ascii") + b"\r\n"
        body = oip.error_body(error) if call.action == "v2" else error.body()
        # ASCII, because messages may quote what a client sent, such as a lone surrogate.
        self.reply(request, error.status, json.dumps(body).encode("ascii"), extra=extra)

    def _describe(self, endpoint: str, deployment: Deployment) -> dict[str, Any]:
        dispatcher = deployment.dispatcher
        captured, dropped = self.recorder.counts(endpoint, deployment.name)
        wanted = self.scaler.wanted(endpoint, deployment.name) if self.scaler is not None else None
        return {
            **dispatcher.stats.describe(), "queued": dispatcher.queued, "in_flight": dispatcher.in_flight,
            "instances": {"ready": dispatcher.ready, "wanted": wanted if wanted is not None else dispatcher.least},
            "captured": captured, "capture_dropped": dropped,
        }

    def _broken(self, request: Request) -> None:
        log.exception("request %s failed", request.id)
        self.refuse(request, MlopsError("the gateway failed", f"its log has request {request.id}"))

    def _later(self, work: Any, request: Request) -> None:
        async def run() -> None:
            try:
                await work
            except MlopsError as error:
                self.refuse(request, error)
            except Exception:
                self._broken(request)

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- everything but scoring ---------------------------------------------------------

    def _admin(self, request: Request, action: str) -> None:
        if action == "info" and request.method == "GET":
            self.respond_json(request, self.info())
        elif action == "stats" and request.method == "GET":
            self.respond_json(request, self.stats())
        elif action == "metrics" and request.method == "GET":
            self.reply(request, 200, metrics.for_all(self.stats()), metrics.CONTENT_TYPE.encode("ascii"))
        elif action == "reload" and request.method == "POST":
            self._later(self._reload(request), request)
        else:
            raise NotFound("there is nothing here")

    async def _reload(self, request: Request) -> None:
        """Take up what changed; answer when what has been removed has answered its last request."""
        self.routes.reload()
        self.routes.tend()
        deadline = time.monotonic() + DRAIN_REMOVED
        while self.routes.retired and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
            self.routes.tend()
        self.respond_json(request, self.info())

    def close(self) -> None:
        """Give everything up."""
        self.routes.close()
        self.recorder.close()
        self.access.flush()

    def info(self) -> dict[str, Any]:
        """What the control plane sees: who we are, and which version of each endpoint's file is in force."""
        return {
            "pid": os.getpid(), "start_time": start_time(os.getpid()), "port": self.port, "started_at": self.started_at,
            "requests": self.requests, "endpoints": self.routes.describe(),
        }

    def stats(self) -> dict[str, Any]:
        """All counters; see :meth:`Stats.describe`."""
        endpoints = {}
        for endpoint in self.routes.all():
            endpoints[endpoint.name] = {"deployments": {
                d.name: self._describe(endpoint.name, d) for d in endpoint.deployments.values()}}
        return {"endpoints": endpoints, "requests": self.requests, "started_at": self.started_at,
                "rss_bytes": resident()}


#: The forms that tell their rows do so in the second place; a parameter may be called ``rows``, too.
_ROWS = re.compile(rb'\{"form":"[a-z]+","rows":(\d{1,9})')
_WIDTHS: dict[bytes, int] = {}


def rows_of(score: bytes) -> int:
    """Rows in a request of canonical form; 1 where it does not say."""
    size = 4 + int.from_bytes(score[:4], "big")
    head = score[4:size]
    width = _WIDTHS.get(head)
    if width is None:
        match = _ROWS.match(head)
        if match is not None:
            return int(match[1])
        header = frames.load_header(head)
        items = header.get("width") or header.get("count") or 0
        width = items * ROW_SIZES.get(header.get("code", ""), 0)
        if len(_WIDTHS) < 1000 and len(head) < 4096:
            _WIDTHS[head] = width
    return (len(score) - size) // width if width else 1


def resident() -> int:
    """Bytes of memory that this process has in RAM; 0 where that is not told."""
    try:
        with open("/proc/self/statm", encoding="ascii") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
