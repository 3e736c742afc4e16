"""Weights that all instances of a deployment share.

Several scorers of one model need not hold its arrays several times. The first instance writes them to a file, once:
pickle's protocol 5 hands arrays over apart from the object that they belong to. It and every other instance then map
that file instead of reading the model, so that the pages exist once in memory, and start sooner.

The mapping is private: an estimator that writes into its arrays gets copies of the pages that it touches, and no other
instance sees them. What cannot be shared (small models; trees and other objects that copy what they load; objects that
do not answer the same afterwards) is loaded as ever, which is found out once and remembered.

    <deployment>/weights/lock
    <deployment>/weights/<key>/{object.pickle,arrays.bin,index.json}      key: the model's file and the library versions
"""

import contextlib
import ctypes
import json
import mmap
import os
import pickle
import shutil
import sys
from hashlib import sha256

#: Bytes of a model's file, and of its arrays that can be shared, below which that is not worth a file.
LEAST = 8 * 1024 * 1024
#: Bytes that have to stay free on the disk.
SPARE = 256 * 1024 * 1024
#: Every array begins at a multiple of it, as numpy and BLAS like it.
ALIGN = 64


class NotShared(Exception):
    """The object is better loaded as ever; the message says why."""


def shared(folder, path, read, same):
    """The object in a model's file: from the shared weights, or from ``read()`` when these are not to be had.

    Args:
        folder: the model's folder; the weights go beside it, when it is that of a deployment.
        path: the file that ``read`` reads.
        read: gives the object.
        same: whether two objects answer the same, the one that was read and the one from the weights.
    """
    home = os.path.dirname(os.path.abspath(folder))
    if os.path.getsize(path) < LEAST or not os.path.isfile(os.path.join(home, "model.json")):
        return read()
    place = os.path.join(home, "weights")
    try:
        import fcntl

        os.makedirs(place, 0o700, exist_ok=True)
        with open(os.path.join(place, "lock"), "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            own = os.path.join(place, _key(path))
            about = _index(own)
            if about is None:
                found = read()
                try:
                    about = _spill(found, place, own, same)
                except (NotShared, OSError, pickle.PicklingError, TypeError, AttributeError) as error:
                    _forget(own, str(error))
                    print("the weights are not shared: %s" % (error or type(error).__name__), flush=True)
                    return found
                del found
        if about.get("shared"):
            return _restore(own, about)[0]
    except Exception as error:
        print("the shared weights cannot be used (%s)" % type(error).__name__, flush=True)
    return read()


def _key(path):
    """Names the model's file and the software that its object was made with."""
    from importlib import metadata

    info = os.stat(path)
    versions = []
    for name in ("numpy", "scipy", "scikit-learn", "cloudpickle"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(metadata.version(name))
    parts = [info.st_size, info.st_mtime_ns, info.st_ino, sys.version, *versions]
    return sha256(repr(parts).encode()).hexdigest()[:24]


def _index(own):
    try:
        with open(os.path.join(own, "index.json"), encoding="utf-8") as f:
            return json.load(f)
    except (OSError, ValueError):
        return None


def _spill(found, place, own, same):
    """Write the object and its arrays; the index, which comes last, when it was proved that they can be used."""
    buffers = []  # type: list
    # cloudpickle for classes and functions of a notebook; the rest is pickled as ever.
    try:
        import cloudpickle as pickler
    except ImportError:
        pickler = pickle
    text = pickler.dumps(found, protocol=5, buffer_callback=buffers.append)
    raw = [b.raw() for b in buffers]
    size = sum(b.nbytes for b in raw)
    if size < LEAST:
        raise NotShared("the model has hardly any arrays")
    if shutil.disk_usage(place).free < size + SPARE:
        raise NotShared("the disk has too little room")
    for name in os.listdir(place):  # of other versions; those that are mapped live on until they are let go
        if name != "lock":
            shutil.rmtree(os.path.join(place, name), ignore_errors=True)
    os.mkdir(own, 0o700)
    spans = []
    with _private(os.path.join(own, "arrays.bin")) as f:
        for buffer in raw:
            f.write(bytes(-f.tell() % ALIGN))
            spans.append([f.tell(), buffer.nbytes])
            f.write(buffer)
    with _private(os.path.join(own, "object.pickle")) as f:
        f.write(text)
    about = {"schema": 1, "shared": True, "bytes": size, "spans": spans}
    mapped, held = _restore(own, about)
    if held < max(LEAST, size // 2):
        raise NotShared("its objects copy what they load")
    if not same(found, mapped):
        raise NotShared("it did not answer the same afterwards")
    with _private(os.path.join(own, "index.json")) as f:
        f.write(json.dumps(about).encode())
    return about


def _restore(own, about):
    """(the object, bytes of its arrays that are those of the file)."""
    with open(os.path.join(own, "object.pickle"), "rb") as f:
        text = f.read()
    with open(os.path.join(own, "arrays.bin"), "rb") as f:
        whole = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY)
    # Objects of ctypes rather than slices: an array that lives on the file holds the very piece that it was given.
    pieces = [(ctypes.c_char * size).from_buffer(whole, at) if size else b"" for at, size in about["spans"]]
    found = pickle.loads(text, buffers=pieces)  # our own file, 0600, made from the model
    held = sum(len(pieces[i]) for i in range(len(pieces)) if sys.getrefcount(pieces[i]) > 2)
    return found, held


def _forget(own, reason):
    """Remember that there is nothing to share, so that the next instance does not try."""
    with contextlib.suppress(OSError):
        shutil.rmtree(own, ignore_errors=True)
        os.mkdir(own, 0o700)
        with _private(os.path.join(own, "index.json")) as f:
            f.write(json.dumps({"schema": 1, "shared": False, "reason": reason[:300]}).encode())


def _private(path):
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")
