"""Plain runs of a kernel: tags when they start, files of their context in the background, never in the user's way."""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import MlopsError, NotFound
from ..runtime import redact
from . import repository
from .bundle import FOLDER, Bundle, Surroundings, collect

#: Seconds that a start of a run waits for the commit, and the end of the process for what is not uploaded yet.
QUICK = 0.2
LAST = 3.0
#: Seconds between two updates of a run that goes on, and pauses before a failed upload is tried again.
PERIOD = 10.0
PAUSES = (1.0, 3.0, 10.0, 30.0, 60.0)
#: What is replaced when a run goes on or ends; the rest stays as it was when the run began.
_MOVING = ("cells.json", "cells.py")

_logger = logging.getLogger("jupyter_mlops")


@dataclass
class _Kept:
    """A run of this kernel: what of it has been uploaded."""

    run_id: str
    around: Surroundings
    hashes: dict[str, str] = field(default_factory=dict)
    context: dict[str, Any] = field(default_factory=dict)
    root: str = ""
    version: int = -1
    begun: bool = False
    ended: bool = False
    due: float = 0.0
    tries: int = 0


class Keeper:
    """Keeps the context of this kernel's runs.

    Args:
        around: gives the surroundings of the moment.
        client: makes a client; called once, on the thread that uploads.
    """

    def __init__(self, around: Callable[[], Surroundings], client: Callable[[], Any]) -> None:
        self._around = around
        self._make_client = client
        self._client: Any = None
        self._runs: dict[str, _Kept] = {}
        self._changed = threading.Condition()
        self._worker: threading.Thread | None = None
        self._closing = False

    def tags(self) -> dict[str, str]:
        """What can be said at once of a run that starts now; the uploader adds the rest."""
        around = self._around()
        found: list[tuple[str, str]] = []
        look = threading.Thread(target=lambda: found.append(repository.head(around.folder)), daemon=True)
        look.start()
        look.join(QUICK)
        commit, branch = found[0] if found else ("", "")
        count = len(around.cells.all()) if around.cells is not None else 0
        tags = {
            "mlflow.source.name": around.notebook or "notebook cell",
            "mlflow.source.type": "NOTEBOOK" if around.notebook else "LOCAL",
            "mlops.cell_id": around.cell_id, "mlops.cells": str(count or ""),
            "mlflow.source.git.commit": commit, "mlflow.source.git.branch": branch,
        }
        return {k: redact.clean(v) for k, v in tags.items() if v}

    def heard(self, event: str, run_id: str, parent: str = "") -> None:
        """A run of this process was ``created`` or has ``ended``. A run beneath another shares its context."""
        with self._changed:
            if event == "created" and not parent:
                self._runs.setdefault(run_id, _Kept(run_id, self._around()))
            elif event == "ended" and run_id in self._runs:
                kept = self._runs[run_id]
                kept.ended, kept.due, kept.version = True, 0.0, -1
                kept.around.last = kept.around.cells.last if kept.around.cells is not None else None
            else:
                return
            if self._worker is None or not self._worker.is_alive():
                self._worker = threading.Thread(target=self._work, name="jupyter-mlops-context", daemon=True)
                self._worker.start()
            self._changed.notify_all()

    def cell_ended(self) -> None:
        """A cell has ended: runs that ended in it get its last word at once, others when their time has come."""
        with self._changed:
            if not self._runs:
                return
            for kept in self._runs.values():
                if kept.ended:
                    kept.due = 0.0
            self._changed.notify_all()

    def close(self, timeout: float = LAST) -> None:
        """Upload what is left, for at most ``timeout`` seconds."""
        with self._changed:
            self._closing = True
            for kept in self._runs.values():
                kept.due = 0.0
            self._changed.notify_all()
        if self._worker is not None:
            self._worker.join(timeout)

    # -- the thread that uploads -----------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                kept = self._next()
                if kept is None:
                    if self._closing:
                        return
                    self._changed.wait(1.0 if self._runs else None)
                    continue
                cells = kept.around.cells
                version, ended = cells.version if cells is not None else 0, kept.ended
                last = kept.around.last
                whole = last is None or last.status != "running"
            try:
                self._bring(kept)
            except NotFound:
                self._forget(kept)  # the run was deleted
                continue
            except (MlopsError, OSError, ValueError, RuntimeError) as error:
                kept.tries += 1
                if kept.tries > len(PAUSES) or self._closing:
                    _logger.warning("the context of run %s is not recorded: %s", kept.run_id, error)
                    self._forget(kept)
                else:
                    kept.due = time.monotonic() + PAUSES[kept.tries - 1]
                continue
            kept.version, kept.tries = version, 0
            kept.due = time.monotonic() + PERIOD
            if ended and whole:
                self._forget(kept)

    def _next(self) -> _Kept | None:
        now = time.monotonic()
        for kept in self._runs.values():
            version = kept.around.cells.version if kept.around.cells is not None else 0
            if kept.due <= now and (kept.version != version or kept.tries):
                return kept
        return None

    def _forget(self, kept: _Kept) -> None:
        with self._changed:
            self._runs.pop(kept.run_id, None)

    def _bring(self, kept: _Kept) -> None:
        if self._client is None:
            self._client = self._make_client()
            atexit.register(self.close)
        bundle = collect(kept.around)
        first = not kept.begun
        if first:
            kept.context = json.loads(bundle.files["context.json"])
            kept.root = self._client.artifact_path(kept.run_id)
            self._tag(kept.run_id, bundle)
        else:
            bundle.files["context.json"] = _merged(kept.context, json.loads(bundle.files["context.json"]))
        for name, text in bundle.files.items():
            moving = name in _MOVING or name == "context.json"
            data = text.encode("utf-8", "replace")
            digest = hashlib.sha256(data).hexdigest()
            if kept.hashes.get(name) == digest or (name in kept.hashes and not moving):
                continue
            if not first and not moving and not name.startswith("modules/"):
                continue
            self._client.call(self._client.aio.artifact("PUT", f"{kept.root}/{FOLDER}/{name}", data))
            kept.hashes[name] = digest
        kept.begun = True

    def _tag(self, run_id: str, bundle: Bundle) -> None:
        # The cells are counted where the run starts, and its source is known since then.
        tags = [{"key": k, "value": v} for k, v in bundle.tags.items() if not k.startswith("mlflow.source.name")]
        self._client.mlflow("POST", "runs/log-batch", {"run_id": run_id, "tags": tags})


def _merged(begin: dict[str, Any], now: dict[str, Any]) -> str:
    """What was so when the run began, with the cells, seeds and modules that have come since."""
    known = {m["path"] for m in begin["modules"]}
    moved = {k: now[k] for k in ("cells", "dropped_cells", "seeds", "remarks")}
    added = [m for m in now["modules"] if m["path"] not in known]
    return json.dumps({**begin, **moved, "modules": begin["modules"] + added}, indent=1, ensure_ascii=False) + "\n"


def folder_of(notebook: str) -> str:
    """The folder that git is asked about: the notebook's, else the working folder."""
    folder = os.path.dirname(notebook) if os.path.isabs(notebook) else ""
    return folder if folder and os.path.isdir(folder) else os.getcwd()
