"""Verbs about what serves: invoke, endpoints."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..client.report import Report
from ..core.errors import ParameterError
from .context import Context
from .expand import evaluate

if TYPE_CHECKING:
    from ..client.serving import Endpoint, EndpointTable


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


def endpoints(a: argparse.Namespace, context: Context) -> Endpoint | EndpointTable | Report:
    """One endpoint with its deployments, or a table; replaces a key."""
    client = context.client
    if a.name is None:
        if a.rotate_key:
            raise ParameterError("--rotate-key needs the endpoint's name")
        return client.endpoints()
    if a.rotate_key:
        value = client.rotate_key(a.name, a.rotate_key)
        endpoint = client.endpoint(a.name)
        if context.face == "cli":
            # The only moment at which it can be read; a notebook would save it, a terminal does not.
            report = Report({"endpoint": a.name, "key": a.rotate_key, "value": value})
            return report.facts([(f"{a.rotate_key} key", value)], f"Endpoint {a.name}")
        where = "the attribute .key of this object" if a.rotate_key == "primary" else "client.rotate_key's answer"
        context.say(f"the {a.rotate_key} key of {a.name} is new; it is not shown here, read it from {where}")
        return endpoint
    endpoint = client.endpoint(a.name)
    endpoint.behind = client.deployments(a.name)
    return endpoint
