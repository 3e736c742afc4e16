"""Whether a deployment answers as the notebook did: two JSON values compared, two lists of packages compared.

Numbers agree as ``numpy.allclose`` has it; NaN and null are one, since JSON knows no NaN; text, booleans and shapes
agree exactly.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Characters of a value that a message quotes.
_QUOTED = 60
#: Differing packages that a message names.
_NAMED = 4


@dataclass
class Comparison:
    """``message`` says in one line what differs first, empty when nothing does.

    ``rows``: how many rows were expected; None for an answer that is no list. ``max_difference``: the largest absolute
    difference of two numbers, of which both were finite.
    """

    equal: bool
    message: str = ""
    rows: int | None = None
    max_difference: float | None = None


def compare(expected: Any, answer: Any, rtol: float = 1e-5, atol: float = 1e-8) -> Comparison:
    """Compare what was expected with what came; both as JSON has them.

    Rows are counted from 0. Where either is the object ``{"predictions": …}`` alone, what is in it is compared.
    """
    look = _Look(rtol, atol)
    expected, answer = predictions(expected), predictions(answer)
    rows = len(expected) if isinstance(expected, list) else None
    if isinstance(expected, list) and isinstance(answer, list) and len(expected) != len(answer):
        message = f"{len(expected)} {_rows(len(expected))} expected, {len(answer)} came"
        return Comparison(False, message, rows)
    try:
        look.compare(expected, answer, ())
    except RecursionError:
        return Comparison(False, "the answers nest too deep to be compared", rows)
    if look.first is None:
        return Comparison(True, "", rows, look.largest)
    message = look.first
    if look.different > 1:
        message += f" ({look.different} of {look.compared} values differ)"
    return Comparison(False, message, rows, look.largest)


def predictions(body: Any) -> Any:
    """What is in ``{"predictions": …}``, or the body itself."""
    return body["predictions"] if isinstance(body, dict) and set(body) == {"predictions"} else body


class _Look:
    """One walk through both values side by side."""

    def __init__(self, rtol: float, atol: float) -> None:
        self.rtol, self.atol = rtol, atol
        self.first: str | None = None
        self.different = self.compared = 0
        self.largest: float | None = None

    def compare(self, expected: Any, answer: Any, path: tuple[Any, ...]) -> None:
        if isinstance(expected, list) and isinstance(answer, list):
            if len(expected) != len(answer):
                self._differ(path, f"{len(expected)} values expected, {len(answer)} came")
                return
            for index, (one, other) in enumerate(zip(expected, answer, strict=True)):
                self.compare(one, other, (*path, index))
        elif isinstance(expected, dict) and isinstance(answer, dict):
            self._objects(expected, answer, path)
        else:
            self.compared += 1
            if not self._same(expected, answer):
                self._differ(path, f"expected {_short(expected)}, got {_short(answer)}")

    def _objects(self, expected: dict[str, Any], answer: dict[str, Any], path: tuple[Any, ...]) -> None:
        missing = [key for key in expected if key not in answer]
        extra = [key for key in answer if key not in expected]
        if missing or extra:
            said = [f"without {_short(missing[0])}"] if missing else []
            said += [f"with {_short(extra[0])}, which was not expected"] if extra else []
            self._differ(path, f"the answer came {' and '.join(said)}")
        for key in expected:
            if key in answer:
                self.compare(expected[key], answer[key], (*path, key))

    def _same(self, expected: Any, answer: Any) -> bool:
        if _nothing(expected) or _nothing(answer):
            return _nothing(expected) and _nothing(answer)
        if not _number(expected) or not _number(answer):
            return type(expected) is type(answer) and expected == answer
        if expected == answer:  # infinities, and integers beyond the reach of floats
            self.largest = self.largest or 0.0
            return True
        try:
            difference = abs(float(expected) - float(answer))
        except OverflowError:
            return False
        if math.isfinite(difference):
            self.largest = max(self.largest or 0.0, difference)
        return math.isfinite(float(expected)) and difference <= self.atol + self.rtol * abs(float(expected))

    def _differ(self, path: tuple[Any, ...], what: str) -> None:
        self.different += 1
        if self.first is None:
            where = _where(path)
            self.first = f"{where}: {what}" if where else what


def _where(path: tuple[Any, ...]) -> str:
    """``row 3, column 'x'`` of ``(3, "x")``."""
    parts = []
    for depth, step in enumerate(path):
        if isinstance(step, str):
            parts.append(f"column {_short(step)}" if depth <= 1 else f"in it {_short(step)}")
        elif depth == 0:
            parts.append(f"row {step}")
        elif depth == 1:
            # Below a name come the rows of that column: {"column": [...]}.
            parts.append(f"row {step}" if isinstance(path[0], str) else f"column {step}")
        else:
            parts.append(f"in it {step}")
    return ", ".join(parts)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _nothing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object with {len(value)} fields"
    if _nothing(value):
        return "nothing (null)"
    text = repr(value)
    return text if len(text) <= _QUOTED else text[: _QUOTED - 1] + "…"


def _rows(count: int) -> str:
    return "row" if count == 1 else "rows"


# -- packages --------------------------------------------------------------------------------------------------------


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def differing(kernel: Mapping[str, str], deployment: Mapping[str, str]) -> list[dict[str, str]]:
    """``{"name", "kernel", "deployment"}`` of each package of the kernel that the deployment uses in another version.

    A scorer tells of what it has imported: of the others nothing is known, and nothing depends on them.
    """
    have = {_normal(name): str(version) for name, version in deployment.items()}
    found = []
    for name, version in sorted(kernel.items(), key=lambda item: _normal(item[0])):
        other = have.get(_normal(name))
        if other is not None and other != str(version):
            found.append({"name": name, "kernel": str(version), "deployment": other})
    return found


def packages_line(found: list[dict[str, str]]) -> str:
    """``packages differ: scikit-learn 1.5 in the notebook, 1.4 in the deployment``; empty when none differs."""
    if not found:
        return ""
    said = [f"{p['name']} {p['kernel']} in the notebook, {p['deployment']} in the deployment" for p in found[:_NAMED]]
    more = len(found) - _NAMED
    return "packages differ: " + "; ".join(said) + (f"; and {more} more" if more > 0 else "")
