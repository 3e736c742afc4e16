"""The routes, grouped by what they are about; importing a module registers its operations."""

from . import blobs, delivery, endpoints, jobs, logs, models, retention, runs, workspace

__all__ = ["blobs", "delivery", "endpoints", "jobs", "logs", "models", "retention", "runs", "workspace"]
