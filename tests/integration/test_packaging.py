"""The wheel: complete, without Node, and enabled with no further step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from conftest import REPO


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from this checkout with the front end that is built in it."""
    assert (REPO / "jupyter_mlops" / "labextension" / "package.json").exists(), "build the front end first: make setup"
    out = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(REPO)],
        capture_output=True, text=True, timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next(out.glob("*.whl"))


def test_wheel_holds_everything(wheel):
    version = json.loads((REPO / "package.json").read_text())["version"]
    assert wheel.name == f"jupyter_mlops-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as z:
        names = z.namelist()
        prefix = f"jupyter_mlops-{version}.data/data/"
        share = prefix + "share/jupyter/labextensions/jupyter-mlops/"
        built = json.loads(z.read(share + "package.json"))
        assert built["version"] == version
        assert share + built["jupyterlab"]["_build"]["load"] in names
        assert share + "schemas/jupyter-mlops/package.json.orig" in names
        assert prefix + "etc/jupyter/jupyter_server_config.d/jupyter_mlops.json" in names
        assert "jupyter_mlops/core/migrations/versions/0001_first.py" in names
        assert [n for n in names if n.startswith("jupyter_mlops/server/events/") and n.endswith(".yaml")]
        assert not [n for n in names if n.startswith("jupyter_mlops/labextension/")], "the front end is shipped once"


def test_wheel_installs_without_node_and_is_enabled(wheel, tmp_path):
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True, timeout=60)
    site = next((venv / "lib").glob("python*")) / "site-packages"
    # What the wheel needs comes from here; only the wheel itself is installed, with no Node in sight.
    (site / "here.pth").write_text(sysconfig.get_path("purelib") + "\n")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "PYTHON"))}
    env["PATH"] = f"{venv / 'bin'}:/nonexistent"
    python = str(venv / "bin" / "python")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--force-reinstall",
         "--ignore-installed", str(wheel)],
        check=True, timeout=120, capture_output=True, env={**env, "PATH": os.environ["PATH"]},
    )
    env.update(JUPYTER_CONFIG_DIR=str(tmp_path / "c"), JUPYTER_DATA_DIR=str(tmp_path / "d"), HOME=str(tmp_path))

    def listing(module: str) -> subprocess.CompletedProcess:
        return subprocess.run([python, "-m", module, "list"], env=env, capture_output=True, text=True, timeout=120)

    lab, server = listing("jupyterlab.labextensions"), listing("jupyter_server.extension.serverextension")
    lines = [line for line in (lab.stdout + lab.stderr).splitlines() if "jupyter-mlops" in line]
    assert lines and "enabled" in lines[0] and "OK" in lines[0], lab.stdout + lab.stderr
    lines = [line for line in (server.stdout + server.stderr).splitlines() if "jupyter_mlops 0" in line]
    assert lines and "OK" in lines[0], server.stdout + server.stderr
