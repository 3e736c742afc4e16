"""A batch run: a job that scores files in mini-batches, on several processes that hold the model.

Called by :mod:`.launch` for a job whose spec has ``batch``. Everything that it has done is in ``batch/`` of the job
folder: ``plan.json`` (the files, see :mod:`.minibatch`), ``parts/`` (one file for each finished mini-batch, see
:mod:`.parts`), ``model/`` (unpacked from ``inputs/batch.zip``), ``done.json`` (what came out, once the output is in
place). A further attempt goes on from there: finished mini-batches are not scored again, and the output is made of
whole parts in the order of the input, so that no row is in it twice and none is lost.
"""

import json
import os
import queue
import shutil
import threading
import time

from . import batchworker, jobfolder, minibatch, parcel, parts, record
from .batchworker import WorkerDied
from .minibatch import BatchError

#: Seconds that loading the model may take, starts that may fail in a row, and seconds between two notes of progress.
LOAD_TIMEOUT, MAX_STARTS, NOTE = 900.0, 3, 1.0


class Run:
    """One attempt of a batch run."""

    def __init__(self, job, spec):
        self.job = job
        self.asked = spec["batch"]
        self.settings = self.asked["settings"]
        self.folder = os.path.join(job.path, "batch")
        self.parts = os.path.join(self.folder, "parts")
        self.model = os.path.join(self.folder, "model")
        self.listing = os.path.join(self.folder, "files.json")
        self.output = self.asked["output"]
        self.target = os.path.join(self.output, self.settings["output_file_name"])
        self.level = ["DEBUG", "INFO", "WARNING"].index(self.settings["logging_level"])
        self.count = int(self.settings["max_concurrency_per_instance"])
        self.environment = batchworker.environment(spec.get("environment_variables") or {}, self.count)
        self.workers = set()  # type: set
        self.waiting = queue.Queue(self.count)  # type: queue.Queue
        self.lock = threading.Lock()
        self.halt = threading.Event()
        self.fatal = None  # type: BaseException | None
        self.begun = time.monotonic()
        self.noted = 0.0
        self.share = 0.0
        self.rows = self.failed = self.finished = self.scored = 0
        self.first_error = ""

    def say(self, level, text):
        if level >= self.level:
            print(text, flush=True)

    # -- before

    def prepare(self):
        """The plan, the model and what is done already."""
        jobfolder.private_folder(self.parts)
        made_path = os.path.join(self.folder, "plan.json")
        made = _read_json(made_path)
        if made is None:
            made = minibatch.plan(self.asked["input"], self.settings["mini_batch_size"])
            os.makedirs(self.output, exist_ok=True)
            if not os.access(self.output, os.W_OK):
                raise BatchError("the output folder %s cannot be written to" % self.output)
            if not self.asked["overwrite"]:
                check_free(self.output, self.settings["output_file_name"])
            jobfolder.write_json(made_path, made)
        else:
            minibatch.check_unchanged(made)
            self._forget_failures()
        self.plan = made
        self.names = [name for name, _, _ in made["files"]]
        files = [os.path.join(made["root"], name) for name in self.names]
        jobfolder.write_json(self.listing, {"files": files, "params": self.asked["params"]}, durable=False)
        self._unpack()
        self.done = set()
        for number in parts.numbers(self.parts):
            found = parts.head(self.parts, number)
            if found is not None:
                self.done.add(number)
                self._count(found["rows"], len(found["errors"]), found["errors"][0][2] if found["errors"] else "")
        self.finished = len(self.done)
        about = _read_json(os.path.join(self.model, "model.json")) or {}
        inputs = (about.get("signature") or {}).get("inputs") or []
        named = inputs and all(i.get("name") is not None for i in inputs)
        self.columns = {i["name"] for i in inputs} if named else None

    def _forget_failures(self):
        """After too many errors, a resume tries the mini-batches with errors once more."""
        mark = os.path.join(self.folder, "exceeded")
        if not os.path.exists(mark):
            return
        for number in parts.numbers(self.parts):
            found = parts.head(self.parts, number)
            if found is None or found["errors"]:
                os.unlink(parts.path(self.parts, number))
        os.unlink(mark)

    def _unpack(self):
        if os.path.isdir(self.model):
            return
        archive = os.path.join(self.job.inputs, "batch.zip")
        try:
            parcel.unpack(archive, self.model)
        except (OSError, parcel.ParcelError) as error:
            raise BatchError("the model did not come with the job (%s): submit it again" % error) from None
        os.unlink(archive)

    # -- while it runs

    def score(self):
        """Score what is not done; returns the number of mini-batches."""
        slots = [threading.Thread(target=self._slot, name="batch-%d" % i, daemon=True) for i in range(self.count)]
        last = -1
        try:
            for slot in slots:
                slot.start()
            for batch in minibatch.read(self.plan, self.columns, self.done.__contains__):
                batch["kind"] = self.plan["kind"]
                last = max(last, batch["number"])
                self._put(batch)
                if self.halt.is_set():
                    break
            for _ in slots:
                self._put(None)
            for slot in slots:
                slot.join()
        finally:
            self.halt.set()
            for process in list(self.workers):
                process.kill()
        if self.fatal is not None:
            raise self.fatal
        return max(last, *self.done, -1) + 1

    def _put(self, batch):
        while not self.halt.is_set():
            try:
                self.waiting.put(batch, timeout=0.2)
                return
            except queue.Full:
                self._note()

    def _slot(self):
        worker = None
        try:
            while not self.halt.is_set():
                try:
                    batch = self.waiting.get(timeout=0.2)
                except queue.Empty:
                    self._note()
                    continue
                if batch is None:
                    break
                worker = self._one(worker, batch)
        except BaseException as error:
            self.fatal = self.fatal or error
            self.halt.set()
        finally:
            if worker is not None:
                worker.end(2.0)

    def _one(self, worker, batch):
        """Have a mini-batch scored, again when it fails; returns the worker that is left."""
        retry = self.settings["retry_settings"]
        most, number = int(retry["max_retries"]), batch["number"]
        for attempt in range(most + 1):
            if self.halt.is_set():
                return worker
            worker = worker or self._worker()
            try:
                answer = worker.ask({"batch": batch, "last": attempt == most}, float(retry["timeout"]))
            except WorkerDied as error:
                worker, message = None, str(error)
                found = parts.head(self.parts, number)
                if found is not None:  # it died after its work was done
                    self._finish(batch, found["rows"], len(found["errors"]), "")
                    return None
            else:
                if answer.get("disk"):
                    raise BatchError("mini-batch %d cannot be kept: %s" % (number, answer["disk"]))
                if not answer["error"]:
                    self._finish(batch, answer["rows"], answer["failed"], answer["first"])
                    return worker
                message = answer["error"]
            if attempt < most and not self.halt.is_set():
                self.say(2, "mini-batch %d failed (%s): try %d of %d" % (number, message, attempt + 2, most + 1))
                self.halt.wait(min(0.1 * 2 ** attempt, 5.0))
        if self.halt.is_set():
            return worker
        errors = [[*minibatch.place_of(batch, i), message] for i in range(batch["rows"])]
        parts.write(self.parts, number, [], [], errors)
        self._finish(batch, 0, len(errors), message)
        return worker

    def _worker(self):
        command = [self.model, self.parts, self.listing]
        for start in range(MAX_STARTS):
            worker = batchworker.Handle(command, self.environment, self.workers)
            try:
                word = worker.ask(None, LOAD_TIMEOUT)
            except WorkerDied as error:
                if start + 1 == MAX_STARTS or self.halt.is_set():
                    raise BatchError("the model cannot be loaded: %s" % error) from None
                continue
            if "ready" in word:
                return worker
            worker.end()
            raise BatchError("the model cannot be loaded: %s" % word["failed"])
        raise AssertionError("unreachable")

    def _count(self, rows, failed, message):
        self.rows += rows
        self.failed += failed
        if failed:
            self.first_error = self.first_error or message

    def _finish(self, batch, rows, failed, message):
        with self.lock:
            self._count(rows, failed, message)
            self.finished += 1
            self.scored += rows
            self.share = max(self.share, batch["share"])
            if failed:
                self.say(2, "mini-batch %d: %d rows failed: %s" % (batch["number"], failed, message))
            self.say(0, "mini-batch %d: %d rows" % (batch["number"], rows))
            if 0 <= self.settings["error_threshold"] < self.failed and not self.halt.is_set():
                jobfolder.write_file(os.path.join(self.folder, "exceeded"), b"", durable=False)
                self.fatal = BatchError("%d rows failed, more than error_threshold %d allows; the first: %s" % (
                    self.failed, self.settings["error_threshold"], self.first_error or message))
                self.halt.set()
        self._note()

    def _note(self, last=False):
        """Tell how far it is, at most once a second."""
        with self.lock:
            if not last and time.monotonic() - self.noted < NOTE:
                return
            before, self.noted = self.noted, time.monotonic()
            took = max(self.noted - self.begun, 1e-3)
            figures = {"rows": self.rows, "failed_rows": self.failed, "rows_per_second": self.scored / took}
            step, share = self.finished, self.share
        writer = getattr(record.place(), "writer", None)
        if writer is not None and (step or last):
            writer.points([(key, float(value), step, None) for key, value in figures.items()])
            writer.call("SetTag", {"run_id": os.environ["JUPYTER_MLOPS_RUN_ID"], "key": "mlops.progress",
                                   "value": "%d/100" % (100 if last else min(99, int(100 * share)))})
        if step and (last or int(before / 5) != int(self.noted / 5)):
            self.say(1, "%3d %%  %d rows, %d failed, %.0f rows/s" % (
                100 if last else min(99, 100 * share), self.rows, self.failed, figures["rows_per_second"]))

    # -- the end

    def conclude(self, count):
        """Write the output; what is told of it."""
        errors = os.path.join(self.output, "errors.jsonl")
        parts.write_errors(self.parts, count, self.names, errors)
        if self.failed and not self.rows:
            raise BatchError("all %d rows failed; the first: %s" % (self.failed, self.first_error))
        append = self.settings["output_action"] == "append_row"
        if append:
            form = minibatch.SUFFIXES[os.path.splitext(self.target)[1].lower()]
            parts.merge(self.parts, count, self.names, self.target, form)
        summary = {
            "endpoint": self.asked["endpoint"], "deployment": self.asked["deployment"], "model": self.asked["model"],
            "input": self.asked["input"], "files": len(self.names), "mini_batches": count, "rows": self.rows,
            "failed_rows": self.failed, "output": self.target if append else "",
            "errors": errors if self.failed else "", "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        text = (json.dumps(summary, indent=1) + "\n").encode()
        jobfolder.write_file(os.path.join(self.output, "summary.json"), text)
        jobfolder.write_file(os.path.join(self.folder, "done.json"), text)
        self._note(last=True)
        shutil.rmtree(self.parts, ignore_errors=True)
        shutil.rmtree(self.model, ignore_errors=True)
        return summary


def check_free(folder, name):
    """Refuse to write over what another run has left.

    Raises:
        BatchError: naming the file.
    """
    for file in (name, "summary.json", "errors.jsonl"):
        path = os.path.join(folder, file)
        if os.path.lexists(path):
            raise BatchError("%s is there already: choose another output, or --overwrite" % path)


def _read_json(path):
    try:
        with open(path, encoding="utf-8") as f:
            return json.load(f)
    except (OSError, ValueError):
        return None


def run(job, spec):
    """Do a batch run, or what is left of it.

    Raises:
        BatchError: it cannot be done, or too many rows failed.
    """
    work = Run(job, spec)
    finished = _read_json(os.path.join(work.folder, "done.json"))
    if finished is not None:
        print("it is done already: %s" % (finished.get("output") or work.output), flush=True)
        return
    work.prepare()
    writer = getattr(record.place(), "writer", None)
    if writer is not None:
        told = {"input": work.asked["input"], "output": work.output, "model": work.asked["model"],
                "files": str(len(work.names)), "mini_batch_size": str(work.plan["size"])}
        writer.call("LogBatch", {"run_id": os.environ["JUPYTER_MLOPS_RUN_ID"], "params": [
            {"key": key, "value": str(value)[:500]} for key, value in told.items()]})
    if work.done:
        work.say(1, "%d mini-batches are done already" % len(work.done))
    try:
        count = work.score()
    except BatchError:
        numbers = parts.numbers(work.parts)
        if work.failed and numbers:  # for whoever looks for the reason
            parts.write_errors(work.parts, numbers[-1] + 1, work.names, os.path.join(work.output, "errors.jsonl"))
        raise
    told = work.conclude(count)
    work.say(1, "%d rows scored, %d failed: %s" % (told["rows"], told["failed_rows"], told["output"] or work.output))
