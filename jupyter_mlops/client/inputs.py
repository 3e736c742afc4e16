"""Files of this machine that go with a job to another one: one zip for each named input."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.blobs import MAX_BLOB
from ..core.errors import Refused
from ..runtime import data
from . import code, render

if TYPE_CHECKING:
    from .sync import Client

#: Most files of one input.
MOST_FILES = 100_000


class Packed:
    """The inputs of a job that lie here, as zips; a context, since they take room until they are sent.

    Args:
        inputs: those of the spec; ``blob`` is noted in each that is sent.

    Raises:
        Refused: one is too large; nothing is left.
    """

    def __init__(self, inputs: dict[str, Any]) -> None:
        self._zips: dict[str, Path] = {}
        self.remarks: list[str] = []
        mine = {name: given for name, given in inputs.items() if isinstance(given, dict)
                and not data.scheme(given["path"]) and not given.get("blob")}
        if not mine:
            self._folder = None
            return
        found = {name: _files(name, data.local(given["path"])) for name, given in mine.items()}
        self._folder = tempfile.TemporaryDirectory(prefix="mlops-inputs-")
        for name, files in found.items():
            path = Path(self._folder.name) / name
            digest = code._zip(files, path)
            mine[name]["blob"] = digest
            self._zips[digest] = path
            self.remarks.append(
                f"input {name}: {'1 file goes' if len(files) == 1 else f'{len(files)} files go'} with the job, "
                f"{render.size(sum(f.stat().st_size for _, f in files))}")

    def upload(self, client: Client) -> None:
        """Send what is not there yet."""
        for digest, path in self._zips.items():
            client.upload(path, digest)

    def close(self) -> None:
        """Remove the zips."""
        if self._folder is not None:
            self._folder.cleanup()


def _files(name: str, path: str) -> list[tuple[str, Path]]:
    """(name in the zip, file) of a file or folder, within what can be sent."""
    root = Path(path)
    if root.is_file():
        found = [(f"{data.ONE}/{root.name}", root)]
    else:
        found = [(file.relative_to(root).as_posix(), file) for folder, _, names in os.walk(root)
                 for file in (Path(folder, n) for n in names) if file.is_file()]
    size = sum(file.stat().st_size for _, file in found)
    if size > MAX_BLOB or len(found) > MOST_FILES:
        raise Refused(f"input {name}: {path} has {len(found)} files and {render.size(size)}; at most {MOST_FILES} and "
                      f"{render.size(MAX_BLOB)} go with a job", "put it where the cluster reads it: a claim, or s3://")
    if not found:
        raise Refused(f"input {name}: {path} has no files", "check its path")
    return found
