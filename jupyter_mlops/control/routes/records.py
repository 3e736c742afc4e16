"""Hand-off: deployments that leave as bundles, and the records of what these did, which come back."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ...core.errors import NotFound, ParameterError
from ...core.resources.base import NAME_PATTERN
from ...serving.record import told
from ..exporting import reference_of
from ..operations import Answer, Call, operation
from ..schemas import Body

_ENDPOINT = "/workspaces/{ws}/endpoints/{name}"


class Export(Body):
    """``source``: an endpoint, ``NAME@ALIAS`` or ``NAME/VERSION`` of a model.

    ``deployment``: which one of the endpoint; absent: the one with most traffic. ``name``: of the endpoint in the
    bundle of a model. ``keys``: ``same`` keeps the hashes of the endpoint's.
    """

    source: str = Field(min_length=1, max_length=300)
    deployment: str = Field(default="", max_length=40)
    name: str = Field(default="", max_length=40, pattern=rf"^$|{NAME_PATTERN}")
    keys: Literal["new", "same"] = "new"


@operation(
    "POST", "/workspaces/{ws}/actions/export", "Hand a deployment off", "endpoints/export", body=Export,
    responses={200: None}, produces="application/zip", errors=(409, 422, 502, 504),
)
async def export_bundle(call: Call) -> Answer:
    """A zip of a folder that serves without network. The header `X-Bundle-Keys` has its new keys as JSON: they are told
    only this once. `X-Bundle-Digest` is the SHA-256 of its manifest."""
    body: Export = call.body
    reference = reference_of(body.source)
    if reference and (body.deployment or body.keys == "same"):
        raise ParameterError("a model has no deployments and no keys of its own", "export the endpoint that serves it")
    if not reference and body.name:
        raise ParameterError("the bundle of an endpoint has its name", "export NAME@ALIAS under another one")
    exporter = call.plane.exporter
    if reference:
        path, about, keys = await exporter.model(reference, body.name)
    else:
        path, about, keys = await exporter.endpoint(body.source, body.deployment, body.keys == "same")
    detail: dict[str, Any] = {
        "op": "export", "bundle": about["id"], "deployment": about["deployment"], "keys": body.keys,
        "model": f"{about['model']}/{about['version']}" if about["model"] else "", "digest": about["digest"],
    }
    where = f"endpoints/{about['endpoint']}"
    try:
        await call.plane.store.write(lambda tx: tx.audit(call.identity, "endpoints/export", where, detail))
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    headers = {"X-Bundle-Digest": about["digest"], "X-Bundle-Keys": json.dumps(keys),
               "Content-Disposition": f'attachment; filename="{about["endpoint"]}.zip"'}
    return Answer(file=path, temporary=True, content_type="application/zip", headers=headers)


class Merge(Body):
    """``blob``: SHA-256 of the record, which was uploaded before."""

    blob: str = Field(pattern=r"^[0-9a-f]{64}$")


class Record(BaseModel):
    """What a bundle did at one site, as its newest record says; ``errors`` are its own, ``scored`` are rows."""

    model_config = ConfigDict(extra="ignore")

    bundle: str
    site: str
    endpoint: str
    deployment: str
    model: str
    version: str
    run_id: str
    requests: int
    errors: int
    scored: int
    captured: int
    since: str
    until: str
    merged_at: str
    starts: int
    deployments: dict[str, Any] = Field(default_factory=dict)


class Merged(Record):
    """What merging came to: new ``rows``, ``files`` of captured requests and how many of these were ``known``, and
    whether its counters are ``newer`` than those that were here."""

    rows: int
    files: int
    known: int
    newer: bool


class Records(BaseModel):
    """Records of an endpoint, the one that was merged last first."""

    items: list[Record]


@operation(
    "POST", _ENDPOINT + "/actions/merge-record", "Merge the record of a bundle", "endpoints/records/write", body=Merge,
    responses={200: Merged}, errors=(422, 504),
)
async def merge_record(call: Call) -> Answer:
    """What it captured is added, what it counted is kept beside the endpoint's own. Repeated, it changes nothing."""
    name = call.path["name"]
    await call.plane.workspace.get(call.identity, "endpoint", name)
    if await asyncio.to_thread(call.plane.blobs.size, call.body.blob) is None:
        raise NotFound(f"there is no blob {call.body.blob}", "upload it first")
    found = Merged.model_validate(await call.plane.captured.merge(name, call.plane.blobs.path(call.body.blob)))
    detail = {"op": "merge-record", "bundle": found.bundle, "site": found.site, "rows": found.rows,
              "requests": found.requests}
    await call.plane.store.write(
        lambda tx: tx.audit(call.identity, "endpoints/records/write", f"endpoints/{name}", detail))
    return Answer(body=found)


@operation("GET", _ENDPOINT + "/records", "List merged records", "endpoints/read", responses={200: Records})
async def list_records(call: Call) -> Answer:
    """One for each bundle and place where it served."""
    name = call.path["name"]
    await call.plane.workspace.get(call.identity, "endpoint", name)
    items = [told(kept) for kept in await asyncio.to_thread(call.plane.captured.records, name)]
    return Answer(body=Records(items=[Record.model_validate(item) for item in items]))
