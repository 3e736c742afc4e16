"""What resource routes share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from ...core.resources.base import Resource
from .. import job_schemas, schemas
from ..operations import Answer, Call


def etag(resource: Resource) -> dict[str, str]:
    """The revision as an ETag header."""
    return {"ETag": f'"{resource.revision}"'}


def _same(resource: Resource) -> Resource:
    return resource


async def listing(
    call: Call, kind: str, model: type[BaseModel], show: Callable[[Resource], Resource] = _same, **options: Any
) -> Answer:
    """A page of resources; ``show`` adds what is computed when they are read."""
    items, token = await call.plane.workspace.page(
        call.identity, kind, limit=call.query.limit, page_token=call.query.page_token, **options
    )
    return Answer(body=model(items=[show(r).model_dump() for r in items], next_token=token))


async def getting(
    call: Call, kind: str, name: str, model: type[BaseModel], parent: str = "",
    show: Callable[[Resource], Resource] = _same,
) -> Answer:
    """One resource; ``show`` adds what is computed when it is read."""
    resource = show(await call.plane.workspace.get(call.identity, kind, name, parent))
    return Answer(body=model.model_validate(resource.model_dump()), headers=etag(resource))


async def putting(
    call: Call, kind: str, name: str, model: type[BaseModel], new: type[BaseModel] | None = None, parent: str = ""
) -> Answer:
    """Create or update from the spec in the body."""
    spec = call.body.model_dump(mode="json")
    resource, created, told = await call.plane.workspace.put(
        call.identity, kind, name, spec, parent=parent, if_match=call.if_match, if_none_match=call.if_none_match
    )
    if created and new is not None:
        body = new.model_validate({**resource.model_dump(), **told})
    else:
        body = model.model_validate(resource.model_dump())
    return Answer(201 if created else 200, body, etag(resource))


async def deleting(call: Call, kind: str, name: str, parent: str = "") -> Answer:
    """Delete: 204 when gone, 202 when a controller is still at it."""
    gone = await call.plane.workspace.delete(call.identity, kind, name, parent=parent, if_match=call.if_match)
    return Answer(204 if gone else 202, None if gone else schemas.Nothing())


def log_part(chunk: Any, rank: int, attempt: int, ended: bool) -> job_schemas.LogPart:
    """A chunk of bytes as text, cut so that no character is torn."""
    data = chunk.data
    next_offset = chunk.next_offset
    if data and not (ended and next_offset >= chunk.size):
        # Leave an incomplete last character for the next read.
        for back in range(1, min(4, len(data)) + 1):
            byte = data[-back]
            if byte & 0xC0 == 0x80:
                continue
            need = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
            if need > back and back < len(data):
                data, next_offset = data[:-back], next_offset - back
            break
    return job_schemas.LogPart(
        rank=rank, attempt=attempt, offset=chunk.offset, next_offset=next_offset, size=chunk.size,
        text=data.decode("utf-8", "replace"), complete=ended and next_offset >= chunk.size,
    )
