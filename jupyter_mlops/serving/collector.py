"""Segments become Parquet: one file for each segment, deployment and hour, under names that readers know.

``python -m jupyter_mlops.serving.collector --folder endpoints/<e>/capture …`` is a process of its own, because pyarrow
is larger than gateway and control plane together. The control plane starts it each hour and before somebody reads:

    collect [--everything]     finished segments; also those that are being written, as far as they go
    read --out F …             rows as one Parquet file (extract.py)
    info                       what there is
    clear --before SECONDS     delete what is older
    merge --record ZIP         what a bundle captured and counted elsewhere (merge.py)

Each prints one line of JSON; exit code 2 and ``{"message", "hint"}`` for what the caller got wrong.

A part is named after its segment and replaced atomically, and the segment goes last. So whatever is killed in between,
the next collector does it again and comes to the same: nothing is lost, nothing is there twice. A segment that is
still written is read as far as it goes, and its part is replaced when there is more.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..core.errors import MlopsError
from ..runtime.loading import Refusal
from . import segments, truth
from .columns import sound
from .parts import PartWriter, cut, remove, source_bytes
from .places import read_json, sync, write_json

#: Seconds after which an empty segment that nobody writes is a leftover.
_LEFTOVER = 60.0


@dataclass
class Outcome:
    """What collecting came to."""

    segments: int = 0
    rows: int = 0
    losses: dict[str, dict[str, int]] = field(default_factory=dict)


def collect(folder: Path, everything: bool = False) -> Outcome:
    """Turn segments and ground truth into Parquet; the caller holds the lock.

    Args:
        everything: also what is still being written, as far as it goes.
    """
    outcome = Outcome()
    before = float(read_json(folder / "cleared.json").get("before") or 0)
    published = read_json(folder.parent / "endpoint.json").get("deployments") or {}
    for leftover in folder.glob("data/*/*/*/.part-*"):
        leftover.unlink(missing_ok=True)
    for deployment in segments.deployments(folder):
        for path in sorted((folder / "spool" / deployment).glob("*.rec")):
            live = segments.being_written(path)
            if live and not everything:
                continue
            with contextlib.suppress(FileNotFoundError):  # the gateway made room
                _segment(folder, deployment, path, live, before, outcome)
    _bound(folder, published)
    for deployment, losses in outcome.losses.items():
        segments.count_lost(folder, deployment, losses)
    truth.take(folder)
    return outcome


def _bound(folder: Path, published: dict[str, Any]) -> None:
    """Keep each deployment within its ``max_bytes``; those that capture no more share what one of the others has."""
    limits = {name: int(((d or {}).get("data_collector") or {}).get("max_bytes") or 0) for name, d in published.items()}
    found = segments.deployments(folder)
    for name in found:
        if limits.get(name):
            segments.make_room(folder, [name], limits[name])
    others = [name for name in found if not limits.get(name)]
    segments.make_room(folder, others, max(limits.values(), default=0) or segments.DEFAULT_MAX_BYTES)


def _segment(folder: Path, deployment: str, path: Path, live: bool, before: float, outcome: Outcome) -> None:
    info = path.stat()
    parts = list((folder / "data" / f"deployment={deployment}").glob(f"*/*/part-{path.stem}.parquet"))
    if live and parts and all(source_bytes(p) == info.st_size for p in parts):
        return
    if info.st_size <= len(segments.MAGIC) and (live or time.time() - info.st_mtime < _LEFTOVER):
        return  # it has just been made
    reading = segments.Read()
    writer = PartWriter(folder, path, info.st_size)
    try:
        for call in _calls(path, reading, writer):
            if call.at >= before:
                writer.add(call)
        written = writer.finish()
    finally:
        writer.abort()
    outcome.segments += 1
    outcome.rows += writer.rows
    if live:
        return
    for part in parts:  # of a time when it was still written, and what was deleted since
        if part not in written:
            remove(part)
    losses = outcome.losses.setdefault(deployment, {})
    for cause, count in (("damaged", reading.damaged + bool(reading.torn)), ("unfit", writer.unfit)):
        if count:
            losses[cause] = losses.get(cause, 0) + count
    sync(folder / "spool" / deployment)
    path.unlink()


def _calls(path: Path, reading: segments.Read, writer: PartWriter) -> Iterator[segments.Captured]:
    for kind, payload in segments.read(path, reading):
        if kind == segments.DESCRIPTION:
            with contextlib.suppress(ValueError):
                writer.description = json.loads(payload)
        elif kind == segments.CALL:
            try:
                call = segments.unpack_call(payload)
            except ValueError:
                reading.damaged += 1
                continue
            if sound(call):
                yield call
            else:
                reading.damaged += 1


# -- deleting ----------------------------------------------------------------------------------------------------------


def clear(folder: Path, before: float) -> dict[str, Any]:
    """Delete what was captured and told before a moment, also in segments; the caller holds the lock."""
    known = float(read_json(folder / "cleared.json").get("before") or 0)
    write_json(folder / "cleared.json", {"before": max(before, known)})
    moment = pa.scalar(round(before * 1e6), pa.timestamp("us", "UTC"))
    for path in folder.glob("spool/*/*.rec"):
        with contextlib.suppress(FileNotFoundError):
            if all(call.at < before for call in _calls(path, segments.Read(), PartWriter(folder, path, 0))):
                path.unlink()  # the gateway sees it, and begins another
    collect(folder, everything=True)
    rows = sum(cut(path, moment) for path in folder.glob("data/*/*/*/part-*.parquet"))
    for path in folder.glob("truth/part-*.parquet"):
        cut(path, moment)
    return {"rows": rows}


# -- the process -------------------------------------------------------------------------------------------------------


def without_pandas() -> None:
    """Keep pyarrow from importing pandas, which it does to look whether values are pandas' own: half a second."""
    Refusal(lambda name: name == "pandas").begin()


def main(arguments: list[str] | None = None) -> int:
    """See the module's description."""
    parser = argparse.ArgumentParser(prog="jupyter_mlops.serving.collector")
    parser.add_argument("--folder", type=Path, required=True)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("collect").add_argument("--everything", action="store_true")
    verbs.add_parser("info")
    verbs.add_parser("clear").add_argument("--before", type=float, required=True)
    verbs.add_parser("merge").add_argument("--record", type=Path, required=True)
    reading = verbs.add_parser("read")
    reading.add_argument("--out", type=Path, required=True)
    reading.add_argument("--deployment", default="")
    reading.add_argument("--columns", default="")
    for name in ("since", "until"):
        reading.add_argument(f"--{name}", type=float)
    reading.add_argument("--limit", type=int)
    options = parser.parse_args(arguments)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    os.umask(0o077)
    try:
        print(json.dumps(_run(options)))
    except MlopsError as error:
        print(json.dumps(error.body()))
        return 2
    return 0


def _run(options: argparse.Namespace) -> Any:
    from . import extract

    folder = options.folder
    with segments.locked(folder):
        if options.verb == "clear":
            return clear(folder, options.before)
        if options.verb == "merge":
            from . import merge

            resource.setrlimit(resource.RLIMIT_AS, (merge.MAX_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
            return merge.merge(folder, options.record)
        outcome = collect(folder, everything=options.verb != "collect" or options.everything)
        if options.verb == "collect":
            return {"segments": outcome.segments, "rows": outcome.rows}
        if options.verb == "info":
            return extract.info(folder)
        return extract.read(folder, options.out, extract.Wanted(
            options.deployment, options.since, options.until,
            tuple(c for c in options.columns.split(",") if c), options.limit,
        ))


if __name__ == "__main__":
    without_pandas()
    if "collect" in sys.argv:
        os.nice(10)  # nobody waits for it
    sys.exit(main())
