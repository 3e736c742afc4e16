"""What of a job is looked at before anything of it is made on a cluster."""

from __future__ import annotations

import os
from typing import Any

from ...core.errors import Refused
from ...core.resources.compute import DEFAULT_INSTANCE, ComputeSpec, InstanceType
from ...core.resources.job import JobSpec
from ...kube.client import Kube
from . import shelf, volumes
from .images import Images
from .manifests import Order
from .priority import Classes


class Admission:
    """Of the jobs of one compute.

    Args:
        images: what is known of images there.
    """

    def __init__(self, kube: Kube, spec: ComputeSpec, images: Images) -> None:
        self.kube = kube
        self.spec = spec
        self.images = images
        self._classes = Classes(kube, spec.training)

    def check(self, job: JobSpec) -> None:
        """Refuse what cannot run there.

        Raises:
            Refused: see its message.
        """
        name = self.kube.cluster
        self._instance(job)
        self._classes.check(job)
        if not self._image(job):
            raise Refused(f"compute '{name}' has no image for jobs",
                          "give one with --image, or an operator sets training.image in the compute")
        if job.batch is not None:
            raise Refused("batch runs do not run on clusters yet", "run it on `local`")
        if job.script is not None and (not job.code or os.path.isabs(job.script)):
            raise Refused(f"the script {job.script} is not on compute '{name}'",
                          "send its folder as `code` and name it relative to that, as %mlops train does")
        if job.cwd and job.command is not None:
            raise Refused(f"the folder {job.cwd} is not on compute '{name}'", "leave cwd out: it is outputs/ there")
        for what, given in job.files.items():
            if not given.scheme and not given.blob:
                raise Refused(f"input {what}: {given.path} is not on compute '{name}'",
                              "submit it with --input, which sends it along, or name a claim or a URL")
        for what, output in job.outputs.items():
            if output.path and not output.claim:
                raise Refused(f"output {what}: {output.path} is not on compute '{name}'",
                              "leave the path out and it is brought back, or name a claim")
        if volumes.named(job):
            volumes.check(self.kube, self.spec.training, job)
        shelf.check(self.kube, self.spec.training, job)
        if job.resources.gpus != int(job.resources.gpus):
            raise Refused("a cluster gives whole GPUs", "ask for whole ones, or name a share as training.gpu_resource")
        self.images.check(job, self._image(job))
        most = self.spec.training.max_nodes
        asked = max(job.resources.instance_count, job.resources.max_instance_count or 1)
        if most and asked > most:
            raise Refused(f"{asked} nodes are more than compute '{name}' allows ({most})",
                          f"use --nodes {most} or fewer")

    def warnings(self, order: Order) -> list[str]:
        """What may matter and does not stand in the way, a line each. Raises Refused as :meth:`check`."""
        told = self.images.check(order.spec, order.image)
        if order.specs and self.images.recent(order.image) is None:
            told.append(f"the image {order.image} has not been seen here: the conda file needs one with micromamba, "
                        "mamba or conda")
        if order.specs and order.spec.resources.gpus and not order.options.conda.cuda:
            told.append("there is no GPU while the conda file's environment is made: its packages may be those for "
                        "CPUs, unless the file names builds for CUDA or an operator sets training.conda.cuda")
        return told

    def order(self, spec: dict[str, Any], timeout: float | None = None, shelf: str = "") -> Order:
        """What is made of a job.

        Args:
            spec: the job's; the notebook's folder and its Python are not there.
            timeout: seconds that it may take.
            shelf: name of its folder in a claim.

        Raises:
            Refused: there is no such kind of node.
        """
        job = JobSpec.model_validate({**spec, "cwd": "", "interpreter": ""})
        return Order(job, self.spec.training, self._image(job), timeout, self._instance(job), shelf=shelf)

    def _image(self, job: JobSpec) -> str:
        return (job.environment.image if job.environment else "") or self.spec.training.image

    def _instance(self, job: JobSpec) -> InstanceType:
        """The kind of node that a job asks for. Raises Refused when there is no such kind."""
        known, name = self.spec.instance_types, job.resources.instance_type
        if name and name not in known:
            raise Refused(f"compute '{self.kube.cluster}' has no instance type '{name}'",
                          f"it has {', '.join(sorted(known))}" if known else "it has none: leave --instance out")
        return known.get(name or DEFAULT_INSTANCE) or InstanceType()
