"""The output of a job cell: one MIME bundle for our renderer, with HTML and text that need neither kernel nor script.

The renderer draws from REST by itself. The HTML beside it is what stays readable when the notebook is exported or
opened without our extension: the job's state, curves and last log lines at the time of the snapshot.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import time
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..client import render
from ..client.job import ranks_of
from ..core.errors import MlopsError
from ..core.resources.base import utcnow
from . import settings

if TYPE_CHECKING:
    from ..client.job import Job
    from .context import Context

MIME = "application/vnd.jupyter-mlops.job+json"

#: Most bytes by which a notebook grows for a bundle, as nbformat writes it: indented, each number on a line of its own.
MAX_BUNDLE = 48_000
#: Points of a curve, curves and lines of log that are kept: the first that fits.
_SIZES = (
    (100, 24, 40), (60, 24, 40), (40, 24, 30), (25, 24, 20), (16, 24, 20), (16, 16, 15), (12, 12, 15), (12, 8, 10),
    (8, 4, 10), (2, 2, 4), (2, 0, 0),
)
_WIDTH = 200


def snapshot(
    data: Mapping[str, Any], curves: Mapping[str, Any], log: str, progress: Any = None, memory: int | None = None
) -> dict[str, Any]:
    """What a job looked like: JSON of the contract with the renderer.

    Args:
        data: the job's resource.
        curves: ``{key: {"steps", "values", "timestamps"}}``.
        log: the end of rank 0's log.
        memory: most resident bytes of a rank.
    """
    status, spec = data.get("status") or {}, data.get("spec") or {}
    points, keys, count = _SIZES[0]
    lines = [line[:_WIDTH] for line in render.log_lines(log)[-count:]]
    kept = dict(list(curves.items())[:keys])
    return {
        "phase": status.get("phase") or "Queued",
        "reason": status.get("reason") or "",
        "queued_at": status.get("queued_at") or data.get("created_at") or "",
        "started_at": status.get("started_at") or "",
        "ended_at": status.get("ended_at") or "",
        "exit_code": status.get("exit_code"),
        "processes": ranks_of(spec),
        "metrics": {k: _thin(c, points) for k, c in kept.items()},
        "attempt": int(status.get("attempt") or 0),
        "restarts": {k: steps for k, c in kept.items() if (steps := _restarts(status, c))},
        "memory": memory,
        "log": "\n".join(lines),
        "progress": progress,
        "taken_at": utcnow(),
    }


def _restarts(status: Mapping[str, Any], curve: Mapping[str, Any]) -> list[Any]:
    """The steps at which a curve was gone on with by a further attempt, at most ten."""
    begun = [attempt.get("started_at") for attempt in status.get("attempts") or []] + [status.get("started_at")]
    steps, times = curve.get("steps") or [], curve.get("timestamps") or []
    marks: list[Any] = []
    for text in list(dict.fromkeys(begun))[1:]:
        moment = render.when(text)
        if moment is None:
            continue
        first = next((s for s, t in zip(steps, times, strict=False) if t >= moment.timestamp() * 1000), None)
        if first is not None and first not in marks:
            marks.append(first)
    return marks[-10:]


def _thin(curve: Mapping[str, Any], points: int) -> dict[str, list[Any]]:
    """At most ``points`` points, first and last kept, with six digits."""
    steps, values = list(curve.get("steps") or []), list(curve.get("values") or [])
    count = min(len(steps), len(values))
    if count > points:
        chosen = sorted({round(i * (count - 1) / (points - 1)) for i in range(points)})
    else:
        chosen = list(range(count))
    return {
        "steps": [steps[i] for i in chosen],
        "values": [float(f"{values[i]:.6g}") if isinstance(values[i], float) else values[i] for i in chosen],
    }


def bundle(data: Mapping[str, Any], shot: dict[str, Any], workspace: str = "default") -> dict[str, Any]:
    """The MIME bundle of a job: renderer's JSON, HTML and text. A notebook grows by :data:`MAX_BUNDLE` at most."""
    status = data.get("status") or {}
    for points, keys, lines in _SIZES:
        metrics = {k: _thin(c, points) for k, c in list(shot["metrics"].items())[:keys]}
        small = {
            **shot, "reason": shot["reason"][:1000], "metrics": metrics,
            "restarts": {k: steps for k, steps in shot["restarts"].items() if k in metrics},
            "log": "\n".join(shot["log"].splitlines()[-lines:] if lines else []),
        }
        made = {
            MIME: {
                "version": 1, "workspace": workspace, "name": data.get("name") or "",
                "run_id": status.get("run_id") or "", "experiment_id": status.get("experiment_id") or "",
                "snapshot": small,
            },
            "text/html": html(data, small),
            "text/plain": text(data, small),
        }
        if _saved(made) <= MAX_BUNDLE:
            break
    return made


def _saved(made: Any) -> int:
    """By how many bytes a notebook file grows: five levels deep, an indentation of one."""
    return len(json.dumps([[[[[made]]]]], indent=1, ensure_ascii=False).encode("utf-8", "surrogatepass"))


def _summary(data: Mapping[str, Any], shot: Mapping[str, Any]) -> list[str]:
    words = [render.duration(shot.get("started_at"), shot.get("ended_at") or shot.get("taken_at"))]
    if shot["processes"] > 1:
        words.append(f"{shot['processes']} processes")
    if shot["attempt"] > 1:
        words.append(f"attempt {shot['attempt']}")
    if shot.get("exit_code") not in (None, 0):
        words.append(f"exit code {shot['exit_code']}")
    if shot.get("memory"):
        words.append(f"most memory {render.size(shot['memory'])}")
    experiment = (data.get("spec") or {}).get("experiment_name")
    if experiment:
        words.append(f"experiment {experiment}")
    if (data.get("status") or {}).get("metrics_incomplete"):
        words.append("metrics incomplete")
    progress = shot.get("progress")
    if progress:
        words.append(f"{render.number(progress['done'])} of {render.number(progress['total'])}")
    return [w for w in words if w]


def text(data: Mapping[str, Any], shot: Mapping[str, Any]) -> str:
    """The snapshot as text."""
    head = f"Job {data.get('name')} {shot['phase']}"
    lines = [", ".join([head, *_summary(data, shot)])]
    if shot["reason"]:
        lines.append(f"  {render.clean(shot['reason'])}")
    last = {k: c["values"][-1] for k, c in shot["metrics"].items() if c["values"]}
    if last:
        lines.append("  " + "  ".join(f"{k}={render.number(v)}" for k, v in last.items()))
    lines += [f"  | {line}" for line in shot["log"].splitlines()[-10:]]
    return "\n".join(lines)


def html(data: Mapping[str, Any], shot: Mapping[str, Any]) -> str:
    """The snapshot as self-contained HTML: state, progress, curves, the end of the log."""
    muted = f"color:{render.MUTED}"
    parts = [
        '<div style="display:flex;flex-wrap:wrap;gap:4px 14px;align-items:baseline">'
        f'<span style="font-weight:600">{render.cell(data.get("name"))}</span>{render.pill(shot["phase"])}'
        f'<span style="{muted}">{render.cell(" · ".join(_summary(data, shot)))}</span></div>'
    ]
    if shot["reason"]:
        colour = render.BAD if shot["phase"] == "Failed" else render.MUTED
        parts.append(f'<div style="color:{colour};overflow-wrap:anywhere">{render.escape(shot["reason"])}</div>')
    progress = shot.get("progress")
    if progress and progress.get("total"):
        share = max(0.0, min(1.0, float(progress["done"]) / float(progress["total"])))
        parts.append(
            f'<div role="progressbar" aria-valuenow="{100 * share:.0f}" aria-valuemin="0" aria-valuemax="100" '
            f'style="height:4px;border-radius:2px;background:{render.LINE};max-width:500px">'
            f'<div style="height:4px;border-radius:2px;width:{100 * share:.1f}%;background:{render.BRAND}"></div></div>'
        )
    charts = []
    for key, curve in shot["metrics"].items():
        drawn = render.curve({key: (curve["steps"], curve["values"])}, key, marks=shot["restarts"].get(key) or ())
        if drawn:
            last = next((v for v in reversed(curve["values"]) if v is not None), None)
            charts.append(
                f'<figure style="margin:0"><figcaption style="font-size:11px">{render.cell(key)} '
                f'<span style="{muted}">{render.number(last)}</span></figcaption>{drawn}</figure>'
            )
    if charts:
        parts.append(f'<div style="display:flex;flex-wrap:wrap;gap:12px 20px">{"".join(charts)}</div>')
    if shot["log"]:
        parts.append(
            # Reversed, so that it opens at its end.
            f'<div style="display:flex;flex-direction:column-reverse;max-height:220px;overflow:auto;'
            f'background:{render.FAINT};border-radius:3px"><pre style="flex:none;margin:0;padding:6px 8px;'
            'overflow:visible;white-space:pre-wrap;overflow-wrap:anywhere;background:none;color:inherit;'
            'font-family:var(--jp-code-font-family, monospace);font-size:12px;line-height:1.4">'
            f"{render.escape(shot['log'])}</pre></div>"
        )
    inner = "".join(parts)
    return f'<div style="display:grid;gap:8px;padding:4px 0;color:{render.TEXT}">{inner}</div>'


class LiveOutput:
    """One displayed output of one job: shown at once, brought to its final state when the job ends."""

    def __init__(self, job: Job, context: Context) -> None:
        self._job = job
        self._context = context
        self._shell = context.shell
        self._id = uuid.uuid4().hex
        self._final = False
        self._finished = False
        # Whatever is published later belongs to the cell that started it, not to the one that then runs.
        self._origin = contextvars.copy_context()

    @classmethod
    def attach(cls, job: Job, context: Context) -> None:
        """Show the job now (unless silenced) and whenever its handle is displayed in a later cell."""
        cls.prepare(job, context)
        if not context.silent:
            job._on_display(job)  # type: ignore[misc]
            job._shown_at = context.shell.execution_count  # type: ignore[attr-defined]

    @classmethod
    def prepare(cls, job: Job, context: Context) -> None:
        """Let the handle draw itself as live output."""
        outputs: list[LiveOutput] = []

        def show(handle: Job) -> None:
            if getattr(handle, "_shown_at", None) == context.shell.execution_count:
                return  # the value of the cell that has just shown it
            output = cls(handle, context)
            outputs.append(output)
            output.show()

        def end(handle: Job) -> None:
            for output in outputs:
                output.finish()

        job._on_display, job._on_end = show, end

    def show(self) -> None:
        """Display, and watch in the background until the job ends."""
        from IPython.display import display

        client = self._job._client
        made = client.call(_take(client.aio, self._job._data)) if self._job.done else _first(self._job)
        kernel = hasattr(self._shell, "kernel")
        display(made, raw=True, **({"display_id": self._id} if kernel else {}))
        if kernel and not self._job.done:
            client.submit(self._watch())

    def finish(self) -> None:
        """Bring the output to its last state; called when the job was waited for.

        Published on behalf of the cell that waits, also when the watcher was first: a headless run (nbclient,
        papermill) listens to the running cell alone, and would save the output as it was at the start.
        """
        if self._finished or not hasattr(self._shell, "kernel"):
            return
        from IPython.display import display

        client = self._job._client
        try:
            made = client.call(_take(client.aio, self._job._data))
        except MlopsError:
            return  # the output keeps what it showed; the job's own result matters more
        self._final = self._finished = True
        display(made, raw=True, display_id=self._id, update=True)

    def _publish(self, made: dict[str, Any], final: bool = False) -> None:
        from IPython.display import display

        if self._final:
            return
        self._final = final
        # A context can be entered once at a time; a copy of it any number of times.
        self._origin.copy().run(display, made, raw=True, display_id=self._id, update=True)

    async def _watch(self) -> None:
        """Follow the job without ever starting a control plane for it."""
        from ..client.aio import AsyncClient

        where = self._context.where
        # JupyterLab's renderer draws by itself; other front ends get the HTML anew now and then.
        period = 0.0 if os.environ.get("JPY_SESSION_NAME") else settings.refresh(where)
        drawn = time.monotonic()
        async with AsyncClient(where, may_start=False) as client:
            while not self._final:
                await asyncio.sleep(1.0)
                try:
                    data = await client.get_job(self._job.name)
                    ended = (data.get("status") or {}).get("phase") in ("Completed", "Failed", "Canceled")
                    if ended:
                        made = await _take(client, data)
                        await asyncio.to_thread(self._publish, made, True)
                        return
                    if period and time.monotonic() - drawn >= period:
                        made = await _take(client, data)
                        await asyncio.to_thread(self._publish, made)
                        drawn = time.monotonic()
                except MlopsError as error:
                    if error.status == 404:
                        return
                    await asyncio.sleep(4.0)


def _first(job: Job) -> dict[str, Any]:
    """What is shown at the start, from what is known already."""
    return bundle(job._data, snapshot(job._data, {}, ""), job._client.aio.transport.where.name)


async def _take(client: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    """A snapshot by REST; what cannot be had is left out."""
    name, run_id = data["name"], (data.get("status") or {}).get("run_id")
    log, curves, progress, memory = "", {}, None, None
    rank = (data.get("status") or {}).get("failed_rank") or 0
    try:
        part = await client.job_log(name, rank, -32_768)
        log = part["text"]
        if part["offset"] > 0:
            log = log.partition("\n")[2] or log  # it begins in the middle of a line
        used = (await client.job_usage(name, 2))["attempts"]
        memory = max((r["peak_rss"] for a in used for r in a["samples"]["ranks"]), default=None)
    except MlopsError:
        log = log or "\n".join((data.get("status") or {}).get("log_tail") or [])
    if run_id:
        try:
            curves = (await client.run_metrics(run_id, None, 200))["metrics"]
            progress = (await client.get_run(run_id)).get("progress")
        except MlopsError:
            pass
    return bundle(data, snapshot(data, curves, log, progress, memory), client.transport.where.name)


class Progress:
    """Progress of something that is waited for: one output line that is replaced, or lines in a terminal."""

    def __init__(self, context: Context, title: str) -> None:
        self._context = context
        self._title = title
        self._id = uuid.uuid4().hex
        self._shown = False
        self._begun = time.monotonic()
        self._in_kernel = hasattr(context.shell, "kernel")

    def tell(self, phase: str, reason: str = "") -> None:
        """Say where it stands."""
        if self._context.silent or self._context.json:
            return
        seconds = f"{time.monotonic() - self._begun:.1f} s"
        line = f"{self._title}: {phase}{f', {reason}' if reason else ''} ({seconds})"
        if not self._in_kernel:
            self._context.say(line)
            return
        from IPython.display import display

        made = {
            "text/plain": line,
            "text/html": f'<div style="color:{render.TEXT}">{render.cell(self._title)} {render.pill(phase)} '
            f'<span style="color:{render.MUTED}">{render.cell(reason)} {seconds}</span></div>',
        }
        display(made, raw=True, display_id=self._id, update=self._shown)
        self._shown = True

    def done(self) -> None:
        """Nothing more will be told."""
