"""The verb ``batch``: files scored by an endpoint's model, in a job."""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING, Any

from ..core.errors import ParameterError
from .arguments import Verb, count, pair, seconds, whole, whole_from
from .context import Context

if TYPE_CHECKING:
    from ..client.job import Job


def _arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("endpoint", metavar="ENDPOINT", help="endpoint name; it need not run")
    p.add_argument("--input", required=True, metavar="PATH",
                   help="a file, a folder or a pattern: csv, parquet, jsonl, png or jpg")
    p.add_argument("--output", required=True, metavar="PATH",
                   help="a folder, or a file that ends in .csv, .parquet or .jsonl")
    p.add_argument("-d", "--deployment", metavar="NAME", help="which one scores (default: the one with most traffic)")
    p.add_argument("-n", "--name", metavar="NAME", help="name of the job")
    p.add_argument("--format", choices=("csv", "parquet", "jsonl"), help="of the output (default csv)")
    p.add_argument("--mini-batch-size", type=count, metavar="N",
                   help="rows (default 4096) or images (default 10) that are scored at once")
    p.add_argument("--concurrency", type=count, metavar="N", help="processes that hold the model (default 2)")
    p.add_argument("--error-threshold", type=whole_from(-1, "a number of rows; -1 puts up with any"), default=-1,
                   metavar="N", help="fail when more rows than this fail; -1: never (default)")
    p.add_argument("--retries", type=whole, metavar="N", help="tries after the first of a mini-batch (default 3)")
    p.add_argument("--timeout", type=seconds, metavar="S", help="seconds that one try may take (default 300)")
    p.add_argument("--param", action="append", type=pair, default=[], metavar="KEY=VALUE", help="a param of the model")
    p.add_argument("--summary-only", action="store_true", help="write no predictions, only what came out")
    p.add_argument("--overwrite", action="store_true", help="replace what an earlier run has left there")
    p.add_argument("--compute", default="local", metavar="NAME", help="where it runs (default local)")
    p.add_argument("-w", "--wait", action="store_true", help="return when it has ended")


VERB = Verb(
    "batch", "score files with an endpoint's model, as a job", "batch:batch", _arguments,
    ("batch digits --input data/ --output scores/", "batch digits --input in/*.parquet --output out.parquet"),
)


def batch(a: argparse.Namespace, context: Context) -> Job:
    """Start the job; returns at once unless ``--wait``."""
    from ..client.batch import batch as start

    job = start(
        context.client, a.endpoint, a.input, a.output, deployment=a.deployment or "", name=a.name or "",
        params={key: _value(key, text) for key, text in a.param}, overwrite=a.overwrite, experiment=context.experiment,
        compute=a.compute, format=a.format or "", mini_batch_size=a.mini_batch_size, concurrency=a.concurrency,
        error_threshold=a.error_threshold, retries=a.retries, timeout=a.timeout, summary_only=a.summary_only,
    )
    if context.face == "magic":
        from .display import LiveOutput

        LiveOutput.attach(job, context)
    if a.wait:
        job.wait()
        _say_what_came_out(job, context)
    return job


def _say_what_came_out(job: Job, context: Context) -> None:
    """One line from the summary, where it can be read from here."""
    asked = job.spec.get("batch") or {}
    try:
        with open(os.path.join(asked["output"], "summary.json"), encoding="utf-8") as f:
            told = json.load(f)
        failed = f", {told['failed_rows']} failed (see errors.jsonl)" if told["failed_rows"] else ""
        context.say(f"{told['rows']} rows scored{failed}: {told['output'] or asked['output']}")
    except (OSError, ValueError, KeyError, TypeError):
        return


def _value(key: str, text: str) -> Any:
    """JSON where it is some, else text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
    except RecursionError:
        raise ParameterError(f"param {key} nests too deeply") from None
