"""What kernels are told: those with our package where the workspace is, all others nothing."""

from __future__ import annotations

import json
import logging
import sys
import types
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from server_process import TOKEN, JupyterServer, Place, until

from jupyter_mlops.runtime import locate
from jupyter_mlops.server.kernels import KernelEnvironment

#: Says what it was started with, and stays until it is ended.
FAKE_KERNEL = """
import json, os, sys, time
temporary = sys.argv[1] + ".part"
with open(temporary, "w") as f:
    json.dump(dict(os.environ), f)
os.replace(temporary, sys.argv[1] + ".env")
time.sleep(120)
"""
OURS = {"JUPYTER_MLOPS_URL", "JUPYTER_MLOPS_HOME", "JUPYTER_MLOPS_WORKSPACE", "MLFLOW_TRACKING_URI",
        "MLFLOW_EXPERIMENT_NAME"}
FOLDER = "häuser & höfe"


def kernelspec(place: Place, name: str, argv: list[str], env: dict[str, str] | None = None, **metadata: Any) -> None:
    folder = place.root / "data" / "kernels" / name
    folder.mkdir(parents=True)
    spec = {"argv": argv, "display_name": name, "language": "python", "env": env or {}, "metadata": metadata}
    (folder / "kernel.json").write_text(json.dumps(spec))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("kernels"))
    fake = place.root / "fake_kernel.py"
    fake.write_text(FAKE_KERNEL)
    script = [str(fake), "{connection_file}"]
    bare = place.root / "bare"
    venv.create(bare, with_pip=False)
    kernelspec(place, "ours", [sys.executable, *script])
    kernelspec(place, "bare", [str(bare / "bin" / "python"), *script], {"PYTHONPATH": ""})
    kernelspec(place, "bare-with-path", [str(bare / "bin" / "python"), *script])
    kernelspec(place, "decided", [sys.executable, *script], {"MLFLOW_TRACKING_URI": "http://elsewhere.example"})
    kernelspec(place, "named", [sys.executable, *script], {"MLFLOW_EXPERIMENT_NAME": "mine"})
    kernelspec(place, "elsewhere", [sys.executable, *script], {"JUPYTER_MLOPS_HOME": "/elsewhere"})
    kernelspec(place, "wrapped", ["/bin/sh", "-c", f'exec "{sys.executable}" "{fake}" "$0"', "{connection_file}"])
    yield place
    place.close()


def start(place: Place, name: str, config: str = "") -> JupyterServer:
    # No control plane is needed: a kernel may start long before its workspace is used.
    server = JupyterServer(place, "c.MlopsApp.autostart = False\n" + config, name=name).wait()
    (server.notebooks / FOLDER).mkdir()
    return server


@pytest.fixture(scope="module")
def server(place: Place) -> Iterator[JupyterServer]:
    server = start(place, "with")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def plain(place: Place) -> Iterator[JupyterServer]:
    server = start(place, "without", 'c.ServerApp.jpserver_extensions["jupyter_mlops"] = False\n')
    assert server.get("jupyter-mlops/status").status == 404
    yield server
    server.stop()


def environment(server: JupyterServer, kernel: str, path: str | None = f"{FOLDER}/a.ipynb") -> dict[str, str]:
    """The environment of a kernel of that kind, started for a notebook (or, with None, for nothing)."""
    if path is None:
        kernel_id = server.call("POST", "api/kernels", {"name": kernel}).json["id"]
    else:
        body = {"path": path, "type": "notebook", "name": "a", "kernel": {"name": kernel}}
        answer = server.call("POST", "api/sessions", body)
        assert answer.status == 201, answer.body
        kernel_id = answer.json["kernel"]["id"]
    try:
        dumped = server.folder / "runtime" / f"kernel-{kernel_id}.json.env"
        until("the kernel runs", dumped.exists)
        return json.loads(dumped.read_text())
    finally:
        server.call("DELETE", f"api/kernels/{kernel_id}")


def added(with_us: dict[str, str], without: dict[str, str]) -> dict[str, str]:
    """What is different because of us; each kernel has a connection file and parent of its own."""
    own = {"JPY_PARENT_PID", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JPY_SESSION_NAME", "PWD", "OLDPWD", "_"}
    assert set(without) <= set(with_us)
    return {k: v for k, v in with_us.items() if k not in own and without.get(k) != v}


def test_a_kernel_with_our_package(server: JupyterServer, plain: JupyterServer, place: Place) -> None:
    ours = added(environment(server, "ours"), environment(plain, "ours"))
    assert set(ours) | {"JUPYTER_MLOPS_HOME"} == OURS
    assert ours["MLFLOW_EXPERIMENT_NAME"] == FOLDER
    port = (place.home / "port").read_text()
    assert ours["JUPYTER_MLOPS_URL"] == locate.url_for(int(port))
    assert ours["MLFLOW_TRACKING_URI"] == ours["JUPYTER_MLOPS_URL"] + "/mlflow"
    assert ours["JUPYTER_MLOPS_WORKSPACE"] == "default"
    assert TOKEN not in str(ours) and "mlops_" not in str(ours.values())


@pytest.mark.parametrize("kernel", ["bare", "wrapped", "elsewhere"])
def test_other_kernels_are_left_untouched(server: JupyterServer, plain: JupyterServer, kernel: str) -> None:
    assert added(environment(server, kernel), environment(plain, kernel)) == {}


def test_another_interpreter_with_our_package(server: JupyterServer) -> None:
    assert environment(server, "bare-with-path")["MLFLOW_EXPERIMENT_NAME"] == FOLDER


def test_the_users_own_choices_win(server: JupyterServer) -> None:
    decided = environment(server, "decided")
    assert decided["MLFLOW_TRACKING_URI"] == "http://elsewhere.example"
    assert "MLFLOW_EXPERIMENT_NAME" not in decided and decided["JUPYTER_MLOPS_WORKSPACE"] == "default"
    named = environment(server, "named")
    assert named["MLFLOW_EXPERIMENT_NAME"] == "mine" and named["MLFLOW_TRACKING_URI"].endswith("/jupyter-mlops/mlflow")


def test_the_experiment_is_the_folder(server: JupyterServer) -> None:
    assert environment(server, "ours", "a.ipynb")["MLFLOW_EXPERIMENT_NAME"] == "notebooks"
    assert environment(server, "ours", None)["MLFLOW_EXPERIMENT_NAME"] == "notebooks"


def test_a_real_kernel_keeps_it_when_restarted(server: JupyterServer) -> None:
    body = {"path": f"{FOLDER}/b.ipynb", "type": "notebook", "name": "b", "kernel": {"name": "python3"}}
    kernel_id = server.call("POST", "api/sessions", body).json["kernel"]["id"]
    seen = []
    for restart in (False, True):
        if restart:
            assert server.call("POST", f"api/kernels/{kernel_id}/restart", {}).status == 200
        connection = server.folder / "runtime" / f"kernel-{kernel_id}.json"
        until("the connection file", connection.exists)
        client = BlockingKernelClient(connection_file=str(connection))
        client.load_connection_file()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=30)
            code = (
                "import os\n"
                "for k, v in os.environ.items():\n"
                "    if 'MLFLOW' in k or 'MLOPS' in k: print(f'{k}={v}')"
            )
            lines: list[str] = []
            client.execute_interactive(
                code, timeout=30, output_hook=lambda m, lines=lines: lines.append(m["content"].get("text", ""))
            )
            seen.append("".join(lines))
        finally:
            client.stop_channels()
    server.call("DELETE", f"api/kernels/{kernel_id}")
    assert seen[0] == seen[1]
    assert {line.partition("=")[0] for line in seen[0].splitlines()} == OURS
    assert f"MLFLOW_EXPERIMENT_NAME={FOLDER}" in seen[0]


def test_kernels_elsewhere_are_not_wrapped(tmp_path: Path) -> None:
    original = object()
    manager = types.SimpleNamespace(start_kernel=original, cwd_for_path=None)
    app: Any = types.SimpleNamespace(
        kernel_manager=manager, kernel_spec_manager=None, gateway_config=types.SimpleNamespace(gateway_enabled=True)
    )
    environment = KernelEnvironment(app, locate.place(str(tmp_path), "default"), logging.getLogger())
    environment.wrap()
    assert manager.start_kernel is original
    environment.unwrap()
    assert manager.start_kernel is original


def test_the_servers_own_environment_is_not_changed(server: JupyterServer) -> None:
    environment(server, "ours")
    # What an untouched kernel gets is the server's environment.
    assert not {"MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "JUPYTER_MLOPS_URL"} & set(environment(server, "bare"))
