"""What all returned objects share: a one-line repr, a text and an HTML form, JSON, and no network in any of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from ..core.errors import MlopsError
from . import render

if TYPE_CHECKING:
    from .sync import Client

T = TypeVar("T", bound="Record")


class Record:
    """One thing as the control plane last told it; ``refresh()`` asks again."""

    def __init__(self, client: Client, data: dict[str, Any]) -> None:
        self._client = client
        self._data = data

    # -- what subclasses say -------------------------------------------------------------------------------------

    def _line(self) -> str:
        raise NotImplementedError

    def _facts(self) -> list[tuple[str, Any]]:
        raise NotImplementedError

    def _title(self) -> str:
        return ""

    def _state(self) -> str:
        return ""

    # -- forms ---------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The JSON of the REST API."""
        return self._data

    def text(self) -> str:
        """Several lines for a terminal."""
        head = " ".join(part for part in (self._title(), self._state()) if part)
        return render.text_facts(self._facts(), head)

    def html(self) -> str:
        """Self-contained HTML."""
        return render.facts(self._facts(), self._title(), self._state())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {render.clean(self._line())}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": self.text(), "text/html": self.html()}


class Failed(MlopsError):
    """What was waited for did not come about; ``lines`` are shown with it, such as the end of its log."""

    lines: Sequence[str] = ()

    def _render_traceback_(self) -> list[str]:
        head, *rest = super()._render_traceback_()
        return [head, *(f"  | {render.clean(line)}" for line in self.lines), *rest]


class Table(Generic[T]):
    """A list of records that looks like a table and converts to a DataFrame."""

    empty = "nothing here yet"
    title = ""
    #: Columns that a narrow terminal does without, the first of them first.
    spare: tuple[str, ...] = ()

    def __init__(self, items: list[T], note: str = "") -> None:
        self._items = items
        self.note = note

    def _columns(self) -> list[str]:
        raise NotImplementedError

    def _row(self, item: T, html: bool) -> list[Any]:
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        return iter(self._items)

    @overload
    def __getitem__(self, index: int | str) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Table[T]: ...
    def __getitem__(self, index: int | str | slice) -> T | Table[T]:
        if isinstance(index, slice):
            return type(self)(self._items[index])
        if isinstance(index, str):
            for item in self._items:
                if index in (getattr(item, "name", None), getattr(item, "id", None)):
                    return item
            raise KeyError(index)
        return self._items[index]

    def to_dict(self) -> list[dict[str, Any]]:
        """The JSON of the REST API."""
        return [item.to_dict() for item in self._items]

    def df(self) -> Any:
        """A pandas DataFrame, one row an item."""
        import pandas as pd

        return pd.DataFrame([self._flat(item) for item in self._items])

    to_pandas = df

    def _flat(self, item: T) -> dict[str, Any]:
        return dict(zip(self._columns(), self._row(item, html=False), strict=True))

    def text(self, width: int | None = None) -> str:
        """Aligned columns; with ``width`` some are left out as long as lines have more characters than that."""
        columns, rows = self._columns(), [self._row(item, html=False) for item in self._items]
        body = render.text_table(columns, rows, self.empty)
        for name in self.spare if width else ():
            if max(map(len, body.splitlines())) <= (width or 0):
                break
            at = columns.index(name)
            columns, rows = columns[:at] + columns[at + 1:], [row[:at] + row[at + 1:] for row in rows]
            body = render.text_table(columns, rows, self.empty)
        return f"{body}\n{render.clean(self.note)}" if self.note else body

    def html(self) -> str:
        """An HTML table."""
        rows = [self._row(item, html=True) for item in self._items]
        return render.table(self._columns(), rows, caption=self.note, empty=self.empty)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self._items)}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": self.text(), "text/html": self.html()}
