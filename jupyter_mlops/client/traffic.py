"""Shares of an endpoint's traffic and what its deployments were seen to do: as a table, and as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import render
from .record import Record

if TYPE_CHECKING:
    from .deployment import Deployment
    from .report import Report
    from .serving import Endpoint


def shared(shares: Mapping[str, int], name: str, percent: int) -> dict[str, int]:
    """Shares in which ``name`` has ``percent`` and the others keep their proportions; they add up to 100.

    Where no other has a share, ``name`` takes all, or with 0 percent nobody does.
    """
    from ..core.resources.endpoint import spread  # pydantic: only when it is needed

    others = {d: share for d, share in shares.items() if d != name and share}
    if not others:
        return {name: 100 if percent else 0}
    rest = spread(others, 100 - percent) if percent < 100 else dict.fromkeys(others, 0)
    return {**rest, name: percent}


def counts(stats: Mapping[str, Any], deployment: str) -> dict[str, Any]:
    """``requests, errors, rate, p50, p95, p99`` of one deployment from what the gateway counts; times in milliseconds.

    Errors are the deployment's own: answers 5xx, 424 and 504. What callers got wrong, and 429, is none of them.
    """
    found = ((stats or {}).get("deployments") or {}).get(deployment) or {}
    errors, latency = found.get("errors") or {}, found.get("latency_ms") or {}
    requests = int(found.get("requests") or 0)
    bad = sum(int(errors.get(kind) or 0) for kind in ("5xx", "model", "timeout"))
    return {
        "requests": requests, "errors": bad, "rate": bad / requests if requests else None,
        **{p: latency.get(p) for p in ("p50", "p95", "p99")},
    }


def milliseconds(value: Any) -> str:
    """A time for people."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return ""
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"


def percentage(value: Any) -> str:
    """A part of one as a percentage."""
    if not isinstance(value, (int, float)):
        return ""
    return f"{100 * value:.2g} %" if 0 < value < 0.1 else f"{100 * value:.0f} %"


def bar(parts: Sequence[tuple[str, int, str]], width: int = 420, height: int = 18) -> render.Raw:
    """One bar that is shared by (name, percent, colour), each part with its name where that fits."""
    shapes, x = [], 0.0
    font = "font-size:11px;font-family:var(--jp-ui-font-family, sans-serif)"
    for name, percent, colour in parts:
        wide = width * percent / 100
        if not percent:
            continue
        label = f"{name} {percent} %"
        shapes.append(
            f'<rect x="{x:.1f}" y="0" width="{max(wide - 1, 1):.1f}" height="{height}" rx="2" '
            f'style="fill:{colour};opacity:.28"/>'
            f'<rect x="{x:.1f}" y="{height - 3}" width="{max(wide - 1, 1):.1f}" height="3" style="fill:{colour}"/>'
        )
        if wide > 7 * len(label):
            shapes.append(
                f'<text x="{x + 6:.1f}" y="12" style="{font};fill:{render.TEXT}">{render.escape(label)}</text>'
            )
        x += wide
    told = ", ".join(f"{name} {percent} %" for name, percent, _ in parts if percent) or "no traffic"
    return render.Raw(
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{render.escape("traffic: " + told)}" style="display:block;max-width:100%">{"".join(shapes)}</svg>'
    )


def meter(value: Any, most: float, shown: str, colour: str = render.BRAND) -> render.Raw:
    """A number with a bar as long as its part of ``most``."""
    finite = isinstance(value, (int, float)) and math.isfinite(value)
    long = 60 * float(value) / most if finite and most > 0 else 0.0
    number = f'<span style="min-width:7ch;text-align:right">{render.escape(shown)}</span>'
    style = f"display:block;height:8px;width:{max(long, 0):.0f}px;border-radius:2px;background:{colour}"
    return render.Raw(
        f'<span style="display:inline-flex;align-items:center;gap:6px">{number}<span aria-hidden="true" '
        f'style="display:inline-block;width:60px;height:8px;border-radius:2px;background:{render.FAINT}">'
        f'<span style="{style}"></span></span></span>'
    )


class Traffic(Record):
    """An endpoint with its shares, its deployments and their figures, as they were when they were asked for.

    ``stats`` is None where the gateway did not answer.
    """

    def __init__(
        self, client: Any, endpoint: Endpoint, deployments: Sequence[Deployment], stats: dict[str, Any] | None,
        detailed: bool = False,
    ) -> None:
        super().__init__(client, endpoint._data)
        self.endpoint = endpoint
        self.deployments = sorted(deployments, key=lambda d: str(d._data.get("created_at") or ""))
        self.stats = stats
        self.detailed = detailed
        #: What bundles of it did elsewhere, as far as their records were merged.
        self.records: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        """The endpoint's name."""
        return self.endpoint.name

    @property
    def shares(self) -> dict[str, int]:
        """Deployment → percent that is in force."""
        return self.endpoint.shares

    def refresh(self) -> Traffic:
        """Ask again."""
        new = self._client.traffic(self.name, self.detailed)
        self._data, self.endpoint = new._data, new.endpoint
        self.deployments, self.stats, self.records = new.deployments, new.stats, new.records
        return self

    def set(self, mirror: dict[str, int] | None = None, **shares: int) -> Traffic:
        """Change the shares: ``traffic.set(v1=90, v2=10)``."""
        self._client.route(self.name, shares or None, mirror)
        return self.refresh()

    def promote(self) -> Traffic:
        """End the canary: it takes all."""
        self._client.promote(self.name)
        return self.refresh()

    def rollback(self) -> Traffic:
        """Back to the traffic before."""
        self._client.rollback(self.name)
        return self.refresh()

    def widget(self) -> Any:
        """Sliders, buttons and live figures. Raises Refused without ipywidgets."""
        from ..widgets.traffic import TrafficForm

        return TrafficForm(self._client, self.name)

    def _line(self) -> str:
        return " ".join([self.name, *(f"{d}={share}%" for d, share in self.shares.items() if share)])

    def _title(self) -> str:
        return f"Traffic of endpoint {self.name}"

    def _state(self) -> str:
        return self.endpoint.phase

    def _facts(self) -> list[tuple[str, Any]]:
        canary = self.endpoint.canary
        limits = self.endpoint.spec.get("canary") or {}
        takes = ""
        if canary.get("phase") == "Running" and limits:
            takes = (
                f"after {limits.get('duration', 0):g} s and {limits.get('min_requests')} requests, unless it has "
                f"{percentage(limits.get('max_error_rate'))} errors more, or {limits.get('max_latency_ratio'):g} times "
                "the latency"
            )
        return [
            ("canary", canary_line(canary)),
            ("it takes all", takes),
            ("mirror", ", ".join(f"{v} % of requests are copied to {k}" for k, v in self.endpoint.mirrored.items())),
            ("sticky by", self.endpoint.spec.get("sticky_header")),
            ("figures", "the gateway does not answer" if self.stats is None else ""),
        ]

    def figures(self) -> list[dict[str, Any]]:
        """One row a deployment: share, requests, errors and times in milliseconds."""
        rows = []
        for d in self.deployments:
            found = ((self.stats or {}).get("deployments") or {}).get(d.name) or {}
            instances = found.get("instances") or d.details.get("instances") or {}
            rows.append({
                "deployment": d.name, "model": d.serves, "state": d.phase, "percent": self.shares.get(d.name, 0),
                "mirror": self.endpoint.mirrored.get(d.name, 0), **counts(self.stats or {}, d.name),
                "instances": instances, "mirrored": found.get("mirror") or {},
                "queued": found.get("queued") or 0, "rows": found.get("rows") or 0,
                "batches": found.get("batches") or 0, "callers": int((found.get("errors") or {}).get("4xx") or 0),
                "rejected": int((found.get("errors") or {}).get("rejected") or 0),
            })
        return rows

    def df(self) -> Any:
        """The figures as a DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.figures())

    def _table(self, html: bool) -> tuple[list[str], list[list[Any]]]:
        """Columns and rows."""
        figures = self.figures()
        columns = ["deployment", "model", "state", "traffic", "instances", "requests", "errors", "p50", "p95"]
        if self.detailed:
            columns += ["p99", "rows", "batches", "queued", "4xx", "429"]
        most = {key: max((f[key] or 0.0 for f in figures), default=0.0) for key in ("requests", "p95")}
        rows = [self._row(row, place, html, most) for place, row in enumerate(figures)]
        if any(f["mirrored"].get("compared") for f in figures):
            columns.append("mirrored")
            rows = [[*row, _compared(f["mirrored"])] for row, f in zip(rows, figures, strict=True)]
        return columns, rows

    def _row(self, row: dict[str, Any], place: int, html: bool, most: Mapping[str, float]) -> list[Any]:
        errors = f"{row['errors']} ({percentage(row['rate'])})" if row["errors"] else "0" if row["requests"] else ""
        share = f"{row['percent']} %" + (f" + {row['mirror']} % copied" if row["mirror"] else "")
        name: Any = row["deployment"]
        requests: Any = row["requests"]
        p95: Any = milliseconds(row["p95"])
        state: Any = row["state"]
        if html:
            colour = render.SERIES[place % len(render.SERIES)]
            name = render.Raw(f'<span aria-hidden="true" style="color:{colour}">■</span> {render.code(name)}')
            requests = meter(row["requests"], most["requests"], str(row["requests"]), colour)
            p95 = meter(row["p95"], most["p95"], p95, colour) if p95 else ""
            state = render.pill(state)
        ready = row["instances"]
        shown = [
            name, row["model"], state, share,
            f"{ready.get('ready', 0)} of {ready.get('wanted', 0)}" if ready else "", requests, errors,
            milliseconds(row["p50"]), p95,
        ]
        if self.detailed:
            shown += [milliseconds(row["p99"]), row["rows"], row["batches"], row["queued"], row["callers"],
                      row["rejected"]]
        return shown

    def text(self) -> str:
        """Several lines for a terminal."""
        table = render.text_table(*self._table(False), "no deployments behind this endpoint")
        return f"{super().text()}\n\n{table}" + (f"\n\n{self._elsewhere().text()}" if self.records else "")

    def _elsewhere(self) -> Report:
        """The records of bundles, as a table."""
        from .export import COLUMNS, row
        from .report import Report

        return Report(self.records).table(COLUMNS, [row(r) for r in self.records], "Served elsewhere, by bundles")

    def html(self) -> str:
        """The shares as a bar, canary and mirror, and the figures."""
        colours = {d.name: render.SERIES[i % len(render.SERIES)] for i, d in enumerate(self.deployments)}
        order = [*colours, *(name for name in self.shares if name not in colours)]
        drawn = bar([(name, self.shares.get(name, 0), colours.get(name, render.IDLE)) for name in order])
        table = render.table(*self._table(True), empty="no deployments behind this endpoint")
        elsewhere = self._elsewhere().html() if self.records else ""
        return f'<div style="display:grid;gap:8px">{super().html()}{drawn}{table}{elsewhere}</div>'

    def to_dict(self) -> dict[str, Any]:
        """Endpoint, deployments and counters as the REST API has them."""
        return {
            "endpoint": self.endpoint._data, "deployments": [d._data for d in self.deployments], "stats": self.stats,
            "figures": self.figures(), "records": self.records,
        }


def _compared(mirrored: Mapping[str, Any]) -> str:
    """How many answers to copies of requests were compared, and differ."""
    compared = mirrored.get("compared")
    return f"{compared} compared, {mirrored.get('different') or 0} different" if compared else ""


_WORDS = {"Running": "is on trial", "Promoted": "was promoted", "RolledBack": "was rolled back", "Stopped": "was ended"}


def canary_line(canary: Mapping[str, Any]) -> str:
    """How a canary goes, or how the last one ended, in one line; empty without one."""
    if not canary:
        return ""
    phase = str(canary.get("phase"))
    parts = [f"{canary.get('deployment')} {_WORDS.get(phase, phase)}"]
    if phase == "Running":
        parts[0] += f" with {canary.get('percent')} % since {render.local_time(canary.get('started_at'))[11:]}"
    elif canary.get("ended_at"):
        parts[0] += f" at {render.local_time(canary.get('ended_at'))[11:]}"
    if canary.get("reason"):
        parts.append(str(canary["reason"]))
    elif phase == "Running":
        parts.append(versus(canary))
    return ": ".join(p for p in parts if p)


def versus(canary: Mapping[str, Any]) -> str:
    """The figures of both sides of a canary."""
    new, old = canary.get("candidate") or {}, canary.get("baseline") or {}
    told = [f"{new.get('requests', 0)} requests", f"errors {percentage(new.get('error_rate') or 0)} against "
            f"{percentage(old.get('error_rate') or 0)}"]
    if new.get("p95") is not None and old.get("p95") is not None:
        told.append(f"p95 {milliseconds(new['p95'])} against {milliseconds(old['p95'])}")
    return ", ".join(told)
