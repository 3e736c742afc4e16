"""What happens to a request to MLflow between its rule and MLflow: job scope, audit, and answering repeats once.

Changes that pass to MLflow cannot be in one transaction with our store. So an intent is written first and its outcome
afterwards; a client that repeats a call with the same request id gets the stored answer, and when the outcome was
never learned, MLflow is asked what became of it, by a tag that the first call carried.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import OrderedDict
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from ..core.errors import BackendUnreachable, Forbidden, MlopsError, NotFound, ParameterError
from ..core.identity import Identity
from .api import MlflowApi, NotSent
from .rules import (
    RULES,
    Match,
    Rule,
    artifact_owner,
    check_artifact_name,
    check_graphql,
    check_locations,
    check_spans,
    pairs,
)
from .shape import quoted

if TYPE_CHECKING:
    from ..core.store import Intent, Store

REQUEST_ID_HEADER = "X-Mlops-Request-Id"
#: Carried by what a call with a request id creates.
REQUEST_TAG = "mlops.request_id"
PARENT_TAG = "mlflow.parentRunId"
#: Which local process holds a run that is no job's: ``pid:start time:boot``, see :mod:`.orphans`.
HOLDER_TAG = "mlops.holder"

_REQUEST_ID = re.compile(r"^[A-Za-z0-9_-]{8,64}$")
#: Tags that name a run; a job may name only its own.
_RUN_TAGS = frozenset({PARENT_TAG, "mlflow.sourceRun"})
#: Fields of a body that go into the audit row.
_TOLD = ("name", "new_name", "version", "alias", "run_id", "experiment_id", "run_name", "source", "model_id",
         "source_run_id", "artifact_location", "key", "value", "stage", "dataset_id")
#: Longest chain of runs beneath a job's run.
_DEPTH = 10
_TRIES = 3


def parse_body(data: bytes) -> dict[str, Any] | None:
    """The JSON object of a request, as MLflow reads it (old clients encode it twice); None when there is no body.

    Raises:
        ParameterError: it is something else.
    """
    if not data.strip():
        return None
    try:
        value = json.loads(data)
        if isinstance(value, str):
            value = json.loads(value)
    except (ValueError, RecursionError):
        raise ParameterError("the body is not valid JSON") from None
    if not isinstance(value, dict):
        raise ParameterError("the body must be a JSON object")
    return value


class JobScope:
    """Whether runs, logged models and traces belong to a job: its own run and the runs beneath it."""

    def __init__(self, api: MlflowApi) -> None:
        self._api = api
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()

    async def check(self, identity: Identity, match: Match, query: str, body: dict[str, Any] | None) -> None:
        """Refuse what a job's token must not touch.

        Raises:
            Forbidden, ParameterError
        """
        rule = match.rule
        if rule.reads:
            return
        if not rule.scope:
            raise Forbidden("a job may not do this", "do it from a notebook or a terminal")
        if body is not None:
            if body.get("artifact_location") or body.get("artifactLocation"):
                raise Forbidden("a job may not choose where artifacts lie")
            for key, value in pairs(body):
                if key in _RUN_TAGS and value:
                    await self.require_run(identity, str(value))
        if rule.scope == ("free",):
            return
        found = False
        for selector in rule.scope:
            kind, _, place = selector.rpartition(":")
            for value in _select(place, match, query, body):
                found = True
                await self._require(identity, kind or "run", value)
        if not found:
            raise ParameterError("the request names no run", "a job may only write to its own run")

    async def _require(self, identity: Identity, kind: str, value: str) -> None:
        if kind == "artifact":
            kind, value = artifact_owner(value)
        if kind == "run":
            await self.require_run(identity, value)
        elif kind == "model":
            answer = await self._find(f"logged-models/{_safe(value)}")
            await self.require_run(identity, answer.get("model", {}).get("info", {}).get("source_run_id", ""))
        else:
            answer = await self._find(f"/api/3.0/mlflow/traces/{_safe(value)}")
            info = answer.get("trace", {}).get("trace_info", {})
            metadata = info.get("trace_metadata") or {}
            await self.require_run(identity, metadata.get("mlflow.sourceRun", ""))

    async def _find(self, path: str) -> dict[str, Any]:
        try:
            return await self._api.get(path)
        except NotFound:
            return {}

    async def require_run(self, identity: Identity, run_id: str) -> None:
        """Raise Forbidden unless the run is the job's own or beneath it."""
        if not await self.owns(identity.run_id, run_id):
            raise Forbidden(
                f"job {identity.job!r} may only write to its own run and the runs beneath it",
                "open a run with mlflow.start_run() in the job",
            )

    async def owns(self, root: str, run_id: str) -> bool:
        """Whether ``run_id`` is ``root`` or beneath it."""
        if not root or not run_id or not re.fullmatch(r"[A-Za-z0-9]{1,64}", run_id):
            return False
        chain: list[str] = []
        current = run_id
        for _ in range(_DEPTH):
            if current == root or (root, current) in self._known:
                for member in chain:
                    self._known[root, member] = None
                while len(self._known) > 10_000:
                    self._known.popitem(last=False)
                return True
            chain.append(current)
            try:
                answer = await self._api.get("runs/get", run_id=current)
            except (NotFound, ParameterError):
                return False
            tags = answer.get("run", {}).get("data", {}).get("tags", [])
            current = next((t["value"] for t in tags if t.get("key") == PARENT_TAG), "")
            if not current:
                return False
        return False


class Proxy:
    """Decides on bodies and carries out audited changes; one per control plane."""

    def __init__(self, store: Store, api: MlflowApi) -> None:
        self.api = api
        self._store = store
        self._scope = JobScope(api)
        self._running: dict[str, asyncio.Future[None]] = {}

    def must_see_body(self, identity: Identity, rule: Rule) -> bool:
        """Whether the body has to be looked at before it may go on."""
        if rule.check or rule.audit:
            return True
        return identity.role == "job" and any("body." in selector for selector in rule.scope)

    async def check(
        self, identity: Identity, match: Match, query: str, body: dict[str, Any] | None
    ) -> dict[str, Any] | None:
        """Refuse what must not go on, and return the body that may.

        Raises:
            MlopsError
        """
        rule = match.rule
        if rule.template == "/graphql":
            check_graphql((body or {}).get("query"))
            return body
        for name, values in parse_qs(query, keep_blank_values=True).items():
            if name in ("path", "artifact_file_path"):
                for value in values:
                    check_artifact_name(value)
        if rule.space == "artifacts" and body is not None and "path" in body:
            check_artifact_name(str(body["path"]).lstrip("/"))
        if rule.reads:
            return body
        if body is not None:
            check_locations(rule, body)
        if identity.role == "job":
            body = self._as_jobs(identity, rule, body)
            await self._scope.check(identity, match, query, body)
        return body

    async def check_spans(self, identity: Identity, body: bytes, content_type: str, run_id: str) -> None:
        """Refuse OpenTelemetry spans that must not go on; ``run_id`` is the run that they ask to be linked to.

        Raises:
            MlopsError
        """
        check_spans(body, content_type)
        if identity.role == "job" and run_id:
            await self._scope.require_run(identity, run_id)

    def _as_jobs(self, identity: Identity, rule: Rule, body: dict[str, Any] | None) -> dict[str, Any] | None:
        """What a job creates hangs beneath its run."""
        if rule.operation == "POST runs/create" and body is not None:
            tags = [t for t in _tag_list(body) if t.get("key") != PARENT_TAG or t.get("value")]
            if not any(t.get("key") == PARENT_TAG for t in tags):
                tags.append({"key": PARENT_TAG, "value": identity.run_id})
            body = {**body, "tags": tags}
        if rule.operation == "POST logged-models" and body is not None and not (
            body.get("source_run_id") or body.get("sourceRunId")
        ):
            body = {**body, "source_run_id": identity.run_id}
        return body

    # Audited changes

    async def perform(
        self, identity: Identity, match: Match, query: str, body: dict[str, Any] | None, request_id: str | None
    ) -> tuple[int, bytes]:
        """Carry out a change between intent and outcome; (status, JSON) to answer.

        Raises:
            MlopsError: MLflow did not answer; the intent stays open, and a repeat finds out what happened.
        """
        if request_id is None:
            return await self._perform(identity, match, query, body, None)
        if not _REQUEST_ID.match(request_id):
            raise ParameterError(f"{REQUEST_ID_HEADER} is not valid", "use 8-64 letters, digits, '-' and '_'")
        while request_id in self._running:
            await asyncio.shield(self._running[request_id])
        done = self._running[request_id] = asyncio.get_running_loop().create_future()
        try:
            return await self._perform(identity, match, query, body, request_id)
        finally:
            del self._running[request_id]
            done.set_result(None)

    async def _perform(
        self, identity: Identity, match: Match, query: str, body: dict[str, Any] | None, request_id: str | None
    ) -> tuple[int, bytes]:
        rule = match.rule
        await self.api.ready()
        told = {k: str(v)[:500] for k, v in (body or {}).items() if k in _TOLD and v not in (None, "")}
        detail = {"call": rule.operation, "path": match.path, "body": told}
        intent = await self._store.intent(request_id, identity, rule.action, _resource(rule, match, told), detail)
        if not intent.fresh and intent.response is not None:
            return intent.response
        sent = _with_request_tag(rule, body, request_id) if request_id else body
        maybe_done = not intent.fresh
        for attempt in range(1, _TRIES + 1):
            if maybe_done:
                found = await self.find(rule, body or {}, request_id)
                if found is not None:
                    return await self._close(intent, 200, json.dumps(found).encode())
            try:
                status, data = await self.api.call(rule_method(match), match.path, query=query, body=sent)
            except NotSent:
                await self._store.outcome(intent.id, "failed")
                raise
            except BackendUnreachable:
                # It broke off in the middle: what became of it can be found out only by its tag.
                maybe_done = True
                if request_id is None:
                    await self._store.outcome(intent.id, "unknown")
                    raise
                if attempt == _TRIES:
                    raise
                continue
            if maybe_done and status == 404 and rule.action.endswith("/delete"):
                status, data = 200, b"{}"  # the first call did it
            return await self._close(intent, status, data)
        raise BackendUnreachable("MLflow does not answer", "try again in a moment")

    async def _close(self, intent: Intent, status: int, data: bytes) -> tuple[int, bytes]:
        if status < 300:
            await self._store.outcome(intent.id, "done", status, data)
        elif status < 500:
            await self._store.outcome(intent.id, "failed", status, data)
        else:
            await self._store.outcome(intent.id, "unknown")
        return status, data

    async def settle(self, intents: list[Intent]) -> None:
        """Find out what became of changes that were under way when a control plane died.

        What MLflow carried out gets its outcome and answer; the rest is ``unknown``, and a repeat tries again.
        """
        for intent in intents:
            rule = next((r for r in RULES if r.audit and r.operation == intent.detail.get("call")), None)
            found = await self.find(rule, intent.detail.get("body", {}), intent.request_id) if rule else None
            if intent.id not in {i.id for i in await self._store.open_intents()}:
                continue  # its sender was faster
            if found is not None:
                await self._store.outcome(intent.id, "done", 200, json.dumps(found).encode())
            else:
                await self._store.outcome(intent.id, "unknown")

    async def find(self, rule: Rule, body: dict[str, Any], request_id: str | None) -> dict[str, Any] | None:
        """MLflow's answer to a creating call that was carried out before; None when it was not."""
        if not request_id:
            return None
        try:
            if rule.operation == "POST runs/create":
                experiment = str(body.get("experiment_id") or body.get("experimentId") or "0")
                answer = await self.api.post(
                    "runs/search", experiment_ids=[experiment], filter=f"tags.`{REQUEST_TAG}` = '{request_id}'",
                    run_view_type="ALL", max_results=1,
                )
                return {"run": answer["runs"][0]} if answer.get("runs") else None
            if rule.operation == "POST experiments/create":
                answer = await self.api.get("experiments/get-by-name", experiment_name=body.get("name", ""))
                return {"experiment_id": answer["experiment"]["experiment_id"]} if _tagged(
                    answer["experiment"], request_id) else None
            if rule.operation == "POST registered-models/create":
                answer = await self.api.get("registered-models/get", name=body.get("name", ""))
                return answer if _tagged(answer["registered_model"], request_id) else None
            if rule.operation == "POST model-versions/create":
                answer = await self.api.get(
                    "model-versions/search", filter=f"name = {quoted(str(body.get('name', '')))}", max_results=1000,
                )
                for version in answer.get("model_versions", []):
                    if _tagged(version, request_id):
                        return {"model_version": version}
            if rule.operation == "POST logged-models":
                experiment = str(body.get("experiment_id") or body.get("experimentId") or "0")
                answer = await self.api.post(
                    "logged-models/search", experiment_ids=[experiment], max_results=1,
                    filter=f"tags.`{REQUEST_TAG}` = '{request_id}'",
                )
                return {"model": answer["models"][0]} if answer.get("models") else None
        except NotFound:
            pass
        return None


def rule_method(match: Match) -> str:
    """The method by which an audited rule is called; such rules have one."""
    return match.rule.methods[0]


_TAGGED_CREATES = frozenset({
    "POST runs/create", "POST experiments/create", "POST registered-models/create", "POST model-versions/create",
    "POST logged-models",
})


def _with_request_tag(rule: Rule, body: dict[str, Any] | None, request_id: str) -> dict[str, Any] | None:
    if rule.operation not in _TAGGED_CREATES or body is None:
        return body
    return {**body, "tags": [*_tag_list(body), {"key": REQUEST_TAG, "value": request_id}]}


def _tag_list(body: dict[str, Any]) -> list[dict[str, Any]]:
    tags = body.get("tags") or []
    if not isinstance(tags, list) or not all(isinstance(t, dict) for t in tags):
        raise ParameterError("tags must be a list of {key, value} objects")
    return tags


def _tagged(thing: dict[str, Any], request_id: str) -> bool:
    return any(t.get("key") == REQUEST_TAG and t.get("value") == request_id for t in thing.get("tags", []))


def _resource(rule: Rule, match: Match, told: dict[str, str]) -> str:
    kind = rule.action.partition("/")[0]
    if rule.operation == "POST runs/create":
        return f"experiments/{told.get('experiment_id', '0')}/runs"
    name = match.groups.get("model_id") or match.groups.get("dataset_id")
    for field in ("name", "run_id", "experiment_id"):
        name = name or told.get(field)
    if told.get("version"):
        name = f"{name}/{told['version']}"
    if told.get("alias"):
        name = f"{name}@{told['alias']}"
    return f"{kind}/{name or ''}"


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


def _select(place: str, match: Match, query: str, body: dict[str, Any] | None) -> list[str]:
    """The ids at ``body.F`` (in both of protobuf's spellings), ``query.F`` or ``path.F``."""
    where, _, name = place.partition(".")
    if where == "path":
        return [match.groups[name]]
    if where == "query":
        return parse_qs(query).get(name, [])
    values = [(body or {}).get(n) for n in {name, _camel(name)}]
    return [str(v) for v in values if v not in (None, "")]


def _safe(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", value):
        raise Forbidden("this id is not valid")
    return value


def mlflow_error(error: MlopsError) -> dict[str, Any]:
    """Our error body, readable for MLflow's clients too."""
    codes = {
        "bad_parameter": "INVALID_PARAMETER_VALUE", "not_found": "RESOURCE_DOES_NOT_EXIST",
        "forbidden": "PERMISSION_DENIED", "unauthenticated": "UNAUTHENTICATED", "conflict": "RESOURCE_ALREADY_EXISTS",
        "unavailable": "TEMPORARILY_UNAVAILABLE", "too_large": "INVALID_PARAMETER_VALUE",
    }
    return {**error.body(), "error_code": codes.get(error.code, "INTERNAL_ERROR")}

