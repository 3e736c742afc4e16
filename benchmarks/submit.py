"""From submitting a cell to the first line of its code, one process; beside plain ``python script.py``."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import in_turn, report

SCRIPT = "import time; open({!r}, 'w').write(repr(time.time()))\n"


def main() -> None:
    """Print how much later than a plain script's a cell's first line runs."""
    from conftest import Plane, make_home, wait_for
    from IPython.core.interactiveshell import InteractiveShell

    plane = Plane(make_home()).start().mlflow_ready()
    folder = Path(tempfile.mkdtemp(prefix="mlops-bench-"))
    os.environ.update(JUPYTER_MLOPS_HOME=str(plane.home), IPYTHONDIR=str(folder / "ipython"))
    os.chdir(folder)
    number = 0
    try:
        shell = InteractiveShell.instance()
        shell.run_line_magic("load_ext", "jupyter_mlops")

        def ours() -> float:
            nonlocal number
            number += 1
            mark = folder / f"ours-{number}"
            begin = time.time()
            shell.run_cell_magic("mlops", f"train -n bench-{number}", SCRIPT.format(str(mark)))
            text = wait_for(lambda: mark.exists() and mark.read_text(), 30, 0.01)
            plane.wait_job(f"bench-{number}", 30)
            return float(text) - begin

        def peer() -> float:
            mark = folder / "peer"
            script = folder / "script.py"
            script.write_text(SCRIPT.format(str(mark)))
            begin = time.time()
            subprocess.run([sys.executable, str(script)], check=True, cwd=folder)
            return float(mark.read_text()) - begin

        ours()  # the first one imports the client
        a, b = in_turn(9, ours, peer)
    finally:
        plane.stop()
    extra = statistics.median(a) - statistics.median(b)
    report("cell submitted until its first line / python script.py", "s", a, b, 0.4, judged=extra)


if __name__ == "__main__":
    main()
