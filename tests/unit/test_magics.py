"""Magics in an in-process shell that reaches no control plane."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell

from jupyter_mlops.core.errors import MlopsError
from jupyter_mlops.magics import settings
from jupyter_mlops.magics.completion import complete
from jupyter_mlops.magics.magics import help_lines
from jupyter_mlops.runtime import locate


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """A fresh shell with the extension; inside a job no control plane is ever started."""
    monkeypatch.setenv("JUPYTER_MLOPS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("JUPYTER_MLOPS_JOB", "unit")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    InteractiveShell.clear_instance()
    ip = InteractiveShell.instance()
    ip.run_line_magic("load_ext", "jupyter_mlops")
    yield ip
    ip.run_line_magic("unload_ext", "jupyter_mlops")
    ip.history_manager.end_session()
    InteractiveShell.clear_instance()


def fails(shell: InteractiveShell, cell: str) -> MlopsError:
    result = shell.run_cell(cell)
    assert not result.success, cell
    error = result.error_in_exec or result.error_before_exec
    assert isinstance(error, MlopsError), error
    return error


def test_load_and_unload_leave_no_trace(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("JUPYTER_MLOPS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("JUPYTER_MLOPS_JOB", "unit")
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    InteractiveShell.clear_instance()
    ip = InteractiveShell.instance()
    matchers, hooks = list(ip.Completer.custom_matchers), list(ip.input_transformers_cleanup)
    for _ in range(2):
        ip.run_line_magic("load_ext", "jupyter_mlops")
        assert ip.find_line_magic("mlops") and ip.find_cell_magic("mlops")
        assert os.environ["MLFLOW_TRACKING_URI"].endswith("/jupyter-mlops/mlflow")
        ip.run_line_magic("unload_ext", "jupyter_mlops")
        assert ip.find_line_magic("mlops") is None and ip.find_cell_magic("mlops") is None
        assert list(ip.Completer.custom_matchers) == matchers
        assert list(ip.input_transformers_cleanup) == hooks
    assert {k: v for k, v in os.environ.items() if "ML" in k} == {k: v for k, v in before.items() if "ML" in k}
    ip.history_manager.end_session()
    InteractiveShell.clear_instance()


def test_reloading_registers_once(shell) -> None:
    count = len(shell.Completer.custom_matchers)
    shell.run_line_magic("reload_ext", "jupyter_mlops")
    shell.run_line_magic("load_ext", "jupyter_mlops")
    assert len(shell.Completer.custom_matchers) == count


LIGHT = """
import sys
from IPython.core.interactiveshell import InteractiveShell
ip = InteractiveShell.instance()
before = set(sys.modules)
ip.run_line_magic("load_ext", "jupyter_mlops")
heavy = {"mlflow", "torch", "kubernetes", "pandas", "numpy", "pydantic", "aiohttp", "tornado", "sqlalchemy", "zipfile",
         "jupyter_mlops.client"}
print(sorted(heavy & (set(sys.modules) - before)))
"""


def test_loading_imports_nothing_heavy(tmp_path) -> None:
    env = {**os.environ, "JUPYTER_MLOPS_HOME": str(tmp_path / "h"), "JUPYTER_MLOPS_JOB": "unit",
           "IPYTHONDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, env=env, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_package_imports_only_the_future(tmp_path) -> None:
    code = "import sys; b = set(sys.modules); import jupyter_mlops; print(sorted(set(sys.modules) - b))"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, env=env, timeout=60)
    assert set(eval(done.stdout)) <= {"jupyter_mlops", "__future__"}, done.stdout


def test_version_has_one_source() -> None:
    import json

    import jupyter_mlops

    package = json.loads((Path(__file__).resolve().parents[2] / "package.json").read_text())
    assert jupyter_mlops.__version__ == package["version"]
    with pytest.raises(AttributeError):
        _ = jupyter_mlops.nothing


# -- errors --------------------------------------------------------------------------------------------------------


def test_errors_raise_and_show_two_lines(shell, capsys) -> None:
    error = fails(shell, "%mlops trian x.py")
    assert error._render_traceback_() == [
        "ParameterError: unknown verb 'trian'", "  hint: did you mean train? see: %mlops help",
    ]
    shown = capsys.readouterr()
    assert "Traceback" not in shown.out + shown.err


def test_undefined_variable_in_the_line(shell) -> None:
    assert "undefined variable `missing`" in fails(shell, "%mlops log x={missing}").message


def test_variables_of_the_local_scope(shell) -> None:
    shell.run_cell("def f(name):\n    get_ipython().run_line_magic('mlops', 'help {name}')")
    assert "unknown verb 'zzz'" in fails(shell, "f('zzz')").message


def test_a_cell_body_is_never_formatted(shell) -> None:
    assert "`X` is not defined" in fails(shell, "%%mlops train\nprint(f'{X}', {'a': 1})").message


def test_only_train_takes_a_cell(shell) -> None:
    assert "takes no cell" in fails(shell, "%%mlops runs\nx").message


def test_cell_and_script_are_exclusive(shell) -> None:
    assert "neither a script" in fails(shell, "%%mlops train s.py\nx = 1").message


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("%mlops train", "there is nothing to train"),
        ("%mlops train missing.py", "the script 'missing.py' is not there"),
        ("%%mlops train\nx = = 1", "syntax error in line 2 of the cell"),
        ("%%mlops train\nx = 1\n!ls", "line 3 of the cell is IPython syntax"),
        ("%mlops log", "there is nothing to log"),
        ("%mlops log --artifact nope.png", "there is no file 'nope.png'"),
        ("%mlops invoke digits", "there is nothing to score"),
        ("%mlops invoke digits missing[:3]", "undefined variable `missing`"),
        ("%mlops compare a --experiment b", "not both"),
        ("%mlops config nope 3", "there is no setting 'nope'"),
        ("%mlops config refresh soon", "is not a number of seconds"),
        ("%mlops runs", "does not answer"),
    ],
)
def test_bad_input(shell, cell: str, message: str) -> None:
    error = fails(shell, cell)
    assert message in error.message and "\n" not in error.message


def test_notebook_only_names(shell) -> None:
    shell.run_cell("import json as js\nX = [1]")
    error = fails(shell, "%%mlops train --no-ship\nprint(js.dumps(X))")
    assert error.message == "`X` and `js` exist only in the notebook: load them in the cell (line 2)"


def test_scripts_are_checked(shell, tmp_path) -> None:
    (tmp_path / "train.py").write_text("x = (\n")
    assert "syntax error in line 1 of train.py" in fails(shell, "%mlops train train.py").message
    assert "did you mean train.py?" in fails(shell, "%mlops train trian.py").hint
    (tmp_path / "d").mkdir()
    assert "is a folder" in fails(shell, "%mlops train d").message


def test_processes_need_torch(shell, tmp_path, monkeypatch) -> None:
    from jupyter_mlops.magics import jobs

    (tmp_path / "train.py").write_text("pass")
    monkeypatch.setattr(jobs, "find_spec", lambda name: None)
    error = fails(shell, "%mlops train train.py --processes 2")
    assert "PyTorch" in error.message and "jupyter-mlops[torch]" in error.hint


# -- help, out, silence --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "becomes"),
    [
        ("%mlops train?", "%mlops help train"), ("%mlops train??\n", "%mlops help train\n"),
        ("  %mlops runs ?", "  %mlops help runs"), ("%%mlops train?", "%mlops help train"),
        ("%mlops ?", "%mlops help"), ("x?", "x?"), ("%mlops?", "%mlops help"), ("%mlops log q=a?", "%mlops log q=a?"),
    ],
)
def test_question_marks(line: str, becomes: str) -> None:
    assert help_lines(["x = 1\n", line]) == ["x = 1\n", becomes]


def test_question_marks_in_a_cell_body_are_text() -> None:
    cell = ["%%mlops train\n", "%mlops runs?"]
    assert help_lines(cell) == cell


def test_help_is_the_same_everywhere(shell, capsys) -> None:
    texts = []
    for cell in ("%mlops train?", "%mlops help train", "%mlops train --help", "%mlops train -h"):
        assert shell.run_cell(cell).success
        texts.append(capsys.readouterr().out)
    assert len(set(texts)) == 1 and texts[0].startswith("usage: %mlops train")


def test_out_and_semicolon(shell, capsys) -> None:
    assert shell.run_cell("%mlops config experiment -o c").success
    assert shell.user_ns["c"].to_dict()[0]["name"] == "experiment"
    assert "experiment" in capsys.readouterr().out
    assert shell.run_cell("%mlops config experiment;").success
    assert capsys.readouterr().out == ""
    assert shell.run_cell("c = %mlops config experiment ;").success
    assert shell.user_ns["c"] is None and capsys.readouterr().out == ""
    assert shell.run_cell("v = %mlops config home").success
    assert shell.user_ns["v"][0]["name"] == "home"


@pytest.mark.parametrize("line", ["invoke digits [1,2", "runs --filter '(a'", "invoke digits \"x", "config nope (a"])
def test_lines_that_are_no_python(shell, line: str) -> None:
    """IPython looks for a trailing semicolon by reading the line as Python; its failure must not be the answer."""
    result = shell.run_cell(f"%mlops {line}")
    assert isinstance(result.error_in_exec, MlopsError), result.error_in_exec


# -- settings ------------------------------------------------------------------------------------------------------


def test_the_users_own_tracking_uri_wins(tmp_path, monkeypatch) -> None:
    where = locate.Place(str(tmp_path), "default")
    environ = {"MLFLOW_TRACKING_URI": "http://other:5000"}
    assert settings.enter(where, environ) == {} and environ == {"MLFLOW_TRACKING_URI": "http://other:5000"}


def test_set_tracking_uri_wins(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(settings, "mlflow_uri_set", lambda: "sqlite:///mine.db")
    assert settings.enter(locate.Place(str(tmp_path), "default"), {}) == {}


def test_addresses_are_set_and_undone(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "digits"
    folder.mkdir()
    monkeypatch.chdir(folder)
    environ: dict[str, str] = {}
    where = locate.Place(str(tmp_path / "home"), "default")
    changed = settings.enter(where, environ)
    assert environ["MLFLOW_TRACKING_URI"] == environ["JUPYTER_MLOPS_URL"] + "/mlflow"
    assert environ["MLFLOW_EXPERIMENT_NAME"] == "digits"
    assert not any("TOKEN" in name for name in environ)
    environ["MLFLOW_EXPERIMENT_NAME"] = "mine"
    settings.leave(changed, environ)
    assert environ == {"MLFLOW_EXPERIMENT_NAME": "mine"}


def test_the_users_experiment_stays(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    where = locate.Place(str(tmp_path), "default")
    assert settings.experiment(where) == settings.Value("mine", "environment MLFLOW_EXPERIMENT_NAME")


def test_config_file(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    where = locate.Place(str(tmp_path / "home"), "default")
    assert settings.experiment(where).source.startswith("default")
    settings.write(where, "experiment", "chosen")
    assert settings.experiment(where) == settings.Value("chosen", settings.path_of(where))
    settings.write(where, "experiment", "")
    assert settings.experiment(where).value == tmp_path.name


def test_config_of_the_experiment_reaches_plain_mlflow(shell) -> None:
    assert shell.run_cell("%mlops config experiment chosen;").success
    assert os.environ["MLFLOW_EXPERIMENT_NAME"] == "chosen"
    assert shell.run_cell("%mlops config experiment '';").success
    assert os.environ["MLFLOW_EXPERIMENT_NAME"] == Path.cwd().name


def test_stores_nearby_are_named(tmp_path) -> None:
    assert settings.nearby_remark(str(tmp_path)) == ""
    (tmp_path / "mlruns").mkdir()
    assert settings.nearby(str(tmp_path)) == []  # empty: nothing to see
    (tmp_path / "mlruns" / "0").mkdir()
    (tmp_path / "mlflow.db").write_text("")
    assert "mlruns/ and mlflow.db in this folder" in settings.nearby_remark(str(tmp_path))


# -- completion ----------------------------------------------------------------------------------------------------

KNOWN = {
    "job": ["digits-1", "old"], "running job": ["digits-1"], "experiment": ["digits", "text"], "model": ["digits"],
    "version": ["digits@champion", "digits/2"], "endpoint": ["digits"], "deployment": ["digits/v1"], "run": ["pine"],
    "variable": ["x_test"],
}


def names(kind: str) -> list[str]:
    return KNOWN.get(kind, [])


@pytest.mark.parametrize(
    ("before", "fragment", "expected"),
    [
        ("tr", "tr", ["traffic", "train"]), ("", "", None), ("train --proc", "--proc", ["--processes"]),
        ("logs ", "", ["digits-1", "old"]), ("stop d", "d", ["digits-1"]),
        ("deploy dig", "dig", ["digits@champion", "digits/2"]),
        ("traffic digits ", "", ["v1="]), ("traffic digits v1=10 ", "", []), ("traffic digits --mirror ", "", ["v1="]),
        ("invoke digits --deployment ", "", ["v1"]), ("deploy m -e d --sample x_", "x_", ["x_test"]),
        ("deploy m --endpoint ", "", ["digits"]), ("runs -e t", "t", ["text"]), ("runs --experiment=t", "t", ["text"]),
        ("jobs --phase R", "R", ["Running"]), ("invoke d", "d", ["digits"]), ("delete d", "d", ["deployment"]),
        ("delete endpoint ", "", ["digits"]), ("delete deployment digits/", "digits/", ["digits/v1"]),
        ("register b", "b", ["best"]), ("register best d", "d", ["digits"]), ("help lo", "lo", ["log", "logs"]),
        ("compare pine p", "p", ["pine"]), ("endpoints digits --rotate-key p", "p", ["primary"]),
        ("invoke digits X[x", "x", ["x_test"]), ("config e", "e", ["experiment"]),
        ("runs x ", "", []), ("log --run p", "p", ["pine"]),
    ],
)
def test_completion(before: str, fragment: str, expected: list[str] | None) -> None:
    found = complete(before, names)
    assert found is not None and found[0] == fragment
    if expected is not None:
        assert found[1] == expected


@pytest.mark.parametrize("before", ["invoke digits X.", "train s.py -- --l", "nope x", "log --artifact p"])
def test_completion_leaves_the_rest_to_python(before: str) -> None:
    assert complete(before, names) is None


def test_completion_in_the_shell(shell, tmp_path) -> None:
    (tmp_path / "train.py").write_text("")
    for line in ("%mlops ru", "x = %mlops ru", "%%mlops ru"):
        assert shell.Completer.complete(line_buffer=line)[1] == ["runs"]
    assert shell.Completer.complete(line_buffer="%mlops train tr")[1] == ["train.py"]
    shell.run_cell("digits_data = 1")
    assert "digits_data" in shell.Completer.complete(line_buffer="%mlops invoke digits digits_d")[1]
