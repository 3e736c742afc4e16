"""Verbs about jobs: train, attach, jobs, logs, stop, resume."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..capture.submission import attach as record_context
from ..client import code, render, requirements
from ..client.inputs import Packed
from ..core import syntax
from ..core.errors import ParameterError, Refused
from ..runtime import data
from ..runtime import sources as data_sources
from ..shipping import MOST, Shipment, prepare
from . import settings
from .context import Context
from .manifest import Manifest, Yaml

if TYPE_CHECKING:
    from ..client.job import Job, JobTable
    from ..client.usage import JobUsage

#: The cell's body begins in the line below ``%%mlops``.
_FIRST_LINE = 2

#: Most processes that a spec may ask for.
_MOST = 1024


def train(a: argparse.Namespace, context: Context) -> Job | Manifest | Yaml:
    """Check, pack, submit and show a job; returns at once unless ``--wait``."""
    spec = job_spec(a, context)
    shipment = _shipment(a, context, spec)
    files = _folder(a, context, spec)
    packed = Packed(spec.get("inputs") or {} if a.compute != "local" else {})
    try:
        manifest = Manifest(shipment.variables, shipment.size, [*shipment.remarks, *packed.remarks])
        if files:
            manifest.remarks.append(f"{len(files)} files of {spec['cwd']} go with the script, "
                                    f"{render.size(sum(f.stat().st_size for _, f in files))}")
        if a.compute != "local":
            manifest.preview, manifest.compute = context.client.preview_job(spec, a.name), f"compute {a.compute}"
            manifest.remarks += manifest.preview.get("warnings") or []
        if a.yaml:
            return Yaml((manifest.preview or {}).get("manifest") or spec)
        if a.dry_run:
            return manifest
        _show(manifest, context)
        context.nearby()
        if shipment.path:
            context.client.upload(shipment.path, shipment.digest)
        if files:
            code.upload(context.client, files)
        packed.upload(context.client)
        context.say_once(record_context(spec, context.client, context.shell))
        job = context.client.submit_job(spec, a.name)
    finally:
        shipment.close()
        packed.close()
    if a.name and job.name != a.name:
        context.say(f"a job {a.name} is there already; this one is {job.name}")
    if context.face == "magic":
        from .display import LiveOutput

        _set_results(job, context)
        LiveOutput.attach(job, context)
    if a.wait:
        if context.face == "cli" and not context.json:
            for text in job.follow():
                sys.stderr.write(text)
        job.wait()
        _bring_back(job)
    return job


def _shipment(a: argparse.Namespace, context: Context, spec: dict[str, Any]) -> Shipment:
    """What goes with the job, noted in its spec; for a script nothing does.

    Raises:
        ParameterError, Refused: what is wrong, before anything starts.
    """
    if context.cell is None:
        for flag, given in (("--use", a.use), ("--returns", a.returns)):
            if given:
                raise ParameterError(f"{flag} is for a cell; a script reads and writes files", "use %%mlops train")
        return Shipment()
    limit = a.ship_limit or settings.ship_limit(context.where)
    if limit > MOST:
        raise ParameterError(f"more than {MOST} bytes cannot be sent, {limit} are allowed", "read the data from a file")
    space = getattr(context.shell, "user_ns", None) or context.names
    shipment = prepare(
        context.cell, space, first_line=_FIRST_LINE, use=a.use, returns=a.returns, ship=not a.no_ship, limit=limit,
        interpreter=spec["interpreter"],
    )
    returns = list(dict.fromkeys(a.returns))
    if shipment.packed and a.compute != "local":
        spec["cell"]["packed"] = shipment.packed
    spec["cell"] |= {"payload": shipment.digest, "variables": shipment.variables, "returns": returns}
    return shipment


def _folder(a: argparse.Namespace, context: Context, spec: dict[str, Any]) -> list[tuple[str, Path]]:
    """The files that go with a script to another machine, noted in its spec; none for a cell, and on this one."""
    if context.cell is not None or a.compute == "local":
        return []
    script = Path(a.script)
    if script.is_absolute() or ".." in script.parts:
        raise ParameterError(f"the script {a.script} is not below {spec['cwd']}",
                             "the folder you are in goes with it: change to the one of the script")
    files = code.of_folder(spec["cwd"])
    spec["code"] = code.reference(files).removeprefix("blob:")
    return files


def _show(manifest: Manifest, context: Context) -> None:
    """Show what is sent, small, before it is."""
    if not len(manifest):
        for line in [*manifest.remarks, *([manifest.place()] if manifest.preview else [])]:
            context.say(line)
    elif context.face == "magic" and not context.silent:
        from IPython.display import display

        display(manifest._repr_mimebundle_(), raw=True)


def _set_results(job: Job, context: Context) -> None:
    """Let what the job brings back become variables of the notebook, when somebody asks for it."""
    space = getattr(context.shell, "user_ns", None)
    if space is None:
        return

    def put(handle: Job, values: dict[str, Any]) -> None:
        space.update(values)
        left = [f"{v['name']} {v['detail']}" for v in handle.returned if v.get("detail") and not v.get("sha256")]
        print("; ".join([f"set from job {handle.name}: {', '.join(values)}", *left]), flush=True)

    job._on_results = put


def _bring_back(job: Job) -> None:
    """Set the variables that a completed job brought back; says so when there are none."""
    if job.asked and job._on_results is not None and job.phase == "Completed":
        if any(v.get("sha256") for v in job.returned):
            job.result()
        else:
            print(f"job {job.name}: " + "; ".join(f"{v['name']} {v['detail']}" for v in job.returned), flush=True)


def _rank(rank: int, job: Job) -> None:
    """Refuse a rank that the job has not. Raises ParameterError."""
    if rank >= job.processes:
        raise ParameterError(
            f"job {job.name} has no rank {rank}",
            f"its ranks are 0 to {job.processes - 1}" if job.processes > 1 else "it has one process, rank 0",
        )


def attach(a: argparse.Namespace, context: Context) -> Job | None:
    """The handle of a job that was started elsewhere, with its live output or log and its results."""
    job = context.job(a.name)
    _rank(a.rank, job)
    if context.face == "magic":
        from .display import LiveOutput

        _set_results(job, context)
        LiveOutput.attach(job, context)
        if a.wait:
            job.wait()
        if not a.no_returns and job.done:
            _bring_back(job)
        return job
    context.say(job._line())
    if context.json:
        return job
    over = job.done
    try:
        for text in job.follow(a.rank, a.tail):
            sys.stdout.write(text)
            sys.stdout.flush()
    except KeyboardInterrupt:
        context.say(f"Interrupted: job {job.name} goes on.")
        raise
    if not over:
        context.say(job.refresh()._line())
    return None


def resume(a: argparse.Namespace, context: Context) -> Job:
    """Queue a further attempt of a job that failed or was stopped."""
    job = context.job(a.name).resume()
    if context.face == "magic":
        from .display import LiveOutput

        _set_results(job, context)
        LiveOutput.attach(job, context)
    if a.wait:
        job.wait()
        _bring_back(job)
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
        "interpreter": _interpreter(a.interpreter),
    }
    if context.cell is not None:
        if a.script is not None or a.rest:
            raise ParameterError(
                "the cell is the code, so the line takes neither a script nor arguments",
                f"to run a script use one % : %mlops train {a.script or 'script.py'}",
            )
        notebook = context.notebook
        # An empty first line in place of the magic's: tracebacks then count lines as the notebook does.
        spec["cell"] = {"source": "\n" + context.cell, "notebook": notebook, "cell_id": context.cell_id}
        spec["display_name"] = "" if a.name else Path(notebook).stem if notebook else settings.folder_experiment(cwd)
    else:
        if a.script is None:
            hint = "%%mlops train, with the code below it, runs a cell" if context.face == "magic" else ""
            raise ParameterError("there is nothing to train: name a script", hint)
        check_script(a.script, cwd)
        spec |= {"script": a.script, "args": list(a.rest), "display_name": "" if a.name else Path(a.script).stem}
    if a.input:
        spec["inputs"] = {name: _input(name, mode, path, cwd) for name, mode, path in a.input}
    if a.output:
        spec["outputs"] = {name: {"path": _absolute(path, cwd)} if path else {} for name, path in a.output}
    if a.env:
        spec["environment_variables"] = dict(a.env)
    if a.tag:
        spec["tags"] = dict(a.tag)
    limits = {"grace": a.grace, "timeout": a.timeout}
    spec["limits"] = {k: v for k, v in limits.items() if v is not None}
    least, most = a.nodes
    several = least > 1 or (most or 1) > 1
    listed = [line for path in a.requirements for line in requirements.read(path)]
    environment = {"image": a.image, "pip": [*a.pip, *listed],
                   "conda_file": requirements.read_conda(a.conda_file) if a.conda_file else None}
    if any(environment.values()):
        spec["environment"] = {k: v for k, v in environment.items() if v}
    resources = {"instance_count": least if several else None, "max_instance_count": most, "instance_type": a.instance,
                 "cpus": a.cpus, "memory": a.memory, "gpus": a.gpus}
    spec["resources"] = {k: v for k, v in resources.items() if v is not None}
    if a.retries is not None:
        spec["retry_settings"] = {"max_retries": a.retries}
    queue = {"priority": a.priority, "job_tier": "spot" if a.spot else None}
    if any(queue.values()):
        spec["queue_settings"] = {k: v for k, v in queue.items() if v}
    if a.processes > _MOST:
        raise Refused(f"{a.processes} processes are more than any machine runs", f"at most {_MOST} can be asked for")
    if a.distribution == "tensorflow":
        spec["distribution"] = {"type": "tensorflow", "worker_count": a.processes * least}
    elif a.processes > 1 or several or a.distribution == "mpi":
        if find_spec("torch") is None and a.compute == "local" and a.distribution == "pytorch":
            raise Refused(
                f"{a.processes} processes need PyTorch, which is not installed in {sys.executable}",
                "pip install 'jupyter-mlops[torch]', or leave out --processes",
            )
        spec["distribution"] = {"type": a.distribution, "process_count_per_instance": a.processes}
    return spec


def _input(name: str, mode: str, path: str, cwd: str) -> dict[str, Any]:
    """One of ``inputs``. Raises ParameterError: it is a path of this machine, and nothing is there."""
    found = _absolute(path, cwd)
    if not data.scheme(found):
        try:
            data_sources.check_kind(data.local(found), "")
        except data.DataError as error:
            raise ParameterError(f"--input {name}: {error}", f"the folder is {cwd}") from None
    return {"path": found, **({"mode": mode} if mode else {})}


def _absolute(path: str, cwd: str) -> str:
    """A path as the spec has it: one of this machine is absolute."""
    if data.scheme(path):
        return path
    return os.path.normpath(os.path.join(cwd, os.path.expanduser(data.local(path))))


def _interpreter(path: str | None) -> str:
    """Absolute path of the Python to use. Raises ParameterError."""
    if path is None:
        return sys.executable
    found = os.path.abspath(os.path.expanduser(path))
    if not (os.path.isfile(found) and os.access(found, os.X_OK)):
        raise ParameterError(f"--interpreter {path}: there is no such program", "name the python of an environment")
    return found


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
            syntax.parse(path.read_bytes(), str(path))
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

            _set_results(job, context)
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
    _rank(a.rank, job)
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


def usage(a: argparse.Namespace, context: Context) -> JobUsage:
    """What each rank uses, on all machines."""
    return context.job(a.name).usage()


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
