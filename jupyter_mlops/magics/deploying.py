"""The verb deploy: what its first word means, what proves it, and what is said meanwhile and at the end."""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..client import code
from ..client.deploy import AUTOMATIC, Deployed, check_compute
from ..client.model import ModelVersion
from ..client.run import Run
from ..client.serving import CanaryFailed
from ..client.traffic import versus
from ..core.errors import NotFound, ParameterError
from . import settings
from .context import Context
from .expand import evaluate

if TYPE_CHECKING:
    from ..client.deployment import Deployment
    from .display import Progress


@dataclass
class Source:
    """What is to be served: a version that is there, or a variable that becomes one."""

    reference: str = ""
    variable: str = ""
    value: Any = None
    flavour: str = ""
    remarks: list[str] = field(default_factory=list)


def deploy(a: argparse.Namespace, context: Context) -> Deployment:
    """Serve a variable, a version or a run's model; returns when it is ready and proven, with a ready-made call."""
    from .display import Progress

    _check(a, context)
    if a.endpoint:  # before anything is looked up, logged or made
        from ..core.resources import check_name

        check_name(a.endpoint, "endpoint name")
    script = code.of_script(a.script) if a.script else []
    source = _source(a, context) if a.model else Source()
    if a.onnx and not source.variable:
        raise ParameterError("--onnx converts a variable of the notebook", f"{source.reference} is logged already")
    endpoint = a.endpoint or _slug(re.split(r"[@/]", source.reference, maxsplit=1)[0])
    if a.compute:  # before a model is logged for it
        check_compute(context.client, endpoint, a.compute)
    progress = Progress(context, f"{source.variable or a.model or a.script} at endpoint {endpoint}")
    proof: Any = False if a.no_proof else None
    if source.variable:
        reference, proof = _log(a, context, source, endpoint, progress)
    else:
        reference = source.reference
        if a.sample and not a.no_proof:
            progress.tell("Preparing", "asking the version for its answer here")
            proof = _answer_of(a, context, reference)
    for remark in source.remarks:
        context.say(f"note: {remark}")
    if script and isinstance(proof, dict):
        proof["expected"] = None  # the script answers in its own form
    done = context.client.deploy_version(
        reference, endpoint, a.name, env=dict(a.env),
        # From a notebook its own Python serves the model; from a terminal the one that made it.
        interpreter=sys.executable if context.face == "magic" else "",
        instances=a.instances, least=a.least, most=a.most, canary=_canary(a), mirror=a.mirror, traffic=a.traffic,
        keep=a.keep, collect=a.collect, mask=a.mask, proof=proof, code=_code(context, script),
        compute=a.compute, image=a.image,
        wait=not a.no_wait, timeout=a.timeout, told=lambda d: progress.tell(d.phase, d.reason),
    )
    if a.canary is not None and a.wait:
        _await_canary(context, endpoint, done, progress, a.keep)
    progress.done()
    return _tell(a, context, endpoint, done, source.flavour)


def _check(a: argparse.Namespace, context: Context) -> None:
    """Refuse what does not go together, before anything starts. Raises ParameterError."""
    parts = [flag for flag, given in (("--canary", a.canary), ("--mirror", a.mirror), ("--traffic", a.traffic))
             if given is not None]
    if len(parts) > 1:
        raise ParameterError(f"{parts[0]} and {parts[1]} exclude each other", "choose how it takes its part")
    if a.canary is None:
        for flag, given in (("--duration", a.duration), ("--max-error-rate", a.max_error_rate),
                            ("--max-latency-ratio", a.max_latency_ratio), ("--min-requests", a.min_requests),
                            ("--wait", a.wait or None)):
            if given is not None:
                raise ParameterError(f"{flag} goes with --canary", "for example: --canary 10")
    if a.no_wait and parts:
        raise ParameterError(f"--no-wait and {parts[0]} exclude each other", "it takes its part when it is ready")
    if a.instances is not None and (a.least is not None or a.most is not None):
        raise ParameterError("--instances and --min, --max exclude each other", "a fixed number, or a range")
    if a.least is not None and a.most is not None and a.least > a.most:
        raise ParameterError(f"--min {a.least} is more than --max {a.most}")
    if not a.model and not a.script:
        raise ParameterError("there is nothing to deploy", f"for example: {context.command('deploy NAME@champion')}")
    if not a.model and not a.endpoint:
        raise ParameterError("a script needs an endpoint's name", "add --endpoint NAME")
    if a.call and context.face != "magic":
        raise ParameterError("--call inserts a cell, for which a notebook is needed")
    if a.sample and context.face != "magic":
        raise ParameterError("--sample is an expression over a notebook's variables", "deploy it from the notebook")
    if a.onnx and context.face != "magic":
        raise ParameterError("--onnx converts a variable of a notebook", "deploy it from the notebook")
    if a.sample and a.no_proof:
        raise ParameterError("--sample and --no-proof exclude each other")


def _code(context: Context, files: list[tuple[str, Path]]) -> dict[str, str] | None:
    return {"code": code.upload(context.client, files), "scoring_script": files[0][0]} if files else None


def _await_canary(context: Context, endpoint: str, done: Deployed, progress: Progress, keep: bool) -> None:
    """Show a canary until it is promoted or rolled back.

    Raises:
        CanaryFailed: it was rolled back, or somebody ended it.
    """
    client, name, seen = context.client, done.deployment.name, ""
    while True:
        at = client.endpoint(endpoint)
        canary = at.canary
        if canary.get("deployment") != name:
            return  # there was nobody to be compared with
        line = versus(canary)
        if canary["phase"] != "Running":
            break
        if line != seen:
            progress.tell("Running", f"canary with {canary['percent']} %: {line}")
            seen = line
        client.call(asyncio.sleep(0.5))
    done.deployment.at = at
    progress.tell(canary["phase"], canary.get("reason") or line)
    if canary["phase"] != "Promoted":
        raise CanaryFailed(endpoint, canary)
    done.removed = client.remove_older(endpoint, name) if AUTOMATIC.match(name) and not keep else []


def _canary(a: argparse.Namespace) -> dict[str, Any] | None:
    if a.canary is None:
        return None
    given = {"percent": a.canary, "duration": a.duration, "max_error_rate": a.max_error_rate,
             "max_latency_ratio": a.max_latency_ratio, "min_requests": a.min_requests}
    return {k: v for k, v in given.items() if v is not None}


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _source(a: argparse.Namespace, context: Context) -> Source:
    """A variable with a model, else a registered version, else a run with one model.

    Raises:
        ParameterError, NotFound: it is none of these.
    """
    from ..client import flavour

    word = a.model
    value = context.names.get(word) if word.isidentifier() else None
    if isinstance(value, ModelVersion):
        return Source(value.reference)
    if isinstance(value, Run):
        return _of_run(a, context, value)
    if value is not None and flavour.detect(value) is not None:
        if not a.endpoint:
            raise ParameterError(f"{word} needs an endpoint's name", f"%mlops deploy {word} --endpoint NAME")
        return Source(variable=word, value=value)
    if not re.split(r"[@/]", word, maxsplit=1)[0].strip(". "):
        raise ParameterError(f"{word!r} names no model", "give a variable, NAME@ALIAS, NAME/VERSION, NAME or a run")
    try:
        version = context.client.version(word)
    except NotFound as error:
        if "@" in word or "/" in word:
            raise
        run = _run_called(context, word)
        if run is not None:
            return _of_run(a, context, run)
        if value is not None:
            kind = f"class {value.__name__}" if isinstance(value, type) else type(value).__name__
            raise ParameterError(
                f"{word} is a {kind}, not a fitted model, and no registered model or run has that name",
                "give the variable that holds the model",
            ) from None
        if context.face == "cli" and word.isidentifier():
            error.hint = f"{error.hint}; a notebook's variable is deployed in the notebook".lstrip("; ")
        raise
    if a.register:
        raise ParameterError("--model names what a variable or a run is registered as", f"{word} is registered already")
    return Source(version.reference)


def _run_called(context: Context, word: str) -> Run | None:
    try:
        return context.client.run(word)
    except NotFound:
        return None


def _of_run(a: argparse.Namespace, context: Context, run: Run) -> Source:
    """The version of a run's model, registered if it is not yet.

    Raises:
        NotFound: the run has none.
        ParameterError: it has several.
    """
    models = run.models
    if len({m["name"] for m in models}) > 1:
        named = ", ".join(dict.fromkeys(m["name"] for m in models))
        raise ParameterError(
            f"run {run.name} has {len(models)} models: {named}",
            f"register one: %mlops register {run.id[:8]} NAME --artifact {models[0]['name']}",
        )
    name = a.register or a.endpoint
    if not name:
        raise ParameterError(f"run {run.name} needs an endpoint's name", f"%mlops deploy {a.model} --endpoint NAME")
    version = context.client.register(run.id, name)
    return Source(version.reference, remarks=[f"the model of run {run.name} is registered as {version.reference}"])


def _log(
    a: argparse.Namespace, context: Context, source: Source, endpoint: str, progress: Progress
) -> tuple[str, dict[str, Any] | bool]:
    """Answer the sample here, log and register the variable: (reference, proof)."""
    from ..client import variable
    from ..core.resources import check_name

    check_name(endpoint, "endpoint name")
    if a.name:
        check_name(a.name, "deployment name")
    progress.tell("Preparing", "answering the sample here")
    given = evaluate(a.sample, context.names) if a.sample else None
    answered = variable.answer(source.value, source.variable, context.names, given, a.sample or "")
    source.remarks += answered.sample.remarks
    source.flavour = answered.flavour.name
    answered.skops = a.skops
    if a.onnx:
        progress.tell("Preparing", "looking for a faster form of it")
        reasons: list[str] = []
        taken = answered.as_onnx(reasons.append)
        source.remarks.append(("on ONNX Runtime: " if taken else "not on ONNX Runtime: ") + "; ".join(reasons))
    register = a.register or endpoint
    logged = variable.log(
        context.client, answered, register, settings.experiment(context.where).value, f"deploy {endpoint}",
        lambda text: progress.tell("Preparing", text),
    )
    return logged.version.reference, False if a.no_proof else (logged.proof or False)


def _answer_of(a: argparse.Namespace, context: Context, reference: str) -> dict[str, Any]:
    """The proof that a registered version, loaded here once, gives."""
    from ..client import variable

    given = evaluate(a.sample, context.names)
    return variable.answer_of_version(context.client, reference, given, a.sample, context.names)


def _tell(a: argparse.Namespace, context: Context, endpoint: str, done: Deployed, flavour: str) -> Deployment:
    deployment = done.deployment
    for remark in done.remarks:
        context.say(f"note: {remark}")
    if a.no_wait:
        taking = [d for d, share in context.client.endpoint(endpoint).shares.items() if share and d != deployment.name]
        if taking:
            context.say(f"requests still go to {taking[0]}; the same command without --no-wait lets this one take over")
    for name in done.removed:
        context.say(f"deployment {endpoint}/{name} was replaced and is removed")
    needed = {"sklearn": ("skl2onnx", "onnxruntime"), "pytorch": ("onnx", "onnxruntime")}.get(flavour, ())
    if a.onnx is None and needed and all(find_spec(name) for name in needed):
        context.say_once("note: such a model may be faster on ONNX Runtime; --onnx tries that, and takes it only when "
                         "its answers are equal")
    if a.call and context.interactive and hasattr(context.shell, "set_next_input"):
        context.shell.set_next_input(deployment.call_cell, replace=False)
    return deployment
