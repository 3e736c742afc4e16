"""The spool: artifacts and models that a rank could not hand to MLflow, kept in the job folder until delivered.

``spool/<time>-<rank>-<pid>/`` is one entry: ``<time>`` is 20 digits, nanoseconds since 1970, so that the order of names
is the order of calls. An entry is complete once it holds ``entry.json``, which is written last; its files lie in
``data/``. Entries are delivered in the order of their names, then removed. ``entry.json`` is one of

- ``{"kind": "artifact", "run_id": R, "path": P, "file": "data/<name>"}``: a file of a run; P is its folder there,
  or empty.
- ``{"kind": "artifact", "model_id": M, "path": P, "file": "data/<name>"}``: a file of a logged model.
- ``{"kind": "model", "local_id": M, "experiment_id": E, "name": N, "source_run_id": R, "model_type": T,
  "tags": {key: value}, "params": {key: value}}``: a model that must be created; N and T may be null.
- ``{"kind": "call", "api": NAME, "model_id": M, "body": {…}}``: one of MLflow's REST messages about a model:
  ``FinalizeLoggedModel``, ``SetLoggedModelTags``, ``DeleteLoggedModelTag`` or ``LogLoggedModelParamsRequest``; the
  body is the message as JSON with the fields' own names.

The name in MLflow of a spooled file is that of the file in ``data/``.

A model whose creation is spooled has a local id: ``LOCAL_ID`` and 20 further hexadecimal digits, as long as MLflow's
own ids and never one of them. Whoever delivers creates the model once (MLflow gives the real id), then puts the real id
for the local one wherever it stands: as ``model_id`` of later entries, in the text of the model's ``MLmodel``, and in
calls of the journal (``LogOutputs``, ``LogInputs``, ``LogBatch``, ``LogMetric``, ``LogModel``), which are held back
until the model exists. A model without a ``FinalizeLoggedModel`` stays pending, as in MLflow.
"""

import errno
import json
import os
import secrets
import shutil
import time

from . import forks, jobfolder

#: How ids begin that are given here because MLflow was away. MLflow's are random version 4 UUIDs, never twelve zeros.
LOCAL_ID = "m-000000000000"
ENTRY = "entry.json"
DATA = "data"

_lock = forks.Lock()
_last = {}  # type: dict[str, int] # folder → time in the last name that this process gave


def local_id():
    """A new local id of a model."""
    return LOCAL_ID + secrets.token_hex(10)


def is_local(model_id):
    """Whether an id was given here, because MLflow was away."""
    return bool(model_id) and model_id.startswith(LOCAL_ID)


def parse(name):
    """(time in ns, rank, pid) of an entry's folder name, None when it is none."""
    parts = name.split("-")
    if len(parts) != 3 or len(parts[0]) != 20 or not all(p.isascii() and p.isdigit() for p in parts):
        return None
    return int(parts[0]), int(parts[1]), int(parts[2])


def names(folder):
    """Names of all entries, complete or not, in order; a missing folder is an empty one."""
    try:
        found = os.listdir(folder)
    except OSError:
        return []
    return sorted(name for name in found if parse(name) is not None)


def entry(folder, name):
    """What an entry says, ``{}`` while it is not complete."""
    return jobfolder.read_json(os.path.join(folder, name, ENTRY))


def pending(folder, rank):
    """Whether anything of a rank waits to be delivered."""
    try:
        with os.scandir(folder) as found:
            for each in found:
                parts = parse(each.name)
                if parts is not None and parts[1] == rank and os.path.exists(os.path.join(each.path, ENTRY)):
                    return True
    except OSError:
        pass
    return False


def remove(folder, name):
    """Forget an entry, its ``entry.json`` first: half an entry is none."""
    path = os.path.join(folder, name)
    try:
        os.unlink(os.path.join(path, ENTRY))
    except FileNotFoundError:
        pass
    shutil.rmtree(path, ignore_errors=True)


def put(folder, rank, content, source=None):
    """Add an entry; it is on disk when this returns.

    Args:
        folder: ``spool/`` of the job, made when it is missing.
        content: what ``entry.json`` says; ``file`` is filled in here.
        source: path of a file that is copied to ``data/``.

    Raises:
        OSError: the source cannot be read, or there is no room; nothing of the entry is left then.
    """
    jobfolder.private_folder(folder)
    path = _new_folder(folder, rank)
    try:
        if source is not None:
            name = os.path.basename(source)
            os.mkdir(os.path.join(path, DATA), 0o700)
            _copy(source, os.path.join(path, DATA, name))
            content = dict(content, file=DATA + "/" + name)
        jobfolder.write_file(os.path.join(path, ENTRY), (json.dumps(content) + "\n").encode())
    except OSError as error:
        shutil.rmtree(path, ignore_errors=True)
        if source is not None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            what = "no room to keep %s until MLflow answers again (%s)" % (source, folder)
            raise OSError(error.errno, "%s: %s" % (what, error.strerror)) from None
        raise
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    return os.path.basename(path)


def _new_folder(folder, rank):
    """A folder whose name comes after all that this rank has made, also when the clock was set back."""
    with _lock:
        newest = _last.get(folder)
        if newest is None:
            newest = max((moment for moment, who, _ in map(parse, names(folder)) if who == rank), default=0)
        moment = max(time.time_ns(), newest + 1)
        while True:
            path = os.path.join(folder, "%020d-%d-%d" % (moment, rank, os.getpid()))
            try:
                os.mkdir(path, 0o700)
            except FileExistsError:
                moment += 1
                continue
            _last[folder] = moment
            return path


def _copy(source, target):
    """Copy a file's bytes, in flat memory, and wait until they are on disk."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    with open(source, "rb") as f, os.fdopen(os.open(target, flags, 0o600), "wb") as out:
        shutil.copyfileobj(f, out, 1 << 20)
        out.flush()
        os.fsync(out.fileno())
