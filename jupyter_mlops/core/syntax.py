"""Python source as a syntax tree, in a process that has other threads."""

from __future__ import annotations

import ast
import gc
from typing import Any


def parse(source: str | bytes, filename: str = "<unknown>", mode: str = "exec") -> Any:
    """``ast.parse``, which before Python 3.11.8 fails by chance (SystemError) where several threads parse.

    Python counts the depth of the tree for all threads together there, and a garbage collection in the middle lets
    another thread run (CPython issue 106905). Without a collection no other runs, as nothing else gives way.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: as ``ast.parse`` does.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(source, filename, mode)
    finally:
        if collecting:
            gc.enable()
