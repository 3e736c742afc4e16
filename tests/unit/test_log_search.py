"""Search in logs: finds what is there, in flat memory and bounded time, whatever is looked for."""

from __future__ import annotations

import random
import time

import pytest

from jupyter_mlops.compute.base import LogChunk
from jupyter_mlops.control import search as module
from jupyter_mlops.control.grep import MAX_LINE
from jupyter_mlops.control.search import Expression, Words, search
from jupyter_mlops.core.errors import ParameterError
from jupyter_mlops.runtime import logfile


def reader(path):
    return lambda offset, limit: LogChunk(*logfile.read(str(path), offset, limit))


def look(path, finder, offset=0, line=None, limit=100, ended=True):
    try:
        return search(reader(path), finder, offset, line, limit, ended)
    finally:
        finder.close()


def walk(path, make, limit=1000, ended=True):
    """All matches over as many calls as it takes."""
    found, offset, line, calls = [], 0, 1, 0
    while True:
        answer = look(path, make(), offset, line, limit, ended)
        found += answer.matches
        calls += 1
        if answer.complete:
            return found, calls
        assert answer.next_offset > offset
        offset, line = answer.next_offset, answer.next_line


@pytest.fixture
def log(tmp_path):
    return tmp_path / "rank-0.log"


@pytest.mark.parametrize("make", [lambda: Words("loss", False), lambda: Expression("loss", False)])
def test_lines_with_offset_and_number(log, make):
    log.write_bytes("one\nLoss 1\r\nünï loss 2\nthree\nloss".encode())
    found = look(log, make())
    data = log.read_bytes()
    assert [(m["line"], m["text"]) for m in found.matches] == [(2, "Loss 1"), (3, "ünï loss 2"), (5, "loss")]
    for match in found.matches:
        assert data[match["offset"]:].decode().startswith(match["text"])
    assert found.complete and found.next_offset == found.size == len(data) and found.next_line == 5


@pytest.mark.parametrize(
    ("text", "case", "line", "there"),
    [("Straße", False, "STRASSE straße", True), ("ÄRGER", False, "ärger", True), ("ÄRGER", True, "ärger", False),
     ("a.c", False, "abc", False), ("a.c", False, "xA.Cx", True), ("(", True, "f(x)", True),
     ("[", False, "none", False)],
)
def test_plain_text(log, text, case, line, there):
    log.write_text(line + "\n")
    assert bool(look(log, Words(text, case)).matches) is there


@pytest.mark.parametrize(
    ("pattern", "case", "line", "there"),
    [(r"^epoch \d+$", False, "Epoch 12", True), (r"^epoch \d+$", True, "Epoch 12", False),
     (r"\bä\w+", False, "x Ärger", True), (r"a.b", False, "a\tb", True), (r"x$", False, "x\ty", False)],
)
def test_expressions(log, pattern, case, line, there):
    log.write_text(f"before\n{line}\nafter\n")
    assert bool(look(log, Expression(pattern, case)).matches) is there


def test_states_of_a_progress_bar_are_lines(log):
    log.write_bytes(b"begin\n" + b"".join(b"\r%d%%|#" % i for i in range(0, 101, 10)) + b"\ndone\n")
    found = look(log, Words("50%", False))
    assert [(m["line"], m["text"]) for m in found.matches] == [(2, "50%|#")]
    assert look(log, Words("done", False)).matches[0]["line"] == 3


@pytest.mark.parametrize("piece", [64, 1000])
def test_borders_of_pieces_hide_nothing(log, monkeypatch, piece):
    """Against a plain look at each line."""
    monkeypatch.setattr(module, "_PIECE", piece)
    rng = random.Random(piece)
    lines = ["".join(rng.choice("abc €") for _ in range(rng.randrange(30))) for _ in range(400)]
    log.write_text("\n".join(lines), encoding="utf-8")
    expected = [(n, line) for n, line in enumerate(lines, 1) if "ab" in line]
    for limit in (1, 3, 1000):
        found, _ = walk(log, lambda: Words("ab", True), limit)
        assert [(m["line"], m["text"]) for m in found] == expected
    found, _ = walk(log, lambda: Expression("ab", True), 50)
    assert [(m["line"], m["text"]) for m in found] == expected


def test_one_call_is_bounded(log, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 3 << 20)
    row = b"nothing to be found here\n"
    log.write_bytes(row * ((8 << 20) // len(row)) + b"needle\n")
    first = look(log, Words("needle", False))
    assert not first.complete and not first.matches and (3 << 20) - 100 < first.next_offset <= 5 << 20
    found, calls = walk(log, lambda: Words("needle", False))
    assert calls > 1 and [m["line"] for m in found] == [(8 << 20) // len(row) + 1]
    monkeypatch.setattr(module, "MAX_SECONDS", 0.0)
    assert look(log, Words("needle", False)).next_offset <= 2 << 20


def test_the_limit_of_lines(log):
    log.write_text("".join(f"match {i}\n" for i in range(50)))
    found, calls = walk(log, lambda: Words("match", False), 7)
    assert [m["line"] for m in found] == list(range(1, 51)) and calls == 8


def test_behind_a_hole_lines_have_no_number(log):
    with open(log, "wb") as f:
        f.writelines(b"line %d needle\n" % i if i % 1000 == 0 else b"line %d\n" % i for i in range(400_000))
    whole, _ = walk(log, lambda: Words("needle", False))
    logfile.shrink(str(log), 2 << 20)
    begin, end = logfile.hole(str(log))
    found, _ = walk(log, lambda: Words("needle", False))
    assert found == [
        {**m, "line": m["line"] if m["offset"] < begin else None} for m in whole if not begin <= m["offset"] < end
    ]
    assert {m["line"] is None for m in found} == {True, False}


def test_a_line_that_is_being_written_is_found_later(log):
    log.write_bytes(b"first\nhal")
    found = look(log, Words("half", False), ended=False)
    assert found.complete and found.matches == [] and found.next_offset == 6 and found.next_line == 2
    with open(log, "ab") as f:
        f.write(b"f a line")
    again = look(log, Words("half", False), found.next_offset, found.next_line, ended=False)
    assert [(m["line"], m["text"]) for m in again.matches] == [(2, "half a line")] and again.next_offset == again.size


def test_long_lines_are_cut_around_the_match(log):
    log.write_bytes(b"x" * 300_000 + b" \x1b[31mneedle\x1b[0m \xff " + b"y" * 300_000 + b"\n")
    (match,) = look(log, Words("needle", False)).matches
    assert "needle" in match["text"] and len(match["text"]) <= 402 and "\x1b" not in match["text"]
    assert match["text"].startswith("…x") and match["text"].endswith("y…") and match["offset"] == 0
    assert look(log, Expression("needle", False)).matches == [], "beyond what expressions are tried on"
    log.write_bytes(b"x" * (MAX_LINE - 10) + b"needle\n")
    assert "needle" in look(log, Expression("need.e", False)).matches[0]["text"]


@pytest.mark.parametrize("pattern", ["(", "*a", "(?P<x>a)(?P<x>b)", "a{99999999999}", "[z-a]", "(" * 2000])
def test_what_is_no_expression_is_refused(pattern):
    with pytest.raises(ParameterError, match="regular expression"):
        Expression(pattern, False)


def test_an_expression_that_takes_for_ever_is_ended(log, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.5)
    log.write_bytes(b"a" * 60 + b"!\n")
    finder = Expression("(a+)+$", False)
    begun = time.monotonic()
    with pytest.raises(ParameterError, match="too much time"):
        search(reader(log), finder, 0, 1, 10, True)
    assert time.monotonic() - begun < 30
    finder.close()
    assert finder._child.poll() is not None
