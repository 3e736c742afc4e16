"""Command lines about endpoints: what is Python in them, and what does not go together."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from jupyter_mlops.client.deploy import Deployed
from jupyter_mlops.client.serving import Deployment
from jupyter_mlops.core.errors import MlopsError
from jupyter_mlops.magics.context import Context
from jupyter_mlops.magics.deploying import _tell
from jupyter_mlops.magics.expand import expand
from jupyter_mlops.magics.parser import parse, split


@pytest.mark.parametrize(("line", "expression"), [
    ("deploy m -e d --sample X[:5]", "X[:5]"),
    ("deploy m --sample X[:5] -e d", "X[:5]"),
    ('deploy m -e d --sample df[["a", "b"]].head(3) --keep', 'df[["a", "b"]].head(3)'),
    ("deploy m -e d --sample 'df[df.a > 3]'", "df[df.a > 3]"),
    ('deploy m -e d --sample={"a": [1, 2]}', '{"a": [1, 2]}'),
    ('deploy m -e d --sample f("it\'s", (1, 2))', 'f("it\'s", (1, 2))'),
    ("deploy m -e d --sample $X", "$X"),
])
def test_a_sample_is_python_up_to_a_blank_outside_of_brackets(line: str, expression: str) -> None:
    words = split(line, lambda text: expand(text, {}))
    arguments = parse(words)
    assert arguments.sample == expression
    assert (arguments.model, arguments.endpoint) == ("m", "d")


def test_what_is_no_python_is_expanded() -> None:
    arguments = parse(split("deploy {name}@a -e d --sample {x: 1}", lambda text: expand(text, {"name": "digits"})))
    assert (arguments.model, arguments.sample) == ("digits@a", "{x: 1}")


@pytest.mark.parametrize(("line", "data", "deployment", "example", "out"), [
    ("invoke d X[:3]", "X[:3]", None, False, None),
    ("invoke d -X", "-X", None, False, None),
    ("invoke d --deployment v1 X - 1", "X - 1", "v1", False, None),
    ("invoke d X[:3] --deployment v-2 -o y", "X[:3]", "v-2", False, "y"),
    ("invoke -d v1 d [[1, 2]]", "[[1, 2]]", "v1", False, None),
    ("invoke d --example", None, None, True, None),
    ("invoke d --example -o y", None, None, True, "y"),
    ("invoke d", None, None, False, None),
])
def test_invoke(line: str, data: str | None, deployment: str | None, example: bool, out: str | None) -> None:
    a = parse(split(line))
    assert (a.endpoint, a.data, a.deployment, a.example, a.out) == ("d", data, deployment, example, out)


@pytest.mark.parametrize(("line", "message"), [
    ("deploy m --canary 0", "--canary"), ("deploy m --canary 100", "1 to 99"), ("deploy m --traffic 101", "0 to 100"),
    ("deploy m --collect 2", "0 to 1"), ("deploy m --instances 0", "--instances"), ("deploy m --duration x", "10m"),
])
def test_wrong_values_are_one_line(line: str, message: str) -> None:
    with pytest.raises(MlopsError) as raised:
        parse(split(line))
    assert message in raised.value.message and "\n" not in raised.value.message


def test_percentages() -> None:
    assert parse(split("deploy m --collect 1%")).collect == 0.01
    assert parse(split("deploy m --mask a,b")).mask == ["a", "b"]


@pytest.mark.parametrize(("line", "interactive", "inserted"), [
    ("deploy m -e d --call", True, 1), ("deploy m -e d --call", False, 0), ("deploy m -e d", True, 0),
])
def test_a_cell_is_inserted_when_that_is_asked_for_and_somebody_is_there(line, interactive, inserted) -> None:
    cells: list[tuple[str, bool]] = []
    shell = SimpleNamespace(
        kernel=SimpleNamespace(_allow_stdin=interactive),
        set_next_input=lambda text, replace: cells.append((text, replace)),
    )
    deployment = Deployment(None, {"name": "v1", "parent": "d", "spec": {  # type: ignore[arg-type]
        "proof": {"request": {"inputs": [[1, 2]]}}}})
    told = _tell(parse(split(line)), Context("magic", {}, shell), "d", Deployed(deployment), "")
    assert told is deployment and len(cells) == inserted
    assert all(text == deployment.call_cell and replace is False for text, replace in cells)


@pytest.mark.parametrize(("line", "message"), [
    ("traffic d v1=x", "0 to 100"), ("traffic d v1", "KEY=VALUE"), ("traffic d --promote --rollback", "not allowed"),
    ("apply", "missing: -f"), ("endpoints d --token x", "length of time"),
])
def test_wrong_values_of_other_verbs(line: str, message: str) -> None:
    with pytest.raises(MlopsError) as raised:
        parse(split(line))
    assert message in raised.value.message and "\n" not in raised.value.message


def test_shares_and_times() -> None:
    assert parse(split("traffic d v1=90% v2=10")).shares == [("v1", 90), ("v2", 10)]
    assert parse(split("endpoints d --token 2h")).token == 7200 and parse(split("endpoints d --token")).token == 3600
