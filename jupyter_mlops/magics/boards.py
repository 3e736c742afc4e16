"""The verb that shows event files in TensorBoard: a tab of JupyterLab, through Jupyter's own login."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import urllib.request
from html import escape
from pathlib import Path
from typing import Any

from ..client import render
from ..client.report import Report
from ..core.errors import NotFound, ParameterError
from .context import Context

MIME = "application/vnd.jupyter-mlops.tensorboard+json"


def tensorboard(a: argparse.Namespace, context: Context) -> BoardOpener | Report:
    """Open TensorBoard for jobs, runs and folders; elsewhere than in JupyterLab say where it is."""
    sources = [_source(word, context) for word in a.sources]
    opened = context.client.call(context.client.aio.open_tensorboard(sources, sys.executable))
    names = ", ".join(source["name"] for source in opened["sources"])
    if not opened["event_files"]:
        folders = " and ".join(source["folder"] for source in opened["sources"])
        context.say(f"No event files yet below {folders}: what is written there is shown when it comes.")
    if context.face == "magic":
        return BoardOpener(names, opened["path"], context.where.name)
    public = os.environ.get("JUPYTERHUB_PUBLIC_URL")  # a hub's users do not reach the server itself
    found = [public.rstrip("/") + "/"] if public else servers(context.where.name)
    urls = [url + "jupyter-mlops/" + opened["path"] for url in found]
    report = Report({**opened, "urls": urls}).facts([("address", url) for url in urls], f"TensorBoard of {names}")
    if not urls:
        report.note("No Jupyter server of this workspace answers, and it is only shown through one: start JupyterLab, "
                    "then ask again.")
    return report


def _source(word: str, context: Context) -> str:
    """A job's name, a run's id, or an absolute path."""
    from ..client.job import Job
    from ..client.run import Run

    value = context.names.get(word) if word.isidentifier() else None
    if isinstance(value, Job):
        return value.name
    if isinstance(value, Run):
        return value.run_id
    path = Path(word).expanduser()
    if os.sep in word or word in (".", "..") or word.startswith("~"):
        if not path.is_dir():
            raise ParameterError(f"there is no folder {word}", f"the folder is {os.getcwd()}")
        return str(path.resolve())
    try:
        return context.job(word).name
    except NotFound as error:
        if path.is_dir():
            return str(path.resolve())
        try:
            return context.run(word).run_id
        except NotFound:
            raise NotFound(f"there is no job, run or folder {word!r}", error.hint) from None


def servers(workspace: str) -> list[str]:
    """Addresses of the Jupyter servers of this user that show this workspace, newest first."""
    from jupyter_core.paths import jupyter_runtime_dir

    found = []
    folder = Path(jupyter_runtime_dir())
    for path in sorted(folder.glob("jpserver-*.json"), key=_mtime, reverse=True) if folder.is_dir() else []:
        try:
            about = json.loads(path.read_text("utf-8"))
            request = urllib.request.Request(
                about["url"] + "jupyter-mlops/status", headers={"Authorization": f"token {about.get('token', '')}"})
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(request, timeout=3) as response:
                if json.load(response).get("workspace") == workspace:
                    found.append(about["url"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # it has ended, or is none of ours
    return found


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


class BoardOpener:
    """TensorBoard that is asked for: JupyterLab opens a tab with it.

    Args:
        names: what it shows. path: where it is, below ``jupyter-mlops/`` of the server. workspace: its name.
    """

    def __init__(self, names: str, path: str, workspace: str) -> None:
        self.names = names
        self.path = path
        self.workspace = workspace
        # JupyterLab opens it by itself only when it was asked for just now, not when the notebook is opened again.
        self._asked_at = int(time.time() * 1000)

    def text(self) -> str:
        """Where it is."""
        return f"TensorBoard of {self.names}: jupyter-mlops/{self.path} of the Jupyter server"

    def html(self) -> str:
        """The same."""
        return f"TensorBoard of {escape(self.names)}: {render.code(f'jupyter-mlops/{self.path}')} of the " \
               "Jupyter server"

    def to_dict(self) -> dict[str, Any]:
        """``{"sources", "path"}``."""
        return {"sources": self.names, "path": self.path}

    def __repr__(self) -> str:
        return f"<TensorBoard of {self.names}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        board = {"version": 1, "workspace": self.workspace, "names": self.names,
                 "path": self.path, "asked_at": self._asked_at}
        return {MIME: board, "text/plain": self.text(), "text/html": self.html()}
