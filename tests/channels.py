"""A tiny channel of conda in a folder, for tests that make an environment: what a channel is, is a folder.

``python`` in it is the interpreter of the tests, as an environment of Python is one: it starts in a prefix of its own
and sees nothing of what lies beside the interpreter.
"""

from __future__ import annotations

import ensurepip
import hashlib
import io
import json
import os
import platform
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

VERSION = platform.python_version()
SUBDIR = {"x86_64": "linux-64", "aarch64": "linux-aarch64"}.get(os.uname().machine, "linux-64")


def python(channel: Path) -> None:
    """Put Python itself into a channel."""
    minor = VERSION.rpartition(".")[0]
    home = Path(sys.base_prefix) / "bin"
    links = {f"bin/python{minor}": str(home / f"python{minor}"), "bin/python3": f"python{minor}",
             "bin/python": f"python{minor}"}
    config = f"home = {home}\ninclude-system-site-packages = false\nversion = {VERSION}\n"
    package(channel, "python", VERSION, {"pyvenv.cfg": config, f"lib/python{minor}/site-packages/README.txt": "\n"},
            links=links)


def module(channel: Path, name: str, version: str = "1.0", depends: tuple[str, ...] = ("python",),
           activate: str = "") -> None:
    """Put a package of one module into a channel; ``activate``: a script that runs when an environment is activated."""
    stem = name.replace("-", "_")
    files = {f"site-packages/{stem}/__init__.py": f"VERSION = {version!r}\n",
             f"site-packages/{stem}-{version}.dist-info/METADATA":
                 f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"}
    if activate:
        files[f"etc/conda/activate.d/{name}.sh"] = activate
    package(channel, name, version, files, depends, noarch=True)


def pip(channel: Path) -> None:
    """Put the pip that comes with Python into a channel."""
    (found,) = (Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl")
    with zipfile.ZipFile(found) as archive:
        files = {f"site-packages/{path}": archive.read(path) for path in archive.namelist() if path[-1] != "/"}
    package(channel, "pip", found.name.split("-")[1], files, noarch=True)


def package(channel: Path, name: str, version: str, files: Mapping[str, str | bytes], depends: tuple[str, ...] = (),
            links: dict[str, str] | None = None, noarch: bool = False) -> None:
    """Put a package into a channel.

    Args:
        files: what is in them by their path in the prefix; ``site-packages/`` of a ``noarch`` package goes to that of
            the environment's Python.
        links: symbolic links by their path.
    """
    subdir = "noarch" if noarch else SUBDIR
    index = {"name": name, "version": version, "build": "0", "build_number": 0, "depends": list(depends),
             "subdir": subdir, "arch": None, "platform": None}
    if noarch:
        index["noarch"] = "python"
    contents = {path: held if isinstance(held, bytes) else held.encode() for path, held in files.items()}
    listed = [{"_path": path, "path_type": "hardlink", "sha256": hashlib.sha256(held).hexdigest(),
               "size_in_bytes": len(held)} for path, held in contents.items()]
    listed += [{"_path": path, "path_type": "softlink"} for path in links or {}]
    about = {"info/index.json": json.dumps(index), "info/files": "".join(f"{e['_path']}\n" for e in listed),
             "info/paths.json": json.dumps({"paths": listed, "paths_version": 1})}
    if noarch:
        about["info/link.json"] = json.dumps({"noarch": {"type": "python"}, "package_metadata_version": 1})
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:bz2") as archive:
        for path, held in {**{path: text.encode() for path, text in about.items()}, **contents}.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(held)
            archive.addfile(entry, io.BytesIO(held))
        for path, target in (links or {}).items():
            entry = tarfile.TarInfo(path)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    for folder in ("noarch", SUBDIR):
        (channel / folder).mkdir(parents=True, exist_ok=True)
        if not (channel / folder / "repodata.json").exists():
            _index(channel / folder, {})
    file = f"{name}-{version}-0.tar.bz2"
    (channel / subdir / file).write_bytes(data.getvalue())
    known = json.loads((channel / subdir / "repodata.json").read_text())["packages"]
    _index(channel / subdir, {**known, file: {
        **index, "size": len(data.getvalue()), "md5": hashlib.md5(data.getvalue()).hexdigest(),
        "sha256": hashlib.sha256(data.getvalue()).hexdigest()}})


def _index(folder: Path, packages: dict[str, object]) -> None:
    (folder / "repodata.json").write_text(json.dumps({
        "info": {"subdir": folder.name}, "packages": packages, "packages.conda": {}, "removed": [],
        "repodata_version": 1}))
