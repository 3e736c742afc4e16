"""The software of a job on a cluster: an image, and packages of Python that are installed on top of it."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from pydantic import Field, field_validator

from .base import Model

#: Most characters of one requirement: a name, a version and some hashes.
_LINE = 2000
_HASHES = re.compile(r"(?:\s+--hash=(?:sha256|sha384|sha512):[0-9a-f]{64,128})*\s*$")
#: What a conda file names that an image has by itself.
_GIVEN = frozenset({"python", "pip", "setuptools", "wheel"})


def requirement(line: str) -> str:
    """One requirement as pip takes it, tidied: ``pandas==3.*``, with hashes if need be.

    Raises:
        ValueError: it is none, is a path, an option of pip, or holds credentials.
    """
    text = " ".join(line.split())
    if text.startswith("-"):
        raise ValueError(f"{_shown(text)!r} is an option of pip: an operator sets it in training.pip of the compute")
    hashes = _HASHES.search(text)
    body = text[:hashes.start()] if hashes else text
    if body.startswith((".", "/", "~")) or (body.endswith((".whl", ".tar.gz", ".zip")) and " @ " not in body):
        raise ValueError(f"{_shown(body)!r} is a path: files of this machine are not there; name a package")
    try:
        found = Requirement(body)
    except InvalidRequirement:
        raise ValueError(f"{_shown(text)!r} is no requirement such as xgboost or pandas==3.*") from None
    if found.url:
        where = urlsplit(found.url.removeprefix("git+"))
        if where.scheme not in ("http", "https") or not where.hostname:
            raise ValueError(f"{found.name}: only packages at http or https addresses can be had there")
        if where.username is not None or where.password is not None:
            raise ValueError(f"{found.name}: its address holds credentials; they belong into training.pip.secret")
    return text


def _shown(text: str) -> str:
    """A line for a message, without what might be a password."""
    return re.sub(r"://[^/@\s]*@", "://***@", text)[:100]


class JobEnvironment(Model):
    """What a job on a cluster runs in; on this machine it is ``interpreter``.

    ``conda_file`` is the content of an environment file: of it, what it lists under ``pip`` is installed.
    """

    image: str = Field(default="", max_length=500, description="container image; empty: the compute's")
    pip: list[str] = Field(default_factory=list, max_length=500, description="requirements, installed on the image")
    conda_file: dict[str, Any] | None = None

    @field_validator("pip")
    @classmethod
    def _requirements(cls, value: list[str]) -> list[str]:
        for line in value:
            if len(line) > _LINE or "\n" in line or "\0" in line:
                raise ValueError("give one requirement an item")
        return list(dict.fromkeys(requirement(line) for line in value))

    @field_validator("conda_file", mode="before")
    @classmethod
    def _content(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError("send the content of the file as a mapping; %mlops train --conda-file FILE does")
        if value is not None:
            _, listed, _ = conda_parts(value)
            for line in listed:
                requirement(line)
        return value

    @property
    def requirements(self) -> list[str]:
        """All that pip installs, in the order in which it was asked for."""
        listed = conda_parts(self.conda_file)[1] if self.conda_file else []
        return list(dict.fromkeys([*self.pip, *(requirement(line) for line in listed)]))

    @property
    def conda_packages(self) -> list[str]:
        """Packages of conda that are asked for, and that pip does not install."""
        return conda_parts(self.conda_file)[2] if self.conda_file else []

    @property
    def python(self) -> str:
        """The version of Python that a conda file wants, as ``3.11``; empty: any."""
        return conda_parts(self.conda_file)[0] if self.conda_file else ""


def conda_parts(content: Any) -> tuple[str, list[str], list[str]]:
    """(version of Python, what pip installs, all other packages) of a conda environment file.

    Raises:
        ValueError: it is no such file.
    """
    listed = content.get("dependencies") if isinstance(content, dict) else None
    if not isinstance(listed, list):
        raise ValueError("a conda file is a mapping with a list of `dependencies`")
    python, pip, others = "", [], []
    for one in listed:
        if isinstance(one, dict):
            inner = one.get("pip")
            if set(one) != {"pip"} or not isinstance(inner, list) or not all(isinstance(i, str) for i in inner):
                raise ValueError("in a conda file, `pip:` is a list of requirements")
            pip += inner
        elif isinstance(one, str) and one.strip():
            name = re.split(r"[\s=<>!~\[]", one.strip().rpartition("::")[2], maxsplit=1)[0].lower()
            if name == "python":
                version = re.search(r"=\s*(\d+\.\d+)", one)
                python = version.group(1) if version and ">" not in one and "<" not in one else ""
            elif name not in _GIVEN:
                others.append(name)
        else:
            raise ValueError("in a conda file, dependencies are texts, and one list under `pip:`")
    return python, pip, others
