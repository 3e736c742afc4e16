"""Who changed what of an endpoint, and when."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import render


class History:
    """Changes of an endpoint, newest first."""

    def __init__(self, endpoint: str, items: list[dict[str, Any]]) -> None:
        self.endpoint = endpoint
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def to_dict(self) -> list[dict[str, Any]]:
        """The rows of the REST API."""
        return list(self.items)

    def df(self) -> Any:
        """A DataFrame, one row a change."""
        import pandas as pd

        return pd.DataFrame(self.items)

    def _rows(self) -> list[list[Any]]:
        return [
            [render.local_time(i.get("at")), i.get("by") or "", i.get("action") or "", _detail(i.get("detail") or {})]
            for i in self.items
        ]

    def text(self) -> str:
        """Aligned columns."""
        return render.text_table(["when", "by", "what", "detail"], self._rows(), "nothing was changed yet", width=120)

    def html(self) -> str:
        """A table."""
        return render.table(["when", "by", "what", "detail"], self._rows(), empty="nothing was changed yet")

    def __repr__(self) -> str:
        return f"<History of endpoint {render.clean(self.endpoint)}, {len(self.items)} changes>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": self.text(), "text/html": self.html()}


def _detail(detail: Mapping[str, Any]) -> str:
    """A change in words: what was, and what is; the rest as it comes."""
    before, after = detail.get("before"), detail.get("after")
    told = []
    if isinstance(before, Mapping) or isinstance(after, Mapping):
        told.append(f"{_shares(before)} → {_shares(after)}")
    hidden = ("before", "after", "op", *(("changed",) if told else ()))
    shown = {k: v for k, v in detail.items() if k not in hidden and v not in (None, "")}
    told += [f"{k} {_plain(v)}" for k, v in shown.items()]
    return ", ".join(told)


def _shares(value: Any) -> str:
    if not value:
        return "nothing"
    if isinstance(value, Mapping):
        return " ".join(f"{k} {_plain(v)}" for k, v in value.items() if v not in ({}, "", None)) or "nothing"
    return str(value)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{k}={v}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
