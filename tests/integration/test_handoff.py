"""Hand-off: a deployment exported by a real control plane serves with the network cut, and its record comes home."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import Plane, free_port, make_home, processes_of, wait_for

from jupyter_mlops.client.sync import Client
from jupyter_mlops.core.errors import Conflict, NotFound, ParameterError, Refused
from jupyter_mlops.magics import commands, parser
from jupyter_mlops.magics.context import Context
from jupyter_mlops.runtime.parcel import sha256
from jupyter_mlops.serving import keys, manifest, merge

pytestmark = pytest.mark.story

MLMODEL = """\
flavors:
  python_function: {loader_module: mlflow.sklearn, model_path: model.pkl, predict_fn: predict, env: {}}
  sklearn: {pickled_model: model.pkl, serialization_format: pickle, sklearn_version: '1'}
signature:
  inputs: '[{"type": "tensor", "tensor-spec": {"dtype": "float64", "shape": [-1, 2]}}]'
  outputs: '[{"type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1]}}]'
"""
PORTS = free_port(), free_port()
ARTIFACTS = "/mlflow/api/2.0/mlflow-artifacts/artifacts/0"


def register(plane: Plane) -> str:
    """A real classifier, registered as ``spots``; its alias is champion."""
    import pickle

    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression().fit([[0.0, 0.0], [1.0, 0.0], [0.1, 0.0], [0.9, 0.0]], [0, 1, 0, 1])
    run = plane.post("/mlflow/api/2.0/mlflow/runs/create", {"experiment_id": "0"})["run"]["info"]["run_id"]
    files = {"MLmodel": MLMODEL.encode(), "model.pkl": pickle.dumps(model),
             "requirements.txt": b"mlflow==3.17.2\nscikit-learn\n# a remark\n"}
    for file, data in files.items():
        status, body, _ = plane.call("PUT", f"{ARTIFACTS}/{run}/artifacts/model/{file}", data)
        assert status == 200, body
    plane.post("models/spots/versions", {"run_id": run, "artifact": "model", "alias": "champion",
                                         "tags": {"mlops.interpreter": sys.executable}})
    return "spots/1"


class Home:
    """A control plane with the endpoint ``spots``, whose deployment captures all."""

    def __init__(self, folder: Path) -> None:
        self.plane = Plane(make_home()).start().mlflow_ready()
        self.folder = folder
        model = register(self.plane)
        self.key = self.plane.put("endpoints/spots", {}, 201)["keys"]["primary"]
        self.plane.put("endpoints/spots/deployments/v1", {
            "model": model, "data_collector": {"sampling_rate": 1.0},
            "environment_variables": {"COLOUR": "red", "SERVICE_TOKEN": "hush"},
        }, 201)
        wait_for(lambda: self.plane.get("endpoints/spots/deployments/v1")["status"]["phase"] in ("Ready", "Failed"), 60)
        assert self.plane.get("endpoints/spots/deployments/v1")["status"]["phase"] == "Ready"
        self.client = Client(self.plane.place)

    def run(self, line: str, face: str = "magic"):
        return commands.run(parser.parse(parser.split(line), face), Context(face, {}, where=self.plane.place))

    def stop(self) -> None:
        self.client.close()
        self.plane.stop()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    found = Home(tmp_path_factory.mktemp("handoff"))
    yield found
    found.stop()


@pytest.fixture(scope="module")
def exported(home):
    """The bundle, made once and left as it is."""
    return home.run(f"export spots -o {home.folder / 'made'}")


class Site:
    """A place where a bundle serves: another folder, an empty home, and where the kernel lets us no network at all."""

    def __init__(self, made: Path, folder: Path, key: str) -> None:
        self.bundle = folder / "bundle"
        shutil.copytree(made, self.bundle)
        self.key = key
        self.env = {"HOME": str(folder / "nobody"), "PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "TMPDIR": str(folder),
                    "SERVICE_TOKEN": "hush", "OMP_NUM_THREADS": "1", "XDG_RUNTIME_DIR": "/nowhere"}
        self.process: subprocess.Popen | None = None
        self.out = folder / "out.log"

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(self.bundle / "serve.py"), *arguments]

    def call(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(self.command(*arguments), env=self.env, cwd="/", capture_output=True, text=True,
                              timeout=120)

    def start(self, *arguments: str) -> Site:
        cut = ["unshare", "-n", "--"] if no_network() else []
        with open(self.out, "ab") as out:
            self.process = subprocess.Popen([*cut, *self.command(*arguments)], env=self.env, cwd="/", stdout=out,
                                            stderr=out)
        return self

    def ready(self) -> Site:
        wait_for(self._ready, 90, 0.2)
        return self

    def _ready(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.out.read_text()
        return self.ask("GET", "/endpoints/spots/health")[0] == 200

    @property
    def sockets(self) -> Path:
        from jupyter_mlops.runtime import locate

        return Path("/tmp") / f"jupyter-mlops-{os.getuid()}" / Path(
            locate.Place(str(self.bundle / "state"), "bundle").runtime_dir).name.removeprefix("jupyter-mlops-")

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, dict, dict]:
        """By the socket of Jupyter's route, which wants the key as the port does: the port is in another network."""
        connection = http.client.HTTPConnection("site", timeout=30)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(30)
        try:
            connection.sock.connect(str(self.sockets / "gateway.sock"))
            connection.request(method, path, body, {"Authorization": f"Bearer {self.key}",
                                                    "Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"null"), dict(answer.headers)
        except (OSError, http.client.HTTPException):
            return 0, {}, {}
        finally:
            connection.close()

    def score(self, *rows: float) -> list:
        status, body, _ = self.ask("POST", "/endpoints/spots/invocations",
                                   json.dumps({"inputs": [[r, 0.0] for r in rows]}).encode())
        assert status == 200, body
        return body["predictions"]

    def state(self, name: str) -> dict:
        with contextlib.suppress(OSError, ValueError):
            return json.loads((self.bundle / "state" / name).read_text())
        return {}

    def counted(self) -> int:
        return ((self.state("record.json").get("deployments") or {}).get("v1") or {}).get("requests", 0)

    def record(self, name: str) -> Path:
        path = self.bundle.parent / name
        done = self.call("--record", str(path))
        assert done.returncode == 0, done.stderr
        return path

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(60)
            finally:
                self.process.kill()
                for pid in processes_of(self.bundle):
                    with contextlib.suppress(OSError):
                        os.kill(pid, signal.SIGKILL)
                shutil.rmtree(self.sockets, ignore_errors=True)


def no_network() -> bool:
    """Whether we may cut a process off from every network."""
    return shutil.which("unshare") is not None and subprocess.run(
        ["unshare", "-n", "true"], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def site(exported, tmp_path_factory):
    found = Site(exported.path, tmp_path_factory.mktemp("site"), exported.key)
    yield found
    found.stop()


def test_a_bundle_holds_what_it_needs_and_no_secret(home, exported):
    about = manifest.verify(exported.path)
    assert about["endpoint"] == "spots" and (about["model"], about["version"]) == ("spots", "1")
    told = ("endpoint.json", "run.json", "README.md", "manifest.json")
    text = "\n".join((exported.path / name).read_text() for name in told)
    assert exported.key not in text and home.key not in text and "hush" not in text
    assert exported.key not in exported.text() + exported.html() + repr(exported)
    run = json.loads((exported.path / "run.json").read_text())
    assert run["env"] == {"COLOUR": "red"} and run["needed"] == ["SERVICE_TOKEN"]
    lines = (exported.path / "requirements.txt").read_text().splitlines()
    names = {line.partition("==")[0] for line in lines}
    assert all("==" in line for line in lines) and "mlflow" not in names
    assert names >= {"scikit-learn", "numpy", "httptools", "orjson", "pysimdjson", "uvloop"}
    audit = home.plane.get("audit")["items"]
    assert [a["detail"]["digest"] for a in audit if a["action"] == "endpoints/export"] == [exported["digest"]]
    assert sha256(exported.path / "manifest.json") == exported["digest"]
    assert not list((home.plane.home / "tmp").glob("bundle-*"))


def test_it_may_keep_the_keys_and_replace_a_bundle_but_not_its_state(home, exported):
    target = home.folder / "again"
    (target / "state").mkdir(parents=True)
    (target / "state" / "record.json").write_text("{}")
    (target / "model").mkdir()
    (target / "model" / "old.pkl").write_text("old")
    made = home.run(f"export spots -o {target} --keys same --force")
    assert (target / "state" / "record.json").read_text() == "{}" and not (target / "model" / "old.pkl").exists()
    config = json.loads((manifest.verify(target) and target / "endpoint.json").read_text())
    assert keys.check(home.key, config["keys"]) and made.keys == {}
    with pytest.raises(Refused, match="keys of the endpoint open"):
        _ = made.key
    named = home.run(f"export spots@champion -o {home.folder / 'named'} --name other", "cli")
    assert named.manifest["endpoint"] == "other" and named.key in named.text()
    assert keys.check(named.key, json.loads((named.path / "endpoint.json").read_text())["keys"])


def test_what_cannot_be_handed_off_is_refused(home, exported):
    with pytest.raises(ParameterError, match="is not empty"):
        home.run(f"export spots -o {exported.path}")
    target = home.folder / "refused"
    home.plane.put("endpoints/idle", {}, 201)
    for line, error, message in (
        ("export nothing", NotFound, "nothing"), ("export idle", Conflict, "no deployment that is ready"),
        ("export spots -d v9", NotFound, "no deployment 'v9'"), ("export spots@nobody", NotFound, "no alias 'nobody'"),
        ("export spots@champion --keys same", ParameterError, "no keys of its own"),
        ("export Spots", ParameterError, "neither an endpoint"),
    ):
        with pytest.raises(error, match=message):
            home.run(f"{line} -o {target}")
        assert not target.exists() and not list(home.folder.glob(".refused-*"))
    status, body, _ = home.plane.call("POST", "actions/export", {"source": "spots"}, token=home.plane.token("reader"))
    assert status == 403, body


def written(site) -> int:
    """Bytes of what was captured, as far as it is in files."""
    place = site.bundle / "state" / "endpoints" / "spots" / "capture"
    return sum(p.stat().st_size for p in place.rglob("*.rec"))


def test_it_serves_elsewhere_without_network_and_survives_kills(site):
    site.start("--port", str(PORTS[0])).ready()
    assert site.score(0.0, 1.0) == [0, 1]
    assert site.ask("POST", "/endpoints/spots/invocations", b"{}")[0] == 400
    key, site.key = site.key, "jmk_wrong"
    assert site.ask("POST", "/endpoints/spots/invocations", b"{}")[0] == 401
    site.key = key
    if no_network():
        net = [os.readlink(f"/proc/{pid}/ns/net") for pid in processes_of(site.bundle)]
        assert len(net) >= 3 and os.readlink("/proc/self/ns/net") not in net
    wait_for(lambda: site.counted() == 2 and written(site), 20)
    # Loaders refuse what leads out of their folder.
    model = site.bundle / "state" / "endpoints" / "spots" / "v1" / "model" / "model.pkl"
    assert model.resolve() == model.absolute() and model.read_bytes() == (site.bundle / "model/model.pkl").read_bytes()
    # A scorer dies: the gateway starts another. The gateway dies: serve.py does.
    scorer = site.state("endpoints/spots/v1/instances/0/scorer.json")["pid"]
    gateway = site.state("gateway.json")["pid"]
    os.kill(scorer, signal.SIGKILL)
    os.kill(gateway, signal.SIGKILL)
    site.ready()
    assert site.score(1.0) == [1]
    assert site.state("endpoints/spots/v1/instances/0/scorer.json")["pid"] != scorer
    wait_for(lambda: site.counted() == 3, 20)
    assert "hush" not in site.out.read_text() and (site.bundle / "lib" / "jupyter_mlops").is_dir()
    assert site.call("--health").returncode == site.call("--verify").returncode == 0
    again = site.call("--port", str(PORTS[1]))
    assert again.returncode == 1 and "serves already" in again.stderr


def test_its_record_comes_home_once(home, site):
    site.ready()
    first = site.record("first.zip")
    report = home.run(f"import-record {first}")
    assert (report["rows"], report["requests"], report["newer"]) == (3, site.counted(), True), report.to_dict()
    again = home.run(f"import-record {first}")
    assert (again["rows"], again["newer"]) == (0, False) and again["known"] == again["files"] == report["files"]
    # More is answered, the gateway is killed again, and what was captured becomes Parquet there; then it ends.
    place = site.bundle / "state" / "endpoints" / "spots" / "capture"

    before = written(site)
    site.score(0.1, 0.9)
    wait_for(lambda: site.counted() == report["requests"] + 1, 20)
    wait_for(lambda: written(site) > before, 20)  # a row is in its file at the latest a second after the answer
    os.kill(site.state("gateway.json")["pid"], signal.SIGKILL)
    site.ready()
    site.score(0.2)
    wait_for(lambda: site.counted() == report["requests"] + 2, 20)
    subprocess.run([sys.executable, "-m", "jupyter_mlops.serving.collector", "--folder", str(place), "collect"],
                   env={**site.env, "PYTHONPATH": str(site.bundle / "lib")}, check=True, capture_output=True)
    assert list(place.glob("data/*/*/*/*.parquet"))
    site.process.terminate()
    assert site.process.wait(60) == 0, site.out.read_text()
    wait_for(lambda: not processes_of(site.bundle), 20)
    second = site.record("second.zip")
    names = zipfile.ZipFile(second).namelist()
    assert any(n.endswith(".parquet") for n in names) and any(n.endswith(".rec") for n in names)
    later = home.run(f"import-record {second} -e spots")
    assert (later["rows"], later["requests"], later["newer"]) == (3, report["requests"] + 2, True)
    assert home.run(f"import-record {first}")["newer"] is False  # an earlier state changes nothing
    rows = home.run("endpoint data spots")
    assert len(rows) == 6 and not rows.duplicated(["correlation_id", "row"]).any()
    assert sorted(rows["prediction"]) == [0, 0, 0, 1, 1, 1] and set(rows["deployment"]) == {"v1"}
    view = home.run("endpoints spots --stats")
    assert [r["requests"] for r in view.records] == [report["requests"] + 2]
    assert "Served elsewhere" in view.text() and "Served elsewhere" in view.html()
    audit = [a["detail"] for a in home.plane.get("audit")["items"] if a["action"] == "endpoints/records/write"]
    assert [a["rows"] for a in audit] == [0, 3, 0, 3]
    # Started again it goes on counting where it was.
    site.start("--port", str(PORTS[0])).ready()
    site.score(1.0)
    wait_for(lambda: site.counted() == report["requests"] + 3, 20)
    site.process.terminate()
    site.process.wait(60)


def test_a_record_without_its_endpoint_makes_one_to_keep_it(home, site, capsys):
    record = home.folder / "renamed.zip"
    manifest_of = lambda e: {**json.loads(e["manifest.json"]), "endpoint": "gone"}  # noqa: E731
    record.write_bytes(altered(site.bundle.parent / "second.zip",
                               lambda e: {**e, "manifest.json": json.dumps(manifest_of(e)).encode()}))
    with pytest.raises(NotFound):
        home.run(f"import-record {record} -e nothing")
    found = home.run(f"import-record {record}")
    assert found["rows"] == 6 and "it was made, without a deployment" in capsys.readouterr().out
    assert [r["site"] for r in home.plane.get("endpoints/gone/records")["items"]] == [found["site"]]
    assert len(home.run("endpoint data gone")) == 6


def test_what_was_changed_does_not_serve(site):
    for name, message in (("model/model.pkl", "has changed"), ("lib/jupyter_mlops/extra.py", "was added")):
        path = site.bundle / name
        kept = path.read_bytes() if path.exists() else None
        path.write_bytes((kept or b"") + b"x")
        for arguments in (("--verify",), ("--port", str(PORTS[0]))):
            done = site.call(*arguments)
            assert done.returncode == 1 and f"{name} {message}" in done.stderr, done
        path.write_bytes(kept) if kept is not None else path.unlink()
    for arguments, message in (
        (("--address", "0.0.0.0"), "clear text"), (("--port", "0"), "--port is from"),
        (("--certfile", "/nothing.pem"), "cannot be used"), (("--instances", "0"), "--instances is from"),
    ):
        done = site.call(*arguments)
        assert done.returncode == 1 and message in done.stderr, done
    token = site.env.pop("SERVICE_TOKEN")
    done = site.call("--port", str(PORTS[0]))
    site.env["SERVICE_TOKEN"] = token
    assert done.returncode == 1 and "the model wants SERVICE_TOKEN" in done.stderr


def altered(record: Path, change) -> bytes:
    """A record with other entries; ``change`` takes and returns {name: bytes}."""
    with zipfile.ZipFile(record) as archive:
        entries = change({n: archive.read(n) for n in archive.namelist()})
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            info = name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name)
            archive.writestr(info, data, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def linked(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info


def edited(entries: dict, **changes) -> dict:
    record = {**json.loads(entries["record.json"]), **changes}
    return {**entries, "record.json": json.dumps(record).encode()}


SEGMENT = "2026010203-7-0123456789ab"


def test_attacks_by_a_record_are_refused_and_change_nothing(home, site, tmp_path, monkeypatch):
    record = site.bundle.parent / "second.zip"
    capture = home.plane.home / "endpoints" / "spots" / "capture"
    part = next(n for n in zipfile.ZipFile(record).namelist() if n.endswith(".parquet"))
    other = part.replace("deployment=v1", "deployment=v2")
    monkeypatch.setattr(merge, "SMALL", 1 << 20)

    def files(folder):
        return {str(p): p.stat().st_size for p in folder.rglob("*") if p.is_file() and p.name != "collect.lock"}

    def table(**columns):
        import pyarrow as pa

        out = io.BytesIO()
        pq.write_table(pa.table(columns), out)
        return out.getvalue()

    segment = f"capture/spool/v1/{SEGMENT}.rec"
    cases = {
        "which no record has": [
            lambda e: {**e, f"capture/spool/../../{SEGMENT}.rec": b"x"}, lambda e: {**e, "/etc/passwd": b"x"},
            lambda e: {**e, "capture/data/evil.parquet": b"x"}, lambda e: {**e, part.replace("v1", "V1"): b"x"}],
        "no plain file": [lambda e: {**e, linked(segment): b"/etc/passwd"}],
        "more than is taken": [lambda e: {**e, segment: bytes(8 << 20)}],
        "is no segment": [lambda e: {**e, segment: b"JMCAP\x00\x00\x01" + b"\xff" * 99},
                          lambda e: {**e, segment: b"elf"}],
        "is damaged": [lambda e: {**e, part: e[part][:-9]}, lambda e: {**e, "record.json": b"[" * 100_000}],
        "another hour or deployment": [lambda e: {**e, other: e[part]}],
        "other columns": [lambda e: {**e, part: table(a=[1])}],
        "counters are none": [
            lambda e: edited(e, deployments={"v1": {"requests": -1}}), lambda e: edited(e, deployments=[]),
            lambda e: edited(e, deployments={"v1": {"requests": float("inf")}})],
        "of which bundle": [lambda e: edited(e, site="../../../x"), lambda e: edited(e, bundle="0" * 16)],
        "no record of a bundle": [lambda e: {k: v for k, v in e.items() if k != "manifest.json"}],
    }
    shutil.copytree(capture, tmp_path / "capture")
    before = files(tmp_path)
    path = home.folder / "attack.zip"
    for message, changes in cases.items():
        for change in changes:
            path.write_bytes(altered(record, change))
            with pytest.raises(Refused, match=message):
                merge.merge(tmp_path / "capture", path)
            assert files(tmp_path) == before, message
    assert merge.merge(tmp_path / "capture", record)["rows"] == 0
    # The same through everything.
    before = files(capture)
    for data, error in ((b"PK none", ParameterError), (altered(record, cases["no plain file"][0]), Refused)):
        path.write_bytes(data)
        with pytest.raises(error):
            home.run(f"import-record {path}")
        assert files(capture) == before
    status, _, _ = home.plane.call("POST", "endpoints/spots/actions/merge-record", {"blob": "0" * 64})
    assert status == 404 and home.plane.call(
        "POST", "endpoints/spots/actions/merge-record", {"blob": "0" * 64}, token=home.plane.token("reader"))[0] == 403
