"""Amounts as Kubernetes writes them."""

from __future__ import annotations

import re

_QUANTITY = re.compile(r"^([+-]?[0-9.]+)(m|u|n|[kMGTPE]i?|Ki|[eE][+-]?[0-9]+)?$")
_UNITS = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
          "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60}


def count_of(text: str) -> float:
    """The number that a quantity stands for; 0 for what is none.

    >>> count_of("250m"), count_of("4Gi"), count_of("8")
    (0.25, 4294967296.0, 8.0)
    """
    match = _QUANTITY.match(str(text).strip())
    if match is None:
        return 0.0
    unit = match[2] or ""
    try:
        if unit[:1] in "eE" and len(unit) > 1 and unit not in _UNITS:
            return float(match[1] + unit)
        return float(match[1]) * _UNITS[unit]
    except ValueError:
        return 0.0
