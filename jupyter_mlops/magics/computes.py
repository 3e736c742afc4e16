"""The verb about computes: attach a cluster, see what there is and what is free, forget it."""

from __future__ import annotations

import argparse
from typing import Any

from ..client import render
from ..client.compute import Compute, ComputeTable, Survey
from ..client.report import Report
from ..core.errors import MlopsError, NotFound, ParameterError, Refused
from .context import Context

#: Options that only an attachment takes.
_ATTACHING = ("kubernetes", "namespace", "image", "serving_image", "queue", "gpu_resource", "pip_index",
              "package_cache", "file")


def compute(a: argparse.Namespace, context: Context) -> Any:
    """Do what the first word says."""
    action = a.action or "list"
    if action == "list":
        if a.name:
            raise ParameterError(f"unexpected argument {a.name!r}", f"to see one: compute show {a.name}")
        return context.client.computes()
    if not a.name:
        raise ParameterError(f"compute {action} needs the name of a compute", "compute list shows them")
    given = [o for o in _ATTACHING if getattr(a, o) is not None]
    if given and action != "attach":
        raise ParameterError(f"--{given[0].replace('_', '-')} goes with compute attach")
    return {"attach": _attach, "show": _show, "detach": _detach}[action](a, context)


def _attach(a: argparse.Namespace, context: Context) -> Survey:
    """Ask the cluster first; save when nothing stands in the way."""
    spec = _spec(a, context)
    found = context.client.check_compute(a.name, spec, a.create_namespace)
    if found.fatal and not a.force:
        if context.face == "magic" or not context.json:
            context.say(found.text())
        if found["role"]:
            context.say("The role:\n" + _yaml(found["role"]))
        first = found.fatal[0]
        raise Refused(f"compute '{a.name}' was not attached: {first['message']}",
                      f"{first['hint']}; --force attaches it all the same")
    context.client.attach_compute(a.name, spec)
    found.note(f"Attached as '{a.name}': %%mlops train --compute {a.name}" if context.face == "magic"
               else f"Attached as '{a.name}'.")
    return found


def _spec(a: argparse.Namespace, context: Context) -> dict[str, Any]:
    spec: dict[str, Any] = {}
    if a.file:
        spec = _read(a.file)
    else:
        try:  # what was set before stays where the line says nothing else
            before = context.client.compute(a.name)
        except NotFound:
            before = None
        if before is not None and before.spec.get("type") != "kubernetes":
            raise ParameterError(f"compute '{a.name}' is of type {before.spec.get('type')}", "choose another name")
        spec = before.spec if before is not None else {}
    spec["type"] = "kubernetes"
    for key, value in (("context", a.kubernetes), ("namespace", a.namespace)):
        if value is not None:
            spec[key] = value
    if not spec.get("namespace"):
        raise ParameterError("compute attach needs --namespace NAME", "everything that we make there lies in it")
    for part, key, value in (("training", "image", a.image), ("serving", "image", a.serving_image),
                             ("training", "queue", a.queue), ("training", "gpu_resource", a.gpu_resource)):
        if value is not None:
            spec[part] = {**(spec.get(part) or {}), key: value}
    training = spec.get("training") or {}
    if a.pip_index is not None:
        spec["training"] = training = {**training, "pip": {**(training.get("pip") or {}), "index_url": a.pip_index}}
    if a.package_cache is not None:
        size = {k: v for k, v in (training.get("package_cache") or {}).items() if k == "size"}
        kind = "host_path" if a.package_cache.startswith("/") else "claim"
        spec["training"] = {**training, "package_cache": {kind: a.package_cache, **size} if a.package_cache else None}
    return spec


def _read(path: str) -> dict[str, Any]:
    import yaml

    try:
        with open(path, encoding="utf-8") as f:
            value = yaml.safe_load(f)
    except (OSError, yaml.YAMLError) as error:
        raise ParameterError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(value, dict):
        raise ParameterError(f"{path} holds no compute", "it is a mapping with type, context, namespace …")
    return {k: v for k, v in value.items() if k not in ("name", "$schema")}


def _yaml(value: Any) -> str:
    import yaml

    return str(yaml.safe_dump(value, sort_keys=False))


def _show(a: argparse.Namespace, context: Context) -> Compute | Report:
    """What is known of it; of a cluster, what it answers now."""
    found = context.client.compute(a.name)
    if found.spec.get("type") != "kubernetes":
        return found
    try:
        report: Report = found.survey()
    except MlopsError as error:
        return Report(found.to_dict(), ok=False).facts(found._facts(), f"Compute {a.name}", "Unreachable").note(
            error.message + (f" ({error.hint})" if error.hint else ""))
    types = found.spec.get("instance_types") or {}
    return report.table(["instance type", "asks for", "price an hour", "about"], [
        [name, _wants(kind), f"{kind['price']:g}" if kind.get("price") else "", kind.get("description") or ""]
        for name, kind in sorted(types.items())], "Instance types")


def _wants(kind: dict[str, Any]) -> str:
    resources = kind.get("resources") or {}
    wanted = {**(resources.get("requests") or {}), **(resources.get("limits") or {})}
    return ", ".join(f"{v} {k}" for k, v in wanted.items())


def _detach(a: argparse.Namespace, context: Context) -> ComputeTable:
    found = context.client.compute(a.name)
    context.confirm(f"Forget compute '{a.name}'? Nothing on the cluster is changed.", a.yes)
    found.detach()
    context.say(f"Compute {render.clean(a.name)} is no longer attached.")
    return context.client.computes()
