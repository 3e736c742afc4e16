"""Endpoint keys: 256 random bits with a recognisable prefix, kept only as a salted hash.

A key is not a password: nobody can guess 256 random bits, so one round of SHA-256 is enough, and a check costs
microseconds. The salt keeps equal keys from having equal hashes.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable, Mapping
from hashlib import sha256

PREFIX = "jmk_"
#: The keys that every endpoint has; either opens it, so one can be changed while the other is in use.
NAMES = ("primary", "secondary")
#: Longer credentials are not looked at, so that nobody has us hash megabytes.
MAX_LENGTH = 256

#: Checked when there is no endpoint of the asked name, so that the answer takes as long as for a wrong key.
NOBODY = {name: {"salt": secrets.token_hex(16), "hash": secrets.token_hex(32)} for name in NAMES}


def new_key() -> str:
    """A new key, to be shown once."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_key(key: str) -> dict[str, str]:
    """What is kept of a key: ``{"salt", "hash"}``, both hexadecimal."""
    salt = secrets.token_hex(16)
    return {"salt": salt, "hash": _digest(salt, key)}


def new_keys() -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Keys of a new endpoint: (name → key, to show once; name → record, to keep)."""
    shown = {name: new_key() for name in NAMES}
    return shown, {name: hash_key(key) for name, key in shown.items()}


def hint(key: str) -> str:
    """The last four characters: enough to tell two keys apart, useless to an attacker."""
    return key[-4:]


def check(key: str, records: Mapping[str, Mapping[str, str]]) -> bool:
    """Whether ``key`` is one of the keys behind ``records``; takes equally long whichever fits, if any."""
    if len(key) > MAX_LENGTH:
        key = ""
    found = False
    for record in _two(records.values()):
        known = str(record.get("hash", "")).lower().encode("utf-8", "replace")
        fits = hmac.compare_digest(_digest(str(record.get("salt", "")), key).encode(), known)
        found = found or fits
    return found and bool(key)


def _two(records: Iterable[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """At least as many records as an endpoint has keys, so that one with fewer is not answered sooner."""
    known = list(records)
    return known + list(NOBODY.values())[len(known):]


def _digest(salt: str, key: str) -> str:
    return sha256((salt + ":" + key).encode("utf-8", "surrogatepass")).hexdigest()
