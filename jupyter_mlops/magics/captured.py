"""The verb ``endpoint``: what an endpoint captured, and the ground truth about it."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from ..client import captured, render
from ..client.report import Report
from ..core.errors import ParameterError
from .context import Context
from .expand import evaluate

#: Rows that are loaded when no number is given.
DEFAULT_LIMIT = 100_000
_SHOWN = 20


def endpoint(a: argparse.Namespace, context: Context) -> Any:
    """``data NAME``, or ``truth NAME VALUES``."""
    if a.what == "truth":
        return _truth(a, context)
    if a.values is not None:
        raise ParameterError(f"unexpected argument {a.values!r}", f"see: {context.command('endpoint --help')}")
    if a.delete:
        return _delete(a, context)
    if a.info:
        return _info(a, context)
    return _data(a, context)


def _data(a: argparse.Namespace, context: Context) -> Any:
    """Captured rows as a DataFrame; in a terminal a file, or the newest as a table."""
    client = context.client
    wanted = {"deployment": a.deployment, "since": a.since, "until": a.until, "columns": a.columns}
    if context.face == "cli" and a.out:
        return _save(a, context, wanted)
    limit = a.limit or (DEFAULT_LIMIT if context.face == "magic" or context.json else _SHOWN)
    found = client.captured(a.name, **wanted, limit=limit)
    if not len(found):
        info = client.captured_info(a.name)
        context.say(f"no row fits; {info['rows']} are there, from {_moment(info['oldest'])} to "
                    f"{_moment(info['newest'])} (UTC)")
    if len(found) == limit and not a.limit:
        more = "-o FILE.parquet takes all" if context.face == "cli" else "others: --limit N, --since T, --columns A,B"
        context.say(f"the newest {limit} rows; {more}")
    if context.face == "magic":
        return found
    if not len(found) and not context.json:
        return None
    records = [{k: _cell(v) for k, v in row.items()} for row in found.to_dict("records")]
    width = shutil.get_terminal_size((160, 24)).columns
    import pandas as pd

    with pd.option_context("display.width", width, "display.max_columns", None if width > 200 else 10,
                           "display.max_colwidth", 40):
        return _Rows(records, str(found))


class _Rows(Report):
    """Rows whose text is that of a DataFrame."""

    def __init__(self, records: list[dict[str, Any]], shown: str) -> None:
        super().__init__(records)
        self._parts = [(shown, f"<pre>{render.escape(shown)}</pre>")]


def _cell(value: Any) -> Any:
    """A value for JSON."""
    value = captured.plain(value)
    return None if captured._missing(value) else value


def _save(a: argparse.Namespace, context: Context, wanted: dict[str, Any]) -> Report:
    path = Path(a.out)
    if path.suffix.lower() not in (".parquet", ".csv"):
        raise ParameterError(f"{a.out}: neither .parquet nor .csv", "its ending says what is written")
    if not path.parent.is_dir():
        raise ParameterError(f"there is no folder {path.parent}")
    new = path.with_name(f".{path.name}.new")
    try:
        if path.suffix.lower() == ".parquet":
            with open(new, "wb") as file:
                context.client.download_captured(a.name, file, **wanted, limit=a.limit)
        else:
            captured.save(context.client.captured(a.name, **wanted, limit=a.limit), new)
        new.replace(path)
    except OSError as error:
        raise ParameterError(f"{a.out} cannot be written: {error.strerror}") from None
    finally:
        new.unlink(missing_ok=True)
    size = path.stat().st_size
    return Report({"file": str(path), "bytes": size}).note(f"{path}: {render.size(size)}")


def _info(a: argparse.Namespace, context: Context) -> Report:
    """How much was captured, by deployment."""
    info = context.client.captured_info(a.name)
    report = Report(info)
    if not info["files"]:
        return report.note(f"endpoint {a.name} has captured nothing")
    rows = [[name, d["rows"], d["files"], render.size(d["bytes"]), _moment(d["oldest"]), _moment(d["newest"]),
             d["dropped"]] for name, d in info["deployments"].items()]
    report.table(["deployment", "rows", "files", "size", "oldest (UTC)", "newest (UTC)", "dropped"], rows)
    lost = {cause: sum(d["lost"].get(cause, 0) for d in info["deployments"].values())
            for cause in ("removed_files", "unfit", "damaged")}
    told = (
        (info["truth"], "ground truth: {} row(s)"), (lost["removed_files"], "removed to make room: {} old file(s)"),
        (lost["unfit"], "null because they did not fit the signature: {} value(s)"),
        (lost["damaged"], "damaged: {} record(s)"),
    )
    return report.note(" · ".join(text.format(count) for count, text in told if count))


def _delete(a: argparse.Namespace, context: Context) -> Report:
    """Delete what was captured, all of it or what is older than ``--until``."""
    what = f"older than {a.until}" if a.until else "and the ground truth"
    context.confirm(f"Delete what endpoint {a.name} captured, {what}?", a.yes)
    rows = context.client.clear_captured(a.name, a.until)
    return Report({"endpoint": a.name, "rows": rows}).note(f"{rows} rows are deleted")


def _truth(a: argparse.Namespace, context: Context) -> Report:
    """Tell which values turned out to be right."""
    if a.values is None:
        notebook = context.face == "magic"
        example = context.command("endpoint truth digits " + ("labels" if notebook else "labels.csv"))
        forms = captured.FORMS if notebook else "a CSV, Parquet or JSON file with correlation_id, row and value"
        raise ParameterError("there is no ground truth to tell", f"for example: {example}; it is {forms}")
    if context.face == "magic" and not _is_file(a.values):
        truth = evaluate(a.values, context.names)
    else:
        truth = captured.load(Path(a.values).expanduser())
    count = context.client.tell_truth(a.name, truth)
    return Report({"endpoint": a.name, "rows": count}).note(
        f"ground truth for {count} row(s) of {a.name} is kept; "
        f"{context.command(f'endpoint data {a.name}')} shows it as truth"
    )


def _is_file(text: str) -> bool:
    return text.endswith((".csv", ".parquet", ".json", ".jsonl")) and Path(text).expanduser().is_file()


def _moment(text: str | None) -> str:
    return (text or "").replace("T", " ").partition(".")[0]
