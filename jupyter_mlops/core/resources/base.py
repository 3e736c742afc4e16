"""What all resources share: names, the envelope, conditions."""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import ParameterError

#: Fits a Kubernetes label and leaves room for a suffix.
NAME = re.compile(r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")
NAME_PATTERN = NAME.pattern


def check_name(name: str, what: str = "name") -> str:
    """Return ``name`` unchanged.

    Raises:
        ParameterError: when it is not 1–40 lower-case letters, digits and dashes that start with a letter.
    """
    if not isinstance(name, str) or not NAME.match(name) or name.endswith("\n"):
        raise ParameterError(
            f"{what} {name!r} is not valid",
            "use 1-40 lower-case letters, digits and dashes, starting with a letter",
        )
    return name


def generate_name(stem: str) -> str:
    """A valid, almost surely unused name: ``slug-xxxxxx`` made from free text."""
    slug = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")
    slug = re.sub(r"^[^a-z]+", "", slug)[:30].strip("-") or "job"
    return f"{slug}-{secrets.token_hex(3)}"


def utcnow(seconds: float | None = None) -> str:
    """Now as RFC 3339 in UTC with milliseconds, e.g. ``2026-01-31T12:00:00.000Z``; or ``seconds`` since the epoch."""
    at = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parameter_error(error: ValidationError, what: str) -> ParameterError:
    """A pydantic error as ours: one line that names the field."""
    detail = [
        {"field": ".".join(str(p) for p in item["loc"]), "message": item["msg"].removeprefix("Value error, ")}
        for item in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    first = detail[0]
    where = f" {first['field']}:" if first["field"] else ""
    return ParameterError(f"{what}:{where} {first['message']}", "", detail)


class Model(BaseModel):
    """Strict on unknown fields, so that a typing mistake is told instead of ignored."""

    model_config = ConfigDict(extra="forbid", validate_assignment=False)


class Spec(Model):
    """Base of all specs."""


class Condition(Model):
    """One observed fact, in the manner of Kubernetes."""

    type: str
    status: Literal["True", "False", "Unknown"] = "Unknown"
    reason: str = ""
    message: str = ""
    at: str = Field(default_factory=utcnow)


class Status(BaseModel):
    """Base of all statuses. ``phase`` is one word, ``reason`` one line for people."""

    model_config = ConfigDict(extra="ignore")

    phase: str = "Pending"
    reason: str = ""
    conditions: list[Condition] = Field(default_factory=list)


class Resource(BaseModel):
    """The envelope in which every resource travels.

    ``revision`` counts every stored change (the ETag), ``generation`` only changes of the spec.
    ``parent`` is the endpoint's name for a deployment, else empty.
    """

    kind: str
    name: str
    parent: str = ""
    version: str = ""
    revision: int = 1
    generation: int = 1
    created_by: str = ""
    created_at: str = ""
    updated_at: str = ""
    spec: dict[str, Any]
    status: dict[str, Any]
