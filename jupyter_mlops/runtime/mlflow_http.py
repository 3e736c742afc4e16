"""One call to our MLflow proxy from a user's process: with our token, and patient while the server is away."""

import contextlib
import json
import logging
import os
import threading
import time
import uuid

from . import locate
from .record import rank, silent

__all__ = ["rank", "silent"]

#: Seconds for which a call is repeated while the control plane or MLflow is away.
PATIENCE = 60.0
PATIENCE_IN_JOB = 600.0
REQUEST_ID_HEADER = "X-Mlops-Request-Id"
#: Answers after which the same call is worth another try.
TRANSIENT = frozenset([408, 425, 429, 502, 503, 504])
MAX_PAUSE = 5.0
#: Tries after which a refused token stays refused, and a server that fails has failed.
MAX_REFUSALS = 3
#: Seconds of waiting after which the user is told.
TELL_AFTER = 3.0
#: Seconds for connecting, and of silence, after which a call that need not be patient takes the server for away.
BRIEF = (3.0, 30.0)

_logger = logging.getLogger("jupyter_mlops")


_limits = threading.local()


class Away(Exception):
    """The server did not answer a call that need not be patient."""


@contextlib.contextmanager
def brief(timeout=BRIEF):
    """Calls of this thread within are not repeated while the server is away, but raise :class:`Away` soon.

    Args:
        timeout: seconds for connecting, and of silence after that.
    """
    before = getattr(_limits, "timeout", None)
    _limits.timeout = timeout
    try:
        yield
    finally:
        _limits.timeout = before


def in_job():
    """Whether this process belongs to a job of ours."""
    return bool(os.environ.get("JUPYTER_MLOPS_JOB"))


def own_run():
    """Id of the run that belongs to this process's job, or ``""``."""
    return os.environ.get("JUPYTER_MLOPS_RUN_ID", "") if in_job() else ""


def timeout():
    """What MLflow's calls take as ``timeout``: None for its own, or that of :func:`brief`."""
    return getattr(_limits, "timeout", None)


def patience():
    """Seconds for which calls of this process are repeated."""
    return PATIENCE_IN_JOB if in_job() else PATIENCE


def request_id():
    """A new id for a call that must be carried out once."""
    return uuid.uuid4().hex


def host_creds(path=""):
    """MLflow's credentials object for our running server: its present port, and this process's token."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.rest_utils import MlflowHostCreds

    try:
        session = locate.connect()
    except locate.LocateError as e:
        raise MlflowException("the workspace cannot be reached: %s" % e)
    return MlflowHostCreds(session.tracking_uri + path, token=session.token)


def _unreached(error):
    """Whether an error of MLflow's HTTP layer means that the server was not there (or went away)."""
    import requests

    lost = (requests.exceptions.ConnectionError, requests.exceptions.Timeout, requests.exceptions.ChunkedEncodingError)
    seen = 0
    while error is not None and seen < 5:
        if isinstance(error, locate.LocateError):
            return in_job()  # elsewhere, connecting has waited and tried to start one already
        if isinstance(error, lost):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False


def persist(call):
    """What ``call(creds_of)`` returns, a response of ``requests``; repeated while the server is away.

    ``creds_of(path)`` gives credentials for the server of the moment. MLflow's own repeating must be off in ``call``,
    or the waits would multiply.
    """
    from mlflow.exceptions import MlflowException

    began = time.monotonic()
    pause, refusals, told = 0.1, 0, False
    while True:
        failure, response, transient = None, None, True
        try:
            response = call(host_creds)
            transient = response.status_code in TRANSIENT
            if response.status_code in (401, 500):
                refusals += 1
            elif not transient:
                return response
        except MlflowException as e:
            if not _unreached(e):
                raise
            failure = e
        waited = time.monotonic() - began
        if timeout() is not None and transient:
            raise Away(str(failure or "the server does not answer"))
        if (waited > patience() and timeout() is None) or refusals >= MAX_REFUSALS:
            if failure is not None:
                raise failure
            return response
        if waited > TELL_AFTER and not told:
            _logger.warning("MLflow of this workspace does not answer; trying on for %d s", patience() - waited)
            told = True
        time.sleep(pause)
        pause = min(2 * pause, MAX_PAUSE)
        try:
            locate.connect(fresh=True)
        except locate.LocateError:
            pass  # the call tells, when patience is over


def call_json(endpoint, method, json_body, response_proto, once=False, expected_status=200):
    """MLflow's ``call_endpoint`` for our server.

    Args:
        json_body: a JSON text, as MLflow's stores make it, or None.
        once: whether the server shall carry it out once, however often it is repeated.
    """
    from mlflow.utils.proto_json_utils import parse_dict
    from mlflow.utils.rest_utils import http_request, verify_rest_response

    body = json.loads(json_body) if json_body is not None else None
    headers = {REQUEST_ID_HEADER: request_id()} if once else {}
    options = {"params": body} if method == "GET" else {"json": body}

    def call(creds_of):
        return http_request(creds_of(), endpoint, method, max_retries=0, raise_on_status=False,
                            extra_headers=headers, timeout=timeout(), **options)

    response = verify_rest_response(persist(call), endpoint)
    if response.status_code != 204:
        parse_dict(json.loads(response.text), response_proto)
    return response_proto
