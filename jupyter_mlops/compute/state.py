"""What the state file of an attempt says, for all drivers whose supervisors write one."""

from __future__ import annotations

from typing import Any

from ..runtime.jobfolder import TERMINAL
from .base import Observation, RankObservation

#: Most ranks that are told of one attempt.
_RANKS = 4096


def observation(attempt: int, state: dict[str, Any]) -> Observation:
    """What a state file says. The job's own code can write there too: nonsense is left out, and stops nobody."""
    ended = state["phase"] in TERMINAL
    ranks = state.get("ranks")
    return Observation(
        phase=state["phase"], reason=str(state.get("reason") or "")[:2000], attempt=attempt,
        exit_code=_int(state.get("exit_code")), failed_rank=_int(state.get("failed_rank")),
        started_at=_time(state.get("started_at")), ended_at=_time(state.get("ended_at")),
        seconds=_time(state.get("seconds")) or 0.0, cause=_word(state.get("cause")),
        traceback=_lines(state.get("traceback")), incomplete=state.get("incomplete") is True,
        ranks=[
            RankObservation(
                rank=rank["rank"], pid=_int(rank.get("pid")), exit_code=_int(rank.get("exit_code")),
                running=not ended and rank.get("exit_code") is None,
            )
            for rank in (ranks if isinstance(ranks, list) else [])[:_RANKS]
            if isinstance(rank, dict) and _int(rank.get("rank")) is not None
        ],
    )


def _int(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 31 else None


def _time(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 <= value < 1 << 33 else None


def _word(value: Any) -> str:
    return value if isinstance(value, str) and value.isalpha() and len(value) < 20 else ""


def _lines(value: Any) -> list[str]:
    return [line for line in value if isinstance(line, str)][-100:] if isinstance(value, list) else []
