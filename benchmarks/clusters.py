"""Jobs on the cluster that KUBECONFIG names: until the first line, points a second, output back, cost of watching.

    KUBECONFIG=… [CLUSTER_IMAGE=…] [CLUSTER_JOBS=20] python benchmarks/clusters.py [WHAT…]

WHAT: first, reasons, packages, points, output, store, route, cost; all without any.

The peer of the first lines is the cluster's own start of a bare pod of the same image, until its line can be read. Cost
is that of the control plane alone, without MLflow, for CLUSTER_JOBS jobs; the target
is of a hundred, which ``fleet.py`` measures: more than a machine or two can run as pods.

``reasons``: from when the API shows why a job's pods do not run (no such GPU free, a quota, an image that is not there)
until the job's status says so, as the CLI and the cell show it.

``packages`` installs a tiny wheel into a folder of the node before it measures, from an index on this machine: pods
must reach it at CLUSTER_HOST, by default the address from which this machine reaches the API. ``store`` is the output
through an S3 server there (moto, in Python, on the same cores). ``route`` is the output by a connection that the pod
makes to this machine, beside the same through the API's proxy.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import http.server
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from common import REPO, report

sys.path[:0] = [str(REPO / "tests"), str(REPO / "tests" / "drivers")]

IMAGE = os.environ.get("CLUSTER_IMAGE", "docker.io/library/python:3.11-slim")
REPEAT = int(os.environ.get("BENCH_REPEAT", "5"))
KUBECTL = shutil.which("kubectl") or ""
JOBS = int(os.environ.get("CLUSTER_JOBS", "20"))


class Bench:
    """A control plane with a compute in a namespace of its own."""

    def __init__(self) -> None:
        from conftest import Plane, make_home

        from jupyter_mlops.kube.client import Kube

        self.namespace = f"mlops-bench-{random.getrandbits(32):08x}"
        self.kube = Kube("cluster", namespace=self.namespace)
        self.kube.call("POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {
            "name": self.namespace}})
        self.plane = Plane(make_home()).start().mlflow_ready()
        self.plane.put("computes/gpu", {"type": "kubernetes", "namespace": self.namespace,
                                        "training": {"image": IMAGE, "hold": 120}})
        self.count = 0

    def close(self) -> None:
        self.plane.stop()
        self.kube.call("DELETE", f"/api/v1/namespaces/{self.namespace}")

    def submit(self, source: str, compute: str = "gpu", **resources: object) -> str:
        self.count += 1
        name = f"bench-{self.count}"
        self.plane.put(f"jobs/{name}", {"compute": compute, "cell": {"source": source}, "resources": resources})
        return name

    def wait(self, what, timeout: float = 300.0, pause: float = 0.01):
        until = time.monotonic() + timeout
        while not (value := what()):
            if time.monotonic() > until:
                raise SystemExit("it takes too long")
            time.sleep(pause)
        return value

    def ended(self, name: str) -> dict:
        def look():
            status = self.plane.get(f"jobs/{name}")["status"]
            return status["phase"] in ("Completed", "Failed", "Canceled") and status

        status = self.wait(look, pause=0.1)  # asking costs the control plane time of its own
        if status["phase"] != "Completed":
            raise SystemExit(f"{name}: {status['phase']}: {status['reason']}")
        return status

    def first_line(self, compute: str = "gpu", *packages: str) -> float:
        begun = time.monotonic()
        self.count += 1
        name = f"bench-{self.count}"
        self.plane.put(f"jobs/{name}", {
            "compute": compute, "resources": {"cpus": 0.05}, "environment": {"pip": list(packages)},
            "cell": {"source": "print('first', flush=True)\nimport time\ntime.sleep(2)"}})
        path = self.plane.home / "jobs" / name / "attempts" / "1" / "rank-0.log"
        self.wait(lambda: path.exists() and b"first" in path.read_bytes())
        took = time.monotonic() - begun
        self.ended(name)
        return took

    def address(self) -> str:
        """At which address pods reach this machine."""
        if os.environ.get("CLUSTER_HOST"):
            return os.environ["CLUSTER_HOST"]
        api = urlsplit(self.kube.client().configuration.host)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.connect((str(api.hostname), api.port or 443))
            return str(s.getsockname()[0])

    @contextlib.contextmanager
    def package_cache(self) -> Iterator[str]:
        """A compute whose cache is a folder of the node; gives its name."""
        from wheels import wheel

        path = f"/var/lib/mlops-bench-{random.getrandbits(32):08x}"
        self.on_node(path, "chown 1000:1000 /v")
        with tempfile.TemporaryDirectory() as folder:
            wheel(Path(folder), "mlops-tiny")
            handler = functools.partial(Silent, directory=folder)
            server = http.server.ThreadingHTTPServer((self.address(), 0), handler)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            host = str(server.server_address[0])
            self.plane.put("computes/cached", {"type": "kubernetes", "namespace": self.namespace, "training": {
                "image": IMAGE, "hold": 120, "package_cache": {"host_path": path},
                "pip": {"index_url": f"http://{host}:{server.server_port}", "trusted_hosts": [host]}}})
            try:
                yield "cached"
            finally:
                server.shutdown()
                self.on_node(path, "rm -rf /v/*")

    def on_node(self, path: str, command: str) -> None:
        """Run a command as root in a folder of the node."""
        name = f"node-{random.getrandbits(32):08x}"
        volume = {"name": "v", "hostPath": {"path": path, "type": "DirectoryOrCreate"}}
        self.kube.call("POST", self.kube.path("Pod"), {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
                       "spec": {"restartPolicy": "Never", "securityContext": {"runAsUser": 0},
                                "volumes": [volume], "containers": [{
                           "name": "c", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
                           "command": ["sh", "-c", command], "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}})
        self.wait(lambda: (self.kube.get("Pod", name) or {}).get("status", {}).get("phase") == "Succeeded", 60)
        self.kube.delete("Pod", name, 0)

    def bare_pod(self) -> float:
        name = f"bare-{random.getrandbits(32):08x}"
        begun = time.monotonic()
        self.kube.call("POST", self.kube.path("Pod"), {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
                       "spec": {"restartPolicy": "Never", "containers": [{
                           "name": "c", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
                           "command": ["python3", "-u", "-c", "print('first')\nimport time\ntime.sleep(1)"]}]}})

        def said() -> bool:
            status, _, body = self.kube.request("GET", self.kube.path("Pod", name, "log"))
            return status == 200 and b"first" in body

        self.wait(said)
        took = time.monotonic() - begun
        self.kube.delete("Pod", name, 0)
        return took

    def points(self, count: int) -> float:
        """Points a second from the first logged until all are in MLflow."""
        name = self.submit(f"import time\nfrom jupyter_mlops import log\nprint(time.time(), flush=True)\n"
                           f"for step in range({count}):\n    log({{'x': float(step)}}, step=step)", cpus=0.5)
        path = self.plane.home / "jobs" / name / "attempts" / "1" / "rank-0.log"
        status = self.ended(name)
        done = time.time()
        if self.plane.get(f"runs/{status['run_id']}")["metrics"]["x"] != count - 1:
            raise SystemExit("points are missing")
        return count / (done - float(path.read_text().split()[0]))

    @contextlib.contextmanager
    def store(self) -> Iterator[str]:
        """A compute whose large files go through an object store; gives its name."""
        import boto3
        from stores import KEYS, s3_at

        with tempfile.TemporaryDirectory() as folder, s3_at(self.address(), Path(folder)) as address:
            os.environ.update(KEYS)
            boto3.client("s3", endpoint_url=address).create_bucket(Bucket="data")
            data = {name: base64.b64encode(value.encode()).decode() for name, value in KEYS.items()}
            self.kube.call("POST", self.kube.path("Secret"), {
                "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "transfer"}, "data": data})
            self.plane.put("computes/store", {"type": "kubernetes", "namespace": self.namespace, "training": {
                "image": IMAGE, "hold": 120, "store": {"url": "s3://data/bench", "endpoint_url": address,
                                                       "region": "us-east-1", "secret": "transfer"}}})
            yield "store"

    def route(self) -> str:
        """A compute whose pods call this machine; its name."""
        with socket.create_server((self.address(), 0)) as free:
            port = free.getsockname()[1]
        self.plane.put("computes/routed", {"type": "kubernetes", "namespace": self.namespace, "training": {
            "image": IMAGE, "hold": 120, "route": {"listen": f"{self.address()}:{port}"}}})
        return "routed"

    def output(self, size: int, compute: str = "gpu") -> tuple[float, float]:
        """(MB a second from the file's end until it is here, MB by which the control plane grew)."""
        pid = int(self.plane.process.pid)
        most, over = [rss(pid)], threading.Event()

        def watch() -> None:
            while not over.wait(0.05):
                most.append(rss(pid))

        thread = threading.Thread(target=watch)
        thread.start()
        name = self.submit(f"import os, time\npiece = os.urandom(1 << 20)\nwith open('big', 'wb') as f:\n"
                           f"    for _ in range({size >> 20}):\n        f.write(piece)\nprint(time.time())",
                           compute, cpus=0.5)
        status = self.ended(name)
        way = {"store": "through", "routed": "by the route"}.get(compute, "over")
        assert status["route"].startswith(way), status["route"]
        done = time.time()
        over.set()
        thread.join()
        folder = self.plane.home / "jobs" / name
        ready = float((folder / "attempts" / "1" / "rank-0.log").read_text())
        assert (folder / "outputs" / "big").stat().st_size == size
        (folder / "outputs" / "big").unlink()
        return size / 1e6 / (done - ready), (max(most) - most[0]) / 1e6

    def streamed(self, size: int) -> float:
        """MB a second of ``kubectl exec`` of as many bytes from a pod's memory."""
        name = f"bare-{random.getrandbits(32):08x}"
        self.kube.call("POST", self.kube.path("Pod"), {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
                       "spec": {"terminationGracePeriodSeconds": 0, "containers": [{
                           "name": "c", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
                           "command": ["sleep", "3600"]}]}})
        self.wait(lambda: (self.kube.get("Pod", name) or {}).get("status", {}).get("phase") == "Running", 60)
        begun = time.monotonic()
        subprocess.run([KUBECTL, "-n", self.namespace, "exec", name, "--", "head", "-c", str(size), "/dev/zero"],
                       stdout=subprocess.DEVNULL, check=True)
        took = time.monotonic() - begun
        self.kube.delete("Pod", name, 0)
        return size / 1e6 / took

    def cost(self, count: int, seconds: float) -> float:
        """Percent of a core that the control plane uses for so many jobs that log a point a second."""
        source = ("import time\nfrom jupyter_mlops import log\nfor step in range(100000):\n"
                  "    log({'x': float(step)}, step=step)\n    time.sleep(1)")
        names = [self.submit(source, cpus=0.01, memory="64Mi") for _ in range(count)]
        for name in names:
            self.wait(lambda n=name: self.plane.get(f"jobs/{n}")["status"]["phase"] == "Running", 600)
        time.sleep(5)
        pid = int(self.plane.process.pid)
        idle = cpu(pid)
        time.sleep(seconds)
        used = (cpu(pid) - idle) / seconds * 100
        for name in names:
            self.plane.post(f"jobs/{name}/actions/stop", {})
        return used

    def reason(self, what: str) -> float:
        """Seconds from when the cluster knows why a job waits until its status says so."""
        seen, word, spec = WAITS[what]
        quotas = f"/api/v1/namespaces/{self.namespace}/resourcequotas"
        if what == "quota":
            self.kube.call("POST", quotas, {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "bench"},
                                            "spec": {"hard": {"pods": "0"}}})
            self.wait(lambda: self.kube.call("GET", f"{quotas}/bench").get("status", {}).get("hard"), 30)
        self.count += 1
        name = f"bench-{self.count}"
        self.plane.put(f"jobs/{name}", {"compute": "gpu", "cell": {"source": "pass"}, **spec})
        event = told = 0.0
        until = time.monotonic() + 120
        while not event or not told:
            if not event and seen(self.kube, name):
                event = time.monotonic()
            if not told and word in self.plane.get(f"jobs/{name}")["status"]["reason"].lower():
                told = time.monotonic()
            if time.monotonic() > until:
                raise SystemExit(f"{what}: {self.plane.get(f'jobs/{name}')['status']}")
            time.sleep(0.05)
        self.plane.post(f"jobs/{name}/actions/stop", {})
        if what == "quota":
            self.kube.call("DELETE", f"{quotas}/bench")
        self.wait(lambda: self.plane.get(f"jobs/{name}")["status"]["phase"] == "Canceled", pause=0.1)
        return max(told - event, 0.0)


def pods_of(kube, job: str) -> list[dict]:
    """The pods of a job."""
    return kube.list("Pod", {"jupyter-mlops.io/job": job})


def unschedulable(kube, job: str) -> bool:
    """Whether the scheduler has said of a pod that no node takes it."""
    return any(c["type"] == "PodScheduled" and c["status"] == "False" for pod in pods_of(kube, job)
               for c in pod["status"].get("conditions") or [])


def unpulled(kube, job: str) -> bool:
    """Whether the kubelet has said that it cannot pull an image."""
    return any("waiting" in c["state"] and "Pull" in c["state"]["waiting"].get("reason", "")
               for pod in pods_of(kube, job) for c in pod["status"].get("initContainerStatuses") or [])


def uncreated(kube, job: str) -> bool:
    """Whether the Job controller was refused a pod."""
    return any(e.get("reason") == "FailedCreate" and e["involvedObject"]["name"].startswith(job)
               for e in kube.list("Event", fields="involvedObject.kind=Job"))


#: Why a job waits → (whether the cluster shows it, a word that says so, what is asked for).
WAITS = {
    "no such GPU": (unschedulable, "gpu", {"resources": {"gpus": 64, "cpus": 0.01}}),
    "quota": (uncreated, "quota", {"resources": {"cpus": 0.01}}),
    "image": (unpulled, "image", {"resources": {"cpus": 0.01}, "environment": {"image": "kube.local/not-there:1"}}),
}


class Silent(http.server.SimpleHTTPRequestHandler):
    """A folder over HTTP, without a word."""

    def log_message(self, *args: object) -> None:
        return


def rss(pid: int) -> int:
    """Resident bytes of a process."""
    with open(f"/proc/{pid}/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cpu(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Nothing is measured without a cluster."""
    if not os.environ.get("KUBECONFIG"):
        print("no KUBECONFIG: nothing is measured", file=sys.stderr)
        return 0
    wanted = sys.argv[1:] or ["first", "reasons", "packages", "points", "output", "store", "route", "cost"]
    bench = Bench()
    try:
        if "first" in wanted:
            ours, bare = [], []
            for _ in range(REPEAT):
                ours.append(bench.first_line())
                bare.append(bench.bare_pod())
            report("first line of a job on a cluster, less a bare pod's", "s", ours, bare, 2.0,
                   judged=statistics.median(ours) - statistics.median(bare))
        if "reasons" in wanted:
            for what in WAITS:
                report(f"why a job waits is told: {what}", "s", [bench.reason(what) for _ in range(REPEAT)], None, 5.0)
        if "packages" in wanted:
            ours, bare = [], []
            with bench.package_cache() as compute:
                print(f"first installation: {bench.first_line(compute, 'mlops-tiny'):.1f} s", file=sys.stderr)
                for _ in range(REPEAT):
                    ours.append(bench.first_line(compute, "mlops-tiny"))
                    bare.append(bench.bare_pod())
            report("first line of a job with a package that is there, less a bare pod's", "s", ours, bare, 4.0,
                   judged=statistics.median(ours) - statistics.median(bare))
        if "points" in wanted:
            report("points a second from a pod to MLflow", "1/s", [bench.points(40_000) for _ in range(min(REPEAT, 3))],
                   None, 2000, lower_is_better=False)
        if "output" in wanted:
            found, peers = [], []
            for _ in range(min(REPEAT, 3)):
                found.append(bench.output(1 << 30))
                peers += [bench.streamed(1 << 30)] if KUBECTL else []
            report("output of 1 GB back from a pod; peer kubectl exec", "MB/s", [f[0] for f in found], peers, 50,
                   lower_is_better=False)
            report("growth of the control plane meanwhile", "MB", [f[1] for f in found], None, 50)
        if "store" in wanted:
            with bench.store() as compute:
                found = [bench.output(1 << 30, compute) for _ in range(min(REPEAT, 3))]
            report("output of 1 GB back through an object store", "MB/s", [f[0] for f in found], None, 50,
                   lower_is_better=False)
            report("growth of the control plane meanwhile", "MB", [f[1] for f in found], None, 50)
        if "route" in wanted:
            compute, found, peers = bench.route(), [], []
            for _ in range(min(REPEAT, 3)):
                found.append(bench.output(1 << 30, compute))
                peers.append(bench.output(1 << 30)[0])
            report("output of 1 GB back by a route; peer the API's proxy", "MB/s", [f[0] for f in found], peers, 50,
                   lower_is_better=False)
            report("growth of the control plane meanwhile", "MB", [f[1] for f in found], None, 50)
        if "cost" in wanted:
            report(f"control plane for {JOBS} running jobs on a cluster; the target is of 100", "% of a core",
                   [bench.cost(JOBS, 30.0)], None, 5)
    finally:
        bench.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
