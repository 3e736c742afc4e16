"""The software of a job on a cluster: an image, and packages of Python on top of it or of conda beside it."""

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
#: Most characters of one spec of conda, or of a channel.
_SPEC = 500
_SPECS = re.compile(r"(?:(?P<channel>[A-Za-z0-9][A-Za-z0-9._/-]*)::)?(?P<name>[A-Za-z0-9_][A-Za-z0-9_.-]*)"
                    r"(?P<rest>(?:\s*[=<>!~\[]|\s+[0-9*])[\x20-\x7e]*)?")
_CHANNEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*|https?://[^\s@]+")


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


def spec(line: str) -> tuple[str, str]:
    """(name, spec as the tools of conda take it) of a dependency: ``numpy>=2``, ``conda-forge::numpy=2.*``.

    Raises:
        ValueError: it is none, or an address.
    """
    text = " ".join(line.split())
    if "://" in text or text.endswith((".conda", ".tar.bz2")):
        raise ValueError(f"{_shown(text)!r} is a file or an address: name the package, and its channel in `channels`")
    match = _SPECS.fullmatch(text)
    if match is None or len(text) > _SPEC or "\n" in line.strip():
        raise ValueError(f"{_shown(text)!r} is no package of conda such as numpy or numpy>=2")
    return match["name"].lower(), text


def channel(text: str, files: bool = False) -> str:
    """A channel's name or address, tidied; ``files``: whether a folder may be one.

    Raises:
        ValueError: it is none, or holds credentials.
    """
    text = text.strip().rstrip("/")
    if re.search(r"://[^/\s]*@|/t/", text):
        raise ValueError("the address of a channel holds credentials; they belong into training.conda.secret")
    known = _CHANNEL.fullmatch(text) or (files and re.fullmatch(r"file:///\S+", text))
    if not known or len(text) > _SPEC or ".." in text.split("/"):
        raise ValueError(f"{text[:100]!r} is no channel such as conda-forge or https://conda.example/CHANNEL")
    return text


class JobEnvironment(Model):
    """What a job on a cluster runs in; on this machine it is ``interpreter``.

    ``conda_file`` is the content of an environment file: what it lists under ``pip`` is installed on the image. Where
    it names packages of conda, an environment of conda is made of all of it.
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
            for name in value.get("channels") or []:
                channel(name)
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
    def channels(self) -> list[str]:
        """Channels of conda that the file names, the first one first; empty: those of the operator, or the tool's."""
        listed = (self.conda_file or {}).get("channels") or []
        return list(dict.fromkeys(name for name in map(channel, listed) if name != "nodefaults"))

    def specs(self, python: str = "") -> list[str]:
        """What an environment of conda is made of, if there are packages of conda; with Python, and pip where needed.

        Args:
            python: the version that it must have, as ``3.11``; empty: what the file says, or any.
        """
        if not self.conda_packages:
            return []
        listed = [spec(one) for one in (self.conda_file or {})["dependencies"] if isinstance(one, str)]
        names = {name for name, _ in listed}
        more = []
        if not self.python and (python or "python" not in names):
            more.append(f"python={python}.*" if python else "python")
        if self.requirements and "pip" not in names:
            more.append("pip")
        return list(dict.fromkeys([*(text for _, text in listed), *more]))

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
    channels = content.get("channels") or []
    if not isinstance(channels, list) or not all(isinstance(name, str) for name in channels):
        raise ValueError("in a conda file, `channels` is a list of names or addresses")
    python, pip, others = "", [], []
    for one in listed:
        if isinstance(one, dict):
            inner = one.get("pip")
            if set(one) != {"pip"} or not isinstance(inner, list) or not all(isinstance(i, str) for i in inner):
                raise ValueError("in a conda file, `pip:` is a list of requirements")
            pip += inner
        elif isinstance(one, str) and one.strip():
            name, _ = spec(one)
            if name == "python":
                version = re.search(r"[=\s]\s*(\d+\.\d+)", one.strip())
                python = version.group(1) if version and ">" not in one and "<" not in one else ""
            elif name not in _GIVEN:
                others.append(name)
        else:
            raise ValueError("in a conda file, dependencies are texts, and one list under `pip:`")
    return python, pip, others
