"""The verbs about endpoints: their summaries, arguments and examples."""

from __future__ import annotations

import argparse

from . import batch, export
from .arguments import Verb, amount, count, pair, part, percent, ratio, seconds, share, span, whole, words


def _deploy(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", nargs="?", metavar="MODEL",
                   help="a variable of the notebook, NAME@ALIAS, NAME/VERSION, NAME for the newest version, or a run")
    p.add_argument("-e", "--endpoint", metavar="NAME", help="endpoint name (default: the model's)")
    p.add_argument("--name", metavar="NAME",
                   help="deployment name (default: v and the version, which replaces older ones of this kind)")
    p.add_argument("--model", dest="register", metavar="NAME",
                   help="of a variable or run: name of the registered model (default: the endpoint's)")
    p.add_argument("--sample", metavar="EXPR",
                   help="notebook: rows whose answers must be those of this kernel, e.g. X[:5]")
    p.add_argument("--no-proof", action="store_true", help="let it take traffic without having answered a sample")
    p.add_argument("--onnx", action=argparse.BooleanOptionalAction, default=None,
                   help="serve a variable on ONNX Runtime, when its answers are equal and come faster")
    p.add_argument("--skops", action="store_true",
                   help="write a scikit-learn variable as skops: no code runs when it is loaded, which takes longer")
    p.add_argument("--instances", type=count, metavar="N", help="processes that serve it (default 1)")
    p.add_argument("--min", type=whole, metavar="N", dest="least", help="scale between --min and --max; 0: to none")
    p.add_argument("--max", type=count, metavar="N", dest="most", help="most processes")
    p.add_argument("--canary", type=part, metavar="P",
                   help="give it P %% of the requests, then all or none, by its errors and latency")
    p.add_argument("--duration", type=span, metavar="T", help="canary: how long it is watched (default 5m)")
    p.add_argument("--max-error-rate", type=ratio, metavar="X", help="canary: errors more than the old (default 0.02)")
    p.add_argument("--max-latency-ratio", type=amount, metavar="X", help="canary: p95 against the old's (default 2)")
    p.add_argument("--min-requests", type=whole, metavar="N", help="canary: judged after so many (default 50)")
    p.add_argument("--mirror", type=part, metavar="P", help="copy P %% of the requests to it; its answers are compared")
    p.add_argument("--traffic", type=percent, metavar="P", help="percent of the requests (default 100)")
    p.add_argument("--keep", action="store_true", help="keep the older deployments, at 0 %%")
    p.add_argument("--collect", type=ratio, metavar="RATE", help="keep inputs and outputs of this part of the requests")
    p.add_argument("--mask", type=words, metavar="A,B", help="columns that are kept as null")
    p.add_argument("--script", metavar="FILE", help="a scoring script with init() and run(data)")
    p.add_argument("--env", action="append", type=pair, default=[], metavar="KEY=VALUE",
                   help="environment of the scorer")
    p.add_argument("--compute", metavar="NAME", help="where a new endpoint serves: local (default) or a cluster")
    p.add_argument("--image", metavar="IMAGE", help="on a cluster: container image (default: the compute's)")
    p.add_argument("--call", action="store_true", help="insert a cell below that calls it")
    p.add_argument("-w", "--wait", action="store_true", help="with --canary: return when it is promoted or rolled back")
    p.add_argument("--no-wait", action="store_true", help="return at once")
    p.add_argument("--timeout", type=seconds, default=600.0, metavar="S", help="longest wait in seconds (default 600)")


def _traffic(p: argparse.ArgumentParser) -> None:
    p.add_argument("endpoint", metavar="ENDPOINT", help="endpoint name")
    p.add_argument("shares", nargs="*", type=share, metavar="DEPLOYMENT=PERCENT", help="shares that add up to 100")
    p.add_argument("--mirror", metavar="D=PCT|off", help="copy PCT %% of the requests to deployment D as well")
    p.add_argument("--sticky", metavar="HEADER|off", help="requests of one value of this header go to one deployment")
    done = p.add_mutually_exclusive_group()
    done.add_argument("--promote", action="store_true", help="end the canary: it takes all")
    done.add_argument("--rollback", action="store_true", help="back to the traffic before")
    p.add_argument("--form", action="store_true", help="notebook: sliders and buttons (needs ipywidgets)")


def _invoke(p: argparse.ArgumentParser) -> None:
    p.add_argument("endpoint", metavar="ENDPOINT", help="endpoint name")
    p.add_argument("data", nargs="?", metavar="DATA",
                   help="notebook: an expression, e.g. X[:3]; terminal: JSON, @FILE or -")
    p.add_argument("-d", "--deployment", metavar="NAME", help="ask this deployment, whatever its traffic")
    p.add_argument("--example", action="store_true", help="send the sample that it was deployed with")


def _endpoints(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", nargs="?", metavar="ENDPOINT", help="show this endpoint with its deployments")
    p.add_argument("--rotate-key", choices=("primary", "secondary", "tokens"),
                   help="replace a key; tokens: end all bearer tokens")
    p.add_argument("--token", nargs="?", type=span, const=3600.0, metavar="T",
                   help="a bearer token that is good for T (default 1h)")
    p.add_argument("--stats", action="store_true", help="requests, errors and latency of each deployment")
    p.add_argument("--history", action="store_true", help="what was changed, when and by whom")


def _endpoint(p: argparse.ArgumentParser) -> None:
    p.add_argument("what", choices=("data", "truth"), metavar="data|truth",
                   help="data: requests that were captured; truth: tell the values that turned out to be right")
    p.add_argument("name", metavar="ENDPOINT", help="endpoint name")
    p.add_argument("values", nargs="?", metavar="VALUES",
                   help="truth: a DataFrame, Series or dict by correlation_id (notebook), or a CSV, Parquet, JSON file")
    p.add_argument("-d", "--deployment", default="", metavar="NAME", help="data: of this deployment only")
    p.add_argument("--since", default="", metavar="T", help="data: from this moment on: 2h (ago), 7d, 2026-01-31T12:00")
    p.add_argument("--until", default="", metavar="T", help="data: before this moment")
    p.add_argument("--columns", type=words, default=[], metavar="A,B", help="data: only these columns")
    p.add_argument("-n", "--limit", type=count, metavar="N", help="data: the newest N rows")
    p.add_argument("--info", action="store_true", help="data: only how much there is")
    p.add_argument("--delete", action="store_true", help="data: delete it, or what is older than --until")
    p.add_argument("-y", "--yes", action="store_true", help="do not ask")


def _apply(p: argparse.ArgumentParser) -> None:
    p.add_argument("-f", "--file", nargs="+", required=True, metavar="FILE", dest="files",
                   help="YAML of endpoints, deployments and computes, in the form of Azure ML's command line")
    p.add_argument("--dry-run", action="store_true", help="check and say what would be done")
    p.add_argument("--timeout", type=seconds, default=600.0, metavar="S", help="longest wait in seconds (default 600)")


VERBS = (
    Verb("deploy", "serve a model at an endpoint", "deploying:deploy", _deploy,
         ("deploy model -e digits --sample X[:5]", "deploy digits@champion --endpoint digits",
          "deploy model -e digits --canary 10 --duration 2m")),
    Verb("traffic", "share an endpoint's requests between deployments", "traffic:traffic", _traffic,
         ("traffic digits", "traffic digits v1=90 v2=10", "traffic digits --rollback")),
    Verb("invoke", "call an endpoint", "serving:invoke", _invoke, ("invoke digits X[:3]",)),
    batch.VERB,
    Verb("endpoints", "list endpoints, their figures and history; replace keys", "serving:endpoints", _endpoints,
         ("endpoints", "endpoints digits --stats", "endpoints digits --rotate-key primary")),
    Verb("endpoint", "load what an endpoint captured, tell the ground truth", "captured:endpoint", _endpoint,
         ("endpoint data digits --since 2h --deployment v3", "endpoint data digits --info",
          "endpoint truth digits labels.csv"), file="data: write all rows to this .parquet or .csv file"),
    Verb("apply", "make endpoints, deployments and computes as YAML files say", "apply:apply", _apply,
         ("apply -f endpoint.yml blue.yml", "apply -f compute.yml", "apply -f blue.yml --dry-run")),
    *export.VERBS,
)
