"""``%load_ext jupyter_mlops`` in a bare IPython, beside ``import mlflow``."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from common import REPO, in_turn, report

OURS = """
import time
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
import sys
begin = time.perf_counter()
shell.run_line_magic("load_ext", "jupyter_mlops")
took = time.perf_counter() - begin
heavy = [m for m in ("mlflow", "torch", "kubernetes", "pandas") if m in sys.modules]
assert not heavy, heavy
print(took * 1000)
"""
PEER = "import time; b = time.perf_counter(); import mlflow; print((time.perf_counter() - b) * 1000)"


def main() -> None:
    """Print the figure."""
    from conftest import Plane, make_home

    plane = Plane(make_home()).start().mlflow_ready()
    with tempfile.TemporaryDirectory() as ipython:
        env = {**os.environ, "PYTHONPATH": str(REPO), "JUPYTER_MLOPS_HOME": str(plane.home), "IPYTHONDIR": ipython}

        def timed(code: str) -> float:
            out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
            return float(out.stdout.strip().splitlines()[-1])

        try:
            ours, peer = in_turn(9, lambda: timed(OURS), lambda: timed(PEER))
        finally:
            plane.stop()
    report("%load_ext jupyter_mlops / import mlflow", "ms", ours, peer, 150)


if __name__ == "__main__":
    main()
