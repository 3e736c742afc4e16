"""What ``status``, ``config`` and ``doctor`` return."""

from __future__ import annotations

from typing import Any

from . import render


class Report:
    """A titled list of facts, tables and remarks with a text, an HTML and a JSON form."""

    def __init__(self, data: Any, ok: bool = True) -> None:
        self._data = data
        self.ok = ok
        self._parts: list[tuple[str, str]] = []

    def facts(self, pairs: list[tuple[str, Any]], title: str = "", state: str = "") -> Report:
        """Add names and values."""
        head = " ".join(p for p in (title, state) if p)
        self._parts.append((render.text_facts(pairs, head), render.facts(pairs, title, state)))
        return self

    def table(self, columns: list[str], rows: list[list[Any]], title: str = "", state: int | None = None) -> Report:
        """Add a table; ``state`` is the index of a column to be shown as a state."""
        if rows:
            html = [[render.pill(str(v)) if i == state else v for i, v in enumerate(row)] for row in rows]
            text = render.text_table(columns, rows, width=160)
            text = f"{render.clean(title)}\n{text}" if title else text
            self._parts.append((text, render.table(columns, html, caption=title)))
        return self

    def note(self, text: str) -> Report:
        """Add a remark."""
        if text:
            self._parts.append(
                (render.clean(text), f'<div style="color:{render.MUTED};max-width:80ch">{render.escape(text)}</div>')
            )
        return self

    def to_dict(self) -> Any:
        """The JSON form."""
        return self._data

    def __getitem__(self, key: str) -> Any:
        return self._data[key]

    def text(self) -> str:
        """For a terminal."""
        return "\n\n".join(text for text, _ in self._parts)

    def html(self) -> str:
        """Self-contained HTML."""
        inner = "".join(html for _, html in self._parts)
        return f'<div style="display:grid;gap:10px;color:{render.TEXT}">{inner}</div>'

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'ok' if self.ok else 'not ok'}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": self.text(), "text/html": self.html()}
