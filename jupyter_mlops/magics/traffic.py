"""The verb traffic: look at an endpoint's shares, change them, end a canary."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..core.errors import NotFound, ParameterError
from .arguments import percent
from .context import Context

if TYPE_CHECKING:
    from ..client.traffic import Traffic


def traffic(a: argparse.Namespace, context: Context) -> Traffic | Any:
    """Shares and figures of an endpoint, after what was asked for was done."""
    client = context.client
    shares = dict(a.shares)
    if len(shares) < len(a.shares):
        raise ParameterError("a deployment is named twice", "give each share once")
    change = bool(shares or a.mirror or a.sticky)
    if change and (a.promote or a.rollback):
        raise ParameterError("--promote and --rollback stand alone", "change the shares in another line")
    if shares:
        _known(context, a.endpoint, shares)
    if a.promote:
        client.promote(a.endpoint)
    elif a.rollback:
        client.rollback(a.endpoint)
    elif change:
        mirror = _mirror(a.mirror)
        if mirror:
            _known(context, a.endpoint, mirror)
        sticky = None if a.sticky is None else "" if a.sticky == "off" else a.sticky
        client.route(a.endpoint, shares or None, mirror, sticky)
    view = client.traffic(a.endpoint)
    if a.form:
        if context.face != "magic":
            raise ParameterError("--form is for a notebook", "give shares: traffic NAME v1=90 v2=10")
        return view.widget()
    return view


def _known(context: Context, endpoint: str, named: dict[str, int]) -> None:
    """Refuse names that are no deployments. Raises NotFound, naming the nearest."""
    from .parser import nearest

    known = [d.name for d in context.client.deployments(endpoint)]
    for name in named:
        if name not in known:
            close = nearest(name, known)
            there = f"its deployments: {', '.join(known)}" if known else "it has no deployments"
            raise NotFound(
                f"endpoint {endpoint} has no deployment {name!r}", f"did you mean {close}?" if close else there
            )


def _mirror(text: str | None) -> dict[str, int] | None:
    """``{deployment: percent}``, empty for off, None when it stays as it is. Raises ParameterError."""
    if text is None:
        return None
    if text == "off":
        return {}
    name, _, value = text.partition("=")
    try:
        share = percent(value)
    except argparse.ArgumentTypeError:
        share = 0
    if not name or share < 1:
        raise ParameterError(f"--mirror {text!r} is not DEPLOYMENT=PERCENT", "for example v2=20, or off")
    return {name: share}
