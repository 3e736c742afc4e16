"""Verbs about the workspace itself: status, config, doctor, env, down, delete, help."""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import signal
import sys
import time
from typing import Any

from ..client import render
from ..client.report import Report
from ..core.errors import BackendTimeout, MlopsError, NotFound, ParameterError, Unavailable
from ..runtime import locate
from . import settings
from .context import Context

#: Seconds that a control plane has to end.
_END = 20.0


def status(a: argparse.Namespace, context: Context) -> Report:
    """What runs, and which tracking server is in force."""
    state = context.client.status()
    uri = settings.tracking(context.where)
    experiment = settings.experiment(context.where)
    here = settings.tracks_here(context.where)
    counts = state.get("counts") or {}
    mlflow, gateway = state["mlflow"], state["gateway"]
    trouble = mlflow.get("message") if mlflow["state"] in ("restarting", "failed") else ""
    data = {**state, "tracking_in_force": {"uri": uri.value, "source": uri.source, "ours": here},
            "experiment": {"name": experiment.value, "source": experiment.source}}
    report = Report(data).facts(
        [
            ("MLflow", " ".join(filter(None, (mlflow["state"], mlflow.get("version"), trouble)))),
            ("jobs", f"{counts.get('running_jobs', 0)} active, {counts.get('jobs', 0)} in all"),
            ("endpoints", f"{counts.get('endpoints', 0)}, gateway {gateway['state']}"),
            ("tracking URI in force", f"{uri.value} ({uri.source})" if uri.value else None),
            ("tracking URI", None if uri.value else f"{state['tracking_uri']}; for other tools: jupyter mlops env"),
            ("experiment", f"{experiment.value} ({experiment.source})"),
            ("home", state.get("home")),
            ("control plane", f"{state['url']}, pid {state['pid']}, {state['version']}, role {state.get('role')}"),
        ],
        f"Workspace {state['name']}", str(mlflow["state"]),
    )
    if not here:
        report.note(
            f"Plain mlflow calls in this process go to {uri.value} ({uri.source}), not to this workspace, "
            f"whose tracking URI is {state['tracking_uri']}."
        )
    report.note(settings.nearby_remark())
    return report


def config(a: argparse.Namespace, context: Context) -> Report:
    """Show settings with their sources, or set one."""
    if a.key is not None:
        if a.value is None:
            found = [r for r in settings.rows(context.where) if r["name"] == a.key]
            if not found:
                raise ParameterError(f"there is no setting {a.key!r}", f"see: {context.command('config')}")
            return _settings(found)
        settings.write(context.where, a.key, a.value)
        if a.key == "experiment" and context.face == "magic" and "MLFLOW_EXPERIMENT_NAME" in os.environ:
            # Plain mlflow in this kernel follows; a terminal's environment is not ours to change.
            os.environ["MLFLOW_EXPERIMENT_NAME"] = a.value or settings.folder_experiment()
    return _settings(settings.rows(context.where))


def _settings(rows: list[dict[str, Any]]) -> Report:
    return Report(rows).table(["setting", "value", "from"], [[r["name"], r["value"], r["source"]] for r in rows])


# -- doctor --------------------------------------------------------------------------------------------------------


def doctor(a: argparse.Namespace, context: Context) -> Report:
    """Check everything from this process, and list every process, port and folder of ours."""
    checks: list[dict[str, Any]] = []

    def check(name: str, ok: bool, message: str, hint: str = "") -> None:
        checks.append({"name": name, "ok": ok, "message": message, "hint": "" if ok else hint})

    from .. import __version__

    found: dict[str, Any] = {"checks": [], "processes": [], "folders": [], "ports": []}
    try:
        state = _settled(context)
        found = context.client.call(context.client.aio.doctor())
    except MlopsError as error:
        check("control plane", False, error.message, error.hint)
    else:
        check("control plane", True, f"answers at {state['url']}, pid {state['pid']}")
        check(
            "version", state["version"] == __version__,
            f"control plane {state['version']}, this Python {__version__}",
            "jupyter mlops down  starts the installed version at the next call",
        )
        checks += found["checks"]
        _probe(context, check)
    uri = settings.tracking(context.where)
    ours = settings.tracks_here(context.where)
    if not ours:
        check("tracking URI", True, f"in force: {uri.value} ({uri.source}); another server than this workspace's")
    elif uri.value and uri.source != "MLflow's default":
        check("tracking URI", True, f"in force: {uri.value} ({uri.source}); this workspace")
    elif context.face == "magic":
        check("tracking URI", False, f"plain mlflow calls do not come here: {uri.source}", "%load_ext jupyter_mlops")
    if ours:
        check(
            "mlflow plugin", _plugin(), "this Python's mlflow knows how to reach the workspace" if _plugin()
            else f"mlflow in {sys.executable} has no plugin of jupyter-mlops, so plain mlflow calls get 401",
            f"{sys.executable} -m pip install jupyter-mlops",
        )
    for path in settings.nearby():
        check("earlier runs", True, f"{path} holds runs that are not in this workspace")
    bad = [c for c in checks if not c["ok"]]
    report = Report({**found, "checks": checks, "ok": not bad}, ok=not bad)
    rows = [["ok" if c["ok"] else "not ok", c["name"], c["message"], c["hint"]] for c in checks]
    if not bad:
        rows = [row[:3] for row in rows]
    report.table(["", "check", "finding", "what to do"][: len(rows[0])], rows, state=0)
    report.table(
        ["pid", "process", "memory", "command"],
        [[p["pid"], p["what"], render.size(p["memory_bytes"]), render.short(p["command"], 70)]
         for p in found["processes"]], "Processes",
    )
    report.table(["port or socket", "of"], [[p["address"], p["what"]] for p in found["ports"]], "Ports")
    report.table(["folder", "size"], [[f["path"], render.size(f["bytes"])] for f in found["folders"]], "Folders")
    return report


def _settled(context: Context, timeout: float = 30.0) -> dict[str, Any]:
    """The workspace's state, once MLflow has had the time to start."""
    begun = time.monotonic()
    while True:
        state = context.client.status()
        if state["mlflow"]["state"] not in ("starting", "restarting") or time.monotonic() - begun > timeout:
            return state
        time.sleep(0.3)


def _plugin() -> bool:
    from importlib.metadata import entry_points

    return any(e.value.startswith("jupyter_mlops.") for e in entry_points(group="mlflow.tracking_store"))


def _probe(context: Context, check: Any) -> None:
    """Write, read and delete a run and an artifact, as any MLflow client would."""
    client = context.client
    run_id = ""
    step = "make a run"
    mark = secrets.token_bytes(64)
    try:
        body = {"experiment_id": "0", "run_name": "doctor-probe", "start_time": int(time.time() * 1000),
                "tags": [{"key": "mlops.probe", "value": "true"}]}
        run_id = client.mlflow("POST", "runs/create", body)["run"]["info"]["run_id"]
        step = "log a metric"
        metric = {"run_id": run_id, "key": "probe", "value": 0.5, "timestamp": int(time.time() * 1000), "step": 0}
        client.mlflow("POST", "runs/log-metric", metric)
        step = "read the metric back"
        got = client.mlflow("GET", "runs/get", params={"run_id": run_id})["run"]["data"].get("metrics") or []
        if [m["value"] for m in got] != [0.5]:
            raise MlopsError(f"0.5 was written, {got} came back")
        check("tracking", True, "a probe run was written and read")
        step = "write an artifact"
        path = f"{client.artifact_path(run_id)}/probe.bin"
        client.call(client.aio.artifact("PUT", path, mark))
        step = "read the artifact back"
        if client.call(client.aio.artifact("GET", path)) != mark:
            raise MlopsError("other bytes came back than were written")
        step = "delete the artifact"
        client.call(client.aio.artifact("DELETE", path))
        check("artifacts", True, "a probe artifact was written, read and deleted")
        step = "delete the run"
        client.mlflow("POST", "runs/delete", {"run_id": run_id})
        run_id = ""
    except (MlopsError, KeyError) as error:
        name = "artifacts" if "artifact" in step else "tracking"
        message = error.message if isinstance(error, MlopsError) else f"an answer lacks {error}"
        log = os.path.join(context.where.home, "logs", "mlflow.log")
        check(name, False, f"could not {step}: {message}", getattr(error, "hint", "") or f"see {log}")
    finally:
        if run_id:
            try:
                client.mlflow("POST", "runs/delete", {"run_id": run_id})
            except MlopsError:
                pass


# -- env -----------------------------------------------------------------------------------------------------------


def env(a: argparse.Namespace, context: Context) -> Report | None:
    """Print what another tool needs to reach MLflow."""
    if context.face == "magic":
        # This kernel asks for its own token when it needs one; a printed one would be saved with the notebook.
        names = sorted(n for n in os.environ if n.startswith(("JUPYTER_MLOPS_", "MLFLOW_")) and "TOKEN" not in n)
        rows = [{"name": n, "value": os.environ[n]} for n in names]
        return Report(rows).table(["variable", "value"], [[r["name"], r["value"]] for r in rows]).note(
            "No token is shown here. For other tools, in a terminal: eval $(jupyter mlops env)"
        )
    session = context.client.call(context.client.aio.connect())
    token = session.token
    if not (os.environ.get("JUPYTER_MLOPS_URL") and os.environ.get("JUPYTER_MLOPS_TOKEN")):
        holder = _shell_pid()
        code, body = locate.ask(context.where, "POST", "/local/token", {"pid": holder, "role": "owner"})
        if code != 201:
            raise Unavailable(f"the control plane gave no token: {body.get('message') or 'no answer'}")
        token = body["token"]
    values = {"MLFLOW_TRACKING_URI": session.tracking_uri, "MLFLOW_TRACKING_TOKEN": token}
    if context.json:
        return Report(values)
    for name, value in values.items():
        print(f"export {name}={shlex.quote(value)}")
    return None


def _shell_pid() -> int:
    """The process that shall hold the token: the terminal's session leader, which outlives ``$(…)``."""
    leader = os.getsid(0)
    if leader not in (0, 1, os.getpid()) and _mine(leader):
        return leader
    return os.getppid()


def _mine(pid: int) -> bool:
    if not locate.start_time(pid):
        return False
    try:
        return os.stat(f"/proc/{pid}").st_uid == os.getuid()
    except OSError:
        return not sys.platform.startswith("linux")


# -- down ----------------------------------------------------------------------------------------------------------


def down(a: argparse.Namespace, context: Context) -> None:
    """Stop the control plane, with ``--all`` jobs and endpoints too."""
    where = context.where
    stopped: dict[str, Any] = {"jobs": [], "endpoints": []}
    if a.all:
        client = context.client
        jobs = [j.name for j in client.jobs(limit=None) if not j.done]
        endpoints = [e.name for e in client.endpoints()]
        if jobs or endpoints:
            for title, names in (("jobs", jobs), ("endpoints", endpoints)):
                if names:
                    context.say(f"{title}: {', '.join(names)}")
            context.confirm(f"Stop {len(jobs)} job(s) and {len(endpoints)} endpoint(s)?", a.yes)
    answer = locate.info(where)
    holder = locate.lock_holder(where)
    pid = int((answer or {}).get("pid") or 0)
    if answer is None:
        pid = int(holder.get("pid") or 0)
        if not locate.alive(pid, holder.get("started")):
            context.say("no control plane runs")
            locate.forget()
            return
        if not a.force:
            raise Unavailable(
                f"the control plane (pid {pid}) does not answer", f"end it with: {context.command('down --force')}"
            )
    started = locate.start_time(pid)
    if answer is not None:
        if a.all:
            stopped = context.client.call(context.client.aio.shutdown(True))
        else:
            locate.ask(where, "POST", "/local/shutdown", {})
    else:
        os.kill(pid, signal.SIGTERM)
    if not _ended(pid, started, 3.0 if a.force else _END):
        if not a.force:
            raise BackendTimeout(
                f"the control plane (pid {pid}) is still ending", f"end it now with: {context.command('down --force')}"
            )
        os.kill(pid, signal.SIGKILL)
        _ended(pid, started, 5.0)
    locate.forget()
    what = [f"{len(stopped[k])} {k[:-1]}(s)" for k in ("jobs", "endpoints") if stopped.get(k)]
    context.say(f"the control plane (pid {pid}) has ended" + (f", with {' and '.join(what)}" if what else ""))
    for line in stopped.get("left") or []:
        context.say(f"not stopped: {line}")


def _ended(pid: int, started: str, timeout: float) -> bool:
    begun = time.monotonic()
    while locate.alive(pid, started):
        if time.monotonic() - begun > timeout:
            return False
        time.sleep(0.05)
    return True


# -- delete and help -----------------------------------------------------------------------------------------------


def delete(a: argparse.Namespace, context: Context) -> None:
    """Delete something, after asking."""
    client = context.client
    name = a.name
    if a.kind == "job":
        job = context.job(name)
        name = job.name
        action, what = job.delete, f"job {job.name} (it can be restored; its run stays)"
    elif a.kind == "run":
        run = context.run(name)
        name = run.name
        action, what = run.delete, f"run {run.name} ({run.id[:8]})"
    elif a.kind == "endpoint":
        endpoint = client.endpoint(name)
        action, what = endpoint.delete, f"endpoint {name} with its deployments and keys"
    elif a.kind == "deployment":
        parent, slash, child = name.partition("/")
        if not slash:
            raise ParameterError(f"{name!r} is not ENDPOINT/DEPLOYMENT", f"see: {context.command('endpoints ' + name)}")
        deployment = client.deployment(parent, child)
        action, what = deployment.delete, f"deployment {name}"
    else:
        model, slash, version = name.rpartition("/")
        if slash and version.isascii() and version.isdigit() and not _has_model(client, name):
            found = client.version(name)
            action, what = found.delete, f"version {version} of model {model}"
        else:
            action, what = client.model(name).delete, f"model {name} with all versions"
    context.confirm(f"Delete {what}?", a.yes)
    action()
    back = {"job": f"; {context.command('restore job ' + name)} takes that back"}
    context.say(f"{a.kind} {name} is deleted{back.get(a.kind, '')}")


def restore(a: argparse.Namespace, context: Context) -> Any:
    """Take a deletion back."""
    if a.kind == "run":
        return context.run(a.name).restore()
    return context.job(a.name).restore()


def purge(a: argparse.Namespace, context: Context) -> None:
    """Remove a job for good, after asking."""
    job = context.job(a.name)
    context.confirm(f"Remove job {job.name} for good, with its logs and outputs (its run stays)?", a.yes)
    job.purge()
    context.say(f"job {job.name} is purged")


def _has_model(client: Any, name: str) -> bool:
    try:
        client.model(name)
    except NotFound:
        return False
    return True


def help_text(a: argparse.Namespace, context: Context) -> None:
    """Print help of a verb, or of all."""
    from .parser import help_for

    print(help_for(a.verb_name, context.face))
