"""Named inputs and outputs of a job, as in the Azure ML CLI v2; ``claim://`` is our addition. See docs/data.md."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from ...runtime import data
from .base import Model

#: What a name of an input or output is: it becomes part of a variable of the environment.
NAME = r"^[A-Za-z_][A-Za-z0-9_]{0,62}$"
Named = Annotated[str, Field(pattern=NAME)]
#: SHA-256 of an uploaded blob, in hexadecimal.
Digest = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]


class JobInput(Model):
    """Files that a job reads.

    ``path``: of this machine, ``claim://NAME/sub/path`` (a volume of a cluster), ``runs:/RUN/path`` or
    ``models:/NAME/VERSION`` (what MLflow keeps), ``https://``, or a URL that fsspec knows, such as ``s3://``.
    ``blob``: a zip of the files of a path of this machine, for where that is not.
    """

    type: Literal["", "uri_file", "uri_folder"] = Field(default="", description="empty: whichever it is")
    path: str = Field(min_length=1, max_length=4096)
    mode: Literal["", "download", "ro_mount", "direct"] = Field(
        default="", description="empty: a claim is mounted, a path of this machine left where it is, else download"
    )
    blob: Digest = ""

    @property
    def scheme(self) -> str:
        """``""`` for a path of this machine, else ``s3``, ``claim``, ``runs``, …"""
        return data.scheme(self.path)

    @property
    def claim(self) -> str:
        """Name of the claim that it lies in, or empty."""
        return data.claim(self.path)[0] if self.scheme == "claim" else ""

    @field_validator("path")
    @classmethod
    def _a_place(cls, value: str) -> str:
        return _path(value)

    @model_validator(mode="after")
    def _a_mode(self) -> JobInput:
        kind, where = self.scheme, data.shown(self.path)
        if kind in data.MLFLOW and self.mode not in ("", "download"):
            raise ValueError(f"{where} is copied to where the job runs: leave mode out")
        if kind == "claim" and self.mode == "direct":
            raise ValueError("a claim has no URL: leave mode out (it is mounted), or say download")
        if self.mode == "ro_mount" and kind not in ("", "claim"):
            raise ValueError(f"{where} cannot be mounted, since pods may not (no FUSE): use mode download, or direct")
        return self


class JobOutput(Model):
    """A folder (or the place of a file) that a job writes to. Without ``path`` it lies in ``outputs/NAME``, which is
    brought back; else it is a folder of this machine, or ``claim://NAME/sub/path``."""

    type: Literal["uri_file", "uri_folder"] = "uri_folder"
    path: str = Field(default="", max_length=4096)
    mode: Literal["", "rw_mount", "upload"] = ""

    @property
    def claim(self) -> str:
        """Name of the claim that it lies in, or empty."""
        return data.claim(self.path)[0] if data.scheme(self.path) == "claim" else ""

    @field_validator("path")
    @classmethod
    def _a_place(cls, value: str) -> str:
        if not value:
            return value
        value = _path(value)
        kind = data.scheme(value)
        if kind not in ("", "claim"):
            raise ValueError(f"nothing is written to {kind}:// by itself: leave path out and it is brought back, name "
                             "a claim, or write to the URL in the code")
        return value

    @model_validator(mode="after")
    def _a_mode(self) -> JobOutput:
        if self.mode == "upload" and self.path:
            raise ValueError("mode upload is for an output without path; this one is written in its place")
        return self


def _kind(value: Any) -> str:
    return "files" if isinstance(value, dict | JobInput) else "value"


#: What stands behind a name: files, or a value.
Input = Annotated[
    Annotated[JobInput, Tag("files")] | Annotated[bool | int | float | str, Tag("value")], Discriminator(_kind)
]


def _path(value: str) -> str:
    if "\0" in value or "\n" in value:
        raise ValueError("control characters are not allowed")
    kind = data.scheme(value)
    if kind == "azureml":
        raise ValueError("there is no registry of data assets here: name the files themselves")
    if re.match(r"[^:/]+://[^/@]*:[^/@]*@", value):
        raise ValueError("a password does not belong into a URL: it would be seen in logs; give it by the environment")
    if kind == "claim":
        try:
            data.claim(value)
        except data.DataError as error:
            raise ValueError(str(error)) from None
    if not kind and not os.path.isabs(data.local(value)):
        raise ValueError(f"{value!r} must be an absolute path, or a URL")
    return value


def check_references(texts: Iterable[str], inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
    """Raise ValueError where a text names an input or output that is not there."""
    for text in texts:
        for what, name in data.references(text):
            known = inputs if what == "inputs" else outputs
            if name not in known:
                there = ", ".join(sorted(known)) or "none"
                raise ValueError(f"${{{{{what}.{name}}}}} is not among the {what}: {there}")

