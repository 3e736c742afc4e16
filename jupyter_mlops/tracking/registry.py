"""Registered models, their versions and aliases, and where their files lie: views over MLflow's registry."""

from __future__ import annotations

import asyncio
import difflib
import re
from pathlib import Path
from typing import Any

from ..core.errors import Conflict, MlopsError, NotFound, ParameterError, Refused
from .api import MlflowApi
from .proxy import REQUEST_TAG
from .shape import iso, quoted

#: Tag that names the Python which made a run's or a model's files.
INTERPRETER_TAG = "mlops.interpreter"
#: Seconds for which a new version may be in preparation.
_READY_WITHIN = 30.0
_PAGE = 200
#: How MLflow names a logged model as the source of a version.
_MODEL_URI = re.compile(r"models:/(m-[A-Za-z0-9]+)")
_RUN_URI = re.compile(r"runs:/([A-Za-z0-9]+)(/.*)?")


class Registry:
    """The registry half of :class:`~jupyter_mlops.tracking.views.MlflowViews`."""

    def __init__(self, api: MlflowApi, artifacts: Path) -> None:
        self.api = api
        self._artifacts = artifacts

    # Reading

    async def models(self, limit: int = 50, page_token: str | None = None) -> dict[str, Any]:
        """A page of registered models, newest first."""
        answer = await self.api.get(
            "registered-models/search", max_results=limit, page_token=page_token,
            order_by="last_updated_timestamp DESC",
        )
        items = [self._model_row(m) for m in answer.get("registered_models", [])]
        return {"items": items, "next_token": answer.get("next_page_token") or None}

    async def model(self, name: str) -> dict[str, Any]:
        """One model with all its versions, newest first."""
        found = await self._find_model(name)
        versions: list[dict[str, Any]] = []
        token = None
        while True:
            answer = await self.api.get(
                "model-versions/search", filter=f"name = {quoted(name)}", max_results=_PAGE, page_token=token,
            )
            versions += answer.get("model_versions", [])
            token = answer.get("next_page_token")
            if not token:
                break
        row = self._model_row(found)
        by_version: dict[str, list[str]] = {}
        for alias, version in row["aliases"].items():
            by_version.setdefault(version, []).append(alias)
        rows = [_version_row(v, by_version.get(str(v.get("version")), [])) for v in versions]
        row["versions"] = sorted(rows, key=lambda v: int(v["version"]), reverse=True)
        return row

    async def _find_model(self, name: str) -> dict[str, Any]:
        try:
            return (await self.api.get("registered-models/get", name=name))["registered_model"]
        except (NotFound, ParameterError):
            answer = await self.api.get("registered-models/search", max_results=_PAGE)
            near = difflib.get_close_matches(name, [m["name"] for m in answer.get("registered_models", [])], 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else "list models with: %mlops models"
            raise NotFound(f"model {name!r} does not exist", hint) from None

    async def version(self, name: str, version: str) -> dict[str, Any]:
        """One version of a model."""
        if not str(version).isascii() or not str(version).isdigit():
            raise NotFound(f"model {name!r} has no version {version!r}", "versions are numbers, 1 is the first")
        try:
            found = (await self.api.get("model-versions/get", name=name, version=version))["model_version"]
        except (NotFound, ParameterError):
            await self._find_model(name)
            raise NotFound(
                f"model {name!r} has no version {version}", f"list them with: %mlops models {name}"
            ) from None
        return _version_row(found, found.get("aliases", []))

    async def resolve_model(self, reference: str) -> dict[str, Any]:
        """The version row that ``name/version`` or ``name@alias`` stands for; ``latest`` may be any model's newest.

        Of ``runs:/run/path`` a row without name and version.
        """
        run = _RUN_URI.fullmatch(reference)
        if run:
            return {"name": "", "version": "", "tags": {}, **await self._model_of_run(run[1], (run[2] or "/")[1:])}
        name, at, alias = reference.rpartition("@")
        if at and name and alias:
            try:
                answer = await self.api.get("registered-models/alias", name=name, alias=alias)
            except (NotFound, ParameterError):
                row = self._model_row(await self._find_model(name))
                aliases = row["aliases"]
                if alias == "latest" and row["latest_version"]:
                    return await self.version(name, row["latest_version"])
                hint = f"its aliases: {', '.join(sorted(aliases))}" if aliases else f"use {name}/VERSION"
                raise NotFound(f"model {name!r} has no alias {alias!r}", hint) from None
            found = answer["model_version"]
            return await self.version(name, str(found["version"]))
        name, slash, version = reference.rpartition("/")
        if not slash or not name:
            raise ParameterError(f"model {reference!r} is neither NAME/VERSION nor NAME@ALIAS nor runs:/RUN/PATH")
        return await self.version(name, version)

    def _model_row(self, model: dict[str, Any]) -> dict[str, Any]:
        latest = [int(v["version"]) for v in model.get("latest_versions", [])]
        return {
            "name": model["name"],
            "description": model.get("description", ""),
            "latest_version": str(max(latest)) if latest else "",
            "aliases": {a["alias"]: str(a["version"]) for a in model.get("aliases", [])},
            "created_at": iso(model.get("creation_timestamp")),
            "updated_at": iso(model.get("last_updated_timestamp")),
        }

    # Registering

    async def logged_models(self, experiment_id: str, run_id: str) -> list[dict[str, Any]]:
        """``{model_id, name, status, artifact_uri, tags}`` of the models that a run logged, oldest first."""
        answer = await self.api.post(
            "logged-models/search", experiment_ids=[experiment_id], filter=f"source_run_id = '{run_id}'",
            max_results=50,
        )
        found = [m["info"] for m in answer.get("models", [])]
        found.sort(key=lambda info: int(info.get("creation_timestamp_ms", 0)))
        return [
            {"model_id": i["model_id"], "name": i.get("name", ""), "status": i.get("status", ""),
             "artifact_uri": i.get("artifact_uri", ""), "tags": _tags(i.get("tags", []))}
            for i in found
        ]

    async def register(
        self, name: str, run_id: str | None = None, model_id: str | None = None, artifact: str | None = None,
        alias: str | None = None, description: str = "", tags: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """A new version of ``name`` from a run's model (``artifact`` says which) or a logged model.

        Raises:
            NotFound: there is no such run or model, or the run has no model; the hint lists what it has.
        """
        if model_id:
            logged = await self._logged_model(model_id)
        elif run_id:
            logged = await self._model_of_run(run_id, artifact)
        else:
            raise ParameterError("give either run_id or model_id")
        await self._ensure_model(name)
        every = {**({INTERPRETER_TAG: logged["interpreter"]} if logged["interpreter"] else {}), **(tags or {})}
        body: dict[str, Any] = {
            "name": name, "source": logged["source"], "run_id": logged["run_id"] or None,
            "model_id": logged["model_id"] or None, "description": description or None,
            "tags": [{"key": k, "value": v} for k, v in every.items()],
        }
        made = (await self.api.post("model-versions/create", **body))["model_version"]
        version = str(made["version"])
        row = await self._await_ready(name, version)
        if alias:
            await self.set_alias(name, alias, version)
            row = await self.version(name, version)
        return row

    async def _logged_model(self, model_id: str) -> dict[str, Any]:
        try:
            info = (await self.api.get(f"logged-models/{model_id}"))["model"]["info"]
        except (NotFound, ParameterError):
            raise NotFound(f"logged model {model_id!r} does not exist") from None
        run_id = info.get("source_run_id", "")
        interpreter = _tags(info.get("tags", [])).get(INTERPRETER_TAG) or await self._interpreter_of_run(run_id)
        return {
            "source": f"models:/{model_id}", "model_id": model_id, "run_id": run_id, "interpreter": interpreter,
        }

    async def _model_of_run(self, run_id: str, artifact: str | None) -> dict[str, Any]:
        try:
            run = (await self.api.get("runs/get", run_id=run_id))["run"]
        except (NotFound, ParameterError):
            raise NotFound(f"run {run_id!r} does not exist", "list runs with: %mlops runs") from None
        logged = await self.logged_models(run["info"]["experiment_id"], run_id)
        outputs = [m.get("model_id") for m in run.get("outputs", {}).get("model_outputs", [])]
        known = {m["model_id"] for m in logged}
        for other in outputs:  # logged by one run, given out by another
            if other and other not in known:
                info = (await self.api.get(f"logged-models/{other}"))["model"]["info"]
                logged.append({"model_id": other, "name": info.get("name", ""), "status": "", "artifact_uri": "",
                               "tags": {}})
        if artifact is not None:
            wanted = artifact.strip("/")
            matching = [m for m in logged if wanted in (m["name"], m["model_id"])]
            if matching:
                return await self._logged_model(matching[-1]["model_id"])
            if await self._is_model_folder(run_id, wanted):
                return {
                    "source": f"{run['info']['artifact_uri']}/{wanted}", "model_id": "", "run_id": run_id,
                    "interpreter": await self._interpreter_of_run(run_id),
                }
            names = ", ".join(sorted({m["name"] for m in logged})) or "none"
            raise NotFound(f"run {run_id!r} has no model {artifact!r}", f"its models: {names}")
        if logged:
            return await self._logged_model(logged[-1]["model_id"])
        for folder in await self._model_folders(run_id):
            return await self._model_of_run(run_id, folder)
        raise NotFound(
            f"run {run_id!r} logged no model", "log one with mlflow.<flavor>.log_model(model, name='model')"
        )

    async def _is_model_folder(self, run_id: str, path: str) -> bool:
        answer = await self.api.get("artifacts/list", run_id=run_id, path=path)
        return any(f["path"].endswith("/MLmodel") for f in answer.get("files", []))

    async def _model_folders(self, run_id: str) -> list[str]:
        answer = await self.api.get("artifacts/list", run_id=run_id)
        folders = [f["path"] for f in answer.get("files", []) if f.get("is_dir")]
        return [f for f in folders[:20] if await self._is_model_folder(run_id, f)]

    async def _interpreter_of_run(self, run_id: str) -> str:
        if not run_id:
            return ""
        try:
            run = (await self.api.get("runs/get", run_id=run_id))["run"]
        except MlopsError:
            return ""
        return _tags(run.get("data", {}).get("tags", [])).get(INTERPRETER_TAG, "")

    async def model_interpreter(self, version: dict[str, Any]) -> str:
        """Path of the Python that made a version, as it was recorded with it, its model or its run; else empty."""
        recorded = version.get("tags", {}).get(INTERPRETER_TAG)
        if recorded:
            return recorded
        if version.get("model_id"):
            try:
                return (await self._logged_model(version["model_id"]))["interpreter"]
            except NotFound:
                pass
        return await self._interpreter_of_run(version.get("run_id", ""))

    async def _ensure_model(self, name: str) -> None:
        try:
            await self.api.get("registered-models/get", name=name)
        except NotFound:
            try:
                await self.api.post("registered-models/create", name=name)
            except Conflict:
                pass  # somebody was faster

    async def _await_ready(self, name: str, version: str) -> dict[str, Any]:
        deadline = asyncio.get_running_loop().time() + _READY_WITHIN
        while True:
            row = await self.version(name, version)
            if row["status"] != "PENDING_REGISTRATION" or asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(0.1)
        if row["status"] != "READY":
            raise Refused(f"version {version} of model {name!r} is {row['status']}", "register it again")
        return row

    async def set_alias(self, name: str, alias: str, version: str) -> None:
        """Let ``alias`` name a version."""
        await self.version(name, version)
        await self.api.post("registered-models/alias", name=name, alias=alias, version=version)

    async def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias.

        Raises:
            NotFound: the model has none of that name.
        """
        if alias not in self._model_row(await self._find_model(name))["aliases"]:
            raise NotFound(f"model {name!r} has no alias {alias!r}")
        await self.api.ask("DELETE", "registered-models/alias", body={"name": name, "alias": alias})

    async def delete_model(self, name: str) -> None:
        """Delete a model with all its versions."""
        await self._find_model(name)
        await self.api.ask("DELETE", "registered-models/delete", body={"name": name})

    async def delete_version(self, name: str, version: str) -> None:
        """Delete one version."""
        await self.version(name, version)
        await self.api.ask("DELETE", "model-versions/delete", body={"name": name, "version": version})

    # Files

    async def model_dir(self, name: str, version: str, source: str = "") -> Path:
        """The local folder with a version's files, or without a name with those at ``source``.

        Raises:
            NotFound: no such version.
            Refused: its files are not in this workspace, or they are no MLflow model.
        """
        if name:
            await self.version(name, version)
            answer = await self.api.get("model-versions/get-download-uri", name=name, version=version)
            source = str(answer.get("artifact_uri", ""))
        folder = await self._local(source)
        what = f"version {version} of model {name!r}" if name else f"the model {source}"
        if folder is None:
            raise Refused(f"the files of {what} are not kept in this workspace", "register it from one of its runs")
        if not await asyncio.to_thread((folder / "MLmodel").is_file):
            raise Refused(f"{what} has no MLmodel file", "log it with mlflow.<flavor>.log_model, then register it")
        return folder

    async def artifact(self, uri: str) -> Path:
        """The local file or folder that ``runs:/RUN/path``, ``models:/NAME/VERSION``, ``models:/NAME@ALIAS``,
        ``models:/m-ID`` or ``mlflow-artifacts:/…`` names.

        Raises:
            NotFound: there is no such run, model or path.
            Refused: it is not kept in this workspace.
        """
        folder: Path | None
        if uri.startswith("models:/") and not _MODEL_URI.fullmatch(uri):
            found = await self.resolve_model(uri.removeprefix("models:/").strip("/"))
            folder = await self.model_dir(found["name"], found["version"])
        else:
            try:
                folder = await self._local(uri)
            except (NotFound, ParameterError):
                raise NotFound(f"there is no {uri}", "list them with: %mlops runs, %mlops models") from None
        if folder is None:
            raise Refused(f"{uri} is not kept in this workspace", "name the files themselves")
        if not await asyncio.to_thread(folder.exists):
            raise NotFound(f"there is no {uri}", "look at the run's artifacts with: %mlops runs RUN")
        return folder

    async def _local(self, uri: str) -> Path | None:
        model = _MODEL_URI.fullmatch(uri)
        if model:
            info = (await self.api.get(f"logged-models/{model.group(1)}"))["model"]["info"]
            uri = info.get("artifact_uri", "")
        run = _RUN_URI.fullmatch(uri)
        if run:
            info = (await self.api.get("runs/get", run_id=run.group(1)))["run"]["info"]
            uri = info["artifact_uri"] + (run.group(2) or "")
        if not re.match(r"^mlflow-artifacts:/(?!/)", uri):
            return None
        root = self._artifacts.resolve()
        folder = (root / uri.partition(":")[2].strip("/")).resolve()
        if folder == root or root not in folder.parents:
            return None
        return folder


def _tags(tags: list[dict[str, Any]]) -> dict[str, str]:
    return {t["key"]: t.get("value", "") for t in tags}


def _version_row(version: dict[str, Any], aliases: list[str]) -> dict[str, Any]:
    tags = _tags(version.get("tags", []))
    tags.pop(REQUEST_TAG, None)
    found = _MODEL_URI.fullmatch(version.get("source", ""))
    return {
        "name": version["name"],
        "version": str(version["version"]),
        "run_id": version.get("run_id", ""),
        "model_id": version.get("model_id") or (found.group(1) if found else ""),
        "source": version.get("source", ""),
        "status": version.get("status", ""),
        "aliases": sorted(aliases),
        "description": version.get("description", ""),
        "tags": tags,
        "created_at": iso(version.get("creation_timestamp")),
    }
