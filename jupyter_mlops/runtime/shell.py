"""A shell beside a rank that runs: with its environment, in its working folder.

``python -m jupyter_mlops.runtime.shell FOLDER ATTEMPT RANK`` becomes a shell on the terminal that is its standard
input; in a pod it is executed in the ranks' container, on this machine it is started by the control plane.
"""

import contextlib
import os
import sys

from .jobfolder import MARKER, JobFolder

#: What is taken when ``SHELL`` names none that is there.
SHELLS = ("/bin/bash", "/usr/bin/bash", "/bin/sh")


def process_of(folder, attempt, rank):
    """The pid of a rank, or None when it does not run."""
    place = JobFolder(folder).attempt(attempt)
    # The supervisor of a machine knows its own ranks.
    for entry in place.state().get("ranks") or []:
        if isinstance(entry, dict) and entry.get("rank") == rank and entry.get("exit_code") is None:
            pid = entry.get("pid")
            if isinstance(pid, int) and pid > 1 and os.path.isdir("/proc/%d" % pid):
                return pid
    return None


def surroundings(pid):
    """(environment, working folder) of a process."""
    with open("/proc/%d/environ" % pid, "rb") as f:
        items = [item.partition(b"=") for item in f.read().split(b"\0") if b"=" in item]
    env = {os.fsdecode(name): os.fsdecode(value) for name, _, value in items}
    return env, os.readlink("/proc/%d/cwd" % pid)


def choose(env):
    """The shell to run."""
    for path in (env.get("SHELL"), *SHELLS):
        if path and os.access(path, os.X_OK) and not path.endswith("nologin"):
            return path
    return None


def main(arguments):
    """Run as ``FOLDER ATTEMPT RANK``; returns only when there is no shell."""
    folder, attempt, rank = arguments[0], arguments[1], int(arguments[2])
    with contextlib.suppress(OSError, ImportError):
        import fcntl
        import termios

        # Started in a session of its own without a terminal: this one becomes it, for Ctrl-C and jobs of the shell.
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    pid = process_of(folder, attempt, rank)
    if pid is None:
        sys.stdout.write("rank %d does not run here\r\n" % rank)
        return 1
    try:
        env, cwd = surroundings(pid)
    except OSError as error:
        sys.stdout.write("the environment of rank %d cannot be read: %s\r\n" % (rank, error.strerror))
        return 1
    # A shell is no part of the attempt: that may end, and need not wait for this.
    env.pop(MARKER, None)
    env["TERM"] = os.environ.get("TERM") or "xterm-256color"
    shell = choose(env)
    if shell is None:
        sys.stdout.write("there is no shell in this image\r\n")
        return 1
    with contextlib.suppress(OSError):
        os.chdir(cwd)
    sys.stdout.flush()
    os.execve(shell, [shell], env)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
