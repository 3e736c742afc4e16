"""Names and labels of what we make in a cluster, and who owns what."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Any

#: Prefix of our labels and annotations.
DOMAIN = "jupyter-mlops.io"
MANAGED = "app.kubernetes.io/managed-by"
_LABEL = re.compile(r"[^A-Za-z0-9_.-]+")


def object_name(readable: str, *identity: str) -> str:
    """A name of at most 46 characters, the same for the same identity and, in all likelihood, for no other.

    46, because pods add up to 17 characters and a host name has 63.

    >>> object_name("digits-blue", "ws", "digits", "blue")[:12]
    'digits-blue-'
    """
    digest = sha256("\0".join(identity).encode()).hexdigest()[:8]
    stem = re.sub(r"[^a-z0-9-]+", "-", readable.lower()).strip("-")[:37].rstrip("-")
    if not stem or not stem[0].isalpha():
        stem = f"m-{stem}".rstrip("-")[:37]
    return f"{stem}-{digest}"


def label_value(text: str) -> str:
    """Text as a label's value: at most 63 characters, foreign ones replaced."""
    return _LABEL.sub("-", text)[:63].strip("-_.")


def labels(workspace: str, component: str, **more: str) -> dict[str, str]:
    """The labels of an object of ours; ``more`` become labels of our domain."""
    return {
        MANAGED: "jupyter-mlops",
        "app.kubernetes.io/part-of": "jupyter-mlops",
        "app.kubernetes.io/component": component,
        f"{DOMAIN}/workspace": label_value(workspace),
        **{f"{DOMAIN}/{key}": label_value(value) for key, value in more.items()},
    }


def ours(workspace: str, **more: str) -> dict[str, str]:
    """The labels by which objects of a workspace are found again."""
    return {MANAGED: "jupyter-mlops", f"{DOMAIN}/workspace": label_value(workspace),
            **{f"{DOMAIN}/{key}": label_value(value) for key, value in more.items()}}


def owner(manifest: dict[str, Any]) -> dict[str, Any]:
    """The reference with which an object goes when ``manifest``, as the API returned it, goes."""
    return {"apiVersion": manifest["apiVersion"], "kind": manifest["kind"], "name": manifest["metadata"]["name"],
            "uid": manifest["metadata"]["uid"], "controller": False, "blockOwnerDeletion": False}
