"""Variables that go to a job and come back, over a real control plane, by client, kernel and terminal."""

from __future__ import annotations

import hashlib
import io
import sys
import textwrap
import types

import pytest
from conftest import wait_for
from test_magics_kernel import Kernel, environment

from jupyter_mlops.client.sync import Client
from jupyter_mlops.core.errors import Conflict, NotFound, ParameterError, Refused
from jupyter_mlops.shipping import prepare

pytestmark = pytest.mark.story

SECRET = "hush-" + "hush"


@pytest.fixture(scope="module")
def client(shared_plane):
    with Client(shared_plane.place, may_start=False) as c:
        yield c


@pytest.fixture
def submit(client, monkeypatch):
    """Ship a cell from a namespace of its own, as ``%%mlops train`` does."""
    main = types.ModuleType("__main__")

    def run(name: str, setup: str, cell: str, returns=(), **more):
        monkeypatch.setitem(sys.modules, "__main__", main)
        exec(textwrap.dedent(setup), main.__dict__)  # noqa: S102
        cell = textwrap.dedent(cell)
        shipment = prepare(cell, main.__dict__, returns=returns)
        if shipment.path:
            client.upload(shipment.path, shipment.digest)
        shipment.close()
        source = {"source": cell, "payload": shipment.digest, "variables": shipment.variables, "returns": list(returns)}
        spec = {"cell": source, "interpreter": sys.executable, **more}
        return client.submit_job(spec, name)

    return run


def test_blobs_by_rest(shared_plane) -> None:
    data = b"x" * 3_000_000
    digest = hashlib.sha256(data).hexdigest()
    binary = {"Content-Type": "application/octet-stream"}
    assert shared_plane.call("HEAD", f"blobs/{digest}")[0] == 404
    for _ in range(2):
        assert shared_plane.call("PUT", f"blobs/{digest}", data, headers=binary)[0] == 201
    status, _, headers = shared_plane.call("HEAD", f"blobs/{digest}")
    assert status == 204 and headers["X-Blob-Size"] == str(len(data))
    path = shared_plane.home / "blobs" / digest
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    other = hashlib.sha256(b"other").hexdigest()
    for name, body, expected in ((other, data, 400), ("nonsense", data, 400), (digest.upper(), data, 400)):
        status, answer, _ = shared_plane.call("PUT", f"blobs/{name}", body, headers=binary)
        assert status == expected and "SHA-256" in answer["message"]
    for role, expected in (("reader", 403), ("owner", 201)):
        token = shared_plane.token(role)
        assert shared_plane.call("PUT", f"blobs/{digest}", data, headers=binary, token=token)[0] == expected
    # To a stranger's upload there is an answer at once: only a short one is certain to read it.
    assert shared_plane.call("PUT", f"blobs/{digest}", data[:1000], token="wrong")[0] == 401
    assert [p.name for p in path.parent.iterdir()] == [digest]


def test_a_job_whose_payload_is_not_there_is_refused(shared_plane) -> None:
    spec = {"cell": {"source": "1", "payload": "0" * 64}}
    answer = shared_plane.put("jobs/orphaned", spec, expect=422)
    assert "was not uploaded" in answer["message"]
    shared_plane.get("jobs/orphaned", expect=404)
    assert shared_plane.put("jobs/orphaned", {"command": "true", "context": "1" * 64}, expect=422)


def test_there_and_back(shared_plane, client, submit) -> None:
    setup = f"""
    import numpy as np
    api_key = "{SECRET}"
    class Model:
        def fit(self, X):
            self.mean = X.mean(axis=0)
            return self
    X = np.arange(6.0).reshape(3, 2)
    """
    job = submit("there", setup, """
        model = Model().fit(X)
        history = {"loss": [1.0, 0.5], "X": X, "length": len(api_key)}
        broken = (i for i in X)
    """, ("model", "history", "broken"))
    values = job.results(timeout=60)
    own = sys.modules["__main__"]
    assert set(values) == {"model", "history"} and type(values["model"]) is own.Model
    assert values["model"].mean.tolist() == [2.0, 3.0] and (values["history"]["X"] == own.X).all()
    assert [(v["name"], bool(v["sha256"])) for v in job.returned] == [
        ("model", True), ("history", True), ("broken", False)
    ]
    assert job.returned[2]["detail"] == "not brought back: broken (a generator)"
    assert job.result("history")["length"] == len(SECRET)
    with pytest.raises(NotFound, match="did not bring back broken"):
        job.result("broken")
    # A secret is in the payload, and nowhere else.
    folder = shared_plane.home / "jobs" / "there"
    digest = job.spec["cell"]["payload"]
    holding = {str(p.relative_to(shared_plane.home)) for p in shared_plane.home.rglob("*")
               if p.is_file() and SECRET.encode() in p.read_bytes()}
    assert holding == {f"blobs/{digest}", "jobs/there/inputs/payload.pkl"}
    assert (folder / "inputs" / "payload.pkl").stat().st_mode & 0o777 == 0o600
    assert (folder / "returns" / "payload.pkl").stat().st_mode & 0o777 == 0o600
    client.delete_job("there")
    shared_plane.call("POST", "jobs/there/actions/purge", {})
    wait_for(lambda: not (shared_plane.home / "blobs" / digest).exists() and not folder.exists())


def test_results_that_are_not_there_say_why(client, submit) -> None:
    failing = submit("no-result", "x = 1", "y = x\n1 / 0", ("y",))
    plain = submit("no-returns", "x = 1", "print(x)")
    wait_for(lambda: failing.status == "Failed" and plain.status == "Completed", 60)
    with pytest.raises(NotFound, match="brought nothing back") as raised:
        client.job_results("no-result")
    assert "ZeroDivisionError" in raised.value.hint and not failing.returned
    with pytest.raises(NotFound, match="was not asked to bring anything back"):
        client.job_results("no-returns")
    assert plain.result().name == "no-returns"
    with pytest.raises(Conflict):
        plain.resume()


def test_a_resumed_job_has_its_variables_again(shared_plane, submit, tmp_path) -> None:
    setup = f"marker, values = {str(tmp_path / 'marker')!r}, [1, 2]"
    job = submit("resumed", setup, """
        import os
        total = sum(values)
        assert os.path.exists(marker), "first the marker"
    """, ("total",), retry_settings={"max_retries": 0})
    wait_for(lambda: job.status == "Failed", 60)
    (shared_plane.home / "blobs" / job.spec["cell"]["payload"]).unlink()  # the job has its own
    (tmp_path / "marker").touch()
    assert job.resume().result("total") == 3
    assert [a["attempt"] for a in job.attempts] == [1, 2]
    assert "attempts" in job.text() and "brought back" in job.text()


def test_a_payload_that_cannot_be_read_fails_in_one_line(shared_plane, client) -> None:
    data = b"no payload at all"
    digest = hashlib.sha256(data).hexdigest()
    client.call(client.aio.put_blob(digest, data))
    job = client.submit_job({"cell": {"source": "print(1)", "payload": digest}}, "garbled")
    wait_for(lambda: job.status == "Failed", 60)
    assert "VariablesError: the payload of variables cannot be read" in job.reason
    buffer = io.BytesIO()
    with pytest.raises(NotFound):
        client.call(client.aio.job_returns("garbled", buffer))


def test_client_refuses_what_is_no_payload() -> None:
    from jupyter_mlops.client.results import read_results

    with pytest.raises(Refused, match="what job j brought back cannot be read"):
        read_results(lambda f: f.write(b"nonsense") and None, "j")


@pytest.fixture(scope="module")
def kernel(shared_plane, tmp_path_factory):
    folder = tmp_path_factory.mktemp("work") / "digits"
    folder.mkdir()
    (folder / "helper.py").write_text("def twice(x):\n    return 2 * x\n")
    k = Kernel(folder, environment(shared_plane.home, folder))
    assert k.run("%load_ext jupyter_mlops").ok
    yield k
    k.stop()


def test_in_a_notebook(kernel, client) -> None:
    head = "import helper\nclass Result:\n    pass\nX = [1, 2, 3]\ndef fit():\n    return helper.twice(sum(X))"
    assert kernel.run(head).ok
    dry = kernel.run("%%mlops train --dry-run --returns result\nresult = fit()")
    assert dry.ok and "needed by fit" in dry.text and "import helper" in dry.text
    assert "text/html" in dry.data("execute_result")[0]
    reply = kernel.run(
        "%%mlops train -n shipped --returns result,total --wait --retries 1 --timeout 5m --cpus 0.5 --memory 100M\n"
        "total = fit()\nresult = Result()\nresult.total = total\nX = 'changed in the job only'"
    )
    assert reply.ok, reply.error
    assert "go with the job" in reply.text and "set from job shipped: result, total" in reply.text
    assert kernel.value("[total, result.total, type(result) is Result, X]") == [12, 12, True, [1, 2, 3]]
    spec = client.job("shipped").spec
    assert spec["limits"]["timeout"] == 300 and spec["retry_settings"]["max_retries"] == 1
    assert spec["resources"]["memory"] == "100M" and spec["resources"]["cpus"] == 0.5
    own = kernel.run("%%mlops train --dry-run\nwith open('made.txt') as f:\n    display(len(f.read()))\nexit()")
    assert "1 name goes with the job" in own.text and "import display" in own.text
    # Without --wait nothing is set until somebody asks.
    reply = kernel.run("%%mlops train -n later --returns total -o job\ntotal = fit() + 1")
    assert reply.ok
    wait_for(lambda: client.job("later").phase == "Completed", 60)
    assert kernel.value("total") == 12
    reply = kernel.run("value = job.result('total')")
    assert "set from job later: total" in reply.text and kernel.value("[total, value]") == [13, 13]
    assert kernel.run("total = 0\nawait job").ok and kernel.value("total") == 13


def test_attach_from_elsewhere(kernel, client, submit, shared_plane, tmp_path) -> None:
    job = submit("elsewhere", "class Mine:\n    v = 5\n    def double(self): return 2 * self.v", """
        print("hello from the job")
        mine = Mine()
        mine.v = 21
    """, ("mine",))
    job.wait(60)
    reply = kernel.run("h = %mlops attach elsewhere --no-returns\n'mine' in globals(), h.name")
    assert reply.ok and "(False, 'elsewhere')" in reply.text
    reply = kernel.run("%mlops attach elsewhere")
    assert reply.ok and "set from job elsewhere: mine" in reply.text
    assert kernel.value("[mine.double(), type(mine).__name__, 'Mine' in globals()]") == [42, "Mine", False]
    import subprocess

    done = subprocess.run(
        [sys.executable, "-m", "jupyter_mlops.cli", "attach", "elsewhere"], capture_output=True, text=True, timeout=60,
        env=environment(shared_plane.home, tmp_path), cwd=tmp_path, check=True,
    )
    assert "hello from the job" in done.stdout and "elsewhere Completed" in done.stderr


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("%%mlops train\nprint(lock)", "lock (a _thread.lock): a lock"),
        ("%%mlops train --ship-limit 1k\nprint(big)", "more than the 1000 B that may be sent: big (list)"),
        ("%%mlops train --use nope\nprint(1)", "--use nope: there is no such variable"),
        ("%%mlops train --returns nope\nprint(1)", "--returns nope: the cell neither sets nor reads"),
        ("%%mlops train --interpreter /nowhere/python\nprint(1)", "there is no such program"),
        ("%mlops train ok.py --returns x", "--returns is for a cell"),
        ("%mlops resume nope", "there is no job 'nope'"),
    ],
)
def test_refusals_start_nothing(kernel, client, cell: str, message: str) -> None:
    kernel.run("import threading\nlock, big = threading.Lock(), [0.5] * 1000\nopen('ok.py', 'w').close()")
    before = {j.name for j in client.jobs()}
    reply = kernel.run(cell)
    assert not reply.ok and message in reply.error and len(reply.error.splitlines()) <= 2
    assert {j.name for j in client.jobs()} == before


def test_the_limit_is_a_setting(kernel) -> None:
    assert kernel.run("%mlops config ship_limit 1k").ok
    assert "more than the 1000 B" in kernel.run("%%mlops train --dry-run\nprint(big)").error
    assert "no size such as" in kernel.run("%mlops config ship_limit lots").error
    assert kernel.run("%mlops config ship_limit ''").ok
    assert kernel.run("%%mlops train --dry-run\nprint(big)").ok


def test_sizes_and_times_of_flags() -> None:
    from jupyter_mlops.magics import parser

    a = parser.parse(["train", "x.py", "--timeout", "1.5h", "--ship-limit", "2Gi", "--use", "a,b", "--use", "c"])
    assert a.timeout == 5400 and a.ship_limit == 2 << 30 and a.use == ["a", "b", "c"]
    assert parser.parse(["train", "x.py"]).use == []
    for words in (["--timeout", "soon"], ["--timeout", "0"], ["--memory", "lots"], ["--gpus", "-1"], ["--use", "a-b"],
                  ["--priority", "urgent"], ["--returns", ","]):
        with pytest.raises(ParameterError):
            parser.parse(["train", "x.py", *words])
