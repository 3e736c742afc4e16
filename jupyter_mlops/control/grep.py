"""Finds lines by a regular expression, in a process of its own: an expression may take for ever, and only a process can
be ended. Run as a file, by ``python -I -S``; :mod:`.search` talks to it over its standard input and output.

First comes a line of JSON, ``{"pattern", "case"}``, answered by ``{}`` or ``{"error": why}``. Then frames: four bytes
of length, four bytes that say how many lines are wanted at most, and whole lines of that length; each is answered by
``[[begin, end, match begin], …]``.
"""

import json
import re
import struct
import sys

#: Characters of a line on which an expression is tried.
MAX_LINE = 10_000
_MEMORY, _SECONDS = 1 << 30, 10
_SEGMENT = re.compile(rb"[^\r\n]+")


def find(pattern: "re.Pattern[str]", frame: bytes, most: int) -> "list[tuple[int, int, int]]":
    """Lines of ``frame`` that match: where they begin and end, and where in them the match does, in bytes."""
    found: list[tuple[int, int, int]] = []
    for segment in _SEGMENT.finditer(frame):
        line = segment.group()[: 4 * MAX_LINE].decode("utf-8", "replace")[:MAX_LINE]
        match = pattern.search(line)
        if match is not None:
            # Where a byte was replaced this may be some bytes off; it only says which part of a long line to show.
            found.append((segment.start(), segment.end(), len(line[: match.start()].encode())))
            if len(found) >= most:
                break
    return found


def main() -> None:
    """Answer until the input ends."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    except (ImportError, OSError, ValueError):
        pass
    source, out = sys.stdin.buffer, sys.stdout.buffer

    def say(value: object) -> None:
        out.write(json.dumps(value).encode() + b"\n")
        out.flush()

    order = json.loads(source.readline())
    try:
        pattern = re.compile(order["pattern"], 0 if order["case"] else re.IGNORECASE)
    except (re.error, RecursionError, OverflowError, MemoryError) as error:
        say({"error": str(error) or type(error).__name__})
        return
    say({})
    while True:
        head = source.read(8)
        if len(head) < 8:
            return
        length, most = struct.unpack("<II", head)
        say(find(pattern, source.read(length), most))


if __name__ == "__main__":
    main()
