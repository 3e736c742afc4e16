"""Bearer tokens of endpoints: signed, not stored, valid for one endpoint until they expire.

``jmt_<payload>.<mac>``: base64url without padding, of ``{"e": endpoint, "i": id, "x": expiry}`` and of its HMAC-SHA256
under the endpoint's own secret. A new secret ends all tokens of that endpoint at once.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import secrets
from dataclasses import dataclass
from hashlib import sha256

PREFIX = "jmt_"
#: Longer credentials are not looked at, so that nobody has us hash megabytes.
MAX_LENGTH = 512
#: Bytes of an endpoint's secret; a shorter one signs nothing.
SECRET_BYTES = 32

#: Signs in the place of a secret that is missing: the answer takes as long, and is no.
_NOBODY = secrets.token_bytes(SECRET_BYTES)


@dataclass(frozen=True)
class Claims:
    """What a token says. ``expires`` in seconds since the epoch; ``ident`` is public, for logs and the audit."""

    endpoint: str
    expires: int
    ident: str


def new_secret() -> str:
    """A new secret for an endpoint, in hexadecimal."""
    return secrets.token_hex(SECRET_BYTES)


def mint(endpoint: str, secret: str, expires: float) -> tuple[str, Claims]:
    """A token for ``endpoint`` that ends at ``expires`` (seconds since the epoch), to be shown once.

    Raises:
        ValueError: ``secret`` is none of :func:`new_secret`.
    """
    key = _key(secret)
    if key is None:
        raise ValueError("the endpoint has no secret to sign with")
    claims = Claims(endpoint, int(expires), secrets.token_hex(6))
    text = json.dumps({"e": claims.endpoint, "i": claims.ident, "x": claims.expires}, separators=(",", ":"))
    payload = _encode(text.encode())
    return f"{PREFIX}{payload}.{_encode(_mac(key, payload))}", claims


def check(token: str, endpoint: str, secret: str, now: float) -> bool:
    """Whether ``token`` was signed with ``secret`` (hexadecimal) for ``endpoint`` and has not expired at ``now``.

    Takes as long for a forged token as for a good one, and for an endpoint without a secret.
    """
    if len(token) > MAX_LENGTH or not token.isascii() or not token.startswith(PREFIX):
        token = PREFIX + "."
    payload, _, given = token[len(PREFIX):].partition(".")
    key = _key(secret)
    signed = hmac.compare_digest(_encode(_mac(key or _NOBODY, payload)), given)
    if not signed or key is None:
        return False
    claims = read(token)
    return claims is not None and claims.endpoint == endpoint and now < claims.expires


def read(token: str) -> Claims | None:
    """What a token says, whoever signed it; None when it is malformed."""
    if len(token) > MAX_LENGTH or not token.startswith(PREFIX):
        return None
    payload = token[len(PREFIX):].partition(".")[0]
    try:
        value = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        endpoint, ident, expires = value["e"], value["i"], value["x"]
    except (binascii.Error, ValueError, KeyError, TypeError, RecursionError):
        return None
    if not (isinstance(endpoint, str) and isinstance(ident, str) and type(expires) is int):
        return None
    return Claims(endpoint, expires, ident)


def _key(secret: str) -> bytes | None:
    try:
        key = bytes.fromhex(secret)
    except (ValueError, TypeError):
        return None
    return key if len(key) >= SECRET_BYTES else None  # an empty key would sign for everybody


def _mac(key: bytes, payload: str) -> bytes:
    return hmac.digest(key, payload.encode(), sha256)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
