"""The verb apply: endpoints, deployments and computes as YAML files describe them."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from . import settings
from .context import Context

if TYPE_CHECKING:
    from ..client.apply import Applied


def apply(a: argparse.Namespace, context: Context) -> Applied:
    """Check all files, then make what they say, and say what was done."""
    from ..client import apply as applying
    from .display import Progress

    progress = Progress(context, ", ".join(a.files))
    done = applying.apply(
        context.client, a.files, settings.experiment(context.where).value, dry=a.dry_run, timeout=a.timeout,
        interpreter=sys.executable if context.face == "magic" else "",
        told=lambda name, phase, reason: progress.tell(phase, ": ".join(p for p in (name, reason) if p)),
    )
    progress.done()
    return done
