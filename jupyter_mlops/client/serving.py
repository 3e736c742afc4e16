"""Endpoints."""

from __future__ import annotations

import shlex
from typing import Any

from ..core.errors import Refused
from . import payload, render
from .deployment import Deployment, DeploymentFailed, DeploymentTable, package_line
from .record import Failed, Record, Table
from .traffic import Traffic, canary_line, versus

__all__ = [
    "CanaryFailed", "Deployment", "DeploymentFailed", "DeploymentTable", "Endpoint", "EndpointTable", "package_line",
    "unknown_key",
]


class CanaryFailed(Failed):
    """A canary that was waited for was rolled back, or ended by somebody."""

    code = "canary_failed"
    status = 409

    def __init__(self, endpoint: str, canary: dict[str, Any]) -> None:
        name = f"{endpoint}/{canary.get('deployment')}"
        what = "was rolled back" if canary.get("phase") == "RolledBack" else "was ended"
        super().__init__(
            f"canary {name} {what}: {canary.get('reason') or versus(canary)}",
            f"the requests go where they went before; its log: %mlops logs {name}",
            {"canary": canary},
        )
        self.canary = canary
        self.lines = [versus(canary)] if canary.get("reason") else []


class Endpoint(Record):
    """A stable name with keys, in front of deployments."""

    @property
    def name(self) -> str:
        """Its name."""
        return self._data["name"]

    @property
    def phase(self) -> str:
        """Creating, Ready, Degraded or Failed."""
        return (self._data.get("status") or {}).get("phase") or "Creating"

    @property
    def url(self) -> str:
        """Where it is called, on loopback."""
        return (self._data.get("status") or {}).get("scoring_uri") or ""

    @property
    def spec(self) -> dict[str, Any]:
        """What was asked for."""
        return self._data.get("spec") or {}

    @property
    def traffic(self) -> dict[str, int]:
        """Deployment name → share in percent, as it was asked for."""
        return self.spec.get("traffic") or {}

    @property
    def shares(self) -> dict[str, int]:
        """Deployment name → share in percent that is in force."""
        return (self._data.get("status") or {}).get("traffic") or self.traffic

    @property
    def mirrored(self) -> dict[str, int]:
        """Deployment name → percent of the requests that are copied to it."""
        return self.spec.get("mirror_traffic") or {}

    @property
    def previous(self) -> dict[str, int]:
        """The shares that a rollback without a canary returns to; empty when there are none."""
        return (self._data.get("status") or {}).get("previous_traffic") or {}

    @property
    def canary(self) -> dict[str, Any]:
        """How the running or last canary goes; empty when there was none."""
        return (self._data.get("status") or {}).get("canary") or {}

    @property
    def key(self) -> str:
        """Its primary key, when this process made the endpoint or rotated the key.

        Raises:
            Refused: it is not known here, since keys are kept hashed and shown once.
        """
        return self._client.endpoint_key(self.name)

    @property
    def deployments(self) -> DeploymentTable:
        """What is behind it."""
        return self._client.deployments(self.name)

    #: Its deployments, where they were asked for together with it.
    behind: DeploymentTable | None = None

    def refresh(self) -> Endpoint:
        """Ask again."""
        self._data = self._client.endpoint(self.name)._data
        return self

    def invoke(self, data: Any) -> Any:
        """Score rows: an array, DataFrame, list or dict."""
        return self._client.invoke(self.name, data)

    def shares_of(self, **shares: int) -> Endpoint:
        """Share the requests between deployments: ``endpoint.shares_of(v1=90, v2=10)``."""
        self._client.route(self.name, shares)
        return self.refresh()

    def view(self) -> Traffic:
        """Shares and figures of its deployments."""
        return self._client.traffic(self.name)

    def widget(self) -> Any:
        """A form with sliders for the traffic, buttons and live figures. Raises Refused without ipywidgets."""
        return self.view().widget()

    def rotate_key(self, key: str = "primary") -> Endpoint:
        """Replace a key; the new one is kept in memory (``endpoint.key``)."""
        self._client.rotate_key(self.name, key)
        return self.refresh()

    def delete(self) -> None:
        """Delete it with its deployments."""
        self._client.delete_endpoint(self.name)

    def curl(self, signature: dict[str, Any] | None = None) -> str:
        """A ready-made call for a shell, with ``$KEY`` for the key and a row that fits the model's ``signature``."""
        return (
            f"curl {shlex.quote(self.url or 'URL')} -H \"Authorization: Bearer $KEY\" "
            f"-H 'Content-Type: application/json' -d {shlex.quote(payload.example(signature))}"
        )

    def python(self, signature: dict[str, Any] | None = None) -> str:
        """A ready-made call for Python with the variables ``KEY`` and ``X``."""
        return (
            f'requests.post("{self.url}", headers={{"Authorization": f"Bearer {{KEY}}"}}, '
            f"json={payload.expression(signature)}).json()"
        )

    def _line(self) -> str:
        behind = " ".join(f"{k}={v}%" for k, v in self.shares.items())
        return " ".join(part for part in (self.name, self.phase, self.url, behind) if part)

    def _title(self) -> str:
        return f"Endpoint {self.name}"

    def _state(self) -> str:
        return self.phase

    def _facts(self) -> list[tuple[str, Any]]:
        status = self._data.get("status") or {}
        hints = status.get("key_hints") or {}
        return [
            ("reason", status.get("reason")),
            ("URL", self.url),
            ("traffic", ", ".join(f"{k} {v} %" for k, v in self.shares.items())),
            ("mirror", ", ".join(f"{v} % copied to {k}" for k, v in self.mirrored.items())),
            ("canary", canary_line(self.canary)),
            ("opened by", "bearer tokens" if self.spec.get("auth_mode") == "token" else ""),
            ("keys", ", ".join(f"{k} …{v}" for k, v in hints.items())),
        ]

    def to_dict(self) -> dict[str, Any]:
        """The JSON of the REST API, with ``deployments`` where they are known."""
        return self._data if self.behind is None else {**self._data, "deployments": self.behind.to_dict()}

    def text(self) -> str:
        """Several lines for a terminal."""
        return super().text() + (f"\n\n{self.behind.text()}" if self.behind is not None else "")

    def html(self) -> str:
        """Self-contained HTML."""
        return super().html() + (self.behind.html() if self.behind is not None else "")


class EndpointTable(Table[Endpoint]):
    """Endpoints as a table."""

    empty = "no endpoints yet: make one with  %mlops deploy NAME@champion --endpoint NAME"

    def _columns(self) -> list[str]:
        return ["endpoint", "state", "traffic", "URL", "reason"]

    def _row(self, endpoint: Endpoint, html: bool) -> list[Any]:
        return [
            render.code(endpoint.name) if html else endpoint.name,
            render.pill(endpoint.phase) if html else endpoint.phase,
            ", ".join(f"{k} {v} %" for k, v in endpoint.shares.items()),
            endpoint.url,
            (endpoint._data.get("status") or {}).get("reason") or "",
        ]


def unknown_key(endpoint: str) -> Refused:
    """The error for a key that this process has never seen."""
    return Refused(
        f"the keys of endpoint {endpoint} are not known here: they are kept hashed and shown once",
        f"make a new one: %mlops endpoints {endpoint} --rotate-key primary",
    )
