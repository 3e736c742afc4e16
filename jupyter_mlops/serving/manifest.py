"""``manifest.json`` of a bundle: what it is, and the SHA-256 of every file of it.

It tells damage and mix-ups, and a model that was exchanged. Whoever can write to the folder can write the manifest,
too: compare its own digest with the one that was told when the bundle was made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..core.errors import Refused
from ..runtime.parcel import sha256
from .places import read_json

NAME = "manifest.json"
FORMAT = "jupyter-mlops-bundle"
SCHEMA = 1
#: Digests of the packages that whoever asked for the bundle has put beside it.
WHEELS = "wheels.json"
#: What a bundle gets when it serves; never digested.
STATE = "state"
#: Folders in which a file that the manifest does not know would be run or loaded.
CLOSED = ("lib", "model", "code")


def files_of(folder: Path) -> Iterator[str]:
    """Paths of the files below a folder, with slashes; compiled Python is none."""
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if f != "__pycache__")
        for name in sorted(names):
            yield (Path(here) / name).relative_to(folder).as_posix()


def read(bundle: Path) -> dict[str, Any]:
    """The manifest of a bundle.

    Raises:
        Refused: the folder has none, or one of a later version.
    """
    try:
        found = json.loads((bundle / NAME).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise Refused(f"{bundle} is no bundle: its {NAME} cannot be read ({type(error).__name__})",
                      "make one: %mlops export ENDPOINT -o DIR") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found.get("files"), dict):
        raise Refused(f"{bundle} is no bundle: its {NAME} is something else")
    if found.get("schema") != SCHEMA:
        raise Refused(f"the bundle is of schema {found.get('schema')!r}, this is for {SCHEMA}", "export it again")
    return found


def problems(bundle: Path, about: dict[str, Any]) -> list[str]:
    """What is not as the manifest says, one line each; empty when all is well."""
    told: list[str] = []
    for name, entry in sorted(about["files"].items()):
        path = bundle / name
        try:
            if path.is_symlink() or not path.is_file():
                told.append(f"{name} is missing")
            elif path.stat().st_size != entry.get("size") or sha256(path) != entry.get("sha256"):
                told.append(f"{name} has changed")
        except OSError as error:
            told.append(f"{name} cannot be read: {error.strerror}")
    for name, entry in sorted(read_json(bundle / WHEELS).items()):  # gone once they are installed
        path = bundle / "wheels" / name
        if path.is_file() and sha256(path) != entry.get("sha256"):
            told.append(f"wheels/{name} has changed")
    for folder in CLOSED:
        known = about["files"]
        told += [f"{folder}/{name} was added" for name in files_of(bundle / folder) if f"{folder}/{name}" not in known]
    return told


def verify(bundle: Path) -> dict[str, Any]:
    """The manifest of a bundle that is whole.

    Raises:
        Refused: something of it is missing, has changed or was added; names the first.
    """
    about = read(bundle)
    found = problems(bundle, about)
    if found:
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        raise Refused(f"the bundle is not as it was made: {found[0]}{more}", "copy it again, or export it again",
                      found[:50])
    return about
