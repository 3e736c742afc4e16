"""What the job controller needs of the record of runs (MLflow), without knowing it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol


class RunRecorder(Protocol):
    """Where runs are kept (MLflow). Facts of a run are those of ``run.json``, see docs/job-folder.md."""

    async def create_job_run(
        self, experiment: str, job: str, name: str, tags: dict[str, str], user: str, fresh: bool = False
    ) -> dict[str, Any]:
        """Facts of the job's run; the same run when asked again for the same job.

        Args:
            fresh: it was certainly never asked for before.
        """

    async def find_job_run(self, experiment: str, job: str) -> str:
        """Id of that run, when it was made and goes on; else empty."""

    async def artifact(self, uri: str) -> Path:
        """The local file or folder that ``runs:/…``, ``models:/…`` or ``mlflow-artifacts:/…`` names.

        Raises:
            NotFound, Refused: it is not there, or not in this workspace.
        """

    async def job_run(self, run_id: str) -> dict[str, Any]:
        """Facts of a run.

        Raises:
            NotFound: it does not exist, or is deleted.
        """

    async def reopen_run(self, run_id: str) -> None:
        """Have a run that has ended go on. Raises NotFound: it does not exist, or is deleted."""

    async def finish_run(
        self, run_id: str, status: str, reason: str, end_time_ms: int | None, incomplete: bool = False
    ) -> None:
        """Set the terminal status of a run; ``incomplete``: mark that metrics of it were lost.

        Raises:
            NotFound: it does not exist.
        """


class JournalShipper(Protocol):
    """Who delivers what ranks have journalled and spooled (to MLflow)."""

    def know(self, job: str, run_id: str, folder: Path) -> None:
        """Whose journal lies where; may be repeated."""

    def watch(self, job: str, run_id: str, folder: Path) -> None:
        """Deliver what this job logs from now on; it runs, or is about to. May be repeated."""

    async def drain(self, job: str) -> bool:
        """No rank runs any more: whether all is delivered. Waits for it for a second or so, no longer."""

    def status(self, job: str) -> dict[str, Any]:
        """``delivery`` of the job's status."""

    def forget(self, job: str) -> None:
        """The job has ended, or is gone."""
