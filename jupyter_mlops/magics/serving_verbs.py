"""The verbs about endpoints: their summaries, arguments and examples."""

from __future__ import annotations

import argparse

from .arguments import Verb, pair, seconds


def _deploy(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", metavar="MODEL", help="NAME@ALIAS, NAME/VERSION, or NAME for the newest version")
    p.add_argument("-e", "--endpoint", metavar="NAME", help="endpoint name (default: the model's)")
    p.add_argument("--name", metavar="NAME", help="deployment name (default: v and the version)")
    p.add_argument("--env", action="append", type=pair, default=[], metavar="KEY=VALUE",
                   help="environment of the scorer")
    p.add_argument("--no-wait", action="store_true", help="return at once")
    p.add_argument("--timeout", type=seconds, default=600.0, metavar="S", help="longest wait in seconds (default 600)")


def _invoke(p: argparse.ArgumentParser) -> None:
    p.add_argument("endpoint", metavar="ENDPOINT", help="endpoint name")
    p.add_argument("data", nargs="?", metavar="DATA",
                   help="notebook: an expression, e.g. X[:3]; terminal: JSON, @FILE or -")


def _endpoints(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", nargs="?", metavar="ENDPOINT", help="show this endpoint with its deployments")
    p.add_argument("--rotate-key", choices=("primary", "secondary"), help="replace a key")


VERBS = (
    Verb("deploy", "serve a model at an endpoint", "serving:deploy", _deploy,
         ("deploy digits@champion --endpoint digits",)),
    Verb("invoke", "call an endpoint", "serving:invoke", _invoke, ("invoke digits X[:3]",)),
    Verb("endpoints", "list endpoints, replace keys", "serving:endpoints", _endpoints,
         ("endpoints", "endpoints digits", "endpoints digits --rotate-key primary")),
)
