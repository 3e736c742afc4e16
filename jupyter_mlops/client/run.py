"""Runs: one, a table of them, and a comparison."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from ..core.errors import NotFound, ParameterError, Refused
from . import render
from .record import Record, Table

if TYPE_CHECKING:
    from .context import RunContext
    from .model import ModelVersion

#: A metric whose name has one of these words is better when lower.
_LOWER = re.compile(r"(loss|err|error|mse|rmse|mae|mape|perplexity|wer|cer|fid|time|seconds|latency|nll|logloss)", re.I)


def lower_is_better(metric: str) -> bool:
    """Whether the best value of a metric is its lowest, judged by the name."""
    return bool(_LOWER.search(metric))


class Run(Record):
    """An MLflow run."""

    @property
    def id(self) -> str:
        """The run id."""
        return self._data["run_id"]

    run_id = id

    @property
    def name(self) -> str:
        """The run's name."""
        return self._data.get("name") or ""

    @property
    def experiment(self) -> str:
        """Name of its experiment."""
        return self._data.get("experiment_name") or ""

    @property
    def status(self) -> str:
        """MLflow's status, e.g. ``FINISHED``."""
        return self._data.get("status") or ""

    @property
    def metrics(self) -> dict[str, float]:
        """Last value of each metric; NaN and infinities, which JSON does not know, are NaN."""
        return {k: math.nan if v is None else v for k, v in (self._data.get("metrics") or {}).items()}

    @property
    def params(self) -> dict[str, str]:
        """Parameters."""
        return self._data.get("params") or {}

    @property
    def tags(self) -> dict[str, str]:
        """Tags."""
        return self._data.get("tags") or {}

    @property
    def models(self) -> list[dict[str, str]]:
        """Models that the run logged: ``model_id`` and ``name``."""
        return self._data.get("models") or []

    @property
    def job(self) -> str:
        """Name of the job that owns it, or empty."""
        return self._data.get("job") or ""

    @property
    def url(self) -> str:
        """Address of the run in MLflow's UI, on loopback."""
        base = self._client.tracking_uri_kept
        return f"{base}/#/experiments/{self._data.get('experiment_id')}/runs/{self.id}" if base else ""

    def refresh(self) -> Run:
        """Ask again."""
        self._data = self._client.run(self.id)._data
        return self

    def history(self, *keys: str, max_points: int = 500) -> dict[str, dict[str, list[Any]]]:
        """Metric histories: ``{key: {"steps", "values", "timestamps", "last", "total"}}``."""
        return self._client.run_metrics(self.id, list(keys) or None, max_points)

    def context(self) -> RunContext:
        """What it came from: notebook, executed cells, commit and changes, modules, packages, seeds, machine.

        Raises:
            NotFound: nothing is recorded, or not yet.
        """
        from .context import RunContext

        # A run beneath another shares its context; a job's run is where that leads to at last.
        return RunContext(self._client, self._data.get("parent_run_id") or self.id)

    def code(self) -> str:
        """The cells that were executed, in order, as one text. Raises NotFound."""
        return self.context().code()

    def register(self, name: str, alias: str | None = None, artifact: str | None = None) -> ModelVersion:
        """Register this run's model as a version of ``name``."""
        return self._client.register(self.id, name, alias=alias, artifact=artifact)

    def delete(self) -> None:
        """Delete it; :meth:`restore` takes that back."""
        self._client.delete_run(self.id)

    def restore(self) -> Run:
        """Take its deletion back."""
        self._client.call(self._client.aio.restore_run(self.id))
        return self.refresh()

    def _line(self) -> str:
        shown = " ".join(f"{k}={render.number(v)}" for k, v in list(self.metrics.items())[:3])
        return " ".join(part for part in (self.name, self.id[:8], self._state(), shown) if part)

    def _title(self) -> str:
        return f"Run {self.name}"

    def _state(self) -> str:
        return render.word(self.status)

    def _facts(self) -> list[tuple[str, Any]]:
        pairs: list[tuple[str, Any]] = [
            ("run id", self.id),
            ("experiment", self.experiment),
            ("job", self.job),
            ("started", render.local_time(self._data.get("start_time"))),
        ]
        if self._data.get("end_time"):
            pairs.append(("took", render.duration(self._data.get("start_time"), self._data.get("end_time"))))
        commit = self.tags.get("mlflow.source.git.commit", "")
        if commit:
            dirty = " with changes" if self.tags.get("mlops.dirty") == "true" else ""
            pairs.append(("commit", f"{commit[:12]}{dirty}"))
        if self.tags.get("mlops.cells"):
            pairs.append(("cells", f"{self.tags['mlops.cells']}: .code() has them"))
        pairs += [(k, v) for k, v in list(self.metrics.items())[:12]]
        pairs += [(k, v) for k, v in list(self.params.items())[:12]]
        if self.models:
            pairs.append(("models", ", ".join(m.get("name") or m.get("model_id", "") for m in self.models)))
        return pairs


class RunTable(Table[Run]):
    """Runs as a table, newest first unless ordered otherwise."""

    empty = "no runs yet: log one with  %mlops log loss=0.3  or mlflow.start_run()"

    def best(self, metric: str, lower: bool | None = None) -> Run:
        """The run with the best last value of ``metric``.

        Raises:
            NotFound: no run has that metric.
        """
        having = [r for r in self._items if _number(r.metrics.get(metric)) is not None]
        if not having:
            known = sorted({k for r in self._items for k in r.metrics})
            raise NotFound(f"no run has the metric {metric!r}", _known("metrics", known))
        down = lower_is_better(metric) if lower is None else lower
        return (min if down else max)(having, key=lambda r: float(r.metrics[metric]))

    def _keys(self) -> list[str]:
        count: dict[str, int] = {}
        for run in self._items:
            for key in run.metrics:
                if not key.startswith("system/"):
                    count[key] = count.get(key, 0) + 1
        return sorted(count, key=lambda k: (-count[k], k))[:5]

    def _columns(self) -> list[str]:
        return ["run", "id", "status", "started", *self._keys()]

    def _row(self, run: Run, html: bool) -> list[Any]:
        return [
            run.name,
            render.code(run.id[:8]) if html else run.id[:8],
            render.pill(run.status) if html else render.word(run.status),
            render.local_time(run._data.get("start_time")),
            *(run.metrics.get(k) for k in self._keys()),
        ]

    def _flat(self, run: Run) -> dict[str, Any]:
        row: dict[str, Any] = {"run_id": run.id, "name": run.name, "experiment": run.experiment, "status": run.status}
        row |= {"start_time": run._data.get("start_time"), "end_time": run._data.get("end_time")}
        row |= {f"metrics.{k}": v for k, v in run.metrics.items()}
        return row | {f"params.{k}": v for k, v in run.params.items()}


#: Rows of a comparison that are shown at once in HTML; the others unfold.
_ROWS = 14


class Comparison:
    """Runs side by side: metrics, and the parameters in which they differ."""

    def __init__(
        self, runs: list[Run], metric: str | None = None, curves: dict[str, dict[str, Any]] | None = None
    ) -> None:
        if len(runs) < 1:
            raise ParameterError("nothing to compare", "name runs, or --experiment NAME")
        self.runs = runs
        every = {k for r in runs for k in r.metrics if not k.startswith("system/")}
        if metric is not None and metric not in every:
            raise NotFound(f"no run has the metric {metric!r}", _known("metrics", sorted(every)))
        self.metric = metric
        self.metrics = sorted(every, key=lambda k: (k != metric, -sum(k in r.metrics for r in runs), k))
        keys = {k for r in runs for k in r.params}
        self.params = sorted(k for k in keys if len({r.params.get(k) for r in runs}) > 1)
        self.same = {k: runs[0].params[k] for k in sorted(keys - set(self.params))} if len(runs) > 1 else {}
        self._curves = curves or {}

    def best(self, metric: str | None = None) -> Run:
        """The best run by ``metric`` (default: the one compared by)."""
        metric = metric or self.metric or (self.metrics[0] if self.metrics else None)
        if metric is None:
            raise NotFound("these runs have no metrics", "log one with  %mlops log accuracy=0.9")
        return RunTable(self.runs).best(metric)

    def _best_index(self, metric: str) -> int | None:
        values = [(i, _number(r.metrics.get(metric))) for i, r in enumerate(self.runs)]
        having = [(i, v) for i, v in values if v is not None]
        if len(having) < 2 or len({v for _, v in having}) < 2:
            return None
        return (min if lower_is_better(metric) else max)(having, key=lambda p: p[1])[0]

    def df(self) -> Any:
        """A DataFrame, one column a run."""
        import pandas as pd

        frame = {
            f"{r.name} {r.id[:8]}": {
                **{f"metrics.{k}": r.metrics.get(k) for k in self.metrics},
                **{f"params.{k}": r.params.get(k) for k in self.params},
            }
            for r in self.runs
        }
        return pd.DataFrame(frame)

    to_pandas = df

    def to_dict(self) -> dict[str, Any]:
        """JSON: runs, the differing parameters, and the best run of each metric."""
        best = {k: self._best_index(k) for k in self.metrics}
        return {
            "runs": [r.to_dict() for r in self.runs],
            "metric": self.metric,
            "differing_params": self.params,
            "best": {k: self.runs[i].id for k, i in best.items() if i is not None},
        }

    def _rows(self, html: bool) -> list[list[Any]]:
        rows: list[list[Any]] = []
        most = 200 if html else 20
        for key in self.metrics[:most]:
            best = self._best_index(key)
            row: list[Any] = [key]
            for index, run in enumerate(self.runs):
                value = run.metrics.get(key)
                if index == best and html:
                    row.append(render.Raw(f'<strong style="color:{render.BRAND}">{render.cell(value)} best</strong>'))
                else:
                    row.append(f"{render.number(value)} *" if index == best else value)
            rows.append(row)
        for key in self.params[:most]:
            rows.append([key, *(r.params.get(key, "") for r in self.runs)])
        return rows

    def _columns(self) -> list[str]:
        return ["", *(f"{r.name} ({r.id[:8]})" for r in self.runs)]

    def text(self) -> str:
        """Aligned columns; ``*`` marks the best value."""
        rows = self._rows(html=False)
        body = render.text_table(self._columns(), rows, "no metrics and no differing parameters", values_right=True)
        left = max(0, len(self.metrics) - 20) + max(0, len(self.params) - 20)
        more = f"{left} more rows: .df() has them all" if left else ""
        return "\n".join(part for part in (body, more, self._note()) if part)

    def _note(self) -> str:
        if not self.same:
            return ""
        return "equal in all: " + render.short(", ".join(f"{k}={v}" for k, v in self.same.items()), 200)

    def html(self) -> str:
        """Bars of the compared metric, its curves where it has some, and the table."""
        parts = []
        metric = self.metric or (self.metrics[0] if self.metrics else None)
        if metric:
            pairs = [(f"{r.name}", _number(r.metrics.get(metric))) for r in self.runs]
            parts.append(
                f'<div style="color:{render.MUTED};margin:4px 0">{render.cell(metric)}</div>'
                + render.bars(pairs, self._best_index(metric))
            )
        for key, series in self._curves.items():
            chart = render.curve({n: (s["steps"], s["values"]) for n, s in series.items()}, key, 420, 140)
            if chart:
                parts.append(
                    f'<div style="color:{render.MUTED};margin:8px 0 2px">{render.cell(key)} by step: '
                    f"{render.legend(list(series))}</div>{chart}"
                )
        rows = self._rows(html=True)
        split = len(rows) if len(rows) <= _ROWS else min(_ROWS, max(1, len(self.metrics)))
        shown, rest = rows[:split], rows[split:]
        parts.append(render.table(self._columns(), shown, self._note(), "no metrics", values_right=True))
        if rest:
            parts.append(
                f'<details><summary style="cursor:pointer;color:{render.MUTED}">{len(rest)} more rows: parameters '
                f'in which they differ{", and further metrics" if split < len(self.metrics) else ""}</summary>'
                f"{render.table(self._columns(), rest, values_right=True)}</details>"
            )
        inner = "".join(f"<div>{p}</div>" for p in parts)
        return f'<div style="color:{render.TEXT};display:grid;gap:8px">{inner}</div>'

    def __repr__(self) -> str:
        return f"<Comparison of {len(self.runs)} runs by {render.clean(self.metric or 'all metrics')}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": self.text(), "text/html": self.html()}


def best_with_model(runs: RunTable, metric: str, lower: bool | None = None) -> tuple[Run, str]:
    """The best run that has a model, and a remark when a better one has none.

    Raises:
        Refused: none of the runs has a model.
    """
    top = runs.best(metric, lower)
    having = RunTable([r for r in runs if r.models])
    if not having:
        raise Refused(
            "none of these runs has a model", "log one, e.g. mlflow.sklearn.log_model(model, name='model')"
        )
    chosen = having.best(metric, lower)
    if chosen.id == top.id:
        return chosen, ""
    better = render.number(top.metrics[metric])
    return chosen, f"run {top.name} has a better {metric} ({better}), but no model"


def _number(value: Any) -> float | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def _known(what: str, names: list[str]) -> str:
    if not names:
        return f"they have no {what}"
    return f"{what} here: " + ", ".join(names[:8]) + (" …" if len(names) > 8 else "")
