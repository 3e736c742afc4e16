"""The exact same-origin check for writes that a browser authenticates with a cookie.

MLflow's pages cannot send Jupyter's XSRF token, so what keeps other sites from writing is that a browser tells, in
headers that no page can forge, where a request comes from.
"""

from __future__ import annotations

from collections.abc import Mapping


def same_origin(headers: Mapping[str, str], protocol: str, host: str) -> bool:
    """Whether the request comes from a page of its own origin.

    Args:
        protocol: ``http`` or ``https``, as the server sees it.
        host: value of the ``Host`` header.

    ``Sec-Fetch-Site`` decides where there is one; else ``Origin`` must be this server's scheme and host, as it sees
    itself or as a reverse proxy in front of it says (a page cannot set those headers without being asked first).
    """
    site = headers.get("Sec-Fetch-Site")
    if site is not None:
        return site == "same-origin"
    origin = headers.get("Origin")
    if not origin:
        return False
    schemes = {protocol, _first(headers.get("X-Forwarded-Proto") or headers.get("X-Scheme"))}
    hosts = {host, _first(headers.get("X-Forwarded-Host"))}
    return any(
        normal(origin) == normal(f"{scheme}://{name}") for scheme in schemes if scheme for name in hosts if name
    )


def _first(value: str | None) -> str:
    return (value or "").split(",")[0].strip()


def normal(origin: str) -> str:
    """The origin in lower case and without its scheme's own port."""
    text = origin.lower()
    for scheme, port in (("http://", ":80"), ("https://", ":443")):
        if text.startswith(scheme) and text.endswith(port):
            return text[: -len(port)]
    return text
