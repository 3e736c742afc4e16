"""Secrets in Python source: the literals that reach a secret-looking name, found in the syntax tree."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator

from ..core import syntax
from ..runtime import redact

#: Line and cell magics, shell lines and help, which Python cannot read.
_IPYTHON = re.compile(r"^(\s*)(?:%{1,2}\s*[A-Za-z_]|!|\?).*$")
_ASSIGNED = re.compile(r"^(\s*[\w.,\s\[\]]+=)\s*(?:%\s*[A-Za-z_]|!).*$")
#: Functions that are given the name of a secret, or a question, rather than the secret.
_LOOKUPS = frozenset([
    "getenv", "get", "getpass", "input", "get_secret", "environ", "pop", "get_password", "get_credential",
    "read_text", "open", "Path", "exists",
])
#: Functions whose arguments are secrets.
_LOGINS = frozenset([
    "login", "authenticate", "sign_in", "signin", "basic_auth", "HTTPBasicAuth", "HTTPDigestAuth",
])


def mask_python(source: str, found: set[str] | None = None) -> str:
    """Python or a cell without secrets; ``found`` collects the values that were replaced.

    What is no Python is masked by the rules for text alone.
    """
    found = set() if found is None else found
    tree = parse(source)
    if tree is None:
        return redact.mask(source, found)
    return redact.mask(_without(source, tree, found), found, code=True)


def parse(source: str) -> ast.Module | None:
    """The tree of a cell in which lines of IPython's own count as empty statements; None where that is no Python."""
    lines = source.split("\n")
    plain = [_ASSIGNED.sub(r"\1 None", _IPYTHON.sub(r"\1pass", line)) for line in lines]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree: ast.Module = syntax.parse("\n".join(plain))
            return tree
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _without(source: str, tree: ast.Module, found: set[str]) -> str:
    places: dict[tuple[int, int], tuple[int, int]] = {}
    for name, node in _named(tree):
        for literal in _literals(node):
            text = _text(literal)
            if text is None:
                if redact.secret_name(name) < 2:
                    continue
            elif not redact.telling(name, text):
                continue
            else:
                redact.keep(found, text)
            end = (literal.end_lineno or literal.lineno, literal.end_col_offset or 0)
            places[literal.lineno, literal.col_offset] = end
    if not places:
        return source
    lines = [line.encode() for line in source.split("\n")]
    new = f'"{redact.REDACTED}"'.encode()
    for (row, column), (end_row, end_column) in sorted(places.items(), reverse=True):
        lines[row - 1:end_row] = [lines[row - 1][:column] + new + lines[end_row - 1][end_column:]]
    return b"\n".join(lines).decode("utf-8", "replace")


def _text(node: ast.expr) -> str | None:
    """What a literal says; None for a number."""
    if isinstance(node, ast.Constant):
        value = node.value
        return value if isinstance(value, str) else value.decode("utf-8", "replace") if isinstance(value, bytes) else (
            None
        )
    parts = [v.value for v in getattr(node, "values", []) if isinstance(v, ast.Constant) and isinstance(v.value, str)]
    return "".join(parts)


def _name(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Subscript):
        key = _key(node.slice)
        return key or _name(node.value)
    if isinstance(node, ast.Starred):
        return _name(node.value)
    return ""


def _key(node: ast.AST | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _named(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Pairs of a secret-looking name and an expression whose literals reach it."""
    for node in ast.walk(tree):
        for name, value in _pairs(node):
            if value is not None and redact.secret_name(name):
                yield name, value


def _pairs(node: ast.AST) -> Iterator[tuple[str, ast.AST | None]]:
    if isinstance(node, ast.Assign):
        for target in node.targets:
            yield from _unpacked(target, node.value)
    elif isinstance(node, (ast.AnnAssign, ast.AugAssign, ast.NamedExpr)):
        yield _name(node.target), node.value
    elif isinstance(node, ast.keyword):
        yield node.arg or "", node.value
    elif isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            yield _key(key), value
    elif isinstance(node, ast.Compare):
        for other in (node.left, *node.comparators):
            for value in (node.left, *node.comparators):
                yield _name(other), value
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        yield from _defaults(node.args)
        for inner in ast.walk(node):
            if isinstance(inner, ast.Return):
                yield node.name, inner.value
    elif isinstance(node, ast.Lambda):
        yield from _defaults(node.args)
    elif isinstance(node, ast.Call):
        yield from _passed(node)


def _unpacked(target: ast.AST, value: ast.AST) -> Iterator[tuple[str, ast.AST | None]]:
    if not isinstance(target, (ast.Tuple, ast.List)):
        yield _name(target), value
    elif isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(target.elts):
        for one, its in zip(target.elts, value.elts, strict=True):
            yield from _unpacked(one, its)
    else:
        for one in target.elts:
            yield from _unpacked(one, value)


def _defaults(arguments: ast.arguments) -> Iterator[tuple[str, ast.AST | None]]:
    plain = [*arguments.posonlyargs, *arguments.args]
    for argument, default in zip(reversed(plain), reversed(arguments.defaults), strict=False):
        yield argument.arg, default
    for argument, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield argument.arg, value


def _passed(node: ast.Call) -> Iterator[tuple[str, ast.AST | None]]:
    """``setenv("API_KEY", "…")``, ``getenv("API_KEY", "default")``, ``set_token("…")``, ``login("…")``."""
    function = _name(node.func)
    for i, argument in enumerate(node.args):
        name = _key(argument)
        if redact.secret_name(name):
            for later in node.args[i + 1:]:
                yield name, later
    if function in _LOOKUPS:
        return
    name = "password" if function in _LOGINS else function
    for argument in node.args:
        if not redact.secret_name(_key(argument)) or len(node.args) == 1:
            yield name, argument
    if function in _LOGINS:
        for keyword in node.keywords:
            yield name, keyword.value


def _literals(node: ast.AST) -> Iterator[ast.expr]:
    """The literals of an expression, without keys, and without what only names a secret elsewhere."""
    if isinstance(node, ast.JoinedStr):
        if _text(node):
            yield node
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, (str, bytes)) or (
            isinstance(node.value, (int, float)) and not isinstance(node.value, bool) and abs(node.value) >= 1000
        ):
            yield node
    elif isinstance(node, ast.Subscript):
        yield from _literals(node.value)
    elif isinstance(node, ast.Call):
        yield from _literals(node.func)
        skipped = 1 if _name(node.func) in _LOOKUPS else 0
        for argument in node.args[skipped:]:
            yield from _literals(argument)
        for keyword in node.keywords:
            if not (skipped and keyword.arg in ("prompt", "key", "name")):
                yield from _literals(keyword.value)
    elif isinstance(node, ast.Dict):
        for value in node.values:
            yield from _literals(value)
    elif isinstance(node, (ast.Lambda, ast.Compare)):
        return
    else:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.expr, ast.Starred)):
                yield from _literals(child)
