"""How an endpoint's traffic is shared: what is in force, and changes of it with their audit rows.

Everything here runs inside one transaction of the store, so that traffic, canary and audit never disagree.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from .errors import Conflict, NotFound
from .identity import Identity
from .resources.base import Resource, utcnow
from .resources.endpoint import CanarySpec, CanaryStatus, spread
from .transaction import Transaction

Shares = dict[str, int]

#: What of an endpoint's spec decides where requests go.
ROUTING = ("traffic", "mirror_traffic", "sticky_header")


def in_force(asked: Shares, before: Shares, serving: Collection[str]) -> Shares:
    """The shares that the gateway shall use now: whole percents that add up to 100, or nothing.

    What is asked for but does not serve (yet, or any more) leaves its share to the others. When nothing was ever asked
    for, who had the traffic keeps it; at first the newest.

    Args:
        asked: the spec's traffic.
        before: what was in force until now.
        serving: deployments that can answer, newest first.
    """
    if asked:
        return spread({d: share for d, share in asked.items() if d in serving}, 100)
    kept = spread({d: share for d, share in before.items() if d in serving}, 100)
    return kept or {d: 100 for d in list(serving)[:1]}


def effective(endpoint: Resource) -> Shares:
    """What an endpoint's traffic is meant to be: as asked for, else as it fell."""
    asked = endpoint.spec.get("traffic") or endpoint.status.get("traffic") or {}
    return {d: share for d, share in asked.items() if share}


def running_canary(endpoint: Resource) -> dict[str, Any] | None:
    """The status of the canary that runs, or None."""
    canary = endpoint.status.get("canary")
    return canary if canary and canary.get("phase") == "Running" else None


def staying(tx: Transaction, name: str) -> list[Resource]:
    """The endpoint's deployments that are not being deleted, newest first."""
    going = set(tx.deleting_keys("deployment"))
    return [d for d in tx.page("deployment", parent=name)[0] if (name, d.name) not in going]


def describe(shares: Shares) -> str:
    """``blue 90 %, green 10 %`` for people."""
    return ", ".join(f"{d} {share} %" for d, share in shares.items() if share) or "none"


# -- changes ---------------------------------------------------------------------------------------------------------


def put(
    tx: Transaction, name: str, spec: dict[str, Any], *, identity: Identity, detail: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[Resource, bool]:
    """Store an endpoint's spec. A canary in it that is new begins; one that runs ends when the shares change.

    A spec that says nothing of shares leaves them, and the canary that runs, as they are: a description that is applied
    again must not undo what was shifted since.

    Raises:
        NotFound: a deployment that it names does not exist.
        Conflict: the canary cannot begin, or the compute cannot change any more.
    """
    before = tx.find("endpoint", name)
    _check_names(tx, name, spec)
    if before is None:
        if spec.get("canary"):
            raise Conflict(f"endpoint {name!r} has nothing to compare a canary with yet", "deploy a model first")
        return tx.put("endpoint", name, spec, identity=identity, **options)
    options = {k: v for k, v in options.items() if k not in ("status", "private")}  # those are of one that is new
    if (before.spec.get("compute") or "") != (spec.get("compute") or "") and tx.page("deployment", parent=name)[0]:
        raise Conflict(f"endpoint {name!r} has deployments on its compute", "delete them, or make another endpoint")
    canary = running_canary(before)
    if not spec.get("traffic"):
        spec = {**spec, "traffic": before.spec.get("traffic", {})}
    if canary and not spec.get("canary") and spec["traffic"] == before.spec.get("traffic"):
        spec = {**spec, "canary": before.spec.get("canary")}
    wanted = spec.get("canary")
    status: dict[str, Any] = {}
    if wanted and not (canary and wanted == before.spec.get("canary")):
        if canary:
            status["canary"] = _ended(canary, "Stopped", f"another canary was started by {identity.user}")
        base = spec.get("traffic") or effective(before)
        if base.get(wanted["deployment"]) == 100:
            spec = {**spec, "canary": None}  # promoted already: the same description was applied again
        else:
            spec, begun = _begin(tx, before, spec, base, CanarySpec.model_validate(wanted))
            status["canary"] = begun
            detail = {"op": "canary", "canary": wanted, **(detail or {})}
    elif canary and (not wanted or spec.get("traffic") != before.spec.get("traffic")):
        spec = {**spec, "canary": None}
        status["canary"] = _ended(canary, "Stopped", f"the traffic was changed by {identity.user}")
        status["previous_traffic"] = canary["previous"]
    return _store(tx, before, spec, identity, status, detail, **options)


def change(
    tx: Transaction, name: str, fields: dict[str, Any], identity: Identity, if_match: int | None = None
) -> Resource:
    """Change shares, mirror or sticky header. A deployment that gets a share is mirrored to no more.

    Raises:
        NotFound: no such endpoint, or a deployment that is named does not exist.
    """
    endpoint = tx.get("endpoint", name)
    spec = {**endpoint.spec, **fields}
    live = {d for d, share in spec.get("traffic", {}).items() if share}
    if "mirror_traffic" not in fields:
        spec["mirror_traffic"] = {d: s for d, s in spec.get("mirror_traffic", {}).items() if d not in live}
    for d in spec["mirror_traffic"]:
        if d in live:
            raise Conflict(f"deployment {d!r} has a share of the traffic itself", "mirror to another one")
    return put(tx, name, spec, identity=identity, if_match=if_match)[0]


def start_canary(tx: Transaction, name: str, canary: CanarySpec, identity: Identity) -> Resource:
    """Give a deployment a share for a while.

    Raises:
        NotFound: no such endpoint or deployment.
        Conflict: it is not ready, has all the traffic already, or nothing else has any.
    """
    endpoint = tx.get("endpoint", name)
    if effective(endpoint).get(canary.deployment) == 100:
        raise Conflict(f"deployment {canary.deployment!r} has all the traffic already", "nothing is left to shift")
    return put(tx, name, {**endpoint.spec, "canary": canary.model_dump(mode="json")}, identity=identity)[0]


def promote(tx: Transaction, name: str, identity: Identity, reason: str = "") -> Resource:
    """Give the running canary's candidate all the traffic. Raises NotFound, Conflict: no canary runs."""
    endpoint = tx.get("endpoint", name)
    canary = running_canary(endpoint)
    if canary is None:
        raise Conflict(f"no canary runs at endpoint {name!r}", f"shift by hand: %mlops traffic {name} NAME=100")
    spec = {**endpoint.spec, "traffic": {canary["deployment"]: 100}, "canary": None}
    reason = reason or f"promoted by {identity.user}"
    status = {"canary": _ended(canary, "Promoted", reason), "previous_traffic": canary["previous"]}
    return _store(tx, endpoint, spec, identity, status, {"op": "promote", "reason": reason})[0]


def rollback(tx: Transaction, name: str, identity: Identity, reason: str = "") -> Resource:
    """Return to the traffic before the running canary, or without one to that before the last change.

    Raises:
        NotFound: no such endpoint.
        Conflict: nothing is known of an earlier traffic, or its deployments are gone.
    """
    endpoint = tx.get("endpoint", name)
    canary = running_canary(endpoint)
    earlier = canary["previous"] if canary else endpoint.status.get("previous_traffic") or {}
    there = {d.name for d in staying(tx, name)}
    traffic = spread({d: share for d, share in earlier.items() if d in there}, 100)
    reason = reason or f"rolled back by {identity.user}"
    status: dict[str, Any] = {}
    if canary:
        # With nothing to return to the candidate keeps what it has: better that than nobody.
        traffic = traffic or {canary["deployment"]: 100}
        status.update(canary=_ended(canary, "RolledBack", reason), previous_traffic=canary["previous"])
    elif not traffic:
        what = f"{describe(earlier)} is not there any more" if earlier else "its traffic was never changed"
        raise Conflict(f"endpoint {name!r} has nothing to return to: {what}", "set the shares yourself")
    spec = {**endpoint.spec, "traffic": traffic, "canary": None}
    return _store(tx, endpoint, spec, identity, status, {"op": "rollback", "reason": reason})[0]


def leave(tx: Transaction, endpoint: str, deployment: str, identity: Identity) -> None:
    """Take a deployment that is to be removed out of its endpoint's spec.

    Raises:
        Conflict: it answers requests, and there are others that could.
    """
    at = tx.find("endpoint", endpoint)
    if at is None or tx.deleting("endpoint", endpoint):
        return
    found = tx.get("deployment", deployment, endpoint)
    others = [d.name for d in staying(tx, endpoint) if d.name != deployment]
    share = effective(at).get(deployment, 0)
    if share and others and found.status.get("phase") != "Failed":
        canary = running_canary(at)
        if canary and canary["deployment"] == deployment:
            hint = f"end its canary first: %mlops traffic {endpoint} --rollback"
        else:
            hint = f"move it first, for example: %mlops traffic {endpoint} {others[0]}=100"
        raise Conflict(f"deployment {deployment!r} has {share} % of the traffic of endpoint {endpoint!r}", hint)
    spec = dict(at.spec)
    shares = spec.get("traffic", {})
    if deployment in shares:
        rest = {d: s for d, s in shares.items() if d != deployment}
        # That nothing shall have traffic stays so; an empty mapping would leave it to whoever is ready.
        nothing = not any(shares.values())
        spec["traffic"] = (rest or {d: 0 for d in others[:1]}) if nothing else spread(rest, 100)
    spec["mirror_traffic"] = {d: s for d, s in spec.get("mirror_traffic", {}).items() if d != deployment}
    status: dict[str, Any] = {}
    canary = running_canary(at)
    if canary and canary["deployment"] == deployment:
        spec["canary"] = None
        spec["traffic"] = spread(canary["previous"], 100)
        status["canary"] = _ended(canary, "RolledBack", f"{deployment} was removed")
    if spec != at.spec:
        _store(tx, at, spec, identity, status, {"op": "traffic", "reason": f"{deployment} was removed"})


# -- inside ----------------------------------------------------------------------------------------------------------


def _check_names(tx: Transaction, name: str, spec: dict[str, Any]) -> None:
    named = [d for d, share in spec.get("traffic", {}).items() if share] + list(spec.get("mirror_traffic", {}))
    if spec.get("canary"):
        named.append(spec["canary"]["deployment"])
    for d in named:
        if tx.find("deployment", d, name) is None:
            there = ", ".join(found.name for found in tx.page("deployment", parent=name)[0])
            hint = f"it has {there}" if there else "deploy it first"
            raise NotFound(f"endpoint {name!r} has no deployment {d!r}", hint)


def _begin(
    tx: Transaction, endpoint: Resource, spec: dict[str, Any], base: Shares, canary: CanarySpec
) -> tuple[dict[str, Any], dict[str, Any]]:
    name, candidate = endpoint.name, canary.deployment
    found = tx.get("deployment", candidate, name)
    if found.status.get("phase") != "Ready":
        raise Conflict(
            f"deployment {candidate!r} is {found.status.get('phase')}, not Ready", "wait until it has passed its proof"
        )
    previous = spread({d: share for d, share in base.items() if d != candidate}, 100)
    if not previous:
        raise Conflict(
            f"no other deployment of endpoint {name!r} has traffic to compare {candidate!r} with",
            f"give it all: %mlops traffic {name} {candidate}=100",
        )
    rest = spread(previous, 100 - canary.percent)
    if sum(rest.values()) != 100 - canary.percent:
        raise Conflict(f"{canary.percent} % leave too little for {len(previous)} deployments", "give it less")
    mirror = {d: share for d, share in spec.get("mirror_traffic", {}).items() if d != candidate}
    changed = {**spec, "traffic": {**rest, candidate: canary.percent}, "mirror_traffic": mirror}
    begun = CanaryStatus(
        deployment=candidate, percent=canary.percent, previous=previous, started_at=utcnow(),
        reason=f"0 of {canary.min_requests} requests",
    )
    return changed, begun.model_dump()


def _ended(canary: dict[str, Any], phase: str, reason: str) -> dict[str, Any]:
    return {**canary, "phase": phase, "reason": reason, "ended_at": utcnow()}


def _store(
    tx: Transaction, before: Resource, spec: dict[str, Any], identity: Identity, status: dict[str, Any],
    detail: dict[str, Any] | None, **options: Any,
) -> tuple[Resource, bool]:
    old = {"traffic": effective(before), **{k: before.spec.get(k) for k in ROUTING[1:]}}
    # An empty mapping asks for nothing: who has the traffic keeps it.
    shares = {d: s for d, s in spec["traffic"].items() if s} if spec["traffic"] else old["traffic"]
    new = {"traffic": shares, **{k: spec.get(k) for k in ROUTING[1:]}}
    moved = [k for k in ROUTING if (old[k] or None) != (new[k] or None)]
    told = dict(detail or {})
    if moved:
        told = {"op": "traffic", **told, "before": {k: old[k] for k in moved}, "after": {k: new[k] for k in moved}}
    resource, created = tx.put("endpoint", before.name, spec, identity=identity, detail=told, **options)
    if "traffic" in moved and not created:
        status = {"previous_traffic": old["traffic"], **status}
    if "canary" in status:
        private = tx.private("endpoint", before.name)
        tx.set_private("endpoint", before.name, {k: v for k, v in private.items() if k != "canary"})
    if status:
        resource = tx.set_status("endpoint", before.name, status) or resource
    return resource, created
