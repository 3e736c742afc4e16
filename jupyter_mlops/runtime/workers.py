"""Ranks that need no launcher of a framework's: TensorFlow's workers, which find each other by ``TF_CONFIG``."""

import os
import signal
import subprocess
import sys
import time

from . import jobfolder
from .nodes import free_ports, tf_config

#: Seconds between looks while workers are being ended.
_LOOK = 0.1


def run(job, attempt, processes, crew, grace):
    """Start the workers of this machine and wait for all; one that fails ends the others.

    Args:
        processes: how many.
        crew: the other machines, a :class:`.nodes.Nodes`, or None.
        grace: seconds between SIGTERM and SIGKILL.

    Returns:
        ``{"rank": {"code", "time"}}`` of those that failed
    """
    first = crew.node * processes if crew is not None else 0
    world = processes * (crew.most if crew is not None else 1)
    children = {}
    told = []
    here = ["127.0.0.1:%d" % port for port in free_ports(processes)] if crew is None else []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    for index in range(processes):
        config = crew.tensorflow(processes, index) if crew is not None else tf_config(here, index)
        env = dict(os.environ, TF_CONFIG=config, RANK=str(first + index), LOCAL_RANK=str(index), WORLD_SIZE=str(world),
                   LOCAL_WORLD_SIZE=str(processes))
        command = [sys.executable, "-u", "-m", "jupyter_mlops.runtime.launch", job.path, str(attempt.number),
                   str(first + index), "-"]
        children[subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL).pid] = first + index
    failures = {}  # type: dict[str, dict]
    kill_at = None
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            if (failures or told) and kill_at is None:
                kill_at = time.monotonic() + grace
                _send(children, signal.SIGTERM)
            elif kill_at is not None and time.monotonic() > kill_at:
                _send(children, signal.SIGKILL)
            time.sleep(_LOOK)
            continue
        index = children.pop(pid, None)
        if index is None:
            continue
        code = os.waitstatus_to_exitcode(status)
        if not os.path.exists(attempt.exit_path(index)):
            jobfolder.write_json(attempt.exit_path(index), {"code": code, "pid": pid, "time": time.time()})
        if code:
            failures[str(index)] = {"code": code, "time": time.time()}
    return failures


def _send(children, number):
    for pid in children:
        try:
            os.kill(pid, number)
        except OSError:
            pass
