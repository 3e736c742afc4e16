"""Controllers: compare what was asked with what is so, and act; idempotent and level-triggered."""

from .base import Controller
from .canary import CanaryController
from .deployment import DeploymentController
from .endpoint import EndpointController
from .job import JobController

__all__ = ["CanaryController", "Controller", "DeploymentController", "EndpointController", "JobController"]
