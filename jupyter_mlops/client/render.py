"""How our objects look: aligned text and self-contained HTML (escaped, theme colours, inline SVG, no script).

Colours are JupyterLab's ``--jp-*`` variables, each with a fall-back that reads on light and dark, because an exported
notebook or another front end has none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from .terminal import rendered

TEXT = "var(--jp-content-font-color1, inherit)"
MUTED = "var(--jp-content-font-color2, #757575)"
LINE = "var(--jp-border-color2, rgba(128,128,128,.35))"
FAINT = "var(--jp-layout-color2, rgba(128,128,128,.12))"
BRAND = "var(--jp-brand-color1, #1976d2)"
GOOD = "var(--jp-success-color1, #388e3c)"
BAD = "var(--jp-error-color1, #d32f2f)"
WARN = "var(--jp-warn-color1, #f57c00)"
IDLE = "var(--jp-ui-font-color2, #757575)"

#: Colour and sign of a state; the word always stands beside it, so colour never speaks alone.
_STATES = {
    **dict.fromkeys(("Completed", "FINISHED", "Ready", "READY", "ready", "ok", "up"), (GOOD, "●")),
    **dict.fromkeys(("Failed", "FAILED", "failed", "Unreachable", "not ok"), (BAD, "✕")),
    **dict.fromkeys(("Canceled", "KILLED", "stopped", "Deleting"), (IDLE, "■")),
    **dict.fromkeys(("Running", "RUNNING", "Starting", "Preparing", "Creating"), (BRAND, "▶")),
    **dict.fromkeys(("starting", "restarting"), (BRAND, "▶")),
    **dict.fromkeys(("Stopping", "Finalizing", "Degraded", "warning"), (WARN, "▲")),
}

#: MLflow's states of a run in our words.
_WORDS = {"FINISHED": "Completed", "KILLED": "Canceled", "SCHEDULED": "Queued"}

#: Colours of what is told apart, such as curves and deployments, in their order.
SERIES = (BRAND, WARN, GOOD, "#ab47bc", "#00acc1", "#8d6e63")


def number(value: Any, digits: int = 5) -> str:
    """A number for people; anything else as text."""
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if math.isnan(value) or math.isinf(value):
            return str(value)
        return f"{value:.{digits}g}"
    return str(value)


def when(text: str | None) -> datetime | None:
    """An RFC 3339 time."""
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def local_time(text: str | None) -> str:
    """An RFC 3339 time as local date and time."""
    moment = when(text)
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S") if moment else ""


def duration(begin: str | None, end: str | None = None) -> str:
    """Time between two RFC 3339 times (until now when ``end`` is missing), e.g. ``1 m 20 s``."""
    start = when(begin)
    if start is None:
        return ""
    seconds = max(0.0, ((when(end) or datetime.now(UTC)) - start).total_seconds())
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} m {rest} s"
    return f"{minutes // 60} h {minutes % 60} m"


def size(count: int | float | None) -> str:
    """Bytes for people."""
    value = float(count or 0)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def clean(text: Any) -> str:
    """Text on one line, without control characters that would upset a terminal."""
    return "".join(c if c.isprintable() else " " for c in str(text))


#: A cell's file in a traceback.
_CELL = re.compile(r'(?<=File ")[^"\n]*/jobs/[^/"\n]+/code/(?=cell\.py")')


def log_lines(text: str) -> list[str]:
    """Lines of a log as a terminal shows them in the end: progress bars folded, without colours and controls.

    Tracebacks name the cell's file without its folder.
    """
    text = _CELL.sub("", text).replace("\t", "    ")
    return [clean(line) for line in rendered(text).removesuffix("\n").split("\n")] if text else []


def short(text: Any, width: int = 60) -> str:
    """Text of at most ``width`` characters."""
    text = clean(text)
    return text if len(text) <= width else text[: width - 1] + "…"


def _right(columns: Sequence[str], rows: Sequence[Sequence[Any]], values_right: bool) -> list[bool]:
    """Which columns are aligned to the right: those of numbers, or all but the first."""
    if values_right:
        return [i > 0 for i in range(len(columns))]
    return [all(isinstance(row[i], (int, float)) or row[i] in (None, "") for row in rows) for i in range(len(columns))]


def text_table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], empty: str = "", values_right: bool = False,
    width: int = 60,
) -> str:
    """Columns aligned by spaces; numbers to the right, or all columns but the first. A cell is cut at ``width``."""
    cells = [[short(number(v), width) for v in row] for row in rows]
    if not cells:
        return empty
    right = _right(columns, rows, values_right)

    head = [clean(c) for c in columns]
    widths = [max(len(head[i]), *(len(row[i]) for row in cells)) for i in range(len(columns))]

    def line(values: Sequence[str]) -> str:
        padded = (v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True))
        return "  ".join(padded).rstrip()

    return "\n".join([line(head), *(line(row) for row in cells)])


class Raw(str):
    """HTML that is already escaped."""

    __slots__ = ()


class Code(str):
    """Text to be copied: shown whole, in the code font, scrolling when it is long."""

    __slots__ = ()


def cell(value: Any) -> str:
    """A value as HTML."""
    if isinstance(value, Code):
        return (
            f'<pre style="margin:0;padding:2px 6px;max-width:72ch;overflow-x:auto;background:{FAINT};color:inherit;'
            f'font-size:12px;border-radius:3px">{escape(value)}</pre>'
        )
    return value if isinstance(value, Raw) else escape(short(number(value), 120))


def word(state: str) -> str:
    """A state as people read it: a run's and a job's are told in the same words."""
    return _WORDS.get(state) or (state.capitalize() if state.isupper() else state)


def pill(state: str) -> Raw:
    """A state with its sign and colour."""
    colour, sign = _STATES.get(state, (IDLE, "○"))
    mark = f'<span aria-hidden="true" style="color:{colour}">{sign}</span>'
    return Raw(f'<span style="white-space:nowrap">{mark} {escape(word(state))}</span>')


def code(text: Any, width: int = 60) -> Raw:
    """Text in the code font."""
    return Raw(
        '<code style="background:none;color:inherit;padding:0;font-size:inherit;white-space:nowrap">'
        f"{escape(short(text, width))}</code>"
    )


def _wrap(value: Any) -> str:
    """Sentences may break, so that a long reason does not push a table out of sight; names and numbers do not."""
    if isinstance(value, str) and not isinstance(value, Raw) and len(value) > 40 and " " in value.strip():
        return "min-width:30ch;overflow-wrap:anywhere"
    return "white-space:nowrap"


def table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "", empty: str = "",
    values_right: bool = False,
) -> str:
    """An HTML table; numbers to the right, or all columns but the first."""
    if not rows:
        return f'<div style="color:{MUTED};padding:4px 0">{escape(empty)}</div>' if empty else ""
    side = ["right" if r else "left" for r in _right(columns, rows, values_right)]
    head = "".join(
        f'<th scope="col" style="text-align:{s};padding:4px 12px 4px 0;font-weight:600;border-bottom:1px solid {LINE};'
        f'color:{MUTED}">{escape(c)}</th>'
        for c, s in zip(columns, side, strict=True)
    )
    style = "padding:3px 12px 3px 0;vertical-align:top;font-variant-numeric:tabular-nums"
    body = "".join(
        '<tr style="background:none">'
        + "".join(
            f'<td style="text-align:{s};{style};{_wrap(v)}">{cell(v)}</td>' for v, s in zip(row, side, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    note = f'<div style="color:{MUTED};margin:0 0 2px">{escape(caption)}</div>' if caption else ""
    return (
        f'<div style="color:{TEXT};overflow-x:auto;max-width:100%">{note}'
        f'<table style="border-collapse:collapse;margin:0;border:0;font-size:var(--jp-ui-font-size1, 13px)">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def facts(pairs: Iterable[tuple[str, Any]], title: str = "", state: str = "") -> str:
    """A titled list of name and value."""
    rows = "".join(
        f'<tr style="background:none"><td style="text-align:left;color:{MUTED};padding:2px 16px 2px 0;'
        f'vertical-align:top;white-space:nowrap">{escape(k)}</td>'
        f'<td style="text-align:left;padding:2px 0;overflow-wrap:anywhere">{cell(v)}</td></tr>'
        for k, v in pairs
        if v not in (None, "")
    )
    head = ""
    if title:
        mark = f'<span style="font-weight:400;margin-left:8px">{pill(state)}</span>' if state else ""
        head = f'<div style="font-weight:600;margin:2px 0 4px">{escape(title)}{mark}</div>'
    return (
        f'<div style="color:{TEXT}">{head}<table style="border-collapse:collapse;margin:0;border:0;'
        f'font-size:var(--jp-ui-font-size1, 13px)"><tbody>{rows}</tbody></table></div>'
    )


def text_facts(pairs: Iterable[tuple[str, Any]], title: str = "") -> str:
    """The same as text."""
    kept = [
        (clean(k), [clean(line) for line in (v.split("\n") if isinstance(v, Code) else [number(v)])])
        for k, v in pairs if v not in (None, "")
    ]
    width = max((len(k) for k, _ in kept), default=0)
    lines = [f"  {(k if not i else '').ljust(width)}  {v}" for k, vs in kept for i, v in enumerate(vs)]
    return "\n".join([clean(title), *lines] if title else lines)


def finite(steps: Sequence[Any], values: Sequence[Any]) -> list[tuple[float, float]]:
    """The points that can be drawn."""
    points = []
    for x, y in zip(steps, values, strict=False):
        if isinstance(x, (int, float)) and isinstance(y, (int, float)) and math.isfinite(x) and math.isfinite(y):
            points.append((float(x), float(y)))
    return points


def _share(value: float, low: float, high: float) -> float:
    """Where a value lies between two others, from 0 to 1; in the middle when they are equal."""
    # Halved first: the difference of two huge values of opposite sign must not overflow.
    span = high / 2 - low / 2
    return (value / 2 - low / 2) / span if span > 0 else 0.5


def curve(
    series: Mapping[str, tuple[Sequence[Any], Sequence[Any]]], title: str = "", width: int = 240, height: int = 96,
    marks: Sequence[Any] = (),
) -> str:
    """A small line chart as SVG: lowest and highest value and step on the axes, the last value in the title.

    ``marks``: steps at which a further attempt began, drawn as dashed lines.
    """
    drawn = {name: finite(*points) for name, points in series.items()}
    drawn = {name: points for name, points in drawn.items() if points}
    if not drawn:
        return ""
    xs = [x for points in drawn.values() for x, _ in points]
    ys = [y for points in drawn.values() for _, y in points]
    x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
    left, right, top, bottom = 48, 6, 6, 16

    def place(point: tuple[float, float]) -> str:
        across, up = _share(point[0], x0, x1), _share(point[1], y0, y1)
        return f"{left + across * (width - left - right):.1f},{height - bottom - up * (height - top - bottom):.1f}"

    shapes = []
    for mark, _ in finite(marks, [y0] * len(marks)):
        if x0 <= mark <= x1:
            at = place((mark, y0)).split(",")[0]
            shapes.append(
                f'<line x1="{at}" y1="{top}" x2="{at}" y2="{height - bottom}" '
                f'style="stroke:{WARN};stroke-dasharray:2 2"><title>a further attempt</title></line>'
            )
    for index, points in enumerate(drawn.values()):
        colour = SERIES[index % len(SERIES)]
        if len(points) == 1:
            x, y = place(points[0]).split(",")
            shapes.append(f'<circle cx="{x}" cy="{y}" r="2.5" style="fill:{colour}"/>')
        else:
            path = " ".join(place(p) for p in points)
            shapes.append(
                f'<polyline points="{path}" style="fill:none;stroke:{colour};stroke-width:1.5;stroke-linejoin:round"/>'
            )
    low, high = number(min(ys), 4), number(max(ys), 4)
    label = f"{title}: from {low} to {high} over steps {number(min(xs))} to {number(max(xs))}"
    small = f"font-size:9px;fill:{MUTED};font-family:var(--jp-ui-font-family, sans-serif)"
    return (
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(label)}" style="display:block;max-width:100%">'
        f'<line x1="{left}" y1="{height - bottom}" x2="{width - right}" y2="{height - bottom}" '
        f'style="stroke:{LINE}"/>{"".join(shapes)}'
        f'<text x="{left - 4}" y="{top + 6}" text-anchor="end" style="{small}">{escape(high)}</text>'
        f'<text x="{left - 4}" y="{height - bottom}" text-anchor="end" style="{small}">{escape(low)}</text>'
        f'<text x="{left}" y="{height - 4}" style="{small}">{escape(number(min(xs)))}</text>'
        f'<text x="{width - right}" y="{height - 4}" text-anchor="end" style="{small}">'
        f"{escape(number(max(xs)))}</text></svg>"
    )


def legend(names: Sequence[str]) -> Raw:
    """Names in the colours of :func:`curve`."""
    parts = (
        f'<span style="white-space:nowrap"><span aria-hidden="true" style="color:{SERIES[i % len(SERIES)]}">━</span> '
        f"{escape(short(name, 30))}</span>"
        for i, name in enumerate(names)
    )
    return Raw(" ".join(parts))


def bars(pairs: Sequence[tuple[str, float | None]], best: int | None = None, width: int = 460) -> str:
    """Horizontal bars as SVG, one a row, with their value; the best is filled in the brand colour."""
    drawable = [(name, v) for name, v in pairs if v is not None and math.isfinite(v)]
    if not drawable:
        return ""
    low = min(0.0, *(v for _, v in drawable)) if len(drawable) > 1 else min(0.0, drawable[0][1])
    high = max(0.0, *(v for _, v in drawable)) if len(drawable) > 1 else max(0.0, drawable[0][1])
    span = (high / 2 - low / 2) or 0.5
    label_width, value_width, row = 140, 110, 20
    room = width - label_width - value_width
    zero = label_width + room * (-low / 2) / span
    height = row * len(pairs)
    font = f"font-size:11px;fill:{TEXT};font-family:var(--jp-ui-font-family, sans-serif)"
    parts = []
    for index, (name, value) in enumerate(pairs):
        y = index * row
        parts.append(f'<text x="0" y="{y + 14}" style="{font}">{escape(short(name, 22))}</text>')
        if value is None or not math.isfinite(value):
            parts.append(f'<text x="{label_width}" y="{y + 14}" style="{font}">{escape(number(value) or "-")}</text>')
            continue
        end = label_width + room * (value / 2 - low / 2) / span
        x, w = min(zero, end), max(abs(end - zero), 1.0)
        fill = BRAND if index == best else IDLE
        opacity = 1 if index == best else 0.45
        parts.append(
            f'<rect x="{x:.1f}" y="{y + 4}" width="{w:.1f}" height="{row - 8}" rx="2" '
            f'style="fill:{fill};opacity:{opacity}"/>'
            f'<text x="{max(x + w, label_width) + 5:.1f}" y="{y + 14}" style="{font}">{escape(number(value))}'
            f"{' best' if index == best else ''}</text>"
        )
    return (
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" aria-label="comparison" '
        f'style="display:block;max-width:100%">{"".join(parts)}</svg>'
    )
