
"""Outputs of a pod with odd names, and others that change what they are: all come."""

from __future__ import annotations

import asyncio
import os
import shutil

from test_mirror import copier, end, files, finish, pair, until

from jupyter_mlops.compute.kubernetes.landing import left_out

__all__ = ["pair"]
LARGE = 9_000_000


def write(folder, name, data):
    path = os.path.join(os.fsencode(folder.outputs), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as f:
        f.write(data)


async def test_odd_names_come_also_over_many_connections(pair):
    there, here = pair
    names = [b"n" * 250, b"caf\xe9", b"a\nb\x1b[31m", b"sp ace/\xff/x", "\U0001f600".encode() * 60,
             b'"quote"', b"back\\slash"]
    for number, name in enumerate(names):
        write(there, name, bytes([number]) * (LARGE if number < 2 else 10))
    end(there)
    copy = copier(there, here, cuts=[5_000_000, 7_000_000, 3_000_000])
    await finish(copy)
    found = files(here)
    for number, name in enumerate(names):
        assert found[f"outputs/{os.fsdecode(name)}"] == bytes([number]) * (LARGE if number < 2 else 10), name
    assert copy.complete and left_out(here.attempt(1), 0) == ""
    assert not os.listdir(copy.landing._incoming)


async def test_what_was_a_file_is_a_folder_now(pair):
    there, here = pair
    write(there, b"a", b"1")
    write(there, b"b/c", b"2")
    copy = copier(there, here)
    task = asyncio.ensure_future(finish(copy))
    await until(lambda: {"outputs/a", "outputs/b/c"} <= set(files(here)))
    os.unlink(os.path.join(there.outputs, "a"))
    shutil.rmtree(os.path.join(there.outputs, "b"))
    write(there, b"a/d/e", b"3")
    write(there, b"b", b"4" * LARGE)
    end(there)
    await task
    found = {name: data for name, data in files(here).items() if name.startswith("outputs/")}
    assert found == {"outputs/a/d/e": b"3", "outputs/b": b"4" * LARGE} and copy.complete
