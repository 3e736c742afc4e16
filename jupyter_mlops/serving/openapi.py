"""The OpenAPI document of one endpoint, generated from its model's signature.

Addresses are relative to the document itself, so it is right under every address that the endpoint is reached at.
"""

from __future__ import annotations

from typing import Any

import jupyter_mlops

from . import examples, oip, schemas
from .signature import Signature
from .tensors import DATATYPES

#: Status → (code in the body, what it means).
ERRORS = {
    400: ("bad_parameter", "The body does not fit the model's signature; the message names the field."),
    401: ("unauthenticated", "No valid key came with the request."),
    404: ("not_found", "There is no such thing; for a deployment, the message names those that there are."),
    405: ("method_not_allowed", "Another method is the one here."),
    408: ("request_timeout", "The body did not arrive in time."),
    413: ("too_large", "The body is over its limit."),
    415: ("unsupported_media_type", "The content type is not understood."),
    424: ("model_error", "The input was right, but the model itself failed on it."),
    429: ("too_many_requests", "Too many requests are under way; Retry-After says when to try again."),
    503: ("unavailable", "No instance of the model answers; Retry-After says when to try again."),
    504: ("backend_timeout", "The model did not answer in time."),
}
_FORM_WORDS = {
    "Inputs": "values by column, or tensors", "Instances": "row by row", "DataframeRecords": "row by row",
    "DataframeSplit": "columns once, then rows",
}
_FORM_ORDER = ("DataframeSplit", "DataframeRecords", "Inputs", "Instances")
_FORMAT = {"DataframeSplit": "dataframe_split", "DataframeRecords": "dataframe_records", "Inputs": "inputs",
           "Instances": "instances"}


def document(
    endpoint: str, deployment: str, signature: Signature, base_url: str = ".", *, auth_mode: str = "key",
    model: dict[str, Any] | None = None, deployments: list[str] | None = None, example: dict[str, Any] | None = None,
    description: str = "",
) -> dict[str, Any]:
    """OpenAPI 3.1 as a dictionary.

    Args:
        deployment: the one whose ``signature`` this is: what answers when none is asked for.
        base_url: the address of the endpoint; the default is the folder that the document itself lies in.
        auth_mode: ``key`` or ``token``, or empty when something else guards the address.
        model: ``{"name", "version"}``.
        deployments: all names that the header ``azureml-model-deployment`` may have.
        example: a request from the model's folder (:func:`.examples.logged`).
        description: free text about the endpoint.
    """
    parts = schemas.components(signature)
    told = _object({"name": {"type": "string"}, "datatype": {"enum": list(DATATYPES)}, "shape": _shape(-1)},
                   "name", "datatype", "shape")
    found = {
        **parts,
        "Error": _object({"message": {"type": "string", "description": "one line that says what is wrong, and where"},
                          "code": {"type": "string"}, "hint": {"type": "string", "description": "what to do about it"},
                          "detail": {"description": "more about it, such as the names of missing columns"}},
                         "message", "code"),
        "InferenceTensor": told,
        "InferenceRequest": _object({
            "id": {"type": "string", "maxLength": 256},
            "parameters": {"type": "object", "description": "the model's parameters"},
            "inputs": {"type": "array", "minItems": 1, "items": _data_tensor()},
            "outputs": {"type": "array", "items": _object({"name": {"type": "string"}}, "name"),
                        "description": "outputs to answer with; all when absent"}}, "inputs"),
        "InferenceAnswer": _object({
            "model_name": {"type": "string"}, "model_version": {"type": "string"}, "id": {"type": "string"},
            "outputs": {"type": "array", "items": _data_tensor()}}, "model_name", "outputs"),
        "ModelMetadata": _object({
            "name": {"type": "string"}, "versions": {"type": "array", "items": {"type": "string"}},
            "platform": {"type": "string"}, "inputs": {"type": "array", "items": _ref("InferenceTensor")},
            "outputs": {"type": "array", "items": _ref("InferenceTensor")}}, "name", "platform", "inputs", "outputs"),
        "InferenceError": _object({"error": {"type": "string"}}, "error"),
    }
    secured = auth_mode in ("key", "token")
    result: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": f"Endpoint {endpoint}", "version": jupyter_mlops.__version__,
                 "description": description or f"Calls of the model behind the endpoint {endpoint}."},
        "servers": [{"url": base_url}],
        "paths": _paths(endpoint, deployment, signature, deployments or [deployment], example, parts),
        "components": {"schemas": found},
        "x-endpoint": {"name": endpoint, "deployment": deployment, "model": model or {}, "auth_mode": auth_mode},
    }
    if secured:
        word = "one of the endpoint's two keys" if auth_mode == "key" else "a token of the endpoint"
        result["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer", "description": f"Authorization: Bearer followed by {word}"}}
        result["security"] = [{"bearer": []}]
    return result


def _paths(endpoint: str, deployment: str, signature: Signature, deployments: list[str],
           example: dict[str, Any] | None, parts: dict[str, Any]) -> dict[str, Any]:
    chosen = {"name": "azureml-model-deployment", "in": "header", "required": False,
              "description": "The deployment that is to answer; without it the endpoint's traffic decides.",
              "schema": {"enum": deployments}}
    traced = {"name": "X-Request-Id", "in": "header", "required": False, "schema": {
        "type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"}, "description": "Comes back with the answer."}
    score = {
        "summary": "Score rows", "operationId": "invocations", "tags": ["MLflow"],
        "description": _score_words(signature), "parameters": [chosen, traced],
        "requestBody": {"required": True, "content": _score_content(signature, example, parts)},
        "responses": {"200": {
            "description": _answer_words(signature), "headers": {
                "X-Request-Id": {"schema": {"type": "string"}}, "X-Deployment": {"schema": {"type": "string"}}},
            "content": {"application/json": {"schema": _object({"predictions": {}}, "predictions")}},
        }, **_errors(400, 401, 404, 405, 408, 413, 415, 424, 429, 503, 504)},
    }
    alias = {**score, "summary": "The same under another name", "operationId": "score"}
    health = _get("health", "Does the endpoint answer", "MLflow", {
        "description": "It does.", "content": {"application/json": {"schema": _object(
            {"status": {"type": "string"}, "deployment": {"type": "string"}}, "status")}}}, (401, 405, 503))
    body: dict[str, Any] = {"schema": _ref("InferenceRequest")}
    tensors = examples.tensors(signature, example)
    if tensors is not None:
        body["example"] = tensors
    infer = {
        "summary": "Infer", "operationId": "infer", "tags": ["Open Inference Protocol"],
        "description": "Tensors in, tensors out. " + _tensor_words(signature), "parameters": [chosen, traced],
        "requestBody": {"required": True, "content": {"application/json": body}},
        "responses": {"200": _json("What the model answers.", "InferenceAnswer"),
                      **_errors(400, 401, 404, 405, 408, 413, 415, 424, 429, 503, 504, schema="InferenceError")},
    }
    version = {"name": "version", "in": "path", "required": True, "description": "The name of a deployment.",
               "schema": {"enum": deployments}}
    model = f"/v2/models/{endpoint}"
    tag, codes = "Open Inference Protocol", (401, 404, 405)

    def v2(name: str, words: str, answer: dict[str, Any], *more: int) -> dict[str, Any]:
        return _get(name, words, tag, answer, (*codes, *more), "InferenceError")

    metadata = _json("Names, datatypes and shapes.", "ModelMetadata")
    plain: dict[str, Any] = {"description": "It is."}
    paths: dict[str, Any] = {
        "/invocations": {"post": score}, "/score": {"post": alias}, "/health": {"get": health},
        "/v2": {"get": v2("server_metadata", "The server", {
            "description": "Its name and version.", "content": {"application/json": {"schema": _object(
                {"name": {"type": "string"}, "version": {"type": "string"},
                 "extensions": {"type": "array", "items": {"type": "string"}}}, "name", "version", "extensions")}}})},
        "/v2/health/live": {"get": v2("live", "Is the server alive", plain)},
        "/v2/health/ready": {"get": v2("ready", "Is the server ready", plain, 503)},
        model: {"get": v2("model_metadata", "The model's tensors", metadata)},
        f"{model}/ready": {"get": v2("model_ready", "Is the model ready", plain, 503)},
        f"{model}/infer": {"post": infer},
        f"{model}/versions/{{version}}": {"get": {
            **v2("version_metadata", "A deployment's tensors", metadata), "parameters": [version]}},
        f"{model}/versions/{{version}}/ready": {"get": {
            **v2("version_ready", "Is a deployment ready", plain, 503), "parameters": [version]}},
        f"{model}/versions/{{version}}/infer": {"post": {
            **infer, "operationId": "version_infer", "summary": "Infer with one deployment",
            "parameters": [version, traced]}},
        "/metrics": {"get": _get("metrics", "Prometheus metrics", "About the endpoint", {
            "description": "Counters of this endpoint.", "content": {"text/plain": {"schema": {"type": "string"}}}},
            (401, 405))},
        "/openapi.json": {"get": _get("openapi", "This document", "About the endpoint", {
            "description": "OpenAPI 3.1.", "content": {"application/json": {"schema": {"type": "object"}}}},
            (401, 405))},
    }
    return paths


def _score_content(signature: Signature, example: dict[str, Any] | None, parts: dict[str, Any]) -> dict[str, Any]:
    forms = [name for name in _FORM_ORDER if name in parts]
    bodies = examples.requests(signature, example)
    schema: dict[str, Any] = {"oneOf": [_ref(name) for name in forms]} if len(forms) > 1 else {}
    media: dict[str, Any] = {"schema": _ref(forms[0]) if len(forms) == 1 else schema}
    shown = {_FORMAT[name]: {"summary": f"{_FORMAT[name]}: {_FORM_WORDS[name]}", "value": bodies[_FORMAT[name]]}
             for name in forms if _FORMAT[name] in bodies}
    if shown:
        media["examples"] = shown
    content: dict[str, Any] = {"application/json": media}
    text = examples.table(signature, example)
    if text is not None:
        content["text/csv"] = {"schema": {"type": "string"}, "example": text}
    return content


def _score_words(signature: Signature) -> str:
    if not signature.columns and not signature.tensors:
        return "The body goes to a scoring script as it is; what it may be is the script's to say."
    words = "The body is checked against the model's signature before the model sees it; what does not fit is named."
    if signature.tensors and signature.named:
        return words + " The forms dataframe_split and dataframe_records are taken too, with a column for each input."
    return words


def _answer_words(signature: Signature) -> str:
    told = schemas.outputs(signature)
    words = "One prediction for each row: a list, or objects when the model answers with named columns."
    return f"{words} Its signature says: {told}." if told else words


def _tensor_words(signature: Signature) -> str:
    told = oip.inputs_of(signature)
    if signature.columns and signature.named and len(told) > 1 and len({c.type for c in signature.columns}) == 1:
        return f"One input for each column, or one of shape [rows, {len(told)}] with the columns in their order."
    if signature.columns and len(told) > 1:
        return "One input for each column."
    return "-1 in a shape of the metadata stands for any length."


def _get(name: str, words: str, tag: str, answer: dict[str, Any], codes: tuple[int, ...],
         schema: str = "Error") -> dict[str, Any]:
    return {"summary": words, "operationId": name, "tags": [tag],
            "responses": {"200": answer, **_errors(*codes, schema=schema)}}


def _errors(*codes: int, schema: str = "Error") -> dict[str, Any]:
    result = {}
    for status in codes:
        code, words = ERRORS[status]
        answer = _json(f"{words} (code {code})" if schema == "Error" else words, schema)
        if status in (429, 503):
            answer["headers"] = {"Retry-After": {"schema": {"type": "string"}, "description": "seconds"}}
        result[str(status)] = answer
    return result


def _json(words: str, schema: str) -> dict[str, Any]:
    return {"description": words, "content": {"application/json": {"schema": _ref(schema)}}}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


def _shape(least: int) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": least}}


def _data_tensor() -> dict[str, Any]:
    return _object({
        "name": {"type": "string"}, "shape": _shape(0), "datatype": {"enum": list(DATATYPES)},
        "parameters": {"type": "object"},
        "data": {"type": "array", "description": "flat in row-major order, or nested"},
    }, "name", "shape", "datatype", "data")
