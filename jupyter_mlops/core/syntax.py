"""Python source as a syntax tree, in a process that has other threads."""

from __future__ import annotations

import ast
import functools
import gc
from collections.abc import Callable
from typing import Any


def without_collections(parse: Callable[..., Any]) -> Callable[..., Any]:
    """``parse``, during which no garbage is collected.

    Before 3.11.8 Python counts the depth of a tree that it makes for all threads together, and a collection in the
    middle lets another thread run that makes one, too: each may then fail, with a SystemError (CPython issue 106905).
    Nothing else gives way to others in there.
    """

    @functools.wraps(parse)
    def whole(*args: Any, **options: Any) -> Any:
        collecting = gc.isenabled()
        gc.disable()
        try:
            return parse(*args, **options)
        finally:
            if collecting:
                gc.enable()

    return whole


#: ``ast.parse``, which cannot fail by chance beside other threads.
parse = without_collections(ast.parse)
