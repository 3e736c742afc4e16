"""The context of a run as a few files, made safe, and as a small zip that travels with a job."""

from __future__ import annotations

import ast
import io
import json
import os
import shlex
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ..runtime import redact
from . import cells as cells_
from . import literals, modules, packages, repository

SCHEMA = 1
#: Folder of the context among the artifacts of a run.
FOLDER = "context"
#: What of a spec says how it runs; the environment's values are not among it.
_OF_SPEC = ("display_name", "experiment_name", "cwd", "compute", "distribution", "resources", "limits",
            "retry_settings", "queue_settings", "interpreter")


@dataclass
class Surroundings:
    """Where something is run from.

    Attributes:
        folder: absolute path; git is asked about it.
        last: the newest cell that belongs to it; None: the newest of all.
        names: variables whose values must not be recorded when their names look secret.
        spec: of the job, when it is one.
    """

    folder: str
    notebook: str = ""
    cell_id: str = ""
    cells: cells_.CellLog | None = None
    last: cells_.Cell | None = None
    names: Mapping[str, Any] = field(default_factory=dict)
    spec: dict[str, Any] | None = None


@dataclass
class Bundle:
    """Files by name, and the tags of the run."""

    files: dict[str, str]
    tags: dict[str, str]

    def packed(self) -> bytes:
        """A zip with the files and ``tags.json``; equal contents give equal bytes."""
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
            for name, text in sorted({**self.files, "tags.json": json.dumps(self.tags)}.items()):
                archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), text.encode("utf-8", "replace"),
                                 zipfile.ZIP_DEFLATED)
        return out.getvalue()


def collect(around: Surroundings, patience: float = repository.PATIENCE) -> Bundle:
    """Everything about a run, without its secrets. What cannot be found out is told in ``context.json``; never raises
    for that.

    Args:
        patience: seconds for git, which is asked at most three times so long.
    """
    began = time.perf_counter()
    found = redact.marked() | redact.values_of(around.names)
    spec = around.spec or {}
    found |= redact.values_of(spec.get("environment_variables") or {})
    remarks: list[str] = []

    executed = around.cells.all() if around.cells is not None else []
    if around.last in executed:
        executed = executed[: executed.index(around.last) + 1]
    rows = []
    for cell in executed:
        text, values = cells_.masked(cell.source)
        found |= values
        rows.append(cells_.record(cell, text))
    dropped = around.cells.dropped if around.cells is not None else 0
    if dropped:
        remarks.append(f"{dropped} earlier cells are not kept")

    git = repository.facts(around.folder, patience, found)
    if git.message:
        remarks.append(f"git: {git.message}")
    diff = redact.mask(git.diff, found) if git.diff else ""
    listed, sources = _modules(around, spec, found, remarks, patience)
    machine = packages.machine()

    context = {
        "schema": SCHEMA,
        "recorded_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "notebook": around.notebook,
        "cell_id": around.cell_id,
        "folder": around.folder,
        "cells": len(rows),
        "dropped_cells": dropped,
        "command": _command(spec, found),
        "spec": {k: spec[k] for k in _OF_SPEC if spec.get(k)},
        "environment_names": sorted(spec.get("environment_variables") or {}),
        "seeds": {
            "calls": cells_.seeds(executed),
            "PYTHONHASHSEED": os.environ.get("PYTHONHASHSEED", ""),
            "torch_initial_seed": (machine.get("torch") or {}).get("initial_seed"),
        },
        "modules": listed,
        "remarks": remarks,
    }
    files = {
        "cells.json": _json({"schema": SCHEMA, "dropped": dropped, "cells": rows}),
        "cells.py": cells_.as_text(rows, dropped),
        "git.json": _json(git.to_dict()),
        "requirements.txt": packages.lock(),
        "environment.json": _json(machine),
        **sources,
    }
    if diff:
        files["changes.diff"] = diff
    context["seconds"] = round(time.perf_counter() - began, 4)
    files["context.json"] = _json(context)
    files = {redact.strike(name, found): redact.strike(text, found) for name, text in files.items()}
    return Bundle(files, {k: redact.strike(v, found) for k, v in _tags(around, git, len(rows)).items()})


def _tags(around: Surroundings, git: repository.Facts, count: int) -> dict[str, str]:
    tags = {"mlops.context": FOLDER}
    if around.notebook and (around.spec is None or around.spec.get("cell")):
        tags |= {"mlflow.source.name": around.notebook, "mlflow.source.type": "NOTEBOOK"}
    if around.cell_id:
        tags["mlops.cell_id"] = around.cell_id
    if count:
        tags["mlops.cells"] = str(count)
    for key, value in (("commit", git.commit), ("branch", git.branch), ("repoURL", git.remote)):
        if value:
            tags[f"mlflow.source.git.{key}"] = value
    if git.dirty is not None:
        tags["mlops.dirty"] = "true" if git.dirty else "false"
    return {k: redact.mask(v)[:5000] for k, v in tags.items()}


def _command(spec: dict[str, Any], found: set[str]) -> str:
    if spec.get("script"):
        words = redact.clean_arguments([spec["script"], *(spec.get("args") or [])], found)
        return " ".join(shlex.quote(word) for word in words)
    return redact.mask(spec.get("command") or "", found)


def _modules(
    around: Surroundings, spec: dict[str, Any], found: set[str], remarks: list[str], patience: float
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The list of the user's modules, and the sources of those that no commit holds, and of the script."""
    paths = modules.imported() if around.cells is not None else {}
    cwd = spec.get("cwd") or around.folder
    trees: list[tuple[ast.AST, str]] = []
    script = ""
    if spec.get("script"):
        script = os.path.abspath(os.path.join(cwd, os.path.expanduser(spec["script"])))
        tree = literals.parse(modules.read(script) or "")
        trees = [(tree, os.path.dirname(script))] if tree is not None else []
    elif spec.get("cell"):
        tree = literals.parse(spec["cell"].get("source") or "")
        trees = [(tree, cwd)] if tree is not None else []
    folders = list(dict.fromkeys([os.path.dirname(script) if script else cwd, cwd]))
    paths = {**modules.reachable(trees, folders), **paths}
    if script:
        paths[script] = "__main__"
    examined, told = modules.examine(paths, patience)
    remarks += told
    listed, sources, size = [], dict[str, str](), 0
    for module in examined:
        at = ""
        if module.state != "tracked" or module.path == script:
            masked = modules.masked(module.path)
            if masked is None or size + len(masked[0]) > modules.MOST_BYTES:
                remarks.append(f"the source of {module.path} is not kept: it is too large, or gone")
            else:
                at = modules.place(module, around.folder)
                sources[at] = masked[0]
                found |= masked[1]
                size += len(masked[0])
        listed.append(modules.to_dict(module, at))
    return listed, sources


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n"
