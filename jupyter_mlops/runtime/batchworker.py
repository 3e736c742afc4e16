"""A process of a batch run that holds the model: takes mini-batches on its input, keeps what it has scored as parts.

    python -m jupyter_mlops.runtime.batchworker MODEL PARTS FILES.json

Each way messages are pickles behind their length. It first says ``{"ready"}`` or ``{"failed"}``; then for each
mini-batch ``{"number", "rows", "failed", "error"}``, after the part is in its place. ``error`` instead of a part: the
model failed, and the mini-batch may be sent again; with ``last`` it is taken apart until the rows that the model fails
on are alone. What the model prints goes to the job's log. It ends when its input does.
"""

import json
import os
import pickle
import select
import struct
import subprocess
import sys
import time
import traceback

from . import environ, jobfolder, loading, parts, predictions, rows
from .minibatch import BatchError, place_of

_LENGTH = struct.Struct(">Q")
#: Tracebacks of the model that one process shows: a million rows may fail alike.
TRACEBACKS = 3
#: By these the processes of a job and of a workspace are found; the rest of ours does not reach the model.
_KEPT = (jobfolder.MARKER, "JUPYTER_MLOPS_HOME")


def send(f, value):
    """Write a message to a binary file."""
    body = pickle.dumps(value, protocol=4)
    f.write(_LENGTH.pack(len(body)) + body)
    f.flush()


def receive(f):
    """The next message, None at the end."""
    head = f.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (size,) = _LENGTH.unpack(head)
    body = f.read(size)
    return pickle.loads(body) if len(body) == size else None


class Scoring:
    """The model, and how a mini-batch becomes a part."""

    def __init__(self, model_dir, folder, files, params):
        with open(os.path.join(model_dir, "model.json"), encoding="utf-8") as f:
            self.about = json.load(f)
        self.folder = folder
        self.files = files
        self.params = params
        self.shown = 0
        self.model = loading.load(os.path.join(model_dir, "model"), self.about)
        rows.warm(self.about, self.model.wants)

    def take(self, batch, last):
        """Score a mini-batch and keep it, or say why not."""
        number = batch["number"]
        if "error" in batch:
            return self._keep(number, [], [], [[batch["file"], None, batch["error"]]])
        try:
            data, kept, bad = rows.build(batch, self.files, self.about, self.model.wants, self.model.columns)
        except BatchError as error:
            message = str(error)
            return self._keep(number, [], [], [[*place_of(batch, i), message] for i in range(batch["rows"])])
        errors = [[*place_of(batch, i), message] for i, message in bad]
        if not kept:
            return self._keep(number, [], [], errors)
        try:
            columns, values = rows_of(self.predict(data, len(kept)))
        except Exception as error:
            message = loading.cause(error)
            if not last:
                return {"number": number, "rows": 0, "failed": 0, "error": message}
            if self.shown < TRACEBACKS:
                self.shown += 1
                traceback.print_exc()
            # Anew: the model may have written into what it was given.
            data, kept, bad = rows.build(batch, self.files, self.about, self.model.wants, self.model.columns)
            columns, values, kept, failed = self._apart(data, kept, message)
            errors += [[*place_of(batch, i), text] for i, text in failed]
        errors.sort(key=lambda e: (e[0], e[1]))
        lines = [[*place_of(batch, i), *row] for i, row in zip(kept, values)]
        return self._keep(number, columns, lines, errors)

    def predict(self, data, count):
        """(names, columns) of the answer for ``count`` rows."""
        return predictions.table(self.model.predict(data, self.params), count)

    def _apart(self, data, kept, message):
        """Halve what the model fails on until it is single rows: (columns, rows, their numbers, failed rows)."""
        found, failed = {}, []  # type: ignore[var-annotated]
        names = {}  # type: dict[str, None]
        pending = [(0, len(kept))]
        while pending:
            begin, end = pending.pop()
            if end - begin == len(kept):
                text = message
            else:
                try:
                    columns, values = rows_of(self.predict(rows.cut(data, begin, end), end - begin))
                    names.update(dict.fromkeys(columns))
                    for i, row in enumerate(values):
                        found[begin + i] = dict(zip(columns, row))
                    continue
                except Exception as error:
                    text = loading.cause(error)
            if end - begin == 1:
                failed.append((kept[begin], text))
                continue
            middle = (begin + end) // 2
            pending += [(middle, end), (begin, middle)]
        order = sorted(found)
        return list(names), [[found[i].get(n) for n in names] for i in order], [kept[i] for i in order], failed

    def _keep(self, number, columns, lines, errors):
        parts.write(self.folder, number, columns, lines, errors)
        return {"number": number, "rows": len(lines), "failed": len(errors), "error": "",
                "first": errors[0][2] if errors else ""}


def rows_of(answer):
    """(names, list of rows) of a table by columns."""
    names, columns = answer
    return names, [list(row) for row in zip(*columns)] if columns else []


class WorkerDied(Exception):
    """The process with the model is gone, or was ended since it took too long; its text says which."""


class Handle:
    """The other end: starts the process and asks it. Used by one thread; ``known`` has all that run."""

    def __init__(self, arguments, env, known):
        command = [sys.executable, "-u", "-m", "jupyter_mlops.runtime.batchworker", *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.input, self.output = self.process.stdin, self.process.stdout
        self.known = known
        known.add(self.process)

    def ask(self, message, timeout):
        """The worker's answer to a message; without one, its first word.

        Raises:
            WorkerDied: it did not answer.
        """
        try:
            if message is not None:
                send(self.input, message)
            deadline = time.monotonic() + timeout
            (size,) = _LENGTH.unpack(self._read(_LENGTH.size, deadline))
            return pickle.loads(self._read(size, deadline))
        except (OSError, EOFError, TimeoutError) as error:
            late = isinstance(error, TimeoutError)
            code = self.end()
            raise WorkerDied("it took longer than %g s" % timeout if late else _how(code)) from None

    def _read(self, size, deadline):
        found = b""
        fd = self.output.fileno()
        while len(found) < size:
            if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError
            piece = os.read(fd, size - len(found))
            if not piece:
                raise EOFError
            found += piece
        return found

    def end(self, patience=0.2):
        """Have it end, within ``patience`` seconds; its exit code, None when it had to be killed."""
        for pipe in (self.input, self.output):
            try:
                pipe.close()
            except OSError:
                pass
        try:
            code = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            code = None
            self.process.kill()
            self.process.wait()
        self.known.discard(self.process)
        return code


def _how(code):
    if code is not None and code < 0:
        return "the process with the model was killed by signal %d" % -code
    return "the process with the model ended" + ("" if code is None else " with exit code %d" % code)


def environment(variables, count):
    """What these processes get: no credentials but those that the deployment asked for."""
    env = environ.scrubbed(os.environ, _KEPT)
    environ.share_cores(env, count)
    env.setdefault("TOKENIZERS_PARALLELISM", "false")
    env["MLFLOW_DISABLE_TELEMETRY"] = "true"
    env.update(variables)
    return env


def main(arguments):
    model_dir, folder, listing = arguments
    # The pipes are ours alone: what the model prints or reads must not get in between.
    source, target = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    with open(listing, encoding="utf-8") as f:
        run = json.load(f)
    try:
        scoring = Scoring(model_dir, folder, run["files"], run["params"])
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.flush()
        send(target, {"failed": loading.cause(error)})
        return 1
    send(target, {"ready": scoring.model.loader})
    while True:
        message = receive(source)
        if message is None:
            return 0
        try:
            answer = scoring.take(message["batch"], message["last"])
        except OSError as error:  # a full disk, most likely
            answer = {"number": message["batch"]["number"], "rows": 0, "failed": 0, "error": "", "disk": str(error)}
        sys.stdout.flush()
        send(target, answer)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
