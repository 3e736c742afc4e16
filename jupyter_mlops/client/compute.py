"""Computes: where jobs run and models serve, what there is of them, and what is free."""

from __future__ import annotations

from typing import Any

from . import render
from .record import Record, Table
from .report import Report

#: What a resource of a cluster is called here.
_WORDS = {"cpus": "CPUs", "memory_bytes": "memory"}
_ENGINES = {"kueue": "Kueue", "trainer": "Kubeflow Trainer", "mpi": "MPI operator", "gateway_api": "Gateway API",
            "metrics": "metrics"}


class Compute(Record):
    """A named place where jobs run or models serve."""

    @property
    def name(self) -> str:
        """Its name."""
        return str(self._data["name"])

    @property
    def spec(self) -> dict[str, Any]:
        """As the operator made it."""
        return dict(self._data.get("spec") or {})

    @property
    def phase(self) -> str:
        """``Ready`` or ``Unreachable``."""
        return str((self._data.get("status") or {}).get("phase") or "")

    @property
    def purposes(self) -> list[str]:
        """What it is for: ``training``, ``inference``."""
        if self.spec.get("type") != "kubernetes":
            return ["training", "inference"]
        images = [word for word, key in (("training", "training"), ("inference", "serving"))
                  if (self.spec.get(key) or {}).get("image")]
        return images or ["training", "inference"]

    def survey(self) -> Survey:
        """Ask the cluster what there is, and what is free."""
        return Survey(self.name, self._client.call(self._client.aio.survey_compute(self.name)))

    def detach(self) -> None:
        """Forget it; nothing on the cluster is changed."""
        self._client.call(self._client.aio.delete_compute(self.name))

    def refresh(self) -> Compute:
        """Ask again."""
        self._data = self._client.call(self._client.aio.get_compute(self.name))
        return self

    def _line(self) -> str:
        return f"{self.name} {self.phase}"

    def _title(self) -> str:
        return f"Compute {self.name}"

    def _state(self) -> str:
        return self.phase

    def _facts(self) -> list[tuple[str, Any]]:
        status, spec = self._data.get("status") or {}, self.spec
        return [
            ("type", spec.get("type")), ("for", ", ".join(self.purposes)), ("reason", status.get("reason")),
            ("jobs", f"{status.get('running_jobs', 0)} running, {status.get('queued_jobs', 0)} waiting"),
            ("instance types", ", ".join(sorted(spec.get("instance_types") or {})) or None),
            ("description", spec.get("description")),
        ]


class ComputeTable(Table[Compute]):
    """Computes."""

    def _columns(self) -> list[str]:
        return ["name", "type", "for", "state", "running", "waiting", "about"]

    def _row(self, item: Compute, html: bool) -> list[Any]:
        status = item.to_dict().get("status") or {}
        phase: Any = render.pill(item.phase) if html else item.phase
        return [item.name, item.spec.get("type"), ", ".join(item.purposes), phase, status.get("running_jobs", 0),
                status.get("queued_jobs", 0), status.get("reason") or item.spec.get("description") or ""]


class Survey(Report):
    """What is true of a cluster."""

    def __init__(self, name: str, data: dict[str, Any], title: str = "") -> None:
        problems = data.get("problems") or []
        self.fatal = [p for p in problems if p.get("fatal")]
        super().__init__(data, not problems)
        space = data["namespace"]
        exists = {True: "", False: ", not there", None: ", may not be looked up"}[space.get("exists")]
        level = f", Pod Security {space['level']}" if space.get("level") else ""
        engines = [words for key, words in _ENGINES.items() if (data.get("engines") or {}).get(key)]
        self.facts([
            ("Kubernetes", data["version"]), ("namespace", f"{space['name']}{exists}{level}"),
            ("permissions", f"{len(data['missing'])} missing" if data["missing"] else "all that is needed"),
            ("nodes", None if data.get("nodes") is None else _nodes(data["nodes"])),
            ("there is also", ", ".join(engines) or None),
            ("packages of jobs", _cache(data.get("package_cache"))),
            ("jobs' data", _route(data)),
            ("large files", _large(data)),
            ("folders of jobs", _folders(data.get("store"))),
        ], title or f"Compute {name}", "Failed" if self.fatal else "warning" if problems else "Ready")
        self._room(data)
        self.table(["quota", "of", "used", "limit"],
                   [[q["quota"], q["resource"], q["used"], q["hard"]] for q in data.get("quotas") or []], "Quotas")
        self.table(["priority", "PriorityClass", "value", ""], [
            [p["name"], p["class"], "?" if p["value"] is None else p["value"],
             "pushes others aside" if p["preempts"] else ""] for p in data.get("priorities") or []], "Priorities")
        self.table(["image", "Python", "packages", "seen"], [_image(i) for i in data.get("images") or []], "Images")
        nodes = [_node(n) for n in data.get("nodes") or []]
        self.table(["node", "state", "CPUs", "memory", "devices", "taints"], nodes, "Nodes", state=1)
        rows = [["stops it" if p["fatal"] else "look at it", p["message"], p["hint"]] for p in problems]
        self.table(["", "what", "what to do"], rows, "Problems")

    def _room(self, data: dict[str, Any]) -> None:
        capacity, free = data.get("capacity"), data.get("free")
        if capacity:
            rows = [[_WORDS.get(k, k), amount(k, v), amount(k, (free or {}).get(k)) if free is not None else "?"]
                    for k, v in sorted(capacity.items(), key=lambda kv: (kv[0] not in _WORDS, kv[0])) if v]
            self.table(["", "there is", "free"], rows, "Capacity")


def _route(data: dict[str, Any]) -> str | None:
    """Which way all comes that jobs have to tell."""
    route = data.get("route")
    if route is None:
        return "over the API" if data.get("transfer") else None
    return f"over the API: {route['trouble']}" if route["trouble"] else f"by the route {route['address']}"


def _large(data: dict[str, Any]) -> str | None:
    """Which way large files of jobs go, where that is another one."""
    route = data.get("route")
    by_route = route is not None and not route["trouble"]
    return None if by_route else _transfer(data.get("transfer"), data.get("store"))


def _transfer(found: dict[str, str] | None, store: dict[str, str] | None) -> str | None:
    """Which way large files of jobs go."""
    if store is not None and store["url"]:
        if not store["trouble"]:
            return f"through {store['url']}"
        instead = _transfer(found, None)
        return f"{instead}; not through {store['url']}: {store['trouble']}" if instead else None
    if not found:
        return None
    if found["way"] == "proxy":
        return "through the API's proxy"
    return "over execution streams, which is slower" + (f" ({found['why']})" if found["why"] else "")


def amount(name: str, value: float | None) -> str:
    """A number of CPUs, bytes or devices for people."""
    if value is None:
        return ""
    return f"{value / 2**30:.1f} GiB" if name == "memory_bytes" else f"{value:g}"


def _cache(found: dict[str, Any] | None) -> str | None:
    """Where packages stay that jobs have installed."""
    if found is None:
        return None
    if found["kind"] == "pod":
        return "installed by each pod for itself"
    where = f"claim {found['name']}" if found["kind"] == "claim" else f"{found['name']} of each node"
    modes = f", {'/'.join(found['access_modes'])}" if found.get("access_modes") else ""
    return f"kept in {where}{modes}, at most {found['size']}"


def _folders(store: dict[str, Any] | None) -> str | None:
    """Where the folders of pods lie, when not in the pods."""
    return f"in claim {store['claim']}" if store is not None and store["claim"] else None


def _image(found: dict[str, Any]) -> list[Any]:
    packages = found.get("packages") or {}
    named = ", ".join(f"{name} {version}" for name, version in packages.items())
    more = found.get("count", 0) - len(packages)
    return [found["image"], found["python"], named + (f" and {more} more" if more > 0 else ""),
            render.local_time(found.get("seen"))]


def _nodes(nodes: list[dict[str, Any]]) -> str:
    usable = sum(1 for n in nodes if n["usable"])
    return f"{len(nodes)}" if usable == len(nodes) else f"{len(nodes)}, {usable} of them take pods"


def _node(node: dict[str, Any]) -> list[Any]:
    capacity = node["capacity"]
    devices = ", ".join(f"{v:g} {k}" for k, v in sorted(capacity.items()) if "/" in k and v)
    state = "Ready" if node["usable"] else "closed" if node["ready"] else "not ok"
    memory = amount("memory_bytes", capacity.get("memory_bytes", 0))
    return [node["name"], state, f"{capacity.get('cpus', 0):g}", memory, devices, ", ".join(node["taints"])]
