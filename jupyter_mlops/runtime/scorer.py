"""One model in one process: loads it, then answers batches of requests on a unix socket.

``python -m jupyter_mlops.runtime.scorer --folder endpoints/<e>/<d> --instance-folder … --socket PATH`` runs under the
interpreter that the model needs. It imports the standard library, and lazily what that interpreter has. HTTP, keys, the
check of the input and the queue are the gateway's; what arrives here is canonical
(:mod:`jupyter_mlops.runtime.inputs`).

Files in the instance's folder: ``scorer.lock`` is held for life, so that there is never a second one; ``scorer.json``
is replaced atomically, ``{schema, phase: loading | ready | failed | stopped, pid, start_time, message, traceback,
launch, ready_after_s, loader, batch_safe, packages}``. Exit codes: 0 stopped, 1 the model cannot be loaded, 3 another
scorer holds the lock.

The main thread loads the model and computes, so that a model always meets the same thread; each connection is read on a
thread of its own, so pings are answered while the model computes. SIGTERM: say GOING to everybody, answer what has come
(for at most ``--grace`` seconds), leave.
"""

import argparse
import contextlib
import fcntl
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback

from . import frames
from .answers import NotSplittable, answer, cause, error_body, split
from .inputs import Builder, Parser, Request
from .loading import load
from .processes import start_time

LOCKED = 3
#: Bytes of the log at which it is begun anew: a model that prints must not fill the disk.
LOG_LIMIT = 64 * 1024 * 1024
#: Seconds between looks at the log and at the folder.
WATCH = 10.0


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
        about = read_json(os.path.join(args.folder, "model.json"))
        model = load(os.path.join(args.folder, "model"), about)
    except BaseException as error:
        traceback.print_exc()
        lines = traceback.format_exc().strip().splitlines()
        status.write("failed", cause(error, None), lines[-30:])
        return 1
    Scorer(model, about, args.socket, status, args.grace, begun).run()
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


class Connection:
    """One peer. Reads on a thread of its own; may be written to from any."""

    def __init__(self, sock, scorer):
        self.sock = sock
        self.scorer = scorer
        self.cancelled = set()
        self.open = True
        self._writing = threading.Lock()

    def start(self):
        threading.Thread(target=self._read, name="connection", daemon=True).start()

    def send(self, frame):
        """Write a frame; a peer that is gone is forgotten."""
        try:
            with self._writing:
                self.sock.sendall(frame)
        except OSError:
            self.close()

    def close(self):
        self.open = False
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def _read(self):
        reader = frames.Reader()
        try:
            self.send(frames.pack(frames.HELLO, 0, self.scorer.hello))
            buffer = memoryview(bytearray(1 << 18))  # the same one each time: no megabyte is asked for and given back
            while True:
                size = self.sock.recv_into(buffer)
                if not size:
                    break
                for kind, ident, body in reader.feed(buffer[:size]):
                    self._take(kind, ident, body)
        except (OSError, frames.FrameError):
            pass
        finally:
            self.open = False
            self.scorer.forget(self)
            self.sock.close()

    def _take(self, kind, ident, body):
        if kind == frames.PING:
            self.send(frames.pack(frames.PONG, ident, self.scorer.pong))
        elif kind == frames.BATCH:
            self.scorer.work.put((self, ident, body))
        elif kind == frames.CANCEL:
            self.cancelled.add(ident)


class Scorer:
    """Serves any number of connections; the model computes on the thread that calls :meth:`run`, as requests come."""

    def __init__(self, model, about, path, status, grace, begun):
        self.model = model
        self.path = path
        self.status = status
        self.grace = grace
        self.begun = begun
        self.work = queue.SimpleQueue()  # type: queue.SimpleQueue
        self.connections = set()
        self.leaving = 0.0
        self.wrap = model.loader != "script"
        #: Whether rows of several requests may be stacked; found out to be wrong, it is never tried again.
        self.stacks = bool(getattr(model, "batch_safe", False))
        self.parse = Parser()
        self.build = Builder(column_names(about), getattr(model, "wants", "frame"))
        self.hello = json.dumps(
            {"pid": os.getpid(), "loader": model.loader, "batch_safe": self.stacks}).encode("ascii")
        self.pong = json.dumps({"pid": os.getpid(), "phase": "ready"}).encode("ascii")

    def run(self):
        """Serve until SIGTERM, then end the process."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._leave)
        # Bound under another name with its mode set, then renamed: nobody ever finds it half made.
        temporary = self.path + ".new"
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(temporary)
        os.chmod(temporary, 0o600)
        listener.listen(64)
        os.replace(temporary, self.path)
        took = time.monotonic() - self.begun
        self.status.write("ready", ready_after_s=round(took, 3), loader=self.model.loader, batch_safe=self.stacks,
                          packages=getattr(self.model, "packages", {}))
        print("ready after %.2f s (%s)" % (took, self.model.loader), flush=True)
        threading.Thread(target=self._accept, args=(listener,), name="accept", daemon=True).start()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()
        self._compute()
        self._end()

    def forget(self, connection):
        """Called by a connection that has ended."""
        self.connections.discard(connection)
        if self.leaving:
            self.work.put(None)

    def _accept(self, listener):
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                time.sleep(0.1)  # for example too many open files
                continue
            connection = Connection(sock, self)
            self.connections.add(connection)
            connection.start()
            if self.leaving:
                connection.send(frames.pack(frames.GOING, 0))

    def _leave(self, *_):
        if self.leaving:
            return
        self.leaving = time.monotonic()
        # On a thread: a handler may interrupt the very send that holds the lock.
        threading.Thread(target=self._say_going, name="leave", daemon=True).start()

    def _say_going(self):
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        for connection in list(self.connections):
            connection.send(frames.pack(frames.GOING, 0))
        self.work.put(None)
        time.sleep(self.grace)
        self._end()

    def _end(self):
        with contextlib.suppress(OSError):
            self.status.write("stopped", "stopped")
        print("stopped", flush=True)
        sys.stderr.flush()
        os._exit(0)  # threads of the model's own, or a model that still computes, must not keep the process

    def _compute(self):
        while True:
            item = self.work.get()
            if item is not None:
                self._batch(*item)
            # Gateways hang up once they have all their answers; those that only ping do not count.
            if self.leaving and self.work.empty() and not self.connections:
                return

    def _batch(self, connection, ident, body):
        if not connection.open or ident in connection.cancelled:
            connection.cancelled.discard(ident)
            return
        groups = {}  # type: dict
        broken = []
        try:
            bodies = frames.unpack_batch(body)
        except frames.FrameError:
            connection.close()
            return
        stack = self.stacks and len(bodies) > 1
        for place, text in enumerate(bodies):
            try:
                request = Request(text, self.parse)
                key = request.key() if stack else None
            except Exception as error:
                traceback.print_exc()
                broken.append((place, frames.ERROR, error_body("bad_parameter", "the input cannot be read: "
                                                               + cause(error))))
                continue
            groups.setdefault(place if key is None else key, []).append((place, request))
        if broken:
            connection.send(frames.pack_answers(ident, broken))
        for group in groups.values():
            if not connection.open or ident in connection.cancelled:
                break
            connection.send(frames.pack_answers(ident, self._group(group)))
        connection.cancelled.discard(ident)

    def _group(self, group):
        """(place, kind, body) for requests that can be stacked."""
        if len(group) > 1:
            try:
                output = self._predict([r for _, r in group])
                found = split(output, [r.rows for _, r in group], self.wrap)
                return [(place, frames.RESULT, body) for (place, _), body in zip(group, found)]
            except NotSplittable as error:
                print("the model's answer has not one item for each row (%s): requests are not stacked from now on"
                      % error, flush=True)
                self.stacks = False
            except BaseException:
                pass  # perhaps one of them is to blame: each for itself
        return [(place, *self._one(request)) for place, request in group]

    def _predict(self, requests):
        data, params = self.build(requests)
        return self.model.predict(data, params)

    def _one(self, request):
        try:
            data, params = self.build([request])
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
            return frames.RESULT, answer(output, self.wrap)
        except Exception as error:
            traceback.print_exc()
            return frames.ERROR, error_body("model_error", "the model's answer is not JSON: " + cause(error))

    def _watch(self):
        """Begin the log anew when it is too long (it is in append mode); leave when the folder is gone."""
        while os.path.isdir(os.path.dirname(self.status.path)):
            time.sleep(WATCH)
            with contextlib.suppress(OSError):
                if os.fstat(1).st_size > LOG_LIMIT:
                    os.ftruncate(1, 0)
                    print("the log reached %d bytes and was begun anew" % LOG_LIMIT, flush=True)
        self._leave()


def column_names(about):
    """Names of the signature's columns, or None when it has none or they are not named."""
    inputs = (about.get("signature") or {}).get("inputs") or []
    names = [i.get("name") for i in inputs if i.get("type") != "tensor"]
    return names if names and None not in names else None


if __name__ == "__main__":
    threading.current_thread().name = "scorer"
    sys.exit(main())
