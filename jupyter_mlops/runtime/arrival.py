"""Whether what this process's job has logged is in MLflow by now: asks the control plane to deliver it."""

import http.client
import json
import os
import time
from urllib.parse import quote, urlsplit

from . import forks, locate, record, spool

#: Seconds that a call which only reads waits for what was logged before.
BRIEF = 5.0
#: Seconds for which nobody is asked again after nobody has answered.
LEAVE_ALONE = 10.0

_lock = forks.Lock()
#: What is known in this process: until when the server counts as away, and how much of the journal had arrived.
_known = {"away": 0.0, "arrived": 0, "pid": 0}


def away():
    """Whether the server did not answer a short while ago."""
    return _known["pid"] == os.getpid() and time.monotonic() < _known["away"]


def note_away():
    """The server does not answer: leave it alone for a while."""
    _known.update(away=time.monotonic() + LEAVE_ALONE, pid=os.getpid())


def waiting():
    """Whether anything may have been logged by this rank since it last was all in MLflow."""
    here = record.place()
    if here is None:
        return False
    fresh = _known["pid"] != os.getpid() or here.size() > _known["arrived"]
    return fresh or spool.pending(here.job.spool, here.rank)


def settle():
    """Have what was logged before delivered, when somebody is there to do it; at most a few seconds.

    Returns:
        whether all is in MLflow
    """
    if not waiting():
        return True
    return not away() and flush(BRIEF)


def flush(timeout):
    """See :func:`.record.flush`; returns at once where there is no journal."""
    here = record.place()
    if here is None:
        return True
    until = time.monotonic() + timeout
    if here.writer is not None and not here.writer.sync(timeout):
        return False
    size = here.size()
    left = max(until - time.monotonic(), 0.05)
    try:
        session = locate.connect()
        status = _post(session, "/jobs/%s/actions/flush" % quote(here.name, safe=""), {"timeout": left}, left + 1.0)
        if status in (401, 403):
            session = locate.connect(fresh=True)
            status = _post(session, "/jobs/%s/actions/flush" % quote(here.name, safe=""), {"timeout": left}, left + 1.0)
    except (locate.LocateError, OSError, http.client.HTTPException):
        note_away()
        return False
    if status != 200:
        note_away()  # it is there, but MLflow is not, or lags far behind
        return False
    with _lock:
        _known.update(away=0.0, arrived=size, pid=os.getpid())
    return True


def _post(session, path, body, timeout):
    parts = urlsplit(session.api + path)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc, timeout=timeout)
    try:
        headers = {"Content-Type": "application/json", "Authorization": "Bearer " + session.token}
        connection.request("POST", parts.path, json.dumps(body).encode(), headers)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def real_id(model_id):
    """MLflow's id of a model that got a local one; ``""`` until it has been delivered."""
    here = record.place()
    models = {} if here is None else locate.read_json(here.job.delivery_path).get("models")
    return str(models.get(model_id, "")) if isinstance(models, dict) else ""
