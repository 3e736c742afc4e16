"""The one parser of magics and CLI."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_mlops.core.errors import MlopsError, ParameterError
from jupyter_mlops.magics import parser
from jupyter_mlops.magics.expand import evaluate, expand


def parse(line: str, face: str = "magic"):
    return parser.parse(parser.split(line), face)


def test_bare_line_is_status() -> None:
    assert parse("").verb == "status"


@pytest.mark.parametrize("verb", parser.VERBS)
@pytest.mark.parametrize("face", ["magic", "cli"])
def test_every_verb_has_help(verb: str, face: str) -> None:
    with pytest.raises(parser.HelpRequested) as asked:
        parser.parse([verb, "--help"], face)
    text = asked.value.text
    assert text == parser.help_for(verb, face)
    assert text.startswith(f"usage: {parser.program(face)} {verb}")
    assert ("--json" in text) == (face == "cli")
    assert ("--out VAR" in text) == (face == "magic")
    assert "%%" not in text.replace("%%mlops", "")


@pytest.mark.parametrize("verb", parser.VERBS)
@pytest.mark.parametrize("face", ["magic", "cli"])
def test_every_verb_has_a_command_and_examples_that_parse(verb: str, face: str) -> None:
    from importlib import import_module

    module, _, function = parser.VERBS[verb].home.partition(":")
    assert callable(getattr(import_module(f"jupyter_mlops.magics.{module}"), function))
    for example in parser.VERBS[verb].examples:
        assert parse(example, face).verb == verb


def test_overview_names_every_verb() -> None:
    with pytest.raises(parser.HelpRequested) as asked:
        parse("--help")
    assert all(verb in asked.value.text for verb in parser.VERBS)


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("trian x.py", "unknown verb 'trian'", "did you mean train?"),
        ("zzz", "unknown verb 'zzz'", "verbs: status"),
        ("-x", "a verb must come first", "help"),
        ("train x.py --procesess 2", "unknown option --procesess", "did you mean --processes?"),
        ("train x.py --lr 3", "unknown option --lr", "arguments of the script go behind --"),
        ("train x.py y.py", "unexpected argument 'y.py'", "arguments of the script go behind --"),
        ("runs -n 0", "'0' is not a whole number from 1", "--help"),
        ("runs -n x", "'x' is not a whole number from 1", "--help"),
        ("runs --order-by", "expected one argument", "--help"),
        ("log x", "'x' is not KEY=VALUE", "--help"),
        ("log =3", "'=3' is not KEY=VALUE", "--help"),
        ("stop", "missing: JOB", "--help"),
        ("delete foo bar", "invalid choice: 'foo'", "--help"),
        ("delete jobs bar", "invalid choice: 'jobs'", "did you mean job?"),
        ("jobs --phase runing", "invalid choice: 'Runing'", "did you mean Running?"),
        ("jobs --phase Nope", "invalid choice: 'Nope'", "--help"),
        ("register best x --min --max", "not allowed with", "--help"),
        ("deploy m --timeout -3", "--timeout", "--help"),
        ("logs x --rank -1", "--rank", "--help"),
        ("down --frce", "unknown option --frce", "did you mean --force?"),
        ("runs -o 3x", "is not a variable name", ""),
        ("log 'x=1", "cannot be split into words", "quotation"),
    ],
)
def test_errors_are_one_line_with_a_hint(line: str, message: str, hint: str) -> None:
    with pytest.raises(ParameterError) as raised:
        parse(line)
    assert message in raised.value.message and "\n" not in raised.value.message
    assert hint in raised.value.hint
    assert raised.value.status == 400


def test_phases_in_any_case() -> None:
    assert parse("jobs --phase running").phase == "Running"


def test_posix_quoting() -> None:
    a = parse("""log note='{"a": 1}' path=a\\ b x="1 2" """)
    assert a.values == [("note", '{"a": 1}'), ("path", "a b"), ("x", "1 2")]


def test_script_arguments_follow_two_dashes() -> None:
    a = parse("train s.py -n a --processes 2 -- --lr 0.1 -- x --help")
    assert (a.script, a.processes, a.rest) == ("s.py", 2, ["--lr", "0.1", "--", "x", "--help"])


def test_options_repeat() -> None:
    assert parse("train s.py --env A=1 --env B=x=y").env == [("A", "1"), ("B", "x=y")]
    assert parse("train s.py").env == []


def test_lists_are_not_shared_between_parses() -> None:
    parse("log x=1 --tag a=b")
    assert parse("log x=1").tag == []


@pytest.mark.parametrize(
    ("line", "data", "out"),
    [
        ("invoke digits X[:3]", "X[:3]", None),
        ("invoke digits X[:3] -o y", "X[:3]", "y"),
        ("invoke -o y digits df[df['a b'] > 3].head(2)", "df[df['a b'] > 3].head(2)", "y"),
        ("invoke digits -X", "-X", None),
        ("invoke digits {'a': [1, 2]}", "{'a': [1, 2]}", None),
        ('invoke digits "a  b"', '"a  b"', None),
        ("invoke digits x - o", "x - o", None),
        ("invoke digits", None, None),
    ],
)
def test_invoke_keeps_its_expression(line: str, data: str | None, out: str | None) -> None:
    a = parse(line)
    assert (a.endpoint, a.data, a.out) == ("digits", data, out)


def test_invoke_help_and_unknown_option() -> None:
    with pytest.raises(parser.HelpRequested):
        parse("invoke --help")
    with pytest.raises(ParameterError, match="unknown option --nope"):
        parse("invoke --nope digits X")


def test_json_may_come_first_or_last() -> None:
    assert parser.parse(["--json", "runs"], "cli").json
    assert parser.parse(["runs", "--json"], "cli").json
    with pytest.raises(ParameterError):
        parser.parse(["runs", "--json"], "magic")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(max_size=12), max_size=6), st.sampled_from(["magic", "cli"]))
def test_no_line_escapes_the_error_tree(words: list[str], face: str) -> None:
    for prefix in ([], ["train"], ["log"], ["invoke"]):
        try:
            parser.parse([*prefix, *words], face)
        except (MlopsError, parser.HelpRequested):
            pass


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]), max_size=10), max_size=5))
def test_split_undoes_shell_quoting(words: list[str]) -> None:
    if words[:1] != ["invoke"]:
        assert parser.split(shlex.join(words)) == words


# -- variables -----------------------------------------------------------------------------------------------------

NAMES = {"a": 1, "b": "q r", "d": {"k": 3}, "n": None}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("x={a}", "x=1"), ("$b", "q r"), ("{d['k']}", "3"), ("{a + 1}", "2"), ("{{x}}", "{x}"), ("plain", "plain"),
        ("$$a", "$a"), ("{a!r}", "1"), ("'{b}'", "'q r'"), ("{[i for i in range(3)][1]}", "1"),
    ],
)
def test_expansion(line: str, expected: str) -> None:
    assert expand(line, NAMES) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{missing}", "undefined variable `missing`"), ("x={a} y={nope.b}", "undefined variable `nope`"),
        ("$nope", "undefined variable `nope`"), ("{", "do not match"), ("x}", "do not match"),
        ("{a b}", "no expression"), ('{"x": 1}', "no expression"), ("{1/0}", "ZeroDivisionError"),
        ("{d['zz']}", "KeyError"), ("{n.x}", "AttributeError"),
    ],
)
def test_expansion_errors(line: str, message: str) -> None:
    with pytest.raises(ParameterError) as raised:
        expand(line, NAMES)
    assert message in raised.value.message


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_expansion_never_surprises(line: str) -> None:
    try:
        expand(line, NAMES)
    except ParameterError:
        pass


def test_values_are_expanded_once() -> None:
    assert expand("{x}", {"x": "{secret} $secret", "secret": "s"}) == "{secret} $secret"


def test_evaluate() -> None:
    assert evaluate("a + 1", dict(NAMES)) == 2
    assert evaluate("[a for _ in range(2)]", dict(NAMES)) == [1, 1]
    for expression in ("a b", "nope", "1/0", "import os", "a\0"):
        with pytest.raises(ParameterError):
            evaluate(expression, dict(NAMES))
