"""Run all benchmarks, print their JSON lines as they come, then a table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Returns 1 when a script failed or a figure is not met."""
    scripts = [HERE / f"{n}.py" for n in sys.argv[1:]] or sorted(
        p for p in HERE.glob("*.py") if p.name not in ("run.py", "common.py", "lean.py", "peers.py", "bare_asgi.py")
    )
    rows, failed = [], []
    for script in scripts:
        process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                print(line, end="", flush=True)
                rows.append(json.loads(line))
        if process.wait():
            failed.append(script.name)
    print(f"\n{'figure':58} {'ours':>10} {'peer':>10} {'ratio':>7} {'target':>8}  met")
    for r in rows:
        peer = "-" if r["peer"] is None else f"{r['peer']:g}"
        ratio = "-" if r["ratio"] is None else f"{r['ratio']:.3f}"
        name = f"{r['name']} [{r['unit']}]"
        print(f"{name:58} {r['ours']:>10g} {peer:>10} {ratio:>7} {r['target']:>8g}  {'yes' if r['met'] else 'NO'}")
    for name in failed:
        print(f"{name} failed")
    return 1 if failed or not all(r["met"] for r in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
