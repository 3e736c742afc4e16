"""What recording costs: time added to a cell, and to the submission of a job; beside the bare shell."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import report

CELLS = 400


def timed(hook: Callable[[Any], None], added: list[float]) -> Callable[[Any], None]:
    """The hook, which notes the milliseconds that it takes."""

    def work(argument: Any) -> None:
        begin = time.perf_counter()
        hook(argument)
        added.append((time.perf_counter() - begin) * 1000)

    return work


def late(values: list[float]) -> float:
    """The 99th percentile."""
    return sorted(values)[int(0.99 * len(values))]


def main() -> None:
    """Print the time that the hooks add to a cell, median and 99th percentile, and that a submission takes longer."""
    folder = Path(tempfile.mkdtemp(prefix="mlops-bench-"))
    os.environ.update(IPYTHONDIR=str(folder / "ipython"), JUPYTER_MLOPS_HOME=str(folder / "home"))
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    for i in range(40):
        (folder / f"helper{i}.py").write_text(f"value = {i}\n" * 200)
    commit = "git init -q . && git add helper1* && git -c user.name=n -c user.email=a@b.example commit -qm one"
    subprocess.run(commit, shell=True, check=True)  # noqa: S602
    from IPython.core.interactiveshell import InteractiveShell

    from jupyter_mlops.capture import bundle, hooks

    shell = InteractiveShell.instance()
    shell.run_cell("\n".join(f"import helper{i}" for i in range(40)))

    def cells() -> list[float]:
        took = []
        for i in range(CELLS):
            source = f"x{i} = {i}\n" + "# words about this cell\n" * 40
            begin = time.perf_counter()
            shell.run_cell(source, store_history=True, silent=False)
            took.append((time.perf_counter() - begin) * 1000)
        return took

    cells()
    bare = cells()
    recorder = hooks.install(shell)
    added: list[float] = []
    for event, hook in (("pre_run_cell", recorder._before), ("post_run_cell", recorder._after)):
        shell.events.unregister(event, hook)
        shell.events.register(event, timed(hook, added))
    cells()
    ours = [a + b for a, b in zip(added[::2], added[1::2], strict=True)]
    report("time that recording adds to a cell / the bare cell", "ms", ours, bare, 20)
    report("the same, 99th percentile", "ms", [late(ours)], [late(bare)], 20)

    first: list[float] = []
    again: list[float] = []
    for took in (first, *[again] * 9):
        shell.run_cell("y = 1", store_history=True)
        begin = time.perf_counter()
        bundle.collect(recorder.around({"cell": {"source": "import helper1"}, "cwd": str(folder)})).packed()
        took.append((time.perf_counter() - begin) * 1000)
    report(f"context of a submission, {2 * CELLS} cells and 40 modules: the first", "ms", first, None, 2000)
    report("context of a submission: a later one", "ms", again, None, 500, judged=statistics.median(again))
    hooks.uninstall(shell)


if __name__ == "__main__":
    main()
