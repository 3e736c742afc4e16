"""Verbs about jobs: train, jobs, logs, stop."""

from __future__ import annotations

import argparse
import ast
import difflib
import os
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ParameterError, Refused
from . import settings
from ..shipping.cell import check_cell
from .context import Context

if TYPE_CHECKING:
    from ..client.job import Job, JobTable

#: The cell's body begins in the line below ``%%mlops``.
_FIRST_LINE = 2

#: Most processes that a spec may ask for.
_MOST = 1024


def train(a: argparse.Namespace, context: Context) -> Job:
    """Check, submit and show a job; returns at once unless ``--wait``."""
    spec = job_spec(a, context)
    context.nearby()
    job = context.client.submit_job(spec, a.name)
    if a.name and job.name != a.name:
        context.say(f"a job {a.name} is there already; this one is {job.name}")
    if context.face == "magic":
        from .display import LiveOutput

        LiveOutput.attach(job, context)
    if a.wait:
        if context.face == "cli" and not context.json:
            for text in job.follow():
                sys.stderr.write(text)
        job.wait()
    return job


def job_spec(a: argparse.Namespace, context: Context) -> dict[str, Any]:
    """The job's spec from the line and the cell, checked as far as this process can.

    Raises:
        ParameterError, Refused: what is wrong, before anything starts.
    """
    cwd = os.getcwd()
    spec: dict[str, Any] = {
        "experiment_name": a.experiment or context.experiment,
        "cwd": cwd,
        "compute": a.compute,
        "interpreter": sys.executable,
    }
    if context.cell is not None:
        if a.script is not None or a.rest:
            raise ParameterError(
                "the cell is the code, so the line takes neither a script nor arguments",
                f"to run a script use one % : %mlops train {a.script or 'script.py'}",
            )
        check_cell(context.cell, context.names, _FIRST_LINE)
        notebook = context.notebook
        # An empty first line in place of the magic's: tracebacks then count lines as the notebook does.
        spec["cell"] = {"source": "\n" + context.cell, "notebook": notebook, "cell_id": context.cell_id}
        spec["display_name"] = a.name or (Path(notebook).stem if notebook else settings.folder_experiment(cwd))
    else:
        if a.script is None:
            hint = "%%mlops train, with the code below it, runs a cell" if context.face == "magic" else ""
            raise ParameterError("there is nothing to train: name a script", hint)
        check_script(a.script, cwd)
        spec |= {"script": a.script, "args": list(a.rest), "display_name": a.name or Path(a.script).stem}
    if a.env:
        spec["environment_variables"] = dict(a.env)
    if a.tag:
        spec["tags"] = dict(a.tag)
    if a.grace is not None:
        spec["limits"] = {"grace": a.grace}
    if a.processes > _MOST:
        raise Refused(f"{a.processes} processes are more than any machine runs", f"at most {_MOST} can be asked for")
    if a.processes > 1:
        if find_spec("torch") is None:
            raise Refused(
                f"{a.processes} processes need PyTorch, which is not installed in {sys.executable}",
                "pip install 'jupyter-mlops[torch]', or leave out --processes",
            )
        spec["distribution"] = {"type": "pytorch", "process_count_per_instance": a.processes}
    return spec


def check_script(script: str, cwd: str) -> None:
    """Refuse a script that is missing or no Python.

    Raises:
        ParameterError
    """
    path = Path(cwd, script).expanduser()
    if not path.is_file():
        there = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, there, n=1)
        what = "is a folder" if path.is_dir() else "is not there"
        hint = f"did you mean {Path(script).parent / close[0]}?" if close else f"the folder is {cwd}"
        raise ParameterError(f"the script {script!r} {what}", hint)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(path.read_bytes(), str(path))
    except SyntaxError as error:
        raise ParameterError(
            f"syntax error in line {error.lineno} of {script}: {error.msg}", (error.text or "").strip()[:120]
        ) from None
    except (OSError, ValueError) as error:
        raise ParameterError(f"the script {script!r} cannot be read: {error}") from None


def jobs(a: argparse.Namespace, context: Context) -> Job | JobTable:
    """One job, or a table."""
    if a.name is not None:
        job = context.job(a.name)
        if context.face == "magic":
            from .display import LiveOutput

            LiveOutput.prepare(job, context)
        return job
    return context.client.jobs(a.phase, a.limit)


def logs(a: argparse.Namespace, context: Context) -> Any:
    """Print a log; the text itself is returned to nobody, since it is on the screen already."""
    from ..client.terminal import Follower

    endpoint, slash, deployment = a.name.partition("/")
    if slash:
        if a.follow:
            raise ParameterError("the log of a deployment cannot be followed", "leave out -f")
        _print(context.client.deployment_log(endpoint, deployment, a.tail))
        return None
    job = context.job(a.name)
    if a.rank >= job.processes:
        raise ParameterError(f"job {job.name} has no rank {a.rank}", f"its ranks are 0 to {job.processes - 1}")
    if a.search is not None:
        if a.follow:
            raise ParameterError("what is searched is not followed", "leave out -f or --search")
        return job.search(a.search, a.rank, a.regex, attempt=a.attempt, limit=a.tail or 100)
    in_terminal = context.face == "cli" and sys.stdout.isatty()
    colours = in_terminal or context.face == "magic"
    if not a.follow:
        text = job.logs(a.rank, a.tail, a.attempt, colours=colours)
        if not text:
            context.say(f"job {job.name} ({job.phase}) has written nothing{'' if job.done else ' yet'}")
        _print(text)
        return None
    written = False
    follower = Follower(colours, partial=colours)
    try:
        for text in job.follow(a.rank, a.tail, a.attempt):
            sys.stdout.write(follower.feed(text))
            sys.stdout.flush()
            written |= bool(text)
        sys.stdout.write(follower.close())
        if not written:
            context.say(f"job {job.name} ({job.status}) has written nothing")
    except KeyboardInterrupt:
        context.say(f"Interrupted: job {job.name} goes on.")
        raise
    return None


def _print(text: str) -> None:
    if text:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        sys.stdout.flush()


def stop(a: argparse.Namespace, context: Context) -> Job:
    """Ask a job to end."""
    job = context.job(a.name)
    if job.done:
        context.say(f"job {job.name} has ended already ({job.phase})")
        return job
    return job.stop(wait=a.wait, timeout=None)
