"""Blobs that jobs need, streamed in; results that jobs bring back, streamed out."""

from __future__ import annotations

import asyncio
from typing import Any

from tornado import web

from ...core.blobs import MAX_BLOB, Upload, check_digest
from ...core.errors import MlopsError, NotFound, ParameterError, TooLarge
from ...core.resources import TERMINAL
from ...streaming import DRAIN_BYTES
from ..base import OperationHandler
from ..operations import Answer, Call, operation

_BLOB = "/workspaces/{ws}/blobs/{sha256}"


@web.stream_request_body
class BlobHandler(OperationHandler):
    """Takes a body of any size in flat memory: it is hashed and written as it comes."""

    upload: Upload | None = None
    _failure: MlopsError | None = None

    def prepare(self) -> None:
        super().prepare()
        if self.request.method != "PUT":
            return
        connection: Any = self.request.connection
        connection.set_max_body_size(MAX_BLOB)
        length = self.request.headers.get("Content-Length", "")
        size = int(length) if length.isascii() and length.isdigit() else 0
        if size > MAX_BLOB:
            raise TooLarge(f"a blob has at most {MAX_BLOB} bytes", "put the data into a file and read that")
        try:
            self.require("jobs/write")
            self.upload = self.plane.blobs.receive(check_digest(self.path_args[-1]))
        except MlopsError as error:
            # An answer before the end of the body would close the connection under the client that still sends.
            if size > DRAIN_BYTES:
                raise
            connection.set_max_body_size(DRAIN_BYTES)
            self._failure = error

    async def data_received(self, chunk: bytes) -> None:
        if self.upload is None or self._failure is not None:
            return
        try:
            await asyncio.to_thread(self.upload.write, chunk)
        except MlopsError as error:
            self._failure = error
        except OSError as error:
            self._failure = MlopsError(f"the blob cannot be written: {error.strerror}", "see: jupyter mlops doctor")

    async def put(self, *arguments: str) -> None:
        if self._failure is not None:
            raise self._failure
        await self._serve(*arguments)

    def on_connection_close(self) -> None:
        if self.upload is not None:
            self.upload.abort()
        super().on_connection_close()

    def on_finish(self) -> None:
        if self.upload is not None:
            self.upload.abort()
        super().on_finish()


@operation(
    "PUT", _BLOB, "Upload a blob", "jobs/write", handler=BlobHandler, raw_body=True,
    content="application/octet-stream", responses={201: None}, errors=(413,),
)
async def put_blob(call: Call) -> Answer:
    """The body's SHA-256 is its name; sending it again changes nothing. A job that names it is submitted afterwards."""
    digest = check_digest(call.path["sha256"])
    if call.upload is None:
        raise ParameterError("there is no body")
    await asyncio.to_thread(call.upload.finish)
    return Answer(201, headers={"ETag": f'"{digest}"'})


@operation("HEAD", _BLOB, "Ask for a blob", "jobs/write", handler=BlobHandler, responses={204: None})
async def head_blob(call: Call) -> Answer:
    """Whether it is there; it then stays for a day at least."""
    digest = check_digest(call.path["sha256"])
    size = await asyncio.to_thread(call.plane.blobs.size, digest)
    if size is None:
        raise NotFound(f"there is no blob {digest}", "upload it")
    return Answer(204, headers={"ETag": f'"{digest}"', "X-Blob-Size": str(size)})


@operation(
    "GET", "/workspaces/{ws}/jobs/{name}/returns", "Read what a job brought back", "jobs/read",
    responses={200: None},
)
async def get_returns(call: Call) -> Answer:
    """A payload of variables, as ``docs/cells.md`` describes it. Reading it executes code of the job: do that only
    where the job's submitter would."""
    name = call.path["name"]
    job = await call.plane.workspace.get(call.identity, "job", name)
    asked: Any = (job.spec.get("cell") or {}).get("returns") or []
    if not asked:
        raise NotFound(f"job {name!r} was not asked to bring anything back", "name variables with --returns")
    if job.status.get("phase") not in TERMINAL:
        raise NotFound(f"job {name!r} has not ended", "wait for it")
    folder = call.plane.jobs.ref(name).folder.resolve()
    path = folder / "returns" / "payload.pkl"
    # The job may have left a link to what belongs to somebody else.
    if job.status.get("phase") != "Completed" or not path.is_file() or path.resolve() != path:
        reasons = [v.get("detail") for v in job.status.get("returned") or [] if v.get("detail")]
        why = reasons[0] if reasons else f"it is {job.status.get('phase')}: {job.status.get('reason') or 'no reason'}"
        raise NotFound(f"job {name!r} brought nothing back", str(why))
    return Answer(file=path, content_type="application/octet-stream")
