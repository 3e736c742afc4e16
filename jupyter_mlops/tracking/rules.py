"""What of MLflow's HTTP interface may be used through our proxy, by whom, and how: one table.

Everything that is not in the table is refused. Paths are decoded, checked and written anew before they are matched,
so that MLflow sees exactly what was decided on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from ..core.errors import Forbidden, ParameterError

#: Rounds of percent-decoding under which a path must stay harmless; MLflow decodes until nothing changes.
MAX_DECODINGS = 5

#: Schemes of places where artifacts may lie; all others could name files of this machine or foreign servers.
_LOCATION = re.compile(r"^(mlflow-artifacts|runs|models):/(?!/)")
_LOCATION_KEYS = frozenset({
    "artifact_location", "artifactLocation", "artifact_uri", "artifactUri", "storage_location", "storageLocation",
    "mlflow.artifactLocation", "mlflow.trace.archiveLocation", "default_artifact_root", "defaultArtifactRoot",
})
#: What MLflow's prompt registry writes where a model's source would be.
_PROMPT_SOURCES = frozenset({"dummy-source", "prompt-template"})

_VERSIONED = re.compile(r"^/(?:ajax-)?api/[23]\.0/mlflow/(.+)$")
_ARTIFACTS = re.compile(r"^/(?:ajax-)?api/2\.0/mlflow-artifacts/(.+)$")


@dataclass(frozen=True)
class Rule:
    """One family of routes.

    Attributes:
        methods: HTTP methods.
        template: the path behind the version prefix; ``{name}`` is one segment, ``{path*}`` any number of them.
        action: what the caller's role must allow.
        space: ``api`` (``/api/2.0/mlflow/…`` and its three siblings), ``artifacts`` or ``root``.
        changes: the kind in the change feed that a success changes (``run``, ``model``) or ``""``.
        audit: whether intent and outcome are recorded; such calls are also answered once per request id.
        scope: for a job's token, where the ids of the runs lie that the call writes to: ``body.F``, ``query.F``,
            ``path.F``, each optionally with a kind before it (``model:``, ``trace:``, ``artifact:``); every id that is
            there must be the job's own. ``("free",)``: nothing to check; empty: a job may not call it, unless it reads.
        check: whether the JSON body must be looked at for every caller.
        artifact: whether the answer is bytes that somebody uploaded.
        ui: whether the answer belongs to MLflow's web interface and may run scripts.
    """

    methods: tuple[str, ...]
    template: str
    action: str
    space: str = "api"
    changes: str = ""
    audit: bool = False
    scope: tuple[str, ...] = ()
    check: bool = False
    artifact: bool = False
    ui: bool = False

    @property
    def reads(self) -> bool:
        """Whether it changes nothing."""
        return self.action.endswith("/read")

    @property
    def operation(self) -> str:
        """Method and template, the name of the route in audit rows."""
        return f"{self.methods[0]} {self.template}"


@dataclass(frozen=True)
class Match:
    """A request that a rule allows: ``path`` is the canonical one to send, ``groups`` what the template named."""

    rule: Rule
    path: str
    groups: dict[str, str]


def _read(template: str, methods: str = "GET", action: str = "runs/read", **more: Any) -> Rule:
    return Rule(tuple(methods.split()), template, action, **more)


def _write(template: str, methods: str = "POST", action: str = "runs/write", **more: Any) -> Rule:
    more.setdefault("changes", action.partition("/")[0].rstrip("s").replace("experiment", "run"))
    return Rule(tuple(methods.split()), template, action, **more)


_RUN = ("body.run_id", "body.run_uuid")
_MODEL_ID = ("model:path.model_id",)
_TRACE = ("trace:path.trace_id",)

RULES: tuple[Rule, ...] = (
    # Experiments
    _read("experiments/get", action="experiments/read"),
    _read("experiments/get-by-name", action="experiments/read"),
    _read("experiments/search", "GET POST", action="experiments/read"),
    _read("experiments/search-datasets", "POST", action="experiments/read"),
    _write("experiments/create", action="experiments/write", audit=True, scope=("free",), check=True),
    _write("experiments/update", action="experiments/write", audit=True),
    _write("experiments/delete", action="experiments/delete", audit=True),
    _write("experiments/restore", action="experiments/write", audit=True),
    _write("experiments/set-experiment-tag", action="experiments/write"),
    _write("experiments/delete-experiment-tag", action="experiments/write"),
    # Runs, their metrics, params, tags, inputs and outputs
    _read("runs/get"),
    _read("runs/search", "POST"),
    _write("runs/create", audit=True, scope=("free",), check=True),
    _write("runs/delete", action="runs/delete", audit=True),
    _write("runs/restore", action="runs/restore", audit=True),
    *(
        _write(f"runs/{verb}", scope=_RUN)
        for verb in ("update", "set-tag", "delete-tag", "log-metric", "log-parameter", "log-batch", "log-inputs",
                     "outputs", "log-model")
    ),
    _read("metrics/get-history"),
    _read("metrics/get-history-bulk"),
    _read("metrics/get-history-bulk-interval"),
    # Logged models
    _read("logged-models/search", "POST"),
    _read("logged-models/{model_id}"),
    _read("logged-models/{model_id}/artifacts/directories"),
    _read("logged-models/{model_id}/artifacts/files", artifact=True),
    _write("logged-models", audit=True, scope=("body.source_run_id",), check=True),
    _write("logged-models/{model_id}", "PATCH", scope=_MODEL_ID),
    _write("logged-models/{model_id}", "DELETE", action="runs/delete", audit=True),
    _write("logged-models/{model_id}/params", scope=_MODEL_ID),
    _write("logged-models/{model_id}/tags", "PATCH", scope=_MODEL_ID),
    _write("logged-models/{model_id}/tags/{key}", "DELETE", scope=_MODEL_ID),
    # Traces
    _read("traces"),
    _read("traces/get"),
    _read("traces/batchGet"),
    _read("traces/batchGetInfos", "POST"),
    _read("traces/search", "POST"),
    _read("traces/metrics", "POST"),
    _read("traces/calculate-filter-correlation", "POST"),
    _read("traces/{trace_id}"),
    _read("traces/{trace_id}/info"),
    _read("traces/{trace_id}/assessments/{assessment_id}"),
    _read("unified-traces"),
    _read("get-online-trace-details"),
    _read("get-trace-artifact", artifact=True),
    _write("traces", scope=("free",), check=True),
    _write("traces/delete-traces", action="runs/delete"),
    _write("traces/link-to-run", scope=_RUN),
    _write("traces/link-prompts", scope=("free",)),
    _write("traces/{trace_id}", "PATCH", scope=_TRACE, check=True),
    _write("traces/{trace_id}/tags", "PATCH", scope=_TRACE, check=True),
    _write("traces/{trace_id}/tags", "DELETE", scope=_TRACE),
    _write("traces/{trace_id}/assessments", "POST", scope=_TRACE, check=True),
    _write("traces/{trace_id}/assessments/{assessment_id}", "PATCH", scope=_TRACE, check=True),
    _write("traces/{trace_id}/assessments/{assessment_id}", "DELETE", action="runs/delete"),
    _write("/v1/traces", space="root", scope=("free",), check=True),
    # Datasets
    _read("datasets/search", "GET POST", action="experiments/read"),
    _read("datasets/{dataset_id}", action="experiments/read"),
    _read("datasets/{dataset_id}/records", action="experiments/read"),
    _read("datasets/{dataset_id}/experiment-ids", action="experiments/read"),
    _write("datasets/create", action="experiments/write", audit=True),
    _write("datasets/{dataset_id}", "DELETE", action="experiments/delete", audit=True),
    _write("datasets/{dataset_id}/records", "POST", action="experiments/write"),
    _write("datasets/{dataset_id}/records", "DELETE", action="experiments/delete"),
    _write("datasets/{dataset_id}/tags", "PATCH", action="experiments/write"),
    _write("datasets/{dataset_id}/tags/{key}", "DELETE", action="experiments/write"),
    _write("datasets/{dataset_id}/add-experiments", action="experiments/write"),
    _write("datasets/{dataset_id}/remove-experiments", action="experiments/write"),
    # Artifacts
    _read("artifacts/list"),
    _read("artifacts/presigned-download-url", "POST"),
    _write("artifacts/presigned-upload-url", changes="", scope=("body.run_id", "model:body.model_id")),
    _write("upload-artifact", changes="", scope=("query.run_uuid",)),
    _read("/get-artifact", space="root", artifact=True),
    _read("/model-versions/get-artifact", space="root", action="models/read", artifact=True),
    _read("artifacts", space="artifacts"),
    _read("artifacts/{path*}", space="artifacts", artifact=True),
    _read("presigned/{path*}", space="artifacts"),
    _write("artifacts/{path*}", "PUT", space="artifacts", changes="", scope=("artifact:path.path",)),
    _write("artifacts/{path*}", "DELETE", action="runs/delete", space="artifacts", changes=""),
    _write("mpu/create/{path*}", space="artifacts", changes="", scope=("artifact:path.path",), check=True),
    _write("mpu/complete/{path*}", space="artifacts", changes="", scope=("artifact:path.path",), check=True),
    _write("mpu/abort/{path*}", space="artifacts", changes="", scope=("artifact:path.path",), check=True),
    # Registered models and their versions
    _read("registered-models/get", action="models/read"),
    _read("registered-models/search", action="models/read"),
    _read("registered-models/get-latest-versions", "GET POST", action="models/read"),
    _read("registered-models/alias", action="models/read"),
    _write("registered-models/create", action="models/write", audit=True, scope=("free",), check=True),
    _write("registered-models/update", "PATCH", action="models/write", audit=True),
    _write("registered-models/rename", action="models/write", audit=True),
    _write("registered-models/delete", "DELETE", action="models/delete", audit=True),
    _write("registered-models/set-tag", action="models/write", audit=True, scope=("free",)),
    _write("registered-models/delete-tag", "DELETE", action="models/write", audit=True),
    _write("registered-models/alias", "POST", action="models/write", audit=True, scope=("free",)),
    _write("registered-models/alias", "DELETE", action="models/write", audit=True),
    _read("model-versions/get", action="models/read"),
    _read("model-versions/search", action="models/read"),
    _read("model-versions/get-download-uri", action="models/read"),
    _write("model-versions/create", action="models/write", audit=True, scope=("free",), check=True),
    _write("model-versions/update", "PATCH", action="models/write", audit=True),
    _write("model-versions/transition-stage", action="models/write", audit=True),
    _write("model-versions/set-tag", action="models/write", audit=True, scope=("free",)),
    _write("model-versions/delete-tag", "DELETE", action="models/write", audit=True),
    _write("model-versions/delete", "DELETE", action="models/delete", audit=True),
    # What the server says of itself, and its web interface
    _read("/graphql", "POST", space="root", check=True),
    _read("server-info", action="workspaces/read"),
    _read("users/current", action="workspaces/read"),
    _read("/health", space="root", action="workspaces/read"),
    _read("/version", space="root", action="workspaces/read"),
    _read("/", space="root", action="workspaces/read", ui=True),
    _read("/static-files/{path*}", space="root", action="workspaces/read", ui=True),
)

#: Where MLflow's server lets a run, a logged model and a trace keep their artifacts.
_OWNER_OF_PATH = re.compile(
    r"^[0-9]+/(?:(?P<kind>models|traces)/)?(?!models/|traces/)(?P<id>[A-Za-z0-9_-]{1,64})/artifacts(?:/.+)?$"
)


def _compile(rule: Rule) -> re.Pattern[str]:
    text = re.escape(rule.template).replace(r"\{path\*\}", r"(?P<path>.+)")
    text = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", text)
    return re.compile(f"^{text}$")


_TABLE: dict[tuple[str, str], list[tuple[re.Pattern[str], Rule]]] = {}
for _rule in RULES:
    for _method in _rule.methods:
        _TABLE.setdefault((_rule.space, _method), []).append((_compile(_rule), _rule))


def canonical(raw: str) -> tuple[str, str]:
    """Decode and check a request path.

    Args:
        raw: the path as sent, percent-encoded, from MLflow's root on.

    Returns:
        (decoded path, the same encoded anew).

    Raises:
        ParameterError: it is not UTF-8, or tries tricks: ``..``, empty or dot segments, backslashes, NUL or other
            control characters, encoded slashes; in whatever layer of encoding.
    """
    wrong = ParameterError("the path is not valid", "no empty, '.' or '..' segments, backslashes or control characters")
    if not raw.startswith("/") or re.search(r"%(?![0-9A-Fa-f]{2})", raw):
        raise wrong
    if re.search(r"%(2f|5c|00)", raw, re.IGNORECASE):
        raise wrong
    try:
        decoded = unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        raise wrong from None
    layer = decoded
    for _ in range(MAX_DECODINGS):
        if not _harmless(layer):
            raise wrong
        try:
            further = unquote_to_bytes(layer).decode("utf-8")
        except UnicodeDecodeError:
            raise wrong from None
        if further == layer:
            break
        if further.count("/") != layer.count("/"):
            raise wrong
        layer = further
    else:
        raise wrong
    return decoded, quote(decoded, safe="/!$&'()*+,;=:@~")


def _harmless(path: str) -> bool:
    if "\\" in path or any(ord(c) < 32 or ord(c) == 127 for c in path):
        return False
    if path == "/":
        return True
    return not any(segment in ("", ".", "..") for segment in path[1:].split("/"))


def match(method: str, raw: str) -> Match:
    """The rule for a request.

    Raises:
        ParameterError: the path is malformed, see :func:`canonical`.
        Forbidden: no rule allows it.
    """
    decoded, encoded = canonical(raw)
    lookup = "GET" if method == "HEAD" else method
    space, rest = "root", decoded
    for candidate, pattern in (("api", _VERSIONED), ("artifacts", _ARTIFACTS)):
        versioned = pattern.match(decoded)
        if versioned:
            space, rest = candidate, versioned.group(1)
    for expression, rule in _TABLE.get((space, lookup), ()):
        found = expression.match(rest)
        if found:
            if rule.space == "artifacts" and not rule.reads and not _OWNER_OF_PATH.match(found.group("path")):
                break
            return Match(rule, encoded, found.groupdict())
    raise Forbidden(
        f"{method} {decoded[:200]} is not served here",
        "only experiments, runs, metrics, datasets, traces, artifacts and models of MLflow are",
    )


def artifact_owner(path: str) -> tuple[str, str]:
    """(``run``, ``model`` or ``trace``; its id) that an artifact path below the root belongs to.

    Raises:
        Forbidden: it is no place of theirs.
    """
    found = _OWNER_OF_PATH.match(path)
    if not found:
        raise Forbidden("this is no artifact path of a run", "use <experiment id>/<run id>/artifacts/…")
    return {"models": "model", "traces": "trace"}.get(found.group("kind") or "", "run"), found.group("id")


def check_artifact_name(path: str) -> None:
    """Refuse an artifact path in a query or a body that leaves its folder, in whatever layer of encoding.

    Raises:
        ParameterError
    """
    layer = path
    for _ in range(MAX_DECODINGS):
        bad = "\\" in layer or any(ord(c) < 32 or ord(c) == 127 for c in layer)
        if bad or layer.startswith("/") or ".." in layer.split("/"):
            raise ParameterError(f"artifact path {path[:100]!r} is not valid", "use a relative path without '..'")
        further = unquote_to_bytes(layer).decode("utf-8", "replace")
        if further == layer:
            return
        layer = further
    raise ParameterError(f"artifact path {path[:100]!r} is not valid", "it is encoded too many times")


def check_locations(rule: Rule, body: dict[str, Any]) -> None:
    """Refuse places outside our own artifact store in a JSON body, wherever MLflow would take one.

    Raises:
        Forbidden: naming the field.
    """
    for key, value in pairs(body):
        if key in _LOCATION_KEYS and value not in (None, ""):
            _check_location(key, value)
    if rule.template == "model-versions/create":
        source = body.get("source")
        if source not in _PROMPT_SOURCES:
            _check_location("source", source if source is not None else "")


def check_spans(body: bytes, content_type: str) -> None:
    """Refuse OpenTelemetry spans that would give their trace a tag which says where its artifacts lie.

    MLflow makes such tags of attributes without a look at their names, and reads and deletes what they point at. In
    the binary form texts are plain bytes, so a search finds every one; JSON is written anew without escapes first.

    Raises:
        Forbidden: naming the tag.
        ParameterError: it is not the JSON that it says it is.
    """
    if content_type.partition(";")[0].strip().lower() == "application/json":
        try:
            body = json.dumps(json.loads(body), ensure_ascii=False).encode("utf-8", "surrogatepass")
        except (ValueError, RecursionError):
            raise ParameterError("the body is not valid JSON") from None
    for key in _LOCATION_KEYS:
        if f"mlflow.traceTag.{key}".encode() in body:
            raise Forbidden(f"{key} is not a tag for spans to set", "artifacts are kept by this workspace")


def _check_location(key: str, value: Any) -> None:
    if not isinstance(value, str) or not _LOCATION.match(value):
        raise Forbidden(
            f"{key} {str(value)[:100]!r} is not allowed",
            "artifacts are kept by this workspace: leave it out, or use mlflow-artifacts:/, runs:/ or models:/",
        )
    check_artifact_name(value.partition(":/")[2])


def pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """All (key, value) of nested objects; ``{"key": k, "value": v}`` entries, MLflow's tags, count as (k, v) too."""
    stack = [value]
    while stack:
        current = stack.pop()
        if isinstance(current, dict):
            if isinstance(current.get("key"), str):
                yield current["key"], current.get("value")
            for key, inner in current.items():
                yield key, inner
                if isinstance(inner, dict | list):
                    stack.append(inner)
        elif isinstance(current, list):
            stack.extend(inner for inner in current if isinstance(inner, dict | list))


_GRAPHQL_SKIPPED = re.compile(r'"""(?:\\"""|[^"]|"(?!""))*"""|"(?:\\.|[^"\\\n])*"|#[^\n\r]*')
_GRAPHQL_TOKEN = re.compile(r"[{}()]|[_A-Za-z][_0-9A-Za-z]*")


def check_graphql(query: Any) -> None:
    """Allow a GraphQL document with queries and fragments only.

    Raises:
        Forbidden: it defines something else, a mutation for example.
        ParameterError: it is no text.
    """
    if not isinstance(query, str):
        raise ParameterError("the GraphQL query is missing", "send it as the field 'query'")
    depth = 0
    start = True  # whether a definition may begin here
    for token in _GRAPHQL_TOKEN.findall(_GRAPHQL_SKIPPED.sub(" ", query)):
        if token in "{(":
            depth += 1
            start = False
        elif token in ")}":
            depth -= 1
            start = depth == 0 and token == "}"
        elif depth == 0:
            if token in ("mutation", "subscription") or (start and token not in ("query", "fragment")):
                raise Forbidden("only GraphQL queries are allowed here", "change things through the REST interface")
            start = False
    if depth != 0:
        raise ParameterError("the GraphQL query is not balanced")
