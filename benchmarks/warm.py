"""From submitting a cell to the first collective of its 2 ranks, warm; beside ``torchrun`` on the same code."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import in_turn, report

CODE = """
import os, time
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
x = torch.ones(1)
dist.all_reduce(x)
assert x.item() == 2
if dist.get_rank() == 0:
    with open({!r} + ".part", "w") as f:
        f.write(repr(time.time()))
    os.replace({!r} + ".part", {!r})
dist.destroy_process_group()
"""
REPETITIONS = 9


def main() -> None:
    """Print the figure."""
    from conftest import Plane, make_home, wait_for

    plane = Plane(make_home(), warm=True).start().mlflow_ready()
    folder = Path(tempfile.mkdtemp(prefix="mlops-bench-"))
    number = 0

    def submit() -> float:
        nonlocal number
        number += 1
        mark = folder / f"ours-{number}"
        source = CODE.format(*[str(mark)] * 3)
        begin = time.time()
        plane.put(f"jobs/bench-{number}", {
            "cell": {"source": source}, "interpreter": sys.executable,
            "distribution": {"type": "pytorch", "process_count_per_instance": 2}})
        text = wait_for(lambda: mark.exists() and mark.read_text(), 60, 0.01)
        assert plane.wait_job(f"bench-{number}", 60)["status"]["phase"] == "Completed"
        return float(text) - begin

    def waiting() -> bool:
        processes = plane.get("doctor")["processes"]
        return any(p["what"].startswith("process that waits") and p["memory_bytes"] > 100e6 for p in processes)

    def ours() -> float:
        wait_for(waiting, 60)
        time.sleep(1.5)  # torch is imported once the memory is there; give it the rest
        return submit()

    def peer() -> float:
        mark = folder / "peer"
        mark.unlink(missing_ok=True)
        script = folder / "script.py"
        script.write_text(CODE.format(*[str(mark)] * 3))
        env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
        begin = time.time()
        subprocess.run(command, check=True, cwd=folder, env=env)
        return float(mark.read_text()) - begin

    try:
        cold = submit()  # the first job that uses torch; from now on a process waits
        print(f"the first one, cold: {cold:.2f} s", file=sys.stderr)
        a, b = in_turn(REPETITIONS, ours, peer)
    finally:
        plane.stop()
        shutil.rmtree(folder, ignore_errors=True)
    report("cell submitted until the first collective of 2 ranks / torchrun", "s", a, b, 0.3)


if __name__ == "__main__":
    main()
