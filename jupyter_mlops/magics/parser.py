"""One parser for magics, CLI, completion and help.

:data:`.verbs.VERBS` describes each verb once. A verb's parser is built when it is asked for, so that loading the
extension costs nothing. Errors and ``--help`` are exceptions: nothing here prints or exits.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from ..core.errors import ParameterError
from .verbs import VERBS


class HelpRequested(Exception):
    """``--help`` was given; ``text`` is what to show."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser that raises."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            add_help=False, allow_abbrev=False, exit_on_error=False,
            # A fixed width: help looks the same in a notebook, which has no terminal to ask.
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=26, width=100),
            **options,
        )

    def error(self, message: str) -> NoReturn:
        close, known = "", _CHOICES.search(message)
        if known:
            close = nearest(known.group(1), [word.strip(" '") for word in known.group(2).split(",")])
        hint = f"did you mean {close}? " if close else ""
        raise ParameterError(f"{self.prog}: {_clearer(message)}", f"{hint}see: {self.prog} --help")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise ParameterError(message or self.prog)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse, naming the nearest option for an unknown one."""
        try:
            namespace, extra = self.parse_known_args(list(arguments))
        except argparse.ArgumentError as error:
            unknown = self._unknown(arguments)
            if unknown:
                self._refuse(unknown)
            self.error(str(error))
        if extra:
            self._refuse(extra[0])
        return namespace

    def _unknown(self, arguments: Sequence[str]) -> str | None:
        for argument in arguments:
            if argument.startswith("--") and argument.partition("=")[0] not in self._option_string_actions:
                return argument
        return None

    def _refuse(self, argument: str) -> NoReturn:
        option = argument.partition("=")[0]
        if option.startswith("-") and len(option) > 1:
            bare = {o.lstrip("-"): o for o in self._option_string_actions if o.startswith("--")}
            close = bare.get(nearest(option.lstrip("-"), bare))
            hint = f"did you mean {close}? " if close else ""
            raise ParameterError(f"{self.prog}: unknown option {option}", f"{hint}see: {self.prog} --help")
        raise ParameterError(f"{self.prog}: unexpected argument {argument!r}", f"see: {self.prog} --help")


_CHOICES = re.compile(r"invalid choice: '(.*)' \(choose from (.*)\)")


def _clearer(message: str) -> str:
    return re.sub(r"^the following arguments are required: ", "missing: ", message)


def nearest(word: str, known: Sequence[str] | Any) -> str:
    """The most similar of the ``known`` words, or empty."""
    import difflib

    known = list(known)
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not found and len(word) >= 3:
        found = [k for k in known if k.startswith(word)][:1]
    return found[0] if found else ""


class _Help(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, **_: Any) -> None:
        super().__init__(option_strings, dest=argparse.SUPPRESS, nargs=0, help="show this text")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        raise HelpRequested(parser.format_help())


def program(face: str) -> str:
    """How a command begins: ``%mlops`` or ``jupyter mlops``."""
    return "%mlops" if face == "magic" else "jupyter mlops"


def verb_parser(name: str, face: str = "magic") -> ArgumentParser:
    """The parser of one verb for a face, ``magic`` or ``cli``.

    Raises:
        ParameterError: there is no such verb; names the nearest.
    """
    verb = VERBS.get(name)
    if verb is None:
        close = nearest(name, VERBS)
        hint = f"did you mean {close}? " if close else "verbs: " + ", ".join(VERBS) + ". "
        raise ParameterError(f"unknown verb {name!r}", f"{hint}see: {program(face)} help")
    prefix = program(face)
    lines = [f"{prefix} {example}" for example in verb.examples]
    if verb.cell and face == "magic":
        lines += [f"%%mlops {verb.name} -n digits --processes 2", f"%%mlops {verb.name} --returns model,history --wait"]
    parser = ArgumentParser(
        prog=f"{prefix} {name}", description=verb.summary[0].upper() + verb.summary[1:] + ".",
        epilog="examples:\n" + "\n".join(f"  {line}" for line in lines),
    )
    verb.build(parser)
    if face == "magic":
        short = ("-o",) if "-o" not in parser._option_string_actions else ()
        parser.add_argument(*short, "--out", metavar="VAR", help="store the result in this variable")
    else:
        if verb.file:
            parser.add_argument("-o", dest="out", metavar="FILE", help=verb.file)
        parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("-h", "--help", action=_Help)
    if verb.rest:
        usage = parser.format_usage().removeprefix("usage: ").rstrip()
        parser.usage = f"{usage} [-- {verb.rest}]".replace("%", "%%")
    return parser


def parse(arguments: Sequence[str], face: str = "magic") -> argparse.Namespace:
    """Parse a verb with its arguments; the namespace has ``verb`` and, where the verb takes them, ``rest``.

    Raises:
        HelpRequested: ``--help``.
        ParameterError: anything that does not fit.
    """
    words = list(arguments)
    as_json = False
    if face == "cli":
        while words and words[0] in ("--json",):
            as_json = True
            words.pop(0)
    if not words:
        words = ["status"]
    if words[0] in ("-h", "--help"):
        raise HelpRequested(overview(face))
    if words[0] == "--version" and face == "cli":
        from .. import __version__

        raise HelpRequested(__version__)
    name, rest = words[0], []
    if name.startswith("-"):
        raise ParameterError(f"a verb must come first, not {name}", f"see: {program(face)} help")
    parser = verb_parser(name, face)
    words = words[1:]
    if "--" in words and VERBS[name].rest:
        cut = words.index("--")
        words, rest = words[:cut], words[cut + 1:]
    try:
        namespace = parser.parse(words)
    except ParameterError as error:
        if VERBS[name].rest and error.message.partition(": ")[2].startswith(("unknown option", "unexpected argument")):
            error.hint = f"{VERBS[name].rest} go behind --. {error.hint}"
        raise
    namespace.verb = name
    if VERBS[name].rest:
        namespace.rest = rest
    if as_json:
        namespace.json = True
    out = getattr(namespace, "out", None)
    if face == "magic" and out is not None and not out.isidentifier():
        raise ParameterError(f"-o {out!r} is not a variable name")
    return namespace


_WORD = re.compile(r"\s*(\S+)")
#: Options whose value is Python, up to the next blank outside of brackets and quotes.
_PYTHON = {"deploy": re.compile(r"(?<=\s)--sample(?:\s+|=)")}
_TRUTH = re.compile(r"\s*endpoint\s+truth\s+([^\s-]\S*)\s+([^\s-].*)", re.DOTALL)
_TRAILING = re.compile(r"\s(-o|--out|--deployment)(?:\s+|=)([A-Za-z_][\w-]*)\s*$")


def split(line: str, expand: Callable[[str], str] | None = None) -> list[str]:
    """A magic's line as words, by POSIX shell rules; what is Python, such as what ``invoke`` scores, is left untouched.

    Args:
        expand: puts variables into what is no Python.

    Raises:
        ParameterError: a quotation mark is not closed.
    """
    head = _WORD.match(line)
    verb = head.group(1) if head else ""
    if head and verb == "invoke":
        return _split_invoke(line[head.end():])
    truth = _TRUTH.match(line)
    if truth:
        value, out = truth.group(2), _TRAILING.search(truth.group(2))
        words = [out.group(1), out.group(2)] if out else []
        value = value[: out.start()] if out else value
        return ["endpoint", *words, "truth", truth.group(1), "--", _unquoted(value.strip())]
    python: list[str] = []
    option = _PYTHON[verb].search(line) if verb in _PYTHON else None
    if option:
        end = _end_of_expression(line, option.end())
        python = [option.group().strip(" \t=") + "=" + _unquoted(line[option.end(): end])]
        line = f"{line[: option.start()]} {line[end:]}"
    try:
        return [*shlex.split(expand(line) if expand else line, posix=True), *python]
    except ValueError as error:
        raise ParameterError(
            f"the line cannot be split into words: {str(error).lower()}", "close the quotation, or escape it with \\"
        ) from None


def _end_of_expression(line: str, start: int) -> int:
    """Where a Python expression ends: the first blank outside of brackets and quotes."""
    depth, quote, at = 0, "", start
    while at < len(line):
        char = line[at]
        if quote:
            at += char == "\\"
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif char.isspace() and depth <= 0:
            break
        at += 1
    return min(at, len(line))


def _unquoted(text: str) -> str:
    """What stands in quotes as a whole, as in a shell: such an expression may have blanks."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" and text[0] not in text[1:-1]:
        return text[1:-1]
    return text


def _split_invoke(text: str) -> list[str]:
    """Options and the endpoint as words; what is then left is Python, one word behind ``--``."""
    words = ["invoke"]
    while (last := _TRAILING.search(text)) is not None:
        words += [last.group(1), last.group(2)]
        text = text[: last.start()]
    endpoint = ""
    while (word := _WORD.match(text)) is not None:
        option = word.group(1).partition("=")[0]
        known = option in ("-o", "--out", "-d", "--deployment", "--example")
        if endpoint and not known:
            break
        text = text[word.end():]
        if not option.startswith("-"):
            endpoint = word.group(1)
            continue
        words.append(word.group(1))
        value = _WORD.match(text) if known and option != "--example" and "=" not in word.group(1) else None
        if value is not None:
            words.append(value.group(1))
            text = text[value.end():]
    # "--" keeps an expression such as -X from being read as an option.
    return words + ([endpoint] if endpoint and not text.strip() else []) + (
        ["--", endpoint, text.strip()] if endpoint and text.strip() else [])


def overview(face: str = "magic") -> str:
    """All verbs with one line each."""
    prefix = program(face)
    width = max(map(len, VERBS))
    lines = [f"usage: {prefix} VERB [options]", ""]
    lines += [f"  {v.name.ljust(width)}  {v.summary}" for v in VERBS.values()]
    lines += ["", f"{prefix} help VERB  shows a verb's options."]
    if face == "magic":
        lines += [
            "In a line {name} and $name stand for variables; objects are given by the name of their variable.",
            "-o VAR stores the result, a trailing ; hides it.",
        ]
    else:
        lines += ["--json prints JSON."]
    return "\n".join(lines)


def help_for(verb: str | None, face: str = "magic") -> str:
    """Help of a verb, or of all."""
    return verb_parser(verb, face).format_help() if verb else overview(face)
