"""The frames between a gateway and a scorer, over a unix socket.

A frame is a head of 9 bytes (body length, kind, request id, big-endian) and a body. Many requests may be under way on
one connection; answers carry the id of their request and come in any order. A request's body is a JSON header with its
own length before it, then the bytes of the numeric blocks that the header describes, in the machine's byte order (both
ends are on one host).

Bodies by kind:
    PING    empty; answered by PONG with ``{"pid", "phase"}``
    SCORE   see :func:`pack_score`; answered by RESULT (the JSON for the caller, ready) or ERROR ``{"message", "code"}``
    CANCEL  empty, its id is that of a SCORE which nobody waits for any more; not answered
"""

import json
import struct

HEAD = struct.Struct(">IBI")
LENGTH = struct.Struct(">I")
#: Bytes; a longer body is a broken peer.
MAX_BODY = 2 * 1024**3 - 1

PING, PONG, SCORE, RESULT, ERROR, CANCEL = 1, 2, 3, 4, 5, 6
KINDS = frozenset((PING, PONG, SCORE, RESULT, ERROR, CANCEL))


class FrameError(ValueError):
    """The peer sent something that is not a frame; the connection is of no more use."""


def pack(kind, ident, body=b""):
    """A whole frame."""
    return HEAD.pack(len(body), kind, ident) + body


def unpack_head(head):
    """(length, kind, id) of a frame's first 9 bytes.

    Raises:
        FrameError: unknown kind or a body over the limit.
    """
    length, kind, ident = HEAD.unpack(head)
    if kind not in KINDS or length > MAX_BODY:
        raise FrameError("not a frame of ours (kind %d, %d bytes)" % (kind, length))
    return length, kind, ident


async def read(reader):
    """The next (kind, id, body) of an asyncio stream.

    Raises:
        FrameError: it is not a frame.
        asyncio.IncompleteReadError: the peer went away, perhaps inside a frame.
    """
    length, kind, ident = unpack_head(await reader.readexactly(HEAD.size))
    return kind, ident, (await reader.readexactly(length) if length else b"")


def receive(sock):
    """The next (kind, id, body) of a blocking socket.

    Raises:
        FrameError: it is not a frame, or the peer went away.
        OSError: the socket's own errors, such as its timeout.
    """
    length, kind, ident = unpack_head(_exactly(sock, HEAD.size))
    return kind, ident, _exactly(sock, length)


def _exactly(sock, size):
    parts = []
    while size:
        part = sock.recv(min(size, 1 << 20))
        if not part:
            raise FrameError("the peer closed the connection")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def pack_score(header, blobs=()):
    """The body of a SCORE frame: the header as JSON, then the blobs in their order."""
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    return b"".join([LENGTH.pack(len(text)), text, *blobs])


def unpack_score(body):
    """(header, view of the blobs) of a SCORE frame's body.

    Raises:
        FrameError: it is cut off, or no JSON.
    """
    if len(body) < LENGTH.size:
        raise FrameError("cut off")
    (size,) = LENGTH.unpack_from(body)
    end = LENGTH.size + size
    if end > len(body):
        raise FrameError("cut off")
    try:
        header = json.loads(body[LENGTH.size : end])
    except (ValueError, RecursionError) as error:
        raise FrameError("no header: %s" % error)
    if not isinstance(header, dict):
        raise FrameError("no header")
    return header, memoryview(body)[end:]
