"""Deployments: one model version each, behind an endpoint."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from ..core.errors import BackendTimeout
from . import calls, render
from .record import Failed, Record, Table
from .traffic import canary_line

if TYPE_CHECKING:
    from .serving import Endpoint


class DeploymentFailed(Failed):
    """A deployment that was waited for did not become ready; carries its last log lines."""

    code = "deployment_failed"
    status = 500

    def __init__(self, deployment: Deployment) -> None:
        lines = [str(line) for line in deployment.details.get("log_tail") or []][-10:]
        differ = [package_line(p) for p in deployment.proof.get("packages") or []][:12]
        super().__init__(
            f"deployment {deployment.endpoint}/{deployment.name} failed: {deployment.reason or 'no reason is known'}",
            f"its log: %mlops logs {deployment.endpoint}/{deployment.name}",
            {"endpoint": deployment.endpoint, "deployment": deployment.name, "log_tail": lines, "packages": differ},
        )
        self.deployment = deployment
        self.lines = [*differ, *lines]

    def serving(self, others: list[str]) -> DeploymentFailed:
        """Say who goes on serving."""
        if others:
            self.hint = f"{' and '.join(others)} {'go' if len(others) > 1 else 'goes'} on serving; {self.hint}"
        return self


def package_line(package: dict[str, Any]) -> str:
    """A package whose version differs, in one line."""
    here, there = package.get("kernel") or "none", package.get("deployment") or "none"
    return f"{package.get('name')}: {here} in the notebook, {there} in the deployment"


class Deployment(Record):
    """One model version behind an endpoint; ``await deployment`` or ``deployment.wait()`` until it is ready."""

    @property
    def name(self) -> str:
        """Its name."""
        return self._data["name"]

    @property
    def endpoint(self) -> str:
        """Name of its endpoint."""
        return self._data.get("parent") or ""

    @property
    def details(self) -> dict[str, Any]:
        """The status as last told."""
        return self._data.get("status") or {}

    @property
    def phase(self) -> str:
        """The phase as last told."""
        return self.details.get("phase") or "Pending"

    @property
    def status(self) -> str:
        """The phase now."""
        return self.refresh().phase

    @property
    def reason(self) -> str:
        """One line on why it is so."""
        return self.details.get("reason") or ""

    @property
    def spec(self) -> dict[str, Any]:
        """What was asked for."""
        return self._data.get("spec") or {}

    @property
    def model(self) -> str:
        """``NAME/VERSION``."""
        return self.spec.get("model") or ""

    @property
    def serves(self) -> str:
        """The model, else the scoring script."""
        return self.model or (self.spec.get("code_configuration") or {}).get("scoring_script") or ""

    @property
    def proof(self) -> dict[str, Any]:
        """How its proof went: ``passed``, ``kind``, ``message``, ``rows``, ``max_difference``, ``packages``."""
        return self.details.get("proof") or {}

    #: The endpoint as it was when this was deployed; its address and calls are then shown too.
    at: Endpoint | None = None

    @property
    def url(self) -> str:
        """Where its endpoint is called, on loopback."""
        return (self.at or self._client.endpoint(self.endpoint)).url

    @property
    def key(self) -> str:
        """The endpoint's primary key, where this process knows it."""
        return self._client.endpoint_key(self.endpoint)

    @property
    def signature(self) -> dict[str, Any]:
        """The model's signature as MLflow writes it."""
        return self.details.get("signature") or {}

    def refresh(self) -> Deployment:
        """Ask again."""
        self._data = self._client.call(self._client.aio.get_deployment(self.endpoint, self.name))
        return self

    def invoke(self, data: Any) -> Any:
        """Score rows by this deployment, whatever its traffic: an array, DataFrame, list or dict."""
        return self._client.invoke(self.endpoint, data, self.name)

    @property
    def call_cell(self) -> str:
        """Source of a cell that calls its endpoint, in any kernel, with rows that it has answered and no secret."""
        return calls.cell(self.endpoint, (self.spec.get("proof") or {}).get("request"))

    def logs(self, tail: int | None = None) -> str:
        """The scorer's log, or its last lines."""
        return self._client.deployment_log(self.endpoint, self.name, tail)

    def wait(self, timeout: float | None = None, told: Callable[[Deployment], None] | None = None) -> Deployment:
        """Return when it is ready; ``told`` is called whenever phase or reason change.

        Raises:
            DeploymentFailed: it failed to start.
            BackendTimeout: ``timeout`` seconds passed; it goes on starting.
        """
        begun = time.monotonic()
        seen = None
        try:
            while True:
                self.refresh()
                state = (self.phase, self.reason)
                if state != seen and told is not None:
                    told(self)
                seen = state
                if self.settled:
                    break
                if timeout is not None and time.monotonic() - begun > timeout:
                    raise BackendTimeout(
                        f"deployment {self.endpoint}/{self.name} is not ready after {timeout:g} s; it goes on starting",
                        f"look at it with: %mlops endpoints {self.endpoint}",
                    )
                self._client.call(asyncio.sleep(0.1 if time.monotonic() - begun < 10 else 0.3))
        except KeyboardInterrupt:
            print(
                f"Interrupted: deployment {self.endpoint}/{self.name} goes on starting. "
                f"Look at it with  %mlops endpoints {self.endpoint}",
                flush=True,
            )
            raise
        if self.phase == "Failed":
            raise DeploymentFailed(self)
        return self

    @property
    def settled(self) -> bool:
        """Whether it is ready with the model asked for, or failed."""
        if self.phase == "Failed":
            return True
        asked = self.model.rpartition("/")[2]
        served = str(self.details.get("model_version") or "")
        return self.phase == "Ready" and (not asked.isdigit() or not served or served == asked)

    def __await__(self) -> Generator[Any, None, Deployment]:
        return asyncio.to_thread(self.wait).__await__()

    def delete(self) -> None:
        """Delete it."""
        self._client.delete_deployment(self.endpoint, self.name)

    def _line(self) -> str:
        return " ".join(part for part in (f"{self.endpoint}/{self.name}", self.model, self.phase, self.reason) if part)

    def _title(self) -> str:
        return f"Deployment {self.endpoint}/{self.name}"

    def _state(self) -> str:
        return self.phase

    def _facts(self) -> list[tuple[str, Any]]:
        pairs: list[tuple[str, Any]] = [
            ("model", self.model),
            ("script", (self.spec.get("code_configuration") or {}).get("scoring_script")),
            ("reason", self.reason),
            ("restarts", self.details.get("restarts") or None),
            ("proof", self._proof_note()),
            ("other packages", ", ".join(
                # A package that a proven deployment has not imported is none that it needs.
                package_line(p) for p in (self.proof.get("packages") or [])[:6] if p.get("deployment"))),
        ]
        at = self.at
        if at is not None and self.phase == "Ready":
            pairs += [
                ("traffic", ", ".join(f"{k} {v} %" for k, v in at.shares.items())),
                ("canary", canary_line(at.canary) if at.canary.get("deployment") == self.name else ""),
                ("URL", at.url),
                ("a test call", render.Code(self.call_cell)),
                ("from Python", render.Code(at.python(self.signature))),
                ("from a shell", render.Code(at.curl(self.signature))),
                ("the key", self._key_note()),
            ]
        return pairs

    def _proof_note(self) -> str:
        proof = self.proof
        if not proof or proof.get("kind") in (None, "none"):
            return "none" if proof.get("passed") is None and self.phase == "Ready" and proof else ""
        if proof.get("passed") is False:
            return str(proof.get("message") or "failed")
        rows = f" for {proof['rows']} row{'s' if proof['rows'] != 1 else ''}" if proof.get("rows") else ""
        if proof["kind"] == "answered":
            return f"it answers its example{rows}"
        largest = proof.get("max_difference")
        apart = f", at most {render.number(largest, 2)} apart" if largest else ""
        return f"its answers{rows} are those of the notebook{apart}"

    def _key_note(self) -> str:
        if self._client.knows_key(self.endpoint):
            return "the attribute .key of this object, as long as the kernel lives"
        return f"kept hashed; a new one: %mlops endpoints {self.endpoint} --rotate-key primary"


class DeploymentTable(Table[Deployment]):
    """Deployments as a table."""

    empty = "no deployments behind this endpoint"

    def _columns(self) -> list[str]:
        return ["deployment", "model", "state", "proof", "restarts", "reason"]

    def _row(self, deployment: Deployment, html: bool) -> list[Any]:
        return [
            render.code(deployment.name) if html else deployment.name,
            deployment.serves,
            render.pill(deployment.phase) if html else deployment.phase,
            {"equal": "equal", "answered": "answered"}.get(deployment.proof.get("kind") or "", "")
            if deployment.proof.get("passed") else "failed" if deployment.proof.get("passed") is False else "",
            deployment.details.get("restarts") or 0,
            deployment.reason,
        ]
