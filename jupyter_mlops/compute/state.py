"""What the state file of an attempt says, for all drivers whose supervisors write one."""

from __future__ import annotations

import re
from typing import Any

from ..runtime.jobfolder import TERMINAL
from .base import Observation, RankObservation

#: Most ranks that are told of one attempt, and the highest number of one.
_RANKS, _HIGHEST = 4096, 1_000_000
#: What commands a terminal, which may be where it is read.
_CONTROLS = re.compile(r"\x1b\[[0-9;:?]*[ -/]*[@-~]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def observation(attempt: int, state: dict[str, Any]) -> Observation:
    """What a state file says. The job's own code can write there too: nonsense is left out, and stops nobody."""
    ended = state["phase"] in TERMINAL
    ranks = state.get("ranks")
    return Observation(
        phase=state["phase"], reason=text(state.get("reason") or "", 2000), attempt=attempt,
        exit_code=_int(state.get("exit_code")), failed_rank=_rank(state.get("failed_rank")),
        started_at=seconds(state.get("started_at")), ended_at=seconds(state.get("ended_at")),
        seconds=seconds(state.get("seconds")) or 0.0, cause=_word(state.get("cause")),
        traceback=_lines(state.get("traceback")), incomplete=state.get("incomplete") is True,
        ranks=[
            RankObservation(
                rank=rank["rank"], pid=_int(rank.get("pid")), exit_code=_int(rank.get("exit_code")),
                running=not ended and rank.get("exit_code") is None,
            )
            for rank in (ranks if isinstance(ranks, list) else [])[:_RANKS]
            if isinstance(rank, dict) and _rank(rank.get("rank")) is not None
        ],
    )


def text(value: Any, most: int) -> str:
    """Text that can be stored, sent and shown: Python's has halves of characters too, as in names that are no UTF-8."""
    return _CONTROLS.sub("", str(value)[:most]).encode("utf-8", "replace").decode()


def line(value: Any, most: int) -> str:
    """The same on one line."""
    return text(" ".join(str(value).split()), most)


def seconds(value: Any) -> float | None:
    """A time, or how long something took; None for what is neither."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and 0 <= value < 1 << 33 else None


def _rank(value: Any) -> int | None:
    return value if _int(value) is not None and 0 <= value <= _HIGHEST else None


def _int(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 31 else None


def _word(value: Any) -> str:
    return value if isinstance(value, str) and value.isalpha() and len(value) < 20 else ""


def _lines(value: Any) -> list[str]:
    return [text(one, 2000) for one in value if isinstance(one, str)][-100:] if isinstance(value, list) else []
