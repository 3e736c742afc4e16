"""Logged models of a rank that journals: while MLflow is away they get an id here, and wait in the spool."""

import json

from mlflow.entities import LoggedModel, LoggedModelParameter, LoggedModelStatus, LoggedModelTag
from mlflow.protos import service_pb2
from mlflow.utils.proto_json_utils import message_to_json
from mlflow.utils.time import get_current_time_millis

from . import arrival, mlflow_stores, spool
from . import mlflow_http as http


def json_body(message):
    """The JSON object of a REST message, with the fields' own names."""
    return json.loads(message_to_json(message))


class JobModels(mlflow_stores.TrackingStore):
    """Models logged from a job.

    Args:
        here: the rank's :class:`.record.Place`.
    """

    def __init__(self, uri, here):
        super().__init__(uri)
        self._here = here
        self._models = {}  # type: dict[str, LoggedModel] # by local id

    def _spool(self, content):
        spool.put(self._here.job.spool, self._here.rank, content)

    def _about_model(self, api, model_id, body, direct):
        """Tell the server something about a model, or leave it in the spool when it is away, or behind."""
        if not spool.is_local(model_id) and not spool.pending(self._here.job.spool, self._here.rank):
            try:
                with http.brief():
                    return direct()
            except http.Away:
                arrival.note_away()
        self._spool({"kind": "call", "api": api, "model_id": model_id, "body": body})
        return None

    def create_logged_model(
        self, experiment_id, name=None, source_run_id=None, tags=None, params=None, model_type=None
    ):
        if not arrival.away():
            try:
                with http.brief():
                    return super().create_logged_model(experiment_id, name, source_run_id, tags, params, model_type)
            except http.Away:
                arrival.note_away()
        tags, source_run_id = mlflow_stores.origin_of_model(tags, source_run_id)
        model_id, now = spool.local_id(), get_current_time_millis()
        self._spool({
            "kind": "model", "local_id": model_id, "experiment_id": experiment_id, "name": name,
            "source_run_id": source_run_id, "model_type": model_type, "tags": {t.key: t.value for t in tags},
            "params": {p.key: p.value for p in params or []},
        })
        made = self._model(model_id, experiment_id, name, source_run_id, tags, params, model_type, now)
        self._models[model_id] = made
        return made

    def _model(self, model_id, experiment_id, name, source_run_id, tags, params, model_type, now):
        return LoggedModel(
            experiment_id=experiment_id, model_id=model_id, name=name or "model",
            artifact_location="mlflow-artifacts:/%s/models/%s/artifacts" % (experiment_id, model_id),
            creation_timestamp=now, last_updated_timestamp=now, model_type=model_type, source_run_id=source_run_id,
            status=LoggedModelStatus.PENDING, tags=list(tags or []), params=list(params or []),
        )

    def _local_model(self, model_id):
        """A model with a local id, also when another process of this rank has logged it; None when there is none."""
        if model_id not in self._models:
            for name in spool.names(self._here.job.spool):
                found = spool.entry(self._here.job.spool, name)
                if found.get("kind") == "model" and found.get("local_id") == model_id:
                    self._models[model_id] = self._model(
                        model_id, found["experiment_id"], found["name"], found["source_run_id"],
                        [LoggedModelTag(k, v) for k, v in found["tags"].items()],
                        [LoggedModelParameter(k, v) for k, v in found["params"].items()], found["model_type"],
                        spool.parse(name)[0] // 1000000,
                    )
        return self._models.get(model_id)

    def get_logged_model(self, model_id, *args, **options):
        if spool.is_local(model_id):
            found = self._local_model(model_id)
            if found is not None:
                return found
            model_id = mlflow_stores.real_ids(model_id)
        return super().get_logged_model(model_id, *args, **options)

    def finalize_logged_model(self, model_id, status):
        message = service_pb2.FinalizeLoggedModel(model_id=model_id, status=status.to_proto())
        done = self._about_model(
            "FinalizeLoggedModel", model_id, json_body(message),
            lambda: super(JobModels, self).finalize_logged_model(model_id, status),
        )
        if done is not None:
            return done
        model = self._models.get(model_id) or self._model(
            model_id, self._here.job.run().get("experiment_id", "0"), None, self._here.run_id, [], [], None,
            get_current_time_millis(),
        )
        model._status = status
        return model

    def set_logged_model_tags(self, model_id, tags):
        message = service_pb2.SetLoggedModelTags(model_id=model_id, tags=[t.to_proto() for t in tags])
        self._about_model("SetLoggedModelTags", model_id, json_body(message),
                          lambda: super(JobModels, self).set_logged_model_tags(model_id, tags))

    def delete_logged_model_tag(self, model_id, key):
        self._about_model("DeleteLoggedModelTag", model_id, {"model_id": model_id, "tag_key": key},
                          lambda: super(JobModels, self).delete_logged_model_tag(model_id, key))

    def log_logged_model_params(self, model_id, params):
        message = service_pb2.LogLoggedModelParamsRequest(model_id=model_id, params=[p.to_proto() for p in params])
        self._about_model("LogLoggedModelParamsRequest", model_id, json_body(message),
                          lambda: super(JobModels, self).log_logged_model_params(model_id, params))
