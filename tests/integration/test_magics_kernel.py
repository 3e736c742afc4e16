"""Magics in a real kernel and the CLI in real processes, over a real control plane with MLflow, jobs and serving."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from jupyter_client.manager import KernelManager

pytestmark = pytest.mark.story

REPO = Path(__file__).resolve().parents[2]
MIME = "application/vnd.jupyter-mlops.job+json"


@dataclass
class Reply:
    """What one cell gave."""

    content: dict
    messages: list = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.content["status"] == "ok"

    @property
    def error(self) -> str:
        """The lines that the user sees of an error."""
        shown = [m["content"]["traceback"] for m in self.messages if m["msg_type"] == "error"]
        assert shown, "no error message was sent"
        return "\n".join(shown[0])

    def data(self, kind: str) -> list[dict]:
        return [m["content"]["data"] for m in self.messages if m["msg_type"] == kind]

    @property
    def text(self) -> str:
        """All text: streams, results and displays."""
        parts = []
        for message in self.messages:
            content = message["content"]
            parts.append(content.get("text") or content.get("data", {}).get("text/plain") or "")
        return "\n".join(parts)


class Kernel:
    """A real kernel."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.manager = KernelManager(kernel_name="python3")
        self.manager.kernel_cmd = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        self.manager.start_kernel(cwd=str(folder), env=env)
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def run(self, code: str, timeout: float = 90) -> Reply:
        messages: list = []
        reply = self.client.execute_interactive(
            code, timeout=timeout, allow_stdin=False, output_hook=messages.append, store_history=True
        )
        return Reply(reply["content"], messages)

    def value(self, expression: str):
        """A JSON value of an expression."""
        reply = self.run(f"import json as _j; print(_j.dumps({expression}))")
        assert reply.ok, reply.error
        return json.loads(reply.text.strip().splitlines()[-1])

    def complete(self, code: str) -> list[str]:
        return self.client.complete(code, reply=True, timeout=20)["content"]["matches"]

    def stop(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


def environment(home: Path, folder: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER_MLOPS_", "MLFLOW_", "JPY_"))}
    return {**kept, "JUPYTER_MLOPS_HOME": str(home), "PYTHONPATH": str(REPO), "IPYTHONDIR": str(folder / ".ipython"),
            "MLFLOW_DISABLE_TELEMETRY": "true"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("work") / "digits"
    path.mkdir()
    (path / "ok.py").write_text("import sys\nprint('args', sys.argv[1:])\n")
    return path


@pytest.fixture(scope="module")
def kernel(shared_plane, folder):
    k = Kernel(folder, environment(shared_plane.home, folder))
    assert k.run("%load_ext jupyter_mlops").ok
    yield k
    k.stop()


@pytest.fixture(scope="module")
def cli(shared_plane, folder):
    def call(*words: str, code: int = 0, stdin: str | None = None) -> subprocess.CompletedProcess:
        done = subprocess.run(
            [sys.executable, "-m", "jupyter_mlops.cli", *words], capture_output=True, text=True, timeout=90,
            env=environment(shared_plane.home, folder), cwd=folder, input=stdin if stdin is not None else "",
        )
        assert done.returncode == code, (words, done.stdout, done.stderr)
        return done

    return call


# -- kernel --------------------------------------------------------------------------------------------------------


def test_loading_sets_addresses_only(kernel) -> None:
    kernel.run("import os")
    names = kernel.value("{k: v for k, v in os.environ.items() if k.startswith(('MLFLOW_', 'JUPYTER_M'))}")
    assert names["MLFLOW_TRACKING_URI"].endswith("/jupyter-mlops/mlflow")
    assert names["MLFLOW_EXPERIMENT_NAME"] == "digits"
    assert not any("TOKEN" in name for name in names)


def test_status_says_what_is_in_force(kernel) -> None:
    reply = kernel.run("%mlops")
    assert reply.ok and "Workspace default" in reply.text and "set by jupyter_mlops" in reply.text
    assert "text/html" in reply.data("execute_result")[0]


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("%mlops trian", "ParameterError: unknown verb 'trian'\n  hint: did you mean train?"),
        ("%mlops log x={missing}", "undefined variable `missing`"),
        ("%mlops jobs nope", "NotFound: there is no job 'nope'"),
        ("%mlops runs nope", "NotFound: there is no run 'nope'"),
        ("%mlops models nope", "NotFound"),
        ("%mlops endpoints nope", "NotFound"),
        ("%mlops endpoints ../x", "NotFound"),
        ("%mlops deploy nope@champion", "NotFound"),
        ("%mlops deploy nope/1 --endpoint Bad_Name", "endpoint name 'Bad_Name' is not valid"),
        ("%mlops register best m --experiment digits", "best needs --metric"),
        ("%mlops compare --experiment nope", "experiment 'nope' does not exist"),
        ("%mlops runs --filter 'nonsense ='", "ParameterError"),
        ("%mlops delete job nope --yes", "there is no job 'nope'"),
        ("%mlops train missing.py", "the script 'missing.py' is not there"),
        ("%mlops train ok.py --processes 1000", "1000 processes"),
        ("%mlops train ok.py --processes 4000", "4000 processes"),
        ("%mlops train ok.py --env JUPYTER_MLOPS_URL=x", "are reserved"),
        ("%mlops train ok.py -n 'Bad/Name'", "job name 'Bad/Name' is not valid"),
        ("%mlops train ok.py --compute nope", "nope"),
        ("%%mlops train\nprint(X_only_here)", "CellError: `X_only_here` is not defined (line 2)"),
    ],
)
def test_every_error_raises_with_one_line_and_a_hint(kernel, cell: str, shown: str) -> None:
    reply = kernel.run(cell)
    assert reply.content["status"] == "error"
    assert shown in reply.error and "Traceback" not in reply.error
    assert len(reply.error.splitlines()) <= 2


def test_errors_leave_nothing_half_made(shared_plane, kernel) -> None:
    assert [j["name"] for j in shared_plane.get("jobs")["items"]] == []
    assert shared_plane.get("endpoints")["items"] == []


def test_log_without_an_active_run(kernel, folder) -> None:
    (folder / "plot.txt").write_text("a figure")
    reply = kernel.run("r = %mlops log loss=0.3 bad=nan opt=adam --tag who=me --artifact plot.txt --name first")
    assert reply.ok, reply.error
    row = kernel.value("r.to_dict()")
    assert row["metrics"] == {"loss": 0.3, "bad": None} and row["params"] == {"opt": "adam"}
    assert row["status"] == "FINISHED" and row["experiment_name"] == "digits" and row["tags"]["who"] == "me"
    assert kernel.value("'mlflow' in __import__('sys').modules") is False
    assert kernel.run("again = %mlops log loss=0.2 --run first --step 3").ok
    assert kernel.value("again.metrics['loss']") == 0.2
    assert kernel.value("r.history('loss')['loss']['steps']") == [0, 3]


def test_log_into_the_active_run_and_plain_mlflow(kernel) -> None:
    reply = kernel.run(
        "import mlflow\nwith mlflow.start_run(run_name='plain') as a:\n    mlflow.log_metric('acc', 0.5)\n"
        "    acc = 0.75\n    r = %mlops log acc2={acc} --step 2\nprint(r.id == a.info.run_id)"
    )
    assert reply.ok and "True" in reply.text, reply.text
    reply = kernel.run("%mlops runs --experiment digits")
    assert "plain" in reply.text and "first" in reply.text
    assert kernel.value("(_.best('acc').name, len(_.df()))")[0] == "plain"


def test_a_foreign_tracking_uri_is_named_and_obeyed(kernel, folder) -> None:
    ours = kernel.value("mlflow.get_tracking_uri()")
    assert kernel.run(f"mlflow.set_tracking_uri('sqlite:///{folder}/other.db')").ok
    try:
        reply = kernel.run("%mlops")
        assert "mlflow.set_tracking_uri" in reply.text and "not to this workspace" in reply.text
        assert kernel.run("foreign = %mlops log loss=9").ok
        assert "other.db" in kernel.run("%mlops runs").text
        assert kernel.value("foreign.id in [r.id for r in (get_ipython().run_line_magic('mlops', 'runs'))]") is False
    finally:
        kernel.run(f"mlflow.set_tracking_uri({ours!r})")


def test_completion(kernel) -> None:
    assert kernel.complete("%mlops tr") == ["traffic", "train"]
    assert "--processes" in kernel.complete("%%mlops train --pro")
    assert kernel.complete("x = 1\n%mlops mod") == ["models"]
    deadline = time.monotonic() + 20
    while "digits" not in kernel.complete("%mlops runs --experiment d"):  # filled in the background
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert "plain" in kernel.complete("%mlops compare pl")


CELL = """%%mlops train -n cell
import os, mlflow
for i in range(3):
    mlflow.log_metric("loss", 1 / (i + 1), step=i)
print("in", os.path.basename(os.getcwd()))
open("made.txt", "w").write("x")
"""


def test_a_cell_runs_as_a_job_with_live_output(kernel, folder) -> None:
    reply = kernel.run(CELL)
    assert reply.ok, reply.error
    [made] = reply.data("display_data")
    assert not reply.data("execute_result")  # shown once
    assert set(made) == {MIME, "text/html", "text/plain"}
    assert made[MIME]["name"] == "cell" and made[MIME]["snapshot"]["phase"] == "Queued"
    reply = kernel.run("job = %mlops jobs cell\njob = job.wait(60)\nprint(job.status, job.metrics(), job.logs(tail=1))")
    assert reply.ok, reply.error
    assert "Completed {'loss': 0.3333333333333333} in digits" in reply.text
    assert (folder / "made.txt").exists()
    [shown] = kernel.run("job").data("display_data")
    assert shown[MIME]["snapshot"]["metrics"]["loss"]["steps"] == [0, 1, 2]
    assert "in digits" in shown["text/html"] and "<svg" in shown["text/html"]
    assert kernel.value("job.run().experiment") == "digits"


def test_the_first_output_becomes_final_by_itself(kernel) -> None:
    reply = kernel.run("%mlops train ok.py -n final -- a 'b c'")
    [made] = [m for m in reply.messages if m["msg_type"] == "display_data"]
    assert kernel.run("1 + 1").ok  # another cell runs meanwhile
    display_id = made["content"]["transient"]["display_id"]
    deadline = time.monotonic() + 40
    while True:
        assert time.monotonic() < deadline
        message = kernel.client.get_iopub_msg(timeout=40)
        if message["content"].get("transient", {}).get("display_id") == display_id:
            # It belongs to the cell that started the job, and to no other.
            assert message["msg_type"] == "update_display_data"
            assert message["parent_header"]["msg_id"] == made["parent_header"]["msg_id"]
            if message["content"]["data"][MIME]["snapshot"]["phase"] == "Completed":
                break
    assert "args ['a', 'b c']" in message["content"]["data"]["text/plain"]


def test_names_are_numbered_and_jobs_are_awaited(kernel) -> None:
    reply = kernel.run("again = %mlops train ok.py -n final;\nagain = %mlops train ok.py -n final\nawait again")
    assert reply.ok and "this one is final-2" in reply.text.replace("final-3", "final-2"), reply.text


def test_a_failing_job_raises_with_its_last_lines(kernel) -> None:
    reply = kernel.run("%%mlops train -n bad --wait\nprint('before')\nraise ValueError('boom')")
    assert not reply.ok
    assert reply.error.startswith("JobFailed: job bad failed") and "  | ValueError: boom" in reply.error
    final = reply.data("update_display_data")[-1]
    assert final[MIME]["snapshot"]["phase"] == "Failed" and "boom" in final["text/html"]


def test_interrupting_a_wait_leaves_the_job(kernel) -> None:
    assert kernel.run("%%mlops train -n long -o long\nimport time\nprint('go', flush=True)\ntime.sleep(120)").ok
    message_id = kernel.client.execute("long.wait()")
    time.sleep(1.0)
    kernel.manager.interrupt_kernel()
    reply = kernel.client.get_shell_msg(timeout=30)
    while reply["parent_header"].get("msg_id") != message_id:
        reply = kernel.client.get_shell_msg(timeout=30)
    assert reply["content"]["ename"] == "KeyboardInterrupt"
    assert kernel.value("long.status") in ("Queued", "Starting", "Running")
    reply = kernel.run("s = %mlops stop long --wait\nprint(s.phase)")
    assert reply.ok and "Canceled" in reply.text, reply.text
    assert not kernel.run("long.wait()").ok


def test_from_model_to_call(kernel) -> None:
    reply = kernel.run(
        "import warnings; warnings.simplefilter('ignore')\n"
        "import numpy as np, pandas as pd, mlflow.sklearn\nfrom sklearn.linear_model import LogisticRegression\n"
        "X = pd.DataFrame({'a': [0., 1., 2., 3.], 'b': [1., 0., 1., 0.]}); y = [0, 0, 1, 1]\n"
        "for c in (0.01, 100.0):\n"
        "    with mlflow.start_run(run_name=f'c{c:g}'):\n"
        "        m = LogisticRegression(C=c).fit(X, y)\n"
        "        mlflow.log_param('c', c); mlflow.log_metric('accuracy', m.score(X, y) - 0.01 / c)\n"
        "        mlflow.sklearn.log_model(m, name='model', pip_requirements=[],\n"
        "                                 signature=mlflow.models.infer_signature(X, m.predict(X)))\n"
    )
    assert reply.ok, reply.error
    reply = kernel.run("c = %mlops compare c0.01 c100 --metric accuracy\nc")
    assert reply.ok and "best" in reply.data("execute_result")[0]["text/html"]
    reply = kernel.run("v = %mlops register best toy --metric accuracy --alias champion\nprint(v)")
    assert reply.ok and "best run by accuracy: c100" in reply.text and "toy/1 @champion" in reply.text, reply.text
    assert "toy" in kernel.run("%mlops models").text and "@champion = 1" in kernel.run("%mlops models toy").text

    reply = kernel.run("d = %mlops deploy toy@champion --endpoint toy\nd")
    assert reply.ok, reply.error
    assert "Ready" in reply.text and "curl " in reply.text and "$KEY" in reply.text
    key = kernel.value("d.key")
    assert key not in json.dumps([m["content"] for m in reply.messages])
    assert kernel.run("p = %mlops invoke toy X[:2]").ok
    assert kernel.value("(type(p).__name__, p.tolist())") == ["ndarray", [0, 0]]
    reply = kernel.run("%mlops invoke toy X[['a']]")
    assert not reply.ok and "b" in reply.error
    reply = kernel.run("%mlops invoke toy X[:2].rename(columns={'b': 'bb'}) -o q")
    assert not reply.ok

    # The printed call works as it stands, with the key put in.
    url = kernel.value("d.url")
    body = re.search(r"-d '([^']+)'", kernel.value("d.at.curl(d.signature)")).group(1)
    for token, status in ((key, 200), ("wrong", 401)):
        request = urllib.request.Request(url, body.encode(), {
            "Authorization": f"Bearer {token}", "Content-Type": "application/json"})
        try:
            assert urllib.request.urlopen(request, timeout=20).status == status
        except urllib.error.HTTPError as error:
            assert error.code == status

    # The same again is the same; a new version takes over and the old one goes.
    assert kernel.run("%mlops deploy toy@champion --endpoint toy;").ok
    assert kernel.run("w = %mlops register c0.01 toy --alias champion;\nw = %mlops models toy").ok
    reply = kernel.run("d = %mlops deploy toy@champion --endpoint toy")
    assert reply.ok and "toy/v1 was replaced" in reply.text, reply.text
    assert kernel.value("d.model") == "toy/2"
    reply = kernel.run("%mlops endpoints toy")
    assert "v2 100 %" in reply.text and "toy/2" in reply.text and key not in reply.text
    reply = kernel.run("e = %mlops endpoints toy --rotate-key primary")
    new = kernel.value("e.key")
    assert new != key and new not in reply.text

    assert not kernel.run("%mlops delete model toy --yes").ok  # in use
    assert "nobody is here to be asked" in kernel.run("%mlops delete endpoint toy").error
    assert kernel.run("%mlops delete endpoint toy --yes").ok


# -- CLI -----------------------------------------------------------------------------------------------------------


def test_cli_json_everywhere(cli) -> None:
    status = json.loads(cli("--json", "status").stdout)
    assert status["name"] == "default" and status["mlflow"]["state"] == "ready"
    run = json.loads(cli("log", "loss=0.5", "--name", "from-cli", "--json").stdout)
    assert run["metrics"] == {"loss": 0.5} and run["experiment_name"] == "digits"
    assert "from-cli" in [r["name"] for r in json.loads(cli("runs", "--json").stdout)]
    for words in (("jobs",), ("models",), ("endpoints",), ("config",), ("compare", "from-cli")):
        json.loads(cli(*words, "--json").stdout)
    assert "from-cli" in cli("runs").stdout


def test_cli_jobs(cli) -> None:
    done = cli("train", "ok.py", "-n", "script", "--wait", "--", "--lr", "0.1")
    assert "Completed" in done.stdout and "args ['--lr', '0.1']" in done.stderr
    assert cli("logs", "script").stdout == "args ['--lr', '0.1']\n"
    assert cli("logs", "script", "-f").stdout == "args ['--lr', '0.1']\n"
    assert json.loads(cli("jobs", "script", "--json").stdout)["status"]["exit_code"] == 0
    assert "add --yes" in cli("delete", "job", "script", code=2).stderr
    deleted = cli("delete", "job", "script", "--yes")
    assert "restore job script" in deleted.stdout + deleted.stderr
    assert '"name": "script"' not in cli("jobs", "--json").stdout
    assert '"name": "script"' in cli("jobs", "--json", "--phase", "deleted").stdout
    cli("restore", "job", "script")
    assert '"name": "script"' in cli("jobs", "--json").stdout
    cli("purge", "script", "--yes")
    assert "there is no job 'script'" in cli("logs", "script", code=1).stderr


def test_cli_errors(cli) -> None:
    done = cli("trian", code=2)
    assert done.stdout == "" and done.stderr.splitlines() == [
        "jupyter mlops: unknown verb 'trian'", "  hint: did you mean train? see: jupyter mlops help",
    ]
    body = json.loads(cli("models", "nope", "--json", code=1).stderr)
    assert body["code"] == "not_found" and body["hint"]
    assert "usage: jupyter mlops train" in cli("train", "--help").stdout
    assert "Traceback" not in cli("train", "nope.py", code=2).stderr


def test_cli_env_lets_any_client_in(cli, shared_plane) -> None:
    lines = dict(line.removeprefix("export ").split("=", 1) for line in cli("env").stdout.splitlines())
    assert lines["MLFLOW_TRACKING_URI"] == shared_plane.tracking_uri
    request = urllib.request.Request(
        lines["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/experiments/search?max_results=5",
        headers={"Authorization": "Bearer " + lines["MLFLOW_TRACKING_TOKEN"]},
    )
    assert json.load(urllib.request.urlopen(request, timeout=20))["experiments"]


def test_cli_doctor(cli, shared_plane) -> None:
    found = json.loads(cli("doctor", "--json").stdout) if _installed() else None
    if found is None:  # from a bare checkout: plain mlflow has no plugin, and the doctor says just that
        found = json.loads(cli("doctor", "--json", code=1).stdout)
    assert {c["name"] for c in found["checks"] if not c["ok"]} <= {"mlflow plugin"}
    assert {"tracking", "artifacts", "version"} <= {c["name"] for c in found["checks"]}
    assert {"control plane", "MLflow"} <= {p["what"] for p in found["processes"]}
    assert any(f["path"] == str(shared_plane.home) and f["bytes"] > 0 for f in found["folders"])
    assert "doctor-probe" not in cli("runs").stdout


def _installed() -> bool:
    from importlib.metadata import entry_points

    return any(e.value.startswith("jupyter_mlops.") for e in entry_points(group="mlflow.tracking_store"))


def test_cli_names_stores_nearby(cli, folder) -> None:
    (folder / "mlruns" / "0").mkdir(parents=True)
    try:
        done = cli("runs", "--json")
        assert "mlruns/ in this folder" in done.stderr
        json.loads(done.stdout)
    finally:
        (folder / "mlruns" / "0").rmdir()
        (folder / "mlruns").rmdir()
