"""Phases of a job: which changes are allowed, that nothing else writes them, and what attempts add up to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jupyter_mlops.compute.base import Observation
from jupyter_mlops.core.controllers.attempts import added, not_run, outcome, retry_pause, time_left
from jupyter_mlops.core.errors import Conflict
from jupyter_mlops.core.resources.job import ACTIVE, TERMINAL, TRANSITIONS, JobSpec, check_transition, parse_bytes

REPO = Path(__file__).resolve().parents[2]
PHASES = [*ACTIVE, *sorted(TERMINAL)]


def test_every_phase_is_listed_and_leads_to_an_end():
    assert set(TRANSITIONS) == set(PHASES) == {p for to in TRANSITIONS.values() for p in to}
    for phase in ACTIVE:
        seen, queue = {phase}, [phase]
        while queue:
            for following in TRANSITIONS[queue.pop()] - seen:
                seen.add(following)
                queue.append(following)
        assert seen >= TERMINAL, phase


@pytest.mark.parametrize("old", PHASES)
def test_other_changes_are_refused(old):
    for new in PHASES:
        if new == old or new in TRANSITIONS[old]:
            check_transition("a", old, new)
        else:
            with pytest.raises(Conflict, match=f"job 'a' is {old} and cannot become {new}"):
                check_transition("a", old, new)


def test_ends_are_final_but_for_a_resume():
    assert not TRANSITIONS["Completed"] and TRANSITIONS["Failed"] == TRANSITIONS["Canceled"] == {"Queued"}
    assert "Queued" in TRANSITIONS["Stopping"], "a cluster that takes a pod away tells it to stop, as we do"
    assert TRANSITIONS["Finalizing"] == TERMINAL, "what has ended does not run again before it is delivered"


def test_the_documentation_lists_the_same_changes():
    text = (REPO / "docs" / "jobs.md").read_text()
    rows = re.finditer(r"^\| `([A-Z]\w+)` \| (.*?) \|.*$", text, re.M)
    told = {row[1]: set(re.findall(r"`(\w+)`", row[2])) for row in rows}
    assert {k: set(v) for k, v in TRANSITIONS.items()} == told


def spec(**fields) -> JobSpec:
    return JobSpec.model_validate({"command": "true", **fields})


def failed(attempt: int, seconds: float = 10.0):
    return outcome(attempt, Observation("failed", "boom", attempt, 1, 0, 100.0, 100.0 + seconds, seconds))


def test_pauses_between_attempts_double_up_to_a_minute():
    many = spec(retry_settings={"max_retries": 9})
    pauses = [retry_pause({}, many, failed(n), "") for n in range(1, 12)]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60, None, None]
    assert retry_pause({"resumed_after": 10}, many, failed(11), "") == 1, "a resume counts anew"
    assert retry_pause({}, spec(), failed(1), "") is None


def test_what_is_not_tried_again():
    many = spec(retry_settings={"max_retries": 9})
    assert retry_pause({}, many, failed(1), "timeout") is None
    assert retry_pause({"stop_requested": True}, many, failed(1), "") is None
    assert retry_pause({}, many, not_run(1, "Canceled", "stopped"), "") is None
    assert retry_pause({}, many, not_run(1, "Completed", ""), "") is None
    assert retry_pause({}, many, failed(1), "memory") == retry_pause({}, many, failed(1), "reboot") == 1
    timed = spec(retry_settings={"max_retries": 9}, limits={"timeout": 10})
    assert retry_pause({}, timed, failed(1, 9.5), "") == 1 and retry_pause({}, timed, failed(1, 10.0), "") is None


def test_who_had_to_make_room_or_lost_a_machine_did_nothing_wrong():
    """Three kinds of ends, each with a number of its own; the job's own failures are tried as often as was asked."""
    def past(*causes):
        return {"attempts": [{"attempt": n, "cause": cause} for n, cause in enumerate(causes, 1)]}

    once = spec(retry_settings={"max_retries": 1})
    assert retry_pause(past(*["lost"] * 2), spec(), failed(3), "lost") == 4
    assert retry_pause(past(*["lost"] * 3), spec(), failed(4), "lost") is None
    assert retry_pause(past(*["preempted"] * 49), spec(), failed(50), "preempted") == 60
    assert retry_pause(past(*["preempted"] * 50), spec(), failed(51), "preempted") is None
    assert retry_pause(past(*["preempted"] * 9, "lost"), spec(), failed(11), "") is None, "its own failure is not"
    assert retry_pause(past(*["preempted"] * 9), once, failed(10), "") == 1
    assert retry_pause(past("", *["preempted"] * 9), once, failed(11), "") is None
    assert retry_pause(past(*["lost"] * 3), spec(queue_settings={"spot": True}), failed(4), "lost") == 8
    ended = outcome(1, Observation("failed", "boom", 1, cause="preempted"))
    assert ended.cause == "preempted" and outcome(1, Observation("failed", "boom", 1, cause="memory")).cause == ""


def test_time_is_counted_over_attempts_since_the_last_resume():
    timed = spec(limits={"timeout": 60})
    status = {"attempts": [failed(1, 20).model_dump(), failed(2, 15).model_dump()]}
    assert time_left(status, timed) == 25 and time_left(status, timed, failed(3, 30)) == 0
    assert time_left({**status, "resumed_after": 1}, timed) == 45
    assert time_left(status, spec()) is None


def test_an_attempt_is_kept_once_and_one_that_never_was_is_not():
    one = failed(1).model_dump()
    assert added([], one) == added([one], one) == [one]
    assert added([one], not_run(0, "Canceled", "").model_dump()) == added([one], None) == [one]


@pytest.mark.parametrize(("text", "count"), [
    ("", 0), ("0", 0), ("512", 512), ("4Gi", 4 << 30), ("1.5G", 1_500_000_000), ("2k", 2000), ("1Mi", 1 << 20)])
def test_sizes(text, count):
    assert parse_bytes(text) == count
    spec(resources={"memory": text})


@pytest.mark.parametrize("gpus", [1.5, -1])
def test_gpus_are_whole_or_a_fraction_of_one(gpus):
    with pytest.raises(ValueError, match=r"gpus|GPUs"):
        spec(resources={"gpus": gpus})
