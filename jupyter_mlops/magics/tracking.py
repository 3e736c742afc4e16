"""Verbs about runs and models: log, runs, compare, register, models."""

from __future__ import annotations

import argparse
import getpass
import math
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..client.run import Run, best_with_model, lower_is_better
from ..core.errors import BackendUnreachable, NotFound, ParameterError, Refused
from . import settings
from .context import Context

if TYPE_CHECKING:
    from ..client.model import Model, ModelTable, ModelVersion
    from ..client.run import Comparison, RunTable


def log(a: argparse.Namespace, context: Context) -> Run:
    """Log into the named run, else the active one, else a new one that is closed again."""
    metrics: dict[str, float] = {}
    params: dict[str, str] = {}
    for key, text in a.values:
        value = _as_number(text)
        if value is None:
            params[key] = text
        else:
            metrics[key] = value
    params.update(a.param)
    tags = dict(a.tag)
    files = [_existing(path) for path in a.artifact]
    if not (metrics or params or tags or files):
        raise ParameterError("there is nothing to log", f"for example: {context.command('log loss=0.3 acc=0.9')}")
    context.nearby()
    active = _active_run()
    if a.run is None and active is not None and (a.name or a.experiment):
        raise ParameterError(
            "a run is active, so --name and --experiment do not apply",
            "end it with mlflow.end_run(), or leave them out",
        )
    step = a.step or 0
    # An active run belongs to the user's own MLflow, wherever that points; it is written as MLflow would.
    if active is not None and a.run is None:
        return _log_by_mlflow(context, active, metrics, params, tags, files, step)
    if not settings.tracks_here(context.where):
        return _log_by_mlflow(context, a.run, metrics, params, tags, files, step, a.experiment, a.name)
    return _log_by_rest(context, a, metrics, params, tags, files, step)


def _as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _existing(path: str) -> Path:
    found = Path(path).expanduser()
    if not found.exists():
        raise ParameterError(f"there is no file {path!r}", f"the folder is {os.getcwd()}")
    return found


def _active_run() -> Any:
    mlflow = sys.modules.get("mlflow")
    return mlflow.active_run() if mlflow is not None and hasattr(mlflow, "active_run") else None


def _log_by_mlflow(
    context: Context, run: Any, metrics: dict[str, float], params: dict[str, str], tags: dict[str, str],
    files: list[Path], step: int, experiment: str | None = None, name: str | None = None,
) -> Run:
    import mlflow
    from mlflow.entities import Metric, Param, RunTag

    client = mlflow.MlflowClient()
    now = int(time.time() * 1000)
    made = False
    try:
        if run is None:
            wanted = experiment or context.experiment
            there = client.get_experiment_by_name(wanted)
            experiment_id = there.experiment_id if there else client.create_experiment(wanted)
            run = client.create_run(experiment_id, run_name=name)
            made = True
        run_id = run if isinstance(run, str) else run.info.run_id
        client.log_batch(
            run_id,
            [Metric(k, v, now, step) for k, v in metrics.items()],
            [Param(k, v) for k, v in params.items()],
            [RunTag(k, v) for k, v in tags.items()],
        )
        for path in files:
            (client.log_artifacts if path.is_dir() else client.log_artifact)(run_id, str(path))
        if made:
            client.set_terminated(run_id)
        entity = client.get_run(run_id)
    except mlflow.exceptions.MlflowException as error:
        if made:
            client.set_terminated(run_id, "FAILED")
        raise BackendUnreachable(
            f"MLflow at {mlflow.get_tracking_uri()} refused: {str(error).splitlines()[0]}"
        ) from error
    info = entity.info
    return Run(context.client, {
        "run_id": info.run_id, "name": info.run_name, "experiment_id": info.experiment_id, "experiment_name": "",
        "status": info.status, "metrics": entity.data.metrics, "params": entity.data.params, "tags": entity.data.tags,
    })


def _log_by_rest(
    context: Context, a: argparse.Namespace, metrics: dict[str, float], params: dict[str, str], tags: dict[str, str],
    files: list[Path], step: int,
) -> Run:
    """The same by MLflow's REST API, without the second that importing mlflow takes."""
    client = context.client
    call = client.mlflow
    now = int(time.time() * 1000)
    if a.run is not None:
        run_id = context.run(a.run).id
    else:
        body: dict[str, Any] = {
            "experiment_id": client.experiment_id(a.experiment or context.experiment),
            "start_time": now,
            "tags": [
                {"key": "mlflow.user", "value": os.environ.get("JUPYTERHUB_USER") or getpass.getuser()},
                {"key": "mlflow.source.name", "value": context.notebook or "jupyter mlops"},
                {"key": "mlflow.source.type", "value": "NOTEBOOK" if context.notebook else "LOCAL"},
            ],
        }
        if a.name:
            body["run_name"] = a.name
        run_id = call("POST", "runs/create", body)["run"]["info"]["run_id"]
    try:
        batch = {
            "run_id": run_id,
            "metrics": [{"key": k, "value": _wire(v), "timestamp": now, "step": step} for k, v in metrics.items()],
            "params": [{"key": k, "value": v} for k, v in params.items()],
            "tags": [{"key": k, "value": v} for k, v in tags.items()],
        }
        if metrics or params or tags:
            call("POST", "runs/log-batch", batch)
        for path in files:
            client.log_artifact(run_id, path)
    except BaseException:
        if a.run is None:
            _end(client, run_id, "FAILED")
        raise
    if a.run is None:
        _end(client, run_id, "FINISHED")
    return client.run(run_id)


def _end(client: Any, run_id: str, status: str) -> None:
    body = {"run_id": run_id, "status": status, "end_time": int(time.time() * 1000)}
    client.mlflow("POST", "runs/update", body)


def _wire(value: float) -> float | str:
    """JSON has no NaN; MLflow's protocol writes such numbers as text."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def runs(a: argparse.Namespace, context: Context) -> Run | RunTable:
    """One run, or a table."""
    context.nearby()
    if a.run is not None:
        return context.run(a.run)
    table = context.client.runs(a.experiment, a.filter, a.order_by, a.limit)
    table.note = _elsewhere(context)
    return table


def _elsewhere(context: Context) -> str:
    if settings.tracks_here(context.where):
        return ""
    value = settings.tracking(context.where)
    return f"these are runs of this workspace; plain mlflow calls go to {value.value} ({value.source})"


def _order(metric: str, lower: bool) -> str:
    quoted = metric.replace("`", "")
    return f"metrics.`{quoted}` {'ASC' if lower else 'DESC'}"


def compare(a: argparse.Namespace, context: Context) -> Comparison:
    """Runs side by side."""
    if a.runs and a.experiment:
        raise ParameterError("name runs, or an experiment, not both")
    if a.runs:
        chosen = [context.run(r) for r in a.runs]
    else:
        experiment = a.experiment or context.experiment
        order = _order(a.metric, lower_is_better(a.metric)) if a.metric else None
        chosen = list(context.client.runs(experiment, None, order, a.limit))
        if a.metric:
            having = [r for r in chosen if a.metric in r.metrics]
            chosen = having or chosen
        if not chosen:
            raise NotFound(f"experiment {experiment!r} has no runs", f"see: {context.command('runs')}")
    if len({r.id for r in chosen}) < len(chosen):
        chosen = list({r.id: r for r in chosen}.values())
    return context.client.compare(chosen, a.metric)


def register(a: argparse.Namespace, context: Context) -> ModelVersion:
    """Register a run's model, or that of the best run."""
    client = context.client
    if a.run != "best":
        if a.metric or a.lower is not None:
            raise ParameterError("--metric, --max and --min go with: register best MODEL")
        return client.register(context.run(a.run).id, a.name, a.alias, a.artifact, a.description)
    experiment = a.experiment or context.experiment
    if not a.metric:
        try:
            known = sorted({k for r in client.runs(experiment, limit=50) for k in r.metrics})
        except NotFound:
            known = []
        hint = "metrics here: " + ", ".join(known[:8]) if known else f"experiment {experiment!r} has no metrics"
        raise ParameterError("best needs --metric", hint)
    lower = lower_is_better(a.metric) if a.lower is None else a.lower
    table = client.runs(experiment, None, _order(a.metric, lower), 200)
    if not len(table):
        raise NotFound(f"experiment {experiment!r} has no runs", "name another with --experiment")
    try:
        run, remark = best_with_model(table, a.metric, lower)
    except Refused as error:
        raise Refused(f"no run of experiment {experiment!r} with {a.metric} has a model", error.hint) from None
    if remark:
        context.say(f"note: {remark}")
    context.say(f"best run by {a.metric}: {run.name} ({run.metrics[a.metric]:.6g})")
    return client.register(run.id, a.name, a.alias, a.artifact, a.description)


def models(a: argparse.Namespace, context: Context) -> Model | ModelTable:
    """One model with its versions, or a table."""
    return context.client.model(a.name) if a.name else context.client.models()
