"""Experiments, runs and models as our REST interface shows them: views over MLflow, without rows of our own."""

from __future__ import annotations

import difflib
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..core.errors import Conflict, NotFound, ParameterError
from .api import MlflowApi
from .child import MlflowChild
from .orphans import Orphans
from .proxy import HOLDER_TAG, PARENT_TAG, REQUEST_TAG
from .registry import Registry
from .shape import iso, number, progress, quoted, thin

JOB_TAG = "mlops.job"
PROGRESS_TAG = "mlops.progress"
#: MLflow's ``status`` of a run that has ended.
ENDED = frozenset({"FINISHED", "FAILED", "KILLED"})
#: Points that one page of a metric's history holds; MLflow's own limit.
_HISTORY_PAGE = 25_000
#: Steps from which on a history is not read in full, and how many points are taken then; MLflow's own limit.
_LONG = 100_000
_SAMPLE = 2500
#: Experiments searched at once; MLflow's own limit on the ids of one search is far higher.
_MANY = 1000
#: Seconds for which the id of an experiment is believed: many jobs are submitted at once.
_EXPERIMENT_LIFE = 2.0
#: Tags that belong to the machinery and are not shown.
_HIDDEN_TAGS = frozenset({REQUEST_TAG, HOLDER_TAG, "mlflow.log-model.history"})


class MlflowViews(Registry):
    """What handlers and controllers ask of MLflow. All calls raise :class:`~jupyter_mlops.core.errors.MlopsError`."""

    def __init__(self, child: MlflowChild) -> None:
        super().__init__(MlflowApi(child), Path(child.artifacts))
        #: Ends what a job leaves beneath its run.
        self.orphans: Orphans | None = None
        self._experiment_ids: dict[str, tuple[str, float]] = {}  # name → id, and when it was looked up

    async def close(self) -> None:
        """Close the connections to MLflow."""
        await self.api.close()

    # Experiments

    async def experiments(self, limit: int = 50, page_token: str | None = None) -> dict[str, Any]:
        """A page of experiments, newest first."""
        answer = await self.api.post(
            "experiments/search", max_results=limit, page_token=page_token, order_by=["creation_time DESC"],
        )
        keys = ("experiment_id", "name", "lifecycle_stage", "artifact_location")
        items = [
            {**{k: e.get(k, "") for k in keys}, "last_update_time": iso(e.get("last_update_time"))}
            for e in answer.get("experiments", [])
        ]
        return {"items": items, "next_token": answer.get("next_page_token") or None}

    async def experiment_id(self, name: str) -> str:
        """Id of the experiment with that name.

        Raises:
            NotFound: with the nearest name as hint.
        """
        try:
            found = await self.api.get("experiments/get-by-name", experiment_name=name)
        except NotFound:
            answer = await self.api.post("experiments/search", max_results=_MANY)
            names = [e["name"] for e in answer.get("experiments", [])]
            near = difflib.get_close_matches(name, names, 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else "list them with: %mlops runs"
            raise NotFound(f"experiment {name!r} does not exist", hint) from None
        experiment = found["experiment"]
        if experiment.get("lifecycle_stage") == "deleted":
            raise NotFound(f"experiment {name!r} is deleted", "restore it in MLflow, or choose another name")
        return experiment["experiment_id"]

    async def _experiment_names(self, ids: set[str]) -> dict[str, str]:
        names: dict[str, str] = {}
        token = None
        while ids - names.keys():
            answer = await self.api.post("experiments/search", max_results=_MANY, page_token=token, view_type="ALL")
            names.update((e["experiment_id"], e["name"]) for e in answer.get("experiments", []))
            token = answer.get("next_page_token")
            if not token:
                break
        return names

    # Runs

    async def runs(
        self, experiment: str | None = None, filter: str | None = None, order_by: str | None = None,
        limit: int = 50, page_token: str | None = None,
    ) -> dict[str, Any]:
        """A page of run rows, newest first unless ``order_by`` (MLflow's syntax, comma-separated) says otherwise."""
        if experiment is not None:
            found = await self.experiment_id(experiment)
            names, ids = {found: experiment}, [found]
        else:
            answer = await self.api.post("experiments/search", max_results=_MANY)
            names = {e["experiment_id"]: e["name"] for e in answer.get("experiments", [])}
            ids = list(names)
        if not ids:
            return {"items": [], "next_token": None}
        order = [part.strip() for part in order_by.split(",")] if order_by else ["attributes.start_time DESC"]
        answer = await self.api.post(
            "runs/search", experiment_ids=ids, filter=filter or None, order_by=order, max_results=limit,
            page_token=page_token,
        )
        items = [self._row(run, names) for run in answer.get("runs", [])]
        return {"items": items, "next_token": answer.get("next_page_token") or None}

    async def run(self, run_id: str) -> dict[str, Any]:
        """One run row, with the names of its models."""
        run = await self._get_run(run_id)
        experiment = run["info"]["experiment_id"]
        row = self._row(run, await self._experiment_names({experiment}))
        if row["models"]:
            known = {m["model_id"]: m["name"] for m in await self.logged_models(experiment, run_id)}
            row["models"] = [{**m, "name": known.get(m["model_id"], m["name"])} for m in row["models"]]
        return row

    async def _get_run(self, run_id: str) -> dict[str, Any]:
        try:
            return (await self.api.get("runs/get", run_id=run_id))["run"]
        except (NotFound, ParameterError):
            raise NotFound(f"run {run_id!r} does not exist", "list runs with: %mlops runs") from None

    def _row(self, run: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
        info, data = run["info"], run.get("data", {})
        tags = {t["key"]: t.get("value", "") for t in data.get("tags", [])}
        outputs = run.get("outputs", {}).get("model_outputs", [])
        return {
            "run_id": info["run_id"],
            "name": info.get("run_name") or tags.get("mlflow.runName", ""),
            "experiment_id": info["experiment_id"],
            "experiment_name": names.get(info["experiment_id"], ""),
            "status": info.get("status", "RUNNING"),
            "lifecycle_stage": info.get("lifecycle_stage", "active"),
            "start_time": iso(info.get("start_time")),
            "end_time": iso(info.get("end_time")),
            "user": tags.get("mlflow.user") or info.get("user_id", ""),
            "source": tags.get("mlflow.source.name", ""),
            "job": tags.get(JOB_TAG, ""),
            "parent_run_id": tags.get(PARENT_TAG, ""),
            "metrics": {m["key"]: number(m.get("value")) for m in data.get("metrics", [])},
            "params": {p["key"]: p.get("value", "") for p in data.get("params", [])},
            "tags": {k: v for k, v in tags.items() if k not in _HIDDEN_TAGS},
            "models": [{"model_id": m["model_id"], "name": ""} for m in outputs if m.get("model_id")],
            "progress": progress(tags.get(PROGRESS_TAG, "")),
        }

    async def delete_run(self, run_id: str) -> None:
        """Mark a run as deleted; nothing happens when it is already."""
        run = await self._get_run(run_id)
        if run["info"].get("lifecycle_stage") != "deleted":
            await self.api.post("runs/delete", run_id=run_id)

    async def restore_run(self, run_id: str) -> None:
        """Take the mark off again."""
        run = await self._get_run(run_id)
        if run["info"].get("lifecycle_stage") == "deleted":
            await self.api.post("runs/restore", run_id=run_id)

    async def metrics(self, run_id: str, max_points: int = 500, keys: list[str] | None = None) -> dict[str, Any]:
        """The curves of a run, each thinned to ``max_points``; first and last points stay.

        ``total`` counts all points, except of histories over ``_LONG`` steps: there it counts those that were read.
        """
        run = await self._get_run(run_id)
        present = {m["key"]: int(m.get("step", 0)) for m in run.get("data", {}).get("metrics", [])}
        series = {}
        for key in present if keys is None else [k for k in keys if k in present]:
            points = await (self._sample if present[key] > _LONG else self._history)(run_id, key)
            # By step, then time, then as logged: the order in which MLflow takes the last value.
            points.sort(key=lambda p: (int(p.get("step", 0)), int(p.get("timestamp", 0))))
            kept = thin(points, max_points)
            series[key] = {
                "steps": [int(p.get("step", 0)) for p in kept],
                "values": [number(p.get("value")) for p in kept],
                "timestamps": [int(p.get("timestamp", 0)) for p in kept],
                "last": number(points[-1].get("value")) if points else None,
                "total": len(points),
            }
        return {"run_id": run_id, "status": run["info"].get("status", ""), "metrics": series}

    async def _sample(self, run_id: str, key: str) -> list[dict[str, Any]]:
        """A very long history, thinned by MLflow itself, first and last steps included."""
        answer = await self.api.get(
            "/ajax-api/2.0/mlflow/metrics/get-history-bulk-interval", run_ids=run_id, metric_key=key,
            max_results=_SAMPLE,
        )
        return answer.get("metrics", [])

    async def _history(self, run_id: str, key: str) -> list[dict[str, Any]]:
        points: list[dict[str, Any]] = []
        token = None
        while True:
            answer = await self.api.get(
                "metrics/get-history", run_id=run_id, metric_key=key, max_results=_HISTORY_PAGE, page_token=token,
            )
            points += answer.get("metrics", [])
            token = answer.get("next_page_token")
            if not token:
                return points

    # For the controllers

    async def create_job_run(
        self, experiment: str, job: str, name: str, tags: dict[str, str], user: str, fresh: bool = False
    ) -> dict[str, Any]:
        """Facts of a job's run, see :meth:`job_run`; a repeat finds the run that it made before.

        Args:
            fresh: there is certainly none yet, so none is looked for.
        """
        kept, at = self._experiment_ids.get(experiment, ("", 0.0))
        known = kept if time.monotonic() - at < _EXPERIMENT_LIFE else ""
        experiment_id = known or await self._own_experiment(experiment)
        self._experiment_ids = {experiment: (experiment_id, at if known else time.monotonic())}
        found = "" if fresh else await self._job_run(experiment_id, job)
        if found:
            return await self.job_run(found)
        every = {**tags, JOB_TAG: job, "mlflow.runName": name, "mlflow.user": user}
        made = await self.api.post(
            "runs/create", experiment_id=experiment_id, user_id=user, run_name=name,
            start_time=int(datetime.now(UTC).timestamp() * 1000),
            tags=[{"key": k, "value": str(v)} for k, v in every.items()],
        )
        if self.orphans is not None:
            self.orphans.made(made["run"]["info"]["run_id"])
        return self._facts(made["run"], experiment)

    def _facts(self, run: dict[str, Any], experiment: str) -> dict[str, Any]:
        info = run["info"]
        tags = {t["key"]: t.get("value", "") for t in run.get("data", {}).get("tags", [])}
        return {
            "run_id": info["run_id"], "experiment_id": info["experiment_id"], "experiment_name": experiment,
            "run_name": info.get("run_name") or tags.get("mlflow.runName", ""),
            "user": tags.get("mlflow.user") or info.get("user_id", ""), "start_time": int(info.get("start_time") or 0),
            "artifact_uri": info.get("artifact_uri", ""),
        }

    async def job_run(self, run_id: str) -> dict[str, Any]:
        """What a job's ranks must know of its run, for ``run.json``.

        Raises:
            NotFound: it does not exist, or is deleted.
        """
        run = await self._get_run(run_id)
        if run["info"].get("lifecycle_stage") == "deleted":
            raise NotFound(f"run {run_id!r} is deleted", "restore it")
        experiment = run["info"]["experiment_id"]
        return self._facts(run, (await self._experiment_names({experiment})).get(experiment, ""))

    async def reopen_run(self, run_id: str) -> None:
        """Have a run that has ended go on.

        Raises:
            NotFound: it does not exist, or is deleted.
        """
        try:
            await self.api.post("runs/update", run_id=run_id, status="RUNNING")
        except ParameterError:
            raise NotFound(f"run {run_id!r} is deleted", "restore it") from None

    async def find_job_run(self, experiment: str, job: str) -> str:
        """The run that :meth:`create_job_run` made for a job that goes on; empty when it made none."""
        try:
            found = (await self.api.get("experiments/get-by-name", experiment_name=experiment))["experiment"]
        except NotFound:
            return ""
        return await self._job_run(found["experiment_id"], job)

    async def _job_run(self, experiment_id: str, job: str) -> str:
        answer = await self.api.post(
            "runs/search", experiment_ids=[experiment_id], max_results=100, order_by=["attributes.start_time DESC"],
            filter=f"tags.`{JOB_TAG}` = {quoted(job)} and attributes.status = 'RUNNING'",
        )
        for run in answer.get("runs", []):
            # An earlier job of the same name has ended its run; runs beneath a job's run carry its name too.
            if not any(t["key"] == PARENT_TAG for t in run.get("data", {}).get("tags", [])):
                return run["info"]["run_id"]
        return ""

    async def _own_experiment(self, name: str) -> str:
        try:
            found = (await self.api.get("experiments/get-by-name", experiment_name=name))["experiment"]
        except NotFound:
            try:
                return (await self.api.post("experiments/create", name=name))["experiment_id"]
            except Conflict:  # somebody was faster
                found = (await self.api.get("experiments/get-by-name", experiment_name=name))["experiment"]
        if found.get("lifecycle_stage") == "deleted":
            raise Conflict(f"experiment {name!r} is deleted", "restore it in MLflow, or choose another name")
        return found["experiment_id"]

    async def finish_run(
        self, run_id: str, status: str, reason: str = "", end_time_ms: int | None = None, incomplete: bool = False
    ) -> None:
        """Set the terminal status of a job's run, and why as tag ``mlops.reason``; a deleted run stays as it is.

        Runs beneath it that still go on end with it. ``incomplete`` marks it with the tag ``metrics_incomplete``.

        Raises:
            NotFound: it does not exist.
        """
        if self.orphans is not None:
            await self.orphans.end_beneath(run_id, status, reason, end_time_ms)
        try:
            if reason:
                await self.api.post("runs/set-tag", run_id=run_id, key="mlops.reason", value=reason[:5000])
            if incomplete:
                await self.api.post("runs/set-tag", run_id=run_id, key="metrics_incomplete", value="true")
            await self.api.post("runs/update", run_id=run_id, status=status, end_time=end_time_ms)
        except ParameterError:
            run = await self._get_run(run_id)
            if run["info"].get("lifecycle_stage") != "deleted":
                raise
