"""What a cell needs of its notebook: found, followed, packed, refused by name; equal values in another process."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_mlops.core.errors import ParameterError, Refused
from jupyter_mlops.runtime import pickling, variables
from jupyter_mlops.runtime.jobfolder import JobFolder
from jupyter_mlops.shipping import looks_secret, prepare, versions
from jupyter_mlops.shipping.cell import CellError
from jupyter_mlops.shipping.modules import Sources, locations
from jupyter_mlops.shipping.needs import analyse
from jupyter_mlops.shipping.pack import Unpackable

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def notebook(monkeypatch, tmp_path):
    """A function that runs code as a notebook's cells, in a ``__main__`` of its own and a folder of its own."""
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    known = set(sys.modules)

    def run(code: str) -> dict:
        exec(compile(textwrap.dedent(code), "<notebook>", "exec"), main.__dict__)  # noqa: S102
        return main.__dict__

    yield run
    for name in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def sent(cell: str, space: dict, **options) -> dict[str, dict]:
    shipment = prepare(textwrap.dedent(cell), space, **options)
    shipment.close()
    return {row["name"]: row for row in shipment.variables}


def in_a_job(cell: str, space: dict, folder: Path, returns: tuple[str, ...] = (), **options) -> tuple[str, dict]:
    """Run a cell in another process with what is shipped; its output, and what it brings back."""
    cell = textwrap.dedent(cell)
    shipment = prepare(cell, space, returns=returns, **options)
    job = JobFolder(folder / "job")
    os.makedirs(job.inputs)
    shutil.move(shipment.path, os.path.join(job.inputs, "payload.pkl"))
    code = (
        "import sys, types\nfrom jupyter_mlops.runtime import variables\n"
        "from jupyter_mlops.runtime.jobfolder import JobFolder\n"
        "job, main = JobFolder(sys.argv[1]), types.ModuleType('__main__')\nsys.modules['__main__'] = main\n"
        "main.__builtins__ = __builtins__\nvariables.load(job, main.__dict__)\n"
        "exec(compile(open(sys.argv[2]).read(), 'cell', 'exec'), main.__dict__)\n"
        "names = sys.argv[3].split(',') if sys.argv[3] else []\n"
        "print(*variables.keep(job, main.__dict__, names), sep='\\n', end='') if names else None\n"
    )
    (folder / "job" / "cell.py").write_text(cell)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder / "job"), str(folder / "job" / "cell.py"), ",".join(returns)],
        capture_output=True, text=True, cwd=elsewhere, env={**os.environ, "PYTHONPATH": str(REPO)}, timeout=60,
    )
    assert done.returncode == 0, done.stderr
    values = {}
    path = Path(job.returns, "payload.pkl")
    if path.exists():
        with open(path, "rb") as f:
            values = variables.read_values(f, variables.read_header(f)["values"])
    return done.stdout, values


# -- what a cell reads ---------------------------------------------------------------------------------------------


#: cell → (free, doubtful among the names a…e)
NEEDS = {
    "bound in one branch": ("if a:\n    b = 1\nprint(b)", {"a"}, {"b"}),
    "bound in both branches": ("if a:\n    b = 1\nelse:\n    b = 2\nprint(b)", {"a"}, set()),
    "the other branch leaves": ("if a:\n    b = 1\nelse:\n    raise SystemExit\nprint(b)", {"a"}, set()),
    "try with a fallback": ("try:\n    b = a\nexcept KeyError:\n    b = 0\nprint(b)", {"a"}, set()),
    "try without one": ("try:\n    b = a\nexcept KeyError:\n    pass\nprint(b)", {"a"}, {"b"}),
    "try that raises anew": ("try:\n    b = a\nexcept KeyError:\n    raise\nprint(b)", {"a"}, set()),
    "loop": ("for a in range(2):\n    b = a\nprint(b)", set(), set()),
    "last turn": ("for a in range(2):\n    print(b)\n    b = a", set(), {"b"}),
    "match with a default": ("match a:\n    case 1:\n        b = 1\n    case _:\n        b = 2\nb", {"a"}, set()),
    "match without one": ("match a:\n    case 1:\n        b = 1\nprint(b)", {"a"}, {"b"}),
    "match binds": ("match a:\n    case {'x': b, **c} if d:\n        print(b, c)", {"a", "d"}, set()),
    "function reads what is bound later": ("def f():\n    return b\nb = 1\nf()", set(), set()),
    "function is called before": ("def f():\n    return b\nf()\nb = 1", set(), {"b"}),
    "function is called by another before": ("def f():\n    return b\ndef g(): f()\ng()\nb = 1", set(), {"b"}),
    "method is called before": ("class C:\n    def f(self):\n        return b\nC().f()\nb = 1", set(), {"b"}),
    "lambda is called before": ("f = lambda: b\nf()\nb = 1", set(), {"b"}),
    "generator is used before": ("print(sum(b for c in a))\nb = 1", {"a"}, {"b"}),
    "function reads what a branch binds": ("def f():\n    return b\nif a:\n    b = 1\nf()", {"a"}, {"b"}),
    "global": ("def f():\n    global b\n    b = 1\nprint(b)", set(), {"b"}),
    "expects a NameError": ("try:\n    b\nexcept NameError:\n    b = 1", set(), {"b"}),
    "star import": ("from math import *\nprint(b)", set(), {"b"}),
    "exec": ("exec('b = 1')\nprint(b)", set(), {"b"}),
    "augmented": ("a += 1", {"a"}, set()),
    "walrus": ("if (b := a) > 1:\n    print(b)", {"a"}, set()),
    "class scope": ("class C(a):\n    b = 1\n    def f(self):\n        return b", {"a", "b"}, set()),
    "comprehension": ("[b for b in a if c]", {"a", "c"}, set()),
    "decorator, default, annotation": ("@a\ndef f(x: b = c) -> d: pass", {"a", "b", "c", "d"}, set()),
    "f-string": ("f'{a!r:{b}}'", {"a", "b"}, set()),
    "await": ("b = await a()\nasync with c as d:\n    print(d)", {"a", "c"}, set()),
    "deleted": ("b = 1\ndel b\nprint(b)", {"b"}, set()),
    "handler's name": ("try:\n    a()\nexcept ValueError as b:\n    print(b)\nprint(b)", {"a", "b"}, set()),
    "nonlocal": ("def f():\n    b = 1\n    def g():\n        nonlocal b\n        b += a\n    return g", {"a"}, set()),
    "lambda": ("f = lambda b, *c, d=a: (b, c, d, e)", {"a", "e"}, set()),
}


@pytest.mark.parametrize("what", NEEDS)
def test_names_that_a_cell_needs(what: str) -> None:
    cell, free, doubtful = NEEDS[what]
    needs = analyse(ast.parse(cell))
    assert {f.name for f in needs.free} == free
    assert needs.doubtful & {"a", "b", "c", "d", "e"} == doubtful


_NAME = st.sampled_from(["a", "b", "c", "d"])
_LINE = st.one_of(
    st.builds("{} = {} + 1".format, _NAME, _NAME),
    st.builds("print({})".format, _NAME),
    st.builds("del {}".format, _NAME),
    st.builds("{} += 1".format, _NAME),
    st.builds("print([{1} for {0} in range(2)])".format, _NAME, _NAME),
    st.builds("for {} in range(2): {} = {}".format, _NAME, _NAME, _NAME),
    st.builds("if {} % 2: {} = {}".format, _NAME, _NAME, _NAME),
    st.builds("if {} % 2: {} = 7\nelse: {} = 8".format, _NAME, _NAME, _NAME),
    st.builds("def f(): return {}\nprint(f())".format, _NAME),
    st.builds("def f():\n    global {}\n    {} = 5\nf()".format, _NAME, _NAME),
    st.builds("try: {} = 1 // ({} % 2)\nexcept ZeroDivisionError: pass".format, _NAME, _NAME),
    st.builds("try: {}\nexcept NameError: {} = 9".format, _NAME, _NAME),
    st.builds("match {} % 2:\n    case 1: {} = 1\n    case {}: pass".format, _NAME, _NAME, _NAME),
    st.builds("class C:\n    {} = {}\n    {} = {}\nprint(C.__dict__.get('a'))".format, _NAME, _NAME, _NAME, _NAME),
    st.builds("g = ({1} for {0} in range(2))\nprint(*g)".format, _NAME, _NAME),
)


def _outcome(code, space: dict) -> tuple[str, str]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            exec(code, space)  # noqa: S102  (generated right below)
            failed = ""
        except NameError as error:
            failed = str(error)
    return out.getvalue(), failed


@settings(max_examples=250, deadline=None)
@given(st.lists(_LINE, min_size=1, max_size=6), st.sets(_NAME))
def test_a_cell_does_the_same_with_only_what_it_is_seen_to_need(lines: list[str], absent: set[str]) -> None:
    source = "\n".join(lines)
    try:
        code = compile(source, "<cell>", "exec")
    except SyntaxError:
        return
    notebook = {name: value for name, value in {"a": 10, "b": 21, "c": 32, "d": 43}.items() if name not in absent}
    needs = analyse(ast.parse(source))
    names = needs.doubtful | {f.name for f in needs.free}
    whole, part = _outcome(code, {**notebook, "__name__": "m"}), _outcome(
        code, {**{n: v for n, v in notebook.items() if n in names}, "__name__": "m"}
    )
    assert whole == part, source


# -- what is sent ----------------------------------------------------------------------------------------------------

HEAD = """
import collections, dataclasses, enum, functools, typing
import xml.dom.minidom
from collections import OrderedDict as OD
import numpy as np
scale = 3
unused = 1
config = {"lr": [0.1]}
again = config
X = np.arange(6.0).reshape(2, 3)
def base(x):
    return x * scale
def outer(k):
    def inner(x):
        return base(x) + k
    return inner
bound = outer(1)
half = functools.partial(base, 0.5)
@functools.lru_cache(maxsize=7)
def cached(x):
    return base(x)
class Colour(enum.Enum):
    RED = 1
class A:
    def f(self):
        return base(1)
class B(A):
    def f(self):
        return super().f() + 1
@dataclasses.dataclass
class Point:
    x: int
    colour: Colour = Colour.RED
    parts: list = dataclasses.field(default_factory=list)
Pair = collections.namedtuple("Pair", "a b")
UserId = typing.NewType("UserId", int)
b, point, pair = B(), Point(4), Pair(1, [2])
point.parts.append(b)
loop = [config]
loop.append(loop)
"""


@pytest.mark.parametrize(
    ("cell", "names"),
    [
        ("print(scale)", {"scale"}),
        ("scale = 1\nprint(scale)", set()),
        ("print(base(1))", {"base", "scale"}),
        ("bound(1)", {"bound", "base", "scale"}),
        ("half()", {"half", "base", "scale"}),
        ("cached(1)", {"cached", "base", "scale"}),
        ("b.f()", {"b", "B", "A", "base", "scale"}),
        ("print(point)", {"point", "Point", "Colour", "B", "A", "base", "scale"}),
        ("print(loop)", {"loop"}),
        ("print(Colour.RED)", {"Colour"}),
        ("print(OD, np.pi)", {"OD", "np"}),
        ("print(len('x'), __name__)", set()),
    ],
)
def test_functions_classes_and_instances_are_followed(notebook, cell: str, names: set[str]) -> None:
    found = set(sent(cell, notebook(HEAD)))
    assert names <= found <= names | {"dataclasses"}


def test_the_manifest_says_how_each_name_travels(notebook) -> None:
    rows = sent("print(X, np, OD, base, xml.dom.minidom)", notebook(HEAD))
    assert [rows[n]["how"] for n in ("X", "np", "OD", "base")] == ["value", "import", "import", "value"]
    assert rows["X"]["type"] == "numpy.ndarray" and rows["X"]["bytes"] > 48 and len(rows["X"]["sha256"]) == 64
    assert rows["np"]["detail"] == "import numpy as np"
    assert rows["OD"]["detail"] == "from collections import OrderedDict as OD"
    assert rows["scale"]["detail"] == "needed by base"


def test_the_cell_sees_what_it_would_see_in_the_notebook(notebook, tmp_path) -> None:
    space = notebook(HEAD)
    cell = """
    assert again is config and loop[0] is config and loop[1] is loop
    assert base.__globals__ is globals() and bound.__closure__[0].cell_contents == 1
    assert cached.cache_parameters() == {"maxsize": 7, "typed": False}
    assert type(b) is B and isinstance(b, A) and point.parts[0].f() == 4 and UserId(3) == 3
    assert xml.dom.minidom.parseString("<a/>").documentElement.tagName == "a" and OD is collections.OrderedDict
    print(X.sum(), bound(2), half(), cached(2), b.f(), point.colour is Colour.RED, pair, type(pair) is Pair)
    scale = 10
    print(base(1), bound(2), b.f())
    """
    output, _ = in_a_job(cell, space, tmp_path)
    assert output == "15.0 7 1.5 6 4 True Pair(a=1, b=[2]) True\n10 21 11\n"


def test_names_that_only_the_user_knows_of(notebook) -> None:
    space = notebook("hidden = 5\ndef helper(): return more\nmore = 2")
    assert set(sent("print(eval('hid' + 'den'))", space, use=["hidden", "helper"])) == {"hidden", "helper", "more"}
    with pytest.raises(ParameterError, match="--use hiden: there is no such variable") as raised:
        prepare("1", space, use=["hiden"])
    assert raised.value.hint == "did you mean hidden?"


def test_built_ins_that_the_notebook_replaced(notebook) -> None:
    space = notebook("import builtins\ndef print(*a): builtins.print('mine', *a)\nsum = sum")
    assert set(sent("print(sum([1]))", space)) == {"print", "builtins"}


def test_nothing_is_sent_on_request(notebook) -> None:
    space = notebook("X = 1")
    assert prepare("y = 1", space, ship=False).path == ""
    with pytest.raises(CellError, match="`X` exists only in the notebook"):
        prepare("print(X)", space, ship=False)
    with pytest.raises(ParameterError, match="--no-ship"):
        prepare("y = 1", space, ship=False, use=["X"])


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("print(nowhere)", "`nowhere` is not defined (line 2)"),
        ("get_ipython().ex('1')", "`get_ipython` exists only in the notebook"),
        ("print(Out[1])", "`Out` exists only in the notebook"),
        ("1\n%time 2", "line 3 of the cell is IPython syntax"),
    ],
)
def test_cells_that_cannot_run_elsewhere(notebook, cell: str, message: str) -> None:
    space = notebook("In = Out = {}\ndef get_ipython(): pass")
    with pytest.raises(CellError) as raised:
        prepare(cell, space)
    assert message in raised.value.message


def test_returns_must_be_something_that_the_cell_has(notebook) -> None:
    space = notebook("model = [1]\nother = 2")
    prepare("model.append(2)\ny = 1", space, returns=["model", "y"]).close()
    prepare("exec('z = 1')", space, returns=["z"]).close()
    for name in ("other", "z"):
        with pytest.raises(ParameterError, match=f"--returns {name}: the cell neither sets nor reads"):
            prepare("y = 1", space, returns=[name])


# -- what is refused -------------------------------------------------------------------------------------------------

#: what the variable v is → where the refusal points, what it says
REFUSED = {
    "threading.Lock()": ("v (a _thread.lock)", "a lock"),
    "{'a': [threading.RLock()]}": ("v['a'][0] (a _thread.RLock)", "a lock"),
    "nest(handlers=[nest(lock=threading.Lock())])": ("v.handlers[0].lock (a _thread.lock)", "a lock"),
    "threading.Thread()": ("v (a threading.Thread)", "a thread"),
    "threading.Event()": ("v (a threading.Event)", "a lock"),
    "socket.socket()": ("v (a socket.socket)", "a network connection"),
    "open('/dev/null')": ("v (a _io.TextIOWrapper)", "an open file"),
    "nest(f=open('/dev/null', 'rb'))": ("v.f (a _io.BufferedReader)", "an open file"),
    "(i for i in [1])": ("v (a generator)", ""),
    "[iter(i for i in [1])]": ("v[0] (a generator)", ""),
    "sqlite3.connect(':memory:')": ("v (a sqlite3.Connection)", "a database connection"),
    "asyncio.new_event_loop()": ("v (an asyncio.unix_events._UnixSelectorEventLoop)", "an event loop"),
    "concurrent.futures.ThreadPoolExecutor()": ("v (a concurrent.futures.thread.ThreadPoolExecutor)", "a pool"),
    "types.ModuleType('made_up')": ("v is a module that no job can import by its name (made_up)", ""),
    "with_closure(threading.Lock())": ("v → hidden (a _thread.lock)", "a lock"),
    "uses_global": ("lock (a _thread.lock)", "a lock"),
    "functools.partial(print, threading.Lock())": ("(a _thread.lock)", "a lock"),
    "weakref.ref(Nest)": ("v (a weakref.ReferenceType)", "cannot pickle"),
    "Hostile()": ("v (a Hostile)", "not today"),
    "{1: Slots(threading.Lock())}": ("v[1].lock (a _thread.lock)", "a lock"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_travel_is_named(notebook, what: str) -> None:
    space = notebook(f"""
    import asyncio, concurrent.futures, functools, socket, sqlite3, threading, types, weakref
    class Nest: pass
    def nest(**parts):
        made = Nest()
        made.__dict__.update(parts)
        return made
    class Slots:
        __slots__ = ("lock",)
        def __init__(self, lock): self.lock = lock
    class Hostile:
        def __getstate__(self): raise ValueError("not today\\nnor tomorrow")
    def with_closure(hidden):
        def inner(): return hidden
        return inner
    lock = threading.Lock()
    def uses_global(): return lock
    v = {what}
    """)
    where, why = REFUSED[what]
    with pytest.raises(Refused) as raised:
        prepare("print(v)", space)
    assert where in raised.value.message and why in raised.value.message and "\n" not in raised.value.message
    closing = getattr(space["v"], "close", None)
    if callable(closing):
        closing()


def test_what_the_cell_may_not_need_is_left_out_rather_than_refused(notebook) -> None:
    space = notebook("v = (i for i in [1])\nw = 1")
    shipment = prepare("try:\n    v = 1\nexcept ValueError:\n    pass\nprint(v, w)", space)
    shipment.close()
    assert [row["name"] for row in shipment.variables] == ["w"]
    assert shipment.remarks == ["left out, as the cell may not need it: v (a generator)"]


def test_tensors_on_a_gpu_are_refused(notebook) -> None:
    torch = pytest.importorskip("torch")

    class OnGpu(torch.Tensor):
        device = torch.device("cuda:0")

    space = notebook("import torch\nmodel = torch.nn.Sequential(torch.nn.Linear(1, 1))")
    prepare("print(model)", space).close()
    space["model"][0].extra = torch.zeros(1).as_subclass(OnGpu)
    with pytest.raises(Unpackable) as raised:
        prepare("print(model)", space)
    assert raised.value.message.startswith("model.0.extra (a ") and "a tensor on cuda:0" in raised.value.message
    assert raised.value.hint == "move model with .cpu() first"


def test_too_much_is_refused_with_every_size(notebook) -> None:
    space = notebook("import numpy as np\nbig, small = np.zeros(1 << 19), np.zeros(10)")
    with pytest.raises(Refused) as raised:
        prepare("print(big, small)", space, limit=1 << 20)
    error = raised.value
    assert "more than the 1.0 MB that may be sent: big (numpy.ndarray) 4.0 MB, small" in error.message
    assert error.detail[0]["name"] == "big" and error.detail[0]["bytes"] > 4 << 20
    assert "--ship-limit" in error.hint
    assert set(sent("print(big, small)", space, limit=16 << 20)) == {"big", "small"}


def test_nothing_of_a_refused_cell_is_left_behind(notebook, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    space = notebook("import threading\nlock = threading.Lock()\nx = 1")
    with pytest.raises(Refused):
        prepare("print(x, lock)", space)
    shipment = prepare("print(x)", space)
    assert os.stat(shipment.path).st_mode & 0o777 == 0o600
    shipment.close()
    assert not list(tmp_path.glob("jupyter-mlops-*"))


def test_secrets_are_flagged_and_told_to_nobody(notebook) -> None:
    rows = sent("print(api_key, tokenizer)", notebook("api_key = 'sk-hush'\ntokenizer = 1"))
    assert "looks like a secret" in rows["api_key"]["detail"] and rows["tokenizer"]["detail"] == ""
    assert "hush" not in json.dumps(rows)
    for name in ("token", "HF_TOKEN", "db_password", "apiKey", "client_secret", "aws_access_key", "GITHUB_TOKENS"):
        assert looks_secret(name), name
    for name in ("tokenizer", "author", "keys", "keyboard", "passes"):
        assert not looks_secret(name), name


# -- modules ---------------------------------------------------------------------------------------------------------


def test_local_modules_go_along_with_what_they_import(notebook, tmp_path) -> None:
    (tmp_path / "helper_one.py").write_text("import helper_two\nimport json\ndef f(): return helper_two.value\n")
    (tmp_path / "helper_two.py").write_text("value = 'first'\n")
    (tmp_path / "pack_age" / "sub").mkdir(parents=True)
    (tmp_path / "pack_age" / "__init__.py").write_text("")
    (tmp_path / "pack_age" / "words.txt").write_text("data beside the code")
    (tmp_path / "pack_age" / "sub" / "__init__.py").write_text("from ..deep import g\n")
    (tmp_path / "pack_age" / "deep.py").write_text("class G:\n    v = 3\ndef g(): return G()\n")
    (tmp_path / "unused_one.py").write_text("")
    space = notebook("import helper_one as h\nimport pack_age.sub\nthing = pack_age.sub.g()\ndef lazy():\n"
                     "    import helper_three\n    return helper_three.x\n")
    (tmp_path / "helper_three.py").write_text("x = 9\n")
    cell = """
    import os, pack_age
    print(h.f(), type(thing).__module__, thing.v, lazy())
    print(open(os.path.join(os.path.dirname(pack_age.__file__), "words.txt")).read())
    """
    rows = sent(cell, space)
    modules = {n: r for n, r in rows.items() if r["how"] == "module"}
    assert set(modules) == {"h", "helper_one", "helper_two", "helper_three", "pack_age"}
    assert modules["helper_two"]["bytes"] == len("value = 'first'\n") and modules["helper_two"]["sha256"]
    before = modules["helper_two"]["sha256"]
    output, _ = in_a_job(cell, space, tmp_path)
    assert output == "first pack_age.deep 3 9\ndata beside the code\n"
    (tmp_path / "helper_two.py").write_text("value = 'other'\n")
    assert sent(cell, space)["helper_two"]["sha256"] != before


def test_installed_modules_do_not_travel() -> None:
    for name in ("json", "numpy", "os", "jupyter_mlops", "__main__", "there_is_no_such_module"):
        assert locations(name) == [], name


def test_a_huge_local_package_is_refused(notebook, tmp_path) -> None:
    (tmp_path / "huge_one").mkdir()
    (tmp_path / "huge_one" / "__init__.py").write_text("#" * 5000)
    with pytest.raises(Refused, match="local modules are larger"):
        Sources(1000).add(["huge_one"])


# -- versions --------------------------------------------------------------------------------------------------------


def test_packages_that_changed_since_they_were_imported_are_told(notebook, monkeypatch) -> None:
    import numpy

    space = notebook("import numpy as np\nX = np.zeros(1)")
    monkeypatch.setattr(numpy, "__version__", "0.9.1")
    shipment = prepare("print(X)", space)
    shipment.close()
    assert len(shipment.remarks) == 1
    assert shipment.remarks[0].startswith("numpy: the kernel has imported 0.9.1, the job would import ")
    assert versions._same("2.1.0+cpu", "2.1.0") and not versions._same("2.1.0+cpu", "2.1.0+cu12")


def test_another_interpreter_is_asked_before_anything_starts(notebook, monkeypatch, tmp_path) -> None:
    space = notebook("import numpy as np\nX = np.zeros(1)\ndef f(): return X")
    other = tmp_path / "python"
    other.write_text(f"#!/bin/sh\nexec {sys.executable} -S \"$@\"\n")
    other.chmod(0o755)
    with pytest.raises(Refused, match=r"numpy: the kernel has imported .*, the job's Python has none"):
        prepare("print(X)", space, interpreter=str(other))
    other.write_text("#!/bin/sh\necho '[[3, 9], {\"numpy\": \"1.0\"}]'\n")
    with pytest.raises(Refused, match=r"functions or classes of the notebook \(Python .*cannot run under Python 3.9"):
        prepare("f()", space, interpreter=str(other))
    shipment = prepare("print(X)", space, interpreter=str(other))
    shipment.close()
    assert shipment.remarks and "the job would import 1.0" in shipment.remarks[0]
    with pytest.raises(Refused, match="does not run"):
        prepare("print(X)", space, interpreter=str(tmp_path / "none"))


# -- there and back --------------------------------------------------------------------------------------------------


def test_values_come_back_equal_and_as_the_kernels_own_classes(notebook, tmp_path) -> None:
    np, pd = pytest.importorskip("numpy"), pytest.importorskip("pandas")
    torch, linear = pytest.importorskip("torch"), pytest.importorskip("sklearn.linear_model")
    space = notebook(HEAD + """
import pandas as pd, torch
from sklearn.linear_model import LogisticRegression
df = pd.DataFrame({"a": [1, 2, 3], "b": ["x", None, "z"], "t": pd.date_range("2020", periods=3)}).set_index("a")
net = torch.nn.Linear(2, 1)
net.tied = net.weight
""")
    own = space["Point"]
    cell = """
    df2 = df.assign(c=1.5)
    array = {"deep": [X * 2, {"n": np.float32(1.5)}], "same": X}
    array["twice"] = array["deep"][0]
    state = net.state_dict()
    net.weight.data.add_(1)
    model = LogisticRegression().fit(np.array([[0.0], [1.0]]), [0, 1])
    point.x, point.parts = 99, [Pair(1, 2), Colour.RED]
    class Fresh:
        def f(self): return self.v + scale
    fresh = Fresh(); fresh.v = 4
    lock = {"k": __import__("threading").Lock()}
    missing = 0
    del missing
    """
    names = ("df2", "array", "net", "model", "point", "fresh", "lock", "missing", "scale")
    output, values = in_a_job(cell, space, tmp_path, names)
    assert output.splitlines() == [
        "lock is not brought back: lock['k'] (a _thread.lock): a lock",
        "missing is not brought back: there is no such variable at the end of the cell",
    ]
    assert set(values) == {*names} - {"lock", "missing"}
    pd.testing.assert_frame_equal(values["df2"], space["df"].assign(c=1.5))
    assert np.array_equal(values["array"]["deep"][0], space["X"] * 2)
    assert values["array"]["deep"][1]["n"].dtype == np.float32
    assert values["array"]["twice"] is values["array"]["deep"][0]
    assert torch.equal(values["net"].weight, space["net"].weight + 1) and values["net"].tied is values["net"].weight
    assert isinstance(values["model"], linear.LogisticRegression) and values["model"].predict([[1.0]])[0] == 1
    assert type(values["point"]) is own and values["point"] == own(99, space["Colour"].RED, values["point"].parts)
    assert type(values["point"].parts[0]) is space["Pair"] and values["point"].parts[1] is space["Colour"].RED
    assert type(values["fresh"]).__name__ == "Fresh" and values["fresh"].f() == 7 and "Fresh" not in space
    manifest = json.loads((tmp_path / "job" / "returns" / "manifest.json").read_text())["variables"]
    assert [v["name"] for v in manifest] == list(names)
    assert all(bool(v["sha256"]) != v["detail"].startswith("not brought back: ") for v in manifest)


def test_an_instance_is_of_the_class_that_the_kernel_has_now(notebook, tmp_path) -> None:
    space = notebook("class Foo:\n    v = 1\n    def who(self): return 'old'\nfoo = Foo()\nn = 1")
    _, values = in_a_job("foo.v = 2\nn = 7\nkeep = [foo, Foo, lambda: n]", space, tmp_path, ("keep",))
    old = space["Foo"]
    assert type(values["keep"][0]) is old and values["keep"][1] is old
    notebook("class Foo:\n    def who(self): return 'new'")
    with open(tmp_path / "job" / "returns" / "payload.pkl", "rb") as f:
        again = variables.read_values(f, variables.read_header(f)["values"])["keep"]
    assert type(again[0]) is space["Foo"] and again[0].who() == "new" and again[0].v == 2
    # A function of the job keeps the job's variables and leaves the notebook's alone.
    assert again[2]() == 7 and space["n"] == 1
    del space["Foo"]  # as in a kernel that never had it
    with open(tmp_path / "job" / "returns" / "payload.pkl", "rb") as f:
        stranger = variables.read_values(f, variables.read_header(f)["values"])["keep"]
    assert type(stranger[0]) is stranger[1] and stranger[0].who() == "old" and "Foo" not in space


def test_classes_that_need_each_other_come_back(notebook, tmp_path) -> None:
    space = notebook("class A:\n    def b(self): return B()\nclass B(A):\n    def a(self): return A()\n")
    _, values = in_a_job("x = [A(), B()]", space, tmp_path, ("x",))
    assert [type(v) for v in values["x"]] == [space["A"], space["B"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "are missing"), (b"", "cannot be read"), (b"garbage", "cannot be read"), (b"\x80\4}.", "another version")],
)
def test_a_broken_payload_is_one_line(tmp_path, content, message: str) -> None:
    job = JobFolder(tmp_path)
    if content is not None:
        os.makedirs(job.inputs)
        Path(job.inputs, "payload.pkl").write_bytes(content)
    with pytest.raises(variables.VariablesError, match=message) as raised:
        variables.load(job, {})
    assert "\n" not in str(raised.value)


def test_a_payload_that_was_changed_since_is_refused(notebook, tmp_path) -> None:
    shipment = prepare("print(text)", notebook("text = 'as it was'"))
    data = Path(shipment.path).read_bytes()
    shipment.close()
    job = JobFolder(tmp_path)
    os.makedirs(job.inputs)
    digest = hashlib.sha256(data).hexdigest()
    for content, whole in ((data, True), (data.replace(b"as it was", b"as it wa5"), False)):
        Path(job.inputs, "payload.pkl").write_bytes(content)
        space: dict = {}
        if whole:
            variables.load(job, space, digest)
            assert space["text"] == "as it was"
        else:
            with pytest.raises(variables.VariablesError, match="have been changed since"):
                variables.load(job, space, digest)
            assert not space


def test_what_the_job_cannot_import_is_named(notebook, tmp_path) -> None:
    space = notebook("import json as j\nx = 1")
    shipment = prepare("print(j, x)", space)
    job = JobFolder(tmp_path)
    os.makedirs(job.inputs)
    data = Path(shipment.path).read_bytes().replace(b"json", b"jsom")
    shipment.close()
    Path(job.inputs, "payload.pkl").write_bytes(data)
    with pytest.raises(variables.VariablesError, match="j is module jsom in the notebook and cannot be imported here"):
        variables.load(job, {})


def test_an_interpreter_without_cloudpickle_takes_plain_data(notebook, tmp_path) -> None:
    space = notebook("data = {'a': [1.5, None, 'x'], 'b': {2, 3}}\ndef f(): return data")
    for cell, expected in (("print(data)", "took it"), ("f()", "need cloudpickle: ")):
        shipment = prepare(cell, space)
        job = JobFolder(tmp_path / cell[:2])
        os.makedirs(job.inputs)
        shutil.move(shipment.path, os.path.join(job.inputs, "payload.pkl"))
        code = (
            "import sys\nfrom jupyter_mlops.runtime import variables\n"
            "from jupyter_mlops.runtime.jobfolder import JobFolder\nspace = {}\n"
            "try:\n    variables.load(JobFolder(sys.argv[1]), space)\n    print('took it', space['data']['a'])\n"
            "except variables.VariablesError as error:\n    print(error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-S", "-c", code, job.path], capture_output=True, text=True, timeout=60,
            env={**os.environ, "PYTHONPATH": str(REPO)},
        )
        assert expected in done.stdout, done.stderr


def test_where_gives_the_shortest_way() -> None:
    lock = object()
    deep = {"a": {"b": {"c": lock}}, "z": [lock]}
    assert pickling.where("v", deep, lock) == "v['z'][0]"
    assert pickling.where("v", deep, object()) == "v"
