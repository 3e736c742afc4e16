"""YAML files of endpoints, deployments and computes, made so: all are checked before the first thing is changed.

Order: computes, whose clusters were asked before; endpoints; deployments (their code and models are uploaded); when
those are ready, the traffic.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import MlopsError, NotFound, ParameterError, Refused
from . import code, files, render
from .deployment import Deployment

if TYPE_CHECKING:
    from .sync import Client

#: Fields of an endpoint that name deployments: they come last.
_ROUTING = ("traffic", "mirror_traffic", "canary")


@dataclass
class Item:
    """One document of a file.

    Attributes:
        kind: ``endpoint``, ``deployment`` or ``compute``; ``parent``: the deployment's endpoint.
        source: file, and place in it when there are several documents.
        spec: the fields that the document gives; the model of local files is not in it yet.
        ignored: fields that decide nothing here.
        action: ``create``, ``change`` or ``unchanged``.
        changed: names of fields that change.
        code: files of the script; model: path of a local model, with the name that it is registered under
            and the hash of its files once that is known.
    """

    kind: str
    parent: str
    name: str
    source: str
    spec: dict[str, Any]
    ignored: list[str] = field(default_factory=list)
    action: str = "create"
    changed: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    code: list[tuple[str, Path]] = field(default_factory=list)
    model: Path | None = None
    model_name: str = ""
    model_sha256: str = ""

    @property
    def title(self) -> str:
        """``endpoint/deployment`` or the endpoint's name."""
        return f"{self.parent}/{self.name}" if self.parent else self.name


class Applied:
    """What was done, or would be, one row a document."""

    def __init__(self, items: list[Item], dry: bool) -> None:
        self.items = items
        self.dry = dry

    _DONE = {"create": "created", "change": "changed", "unchanged": "unchanged"}
    _WOULD = {"create": "would be created", "change": "would change", "unchanged": "unchanged"}

    def __len__(self) -> int:
        return len(self.items)

    def to_dict(self) -> list[dict[str, Any]]:
        """JSON: source, kind, name, action, changed fields, ignored fields, remarks."""
        return [
            {"source": i.source, "kind": i.kind, "name": i.title, "action": i.action, "changed": i.changed,
             "ignored": i.ignored, "remarks": i.remarks}
            for i in self.items
        ]

    def _rows(self) -> list[list[Any]]:
        words = self._WOULD if self.dry else self._DONE
        return [
            [i.source, i.kind, i.title, words[i.action], "; ".join([", ".join(i.changed), *i.remarks]).strip("; "),
             ", ".join(i.ignored)]
            for i in self.items
        ]

    _COLUMNS = ("file", "kind", "name", "what", "detail", "ignored")

    def text(self) -> str:
        """Aligned columns."""
        return render.text_table(self._COLUMNS, self._rows(), "", width=100)

    def html(self) -> str:
        """A table."""
        note = "nothing was changed: this is what would be done" if self.dry else ""
        return render.table(self._COLUMNS, self._rows(), caption=note)

    def __repr__(self) -> str:
        told = ", ".join(f"{i.title} {i.action}" for i in self.items)
        return f"<Applied {render.clean(told)}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": self.text(), "text/html": self.html()}


def read(paths: list[str]) -> list[Item]:
    """All documents of all files, checked as far as that needs no control plane.

    Raises:
        ParameterError, NotFound, Refused: the message names file, document and field.
    """
    items: list[Item] = []
    for path in paths:
        for source, folder, document in _documents(path):
            try:
                items.append(_item(source, folder, document))
            except MlopsError as error:
                error.message = f"{source}: {error.message}"
                error.args = (error.message,)
                raise
    seen: dict[str, str] = {}
    for item in items:
        key = f"{item.kind} {item.title}"
        if key in seen:
            raise ParameterError(f"{item.source}: {key} is in {seen[key]} already", "describe each once")
        seen[key] = item.source
    return items


def _documents(path: str) -> Iterator[tuple[str, Path, Any]]:
    import yaml

    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = getattr(error, "strerror", None) or "it is no text"
        raise NotFound(f"{path} cannot be read: {what}", "give the path of a YAML file") from None
    try:
        documents = [d for d in yaml.safe_load_all(text) if d is not None]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        hint = "replace what stands in {{…}} or <…> by values" if "{{" in text else "look at that line"
        raise ParameterError(f"{path} is no YAML{where}: {problem}", hint) from None
    except RecursionError:
        raise ParameterError(f"{path} nests too deep") from None
    if not documents:
        raise ParameterError(f"{path} is empty", "a document begins with  name: …")
    for number, document in enumerate(documents, 1):
        yield (f"{path}, document {number}" if len(documents) > 1 else path), file.resolve().parent, document


def _item(source: str, folder: Path, document: Any) -> Item:
    from ..core.resources.manifest import from_yaml

    local, model_name = None, ""
    if isinstance(document, dict):
        document = dict(document)
        local, model_name = _local_model(document)
        if local is not None:
            document["model"] = "local/1"  # checked with the rest; what it stands for is registered when all is right
    kind, parent, name, spec, ignored = from_yaml(document)
    item = Item(kind, parent, name, source, spec, list(ignored))
    if local is not None:
        item.model, item.model_name = (folder / local).resolve(), model_name or f"{parent}-{name}"
        spec.pop("model", None)
        files.listed(item.model)
        if not files.is_mlflow(item.model) and not spec.get("code_configuration"):
            raise Refused(
                f"the model at {local} was not written by MLflow, so nothing knows how to load it",
                "add code_configuration with a scoring script, or log it with mlflow.<flavor>.save_model",
            )
    configuration = spec.get("code_configuration")
    if configuration and not str(configuration.get("code", "")).startswith("blob:"):
        item.code = code.of_folder(folder / configuration["code"])
        script = str(configuration["scoring_script"])
        if script not in {below for below, _ in item.code}:
            raise NotFound(f"code_configuration.scoring_script: there is no {script} in {configuration['code']}")
        code.check_script(folder / configuration["code"] / script)
    return item


def _local_model(document: dict[str, Any]) -> tuple[str | None, str]:
    """(path of a model that lies in files, name under which it is to be registered) of a deployment's document."""
    model = document.get("model")
    if isinstance(model, dict) and model.get("version") is None and isinstance(model.get("path"), str):
        path = model["path"]
        known = {"name", "path", "type", "version", "description", "tags", "flavors", "properties"}
        unknown = [str(k) for k in model if k not in known]
        if unknown:
            raise ParameterError(f"deployment YAML: field model.{unknown[0]} is not known")
        if "://" not in path and not path.startswith(("runs:/", "azureml:")):
            return path, str(model.get("name") or "")
        if path.startswith("azureml:") or "://" in path:
            raise Refused(f"model.path {path!r} is not on this machine", "download it, or register it here")
    if isinstance(model, str) and model.startswith(("./", "../", "/", "~/")):
        return str(Path(model).expanduser()), ""
    return None, ""


def plan(client: Client, items: list[Item]) -> None:
    """Compare with what is there, and find all that would fail; nothing is changed.

    Raises:
        NotFound: an endpoint, model or deployment that is named is nowhere.
        Refused: a field would change that cannot.
    """
    for item in items:
        if item.kind == "compute":
            _plan_compute(client, item)
    items = [i for i in items if i.kind != "compute"]
    endpoints = {e.name: e for e in client.endpoints()} if items else {}
    planned = {i.name for i in items if i.kind == "endpoint"}
    behind: dict[str, dict[str, Deployment]] = {
        name: {d.name: d for d in client.deployments(name)}
        for name in {i.parent or i.name for i in items} if name in endpoints
    }
    for item in items:
        try:
            if item.kind == "endpoint":
                will = {i.name for i in items if i.parent == item.name} | set(behind.get(item.name, {}))
                _plan_endpoint(item, endpoints[item.name].spec if item.name in endpoints else None, will)
            else:
                if item.parent not in endpoints and item.parent not in planned:
                    raise NotFound(
                        f"endpoint_name: there is no endpoint {item.parent!r}", "apply its YAML in the same command"
                    )
                _plan_deployment(client, item, behind.get(item.parent, {}).get(item.name))
        except MlopsError as error:
            error.message = f"{item.source}: {error.message}"
            error.args = (error.message,)
            raise


def _plan_compute(client: Client, item: Item) -> None:
    """Compare with what is there, and ask the cluster whether it can be attached."""
    from ..core.resources.compute import ComputeSpec

    try:
        there = client.compute(item.name)
    except NotFound:
        there = None
    if there is not None and there.spec.get("type") != "kubernetes":
        raise Refused(f"{item.source}: compute {item.name!r} is of type {there.spec.get('type')}",
                      "choose another name")
    wanted = ComputeSpec.model_validate(item.spec).model_dump(mode="json", by_alias=True)
    if there is not None:
        _compare(item, ComputeSpec.model_validate(there.spec).model_dump(mode="json", by_alias=True), wanted)
    if item.action == "unchanged":
        return
    found = client.check_compute(item.name, item.spec)
    if found.fatal:
        first = found.fatal[0]
        raise Refused(f"{item.source}: compute {item.name!r} cannot be attached: {first['message']}", first["hint"])
    item.remarks += [p["message"] for p in found["problems"]]


def _plan_endpoint(item: Item, there: dict[str, Any] | None, deployments: set[str]) -> None:
    from ..core.resources.endpoint import EndpointSpec

    named = {**(item.spec.get("traffic") or {}), **(item.spec.get("mirror_traffic") or {})}
    if item.spec.get("canary"):
        named[item.spec["canary"]["deployment"]] = 1
    for name in named:
        if name not in deployments:
            raise NotFound(
                f"traffic: endpoint {item.name} has no deployment {name!r}", "apply its YAML in the same command"
            )
    if there is None:
        return
    merged = EndpointSpec.model_validate({**there, **item.spec}).model_dump(mode="json")
    before = EndpointSpec.model_validate(there).model_dump(mode="json")
    _compare(item, before, merged)
    item.spec = merged


def _plan_deployment(client: Client, item: Item, there: Deployment | None) -> None:
    from ..core.resources.deployment import MUTABLE, DeploymentSpec

    reference = item.spec.get("model")
    if reference and not str(reference).startswith("runs:/"):
        item.spec["model"] = _resolved(client, str(reference))
    known = item.spec.get("model")
    if item.model is not None:
        item.model_sha256 = files.digest(files.listed(item.model))
        version = files.find(client, item.model_name, item.model_sha256)
        known = version.reference if version else f"{item.model_name}/0"
        if version is None:
            item.remarks.append(f"{item.model.name} is registered as {item.model_name}")
    if there is None:
        return
    if there.phase in ("Failed", "Deleting"):
        item.action = "change"
        item.changed = ["it failed before and is made anew" if there.phase == "Failed" else "it is being deleted"]
        return
    given = dict(item.spec)
    if known:
        given["model"] = known
    if item.code:
        given["code_configuration"] = {**given["code_configuration"], "code": code.reference(item.code)}
    before = DeploymentSpec.model_validate(there.spec).model_dump(mode="json")
    merged = DeploymentSpec.model_validate({**there.spec, **given}).model_dump(mode="json")
    if "@" in before["model"] and there.details.get("model_version"):
        before["model"] = f"{there.details['model_name']}/{there.details['model_version']}"
    _compare(item, before, merged)
    fixed = [name for name in item.changed if name not in MUTABLE]
    if fixed:
        raise Refused(
            f"deployment {item.title}: {', '.join(fixed)} cannot change while it serves",
            "give the deployment another name, and shift the traffic to it",
        )
    item.spec = {**there.spec, **item.spec}


def _compare(item: Item, before: dict[str, Any], after: dict[str, Any]) -> None:
    item.changed = [name for name in after if before.get(name) != after[name]]
    item.action = "change" if item.changed else "unchanged"


def _resolved(client: Client, reference: str) -> str:
    """``NAME/VERSION`` of a reference; ``@latest`` is the newest version where no alias has that name."""
    name, at, alias = reference.rpartition("@")
    if at and alias == "latest" and "latest" not in client.model(name).aliases:
        reference = name
    return client.version(reference).reference


def apply(
    client: Client, paths: list[str], experiment: str, *, dry: bool = False, timeout: float = 600.0,
    interpreter: str = "", told: Callable[[str, str, str], None] | None = None,
) -> Applied:
    """Make computes, endpoints and deployments as YAML files say.

    Args:
        experiment: of the runs into which local models are logged.
        dry: check, compare and change nothing.
        interpreter: Python for what does not say its own; empty: this one.
        told: hears (name, phase, reason) while deployments start.

    Raises:
        ParameterError, NotFound, Refused: before anything is changed; the message names file, document and field.
        DeploymentFailed: one did not start; what came before it is there, and the traffic is as it was.
    """
    items = read(paths)
    plan(client, items)
    if dry:
        return Applied(items, True)
    tell = told or (lambda name, phase, reason: None)
    for item in items:
        if item.kind == "compute" and item.action != "unchanged":
            client.attach_compute(item.name, item.spec)
    for item in items:
        if item.kind == "endpoint" and item.action == "create":
            client.create_endpoint(item.name, {k: v for k, v in item.spec.items() if k not in _ROUTING})
    started: list[Deployment] = []
    for item in items:
        if item.kind == "deployment" and item.action != "unchanged":
            tell(item.title, "Preparing", "uploading what it needs" if item.code or item.model else "")
            started.append(_deploy(client, item, experiment, interpreter))
    for deployment in started:
        deployment.wait(timeout, lambda d: tell(f"{d.endpoint}/{d.name}", d.phase, d.reason))
    for item in items:
        routed = any(item.spec.get(k) for k in _ROUTING)
        if item.kind == "endpoint" and (item.action == "change" or (item.action == "create" and routed)):
            client.call(client.aio.put_endpoint(item.name, item.spec))
            _in_force(client, item)
    return Applied(items, False)


def _in_force(client: Client, item: Item, timeout: float = 10.0) -> None:
    """Wait until the gateway has the shares, or as long as that may take."""
    wanted = {name: share for name, share in (item.spec.get("traffic") or {}).items() if share}
    begun = time.monotonic()
    while wanted and not item.spec.get("canary") and time.monotonic() - begun < timeout:
        if {name: share for name, share in client.endpoint(item.name).shares.items() if share} == wanted:
            return
        time.sleep(0.1)


def _deploy(client: Client, item: Item, experiment: str, interpreter: str) -> Deployment:
    from .deploy import put

    spec = dict(item.spec)
    if item.model is not None:
        version = files.register(client, item.model_name, item.model, experiment, item.model_sha256)
        spec["model"] = version.reference
        item.remarks = [f"model {version.reference}"]
    if item.code:
        spec["code_configuration"] = {**spec["code_configuration"], "code": code.upload(client, item.code)}
    if interpreter and not spec.get("interpreter"):
        spec["interpreter"] = interpreter
    return put(client, item.parent, item.name, spec)
