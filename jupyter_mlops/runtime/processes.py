"""Processes by pid and start time, and all processes that belong to a job.

A pid alone is no identity: it is reused. Pid, start time and boot id together are one.
"""

import os
import sys
import time

_PROC = os.path.isdir("/proc/self")


def start_time(pid):
    """Start time of a process as a stable string, or ``""`` when there is no such process (or it is a zombie)."""
    if _PROC:
        return _stat(pid)[1]
    try:
        import psutil

        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else "%.2f" % process.create_time()
    except Exception:
        return ""


def alive(pid, started):
    """Whether the process ``pid`` that started at ``started`` still runs."""
    return bool(pid) and bool(started) and start_time(int(pid)) == str(started)


def clock():
    """Seconds since the machine was started, also those that it slept; nobody can set this clock."""
    try:
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    except (AttributeError, OSError):  # macOS
        return time.monotonic()


def boot_id():
    """A string that is another one after each start of the machine."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as f:
            return f.read().strip()
    except OSError:
        pass
    try:
        import psutil

        return "%d" % psutil.boot_time()
    except Exception:
        return "unknown"


def _stat(pid):
    """(parent, start time, session) of a process; start time is ``""`` when it does not run."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as f:
            fields = f.read().rpartition(b")")[2].split()
        if fields[0] in (b"Z", b"X"):
            return 0, "", 0
        return int(fields[1]), fields[19].decode(), int(fields[3])
    except (OSError, IndexError, ValueError):
        return 0, "", 0


def _table():
    """{pid: (parent, start time, session)} of the running processes of this user."""
    table = {}
    if _PROC:
        uid = os.getuid()
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    if os.stat("/proc/" + name).st_uid != uid:
                        continue
                except OSError:
                    continue
                entry = _stat(int(name))
                if entry[1]:
                    table[int(name)] = entry
        return table
    try:
        import psutil

        for process in psutil.process_iter():
            started = start_time(process.pid)
            if started:
                try:
                    table[process.pid] = (process.ppid(), started, os.getsid(process.pid))
                except Exception:
                    continue
    except ImportError:
        pass
    return table


def _has_marker(pid, marker):
    """Whether the environment with which a process was started holds the entry ``marker`` (bytes, ``NAME=value``)."""
    if _PROC:
        try:
            with open("/proc/%d/environ" % pid, "rb") as f:
                return marker in f.read().split(b"\0")
        except OSError:
            return False
    name, _, value = os.fsdecode(marker).partition("=")
    try:
        import psutil

        return psutil.Process(pid).environ().get(name) == value
    except Exception:
        return False


def family(roots, sessions, marker):
    """All running processes that stem from ``roots``, live in one of ``sessions`` or carry ``marker``.

    Three nets, because each has holes: parents are lost when a process in between ends, sessions when a child opens
    its own, the environment when a program is started with another one.

    Args:
        roots: pids whose descendants count; a root itself counts only when another net catches it.
        sessions: session ids (the pid of each rank).
        marker: an entry of the environment, bytes.

    Returns:
        {pid: start time}, without the calling process.
    """
    table = _table()
    found = set()
    for pid, (_, _, session) in table.items():
        if session in sessions or _has_marker(pid, marker):
            found.add(pid)
    children = {}  # type: dict[int, list[int]]
    for pid, (parent, _, _) in table.items():
        children.setdefault(parent, []).append(pid)
    queue = list(found) + list(roots)
    while queue:
        for child in children.get(queue.pop(), ()):
            if child not in found:
                found.add(child)
                queue.append(child)
    found.discard(os.getpid())
    return {pid: table[pid][1] for pid in found if pid in table}


def send(pid, started, number):
    """Send a signal to that very process; quiet when it is gone."""
    if alive(pid, started):
        try:
            os.kill(pid, number)
        except OSError:
            pass


def adopt_orphans():
    """Make this process the parent of all descendants whose own parent ends (Linux); quiet elsewhere."""
    if not sys.platform.startswith("linux"):
        return
    try:
        import ctypes

        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    except (ImportError, OSError, AttributeError):
        pass
