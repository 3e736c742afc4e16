"""The workspace as a whole."""

from __future__ import annotations

import asyncio

from ...core.errors import ParameterError
from .. import schemas, tracking_schemas
from ..openapi import document
from ..operations import TABLE, Answer, Call, operation

_WS = "/workspaces/{ws}"


@operation("GET", "/openapi.json", "This document", "workspaces/read", responses={200: tracking_schemas.View})
async def get_openapi(call: Call) -> Answer:
    return Answer(body=document(TABLE, call.plane.version))


@operation("GET", "/whoami", "Who the caller is", "workspaces/read", responses={200: schemas.WhoAmI})
async def get_whoami(call: Call) -> Answer:
    who = call.identity
    return Answer(body=schemas.WhoAmI(user=who.user, role=who.role, workspace=call.plane.name, job=who.job))


@operation("GET", _WS, "State of the workspace", "workspaces/read", responses={200: schemas.WorkspaceInfo})
async def get_workspace(call: Call) -> Answer:
    return Answer(body=schemas.WorkspaceInfo.model_validate(await call.plane.describe(call.identity)))


@operation(
    "GET", _WS + "/changes", "What changed", "workspaces/read", query=schemas.ChangesQuery,
    responses={200: schemas.Changes}, errors=(410,),
)
async def get_changes(call: Call) -> Answer:
    """In commit order; waits up to ``wait`` seconds for something to tell."""
    seq, items = await call.plane.feed.changes(call.identity, call.query.since, call.query.wait)
    return Answer(body=schemas.Changes.model_validate({"seq": seq, "items": items}))


@operation(
    "GET", _WS + "/audit", "Who changed what", "audit/read", query=schemas.Page,
    responses={200: schemas.AuditList},
)
async def get_audit(call: Call) -> Answer:
    """Newest first."""
    token = call.query.page_token
    if token and not (token.isascii() and token.isdigit() and len(token) < 19):
        raise ParameterError("page_token is not one of ours", "list again without it")
    items, mark = await call.plane.store.read(
        lambda tx: tx.audit_rows(call.query.limit, int(token) if token else None)
    )
    return Answer(body=schemas.AuditList.model_validate(
        {"items": items, "next_token": None if mark is None else str(mark)}
    ))


@operation("GET", _WS + "/doctor", "What is ours, and what is wrong", "workspaces/read",
           responses={200: schemas.Doctor})
async def get_doctor(call: Call) -> Answer:
    from ..doctor import examine

    state = await call.plane.describe(call.identity)
    return Answer(body=await asyncio.to_thread(examine, call.plane, state))


@operation(
    "POST", _WS + "/actions/shutdown", "Stop the control plane", "workspaces/write", body=schemas.Shutdown,
    responses={200: schemas.Stopped},
)
async def shutdown(call: Call) -> Answer:
    """Jobs and endpoints go on by themselves unless ``all`` is set."""
    stopped = await call.plane.stop_all(call.identity) if call.body.all else {"jobs": [], "endpoints": []}
    call.plane.request_exit()
    return Answer(body=schemas.Stopped.model_validate(stopped))
