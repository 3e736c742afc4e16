"""What a job's journal and spool may ask of MLflow: what its token may, and no more.

Both are files that the job's own code can write, so the runs and models that they name are looked at as those of a
request are.
"""

from __future__ import annotations

from typing import Any

from ..core.errors import Forbidden
from ..core.identity import Identity
from .proxy import JobScope
from .rules import check_locations, match
from .views import ENDED


class Permit:
    """The permission of one job, whose own run is ``run_id``."""

    def __init__(self, scope: JobScope, job: str, run_id: str) -> None:
        self._scope = scope
        self._identity = Identity(user="", role="job", job=job, run_id=run_id)

    async def run(self, run_id: str) -> None:
        """Raise Forbidden unless the run is the job's own or beneath it."""
        await self._scope.require_run(self._identity, run_id)

    async def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> None:
        """Raise unless the job's token may make this request to MLflow.

        Raises:
            Forbidden, ParameterError: it may not.
            Unavailable, BackendUnreachable, BackendTimeout: MLflow cannot say now whose the run is.
        """
        found = match(method, path)
        if body is not None:
            check_locations(found.rule, body)
            if (
                found.rule.operation == "POST runs/update" and body.get("status") in ENDED
                and body.get("run_id") == self._identity.run_id
            ):
                raise Forbidden("how the job's own run ends is told when the job has ended")
        await self._scope.check(self._identity, found, "", body)
