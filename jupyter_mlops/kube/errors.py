"""What a cluster's API answers, in words for people who know nothing of Kubernetes, with what to do next."""

from __future__ import annotations

import json
import re
from typing import Any

from ..core.errors import (
    BackendTimeout,
    BackendUnreachable,
    Conflict,
    MlopsError,
    NotFound,
    Refused,
    TooLarge,
    Unavailable,
)

_QUOTA = re.compile(r"exceeded quota: (?P<quota>[^,]+), requested: (?P<asked>.+), used: (?P<used>.+), "
                    r"limited: (?P<most>.+)$")
_CANNOT = re.compile(r'cannot (?P<verb>\S+) resource "(?P<what>[^"]+)"')
_NO_NAMESPACE = re.compile(r'namespaces "(?P<name>[^"]+)" not found')
_LIMIT_RANGE = re.compile(r"(minimum|maximum) (cpu|memory)[^,]*")


class Absent(NotFound):
    """The object is not there; nothing is wrong with the cluster."""


class NotAllowed(Refused):
    """The credentials of this compute may not do that."""


class OverQuota(Refused):
    """A quota of the namespace is used up."""


def quota(message: str) -> str:
    """One line on a quota that is used up, or ``""`` when the message is of something else."""
    match = _QUOTA.search(message.strip())
    if match:
        return (f"the quota '{match['quota']}' of the namespace is used up: {match['asked']} asked for, "
                f"{match['used']} in use, {match['most']} is the limit")
    if "failed quota:" in message:
        return "the namespace has a quota that wants requests and limits: " + message.split("failed quota:")[1].strip()
    return ""


def pod_security(message: str) -> str:
    """One line on a pod that Pod Security does not let in, or ``""`` when the message is of something else."""
    _, found, rule = message.partition("violates PodSecurity")
    return f"the namespace's security level forbids it: {rule[:300]}" if found else ""


def from_answer(status: int, body: bytes | str, what: str, cluster: str) -> MlopsError:
    """The error that an answer other than 2xx stands for.

    Args:
        status: the HTTP status.
        body: a ``Status`` object as JSON, or whatever came instead.
        what: what was tried, such as ``"creating the service"``.
        cluster: the compute's name, for the message.
    """
    try:
        document: Any = json.loads(body)
    except (ValueError, TypeError):
        document = {}
    document = document if isinstance(document, dict) else {}
    message = str(document.get("message") or "").strip()
    reason = str(document.get("reason") or "")
    where = f"compute '{cluster}'"
    if status == 401:
        return BackendUnreachable(f"{where} no longer accepts its credentials",
                                  "an operator renews them in the kubeconfig; nothing that serves is affected")
    if match := _NO_NAMESPACE.search(message):
        return Refused(f"the namespace '{match['name']}' of {where} does not exist",
                       "an operator creates it, or attaches another one")
    if status == 403:
        return _forbidden(message, what, where)
    if status == 404:
        return Absent(f"{what}: it is not there", f"{where} may have been changed by somebody else")
    if status == 409:
        if reason == "AlreadyExists":
            return Conflict(f"{what}: there is one of this name already on {where}")
        return Conflict(f"{what}: somebody else changed it at the same moment", "it is tried again")
    if status == 410:
        return Conflict(f"{what}: what was read is too old", "it is read again")
    if status == 413:
        return TooLarge(f"{what}: {where} takes no object of this size")
    if status in (400, 422):
        return Refused(f"{what}: {where} refuses it: {_causes(document) or message or status}")
    if status == 429:
        return Unavailable(f"{where} is too busy", "it is tried again within seconds")
    if status >= 500:
        return BackendUnreachable(f"{where} answers with an error ({status}{': ' + message[:200] if message else ''})",
                                  "it is tried again within seconds")
    return MlopsError(f"{what}: {where} answers {status} {message[:200]}")


def _forbidden(message: str, what: str, where: str) -> MlopsError:
    over = quota(message)
    if over:
        return OverQuota(over, "delete what is not needed, ask for less, or have an operator raise the quota")
    if level := pod_security(message):
        return Refused(level, "an operator changes the compute's options or the namespace's level")
    if match := _LIMIT_RANGE.search(message):
        return Refused(f"the namespace's limits forbid it: {match[0]}", "change `resources` of the deployment")
    if "is being terminated" in message:
        return Refused(f"the namespace of {where} is being deleted", "an operator attaches another one")
    if match := _CANNOT.search(message):
        return NotAllowed(f"{where} has no permission to {match['verb']} {match['what']}",
                          "an operator adds the verb to the role of the compute's account")
    return NotAllowed(f"{what}: {where} forbids it{': ' + message[:300] if message else ''}",
                      "an operator looks at the role of the compute's account")


def _causes(document: dict[str, Any]) -> str:
    """The fields that are wrong, of a 422."""
    details = document.get("details")
    causes = details.get("causes") if isinstance(details, dict) else None
    lines = [f"{c.get('field')}: {c.get('message')}" for c in causes or [] if isinstance(c, dict)]
    return "; ".join(lines)[:500]


#: How Kubernetes' client says that a kubeconfig has no such context.
_CONTEXT = re.compile(r"Expected object with name (\S+) in \S*/?contexts")


def from_exception(error: BaseException, cluster: str, seconds: float) -> MlopsError:
    """The error for a call that got no answer at all."""
    name, text = type(error).__name__, str(error)
    where = f"compute '{cluster}'"
    if isinstance(error, MlopsError):
        return error
    if "ReadTimeout" in name or isinstance(error, TimeoutError):
        return BackendTimeout(f"{where} did not answer within {seconds:g} s", "it is tried again")
    if "ConnectTimeout" in name or "ConnectTimeout" in text or "timed out" in text:
        return BackendTimeout(f"{where} cannot be reached: no connection within {seconds:g} s",
                              "is the cluster up, and is there a route to it?")
    if "CERTIFICATE_VERIFY_FAILED" in text or "SSL" in name or "SSLError" in text:
        return BackendUnreachable(f"{where} has a certificate that is not trusted",
                                  "an operator puts the right certificate authority into the kubeconfig")
    if "NameResolution" in name or "Name or service not known" in text or "name resolution" in text:
        return BackendUnreachable(f"{where} cannot be reached: its name is not known here",
                                  "an operator checks the address in the kubeconfig")
    if "refused" in text:
        return BackendUnreachable(f"{where} cannot be reached: nobody listens there", "is the cluster up?")
    if name == "ConfigException" and (missing := _CONTEXT.search(text)):
        return BackendUnreachable(f"the kubeconfig of {where} has no context '{missing[1]}'",
                                  "its contexts: kubectl config get-contexts")
    if name == "ConfigException":
        return BackendUnreachable(f"the kubeconfig of {where} cannot be used: {text[:200]}",
                                  "an operator checks the file and the context's name")
    if any(word in name for word in ("Payload", "Disconnected", "Reset", "Incomplete", "Protocol")):
        return BackendUnreachable(f"{where}: the connection broke", "it is tried again within seconds")
    return BackendUnreachable(f"{where} cannot be reached ({name})", "it is tried again within seconds")
