"""Captured requests of an endpoint, and the ground truth that is told about them later."""

from __future__ import annotations

import asyncio
import math
import re
import time
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, Field

from ...core.errors import NotFound, ParameterError, TooLarge
from ..operations import Answer, Call, operation
from ..schemas import Body

_DATA = "/workspaces/{ws}/endpoints/{name}/data"
#: Rows of ground truth in one call.
MAX_TRUTH = 50_000
_SPAN = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*([smhd])")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_MOMENT = "ISO 8601 (UTC without an offset), or a span such as 30m, 2h or 7d: so long ago"


class DataQuery(Body):
    """Rows of one deployment, of a time, the newest ``limit``; ``columns``: comma-separated names."""

    deployment: str = Field(default="", max_length=40)
    since: str | None = Field(default=None, max_length=64, description=_MOMENT)
    until: str | None = Field(default=None, max_length=64, description=_MOMENT)
    columns: str = Field(default="", max_length=20_000)
    limit: int | None = Field(default=None, ge=1, le=1_000_000_000)


class ClearQuery(Body):
    """Everything before this moment; absent: everything."""

    before: str | None = Field(default=None, max_length=64, description=_MOMENT)


class CapturedOf(BaseModel):
    """What a deployment has captured. ``lost`` counts by cause; ``dropped`` are the requests among these."""

    files: int
    bytes: int
    rows: int
    oldest: str | None
    newest: str | None
    dropped: int
    lost: dict[str, int] = Field(default_factory=dict)


class CapturedInfo(BaseModel):
    """What an endpoint has captured; ``truth``: rows for which the right value is known."""

    files: int
    bytes: int
    rows: int
    oldest: str | None
    newest: str | None
    dropped: int
    truth: int = 0
    deployments: dict[str, CapturedOf] = Field(default_factory=dict)


class Cleared(BaseModel):
    """How many rows were deleted."""

    rows: int


class TruthRow(Body):
    """The right value for a row (counted from 0) of the request with this id."""

    correlation_id: str = Field(min_length=1, max_length=200)
    row: int = Field(default=0, ge=0, le=2**31 - 1)
    value: Any


class Truth(Body):
    """Ground truth; a later value for the same row replaces an earlier one."""

    rows: list[TruthRow] = Field(min_length=1)


class Told(BaseModel):
    """How many rows were taken."""

    rows: int


def moment(text: str | None, name: str) -> float | None:
    """Seconds since the epoch of a moment as a query gives it.

    Raises:
        ParameterError: it is none.
    """
    if text is None or not text.strip():
        return None
    span = _SPAN.fullmatch(text.strip())
    try:
        if span:
            found = time.time() - float(span.group(1)) * _UNITS[span.group(2)]
        else:
            parsed = datetime.fromisoformat(text.strip().replace(" ", "+") if "T" in text else text.strip())
            found = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise ParameterError(f"{name}: {text!r} is no moment", f"give {_MOMENT}") from None
    return max(0.0, found) if math.isfinite(found) else 0.0


async def _endpoint(call: Call) -> str:
    name = call.path["name"]
    await call.plane.workspace.get(call.identity, "endpoint", name)
    return name


@operation(
    "GET", _DATA, "Read captured requests", "endpoints/data/read", query=DataQuery, responses={200: None},
    errors=(504,),
)
async def get_endpoint_data(call: Call) -> Answer:
    """A Parquet file, ordered by hour, with ``truth`` beside the rows for which it is known. Includes requests of a
    second ago."""
    name, query = await _endpoint(call), call.query
    wanted = {
        "deployment": query.deployment, "since": moment(query.since, "since"), "until": moment(query.until, "until"),
        "columns": query.columns, "limit": query.limit,
    }
    known = await asyncio.to_thread(call.plane.captured.deployments, name)
    if not known:
        raise await _nothing(call, name)
    if query.deployment and query.deployment not in known:
        raise NotFound(f"deployment {name}/{query.deployment} has captured nothing",
                       "there is data of " + ", ".join(known))
    path = await call.plane.captured.read(name, wanted)
    disposition = f'attachment; filename="{name}.parquet"'
    return Answer(file=path, temporary=True, content_type="application/vnd.apache.parquet",
                  headers={"Content-Disposition": disposition})


async def _nothing(call: Call, name: str) -> NotFound:
    """Why there is no row yet, and how there will be."""

    def work(tx: Any) -> list[Any]:
        return tx.page("deployment", parent=name, limit=200)[0]

    found = await call.plane.store.read(work)
    rates = {d.name: (d.spec.get("data_collector") or {}).get("sampling_rate", 1.0) for d in found
             if d.spec.get("data_collector")}
    if any(rates.values()):
        shown = ", ".join(f"{rate:.4g} of the requests to {d}" for d, rate in rates.items())
        return NotFound(f"endpoint {name!r} has captured nothing yet",
                        f"it keeps {shown}; a request is there within a second: %mlops invoke {name} X[:3]")
    model = next((d.spec.get("model") for d in found if d.spec.get("model")), "MODEL")
    return NotFound(f"endpoint {name!r} has captured nothing: no deployment was asked to",
                    f"turn it on: %mlops deploy {model} -e {name} --collect 1.0")


@operation(
    "GET", _DATA + "/info", "What was captured", "endpoints/read", responses={200: CapturedInfo}, errors=(504,),
)
async def get_endpoint_data_info(call: Call) -> Answer:
    """Counts and times only, no content."""
    name = await _endpoint(call)
    return Answer(body=CapturedInfo.model_validate(await call.plane.captured.info(name)))


@operation(
    "DELETE", _DATA, "Delete captured requests", "endpoints/data/delete", query=ClearQuery,
    responses={200: Cleared}, errors=(504,),
)
async def delete_endpoint_data(call: Call) -> Answer:
    """With the ground truth that was told before that moment. There is no way back."""
    name = await _endpoint(call)
    now = time.time()
    before = min(moment(call.query.before, "before") or now, now)
    shown = datetime.fromtimestamp(before, UTC).isoformat(timespec="seconds")
    await call.plane.store.write(lambda tx: tx.audit(
        call.identity, "endpoints/data/delete", f"endpoints/{name}", {"before": shown}))
    return Answer(body=Cleared(rows=await call.plane.captured.clear(name, before)))


@operation(
    "POST", "/workspaces/{ws}/endpoints/{name}/actions/truth", "Tell the right values", "endpoints/data/write",
    body=Truth, responses={200: Told}, errors=(413, 422),
)
async def post_endpoint_truth(call: Call) -> Answer:
    """They are joined to captured rows by the request's id and the row's number when these are read."""
    name = await _endpoint(call)
    rows = [row.model_dump() for row in call.body.rows]
    if len(rows) > MAX_TRUTH:
        raise TooLarge(f"{len(rows)} rows are more than {MAX_TRUTH}", "send them in several calls")
    await call.plane.captured.tell(name, rows)
    await call.plane.store.write(lambda tx: tx.audit(
        call.identity, "endpoints/data/write", f"endpoints/{name}", {"op": "truth", "rows": len(rows)}))
    return Answer(body=Told(rows=len(rows)))
