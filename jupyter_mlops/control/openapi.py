"""The OpenAPI document, generated from the operation table and the pydantic models."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ..core.resources.base import NAME_PATTERN
from . import schemas
from .operations import API, Operation

_REF = "#/components/schemas/{model}"
_DESCRIPTIONS = {
    400: "malformed request", 401: "no valid token", 403: "not allowed", 404: "no such thing", 405: "no such verb",
    408: "the request came too slowly", 409: "in conflict with what is there",
    410: "the feed does not reach back that far", 412: "precondition failed", 413: "too large",
    415: "content type not understood", 422: "cannot be done", 424: "the model failed on this input",
    426: "versions do not match", 429: "too many requests", 502: "a system behind us does not answer",
    503: "busy or starting", 504: "a system behind us is too slow",
}
#: What any operation may answer.
COMMON_ERRORS = (400, 401, 403, 404, 405, 426, 503)


def document(table: list[Operation], version: str) -> dict[str, Any]:
    """OpenAPI 3.1 as a dictionary."""
    models: set[type[BaseModel]] = {schemas.Error}
    for op in table:
        models.update(m for m in (op.body, *op.responses.values()) if m is not None)
    ordered = sorted(models, key=lambda m: m.__name__)
    refs, definitions = models_json_schema([(m, "validation") for m in ordered], ref_template=_REF)
    names = {m: refs[(m, "validation")]["$ref"] for m in ordered}
    paths: dict[str, dict[str, Any]] = {}
    for op in table:
        paths.setdefault(API + op.path, {})[op.method.lower()] = _operation(op, names)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Jupyter MLOps control plane", "version": version,
                 "license": {"name": "BSD-3-Clause", "identifier": "BSD-3-Clause"}},
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": definitions.get("$defs", {}),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(op: Operation, names: dict[type[BaseModel], str]) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = []
    for name in re.findall(r"{(\w+)}", op.path):
        schema: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": 500}
        if name == "rank":
            schema = {"type": "integer", "minimum": 0, "maximum": 100_000}
        elif name in ("deployment",) or (name == "name" and re.search(r"/(jobs|endpoints|computes)/{name}", op.path)):
            schema = {"type": "string", "pattern": NAME_PATTERN, "maxLength": 40}
        parameters.append({"name": name, "in": "path", "required": True, "schema": schema})
    if op.query is not None:
        described = op.query.model_json_schema()
        for name, schema in described.get("properties", {}).items():
            # An absent query parameter is simply not there; null has no spelling in a query.
            plain = [s for s in schema.get("anyOf", []) if s.get("type") != "null"]
            if plain:
                schema = {**plain[0], **{k: v for k, v in schema.items() if k not in ("anyOf", "default")}}
            parameters.append({
                "name": name, "in": "query", "required": name in described.get("required", []), "schema": schema,
            })
    if op.preconditions:
        for header in ("If-Match", "If-None-Match"):
            parameters.append({"name": header, "in": "header", "required": False, "schema": {"type": "string"}})
    responses: dict[str, Any] = {}
    for status, model in op.responses.items():
        content = {} if model is None else {"content": {"application/json": {"schema": {"$ref": names[model]}}}}
        if model is None and op.produces:
            content = {"content": {op.produces: {"schema": {"type": "string"}}}}
        responses[str(status)] = {"description": "done" if status < 300 else "", **content}
    for status in sorted({*COMMON_ERRORS, *op.errors, *((412,) if op.preconditions else ())}):
        error = {"application/json": {"schema": {"$ref": names[schemas.Error]}}}
        responses[str(status)] = {"description": _DESCRIPTIONS[status], "content": error}
    result: dict[str, Any] = {
        "operationId": op.function.__name__, "summary": op.summary, "parameters": parameters, "responses": responses,
    }
    if op.description:
        result["description"] = op.description
    if op.body is not None:
        result["requestBody"] = {
            "required": True, "content": {"application/json": {"schema": {"$ref": names[op.body]}}},
        }
    elif op.raw_body:
        result["requestBody"] = {
            "required": True, "content": {op.content: {"schema": {"type": "object"} if op.content == "application/json"
                                                       else {"type": "string", "format": "binary"}}},
        }
    return result
