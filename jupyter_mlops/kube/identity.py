"""What tells the objects of one workspace from those of another that uses the same namespace."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from hashlib import sha256
from pathlib import Path


def secret(home: Path) -> bytes:
    """A secret of the workspace in ``home``, made when it is first asked for."""
    path = home / "cluster.secret"
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "wb") as f:
            f.write(secrets.token_hex(32).encode())
        with contextlib.suppress(FileExistsError):
            os.link(new, path)  # whoever is first: never half written, never replaced
        new.unlink()
    return path.read_bytes()


def workspace(home: Path, name: str) -> str:
    """The value of the workspace's label: its name, and what no other workspace of that name has."""
    return f"{name[:40]}-{sha256(secret(home)).hexdigest()[:12]}"
