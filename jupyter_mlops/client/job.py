"""Jobs: a handle on work that goes on by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from ..core.errors import BackendTimeout, MlopsError, NotFound
from . import render
from .record import Failed, Record, Table
from .terminal import rendered

if TYPE_CHECKING:
    from .logs import LogMatches
    from .run import Run
    from .usage import JobUsage

TERMINAL = frozenset({"Completed", "Failed", "Canceled"})


class JobFailed(Failed):
    """A job that was waited for ended as Failed or Canceled; carries the job and its last log lines."""

    code = "job_failed"
    status = 500

    def __init__(self, job: Job, lines: list[str]) -> None:
        reason = job.reason or ("it was stopped" if job.status == "Canceled" else "no reason is known")
        rank = job.details.get("failed_rank")
        hint = f"the log: %mlops logs {job.name}{f' --rank {rank}' if rank else ''}; again: %mlops resume {job.name}"
        super().__init__(
            f"job {job.name} {'was canceled' if job.status == 'Canceled' else 'failed'}: {reason}", hint,
            {"job": job.name, "phase": job.status, "exit_code": job.exit_code, "log_tail": lines},
        )
        self.job = job
        self.lines = lines


def ranks_of(spec: dict[str, Any]) -> int:
    """How many ranks a job has, on all its instances together."""
    each = int((spec.get("distribution") or {}).get("process_count_per_instance") or 1)
    return each * int((spec.get("resources") or {}).get("instance_count") or 1)


class Job(Record):
    """A job; ``await job`` or ``job.wait()`` for its end."""

    #: Called with the job by the notebook face, to draw it; None elsewhere.
    _on_display: Callable[[Job], None] | None = None
    _on_end: Callable[[Job], None] | None = None
    #: Called with the values that the job brought back when somebody asks for its result.
    _on_results: Callable[[Job, dict[str, Any]], None] | None = None
    _results: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """Its name."""
        return self._data["name"]

    @property
    def spec(self) -> dict[str, Any]:
        """What was asked."""
        return self._data.get("spec") or {}

    @property
    def details(self) -> dict[str, Any]:
        """The status as last told, without asking again."""
        return self._data.get("status") or {}

    @property
    def status(self) -> str:
        """The phase now: Queued, Starting, Running, Stopping, Finalizing, Completed, Failed or Canceled."""
        if not self.done:
            self.refresh()
        return self.phase

    @property
    def phase(self) -> str:
        """The phase as last told."""
        return self.details.get("phase") or "Queued"

    @property
    def done(self) -> bool:
        """Whether it had ended when last asked."""
        return self.phase in TERMINAL

    @property
    def reason(self) -> str:
        """One line on why it is so."""
        return self.details.get("reason") or ""

    @property
    def exit_code(self) -> int | None:
        """Exit code of the first failing rank; negative for a signal."""
        return self.details.get("exit_code")

    @property
    def run_id(self) -> str:
        """Id of its MLflow run; empty until the run is made."""
        if not self.details.get("run_id") and not self.done:
            self.refresh()
        return self.details.get("run_id") or ""

    @property
    def processes(self) -> int:
        """Number of ranks."""
        return ranks_of(self.spec)

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """Attempts so far, oldest first: number, phase, reason, times; the last may still run."""
        earlier = list(self.details.get("attempts") or [])
        number = int(self.details.get("attempt") or 0)
        if number and all(a.get("attempt") != number for a in earlier):
            keys = ("phase", "reason", "started_at", "ended_at", "exit_code", "failed_rank")
            earlier.append({"attempt": number, **{k: self.details.get(k) for k in keys}})
        return earlier

    @property
    def asked(self) -> list[str]:
        """Names of the variables that it was asked to bring back."""
        return list((self.spec.get("cell") or {}).get("returns") or [])

    @property
    def returned(self) -> list[dict[str, Any]]:
        """What of them came back, once it has completed: name, type, bytes, hash; ``detail`` says why one did not."""
        if not self.done:
            self.refresh()
        return list(self.details.get("returned") or [])

    @property
    def outputs(self) -> Path:
        """The folder with what it left in ``outputs/``, where the control plane runs; there is none before it began."""
        return Path(str(self._client.status()["home"]), "jobs", self.name, "outputs")

    def refresh(self) -> Job:
        """Ask again."""
        self._data = self._client.call(self._client.aio.get_job(self.name))
        return self

    def run(self) -> Run | None:
        """Its MLflow run."""
        return self._client.run(self.run_id) if self.run_id else None

    def metrics(self, *keys: str) -> dict[str, float]:
        """Last value of each metric of its run, or of the ``keys`` named."""
        run = self.run()
        known = run.metrics if run else {}
        return {k: known[k] for k in keys if k in known} if keys else known

    def history(self, *keys: str, max_points: int = 500) -> dict[str, dict[str, list[Any]]]:
        """Metric histories of its run."""
        return self._client.run_metrics(self.run_id, list(keys) or None, max_points) if self.run_id else {}

    def logs(
        self, rank: int = 0, tail: int | None = None, attempt: int | None = None, raw: bool = False,
        colours: bool = False,
    ) -> str:
        """The log of a rank as a terminal would leave it (progress bars as they ended), or its last ``tail`` lines.

        Of a log of more than 16 MB, its end; :meth:`follow` reads all of it.

        Args:
            attempt: which one, from 1; the newest by default.
            raw: the log as it was written, with all states of progress bars and control sequences.
            colours: keep colours.
        """
        text = self._client.job_log(self.name, rank, tail, attempt)
        return text if raw else rendered(text, colours)

    def follow(self, rank: int = 0, tail: int | None = None, attempt: int | None = None) -> Iterator[str]:
        """Pieces of a rank's log as they were written and as they come, until the job ends.

        When the job is tried again, a line ``— attempt 2 —`` and that attempt's log follow. Nothing is missing or told
        twice when the connection breaks or the control plane is replaced.
        """
        return self._client.follow_job_log(self.name, rank, tail, attempt)

    def search(
        self, text: str, rank: int = 0, regex: bool = False, case: bool = False, attempt: int | None = None,
        limit: int = 100,
    ) -> LogMatches:
        """The first ``limit`` lines of a rank's log that hold ``text``.

        Args:
            regex: take ``text`` for a regular expression.
            case: tell upper and lower case apart.
            attempt: which one, from 1; the newest by default.

        Raises:
            ParameterError: the expression is none, or takes too long.
        """
        return self._client.search_job_log(self.name, text, rank, regex, case, attempt, limit)

    def usage(self, max_points: int = 300) -> JobUsage:
        """CPU, memory and GPU of its ranks over time, at most ``max_points`` of each attempt."""
        return self._client.job_usage(self.name, max_points)

    def stop(self, wait: bool = False, timeout: float | None = 60) -> Job:
        """Ask it to end; with ``wait``, return when it has."""
        self._data = self._client.call(self._client.aio.stop_job(self.name))
        if wait:
            self._settle(timeout)
        return self

    def wait(self, timeout: float | None = None) -> Job:
        """Return when it has completed.

        An interrupt ends the waiting, never the job.

        Raises:
            JobFailed: it failed or was canceled.
            BackendTimeout: ``timeout`` seconds passed; the job goes on.
        """
        self._settle(timeout)
        if self.phase != "Completed":
            raise JobFailed(self, self._last_lines())
        return self

    def results(self, timeout: float | None = None) -> dict[str, Any]:
        """``{name: value}`` of the variables that it brought back, once it has completed; sets none of them.

        Raises:
            JobFailed, BackendTimeout: as :meth:`wait`.
            NotFound: it was asked for none, or none came.
        """
        if self._results is None:
            if not self.done or self.phase != "Completed":
                self.wait(timeout)
            self._results = self._client.job_results(self.name)
        return dict(self._results)

    def result(self, *names: str, timeout: float | None = None) -> Any:
        """Wait, then give what it brought back and, in a notebook, set variables of these names there.

        Args:
            names: only these; one name gives its value.

        Returns:
            a dictionary of values; the job itself when it was asked for none.

        Raises:
            JobFailed, BackendTimeout: as :meth:`wait`.
            NotFound: one of ``names`` did not come back.
        """
        if not self.asked and not names:
            return self.wait(timeout)
        values = self.results(timeout)
        missing = [name for name in names if name not in values]
        if missing:
            why = next((v["detail"] for v in self.returned if v["name"] == missing[0] and v.get("detail")), "")
            why = why or f"it brought: {', '.join(values)}"
            raise NotFound(f"job {self.name} did not bring back {missing[0]}", why)
        chosen = {name: values[name] for name in names} if names else values
        if self._on_results is not None:
            self._on_results(self, chosen)
        return chosen[names[0]] if len(names) == 1 else chosen

    def resume(self) -> Job:
        """Queue a further attempt, under the same run, of a job that failed or was canceled.

        Raises:
            Conflict: it has not ended, or has completed.
        """
        self._data = self._client.call(self._client.aio.resume_job(self.name))
        self._results = None
        return self

    def delete(self) -> None:
        """Delete it, once it has ended; :meth:`restore` takes that back until it is purged."""
        self._client.delete_job(self.name)

    def restore(self) -> Job:
        """Take its deletion back."""
        self._data = self._client.call(self._client.aio.restore_job(self.name))
        return self

    def purge(self) -> None:
        """Remove it for good, with folder and logs; its run stays."""
        self._client.purge_job(self.name)

    def _settle(self, timeout: float | None) -> None:
        try:
            self._data = self._client.call(self._ended(timeout))
        except KeyboardInterrupt:
            print(f"Interrupted: job {self.name} goes on. Stop it with  %mlops stop {self.name}", flush=True)
            raise
        if self._on_end is not None:
            self._on_end(self)

    async def _ended(self, timeout: float | None) -> dict[str, Any]:
        begun = time.monotonic()
        pause = 0.2
        while True:
            data = await self._client.aio.get_job(self.name)
            if (data.get("status") or {}).get("phase") in TERMINAL:
                return data
            left = None if timeout is None else timeout - (time.monotonic() - begun)
            if left is not None and left <= 0:
                raise BackendTimeout(
                    f"job {self.name} has not ended within {timeout:g} s; it goes on",
                    f"stop it with: %mlops stop {self.name}",
                )
            await asyncio.sleep(pause if left is None else min(pause, max(left, 0.01)))
            pause = min(pause * 1.3, 2.0)

    def _last_lines(self, count: int = 10) -> list[str]:
        kept = self.details.get("log_tail") or []
        if not kept:
            try:
                kept = self.logs(self.details.get("failed_rank") or 0, tail=count).split("\n")
            except MlopsError:
                return []
        return render.log_lines("\n".join(map(str, kept)))[-count:]

    def __await__(self) -> Generator[Any, None, Job]:
        return self._awaited().__await__()

    async def _awaited(self) -> Job:
        work = self._client.submit(self._ended(None))
        self._data = await asyncio.wrap_future(work)
        if self._on_end is not None:
            self._on_end(self)
        if self.phase != "Completed":
            raise JobFailed(self, await asyncio.to_thread(self._last_lines))
        if self.asked and self._on_results is not None and self.returned:
            self._on_results(self, await asyncio.to_thread(self.results))
        return self

    def _line(self) -> str:
        took = render.duration(self.details.get("started_at"), self.details.get("ended_at"))
        return " ".join(part for part in (self.name, self.phase, took, self.reason) if part)

    def _title(self) -> str:
        return f"Job {self.name}"

    def _state(self) -> str:
        return self.phase

    def _facts(self) -> list[tuple[str, Any]]:
        spec, status = self.spec, self.details
        notebook = PurePath((spec.get("cell") or {}).get("notebook") or "").name
        what = spec.get("script") or spec.get("command") or (f"a cell of {notebook}" if notebook else "a cell")
        scored = spec.get("batch") or {}
        if scored:
            what = f"endpoint {scored['endpoint']}, deployment {scored['deployment']}, over {scored['input']}"
        return [
            ("reason", self.reason),
            ("deleted", render.local_time(status.get("deleted_at"))),
            ("runs", render.short(what, 100)),
            ("output", scored.get("output")),
            ("processes", self.processes if self.processes > 1 else None),
            ("experiment", spec.get("experiment_name")),
            ("run id", status.get("run_id")),
            ("queued", render.local_time(status.get("queued_at"))),
            ("took", render.duration(status.get("started_at"), status.get("ended_at"))),
            ("exit code", self.exit_code),
            ("queue", _place(status)),
            ("attempts", self._attempts_line()),
            ("delivery", _delivery(status.get("delivery") or {})),
            ("metrics", incomplete(status)),
            ("large files", status.get("route")),
            ("sent", ", ".join(v["name"] for v in (spec.get("cell") or {}).get("variables") or [])),
            ("brought back", ", ".join(v["name"] for v in status.get("returned") or [] if v.get("sha256"))),
        ]

    def _tail(self) -> list[str]:
        """The last lines of the log of a job that has ended, as its status keeps them."""
        return render.log_lines("\n".join(map(str, self.details.get("log_tail") or [])))[-10:]

    def text(self) -> str:
        """Several lines for a terminal, with the last ones of the log."""
        return "\n".join([super().text(), *(f"  | {line}" for line in self._tail())])

    def html(self) -> str:
        """Self-contained HTML, with the last lines of the log."""
        tail = "\n".join(self._tail())
        log = f'<pre style="margin:4px 0;background:none;color:inherit">{render.escape(tail)}</pre>' if tail else ""
        return super().html() + log

    def _attempts_line(self) -> str | None:
        attempts = self.attempts
        most = int((self.spec.get("retry_settings") or {}).get("max_retries") or 0) + 1
        if len(attempts) < 2 and most < 2:
            return None
        told = [f"{a['attempt']}: {a['phase']}" + (f" ({a['reason']})" if a["reason"] else "") for a in attempts[:-1]]
        told += [f"{a['attempt']}: {a['phase']}" for a in attempts[-1:]]  # its reason is the job's
        return render.short("; ".join(told) or "none yet", 300)

    def _ipython_display_(self) -> None:
        if self._on_display is not None:
            self._on_display(self)
            return
        from IPython.display import display

        display(self._repr_mimebundle_(), raw=True)


class JobTable(Table[Job]):
    """Jobs as a table."""

    empty = "no jobs yet: start one with  %mlops train script.py"
    spare = ("processes", "experiment", "queued", "attempt")

    def _columns(self) -> list[str]:
        return ["job", "state", "attempt", "processes", "experiment", "queued", "took", "reason"]

    def _row(self, job: Job, html: bool) -> list[Any]:
        status = job.details
        return [
            render.code(job.name) if html else job.name,
            render.pill(job.phase) if html else job.phase,
            int(status.get("attempt") or 0) or "",
            job.processes,
            job.spec.get("experiment_name") or "",
            render.local_time(status.get("queued_at") or job._data.get("created_at")),
            render.duration(status.get("started_at"), status.get("ended_at")),
            _place(status) or job.reason,
        ]


def _place(status: dict[str, Any]) -> str:
    """Where a waiting job stands and what it waits for; empty for one that does not wait."""
    queue = status.get("queue") or {}
    if status.get("phase") != "Queued" or not queue.get("place"):
        return ""
    reason = queue.get("reason") or status.get("reason") or ""
    return f"place {queue['place']} of {queue.get('length', queue['place'])}" + (f": {reason}" if reason else "")


def incomplete(status: Mapping[str, Any]) -> str:
    """That metrics of a job were lost, and with which attempts; empty when they were not."""
    if not status.get("metrics_incomplete"):
        return ""
    ended = [*(status.get("attempts") or []), status.get("outcome") or {}]
    lost = sorted({int(a["attempt"]) for a in ended if a.get("metrics_incomplete")})
    several = len(ended) > 1 or int(status.get("attempt") or 0) > 1
    of = f" of attempt {', '.join(map(str, lost))}" if lost and several else ""
    return f"incomplete: a node{of} was lost with what its ranks had logged last"


def _delivery(counts: dict[str, Any]) -> str:
    """What of the journal has reached MLflow; empty when there is nothing to say."""
    told = [f"{counts[key]} {word}" for key, word in (
        ("delivered", "records in MLflow"), ("duplicates", "repeated"), ("rejected", "refused"),
    ) if counts.get(key)]
    if counts.get("pending"):
        told.append(f"{render.size(counts['pending'])} wait")
    return ", ".join([*told, counts["message"]] if counts.get("message") else told)
