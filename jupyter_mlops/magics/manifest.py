"""The manifest of a cell: what goes with it, how, and what was left out; values are in none of it."""

from __future__ import annotations

from typing import Any

from ..client import render


class Manifest:
    """What goes with a cell, one row a name.

    Attributes:
        items: the rows as they are in the job's spec.
        size: bytes of the payload.
        remarks: what was left out, and versions that differ.
        preview: whether the compute can run it; None when nobody was asked.
        compute: which one was asked.
    """

    preview: dict[str, Any] | None = None
    compute = "the compute"

    def __init__(self, items: list[dict[str, Any]], size: int = 0, remarks: list[str] | None = None) -> None:
        self.items = items
        self.size = size
        self.remarks = list(remarks or [])

    def __len__(self) -> int:
        return len(self.items)

    def to_dict(self) -> list[dict[str, Any]]:
        """The rows."""
        return list(self.items)

    def place(self) -> str:
        """Whether it fits, in one line."""
        found = self.preview
        if found is None:
            return ""
        if found["fits"] is False:
            return f"it would not start now on {self.compute}: {'; '.join(found['reasons'])}"
        price, count = found.get("price_per_hour"), found.get("instances") or 1
        cost = f"; {price:g} an hour for {count} {'instance' if count == 1 else 'instances'}" if price else ""
        after = f" ({'; '.join(found['reasons'])})" if found["reasons"] else ""
        volumes = "".join(f"; {line}" for line in found.get("volumes") or [])
        fits = f"it fits on {self.compute}" if found["fits"] else f"{self.compute} accepts it"
        # Most computes have the cluster's API alone, of which there is nothing to tell.
        route = str(found.get("route") or "")
        way = f"; large files go {route}" if route not in ("", "over the cluster's API") else ""
        return fits + after + cost + volumes + way

    def _title(self) -> str:
        if not self.items:
            return "no variables are sent: the code needs none of the notebook's"
        names = "1 name goes" if len(self.items) == 1 else f"{len(self.items)} names go"
        return f"{names} with the job, {render.size(self.size)}"

    _COLUMNS = ("name", "type", "size", "how", "sha256", "detail")

    def _rows(self, html: bool) -> list[list[Any]]:
        return [
            [render.code(i["name"]) if html else i["name"], i["type"], render.size(i["bytes"]) if i["bytes"] else "",
             i["how"], i["sha256"][:8], i["detail"]]
            for i in self.items
        ]

    def text(self) -> str:
        """Aligned columns and remarks."""
        table = [render.text_table(self._COLUMNS, self._rows(False), "")] if self.items else []
        place = [render.clean(self.place())] if self.preview is not None else []
        return "\n".join([*table, self._title(), *map(render.clean, self.remarks), *place])

    def html(self) -> str:
        """One line that unfolds to the table."""
        muted = f"color:{render.MUTED};overflow-wrap:anywhere"
        title = render.escape(self._title())
        if self.items:
            table = render.table(self._COLUMNS, self._rows(True))
            head = f'<details><summary style="{muted};cursor:pointer">{title}</summary>{table}</details>'
        else:
            head = f'<div style="{muted}">{title}</div>'
        lines = [*self.remarks, self.place()] if self.preview is not None else self.remarks
        remarks = "".join(f'<div style="{muted}">{render.escape(r)}</div>' for r in lines)
        return f'<div style="color:{render.TEXT}">{head}{remarks}</div>'

    def __repr__(self) -> str:
        return f"<Manifest {render.clean(self._title())}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": self.text(), "text/html": self.html()}


class Yaml:
    """A document to be read, and to be piped into other tools."""

    def __init__(self, data: Any) -> None:
        self._data = data

    def to_dict(self) -> Any:
        """The document."""
        return self._data

    def text(self) -> str:
        """As YAML."""
        import yaml

        return str(yaml.safe_dump(self._data, sort_keys=False)).rstrip()

    def html(self) -> str:
        """The same, for a notebook."""
        return f'<pre style="color:{render.TEXT}">{render.escape(self.text())}</pre>'

    def __repr__(self) -> str:
        return self.text()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": self.text(), "text/html": self.html()}
