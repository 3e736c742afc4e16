"""Views over MLflow's model registry."""

from __future__ import annotations

from ...core.errors import Conflict, ParameterError
from .. import schemas, tracking_schemas
from ..operations import Answer, Call, operation

_WS = "/workspaces/{ws}"
_BACKEND = (409, 422, 502, 504)


async def _unused(call: Call, name: str, version: str | None = None) -> None:
    users = await call.plane.workspace.deployments_using(name, version)
    if users:
        what = f"version {version} of model {name!r}" if version else f"model {name!r}"
        raise Conflict(f"{what} is in use by {', '.join(users)}", "delete that deployment first")


@operation(
    "GET", _WS + "/models", "List registered models", "models/read", query=schemas.Page,
    responses={200: tracking_schemas.ModelList}, errors=_BACKEND,
)
async def list_models(call: Call) -> Answer:
    page = await call.plane.views.models(limit=call.query.limit, page_token=call.query.page_token)
    return Answer(body=tracking_schemas.ModelList.model_validate(page))


@operation(
    "GET", _WS + "/models/{model}", "Get a model with its versions", "models/read",
    responses={200: tracking_schemas.Model}, errors=_BACKEND,
)
async def get_model(call: Call) -> Answer:
    return Answer(body=tracking_schemas.Model.model_validate(await call.plane.views.model(call.path["model"])))


@operation(
    "DELETE", _WS + "/models/{model}", "Delete a model with all versions", "models/delete", responses={204: None},
    errors=_BACKEND,
)
async def delete_model(call: Call) -> Answer:
    """Refused while a deployment uses it."""
    name = call.path["model"]
    await _unused(call, name)
    await call.plane.audited(
        call.identity, "models/delete", f"models/{name}", {}, call.plane.views.delete_model(name), "model"
    )
    return Answer(204)


@operation(
    "POST", _WS + "/models/{model}/versions", "Register a version", "models/write", body=tracking_schemas.Register,
    responses={201: tracking_schemas.ModelVersion}, errors=_BACKEND,
)
async def register_model(call: Call) -> Answer:
    """From a run's logged model; the model is created when it is not there yet."""
    name, body = call.path["model"], call.body
    if bool(body.run_id) == bool(body.model_id):
        raise ParameterError("give either run_id or model_id")
    version = await call.plane.audited(
        call.identity, "models/write", f"models/{name}", body.model_dump(exclude_none=True),
        call.plane.views.register(name, **body.model_dump()), "model",
    )
    return Answer(201, tracking_schemas.ModelVersion.model_validate(version))


@operation(
    "GET", _WS + "/models/{model}/versions/{version}", "Get a model version", "models/read",
    responses={200: tracking_schemas.ModelVersion}, errors=_BACKEND,
)
async def get_model_version(call: Call) -> Answer:
    version = await call.plane.views.version(call.path["model"], call.path["version"])
    return Answer(body=tracking_schemas.ModelVersion.model_validate(version))


@operation(
    "DELETE", _WS + "/models/{model}/versions/{version}", "Delete a model version", "models/delete",
    responses={204: None}, errors=_BACKEND,
)
async def delete_model_version(call: Call) -> Answer:
    """Refused while a deployment uses it."""
    name, version = call.path["model"], call.path["version"]
    await _unused(call, name, version)
    await call.plane.audited(
        call.identity, "models/delete", f"models/{name}/{version}", {},
        call.plane.views.delete_version(name, version), "model",
    )
    return Answer(204)


@operation(
    "PUT", _WS + "/models/{model}/aliases/{alias}", "Point an alias at a version", "models/write",
    body=tracking_schemas.Alias, responses={200: tracking_schemas.ModelVersion}, errors=_BACKEND,
)
async def put_alias(call: Call) -> Answer:
    name, alias, version = call.path["model"], call.path["alias"], call.body.version
    await call.plane.audited(
        call.identity, "models/write", f"models/{name}@{alias}", {"version": version},
        call.plane.views.set_alias(name, alias, version), "model",
    )
    return Answer(body=tracking_schemas.ModelVersion.model_validate(await call.plane.views.version(name, version)))


@operation(
    "DELETE", _WS + "/models/{model}/aliases/{alias}", "Remove an alias", "models/aliases/delete",
    responses={204: None}, errors=_BACKEND,
)
async def delete_alias(call: Call) -> Answer:
    name, alias = call.path["model"], call.path["alias"]
    await call.plane.audited(
        call.identity, "models/write", f"models/{name}@{alias}", {"op": "delete"},
        call.plane.views.delete_alias(name, alias), "model",
    )
    return Answer(204)
