"""Captured requests of this workspace, as the control plane deals with them: by a process that ends with its task.

pyarrow alone takes more memory than the control plane; so ``serving/collector.py`` runs as a process of its own, each
hour for endpoints that have something to collect, and whenever somebody reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..core.errors import BackendTimeout, MlopsError, NotFound, Refused, from_body
from ..serving import segments
from ..serving.places import read_json

log = logging.getLogger(__name__)

#: Seconds that one task may take.
TIMEOUT = 900.0
#: Seconds between looks at what there is to collect, and for which an answer to ``info`` is believed at least.
SWEEP, FRESH = 600.0, 15.0
#: Bytes of its output that are read.
_OUTPUT = 1 << 22


class CapturedData:
    """What the endpoints below ``home`` have captured; at most two tasks run at a time.

    Args:
        home: the workspace folder.
    """

    def __init__(self, home: Path) -> None:
        self._endpoints = home / "endpoints"
        self._temporary = home / "tmp"
        self._room = asyncio.Semaphore(2)
        self._swept_at = time.monotonic() - SWEEP
        self._sweeping: asyncio.Task[None] | None = None
        self._infos: dict[str, tuple[Any, float, dict[str, Any]]] = {}

    def folder(self, endpoint: str) -> Path:
        """Where an endpoint's captured requests lie; it may not be there."""
        return self._endpoints / endpoint / segments.FOLDER

    def deployments(self, endpoint: str) -> list[str]:
        """Names of the deployments that have captured something that is not deleted; looks at every file."""
        folder = self.folder(endpoint)
        return [name for name in segments.deployments(folder) if segments.kept(folder, name)]

    async def read(self, endpoint: str, wanted: dict[str, Any]) -> Path:
        """The wanted rows in a new Parquet file, which the caller removes; arguments as ``extract.Wanted``.

        The endpoint must have captured something, see :meth:`deployments`.

        Raises:
            ParameterError: there is no such column.
        """
        self._temporary.mkdir(mode=0o700, exist_ok=True)
        out = self._temporary / f"captured-{os.urandom(8).hex()}.parquet"
        arguments = [f"--{name}={value}" for name, value in wanted.items() if value not in (None, "")]
        try:
            await self._run(endpoint, "read", f"--out={out}", *arguments)
        except BaseException:
            out.unlink(missing_ok=True)
            raise
        return out

    async def info(self, endpoint: str) -> dict[str, Any]:
        """What there is, as ``extract.info`` says it; asked often, it is counted again only when something changed."""
        if not self.folder(endpoint).is_dir():
            return {"files": 0, "bytes": 0, "rows": 0, "dropped": 0, "oldest": None, "newest": None, "truth": 0,
                    "deployments": {}}
        known = self._infos.get(endpoint)
        if known is not None:
            recent = time.monotonic() - known[1] < FRESH
            if recent or await asyncio.to_thread(self._state, endpoint) == known[0]:
                return known[2]
        found = await self._run(endpoint, "info")
        self._infos[endpoint] = (await asyncio.to_thread(self._state, endpoint), time.monotonic(), found)
        return found

    async def clear(self, endpoint: str, before: float) -> int:
        """Delete what is older than ``before`` (seconds since the epoch); returns how many rows went."""
        if not self.folder(endpoint).is_dir():
            return 0
        self._infos.pop(endpoint, None)
        return int((await self._run(endpoint, "clear", f"--before={before!r}"))["rows"])

    async def merge(self, endpoint: str, record: Path) -> dict[str, Any]:
        """Merge what a bundle captured and counted; what ``merge.merge`` returns.

        Raises:
            Refused: the record is none, or is not safe.
        """
        folder = self.folder(endpoint)
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except FileNotFoundError:
            raise NotFound(f"endpoint {endpoint!r} does not exist") from None
        self._infos.pop(endpoint, None)
        return await self._run(endpoint, "merge", f"--record={record}")

    def records(self, endpoint: str) -> list[dict[str, Any]]:
        """The records that were merged, as they are kept; the newest first."""
        found = [read_json(path) for path in self.folder(endpoint).glob("records/*.json")]
        return sorted((r for r in found if r), key=lambda r: r.get("merged_at") or 0, reverse=True)

    async def tell(self, endpoint: str, rows: list[dict[str, Any]]) -> None:
        """Keep ground truth, on disk when this returns.

        Raises:
            Refused: it cannot be written.
        """
        try:
            await asyncio.to_thread(segments.add_truth, self.folder(endpoint), rows)
        except FileNotFoundError:
            raise NotFound(f"endpoint {endpoint!r} does not exist") from None
        except OSError as error:
            raise Refused(f"the ground truth cannot be written: {error.strerror}",
                          "see: jupyter mlops doctor") from None

    def sweep(self) -> None:
        """Collect what is finished, in the background, every ten minutes at most; also what reads left behind."""
        if time.monotonic() - self._swept_at < SWEEP or (self._sweeping and not self._sweeping.done()):
            return
        self._swept_at = time.monotonic()
        self._sweeping = asyncio.create_task(self._sweep())

    async def stop(self) -> None:
        """End what is under way; it is taken up again by the next one."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeping

    async def _sweep(self) -> None:
        for path in self._temporary.glob("captured-*"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > TIMEOUT:
                    path.unlink()
        for endpoint in await asyncio.to_thread(lambda: list(self._due())):
            try:
                await self._run(endpoint, "collect")
            except MlopsError as error:
                log.warning("collecting what endpoint %s captured: %s", endpoint, error)

    def _due(self) -> Iterator[str]:
        """Endpoints with a segment of an hour that is over, or ground truth that waits."""
        now = segments.hour_of(time.time())
        for folder in self._endpoints.glob(f"*/{segments.FOLDER}"):
            waits = any(p.name[:10] < now for p in folder.glob("spool/*/*.rec"))
            if waits or any(folder.glob("truth/inbox*.rec")):
                yield folder.parent.name

    def _state(self, endpoint: str) -> Any:
        folder = self.folder(endpoint)
        files = [(str(k.path), k.size) for name in segments.deployments(folder) for k in segments.kept(folder, name)]
        others = []
        for path in (folder / "lost.json", *folder.glob("truth/*.*")):
            with contextlib.suppress(OSError):
                others.append((path.name, path.stat().st_size))
        return files, others

    async def _run(self, endpoint: str, *arguments: str) -> Any:
        command = [sys.executable, "-m", "jupyter_mlops.serving.collector", "--folder", str(self.folder(endpoint))]
        async with self._room:
            process = await asyncio.create_subprocess_exec(
                *command, *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE, limit=_OUTPUT,
            )
            try:
                async with asyncio.timeout(TIMEOUT):
                    out, err = await process.communicate()
            except TimeoutError:
                raise BackendTimeout(f"what endpoint {endpoint} captured took longer than {TIMEOUT:g} s to read",
                                     "ask for less: a deployment, a time, columns") from None
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        try:
            body = json.loads(out)
        except ValueError:
            body = None
        if process.returncode == 2 and isinstance(body, dict):
            raise from_body(body, 400)
        if process.returncode or body is None:
            log.error("collector of endpoint %s ended with %s: %s", endpoint, process.returncode,
                      err.decode("utf-8", "replace")[-4000:])
            raise MlopsError(f"what endpoint {endpoint} captured cannot be read", "see: jupyter mlops doctor")
        return body
