"""Brings requests to MLflow: repeated until they are answered, and taken apart until what MLflow refuses is alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from ..core.errors import (
    BackendTimeout,
    BackendUnreachable,
    Forbidden,
    ParameterError,
    Refused,
    Unavailable,
)
from ..runtime import spool
from ..runtime.journal import Call
from .api import MlflowApi
from .batches import Batch, Group
from .permit import Permit

#: Seconds between two tries while MLflow is away: first, and at most.
FIRST_PAUSE = 0.1
LAST_PAUSE = 5.0
#: Answers that say nothing about the request itself.
_TRANSIENT = frozenset({408, 425, 429, 502, 503, 504})
#: Words of answers that do not either, whatever their status.
_TROUBLE = ("database is locked", "disk i/o error", "disk is full", "queuepool limit", "no space left", "readonly")
#: Times that an inner error of MLflow is met with the same request before it counts as refused.
INNER_ERRORS = 4
#: Refused points of one curve after which the rest of them in a batch is not tried one by one.
HOPELESS = 3
#: Seconds for which a run that is gone is believed to be.
GONE_LIFE = 10.0

#: Message → (verb, path below MLflow's API, fields of the body that belong into the path).
ROUTES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "LogBatch": ("POST", "runs/log-batch", ()),
    "LogMetric": ("POST", "runs/log-metric", ()),
    "LogParam": ("POST", "runs/log-parameter", ()),
    "LogModel": ("POST", "runs/log-model", ()),
    "LogInputs": ("POST", "runs/log-inputs", ()),
    "LogOutputs": ("POST", "runs/outputs", ()),
    "SetTag": ("POST", "runs/set-tag", ()),
    "DeleteTag": ("POST", "runs/delete-tag", ()),
    "UpdateRun": ("POST", "runs/update", ()),
    "SetExperimentTag": ("POST", "experiments/set-experiment-tag", ()),
    "FinalizeLoggedModel": ("PATCH", "logged-models/{}", ("model_id",)),
    "SetLoggedModelTags": ("PATCH", "logged-models/{}/tags", ("model_id",)),
    "DeleteLoggedModelTag": ("DELETE", "logged-models/{}/tags/{}", ("model_id", "tag_key")),
    "LogLoggedModelParamsRequest": ("POST", "logged-models/{}/params", ("model_id",)),
}
API = "/api/2.0/mlflow/"
#: What a message raises that is not of the form it should have: a job's own code can write there too.
MALFORMED = (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError)
_HISTORY = "mlflow.log-model.history"
_SAME_MODEL = ("run_id", "artifact_path", "utc_time_created", "model_uuid")


@dataclass
class Tally:
    """What became of records."""

    delivered: int = 0
    rejected: int = 0
    message: str = ""


class Sender:
    """Delivers for one job; one call at a time.

    Args:
        waiting: told why delivery waits, and ``""`` when it goes on.
        turn: how many requests of all jobs together are with MLflow at once.
        permit: what the job may ask for.
    """

    def __init__(
        self, api: MlflowApi, waiting: Callable[[str], None], turn: AbstractAsyncContextManager[Any], permit: Permit,
    ) -> None:
        self.api = api
        self.permit = permit
        self._waiting = waiting
        self._turn = turn
        self._gone: dict[str, tuple[str, float]] = {}
        #: Puts real ids for local ones into a message, see :meth:`.spooler.Spooler.resolve`.
        self.resolve: Callable[[str, Tally], Awaitable[str]] | None = None

    async def group(self, group: Group) -> Tally:
        """Deliver all requests of a group in order; returns when each record is in MLflow or refused for good."""
        tally = Tally()
        for request in group.requests:
            if isinstance(request, Call):
                try:
                    await self.call(request, tally)
                except MALFORMED as e:
                    tally.rejected += 1
                    tally.message = f"{str(request.api)[:100]!r} is malformed: {e}"[:500]
            else:
                await self._batch(*request, tally, Counter())
        return tally

    # -- one request -------------------------------------------------------------------------------------------------

    async def post(self, method: str, path: str, body: Any = None, keep: bool = False) -> tuple[int, bytes]:
        """A call to MLflow that is repeated until it is answered; (status, body): accepted, or refused (>= 400).

        ``body`` is bytes of JSON, what a file's bytes are made of, or a function that gives such a source anew;
        ``keep``: see :meth:`MlflowApi.call`.
        """
        pause, inner = FIRST_PAUSE, 0
        while True:
            try:
                # What is streamed takes its time, and no turn from the others.
                async with contextlib.nullcontext() if callable(body) else self._turn:
                    status, answer = await self.api.call(
                        method, path, data=body() if callable(body) else body, keep=keep)
            except (Unavailable, BackendUnreachable, BackendTimeout) as e:
                self._waiting(f"MLflow is away: {e.message}")
            else:
                if status < 300:
                    self._waiting("")
                    return status, answer
                trouble = status in _TRANSIENT or any(
                    word in answer[:4000].decode("utf-8", "replace").lower() for word in _TROUBLE
                )
                inner += status >= 500 and not trouble
                if not trouble and (status < 500 or inner >= INNER_ERRORS):
                    self._waiting("")
                    return status, answer
                self._waiting(f"MLflow cannot take it now: {message_of(answer, status)}")
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)

    async def require(self, ask: Callable[[], Awaitable[None]]) -> None:
        """Ask for permission, again and again while MLflow cannot say whose something is.

        Raises:
            Forbidden, ParameterError: there is none.
        """
        pause = FIRST_PAUSE
        while True:
            try:
                return await ask()
            except (Unavailable, BackendUnreachable, BackendTimeout) as e:
                self._waiting(f"MLflow is away: {e.message}")
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)

    async def _batch(self, batch: Batch, data: bytes, tally: Tally, hopeless: Counter[str]) -> None:
        count = len(batch) + batch.merged
        try:
            await self.require(lambda: self.permit.run(batch.run))
        except (Forbidden, ParameterError) as e:
            tally.rejected += count
            tally.message = e.message
            return
        status, answer = await self.post("POST", API + "runs/log-batch", data, keep=True)
        if status < 300:
            tally.delivered += count
            return
        message = message_of(answer, status)
        gone = await self._is_gone(batch.run)
        if gone or len(batch) == 1:
            tally.rejected += count
            tally.message = gone or f"{batch.only()}: {message}"
            hopeless.update(m["key"] for m in batch.metrics)
            return
        for half in batch.halves():
            kept = [m for m in half.metrics if hopeless[m["key"]] < HOPELESS]
            tally.rejected += len(half.metrics) - len(kept)
            half.metrics = kept
            if len(half):
                await self._batch(half, half.encode(half.run), tally, hopeless)

    async def _is_gone(self, run: str) -> str:
        """Why nothing can be logged to a run at all; empty when that is not so."""
        known = self._gone.get(run)
        if known is not None and time.monotonic() - known[1] < GONE_LIFE:
            return known[0]
        status, answer = await self.post("GET", f"{API}runs/get?run_id={quote(run, safe='')}")
        why = ""
        if 400 <= status < 500:
            why = f"run {run}: {message_of(answer, status)}"
        elif json_object(answer).get("run", {}).get("info", {}).get("lifecycle_stage") == "deleted":
            why = f"run {run} is deleted"
        if why:
            self._gone[run] = (why, time.monotonic())
        return why

    async def call(self, call: Call, tally: Tally) -> None:
        """Deliver one REST message; its repetition changes nothing."""
        body = call.body if isinstance(call.body, dict) else {}
        if call.api not in ROUTES:
            tally.rejected += 1
            tally.message = f"{call.api[:100]!r} is no message that is delivered"
            return
        if spool.LOCAL_ID in (text := json.dumps(body)) and self.resolve is not None:
            try:
                body = json.loads(await self.resolve(text, tally))
            except Refused as e:
                tally.rejected += 1
                tally.message = f"{call.api}: {e.message}"
                return
        if call.api == "LogOutputs":
            body = await self._new_outputs(body)
        if call.api == "LogModel" and await self._in_history(body):
            tally.delivered += 1
            return
        method, path, fields = ROUTES[call.api]
        if fields:
            path = path.format(*(quote(str(body.get(f, "")), safe="") for f in fields))
        if call.api == "LogOutputs" and not body.get("models"):
            tally.delivered += 1
            return
        try:
            await self.require(lambda: self.permit.request(method, API + path, body))
        except (Forbidden, ParameterError) as e:
            tally.rejected += 1
            tally.message = f"{call.api}: {e.message}"
            return
        status, answer = await self.post(method, API + path, json.dumps(body).encode())
        if status < 300 or (call.api.startswith("Delete") and status == 404):  # deleted already
            tally.delivered += 1
            return
        if call.api == "LogLoggedModelParamsRequest" and await self._has_params(body):
            tally.delivered += 1
            return
        tally.rejected += 1
        tally.message = f"{call.api}: {message_of(answer, status)}"

    async def _has_params(self, body: dict[str, Any]) -> bool:
        """Whether a logged model has these params already: MLflow takes them once."""
        _, answer = await self.post("GET", f"{API}logged-models/{quote(str(body.get('model_id')), safe='')}")
        there = json_object(answer).get("model", {}).get("data", {}).get("params", [])
        known = {(p.get("key"), p.get("value")) for p in there}
        return all((p.get("key"), p.get("value")) in known for p in body.get("params", []))

    async def _in_history(self, body: dict[str, Any]) -> bool:
        """Whether a ``LogModel`` was carried out before: MLflow would list the model twice."""
        run = (await self._run(body))["data"]
        try:
            history = json.loads(next((t["value"] for t in run.get("tags", []) if t["key"] == _HISTORY), "[]"))
            model = json.loads(str(body.get("model_json")))
            return any(all(m.get(k) == model.get(k) for k in _SAME_MODEL) for m in history)
        except (ValueError, TypeError, AttributeError):
            return False

    async def _run(self, body: dict[str, Any]) -> dict[str, Any]:
        _, answer = await self.post("GET", f"{API}runs/get?run_id={quote(str(body.get('run_id')), safe='')}")
        return {"data": {}, "outputs": {}, **json_object(answer).get("run", {})}

    async def _new_outputs(self, body: dict[str, Any]) -> dict[str, Any]:
        """``LogOutputs`` without what the run has already: MLflow would list it twice."""
        there = (await self._run(body))["outputs"].get("model_outputs", [])
        known = {(m.get("model_id"), int(m.get("step", 0))) for m in there}
        models = [m for m in body.get("models", []) if (m.get("model_id"), int(m.get("step") or 0)) not in known]
        return {**body, "models": models}


def json_object(data: bytes) -> dict[str, Any]:
    """The JSON object of an answer, ``{}`` when it is none."""
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def message_of(answer: bytes, status: int) -> str:
    """What an answer of MLflow says about its refusal."""
    return str(json_object(answer).get("message") or f"MLflow answered {status}")[:500]
