"""One model in one process: loads it, then answers frames on a unix socket.

``python -m jupyter_mlops.runtime.scorer --folder endpoints/<e>/<d> --socket PATH`` runs under the interpreter that the
model needs. It imports the standard library, and lazily what that interpreter has: mlflow, or for scikit-learn models
just their own libraries (half the start time and half the memory). HTTP, keys and the check of the input are the
gateway's; what arrives here is canonical (:mod:`jupyter_mlops.runtime.frames`).

Files in the folder: ``scorer.lock`` is held for life, so that there is never a second one; ``scorer.json`` is replaced
atomically, ``{schema, phase: loading | ready | failed | stopped, pid, start_time, message, traceback, launch,
ready_after_s}``. Exit codes: 0 stopped, 1 the model cannot be loaded, 3 another scorer holds the lock.

SIGTERM: finish what is under way (at most ``--grace`` seconds), refuse the rest, leave. The model runs on one thread,
the loop on another, so pings are answered while it computes.
"""

import argparse
import asyncio
import concurrent.futures
import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback

from . import frames
from .processes import start_time

LOCKED = 3
#: Bytes of the log at which it is begun anew: a model that prints must not fill the disk.
LOG_LIMIT = 64 * 1024 * 1024
#: Characters of a model's own error that go to the caller.
CAUSE_LIMIT = 300


def main(argv=None):
    parser = argparse.ArgumentParser(prog="scorer")
    parser.add_argument("--folder", required=True)
    parser.add_argument("--instance-folder", required=True)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--launch", default="")
    parser.add_argument("--grace", type=float, default=10.0)
    args = parser.parse_args(argv)
    lock = open(os.path.join(args.instance_folder, "scorer.lock"), "a")  # noqa: SIM115 (held for life)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return LOCKED
    status = Status(os.path.join(args.instance_folder, "scorer.json"), args.launch)
    status.write("loading", "loading the model")
    with contextlib.suppress(OSError):
        os.unlink(args.socket)
    begun = time.monotonic()
    try:
        model = load(os.path.join(args.folder, "model"), read_json(os.path.join(args.folder, "model.json")))
    except BaseException as error:
        traceback.print_exc()
        lines = traceback.format_exc().strip().splitlines()
        status.write("failed", cause(error, None), lines[-30:])
        return 1
    asyncio.run(Scorer(model, args.socket, status, args.grace, begun).run())
    return 0


def read_json(path):
    with open(path, encoding="utf-8") as f:
        return json.load(f)


class Status:
    """``scorer.json``: what those who watch see, even after this process is gone."""

    def __init__(self, path, launch):
        self.path = path
        self.base = {"schema": 1, "pid": os.getpid(), "start_time": start_time(os.getpid()), "launch": launch}

    def write(self, phase, message="", trace=(), **more):
        record = dict(self.base, phase=phase, message=message, traceback=list(trace), at=time.time(), **more)
        temporary = "%s.%d" % (self.path, os.getpid())
        with open(temporary, "w", encoding="utf-8") as f:
            json.dump(record, f)
        os.replace(temporary, self.path)


# -- the model ----------------------------------------------------------------


class Model:
    """``predict(data, params)`` of whatever was loaded, and how."""

    def __init__(self, predict, loader):
        self.predict = predict
        self.loader = loader


def load(folder, about):
    """The model in an MLflow model folder.

    Args:
        about: what ``prepare`` found in its MLmodel file: ``{"sklearn": {...}}`` when it can be loaded without MLflow.
    """
    with _no_needless_torch():
        model = None
        if about.get("sklearn") and os.environ.get("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true").lower() != "false":
            try:
                model = _load_sklearn(folder, about["sklearn"])
            except Exception as error:
                # MLflow's own loader has the last word, and its error is the one that users can look up.
                print("loading without MLflow failed (%s), with it now" % cause(error, None), flush=True)
        if model is None:
            model = _load_pyfunc(folder)
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "set_num_threads"):
        with contextlib.suppress(Exception):
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    return model


def _load_sklearn(folder, about):
    """What ``mlflow.sklearn`` does for a model without code paths, without importing MLflow."""
    path = os.path.join(folder, about["file"])
    if about["format"] == "skops":
        import skops.io

        model = skops.io.load(path, trusted=about.get("trusted"))
    else:
        import pickle

        with open(path, "rb") as f:
            model = pickle.load(f)  # loading a model is running its code; MLflow does the same
    predict = getattr(model, about["predict"])
    return Model(lambda data, params: predict(data), "sklearn")


def _load_pyfunc(folder):
    import mlflow.pyfunc

    model = mlflow.pyfunc.load_model(folder, suppress_warnings=True)
    return Model(lambda data, params: model.predict(data, params=params or None), "pyfunc")


@contextlib.contextmanager
def _no_needless_torch():
    """Keeps ``sklearn.utils.all_estimators``, which skops calls at import, from importing torch, CuPy and dask.

    It walks all of scikit-learn's modules, among them adapters to these libraries, and skips those whose import fails.
    Torch costs a second and 200 MB, for nothing. The adapters can be imported again once the model is loaded.
    """
    class Refusal:
        def find_spec(self, name, path=None, target=None):
            head, _, last = name.rpartition(".")
            adapter = head == "sklearn.externals.array_api_compat" and last in ("torch", "cupy", "dask")
            if adapter and last not in sys.modules:
                raise ModuleNotFoundError("not while a model is loaded: " + name, name=name)
            return None

    refusal = Refusal()
    sys.meta_path.insert(0, refusal)
    try:
        yield
    finally:
        sys.meta_path.remove(refusal)


# -- input and output ---------------------------------------------------------


def build(body):
    """(data, params) for ``predict`` from the body of a SCORE frame."""
    header, blob = frames.unpack_score(body)
    params = header.get("params") or {}
    if header["form"] == "raw":
        return header["values"], params
    if header["form"] == "tensors":
        return _arrays(header["tensors"], blob), params
    return _dataframe(header["blocks"], blob, header["rows"]), params


def _dataframe(blocks, blob, rows):
    import numpy as np
    import pandas as pd

    offset = 0
    parts = []  # type: list
    for block in blocks:
        if "size" in block:
            # A copy, because the frame's bytes are read-only and models may write into their input.
            values = np.frombuffer(blob[offset:offset + block["size"]], dtype=block["code"]).copy()
            offset += block["size"]
            if len(blocks) == 1:
                return pd.DataFrame(values.reshape(rows, block["width"]), columns=block["names"])
        else:
            values = _plain_column(block["type"], block["values"], np, pd)
        parts.append((block["names"][0] if block["names"] else len(parts), values))
    return pd.DataFrame(dict(parts), index=pd.RangeIndex(rows))


def _plain_column(kind, values, np, pd):
    if kind == "boolean":
        return np.array(values, dtype=bool) if None not in values else pd.Series(values, dtype=object)
    if kind == "datetime":
        return pd.to_datetime(pd.Series(values, dtype=object), format="ISO8601").astype("datetime64[ns]")
    if kind == "binary":
        return pd.Series([_unbase64(v) for v in values], dtype=object)
    if kind == "string":
        return pd.Series(values) if any(v is not None for v in values) else pd.Series(values, dtype=object)
    column = np.empty(len(values), dtype=object)  # lists and dicts, which pandas must not look into
    for i, value in enumerate(values):
        column[i] = value
    return pd.Series(column, dtype=object)


def _unbase64(text):
    import base64

    return None if text is None else base64.b64decode(text)


def _arrays(tensors, blob):
    import numpy as np

    offset = 0
    result = {}
    for tensor in tensors:
        dtype = tensor["dtype"]
        if "size" in tensor:
            raw = "int8" if dtype == "bool" else tensor["code"] or dtype
            values = np.frombuffer(blob[offset:offset + tensor["size"]], dtype=raw).astype(dtype)
            offset += tensor["size"]
        elif dtype == "datetime64":
            values = np.array(["NaT" if v is None else v for v in tensor["values"]], dtype="datetime64[ns]")
        elif dtype == "object":
            values = np.empty(len(tensor["values"]), dtype=object)
            for i, value in enumerate(tensor["values"]):
                values[i] = value
        else:
            values = np.array(tensor["values"], dtype=str)
        result[tensor["name"]] = values.reshape(tensor["shape"])
    return result[None] if list(result) == [None] else result


def answer(output):
    """The JSON for the caller: ``{"predictions": ...}`` as MLflow's scoring protocol has it; NaN is null."""
    plain = _plain(output)
    try:
        text = json.dumps({"predictions": plain}, default=_default, allow_nan=False, separators=(",", ":"))
    except (ValueError, TypeError):
        text = json.dumps({"predictions": _without_nan(plain)}, allow_nan=False, separators=(",", ":"))
    return text.encode("ascii")


def _plain(value):
    np, pd = sys.modules.get("numpy"), sys.modules.get("pandas")
    if np is not None and isinstance(value, np.ndarray):
        return np.datetime_as_string(value).tolist() if value.dtype.kind == "M" else value.tolist()
    if pd is not None and isinstance(value, (pd.DataFrame, pd.Series)):
        return pd.DataFrame(value).to_dict(orient="records")
    if hasattr(value, "toarray") and hasattr(value, "nnz"):  # a sparse matrix of scipy
        return value.toarray().tolist()
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "Tensor") and isinstance(value, torch.Tensor):
        return value.detach().cpu().numpy().tolist()
    return value


def _default(value):
    """Whatever JSON does not know: numpy, pandas, dates, bytes, pydantic."""
    import base64
    import datetime
    import decimal

    plain = _plain(value)
    if plain is not value:
        return plain
    np, pd = sys.modules.get("numpy"), sys.modules.get("pandas")
    if pd is not None and (value is pd.NaT or value is pd.NA):
        return None
    if np is not None and isinstance(value, np.datetime64):
        return None if np.isnat(value) else str(value)
    if np is not None and isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(bytes(value)).decode("ascii")
    if isinstance(value, (datetime.date, datetime.datetime, datetime.time)):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    if hasattr(value, "model_dump"):
        return value.model_dump()
    raise TypeError("the model's answer has a %s in it, which is not JSON" % type(value).__name__)


def _without_nan(value):
    if isinstance(value, float):
        return value if value - value == 0 else None
    if value is None or isinstance(value, (str, int, bool)):
        return value
    if isinstance(value, dict):
        return {k if isinstance(k, str) else str(k): _without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    return _without_nan(_default(value))


_PATH = re.compile(r"(?:(?<=[\s'\"(=:,])|^)(?:~|[A-Za-z]:)?[/\\](?:[^\s'\":,;()]*[/\\])+([^\s'\":,;()/\\]*)")


def cause(error, limit=CAUSE_LIMIT):
    """An exception in one line, without folders of this machine."""
    text = str(error).strip()
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    line = _PATH.sub(r"\1", "%s: %s" % (type(error).__name__, first) if first else type(error).__name__)
    line = "".join(c if c.isprintable() else " " for c in line)
    return line if limit is None or len(line) <= limit else line[:limit] + "…"


# -- the server ---------------------------------------------------------------


class Scorer:
    """Serves frames of any number of connections; the model computes on one thread, in order of arrival."""

    def __init__(self, model, path, status, grace, begun):
        self.model = model
        self.path = path
        self.status = status
        self.grace = grace
        self.begun = begun
        self.pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="model")
        self.tasks = set()
        self.draining = False

    async def run(self):
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        # Bound under another name with its mode set, then renamed: nobody ever finds it half made.
        temporary = self.path + ".new"
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(temporary)
        os.chmod(temporary, 0o600)
        server = await asyncio.start_unix_server(self.serve, sock=listener, backlog=128, limit=1 << 20)
        os.replace(temporary, self.path)
        took = time.monotonic() - self.begun
        self.status.write("ready", ready_after_s=round(took, 3), loader=self.model.loader)
        print("ready after %.2f s (%s)" % (took, self.model.loader), flush=True)
        watch = asyncio.ensure_future(self.watch())
        watch.add_done_callback(lambda _: stop.set())
        await stop.wait()
        self.draining = True
        server.close()
        watch.cancel()
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        if self.tasks:
            await asyncio.wait(list(self.tasks), timeout=self.grace)
        with contextlib.suppress(OSError):
            self.status.write("stopped", "stopped")
        print("stopped", flush=True)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # a model that still computes on its thread must not keep the process

    async def serve(self, reader, writer):
        waiting = {}
        try:
            while True:
                kind, ident, body = await frames.read(reader)
                if kind == frames.PING:
                    self.send(writer, frames.PONG, ident, json.dumps({"pid": os.getpid(), "phase": "ready"}).encode())
                elif kind == frames.SCORE:
                    if self.draining:
                        self.send_error(writer, ident, "unavailable", "the deployment is stopping")
                        continue
                    job = self.pool.submit(self.score, body)
                    waiting[ident] = job
                    task = asyncio.ensure_future(self.reply(job, writer, ident, waiting))
                    self.tasks.add(task)
                    task.add_done_callback(self.tasks.discard)
                elif kind == frames.CANCEL and ident in waiting:
                    waiting[ident].cancel()
                await writer.drain()
        except (asyncio.IncompleteReadError, frames.FrameError, ConnectionError):
            pass
        finally:
            for job in list(waiting.values()):
                job.cancel()
            writer.close()

    async def reply(self, job, writer, ident, waiting):
        try:
            kind, body = await asyncio.wrap_future(job)
        except (asyncio.CancelledError, concurrent.futures.CancelledError):
            return
        finally:
            waiting.pop(ident, None)
        if not writer.is_closing():
            self.send(writer, kind, ident, body)
            with contextlib.suppress(ConnectionError):
                await writer.drain()

    def score(self, body):
        """One request, on the model's thread: (frame kind, body)."""
        try:
            data, params = build(body)
        except Exception as error:
            traceback.print_exc()
            return frames.ERROR, error_body("bad_parameter", "the input cannot be built: " + cause(error))
        try:
            output = self.model.predict(data, params)
        except Exception as error:
            traceback.print_exc()
            return frames.ERROR, error_body("model_error", "the model failed: " + cause(error))
        except SystemExit as error:
            return frames.ERROR, error_body("model_error", "the model called exit(%s)" % (error.code,))
        try:
            return frames.RESULT, answer(output)
        except Exception as error:
            traceback.print_exc()
            return frames.ERROR, error_body("model_error", "the model's answer is not JSON: " + cause(error))

    def send(self, writer, kind, ident, body):
        writer.write(frames.pack(kind, ident, body))

    def send_error(self, writer, ident, code, message):
        self.send(writer, frames.ERROR, ident, error_body(code, message))

    async def watch(self):
        """Begin the log anew when it is too long (it is in append mode), until the deployment's folder is gone."""
        while os.path.isdir(os.path.dirname(self.status.path)):
            await asyncio.sleep(10)
            with contextlib.suppress(OSError):
                if os.fstat(1).st_size > LOG_LIMIT:
                    os.ftruncate(1, 0)
                    print("the log reached %d bytes and was begun anew" % LOG_LIMIT, flush=True)


def error_body(code, message):
    return json.dumps({"code": code, "message": message}).encode("ascii")


if __name__ == "__main__":
    threading.current_thread().name = "scorer"
    sys.exit(main())
