"""TensorBoard over what jobs, runs and folders hold."""

from __future__ import annotations

from .. import job_schemas
from ..operations import Answer, Call, operation
from ..tensorboard import ACTION, count_events, key_of, open_board


@operation(
    "POST", "/workspaces/{ws}/tensorboards", "Open TensorBoard", ACTION, body=job_schemas.OpenTensorboard,
    responses={200: job_schemas.Tensorboard}, errors=(422, 502, 504),
)
async def open_tensorboard(call: Call) -> Answer:
    """Answers when it is up; the same sources again give the same one. It ends when nobody has asked it for a while."""
    key = await key_of(call.plane, call.identity, call.body.sources, call.body.interpreter)
    _, sources = await open_board(call.plane, call.identity, key)
    return Answer(body=job_schemas.Tensorboard(
        path=f"tensorboard/{key}/", event_files=await count_events(sources),
        sources=[job_schemas.TensorboardSource(name=name, folder=str(folder)) for name, folder in sources]))
