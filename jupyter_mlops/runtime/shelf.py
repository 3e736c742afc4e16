"""Job folders of pods that lie in a claim, and so outlive a pod whose node was lost.

    ROOT/<attempt>/<node>/job      the folder of a node; ROOT is the workspace's part of the claim

A pod that ends well takes its own away. Of one that did not,

    python -m jupyter_mlops.runtime.shelf ROOT ATTEMPT SECONDS NODE...

runs in a pod that is started for that: what is in the folders is copied out of it, then they go. What nobody asks for
goes after a week, by whoever ends next.
"""

import os
import shutil
import signal
import sys
import time

from . import jobfolder, mirror

FOLDER = "job"
#: Exit code when not all the folders are there; those that are were copied.
ABSENT = 3
#: Seconds after which a folder that nobody has written to is nobody's.
FORGOTTEN = 7 * 24 * 3600
_LOOK = 0.2
#: Seconds for the last word of a copy that is complete: it ends with the container.
_FAREWELL = 1.0


def read(root, attempt, seconds, nodes):
    """Let the folders of these nodes be copied; 0 when all were, within that many seconds; see :data:`ABSENT`."""
    told = []  # type: list
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    folders = [os.path.join(root, attempt, node, FOLDER) for node in nodes]
    there = [folder for folder in folders if os.path.isdir(folder)]
    for folder in there:
        jobfolder.write_file(os.path.join(folder, mirror.ENDING), b"")
    until = time.monotonic() + seconds
    while any(not os.path.exists(os.path.join(folder, mirror.DRAINED)) for folder in there):
        if told or time.monotonic() > until:
            return 1
        time.sleep(_LOOK)
    if not there:
        return ABSENT
    time.sleep(_FAREWELL)  # whoever has copied it may have this pod removed meanwhile: that can wait
    for node in nodes:
        clear(os.path.join(root, attempt, node))
    return 0 if len(there) == len(folders) else ABSENT


def clear(place):
    """Take away the folder of a node, that of its attempt when it was the last, and what nobody asks for any more."""
    shutil.rmtree(place, ignore_errors=True)
    attempt = os.path.dirname(place)
    try:
        os.rmdir(attempt)
    except OSError:
        pass  # another node's is there
    sweep(os.path.dirname(attempt))


def sweep(root):
    """Take away what nobody has written to for long."""
    for name in mirror.listing(root):
        attempt = os.path.join(root, name)
        if time.time() - _touched(attempt) > FORGOTTEN:
            shutil.rmtree(attempt, ignore_errors=True)


def _touched(attempt):
    """When something of an attempt was written last. Its supervisors write a sign of life all the time."""
    newest = 0.0
    for pattern in ("", "*", "*/job", "*/job/attempts/*", "*/job/attempts/*/state.json"):
        for path in _matching(attempt, pattern):
            try:
                newest = max(newest, os.lstat(path).st_mtime)
            except OSError:
                continue
    return newest or time.time()  # it goes just now, or is not for us to see


def _matching(folder, pattern):
    import glob

    return glob.glob(os.path.join(glob.escape(folder), pattern)) if pattern else [folder]


def main(arguments):
    """See the module."""
    return read(arguments[0], arguments[1], float(arguments[2]), arguments[3:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
