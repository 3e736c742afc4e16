"""The cells that a kernel has executed, in order and within bounds."""

from __future__ import annotations

import ast
import functools
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from . import literals

#: Cells and bytes of source that are kept; the oldest go first.
MOST_CELLS = 1000
MOST_BYTES = 2_000_000
#: Bytes of one cell's source.
MOST_SOURCE = 256_000


@dataclass(eq=False)
class Cell:
    """An executed cell.

    Attributes:
        number: execution count, 0 where none is known.
        cell_id: the front end's id of the cell, or empty.
        started: seconds since the epoch, None: before the recorder was there.
        seconds: how long it took, None while it runs or where nobody knows.
        status: ``running``, ``ok``, ``error``, ``interrupted`` or ``unknown``.
        error: name of the exception's class; its message may hold anything and is not kept.
    """

    source: str
    number: int = 0
    cell_id: str = ""
    started: float | None = None
    seconds: float | None = None
    status: str = "unknown"
    error: str = ""


class CellLog:
    """Executed cells, oldest first; may be used from several threads."""

    def __init__(self, most: int = MOST_CELLS, most_bytes: int = MOST_BYTES) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._cells: deque[Cell] = deque()
        self._bytes = 0
        self._lock = threading.Lock()
        self.dropped = 0
        #: Counts cells begun and ended, so that a reader knows whether anything is new.
        self.version = 0

    def begin(self, source: str, number: int = 0, cell_id: str = "", started: float | None = None) -> Cell:
        """A cell starts to run."""
        if len(source) > MOST_SOURCE:
            source = f"{source[:MOST_SOURCE]}\n# … {len(source) - MOST_SOURCE} characters of this cell are not kept"
        cell = Cell(source, number, cell_id, time.time() if started is None else started, None, "running")
        self._add(cell)
        return cell

    def end(self, cell: Cell, error: BaseException | None = None, number: int | None = None) -> None:
        """It has ended; ``number`` is its execution count if that became known."""
        cell.seconds = max(0.0, time.time() - (cell.started or time.time()))
        cell.status = "ok" if error is None else "interrupted" if isinstance(error, KeyboardInterrupt) else "error"
        cell.error = "" if error is None else type(error).__name__
        if number:
            cell.number = number
        with self._lock:
            self.version += 1

    def earlier(self, cells: Iterable[tuple[int, str]]) -> None:
        """Cells that ran before anybody recorded: pairs of execution count and source."""
        for number, source in cells:
            if source.strip():
                self._add(Cell(source[:MOST_SOURCE], number))

    def _add(self, cell: Cell) -> None:
        with self._lock:
            self._cells.append(cell)
            self._bytes += len(cell.source)
            self.version += 1
            while len(self._cells) > 1 and (len(self._cells) > self._most or self._bytes > self._most_bytes):
                self._bytes -= len(self._cells.popleft().source)
                self.dropped += 1

    def all(self) -> list[Cell]:
        """The cells that are kept."""
        with self._lock:
            return list(self._cells)

    @property
    def last(self) -> Cell | None:
        """The newest one."""
        with self._lock:
            return self._cells[-1] if self._cells else None


@functools.lru_cache(maxsize=2 * MOST_CELLS)
def masked(source: str) -> tuple[str, frozenset[str]]:
    """A cell's source by the rules for secrets, and the values that they found. Kept: cells are asked for again."""
    found: set[str] = set()
    return literals.mask_python(source, found), frozenset(found)


def record(cell: Cell, source: str) -> dict[str, Any]:
    """A cell as it is written, with its source made safe."""
    row = asdict(cell)
    row["source"] = source
    started = cell.started
    row["started"] = "" if started is None else datetime.fromtimestamp(started, UTC).isoformat(timespec="milliseconds")
    row["seconds"] = None if cell.seconds is None else round(cell.seconds, 4)
    return row


def as_text(rows: list[dict[str, Any]], dropped: int = 0) -> str:
    """Recorded cells as one text in the percent format, which editors and Jupytext read."""
    parts = [f"# {dropped} earlier cells are not kept\n"] if dropped else []
    for row in rows:
        status = row["status"] + (f" {row['error']}" if row["error"] else "")
        head = f"# %% [{row['number'] or ' '}] {status}" + (f" id={row['cell_id']}" if row["cell_id"] else "")
        parts.append(f"{head}\n{row['source'].rstrip()}\n")
    return "\n".join(parts)


#: Functions that seed something, by the last parts of their name.
_SEEDERS = ("manual_seed", "manual_seed_all", "seed_everything", "set_seed", "set_random_seed", "PRNGKey",
            "default_rng", "RandomState", "seed", "key")


def seeds(cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """Calls in executed cells that set a seed: ``{"call", "value", "cell"}``, with values that are constant."""
    found: list[dict[str, Any]] = []
    constants: dict[str, Any] = {}
    for cell in cells:
        if cell.status == "error" and cell.error == "SyntaxError":
            continue
        for kind, name, value in _seeding(cell.source):
            if kind == "constant":
                constants[name] = value
            else:
                shown = constants.get(value[1:]) if isinstance(value, str) and value.startswith("$") else value
                found.append({"call": name, "value": shown, "cell": cell.number})
    return found[-200:]


@functools.lru_cache(maxsize=2 * MOST_CELLS)
def _seeding(source: str) -> tuple[tuple[str, str, Any], ...]:
    lowered = source.lower()
    if "seed" not in lowered and "rng" not in lowered and "randomstate" not in lowered and "prngkey" not in lowered:
        return ()
    tree = literals.parse(source)
    if tree is None:
        return ()
    rows: list[tuple[int, str, str, Any]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and type(node.value.value) is int:
            rows += [(node.lineno, "constant", t.id, node.value.value) for t in node.targets if isinstance(t, ast.Name)]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func) if isinstance(node.func, (ast.Name, ast.Attribute)) else ""
            last = name.rpartition(".")[2]
            if last not in _SEEDERS or (last == "key" and not name.endswith("random.key")):
                continue
            argument = node.args[0] if node.args else node.keywords[0].value if node.keywords else None
            rows.append((node.lineno, "call", name[:120], _constant(argument)))
    return tuple(row[1:] for row in sorted(rows, key=lambda r: r[0]))


def _constant(node: ast.expr | None) -> Any:
    if node is None:
        return None
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return node.value
    return f"${node.id}" if isinstance(node, ast.Name) else None
