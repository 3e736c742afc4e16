"""What must be made anew in a forked child, where the threads of the parent are not."""

import os
import threading


class Lock:
    """A re-entrant lock that is free in a forked child, whoever held it in the parent; for module level only."""

    def __init__(self):
        self._renew()
        in_child(self._renew)

    def _renew(self):
        self._lock = threading.RLock()

    def __enter__(self):
        self._lock.acquire()

    def __exit__(self, *_):
        self._lock.release()


def in_child(function):
    """Call ``function()`` in each process that is forked from this one, where there is forking; for ever."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)
