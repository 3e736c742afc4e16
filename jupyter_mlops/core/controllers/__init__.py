"""Controllers: compare what was asked with what is so, and act; idempotent and level-triggered."""

from .base import Controller
from .deployment import DeploymentController
from .endpoint import EndpointController
from .job import JobController

__all__ = ["Controller", "DeploymentController", "EndpointController", "JobController"]
