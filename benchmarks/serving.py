"""Serving: requests a second, latency, faults and memory, measured through the gateway, beside other servers.

Ours is the whole: key check, check of the signature, metrics, access log, capture of 1 % of the requests. Everybody
serves the same pipeline of scaler and logistic regression with one worker to 16 keep-alive connections of ``wrk``, in
turn in one run. MLflow's own server checks a signature of 64 columns one by one, which costs it more than all the rest:
the figures are judged by what it does with the same model without a signature.

``serving.py [throughput] [deploy] [faults] [memory]``; without arguments all of them.
``BENCH_REPEAT`` (3), ``BENCH_SECONDS`` (5), ``BENCH_REQUESTS`` (1,000,000 for memory); ``BENCH_OTHERS=0`` leaves
LitServe and BentoML out.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

from common import pss, report

REPEAT = int(os.environ.get("BENCH_REPEAT", "3"))
SECONDS = float(os.environ.get("BENCH_SECONDS", "5"))
REQUESTS = int(os.environ.get("BENCH_REQUESTS", "1000000"))
CONNECTIONS = 16
COLLECTOR = {"sampling_rate": 0.01,
             "collections": {"model_inputs": {"enabled": True}, "model_outputs": {"enabled": True}}}


def train(folder: Path) -> tuple[Path, Any]:
    """The model's folder and its data."""
    import mlflow
    from mlflow.models import infer_signature
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    X, y = load_digits(return_X_y=True, as_frame=True)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200)).fit(X, y)
    options: dict[str, Any] = {"pip_requirements": [], "serialization_format": "pickle"}
    mlflow.sklearn.save_model(model, folder / "model", signature=infer_signature(X[:5], y[:5]), **options)
    mlflow.sklearn.save_model(model, folder / "unchecked", **options)
    return folder / "model", X


def body_of(X: Any, rows: int) -> bytes:
    """A request in the form ``dataframe_split``."""
    return json.dumps({"dataframe_split": {"columns": list(X.columns), "data": X[:rows].to_numpy().tolist()}}).encode()


class Ours:
    """A gateway with one endpoint."""

    def __init__(self, model: Path, instances: int = 1) -> None:
        from jupyter_mlops.serving import keys
        from jupyter_mlops.serving.local import LocalServing

        self.home = Path(tempfile.mkdtemp(prefix="bench-"))
        self.runtime = Path(tempfile.mkdtemp(prefix="bench-run-"))
        self.serving = LocalServing(self.home, self.runtime)
        self.shown, self.records = keys.new_keys()
        self.key = self.shown["primary"]
        self.model = model
        self.instances = instances
        for name in ("blue", "green"):
            self.serving.prepare("digits", name, model)
        self.serving.start("digits", "blue", count=instances)
        info = self.serving.ensure_gateway()
        self.port, self.pid = info["port"], info["pid"]
        self.publish({"blue": 100}, "blue")
        while self.stats("blue")["instances"]["ready"] < instances:
            time.sleep(0.05)

    path = "/endpoints/digits/invocations"

    def publish(self, traffic: dict[str, int], *names: str) -> None:
        self.serving.publish("digits", {"name": "digits", "keys": self.records, "traffic": traffic, "deployments": {
            n: {"data_collector": COLLECTOR, "instance_count": self.instances, "request_settings": {}} for n in names}})

    def stats(self, name: str) -> dict[str, Any]:
        found = self.serving.gateway.stats()
        return found["endpoints"]["digits"]["deployments"][name]

    def close(self) -> None:
        self.serving.stop_all()
        for folder in (self.home, self.runtime):
            shutil.rmtree(folder, ignore_errors=True)


def wrk(port: int, path: str, body: bytes, key: str = "", seconds: float = SECONDS) -> tuple[float, float, str]:
    """(requests a second, p99 in milliseconds, what went wrong) of a load by ``wrk``."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as f:
        f.write(f"wrk.method = 'POST'\nwrk.body = [==[{body.decode()}]==]\nwrk.headers['Content-Type'] = "
                f"'application/json'\n" + (f"wrk.headers['Authorization'] = 'Bearer {key}'\n" if key else ""))
        f.flush()
        span = f"-d{max(1, round(seconds))}s"  # wrk takes whole seconds
        out = subprocess.run(["wrk", "-t1", f"-c{CONNECTIONS}", span, "--latency", "-s", f.name,
                              f"http://127.0.0.1:{port}{path}"], capture_output=True, text=True, check=True).stdout
    rate = float(re.search(r"Requests/sec:\s+([0-9.]+)", out)[1])  # type: ignore[index]
    value, unit = re.search(r"99%\s+([0-9.]+)(us|ms|s)", out).groups()  # type: ignore[union-attr]
    wrong = " ".join(line.strip() for line in out.splitlines() if "Non-2xx" in line or "Socket errors" in line)
    return rate, float(value) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit], wrong


def throughput(model: Path, X: Any) -> None:
    """Requests a second with 1 row and with 100, and the p99 at the load that MLflow's own server can take."""
    import peers
    from load import Load, request_bytes

    one = body_of(X, 1)
    others = [] if os.environ.get("BENCH_OTHERS") == "0" else [peers.litserve, peers.bentoml]
    makers = [peers.mlflow_unchecked, peers.mlflow_serve, peers.bare, *others]
    rates: dict[tuple[str, int], list[float]] = {}
    tails: dict[tuple[str, int], list[float]] = {}
    at_peak: list[float] = []
    skipped = set()
    ours = Ours(model)
    try:
        for _ in range(REPEAT):
            peak = 0.0
            for make in makers:
                if make in skipped:
                    continue
                try:
                    peer = make(model, one)
                except (RuntimeError, subprocess.CalledProcessError) as error:
                    print(f"{make.__name__}: {str(error)[:300]}", file=sys.stderr, flush=True)
                    skipped.add(make)
                    continue
                try:
                    for rows in (1, 100):
                        rate, p99, wrong = wrk(peer.port, peer.path, body_of(X, rows))
                        if wrong:
                            print(f"{peer.name}: {wrong}", file=sys.stderr, flush=True)
                        rates.setdefault((peer.name, rows), []).append(rate)
                        tails.setdefault((peer.name, rows), []).append(p99)
                        if peer.name == "mlflow without check" and rows == 1:
                            peak = rate
                finally:
                    peer.stop()
            for rows in (1, 100):
                rate, p99, wrong = wrk(ours.port, ours.path, body_of(X, rows), ours.key)
                if wrong:
                    raise SystemExit(f"ours: {wrong}")
                rates.setdefault(("ours", rows), []).append(rate)
                tails.setdefault(("ours", rows), []).append(p99)
            steady = Load(ours.port, request_bytes(ours.path, one, ours.key), connections=CONNECTIONS, rate=peak,
                          seconds=SECONDS).run()
            at_peak.append(steady.quantile(0.99) * 1000)
    finally:
        ours.close()

    def ratio(rows: int, peer: str) -> float:
        return statistics.median(a / b for a, b in zip(rates["ours", rows], rates[peer, rows], strict=True))

    for rows, times, share in ((1, 8.0, 2.0), (100, 6.0, 1.0)):
        for peer, target in (("mlflow without check", times), ("bare", share)):
            report(f"requests/s, {rows} row(s), as times {peer}'s", "1/s", rates["ours", rows], rates[peer, rows],
                   target, lower_is_better=False, judged=ratio(rows, peer))
        for name in ("mlflow", "litserve", "bentoml"):
            if (name, rows) in rates:
                report(f"requests/s, {rows} row(s), {name} beside", "1/s", rates["ours", rows], rates[name, rows], 0,
                       lower_is_better=False)
    tail = statistics.median(a / b for a, b in zip(at_peak, tails["mlflow without check", 1], strict=True))
    report("p99 at MLflow's own peak load, as part of MLflow's", "ms", at_peak, tails["mlflow without check", 1], 0.1,
           judged=tail)
    report("p99 at our own peak; peer: bare at its own", "ms", tails["ours", 1], tails["bare", 1], 1e9)


def deploy(model: Path, X: Any) -> None:
    """From the deploy command to the first answer: a registered version, and a variable of the notebook."""
    import mlflow
    import peers
    from conftest import Plane, make_home
    from IPython.core.interactiveshell import InteractiveShell

    from jupyter_mlops.client import Client

    plane = Plane(make_home()).start()
    took: list[float] = []
    first: list[float] = []
    variable: list[float] = []
    served: list[float] = []
    try:
        os.environ["JUPYTER_MLOPS_HOME"] = str(plane.home)
        fitted = mlflow.sklearn.load_model(str(model))
        shell = InteractiveShell.instance()
        shell.run_line_magic("load_ext", "jupyter_mlops")
        client = Client()
        with mlflow.start_run():
            for _ in range(REPEAT):
                mlflow.sklearn.log_model(fitted, name="m", registered_model_name="digits", input_example=X[:3],
                                         pip_requirements=[])
        for n in range(REPEAT):
            begin = time.perf_counter()
            client.deploy(f"digits/{n + 1}", "digits")
            client.invoke("digits", X[:1])
            took.append(time.perf_counter() - begin)
        shell.push({"fitted": fitted, "X": X})
        for n in range(REPEAT):
            begin = time.perf_counter()
            shell.run_line_magic("mlops", f"deploy fitted -e fresh{n} --sample X[:5]")
            client.invoke(f"fresh{n}", X[:1])
            (first if n == 0 else variable).append(time.perf_counter() - begin)
        for _ in range(REPEAT):
            peer = peers.mlflow_serve(model, body_of(X, 1))
            served.append(peer.up)
            peer.stop()
    finally:
        for endpoint in Client().endpoints():
            endpoint.delete()
        plane.stop()
    report("deploy a registered version until its first answer / mlflow models serve", "s", took, served, 3.0)
    report("deploy a variable until its first answer (log, register, prove)", "s", variable or first, served, 3.0)


def faults(model: Path, X: Any) -> None:
    """Requests that fail while traffic moves, scorers are replaced, and one of two is killed."""
    from load import Load, request_bytes

    moved: list[float] = []
    killed: list[float] = []
    late: list[float] = []
    for _ in range(REPEAT):
        ours = Ours(model, 2)
        try:
            request = request_bytes(ours.path, body_of(X, 1), ours.key)
            ours.serving.start("digits", "green", count=2)
            ours.publish({"blue": 100}, "blue", "green")
            load = Load(ours.port, request, connections=CONNECTIONS, count=25_000, seconds=120)
            runner = threading.Thread(target=load.run)
            runner.start()
            while ours.stats("green")["instances"]["ready"] < 2:
                time.sleep(0.05)
            for share in (10, 50, 100):
                ours.publish({"blue": 100 - share, "green": share}, "blue", "green")
                time.sleep(0.5)
            ours.serving.start("digits", "blue", env={"ROUND": "2"}, count=2)
            ours.publish({"blue": 100, "green": 0}, "blue", "green")
            ours.serving.start("digits", "green", env={"ROUND": "2"}, count=2)
            ours.publish({"blue": 100}, "blue")
            ours.serving.stop("digits", "green")
            runner.join()
            if len(load.result.latencies) + len(load.result.failures) < 20_000:
                raise SystemExit("the load was too short")
            moved.append(len(load.result.failures))
            load = Load(ours.port, request, connections=CONNECTIONS, seconds=6)
            runner = threading.Thread(target=load.run)
            runner.start()
            time.sleep(1.5)
            victim = next(p["pid"] for p in ours.serving.processes() if p["name"].startswith("digits/blue"))
            at = time.perf_counter() - load.begun
            os.kill(victim, signal.SIGKILL)
            runner.join()
            killed.append(len(load.result.failures))
            late.append(sum(when > at + 1 for when, _ in load.result.failures))
        finally:
            ours.close()
    report("failed of 25,000 while traffic moves and scorers are replaced", "requests", moved, None, 0,
           judged=max(moved))
    report("failed when one of two scorers is killed", "requests", killed, None, 2, judged=max(killed))
    report("of these later than a second after it", "requests", late, None, 0, judged=max(late))


def memory(model: Path, X: Any) -> None:
    """How much the gateway grows from its first to its last requests."""
    ours = Ours(model)
    try:
        body = body_of(X, 1)
        done, sizes = 0, []
        while done < REQUESTS:
            _, _, wrong = wrk(ours.port, ours.path, body, ours.key, min(20.0, max(2.0, REQUESTS / 20_000)))
            if wrong:
                raise SystemExit(f"ours: {wrong}")
            done = ours.stats("blue")["requests"]
            sizes.append(pss(ours.pid) / 1e6)
    finally:
        ours.close()
    half = sizes[len(sizes) // 2:]
    print(f"memory of the gateway in MB as requests pass: {[round(s, 1) for s in sizes]}", file=sys.stderr)
    report(f"memory of the gateway over {done:,} requests, growth", "MB", [max(half) - sizes[0]], None, 5.0)


def main() -> None:
    """Print the figures that were asked for."""
    warnings.simplefilter("ignore")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is needed (package wrk)")
    wanted = sys.argv[1:] or ["throughput", "deploy", "faults", "memory"]
    folder = Path(tempfile.mkdtemp(prefix="bench-model-"))
    try:
        model, X = train(folder)
        for name in wanted:
            {"throughput": throughput, "deploy": deploy, "faults": faults, "memory": memory}[name](model, X)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
