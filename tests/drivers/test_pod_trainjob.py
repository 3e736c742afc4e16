"""Jobs that are TrainJobs, against an emulated API that makes of them what Kubeflow Trainer would."""

from __future__ import annotations

import base64
import json

import kubernetes_validate
import pytest
from conformance import wait_for
from test_pods import bench as pod_bench
from test_pods import server

from jupyter_mlops.compute.kubernetes import trainjob
from jupyter_mlops.compute.kubernetes.survey import survey
from jupyter_mlops.core.errors import Refused

__all__ = ["pod_bench", "server"]


@pytest.fixture
def bench(pod_bench):
    pod_bench.driver = pod_bench.another(flavour="trainjob")
    return pod_bench


@pytest.fixture
def trainer(server):
    server.groups.add(trainjob.GROUP)


@pytest.mark.usefixtures("trainer")
def test_it_runs_to_its_end_and_leaves_nothing(bench, server):
    job = bench.cell("train", "print('ran')\nimport time\ntime.sleep(1)")
    (train,) = server.of("trainjobs")
    (runtime,) = server.of("trainingruntimes")
    assert runtime["metadata"]["ownerReferences"][0]["uid"] == train["metadata"]["uid"]
    (owned,) = server.of("secrets")
    assert owned["metadata"]["ownerReferences"][0]["kind"] == "TrainJob" and not server.of("services")
    (made,) = server.of("jobs")
    kubernetes_validate.validate({k: v for k, v in made.items() if k != "status"}, "1.36", strict=False)
    seen = bench.ended(job)
    assert seen.phase == "completed" and bench.log(job) == "ran\n", seen
    wait_for(lambda: not server.objects, 20)


@pytest.mark.usefixtures("trainer")
def test_a_stop_and_a_trainjob_that_somebody_deletes(bench, server):
    job = bench.cell("stopped", "print('up')\nimport time\ntime.sleep(60)")
    bench.says(job, "up")
    bench.driver.stop(job, 1, 1.0)
    assert bench.ended(job).phase == "canceled"
    wait_for(lambda: not server.objects, 20)
    job = bench.cell("deleted", "print('up')\nimport time\ntime.sleep(60)")
    bench.says(job, "up")
    bench.driver.kube.delete("TrainJob", server.of("trainjobs")[0]["metadata"]["name"])
    seen = bench.ended(job, 60)
    assert (seen.phase, seen.cause, seen.reason) == ("failed", "deleted", "its Job was deleted on the cluster")


@pytest.mark.usefixtures("trainer")
def test_pods_have_the_names_that_trainer_gives_them(bench, server):
    server.hold_pods = []
    job = bench.job("two", cell={"source": ""}, distribution={"type": "pytorch"}, resources={"instance_count": 2})
    bench.driver.start(job, 1, {})
    (train,) = server.of("trainjobs")
    (secret,) = (s for s in server.of("secrets") if s["metadata"]["name"].endswith("-boot"))
    order = json.loads(base64.b64decode(secret["data"]["order.json"]))
    name = train["metadata"]["name"]
    assert order["address"] == f"{name}-node-0-%d.{name}:29400"
    (runtime,) = server.of("trainingruntimes")
    spec = runtime["spec"]["template"]["spec"]
    assert spec["network"]["subdomain"] == name
    assert spec["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["subdomain"] == name


def test_without_trainer_it_is_refused_before_anything_is_made(bench, server):
    job = bench.job("none", cell={"source": ""})
    with pytest.raises(Refused, match="no Kubeflow Trainer"):
        bench.driver.start(job, 1, {})
    assert not server.objects
    seen = bench.driver.preview("none", {"cell": {"source": ""}})
    assert seen["fits"] is False and "no Kubeflow Trainer" in seen["reasons"][0]
    found = survey(bench.driver.kube, bench.driver.spec)
    assert any("no Kubeflow Trainer" in p["message"] and p["fatal"] for p in found["problems"])
