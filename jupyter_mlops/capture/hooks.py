"""IPython's side of capture: which cells run, which runs they open, and runs that a failed cell leaves open."""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
from typing import TYPE_CHECKING, Any

from . import cells as cells_
from .cells import Cell, CellLog

if TYPE_CHECKING:
    from .bundle import Surroundings
    from .keeper import Keeper

_installed: dict[int, Recorder] = {}


class Recorder:
    """Records the cells of a shell and the context of the runs that they open.

    Args:
        shell: an ``InteractiveShell``.
        ends_runs: whether runs that a failed cell leaves open are ended.
    """

    def __init__(self, shell: Any, ends_runs: bool) -> None:
        self.shell = shell
        self.ends_runs = ends_runs
        self.log = CellLog()
        self._keeper: Keeper | None = None
        self._ahead: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._mask_ahead, name="jupyter-mlops-mask", daemon=True).start()
        self._running: list[tuple[Any, Cell, list[str]]] = []
        history = list(getattr(getattr(shell, "history_manager", None), "input_hist_raw", []))
        self.log.earlier(enumerate(history[1:], 1))
        shell.events.register("pre_run_cell", self._before)
        shell.events.register("post_run_cell", self._after)
        from ..runtime import mlflow_plugin

        mlflow_plugin.listeners.append(self._heard)

    def remove(self) -> None:
        """Take the hooks off; what is not uploaded yet goes on in the background."""
        from ..runtime import mlflow_plugin

        for event, hook in (("pre_run_cell", self._before), ("post_run_cell", self._after)):
            with contextlib.suppress(ValueError):
                self.shell.events.unregister(event, hook)
        with contextlib.suppress(ValueError):
            mlflow_plugin.listeners.remove(self._heard)
        self._ahead.put(None)

    @property
    def keeper(self) -> Keeper:
        """What cares for the contexts of runs; made when the first one is wanted, since it imports much."""
        if self._keeper is None:
            from .keeper import Keeper

            self._keeper = Keeper(self.around, _client)
        return self._keeper

    def _heard(self, *told: Any) -> None:
        self.keeper.heard(*told)

    @property
    def notebook(self) -> str:
        """Path of the notebook as Jupyter or VS Code knows it, or empty."""
        return os.environ.get("JPY_SESSION_NAME") or str(self.shell.user_ns.get("__vsc_ipynb_file__") or "")

    def around(self, spec: dict[str, Any] | None = None) -> Surroundings:
        """The surroundings of the cell that runs."""
        from .bundle import Surroundings
        from .keeper import folder_of

        cell = self.log.last
        cell_id = cell.cell_id if cell is not None else ""
        return Surroundings(
            folder_of(self.notebook), self.notebook, cell_id, self.log, names=self.shell.user_ns, spec=spec
        )

    def _before(self, info: Any = None) -> None:
        if info is None or info.silent or not info.store_history:
            return
        # The shell has counted this cell already, or not yet, as its version goes; its history has it not yet.
        history = getattr(getattr(self.shell, "history_manager", None), "input_hist_raw", None)
        number = len(history) if history else self.shell.execution_count
        cell = self.log.begin(info.raw_cell or "", number, str(info.cell_id or ""))
        self._running.append((info, cell, active_runs() if self.ends_runs else []))

    def _after(self, result: Any = None) -> None:
        info = getattr(result, "info", None)
        if info is None or info.silent or not info.store_history:
            return
        error = result.error_before_exec or result.error_in_exec
        begun = [entry for entry in self._running if entry[0] is info]
        if begun:
            _, cell, open_before = begun[0]
            del self._running[self._running.index(begun[0]):]
            self.log.end(cell, error, result.execution_count)
            if error is not None and self.ends_runs:
                end_left_open(open_before, cell, error)
        elif self.log.last is not None and self.log.last.source == info.raw_cell:  # the cell that loaded us
            self.log.end(self.log.last, error, result.execution_count)
        if self._keeper is not None:
            self._keeper.cell_ended()
        if self.log.last is not None:
            # Its secrets are looked for now, beside the user's work, rather than when a job is submitted.
            self._ahead.put(self.log.last.source)

    def _mask_ahead(self) -> None:
        while (source := self._ahead.get()) is not None:
            with contextlib.suppress(Exception):
                cells_.masked(source)


def active_runs() -> list[str]:
    """Ids of MLflow's active runs of this thread, outermost first."""
    fluent = sys.modules.get("mlflow.tracking.fluent")
    stack = getattr(fluent, "_active_run_stack", None)
    try:
        return [run.info.run_id for run in stack.get()] if stack is not None else []
    except AttributeError:
        return []


def end_left_open(before: list[str], cell: Cell, error: BaseException) -> None:
    """End the runs that a failed cell has opened and not closed, innermost first; of our workspace only.

    A run opened by an earlier cell is left alone: cells that share a run are a normal style.
    """
    left = [run_id for run_id in active_runs() if run_id not in before]
    if not left:
        return
    import mlflow

    from ..runtime import locate, mlflow_http

    if not locate.is_ours(mlflow.get_tracking_uri()):
        return
    status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
    how = "was interrupted" if status == "KILLED" else f"failed with {type(error).__name__}"
    patience, mlflow_http.PATIENCE = mlflow_http.PATIENCE, 3.0
    try:
        while (active := active_runs()) and active[-1] in left:
            run_id = active[-1]
            try:
                mlflow.MlflowClient().set_tag(run_id, "mlops.reason", f"cell [{cell.number}] {how} and left it open")
            except Exception:  # the end matters more than its reason
                pass
            try:
                mlflow.end_run(status)
                told = f"is ended as {status}"
            except Exception as refused:
                told = f"could not be ended ({type(refused).__name__})"
            print(f"note: run {run_id[:8]} was left open by this cell and {told}; "
                  f"mlflow.start_run(run_id={run_id!r}) goes on with it")
    finally:
        mlflow_http.PATIENCE = patience


def _client() -> Any:
    from ..client.sync import Client
    from ..runtime import locate

    return Client(locate.place())


def install(shell: Any, ends_runs: bool = True) -> Recorder:
    """Record a shell's cells from now on, once; a second call may add that left runs are ended."""
    recorder = _installed.get(id(shell))
    if recorder is None:
        recorder = _installed[id(shell)] = Recorder(shell, ends_runs)
        threading.Thread(target=_warm, args=(recorder,), name="jupyter-mlops-lock", daemon=True).start()
    recorder.ends_runs |= ends_runs
    return recorder


def _warm(recorder: Recorder) -> None:
    """Read ahead what takes longest, so that the first submission does not wait for it."""
    from . import packages

    with contextlib.suppress(Exception):
        packages.lock()
        packages.machine()


def uninstall(shell: Any) -> None:
    """Stop recording."""
    recorder = _installed.pop(id(shell), None)
    if recorder is not None:
        recorder.remove()


def recorder_of(shell: Any) -> Recorder | None:
    """Who records a shell, if anybody."""
    return _installed.get(id(shell))


def active() -> bool:
    """Whether this process's shell is recorded, or can be."""
    return _shell() is not None


def _shell() -> Any:
    get = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return get() if get is not None else None


def run_tags() -> dict[str, str]:
    """Tags of a run that this kernel starts now; begins to record where nobody has asked for it before."""
    shell = _shell()
    if shell is None:
        return {}
    return (recorder_of(shell) or install(shell, ends_runs=False)).keeper.tags()
