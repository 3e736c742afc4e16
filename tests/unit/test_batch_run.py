"""What a batch run does when things go wrong, with a scoring script as its model, since that starts at once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from jupyter_mlops.core.resources.batch import BatchSettings, BatchSpec
from jupyter_mlops.runtime import batch, jobfolder, parts
from jupyter_mlops.runtime.minibatch import BatchError
from jupyter_mlops.serving import batch as packing

SCRIPT = """
import json, os
print("init prints to the log")


def run(raw):
    assert "MY_SECRET" not in os.environ
    rows = json.loads(raw)["dataframe_split"]["data"]
    for number, word in rows:
        with open(os.environ["CALLS"], "a") as f:
            f.write("%s\\n" % number)
        if word == "bad" and not os.path.exists(os.environ["CALLS"] + ".mended"):
            raise ValueError("cannot score %s" % number)
        if word == "short":
            return []
        if word == "exit":
            os._exit(3)
    return [{"twice": 2 * number, "word": word} for number, word in rows]
"""


class Batch:
    """A job folder with a batch run in it, as the control plane and launch make it."""

    def __init__(self, folder: Path, rows: list[str], script: str = SCRIPT, **more) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.out, self.calls = folder, folder / "out", folder / "calls"
        self.input = folder / "in.csv"
        self.input.write_text("n,word\n" + "".join(f"{i},{word}\n" for i, word in enumerate(rows)))
        deployment = folder / "deployment"
        (deployment / "code").mkdir(parents=True)
        (deployment / "code" / "score.py").write_text(script)
        (deployment / "model.json").write_text(json.dumps({"signature": {}, "script": {"file": "score.py"}}))
        (folder / "job" / "inputs").mkdir(parents=True)
        packing.pack(deployment, folder / "job" / "inputs" / "batch.zip")
        settings = {"mini_batch_size": 4, "retry_settings": {"max_retries": 0}, **more.pop("settings", {})}
        self.job = jobfolder.JobFolder(folder / "job")
        self.spec = {
            "environment_variables": {"CALLS": str(self.calls)},
            "batch": {"endpoint": "e", "deployment": "d", "model": "", "input": str(self.input), "params": {},
                      "output": str(self.out), "overwrite": False,
                      "settings": BatchSettings.model_validate(settings).model_dump(), **more}}

    def run(self) -> list[str]:
        """Do it; the rows that the model was called with."""
        self.calls.unlink(missing_ok=True)
        batch.run(self.job, self.spec)
        return self.scored()

    def scored(self) -> list[str]:
        return sorted(self.calls.read_text().split(), key=int) if self.calls.exists() else []

    def lines(self) -> list[str]:
        return (self.out / "predictions.csv").read_text().splitlines()


@pytest.fixture(autouse=True)
def _secret(monkeypatch):
    monkeypatch.setenv("MY_SECRET", "hush")


def test_too_many_errors_end_it_and_a_resume_tries_just_these_again(tmp_path):
    made = Batch(tmp_path, ["", "", "bad", "", *[""] * 8, "", "bad"], settings={"error_threshold": 0})
    with pytest.raises(BatchError, match="rows failed, more than error_threshold 0 allows; the first: ValueError"):
        made.run()
    assert not (made.out / "predictions.csv").exists() and (made.out / "errors.jsonl").exists()
    kept = [n for n in parts.numbers(str(tmp_path / "job/batch/parts")) if not parts.head(
        str(tmp_path / "job/batch/parts"), n)["errors"]]
    (tmp_path / "calls.mended").touch()
    again = made.run()
    assert {int(n) // 4 for n in again} == {0, 1, 2, 3} - set(kept)  # those with errors, and those not begun
    words = {2: "bad", 13: "bad"}
    assert made.lines()[1:] == [f"in.csv,{i},{2 * i},{words.get(i, '')}" for i in range(14)]
    assert sorted(os.listdir(made.out)) == ["predictions.csv", "summary.json"]
    assert made.run() == []  # what is done is done
    assert len(made.lines()) == 15


def test_rows_that_fail_are_taken_apart_from_the_others(tmp_path):
    made = Batch(tmp_path, ["", "bad", "", "", "", "short", "", "exit"])
    made.run()
    assert made.lines() == ["file,row,twice,word", *(f"in.csv,{i},{2 * i}," for i in (0, 2, 3))]
    errors = [json.loads(line) for line in (made.out / "errors.jsonl").read_text().splitlines()]
    assert errors[0] == {"file": "in.csv", "row": 1, "message": "ValueError: cannot score 1"}
    assert [e["row"] for e in errors] == [1, 4, 5, 6, 7]  # a process that ends takes its mini-batch with it
    assert len({e["message"] for e in errors[1:]}) == 1 and "ended with exit code 3" in errors[1]["message"]
    summary = json.loads((made.out / "summary.json").read_text())
    assert (summary["rows"], summary["failed_rows"], summary["mini_batches"]) == (3, 5, 2)


def test_a_worker_that_ends_between_two_words_does_no_harm(tmp_path):
    """The attempt ended after a part was kept and before it was told: it is not scored again, nor there twice."""
    made = Batch(tmp_path, [""] * 10)
    made.run()
    whole = made.lines()
    other = Batch(tmp_path / "other", [""] * 10)
    work = batch.Run(other.job, other.spec)
    work.prepare()
    parts.write(work.parts, 1, ["twice", "word"], [[0, i, 2 * i, None] for i in range(4, 8)], [])
    (tmp_path / "other/job/batch/parts/part-00000002.jsonl").write_text('{"rows": 2, "columns": [], "bytes": 99}\n')
    assert other.run() == ["0", "1", "2", "3", "8", "9"]
    assert other.lines() == whole


def test_what_cannot_go_on_says_so_in_one_line(tmp_path):
    def refusal(made: Batch) -> str:
        with pytest.raises(BatchError) as caught:
            made.run()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    all_bad = Batch(tmp_path / "a", ["bad"] * 3)
    assert refusal(all_bad).startswith("all 3 rows failed; the first: ValueError: cannot score")
    broken = Batch(tmp_path / "b", [""], script="import nothing_of_this_name")
    assert "the model cannot be loaded: ModuleNotFoundError: No module named 'nothing_of_this_name'" in refusal(broken)
    changed = Batch(tmp_path / "c", ["bad", ""], settings={"error_threshold": 0})
    refusal(changed)
    changed.input.write_text("n,word\n1,\n")
    assert refusal(changed) == f"the file {changed.input.name} has changed since the first attempt: begin a new run"
    taken = Batch(tmp_path / "d", [""])
    taken.out.mkdir()
    (taken.out / "predictions.csv").write_text("mine")
    assert "is there already" in refusal(taken) and (taken.out / "predictions.csv").read_text() == "mine"
    taken.spec["batch"]["overwrite"] = True
    taken.run()
    assert len(taken.lines()) == 2
    gone = Batch(tmp_path / "e", [""])
    (tmp_path / "e/job/inputs/batch.zip").unlink()
    assert refusal(gone).startswith("the model did not come with the job")


def test_summary_only_and_an_empty_table(tmp_path):
    made = Batch(tmp_path / "a", [""] * 5, settings={"output_action": "summary_only"})
    made.run()
    assert os.listdir(made.out) == ["summary.json"] and json.loads((made.out / "summary.json").read_text())["rows"] == 5
    empty = Batch(tmp_path / "b", [])
    assert empty.run() == [] and empty.lines() == ["file,row"]


def test_an_output_may_name_its_file():
    asked = BatchSpec.model_validate({"input": "/a/b.csv", "output": "/c/d/out.parquet"})
    assert (asked.output, asked.settings.output_file_name) == ("/c/d", "out.parquet")
    assert BatchSpec.model_validate({"input": "/a", "output": "/c/"}).settings.output_file_name == "predictions.csv"


def test_the_same_model_is_packed_the_same(tmp_path):
    made = Batch(tmp_path, [""])
    first = packing.pack(tmp_path / "deployment", tmp_path / "1.zip")
    os.utime(tmp_path / "deployment" / "model.json", (1, 1))
    (tmp_path / "deployment" / "instances").mkdir()
    os.symlink("/etc/passwd", tmp_path / "deployment" / "code" / "link")
    assert packing.pack(tmp_path / "deployment", tmp_path / "2.zip") == first and made
