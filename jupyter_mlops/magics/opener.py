"""The output of ``%mlops shell``: JupyterLab opens a terminal with it; elsewhere it says what to type in one."""

from __future__ import annotations

import time
from typing import Any

from ..client import render

MIME = "application/vnd.jupyter-mlops.shell+json"


class Opener:
    """A shell that is asked for.

    Args:
        job, rank: beside which.
        workspace: its name.
    """

    def __init__(self, job: str, rank: int, workspace: str) -> None:
        self.job = job
        self.rank = rank
        self.workspace = workspace
        # JupyterLab opens it by itself only when it was asked for just now, not when the notebook is opened again.
        self._asked_at = int(time.time() * 1000)

    def text(self) -> str:
        """What to type."""
        return f"In a terminal: jupyter mlops shell {self.job} --rank {self.rank}"

    def html(self) -> str:
        """The same."""
        return f"In a terminal: {render.code(f'jupyter mlops shell {self.job} --rank {self.rank}')}"

    def to_dict(self) -> dict[str, Any]:
        """``{"job", "rank"}``."""
        return {"job": self.job, "rank": self.rank}

    def __repr__(self) -> str:
        return f"<Shell {self.job} rank {self.rank}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        shell = {"version": 1, "workspace": self.workspace, "name": self.job, "rank": self.rank,
                 "asked_at": self._asked_at}
        return {MIME: shell, "text/plain": self.text(), "text/html": self.html()}
