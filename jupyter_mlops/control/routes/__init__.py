"""The routes, grouped by what they are about; importing a module registers its operations."""

from . import batch, blobs, data, delivery, endpoints, jobs, logs, models, records, retention, runs, workspace

__all__ = [
    "batch", "blobs", "data", "delivery", "endpoints", "jobs", "logs", "models", "records",
    "retention", "runs", "workspace",
]
