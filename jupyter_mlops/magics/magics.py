"""``%mlops`` and ``%%mlops``: the notebook face of the commands."""

from __future__ import annotations

import contextlib
import re
import threading
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import (
    Magics,
    line_cell_magic,
    magics_class,
    needs_local_scope,
    no_var_expand,
)

from ..capture import hooks
from ..core.errors import ParameterError
from ..runtime import locate
from . import parser, settings
from .expand import expand

_HELP = re.compile(r"^(\s*)%{1,2}mlops(?:\s+([a-z]+))?\s*\?{1,2}\s*$")


@magics_class
class MlopsMagics(Magics):
    """Registered by ``%load_ext jupyter_mlops``."""

    shell: InteractiveShell

    @no_var_expand
    @needs_local_scope
    @line_cell_magic
    def mlops(self, line: str, cell: str | None = None, local_ns: dict[str, Any] | None = None) -> Any:
        from .context import Context

        # IPython's own test of this reads the line as Python, and fails where it is none.
        silent = line.rstrip().endswith(";")
        if silent:
            line = line.rstrip().removesuffix(";")
        names = self.shell.user_ns if local_ns is None else {**self.shell.user_ns, **local_ns}
        try:
            # What is Python, such as what `invoke` scores, has its own meaning for braces.
            words = parser.split(line, lambda text: expand(text, names))
            arguments = parser.parse(words, "magic")
        except parser.HelpRequested as help_:
            print(help_.text)
            return None
        if cell is not None and not parser.VERBS[arguments.verb].cell:
            raise ParameterError(
                f"%%mlops {arguments.verb} takes no cell", f"write it with one %: %mlops {arguments.verb}"
            )
        from . import commands

        context = Context("magic", names, self.shell, cell, silent)
        result = commands.run(arguments, context)
        if arguments.out:
            self.shell.user_ns[arguments.out] = result
        completion = _loaded.get(id(self.shell))
        if completion is not None:
            completion.names.refresh()
        return None if silent else result


MlopsMagics.mlops.__doc__ = parser.overview("magic")


def help_lines(lines: list[str]) -> list[str]:
    """``%mlops train?`` asks for the help of a verb; IPython would look for an object ``train``."""
    filled = [i for i, line in enumerate(lines) if line.strip()]
    if not filled or (lines[filled[0]].lstrip().startswith("%%") and len(filled) > 1):
        return lines
    last = filled[-1]
    match = _HELP.match(lines[last])
    if match is None:
        return lines
    end = "\n" if lines[last].endswith("\n") else ""
    return [*lines[:last], f"{match.group(1)}%mlops help {match.group(2) or ''}".rstrip() + end, *lines[last + 1:]]


class Loaded:
    """What loading changed in a shell, to be undone by unloading."""

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        where = locate.place()
        from .completion import Names, make_matcher

        self.environment = settings.enter(where)
        self.names = Names(where, shell.user_ns)
        self._matcher = make_matcher(self.names)
        shell.register_magics(MlopsMagics)
        if getattr(shell, "Completer", None) is not None:
            shell.Completer.custom_matchers.append(self._matcher)
        shell.input_transformers_cleanup.append(help_lines)
        hooks.install(shell)
        threading.Thread(target=self._warm, args=(where,), name="jupyter-mlops-warm", daemon=True).start()

    def _warm(self, where: locate.Place) -> None:
        """Start the control plane ahead of its first use; who needs it then is told what is wrong."""
        try:
            locate.connect(where)
        except (locate.LocateError, OSError):
            return
        self.names.refresh()

    def undo(self) -> None:
        """Remove magics, completer, hook and variables."""
        for kind in ("line", "cell"):
            self._shell.magics_manager.magics[kind].pop("mlops", None)
        self._shell.magics_manager.registry.pop("MlopsMagics", None)
        with contextlib.suppress(ValueError, AttributeError):
            self._shell.Completer.custom_matchers.remove(self._matcher)
        with contextlib.suppress(ValueError):
            self._shell.input_transformers_cleanup.remove(help_lines)
        hooks.uninstall(self._shell)
        settings.leave(self.environment)


_loaded: dict[int, Loaded] = {}


def load(shell: Any) -> None:
    """Load into a shell, once."""
    if id(shell) not in _loaded:
        _loaded[id(shell)] = Loaded(shell)


def unload(shell: Any) -> None:
    """Unload from a shell."""
    loaded = _loaded.pop(id(shell), None)
    if loaded is not None:
        loaded.undo()
