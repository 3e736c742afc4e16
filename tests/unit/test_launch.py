"""A rank behaves as ``python script.py`` would, and leaves word of its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jupyter_mlops.runtime.jobfolder import JobFolder, private_folder, read_json

ROOT = Path(__file__).resolve().parents[2]


class Ran:
    """What is left of a rank that ran."""

    def __init__(self, code: int, folder: Path) -> None:
        attempt = JobFolder(folder).attempt(1)
        self.code = code
        self.folder = folder
        self.log = Path(attempt.log_path(0)).read_text()
        self.exit = read_json(attempt.exit_path(0))
        self.attempt = attempt


def rank(folder: Path, **spec) -> Ran:
    """Run rank 0 of a job to its end, without a supervisor."""
    job = JobFolder(folder)
    private_folder(job.attempt(1).path)
    private_folder(job.outputs)
    (folder / "spec.json").write_text(json.dumps(spec))
    if "cell" in spec:
        private_folder(os.path.dirname(job.cell_path))
        Path(job.cell_path).write_text(spec["cell"]["source"])
    done = subprocess.run(
        [sys.executable, "-u", "-m", "jupyter_mlops.runtime.launch", str(folder), "1", "0", "-"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}, stdin=subprocess.DEVNULL,
        capture_output=True, timeout=60, cwd=job.attempt(1).path,
    )
    assert done.stdout == b"", done.stdout  # all of it went to the log
    assert done.stderr == b"", done.stderr
    return Ran(done.returncode, folder)


def cell(folder: Path, source: str) -> Ran:
    return rank(folder, cell={"source": source})


@pytest.mark.parametrize("source", [
    "import sys; sys.exit()",
    "import sys; sys.exit(0)",
    "import sys; sys.exit(3)",
    "import sys; sys.exit(-1)",
    "import sys; sys.exit(300)",
    "import sys; sys.exit('a word')",
    "import sys; sys.exit([1, 2])",
    "import sys; sys.exit(True)",
    "raise ValueError('one\\ntwo')",
    "try:\n    1/0\nexcept Exception as e:\n    raise KeyError('k') from e",
    "class Odd(BaseException): pass\nraise Odd('x')",
    "def f(:\n",
    "import sys\nsys.excepthook = lambda *a: print('hooked', a[0].__name__)\n1/0",
    "import atexit\natexit.register(print, 'bye')\nprint('x', end='')",
    "import threading, time\ndef f():\n    time.sleep(0.2)\n    print('t')\n"
    "threading.Thread(target=f).start()\nprint('m')",
    "import os, sys\nif os.fork() == 0:\n    sys.exit(9)\nos.wait()\nprint('parent')",
    "import sys, os\nprint(__name__, __file__, __package__, __spec__, __doc__, sys.argv, sys.path[0], os.getcwd())",
    "import __main__, sys\nX = 1\nprint(__main__.X, sys.modules['__main__'].__dict__ is globals(), sorted(globals()))",
    "import pickle\nclass A: pass\nprint(pickle.loads(pickle.dumps(A)).__module__, pickle.dumps(A))",
    "print('né', '\\ud800'.encode('utf-8', 'surrogatepass'))",
    "import inspect\ndef f():\n    return 1\nprint(inspect.getsource(f))",
    "import multiprocessing as m\ndef f(x):\n    return x + 1\nif __name__ == '__main__':\n"
    "    with m.get_context('spawn').Pool(1) as p:\n        print(p.map(f, [1, 2]))",
    "from concurrent.futures import ProcessPoolExecutor\nimport multiprocessing as m\nclass P:\n    v = 7\n"
    "def f():\n    return P()\nif __name__ == '__main__':\n"
    "    with ProcessPoolExecutor(1, m.get_context('spawn')) as p:\n        print(type(p.submit(f).result()) is P)",
])
def test_same_as_plain_python(tmp_path, source):
    (tmp_path / "script.py").write_text(source)
    plain = subprocess.run([sys.executable, "script.py", "a", "b c"], cwd=tmp_path, stdin=subprocess.DEVNULL,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60,
                           env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"})
    ran = rank(tmp_path / "job", script="script.py", args=["a", "b c"], cwd=str(tmp_path))
    expected = plain.stdout.decode()
    if "__loader__" in expected or "sorted(globals" in source:
        expected, ran.log = (text.replace("'__annotations__', ", "") for text in (expected, ran.log))
    assert ran.log == expected
    assert ran.code == plain.returncode
    assert ran.exit["code"] == ran.code


def test_interrupt(tmp_path):
    ran = cell(tmp_path, "raise KeyboardInterrupt")
    assert ran.code == ran.exit["code"] == 130
    assert ran.log.endswith("KeyboardInterrupt\n")


def test_exit_tells_the_error(tmp_path):
    ran = cell(tmp_path, "def f():\n    raise ValueError('boom ' + 'x' * 5000)\nf()\n")
    assert ran.code == ran.exit["code"] == 1
    assert ran.exit["error"].startswith("ValueError: boom xxx") and len(ran.exit["error"]) <= 500
    assert any("raise ValueError" in line for line in ran.exit["traceback"])
    assert f'File "{tmp_path}/code/cell.py", line 3, in <module>' in ran.log
    assert "runtime/launch" not in ran.log


def test_exit_is_the_last_act(tmp_path):
    path = JobFolder(tmp_path).attempt(1).exit_path(0)
    ran = cell(tmp_path, f"import atexit, os\natexit.register(lambda: print(os.path.exists({path!r}), end=''))")
    assert ran.log == "False"
    assert ran.exit["code"] == 0


@pytest.mark.parametrize("source, code", [
    ("import os\nos._exit(4)", 4),
    ("import os\nos.kill(os.getpid(), 9)", -9),
    ("import os\nos.execv('/bin/sh', ['sh', '-c', 'echo other; exit 6'])", 6),
])
def test_no_exit_without_an_end_of_python(tmp_path, source, code):
    ran = cell(tmp_path, source)
    assert (ran.code, ran.exit) == (code, {})


def test_crash_leaves_a_trace(tmp_path):
    ran = cell(tmp_path, "import ctypes\ndef deep():\n    ctypes.string_at(0)\ndeep()")
    assert ran.code == -signal.SIGSEGV
    assert "in deep" in ran.log


def test_lines_are_written_at_once_and_whole(tmp_path):
    ran = cell(tmp_path, "import os\nprint('one', 'two')\nprint('half', end='')\nos._exit(0)")
    assert ran.log == "one two\n"  # as on a terminal that is closed
    ran = cell(tmp_path / "b", "import os, subprocess as s\nprint('first')\ns.run(['echo', 'child'])\n"
                               "os.write(2, b'raw')")
    assert ran.log == "first\nchild\nraw"


def test_cell_may_await(tmp_path):
    ran = cell(tmp_path, "import asyncio\nX = 1\nawait asyncio.sleep(0)\nprint(X)\nraise OSError('after')")
    assert ran.code == 1
    assert ran.log.startswith("1\n") and "line 5" in ran.log
    plain = rank(tmp_path / "b", script=str(tmp_path / "code" / "cell.py"), cwd=str(tmp_path))
    assert plain.code == 1 and "SyntaxError" in plain.log


def test_command(tmp_path):
    ran = rank(tmp_path, command="echo a; echo b >&2; kill -USR1 $$")
    assert ran.log == "a\nb\n"
    assert ran.code == 128 + signal.SIGUSR1 and ran.exit["code"] == -signal.SIGUSR1
    ran = rank(tmp_path / "b", command="yes | head -1")  # needs SIGPIPE as programs know it
    assert (ran.code, ran.log) == (0, "y\n")


def test_cannot_start(tmp_path):
    ran = rank(tmp_path, script="gone.py", cwd=str(tmp_path))
    assert ran.code == ran.exit["code"] == 1
    assert "FileNotFoundError" in ran.log and "gone.py" in ran.exit["error"]
    ran = rank(tmp_path / "b", script="gone.py", cwd=str(tmp_path / "no"))
    assert ran.code == 1 and "No such file" in ran.log


@pytest.mark.parametrize("end", ["", "\nraise ValueError('x')"])
def test_open_figures_are_saved(tmp_path, end):
    pytest.importorskip("matplotlib")
    ran = cell(tmp_path, "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.figure()\nplt.close(2)\n"
                         f"plt.figure(7)\nprint(plt.get_backend()){end}")
    assert ran.log.lower().startswith("agg\n")
    assert ran.exit["code"] == ran.code == (1 if end else 0)
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["figure-1.png", "figure-7.png"]


def test_figures_that_cannot_be_saved_only_warn(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "figure-1.png").mkdir()
    ran = cell(tmp_path, "import matplotlib.pyplot as plt\nplt.plot([1, 2])")
    assert ran.code == ran.exit["code"] == 0
    assert ran.log.count("\n") == 1 and "the open figures were not all saved" in ran.log


def test_launch_imports_little(tmp_path):
    ran = cell(tmp_path, "import sys, json\nprint(json.dumps(sorted(sys.modules)))")
    loaded = set(json.loads(ran.log))
    heavy = {"subprocess", "asyncio", "socket", "ssl", "http", "logging", "threading", "tempfile", "inspect", "ctypes",
             "typing", "traceback", "pydantic", "mlflow", "jupyter_mlops.core", "jupyter_mlops.runtime.locate"}
    bare = subprocess.run([sys.executable, "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True,
                          timeout=30).stdout.split()
    assert not (heavy & loaded) - set(bare)
