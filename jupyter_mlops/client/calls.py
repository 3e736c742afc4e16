"""A cell that calls an endpoint: it stands alone, holds no secret, and sends rows that the model has answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Most rows and characters of data that are written into a cell; larger samples are sent by their name.
MOST_ROWS, MOST_TEXT = 2, 1200


def cell(endpoint: str, request: Mapping[str, Any] | None) -> str:
    """Source of a cell that runs unedited in any kernel that has this package.

    Args:
        request: the body that the deployment was proven with; its first rows are sent.
    """
    lines = ["%load_ext jupyter_mlops"]
    rows = first_rows(request or {})
    text = "" if rows is None else _written(rows)
    if not text:
        return "\n".join([*lines, f"%mlops invoke {endpoint} --example"])
    return "\n".join([*lines, f"rows = {text}", f"%mlops invoke {endpoint} rows"])


def first_rows(request: Mapping[str, Any]) -> Any:
    """The first rows of a request as ``%mlops invoke`` takes them, or None where there are none to be cut out."""
    split = request.get("dataframe_split")
    if isinstance(split, Mapping):
        columns = split.get("columns") or []
        return [dict(zip(columns, row, strict=False)) for row in (split.get("data") or [])[:MOST_ROWS]]
    for form in ("dataframe_records", "instances", "inputs"):
        rows = request.get(form)
        if isinstance(rows, list):
            return rows[:MOST_ROWS]
    return None


def _written(rows: Any) -> str:
    """Rows as Python, one a line; empty when they are too long to be read."""
    parts = [repr(row) for row in rows]
    if not parts or sum(map(len, parts)) > MOST_TEXT:
        parts = parts[:1]
    if not parts or len(parts[0]) > MOST_TEXT:
        return ""
    return "[\n" + "".join(f"    {part},\n" for part in parts) + "]"
