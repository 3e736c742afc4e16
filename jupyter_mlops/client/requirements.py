"""Files of requirements, read where they are: their lines go with a job, not the files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..core.errors import ParameterError

#: Most files that may include one another.
_DEPTH = 10


def read(path: str | Path, _depth: int = 0) -> list[str]:
    """The requirements in a file, as pip would read them: without comments, with those of files that it includes.

    Raises:
        ParameterError: it cannot be read, or says what a job on another machine cannot use; names the line.
    """
    file = Path(path).expanduser()
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise ParameterError(f"{path} cannot be read: {why}", "name a requirements file with -r") from None
    found: list[str] = []
    for number, line in _lines(text):
        option = re.match(r"(-\w|--[a-z-]+)[\s=]*(.*)$", line)
        if option is None:
            if line.startswith((".", "/", "~")):
                raise ParameterError(f"line {number} of {path}: {line[:80]} is a path of this machine",
                                     "the job runs on another one: name a package, or import the module in the cell")
            found.append(line)
        elif option.group(1) in ("-r", "--requirement"):
            if _depth >= _DEPTH:
                raise ParameterError(f"line {number} of {path}: these files include one another",
                                     "leave out the -r that leads back")
            found += read(file.parent / option.group(2).strip(), _depth + 1)
        else:
            hint = ("name packages without it" if option.group(1) in ("-e", "--editable", "-c", "--constraint") else
                    "an operator sets it in training.pip of the compute")
            raise ParameterError(f"line {number} of {path}: {option.group(1)} is not taken to another machine", hint)
    return found


def _lines(text: str) -> list[tuple[int, str]]:
    """(number, requirement) of what stands there: continued lines are one, comments are none."""
    found, held, begun = [], "", 0
    for number, raw in enumerate(text.splitlines(), 1):
        begun = begun or number
        line = re.sub(r"(^|\s)#.*$", "", raw).rstrip()
        held += line[:-1] + " " if line.endswith("\\") else line
        if not line.endswith("\\"):
            if held.strip():
                found.append((begun, " ".join(held.split())))
            held, begun = "", 0
    if held.strip():
        found.append((begun, " ".join(held.split())))
    return found


def read_conda(path: str | Path) -> dict[str, Any]:
    """The content of a conda environment file; what it includes with ``-r`` under ``pip`` is read too.

    Raises:
        ParameterError: it cannot be read, or is none.
    """
    import yaml

    file = Path(path).expanduser()
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise ParameterError(f"{path} cannot be read: {why}", "name a conda environment file") from None
    if not isinstance(content, dict) or not isinstance(content.get("dependencies"), list):
        raise ParameterError(f"{path} is no conda environment file", "it is a mapping with a list of `dependencies`")
    for one in content["dependencies"]:
        if isinstance(one, dict) and isinstance(one.get("pip"), list):
            one["pip"] = [line for item in one["pip"] for line in _included(file, item)]
    return {key: content[key] for key in ("name", "channels", "dependencies") if key in content}


def _included(file: Path, item: Any) -> list[Any]:
    match = re.match(r"(?:-r|--requirement)[\s=]+(.+)$", item) if isinstance(item, str) else None
    return [*read(file.parent / match.group(1).strip())] if match else [item]
