"""Operations: one description of each REST call, from which both the handlers and the OpenAPI document are made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from ..core.identity import Identity

if TYPE_CHECKING:
    from .plane import ControlPlane

#: Where all of our routes begin.
ROOT = "/jupyter-mlops"
API = ROOT + "/api/v1"


@dataclass
class Call:
    """One request, checked: path and query parameters, body, caller."""

    plane: ControlPlane
    identity: Identity
    path: dict[str, str]
    query: Any = None
    body: Any = None
    raw: bytes = b""
    headers: Any = None
    upload: Any = None

    @property
    def if_match(self) -> int | None:
        """Revision of ``If-Match``; None without one. Anything that is no revision of ours matches nothing (-1)."""
        value = self.headers.get("If-Match")
        if value is None or value.strip() == "*":
            return None
        text = value.strip().removeprefix("W/").strip('"')
        return int(text) if text.isascii() and text.isdigit() and len(text) < 18 else -1

    @property
    def if_none_match(self) -> bool:
        """Whether the resource must not exist yet."""
        return (self.headers.get("If-None-Match") or "").strip() == "*"


@dataclass
class Answer:
    """Status, JSON body (None for no content) and headers; ``file`` is streamed instead of a body.

    ``temporary``: the file is removed as soon as it is open.
    """

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    content_type: str = "application/json"
    file: Path | None = None
    temporary: bool = False


@dataclass(frozen=True)
class Operation:
    """One verb on one path.

    Attributes:
        path: below :data:`API`, parameters in braces.
        action: what the policy is asked; resources check again by name in the core.
        query, body: pydantic models; ``raw_body`` for a body that is passed on unread.
        responses: status → model of its body (None: no body).
        errors: error statuses that this operation may answer beside the common ones.
        handler: a subclass of ``OperationHandler`` that receives the body as it comes; all methods of a path share it.
        content: content type of a ``raw_body``.
        produces: content type of an answer that is text rather than JSON.
    """

    method: str
    path: str
    summary: str
    action: str
    function: Callable[[Call], Awaitable[Answer]]
    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    raw_body: bool = False
    responses: dict[int, type[BaseModel] | None] = field(default_factory=lambda: {200: None})
    errors: tuple[int, ...] = ()
    preconditions: bool = False
    description: str = ""
    handler: Any = None
    content: str = "application/json"
    produces: str = ""


TABLE: list[Operation] = []


def operation(method: str, path: str, summary: str, action: str, **options: Any) -> Callable[..., Any]:
    """Register an async function ``(Call) -> Answer`` as an operation."""

    def register(function: Callable[[Call], Awaitable[Answer]]) -> Callable[[Call], Awaitable[Answer]]:
        description = (function.__doc__ or "").strip()
        TABLE.append(Operation(method, path, summary, action, function, description=description, **options))
        return function

    return register
