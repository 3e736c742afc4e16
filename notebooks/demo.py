"""Run ``quickstart.ipynb`` top to bottom, print one line per step, then open JupyterLab on it.

With ``CI=true`` or without a terminal it stops what it started and exits instead; non-zero when a step failed. What it
makes lies in ``demo/``. ``--keep`` leaves the endpoint and the control plane running in that case too.
"""

from __future__ import annotations

import ast
import asyncio
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

HERE = Path(__file__).resolve().parent
DEMO = HERE.parent / "demo"


async def value_of(client: NotebookClient, expression: str) -> str:
    """An expression's value in the kernel, as text."""
    assert client.kc is not None
    reply = await client.kc.execute_interactive(
        "", silent=True, user_expressions={"result": f"str({expression})"}, allow_stdin=False, timeout=60
    )
    result = reply["content"]["user_expressions"]["result"]
    if result["status"] != "ok":
        raise RuntimeError(result["evalue"])
    return str(ast.literal_eval(result["data"]["text/plain"]))


async def run(source: Path, target: Path) -> bool:
    """Execute a notebook; returns whether all went well. The executed copy is written in either case."""
    notebook = nbformat.read(source, as_version=4)
    resources = {"metadata": {"path": str(target.parent)}}
    client = NotebookClient(notebook, timeout=300, resources=resources, extra_arguments=["--log-level=ERROR"])
    began = time.monotonic()
    ok = True
    async with client.async_setup_kernel():
        for index, cell in enumerate(notebook.cells):
            if cell.cell_type != "code":
                continue
            step = cell.metadata.get("mlops", {}).get("step")
            try:
                await client.async_execute_cell(cell, index)
                if step:
                    result = await value_of(client, cell.metadata["mlops"]["result"])
                    print(f"ok   {time.monotonic() - began:6.1f} s  {step}: {result}", flush=True)
            except (CellExecutionError, RuntimeError) as e:
                plain = re.sub(r"\x1b\[[0-9;]*m", "", str(e)).strip().splitlines()
                print(f"FAIL {time.monotonic() - began:6.1f} s  {step or f'cell {index}'}: {plain[-1]}", flush=True)
                ok = False
                break
    nbformat.write(notebook, target)
    return ok


def main() -> int:
    """Entry; returns the exit code."""
    DEMO.mkdir(exist_ok=True)
    os.environ.setdefault("JUPYTER_MLOPS_HOME", str(DEMO / "workspace"))
    os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", "")
    target = DEMO / "quickstart.ipynb"
    ok = asyncio.run(run(HERE / "quickstart.ipynb", target))
    if not ok or os.environ.get("CI") == "true" or not sys.stdin.isatty() or not sys.stdout.isatty():
        if "--keep" not in sys.argv:
            down = [sys.executable, "-m", "jupyter_mlops.cli", "down", "--all", "--yes"]
            subprocess.run(down, stdout=subprocess.DEVNULL, timeout=120)
        return 0 if ok else 1
    print(f"\nOpening JupyterLab on {target}; end it with Ctrl-C. `jupyter mlops down --all` stops what runs behind.")
    os.execvp("jupyter", ["jupyter", "lab", str(target)])


if __name__ == "__main__":
    sys.exit(main())
