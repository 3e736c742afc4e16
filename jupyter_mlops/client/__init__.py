"""Python client of the REST API: an async core (:class:`AsyncClient`) and its blocking twin (:class:`Client`).

>>> from jupyter_mlops.client import Client
>>> client = Client()
>>> client.jobs()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .aio import AsyncClient
    from .deployment import Deployment
    from .job import Job, JobFailed, JobTable
    from .model import Model, ModelTable, ModelVersion
    from .run import Comparison, Run, RunTable
    from .serving import Endpoint, EndpointTable
    from .sync import Client

#: Loaded on first use: aiohttp alone costs a tenth of a second.
_HOME = {
    "AsyncClient": "aio", "Client": "sync",
    "Job": "job", "JobFailed": "job", "JobTable": "job",
    "Run": "run", "RunTable": "run", "Comparison": "run",
    "Model": "model", "ModelTable": "model", "ModelVersion": "model",
    "Endpoint": "serving", "EndpointTable": "serving", "Deployment": "deployment",
}

__all__ = [
    "AsyncClient", "Client", "Comparison", "Deployment", "Endpoint", "EndpointTable", "Job", "JobFailed", "JobTable",
    "Model", "ModelTable", "ModelVersion", "Run", "RunTable",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
