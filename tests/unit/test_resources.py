"""Names and specs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_mlops.core.errors import ParameterError
from jupyter_mlops.core.resources import NAME, check_name, generate_name
from jupyter_mlops.core.workspace import parse_spec


@pytest.mark.parametrize("name", ["a", "train-1", "a" * 40])
def test_good_names(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "A", "1a", "a-", "-a", "a" * 41, "../x", "a/b", "a\n", "ä", "a b", "a.b", "a%2fb"]
)
def test_bad_names(name):
    with pytest.raises(ParameterError):
        check_name(name)


@given(st.text(max_size=80))
def test_generated_names_are_valid(text):
    assert NAME.match(generate_name(text))


@pytest.mark.parametrize(
    ("kind", "spec", "word"),
    [
        ("job", {}, "exactly one of"),
        ("job", {"script": "a.py", "command": "ls"}, "exactly one of"),
        ("job", {"command": "ls", "args": ["x"]}, "args needs script"),
        ("job", {"script": "a.py", "cwd": "here"}, "absolute"),
        ("job", {"script": "a.py", "surprise": 1}, "surprise"),
        ("job", {"script": "a\0.py"}, "NUL"),
        ("job", {"script": "a.py", "environment_variables": {"JUPYTER_MLOPS_TOKEN": "x"}}, "reserved"),
        ("job", {"script": "a.py", "distribution": {"type": "mpi"}}, "distribution"),
        ("job", {"command": "ls", "distribution": {"type": "pytorch", "process_count_per_instance": 2}}, "command"),
        ("deployment", {"model": "digits"}, "neither"),
        ("deployment", {"model": "digits/latest"}, "neither"),
        ("endpoint", {"traffic": {"blue": 30}}, "0 or 100"),
        ("endpoint", {"traffic": {"blue": 100, "green": 100}}, "add up"),
        ("compute", {"type": "cloud"}, "type"),
        ("job", [], "must be an object"),
    ],
)
def test_bad_specs_name_the_field_in_one_line(kind, spec, word):
    with pytest.raises(ParameterError) as e:
        parse_spec(kind, spec)
    assert word in str(e.value) and "\n" not in str(e.value)
