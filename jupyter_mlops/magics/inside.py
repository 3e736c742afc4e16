"""The verbs that look inside a rank: shell and port-forward."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from ..client.render import clean
from ..client.transport import Transport
from ..core.errors import Conflict, ParameterError, Refused
from .context import Context


class Exit:
    """How a shell ended: its code is the command's own."""

    def __init__(self, code: int) -> None:
        self.terminal_code = code


def shell(a: argparse.Namespace, context: Context) -> Any:
    """A shell beside a rank: on this terminal, or in one that JupyterLab opens."""
    job = context.job(a.name)
    if not 0 <= a.rank < job.processes:
        raise ParameterError(f"job {job.name} has no rank {a.rank}", f"its ranks are 0 to {job.processes - 1}")
    if job.status in ("Completed", "Failed", "Canceled"):
        raise Conflict(f"job {job.name} has ended ({job.phase}): nothing of it runs",
                       f"its log: %mlops logs {job.name}")
    if context.face == "magic":
        from .opener import Opener

        return Opener(job.name, a.rank, context.where.name)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise Refused("a shell needs a terminal", "run it in one, without pipes")
    from ..client.inside import shell as connect

    context.say(f"Rank {a.rank} of job {clean(job.name)}; exit or Ctrl-D ends the shell, the job goes on.")
    return Exit(_here(context, lambda transport: connect(transport, job.name, a.rank)))


def port_forward(a: argparse.Namespace, context: Context) -> None:
    """Hold a port open until interrupted."""
    job = context.job(a.name)
    there, here = a.ports
    if not 0 <= a.rank < job.processes:
        raise ParameterError(f"job {job.name} has no rank {a.rank}", f"its ranks are 0 to {job.processes - 1}")
    if job.spec.get("compute", "local") == "local":
        context.say(f"Job {clean(job.name)} runs on this machine: its port is at 127.0.0.1:{there} already.")
        return
    if job.status != "Running":
        raise Conflict(f"job {job.name} does not run ({job.phase})", f"see: %mlops jobs {job.name}")
    if context.face == "magic":
        raise Refused("a notebook cell would wait for as long as the port is open",
                      f"in a terminal: jupyter mlops port-forward {job.name} {there}")
    from ..client.inside import forward

    def ready(port: int) -> None:
        context.say(f"127.0.0.1:{port} is port {there} of rank {a.rank} of job {clean(job.name)}; Ctrl-C ends it.")

    def trouble(what: str) -> None:
        context.say(f"A connection failed: {clean(what)}")

    _here(context, lambda transport: forward(transport, job.name, a.rank, there, here, ready, trouble))


def _here(context: Context, work: Callable[[Transport], Awaitable[Any]]) -> Any:
    """Run it in this thread, which alone hears of signals of the terminal."""

    async def run() -> Any:
        transport = Transport(context.where)
        try:
            return await work(transport)
        finally:
            await transport.close()

    return asyncio.run(run())
