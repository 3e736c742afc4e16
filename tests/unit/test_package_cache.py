"""The cache of installed packages: who goes when it is full, who stays, and what a lock protects."""

from __future__ import annotations

import json
import os
import threading

import pytest

from jupyter_mlops.runtime import packagecache
from jupyter_mlops.runtime.packagecache import COMPLETE, Entry, evict


@pytest.fixture
def root(tmp_path):
    assert packagecache.usable(str(tmp_path))
    return str(tmp_path)


def made(root, key, used, size=1000, complete=True):
    """An entry that was used last at a time."""
    entry = Entry(root, key)
    os.makedirs(entry.path)
    if complete:
        with open(os.path.join(entry.path, COMPLETE), "w") as f:
            json.dump({"bytes": size}, f)
        os.utime(os.path.join(entry.path, COMPLETE), (used, used))
    os.utime(entry.path, (used, used))
    return entry


def test_the_least_recently_used_go_until_it_fits(root):
    for key, used in (("old", 100), ("older", 50), ("new", 200)):
        made(root, key, used)
    assert evict(root, 3000) == []
    assert evict(root, 2500) == ["older"]
    assert evict(root, 0, keep="old") == ["new"]
    assert os.listdir(os.path.join(root, packagecache.VERSION)) == ["old"], "their locks are gone as well"


def test_what_is_in_use_or_was_just_now_stays(root):
    used = made(root, "used", 50)
    made(root, "fresh", 60).used()
    held = used.lock()
    assert evict(root, 0) == []
    os.close(held)
    assert evict(root, 0) == ["used"] and Entry(root, "fresh").complete()


def test_what_nobody_finished_goes_whatever_room_there_is(root):
    half = made(root, "half", 50, complete=False)
    working = half.lock(exclusive=True)
    assert evict(root, 1 << 40) == [], "somebody is at it"
    os.close(working)
    assert evict(root, 1 << 40) == ["half"] and not os.path.exists(half.path)


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_anew(root):
    entry = made(root, "a", 50)
    first = entry.lock(exclusive=True)
    assert entry.lock(exclusive=True, wait=False) is None
    got = []
    waiting = threading.Thread(target=lambda: got.append(entry.lock(exclusive=True)))
    waiting.start()
    os.unlink(entry.path + ".lock")
    os.close(first)
    waiting.join(10)
    assert got and os.fstat(got[0]).st_ino == os.stat(entry.path + ".lock").st_ino
    assert entry.lock(wait=False) is None, "what it holds is what others look at"
    os.close(got[0])


def test_a_place_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    assert not packagecache.usable(str(tmp_path / "file"))
