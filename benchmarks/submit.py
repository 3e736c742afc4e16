"""From submitting a cell to the first line of its code, one process; beside plain ``python script.py``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import in_turn, report

SCRIPT = "import time; open({!r}, 'w').write(repr(time.time()))\n"


def main() -> None:
    """Print how much later than a plain script a cell's first line runs."""
    from conftest import Plane, make_home, wait_for

    plane = Plane(make_home()).start().mlflow_ready()
    folder = Path(tempfile.mkdtemp(prefix="mlops-bench-"))
    number = 0
    try:
        from jupyter_mlops.client import Client

        client = Client(plane.place)
        client.workspace()

        def ours() -> float:
            nonlocal number
            number += 1
            mark = folder / f"ours-{number}"
            begin = time.time()
            client.put_job(f"bench-{number}", {
                "cell": {"source": SCRIPT.format(str(mark))}, "cwd": str(folder), "interpreter": sys.executable,
            })
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

        ours()
        a, b = in_turn(9, ours, peer)
    finally:
        plane.stop()
    import statistics

    extra = statistics.median(a) - statistics.median(b)
    report("cell submitted until its first line / python script.py", "s", a, b, 0.4, judged=extra)


if __name__ == "__main__":
    main()
