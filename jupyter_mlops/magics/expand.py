"""Variables in a magic's line: ``{expression}`` and ``$name``, expanded once, with an error for what is not there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..core.errors import ParameterError

_NAME = re.compile(r"name '(\w+)' is not defined")


def expand(line: str, names: Mapping[str, Any]) -> str:
    """The line with variables put in, by the rules of IPython's own formatter; ``{{`` is a brace.

    Raises:
        ParameterError: a variable is not defined, or an expression fails.
    """
    if "{" not in line and "}" not in line and "$" not in line:
        return line
    from IPython.utils.text import DollarFormatter

    try:
        return DollarFormatter().vformat(line, (), dict(names))
    except NameError as error:
        found = _NAME.search(str(error))
        name = found.group(1) if found else str(error)
        raise ParameterError(
            f"undefined variable `{name}` in the line", "define it first; {{ }} and $$ stand for braces and dollar"
        ) from None
    except SyntaxError:
        raise ParameterError(
            f"what stands in braces is no expression: {_braces(line)}", "write {{ and }} for braces that are meant so"
        ) from None
    except ValueError as error:
        if "{" in str(error) or "}" in str(error) or "format" in str(error).lower():
            raise ParameterError(
                f"the braces in the line do not match: {error}", "write {{ and }} for braces that are meant so"
            ) from None
        raise ParameterError(f"an expression in the line fails: ValueError: {error}") from error
    except Exception as error:
        raise ParameterError(f"an expression in the line fails: {type(error).__name__}: {error}") from error


def _braces(line: str) -> str:
    start, end = line.find("{"), line.rfind("}")
    return line[start: end + 1] if 0 <= start < end else line


def evaluate(expression: str, names: dict[str, Any]) -> Any:
    """The value of an expression over the notebook's variables.

    Raises:
        ParameterError: it is no expression, or fails.
    """
    try:
        code = compile(expression, "<%mlops>", "eval", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        message = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ParameterError(
            f"{expression!r} is not an expression: {message}", "for example X[:3] or df.head()"
        ) from None
    try:
        return eval(code, names)  # the user's own expression in the user's own kernel
    except NameError as error:
        found = _NAME.search(str(error))
        raise ParameterError(f"undefined variable `{found.group(1) if found else error}`", "define it first") from None
    except Exception as error:
        raise ParameterError(f"{expression} fails: {type(error).__name__}: {error}") from error
