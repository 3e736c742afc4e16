"""What ran, so that it can be found again: cells, code, packages, seeds and machine of a run, without its secrets.

Nothing here knows IPython except :mod:`.hooks`; ``docs/capture.md`` lists what is recorded and what never is.
"""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T", str, bytes)


def secret(value: T) -> T:
    """Mark a value as secret and return it: from now on it is replaced in all that is recorded of runs.

    Raises:
        ParameterError: it is no text, or has fewer than four characters.
    """
    from ..core.errors import ParameterError
    from ..runtime import redact

    try:
        redact.secret(value)
    except ValueError as error:
        raise ParameterError(str(error)) from None
    return value
