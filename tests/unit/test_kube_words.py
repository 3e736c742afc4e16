"""What a cluster says, in words for people: errors of calls, reasons of pods, states of deployments."""

from __future__ import annotations

import doctest
import json
from datetime import UTC, datetime, timedelta

import pytest

from jupyter_mlops.core.errors import BackendTimeout, BackendUnreachable, Conflict, Refused, Unavailable
from jupyter_mlops.kube import names, pods
from jupyter_mlops.kube.errors import Absent, NotAllowed, OverQuota, from_answer, from_exception
from jupyter_mlops.serving.kubernetes import state
from jupyter_mlops.serving.kubernetes.state import look

QUOTA = ('pods "a-1" is forbidden: exceeded quota: team, requested: requests.cpu=2, used: requests.cpu=3, '
         "limited: requests.cpu=4")


@pytest.mark.parametrize(("status", "message", "kind", "words"), [
    (401, "Unauthorized", BackendUnreachable, "no longer accepts its credentials"),
    (403, QUOTA, OverQuota, "the quota 'team' of the namespace is used up: requests.cpu=2 asked for"),
    (403, 'deployments.apps is forbidden: User "a" cannot create resource "deployments" in API group "apps"',
     NotAllowed, "no permission to create deployments"),
    (403, 'pods "a" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true', Refused,
     "security level forbids it"),
    (403, "unable to create new content in namespace a because it is being terminated", Refused, "being deleted"),
    (404, 'namespaces "team" not found', Refused, "the namespace 'team' of compute 'gpu' does not exist"),
    (404, 'services "a" not found', Absent, "not there"),
    (409, "object was modified", Conflict, "somebody else changed it"),
    (422, "Deployment is invalid", Refused, "spec.replicas: must be positive"),
    (429, "too many requests", Unavailable, "too busy"),
    (500, "etcdserver: request timed out", BackendUnreachable, "answers with an error (500: etcdserver"),
    (502, "<html>", BackendUnreachable, "(502"),
])
def test_answers(status, message, kind, words):
    body = {"kind": "Status", "message": message,
            "details": {"causes": [{"field": "spec.replicas", "message": "must be positive"}]}}
    error = from_answer(status, json.dumps(body) if message != "<html>" else message, "making it", "gpu")
    assert type(error) is kind and words in error.message
    assert "\n" not in str(error) and (error.hint or kind in (Refused, Absent))


@pytest.mark.parametrize(("error", "kind", "words"), [
    (TimeoutError(), BackendTimeout, "did not answer within 3 s"),
    (ConnectionRefusedError("[Errno 111] Connection refused"), BackendUnreachable, "nobody listens there"),
    (OSError("[SSL: CERTIFICATE_VERIFY_FAILED] bad"), BackendUnreachable, "not trusted"),
    (OSError("[Errno -2] Name or service not known"), BackendUnreachable, "name is not known"),
    (ValueError("odd"), BackendUnreachable, "cannot be reached (ValueError)"),
])
def test_no_answer(error, kind, words):
    made = from_exception(error, "gpu", 3.0)
    assert type(made) is kind and words in made.message and made.hint


def pod(phase="Pending", waiting=None, ended=None, restarts=0, conditions=(), ready=False, running=0.0, name="p-1",
        digest="d1", **more):
    container = {"name": "scorer", "image": "reg/a:1", "restartCount": restarts, "ready": ready, "state": {}}
    if waiting:
        container["state"]["waiting"] = {"reason": waiting[0], "message": waiting[1]}
    if running:
        begun = datetime.now(UTC) - timedelta(seconds=running)
        container["state"]["running"] = {"startedAt": begun.isoformat().replace("+00:00", "Z")}
    if ended:
        container["lastState"] = {"terminated": ended}
    status = {"phase": phase, "containerStatuses": [container],
              "conditions": [*conditions, {"type": "Ready", "status": str(ready)}], **more}
    made = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return {"metadata": {"name": name, "creationTimestamp": made,
                         "annotations": {"jupyter-mlops.io/digest": digest}}, "status": status,
            "spec": {"containers": [{"name": "scorer", "resources": {"limits": {"memory": "512Mi"}}}]}}


NO_ROOM = {"type": "PodScheduled", "status": "False", "message": (
    "0/3 nodes are available: 2 Insufficient cpu, 1 node(s) had untolerated taint {gpu: yes}. preemption: none.")}


@pytest.mark.parametrize(("what", "words", "final"), [
    (pod(waiting=("ErrImagePull", 'failed to resolve "reg/a:1": not found')),
     "'reg/a:1' cannot be pulled: it is not there", True),
    (pod(waiting=("ImagePullBackOff", "dial tcp 10.0.0.1:443: i/o timeout")), "its registry does not answer", False),
    (pod(waiting=("InvalidImageName", "bad")), "no name of an image", True),
    (pod(waiting=("ErrImageNeverPull", "")), "is not on the node", True),
    (pod(waiting=("CreateContainerConfigError", "secret not found")), "cannot be started: secret not found", True),
    (pod(conditions=[NO_ROOM]), "not enough cpu on 2 of 3 nodes; the nodes with taint 'gpu' are not for it", False),
    (pod(waiting=("CrashLoopBackOff", ""), restarts=1,
         ended={"exitCode": 1, "message": "the model cannot be loaded: x"}), "the model cannot be loaded: x", True),
    (pod(waiting=("CrashLoopBackOff", ""), restarts=2, ended={"exitCode": 137, "reason": "OOMKilled"}),
     "ran out of memory (its limit is 512Mi)", True),
    (pod(waiting=("CrashLoopBackOff", ""), restarts=2, ended={"exitCode": 3}), "ended with code 3, 2 times", False),
    (pod(phase="Failed", reason="Evicted", message="The node was low on resource: memory."), "evicted it", False),
])
def test_pods(what, words, final):
    what["metadata"]["creationTimestamp"] = datetime.now(UTC).isoformat()  # the case was made when tests were collected
    found = pods.trouble(what)
    assert found is not None and words in found.reason and found.final is final
    assert "\n" not in found.reason


def test_a_pod_in_order_is_no_trouble():
    assert pods.trouble(pod(phase="Running", running=3.0, ready=True)) is None
    assert pods.trouble(pod(waiting=("ContainerCreating", ""))) is None
    volume = {"type": "Warning", "reason": "FailedMount", "message": 'secret "x" not found'}
    assert "volume" in pods.trouble(pod(waiting=("ContainerCreating", "")), [volume]).reason


def deployment(replicas=1, **status):
    return {"metadata": {"generation": 2}, "status": {"observedGeneration": 2, "replicas": replicas,
                                                      "updatedReplicas": replicas, **status},
            "spec": {"replicas": replicas,
                     "template": {"metadata": {"annotations": {"jupyter-mlops.io/digest": "d1"}}}}}


def test_states():
    assert look(None, [], []).phase == "absent"
    assert look(deployment(), [], []).reason == "the cluster creates its pods"
    loading = look(deployment(), [pod(phase="Running", running=5.0)], [])
    assert (loading.phase, loading.reason, loading.waiting) == ("starting", "loading the model", ["p-1"])
    late = look(deployment(), [pod(phase="Running", running=50.0)], [], load_limit=20.0)
    assert late.phase == "failed" and "within 20 s" in late.reason
    ready = look(deployment(), [pod(phase="Running", running=5.0, ready=True)], [])
    assert ready.phase == "ready" and ready.settled and ready.ready_pod == "p-1"
    some = look(deployment(2), [pod(phase="Running", running=5.0, ready=True), pod(conditions=[NO_ROOM], name="p-2")],
                [])
    assert some.phase == "ready" and some.ready == 1 and "not enough cpu" in some.reason and not some.settled
    refused = look(deployment(0, conditions=[{"type": "ReplicaFailure", "status": "True", "message": QUOTA}]), [], [])
    assert refused.phase == "starting" and "the quota 'team'" in refused.reason
    level = 'forbidden: violates PodSecurity "restricted:latest": x'
    unsafe = look(deployment(0, conditions=[{"type": "ReplicaFailure", "status": "True", "message": level}]), [], [])
    assert unsafe.phase == "failed" and "security level" in unsafe.reason


def test_an_old_pod_that_serves_outweighs_a_new_one_that_fails():
    old = pod(phase="Running", running=50.0, ready=True, name="old", digest="d0")
    new = pod(waiting=("ErrImagePull", "not found"), name="new")
    seen = look(deployment(), [old, new], [])
    assert seen.phase == "ready" and "cannot be pulled" in seen.reason and not seen.settled


def test_examples_in_docstrings():
    for module in (names, pods, state):
        result = doctest.testmod(module)
        assert result.attempted and not result.failed
