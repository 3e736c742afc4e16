"""Cells, git, modules and the bundle of a run, and its way into a job folder."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from jupyter_mlops.capture import bundle, cells, modules, packages, repository
from jupyter_mlops.core import context
from jupyter_mlops.core.resources.job import JobSpec
from jupyter_mlops.runtime import jobfolder, processes, spool


def git(folder, *arguments):
    command = ["git", "-c", "user.name=n", "-c", "user.email=a@example.org", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def work(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / "kept.py").write_text("x = 1\n")
    (folder / "edited.py").write_text("y = 1\n")
    (folder / "n.ipynb").write_text("{}")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "one")
    git(folder, "remote", "add", "origin", "https://ann:planted-remote-1@example.org/a.git")
    return folder


def test_cells_are_kept_in_order_and_within_bounds():
    log = cells.CellLog(most=3, most_bytes=100)
    for number in range(5):
        log.end(log.begin(f"x = {number}", number + 1, f"id-{number}"), KeyError("k") if number == 3 else None)
    assert [c.number for c in log.all()] == [3, 4, 5] and log.dropped == 2
    assert [(c.status, c.error) for c in log.all()] == [("ok", ""), ("error", "KeyError"), ("ok", "")]
    log.begin("#" * 92)
    assert [len(c.source) for c in log.all()] == [5, 92] and log.dropped == 4
    big = cells.CellLog()
    big.begin("a" * (cells.MOST_SOURCE + 7))
    assert "7 characters of this cell are not kept" in big.all()[0].source
    log.end(log.begin("stop"), KeyboardInterrupt())
    assert log.last.status == "interrupted"


def test_seeds_with_their_values():
    log = cells.CellLog()
    sources = ["SEED = 7", "%time 1\nimport torch\ntorch.manual_seed(SEED)", "np.random.seed(seed=3)",
               "g = np.random.default_rng(f())", "sort(key=1)", "random.seed(", "seed = 1"]
    for number, source in enumerate(sources, 1):
        log.begin(source, number)
    assert cells.seeds(log.all()) == [
        {"call": "torch.manual_seed", "value": 7, "cell": 2},
        {"call": "np.random.seed", "value": 3, "cell": 3},
        {"call": "np.random.default_rng", "value": None, "cell": 4},
    ]


def test_git_facts(work):
    (work / "edited.py").write_text("y = 2\nAPI_KEY = 'planted-diff-1'\n")
    (work / "new.py").write_text("z = 1\n")
    (work / "n.ipynb").write_text("outputs")
    (work / "data.bin").write_bytes(bytes(range(256)) * 10)
    git(work, "add", "data.bin")
    (work / ".env").write_text("A=planted-env-file")
    git(work, "add", ".env")
    facts = repository.facts(str(work))
    assert facts.commit == git(work, "rev-parse", "HEAD") and facts.branch == "main" and facts.dirty
    assert facts.remote == "https://«redacted»@example.org/a.git"
    assert sorted(facts.changed) == [".env", "data.bin", "edited.py", "n.ipynb"] and facts.untracked == ["new.py"]
    assert "+y = 2" in facts.diff and "Binary files" in facts.diff
    assert "outputs" not in facts.diff and "planted-env-file" not in facts.diff
    assert repository.head(str(work)) == (facts.commit, "main")
    git(work, "pack-refs", "--all")
    assert repository.head(str(work)) == (facts.commit, "main")
    git(work, "worktree", "add", "-q", str(work.parent / "second"), "-b", "other")
    assert repository.head(str(work.parent / "second")) == (facts.commit, "other")


def test_git_that_is_not_there_or_hangs_is_told(work, tmp_path, monkeypatch):
    assert repository.facts(str(tmp_path)).message == "not in a git repository"
    tools = tmp_path / "bin"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    assert repository.facts(str(work)).message == "git is not installed"
    (tools / "git").write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    (tools / "git").chmod(0o755)
    assert repository.facts(str(work), 0.2).message == "git takes too long here"
    monkeypatch.undo()
    # A filter that hangs (as for files of Git LFS) is a process of git's that holds its streams open.
    (work / ".gitattributes").write_text("*.py filter=slow\n")
    git(work, "config", "filter.slow.clean", f"echo $$ > {tmp_path}/pid; exec sleep 60")
    (work / "edited.py").write_text("y = 2\n")
    assert repository.facts(str(work), 1.0).message == "git takes too long here"
    assert not processes.start_time(int((tmp_path / "pid").read_text()))
    empty = tmp_path / "empty"
    empty.mkdir()
    git(empty, "init", "-q")
    (empty / "a.py").write_text("")
    facts = repository.facts(str(empty))
    assert facts.message == "the repository has no commit" and facts.untracked == ["a.py"] and facts.commit == ""


def test_a_large_diff_is_cut(work, monkeypatch):
    monkeypatch.setattr(repository, "MOST_DIFF", 2000)
    (work / "edited.py").write_text("".join(f"line {i}\n" for i in range(5000)))
    facts = repository.facts(str(work))
    assert len(facts.diff) <= 2000 and facts.diff.endswith("\n") and "cut" in facts.message


def test_modules_that_a_script_will_import(work):
    (work / "pkg").mkdir()
    (work / "pkg" / "__init__.py").write_text("from . import inner\n")
    (work / "pkg" / "inner.py").write_text("from ..kept import x\n")
    (work / "s.py").write_text("import json, pkg\nimport kept as k\n")
    tree = cells.literals.parse((work / "s.py").read_text())
    found = modules.reachable([(tree, str(work))], [str(work)])
    assert sorted(os.path.relpath(p, work) for p in found) == ["kept.py", "pkg/__init__.py", "pkg/inner.py"]
    assert not modules.is_local(json.__file__) and not modules.is_local(pytest.__file__)


def test_a_bundle_tells_everything_but_secrets(work, monkeypatch):
    planted = [f"planted-{w}-77x" for w in ("cell", "diff", "module", "argument", "variable", "environment", "spec")]
    cell, diff, module, argument, variable, environment, of_spec = planted
    (work / "edited.py").write_text(f"y = 2\nAPI_KEY = '{diff}'\n")
    seen = f"# seen: {cell} {variable} {environment} {of_spec} {argument} planted-remote-1\n"
    (work / "helper.py").write_text(f"import kept\nPASSWORD = '{module}'\n{seen}")
    (work / "s.py").write_text("import helper, edited\n")
    monkeypatch.setenv("SOME_TOKEN", environment)
    monkeypatch.setattr(modules, "imported", dict)  # not this test itself
    log = cells.CellLog()
    log.end(log.begin(f"token = '{cell}'\nprint('{environment}', '{argument}')", 1, "abc"))
    spec = {"script": "s.py", "args": ["--api-key", argument], "cwd": str(work),
            "environment_variables": {"DB_PASSWORD": of_spec}}
    made = bundle.collect(bundle.Surroundings(
        str(work), str(work / "n.ipynb"), "abc", log, names={"password": variable}, spec=spec
    ))
    whole = json.dumps([made.files, made.tags]) + made.packed().decode("latin-1")
    for value in [*planted, "planted-remote-1"]:
        assert value not in whole, value
    assert set(made.files) == {
        "cells.json", "cells.py", "git.json", "changes.diff", "requirements.txt", "environment.json", "context.json",
        "modules/helper.py", "modules/edited.py", "modules/s.py",
    }
    assert "import kept" in made.files["modules/helper.py"] and "+y = 2" in made.files["changes.diff"]
    facts = json.loads(made.files["context.json"])
    assert {m["name"]: m["state"] for m in facts["modules"] if m["path"].startswith(str(work))} == {
        "__main__": "untracked", "helper": "untracked", "edited": "changed", "kept": "tracked",
    }
    assert made.tags["mlflow.source.git.commit"] and made.tags["mlops.dirty"] == "true"
    assert "pytest==" in made.files["requirements.txt"]
    assert json.loads(made.files["environment.json"])["python"].startswith("3.")
    assert bundle.collect(bundle.Surroundings(str(work.parent))).tags == {"mlops.context": "context"}


def test_packages_from_elsewhere_and_gpus(tmp_path, monkeypatch):
    direct = {"url": "https://u:pw-123456@example.org/x.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}}
    assert packages._line("x", "1", json.dumps(direct)) == "x @ git+https://«redacted»@example.org/x.git@abc"
    editable = json.dumps({"url": "file:///src/x", "dir_info": {"editable": True}})
    assert packages._line("x", "1", editable) == "-e /src/x  # x==1"
    assert packages._line("x", "1", "{") == "x==1"
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho '0, NVIDIA H200, 143771 MiB, 570.1'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert packages._gpus() == [
        {"index": "0", "name": "NVIDIA H200", "memory.total": "143771 MiB", "driver_version": "570.1"}
    ]


# -- in the control plane ------------------------------------------------------------------------------------------


def packed(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def job(tmp_path, data):
    folder = tmp_path / "job"
    jobfolder.private_folder(str(folder / "inputs" / "context"))
    (folder / "inputs" / "context" / "bundle").write_bytes(data)
    jobfolder.write_json(str(folder / "run.json"), {"run_id": "r" * 32})
    return folder, JobSpec(script="s.py", context="0" * 64)


def test_a_context_becomes_spooled_artifacts_once(tmp_path):
    folder, spec = job(tmp_path, packed({"cells.py": "x", "modules/a/b.py": "y", "tags.json": "{}"}))
    for _ in range(2):
        context.deliver(folder, spec)
    entries = [spool.entry(str(folder / "spool"), n) for n in spool.names(str(folder / "spool"))]
    assert sorted((e["path"], e["file"], e["run_id"][0]) for e in entries) == [
        ("context", "data/cells.py", "r"), ("context/modules/a", "data/b.py", "r"),
    ]
    assert (folder / "inputs" / "context" / "files" / "modules" / "a" / "b.py").read_text() == "y"


@pytest.mark.parametrize("data", [
    b"no zip", packed({"../out.py": "x"}), packed({"/abs.py": "x"}), packed({"a/../../b": "x"}), packed({"a\\b": "x"}),
    packed({"big": b"0" * (context.MAX_FILE + 1)}), packed({f"f{i}": "" for i in range(context.MAX_FILES + 1)}),
], ids=["nozip", "up", "absolute", "inside", "backslash", "big", "many"])
def test_a_bad_context_leaves_nothing(tmp_path, data):
    folder, spec = job(tmp_path, data)
    context.deliver(folder, spec)
    assert [p.name for p in Path(folder, "inputs", "context").iterdir()] == ["bundle"]
    assert not list(tmp_path.rglob("out.py")) and not list(tmp_path.rglob("abs.py"))


def test_only_known_tags_are_taken(tmp_path):
    blob = tmp_path / "blob"
    blob.write_bytes(packed({"tags.json": json.dumps({
        "mlops.dirty": "true", "mlops.job": "other", "mlflow.user": "root", "mlops.cells": 3, "mlflow.source.name": "n",
    })}))
    assert context.tags(blob) == {"mlops.dirty": "true", "mlflow.source.name": "n"}
    blob.write_bytes(b"torn")
    assert context.tags(blob) == {} == context.tags(tmp_path / "gone")


def test_importing_capture_loads_nothing_heavy():
    code = ("import sys, jupyter_mlops.capture.hooks, jupyter_mlops.capture.submission\n"
            "print([m for m in ('mlflow', 'torch', 'IPython', 'pandas', 'numpy', 'aiohttp') if m in sys.modules])")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
