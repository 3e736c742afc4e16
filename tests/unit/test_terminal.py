"""Logs as a terminal leaves them."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_mlops.client.terminal import Follower, Screen, rendered


def bar(name: str, done: int, total: int) -> str:
    """A state as tqdm writes it."""
    return f"{name}: {100 * done // total:3d}%|{'█' * (20 * done // total):<20}| {done}/{total} [00:01<00:02, 9.87it/s]"


def tqdm_log(total: int = 1000) -> str:
    return "".join("\r" + bar("epoch", i, total) for i in range(total + 1)) + "\n"


def nested_log() -> str:
    """An outer bar at position 0, inner ones at position 1 that are cleared in the end."""
    parts = []
    for epoch in range(3):
        parts.append("\r" + bar("outer", epoch, 3))
        parts += ["\n\r" + bar("inner", step, 5) + "\x1b[A" for step in range(6)]
        parts.append("\n\r" + " " * 70 + "\r\x1b[A")
    return "".join(parts) + "\r" + bar("outer", 3, 3) + "\n"


def rich_log() -> str:
    """Two bars as rich draws them in a terminal, with a line printed above them in between."""
    def draw(done: int) -> str:
        row = f"\x1b[38;5;237m━━━━\x1b[0m \x1b[35m{done:3d}%\x1b[0m \x1b[36m0:00:01\x1b[0m"
        return f"load  {row}\ntrain {row}"

    up = "\r\x1b[2K\x1b[1A\x1b[2K"
    parts = ["\x1b[?25l", draw(0)]
    for done in range(10, 101, 10):
        parts += [up, "half way\n" if done == 50 else "", draw(done)]
    return "".join(parts) + "\n\x1b[?25h"


def test_tqdm_is_one_line():
    log = tqdm_log()
    assert len(log) > 50_000
    lines = rendered("before\n" + log + "after\n").split("\n")
    assert lines[0] == "before" and lines[2:] == ["after", ""]
    assert lines[1].startswith("epoch: 100%|") and "1000/1000" in lines[1] and "\r" not in lines[1]


def test_nested_bars_keep_their_rows():
    lines = [line.rstrip() for line in rendered(nested_log()).split("\n") if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("outer: 100%")


def test_rich_is_its_last_state():
    log = rich_log()
    lines = [line.rstrip() for line in rendered(log).split("\n") if line.strip()]
    assert lines[0] == "half way" and len(lines) == 3
    assert lines[1].startswith("load") and lines[2].startswith("train") and "100%" in lines[1] and "100%" in lines[2]
    assert "\x1b" not in rendered(log)
    coloured = rendered(log, colours=True)
    assert "\x1b[" in coloured and not re.search(r"\x1b\[[0-9;]*[^0-9;m]", coloured)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""), ("\n\na", "\n\na"), ("a\r\nb\r\n", "a\nb\n"), ("abc\rx", "xbc"), ("abc\b\bX", "aXc"),
        ("abc\x1b[2K\rx", "x"), ("abc\r\x1b[Kx\n", "x\n"), ("one\ntwo\n\x1b[2A\x1b[Jnew\n", "new\n"),
        ("a\nb\x1b[1AX\n", "aX\nb\n"), ("x\x1b[5Cy", "x     y"), ("abcdef\x1b[3GX", "abXdef"),
        ("\x1b[31mred\x1b[0m\n", "red\n"), ("\x1b]0;title\x07x", "x"),
        ("\x1b]8;;http://a\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("a\x00\x07\x1bMb", "ab"), ("\x1b[?25lx\x1b[?25h", "x"), ("a\tb", "a       b"), ("end\x1b[", "end"),
        ("\x1b[99999A\x1b[99999Bx", "x"), ("\x1b[99999999999999999Cx", " " * 10_000 + "x"),
    ],
)
def test_sequences(text, shown):
    assert rendered(text) == shown
    if not text.endswith("\n"):
        assert rendered(text, colours=True) == shown


def test_colours_begin_and_end_in_their_row():
    text = "\x1b[1;31mbad\x1b[0m plain\n\x1b[32mgreen\nstill\x1b[0m\n"
    assert rendered(text, colours=True) == (
        "\x1b[1;31mbad\x1b[0m plain\n\x1b[32mgreen\x1b[0m\n\x1b[32mstill\x1b[0m\n"
    )


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab\n\r\b\t\x1b[0123;ABCDGHJKmé\x07]", max_size=120), st.integers(0, 2**32))
def test_pieces_of_any_size_give_the_same(text, seed):
    rng = random.Random(seed)
    screen, at = Screen(), 0
    while at < len(text):
        step = rng.randrange(1, 9)
        screen.feed(text[at:at + step])
        at += step
    whole = Screen()
    whole.feed(text)
    assert screen.lines() == whole.lines()
    assert not any("\x1b" in line or "\r" in line for line in whole.lines())


def follow(text: str, size: int, **options) -> str:
    follower = Follower(**options)
    return "".join([follower.feed(text[i:i + size]) for i in range(0, len(text), size)] + [follower.close()])


@pytest.mark.parametrize("size", [1, 3, 17, 1000])
def test_following_plain_lines_changes_nothing(size):
    text = "".join(f"line {i} ünï\n" for i in range(300)) + "the end"
    assert follow(text, size) == text and follow(text, size, partial=False) == text


def test_following_a_bar_ends_as_it_ended():
    log = "before\n" + tqdm_log(300) + "after\n"
    for size in (50, 700, 100_000):
        assert [line.rstrip() for line in rendered(follow(log, size)).split("\n")] == [
            line.rstrip() for line in rendered(log).split("\n")]
    plain = follow(log, 700, partial=False)
    assert plain == rendered(log) and "\r" not in plain


def test_following_many_bars_tells_their_last_state():
    log = "0%\n0%\n" + "".join(f"\x1b[2A{i}% a\n{i}% b\n" for i in range(101))
    told = follow(log, 20, partial=False)
    assert told.endswith("100% a\n100% b\n") and len(told) < len(log)


def test_following_takes_no_more_memory(monkeypatch):
    follower = Follower()
    for i in range(3000):
        follower.feed(f"line {i}\n")
    assert len(follower._screen._rows) <= 201 and follower._screen.touched == set()


def test_a_line_that_never_ends_goes_on_in_the_next_row(monkeypatch):
    monkeypatch.setattr("jupyter_mlops.client.terminal._WIDEST", 1000)
    text = "".join(random.Random(1).choices("abcdef", k=4500))
    assert follow(text, 300, partial=True).replace("\n", "") == text
    assert [len(line) for line in rendered(text).split("\n")] == [1000] * 4 + [500]
