"""Keeps as many scorers running as a deployment should have: heals, scales and wakes, inside the gateway.

Runs on the gateway's loop, with no control plane needed: an instance that died is started again within a second. What
blocks is done on threads. Each decision is in ``scale.json`` before anything is started or ended, so a gateway that is
killed in between is followed by one that goes on with it.

An instance that is to go is *going* first: the dispatcher gives it nothing more, and it is told to leave once it has
answered what it had.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from ..core.errors import MlopsError, NotFound
from ..runtime.processes import alive, clock, start_time
from .observation import Instance
from .scaling import Limits, Load, Past, decide, demand_of
from .scorers import Scorers

#: Seconds: between looks at processes, at files, and between pings.
TICK, LOOK_EVERY, PING_EVERY = 0.25, 1.0, 5.0
#: Seconds that pass at least between two looks, however often it is woken.
PACE = 0.02
#: Seconds in which what was sent to an instance has reached it.
SETTLE = 0.1
#: Seconds for which a deployment whose instances cannot be started is left alone.
PAUSE = 5.0

Key = tuple[str, str]
log = logging.getLogger(__name__)


class _Care:
    """What the scaler remembers of one deployment."""

    def __init__(self) -> None:
        self.past: Past | None = None
        self.since = self.decided_at = time.monotonic()
        self.look_at = self.ping_at = self.pause_until = 0.0
        self.busy: float | None = None
        self.woken = False
        self.running: list[tuple[int, str]] = []
        self.trouble = ""
        self.going: set[int] = set()
        self.task: asyncio.Task[None] | None = None
        self.leaving: dict[int, asyncio.Task[None]] = {}


class Scaler:
    """One per gateway.

    Args:
        driver: starts and ends scorers, and keeps how many shall run.

    Attributes:
        observe: to be set: the deployments that this gateway serves, with their load. Only these are cared for.
        in_flight: may be set: how many requests an instance has; it is awaited before the instance is told to leave.
        changed: may be set: called when ``going`` or ``wanted`` of a deployment have changed.
    """

    def __init__(self, driver: Scorers) -> None:
        self.driver = driver
        self.observe: Callable[[], dict[Key, Load]] = dict
        self.in_flight: Callable[[str, str, int], int] | None = None
        self.changed: Callable[[str, str], None] | None = None
        self._cares: dict[Key, _Care] = {}
        self._poke = asyncio.Event()

    # -- for the dispatcher ------------------------------------------------------------

    def wake(self, endpoint: str, deployment: str) -> None:
        """A request waits and no instance is there: start one now. Returns at once; may be called for each request."""
        care = self._cares.get((endpoint, deployment))
        if care is None or not care.woken:
            if care is not None:
                care.woken = True
            self._poke.set()

    def going(self, endpoint: str, deployment: str) -> set[int]:
        """Instances that must get nothing more."""
        care = self._cares.get((endpoint, deployment))
        return care.going if care else set()

    def wanted(self, endpoint: str, deployment: str) -> int | None:
        """How many instances there should be; None when that is not known yet."""
        care = self._cares.get((endpoint, deployment))
        return care.past.wanted if care and care.past else None

    def trouble(self, endpoint: str, deployment: str) -> str:
        """Why no instance will come up by itself; empty when one may."""
        care = self._cares.get((endpoint, deployment))
        return care.trouble if care else ""

    # -- the loop ------------------------------------------------------------------------

    async def run(self) -> None:
        """Care for the deployments until cancelled. Scorers go on; those that were told to leave do."""
        try:
            while True:
                try:
                    self._tick()
                except Exception:
                    log.exception("looking at the deployments failed")
                await asyncio.sleep(PACE)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TICK):
                        await self._poke.wait()
                self._poke.clear()
        finally:
            for care in self._cares.values():
                for task in (care.task, *care.leaving.values()):
                    if task is not None:
                        task.cancel()

    def _tick(self) -> None:
        loads = self.observe()
        now = time.monotonic()
        for key in [k for k in self._cares if k not in loads]:
            if not self._cares[key].leaving:
                del self._cares[key]
        for key, load in loads.items():
            care = self._cares.get(key)
            if care is None:
                care = self._cares[key] = _Care()
            elif care.task is not None and not care.task.done():
                continue
            # Files are read once a second; between, whether all that run still do.
            if care.woken or now >= care.look_at or not all(alive(*process) for process in care.running):
                care.task = asyncio.create_task(self._care(key, care, load))
                care.task.add_done_callback(partial(self._cared, care))

    def _cared(self, care: _Care, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            care.look_at = care.pause_until = time.monotonic() + PAUSE
            care.running = []
            log.error("caring for a deployment failed", exc_info=error)
        elif care.woken:
            self._poke.set()  # woken while this look was under way

    async def _care(self, key: Key, care: _Care, load: Load) -> None:
        """One look at one deployment, and what follows from it."""
        now = time.monotonic()
        care.look_at = now + LOOK_EVERY
        known = await _aside(self.driver.wanted, *key)
        if known is None:  # stopped, or not started yet
            care.woken, care.past, care.running, care.trouble = False, None, [], ""
            return
        if care.past is None:
            care.past, care.since = Past(known), now
        elif known != care.past.wanted:
            care.past = Past(known)  # `start` was told of another number
        await self._decide(key, care, care.past, load)
        if now < care.pause_until:
            return
        ping = now >= care.ping_at
        if ping:
            care.ping_at = now + PING_EVERY
        seen = await _aside(self.driver.instances, *key, ping=ping)
        try:
            if await self._heal(key, care, seen, Limits.of(load.settings)):
                # Something begins: look again with the next tick, and let nothing sleep before it has begun.
                care.look_at, care.since = now, time.monotonic()
        except NotFound:
            pass  # removed meanwhile
        except (MlopsError, OSError) as error:  # an interpreter that is gone, a disk that is full
            care.trouble = str(error)
            care.pause_until = time.monotonic() + PAUSE
            log.warning("%s/%s: %s", *key, error)
        care.running = [(s.pid, start_time(s.pid)) for s in seen if s.pid and s.number not in care.leaving]

    async def _decide(self, key: Key, care: _Care, past: Past, load: Load) -> None:
        limits = Limits.of(load.settings)
        now = time.monotonic()
        woken, care.woken = care.woken, False
        if woken:
            care.since = now
        passed = now - care.decided_at
        if limits.automatic and passed < limits.interval and not (woken and past.wanted == 0):
            return
        # An instance that is gone takes its seconds with it.
        busy = 0.0 if care.busy is None else max(0.0, load.busy_seconds - care.busy) / max(passed, 0.001)
        care.busy = load.busy_seconds
        care.decided_at = now
        idle = now - max(load.last_request_at, care.since)
        waiting = load.queued + load.in_flight + (1 if woken else 0)
        care.past = decided = decide(limits, demand_of(load, limits, busy), waiting, idle, past, now)
        if decided.wanted != past.wanted:
            log.info("%s/%s: %d instances instead of %d: %s", *key, decided.wanted, past.wanted, decided.reason)
            try:
                await _aside(self.driver.scale, *key, decided.wanted, decided.reason)
            except FileNotFoundError:
                pass  # removed meanwhile
            except OSError as error:
                care.past = past  # what is not noted is not done
                log.warning("%s/%s cannot be scaled: %s", *key, error)
            self._tell(key)

    async def _heal(self, key: Key, care: _Care, seen: list[Instance], limits: Limits) -> bool:
        """Have the wanted instances run, and no others. Returns whether some are not as they shall be."""
        wanted = care.past.wanted if care.past else 0
        served = any(s.phase == "ready" or s.restarts for s in seen)
        busy = replaced = False
        hopeless = []
        for state in seen:
            i = state.number
            if i in care.leaving:
                continue
            if i >= wanted:
                self._send_away(key, care, i, limits)
            elif state.phase == "failed" and state.hung:
                await _aside(self.driver.give_up, *key, i, state.reason)
            elif state.phase == "absent" or (state.phase == "failed" and served and _due(state)):
                if state.restarts or state.reason != "not started":
                    log.warning("%s/%s: instance %d is started again: %s", *key, i, state.reason)
                await _aside(self.driver.start_instance, *key, i)
            elif state.phase == "failed":
                hopeless.append(state)
                continue
            elif state.outdated and not replaced and all(
                s.phase == "ready" or s.outdated or s.number >= wanted for s in seen
            ):
                # One after the other: the next goes when the successor of this one is ready.
                replaced = True
                self._send_away(key, care, i, limits)
            elif state.phase == "ready" and not state.outdated:
                continue
            busy = True
        care.trouble = hopeless[0].reason if wanted and len(hopeless) == wanted else ""
        return busy

    def _send_away(self, key: Key, care: _Care, number: int, limits: Limits) -> None:
        care.going.add(number)
        self._tell(key)
        care.leaving[number] = task = asyncio.create_task(self._leave(key, care, number, limits))

        def gone(_: asyncio.Task[None]) -> None:
            care.leaving.pop(number, None)
            care.going.discard(number)
            self._tell(key)
            self._poke.set()

        task.add_done_callback(gone)

    async def _leave(self, key: Key, care: _Care, number: int, limits: Limits) -> None:
        """An instance gets nothing more, answers what it has, and is ended; what is wanted again is started again."""
        await asyncio.sleep(SETTLE)
        deadline = time.monotonic() + limits.timeout
        while self.in_flight is not None and self.in_flight(*key, number) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        try:
            await _aside(self.driver.stop_instance, *key, number, limits.timeout)
            if care.past and number < care.past.wanted:
                await _aside(self.driver.start_instance, *key, number)
        except NotFound:
            pass
        except (MlopsError, OSError) as error:
            care.pause_until = time.monotonic() + PAUSE
            log.warning("%s/%s: instance %d: %s", *key, number, error)

    def _tell(self, key: Key) -> None:
        if self.changed is not None:
            self.changed(*key)


def _due(state: Instance) -> bool:
    return state.retry_at is not None and clock() >= state.retry_at


async def _aside(function: Callable[..., Any], *args: Any, **more: Any) -> Any:
    """Call what blocks on a thread that nobody waits for at the end of the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if not future.done():
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

    def work() -> None:
        result, failure = None, None
        try:
            result = function(*args, **more)
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=work, name=f"scaler-{function.__name__}", daemon=True).start()
    return await future
