"""A namespace of its own on the cluster that KUBECONFIG names; nothing of it is left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cluster_bench import IMAGE, Bench, make_namespace

from jupyter_mlops.kube.client import Kube


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def cluster():
    """The API, in the namespace ``default``; used to make namespaces only."""
    if not os.environ.get("KUBECONFIG"):
        pytest.fail("make test-cluster needs KUBECONFIG")
    kube = Kube("cluster", namespace="default")
    print(f"\nKubernetes {kube.version()}, image {IMAGE}")
    return kube


@pytest.fixture(scope="session")
def namespace(cluster):
    name = make_namespace(cluster)
    yield name
    cluster.call("DELETE", f"/api/v1/namespaces/{name}")


@pytest.fixture
def fresh_namespace(cluster):
    name = make_namespace(cluster)
    yield name
    cluster.call("DELETE", f"/api/v1/namespaces/{name}")


@pytest.fixture
def bench(tmp_path, namespace):
    bench = Bench(tmp_path, namespace)
    yield bench
    bench.driver.remove(bench.endpoint)


@pytest.fixture
def models_image():
    image = os.environ.get("CLUSTER_MODELS_IMAGE", "")
    if not image:
        pytest.skip("CLUSTER_MODELS_IMAGE is not given")
    return image
