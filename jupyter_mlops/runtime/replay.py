"""What the journals of a job say of its own run: for reading it back while MLflow is away."""

import os
import re
import threading

from . import journal

_NAME = re.compile(r"(\d+)-(\d+)\.bin")


def journals(folder, rank=None):
    """Paths of the journals in ``folder``, by attempt and rank; of one rank alone when it is given."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    found = []
    for name in names:
        match = _NAME.fullmatch(name)
        if match and (rank is None or int(match.group(2)) == rank):
            found.append((int(match.group(1)), int(match.group(2)), os.path.join(folder, name)))
    return [path for _, _, path in sorted(found)]


def records(path, offset=0):
    """Records of one journal that are whole by now, from ``offset`` on: (record, offset behind it)."""
    while True:
        found, following, _ = journal.read(path, offset)
        yield from found
        if following == offset:
            return
        offset = following


class Replay:
    """The job's own run as far as its ranks have journalled it; reads on where it left off.

    ``metrics``: {key: (value, step, ms)} of the latest points; ``params`` and ``tags``: {key: text}; ``removed``: keys
    of tags that were deleted; ``name``: the last name it was given, or empty.

    Args:
        job: the JobFolder.
        run_id: id of the job's own run.
    """

    def __init__(self, job, run_id):
        self._folder = job.journal
        self._run_id = run_id
        self._offsets = {}  # type: dict[str, int]
        self._lock = threading.RLock()
        self.metrics, self.params, self.tags, self.removed, self.name = {}, {}, {}, set(), ""

    def refresh(self):
        """Take in what was logged since; returns itself."""
        with self._lock:
            for path in journals(self._folder):
                for record, behind in records(path, self._offsets.get(path, 0)):
                    self._take(record)
                    self._offsets[path] = behind
        return self

    def history(self, key):
        """All points of one metric, in the order in which they were logged: (value, step, ms)."""
        return [point for path in journals(self._folder) for record, _ in records(path)
                for name, point in self._points(record) if name == key]

    def _points(self, record):
        if isinstance(record, journal.Metric):
            return [(record.key, (record.value, record.step, record.timestamp))] if self._own(record.run) else []
        if record.api != "LogBatch" or not self._own(record.body.get("run_id")):
            return []
        return [(m["key"], (float(m["value"]), int(m.get("step") or 0), int(m["timestamp"])))
                for m in record.body.get("metrics") or []]

    def _own(self, run):
        return not run or run == self._run_id

    def _take(self, record):
        for key, point in self._points(record):
            known = self.metrics.get(key)
            if known is None or point[1:] >= known[1:]:
                self.metrics[key] = point
        if isinstance(record, journal.Metric) or not self._own(record.body.get("run_id")):
            return
        body = record.body
        if record.api == "LogBatch":
            for param in body.get("params") or []:
                self.params.setdefault(param["key"], param["value"])
            for tag in body.get("tags") or []:
                self.tags[tag["key"]] = tag["value"]
                self.removed.discard(tag["key"])
        elif record.api == "DeleteTag":
            self.tags.pop(body.get("key"), None)
            self.removed.add(body.get("key"))
        elif record.api == "UpdateRun" and body.get("run_name"):
            self.name = body["run_name"]
