"""``/jupyter-mlops/tensorboard/<key>/…``: TensorBoard over what jobs, runs and folders hold, for owners only.

The key names what is shown, joined by ``+``: a job, a run, or ``~…`` for a folder that somebody has named before. One
that does not run any more is started again, so an open page goes on.
"""

from __future__ import annotations

import asyncio
import os
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from multidict import CIMultiDict
from tornado.web import HTTPError, stream_request_body

from ..core.errors import NotFound, ParameterError, Refused
from ..core.identity import Identity
from ..streaming import HOP_BY_HOP, StreamingProxy, Upstream
from .base import BaseHandler
from .boards import HERE, Board, event_files
from .mlflow_handler import PASSED
from .operations import ROOT

if TYPE_CHECKING:
    from .plane import ControlPlane

PREFIX = ROOT + "/tensorboard"
ACTION = "tensorboards/write"
_KEY = re.compile(r"[a-z0-9~-]{1,64}(\+[a-z0-9~-]{1,64}){0,19}")
_RUN = re.compile(r"[0-9a-f]{32}")
_ARTIFACTS = re.compile(r"mlflow-artifacts:/+([^/]+)/([0-9a-f]{32})/artifacts/?")
#: Largest body of a request, in bytes: pages ask for many curves at once.
MAX_BODY = 16 << 20


async def key_of(plane: ControlPlane, identity: Identity, names: list[str], python: str = "") -> str:
    """The key for jobs, runs and folders (absolute paths).

    Raises:
        NotFound, Refused, ParameterError: one of them is not there.
    """
    words = []
    for name in names:
        if not os.path.isabs(name):
            words.append(name)
            continue
        folder = Path(os.path.realpath(name))
        if not await asyncio.to_thread(folder.is_dir):
            raise NotFound(f"there is no folder {name}", "name one of this machine, a job or a run")
        words.append(plane.boards.name(folder, python))
    key = "+".join(dict.fromkeys(words))
    if not _KEY.fullmatch(key):
        raise ParameterError(f"{', '.join(names)[:200]}: there is no such job, run or folder",
                             "list jobs with: %mlops jobs")
    await resolve(plane, identity, key)
    return key


async def resolve(plane: ControlPlane, identity: Identity, key: str) -> tuple[list[tuple[str, Path]], list[str]]:
    """What a key shows, as (name, folder), and the interpreters that may have TensorBoard.

    Raises:
        NotFound, Refused: something of it is not there (any more).
    """
    sources: list[tuple[str, Path]] = []
    pythons = [HERE]
    for word in key.split("+"):
        if word.startswith("~"):
            if word not in plane.boards.folders:
                raise NotFound("this address of TensorBoard is of an earlier control plane",
                               "open it again: %mlops tensorboard FOLDER")
            folder, python = plane.boards.folders[word]
            sources.append((folder.name or "folder", folder))
            pythons += [python] if python else []
            continue
        job = await plane.store.read(partial(_job, word))
        if job is not None:
            await plane.workspace.get(identity, "job", word)
            folder = plane.jobs.ref(word).folder / "outputs"
            if job.status.get("folder_removed_at"):
                raise NotFound(f"the folder of job {word!r} is gone", "its curves in MLflow stay")
            # TensorBoard looks again and again: what is not there yet may come.
            sources.append((word, folder))
            if job.spec.get("interpreter"):
                pythons.append(job.spec["interpreter"])
        elif _RUN.fullmatch(word):
            run = await plane.views.job_run(word)
            place = _ARTIFACTS.fullmatch(run["artifact_uri"])
            if place is None:
                raise Refused(f"the artifacts of run {word} are not in this workspace", "name their folder")
            sources.append((run["run_name"] or word, plane.home / "artifacts" / place[1] / place[2] / "artifacts"))
        else:
            raise NotFound(f"there is no job {word!r}", "list jobs with: %mlops jobs; a folder is named with a /")
    names = [name for name, _ in sources]
    if len(set(names)) < len(names):
        sources = [(f"{name}-{n}", folder) for n, (name, folder) in enumerate(sources, 1)]
    return sources, [p for p in pythons if os.path.isabs(p) and os.access(p, os.X_OK)]


def _job(name: str, tx: Any) -> Any:
    return tx.find("job", name)


async def open_board(plane: ControlPlane, identity: Identity, key: str) -> tuple[Board, list[tuple[str, Path]]]:
    """TensorBoard for a key, and what it shows."""
    sources, pythons = await resolve(plane, identity, key)
    return await plane.boards.open(key, sources, pythons), sources


async def count_events(sources: list[tuple[str, Path]]) -> int:
    """How many event files there are."""
    return sum(await asyncio.gather(*(asyncio.to_thread(event_files, folder) for _, folder in sources)))


@stream_request_body
class TensorboardHandler(StreamingProxy, BaseHandler):  # type: ignore[misc]  # prepare: async here, not there
    """One request to it."""

    max_body_size = MAX_BODY
    SUPPORTED_METHODS = ("GET", "HEAD", "POST")
    _board: Board | None = None

    async def route(self, *args: Any) -> Upstream | None:
        self.require(ACTION)
        key, slash, _ = self.request.path[len(PREFIX):].lstrip("/").partition("/")
        key = unquote(key)
        if not _KEY.fullmatch(key):
            raise NotFound("there is no such TensorBoard", "open one with: %mlops tensorboard JOB")
        if not slash:
            self.redirect(f"{key}/")
            return None
        path = self.request.path[len(PREFIX):].lstrip("/").partition("/")[2]
        if any(part in (".", "..") for part in unquote(path).replace("\\", "/").split("/")) or "\0" in unquote(path):
            raise HTTPError(400, reason="the path has a relative segment")
        board = self.plane.boards.running(key) or (await open_board(self.plane, self.identity, key))[0]
        board.take()
        self._board = board
        headers: CIMultiDict[str] = CIMultiDict(
            (k, v) for k, v in self.request.headers.get_all() if k.lower() in PASSED and k.lower() not in HOP_BY_HOP)
        headers["Host"] = "localhost"
        return Upstream(board.session, f"/{path}" + (f"?{self.request.query}" if self.request.query else ""), headers)

    def adapt_response(self, status: int, headers: CIMultiDict[str]) -> None:
        for name in ("Access-Control-Allow-Origin", "Access-Control-Allow-Credentials", "Set-Cookie"):
            headers.popall(name, None)
        headers["X-Content-Type-Options"] = "nosniff"

    def _leave(self) -> None:
        board, self._board = self._board, None
        if board is not None:
            board.leave()

    def on_finish(self) -> None:
        self._leave()
        super().on_finish()

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self._leave()
