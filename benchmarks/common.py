"""What benchmarks share: repetitions, medians, and one JSON line per figure."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))
sys.path.insert(0, str(REPO / "tests"))


def report(
    name: str, unit: str, ours: list[float], peer: list[float] | None, target: float, *, lower_is_better: bool = True,
    judged: float | None = None,
) -> None:
    """Print one figure.

    Args:
        ours, peer: one value per repetition; medians are shown, with all values under ``runs``.
        target: what ``judged`` (default: our median) must not exceed, or reach when higher is better.
    """
    mine = statistics.median(ours)
    theirs = statistics.median(peer) if peer else None
    value = mine if judged is None else judged
    print(json.dumps({
        "name": name, "unit": unit, "ours": round(mine, 4), "peer": None if theirs is None else round(theirs, 4),
        "ratio": None if not theirs else round(mine / theirs, 4), "target": target,
        "met": value <= target if lower_is_better else value >= target,
        "runs": {"ours": [round(v, 4) for v in ours], "peer": [round(v, 4) for v in peer or []]},
    }), flush=True)


def in_turn(repetitions: int, ours: Callable[[], float], peer: Callable[[], float]) -> tuple[list[float], list[float]]:
    """Run both alternately, so that noise of the machine meets both alike."""
    a, b = [], []
    for _ in range(repetitions):
        a.append(ours())
        b.append(peer())
    return a, b


def pss(pid: int) -> int:
    """Proportional set size of a process in bytes."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    import psutil

    try:
        process = psutil.Process(pid)
        return [pid, *(p.pid for p in process.children(recursive=True))]
    except psutil.Error:
        return []
