"""Verbs about what serves: invoke, endpoints."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..client.report import Report
from ..client.token import Token
from ..core.errors import ParameterError
from .context import Context
from .expand import evaluate

if TYPE_CHECKING:
    from ..client.serving import Endpoint


def invoke(a: argparse.Namespace, context: Context) -> Any:
    """Score the value of an expression (notebook) or JSON (terminal)."""
    if a.example:
        if a.data is not None:
            raise ParameterError("--example takes no data: it sends the sample of the deployment")
        return context.client.invoke_example(a.endpoint, a.deployment or "")
    if a.data is None:
        example = "invoke digits X[:3]" if context.face == "magic" else "invoke digits '{\"inputs\": [[1, 2]]}'"
        raise ParameterError("there is nothing to score", f"for example: {context.command(example)}")
    if context.face == "magic":
        data = evaluate(a.data, context.names)
    else:
        text = sys.stdin.read() if a.data == "-" else a.data
        if a.data.startswith("@"):
            try:
                text = Path(a.data[1:]).read_text(encoding="utf-8")
            except OSError as error:
                raise ParameterError(f"{a.data[1:]} cannot be read: {error.strerror}") from None
        try:
            data = json.loads(text)
        except ValueError as error:
            raise ParameterError(
                f"the data is not valid JSON: {error}", "give JSON, @FILE, or - for standard input"
            ) from None
    return context.client.invoke(a.endpoint, data, a.deployment or "")


def endpoints(a: argparse.Namespace, context: Context) -> Any:
    """One endpoint with its deployments, its figures or its history, or a table; replaces a key, makes a token."""
    client = context.client
    chosen = [flag for flag, given in (("--rotate-key", a.rotate_key), ("--token", a.token), ("--stats", a.stats),
                                       ("--history", a.history)) if given]
    if len(chosen) > 1:
        raise ParameterError(f"{chosen[0]} and {chosen[1]} exclude each other")
    if a.name is None:
        if chosen:
            raise ParameterError(f"{chosen[0]} needs the endpoint's name")
        return client.endpoints()
    if a.rotate_key:
        return _rotate(a, context)
    if a.token:
        return _token(a, context)
    if a.stats:
        return client.traffic(a.name, detailed=True)
    if a.history:
        return client.endpoint_history(a.name)
    endpoint = client.endpoint(a.name)
    endpoint.behind = client.deployments(a.name)
    return endpoint


def _rotate(a: argparse.Namespace, context: Context) -> Endpoint | Report:
    """A new key. Shown in a terminal only: a notebook would save it."""
    value = context.client.rotate_key(a.name, a.rotate_key)
    if a.rotate_key == "tokens":
        context.say(f"all bearer tokens of {a.name} have ended")
        return context.client.endpoint(a.name)
    if context.face == "cli":
        report = Report({"endpoint": a.name, "key": a.rotate_key, "value": value})
        return report.facts([(f"{a.rotate_key} key", value)], f"Endpoint {a.name}")
    where = "the attribute .key of this object" if a.rotate_key == "primary" else "client.rotate_key's answer"
    context.say(f"the {a.rotate_key} key of {a.name} is new; it is not shown here, read it from {where}")
    return context.client.endpoint(a.name)


def _token(a: argparse.Namespace, context: Context) -> Token | Report:
    """A bearer token. Shown in a terminal only: a notebook would save it."""
    made = context.client.endpoint_token(a.name, a.token)
    if context.face == "cli":
        report = Report({"endpoint": a.name, **made})
        return report.facts([("token", made["token"]), ("good until", made["expires_at"])], f"Endpoint {a.name}")
    return Token(a.name, made["token"], made["expires_at"])
