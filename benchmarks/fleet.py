"""Many jobs on an API server of one process: pods without processes, which log a point a second.

For the cost of the control plane on a machine that cannot run a hundred real pods. What speaks from the pods is the
real mirror over real folders; only supervisor and ranks are a thread that writes what they would.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web
from common import REPO

sys.path.insert(0, str(REPO / "tests"))
sys.path.insert(0, str(REPO / "tests" / "integration"))
sys.path.insert(0, str(REPO / "tests" / "drivers"))

from pod_server import PodServer, _state, now

from jupyter_mlops.runtime import berth, journal, mirror
from jupyter_mlops.runtime.jobfolder import JobFolder, private_folder


class _Out:
    """Standard output of a mirror: a message for each flush."""

    def __init__(self, send: Any) -> None:
        self.send = send
        self.held = b""

    def write(self, data: bytes) -> None:
        self.held += data

    def flush(self) -> None:
        data, self.held = self.held, b""
        if data:
            self.send(b"\1" + data)


class FleetServer(PodServer):
    """Jobs run until they are asked to stop."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[str, JobFolder] = {}
        self.messages = 0
        threading.Thread(target=self._work, daemon=True).start()

    async def _pod(self, job: dict[str, Any], index: int, before: int) -> None:
        name = f"{job['metadata']['name']}-{index}-fleet"
        self._new_pod(job, index, name, before)
        folder = JobFolder(private_folder(str(self.work(name) / berth.FOLDER)))
        for path in (folder.attempt(1).path, folder.journal, folder.outputs):
            private_folder(path)
        Path(folder.attempt(1).log_path(0)).write_text("begun\n")
        self.jobs[name] = folder
        self._set(name, phase="Running", initContainerStatuses=[_state("keeper", running={"startedAt": now()})],
                  containerStatuses=[_state("job", running={"startedAt": now()})])

    def _work(self) -> None:
        """Supervisors and ranks of all, evenly over the second."""
        writers: dict[str, journal.Writer] = {}
        step, begun, began = 0, 0.0, time.time()
        while True:
            begun = time.monotonic()
            for name, folder in list(self.jobs.items()):
                if name not in writers:
                    writers[name] = journal.Writer(folder.journal_path(1, 0))
                    writers[name]._syncer = threading.current_thread()  # a thread for each is more than it is worth
                attempt = folder.attempt(1)
                writers[name].metric("x", float(step), step)
                if folder.stop_wish(1) is not None:
                    attempt.write_state({"phase": "canceled", "reason": "stopped", "ranks": [],
                                         "ended_at": time.time()}, False)
                    del self.jobs[name]
                elif step % 2 == 0:
                    attempt.write_state({"phase": "running", "started_at": began, "heartbeat": time.time(), "ranks": [
                        {"rank": 0, "pid": 7, "exit_code": None}]}, False)
                    with open(attempt.usage_path, "a") as f:
                        f.write(json.dumps({"t": round(time.time(), 1), "every": 2.0, "ranks": [
                            [0, 0.01, 34_000_000 + step, 3, None, None]]}) + "\n")
                time.sleep(0.9 / max(len(self.jobs), 1))
            step += 1
            time.sleep(max(1.0 - (time.monotonic() - begun), 0.05))

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        socket = web.WebSocketResponse(protocols=("v5.channel.k8s.io",), max_msg_size=0)
        await socket.prepare(request)
        said: queue.Queue[bytes] = queue.Queue()
        out: asyncio.Queue[bytes] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        *_, folder, number = self.command(request)
        told = mirror.Mirror(folder, number, _Out(lambda data: loop.call_soon_threadsafe(out.put_nowait, data)))

        def run() -> None:
            lines = iter(said.get, b"")
            first = json.loads(next(lines))
            told.have, told.parts = dict(first.get("have") or {}), dict(first.get("parts") or {})
            threading.Thread(target=told.listen, args=(lines,), daemon=True).start()
            told.run()
            loop.call_soon_threadsafe(out.put_nowait, b"")

        async def hear() -> None:
            async for message in socket:
                if message.type is WSMsgType.BINARY and message.data[:1] == b"\0":
                    for line in message.data[1:].splitlines(True):
                        said.put(line)
            said.put(b"")

        threading.Thread(target=run, daemon=True).start()
        hearing = asyncio.ensure_future(hear())
        try:
            while data := await out.get():
                self.messages += 1
                await socket.send_bytes(data)
            await socket.send_bytes(b"\3" + b'{"status": "Success"}')
            await socket.close()
        finally:
            said.put(b"")
            hearing.cancel()
            self._open.discard(task)
            name = request.path.split("/")[-2]
            if os.path.exists(os.path.join(folder, mirror.DRAINED)):
                self._set(name, phase="Failed", initContainerStatuses=[_state("keeper", terminated={"exitCode": 0})],
                          containerStatuses=[_state("job", terminated={"exitCode": 1})])
        return socket


def main() -> int:
    """Print what ``FLEET_JOBS`` running jobs (at most 200) cost the control plane, and MLflow apart from it."""
    from clusters import cpu
    from common import report
    from conftest import Plane, make_home, wait_for

    count, repeat, seconds = int(os.environ.get("FLEET_JOBS", "100")), int(os.environ.get("BENCH_REPEAT", "3")), 20.0
    server = FleetServer().start()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JUPYTER_MLOPS_KUBECONFIG"] = str(server.kubeconfig(Path(folder)))
        plane = Plane(make_home()).start().mlflow_ready()
        try:
            plane.put("computes/gpu", {"type": "kubernetes", "namespace": "team", "context": "emulated",
                                       "training": {"image": "image:1", "hold": 60}})
            for number in range(count):
                plane.put(f"jobs/fleet-{number}", {"compute": "gpu", "cell": {"source": "1"}})

            def running() -> bool:
                return all(j["status"]["phase"] == "Running" for j in plane.get("jobs?limit=200")["items"])

            wait_for(running, 300, 1.0)
            time.sleep(10)
            assert plane.process is not None
            child = plane.get("/api/v1/workspaces/default")["mlflow"]["pid"]
            both = {"the control plane": plane.process.pid, "MLflow": child}
            used: dict[str, list[float]] = {name: [] for name in both}
            for _ in range(repeat):
                before = {name: cpu(pid) for name, pid in both.items()}
                time.sleep(seconds)
                for name, pid in both.items():
                    used[name].append((cpu(pid) - before[name]) / seconds * 100)
            report(f"the control plane for {count} running jobs on an emulated cluster", "% of a core",
                   used["the control plane"], None, 5)
            print(f"MLflow meanwhile, counted apart: {', '.join(f'{v:.0f}' for v in used['MLflow'])} % of a core")
        finally:
            plane.stop()
            server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
