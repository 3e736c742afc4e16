"""Parcels: how a model, its code and what is known of them come to a machine that shares no disk with us.

A parcel is a zip; it is named by its SHA-256. Small ones arrive as numbered parts in a folder (Secrets that the cluster
mounts: a pod that is moved needs nobody to bring them again), larger ones through :func:`receive`, whose other end runs
wherever the parcel is: ``python -m jupyter_mlops.runtime.parcel --into FILE --sha256 HASH --size N`` reads records from
stdin and answers lines of JSON on stdout.

    first line    {"have": offset}: how many bytes are here already, from an earlier attempt
    record        offset (8 bytes), length (4 bytes), SHA-256 of the data (32 bytes), data; big-endian
    answer        {"have": offset} after each record; {"done": true} once all is there and its hash is right
    failure       {"error": "…"} and exit code 1

With ``--fetch`` the first line is an address that the parcel is downloaded from instead. ``{"why": "…"}`` says that it
cannot be had there.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import stat
import struct
import sys
import time
import zipfile

RECORD = struct.Struct(">QI32s")
#: Bytes of one record's data.
PIECE = 1 << 20
PART = "part-%05d"
#: Seconds without a byte after which a download is given up.
SILENCE = 20.0
#: Seconds before each further try of a download.
PAUSES = (0.5, 2.0)


class ParcelError(Exception):
    """A parcel is not what it should be; the message is for people."""


def sha256(path):
    """The hash of a file, as hexadecimal text."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        for piece in iter(lambda: f.read(PIECE), b""):
            digest.update(piece)
    return digest.hexdigest()


# -- packing and unpacking -------------------------------------------------------


def pack(target, entries):
    """Write a zip that is the same for the same content.

    Args:
        target: path, replaced atomically.
        entries: pairs of a name in the parcel and a path (file or folder) or bytes.

    Returns:
        ``{"sha256", "size"}``; the size is that of the zip in bytes.

    Raises:
        ParcelError: a folder has links or special files in it, or names that no zip can have.
    """
    new = "%s.%d" % (target, os.getpid())
    try:
        with zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED, compresslevel=3) as archive:
            for name, source in sorted(entries, key=lambda e: e[0]):
                if isinstance(source, bytes):
                    _add(archive, name, source)
                else:
                    for relative, path in _files(source):
                        _add(archive, name + relative, None, path)
        os.replace(new, target)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(new)
    return {"sha256": sha256(target), "size": os.path.getsize(target)}


def _add(archive, name, data, path=None):
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.external_attr = 0o600 << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    if path is None:
        archive.writestr(info, data)
        return
    info.file_size = os.path.getsize(path)
    with open(path, "rb") as source, archive.open(info, "w") as target:
        shutil.copyfileobj(source, target, PIECE)


def _files(source):
    """(name below it with a slash before, path) of each file of a folder; of a file, itself."""
    if os.path.isfile(source) and not os.path.islink(source):
        yield "", source
        return
    for folder, folders, names in os.walk(source):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            if not stat.S_ISREG(os.lstat(path).st_mode):
                raise ParcelError("%r is not a plain file" % os.path.relpath(path, source))
            try:
                relative = "/" + os.path.relpath(path, source).replace(os.sep, "/")
                relative.encode("utf-8")
            except UnicodeEncodeError:
                raise ParcelError("the name %r is not UTF-8" % os.path.relpath(path, source)) from None
            yield relative, path
        for name in folders:
            if os.path.islink(os.path.join(folder, name)):
                raise ParcelError("%r is a link" % os.path.relpath(os.path.join(folder, name), source))


def unpack(path, target):
    """Unpack a parcel into a folder, which is either as before or complete afterwards.

    Raises:
        ParcelError: it is no zip, or has names in it that lead elsewhere.
    """
    new = "%s.new" % target
    shutil.rmtree(new, ignore_errors=True)
    os.makedirs(new, mode=0o700)
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                parts = info.filename.split("/")
                if info.filename.startswith("/") or ".." in parts or "\\" in info.filename or "\0" in info.filename:
                    raise ParcelError("the parcel has the name %r in it" % info.filename)
                if info.is_dir():
                    continue
                to = os.path.join(new, *parts)
                os.makedirs(os.path.dirname(to), mode=0o700, exist_ok=True)
                with archive.open(info) as source, open(to, "wb") as f:
                    shutil.copyfileobj(source, f, PIECE)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(new, target)
    except (zipfile.BadZipFile, EOFError) as error:
        raise ParcelError("the parcel is broken: %s" % error)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def join(folder, count, target, wanted):
    """Put the ``count`` parts in a folder together.

    Raises:
        ParcelError: one is missing, or the whole has another hash than ``wanted``.
    """
    new = "%s.joined" % target
    with open(new, "wb") as f:
        for number in range(count):
            try:
                with open(os.path.join(folder, PART % number), "rb") as part:
                    shutil.copyfileobj(part, f, PIECE)
            except OSError as error:
                raise ParcelError("part %d of %d cannot be read: %s" % (number, count, error.strerror))
    if sha256(new) != wanted:
        os.unlink(new)
        raise ParcelError("the parts do not make the parcel that was sent")
    os.replace(new, target)


# -- receiving -------------------------------------------------------------------


def receive(stream, say, target, wanted, size):
    """Take a parcel from a stream, beginning where an earlier attempt ended.

    Args:
        stream: binary, blocking.
        say: called with each answer, a dictionary.
        target: path of the parcel; ``<target>.part`` holds what has come so far.

    Raises:
        ParcelError: a record is damaged or out of order, or the whole has another hash. What was right stays.
    """
    if os.path.exists(target):
        say({"done": True})
        return
    part = target + ".part"
    with open(part, "ab") as f:
        have = f.tell()
        if have > size:
            f.truncate(0)
            have = 0
        say({"have": have})
        while have < size:
            offset, length, digest = RECORD.unpack(_exactly(stream, RECORD.size))
            if offset != have or not 0 < length <= 16 * PIECE or offset + length > size:
                raise ParcelError("a piece at %d was sent where %d is next" % (offset, have))
            data = _exactly(stream, length)
            if hashlib.sha256(data).digest() != digest:
                raise ParcelError("the piece at %d arrived damaged" % offset)
            f.write(data)
            f.flush()
            have += length
            say({"have": have})
    if sha256(part) != wanted:
        os.unlink(part)
        raise ParcelError("the parcel arrived whole, but is another one")
    os.replace(part, target)
    say({"done": True})


def fetch(url, say, target, wanted, size):
    """Download a parcel; what passes by itself (an inner error of the store, an answer that is cut) is tried again.

    Args:
        say: called with each answer, a dictionary; the last says ``done``, or ``why`` not.
    """
    if os.path.exists(target):
        say({"done": True})
        return
    part = target + ".fetched"
    try:
        for pause in (0.0, *PAUSES):
            time.sleep(pause)
            why, passing = _download(url, say, part, wanted, size)
            if not passing:
                break
            say({"have": 0})
        if not why:
            os.replace(part, target)
        say({"why": why} if why else {"done": True})
    except OSError as error:
        say({"why": str(error)})
    finally:
        with contextlib.suppress(OSError):
            os.unlink(part)


def _download(url, say, part, wanted, size):
    """One try; returns why it failed, empty when the parcel is there, and whether another may succeed."""
    from urllib.request import urlopen

    digest, have, told = hashlib.sha256(), 0, 0
    try:
        with urlopen(url, timeout=SILENCE) as answer, open(part, "wb") as f:
            for data in iter(lambda: answer.read(PIECE), b""):
                f.write(data)
                digest.update(data)
                have += len(data)
                if have > size:
                    break
                if have - told >= 16 * PIECE:
                    told = have
                    say({"have": have})
        if digest.hexdigest() == wanted:
            return "", False
        return "what is there is another one, or not whole", have < size
    except Exception as error:  # whatever a proxy or TLS may come up with
        code = getattr(error, "code", 0)
        passing = code >= 500 or code == 429 if isinstance(code, int) and code else have > 0
        return " ".join(str(getattr(error, "reason", None) or error).split())[:300] or repr(error), passing


def _exactly(stream, size):
    data = stream.read(size)
    if len(data) < size:
        raise ParcelError("the connection ended")
    return data


def records(path, offset):
    """The records of a parcel from an offset on."""
    with open(path, "rb") as f:
        f.seek(offset)
        for data in iter(lambda: f.read(PIECE), b""):
            yield RECORD.pack(offset, len(data), hashlib.sha256(data).digest()) + data
            offset += len(data)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="parcel")
    parser.add_argument("--into", required=True)
    parser.add_argument("--sha256", required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--fetch", action="store_true")
    args = parser.parse_args(argv)

    def say(answer):
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()

    try:
        if args.fetch:
            fetch(sys.stdin.readline().strip(), say, args.into, args.sha256, args.size)
            return 0
        receive(sys.stdin.buffer, say, args.into, args.sha256, args.size)
    except (ParcelError, OSError) as error:
        say({"error": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
