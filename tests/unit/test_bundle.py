"""The zip for interpreters that lack our package, used by a bare one."""

from __future__ import annotations

import ast
import configparser
import json
import os
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import pytest

from jupyter_mlops.compute.base import JobRef
from jupyter_mlops.compute.local import LocalCompute
from jupyter_mlops.runtime import bundle, processes
from jupyter_mlops.runtime.jobfolder import JobFolder

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = ROOT / "jupyter_mlops" / "runtime"
#: Loaded in any case, but their functions may import what a foreign interpreter has.
LAZY = {"mlflow_plugin.py", "scorer.py"}
#: What an interpreter that serves a model may have; imported when a model or its data want it.
OF_MODELS = ("numpy", "pandas", "pyarrow", "scipy", "sklearn", "skops", "xgboost", "lightgbm", "onnxruntime", "PIL")
#: Loaded only by MLflow itself, or behind it.
BEHIND_MLFLOW = {"mlflow_artifacts.py", "mlflow_http.py", "mlflow_job.py", "mlflow_models.py", "mlflow_stores.py"}


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> str:
    """A Python without our package or anything else."""
    folder = tmp_path_factory.mktemp("bare") / "v"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    return str(folder / "bin" / "python")


@pytest.fixture
def clean(monkeypatch):
    """No PYTHONPATH that would show our checkout to other interpreters."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return dict(os.environ)


def test_probe_is_asked_once(bare, clean, monkeypatch):
    answer = bundle.probe(bare, clean)
    assert answer["version"] is None and answer["torch"] is False and answer["python"] == sys.version_info[:2]
    monkeypatch.setattr(subprocess, "run", None)  # any further question would fail
    assert bundle.probe(bare, clean) == answer


def test_own_interpreter_needs_nothing(clean):
    assert not bundle.needed(sys.executable, {**clean, "PYTHONPATH": str(ROOT)})


def test_another_version_needs_it(bare, clean, tmp_path):
    other = tmp_path / "jupyter_mlops" / "runtime"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("")
    (other.parent / "__init__.py").write_text("__version__ = '0.0.1'\n")
    assert bundle.probe(bare, {**clean, "PYTHONPATH": str(tmp_path)})["version"] == "0.0.1"
    assert bundle.needed(bare, {**clean, "PYTHONPATH": str(tmp_path)})


@pytest.mark.parametrize("path, text", [
    ("/bin/true", "no Python"), ("/no/such", "No such file"), ("plain", "Permission denied"),
])
def test_what_is_no_python(path, text, tmp_path):
    (tmp_path / "plain").write_text("")
    with pytest.raises(bundle.ProbeError, match=text):
        bundle.probe(str(tmp_path / path), {})


def test_zip_is_the_same_for_the_same_sources(tmp_path):
    path = bundle.ensure(str(tmp_path / "runtime"))
    before = os.stat(path)
    assert bundle.ensure(str(tmp_path / "runtime")) == path
    assert os.stat(path).st_ino == before.st_ino
    assert os.listdir(tmp_path / "runtime") == [os.path.basename(path)]
    names = zipfile.ZipFile(path).namelist()
    assert "jupyter_mlops/__init__.py" in names and "jupyter_mlops/runtime/launch.py" in names
    assert not [name for name in names if name.startswith("jupyter_mlops/") and name.count("/") > 1
                and not name.startswith("jupyter_mlops/runtime/")]
    Path(path).write_bytes(b"cut")
    assert zipfile.ZipFile(bundle.ensure(str(tmp_path / "runtime"))).testzip() is None


def test_zip_in_a_bare_interpreter(bare, clean, tmp_path):
    env = bundle.prepend(clean, bundle.ensure(str(tmp_path)))
    assert not bundle.needed(bare, env)
    done = subprocess.run([bare, "-c", """
import importlib.metadata as m, json, sys
import jupyter_mlops.runtime.locate, jupyter_mlops.runtime.launch
found = m.distribution("jupyter-mlops")
print(json.dumps([found.version, sorted(e.group + ":" + e.name for e in found.entry_points), jupyter_mlops.__file__]))
"""], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=True)
    version, entries, path = json.loads(done.stdout)
    assert version == bundle.version() and path.startswith(str(tmp_path))
    assert "mlflow.tracking_store:http" in entries


def test_entry_points_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    expected = {group: {name: value for name, value in entries.items() if value.startswith("jupyter_mlops.runtime.")}
                for group, entries in project.items()}
    written = configparser.ConfigParser(delimiters=("=",))
    written.read_string(bundle.ENTRY_POINTS)
    assert {group: dict(written[group]) for group in written.sections()} == {k: v for k, v in expected.items() if v}


def test_job_in_a_bare_interpreter(bare, clean, tmp_path):
    folder = tmp_path / "jobs" / "a"
    folder.mkdir(parents=True)
    source = "import sys, jupyter_mlops\nprint(sys.prefix, jupyter_mlops.__file__)"
    (folder / "spec.json").write_text(json.dumps({"cell": {"source": source}, "interpreter": bare}))
    driver, job = LocalCompute(), JobRef("a", folder)
    driver.start(job, 1, {})
    until = time.monotonic() + 30
    while not (seen := driver.observe(job, 1)).terminal and time.monotonic() < until:
        time.sleep(0.02)
    log = driver.read_log(job, 1, 0, 0, 10_000).data.decode()
    assert seen.phase == "completed", (seen, log)
    prefix, path = log.split()
    assert prefix == str(Path(bare).parents[1]) and path.startswith(str(tmp_path / "runtime"))
    assert not processes.family([], set(), JobFolder(folder).marker)


@pytest.mark.parametrize("path", sorted(RUNTIME.glob("*.py")), ids=lambda path: path.name)
def test_runtime_is_old_syntax_and_standard_library(path):
    tree = ast.parse(path.read_text(), feature_version=bundle.OLDEST)
    if path.name in BEHIND_MLFLOW:
        return
    if path.name in LAZY:
        tree.body = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            if node.level == 1 and not (node.module or "").startswith("."):
                continue
            names = [node.module or ""]
            assert not node.level, f"{path.name}:{node.lineno} leaves runtime"
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            top = name.partition(".")[0]
            if name in ("jupyter_mlops", "jupyter_mlops.runtime") or top in sys.stdlib_module_names:
                continue
            inner = isinstance(node, (ast.Import, ast.ImportFrom)) and node not in tree.body
            lazy = ("mlflow", "torch", "psutil", "jupyter_core", "cloudpickle", "fsspec", "tensorboard", "werkzeug",
                    *OF_MODELS)
            assert inner and top in lazy, f"{path.name}:{node.lineno} {name}"
