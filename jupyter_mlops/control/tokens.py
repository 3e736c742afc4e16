"""Workspace tokens: valid for our routes only, hashed at rest, ending with their holder.

A local holder is a process, known by pid and start time: its token has no clock, since laptops sleep. A holder that
the control plane cannot see (another machine) loses its token 24 h after its last call.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass

import sqlalchemy as sa

from ..core import schema
from ..core.errors import ParameterError, Unauthenticated
from ..core.identity import Identity
from ..core.policy import ROLES
from ..core.resources.base import utcnow
from ..core.store import Store, Transaction
from ..runtime import locate

#: Seconds after its last use at which the token of an unseen holder ends.
UNSEEN_LIFE = 24 * 3600.0
#: Seconds for which an answer about a holder is believed.
RECHECK = 1.0
PREFIX = "mlops_"


@dataclass
class _Entry:
    id: str
    identity: Identity
    holder: tuple[int, str] | None
    last_used: float
    checked: float = 0.0
    saved: float = 0.0


def _hash(token: str) -> str:
    # The token is 256 random bits: a slow hash would add nothing.
    return hashlib.sha256(token.encode()).hexdigest()


class Tokens:
    """Issues and checks tokens; the table is read once and kept in memory beside the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._entries: dict[str, _Entry] = {}

    async def load(self) -> None:
        """Read the tokens that survived a restart, dropping those whose holder ended."""

        def work(tx: Transaction) -> list[sa.Row]:
            return list(tx.connection.execute(sa.select(schema.token)).all())

        for row in await self._store.read(work):
            holder = (row.holder_pid, row.holder_started) if row.holder_pid else None
            # A job's run is looked up when it is needed: it may not exist yet when the token is issued.
            identity = Identity(row.user, row.role, row.job, "", row.id)
            self._entries[row.hash] = _Entry(row.id, identity, holder, row.last_used, saved=row.last_used)
        await self.prune()

    async def issue(
        self, *, user: str, role: str = "owner", pid: int | None = None, job: str = "", run_id: str = ""
    ) -> str:
        """A new token for the process ``pid``, or without one for a holder that cannot be seen.

        Raises:
            ParameterError: unknown role, or no such process.
        """
        if role not in ROLES:
            raise ParameterError(f"role {role!r} does not exist", f"one of: {', '.join(ROLES)}")
        holder = None
        if pid is not None:
            started = locate.start_time(pid)
            if not started:
                raise ParameterError(f"process {pid} does not exist")
            holder = (pid, started)
        token = PREFIX + secrets.token_urlsafe(32)
        entry = _Entry(secrets.token_hex(6), Identity(user, role, job, run_id), holder, time.time(), saved=time.time())
        entry.identity = Identity(user, role, job, run_id, entry.id)

        def work(tx: Transaction) -> None:
            tx.connection.execute(
                schema.token.insert().values(
                    id=entry.id, hash=_hash(token), role=role, user=user, job=job,
                    holder_pid=holder[0] if holder else None, holder_started=holder[1] if holder else None,
                    last_used=entry.last_used, created_at=utcnow(),
                )
            )

        await self._store.write(work)
        self._entries[_hash(token)] = entry
        return token

    def check(self, token: str) -> Identity:
        """The identity behind a token.

        Raises:
            Unauthenticated: unknown, or its holder has ended.
        """
        # Looked up by hash: how long this takes says nothing about any stored token.
        entry = self._entries.get(_hash(token))
        if entry is None or not self._valid(entry):
            raise Unauthenticated("no valid workspace token", "reconnect: locate.connect(fresh=True)")
        entry.last_used = time.time()
        return entry.identity

    def _valid(self, entry: _Entry) -> bool:
        if entry.holder is None:
            return time.time() - entry.last_used < UNSEEN_LIFE
        now = time.monotonic()
        if now - entry.checked > RECHECK:
            if not locate.alive(*entry.holder):
                return False
            entry.checked = now
        return True

    def holder(self, identity: Identity) -> tuple[int, str] | None:
        """(pid, start time) of the local process that holds the caller's token; None for one that cannot be seen."""
        return next((e.holder for e in self._entries.values() if e.id == identity.token_id), None)

    def holders(self, exclude: int | None = None) -> list[int]:
        """Pids of the live processes that hold a token."""
        pids = {e.holder[0] for e in self._entries.values() if e.holder and self._valid(e)}
        pids.discard(exclude or -1)
        return sorted(pids)

    async def prune(self) -> None:
        """Forget tokens whose holder ended, and save when unseen holders last called."""
        gone = [h for h, e in self._entries.items() if not self._valid(e)]
        used = {
            e.id: e.last_used for e in self._entries.values() if e.holder is None and e.last_used - e.saved > 60
        }
        if not gone and not used:
            return

        def work(tx: Transaction) -> None:
            t = schema.token
            for h in gone:
                tx.connection.execute(t.delete().where(t.c.hash == h))
            for token_id, when in used.items():
                tx.connection.execute(t.update().where(t.c.id == token_id).values(last_used=when))

        await self._store.write(work)
        for h in gone:
            self._entries.pop(h, None)
        for e in self._entries.values():
            if e.id in used:
                e.saved = used[e.id]
