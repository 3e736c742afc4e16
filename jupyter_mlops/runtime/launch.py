"""What each rank of a job runs: sign in, send output to the rank's log, run the user's code as ``python`` would.

    python -u -m jupyter_mlops.runtime.launch FOLDER ATTEMPT RANK LOCK

FOLDER is the job's, or ``-`` for that of the environment. RANK is a number, ``env`` for the one that
``torch.distributed.run`` gave, ``mpi:PROCESSES`` for that of an mpirun with so many on each machine, or ``slot:FIRST``
in an elastic attempt: ``LOCAL_RANK`` counted from FIRST. LOCK is the inherited descriptor of the attempt's lock, or
``-``: it is held until the rank has signed in, so that nobody can take a started attempt for one that never was.

The rank's ``.exit`` file is written after the user's own exit handlers, as the last act. A rank that ends without one
was killed, or called ``os._exit``.
"""

import atexit
import os
import sys
import time

from . import jobfolder

#: Seconds that saving and logging open figures may take.
FIGURES_TIMEOUT = 30.0
_TRACEBACK_LINES = 40
ERROR_LENGTH = 500
_HERE = __file__


class Ending:
    """How this process ends, written by an exit handler that was registered before all others."""

    def __init__(self):
        self.path = ""
        self.pid = 0
        self.code = None
        self.error = ""
        self.traceback = []
        self.hard = False
        atexit.register(self.write)

    def begin(self, path):
        """From here on this process is a rank, whose end is told in the file ``path``."""
        self.path = path
        self.pid = os.getpid()

    def failed(self, kind, value, tb):
        """Keep the last line of an exception, and the end of its traceback."""
        self.code = 1
        try:
            import traceback

            self.error = traceback.format_exception_only(kind, value)[-1].strip().splitlines()[0][:ERROR_LENGTH]
            lines = "".join(traceback.format_exception(kind, value, tb)).splitlines()
            here = os.path.join(os.environ.get("JUPYTER_MLOPS_JOB_DIR", ""), "code", "")
            lines = [line.replace('File "%scell.py"' % here, 'File "cell.py"') for line in lines]
            self.traceback = [line[:ERROR_LENGTH] for line in lines[-_TRACEBACK_LINES:]]
        except Exception:
            self.error = self.error or getattr(kind, "__name__", str(kind))

    def told(self, line):
        """Keep one line on why it failed, where a traceback says nothing more."""
        self.code = 1
        self.error = line[:ERROR_LENGTH]

    def write(self):
        if os.getpid() != self.pid or self.code is None:
            return  # a forked child of the user's
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:
                continue
        entry = {"code": self.code, "error": self.error, "traceback": self.traceback, "pid": self.pid,
                 "time": time.time(), "torch": "torch" in sys.modules}
        try:
            jobfolder.write_json(self.path, entry)
        except OSError as error:
            _warn("the exit of this rank could not be written: %s" % error)
        if self.hard and self.code:
            # MPI's own exit handler, which comes after Python's, would wait for ranks that wait for this one.
            os._exit(self.code if self.code > 0 else 128 - self.code)


def _warn(text):
    try:
        sys.stderr.write("jupyter-mlops: %s\n" % text)
        sys.stderr.flush()
    except Exception:
        pass


def _to_log(path):
    """Let descriptors 1 and 2, hence also all children, append to a file; lines are written whole."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
    for stream in (sys.stdout, sys.stderr):
        # With -u each piece of a print would be a write of its own.
        stream.reconfigure(  # type: ignore[union-attr]
            encoding="utf-8", errors="backslashreplace", line_buffering=True, write_through=False)


def release(lock):
    """Let go of the attempt's lock; see the module."""
    if lock != "-":
        os.close(int(lock))


def own_session():
    """Lead a session of its own."""
    try:
        os.setsid()
    except OSError:
        pass  # it leads one already


def rank(folder, number, name, lock, ending=None):
    """Run one rank to its end; returns its exit code. ``ending``: the :class:`Ending` that was registered already."""
    job = jobfolder.JobFolder(folder if folder != "-" else os.environ[jobfolder.MARKER])
    attempt = job.attempt(number)
    ending = ending or Ending()
    if name.startswith("mpi:"):
        from . import mpi

        index = mpi.number(int(name[4:]))
        ending.hard = True
    elif name.startswith("slot:"):
        index = _slot(attempt, int(name[5:]))
        if index is None:
            return 1
    else:
        index = int(os.environ["RANK"]) if name == "env" else int(name)
    os.environ["JUPYTER_MLOPS_ATTEMPT"] = str(attempt.number)
    own_session()
    _to_log(attempt.log_path(index))
    attempt.sign_in(index)
    release(lock)
    ending.begin(attempt.exit_path(index))
    spec = job.spec()
    try:
        cwd = job.cwd(spec)
        os.chdir(cwd)
        os.environ["PWD"] = cwd
        if spec.get("command") is not None:
            code = _command(_expanded(spec["command"], True))
        elif spec.get("cell") is not None:
            code = _python(ending, job.cell_path, job.cell_path, [], cwd, True, _shipped(job, spec))
        elif spec.get("script") is not None:
            path = os.path.join(cwd, spec["script"])
            first = os.path.dirname(os.path.realpath(path))
            arguments = [_expanded(a, False) for a in spec.get("args") or []]
            code = _python(ending, path, spec["script"], arguments, first, False)
        elif spec.get("batch") is not None:
            code = _batch(ending, job, spec)
        else:
            raise ValueError("the spec names neither command, script, cell nor batch")
    except Exception as error:
        ending.failed(type(error), error, None)
        _warn("cannot start: %s: %s" % (type(error).__name__, error))
        return 1
    if os.getpid() == ending.pid:
        if index == 0:
            _figures(job.figures)
            _returns(job, spec, code)
        ending.code = code
    return code if code >= 0 else 128 - code


def _slot(attempt, first):
    """The number of a process of an elastic attempt; None: one of that number has failed by itself, and is not run
    again only because others went or came."""
    from . import verdict

    index = first + int(os.environ["LOCAL_RANK"])
    os.environ[jobfolder.SLOT] = str(index)
    path = attempt.exit_path(index)
    entry = jobfolder.read_json(path)
    if entry and verdict.own_failure(entry.get("code"), entry.get("error")):
        return None
    try:
        os.unlink(path)
    except OSError:
        pass
    return index


def _expanded(text, quote):
    """Put the paths of named inputs and outputs in place of ``${{…}}``."""
    if "${{" not in text:
        return text
    from . import data

    return data.expand(text, quote)


def _command(command):
    """Run a shell command line as the only child; returns its exit code, negative for a signal."""
    import signal

    # Python ignores these two, programs do not expect it.
    child = os.posix_spawn("/bin/sh", ["/bin/sh", "-c", command], os.environ,
                           setsigdef=[signal.SIGPIPE, signal.SIGXFSZ])

    def forward(number, frame):
        try:
            os.kill(child, number)
        except OSError:
            pass

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, forward)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _python(ending, path, argv0, arguments, first, cell, before=None):
    """Run a file as ``python FILE`` would: a real ``__main__``, its arguments, its folder first on the path.

    Args:
        argv0: ``sys.argv[0]``.
        first: ``sys.path[0]``.
        cell: allow ``await`` outside functions, as a notebook does.
        before: called with the namespace before the code runs.

    Returns:
        the exit code
    """
    import builtins
    import io
    from importlib.machinery import SourceFileLoader

    with io.open_code(path) as f:
        source = f.read()
    main = type(sys)("__main__")
    space = main.__dict__
    space.update(__file__=path, __builtins__=builtins, __loader__=SourceFileLoader("__main__", path), __cached__=None)
    # Ours stays reachable under its own name. What pickle and multiprocessing look for is the user's.
    if __name__ == "__main__":
        sys.modules[__package__ + ".launch"] = sys.modules["__main__"]
    sys.modules["__main__"] = main
    sys.argv[:] = [argv0, *arguments]
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = first
    try:
        import faulthandler

        faulthandler.enable()
    except Exception:
        pass
    if before is not None:
        before(space)
    try:
        # 0x2000: PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile(source, path, "exec", flags=0x2000 if cell else 0, dont_inherit=True)
        del source
        if code.co_flags & 0x80:  # a coroutine
            import asyncio
            from types import FunctionType

            asyncio.run(FunctionType(code, space)())
        else:
            exec(code, space)  # noqa: S102 - running the user's code is what this is for
    except SystemExit as error:
        return _system_exit(error.code)
    except BaseException as error:
        kind, value, tb = type(error), error, error.__traceback__
        while tb is not None and tb.tb_frame.f_code.co_filename == _HERE:
            tb = tb.tb_next
        ending.failed(kind, value, tb)
        try:
            sys.excepthook(kind, value.with_traceback(tb), tb)
        except Exception:
            sys.__excepthook__(kind, value, tb)
        return 130 if isinstance(value, KeyboardInterrupt) else 1
    return 0


def _batch(ending, job, spec):
    """Score files, see :mod:`.batch`; returns the exit code."""
    from . import batch

    try:
        batch.run(job, spec)
    except batch.BatchError as error:
        ending.told(str(error))
        _warn(str(error))
        return 1
    return 0


def _shipped(job, spec):
    """What puts the variables that were shipped with a cell into its namespace, or None."""
    if not spec["cell"].get("payload"):
        return None

    def load(space):
        from . import variables

        variables.load(job, space, spec["cell"]["payload"])

    return load


def _returns(job, spec, code):
    """Keep the variables that a cell was asked to bring back, when it has done its work; never fails."""
    names = (spec.get("cell") or {}).get("returns")
    if not names or code != 0:
        return
    try:
        from . import variables

        for line in variables.keep(job, sys.modules["__main__"].__dict__, names):
            _warn(line)
    except BaseException as error:
        _warn("what the cell returns was not kept: %s: %s" % (type(error).__name__, error))


def _system_exit(code):
    """The exit code that Python gives for ``SystemExit(code)``."""
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    sys.stderr.write("%s\n" % (code,))
    return 1


def _figures(folder):
    """Save the figures that are open, and log them to the job's run; never fails, takes no longer than its time."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is None:
        return
    try:
        numbers = pyplot.get_fignums()
        if not numbers:
            return
        import threading

        worker = threading.Thread(target=_save_figures, args=(pyplot, numbers, folder), daemon=True)
        worker.start()
        worker.join(FIGURES_TIMEOUT)
        if worker.is_alive():
            _warn("saving the open figures takes longer than %d s: given up" % FIGURES_TIMEOUT)
    except BaseException as error:
        _warn("the open figures were not saved: %s: %s" % (type(error).__name__, error))


def _save_figures(pyplot, numbers, folder):
    try:
        jobfolder.private_folder(folder)
        paths = []
        for number in numbers:
            path = os.path.join(folder, "figure-%d.png" % number)
            pyplot.figure(number).savefig(path, bbox_inches="tight")
            paths.append(path)
        run_id, uri = os.environ.get("JUPYTER_MLOPS_RUN_ID"), os.environ.get("MLFLOW_TRACKING_URI")
        if not run_id or not uri:
            return
        from . import locate

        if not locate.is_ours(uri):
            return  # the user tracks elsewhere: nothing of ours goes there
        try:
            from mlflow import MlflowClient
        except ImportError:
            return
        client = MlflowClient(tracking_uri=uri)
        for path in paths:
            client.log_artifact(run_id, path, "figures")
    except Exception as error:
        _warn("the open figures were not all saved: %s: %s" % (type(error).__name__, error))


if __name__ == "__main__":
    sys.exit(rank(*sys.argv[1:]))
