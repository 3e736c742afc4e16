"""Proof before traffic: a new deployment answers a sample in its own environment, as the notebook's model did."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import BackendTimeout, Unavailable
from ..proof import compare, differing, packages_line, predictions
from ..resources.deployment import PackageDifference, ProofSpec, ProofStatus

#: Seconds for which the gateway may not know the deployment yet, or be away.
PATIENCE = 15.0
#: Seconds between looks at a scorer that has not answered yet, and between tries.
_LOOK, _PAUSE = 0.5, 0.1
#: Characters of an error that are quoted.
_QUOTED = 500


class Asked(Protocol):
    """Sends a body to exactly one deployment: (status, body, headers)."""

    def __call__(
        self, endpoint: str, body: bytes, content_type: str, timeout: float, deployment: str
    ) -> Awaitable[tuple[int, bytes, dict[str, str]]]: ...


class ProofFailed(Exception):
    """It did not answer, or not as it should; the text is one line."""


@dataclass
class Subject:
    """What is to be proven.

    Attributes:
        sample: the proof that was asked for; None: none was.
        example: body of the model's own example, as MLflow keeps it; None: it has none.
        packages: what the deployment has, name → version.
        timeout: seconds in which a request must be answered.
        alive: one line when the scorer is not what it was when the proof began, else empty.
    """

    endpoint: str
    deployment: str
    sample: ProofSpec | None
    example: str | None
    packages: dict[str, str]
    timeout: float
    alive: Callable[[], Awaitable[str]]


async def prove(subject: Subject, ask: Asked) -> ProofStatus:
    """The outcome; ``passed`` is False when the deployment must not take traffic.

    Raises:
        Unavailable: the gateway does not let us ask; try again later.
    """
    sample = subject.sample
    begun = time.monotonic()
    if sample is None and subject.example is None:
        return ProofStatus(message="no sample was given, and the model has no example of its own")
    if sample is not None and sample.request is None:
        return ProofStatus(message="no proof was asked for")
    body = subject.example if sample is None else json.dumps(sample.request)
    packages = differing(sample.packages, subject.packages) if sample else []
    outcome = ProofStatus(packages=[PackageDifference(**p) for p in packages])
    beside = packages_line(packages)
    try:
        status, answer = await _answer(subject, (body or "").encode(), ask)
        if status == 400 and sample is None:
            # Examples are checked by nobody when they are logged; this one tells nothing about the model.
            outcome.message = f"the model's own example does not fit its signature: {_message(answer)}"
            return outcome
        _judge(outcome, sample, status, answer)
    except ProofFailed as failure:
        outcome.passed = False
        outcome.message = str(failure)
    outcome.message += f"; {beside}" if beside else ""
    outcome.took_ms = round((time.monotonic() - begun) * 1000, 1)
    return outcome


def _judge(outcome: ProofStatus, sample: ProofSpec | None, status: int, answer: bytes) -> None:
    if status == 424:
        raise ProofFailed(f"the model raised on the sample: {_message(answer).removeprefix('the model failed: ')}")
    if status != 200:
        raise ProofFailed(f"the sample was refused: {_message(answer)}")
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError):
        raise ProofFailed("its answer is not JSON") from None
    if sample is None or sample.expected is None:
        found = predictions(value)
        outcome.passed, outcome.kind = True, "answered"
        outcome.rows = len(found) if isinstance(found, list) else None
        outcome.message = "it answered " + ("the sample" if sample else "the model's own example")
        return
    outcome.kind = "equal"
    result = compare(sample.expected, value, sample.rtol, sample.atol)
    outcome.rows, outcome.max_difference = result.rows, result.max_difference
    if not result.equal:
        raise ProofFailed(f"its answer is not the notebook's: {result.message}")
    outcome.passed = True
    rows = "" if result.rows is None else f" to {result.rows} row{'' if result.rows == 1 else 's'}"
    outcome.message = f"its answer{rows} is the notebook's"


async def _answer(subject: Subject, body: bytes, ask: Asked) -> tuple[int, bytes]:
    """The answer to one request. Busy and starting are waited for; a scorer that ended is the sample's fault."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            status, answer, _ = await _while_alive(subject, ask(
                subject.endpoint, body, "application/json", subject.timeout + 5.0, subject.deployment
            ))
        except BackendTimeout:
            status, answer = 504, b""
        except Unavailable as e:
            if time.monotonic() > deadline:
                raise
            status, answer = 503, json.dumps({"message": e.message}).encode()
        if status == 504:
            raise ProofFailed(f"it did not answer the sample within {subject.timeout:g} s")
        # 404: the gateway has not taken it up yet.
        if status not in (404, 429, 502, 503):
            return status, answer
        gone = await subject.alive()
        if gone:
            raise ProofFailed(f"it ended while it answered the sample: {gone}")
        if time.monotonic() > deadline:
            raise Unavailable(f"the sample could not be sent: {_message(answer)}", "it is tried again")
        await asyncio.sleep(_PAUSE)


async def _while_alive(
    subject: Subject, asked: Awaitable[tuple[int, bytes, dict[str, str]]]
) -> tuple[int, bytes, dict[str, str]]:
    """What was asked for; not waited for any longer than the scorer lives, for the gateway holds on to a request."""
    task = asyncio.ensure_future(asked)
    try:
        while not (await asyncio.wait({task}, timeout=_LOOK))[0]:
            gone = await subject.alive()
            if gone and not task.done():
                raise ProofFailed(f"it ended while it answered the sample: {gone}")
        return await task
    finally:
        task.cancel()


def _message(answer: bytes) -> str:
    try:
        body: Any = json.loads(answer)
        text = str(body.get("message") or "no reason was given")
    except (ValueError, AttributeError, RecursionError):
        text = answer.decode("utf-8", "replace") or "no reason was given"
    return " ".join(text.split())[:_QUOTED]
