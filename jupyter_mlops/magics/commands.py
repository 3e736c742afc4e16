"""From a parsed line to the function that does it."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Any

from ..core.errors import Unavailable
from ..runtime.locate import LocateError
from .context import Context
from .parser import VERBS


def run(arguments: argparse.Namespace, context: Context) -> Any:
    """Do what a parsed line says; the result is an object with text, HTML and JSON forms, or None.

    Raises:
        MlopsError: anything that went wrong.
    """
    module, _, function = VERBS[arguments.verb].home.partition(":")
    try:
        return getattr(import_module(f"{__package__}.{module}"), function)(arguments, context)
    except LocateError as error:
        raise Unavailable(error.message, error.hint) from None
