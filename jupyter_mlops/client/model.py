"""Registered models and their versions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import render
from .record import Record, Table

if TYPE_CHECKING:
    from .deployment import Deployment


class ModelVersion(Record):
    """One version of a registered model."""

    @property
    def name(self) -> str:
        """The model's name."""
        return self._data["name"]

    @property
    def version(self) -> str:
        """The version, a number as text."""
        return str(self._data["version"])

    @property
    def run_id(self) -> str:
        """The run that made it."""
        return self._data.get("run_id") or ""

    @property
    def aliases(self) -> list[str]:
        """Aliases that name it."""
        return self._data.get("aliases") or []

    @property
    def reference(self) -> str:
        """``NAME/VERSION``, as ``%mlops deploy`` takes it."""
        return f"{self.name}/{self.version}"

    @property
    def uri(self) -> str:
        """``models:/NAME/VERSION``, as MLflow's ``load_model`` takes it."""
        return f"models:/{self.name}/{self.version}"

    def deploy(self, endpoint: str, name: str | None = None, wait: bool = True) -> Deployment:
        """Serve it at ``endpoint``."""
        return self._client.deploy(self.reference, endpoint, name, wait=wait)

    def delete(self) -> None:
        """Delete this version."""
        self._client.delete_version(self.name, self.version)

    def _line(self) -> str:
        return " ".join((self.reference, *(f"@{a}" for a in self.aliases)))

    def _title(self) -> str:
        return f"Model {self.reference}"

    def _facts(self) -> list[tuple[str, Any]]:
        return [
            ("aliases", ", ".join(f"@{a}" for a in self.aliases)),
            ("run id", self.run_id),
            ("source", self._data.get("source")),
            ("made", render.local_time(self._data.get("created_at"))),
            ("description", self._data.get("description")),
            ("use it", f"mlflow.pyfunc.load_model({self.uri!r})"),
        ]


class Model(Record):
    """A registered model."""

    @property
    def name(self) -> str:
        """Its name."""
        return self._data["name"]

    @property
    def latest_version(self) -> str:
        """Its newest version, or empty."""
        return str(self._data.get("latest_version") or "")

    @property
    def aliases(self) -> dict[str, str]:
        """Alias → version."""
        return {k: str(v) for k, v in (self._data.get("aliases") or {}).items()}

    @property
    def versions(self) -> list[ModelVersion]:
        """All versions, newest first."""
        if "versions" not in self._data:
            self._data = self._client.model(self.name)._data
        return [ModelVersion(self._client, v) for v in self._data.get("versions") or []]

    def delete(self) -> None:
        """Delete it with its versions."""
        self._client.delete_model(self.name)

    def _line(self) -> str:
        return " ".join((self.name, f"v{self.latest_version}", *(f"@{a}={v}" for a, v in self.aliases.items())))

    def _title(self) -> str:
        return f"Model {self.name}"

    def _facts(self) -> list[tuple[str, Any]]:
        pairs: list[tuple[str, Any]] = [
            ("latest version", self.latest_version),
            ("aliases", ", ".join(f"@{a} = {v}" for a, v in self.aliases.items())),
            ("description", self._data.get("description")),
            ("updated", render.local_time(self._data.get("updated_at"))),
        ]
        for row in (self._data.get("versions") or [])[:20]:
            names = " ".join(f"@{a}" for a in row.get("aliases") or [])
            words = (names, f"run {str(row.get('run_id'))[:8]}", render.local_time(row.get("created_at")))
            pairs.append((f"version {row['version']}", "  ".join(w for w in words if w)))
        return pairs


class ModelTable(Table[Model]):
    """Registered models as a table."""

    empty = "no models yet: register one with  %mlops register best NAME --metric accuracy"

    def _columns(self) -> list[str]:
        return ["model", "latest", "aliases", "updated", "description"]

    def _row(self, model: Model, html: bool) -> list[Any]:
        return [
            model.name,
            model.latest_version,
            ", ".join(f"@{a} = {v}" for a, v in model.aliases.items()),
            render.local_time(model._data.get("updated_at")),
            model._data.get("description") or "",
        ]
