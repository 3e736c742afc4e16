"""Memory: how much there is, and whether the kernel has killed for lack of it."""

import os

CGROUPS = "/sys/fs/cgroup"
PROC = "/proc"


def _lines(path):
    with open(path, encoding="ascii", errors="replace") as f:
        return f.read().splitlines()


def _groups(version_2):
    """Folders of this process's memory control group, the innermost first, and those around it."""
    root, inner = os.path.join(CGROUPS, "" if version_2 else "memory"), ""
    try:
        for line in _lines(os.path.join(PROC, "self", "cgroup")):
            number, controllers, path = line.split(":", 2)
            if (number == "0" and not controllers) if version_2 else "memory" in controllers.split(","):
                inner = path.strip("/")
    except (OSError, ValueError):
        pass
    roots = [root, os.path.join(CGROUPS, "unified")] if version_2 else [root]
    found = []
    while True:
        found += [os.path.join(base, inner) for base in roots]
        if not inner:
            return found
        inner = os.path.dirname(inner)


def limit():
    """Bytes of memory that this process and its children may use: the machine's, or less where a group is bounded."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        total = 0
    for version_2, name in ((True, "memory.max"), (False, "memory.limit_in_bytes")):
        for group in _groups(version_2):
            try:
                total = min(total, int(_lines(os.path.join(group, name))[0]))
            except (OSError, ValueError, IndexError):
                continue
    return total


def _field(path, name):
    """The number behind a name in a file of names and numbers, or None."""
    try:
        for line in _lines(path):
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    except (OSError, ValueError):
        pass
    return None


def kills():
    """How many processes the kernel has killed for lack of memory: in our group and around it, else on the machine.

    Only the difference of two answers means something; None where nobody tells.
    """
    counts = []
    for version_2, name in ((True, "memory.events"), (False, "memory.oom_control")):
        counts += [_field(os.path.join(group, name), "oom_kill") for group in _groups(version_2)]
    known = [count for count in counts if count is not None]
    return sum(known) if known else _field(os.path.join(PROC, "vmstat"), "oom_kill")


def of(used, total):
    """``3.1 GB of 4.0 GB``."""
    return "%s of %s" % (size(used), size(total))


def size(count):
    """A number of bytes for people, in powers of ten."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if count >= 0.995 * factor:
            return "%.1f %s" % (count / factor, unit)
    return "%d kB" % (count // 1000)
