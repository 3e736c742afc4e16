"""Counters over several gateways, and requirements of a bundle."""

from __future__ import annotations

import json
import sys

import pytest

from jupyter_mlops.core.errors import Refused
from jupyter_mlops.serving import bundle, manifest
from jupyter_mlops.serving.tally import Tally


def stats(started: float, requests: int, slow: int = 0) -> dict:
    latency = {"count": requests, "sum": 1.5 * requests, "p50": 1.0,
               "buckets": [[2.0, requests - slow], [None, requests]]}
    return {"started_at": started, "endpoints": {"e": {"deployments": {"v1": {
        "requests": requests, "errors": {"5xx": slow}, "codes": {"200": requests - slow}, "latency_ms": latency,
        "queued": 7, "captured": requests}}}}}


def test_counters_are_added_over_gateways_and_restarts(tmp_path):
    path = tmp_path / "record.json"
    tally = Tally(path, "b")
    assert tally.add(stats(1.0, 5), "e") and not tally.add(stats(1.0, 5), "e")
    assert tally.add(stats(1.0, 8, 2), "e")
    tally.save()
    site = tally.data["site"]
    again = Tally(path, "b")  # serve.py was killed, and found the same gateway
    assert not again.add(stats(1.0, 8, 2), "e") and again.add(stats(1.0, 9, 2), "e")
    assert again.add(stats(2.0, 3, 1), "e")  # another gateway
    counts = again.data["deployments"]["v1"]
    assert counts == {"requests": 12, "errors": {"5xx": 3}, "codes": {"200": 9}, "captured": 12,
                      "latency_ms": {"count": 12, "sum": 18.0, "buckets": [[2.0, 9], [None, 12]]}}
    assert (again.data["site"], again.data["starts"], again.data["seq"]) == (site, 2, 4)
    assert Tally(path, "another bundle").data["site"] != site
    path.write_text("{")
    assert Tally(path, "b").data["deployments"] == {}


def subject(**more) -> bundle.Subject:
    about = {"signature": {"inputs": [{"name": "a", "type": "double"}]}, "native": {"kind": "sklearn"}}
    return bundle.Subject(about, None, None, sys.executable, {}, {}, {}, **more)


def test_requirements_are_pinned_for_the_models_python():
    python, lines = bundle.requirements(
        subject(packages={"sklearn": "0", "dateutil": "0", "no_such_module": "1", "jupyter_mlops": "0"}),
        ["mlflow==3.17.2", "Scikit_Learn==1.2.3", "numpy", "cloudpickle>=2"])
    assert python == ".".join(map(str, sys.version_info[:2]))
    names = {line.partition("==")[0].lower() for line in lines}
    assert "Scikit_Learn==1.2.3" in lines and "cloudpickle>=2" in lines  # what the model says stays
    assert names >= {"pandas", "numpy", "python-dateutil", "httptools", "uvloop", "orjson", "pysimdjson"}
    assert not names & {"mlflow", "no_such_module", "jupyter-mlops", "sklearn"}
    assert all("==" in line for line in lines if "cloudpickle" not in line)
    with pytest.raises(Refused, match="no package that pip finds elsewhere"):
        bundle.requirements(subject(), ["-e ./mine"])


def test_a_python_that_is_gone_or_old_is_refused(tmp_path, monkeypatch):
    with pytest.raises(Refused, match="is not here any more"):
        bundle.probe("/nowhere/python", [])
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(Refused, match="does not run"):
        bundle.probe(str(broken), [])
    monkeypatch.setattr(bundle, "probe", lambda *_: {"python": [3, 9, 2], "versions": {}})
    with pytest.raises(Refused, match=r"is 3\.9"):
        bundle.requirements(subject(), [])


def test_a_bundles_library_imports_nothing_that_is_left_out(tmp_path):
    import shutil
    import subprocess

    for name, path in bundle.library():
        (tmp_path / "jupyter_mlops" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "jupyter_mlops" / name)
    modules = ("bundle_server", "gateway_process", "record", "collector")
    code = ("import sys\n" + "".join(f"import jupyter_mlops.serving.{m}\n" for m in modules)
            + "import jupyter_mlops.runtime.scorer\n"
            + "print(jupyter_mlops.__file__, [m for m in ('pydantic', 'tornado', 'aiohttp', 'mlflow', 'yaml') "
            "if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(tmp_path)}, cwd="/", check=True,
                          capture_output=True, text=True)
    assert done.stdout.split()[0] == str(tmp_path / "jupyter_mlops" / "__init__.py") and done.stdout.endswith("[]\n")


def test_a_folder_that_is_no_bundle_is_told(tmp_path):
    with pytest.raises(Refused, match="is no bundle"):
        manifest.read(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format": manifest.FORMAT, "schema": 99, "files": {}}))
    with pytest.raises(Refused, match="schema 99"):
        manifest.read(tmp_path)
    (tmp_path / "a").write_text("a")
    about = {"files": {"a": {"size": 1, "sha256": "0"}, "b": {}}}
    assert manifest.problems(tmp_path, about) == ["a has changed", "b is missing"]
