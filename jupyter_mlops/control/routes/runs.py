"""Views over MLflow's experiments and runs."""

from __future__ import annotations

from .. import schemas, tracking_schemas
from ..operations import Answer, Call, operation

_WS = "/workspaces/{ws}"
_BACKEND = (409, 422, 502, 504)


@operation(
    "GET", _WS + "/experiments", "List experiments", "experiments/read", query=schemas.Page,
    responses={200: tracking_schemas.ExperimentList}, errors=_BACKEND,
)
async def list_experiments(call: Call) -> Answer:
    page = await call.plane.views.experiments(limit=call.query.limit, page_token=call.query.page_token)
    return Answer(body=tracking_schemas.ExperimentList.model_validate(page))


@operation(
    "GET", _WS + "/runs", "Search runs", "runs/read",
    query=tracking_schemas.RunQuery, responses={200: tracking_schemas.RunList}, errors=_BACKEND,
)
async def list_runs(call: Call) -> Answer:
    """Newest first unless ``order_by`` says otherwise."""
    q = call.query
    page = await call.plane.views.runs(
        experiment=q.experiment, filter=q.filter, order_by=q.order_by, limit=q.limit, page_token=q.page_token
    )
    return Answer(body=tracking_schemas.RunList.model_validate(page))


@operation(
    "GET", _WS + "/runs/{run_id}", "Get a run", "runs/read", responses={200: tracking_schemas.Run}, errors=_BACKEND
)
async def get_run(call: Call) -> Answer:
    return Answer(body=tracking_schemas.Run.model_validate(await call.plane.views.run(call.path["run_id"])))


@operation(
    "DELETE", _WS + "/runs/{run_id}", "Delete a run", "runs/delete", body=None, responses={204: None},
    errors=_BACKEND,
)
async def delete_run(call: Call) -> Answer:
    """It can be restored until it is purged."""
    run_id = call.path["run_id"]
    await call.plane.audited(
        call.identity, "runs/delete", f"runs/{run_id}", {}, call.plane.views.delete_run(run_id), "run"
    )
    return Answer(204)


@operation(
    "POST", _WS + "/runs/{run_id}/actions/restore", "Restore a deleted run", "runs/restore", body=schemas.Nothing,
    responses={200: tracking_schemas.Run}, errors=_BACKEND,
)
async def restore_run(call: Call) -> Answer:
    run_id = call.path["run_id"]
    await call.plane.audited(
        call.identity, "runs/restore", f"runs/{run_id}", {}, call.plane.views.restore_run(run_id), "run"
    )
    return Answer(body=tracking_schemas.Run.model_validate(await call.plane.views.run(run_id)))


@operation(
    "GET", _WS + "/runs/{run_id}/metrics", "Get a run's curves", "runs/read", query=tracking_schemas.MetricQuery,
    responses={200: tracking_schemas.RunMetrics}, errors=_BACKEND,
)
async def get_run_metrics(call: Call) -> Answer:
    """Down-sampled to at most ``max_points`` per metric; first and last points are kept."""
    keys = [k for k in (call.query.keys or "").split(",") if k] or None
    curves = await call.plane.views.metrics(call.path["run_id"], max_points=call.query.max_points, keys=keys)
    return Answer(body=tracking_schemas.RunMetrics.model_validate(curves))
