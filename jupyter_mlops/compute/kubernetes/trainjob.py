"""An attempt as a TrainJob of Kubeflow Trainer, where the operator wants jobs to be seen there.

A TrainJob says which runtime it is of, and can add no container to it. So each attempt has a TrainingRuntime of its
own, whose only Job is the one that there would be without Trainer; the TrainJob owns that, too. Trainer makes a JobSet
of them, the JobSet the Job, under a name of its own.
"""

from __future__ import annotations

from typing import Any

from ...core.errors import Refused
from ...kube.client import Kube

GROUP, KIND, RUNTIME = "trainer.kubeflow.org", "TrainJob", "TrainingRuntime"
_API = f"{GROUP}/v1alpha1"
#: Name of the Job within its JobSet.
_JOB = "node"


def job_name(name: str) -> str:
    """The Job that a TrainJob comes to be; its pods have their number behind it."""
    return f"{name}-{_JOB}-0"


def of(job: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The TrainingRuntime and the suspended TrainJob of what would be a Job."""
    name, labels = job["metadata"]["name"], job["metadata"]["labels"]
    spec = {k: v for k, v in job["spec"].items() if k not in ("suspend", "ttlSecondsAfterFinished")}
    theirs = job["spec"]["template"]["metadata"]["labels"]
    runtime = {"apiVersion": _API, "kind": RUNTIME, "metadata": {"name": name, "labels": theirs}, "spec": {
        "template": {"spec": {
            "failurePolicy": {"maxRestarts": 0},  # whether there is a further attempt the control plane decides
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True, "subdomain": name},
            "replicatedJobs": [{"name": _JOB, "replicas": 1,
                                "template": {"metadata": {"labels": theirs}, "spec": spec}}],
            "ttlSecondsAfterFinished": job["spec"]["ttlSecondsAfterFinished"]}}}}
    train = {"apiVersion": _API, "kind": KIND, "metadata": {"name": name, "labels": labels}, "spec": {
        "suspend": True, "runtimeRef": {"apiGroup": GROUP, "kind": RUNTIME, "name": name}}}
    return runtime, train


def check(kube: Kube) -> None:
    """Refuse what cannot be made there.

    Raises:
        Refused: the cluster has no Trainer.
    """
    if not kube.has_group(GROUP):
        raise Refused(f"jobs of compute '{kube.cluster}' are TrainJobs, and the cluster has no Kubeflow Trainer",
                      "an operator installs it, or leaves training.flavour out")
