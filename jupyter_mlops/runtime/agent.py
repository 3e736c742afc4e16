"""The agent: on a machine with several ranks, or one of several machines, what starts the ranks and watches them.

    python -u -m jupyter_mlops.runtime.agent FOLDER ATTEMPT PROCESSES LOCK

LOCK is as in :mod:`.launch`, which each rank runs. Ranks are started by ``torch.distributed.run``, TensorFlow's workers
by :mod:`.workers`, those of MPI by :mod:`.mpi`.
"""

import os
import signal
import sys
import time

from . import jobfolder, verdict
from .launch import ERROR_LENGTH, own_session, release
from .nodes import Nodes


def _note_ends(attempt, ranks):
    """As the ranks' parent, write the ``.exit`` of those that could not: killed ones, and ``os._exit``.

    Looks at a child that has ended without reaping it: that is the business of ``torch.distributed.run``.
    """
    if not hasattr(os, "waitid"):
        return  # macOS: then only torchrun's own verdict tells, which comes later
    noted = set()  # pids: in an elastic attempt a rank may be several processes, one after the other

    def look(number, frame):
        for index in ranks:
            pid = attempt.signed_in(index).get("pid")
            if pid is None or pid in noted:
                continue
            try:
                ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
                if ended is None:
                    continue
                noted.add(pid)
                code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
                if not os.path.exists(attempt.exit_path(index)):
                    jobfolder.write_json(attempt.exit_path(index), {"code": code, "pid": pid, "time": time.time()})
            except OSError:
                continue

    signal.signal(signal.SIGCHLD, look)


def agent(folder, number, processes, lock):
    """Start ``processes`` ranks and watch them; what failed goes to ``agent.exit``."""
    job = jobfolder.JobFolder(folder)
    attempt = job.attempt(number)
    own_session()
    attempt.sign_in("agent")
    release(lock)
    result = {"code": 1, "error": ""}
    failures = {}
    try:
        spec = job.spec()
        grace = float((spec.get("limits") or {}).get("grace", 10.0))
        kind = (spec.get("distribution") or {}).get("type")
        crew = Nodes.from_environment()
        if crew is not None:
            crew.reach()
            crew.use_interface()
        if kind == "tensorflow":
            from . import workers

            failures = workers.run(job, attempt, int(processes), crew, grace)
        elif kind == "mpi":
            from . import mpi

            failures = mpi.run(job, attempt, int(processes), crew, grace)
        else:
            failures = _torchrun(job, attempt, int(processes), crew, grace)
        result["code"] = 1 if failures else 0
    except verdict.NotStarted as error:
        result["error"] = str(error)
    except BaseException as error:
        import traceback

        traceback.print_exc()
        result["error"] = ("%s: %s" % (type(error).__name__, error)).splitlines()[0][:ERROR_LENGTH]
    sys.stderr.flush()
    result.update(time=time.time(), failures=failures)
    jobfolder.write_json(attempt.exit_path("agent"), result)
    return result["code"]


def _torchrun(job, attempt, processes, crew, grace):
    """Start the ranks of this machine by ``torch.distributed.run``; returns how those failed that did."""
    import uuid

    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    elastic = crew is not None and crew.elastic
    first = crew.node * processes if crew is not None else 0
    where = crew.torchrun(processes) if crew is not None else [
        "--nnodes", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--rdzv-id", uuid.uuid4().hex,
        "--local-addr", "127.0.0.1", "--max-restarts", "0",
    ]
    arguments = torchrun.parse_args([
        *where, "--nproc-per-node", str(processes), "--log-dir", os.path.join(attempt.path, "torchrun"),
        "-m", "jupyter_mlops.runtime.launch", job.path, str(attempt.number),
        "slot:%d" % first if elastic else "env", "-",
    ])
    if hasattr(arguments, "shutdown_timeout"):
        arguments.shutdown_timeout = max(int(grace), 1)
    _note_ends(attempt, range(first, first + processes))
    try:
        torchrun.run(arguments)
    except ChildFailedError as error:
        sys.stderr.write(str(error) + "\n")
        if elastic:  # it counts ranks, we count processes: how those ended they have written themselves
            return {"any": {"code": 1, "time": time.time()}}
        return {str(index): {"code": failure.exitcode, "time": failure.timestamp}
                for index, failure in error.failures.items()}
    return {}


if __name__ == "__main__":
    sys.exit(agent(*sys.argv[1:]))
