"""A job's named inputs and outputs: how the code that runs is told where they are.

``jupyter_mlops.inputs["data"]`` is the path of a file or folder, a URL (``mode: direct``), or a value as it was given;
``jupyter_mlops.outputs["model"]`` the path of a folder that the job writes to. The same is in the environment, as
``JUPYTER_MLOPS_INPUT_data``, and in commands and arguments as ``${{inputs.data}}``.
"""

import os
import re
import shlex
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from . import jobfolder

INPUT, OUTPUT = "JUPYTER_MLOPS_INPUT_", "JUPYTER_MLOPS_OUTPUT_"
#: Where the cache lies, its most bytes, and where volume claims are mounted.
CACHE, LIMIT, CLAIMS = "JUPYTER_MLOPS_CACHE", "JUPYTER_MLOPS_CACHE_LIMIT", "JUPYTER_MLOPS_CLAIMS"
#: What MLflow holds; it is copied into the job's folder before an attempt.
MLFLOW = ("runs", "models", "mlflow-artifacts")
#: Folder in ``inputs/`` of what came with the job, a folder for each input, or a zip of it. A single
#: file is alone in a folder :data:`ONE` there.
SHIPPED, ZIP, ONE = "data", ".zip", ".one"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/*)")
_REFERENCE = re.compile(r"\$\{\{ *(inputs|outputs)\.([A-Za-z0-9_]+) *\}\}")


class DataError(Exception):
    """An input cannot be had; the message is one line for people."""


def scheme(path):
    """What kind of place a path names: ``""`` for one of this machine, else ``s3``, ``claim``, ``runs``, …"""
    found = _SCHEME.match(path)
    if found is None or not (found.group(2) or found.group(1) in (*MLFLOW, "azureml")):
        return ""
    return "" if found.group(1) == "file" else found.group(1).lower()


def local(path):
    """A path of this machine, without ``file://``."""
    return unquote(urlsplit(path).path) if path.startswith("file:") else path


def claim(path):
    """(name, path in it) of ``claim://NAME/sub/path``.

    Raises:
        DataError: it is none, or leads out of the claim.
    """
    name, _, inner = path[len("claim://"):].partition("/")
    parts = [part for part in inner.split("/") if part not in ("", ".")]
    if not re.match(r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$", name) or ".." in parts or "\0" in inner:
        raise DataError("%s is not claim://NAME/path" % shown(path))
    return name, "/".join(parts)


def shown(path):
    """A path for logs: without a query, which may be a signature, and without a user's password."""
    if not scheme(path):
        return path
    head, _, _ = path.partition("?")
    return re.sub(r"//[^/@]*@", "//", head)


def mode(given):
    """The mode of an input: as asked for, else mounted (a claim), in its place (this machine) or downloaded."""
    if given.get("mode"):
        return given["mode"]
    kind = scheme(given["path"])
    return "ro_mount" if kind == "claim" else "download" if kind else "direct"


def references(text):
    """What ``${{inputs.a}}`` in a text names: ``[("inputs", "a")]``."""
    return _REFERENCE.findall(text)


def expand(text, quote=False):
    """Put paths and values in place of ``${{inputs.a}}`` and ``${{outputs.a}}``; ``quote``: as a shell needs them."""
    def value(found):
        name = (INPUT if found.group(1) == "inputs" else OUTPUT) + found.group(2)
        given = os.environ.get(name, "")
        return shlex.quote(given) if quote else given

    return _REFERENCE.sub(value, text)


def text_of(value):
    """A literal as text: in the environment, and in a command."""
    return str(value).lower() if isinstance(value, bool) else str(value)


class Named(Mapping):
    """Inputs or outputs of the job that this process belongs to, by name."""

    def __init__(self, what, prefix):
        self._what = what
        self._prefix = prefix

    def __getitem__(self, name):
        try:
            given = os.environ[self._prefix + name]
        except (KeyError, TypeError):
            raise KeyError(self._missing(name)) from None
        folder = os.environ.get(jobfolder.MARKER)
        if folder:
            literal = (jobfolder.JobFolder(folder).spec().get(self._what) or {}).get(name)
            if literal is not None and not isinstance(literal, dict):
                return literal  # a number stays one
        return given

    def _missing(self, name):
        if not os.environ.get(jobfolder.MARKER):
            return "this is no job, so it has no %s: give them to %%%%mlops train with --%s %s=PATH" % (
                self._what, self._what[:-1], name)
        return "the job has no %s %r; it has: %s" % (self._what[:-1], name, ", ".join(self) or "none")

    def __iter__(self):
        return iter(sorted(k[len(self._prefix):] for k in os.environ if k.startswith(self._prefix)))

    def __len__(self):
        return sum(1 for _ in self)

    def __repr__(self):
        return "%s(%r)" % (self._what, dict(self))


inputs = Named("inputs", INPUT)
outputs = Named("outputs", OUTPUT)
