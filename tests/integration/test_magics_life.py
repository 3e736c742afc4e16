"""Client and CLI over the life of the control plane: started from anywhere, killed, moved, stopped."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import end_all, make_home, wait_for

from jupyter_mlops.client import AsyncClient, Client
from jupyter_mlops.core.errors import (
    Forbidden,
    Gone,
    MlopsError,
    PreconditionFailed,
    Unauthenticated,
    Unavailable,
    VersionMismatch,
)
from jupyter_mlops.runtime import locate

REPO = Path(__file__).resolve().parents[2]


def environment(home: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "JUPYTER_MLOPS_HOME": str(home), "PYTHONPATH": str(REPO), **more}


def cli(home: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, "-m", "jupyter_mlops.cli", *words], capture_output=True, text=True, timeout=90,
        env=environment(home), cwd=home, input="",
    )
    assert done.returncode == code, (words, done.stdout, done.stderr)
    return done


SHELL = """
from IPython.core.interactiveshell import InteractiveShell
ip = InteractiveShell.instance()
ip.run_line_magic("load_ext", "jupyter_mlops")
state = ip.run_line_magic("mlops", "status")
print(state["pid"], state["tracking_in_force"]["ours"])
"""


def test_plain_ipython_starts_it_and_the_terminal_stops_it(tmp_path) -> None:
    home = make_home()
    try:
        done = subprocess.run(
            [sys.executable, "-c", SHELL], capture_output=True, text=True, timeout=60, cwd=tmp_path,
            env=environment(home, IPYTHONDIR=str(tmp_path)),
        )
        assert done.returncode == 0, done.stderr
        pid, ours = done.stdout.split()[-2:]
        assert ours == "True"
        assert locate.info(locate.Place(str(home), "default"))["pid"] == int(pid)  # it outlives who started it
        assert f"(pid {pid}) has ended" in cli(home, "down").stderr
        assert not locate.start_time(int(pid))
        assert "no control plane runs" in cli(home, "down").stderr
        assert locate.info(locate.Place(str(home), "default")) is None
    finally:
        end_all(home)


def test_down_all_lists_and_stops_jobs(plane) -> None:
    (plane.home / "long.py").write_text("import time\ntime.sleep(300)\n")
    cli(plane.home, "train", "long.py", "-n", "long")
    plane.wait_job("long", phases=("Running",))
    refused = cli(plane.home, "down", "--all", code=2)
    assert "jobs: long" in refused.stderr and "add --yes" in refused.stderr
    assert plane.get("jobs/long")["status"]["phase"] == "Running"
    done = cli(plane.home, "down", "--all", "--yes")
    assert "1 job(s)" in done.stderr
    plane.process.wait(20)
    wait_for(lambda: not [p for p in _running(plane.home) if "long.py" in p])


def _running(home: Path) -> list[str]:
    import psutil

    found = []
    for process in psutil.process_iter(["cmdline"]):
        text = " ".join(process.info["cmdline"] or [])
        if str(home) in text:
            found.append(text)
    return found


def test_a_silent_control_plane_is_named_and_ended_by_force(plane) -> None:
    os.kill(plane.process.pid, 19)  # SIGSTOP
    done = cli(plane.home, "down", code=1)
    assert f"(pid {plane.process.pid}) does not answer" in done.stderr and "down --force" in done.stderr
    assert "has ended" in cli(plane.home, "down", "--force").stderr
    plane.process.wait(10)


class Squatter:
    """Somebody else on the control plane's old port, noting what is sent to it."""

    def __init__(self, port: int) -> None:
        self.heard: list[bytes] = []
        self._server = socket.socket()
        self._server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._server.bind(("127.0.0.1", port))
        self._server.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._server.accept()
            except OSError:
                return
            peer.settimeout(1)
            try:
                self.heard.append(peer.recv(65536))
            except OSError:
                pass
            peer.close()

    def close(self) -> None:
        self._server.close()


def test_the_client_follows_and_never_tells_a_squatter(plane) -> None:
    with Client(plane.place) as client:
        first = client.status()
        plane.kill()
        squatter = Squatter(int(first["url"].split(":")[2].split("/")[0]))
        try:
            second = client.status()  # starts it again, on another port
            assert second["pid"] != first["pid"] and second["url"] != first["url"]
            assert client.call(client.aio.whoami())["role"] == "owner"
            assert client.tracking_uri == second["tracking_uri"]
        finally:
            squatter.close()
        assert not any(b"Bearer" in text for text in squatter.heard)


JOB = """import sys, time
for i in range(40):
    print("line", i, "\\u00e4" * 5, flush=True)
    time.sleep(0.1)
"""


async def _watch(place: locate.Place, seen: list[str]) -> None:
    async with AsyncClient(place, may_start=False) as client:  # who follows the log starts it again
        since = (await client.changes())["seq"]
        seen.append("watching")
        async for item in client.watch(since, wait=5):
            seen.append(f"{item['name']} {item['phase']}")
            if "lines Completed" in seen:
                return


def test_a_followed_log_has_no_gap_and_no_repeat_over_kill_9(plane) -> None:
    (plane.home / "lines.py").write_text(JOB, encoding="utf-8")
    seen: list[str] = []
    threading.Thread(target=asyncio.run, args=(_watch(plane.place, seen),), daemon=True).start()
    with Client(plane.place) as client:
        wait_for(lambda: seen)
        spec = {"script": "lines.py", "cwd": str(plane.home), "interpreter": sys.executable}
        job = client.submit_job(spec, "lines")
        with pytest.raises(PreconditionFailed):
            client.call(client.aio.put_job("lines", spec, new=True))
        parts = []
        killed = False
        for text in job.follow():
            parts.append(text)
            if not killed and "line 8" in "".join(parts):
                killed = True
                plane.kill()
        assert killed
        assert "".join(parts) == "".join(f"line {i} {'ä' * 5}\n" for i in range(40))
        assert job.wait(30).exit_code == 0
        wait_for(lambda: "lines Completed" in seen)  # the change feed was followed as well
        assert "lines Running" in seen[: seen.index("lines Completed")]
        assert job.logs(tail=1) == f"line 39 {'ä' * 5}\n" and job.logs() == "".join(parts)
        job.delete()
        assert len(client.jobs()) == 0


def test_old_changes_are_gone_and_versions_must_fit(shared_plane) -> None:
    with Client(shared_plane.place) as client:
        with pytest.raises(Gone):
            client.call(client.aio.changes(10**15))
        with pytest.raises(VersionMismatch) as mismatch:
            client.call(client.aio._call("GET", "", headers={locate.VERSION_HEADER: "9.9.9"}))
        assert "same jupyter-mlops" in mismatch.value.hint
        reader = Client(shared_plane.place, role="reader")
        with pytest.raises(Forbidden):
            reader.call(reader.aio.put_endpoint("x", {}))


def test_without_a_right_to_start_it_says_so(tmp_path) -> None:
    place = locate.Place(str(tmp_path / "none"), "default")
    with Client(place, may_start=False) as client, pytest.raises(Unavailable) as raised:
        client.status()
    assert "does not answer" in raised.value.message and raised.value.hint


def test_names_are_encoded(shared_plane) -> None:
    with Client(shared_plane.place) as client:
        for name in ("../jobs", "a/b", "ä ö", "%2e%2e", "a?b=c#d", ".."):
            with pytest.raises(MlopsError) as raised:
                client.model(name)
            assert raised.value.status in (400, 404), (name, raised.value)


def test_a_control_plane_by_address_and_token(shared_plane, monkeypatch) -> None:
    monkeypatch.setenv("JUPYTER_MLOPS_HOME", "/nowhere")
    with Client(url=shared_plane.url, token=shared_plane.token()) as client:
        assert client.status()["home"] == str(shared_plane.home)
        assert client.tracking_uri == shared_plane.tracking_uri
    with Client(url=shared_plane.url, token="wrong") as client, pytest.raises(Unauthenticated):
        client.status()


def test_the_token_of_env_ends_with_its_shell(plane) -> None:
    script = f"{sys.executable} -m jupyter_mlops.cli env --json"
    done = subprocess.run(
        ["bash", "-c", f"{script}; true"], capture_output=True, text=True, timeout=60, env=environment(plane.home),
        start_new_session=True,
    )
    token = json.loads(done.stdout)["MLFLOW_TRACKING_TOKEN"]
    wait_for(lambda: plane.call("GET", "/api/v1/whoami", token=token)[0] == 401, 20, 0.5)



