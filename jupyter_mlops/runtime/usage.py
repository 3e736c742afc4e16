"""What the ranks of an attempt use: sampled by its supervisor, kept small, read by the control plane.

The format of ``usage.jsonl`` is in ``docs/logs.md``. A sample costs a few small files of ``/proc`` for each process.
"""

import json
import os
import sys
import time

from . import gpus

#: Seconds between two samples.
PERIOD = 2.0
#: Most rows and bytes of the file; beyond, neighbours are merged.
MAX_ROWS, MAX_BYTES = 2000, 200000
_MAX_READ = 4 * 1024 * 1024
_MAX_TREE = 4096

_LINUX = sys.platform.startswith("linux") and os.path.isdir("/proc/self")
_TICK = os.sysconf("SC_CLK_TCK") if _LINUX else 100
_PAGE = os.sysconf("SC_PAGE_SIZE") if _LINUX else 4096

#: Positions in a row: rank, cores, resident bytes, threads, GPU per cent, GPU bytes.
_WIDTH = 6


class Usage:
    """Samples of one attempt; a supervisor that adopts goes on where the last one stopped.

    Args:
        path: the file, ``attempts/<n>/usage.jsonl``.
        size: number of ranks.
        visible: ``CUDA_VISIBLE_DEVICES`` of the ranks, when it is known; else their environment is read.
    """

    def __init__(self, path, size=1, visible=None):
        self.path = path
        self._size = size
        self._visible = visible
        self._last = {}  # type: dict # rank → (CPU seconds of its tree, when)
        self._peaks = {}  # type: dict[int, int]
        self._at = 0.0
        self._pending = []  # rows that become one
        self._gpus = gpus.Gpus() if _LINUX and gpus.present() else None
        self._devices = {}  # pid → its CUDA_VISIBLE_DEVICES
        self._rows, self._every, self._bytes = 0, PERIOD, 0
        if os.path.lexists(path):
            rows, self._every = read(path)
            self._rows = len(rows)
            self._bytes = os.lstat(path).st_size
            for row in rows:
                for entry in row["ranks"]:
                    self._peaks[entry[0]] = max(self._peaks.get(entry[0], 0), entry[2] or 0)

    def peak(self, rank):
        """The most resident bytes that were seen of a rank's processes together; 0 when it was never seen."""
        return self._peaks.get(rank, 0)

    def sample(self, ranks, now=False):
        """Look at the ranks and note it down; does nothing when it is not time yet, unless ``now``. Never raises.

        Args:
            ranks: {rank: pid} of those that run.
        """
        moment = time.monotonic()
        if not _LINUX or not ranks or (not now and moment - self._at < PERIOD):
            return
        self._at = moment
        try:
            devices = self._gpus.newest() if self._gpus else []
            row = [self._rank(rank, pid, moment, devices) for rank, pid in sorted(ranks.items())]
            self._note([entry for entry in row if entry])
        except (OSError, ValueError):
            return  # a full disk, a process that has just gone: the next one

    def _rank(self, rank, pid, moment, devices):
        tree = family(pid)
        seconds, resident, threads, seen = 0.0, 0, 0, 0
        for member in tree:
            entry = _process(member)
            if entry:
                seconds, resident, threads, seen = seconds + entry[0], resident + entry[1], threads + entry[2], seen + 1
        if not seen:
            return None
        self._peaks[rank] = max(self._peaks.get(rank, 0), resident, _high(pid))
        before, at = self._last.get(rank, (None, 0.0))
        self._last[rank] = (seconds, moment)
        # Without the sample before it nobody can tell; a member that ended unnoticed would make it negative.
        cores = None if before is None or moment <= at else round(max(seconds - before, 0.0) / (moment - at), 2)
        row = [rank, cores, resident, threads]
        if devices:
            row += self._used(rank, pid, tree, devices)
        return row

    def _used(self, rank, pid, tree, devices):
        """Utilisation and memory of the GPUs of a rank: those that its processes use, else those that it may see."""
        own = set(tree)
        mine = [device for device in devices if own & set(device["pids"])]
        if mine:
            memory = sum(size for device in mine for member, size in device["pids"].items() if member in own)
        else:
            # In a container the driver's pids are others than ours.
            mine = self._may_use(rank, pid, devices)
            memory = sum(device["memory"] or 0 for device in mine)
        told = [device["gpu"] for device in mine if device["gpu"] is not None]
        return [round(sum(told) / len(told)) if told else None, memory if mine else None]

    def _may_use(self, rank, pid, devices):
        """The devices that a rank may see, and of several the one that is its own by its number."""
        if self._visible is None and pid not in self._devices:
            self._devices[pid] = _environment(pid, b"CUDA_VISIBLE_DEVICES")
        names = self._visible if self._visible is not None else self._devices[pid]
        if names is not None:
            wanted = [name.strip() for name in names.split(",") if name.strip()]
            devices = [
                device for name in wanted for device in devices
                if name == str(device["index"]) or (len(name) > 4 and device["uuid"].startswith(name))
            ]
        return [devices[rank % len(devices)]] if self._size > 1 and devices else devices

    def _note(self, row):
        if not row:
            return
        self._pending.append({"t": round(time.time(), 2), "ranks": row})
        if len(self._pending) * PERIOD < self._every:
            return
        merged = merge(self._pending)
        self._pending = []
        line = _line(merged)
        if not self._bytes:
            line = _line({"every": self._every}) + line
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0), 0o600)
        try:
            self._bytes += os.write(fd, line)
        finally:
            os.close(fd)
        self._rows += 1
        if self._rows >= MAX_ROWS or self._bytes >= MAX_BYTES:
            self._halve()

    def _halve(self):
        from .jobfolder import write_file

        rows, self._every = read(self.path)
        rows = thin(rows, max(len(rows) // 2, 1))
        self._every *= 2
        data = b"".join(map(_line, [{"every": self._every}, *rows]))
        write_file(self.path, data, False)
        self._rows, self._bytes = len(rows), len(data)


def _line(value):
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def read(path):
    """``(rows, every)`` of a file: rows as in ``docs/logs.md``, and seconds between them.

    What is torn or nonsense is left out: the job's own code can write there too.
    """
    rows = []  # type: list[dict]
    every = PERIOD
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return rows, every
    with os.fdopen(fd, "rb") as f:
        try:
            data = f.read(_MAX_READ) or b""
        except OSError:
            return rows, every
    for line in data.split(b"\n"):
        try:
            value = json.loads(line) if line else None
        except (ValueError, RecursionError):
            continue
        if not isinstance(value, dict):
            continue
        if _number(value.get("every")) and 0 < value["every"] < 1e6:
            every = float(value["every"])
        ranks = value.get("ranks")
        if _number(value.get("t")) and isinstance(ranks, list):
            found = [entry for entry in map(_entry, ranks) if entry]
            if found:
                rows.append({"t": value["t"], "ranks": found})
    return rows, every


def _number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e18


def _entry(value):
    if not isinstance(value, list) or not value or type(value[0]) is not int or not 0 <= value[0] <= 1000000:
        return None
    return [item if _number(item) else None for item in (value + [None] * _WIDTH)[:_WIDTH]]


def thin(rows, most):
    """At most ``most`` rows: neighbours merged."""
    if len(rows) <= most:
        return rows
    count = len(rows)
    return [merge(rows[i * count // most:(i + 1) * count // most]) for i in range(most)]


def merge(rows):
    """One row for several: the last one's time, mean of CPU and GPU utilisation, highest of the others."""
    if len(rows) == 1:
        return rows[0]
    found = {}  # type: dict[int, list[list]]
    for row in rows:
        for entry in row["ranks"]:
            found.setdefault(entry[0], []).append((entry + [None] * _WIDTH)[:_WIDTH])
    merged = []
    for rank in sorted(found):
        columns = []  # type: list
        for position, column in enumerate(zip(*found[rank])):
            known = [value for value in column if value is not None]
            if not known:
                columns.append(None)
            elif position in (1, 4):
                columns.append(round(sum(known) / len(known), 2))
            else:
                columns.append(max(known))
        while len(columns) > 4 and columns[-1] is None:
            columns.pop()
        merged.append(columns)
    return {"t": rows[-1]["t"], "ranks": merged}


def together(nodes, every=PERIOD):
    """Rows of several machines as rows of all: at each time of the one that has most, the nearest of the others.

    Args:
        nodes: a list of rows for each machine.
        every: seconds between rows; what is farther away counts as not known.
    """
    nodes = [rows for rows in nodes if rows]
    if len(nodes) < 2:
        return nodes[0] if nodes else []
    base = max(nodes, key=len)
    found = {number: list(row["ranks"]) for number, row in enumerate(base)}
    spare = []
    for rows in nodes:
        if rows is base:
            continue
        at, taken = 0, set()
        for number, row in enumerate(base):
            while at + 1 < len(rows) and abs(rows[at + 1]["t"] - row["t"]) <= abs(rows[at]["t"] - row["t"]):
                at += 1
            if abs(rows[at]["t"] - row["t"]) <= every:
                found[number] += rows[at]["ranks"]
                taken.add(at)
        # Before the one with most rows began, or after it ended.
        spare += [row for n, row in enumerate(rows) if n not in taken
                  and not base[0]["t"] <= row["t"] <= base[-1]["t"]]
    joined = [{"t": row["t"], "ranks": found[number]} for number, row in enumerate(base)]
    return sorted(joined + spare, key=lambda row: row["t"])


def series(rows):
    """Rows as columns, see ``docs/logs.md``: times in milliseconds, and a list for each value of each rank."""
    ranks = sorted({entry[0] for row in rows for entry in row["ranks"]})
    columns = {rank: [[None] * len(rows) for _ in range(_WIDTH)] for rank in ranks}  # type: dict[int, list[list]]
    for at, row in enumerate(rows):
        for entry in row["ranks"]:
            for position, value in enumerate(entry[:_WIDTH]):
                columns[entry[0]][position][at] = value
    return {
        "times": [int(row["t"] * 1000) for row in rows],
        "ranks": [
            {"rank": rank, "cpu": column[1], "rss": column[2], "threads": column[3], "gpu": column[4],
             "gpu_memory": column[5], "peak_rss": max(filter(None, column[2]), default=0)}
            for rank, column in columns.items()
        ],
    }


# -- /proc


def family(pid):
    """A process and its descendants, as pids; those whose parents have ended are missing."""
    found = []  # type: list[int]
    queue = [pid]
    while queue and len(found) < _MAX_TREE:
        current = queue.pop()
        found.append(current)
        try:
            tasks = os.listdir("/proc/%d/task" % current)
        except OSError:
            continue
        for task in tasks:
            try:
                with open("/proc/%d/task/%s/children" % (current, task), "rb") as f:
                    queue.extend(map(int, f.read().split()))
            except OSError:
                continue
    return found


def _process(pid):
    """(CPU seconds with those of children that were waited for, resident bytes, threads); None when it is gone."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as f:
            fields = f.read().rpartition(b")")[2].split()
        return sum(map(int, fields[11:15])) / _TICK, int(fields[21]) * _PAGE, int(fields[17])
    except (OSError, ValueError, IndexError):
        return None


def _high(pid):
    """The most resident bytes that a process ever had."""
    try:
        with open("/proc/%d/status" % pid, "rb") as f:
            for line in f:
                if line.startswith(b"VmHWM:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0


def _environment(pid, name):
    """A variable of the environment with which a process was started; None when it is not set."""
    try:
        with open("/proc/%d/environ" % pid, "rb") as f:
            for item in f.read().split(b"\0"):
                key, _, value = item.partition(b"=")
                if key == name:
                    return value.decode("utf-8", "replace")
    except OSError:
        pass
    return None
