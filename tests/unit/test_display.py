"""How objects and job outputs look: escaped, bounded, readable without colour, no network."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_mlops.client import render
from jupyter_mlops.client.job import Job, JobFailed, JobTable
from jupyter_mlops.client.model import Model, ModelTable, ModelVersion
from jupyter_mlops.client.report import Report
from jupyter_mlops.client.run import Comparison, Run, RunTable, lower_is_better
from jupyter_mlops.client.serving import Deployment, DeploymentTable, Endpoint, EndpointTable
from jupyter_mlops.core.errors import NotFound
from jupyter_mlops.magics.display import MAX_BUNDLE, MIME, bundle, snapshot

EVIL = "<script>alert(1)</script>\"'&\x1b[31m\n"
OFF = None  # objects must draw themselves without a client


def a_run(number: int = 1, **changes) -> dict:
    return {
        "run_id": f"{number:032x}", "name": f"run-{number}", "experiment_id": "1", "experiment_name": "digits",
        "status": "FINISHED", "start_time": "2026-01-01T00:00:00.000Z", "end_time": "2026-01-01T00:01:20.000Z",
        "metrics": {"accuracy": 0.9 + number / 100, "loss": 1 / number}, "params": {"lr": str(number), "seed": "0"},
        "tags": {}, "models": [], "job": "", **changes,
    }


def a_job(**status) -> dict:
    return {
        "kind": "job", "name": "digits-abc123", "created_at": "2026-01-01T00:00:00Z",
        "spec": {"script": "train.py", "experiment_name": "digits", "distribution": {"process_count_per_instance": 2}},
        "status": {"phase": "Running", "run_id": "f" * 32, "experiment_id": "1", "queued_at": "2026-01-01T00:00:00Z",
                   "started_at": "2026-01-01T00:00:01Z", "ended_at": "", "exit_code": None, "reason": "", **status},
    }


def everything(text: str = EVIL) -> list:
    run = Run(OFF, a_run(name=text, status=text, metrics={text: 0.5}, params={text: text}, models=[{"name": text}]))
    other = Run(OFF, a_run(2, name=text, metrics={text: 0.7}, params={text: "x"}))
    job = Job(OFF, {**a_job(reason=text, log_tail=[text]), "name": text})
    version = ModelVersion(OFF, {"name": text, "version": "1", "aliases": [text], "description": text, "run_id": text})
    model = Model(OFF, {"name": text, "aliases": {text: "1"}, "versions": [version.to_dict()], "description": text})
    endpoint = Endpoint(OFF, {"name": text, "spec": {"traffic": {text: 100}}, "status": {
        "phase": text, "reason": text, "scoring_uri": text, "key_hints": {text: text}}})
    deployment = Deployment(OFF, {"name": text, "parent": text, "spec": {"model": text},
                                  "status": {"phase": text, "reason": text}})
    endpoint.behind = DeploymentTable([deployment])
    report = Report([]).facts([(text, text)], text, text).table([text], [[text]], text, 0).note(text)
    return [
        run, job, version, model, endpoint, deployment, report, RunTable([run, other], note=text), JobTable([job]),
        ModelTable([model]), EndpointTable([endpoint]), DeploymentTable([deployment]),
        Comparison([run, other], text, {text: {text: {"steps": [0, 1], "values": [1, 2]}}}),
    ]


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag, attrs) -> None:
        self.seen.add(tag)
        self.attributes.update(name for name, _ in attrs)
        self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.seen.add(tag)
        self.attributes.update(name for name, _ in attrs)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


def check_html(html: str) -> None:
    tags = Tags()
    tags.feed(html)
    tags.close()
    assert tags.open == []
    assert not tags.seen & {"script", "style", "link", "img", "iframe", "object", "a", "form"}
    assert not any(name.startswith("on") or name in ("href", "src") for name in tags.attributes)


@pytest.mark.parametrize("index", range(len(everything())))
def test_hostile_text_is_escaped(index: int) -> None:
    thing = everything()[index]
    made = thing._repr_mimebundle_()
    check_html(made["text/html"])
    assert "<script" not in made["text/html"]
    assert "\x1b" not in made["text/plain"]
    assert "\n" not in repr(thing) and "\x1b" not in repr(thing)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=20))
def test_any_text_is_drawn(text: str) -> None:
    for thing in everything(text or "x"):
        check_html(thing._repr_mimebundle_()["text/html"])
        assert "\n" not in repr(thing)


def test_empty_tables_say_what_to_do() -> None:
    for table in (RunTable([]), JobTable([]), ModelTable([]), EndpointTable([])):
        assert "%mlops" in table.text() and "%mlops" in table.html() and len(table) == 0


def test_states_are_told_in_words() -> None:
    assert "Failed" in render.pill("Failed") and "Completed" in render.pill("FINISHED")


def test_tables_index_and_convert() -> None:
    table = RunTable([Run(OFF, a_run(n)) for n in (1, 2, 3)])
    assert table[0].name == "run-1" and table["run-2"].id.endswith("2") and len(table[1:]) == 2
    with pytest.raises(KeyError):
        table["nope"]
    frame = table.df()
    assert list(frame["metrics.accuracy"]) == [0.91, 0.92, 0.93] and list(frame["params.lr"]) == ["1", "2", "3"]


def test_best_run() -> None:
    table = RunTable([Run(OFF, a_run(n)) for n in (1, 2, 3)])
    assert table.best("accuracy").name == "run-3" and table.best("loss").name == "run-3"
    assert table.best("accuracy", lower=True).name == "run-1"
    with pytest.raises(NotFound) as raised:
        table.best("acuracy")
    assert "accuracy" in raised.value.hint


@pytest.mark.parametrize(
    ("metric", "lower"), [("loss", True), ("val_loss", True), ("rmse", True), ("accuracy", False), ("f1", False),
                          ("roc_auc", False), ("error_rate", True), ("throughput", False)],
)
def test_direction_of_a_metric(metric: str, lower: bool) -> None:
    assert lower_is_better(metric) is lower


def test_comparison_shows_what_differs() -> None:
    found = Comparison([Run(OFF, a_run(n)) for n in (1, 2)], "accuracy")
    assert found.params == ["lr"] and found.same == {"seed": "0"} and found.metrics[0] == "accuracy"
    assert "0.92 *" in found.text() and "best" in found.html() and "equal in all: seed=0" in found.text()
    assert found.best().name == "run-2" and found.to_dict()["best"]["accuracy"].endswith("2")
    assert found.df().shape == (3, 2)
    with pytest.raises(NotFound):
        Comparison([Run(OFF, a_run())], "nope")


def test_a_long_comparison_unfolds() -> None:
    few = Comparison([Run(OFF, a_run(1)), Run(OFF, a_run(2))], "accuracy")
    assert "<details>" not in few.html()
    many = {f"p{i}": "1" for i in range(30)}
    long = Comparison([Run(OFF, a_run(1, params=many)), Run(OFF, a_run(2))], "accuracy").html()
    head, _, rest = long.partition("<details>")
    assert ">accuracy<" in head and ">p12<" not in head and ">p9<" in rest


def test_metrics_that_json_lacks_are_nan() -> None:
    run = Run(OFF, a_run(metrics={"loss": None}))
    assert math.isnan(run.metrics["loss"]) and "nan" in run._repr_mimebundle_()["text/plain"]


def test_long_sentences_break_in_tables_and_names_do_not() -> None:
    html = render.table(["job", "reason"], [["a" * 50, "rank 1 ended with exit code 1: " + "bad batch " * 5]])
    name, reason = html.split("<td ")[1:]
    assert "nowrap" in name and "nowrap" not in reason


def test_missing_values_in_a_comparison() -> None:
    runs = [Run(OFF, a_run(n, metrics=m)) for n, m in ((1, {"a": None}), (2, {}), (3, {"a": 1.0}))]
    found = Comparison(runs, "a")
    check_html(found.html())
    assert found.best("a").name == "run-3"


# -- charts --------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(-(2**53), 2**53), st.one_of(st.none(), st.floats())), max_size=30))
def test_a_curve_of_anything(points: list) -> None:
    made = render.curve({"m": ([p[0] for p in points], [p[1] for p in points])}, "m")
    check_html(made)
    assert "nan" not in re.sub(r">[^<]*<|aria-label=\"[^\"]*\"", "", made)
    assert "inf" not in re.sub(r">[^<]*<|aria-label=\"[^\"]*\"|font-family[^\"]*", "", made)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=5), st.one_of(st.none(), st.floats())), max_size=8))
def test_bars_of_anything(pairs: list) -> None:
    check_html(render.bars(pairs, 0))


def test_numbers_and_times() -> None:
    assert render.number(0.123456789) == "0.12346" and render.number(math.nan) == "nan" and render.number(None) == ""
    assert render.duration("2026-01-01T00:00:00Z", "2026-01-01T00:01:20Z") == "1 m 20 s"
    assert render.duration("2026-01-01T00:00:00Z", "2026-01-01T02:01:20Z") == "2 h 1 m"
    assert render.duration("", "") == "" and render.duration("nonsense") == ""
    assert render.size(1234) == "1.2 KB" and render.size(5) == "5 B" and render.size(None) == "0 B"


# -- live output ---------------------------------------------------------------------------------------------------


def test_bundle_has_three_forms_and_the_contract() -> None:
    curves = {"loss": {"steps": [0, 1, 2], "values": [1.0, 0.5, 0.25], "timestamps": [1, 2, 3], "total": 3}}
    shot = snapshot(a_job(phase="Completed", exit_code=0, ended_at="2026-01-01T00:00:31Z"), curves, "one\ntwo\n",
                    {"done": 3, "total": 4})
    made = bundle(a_job(phase="Completed"), shot, "team")
    assert set(made) == {MIME, "text/html", "text/plain"}
    live = made[MIME]
    assert {k: live[k] for k in ("version", "workspace", "name", "run_id", "experiment_id")} == {
        "version": 1, "workspace": "team", "name": "digits-abc123", "run_id": "f" * 32, "experiment_id": "1",
    }
    assert set(live["snapshot"]) == {
        "phase", "reason", "queued_at", "started_at", "ended_at", "exit_code", "processes", "metrics", "log",
        "progress", "taken_at", "attempt", "restarts", "memory",
    }
    assert live["snapshot"]["metrics"] == {"loss": {"steps": [0, 1, 2], "values": [1.0, 0.5, 0.25]}}
    assert live["snapshot"]["processes"] == 2 and live["snapshot"]["log"] == "one\ntwo"
    check_html(made["text/html"])
    assert "<svg" in made["text/html"] and "Completed" in made["text/html"]
    assert made["text/plain"].startswith("Job digits-abc123 Completed, 30.0 s, 2 processes")
    assert "loss=0.25" in made["text/plain"] and "| two" in made["text/plain"]
    json.dumps(made, allow_nan=False)


def test_a_log_is_shown_as_a_terminal_leaves_it() -> None:
    log = "\x1b[32mgreen\x1b[0m\ttext\r\n 10%|#  |\r100%|###|\r\n\x1b]0;title\x07end\n"
    assert render.log_lines(log) == ["green    text", "100%|###|", "end"]
    assert render.log_lines("") == [] and render.log_lines("\n\na") == ["", "", "a"]
    shot = snapshot(a_job(), {}, log)
    assert shot["log"] == "green    text\n100%|###|\nend" and "32m" not in bundle(a_job(), shot)["text/html"]


def test_bundle_is_bounded() -> None:
    steps = list(range(5000))
    curves = {f"metric {i} {'x' * 200}": {"steps": steps, "values": [i / 3 for i in steps]} for i in range(40)}
    log = "\n".join(EVIL.replace("\n", "") * 200 for _ in range(1000))
    job = a_job(phase="Failed", reason="r" * 5000)
    made = bundle(job, snapshot(job, curves, log))
    assert len(json.dumps(made).encode()) <= MAX_BUNDLE
    check_html(made["text/html"])
    assert made[MIME]["snapshot"]["metrics"]
    first = next(iter(made[MIME]["snapshot"]["metrics"].values()))
    assert first["steps"][0] == 0 and first["steps"][-1] == 4999


def saved(data: dict) -> int:
    """Bytes of a notebook file with this output."""
    import nbformat

    output = nbformat.v4.new_output("display_data", data=data)
    cell = nbformat.v4.new_code_cell("x", outputs=[output] if data else [])
    return len(nbformat.writes(nbformat.v4.new_notebook(cells=[cell])).encode())


@pytest.mark.parametrize(("metrics", "line"), [(20, "epoch {} \"loss\" 0.2 <ünï>"), (300, "x" * 500), (3, "\\" * 500)])
def test_a_notebook_grows_by_less_than_fifty_kilobytes(metrics: int, line: str) -> None:
    """As the file is written: indented, each number on a line of its own."""
    steps = list(range(0, 100_000, 200))
    curves = {
        f"train/metric_{i}": {"steps": steps, "values": [math.sin(s * i / 7) / 3 for s in steps],
                              "timestamps": [1_770_000_000_000 + s for s in steps]}
        for i in range(metrics)
    }
    job = a_job(phase="Completed", reason="r" * 4000)
    made = bundle(job, snapshot(job, curves, "\n".join(line.format(i) for i in range(5000)), None, 10**9))
    assert saved(made) - saved({}) < 50_000
    shot = made[MIME]["snapshot"]
    assert len(shot["metrics"]) >= min(metrics, 8) and shot["log"].count("\n") >= 9
    assert all(len(curve["steps"]) >= 12 for curve in shot["metrics"].values())
    assert "most memory 1.0 GB" in made["text/plain"] and made["text/html"].count("<svg") == len(shot["metrics"])
    check_html(made["text/html"])


def test_further_attempts_are_marked() -> None:
    second = "2026-01-01T00:01:00Z"
    job = a_job(attempt=2, started_at=second, attempts=[
        {"attempt": 1, "phase": "Failed", "started_at": "2026-01-01T00:00:01Z", "ended_at": "2026-01-01T00:00:50Z"}])
    begun = 1767225600000
    times = [begun + t for t in (2000, 9000, 61000, 62000)]
    curves = {
        "loss": {"steps": [0, 1, 2, 3], "values": [4, 3, 2, 1], "timestamps": times},
        "early": {"steps": [0, 1], "values": [4, 3], "timestamps": times[:2]},
    }
    made = bundle(job, snapshot(job, curves, ""))
    assert made[MIME]["snapshot"]["restarts"] == {"loss": [2]} and made[MIME]["snapshot"]["attempt"] == 2
    assert made["text/html"].count("stroke-dasharray") == 1 and "attempt 2" in made["text/plain"]
    check_html(made["text/html"])


def test_values_that_json_lacks_are_null() -> None:
    shot = snapshot(a_job(), {"loss": {"steps": [0, 1], "values": [None, 0.5]}}, "")
    made = bundle(a_job(), shot)
    assert made[MIME]["snapshot"]["metrics"]["loss"]["values"] == [None, 0.5]
    check_html(made["text/html"])


def test_a_failed_job_tells_its_last_lines() -> None:
    job = Job(OFF, a_job(phase="Failed", reason="exit code 3 of rank 1", exit_code=3))
    error = JobFailed(job, ["boom \x1b[31m", "end"])
    lines = error._render_traceback_()
    assert lines[0] == "JobFailed: job digits-abc123 failed: exit code 3 of rank 1"
    assert "  | end" in lines and lines[-1].startswith("  hint:") and not any("\x1b" in line for line in lines)


@pytest.mark.parametrize(
    ("status", "hint"),
    [({"failed_rank": 1, "exit_code": 1}, "%mlops logs digits-abc123 --rank 1"),
     ({"exit_code": -9}, "%mlops resume digits-abc123")],
)
def test_a_failed_job_says_where_to_look(status: dict, hint: str) -> None:
    assert hint in JobFailed(Job(OFF, a_job(phase="Failed", **status)), []).hint


def test_tracebacks_in_what_is_shown_name_the_cell_without_its_folder():
    text = '  File "/home/ann/mlops/jobs/net-2/code/cell.py", line 3, in <module>\n  File "/opt/code/cell.py", line 1'
    assert render.log_lines(text) == ['  File "cell.py", line 3, in <module>', '  File "/opt/code/cell.py", line 1']


def test_a_narrow_terminal_sees_state_and_reason_of_jobs():
    data = {"name": "digits", "spec": {"experiment_name": "e" * 30}, "status": {"phase": "Failed", "reason": "r" * 40}}
    table = JobTable([Job(None, data)])
    wide, narrow = table.text(), table.text(80)
    assert "e" * 30 in wide and "e" * 30 not in narrow
    assert "Failed" in narrow and "r" * 40 in narrow and max(map(len, narrow.splitlines())) <= 80
