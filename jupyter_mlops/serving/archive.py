"""The code of a scoring script: a zip from outside, looked at before it is unpacked.

Nothing in it may end outside of the folder that it goes into, be a link, or grow beyond the limits.
"""

from __future__ import annotations

import os
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from ..core.errors import Refused

MAX_FILES = 20_000
#: Bytes of all files together, unpacked.
MAX_BYTES = 1 << 30
#: A zip that grows by more than this, and beyond what is small in any case, is a bomb.
MAX_RATIO, SMALL = 200, 64 << 20
#: Bytes of one path. Longer ones do not fit into file systems.
MAX_PATH = 1000


def check_archive(archive: Path) -> list[str]:
    """Paths of the files in a zip of code.

    Raises:
        Refused: it is no zip, or not one that can be unpacked safely.
    """
    try:
        with zipfile.ZipFile(archive) as z:
            return [name for name, info in _entries(z, archive.stat().st_size) if not info.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise Refused(f"the code is not a zip that can be read ({type(error).__name__})", "upload it again") from error


def unpack(archive: Path, target: Path) -> None:
    """Unpack a zip of code, so that ``target`` is either as before or complete; what was there is replaced.

    Raises:
        Refused: it is no zip, is not safe, is damaged, or the disk is too small.
    """
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = target.with_name(f".code-{os.urandom(6).hex()}")
    try:
        new.mkdir(mode=0o700)
        with zipfile.ZipFile(archive) as z:
            entries = _entries(z, archive.stat().st_size)
            size, free = sum(info.file_size for _, info in entries), shutil.disk_usage(new).free
            if size + (64 << 20) > free:
                raise Refused(f"the code needs {size >> 20} MB and the disk has {free >> 20} MB left",
                              "make room first")
            for name, info in entries:
                path = new / name
                if info.is_dir():
                    path.mkdir(mode=0o700, parents=True, exist_ok=True)
                    continue
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with z.open(info) as source, open(fd, "wb") as f:
                    shutil.copyfileobj(source, f, 1 << 20)  # zipfile stops at the size that was checked, then the CRC
        if target.exists():
            old = target.with_name(f".gone-{os.urandom(6).hex()}")
            os.replace(target, old)
            shutil.rmtree(old, ignore_errors=True)
        os.replace(new, target)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise Refused(f"the code cannot be unpacked ({type(error).__name__})", "upload it again") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _entries(z: zipfile.ZipFile, packed: int) -> list[tuple[str, zipfile.ZipInfo]]:
    """(path, entry) of everything in a zip, all of it checked.

    Raises:
        Refused: something in it is not safe.
    """
    infos = z.infolist()
    if len(infos) > MAX_FILES:
        raise Refused(f"the code has {len(infos)} files, more than {MAX_FILES}",
                      "leave out what the script does not need")
    size = sum(info.file_size for info in infos)
    if size > MAX_BYTES or (size > SMALL and size > MAX_RATIO * packed):
        raise Refused(f"the code is {size >> 20} MB when it is unpacked, more than is taken",
                      "put large files into the model")
    found: dict[str, zipfile.ZipInfo] = {}
    files: set[str] = set()
    for info in infos:
        path = PurePosixPath(info.filename)
        shown = ascii(info.filename[:80])
        if (path.is_absolute() or ".." in path.parts or "\\" in info.filename or "\0" in info.orig_filename
                or not path.parts or ":" in path.parts[0] or len(info.filename.encode()) > MAX_PATH):
            raise Refused(f"the code has a file {shown}, which is not a path inside of it")
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise Refused(f"the code has {shown} in it, which is {'a link' if kind == stat.S_IFLNK else 'no file'}",
                          "put plain files into it")
        if info.flag_bits & 1:
            raise Refused("the code is encrypted", "upload it without a password")
        name = str(path)
        if name in found:
            raise Refused(f"the code has {shown} twice")
        found[name] = info
        if not info.is_dir():
            files.add(name)
    for name in found:
        if any(str(parent) in files for parent in PurePosixPath(name).parents):
            raise Refused(f"the code has {name[:80]!a} below a file")
    return list(found.items())
