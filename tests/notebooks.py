"""Runs a notebook from top to bottom in a kernel of its own, in the workspace of a control plane."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import nbformat
from conftest import REPO, Plane


def execute(notebook: str, folder: Path, plane: Plane) -> Any:
    """The executed notebook; ``folder`` is where its kernel starts."""
    from nbclient import NotebookClient

    clean = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "MLFLOW", "JPY_"))}
    env = {**clean, "JUPYTER_MLOPS_HOME": str(plane.home), "PYTHONPATH": str(REPO),
           "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]}
    document = nbformat.read(REPO / "notebooks" / notebook, as_version=4)
    client = NotebookClient(document, timeout=240, resources={"metadata": {"path": str(folder)}})

    async def run() -> None:
        async with client.async_setup_kernel(env=env):
            for index, cell in enumerate(document.cells):
                if cell.cell_type == "code":
                    await client.async_execute_cell(cell, index)

    asyncio.run(run())
    return document


def text_of(notebook: Any) -> str:
    """All text that the cells have put out."""
    return "\n".join(
        o.get("text", "") or str(o.get("data", {}).get("text/plain", ""))
        for c in notebook.cells if c.cell_type == "code" for o in c.outputs
    )
