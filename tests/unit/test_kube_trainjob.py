"""Jobs that are TrainJobs: what is made is the Job that there would be else, and needs rights of its own."""

from __future__ import annotations

import kubernetes_validate
import pytest
from test_kube_elastic import made, spec
from test_kube_jobs import NAMES
from test_kube_manifests import MINORS, violations

from jupyter_mlops.compute.kubernetes import manifests, trainjob
from jupyter_mlops.compute.kubernetes.manifests import Order
from jupyter_mlops.core.resources.compute import TrainingOptions
from jupyter_mlops.kube import access


@pytest.mark.parametrize("minor", MINORS)
def test_its_runtime_holds_the_same_job(minor):
    for job in (made(spec(), queue="team"), made(spec(least=2, most=2), queue="team")):
        runtime, train = trainjob.of(job)
        assert train["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team" and train["spec"]["suspend"] is True
        assert "kueue.x-k8s.io/queue-name" not in runtime["metadata"]["labels"], "Kueue counts the TrainJob alone"
        outer = runtime["spec"]["template"]["spec"]
        (inner,) = outer["replicatedJobs"]
        assert inner["replicas"] == 1 and outer["failurePolicy"] == {"maxRestarts": 0}
        same = {**inner["template"]["spec"], "suspend": True,
                "ttlSecondsAfterFinished": outer["ttlSecondsAfterFinished"]}
        assert same == job["spec"]
        kubernetes_validate.validate({"apiVersion": "batch/v1", "kind": "Job", "metadata": {
            "name": trainjob.job_name(NAMES.object), "labels": inner["template"]["metadata"]["labels"]},
            "spec": inner["template"]["spec"]}, minor, strict=True)
        assert violations(inner["template"]["spec"]["template"]["spec"]) == []


def test_pods_have_the_names_of_a_jobset():
    order = Order(spec(), TrainingOptions.model_validate({"image": "a:1", "flavour": "trainjob"}), "a:1")
    assert manifests.address(NAMES, order) % 1 == f"{NAMES.object}-node-0-1.{NAMES.object}:29400"
    assert len(f"{'n' * 46}-node-0-999") <= 63, "a host name"


def test_it_needs_rights_of_its_own():
    def groups(**more):
        return {rule["apiGroups"][0] for rule in access.role("m", "ns", serving=False, **more)["rules"]}

    assert trainjob.GROUP in groups(trainjobs=True) and trainjob.GROUP not in groups()
