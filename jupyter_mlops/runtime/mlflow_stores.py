"""MLflow's REST stores for our workspace, and what differs inside a job.

In a job the first run that is started is the job's own, made before by the control plane; later and nested runs hang
beneath it. How that run ends is the job's to say, so its terminal status is held back. What is logged goes to the
journal (:mod:`.mlflow_job`), or straight to MLflow where there is none. Ranks above 0 read, but what they write is
dropped, unless ``JUPYTER_MLOPS_LOG_ALL_RANKS=1``: then each has runs of its own beneath the job's.
"""

import os
import re
import sys
import time
import uuid

from mlflow.store.model_registry.rest_store import RestStore as PlainRegistry
from mlflow.store.tracking.rest_store import RestStore as PlainTracking

from . import arrival, forks, mlflow_plugin, record, spool
from . import mlflow_http as http

PARENT_TAG = "mlflow.parentRunId"
#: Which Python made a run's models: what deploys them later needs it.
INTERPRETER_TAG = "mlops.interpreter"
#: Calls that the server carries out once, however often we repeat them; by the name of their message.
ONCE = frozenset([
    "CreateRun", "DeleteRun", "RestoreRun", "CreateExperiment", "DeleteExperiment", "RestoreExperiment",
    "UpdateExperiment", "CreateLoggedModel", "DeleteLoggedModel", "CreateRegisteredModel", "RenameRegisteredModel",
    "UpdateRegisteredModel", "DeleteRegisteredModel", "CreateModelVersion", "UpdateModelVersion", "DeleteModelVersion",
    "SetRegisteredModelAlias", "DeleteRegisteredModelAlias", "TransitionModelVersionStage", "SetRegisteredModelTag",
    "DeleteRegisteredModelTag", "SetModelVersionTag", "DeleteModelVersionTag",
])
#: What context says of a new run; the job's own run knows it better already.
_KNOWN_OF_JOB = frozenset([
    "mlflow.user", "mlflow.source.name", "mlflow.source.type", "mlflow.runName", "mlflow.source.git.commit",
    "mlops.job", INTERPRETER_TAG,
])
_lock = forks.Lock()
#: pid → the run that was handed out in it; a forked child starts anew.
_handed_out: "dict[int, str]" = {}


def tracking_store_for(uri):
    """The tracking store for our URI in this process."""
    if http.silent():
        return SilentTracking(uri)
    here = record.place()
    if here is None or here.writer is None:
        return TrackingStore(uri)
    from .mlflow_job import JobTracking

    return JobTracking(uri, here)


def registry_store_for(uri):
    """The model registry store for our URI in this process."""
    return SilentRegistry(uri) if http.silent() else RegistryStore(uri)


def _take_own_run():
    """The job's run, for the first who asks in this process; ``""`` afterwards, in further ranks and outside jobs."""
    run_id = http.own_run()
    if not run_id or http.rank() > 0:
        return ""
    with _lock:
        if _handed_out.get(os.getpid()):
            return ""
        _handed_out[os.getpid()] = run_id
        return run_id


def note_own_run():
    """The job's run has been started in this process: the next one that is started is another."""
    with _lock:
        _handed_out[os.getpid()] = http.own_run()


def tags_of_own(tags):
    """What of the tags of a new run is news of the job's own one."""
    return [tag for tag in tags if tag.key not in _KNOWN_OF_JOB] + [_tag(INTERPRETER_TAG, sys.executable)]


def origin_of_model(tags, source_run_id):
    """(tags, source run id) of a new logged model, with the Python that made it and the job's run."""
    from mlflow.entities import LoggedModelTag

    tags = list(tags or [])
    if not any(tag.key == INTERPRETER_TAG for tag in tags):
        tags.append(LoggedModelTag(INTERPRETER_TAG, sys.executable))
    return tags, source_run_id or http.own_run() or None


def real_ids(text):
    """``text`` with MLflow's ids for those that models got here while it was away; waits until they are delivered.

    Raises:
        MlflowException: they were not in time.
    """
    if not text or spool.LOCAL_ID not in text:
        return text
    until = time.monotonic() + http.patience()
    for local in set(re.findall(spool.LOCAL_ID + "[0-9a-f]{20}", text)):
        real = arrival.real_id(local)
        while not real:
            _await_delivery("model %s" % local, until)
            real = arrival.real_id(local)
        text = text.replace(local, real)
    return text


def await_spool():
    """Wait until MLflow has all artifacts that this rank left in the spool.

    Raises:
        MlflowException: it had not in time.
    """
    here, until = record.place(), time.monotonic() + http.patience()
    while here is not None and spool.pending(here.job.spool, here.rank):
        _await_delivery("the files of this job", until)


def _await_delivery(what, until):
    from mlflow.exceptions import MlflowException

    if time.monotonic() > until:
        raise MlflowException("%s: not in MLflow yet, which does not answer; nothing is lost" % what)
    if not arrival.flush(10.0):
        time.sleep(0.5)


class TrackingStore(PlainTracking):
    """Runs in our workspace."""

    def __init__(self, uri):
        super().__init__(http.host_creds)
        self.uri = uri

    def _call_endpoint(self, api, json_body=None, endpoint=None, retry_timeout_seconds=None, response_proto=None):
        third = api in getattr(self, "_V3_APIS", ())
        known = self._V3_METHOD_TO_INFO if third else self._METHOD_TO_INFO
        path, method = known[api]
        return http.call_json(
            real_ids(endpoint or path), method, real_ids(json_body), response_proto or api.Response(),
            once=api.__name__ in ONCE,
        )

    def create_run(self, experiment_id, user_id, start_time, tags, run_name):
        tags = list(tags or [])
        named = set(tag.key for tag in tags)
        if PARENT_TAG not in named:
            own = _take_own_run()
            if own:
                return self._resume_own(own, tags, run_name)
            if http.own_run():
                tags.append(_tag(PARENT_TAG, http.own_run()))
                if http.rank() > 0 and not run_name and "mlflow.runName" not in named:
                    run_name = "rank %d" % http.rank()
        elif http.own_run():
            _take_own_run()
        if INTERPRETER_TAG not in named:
            tags.append(_tag(INTERPRETER_TAG, sys.executable))
        run = super().create_run(experiment_id, user_id, start_time, tags, run_name)
        mlflow_plugin.tell("created", run.info.run_id, next((t.value for t in tags if t.key == PARENT_TAG), ""))
        return run

    def _resume_own(self, run_id, tags, run_name):
        """The job's own run as if it were newly created."""
        if run_name:
            super().update_run_info(run_id, None, None, run_name)
        self.log_batch(run_id, [], [], tags_of_own(tags))
        return self.get_run(run_id)

    def update_run_info(self, run_id, run_status, end_time, run_name):
        if run_id == http.own_run():
            from mlflow.entities import RunStatus

            note_own_run()
            if run_status is not None and RunStatus.is_terminated(run_status):
                if not run_name:
                    return self.get_run(run_id).info
                run_status, end_time = None, None
        info = super().update_run_info(run_id, run_status, end_time, run_name)
        if end_time is not None:
            mlflow_plugin.tell("ended", run_id)
        return info

    def create_logged_model(
        self, experiment_id, name=None, source_run_id=None, tags=None, params=None, model_type=None
    ):
        tags, source_run_id = origin_of_model(tags, source_run_id)
        return super().create_logged_model(experiment_id, name, source_run_id, tags, params, model_type)


class RegistryStore(PlainRegistry):
    """Registered models in our workspace."""

    def __init__(self, uri):
        super().__init__(http.host_creds)
        self.uri = uri

    def _call_endpoint(self, api, json_body, call_all_endpoints=False, extra_headers=None):
        # Where a call has several endpoints, our server knows the first.
        path, method = self._get_all_endpoints_from_method(api)[0] if call_all_endpoints else (
            self._get_endpoint_from_method(api)
        )
        if api.__name__ == "CreateModelVersion":
            await_spool()
        return http.call_json(
            path, method, real_ids(json_body), self._get_response_from_method(api), once=api.__name__ in ONCE
        )


def _tag(key, value):
    from mlflow.entities import RunTag

    return RunTag(key, value)


#: Beginnings of the names of messages that change nothing.
_READS = ("Get", "Search", "List", "Query", "BatchGet", "Calculate")


def _reads(api):
    return api.__name__.startswith(_READS)


class SilentTracking(TrackingStore):
    """The store of a further rank: reads, and answers writes by itself."""

    def __init__(self, uri):
        super().__init__(uri)
        self._models = {}

    def _call_endpoint(self, api, json_body=None, endpoint=None, retry_timeout_seconds=None, response_proto=None):
        if _reads(api):
            return super()._call_endpoint(api, json_body, endpoint, retry_timeout_seconds, response_proto)
        return response_proto or api.Response()

    def create_run(self, experiment_id, user_id, start_time, tags, run_name):
        return self.get_run(http.own_run())

    def update_run_info(self, run_id, run_status, end_time, run_name):
        return self.get_run(run_id).info

    def create_experiment(self, name, artifact_location=None, tags=None):
        found = self.get_experiment_by_name(name)
        return found.experiment_id if found is not None else self.get_run(http.own_run()).info.experiment_id

    def create_logged_model(
        self, experiment_id, name=None, source_run_id=None, tags=None, params=None, model_type=None
    ):
        from mlflow.entities import LoggedModel, LoggedModelStatus

        model_id = "m-" + uuid.uuid4().hex
        now = int(time.time() * 1000)
        self._models[model_id] = LoggedModel(
            experiment_id=experiment_id, model_id=model_id, name=name or "model",
            artifact_location="mlflow-artifacts:/%s/models/%s/artifacts" % (experiment_id, model_id),
            creation_timestamp=now, last_updated_timestamp=now, source_run_id=source_run_id or http.own_run(),
            status=LoggedModelStatus.READY,
        )
        return self._models[model_id]

    def get_logged_model(self, model_id, *args, **options):
        if model_id in self._models:
            return self._models[model_id]
        return super().get_logged_model(model_id, *args, **options)

    def finalize_logged_model(self, model_id, status):
        return self.get_logged_model(model_id)

    def start_trace(self, trace_info):
        return trace_info

    def log_spans(self, location, spans, tracking_uri=None):
        return spans


class SilentRegistry(RegistryStore):
    """The registry of a further rank: reads, and answers writes by itself."""

    def _call_endpoint(self, api, json_body, call_all_endpoints=False, extra_headers=None):
        if _reads(api):
            return super()._call_endpoint(api, json_body, call_all_endpoints, extra_headers)
        import json

        response = self._get_response_from_method(api)
        asked = json.loads(json_body) if json_body else {}
        for field in ("registered_model", "model_version"):
            if field in response.DESCRIPTOR.fields_by_name:
                echoed = getattr(response, field)
                echoed.name = asked.get("name", "")
                if field == "model_version":
                    echoed.version = asked.get("version", "0")
                    echoed.source = asked.get("source", "")
                    echoed.status = 3  # READY
        return response
