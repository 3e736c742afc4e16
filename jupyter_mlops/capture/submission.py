"""The context of a job: collected where it is submitted, uploaded, named in its spec."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from ..core.errors import MlopsError
from .bundle import Surroundings, collect

#: Seconds for git while somebody waits for the job to start.
PATIENCE = 2.0


def attach(spec: dict[str, Any], client: Any, shell: Any = None) -> str:
    """Put the context of a job into its spec.

    Args:
        spec: of the job; gets ``context``.
        client: the workspace's, which takes the upload.
        shell: the notebook's shell, or None in a terminal.

    Returns:
        why it could not be recorded, or empty. A job is never refused for that.
    """
    around = Surroundings(spec.get("cwd") or os.getcwd(), spec=spec)
    if shell is not None:
        from . import hooks

        recorder = hooks.recorder_of(shell)
        if recorder is not None:
            around = recorder.around(spec)
    try:
        data = collect(around, PATIENCE).packed()
        digest = hashlib.sha256(data).hexdigest()
        client.call(client.aio.put_blob(digest, data))
    except (MlopsError, OSError, ValueError, RuntimeError) as error:
        return f"what this job comes from is not recorded: {error}"
    spec["context"] = digest
    return ""
