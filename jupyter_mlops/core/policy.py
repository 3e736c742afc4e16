"""The one point where it is decided who may do what.

An action is ``<plural kind>/<verb>`` (``jobs/write``) or deeper (``endpoints/secrets/read``). A role is a list of
action patterns minus another; ``*`` stands for any text. Every face (REST, MLflow proxy, magics) asks here.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from .errors import Forbidden
from .identity import Identity


@dataclass(frozen=True)
class Role:
    """``actions`` minus ``not_actions``, both patterns."""

    actions: tuple[str, ...]
    not_actions: tuple[str, ...] = ()

    def allows(self, action: str) -> bool:
        """Whether the action matches a pattern of ``actions`` and none of ``not_actions``."""
        return any(fnmatchcase(action, p) for p in self.actions) and not any(
            fnmatchcase(action, p) for p in self.not_actions
        )


ROLES: dict[str, Role] = {
    "owner": Role(("*",)),
    "reader": Role(("*/read",), ("*/secrets/read", "audit/read", "endpoints/data/read")),
    # A job may see what its cell may need and write its own run; the proxy narrows run and artifact writes further.
    "job": Role(
        ("workspaces/read", "jobs/read", "jobs/flush", "experiments/*", "runs/*", "models/*", "computes/read"),
        ("*/delete", "*/delete/*", "runs/restore"),
    ),
}


def allowed(identity: Identity, action: str, resource: str = "") -> bool:
    """Whether ``identity`` may do ``action`` on the resource of that name."""
    role = ROLES.get(identity.role)
    if role is None or not role.allows(action):
        return False
    if identity.role == "job" and action.startswith("jobs/") and resource:
        return resource == identity.job
    return True


def require(identity: Identity, action: str, resource: str = "") -> None:
    """Return when allowed.

    Raises:
        Forbidden: naming role and action.
    """
    if not allowed(identity, action, resource):
        target = f" on {resource!r}" if resource else ""
        raise Forbidden(f"role {identity.role} may not {action}{target}", "ask the owner of this workspace")
