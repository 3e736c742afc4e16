"""Where the gateway listens: a port that is kept, private sockets, TLS with a given certificate."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
from pathlib import Path

from ..core.errors import Refused


def bind_tcp(kept_in: Path, address: str = "127.0.0.1", wanted: int = 0) -> socket.socket:
    """A listening socket at the port that ``kept_in`` names; another one, kept from then on, when it is taken.

    Args:
        wanted: a port that an operator has asked for: nothing else will do.

    Raises:
        OSError: no such address, or the wanted port is taken.
    """
    try:
        kept = wanted or int(kept_in.read_text())
    except (OSError, ValueError):
        kept = 0
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for port in (wanted,) if wanted else (kept, 0) if 1024 <= kept < 65536 else (0,):
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, port))
            listener.listen(1024)
        except OSError as error:
            listener.close()
            if port and not wanted and error.errno in (errno.EADDRINUSE, errno.EACCES):
                continue
            raise
        bound = listener.getsockname()[1]
        if bound != kept:
            temporary = kept_in.with_name(f".{kept_in.name}")
            temporary.write_text(str(bound))
            os.replace(temporary, kept_in)
        return listener
    raise OSError(errno.EADDRINUSE, "no port is free")


def bind_unix(path: os.PathLike[str]) -> socket.socket:
    """A 0600 socket, in place only when it can be called."""
    temporary = f"{os.fspath(path)}.new"
    with contextlib.suppress(OSError):
        os.unlink(temporary)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(temporary)
    os.chmod(temporary, 0o600)
    listener.listen(1024)
    os.replace(temporary, path)
    return listener


class Certificate:
    """A certificate and its key, read again when the files change.

    Raises:
        Refused: they cannot be used; says which.
    """

    def __init__(self, certificate: str, key: str) -> None:
        self.files = (certificate, key or certificate)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        self._stamp = self._look()
        self._load()

    def _look(self) -> list[tuple[int, int] | None]:
        found: list[tuple[int, int] | None] = []
        for path in self.files:
            try:
                info = os.stat(path)
                found.append((info.st_mtime_ns, info.st_ino))
            except OSError:
                found.append(None)
        return found

    def _load(self) -> None:
        try:
            self.context.load_cert_chain(*self.files)
        except (OSError, ssl.SSLError, ValueError) as error:
            raise Refused(f"the TLS certificate {self.files[0]} cannot be used: {error}",
                          "give PEM files of a certificate and its key without a passphrase") from error

    def refresh(self) -> bool:
        """Take up changed files for new connections; True when that was done. Broken ones leave the old in force."""
        stamp = self._look()
        if stamp == self._stamp or None in stamp:
            return False
        self._stamp = stamp
        self._load()
        return True
