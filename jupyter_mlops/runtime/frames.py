"""The frames between a gateway and a scorer, over a unix socket.

A frame is a head of 9 bytes (body length, kind, id, big-endian) and a body. A scorer says HELLO first. Requests travel
in batches: whatever waits when a scorer is free goes to it in one frame. The requests of a batch are answered in one or
several ANSWERS frames, in any order. A request's body is a JSON header with its own length before it, then the bytes of
the numeric blocks that the header describes, in the machine's byte order (both ends are on one host).

Bodies by kind:
    HELLO    ``{"pid", "loader", "batch_safe"}``, sent once to whoever connects
    PING     empty; answered by PONG with ``{"pid", "phase"}``
    BATCH    see :func:`pack_batch`; its id is that of the batch
    ANSWERS  see :func:`pack_answers`; its id is that of the batch
    CANCEL   empty, its id is that of a BATCH which nobody waits for any more; not answered
    GOING    empty, from the scorer: it answers what it has and then leaves; send no more
"""

import json
import struct

HEAD = struct.Struct(">IBI")
LENGTH = struct.Struct(">I")
#: One answer in an ANSWERS frame: place of its request in the batch, kind, length.
PLACE = struct.Struct(">IBI")
#: Bytes; a longer body is a broken peer.
MAX_BODY = 2 * 1024**3 - 1
#: Requests in one batch.
MAX_REQUESTS = 4096

PING, PONG, RESULT, ERROR, CANCEL, BATCH, ANSWERS, GOING, HELLO = 1, 2, 4, 5, 6, 7, 8, 9, 10
KINDS = frozenset((PING, PONG, CANCEL, BATCH, ANSWERS, GOING, HELLO))


class FrameError(ValueError):
    """The peer sent something that is not a frame; the connection is of no more use."""


def pack(kind, ident, body=b""):
    """A whole frame."""
    return HEAD.pack(len(body), kind, ident) + body


def unpack_head(head, offset=0):
    """(length, kind, id) of a frame's first 9 bytes.

    Raises:
        FrameError: unknown kind or a body over the limit.
    """
    length, kind, ident = HEAD.unpack_from(head, offset)
    if kind not in KINDS or length > MAX_BODY:
        raise FrameError("not a frame of ours (kind %d, %d bytes)" % (kind, length))
    return length, kind, ident


class Reader:
    """Takes bytes as they come and gives frames."""

    def __init__(self):
        self._held = bytearray()

    def feed(self, data):
        """Yields the (kind, id, body) of each frame that is complete now; a body is a bytes object.

        Raises:
            FrameError: it is not a frame; the connection is of no more use.
        """
        held = self._held
        if held:
            held += data
            data = held
        at, size = 0, len(data)
        while size - at >= HEAD.size:
            length, kind, ident = unpack_head(data, at)
            end = at + HEAD.size + length
            if end > size:
                break
            with memoryview(data) as view:
                body = bytes(view[at + HEAD.size:end])
            at = end
            yield kind, ident, body
        if data is held:
            del held[:at]
        elif at < size:
            held += data[at:]


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
    return parts[0] if len(parts) == 1 else b"".join(parts)


def await_pong(sock):
    """Returns when the scorer at the other end of a blocking socket answers a PING that was sent; HELLO comes first.

    Raises:
        FrameError, OSError: it does not in time, or speaks another language.
    """
    while receive(sock)[0] != PONG:
        pass


# -- bodies ---------------------------------------------------------------------


def pack_score(header, blobs=()):
    """The body of a request: the header as JSON, then the blobs in their order."""
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode("ascii")
    return b"".join([LENGTH.pack(len(text)), text, *blobs])


def split_score(body):
    """(bytes of the header, view of the blobs) of a request's body.

    Raises:
        FrameError: it is cut off.
    """
    if len(body) < LENGTH.size:
        raise FrameError("cut off")
    (size,) = LENGTH.unpack_from(body)
    end = LENGTH.size + size
    if end > len(body):
        raise FrameError("cut off")
    view = memoryview(body)
    return bytes(view[LENGTH.size:end]), view[end:]


def unpack_score(body):
    """(header, view of the blobs) of a request's body.

    Raises:
        FrameError: it is cut off, or no JSON.
    """
    text, blob = split_score(body)
    return load_header(text), blob


def load_header(text):
    """The header of a request as a dictionary.

    Raises:
        FrameError: it is none.
    """
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FrameError("no header: %s" % error)
    if not isinstance(header, dict):
        raise FrameError("no header")
    return header


def pack_batch(ident, requests):
    """A BATCH frame as a list of bytes objects, to be written one after the other: count, lengths, bodies."""
    count = len(requests)
    lengths = struct.pack(">%dI" % (count + 1), count, *map(len, requests))
    size = len(lengths) + sum(map(len, requests))
    return [HEAD.pack(size, BATCH, ident) + lengths, *requests]


def unpack_batch(body):
    """The requests in a BATCH frame's body, as views of it.

    Raises:
        FrameError: it is cut off.
    """
    if len(body) < LENGTH.size:
        raise FrameError("cut off")
    (count,) = LENGTH.unpack_from(body)
    at = LENGTH.size * (count + 1)
    if count > MAX_REQUESTS or at > len(body):
        raise FrameError("cut off")
    view = memoryview(body)
    found = []
    for length in struct.unpack_from(">%dI" % count, body, LENGTH.size):
        if at + length > len(body):
            raise FrameError("cut off")
        found.append(view[at:at + length])
        at += length
    return found


def pack_answers(ident, answers):
    """An ANSWERS frame: ``answers`` are (place of the request in its batch, RESULT or ERROR, body).

    RESULT is the JSON for the caller, ready to send; ERROR is ``{"message", "code"}``.
    """
    parts = [b"".join([PLACE.pack(place, kind, len(body)) for place, kind, body in answers])]
    parts += [body for _, _, body in answers]
    size = LENGTH.size + sum(map(len, parts))
    return b"".join([HEAD.pack(size, ANSWERS, ident), LENGTH.pack(len(answers)), *parts])


def unpack_answers(body):
    """The (place, kind, bytes) in an ANSWERS frame's body.

    Raises:
        FrameError: it is cut off.
    """
    if len(body) < LENGTH.size:
        raise FrameError("cut off")
    (count,) = LENGTH.unpack_from(body)
    at = LENGTH.size + PLACE.size * count
    if count > MAX_REQUESTS or at > len(body):
        raise FrameError("cut off")
    found = []
    for place, kind, length in PLACE.iter_unpack(body[LENGTH.size:at]):
        if at + length > len(body):
            raise FrameError("cut off")
        found.append((place, kind, body[at:at + length]))
        at += length
    return found
