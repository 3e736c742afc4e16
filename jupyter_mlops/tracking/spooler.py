"""Brings the spool of a job into MLflow: artifacts and models that a rank could not hand over itself.

What an entry looks like is told in :mod:`jupyter_mlops.runtime.spool`.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..core.errors import MlopsError, ParameterError, Refused
from ..runtime import spool
from ..runtime.jobfolder import private_folder
from ..runtime.journal import Call
from .delivery import API, MALFORMED, Sender, Tally, json_object, message_of
from .proxy import REQUEST_TAG

ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts/"
REFUSED = "refused"
#: Bytes up to which a model's description is one.
_MAX_MLMODEL = 4 * 1024 * 1024
_LOCAL = re.compile(re.escape(spool.LOCAL_ID) + r"[0-9a-f]{20}")


def entries(folder: Path) -> list[str]:
    """Names of the complete entries, in order."""
    return [name for name in spool.names(folder) if os.path.exists(folder / name / spool.ENTRY)]


def size(folder: Path, names: list[str]) -> int:
    """Bytes of the files of these entries."""
    total = 0
    for name in names:
        try:
            total += sum(f.stat().st_size for f in os.scandir(folder / name / spool.DATA))
        except OSError:
            continue
    return total


class Spooler:
    """Delivers entries in order, one at a time.

    Args:
        models: local id → MLflow's id of models that were made here; added to.
        save: keeps ``models`` for good; called before an entry that changed it is removed.
    """

    def __init__(
        self, sender: Sender, folder: Path, run: str, models: dict[str, str], save: Callable[[], Awaitable[Any]]
    ) -> None:
        self._sender = sender
        self._folder = folder
        self._run = run
        self._models = models
        self._save = save
        self._lock = asyncio.Lock()
        self._places: dict[tuple[str, str], str] = {}

    async def deliver(self, tally: Tally) -> bool:
        """Deliver all entries that are complete; whether there were any."""
        async with self._lock:
            names = await asyncio.to_thread(entries, self._folder)
            for name in names:
                await self._entry(name, tally)
            return bool(names)

    async def _entry(self, name: str, tally: Tally) -> None:
        content = await asyncio.to_thread(spool.entry, self._folder, name)
        try:
            kind = content.get("kind")
            if kind == "artifact":
                await self._artifact(self._folder / name, content)
            elif kind == "model":
                await self._model(content)
            elif kind == "call":
                text = json.dumps(dict(content.get("body") or {}, model_id=content.get("model_id")))
                body = json.loads(_LOCAL.sub(lambda found: self.real(found[0]), text))
                told = Tally()
                await self._sender.call(Call(str(content.get("api")), body), told)
                if told.rejected:
                    raise Refused(told.message)
            else:
                raise ParameterError("an entry that is not known")
        except (MlopsError, *MALFORMED) as e:
            why = e.message if isinstance(e, MlopsError) else f"malformed: {e}"
            tally.rejected += 1
            tally.message = f"spool: {content.get('file') or content.get('kind') or name}: {why}"[:500]
            await asyncio.to_thread(_refuse, self._folder, name)
            return
        tally.delivered += 1
        await asyncio.to_thread(spool.remove, self._folder, name)

    def real(self, model_id: str) -> str:
        """MLflow's id of a model.

        Raises:
            Refused: a local id of which there is no model.
        """
        if not spool.is_local(model_id):
            return model_id
        if model_id not in self._models:
            raise Refused(f"model {model_id} was not made")
        return self._models[model_id]

    async def resolve(self, text: str, tally: Tally) -> str:
        """A message with real ids for the local ones in it; first the models are made that wait to be.

        Raises:
            Refused: one cannot be.
        """
        if any(found not in self._models for found in _LOCAL.findall(text)):
            await self.deliver(tally)
        return _LOCAL.sub(lambda found: self.real(found[0]), text)

    async def _model(self, content: dict[str, Any]) -> None:
        local, experiment = str(content.get("local_id")), str(content.get("experiment_id"))
        if local in self._models or not spool.is_local(local):
            return
        # We may have died right after making it: the tag tells.
        found = await self._post("POST", API + "logged-models/search", {
            "experiment_ids": [experiment], "max_results": 1, "filter": f"tags.`{REQUEST_TAG}` = '{local}'",
        })
        made = (found.get("models") or [None])[0]
        if made is None:
            source = str(content.get("source_run_id") or self._run)
            await self._sender.require(lambda: self._sender.permit.run(source))
            pairs = {
                kind: [{"key": str(k), "value": str(v)} for k, v in (content.get(kind) or {}).items()]
                for kind in ("tags", "params")
            }
            pairs["tags"].append({"key": REQUEST_TAG, "value": local})
            body = {
                "experiment_id": experiment, "name": content.get("name"), "model_type": content.get("model_type"),
                "source_run_id": source, **pairs,
            }
            made = (await self._post(
                "POST", API + "logged-models", {k: v for k, v in body.items() if v is not None}
            ))["model"]
        self._models[local] = made["info"]["model_id"]
        await self._save()

    async def _post(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        status, answer = await self._sender.post(method, path, None if body is None else json.dumps(body).encode())
        if status >= 300:
            raise Refused(message_of(answer, status))
        return json_object(answer)

    async def _artifact(self, folder: Path, content: dict[str, Any]) -> None:
        source = folder / str(content.get("file"))
        if source.parent != folder / spool.DATA or not source.is_file() or source.is_symlink():
            raise ParameterError("its file is missing")
        if content.get("model_id"):
            place = await self._place("model", self.real(str(content["model_id"])))
        else:
            place = await self._place("run", str(content.get("run_id") or self._run))
        target = "/".join(filter(None, [place, str(content.get("path") or "").strip("/"), source.name]))
        path = ARTIFACTS + quote(target)
        await self._sender.require(lambda: self._sender.permit.request("PUT", path))
        body: Any = None
        if source.name == "MLmodel" and source.stat().st_size <= _MAX_MLMODEL:
            data = await asyncio.to_thread(source.read_text, "utf-8", "replace")
            if _LOCAL.search(data):
                body = _LOCAL.sub(lambda found: self._models.get(found[0], found[0]), data).encode()
        status, answer = await self._sender.post(
            "PUT", path, partial(open, source, "rb") if body is None else body
        )
        if status >= 300:
            raise Refused(message_of(answer, status))

    async def _place(self, kind: str, name: str) -> str:
        """Path of the artifacts of a run or model below MLflow's artifacts."""
        known = self._places.get((kind, name))
        if known is None:
            if kind == "run":
                found = await self._post("GET", f"{API}runs/get?run_id={quote(name, safe='')}")
                uri = str(found.get("run", {}).get("info", {}).get("artifact_uri", ""))
            else:
                found = await self._post("GET", f"{API}logged-models/{quote(name, safe='')}")
                uri = str(found.get("model", {}).get("info", {}).get("artifact_uri", ""))
            scheme, _, path = uri.partition(":")
            if scheme != "mlflow-artifacts" or path.startswith("//"):
                raise Refused(f"the artifacts of {kind} {name} do not lie with us")
            known = self._places[kind, name] = path.strip("/")
        return known


def _refuse(folder: Path, name: str) -> None:
    """Put an entry aside; a repeat finds it there."""
    try:
        private_folder(folder / REFUSED)
        os.replace(folder / name, folder / REFUSED / name)
    except OSError:
        spool.remove(folder, name)
