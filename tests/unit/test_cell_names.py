"""The check of a job cell: syntax, IPython syntax, and names that only the notebook has."""

from __future__ import annotations

import ast
import builtins
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_mlops.shipping import prepare
from jupyter_mlops.shipping.cell import CellError
from jupyter_mlops.shipping.names import free_names


def check_cell(source: str, space: dict, first_line: int = 1) -> None:
    prepare(source, space, first_line=first_line, ship=False)


def names(source: str) -> list[str]:
    return [f.name for f in free_names(ast.parse(textwrap.dedent(source)))]


FINE = {
    "builtins": "print(len([1]), __name__, __file__)",
    "import": "import os\nos.getcwd()",
    "dotted import": "import os.path\nos.path.join('a')",
    "import as": "import numpy as np\nnp.zeros(3)",
    "from import": "from math import pi as p\nprint(p)",
    "fallback import": "try:\n    import cupy as xp\nexcept ImportError:\n    import numpy as xp\nxp.zeros(1)",
    "star import": "from numpy import *\nzeros(3)",
    "function uses later name": "def f():\n    return later\nlater = 1\nf()",
    "recursion": "def f(n):\n    return f(n - 1) if n else 0\nf(3)",
    "mutual": "def a():\n    b()\ndef b():\n    a()",
    "arguments": "def f(a, /, b, *c, d=1, **e):\n    return a, b, c, d, e\nf(1, 2)",
    "default": "x = 1\ndef f(a=x):\n    return a",
    "closure": "def f():\n    x = 1\n    def g():\n        nonlocal x\n        x += 1\n        return x\n    return g",
    "lambda": "f = lambda x, *y, k=1: (x, y, k)",
    "comprehension": "[x * y for x in range(3) for y in range(x) if y]",
    "dict comprehension": "{k: v for k, v in {}.items()}",
    "generator uses later name": "g = (x * y for x in range(3))\ny = 2\nlist(g)",
    "nested comprehension": "[[a for a in b] for b in [[1]]]",
    "walrus": "if (n := 3) > 2:\n    print(n)",
    "walrus in comprehension": "[y := x for x in range(3)]\nprint(y)",
    "class": "class A:\n    x = 1\n    y = x + 1\n    def f(self):\n        return __class__, super().f()",
    "class method order": "class A:\n    def f(self):\n        return B()\nclass B: pass",
    "class comprehension": "class A:\n    xs = [1]\n    ys = [x for x in xs]",
    "class loop": "class A:\n    for i in range(3):\n        if i:\n            print(last)\n        last = i",
    "with": "with open('x') as f, open('y') as g:\n    f, g",
    "for": "for i, (a, *b) in []:\n    print(i, a, b)\nprint(i)",
    "for else": "for i in []:\n    pass\nelse:\n    j = 1\nprint(j)",
    "loop reads last turn": "for i in range(3):\n    if i:\n        print(last)\n    last = i",
    "while reads last turn": "n = 0\nwhile n == 0 or prev < 3:\n    prev = n = n + 1",
    "branch": "import sys\nif sys.argv:\n    x = 1\nelse:\n    y = 2\nprint(x)",
    "global": "def f():\n    global x\n    x = 1\nf()\nprint(x)",
    "global read in another": "def f():\n    global x\n    x = 1\ndef g():\n    return x",
    "except name": "try:\n    pass\nexcept ValueError as e:\n    print(e)",
    "try name": "try:\n    x = 1\nexcept Exception:\n    x = 2\nprint(x)",
    "name error expected": "try:\n    unicode\nexcept NameError:\n    unicode = str\nunicode('a')",
    "name error in tuple": "try:\n    maybe\nexcept (NameError, KeyError):\n    pass",
    "suppressed": "import contextlib\nwith contextlib.suppress(NameError):\n    maybe",
    "del": "x = 1\ndel x",
    "del in branch": "x = 1\nif x:\n    del x\nprint(x)",
    "rebound after del": "x = 1\ndel x\nx = 2\nprint(x)",
    "match": "v = [1]\nmatch v:\n    case [a, *rest]:\n        print(a, rest)\n"
             "    case {'k': b, **more}:\n        print(b, more)\n    case int() as c:\n        print(c)",
    "globals": "globals()['x'] = 1\nprint(x)",
    "exec": "exec('x = 1')\nprint(x)",
    "in dir": "if 'x' in dir():\n    print(x)",
    "annotation of future": "from __future__ import annotations\ndef f(a: Missing) -> Missing: pass",
    "annotation later": "def f(a: 'Missing') -> B: pass\nclass B: pass",
    "local annotation": "def f():\n    x: Missing = 1\n    return x",
    "annotated": "x: int = 1\nprint(x)",
    "augmented": "x = 1\nx += 1",
    "star assign": "a, *b = 1, 2\nprint(a, b)",
    "attribute and item": "import os\nos.environ['A'] = 'b'\nos.x = 1",
    "f-string": "x = 1\nf'{x:{x}} {x!r}'",
    "decorator": "import functools\n@functools.cache\ndef f(): pass",
    "async": "import asyncio\nasync def f():\n    async with a() as b:\n"
             "        async for c in b:\n            await c\ndef a(): pass\nasyncio.run(f())",
    "main guard": "if __name__ == '__main__':\n    print(1)",
    "type checking": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from x import Y\ndef f(y: Y): pass",
    "class in function": "def f():\n    y = 1\n    class A:\n        x = y\n    return A",
    "exit": "exit()",
}


@pytest.mark.parametrize("what", FINE)
def test_takes_what_runs(what: str) -> None:
    assert names(FINE[what]) == []


MISSING = {
    "plain": ("print(X)", ["X"]),
    "before binding": ("df = df.dropna()", ["df"]),
    "augmented": ("total += 1", ["total"]),
    "in function": ("def f():\n    return X\nf()", ["X"]),
    "in lambda": ("f = lambda: X", ["X"]),
    "in default": ("def f(a=X): pass", ["X"]),
    "default bound later": ("def f(a=X): pass\nX = 1", ["X"]),
    "in decorator": ("@wrap\ndef f(): pass", ["wrap"]),
    "base class": ("class A(Base): pass", ["Base"]),
    "class name in method": ("class A:\n    x = 1\n    def f(self):\n        return x", ["x"]),
    "comprehension target leaks not": ("[i for i in range(3)]\nprint(i)", ["i"]),
    "comprehension first iterable": ("[x for x in x]", ["x"]),
    "comprehension element": ("[x * w for x in range(3)]", ["w"]),
    "generator element": ("sum(x * w for x in range(3))", ["w"]),
    "local does not leak": ("def f():\n    inner = 1\nprint(inner)", ["inner"]),
    "parameter does not leak": ("def f(p): pass\nprint(p)", ["p"]),
    "deleted": ("x = 1\ndel x\nprint(x)", ["x"]),
    "deleting nothing": ("del x", ["x"]),
    "handler name is gone": ("try:\n    pass\nexcept ValueError as e:\n    pass\nprint(e)", ["e"]),
    "annotation": ("x: Missing = 1", ["Missing"]),
    "annotation without value binds not": ("x: int\nprint(x)", ["x"]),
    "keyword": ("print(end=E)", ["E"]),
    "f-string": ("f'{X}'", ["X"]),
    "loop iterable": ("for x in xs:\n    pass", ["xs"]),
    "with": ("with ctx() as c:\n    pass", ["ctx"]),
    "several in order": ("b()\na()\nb()", ["b", "a"]),
    "display": ("display(1)", ["display"]),
    "get_ipython": ("get_ipython().system('ls')", ["get_ipython"]),
    "before star import": ("zeros(3)\nfrom numpy import *", ["zeros"]),
    "match class": ("match 1:\n    case Point(x=0):\n        pass", ["Point"]),
    "subscript store": ("d['a'] = 1", ["d"]),
    "attribute store": ("model.x = 1", ["model"]),
    "exception type": ("try:\n    pass\nexcept MyError:\n    pass", ["MyError"]),
    "general handler hides not": ("try:\n    X\nexcept Exception:\n    pass", ["X"]),
    "global never bound": ("def f():\n    return X\ndef g():\n    X = 1", ["X"]),
}


@pytest.mark.parametrize("what", MISSING)
def test_finds_what_is_missing(what: str) -> None:
    source, expected = MISSING[what]
    assert names(source) == expected


if sys.version_info >= (3, 12):

    def test_type_parameters() -> None:
        assert names("def f[T](x: T) -> T:\n    return x\nclass A[K]:\n    k: K\ntype L[V] = list[V]") == []


def test_notebook_names_get_a_line_and_advice() -> None:
    import json as js

    with pytest.raises(CellError) as raised:
        check_cell("import os\nprint(js.dumps(X))", {"js": js, "X": 1}, first_line=2)
    error = raised.value
    assert error.message == "`X` and `js` exist only in the notebook: load them in the cell (line 3)"
    assert "import json as js" in error.hint
    assert error.status == 400


def test_one_notebook_name() -> None:
    with pytest.raises(CellError, match="`X` exists only in the notebook: load it in the cell"):
        check_cell("print(X)", {"X": 1})


def test_advice_for_classes_and_functions() -> None:
    with pytest.raises(CellError) as raised:
        check_cell("OD()\nwrap()", {"OD": __import__("collections").OrderedDict, "wrap": textwrap.wrap})
    assert "from collections import OrderedDict as OD" in raised.value.hint
    assert "from textwrap import wrap" in raised.value.hint


def test_undefined_everywhere() -> None:
    with pytest.raises(CellError, match="`Y` is not defined"):
        check_cell("print(Y)", {})


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("%matplotlib inline", 2), ("x = 1\n!ls", 3), ("x = 1\nfiles = !ls", 3), ("x?", 2), ("?x", 2), ("a.b??", 2),
        ("for i in range(3):\n    %time i", 3), ("t = %timeit -o 1", 2), ("%%bash\nls", 2), ("x = 1\n\n!!ls", 4),
    ],
)
def test_ipython_syntax_is_refused_with_its_line(source: str, line: int) -> None:
    with pytest.raises(CellError, match=f"^line {line} of the cell is IPython syntax"):
        check_cell(source, {}, first_line=2)


def test_strings_that_look_like_magics_are_fine() -> None:
    check_cell('x = """\n%matplotlib inline\n!ls\nhelp?\n"""\ny = 5 % 3\nz = "a?"', {})


@pytest.mark.parametrize(
    ("source", "line"),
    [("x = 1\nif x\n    pass", 3), ("def f(:\n    pass", 2), ("x = 'what?", 2), ("return 1", 2), ("x = (1,\n", 2),
     ("for i in x:\nprint(i)", 3)],
)
def test_syntax_errors_have_the_line_of_the_cell(source: str, line: int) -> None:
    with pytest.raises(CellError, match=f"^syntax error in line {line} of the cell"):
        check_cell(source, {}, first_line=2)


def test_top_level_await_runs_as_in_the_notebook() -> None:
    check_cell("import asyncio\nawait asyncio.sleep(1)\nasync with asyncio.timeout(1):\n    pass", {})
    with pytest.raises(CellError, match="syntax error in line 3"):
        check_cell("import asyncio\ndef f(): await asyncio.sleep(1)", {}, first_line=2)


@pytest.mark.parametrize("source", ["", "  \n\n", "x = 1\0", "(" * 500 + ")" * 500])
def test_odd_cells(source: str) -> None:
    with pytest.raises(CellError):
        check_cell(source, {})


def test_no_warning_escapes(recwarn: pytest.WarningsRecorder) -> None:
    check_cell("x = '\\d'\nassert (x, 1)", {})
    assert not recwarn.list


# -- against Python itself ------------------------------------------------------------------------------------------

_NAME = st.sampled_from(["a", "b", "c", "d"])
_SIMPLE = st.one_of(
    st.builds("{} = 1".format, _NAME),
    st.builds("print({})".format, _NAME),
    st.builds("{} = {}".format, _NAME, _NAME),
    st.builds("[{0} for {0} in range(2)]".format, _NAME),
    st.builds("[{1} for {0} in range(2)]".format, _NAME, _NAME),
    st.builds("del {}".format, _NAME),
    st.builds("def {}(): return {}".format, _NAME, _NAME),
    st.builds("class {}: x = {}".format, _NAME, _NAME),
    st.builds("import os as {}".format, _NAME),
    st.builds("{} = lambda {}: {}".format, _NAME, _NAME, _NAME),
    st.builds("for {} in range(2): print({})".format, _NAME, _NAME),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_SIMPLE, min_size=1, max_size=6))
def test_straight_code_that_passes_has_no_name_error(lines: list[str]) -> None:
    source = "\n".join(lines)
    found = names(source)
    scope = {"__builtins__": {**vars(builtins), "print": lambda *_: None}, "__name__": "__main__"}
    try:
        exec(compile(source, "<cell>", "exec"), scope)  # noqa: S102  (generated right above)
        failed = None
    except NameError as error:
        failed = error.name
    if failed is not None:
        assert failed in found, source


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80))
def test_any_text_is_judged_without_surprise(source: str) -> None:
    try:
        check_cell(source, {})
    except CellError as error:
        assert "\n" not in error.message


def test_the_standard_library_passes() -> None:
    # Real modules are full of odd but valid code; nearly none of it may be refused.
    import argparse
    import asyncio.base_events
    import dataclasses
    import inspect
    import typing

    for module in (argparse, asyncio.base_events, dataclasses, inspect, typing, subprocess, textwrap, ast):
        assert [f for f in free_names(ast.parse(inspect.getsource(module)))] == [], module.__name__
