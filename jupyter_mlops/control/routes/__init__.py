"""The routes, grouped by what they are about; importing a module registers its operations."""

from . import (
    batch,
    blobs,
    computes,
    data,
    delivery,
    endpoints,
    jobs,
    logs,
    models,
    records,
    retention,
    runs,
    tensorboard,
    workspace,
)

__all__ = [
    "batch", "blobs", "computes", "data", "delivery", "endpoints", "jobs", "logs", "models", "records",
    "retention", "runs", "tensorboard", "workspace",
]
