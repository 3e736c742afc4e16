"""What a job brought back, as Python values."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from typing import Any, BinaryIO

from ..core.errors import Refused
from ..runtime.variables import VariablesError, read_header, read_values

#: Bytes up to which a payload is kept in memory on its way.
_MEMORY = 16 << 20


def read_results(download: Callable[[BinaryIO], None], job: str) -> dict[str, Any]:
    """``{name: value}`` of a returned payload.

    Args:
        download: writes the payload into the file that it is given.

    Raises:
        Refused: it cannot be read in this process.
    """
    with tempfile.SpooledTemporaryFile(_MEMORY) as file:
        download(file)  # type: ignore[arg-type]  # a spooled file is a binary file in all but its class
        file.seek(0)
        python: list[int] = []
        try:
            header = read_header(file)
            python = header["python"]
            return read_values(file, header["values"])
        except VariablesError as error:
            hint = "this Python needs the packages that the job used"
            if python and python != list(sys.version_info[:2]):
                hint = f"it was made by Python {'.'.join(map(str, python))}, this is another"
            raise Refused(f"what job {job} brought back cannot be read: {error}", hint) from error
