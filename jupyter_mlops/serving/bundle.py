"""Bundles: a deployment as a folder that serves by itself, without network, control plane or MLflow.

    README.md  serve.py  Containerfile  .containerignore  requirements.txt
    manifest.json          what it is, and the digest of every other file (manifest.py)
    endpoint.json          what its gateway serves: keys (hashed), one deployment with all the traffic, its settings
    run.json               how its scorers are started: ``{"count", "env", "needed", "probes"}``
    model/ model.json      the model; its signature and how it is loaded
    code/                  of a scoring script
    lib/                   the part of this package that runs there
    wheels/ wheels.json    its packages with their digests, when they were asked for
    state/                 made by serve.py: capture, counters, logs (bundle_server.py)

A bundle comes as one zip (``pack``), which whoever asked for it unpacks.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__
from ..core.errors import Refused
from ..runtime import parcel
from ..runtime.environ import scrubbed
from . import manifest, recipe
from .environment import package_root

#: What the gateway imports beyond the standard library.
GATEWAY = ("httptools", "orjson", "pysimdjson", "uvloop")
#: The Python that gateway and scorer need.
OLDEST = (3, 11)
_PROBE_TIMEOUT = 60.0
_NAME = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(\[[^\]]*\])?\s*(.*)")

_PROBE = """\
import json, sys
from importlib import metadata
asked = json.loads(sys.argv[1])
owners = metadata.packages_distributions()
versions = {}
for name in asked:
    for candidate in [name, *owners.get(name, [])]:
        try:
            versions[metadata.metadata(candidate)["Name"]] = metadata.version(candidate)
            break
        except Exception:
            continue
print("\\n" + json.dumps({"python": list(sys.version_info[:3]), "versions": versions}))
"""


@dataclass
class Subject:
    """What is handed off.

    Attributes:
        model_json: its signature and how it is loaded, as ``describe_model`` says.
        model: the model's folder, None for a script without one.
        code: the folder of a scoring script.
        interpreter: the Python that it runs under here.
        config: what the gateway is told of the endpoint, with this deployment only.
        run: ``{"count", "env", "probes"}`` of its scorers.
        about: ``workspace, endpoint, deployment, model, version, run_id`` of the manifest.
        packages: name → version of what its scorer was seen to import, where one runs.
    """

    model_json: dict[str, Any]
    model: Path | None
    code: Path | None
    interpreter: str
    config: dict[str, Any]
    run: dict[str, Any]
    about: dict[str, str]
    packages: dict[str, str] = field(default_factory=dict)


def pack(subject: Subject, out: Path, made_at: str, keys: str) -> dict[str, Any]:
    """Write the bundle as a zip.

    Args:
        keys: one sentence for its README: which keys open it.

    Returns:
        its manifest, with ``digest``, the SHA-256 of the manifest's file.

    Raises:
        Refused: its Python is not here or too old; the model has links or special files in it.
    """
    lines = _requirements_of(subject)
    python, pins = requirements(subject, lines)
    variables = subject.run.get("env") or {}
    harmless = scrubbed(variables)
    run = {**subject.run, "env": harmless, "needed": sorted(set(variables) - set(harmless))}
    about: dict[str, Any] = {
        "format": manifest.FORMAT, "schema": manifest.SCHEMA, "id": os.urandom(8).hex(), **subject.about,
        "made_at": made_at, "made_by": __version__, "python": python,
    }
    texts = {
        "README.md": recipe.readme(about, run["needed"], keys), "serve.py": recipe.SERVE,
        "Containerfile": recipe.containerfile(about), ".containerignore": recipe.IGNORE,
        "requirements.txt": "\n".join(pins) + "\n", "endpoint.json": json.dumps(subject.config, indent=1),
        "run.json": json.dumps(run, indent=1), "model.json": json.dumps(subject.model_json),
        "lib/package.json": json.dumps({"name": "jupyter-mlops", "version": __version__}),
    }
    entries: list[tuple[str, Any]] = [(name, text.encode()) for name, text in texts.items()]
    entries += [(f"lib/jupyter_mlops/{name}", str(path)) for name, path in library()]
    for name, folder in (("model", subject.model), ("code", subject.code)):
        if folder is not None:
            entries += [(f"{name}/{file}", str(folder / file)) for file in manifest.files_of(folder)]
    about["files"] = {name: _digest(source) for name, source in sorted(entries)}
    text = json.dumps(about, indent=1).encode()
    try:
        parcel.pack(str(out), [*entries, (manifest.NAME, text)])
    except parcel.ParcelError as error:
        raise Refused(f"the model cannot be packed: {error}", "a model is plain files; log it again") from error
    except OSError as error:
        raise Refused(f"the bundle cannot be written: {error.strerror}", "see: jupyter mlops doctor") from error
    return {**about, "digest": _sha256(text)}


def library() -> list[tuple[str, Path]]:
    """(name, path) of the files of this package that gateway, scorers and collector need."""
    root = Path(package_root()) / "jupyter_mlops"
    found = [root / "__init__.py", *(root / "core" / f"{n}.py" for n in ("__init__", "errors", "proof"))]
    found += sorted((root / "runtime").glob("*.py"))
    found += [p for p in sorted((root / "serving").iterdir()) if p.suffix in (".py", ".css", ".js")]
    return [(p.relative_to(root).as_posix(), p) for p in found]


# -- packages ----------------------------------------------------------------------------------------------------------


def requirements(subject: Subject, lines: list[str]) -> tuple[str, list[str]]:
    """(``3.11``, pinned requirements): what the model says it needs, what its scorer imports, what the gateway needs.

    Args:
        lines: the model's own, as pip takes them.

    Raises:
        Refused: its Python is not here or too old, or a package is a folder of this machine.
    """
    wanted: dict[str, str] = {}
    for line in lines:
        match = _NAME.fullmatch(line)
        if match is None or line.startswith(("-", ".", "/")) or "file:" in line:
            raise Refused(f"the model needs {line[:80]!r}, which is no package that pip finds elsewhere",
                          "build a wheel of it, and log the model with that package pinned")
        wanted[canonical(match[1])] = line
    named = [i.get("name") for i in (subject.model_json.get("signature") or {}).get("inputs") or []]
    frames = bool(named) and None not in named and not subject.model_json.get("script")
    asked = {canonical(name): name for name in subject.packages}
    if frames:
        asked.setdefault("pandas", "pandas")
    if subject.model is not None:
        asked.setdefault("numpy", "numpy")
    needs_mlflow = subject.model_json.get("native") is None and not subject.model_json.get("script")
    found = probe(subject.interpreter, sorted({*asked.values(), *wanted}))
    if tuple(found["python"][:2]) < OLDEST:
        version = ".".join(map(str, found["python"][:2]))
        raise Refused(f"the model's Python is {version}, and a bundle is served by one Python, which must be 3.11 or "
                      "later", "log the model from a notebook with such a Python")
    versions = {canonical(name): (name, version) for name, version in found["versions"].items()}
    for name, (shown, version) in versions.items():
        if name not in wanted or re.fullmatch(r"[A-Za-z0-9._-]+(\[[^\]]*\])?", wanted[name].strip()):
            wanted[name] = f"{shown}=={version.partition('+')[0]}"
    if not needs_mlflow:
        # It is loaded without; MLflow and what only MLflow brings would be ten times the size of the rest.
        for name in ("mlflow", "mlflow-skinny", "mlflow-tracing"):
            wanted.pop(name, None)
    wanted.pop("jupyter-mlops", None)
    for name in GATEWAY:
        wanted.setdefault(canonical(name), f"{name}=={metadata.version(name)}")
    return ".".join(map(str, found["python"][:2])), [wanted[name] for name in sorted(wanted)]


def canonical(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def probe(interpreter: str, names: list[str]) -> dict[str, Any]:
    """``{"python": [3, 11, 7], "versions": {distribution: version}}`` of an interpreter, for packages or modules.

    Raises:
        Refused: it is not here, or does not run.
    """
    if not (os.path.isfile(interpreter) and os.access(interpreter, os.X_OK)):
        raise Refused(f"the Python {interpreter or 'of this model'} is not here any more",
                      "deploy the model with another interpreter, and export that endpoint")
    try:
        done = subprocess.run([interpreter, "-c", _PROBE, json.dumps(names)], stdin=subprocess.DEVNULL,
                              capture_output=True, timeout=_PROBE_TIMEOUT, cwd="/", env=scrubbed(os.environ))
        return json.loads(done.stdout.decode("utf-8", "replace").strip().splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as error:
        raise Refused(f"the Python {interpreter} does not run ({type(error).__name__})",
                      "deploy the model with another interpreter, and export that endpoint") from None


def _requirements_of(subject: Subject) -> list[str]:
    """The lines of the model's ``requirements.txt``, or of one beside a script, that say something."""
    for folder in (subject.model, subject.code):
        path = folder / "requirements.txt" if folder is not None else None
        if path is not None and path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            lines = (line.partition(" #")[0].strip() for line in text.splitlines())
            return [line for line in lines if line and not line.startswith("#")]
    return []


def _digest(source: Any) -> dict[str, Any]:
    if isinstance(source, bytes):
        return {"size": len(source), "sha256": _sha256(source)}
    return {"size": os.path.getsize(source), "sha256": parcel.sha256(source)}


def _sha256(data: bytes) -> str:
    from hashlib import sha256

    return sha256(data).hexdigest()
