"""``jupyter_mlops.log`` and ``jupyter_mlops.flush``, and the journal of the rank that this process belongs to.

Standard library only: in a job it works where MLflow is not installed.
"""

import atexit
import os
import posixpath
import re
import struct
import sys
import time

from . import forks, jobfolder, journal, replay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Optional, SupportsFloat

#: Seconds that a process waits at its end for room on a full disk.
LAST_PATIENCE = 30.0
#: What MLflow takes as the name of a metric.
_NAME = re.compile(r"[/\w.\- :]{1,250}")

_lock = forks.Lock()


class Place:
    """Where this process's rank writes: ``job`` (a JobFolder), ``name``, ``run_id``, ``attempt``, ``rank``, ``writer``.

    ``writer`` is None where the journal cannot be written.
    """

    def __init__(self, job, name, run_id, attempt, rank):
        self.job, self.name, self.run_id, self.attempt, self.rank = job, name, run_id, attempt, rank
        self.path = job.journal_path(attempt, rank)
        self.writer = None  # type: Optional[journal.Writer]
        try:
            jobfolder.private_folder(job.journal)
            self.writer = journal.Writer(self.path, self.backlog)
            if jobfolder.SLOT in os.environ:
                self.writer.go_on()
        except OSError as error:
            _say("what is logged goes straight to MLflow: the journal cannot be written (%s)" % error)

    def size(self):
        """Bytes of the journal."""
        try:
            return os.stat(self.path).st_size
        except OSError:
            return 0

    def backlog(self):
        """Bytes of the journal that are not in MLflow yet."""
        files = jobfolder.read_json(self.job.delivery_path).get("files")
        entry = files.get(os.path.basename(self.path)) if isinstance(files, dict) else None
        offset = entry.get("offset", 0) if isinstance(entry, dict) else 0
        return self.size() - (offset if isinstance(offset, int) else 0)


#: None: not looked for yet; False: this process belongs to no rank that journals.
_place = None  # type: Place | bool | None
_writer: "Any" = None  # the journal's writer, where `log` writes to it


def place():
    """The :class:`Place` of this process, or None: no job, or a further rank that was not asked to log."""
    global _place, _writer
    if _place is None:
        with _lock:
            if _place is None:
                found = _find()
                _writer = found.writer if found is not None and found.rank == 0 and found.writer is not None else False
                _place = found or False
    return _place or None


def rank():
    """Rank of this process among those of its job; 0 when there is one, or none."""
    try:
        number = os.environ.get(jobfolder.SLOT) or os.environ.get("RANK", "0")
        return int(number) if os.environ.get("JUPYTER_MLOPS_JOB") else 0
    except ValueError:
        return 0


def silent():
    """Whether this process is a further rank of a job, which logs nothing unless asked to."""
    return rank() > 0 and os.environ.get("JUPYTER_MLOPS_LOG_ALL_RANKS") != "1"


def _find():
    name, run_id = os.environ.get("JUPYTER_MLOPS_JOB"), os.environ.get("JUPYTER_MLOPS_RUN_ID")
    folder, attempt = os.environ.get(jobfolder.MARKER), os.environ.get("JUPYTER_MLOPS_ATTEMPT")
    if not name or not run_id or not folder or not attempt or silent() or not os.path.isdir(folder):
        return None
    try:
        found = Place(jobfolder.JobFolder(folder), name, run_id, int(attempt), rank())
    except ValueError:
        return None
    if found.writer is not None:
        atexit.register(_at_exit, found.writer, os.getpid())
    return found


def _at_exit(writer, pid):
    if os.getpid() != pid:
        return
    if not writer.sync(LAST_PATIENCE if writer.held() else 1.0) and writer.held():
        _say("no room on the disk to the end: %d bytes of what was logged are lost" % writer.held())


def _say(text):
    try:
        sys.stderr.write("jupyter-mlops: %s\n" % text)
    except Exception:
        pass


# -- what users call

_steps = {}  # type: dict[str, int] # key → its last step in the job's own run
_known = set()  # type: set[str] # names that are fine
_earlier = None  # type: Optional[dict[str, int]]
_steps_of_runs = {}  # type: dict[tuple[str, str], int]


def log(
    values: "Optional[Mapping[str, SupportsFloat]]" = None, /, *, step: "Optional[int]" = None,
    **metrics: "SupportsFloat",
) -> None:
    """Log metrics: ``log(loss=0.3, acc=0.9, step=7)`` or ``log({"val/loss": 0.3})``.

    In a job they are journalled for the job's run, which takes microseconds and needs neither MLflow nor a server;
    ranks above 0 stay silent. In a notebook or script they go to MLflow's active run, or to one that is started.

    Args:
        values: names that are no Python names.
        step: without it, each metric counts its own steps on from its last, also after a restart of the job.
        metrics: numbers, or what ``float()`` takes: scalars of numpy and torch.

    Raises:
        TypeError: a value is no number, or the step no whole one.
        ValueError: MLflow would not take a name.
    """
    writer = _writer
    if writer is None:
        place()
        writer = _writer
    if values is not None:
        metrics = {**values, **metrics}
    if not writer:
        if not silent():
            _log_to_mlflow(_numbers(metrics), step)
        return
    if not metrics:
        return
    for key, value in metrics.items():
        if type(value) is not float:
            metrics[key] = _number(key, value)
        if key not in _known:
            _check_name(key)
    try:
        if step is None:
            with _lock:
                writer.points([(key, value, _next_step(key), None) for key, value in metrics.items()])
        elif len(metrics) == 1:
            writer.metric(key, metrics[key], step)
            _steps[key] = step
        else:
            writer.points([(key, value, step, None) for key, value in metrics.items()])
            _steps.update(dict.fromkeys(metrics, step))
    except struct.error:
        raise TypeError("step must be a whole number of 64 bits, not %r" % (step,)) from None


def flush(timeout: float = 30.0) -> bool:
    """Wait until all that was logged is in MLflow; what is not yet is safe all the same, and on its way.

    Args:
        timeout: seconds.

    Returns:
        whether it is; False when MLflow is away, or too slow.
    """
    began = time.monotonic()
    mlflow = sys.modules.get("mlflow")
    if mlflow is not None and hasattr(mlflow, "flush_async_logging"):
        try:
            mlflow.flush_async_logging()
        except Exception as error:
            _say("what was logged asynchronously could not be flushed: %s" % error)
    if place() is None:
        return True
    from . import arrival

    return bool(arrival.flush(max(timeout - (time.monotonic() - began), 0.0)))


def _number(key, value):
    if not isinstance(value, (str, bytes, bytearray)):
        try:
            return float(value)
        except Exception:
            pass
    raise TypeError("metric %r must be a number, not %s" % (key, _kind(value))) from None


def _kind(value):
    shape = getattr(value, "shape", None)
    name = type(value).__name__
    return "%s of shape %s" % (name, tuple(shape)) if shape else name


def _numbers(metrics):
    for key in metrics:
        _check_name(key)
    return {key: _number(key, value) for key, value in metrics.items()}


def _check_name(key):
    """Raise what is wrong with the name of a metric: what MLflow refuses later would be lost.

    Raises:
        TypeError: it is no text.
        ValueError: MLflow does not take it.
    """
    if not isinstance(key, str):
        raise TypeError("the name of a metric must be a str, not %s" % type(key).__name__)
    if not _NAME.fullmatch(key) or posixpath.normpath(key) != key or key.startswith(("/", "..")) or key == ".":
        raise ValueError("MLflow takes no metric %r: letters, digits, _ - . : space and single / in between, at most"
                         " 250 characters" % (key[:300],))
    if len(_known) < 100000:
        _known.add(key)


def _next_step(key):
    """The step after the last one of a metric, earlier attempts of the job included."""
    global _earlier
    if key not in _steps:
        if _earlier is None:
            _earlier = {}
            here = place()
            for path in replay.journals(here.job.journal, here.rank):
                for found, _ in replay.records(path):
                    if isinstance(found, journal.Metric) and not found.run:
                        _earlier[found.key] = max(found.step, _earlier.get(found.key, -1))
        _steps[key] = _earlier.get(key, -1)
    _steps[key] += 1
    return _steps[key]


def _log_to_mlflow(metrics, step):
    try:
        import mlflow
    except ImportError:
        raise RuntimeError("jupyter_mlops.log needs mlflow here: it works without it in jobs only") from None
    run_id = (mlflow.active_run() or mlflow.start_run()).info.run_id
    by_step = {}  # type: dict[int, dict[str, float]]
    for key, value in metrics.items():
        at = _steps_of_runs.get((run_id, key), -1) + 1 if step is None else step
        _steps_of_runs[run_id, key] = at
        by_step.setdefault(at, {})[key] = value
    for at, group in by_step.items():
        mlflow.log_metrics(group, step=at)
