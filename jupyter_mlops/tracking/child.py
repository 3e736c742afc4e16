"""The MLflow server as a child process: started, watched, restarted, ended.

Only the standard library is imported here, so that the control plane can start the child first of all, while it is
itself still importing: ``MlflowChild(...).spawn()``, later ``await child.start()`` in the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..runtime import locate
from .processes import cpu_time, is_mlflow, signal_group

#: Seconds of a start without using any processor time after which it counts as failed; and whatever it is doing: making
#: or upgrading the database of a busy machine with a slow disk is in it.
START_IDLE, START_TIMEOUT = 60.0, 900.0
#: By how much the process is nicer than we are.
NICE = 5
#: Seconds that the child is given to end by itself.
STOP_TIMEOUT = 5.0
#: Pauses before the restarts that follow each other; the last one repeats.
BACKOFF = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
#: Seconds of being ready after which an end counts as the first again.
SETTLED = 60.0
#: Failed starts after which the child counts as failed (it is tried further, slowly).
FAILED_AFTER = 4
#: Failed lean starts after which MLflow's own command is used.
LEAN_TRIES = 2
LOG_BYTES = 5_000_000
BACKUPS = 3


class MlflowChild:
    """One MLflow server over ``<home>/mlflow.db`` and ``<home>/artifacts``, on a unix socket.

    Attributes:
        state: ``starting``, ``ready``, ``restarting``, ``failed`` or ``stopped``.
        message: one line for people when it is not ready.
        pid: of the process, or None.
        restarts: how often it was started again after it ended by itself.
        version: of the installed MLflow.
        socket: path of the unix socket.
    """

    #: Seconds between two looks at its health.
    PROBE = 5.0
    #: Seconds without an answer and without using any processor time after which it is frozen: it is replaced.
    FROZEN_IDLE = 20.0
    #: Seconds without an answer after which it is, whatever it is doing.
    FROZEN = 60.0

    def __init__(
        self, home: str | os.PathLike[str], runtime_dir: str | os.PathLike[str],
        on_state: Callable[[MlflowChild], None] | None = None,
    ) -> None:
        self.home = os.fspath(home)
        self.socket = os.path.join(os.fspath(runtime_dir), "mlflow.sock")
        self.artifacts = os.path.join(self.home, "artifacts")
        self.database = os.path.join(self.home, "mlflow.db")
        self.log_path = os.path.join(self.home, "logs", "mlflow.log")
        self._record = os.path.join(self.home, "mlflow.json")
        self.on_state = on_state
        self._process: subprocess.Popen[bytes] | None = None
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._lean_failures = 0
        self._ending = False
        self.state = "stopped"
        self.message = ""
        self.pid: int | None = None
        self.restarts = 0
        self.version = _installed_version()

    # Starting

    def spawn(self) -> None:
        """Start the process without waiting; ends one that a killed control plane left behind first."""
        if self._process is not None and self._process.poll() is None:
            return
        self._end_leftover()
        for folder in (self.home, self.artifacts, os.path.dirname(self.log_path)):
            os.makedirs(folder, mode=0o700, exist_ok=True)
        self._back_up()
        self._bound_log()
        try:
            os.unlink(self.socket)
        except FileNotFoundError:
            pass
        with open(self.log_path, "ab") as log:
            os.chmod(self.log_path, 0o600)
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=self.home, env=self._environment(),
                process_group=0, umask=0o077,
            )
        self.pid = self._process.pid
        with contextlib.suppress(OSError):  # jobs train on the same processors
            os.setpriority(os.PRIO_PROCESS, self.pid, NICE)
        self._write_record({
            "pid": self.pid, "start_time": locate.start_time(self.pid), "version": self.version, "socket": self.socket,
        })
        if self.state == "stopped":
            self._set("starting", "MLflow is starting")

    @property
    def lean(self) -> bool:
        """Whether the one-process form is used; False after it failed to start twice."""
        return self._lean_failures < LEAN_TRIES

    @property
    def _database(self) -> str:
        # Relative to the child's working folder: a "%" or "?" in a folder's name would be read as part of the address.
        return os.path.relpath(self.database, self.home)

    @property
    def _database_uri(self) -> str:
        return "sqlite:///" + self._database

    @property
    def _artifacts_uri(self) -> str:
        return Path(self.artifacts).absolute().as_uri()

    def _command(self) -> list[str]:
        if self.lean:
            return [sys.executable, "-m", "jupyter_mlops.tracking.serve", self.socket, self._database]
        return [
            sys.executable, "-m", "jupyter_mlops.tracking.database", self._database,
            sys.executable, "-m", "mlflow", "server", "--workers", "1", "--backend-store-uri", self._database_uri,
            "--serve-artifacts", "--artifacts-destination", self._artifacts_uri, "--default-artifact-root",
            "mlflow-artifacts:/", "--uvicorn-opts", f"--uds {self.socket} --log-level warning",
        ]

    def _environment(self) -> dict[str, str]:
        # The user's own settings for MLflow clients and our addresses are no business of the server.
        mine = ("MLFLOW_", "_MLFLOW_", "JUPYTER_MLOPS_", "UVICORN_", "FLASK_")
        env = {k: v for k, v in os.environ.items() if not k.startswith(mine)}
        env.update({
            "_MLFLOW_SERVER_FILE_STORE": self._database_uri,
            "_MLFLOW_SERVER_REGISTRY_STORE": self._database_uri,
            "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
            "_MLFLOW_SERVER_ARTIFACT_DESTINATION": self._artifacts_uri,
            "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
            "GIT_PYTHON_REFRESH": "quiet",
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "ignore",
            # Fewer arenas: the thread pool of the server would otherwise spread its memory over many.
            "MALLOC_ARENA_MAX": "2",
        })
        package_parent = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [env.get("PYTHONPATH"), package_parent]))
        return env

    async def start(self) -> None:
        """Watch the process from now on (and start it, when :meth:`spawn` has not); returns at once."""
        if self._task is None or self._task.done():
            self._ending = False
            self._ready.clear()
            self.spawn()
            self._task = asyncio.create_task(self._watch())

    async def ready(self, timeout: float = 10.0) -> bool:
        """Wait until it answers; whether it does within ``timeout`` seconds."""
        if self._ending:
            return False
        if self._ready.is_set():
            # Dead, but not yet noticed: the next requests wait for the restart instead of failing.
            if self._process is not None and self._process.poll() is None:
                return True
            self._ready.clear()
        try:
            await asyncio.wait_for(self._ready.wait(), timeout)
            return not self._ending
        except TimeoutError:
            return False

    async def reconnect(self, until: float) -> bool:
        """After a refused connection: wait for the restart until that loop time; whether to try again."""
        loop = asyncio.get_running_loop()
        if loop.time() >= until:
            return False
        await asyncio.sleep(0.05)  # a process that is being killed may still look alive
        return await self.ready(max(0.0, until - loop.time()))

    async def stop(self) -> None:
        """End the process and the watching; whoever waits for it is told at once."""
        self._ending = True
        self._ready.set()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        process = self._process
        if process is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._end_process, process)
        self._forget_process()
        self._set("stopped", "MLflow is stopped")

    def stop_now(self) -> None:
        """End the process from outside an event loop."""
        if self._process is not None:
            self._end_process(self._process)
        self._forget_process()

    # Watching

    async def _watch(self) -> None:
        failures = 0
        while True:
            try:
                answered = await self._await_answer()
                if answered:
                    began = time.monotonic()
                    self._lean_failures = 0 if self.lean else self._lean_failures
                    self._ready.set()
                    self._set("ready", "")
                    ended = await self._await_end()
                    self._ready.clear()
                    failures = 0 if time.monotonic() - began > SETTLED else failures
                    self.message = f"MLflow {'ended' if ended else 'was frozen'} and is being restarted"
                else:
                    failures += 1
                    if self.lean:
                        self._lean_failures += 1
                    self.message = self._why()
                await self._after_end(failures)
            except asyncio.CancelledError:
                self._ready.clear()
                raise
            except Exception as error:  # a full disk, say: tried again like a process that ends
                failures += 1
                self._ready.clear()
                self._set("failed" if failures >= FAILED_AFTER else "restarting", f"MLflow cannot be started: {error}")
                await asyncio.sleep(BACKOFF[min(failures, len(BACKOFF) - 1)])

    async def _after_end(self, failures: int) -> None:
        """Clear away what is left of an ended or silent process, wait, and start the next one."""
        process = self._process
        if process is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._end_process, process)
        self._forget_process()
        self._set("failed" if failures >= FAILED_AFTER else "restarting", self.message)
        await asyncio.sleep(BACKOFF[min(failures, len(BACKOFF) - 1)])
        self.restarts += 1
        self.spawn()

    async def _await_answer(self) -> bool:
        """Whether the process answers before it ends or the time is over."""
        begun = moved = time.monotonic()
        used: float | None = None
        while (now := time.monotonic()) < min(begun + START_TIMEOUT, moved + START_IDLE):
            if self._process is None or self._process.poll() is not None:
                return False
            if await self._answers():
                return True
            if (spent := cpu_time(self._process.pid)) != used:
                used, moved = spent, now
            await asyncio.sleep(0.02)
        return False

    async def _answers(self, patience: float = 10.0) -> bool:
        if not os.path.exists(self.socket):
            return False
        try:
            async with asyncio.timeout(patience):
                reader, writer = await asyncio.open_unix_connection(self.socket)
                try:
                    writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    return b" 200 " in await reader.readline()
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return False

    async def _await_end(self) -> bool:
        """Return when the process has ended (True), or is frozen and was killed (False)."""
        process = self._process
        assert process is not None
        loop = asyncio.get_running_loop()
        try:
            descriptor = os.pidfd_open(process.pid)
        except (AttributeError, OSError):
            descriptor = -1
        ended = asyncio.Event()
        if descriptor >= 0:
            loop.add_reader(descriptor, ended.set)
        frozen = asyncio.create_task(self._await_frozen(process.pid, ended))
        try:
            while process.poll() is None:
                try:
                    await asyncio.wait_for(ended.wait(), 30 if descriptor >= 0 else 0.2)
                except TimeoutError:
                    self._bound_log()
                if frozen.done() and frozen.exception() is None and process.poll() is None:
                    # It cannot end by itself, nor write anything more.
                    signal_group(process.pid, signal.SIGKILL)
                    await loop.run_in_executor(None, process.wait)
                    return False
            return True
        finally:
            frozen.cancel()
            if descriptor >= 0:
                loop.remove_reader(descriptor)
                os.close(descriptor)

    async def _await_frozen(self, pid: int, wake: asyncio.Event) -> None:
        """Return, and set ``wake``, when the process answers no more; one that is merely busy uses processor time."""
        tick = self.PROBE / 5
        while True:
            await asyncio.sleep(self.PROBE)
            asked = asyncio.create_task(self._answers(self.FROZEN))
            silent = idle = 0.0
            used, last = cpu_time(pid), time.monotonic()
            try:
                while not asked.done() or not asked.result():
                    if asked.done():
                        asked = asyncio.create_task(self._answers(self.FROZEN))
                    await asyncio.wait([asked], timeout=tick)
                    now, spent = time.monotonic(), cpu_time(pid)
                    # While we were stopped ourselves, nobody had a chance to answer.
                    passed = min(now - last, 2 * tick)
                    last, silent = now, silent + passed
                    idle = idle + passed if spent is not None and spent == used else 0.0
                    used = spent
                    if not asked.done() and (idle >= self.FROZEN_IDLE or silent >= self.FROZEN):
                        wake.set()
                        return
                    if asked.done() and not asked.result():
                        await asyncio.sleep(tick)  # refused at once
            finally:
                asked.cancel()

    def _why(self) -> str:
        """The last line of the log that tells why a start failed."""
        try:
            with open(self.log_path, "rb") as f:
                f.seek(max(0, os.fstat(f.fileno()).st_size - 4000))
                lines = [line.strip() for line in f.read().decode("utf-8", "replace").splitlines() if line.strip()]
        except OSError:
            lines = []
        return f"MLflow does not start: {lines[-1][:300] if lines else 'no message'} (see {self.log_path})"

    # Ending

    def _end_process(self, process: subprocess.Popen[bytes]) -> None:
        """TERM, then KILL, to the process and what it started."""
        if process.poll() is None:
            signal_group(process.pid, signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                pass
        signal_group(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdin is not None:
            process.stdin.close()

    def _end_leftover(self) -> None:
        record = locate.read_json(self._record)
        pid, started = record.get("pid"), record.get("start_time")
        if not isinstance(pid, int) or not locate.alive(pid, started) or not is_mlflow(pid, str(record.get("socket"))):
            return
        signal_group(pid, signal.SIGTERM)
        until = time.monotonic() + STOP_TIMEOUT
        while locate.alive(pid, started) and time.monotonic() < until:
            time.sleep(0.02)
        if locate.alive(pid, started):
            signal_group(pid, signal.SIGKILL)
            while locate.alive(pid, started):
                time.sleep(0.01)

    def _forget_process(self) -> None:
        self._process = None
        self.pid = None
        record = locate.read_json(self._record)
        self._write_record({"version": record.get("version", self.version)})

    # Files

    def _write_record(self, record: dict[str, Any]) -> None:
        temporary = f"{self._record}.{os.getpid()}"
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as f:
            json.dump(record, f)
        os.replace(temporary, self._record)

    def _back_up(self) -> None:
        """Copy the database before another MLflow version, which upgrades it by itself, opens it."""
        last = locate.read_json(self._record).get("version")
        if not last or last == self.version or not os.path.exists(self.database):
            return
        import sqlite3

        folder = os.path.join(self.home, "backups")
        os.makedirs(folder, mode=0o700, exist_ok=True)
        target = os.path.join(folder, f"mlflow-{last}-{time.strftime('%Y%m%dT%H%M%S')}.db")
        source, copy = sqlite3.connect(self.database), sqlite3.connect(target)
        try:
            os.chmod(target, 0o600)
            with copy:
                source.backup(copy)
        finally:
            copy.close()
            source.close()
        kept = sorted((n for n in os.listdir(folder) if n.startswith("mlflow-")), key=lambda n: n[-18:])
        for name in kept[:-BACKUPS]:
            os.unlink(os.path.join(folder, name))

    def _bound_log(self) -> None:
        """Keep the last part of the log beside it and empty it; the child writes on, since it appends."""
        try:
            if os.path.getsize(self.log_path) <= LOG_BYTES:
                return
            with open(self.log_path, "rb") as source, open(self.log_path + ".1", "wb") as target:
                os.chmod(self.log_path + ".1", 0o600)
                source.seek(-LOG_BYTES, os.SEEK_END)
                target.write(source.read())
            os.truncate(self.log_path, 0)
        except OSError:
            pass

    def _set(self, state: str, message: str) -> None:
        changed = (state, message) != (self.state, self.message) or state == "restarting"
        self.state, self.message = state, message
        if changed and self.on_state is not None:
            self.on_state(self)


def _installed_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("mlflow")
    except PackageNotFoundError:
        return ""
