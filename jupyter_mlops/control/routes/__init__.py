"""The routes, grouped by what they are about; importing a module registers its operations."""

from . import blobs, data, delivery, endpoints, jobs, logs, models, retention, runs, workspace

__all__ = ["blobs", "data", "delivery", "endpoints", "jobs", "logs", "models", "retention", "runs", "workspace"]
