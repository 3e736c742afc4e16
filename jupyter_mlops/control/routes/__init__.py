"""The routes, grouped by what they are about; importing a module registers its operations."""

from . import endpoints, jobs, models, retention, runs, workspace

__all__ = ["endpoints", "jobs", "models", "retention", "runs", "workspace"]
