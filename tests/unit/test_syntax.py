"""Parsing beside other threads: Python 3.11.7 and before fail at it by chance."""

from __future__ import annotations

import ast
import contextlib
import gc
import sys
import threading
import time

import pytest
from conftest import plain_parse

from jupyter_mlops.core import syntax

SOURCE = "def f(a, b=[1, 2, (3, 4)]):\n    return {k: [v for v in a if v] for k in b}\n" * 20


@pytest.fixture
def others():
    """A thread that parses all the time, and a collector that lets it run: what loses the count of the depth."""
    here = threading.get_ident()
    over = threading.Event()

    def parse():
        while not over.is_set():
            with contextlib.suppress(SystemError):
                plain_parse(SOURCE)

    def yielding(phase, info):
        if threading.get_ident() == here:
            time.sleep(1e-3)

    threshold = gc.get_threshold()
    thread = threading.Thread(target=parse)
    gc.callbacks.append(yielding)
    gc.set_threshold(200, 10, 10)
    thread.start()
    yield
    over.set()
    thread.join()
    gc.set_threshold(*threshold)
    gc.callbacks.remove(yielding)


@pytest.mark.skipif(sys.version_info >= (3, 11, 8), reason="mended in Python itself")
def test_the_fault_is_there(others):
    with pytest.raises(SystemError, match="depth mismatch"):
        for _ in range(3000):
            plain_parse(SOURCE)


def test_each_source_is_parsed_beside_other_threads(others):
    plain, parse = None, syntax.without_collections(plain_parse)
    for _ in range(30):
        tree = parse(SOURCE)
        plain = plain or ast.dump(tree)
        assert ast.dump(tree) == plain


def test_what_is_no_python_is_refused_as_ever():
    with pytest.raises(SyntaxError):
        syntax.parse("a b")
    with pytest.raises((SyntaxError, ValueError)):  # until Python 3.12 a ValueError
        syntax.parse("a\0")
    assert isinstance(syntax.parse(b"1 + 1", mode="eval"), ast.Expression)
    with pytest.raises(SyntaxError, match=r"here\.py"):
        compile(syntax.parse("x = 1"), "here.py", "exec")
        syntax.parse("x =", "here.py")
    assert gc.isenabled()
