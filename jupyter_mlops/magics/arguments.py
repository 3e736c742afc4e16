"""What a verb is, and types of its arguments: each turns a word into a value, or says in one line why it cannot."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """One verb: ``home`` is ``module:function`` of its command, ``build`` adds its arguments.

    ``rest`` names what follows ``--``; ``examples`` are without prefix; ``file`` says what ``-o FILE`` does in a
    terminal, where there are no variables.
    """

    name: str
    summary: str
    home: str
    build: Callable[[argparse.ArgumentParser], None]
    examples: tuple[str, ...] = ()
    rest: str = ""
    cell: bool = False
    file: str = ""


def pair(text: str) -> tuple[str, str]:
    """``KEY=VALUE`` as a pair; a type for arguments."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def nodes(text: str) -> tuple[int, int | None]:
    """``N`` or ``MIN:MAX`` as least and most, the second None without one; a type for arguments."""
    least, colon, most = text.partition(":")
    try:
        found = int(least), int(most) if colon else None
    except ValueError:
        found = 0, None
    if found[0] < 1 or (found[1] is not None and found[1] < found[0]):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of machines nor MIN:MAX such as 2:8")
    return found


def named_input(text: str) -> tuple[str, str, str]:
    """``NAME=PATH`` or ``NAME:MODE=PATH`` as name, mode and path; a type for arguments."""
    name, equals, path = text.partition("=")
    name, _, mode = name.partition(":")
    if not equals or not name or not path or mode not in ("", "download", "ro_mount", "direct"):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH or NAME:MODE=PATH, MODE being download, ro_mount "
                                         "or direct")
    return name, mode, path


def named_output(text: str) -> tuple[str, str]:
    """``NAME`` or ``NAME=PATH`` as name and path; a type for arguments."""
    name, _, path = text.partition("=")
    return name, path


def ports(text: str) -> tuple[int, int]:
    """``PORT`` or ``PORT:HERE``, there and on this machine; a type for arguments."""
    there, colon, here = text.partition(":")
    numbers = (there, here or there)
    if not all(n.isascii() and n.isdigit() and len(n) < 6 and int(n) <= 65535 for n in numbers) or not int(there) or (
            colon and not here):
        raise argparse.ArgumentTypeError(f"{text!r} is not PORT or PORT:HERE")
    return int(numbers[0]), int(numbers[1])


def whole_from(least: int, what: str = "") -> Callable[[str], int]:
    """A type for arguments: a whole number that is not below ``least``; ``what`` it is, for who gives another."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what or f'a whole number from {least}'}")
        return value

    return read


count, whole = whole_from(1), whole_from(0)


def seconds(text: str) -> float:
    """A positive number of seconds; a type for arguments."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


_SPAN = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def span(text: str) -> float:
    """A length of time in seconds: ``90``, ``90s``, ``10m``, ``2h``, ``1d``; a type for arguments."""
    match = re.fullmatch(r"(\d{1,18}(?:\.\d+)?)\s*([smhd]?)", text.strip())
    value = float(match.group(1)) * _SPAN[match.group(2)] if match else -1.0
    if not 0 < value <= 31_536_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no length of time such as 90s, 10m or 2h")
    return value


def size(text: str) -> int:
    """A number of bytes: ``500M``, ``2Gi``, ``1000000``; a type for arguments."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)\s*([kKMGT]?)(i?)[bB]?", text.strip())
    if not match or (match.group(3) and not match.group(2)):
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 500M or 2Gi")
    unit = 1024 if match.group(3) else 1000
    return int(float(match.group(1)) * unit ** "kMGT".index(match.group(2).replace("K", "k")) * unit) if (
        match.group(2)
    ) else int(float(match.group(1)))


def memory(text: str) -> str:
    """The same, kept as it was written."""
    size(text)
    return text.strip().rstrip("bB").replace("K", "k")


def amount(text: str) -> float:
    """A positive number, also a fraction; a type for arguments."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def names(text: str) -> list[str]:
    """Variable names separated by commas; a type for arguments."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    wrong = [name for name in found if not name.isidentifier()]
    if wrong or not found:
        raise argparse.ArgumentTypeError(f"{(wrong or [text])[0]!r} is no variable name; separate names by commas")
    return found


def percent(text: str) -> int:
    """A whole number from 0 to 100, with or without a percent sign; a type for arguments."""
    try:
        value = int(text.strip().removesuffix("%"))
    except ValueError:
        value = -1
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to 100")
    return value


def part(text: str) -> int:
    """The same from 1 to 99: a part of the traffic, not all of it; a type for arguments."""
    value = percent(text)
    if not 0 < value < 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to 99")
    return value


def share(text: str) -> tuple[str, int]:
    """``DEPLOYMENT=PERCENT``; a type for arguments."""
    name, value = pair(text)
    return name, percent(value)


def ratio(text: str) -> float:
    """A number from 0 to 1, or a percentage such as ``2%``; a type for arguments."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 1 (or percentage)")
    return value


def words(text: str) -> list[str]:
    """Words separated by commas; a type for arguments."""
    found = [word.strip() for word in text.split(",") if word.strip()]
    if not found:
        raise argparse.ArgumentTypeError("nothing is named; separate names by commas")
    return found
