"""MLflow's tracking store inside a job: what is logged goes to the journal, so that no server can hold up training.

Getting and starting the job's own run, and its experiment, are answered from ``run.json`` of the job folder. What needs
an answer of the server (further runs, searches, the registry) still waits for it.
"""

import json
import struct
import sys

from mlflow.entities import (
    Experiment,
    LifecycleStage,
    Metric,
    Param,
    Run,
    RunData,
    RunInfo,
    RunInputs,
    RunOutputs,
    RunStatus,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.protos import service_pb2
from mlflow.store.entities.paged_list import PagedList
from mlflow.utils import validation
from mlflow.utils.time import get_current_time_millis

from . import arrival, mlflow_stores, replay
from . import mlflow_http as http
from .mlflow_models import JobModels, json_body

#: Seconds for connecting, and of silence, that reading the job's own run may take.
_READ = (2.0, 5.0)


def spare_spark():
    """Keep MLflow from trying to import Spark, for its active session, twice in each call of ``mlflow.log_metric``.

    Where Spark is absent that takes three quarters of the call. Without the module there is no session.
    """
    from mlflow.tracking._model_registry import utils

    original = getattr(utils, "_get_active_spark_session", None)
    if original is None or getattr(original, "ours", False):
        return

    def session():
        return original() if "pyspark" in sys.modules else None

    session.ours = True  # type: ignore[attr-defined]
    utils._get_active_spark_session = session


class JobTracking(JobModels):
    """Runs in our workspace, as seen by a rank that journals.

    Args:
        here: the rank's :class:`.record.Place`; its journal can be written.
    """

    def __init__(self, uri, here):
        super().__init__(uri, here)
        spare_spark()
        self._journal = here.writer
        self._own = here.run_id
        self._replay = replay.Replay(here.job, here.run_id)
        self._names = set()  # names of metrics that are fine
        self._params = {}  # run id → {key: value} of params that this process has logged
        self._runs = {}  # run id → RunInfo of runs that this process has made, or None of those that exist
        self._facts = {}
        self._known_facts()

    def _known_facts(self):
        """Facts of the job's own run, ``{}`` when the control plane has left none."""
        if not self._facts:
            found = self._here.job.run()
            if found.get("run_id") == self._own and found.get("experiment_id"):
                self._facts = found
        return self._facts

    # -- what is logged

    def log_metric(self, run_id, metric):
        key, value = metric.key, metric.value
        if key not in self._names or type(value) is not float or metric.timestamp < 0:
            self._check(metric)
        if run_id != self._own:
            self._check_run(run_id)
        if metric.model_id is not None or metric.dataset_name is not None:
            self._journal.call("LogBatch", {"run_id": run_id, "metrics": [json_body(metric.to_proto())]})
            return
        try:
            self._journal.metric(key, value, metric.step, metric.timestamp, "" if run_id == self._own else run_id)
        except struct.error:
            self._misfit(metric)

    def _check(self, metric):
        validation._validate_metric(metric.key, metric.value, metric.timestamp, metric.step)
        if len(self._names) < 100000:
            self._names.add(metric.key)

    def _misfit(self, metric):
        raise MlflowException.invalid_parameter_value(
            "Metric %r: value, timestamp and step must be numbers, the last two whole ones of 64 bits; got %r, %r, %r."
            % (metric.key, metric.value, metric.timestamp, metric.step)
        )

    def _check_run(self, run_id):
        """Refuse at once what the server would: runs that do not exist, or are none of ours.

        While nobody answers they are believed to exist.
        """
        if run_id == self._own or run_id in self._runs:
            return
        validation._validate_run_id(run_id)
        if not arrival.away():
            try:
                with http.brief(_READ):
                    super().get_run(run_id)
            except http.Away:
                arrival.note_away()
                return
        self._runs[run_id] = None

    def log_batch(self, run_id, metrics, params, tags):
        validation._validate_batch_log_limits(metrics, params, tags)
        for metric in metrics:
            self._check(metric)
        validation._validate_param_keys_unique(params)
        params = [validation._validate_param(p.key, p.value) for p in params]
        tags = [validation._validate_tag(t.key, t.value) for t in tags]
        self._check_run(run_id)
        self._check_params(run_id, params)
        plain, special = [], []  # type: tuple[list, list]
        for metric in metrics:
            (plain if metric.model_id is None and metric.dataset_name is None else special).append(metric)
        try:
            if plain:
                self._journal.points(
                    [(m.key, m.value, m.step, m.timestamp) for m in plain], "" if run_id == self._own else run_id
                )
        except struct.error:
            self._misfit(plain[0])
        if special:
            self._journal.call("LogBatch", {"run_id": run_id, "metrics": [json_body(m.to_proto()) for m in special]})
        if params or tags:
            self._call("LogBatch", service_pb2.LogBatch(
                run_id=run_id, params=[p.to_proto() for p in params], tags=[t.to_proto() for t in tags]
            ))

    def _check_params(self, run_id, params):
        """A param has one value; what an earlier attempt of the job logged is the delivery's business."""
        known = self._params.setdefault(run_id, {})
        for param in params:
            if known.get(param.key, param.value) != param.value:
                raise MlflowException.invalid_parameter_value(
                    "Changing param values is not allowed. Param with key='%s' was already logged with value='%s' for"
                    " run ID='%s'. Attempted logging new value '%s'."
                    % (param.key, known[param.key], run_id, param.value)
                )
        known.update((p.key, p.value) for p in params)

    def _call(self, api, message):
        try:
            self._journal.call(api, json_body(message))
        except ValueError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None

    def log_param(self, run_id, param):
        self.log_batch(run_id, [], [Param(param.key, param.value)], [])

    def set_tag(self, run_id, tag):
        self.log_batch(run_id, [], [], [tag])

    def delete_tag(self, run_id, key):
        self._check_run(run_id)
        self._call("DeleteTag", service_pb2.DeleteTag(run_id=run_id, key=key))

    def log_inputs(self, run_id, datasets=None, models=None):
        self._check_run(run_id)
        self._call("LogInputs", service_pb2.LogInputs(
            run_id=run_id, datasets=[d.to_proto() for d in datasets or []], models=[m.to_proto() for m in models or []]
        ))

    def log_outputs(self, run_id, models):
        self._check_run(run_id)
        self._call("LogOutputs", service_pb2.LogOutputs(run_id=run_id, models=[m.to_proto() for m in models]))

    def record_logged_model(self, run_id, mlflow_model):
        self._check_run(run_id)
        self._call("LogModel", service_pb2.LogModel(
            run_id=run_id, model_json=json.dumps(mlflow_model.get_tags_dict())
        ))

    # -- runs

    def create_run(self, experiment_id, user_id, start_time, tags, run_name):
        run = super().create_run(experiment_id, user_id, start_time, tags, run_name)
        if run.info.run_id != self._own:
            self._runs[run.info.run_id] = run.info
        return run

    def _resume_own(self, run_id, tags, run_name):
        if not self._known_facts():
            return super()._resume_own(run_id, tags, run_name)
        if run_name:
            self.update_run_info(run_id, None, None, run_name)
        self.log_batch(run_id, [], [], mlflow_stores.tags_of_own(tags))
        return self._local_run()

    def update_run_info(self, run_id, run_status, end_time, run_name):
        own = run_id == self._own
        if own:
            mlflow_stores.note_own_run()
            if not self._known_facts():
                return super().update_run_info(run_id, run_status, end_time, run_name)
            if run_status is not None:  # the job says how its run goes and ends
                run_status, end_time = None, None
        else:
            self._check_run(run_id)
        if run_status is not None or run_name:
            self._call("UpdateRun", service_pb2.UpdateRun(
                run_id=run_id, status=run_status, end_time=end_time, run_name=run_name or None
            ))
        if own:
            return self._info(run_name or "")
        return self._updated(run_id, run_status, end_time, run_name)

    def _updated(self, run_id, run_status, end_time, run_name):
        before = self._runs.get(run_id)
        status = RunStatus.to_string(run_status) if run_status is not None else "RUNNING"
        info = RunInfo(
            run_id, before.experiment_id if before else self._facts.get("experiment_id", "0"),
            before.user_id if before else "", status, before.start_time if before else get_current_time_millis(),
            end_time, LifecycleStage.ACTIVE, before.artifact_uri if before else None,
            run_name or (before.run_name if before else None),
        )
        if before:
            self._runs[run_id] = info
        return info

    def get_run(self, run_id):
        delivered = arrival.settle()
        if run_id != self._own or not self._known_facts():
            return super().get_run(run_id)
        if delivered and not arrival.away():
            try:
                with http.brief(_READ):
                    return super().get_run(run_id)
            except http.Away:
                arrival.note_away()
        return self._local_run()

    def get_metric_history(self, run_id, metric_key, max_results=None, page_token=None):
        delivered = arrival.settle()
        if run_id != self._own or (delivered and not arrival.away()) or page_token:
            return super().get_metric_history(run_id, metric_key, max_results, page_token)
        points = self._replay.history(metric_key)
        return PagedList([Metric(metric_key, v, ms, step, run_id=run_id) for v, step, ms in points], None)

    def _search_runs(self, *args, **options):
        arrival.settle()
        return super()._search_runs(*args, **options)

    def search_logged_models(self, *args, **options):
        arrival.settle()
        return super().search_logged_models(*args, **options)

    def _info(self, name=""):
        facts = self._facts
        return RunInfo(
            self._own, str(facts["experiment_id"]), str(facts.get("user") or ""), "RUNNING",
            int(facts.get("start_time") or 0), None, LifecycleStage.ACTIVE,
            facts.get("artifact_uri") or "mlflow-artifacts:/%s/%s/artifacts" % (facts["experiment_id"], self._own),
            name or self._replay.name or facts.get("run_name"),
        )

    def _local_run(self):
        """The job's own run, as far as its ranks know it."""
        seen = self._replay.refresh()
        info = self._info()
        tags = {"mlflow.runName": info.run_name or "", "mlflow.user": info.user_id, "mlops.job": self._here.name,
                **(self._facts.get("tags") or {}), **seen.tags}
        metrics = [Metric(k, v, ms, step, run_id=self._own) for k, (v, step, ms) in seen.metrics.items()]
        return Run(
            info,
            RunData(metrics, [Param(k, v) for k, v in seen.params.items()],
                    [RunTag(k, v) for k, v in tags.items() if k not in seen.removed]),
            RunInputs([], []), RunOutputs([]),
        )

    # -- the job's own experiment

    def _experiment(self):
        facts = self._facts
        return Experiment(
            str(facts["experiment_id"]), facts["experiment_name"], "mlflow-artifacts:/%s" % facts["experiment_id"],
            LifecycleStage.ACTIVE,
        )

    def get_experiment(self, experiment_id):
        if self._known_facts().get("experiment_name") and str(experiment_id) == str(self._facts["experiment_id"]):
            return self._experiment()
        return super().get_experiment(experiment_id)

    def get_experiment_by_name(self, experiment_name):
        if experiment_name and self._known_facts().get("experiment_name") == experiment_name:
            return self._experiment()
        return super().get_experiment_by_name(experiment_name)
