"""Checks a cell before it runs as a job: its syntax, IPython syntax, and names that are defined nowhere.

A job runs in a fresh process: a name that the cell reads, never binds and does not get from its notebook would fail
there, perhaps after minutes.
"""

from __future__ import annotations

import ast
import re
import types
import warnings
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from ..core import syntax
from ..core.errors import ParameterError
from .names import FreeName

#: ``%magic``, ``!command``, ``?help``, ``help?`` and ``x = %magic`` / ``x = !command``.
_IPYTHON_LINE = re.compile(
    r"^\s*(?:%{1,2}\s*[A-Za-z_]|!{1,2}(?!=)\s*\S|\?{1,2}\s*[\w%*])"
    r"|^\s*[\w.,\s\[\]]+=\s*(?:%\s*[A-Za-z_]|!(?!=))"
    r"|^\s*[\w.%*]+\?{1,2}\s*$"
)


class CellError(ParameterError):
    """The cell cannot run as a job."""

    code = "bad_cell"


def parse_cell(source: str, first_line: int = 1) -> ast.Module:
    """The cell's tree.

    Raises:
        CellError: a syntax error or IPython syntax, with its line.
    """
    if not source.strip():
        raise CellError("the cell is empty", "write the code of the job below the %%mlops line")
    if "\0" in source:
        raise CellError("the cell has a NUL character", "remove it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree: ast.Module = syntax.parse(source)
            compile(source, "<cell>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        return tree
    except SyntaxError as error:
        raise _syntax_error(error, source, first_line) from None
    except (RecursionError, MemoryError, ValueError) as error:
        raise CellError(f"the cell cannot be compiled: {error}", "split it into smaller parts") from None


def _syntax_error(error: SyntaxError, source: str, first_line: int) -> CellError:
    lines = source.splitlines()
    number = error.lineno or 1
    text = lines[number - 1] if 0 < number <= len(lines) else ""
    if _IPYTHON_LINE.search(text):
        return CellError(
            f"line {number + first_line - 1} of the cell is IPython syntax: {text.strip()[:80]}",
            "a job runs as plain Python: move it to another cell, or use subprocess, os or importlib",
        )
    message = error.msg or "invalid syntax"
    return CellError(f"syntax error in line {number + first_line - 1} of the cell: {message}", text.strip()[:120])


#: Names that IPython gives to a notebook and no job has.
SHELL_ONLY = frozenset({
    "display", "get_ipython", "In", "Out", "_", "__", "___", "_i", "_ii", "_iii", "_ih", "_oh", "_dh",
})


def refusal(missing: list[FreeName], names: Mapping[str, Any], first_line: int) -> CellError:
    """The error for names that a cell needs and cannot have."""
    there = [m for m in missing if m.name in names or m.name in SHELL_ONLY]
    absent = [m for m in missing if m not in there]
    if there:
        listed = _listed(there)
        one = len(there) == 1
        message = f"{listed} exist{'s' if one else ''} only in the notebook: load {'it' if one else 'them'} in the cell"
        if absent:
            message += f"; {_listed(absent)} {'is' if len(absent) == 1 else 'are'} not defined"
        detail = [{"name": m.name, "line": m.line + first_line - 1} for m in missing]
        return CellError(f"{message} (line {there[0].line + first_line - 1})", _advice(there, names), detail)
    detail = [{"name": m.name, "line": m.line + first_line - 1} for m in missing]
    close = get_close_matches(absent[0].name, [n for n in names if not n.startswith("_")], n=1)
    what = "it" if len(absent) == 1 else "them"
    return CellError(
        f"{_listed(absent)} {'is' if len(absent) == 1 else 'are'} not defined (line {absent[0].line + first_line - 1})",
        f"did you mean {close[0]}?" if close else f"import or define {what} in the cell or in the notebook", detail,
    )


def _listed(missing: list[FreeName]) -> str:
    shown = [f"`{m.name}`" for m in missing[:5]]
    if len(missing) > 5:
        shown.append(f"{len(missing) - 5} more")
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " and " + shown[-1]


def _advice(there: list[FreeName], names: Mapping[str, Any]) -> str:
    """What to add to the cell, from what the names stand for in the notebook."""
    lines = []
    for item in there[:4]:
        value = names.get(item.name)
        if item.name == "display":
            lines.append("from IPython.display import display")
        elif isinstance(value, types.ModuleType):
            module = value.__name__
            lines.append(f"import {module}" if module == item.name else f"import {module} as {item.name}")
        elif isinstance(value, type) or callable(value):
            module, name = getattr(value, "__module__", ""), getattr(value, "__name__", "")
            if module and module != "__main__" and name:
                as_name = "" if name == item.name else f" as {item.name}"
                lines.append(f"from {module} import {name}{as_name}")
    if lines:
        return "add to the cell: " + "; ".join(lines)
    return "the job is a fresh process: read the data, or compute it, in the cell"
