"""Shadow traffic: copies of requests to a deployment whose answers are compared and counted, never returned."""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import TYPE_CHECKING

from ..core.errors import MlopsError
from ..core.proof import compare
from .dispatch import MIRROR_QUEUE, Pending

if TYPE_CHECKING:
    from .gateway import Gateway
    from .http import Request
    from .routes import Deployment, Endpoint

#: Bytes of both answers from which on they are compared on a thread.
THREAD_FROM = 64 * 1024


def same(expected: bytes, answer: bytes) -> bool:
    """Whether two answers say the same, numbers but for rounding."""
    if expected == answer:
        return True
    try:
        return compare(json.loads(expected), json.loads(answer)).equal
    except (ValueError, RecursionError):
        return False


def send(gateway: Gateway, request: Request, endpoint: Endpoint, answered: Deployment, score: bytes,
         answer: bytes) -> None:
    """Give the mirror a copy of an answered request, if it is its turn; it is left out when the mirror is behind."""
    assert endpoint.mirror is not None
    deployment, share = endpoint.mirror
    if deployment is answered or random.random() >= share:
        return
    stats = deployment.dispatcher.stats
    if deployment.dispatcher.queued >= MIRROR_QUEUE or not deployment.dispatcher.ready:
        stats.dropped += 1
        return
    loop = asyncio.get_running_loop()

    def done(found: bytes | None, error: MlopsError | None) -> None:
        if found is None:
            stats.failed += 1
        elif len(found) + len(answer) > THREAD_FROM:
            future = loop.run_in_executor(None, same, answer, found)
            future.add_done_callback(lambda f: count(not f.cancelled() and f.result()))
        else:
            count(same(answer, found))

    def count(equal: bool) -> None:
        stats.compared += 1
        stats.different += not equal

    try:
        if deployment.signature.document != answered.signature.document or deployment.script != answered.script:
            score = gateway.canonical(request, deployment, deployment.fast)
        deployment.dispatcher.submit(Pending(score, done, time.monotonic()))
    except MlopsError:
        stats.failed += 1
