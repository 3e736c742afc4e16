"""Instances of one model share its arrays, and no instance sees what another writes."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsRegressor

from jupyter_mlops.runtime import loading, weights
from jupyter_mlops.serving.store import describe_model

COLUMNS = [f"c{i}" for i in range(64)]
MB = 1 << 20

#: Four instances: each loads and answers, and counts its memory once all have. Forked once the libraries are there,
#: which are not what is measured.
INSTANCES = """
import json, os, re, sys
from pathlib import Path
import numpy as np, pandas, sklearn.neighbors
from jupyter_mlops.runtime.loading import load
folder = Path(sys.argv[1])
loaded, all_loaded = os.pipe(), os.pipe()
for number in range(4):
    if os.fork() == 0:
        model = load(str(folder / "model"), json.loads((folder / "model.json").read_text()))
        answer = model.predict(np.ones((2, 64)), {}).tolist()
        os.write(loaded[1], b"x")
        os.close(all_loaded[1])
        os.read(all_loaded[0], 1)  # until the parent closes it
        def memory(text):
            return {k: int(v) * 1024 for k, v in re.findall("^(Rss|Pss|Private_Dirty): +([0-9]+) kB", text, re.M)}
        maps = re.split("^(?=[0-9a-f]+-)", Path("/proc/self/smaps").read_text(), flags=re.M)
        arrays = [memory(m) for m in maps if "arrays.bin" in m]
        all_of_it = memory(Path("/proc/self/smaps_rollup").read_text())
        os.write(1, json.dumps({"answer": answer, "arrays": arrays, "all": all_of_it}).encode() + b"\\n")
        os.write(loaded[1], b"y")
        os.read(0, 1)
        os._exit(0)
def wait(count):
    while count:
        count -= len(os.read(loaded[0], count))
wait(4)
os.close(all_loaded[1])
wait(4)
"""


def deployed(folder: Path, estimator) -> Path:
    """A deployment's folder as the driver prepares it."""
    import mlflow.sklearn
    from mlflow.models import infer_signature

    sample = pd.DataFrame(np.ones((2, 64)), columns=COLUMNS)
    logging.getLogger("mlflow.sklearn").setLevel(logging.ERROR)
    mlflow.sklearn.save_model(estimator, folder / "model", signature=infer_signature(sample), pip_requirements=[],
                              serialization_format="pickle")
    (folder / "model.json").write_text(json.dumps(describe_model(folder / "model")))
    return folder


def neighbours(rows: int) -> KNeighborsRegressor:
    rng = np.random.default_rng(0)
    return KNeighborsRegressor(3, algorithm="brute").fit(rng.normal(size=(rows, 64)), rng.normal(size=rows))


def load(folder: Path) -> loading.Model:
    return loading.load(str(folder / "model"), json.loads((folder / "model.json").read_text()))


def inside(folder: Path) -> dict[str, object]:
    """The one index of the weights."""
    (path,) = (folder / "weights").glob("*/index.json")
    found: dict[str, object] = json.loads(path.read_text())
    return found


def test_four_instances_hold_the_arrays_once(tmp_path):
    size = 64 * MB
    model = neighbours(size // (64 * 8))
    folder = deployed(tmp_path, model)
    done = subprocess.run([sys.executable, "-c", INSTANCES, str(folder)], capture_output=True, text=True, timeout=120,
                          input="", env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    used = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [u["answer"] for u in used] == [model.predict(np.ones((2, 64))).tolist()] * 4
    assert inside(folder)["shared"]
    for one in used:
        (arrays,) = one["arrays"]
        # All of the arrays are in its address space, a quarter counts as its own, and there is no copy of them beside.
        assert arrays["Rss"] > 0.98 * size and arrays["Pss"] < 0.3 * size and arrays["Private_Dirty"] < 0.01 * size
        assert one["all"]["Private_Dirty"] < 0.8 * size


@pytest.fixture(scope="module")
def small():
    return neighbours(12 * MB // (64 * 8))


def test_what_an_instance_writes_no_other_sees(tmp_path, small):
    folder = deployed(tmp_path, small)
    one, other = load(folder), load(folder)
    arrays = [m.predict.__closure__ for m in (one, other)]
    fits = [next(c.cell_contents.__self__ for c in cells if hasattr(c.cell_contents, "__self__"))._fit_X
            for cells in arrays]
    before = fits[1].copy()
    fits[0][:] = 7.0  # a model may write into its own arrays
    assert np.array_equal(fits[1], before) and np.array_equal(fits[1], small._fit_X)
    assert np.array_equal(load(folder).predict(np.ones((3, 64)), {}), small.predict(np.ones((3, 64))))


def test_another_model_in_its_place_gets_weights_of_its_own(tmp_path, small):
    folder = deployed(tmp_path, small)
    load(folder)
    first = {p.name for p in (folder / "weights").iterdir()}
    import shutil

    shutil.rmtree(folder / "model")
    other = neighbours(13 * MB // (64 * 8))
    deployed(folder, other)
    assert np.array_equal(load(folder).predict(np.ones((1, 64)), {}), other.predict(np.ones((1, 64))))
    assert len(list((folder / "weights").iterdir())) == 2 and {p.name for p in (folder / "weights").iterdir()} != first


def test_damaged_weights_are_passed_by(tmp_path, small, capsys):
    folder = deployed(tmp_path, small)
    load(folder)
    (path,) = (folder / "weights").glob("*/object.pickle")
    path.write_bytes(path.read_bytes()[:100])
    assert np.array_equal(load(folder).predict(np.ones((1, 64)), {}), small.predict(np.ones((1, 64))))
    assert "cannot be used" in capsys.readouterr().out


def test_trees_and_small_models_are_loaded_as_ever(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(400, 64)), columns=COLUMNS)
    monkeypatch.setattr(weights, "LEAST", 1000)
    forest = RandomForestClassifier(20).fit(X, rng.integers(0, 2, 400))
    folder = deployed(tmp_path / "forest", forest)
    for _ in range(2):
        assert np.array_equal(load(folder).predict(X.to_numpy(), {}), forest.predict(X))
    assert inside(folder)["reason"] == "its objects copy what they load"
    assert capsys.readouterr().out.count("not shared") == 1  # found out once
    assert not list((folder / "weights").glob("*/arrays.bin"))
    monkeypatch.setattr(weights, "LEAST", 8 * MB)
    folder = deployed(tmp_path / "line", LogisticRegression().fit(X, rng.integers(0, 2, 400)))
    load(folder)
    assert not (folder / "weights").exists()


def test_nothing_is_written_beside_a_model_that_is_no_deployments(tmp_path, small):
    folder = deployed(tmp_path, small)
    about = json.loads((folder / "model.json").read_text())
    (folder / "model.json").unlink()
    loading.load(str(folder / "model"), about)
    assert [p.name for p in folder.iterdir()] == ["model"]


def test_objects_that_answer_differently_afterwards_are_not_shared(tmp_path, small, monkeypatch):
    from jupyter_mlops.runtime import estimators

    monkeypatch.setattr(estimators, "same_answers", lambda *_: False)
    folder = deployed(tmp_path, small)
    assert np.array_equal(load(folder).predict(np.ones((1, 64)), {}), small.predict(np.ones((1, 64))))
    assert inside(folder)["reason"] == "it did not answer the same afterwards"
