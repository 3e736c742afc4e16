"""Endpoints, deployments and computes as Azure ML's CLI v2 writes them in YAML, read into specs of ours.

What has no meaning here (a registry's environment, an identity, a region) is named as ignored; what nobody knows is
refused with the nearest field, since it is a typing mistake that would else change how something serves.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from ..errors import ParameterError, Refused
from .base import Spec, check_name, parameter_error
from .compute import ComputeSpec
from .deployment import IGNORED, DeploymentSpec
from .endpoint import EndpointSpec

#: (kind, parent, name, spec, ignored): ``parent`` is a deployment's endpoint; ``ignored`` names fields with their path.
Read = tuple[str, str, str, dict[str, Any], list[str]]

_TOKENS = ("aml_token", "aad_token")
#: Fields of Azure ML that decide nothing here.
_IGNORED = {
    "endpoint": ("identity", "location", "kind", "type", "properties", "provisioning_state", "id", "scoring_uri",
                 "openapi_uri"),
    "deployment": ("type", "identity", "location", "properties", "provisioning_state", "id", "package_model",
                   "request_logging"),
    "compute": ("identity", "location", "properties", "provisioning_state", "id", "resource_id", "tags"),
}


def from_yaml(document: Any, endpoint: str = "") -> Read:
    """Read one YAML document, as ``yaml.safe_load`` gives it.

    Args:
        endpoint: of a deployment whose YAML does not say ``endpoint_name``.

    The specs hold the fields that were given, checked. ``code_configuration.code`` stays the local folder that the file
    names: whoever applies it uploads that and puts ``blob:<sha256>`` in its place.

    Raises:
        ParameterError: a field is not known, has a wrong value, or is missing; the message names it.
        Refused: it is something that is made in another way here; the hint says how.
    """
    if not isinstance(document, dict):
        raise ParameterError("the YAML is no mapping of fields", "it begins with  name: …")
    kind = _kind(document)
    name = _text(document, "name", kind)
    parent = ""
    if kind == "deployment":
        parent = endpoint if "endpoint_name" not in document and endpoint else _text(document, "endpoint_name", kind)
    check_name(name, f"{kind} name")
    if parent:
        check_name(parent, "endpoint_name")
    given = {k: v for k, v in document.items() if k not in ("$schema", "name", "endpoint_name")}
    ignored: list[str] = []
    readers = {"endpoint": _endpoint, "deployment": _deployment, "compute": _compute}
    spec = readers[kind](given, ignored)
    _check(kind, spec)
    return kind, parent, name, spec, ignored


def _kind(document: dict[str, Any]) -> str:
    schema = str(document.get("$schema") or "").rpartition("/")[2].lower()
    if "batch" in schema or "mini_batch_size" in str(document.get("settings", "")):
        raise Refused("a batch endpoint is no resource here", "score files with: %mlops batch ENDPOINT --input PATH")
    if "compute" in schema or (document.get("type") == "kubernetes" and "endpoint_name" not in document):
        if document.get("type") != "kubernetes":
            raise Refused(f"a compute of type {document.get('type')!r} is not attached here",
                          "type: kubernetes is; this machine is always there as `local`")
        if not {"auth_mode", "traffic", "compute", "model"} & set(document):
            return "compute"
    if "deployment" in schema or "endpoint_name" in document:
        return "deployment"
    if "endpoint" in schema or not schema:
        return "endpoint"
    raise Refused(f"{schema!r} is neither an online endpoint, a deployment nor a compute", "look at its $schema")


def _text(document: dict[str, Any], field: str, kind: str) -> str:
    value = document.get(field)
    if not isinstance(value, str) or not value:
        raise ParameterError(f"{kind} YAML: {field} is missing" if value is None else
                             f"{kind} YAML: {field} must be text, it is {value!r:.60}")
    return value


# -- endpoints -------------------------------------------------------------------------------------------------------


def _endpoint(given: dict[str, Any], ignored: list[str]) -> dict[str, Any]:
    spec = _known("endpoint", given, set(EndpointSpec.model_fields), ignored)
    if spec.get("auth_mode") in _TOKENS:
        spec["auth_mode"] = "token"
    if isinstance(spec.get("compute"), str):
        spec["compute"] = spec["compute"].removeprefix("azureml:")
    _strings(spec, "tags")
    for field in ("traffic", "mirror_traffic"):
        if spec.get(field) is None:
            spec.pop(field, None)
    return spec


def _compute(given: dict[str, Any], ignored: list[str]) -> dict[str, Any]:
    return _known("compute", given, set(ComputeSpec.model_fields), ignored)


# -- deployments -----------------------------------------------------------------------------------------------------


def _deployment(given: dict[str, Any], ignored: list[str]) -> dict[str, Any]:
    spec = _known("deployment", given, set(DeploymentSpec.model_fields), ignored)
    readers: dict[str, Callable[[Any, list[str]], Any]] = {
        "model": _model, "environment": _environment, "data_collector": _data_collector,
        "resources": _resources, "code_configuration": _code,
    }
    for field, read in readers.items():
        if field in spec:
            value = read(spec[field], ignored)
            if value is None:
                del spec[field]
            else:
                spec[field] = value
    for field in IGNORED:
        if spec.pop(field, None) is not None:
            ignored.append(field)
    _strings(spec, "tags")
    _strings(spec, "environment_variables")
    if spec.get("instance_type") is not None:
        spec["instance_type"] = str(spec["instance_type"])
    return spec


def _model(value: Any, ignored: list[str]) -> Any:
    if not isinstance(value, dict):
        return value
    fields = _known("deployment", value, {"name", "version", "path", "type"}, ignored, "model")
    if fields.get("name") and fields.get("version") is not None:
        ignored += [f"model.{field}" for field in ("path", "type") if field in fields]
        return f"{fields['name']}/{fields['version']}"
    path = str(fields.get("path") or "")
    if path.startswith("runs:/"):
        return path
    raise ParameterError(
        f"deployment YAML: model: the files at {path!r} are not registered",
        "log and register the model, then name it: azureml:NAME:VERSION, NAME/VERSION, NAME@ALIAS or runs:/RUN/PATH",
    )


def _environment(value: Any, ignored: list[str]) -> str | None:
    """The container image, which only a cluster needs; what else it says is ignored."""
    if isinstance(value, dict):
        known = {"image", "name", "version", "conda_file", "inference_config", "build", "description", "tags"}
        fields = _known("deployment", value, known, ignored, "environment")
        ignored += [f"environment.{field}" for field in fields if field != "image"]
        return str(fields["image"]) if fields.get("image") else None
    if isinstance(value, str) and value.startswith("azureml:"):
        ignored.append("environment")
        return None
    return value  # type: ignore[no-any-return]  # checked with the whole spec


def _data_collector(value: Any, ignored: list[str]) -> Any:
    if not isinstance(value, dict):
        return value
    known = {"sampling_rate", "rolling_rate", "collections", "masked_columns", "max_bytes", "request_logging"}
    fields = _known("deployment", value, known, ignored, "data_collector")
    if "request_logging" in fields:
        del fields["request_logging"]
        ignored.append("data_collector.request_logging")
    if fields.get("rolling_rate") not in (None, "Hour"):
        ignored.append("data_collector.rolling_rate")
    fields.pop("rolling_rate", None)
    asked = fields.get("collections")
    if isinstance(asked, dict):
        # What is not named is not collected.
        kept = {"model_inputs": {"enabled": False}, "model_outputs": {"enabled": False}}
        for name, collection in asked.items():
            at = f"data_collector.collections.{name}"
            if name not in kept:
                ignored.append(at)
                continue
            inner = _known("deployment", collection or {}, {"enabled", "data"}, ignored, at)
            if "data" in inner:
                ignored.append(f"{at}.data")
            kept[name] = {"enabled": _yes(inner.get("enabled", True))}
        fields["collections"] = kept
    return fields


def _yes(value: Any) -> Any:
    """Azure ML's examples write ``'True'`` as text."""
    return {"true": True, "false": False}.get(str(value).lower(), value)


def _resources(value: Any, ignored: list[str]) -> Any:
    if not isinstance(value, dict):
        return value
    return {
        side: {str(k): str(v) for k, v in amounts.items()} if isinstance(amounts, dict) else amounts
        for side, amounts in value.items()
    }


def _code(value: Any, ignored: list[str]) -> Any:
    if isinstance(value, dict):
        return _known("deployment", value, {"code", "scoring_script"}, ignored, "code_configuration")
    return value


# -- shared ----------------------------------------------------------------------------------------------------------


def _known(kind: str, given: Any, fields: set[str], ignored: list[str], at: str = "") -> dict[str, Any]:
    """The known fields of a mapping, in a copy; those that have no meaning here are noted."""
    where = f"{at}." if at else ""
    if not isinstance(given, dict):
        raise ParameterError(f"{kind} YAML: {at} must be a mapping of fields")
    skipped = () if at else _IGNORED[kind]
    kept = {}
    for field, value in given.items():
        if field in fields:
            kept[field] = value
        elif field in skipped:
            ignored.append(f"{where}{field}")
        else:
            near = difflib.get_close_matches(str(field), [*fields, *skipped], 1, 0.6)
            hint = f"did you mean {where}{near[0]}?" if near else f"known are: {', '.join(sorted(fields))}"
            raise ParameterError(f"{kind} YAML: field {where}{field} is not known", hint)
    return kept


def _strings(spec: dict[str, Any], field: str) -> None:
    """YAML reads ``1`` and ``true`` as such where text is meant."""
    values = spec.get(field)
    if values is None:
        spec.pop(field, None)
    elif isinstance(values, dict):
        spec[field] = {str(k): _plain(v) for k, v in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, (int, float)) else value


_SPECS: dict[str, type[Spec]] = {"endpoint": EndpointSpec, "deployment": DeploymentSpec, "compute": ComputeSpec}


def _check(kind: str, spec: dict[str, Any]) -> None:
    whole = spec
    code = spec.get("code_configuration")
    if isinstance(code, dict) and isinstance(code.get("code"), str) and code["code"]:
        whole = {**spec, "code_configuration": {**code, "code": "blob:" + "0" * 64}}  # uploaded when it is applied
    try:
        _SPECS[kind].model_validate(whole)
    except ValidationError as error:
        raise parameter_error(error, f"{kind} YAML") from error
