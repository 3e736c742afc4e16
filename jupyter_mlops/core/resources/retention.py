"""How long what ended jobs leave behind is kept: the setting ``retention``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import ParameterError

DEFAULT = "30d 20GB"
_DAYS = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?d(?:ays?)?")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([kMGT])i?B?", re.IGNORECASE)
_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@dataclass(frozen=True)
class Retention:
    """Bounds on the folders of ended jobs; None: no bound.

    Attributes:
        seconds: age, counted from the job's end.
        bytes: what all of them together may take on disk.
    """

    seconds: float | None
    bytes: int | None

    def __str__(self) -> str:
        days = f"{self.seconds / 86400:g} days" if self.seconds is not None else "any age"
        size = f"{self.bytes / 1e9:g} GB" if self.bytes is not None else "any size"
        return f"{days}, {size}"


def parse_retention(text: str) -> Retention:
    """``"30d 20GB"``, ``"7d"``, ``"500MB"`` or ``"off"``; a bound that is not named is none. Empty: the default.

    Raises:
        ParameterError: it is none of these.
    """
    text = text.strip() or DEFAULT
    if text.lower() in ("off", "none", "0"):
        return Retention(None, None)
    seconds: float | None = None
    size: int | None = None
    for part in re.split(r"[,;]\s*|\s+(?=[0-9])", text):
        days, amount = _DAYS.fullmatch(part.strip()), _SIZE.fullmatch(part.strip())
        if days and seconds is None:
            seconds = float(days[1]) * 86400
        elif amount and size is None:
            size = int(float(amount[1]) * _UNITS[amount[2].lower()])
        else:
            raise ParameterError(
                f"retention {text!r} is neither an age nor a size", "write  30d 20GB , or  off  to keep everything"
            )
    return Retention(seconds, size)
