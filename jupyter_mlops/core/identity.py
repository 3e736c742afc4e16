"""Who calls."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Identity:
    """The caller of an action.

    Attributes:
        user: name of the person on whose behalf the call is made.
        role: ``owner``, ``reader`` or ``job``.
        job: for role ``job``, the job that holds the token.
        run_id: for role ``job``, that job's MLflow run.
        token_id: public id of the token, for the audit.
    """

    user: str
    role: str
    job: str = ""
    run_id: str = ""
    token_id: str = ""


#: The control plane acting by itself (controllers).
SYSTEM = Identity(user="system", role="owner")
