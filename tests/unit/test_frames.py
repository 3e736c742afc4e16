"""Frames between gateway and scorer."""

from __future__ import annotations

import socket
import threading

import pytest

from jupyter_mlops.runtime import frames


def test_a_frame_comes_back_as_it_went():
    a, b = socket.socketpair()
    with a, b:
        body = bytes(range(256)) * 5000
        sent = frames.pack(frames.BATCH, 7, body) + frames.pack(frames.PING, 8)
        threading.Thread(target=a.sendall, args=(sent,)).start()
        assert frames.receive(b) == (frames.BATCH, 7, body)
        assert frames.receive(b) == (frames.PING, 8, b"")


def test_bytes_in_any_pieces_give_the_same_frames():
    bodies = [b"", b"x", bytes(70_000), b"{}"]
    sent = b"".join(frames.pack(frames.ANSWERS, n, body) for n, body in enumerate(bodies))
    for step in (1, 7, 9, 4096, len(sent)):
        reader = frames.Reader()
        found = [f for at in range(0, len(sent), step) for f in reader.feed(sent[at:at + step])]
        assert found == [(frames.ANSWERS, n, body) for n, body in enumerate(bodies)]
    with pytest.raises(frames.FrameError):
        list(frames.Reader().feed(b"GET / HTTP/1.1\r\n\r\n"))


def test_batches_and_their_answers():
    requests = [b"one", b"", b"three" * 1000]
    kind, ident, body = next(iter(frames.Reader().feed(b"".join(frames.pack_batch(5, requests)))))
    assert (kind, ident) == (frames.BATCH, 5)
    assert [bytes(r) for r in frames.unpack_batch(body)] == requests
    answers = [(2, frames.RESULT, b"{}"), (0, frames.ERROR, b""), (1, frames.RESULT, b"[1]" * 100)]
    kind, ident, body = next(iter(frames.Reader().feed(frames.pack_answers(9, answers))))
    assert (kind, ident) == (frames.ANSWERS, 9)
    assert frames.unpack_answers(body) == answers
    for cut in (b"", b"\0\0\0\x09", b"\xff" * 20, body[:-1]):
        with pytest.raises(frames.FrameError):
            frames.unpack_answers(cut)
    for cut in (b"", b"\0\0\0\x09", b"\xff" * 20, b"\0\0\0\1\0\0\0\x09abc"):
        with pytest.raises(frames.FrameError):
            frames.unpack_batch(cut)


@pytest.mark.parametrize("head", [b"\0\0\0\0\x63\0\0\0\0", b"\xff\xff\xff\xff\x01\0\0\0\0", b"GET / HTT"])
def test_what_is_no_frame_is_told_at_its_head(head):
    with pytest.raises(frames.FrameError):
        frames.unpack_head(head)


def test_score_bodies():
    header, blob = frames.unpack_score(frames.pack_score({"rows": 1, "näme": [1]}, [b"ab", b"c"]))
    assert header == {"rows": 1, "näme": [1]} and bytes(blob) == b"abc"
    for cut in (b"", b"\0\0", b"\0\0\0\x09{}", b"\0\0\0\x02[]", b"\0\0\0\x02{x"):
        with pytest.raises(frames.FrameError):
            frames.unpack_score(cut)
