"""Specs of named inputs and outputs; the cache that all jobs of a machine share; what is told of a store's errors."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from pydantic import ValidationError

from jupyter_mlops.core.resources.job import JobSpec
from jupyter_mlops.magics.parser import parse
from jupyter_mlops.runtime import data, sources
from jupyter_mlops.runtime.cache import Cache, NoRoom, View, key, size_text


def spec(**given):
    return JobSpec(command="true", **given)


@pytest.mark.parametrize(("given", "words"), [
    ({"path": "s3://b/x", "mode": "ro_mount"}, "s3://b/x cannot be mounted, since pods may not (no FUSE): use mode"),
    ({"path": "azureml:cifar:1"}, "no registry of data assets here"),
    ({"path": "claim://Datasets/x"}, "claim://Datasets/x is not claim://NAME/path"),
    ({"path": "claim://data/../other"}, "is not claim://NAME/path"),
    ({"path": "claim://data/x", "mode": "direct"}, "a claim has no URL"),
    ({"path": "data/x.csv"}, "'data/x.csv' must be an absolute path, or a URL"),
    ({"path": "https://ann:secret@host/x"}, "a password does not belong into a URL"),
    ({"path": "runs:/1/x", "mode": "direct"}, "runs:/1/x is copied to where the job runs: leave mode out"),
    ({"path": "/x", "mode": "eval_mount"}, "Input should be"),
])
def test_what_is_wrong_with_an_input_is_said(given, words):
    with pytest.raises(ValidationError) as error:
        spec(inputs={"a": given})
    found = error.value.errors()
    assert len(found) == 1 and words in found[0]["msg"], found


def test_modes_and_places():
    given = {"a": {"path": "claim://data/x"}, "b": {"path": "/x"}, "c": {"path": "s3://b/x"},
             "e": {"path": "file:///x%20y"}, "n": 3, "t": "s3://text", "yes": True}
    job = spec(inputs=given)
    assert job.inputs["n"] == 3 and job.inputs["yes"] is True and job.inputs["t"] == "s3://text"
    assert sorted(job.files) == ["a", "b", "c", "e"] and job.files["a"].claim == "data"
    assert {n: data.mode(i.model_dump()) for n, i in job.files.items()} == {
        "a": "ro_mount", "b": "direct", "c": "download", "e": "direct"}
    assert data.local("file:///x%20y") == "/x y" and data.claim("claim://data/./a//b") == ("data", "a/b")
    assert data.shown("s3://b/x?X-Amz-Signature=1") == "s3://b/x" and data.shown("/x?y") == "/x?y"
    for bad in ({"a-b": 1}, {"1": 1}):
        with pytest.raises(ValidationError):
            spec(inputs=bad)
    with pytest.raises(ValidationError, match="nothing is written to s3:// by itself"):
        spec(outputs={"m": {"path": "s3://b/m"}})
    with pytest.raises(ValidationError, match=r"\$\{\{inputs.other\}\} is not among the inputs: a"):
        JobSpec(command="cat ${{inputs.other}}", inputs={"a": 1})
    with pytest.raises(ValidationError, match="a batch run has its own"):
        JobSpec(batch={"input": "/i", "output": "/o", "endpoint": "e", "deployment": "d", "payload": "0" * 64},
                inputs={"a": 1})


def test_commands_are_given_paths_as_a_shell_needs_them(monkeypatch):
    monkeypatch.setenv("JUPYTER_MLOPS_INPUT_a", "/x y/$z")
    monkeypatch.setenv("JUPYTER_MLOPS_OUTPUT_m", "/out")
    text = "cat ${{inputs.a}} > ${{ outputs.m }}/log ${HOME}"
    assert data.expand(text, quote=True) == "cat '/x y/$z' > /out/log ${HOME}"
    assert data.expand(text) == "cat /x y/$z > /out/log ${HOME}"


def test_the_line_names_them():
    a = parse(["train", "--input", "data:download=s3://b/x=1", "--input", "near=x.csv", "--output", "m", "x.py"], "cli")
    assert a.input == [("data", "download", "s3://b/x=1"), ("near", "", "x.csv")] and a.output == [("m", "")]
    with pytest.raises(Exception, match="NAME=PATH"):
        parse(["train", "--input", "data:copy=x", "x.py"], "cli")


def test_outside_of_a_job_nothing_is_there(monkeypatch):
    monkeypatch.delenv("JUPYTER_MLOPS_JOB_DIR", raising=False)
    from jupyter_mlops import inputs, outputs

    with pytest.raises(KeyError, match="this is no job, so it has no inputs: give them to %%mlops train"):
        inputs["data"]
    assert dict(outputs) == {} and inputs.get("data") is None


# -- the cache ------------------------------------------------------------------------------------------------------


def bring(cache, name, content, target, calls=None):
    def fill(path):
        if calls is not None:
            calls.append(name)
        with open(path, "ab") as f:
            f.write(content)

    return cache.fetch(name, len(content), str(target), fill)


def test_what_was_used_longest_ago_goes_first(tmp_path):
    cache = Cache(str(tmp_path / "cache"), limit=300)
    names = [key(f"s3://b/{i}", "1") for i in range(4)]
    for i, name in enumerate(names[:3]):
        cache.make_room(100)
        assert not bring(cache, name, b"x" * 100, tmp_path / str(i))
        (tmp_path / str(i)).unlink()
        os.utime(cache.path(name), (1000 + i, 1000 + i))
    assert cache.has(names[0], 100), "it is used again"
    cache.make_room(100)
    assert [cache.has(n, 100) for n in names] == [True, False, True, False]
    assert not cache.has(names[0], 99), "another size is another file"


def test_what_a_job_reads_stays(tmp_path):
    folder = str(tmp_path / "cache")
    cache = Cache(folder, limit=200)
    view = View(folder, "one")
    name = key("u", "1")
    bring(cache, name, b"x" * 150, os.path.join(view.folder, "f"))
    with pytest.raises(NoRoom, match="100 B are needed, 50 B are free"):
        cache.make_room(100)
    with open(os.path.join(view.folder, "f")) as f:
        assert f.read() == "x" * 150
    view.close()
    cache.make_room(100)
    assert not cache.has(name, 150) and os.listdir(tmp_path / "cache" / "jobs") == []


def test_views_of_dead_jobs_are_swept(tmp_path):
    folder = str(tmp_path / "cache")
    cache = Cache(folder)
    mine = View(folder, "mine")
    dead = View(folder, "dead")
    os.close(dead.descriptor)  # as a process that is killed
    cache.sweep()
    assert os.path.isdir(mine.folder) and not os.path.exists(dead.folder)
    mine.close()


def test_one_downloads_and_the_others_wait(tmp_path):
    cache = Cache(str(tmp_path / "cache"))
    name, calls, hits = key("u", "1"), [], []
    go = threading.Barrier(6)

    def one(i):
        go.wait()
        hits.append(bring(Cache(str(tmp_path / "cache")), name, b"x" * 1000, tmp_path / f"t{i}", calls))

    threads = [threading.Thread(target=one, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert calls == [name] and sorted(hits) == [False] + [True] * 5
    assert all((tmp_path / f"t{i}").read_bytes() == b"x" * 1000 for i in range(6))
    assert cache.has(name, 1000)


def test_what_is_cut_short_is_not_kept(tmp_path):
    cache = Cache(str(tmp_path / "cache"))
    with pytest.raises(OSError, match="it has 3 bytes, 9 were announced"):
        cache.fetch(key("u", "1"), 9, str(tmp_path / "t"), lambda path: Path(path).write_bytes(b"abc"))
    assert not cache.has(key("u", "1"), 9) and not (tmp_path / "t").exists()
    with pytest.raises(ConnectionError):
        def broken(path):
            with open(path, "ab") as f:
                f.write(b"abc")
            raise ConnectionError("gone")

        cache.fetch(key("u", "2"), 9, str(tmp_path / "t"), broken)
    assert os.listdir(tmp_path / "cache" / "partial") == [key("u", "2")], "the next one goes on with it"


def test_words():
    assert [size_text(n) for n in (0, 999, 1000, 1_234_567, 999_900_000, 5e9)] == [
        "0 B", "999 B", "1 kB", "1.23 MB", "1000 MB", "5 GB"]
    signed = ValueError("HEAD https://h/x?sig=secret&y=1 failed\nbadly")
    assert sources.one_line(signed) == "ValueError: HEAD https://h/x failed badly"
    assert "secret" not in str(sources.explain(signed, "https://h/x?sig=secret"))
    assert "hdfs://x/y needs the package pyarrow, which the" in str(sources.lacking("hdfs://x/y", ""))
