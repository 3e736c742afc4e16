"""What a run came from, read back from its artifacts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ..core.errors import NotFound
from . import render

if TYPE_CHECKING:
    from .sync import Client

#: Folder of the context among a run's artifacts.
FOLDER = "context"


class RunContext:
    """What a run came from. Parts are read when they are asked for; those that were not recorded are empty."""

    def __init__(self, client: Client, run_id: str) -> None:
        self._client = client
        self.run_id = run_id
        self._root = client.artifact_path(run_id)
        self._texts: dict[str, str] = {}
        self._facts = self._json("context.json")
        if not self._facts:
            raise NotFound(
                f"of run {run_id[:8]} no context is recorded",
                "it is for jobs, and for runs of kernels that track here; a new one takes some seconds",
            )

    def text(self, name: str) -> str:
        """A file of the context, such as ``changes.diff`` or ``modules/helper.py``; empty when there is none."""
        if name not in self._texts:
            try:
                data = self._client.call(self._client.aio.artifact("GET", f"{self._root}/{FOLDER}/{name}"))
            except NotFound:
                return ""
            self._texts[name] = data.decode("utf-8", "replace")
        return self._texts[name]

    def _json(self, name: str) -> dict[str, Any]:
        try:
            value = json.loads(self.text(name) or "{}")
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    @property
    def notebook(self) -> str:
        """Path of the notebook, or empty."""
        return self._facts.get("notebook", "")

    @property
    def cell_id(self) -> str:
        """Id of the cell that started the run, or empty."""
        return self._facts.get("cell_id", "")

    @property
    def command(self) -> str:
        """Script with its arguments, or command line, or empty."""
        return self._facts.get("command", "")

    @property
    def cells(self) -> list[dict[str, Any]]:
        """Executed cells in order: source, number, cell_id, started, seconds, status, error."""
        return self._json("cells.json").get("cells", [])

    @property
    def git(self) -> dict[str, Any]:
        """``root``, ``commit``, ``branch``, ``remote``, ``dirty``, ``changed``, ``untracked``, ``message``."""
        return self._json("git.json")

    @property
    def diff(self) -> str:
        """What was not committed."""
        return self.text("changes.diff")

    @property
    def modules(self) -> list[dict[str, Any]]:
        """The user's modules: name, path, sha256, state, and file, under which :meth:`text` has the source."""
        return self._facts.get("modules", [])

    @property
    def requirements(self) -> str:
        """Installed packages, one a line."""
        return self.text("requirements.txt")

    @property
    def environment(self) -> dict[str, Any]:
        """Host, processors, memory, GPUs, Python."""
        return self._json("environment.json")

    @property
    def seeds(self) -> dict[str, Any]:
        """``calls`` that set seeds, ``PYTHONHASHSEED``, ``torch_initial_seed``."""
        return self._facts.get("seeds", {})

    @property
    def remarks(self) -> list[str]:
        """What could not be found out, or was left out."""
        return self._facts.get("remarks", [])

    def code(self) -> str:
        """The executed cells as one text, in the percent format."""
        return self.text("cells.py")

    def to_dict(self) -> dict[str, Any]:
        """All facts."""
        return {**self._facts, "git": self.git, "environment": self.environment, "cells": self.cells}

    def _pairs(self) -> list[tuple[str, Any]]:
        git, host = self.git, self.environment
        changed = [m["name"] for m in self.modules if m.get("state") != "tracked"]
        pairs = [
            ("notebook", self.notebook), ("command", self.command), ("cells", self._facts.get("cells") or ""),
            ("commit", f"{git.get('commit', '')[:12]} {git.get('branch', '')}".strip()),
            ("changes", "not committed" if git.get("dirty") else "none" if git.get("commit") else ""),
            ("own modules", ", ".join(changed)),
            ("seeds", ", ".join(f"{s['call']}({s['value']})" for s in self.seeds.get("calls", [])[-5:])),
            ("python", host.get("python", "")), ("host", host.get("hostname", "")),
            ("remarks", "; ".join(self.remarks)),
        ]
        return [(k, v) for k, v in pairs if v]

    def __repr__(self) -> str:
        return f"<RunContext of {self.run_id[:8]}: {self._facts.get('cells', 0)} cells>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        pairs = [[k, v] for k, v in self._pairs()]
        return {
            "text/plain": render.text_table(["", ""], pairs, ""), "text/html": render.table(["", ""], pairs, "", ""),
        }
