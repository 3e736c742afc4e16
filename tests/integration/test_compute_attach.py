"""Attaching a cluster: what is asked of it first, what stands in the way, and that nothing is saved then."""

from __future__ import annotations

import json

import pytest
from aiohttp import web
from conftest import Plane, make_home
from kube_server import KubeServer, status

from jupyter_mlops.compute.kubernetes.survey import survey
from jupyter_mlops.core.errors import BackendUnreachable, NotFound, ParameterError, Refused
from jupyter_mlops.core.resources.compute import ComputeSpec
from jupyter_mlops.kube.client import Kube
from jupyter_mlops.magics import commands
from jupyter_mlops.magics.context import Context
from jupyter_mlops.magics.parser import parse, split

NODE = {"metadata": {"name": "n1", "labels": {"gpu": "a"}}, "spec": {}, "status": {
    "allocatable": {"cpu": "7500m", "memory": "31Gi", "nvidia.com/gpu": "4", "hugepages-2Mi": "0", "pods": "110"},
    "conditions": [{"type": "Ready", "status": "True"}]}}
CLOSED = {"metadata": {"name": "n2"}, "spec": {"unschedulable": True, "taints": [{"key": "a", "effect": "NoExecute"}]},
          "status": {"allocatable": {"cpu": "8"}, "conditions": [{"type": "Ready", "status": "True"}]}}
POD = {"metadata": {"name": "p"}, "spec": {"nodeName": "n1", "containers": [
    {"resources": {"requests": {"cpu": "500m", "memory": "1Gi", "nvidia.com/gpu": "1"}}}]}}
QUOTA = {"metadata": {"name": "small"}, "status": {"hard": {"requests.cpu": "10", "pods": "5"}, "used": {"pods": "2"}}}


class Cluster:
    """What the emulated server says of the whole cluster."""

    def __init__(self, server: KubeServer) -> None:
        self.server = server
        self.namespaces = {"team": {"pod-security.kubernetes.io/enforce": "restricted"}}
        self.forbidden: set[str] = set()
        self.made: list[dict] = []
        server.fault = self.answer

    def answer(self, request: web.Request) -> web.Response | None:
        path = request.path
        if path in self.forbidden:
            return status(403, f'cannot list resource "{path}"', "Forbidden")
        if path == "/api/v1/nodes":
            return web.json_response({"items": [NODE, CLOSED]})
        if path == "/api/v1/pods":
            return web.json_response({"items": [POD], "metadata": {}})
        if path == "/api/v1/namespaces" and request.method == "POST":
            self.made.append({})
            self.namespaces["new"] = {}
            return web.json_response({"metadata": {"name": "new", "labels": {}}}, status=201)
        if path.startswith("/api/v1/namespaces/") and path.count("/") == 4:
            name = path.split("/")[4]
            if name not in self.namespaces:
                return status(404, f'namespaces "{name}" not found', "NotFound")
            return web.json_response({"metadata": {"name": name, "labels": self.namespaces[name]}})
        if path.endswith("/resourcequotas"):
            return web.json_response({"items": [QUOTA]})
        return None


@pytest.fixture
def server():
    server = KubeServer().start()
    server.allowed = lambda asked: True
    yield server
    server.stop()


@pytest.fixture
def cluster(server):
    return Cluster(server)


def ask(server, tmp_path, namespace="team", create=False, **more):
    spec = ComputeSpec(type="kubernetes", namespace=namespace, context="emulated", training={"image": "a:1"}, **more)
    return survey(Kube("gpu", "emulated", namespace, server.kubeconfig(tmp_path)), spec, create)


def test_a_cluster_is_described(server, cluster, tmp_path):
    server.groups |= {"metrics.k8s.io", "kueue.x-k8s.io"}
    found = ask(server, tmp_path)
    assert found["version"] == "v1.36.0" and not found["problems"] and not found["missing"] and found["role"] is None
    assert found["namespace"] == {"name": "team", "exists": True, "level": "restricted"}
    assert found["engines"] == {"kueue": True, "trainer": False, "mpi": False, "gateway_api": False, "metrics": True}
    assert found["capacity"] == {"cpus": 7.5, "memory_bytes": 31 * 2**30, "nvidia.com/gpu": 4}
    assert found["free"] == {"cpus": 7.0, "memory_bytes": 30 * 2**30, "nvidia.com/gpu": 3}
    assert [(n["name"], n["usable"], n["taints"]) for n in found["nodes"]] == [
        ("n1", True, []), ("n2", False, ["a:NoExecute"])]
    assert found["quotas"] == [{"quota": "small", "resource": "pods", "hard": "5", "used": "2"},
                               {"quota": "small", "resource": "requests.cpu", "hard": "10", "used": "0"}]


def test_what_may_not_be_seen_is_not_guessed(server, cluster, tmp_path):
    cluster.forbidden = {"/api/v1/nodes", "/api/v1/namespaces/team", "/api/v1/pods"}
    found = ask(server, tmp_path)
    assert found["nodes"] is found["capacity"] is found["free"] is None
    assert found["namespace"]["exists"] is None and not found["problems"]


def test_permissions_that_are_missing_come_with_the_role(server, cluster, tmp_path):
    server.allowed = lambda asked: (asked["resource"], asked["verb"]) not in {("jobs", "create"), ("pods", "watch")}
    found = ask(server, tmp_path)
    assert found["missing"] == ["create jobs", "watch pods"]
    (problem,) = found["problems"]
    assert problem["fatal"] and problem["message"] == "no permission to create jobs, watch pods"
    rules = found["role"]["rules"]
    assert found["role"]["metadata"]["namespace"] == "team" and {"apiGroups": ["batch"], "resources": ["jobs"],
                                                                 "verbs": ["get", "create", "patch", "delete"]} in rules
    assert not any("deployments" in r["resources"] for r in rules), "it is for jobs alone"


def test_a_namespace_that_is_not_there(server, cluster, tmp_path):
    found = ask(server, tmp_path, "new")
    assert found["namespace"]["exists"] is False
    assert found["problems"][0]["message"] == "there is no namespace 'new'" and not cluster.made
    again = ask(server, tmp_path, "new", create=True)
    assert again["namespace"]["exists"] is True and cluster.made and not again["problems"]


def test_instance_types_and_queues_that_fit_nothing(server, cluster, tmp_path):
    types = {"a": {"nodeSelector": {"gpu": "b"}}, "b": {"resources": {"limits": {"nvidia.com/gpu": "8"}}},
             "c": {"nodeSelector": {"gpu": "a"}, "resources": {"limits": {"nvidia.com/gpu": "4"}}}}
    found = ask(server, tmp_path, instance_types=types)
    assert [p["message"] for p in found["problems"]] == [
        "no node has the labels that instance type 'a' wants",
        "instance type 'b' asks for more than any of its nodes has"]
    assert not any(p["fatal"] for p in found["problems"])
    spec = ComputeSpec(type="kubernetes", namespace="team", training={"image": "a:1", "queue": "team-q"})
    kube = Kube("gpu", "emulated", "team", server.kubeconfig(tmp_path))
    assert "has no Kueue" in survey(kube, spec)["problems"][0]["message"]
    server.groups.add("kueue.x-k8s.io")
    kube = Kube("gpu", "emulated", "team", server.kubeconfig(tmp_path))
    assert "no LocalQueue 'team-q'" in survey(kube, spec)["problems"][0]["message"]


@pytest.mark.parametrize(("level", "fatal"), [
    ("restricted", True), ("baseline", True), ("privileged", False), ("", False)])
def test_a_folder_of_the_nodes_as_package_cache(server, cluster, tmp_path, level, fatal):
    cluster.namespaces["team"] = {"pod-security.kubernetes.io/enforce": level} if level else {}
    spec = ComputeSpec(type="kubernetes", namespace="team", training={
        "image": "a:1", "package_cache": {"host_path": "/var/lib/mlops"}})
    found = survey(Kube("gpu", "emulated", "team", server.kubeconfig(tmp_path)), spec)
    assert found["package_cache"] == {"kind": "host_path", "name": "/var/lib/mlops", "size": "20Gi", "access_modes": []}
    told = [p["message"] for p in found["problems"] if p["fatal"]]
    words = f"Pod Security {level} of the namespace admits no folder of a node (/var/lib/mlops)"
    assert told == ([words] if fatal else [])


def test_how_large_files_come_back(server, cluster, tmp_path):
    def ask_for(**training):
        spec = ComputeSpec(type="kubernetes", namespace="team", training={"image": "a:1", **training})
        return survey(Kube("gpu", "emulated", "team", server.kubeconfig(tmp_path)), spec)

    assert ask_for()["transfer"] == {"way": "proxy", "why": ""}
    assert ask_for(transfer="exec")["transfer"]["way"] == "exec"
    server.allowed = lambda asked: asked["subresource"] != "proxy"
    found = ask_for()
    assert found["transfer"] == {"way": "exec", "why": "no permission to get pods/proxy"}
    assert not found["missing"], "it goes without"


def test_a_claim_as_package_cache_and_the_secret_of_the_index(server, cluster, tmp_path):
    def ask_for(**training):
        spec = ComputeSpec(type="kubernetes", namespace="team", training={"image": "a:1", **training})
        return survey(Kube("gpu", "emulated", "team", server.kubeconfig(tmp_path)), spec)

    assert ask_for()["package_cache"]["kind"] == "pod"
    both = {"package_cache": {"claim": "packages"}, "pip": {"secret": "index"}}
    assert [p["message"] for p in ask_for(**both)["problems"] if p["fatal"]] == [
        "there is no Secret 'index' in namespace 'team'",
        "there is no claim 'packages', which training.package_cache names"]
    server.put("secrets", {"metadata": {"name": "index"}, "data": {"pip.conf": "eA=="}})
    server.put("persistentvolumeclaims", {"metadata": {"name": "packages"}, "spec": {"accessModes": ["ReadWriteOnce"]},
                                          "status": {"phase": "Bound"}})
    found = ask_for(**both)
    assert found["package_cache"]["access_modes"] == ["ReadWriteOnce"]
    (problem,) = found["problems"]
    assert "of training.package_cache is for one node (ReadWriteOnce)" in problem["message"] and not problem["fatal"]
    assert not ask_for(**both, max_nodes=1)["problems"]


def test_a_cluster_that_is_away(server, cluster, tmp_path):
    server.fault = lambda request: status(500, "broken", "InternalError")
    with pytest.raises(BackendUnreachable):
        ask(server, tmp_path)
    server.fault = None
    kubeconfig = server.kubeconfig(tmp_path, token="old")
    with pytest.raises(BackendUnreachable, match="no longer accepts its credentials"):
        survey(Kube("gpu", "emulated", "team", kubeconfig), ComputeSpec(type="kubernetes", namespace="team"))


# -- the verb, with a real control plane ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    server = KubeServer().start()
    server.allowed = lambda asked: True
    folder = tmp_path_factory.mktemp("kube")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_MLOPS_KUBECONFIG", server.kubeconfig(folder))
        plane = Plane(make_home()).start()
    yield server, plane
    plane.stop()
    server.stop()


@pytest.fixture
def run(served):
    server, plane = served
    Cluster(server)
    server.allowed = lambda asked: True
    context = Context("cli", where=plane.place)

    def run(line: str):
        return commands.run(parse(split(line), "cli"), context)

    return run


def test_attach_show_detach(run, served, capsys):
    found = run("compute attach gpu --namespace team --image torch:1 --gpu-resource amd.com/gpu")
    assert "all that is needed" in found.text() and "7.5" in found.text() and "Attached as 'gpu'" in found.text()
    spec = served[1].get("computes/gpu")["spec"]
    assert (spec["namespace"], spec["training"]["image"], spec["training"]["gpu_resource"]) == (
        "team", "torch:1", "amd.com/gpu")
    assert "a-token" not in json.dumps(served[1].get("computes/gpu")), "credentials stay with the server"
    found = run("compute attach gpu --pip-index https://pypi.example/simple --package-cache /var/lib/mlops --force")
    assert "kept in /var/lib/mlops of each node, at most 20Gi" in found.text() and found.fatal
    training = served[1].get("computes/gpu")["spec"]["training"]
    assert training["pip"]["index_url"] == "https://pypi.example/simple" and training["image"] == "torch:1"
    with pytest.raises(Refused, match="there is no claim 'packages'"):
        run("compute attach gpu --package-cache packages")
    run("compute attach gpu --package-cache ''")
    table = run("compute")
    assert [c.name for c in table] == ["gpu", "local"] and "training" in table.text() and "<table" in table.html()
    # Attached again with less on the line: what was set stays.
    run("compute attach gpu --image torch:2")
    spec = served[1].get("computes/gpu")["spec"]
    assert (spec["training"]["image"], spec["training"]["gpu_resource"]) == ("torch:2", "amd.com/gpu")
    shown = run("compute show gpu")
    assert "Quotas" in shown.text() and "n1" in shown.text() and shown["free"]["nvidia.com/gpu"] == 3
    assert run("compute show local").name == "local"
    run("compute detach gpu --yes")
    assert [c.name for c in run("compute list")] == ["local"]
    with pytest.raises(NotFound):
        run("compute show gpu")


def test_what_stands_in_the_way_saves_nothing(run, served, capsys):
    server, plane = served
    server.allowed = lambda asked: asked["resource"] != "secrets"
    with pytest.raises(Refused, match="compute 'gpu' was not attached: no permission to get secrets"):
        run("compute attach gpu --namespace team --image torch:1")
    assert "kind: Role" in capsys.readouterr().err
    plane.get("computes/gpu", expect=404)
    assert run("compute attach gpu --namespace team --image torch:1 --force")
    run("compute detach gpu --yes")
    server.allowed = lambda asked: True
    with pytest.raises(Refused, match="there is no namespace 'new'"):
        run("compute attach gpu --namespace new --image torch:1")
    run("compute attach gpu --namespace new --image torch:1 --create-namespace")
    run("compute detach gpu --yes")
    server.fault = lambda request: status(500, "broken", "InternalError")
    with pytest.raises(BackendUnreachable):
        run("compute attach gpu --namespace team --image torch:1")
    plane.get("computes/gpu", expect=404)


def test_a_compute_from_a_file(run, served, tmp_path):
    path = tmp_path / "gpu.yml"
    path.write_text("""\
name: gpu
type: kubernetes
namespace: team
training: {image: 'torch:1', max_nodes: 4}
instance_types:
  gpu-a: {nodeSelector: {gpu: a}, resources: {limits: {nvidia.com/gpu: '1'}}, price: 2.5}
""")
    run(f"compute attach gpu -f {path}")
    shown = run("compute show gpu").text()
    assert "gpu-a" in shown and "2.5" in shown and "1 nvidia.com/gpu" in shown
    run("compute detach gpu -y")
    for text, words in (("- a", "holds no compute"), ("a: [", "cannot be read")):
        path.write_text(text)
        with pytest.raises(ParameterError, match=words):
            run(f"compute attach gpu -f {path}")


def test_a_compute_is_applied(run, served, tmp_path):
    """The form of Azure ML's command line; the cluster is asked before anything is changed."""
    server, plane = served
    path = tmp_path / "compute.yml"
    document = """\
$schema: https://azuremlschemas.azureedge.net/latest/kubernetesCompute.schema.json
name: gpu
type: kubernetes
resource_id: /subscriptions/x
namespace: team
training: {image: 'torch:1'}
"""
    path.write_text(document)
    would = run(f"apply -f {path} --dry-run").to_dict()
    assert [(w["kind"], w["action"], w["ignored"]) for w in would] == [("compute", "create", ["resource_id"])]
    plane.get("computes/gpu", expect=404)
    server.allowed = lambda asked: asked["resource"] != "jobs"
    with pytest.raises(Refused, match="compute 'gpu' cannot be attached: no permission to get jobs"):
        run(f"apply -f {path}")
    plane.get("computes/gpu", expect=404)
    server.allowed = lambda asked: True
    assert "created" in run(f"apply -f {path}").text()
    assert plane.get("computes/gpu")["spec"]["training"]["image"] == "torch:1"
    assert run(f"apply -f {path}").to_dict()[0]["action"] == "unchanged"
    path.write_text(document.replace("torch:1", "torch:2"))
    assert run(f"apply -f {path}").to_dict()[0]["changed"] == ["training"]
    assert plane.get("computes/gpu")["spec"]["training"]["image"] == "torch:2"
    run("compute detach gpu -y")
    for text, words in (("type: amlcompute", "type 'amlcompute' is not attached here"), ("type: kubernetes\nsize: 3",
                        "field size is not known")):
        path.write_text(document.replace("type: kubernetes", text))
        with pytest.raises((Refused, ParameterError), match=words):
            run(f"apply -f {path}")


@pytest.mark.parametrize(("line", "words"), [
    ("compute attach", "needs the name"), ("compute attach gpu", "needs --namespace"),
    ("compute show gpu --image a:1", "--image goes with compute attach"), ("compute list gpu", "unexpected argument"),
    ("compute attach local --namespace team", "is of type local"), ("compute atach gpu", "did you mean attach"),
])
def test_lines_that_do_not_fit(run, line, words):
    with pytest.raises(ParameterError) as error:
        run(line)
    assert words in str(error.value) or words in error.value.hint
