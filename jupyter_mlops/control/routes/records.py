"""Hand-off: deployments that leave as bundles, and the records of what these did, which come back."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field

from ...core.errors import ParameterError
from ...core.resources.base import NAME_PATTERN
from ..exporting import reference_of
from ..operations import Answer, Call, operation
from ..schemas import Body


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
