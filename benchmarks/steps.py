"""Steps a second of a small data-parallel training that logs one metric a step, beside the same under ``torchrun``.

The peer logs nothing at all: what is compared is the whole price of running under us. Only steps in the steady middle
count; both are started in turn, and the medians are compared.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import in_turn, report

CODE = """
import os, time
import torch
import torch.distributed as dist
{imports}
torch.manual_seed(0)
dist.init_process_group("gloo")
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Sequential(
    torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
x, y = torch.randn(256, 256), torch.randint(0, 10, (256,))
for step in range({warm_up} + {steps}):
    if step == {warm_up}:
        dist.barrier()
        begin = time.perf_counter()
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    value = loss.item()
    {log}
dist.barrier()
if dist.get_rank() == 0:
    with open({mark!r} + ".part", "w") as f:
        f.write(repr({steps} / (time.perf_counter() - begin)))
    os.replace({mark!r} + ".part", {mark!r})
dist.destroy_process_group()
"""
WARM_UP, STEPS, REPETITIONS = 300, 500, 4


def main() -> None:
    """Print the figure; the ratio of the medians is judged."""
    from conftest import Plane, make_home, wait_for

    plane = Plane(make_home()).start().mlflow_ready()
    folder = Path(tempfile.mkdtemp(prefix="mlops-bench-"))
    number = 0

    def code(mark: Path, imports: str, log: str) -> str:
        return CODE.format(mark=str(mark), imports=imports, log=log, warm_up=WARM_UP, steps=STEPS)

    def ours() -> float:
        nonlocal number
        number += 1
        mark = folder / f"ours-{number}"
        source = code(mark, "import mlflow", "if dist.get_rank() == 0: mlflow.log_metric('loss', value, step=step)")
        plane.put(f"jobs/bench-{number}", {
            "cell": {"source": source}, "interpreter": sys.executable,
            "distribution": {"type": "pytorch", "process_count_per_instance": 2}})
        text = wait_for(lambda: mark.exists() and mark.read_text(), 120, 0.1)
        plane.wait_job(f"bench-{number}", 120)
        return float(text)

    def peer() -> float:
        mark = folder / "peer"
        mark.unlink(missing_ok=True)
        script = folder / "script.py"
        script.write_text(code(mark, "", "pass"))
        env = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 2)), "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
        # Now and then torch aborts while a process ends, with gloo and without us; the figure is written by then.
        done = subprocess.run(command, check=False, cwd=folder, env=env, capture_output=True, timeout=120)
        if not mark.exists():
            raise RuntimeError(done.stderr[-2000:].decode())
        return float(mark.read_text())

    try:
        a, b = in_turn(REPETITIONS, ours, peer)
    finally:
        plane.stop()
        shutil.rmtree(folder, ignore_errors=True)
    ratio = statistics.median(a) / statistics.median(b)
    report("training steps, a metric each / torchrun, none", "1/s", a, b, 0.99, lower_is_better=False, judged=ratio)


if __name__ == "__main__":
    main()
