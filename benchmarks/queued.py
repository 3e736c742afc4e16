"""Many jobs that do nothing, submitted at once, on a compute of two CPUs; beside the bare processes, two at a time.

    python benchmarks/queued.py [COUNT]
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from common import report

COUNT = 1000
AT_ONCE = 2


def main() -> None:
    """Print what the queue adds to each job, how quickly a page of the list comes meanwhile, and what memory grows."""
    from conftest import Plane, make_home

    count = int(sys.argv[1]) if len(sys.argv) > 1 else COUNT
    folder = Path(tempfile.mkdtemp(prefix="mlops-bench-"))
    script = folder / "noop.py"
    script.write_text("")
    bare = _bare(script, count)
    plane = Plane(make_home()).start().mlflow_ready()
    try:
        _submit(plane, script, "warm", 4)
        before = _rss(plane.process.pid)
        began = time.perf_counter()
        pages: list[float] = []
        watcher = threading.Thread(target=_watch, args=(plane, pages))
        watcher.start()
        _submit(plane, script, "job", count)
        submitted = time.perf_counter() - began
        watcher.join()
        total = time.perf_counter() - began
        jobs = _all(plane)
        grown = _rss(plane.process.pid) - before
        phases = [job["status"]["phase"] for job in jobs]
        assert phases == ["Completed"] * (count + 4), {phase: phases.count(phase) for phase in phases}
        starts = [job["status"]["started_at"] for job in jobs if job["name"].startswith("job-")]
    finally:
        plane.stop()
    late = max(sorted(starts, reverse=True).index(at) - place for place, at in enumerate(starts))
    print(f"# {count} jobs in {total:.1f} s (submitted in {submitted:.1f} s), bare {bare:.1f} s, out of turn by {late}")
    extra = [(total - bare) / count * 1000]
    report(f"{count} queued no-op jobs: what each takes longer than bare", "ms", extra, [bare / count * 1000], 50)
    pages.sort()
    report("page of 50 jobs while they run, 95th percentile", "ms", [pages[int(len(pages) * 0.95)]], None, 100)
    report("memory that the control plane grows by meanwhile", "MB", [grown / 1e6], None, 50)


def _bare(script: Path, count: int) -> float:
    """Seconds for as many processes, two at a time."""
    left = iter(range(count))
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                if next(left, None) is None:
                    return
            subprocess.run([sys.executable, str(script)], check=True)

    began = time.perf_counter()
    threads = [threading.Thread(target=work) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


class _Client:
    """One connection that stays open."""

    def __init__(self, plane) -> None:  # type: ignore[no-untyped-def]
        parts = urlsplit(plane.url)
        self.base = parts.path + "/api/v1/workspaces/default"
        self.headers = {"Authorization": f"Bearer {plane.token()}", "Content-Type": "application/json"}
        self.connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)

    def call(self, method: str, path: str, body=None) -> dict:  # type: ignore[no-untyped-def]
        """The JSON answer."""
        data = None if body is None else json.dumps(body)
        self.connection.request(method, self.base + ("/" + path if path else ""), data, self.headers)
        response = self.connection.getresponse()
        text = response.read()
        assert response.status < 300, text
        return json.loads(text)


def _submit(plane, script: Path, stem: str, count: int) -> None:  # type: ignore[no-untyped-def]
    client = _Client(plane)
    for index in range(count):
        client.call("PUT", f"jobs/{stem}-{index:04d}", {
            "script": str(script), "interpreter": sys.executable, "experiment_name": "queue",
        })


def _watch(plane, pages: list[float]) -> None:  # type: ignore[no-untyped-def]
    """Look at the first page of the list, as a panel would, until nothing is left to do."""
    client = _Client(plane)
    time.sleep(1)
    while True:
        began = time.perf_counter()
        client.call("GET", "jobs?limit=50")
        pages.append((time.perf_counter() - began) * 1000)
        if not client.call("GET", "")["counts"]["running_jobs"]:
            return
        time.sleep(0.5)


def _all(plane) -> list[dict]:  # type: ignore[no-untyped-def]
    """All jobs, newest first."""
    client, found, token = _Client(plane), [], ""
    while True:
        page = client.call("GET", f"jobs?limit=200{token}")
        found += page["items"]
        if not page["next_token"]:
            return found
        token = f"&page_token={page['next_token']}"


def _rss(pid: int) -> int:
    """Resident bytes of the control plane without MLflow and jobs."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
