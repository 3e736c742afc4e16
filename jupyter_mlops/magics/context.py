"""What a command may use of its surroundings: the notebook's variables, a client, a way to speak and to ask."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..core.errors import NotFound, ParameterError
from ..runtime import locate
from . import settings

if TYPE_CHECKING:
    from ..client.job import Job
    from ..client.run import Run
    from ..client.sync import Client

_clients: dict[tuple[int, str, str], Any] = {}
_told: set[str] = set()


@dataclass
class Context:
    """Surroundings of one command.

    Attributes:
        face: ``magic`` or ``cli``.
        names: the notebook's variables.
        shell: the IPython shell, or None.
        cell: body of a cell magic, or None.
        silent: the result will not be shown.
    """

    face: str = "cli"
    names: dict[str, Any] = field(default_factory=dict)
    shell: Any = None
    cell: str | None = None
    silent: bool = False
    json: bool = False
    where: locate.Place = field(default_factory=locate.place)

    @property
    def client(self) -> Client:
        """The client of this process for the workspace."""
        key = (os.getpid(), self.where.home, self.where.name)
        if key not in _clients:
            from ..client.sync import Client

            _clients[key] = Client(self.where)
        return _clients[key]

    def say(self, text: str) -> None:
        """Progress and remarks, beside the result."""
        if not self.silent:
            print(text, file=sys.stderr if self.face == "cli" else sys.stdout, flush=True)

    def say_once(self, text: str) -> None:
        """The same, once per process."""
        if text and text not in _told:
            _told.add(text)
            self.say(text)

    @property
    def interactive(self) -> bool:
        """Whether somebody is there to be asked."""
        kernel = getattr(self.shell, "kernel", None)
        if kernel is not None:
            return bool(getattr(kernel, "_allow_stdin", False))
        return sys.stdin is not None and sys.stdin.isatty()

    def confirm(self, question: str, yes: bool) -> None:
        """Go on only if the user agrees.

        Raises:
            ParameterError: nobody can be asked and ``--yes`` was not given, or the answer was no.
        """
        if yes:
            return
        if not self.interactive:
            raise ParameterError(f"not confirmed, and nobody is here to be asked: {question}", "add --yes")
        try:
            answer = input(f"{question} [y/N] ")
        except EOFError:
            answer = ""
        if answer.strip().lower() not in ("y", "yes"):
            raise ParameterError("nothing was changed", "answer y to go on, or add --yes")

    # -- references ----------------------------------------------------------------------------------------------

    def run(self, reference: str) -> Run:
        """A run by variable, id, first letters of the id, name, or name of its job."""
        from ..client.job import Job
        from ..client.run import Run

        value = self.names.get(reference) if reference.isidentifier() else None
        if isinstance(value, Run):
            return value.refresh()
        if isinstance(value, Job):
            return self.client.run(value.run_id)
        run_id = getattr(getattr(value, "info", None), "run_id", None)
        if isinstance(run_id, str):  # MLflow's own Run, or an active one
            return self.client.run(run_id)
        if isinstance(value, str) and len(value) == 32:
            return self.client.run(value)
        return self.client.run(reference)

    def job(self, reference: str) -> Job:
        """A job by variable or name."""
        from ..client.job import Job

        value = self.names.get(reference) if reference.isidentifier() else None
        if isinstance(value, Job):
            return value.refresh()
        try:
            return self.client.job(value if isinstance(value, str) else reference)
        except (NotFound, ParameterError) as error:
            from .parser import nearest

            known = [j.name for j in self.client.jobs()]
            close = nearest(reference, known)
            hint = f"did you mean {close}?" if close else "see: " + self.command("jobs")
            raise NotFound(f"there is no job {reference!r}", hint) from error

    def command(self, text: str) -> str:
        """How a command is written on this face."""
        return f"%mlops {text}" if self.face == "magic" else f"jupyter mlops {text}"

    @property
    def experiment(self) -> str:
        """The experiment of new runs and jobs."""
        return settings.experiment(self.where).value

    @property
    def notebook(self) -> str:
        """Path of the notebook as Jupyter or VS Code knows it, or empty."""
        return os.environ.get("JPY_SESSION_NAME") or str(self.names.get("__vsc_ipynb_file__") or "")

    @property
    def cell_id(self) -> str:
        """Id of the running cell, where the front end tells it."""
        get_parent = getattr(self.shell, "get_parent", None)
        if get_parent is None:
            return ""
        try:
            return str((get_parent().get("metadata") or {}).get("cellId") or "")
        except Exception:
            return ""

    def nearby(self) -> None:
        """Name stores of earlier work in this folder, once."""
        self.say_once(settings.nearby_remark())
