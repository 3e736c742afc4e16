"""Frames between gateway and scorer."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from jupyter_mlops.runtime import frames


def test_a_frame_comes_back_as_it_went():
    a, b = socket.socketpair()
    with a, b:
        body = bytes(range(256)) * 5000
        sent = frames.pack(frames.SCORE, 7, body) + frames.pack(frames.PING, 8)
        threading.Thread(target=a.sendall, args=(sent,)).start()
        assert frames.receive(b) == (frames.SCORE, 7, body)
        assert frames.receive(b) == (frames.PING, 8, b"")


async def test_the_stream_reader_gives_the_same():
    reader = asyncio.StreamReader()
    reader.feed_data(frames.pack(frames.RESULT, 2**32 - 1, b"{}") + frames.pack(frames.PONG, 1)[:5])
    reader.feed_eof()
    assert await frames.read(reader) == (frames.RESULT, 2**32 - 1, b"{}")
    with pytest.raises(asyncio.IncompleteReadError):
        await frames.read(reader)


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
