"""``jupyter mlops …``: the verbs of the magics in a terminal, from the same parser."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from .core.errors import MlopsError
from .magics import commands
from .magics.context import Context
from .magics.parser import HelpRequested, parse

#: Exit codes: 1 an error, 2 a wrong command line, 130 interrupted.
FAILED, USAGE, INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in words
    try:
        namespace = parse(words, "cli")
        context = Context(face="cli", json=namespace.json)
        result = commands.run(namespace, context)
        code = getattr(result, "terminal_code", None)
        if code is not None:
            return int(code)
        _show(result, namespace.json)
        return 0 if getattr(result, "ok", True) else FAILED
    except HelpRequested as help_:
        print(help_.text)
        return 0
    except MlopsError as error:
        _fail(error, as_json)
        return USAGE if error.status == 400 else FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _show(result: Any, as_json: bool) -> None:
    if as_json:
        value = result.to_dict() if hasattr(result, "_repr_mimebundle_") else _plain(result)
        print(json.dumps({} if value is None else value, indent=2, default=str))
    elif result is not None:
        text = result.text() if hasattr(result, "text") else str(result)
        if getattr(result, "spare", ()) and sys.stdout.isatty():
            text = result.text(shutil.get_terminal_size().columns)
        empty = hasattr(result, "__len__") and hasattr(result, "text") and not len(result)
        print(_spoken(text) if empty else text)


def _plain(value: Any) -> Any:
    if value is None:
        return None
    from .client.payload import plain

    if hasattr(value, "to_dict"):  # a DataFrame
        return value.to_dict("records")
    return plain(value)


def _fail(error: MlopsError, as_json: bool) -> None:
    if as_json:
        print(json.dumps(error.body(), default=str), file=sys.stderr)
        return
    print(f"jupyter mlops: {error.message.removeprefix('jupyter mlops: ').removeprefix('jupyter mlops ')}",
          file=sys.stderr)
    for line in getattr(error, "lines", []):
        print(f"  | {line}", file=sys.stderr)
    if error.hint:
        print(f"  hint: {_spoken(error.hint)}", file=sys.stderr)


def _spoken(text: str) -> str:
    """Advice that was written for a notebook, as one types it here."""
    return text.replace("%mlops", "jupyter mlops")


if __name__ == "__main__":
    sys.exit(main())
