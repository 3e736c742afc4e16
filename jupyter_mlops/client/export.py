"""Bundles: a deployment as a folder that serves without us, and the record of what it did, brought home."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import NotFound, ParameterError, Refused
from ..runtime import parcel
from . import render
from .report import Report

if TYPE_CHECKING:
    from .sync import Client

MANIFEST = "manifest.json"
#: Bytes of a record's ``record.json`` that are read.
_MOST = 4 << 20
_MAKE = "make one where the bundle serves: python serve.py --record ZIP"


class Exported(Report):
    """A bundle that was made. Its keys are in no output: ``.key`` is the primary, ``.keys`` has both.

    Attributes:
        path: the folder.
        manifest: what it is.
        keys: the new keys by name; empty where those of the endpoint open it.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], keys: dict[str, str], digest: str) -> None:
        super().__init__({"path": str(path), "digest": digest,
                          **{k: manifest.get(k) for k in ("id", "endpoint", "deployment", "model", "version")}})
        self.path = path
        self.manifest = manifest
        self.keys = keys
        model = f"{manifest['model']} version {manifest['version']}" if manifest.get("model") else "a scoring script"
        wheels = len(manifest.get("wheels") or {})
        size = sum(entry["size"] for entry in manifest["files"].values())
        self.facts([
            ("folder", str(path)), ("model", model),
            ("files", f"{len(manifest['files'])}, {render.size(size)}" + (f"; {wheels} wheels" if wheels else "")),
            ("Python", f"{manifest['python']}, with requirements.txt"),
            ("serve it", render.Code(f"cd {path} && python serve.py --port 8080")),
            ("SHA-256 of its manifest", digest),
        ], f"Bundle of {manifest['endpoint']}")

    @property
    def key(self) -> str:
        """Its primary key. Raises Refused where those of the endpoint open it."""
        if not self.keys:
            raise Refused("the keys of the endpoint open this bundle", "export it with --keys new for keys of its own")
        return self.keys["primary"]

    def __repr__(self) -> str:
        return f"<Exported {render.clean(str(self.path))}>"


def export(
    client: Client, source: str, folder: str | os.PathLike[str], deployment: str = "", name: str = "",
    keys: str = "new", wheels: bool = False, force: bool = False, told: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Make a folder that serves a deployment without network.

    Args:
        source: an endpoint, ``NAME@ALIAS`` or ``NAME/VERSION`` of a model.
        folder: made; it must be empty or missing, unless ``force``, which replaces what the bundle brings and leaves
            the rest, such as ``state/``.
        deployment: which one of the endpoint; empty: the one with most traffic.
        name: of a model: the endpoint's name in the bundle.
        keys: ``new`` ones, or the ``same`` as the endpoint's.
        wheels: download its packages, too, so that they can be installed without network.
        told: is told what is being done.

    Raises:
        ParameterError: the folder is in the way.
        NotFound, Conflict, Refused: it cannot be handed off.
    """
    target = Path(folder).expanduser().absolute()
    if target.exists() and not target.is_dir():
        raise ParameterError(f"{target} is a file", "name a folder")
    if target.is_dir() and any(target.iterdir()) and not force:
        raise ParameterError(f"{target} is not empty", "name another folder, or add --force")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise ParameterError(f"{target} cannot be made: {error.strerror}") from None
    try:
        with open(work / "bundle.zip", "w+b") as file:
            shown = client.call(client.aio.export_bundle(source, file, deployment, name, keys))
        new = work / "bundle"
        parcel.unpack(str(work / "bundle.zip"), str(new))
        about = json.loads((new / MANIFEST).read_bytes())
        if wheels:
            told("downloading its packages")
            about["wheels"] = _download(new, about["python"])
            (new / "wheels.json").write_text(json.dumps(about["wheels"], indent=1), encoding="utf-8")
        digest = parcel.sha256(str(new / MANIFEST))
        _put(new, target)
    except parcel.ParcelError as error:
        raise Refused(f"the bundle did not arrive whole: {error}", "try again") from None
    except OSError as error:
        raise ParameterError(f"{target} cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Exported(target, about, shown, digest)


def _put(new: Path, target: Path) -> None:
    """Put a new bundle in place; what is there and not of it stays."""
    if not target.exists():
        os.replace(new, target)
        return
    for entry in list(new.iterdir()):
        there = target / entry.name
        if there.is_dir() and not there.is_symlink():
            shutil.rmtree(there)
        elif there.is_symlink() or there.exists():
            there.unlink()
        os.replace(entry, there)


def _download(folder: Path, python: str) -> dict[str, Any]:
    """Fetch the wheels of a bundle's requirements for its Python and this platform; name → size and SHA-256.

    Raises:
        Refused: pip cannot; says its last line.
    """
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if python == here:
        verb = ["wheel", "-w", "wheels"]
    else:
        verb = ["download", "-d", "wheels", "--only-binary=:all:", "--python-version", python]
    command = [sys.executable, "-m", "pip", *verb, "-r", "requirements.txt", "--disable-pip-version-check", "-q"]
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
        raise Refused(f"its packages cannot be downloaded: {errors[0][:300] if errors else 'pip says nothing'}",
                      "export it without --wheels, and install requirements.txt where there is network")
    return {p.name: {"size": p.stat().st_size, "sha256": parcel.sha256(str(p))}
            for p in sorted((folder / "wheels").iterdir())}


# -- records -----------------------------------------------------------------------------------------------------------


def import_record(
    client: Client, path: str | os.PathLike[str], endpoint: str = "", told: Callable[[str], None] = lambda text: None
) -> Report:
    """Merge what a bundle captured and counted (``serve.py --record``) into an endpoint; as often as you like.

    Args:
        endpoint: into which; empty: that of the bundle's name, which is made without deployments when it is gone.

    Raises:
        ParameterError: there is no such file, or it is no record.
        NotFound: there is no endpoint of the name that was given.
    """
    source = Path(path).expanduser()
    if not source.is_file():
        raise ParameterError(f"there is no file {source}", _MAKE)
    name = endpoint or _endpoint_of(source)
    try:
        client.endpoint(name)
    except NotFound:
        if endpoint:
            raise
        client.create_endpoint(name, {"description": "made to keep the record of a bundle"})
        told(f"endpoint {name} did not exist: it was made, without a deployment, to keep the record")
    digest = parcel.sha256(str(source))
    client.upload(source, digest)
    found = client.call(client.aio.merge_record(name, digest))
    report = Report(found).facts([
        ("endpoint", name), ("bundle", f"{found['bundle']} at site {found['site']}"),
        ("captured rows", f"{found['rows']} new of {found['files']} file(s)" + (
            f"; {found['known']} were here already" if found["known"] else "")),
        ("counters", "" if found["newer"] else "a later state of them is here already"),
    ], f"Record of {name}")
    return report.table(COLUMNS, [row(found)])


def _endpoint_of(path: Path) -> str:
    """The endpoint's name in a record. Raises ParameterError."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(MANIFEST) as f:
            return str(json.loads(f.read(_MOST))["endpoint"])
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise ParameterError(f"{path.name} is no record of a bundle ({type(error).__name__})",
                             _MAKE) from None


COLUMNS = ["bundle", "site", "version", "requests", "errors", "rows", "captured", "from (UTC)", "to (UTC)"]


def row(record: dict[str, Any]) -> list[Any]:
    """A merged record as cells of :data:`COLUMNS`."""
    return [record["bundle"], record["site"], record.get("version") or "", record["requests"], record["errors"],
            record["scored"], record["captured"], _moment(record["since"]), _moment(record["until"])]


def _moment(text: str) -> str:
    return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M") if text else ""
