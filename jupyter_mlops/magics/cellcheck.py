"""Checks a cell before it runs as a job: its syntax, IPython syntax, and names that only the notebook has.

A job runs in a fresh process, so a name that the cell reads but never binds would fail there, perhaps after minutes.
The walk follows execution order at the top level (``df = df.dropna()`` with the notebook's ``df`` is found) and is
lenient where the order cannot be known: a name bound in any branch, or anywhere in an enclosing loop, counts as bound;
bodies of functions are judged when everything is bound. Code that can bind names unseen (``from m import *``,
``exec``, ``globals()``) ends the judging.
"""

from __future__ import annotations

import ast
import builtins
import re
import types
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import ParameterError

#: IPython puts some of its own into builtins while a cell runs; a job has them not.
_BUILTINS = (frozenset(dir(builtins)) - {"display", "get_ipython", "__IPYTHON__"}) | {"exit", "quit"}
_MODULE_NAMES = frozenset({
    "__name__", "__file__", "__doc__", "__builtins__", "__spec__", "__loader__", "__package__", "__annotations__",
    "__cached__", "__debug__", "__conditional_annotations__",
})
#: ``%magic``, ``!command``, ``?help``, ``help?`` and ``x = %magic`` / ``x = !command``.
_IPYTHON_LINE = re.compile(
    r"^\s*(?:%{1,2}\s*[A-Za-z_]|!{1,2}(?!=)\s*\S|\?{1,2}\s*[\w%*])"
    r"|^\s*[\w.,\s\[\]]+=\s*(?:%\s*[A-Za-z_]|!(?!=))"
    r"|^\s*[\w.%*]+\?{1,2}\s*$"
)


class CellError(ParameterError):
    """The cell cannot run as a job."""

    code = "bad_cell"


@dataclass(frozen=True)
class FreeName:
    """A name that the cell reads and never binds, with its first line in the cell's body (from 1)."""

    name: str
    line: int


def check_cell(source: str, names: Mapping[str, Any], first_line: int = 1) -> None:
    """Refuse a cell that cannot run outside its notebook.

    Args:
        source: body of the cell.
        names: the notebook's variables.
        first_line: number of the body's first line as the notebook counts it (2 behind a ``%%`` line).

    Raises:
        CellError: says what is wrong and in which line.
    """
    tree = parse_cell(source, first_line)
    missing = free_names(tree)
    if missing:
        raise _refusal(missing, names, first_line)


def parse_cell(source: str, first_line: int = 1) -> ast.Module:
    """The cell's tree.

    Raises:
        CellError: a syntax error or IPython syntax, with its line.
    """
    if not source.strip():
        raise CellError("the cell is empty", "write the code of the job below the %%mlops line")
    if "\0" in source:
        raise CellError("the cell has a NUL character", "remove it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
            compile(source, "<cell>", "exec", dont_inherit=True)
        return tree
    except SyntaxError as error:
        raise _syntax_error(error, source, first_line) from None
    except (RecursionError, MemoryError, ValueError) as error:
        raise CellError(f"the cell cannot be compiled: {error}", "split it into smaller parts") from None


def _syntax_error(error: SyntaxError, source: str, first_line: int) -> CellError:
    lines = source.splitlines()
    number = error.lineno or 1
    text = lines[number - 1] if 0 < number <= len(lines) else ""
    if _IPYTHON_LINE.search(text):
        return CellError(
            f"line {number + first_line - 1} of the cell is IPython syntax: {text.strip()[:80]}",
            "a job runs as plain Python: move it to another cell, or use subprocess, os or importlib",
        )
    message = error.msg or "invalid syntax"
    if "'await'" in message or "'async" in message:
        return CellError(
            f"line {number + first_line - 1} of the cell: {message}", "a job runs as a script: use asyncio.run(…)"
        )
    return CellError(f"syntax error in line {number + first_line - 1} of the cell: {message}", text.strip()[:120])


def _refusal(missing: list[FreeName], names: Mapping[str, Any], first_line: int) -> CellError:
    shell_only = {"display", "get_ipython", "In", "Out", "_", "__", "___", "_i", "_ii", "_iii", "_ih", "_oh", "_dh"}
    there = [m for m in missing if m.name in names or m.name in shell_only]
    absent = [m for m in missing if m not in there]
    if there:
        listed = _listed(there)
        one = len(there) == 1
        message = f"{listed} exist{'s' if one else ''} only in the notebook: load {'it' if one else 'them'} in the cell"
        if absent:
            message += f"; {_listed(absent)} {'is' if len(absent) == 1 else 'are'} not defined"
        detail = [{"name": m.name, "line": m.line + first_line - 1} for m in missing]
        return CellError(f"{message} (line {there[0].line + first_line - 1})", _advice(there, names), detail)
    detail = [{"name": m.name, "line": m.line + first_line - 1} for m in missing]
    return CellError(
        f"{_listed(absent)} {'is' if len(absent) == 1 else 'are'} not defined (line {absent[0].line + first_line - 1})",
        "import or define it in the cell", detail,
    )


def _listed(missing: list[FreeName]) -> str:
    shown = [f"`{m.name}`" for m in missing[:5]]
    if len(missing) > 5:
        shown.append(f"{len(missing) - 5} more")
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " and " + shown[-1]


def _advice(there: list[FreeName], names: Mapping[str, Any]) -> str:
    """What to add to the cell, from what the names stand for in the notebook."""
    lines = []
    for item in there[:4]:
        value = names.get(item.name)
        if item.name == "display":
            lines.append("from IPython.display import display")
        elif isinstance(value, types.ModuleType):
            module = value.__name__
            lines.append(f"import {module}" if module == item.name else f"import {module} as {item.name}")
        elif isinstance(value, type) or callable(value):
            module, name = getattr(value, "__module__", ""), getattr(value, "__name__", "")
            if module and module != "__main__" and name:
                as_name = "" if name == item.name else f" as {item.name}"
                lines.append(f"from {module} import {name}{as_name}")
    if lines:
        return "add to the cell: " + "; ".join(lines)
    return "the job is a fresh process: read the data, or compute it, in the cell"


# -- names ---------------------------------------------------------------------------------------------------------


def free_names(tree: ast.Module) -> list[FreeName]:
    """Names that the module reads and that nothing in it can have bound by then, each once, in order of lines."""
    walk = _Walk(tree)
    walk.module()
    return walk.result()


@dataclass
class _Scope:
    """A function, class or comprehension: ``names`` are bound in it, ``outer`` ones are the module's by ``global``."""

    kind: str
    names: set[str]
    outer: set[str] = field(default_factory=set)


class _Bindings(ast.NodeVisitor):
    """Collects the names that a block of statements binds in its own scope, without entering nested scopes."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.globals: set[str] = set()
        self.nonlocals: set[str] = set()

    def block(self, nodes: Iterable[ast.AST]) -> _Bindings:
        for node in nodes:
            self.visit(node)
        return self

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, (ast.Store, ast.Del)):
            self.names.add(node.id)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.names.add(node.name)
        for part in (*node.decorator_list, *node.args.defaults, *node.args.kw_defaults):
            if part is not None:
                self.visit(part)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.names.add(node.name)
        for part in (*node.decorator_list, *node.bases, *node.keywords):
            self.visit(part)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        for part in (*node.args.defaults, *node.args.kw_defaults):
            if part is not None:
                self.visit(part)

    def _comprehension(self, node: ast.AST) -> None:
        # Only := leaves a comprehension; its own targets stay inside.
        for inner in ast.walk(node):
            if isinstance(inner, ast.NamedExpr) and isinstance(inner.target, ast.Name):
                self.names.add(inner.target.id)

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension

    def visit_Import(self, node: ast.Import) -> None:
        self.names.update((a.asname or a.name.partition(".")[0]) for a in node.names)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self.names.update(a.asname or a.name for a in node.names if a.name != "*")

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.name:
            self.names.add(node.name)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if isinstance(node.target, ast.Name):
            self.names.add(node.target.id)
        self.generic_visit(node)

    def visit_Global(self, node: ast.Global) -> None:
        self.globals.update(node.names)

    def visit_Nonlocal(self, node: ast.Nonlocal) -> None:
        self.nonlocals.update(node.names)

    def visit_MatchAs(self, node: ast.MatchAs) -> None:
        if node.name:
            self.names.add(node.name)
        self.generic_visit(node)

    def visit_MatchStar(self, node: ast.MatchStar) -> None:
        if node.name:
            self.names.add(node.name)

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        if node.rest:
            self.names.add(node.rest)
        self.generic_visit(node)

    def visit_TypeAlias(self, node: Any) -> None:
        self.visit(node.name)


class _Walk(ast.NodeVisitor):
    """Walks in execution order; ``bound`` holds the module names that may be bound by now."""

    def __init__(self, tree: ast.Module) -> None:
        self._tree = tree
        self.bound: set[str] = set()
        self.scopes: list[_Scope] = []
        self.found: dict[str, int] = {}
        #: Reads inside functions: judged at the end, when every module name is bound.
        self.later: list[tuple[str, int]] = []
        self.ever: set[str] = set()
        self.blind = False
        self._deferred = 0
        self._tolerant = 0
        self._lazy_annotations = any(
            isinstance(n, ast.ImportFrom) and n.module == "__future__" and any(a.name == "annotations" for a in n.names)
            for n in tree.body
        )

    def module(self) -> None:
        # A function may bind a module name by `global`, and nobody knows when it is called.
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Global):
                self.bound.update(node.names)
        self.ever |= self.bound
        self._block(self._tree.body)

    def result(self) -> list[FreeName]:
        if not self.blind:
            for name, line in self.later:
                if name not in self.ever:
                    self._report(name, line)
        return sorted((FreeName(n, line) for n, line in self.found.items()), key=lambda f: (f.line, f.name))

    def _report(self, name: str, line: int) -> None:
        self.found[name] = min(line, self.found.get(name, line))

    # -- binding and reading -------------------------------------------------------------------------------------

    def _bind(self, name: str) -> None:
        for scope in reversed(self.scopes):
            if scope.kind in ("comprehension", "generator"):
                continue
            if name in scope.outer:
                break
            scope.names.add(name)
            return
        self.bound.add(name)
        self.ever.add(name)

    def _read(self, name: str, line: int) -> None:
        if name in _BUILTINS or name in _MODULE_NAMES or self._tolerant:
            return
        in_function = False
        for depth, scope in enumerate(reversed(self.scopes)):
            if scope.kind == "class":
                if all(s.kind in ("comprehension", "generator") for s in self.scopes[len(self.scopes) - depth:]):
                    # A class body sees its own names; a comprehension in it sees them in its first iterable only,
                    # which is visited outside; being lenient here costs nothing.
                    if name in scope.names or name in ("__module__", "__qualname__"):
                        return
                elif name == "__class__":
                    return
                continue
            if name in scope.outer:
                break
            if name in scope.names:
                return
            # A generator expression, too, runs later than where it stands.
            in_function = in_function or scope.kind in ("function", "generator")
        if in_function or self._deferred:
            self.later.append((name, line))
        elif name not in self.bound and not self.blind:
            self._report(name, line)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self._read(node.id, node.lineno)
        elif isinstance(node.ctx, ast.Store):
            self._bind(node.id)
        elif not self.scopes:
            self._read(node.id, node.lineno)
            self.bound.discard(node.id)
        else:
            self._read(node.id, node.lineno)

    # -- statements ----------------------------------------------------------------------------------------------

    def _block(self, nodes: Iterable[ast.AST]) -> None:
        for node in nodes:
            self.visit(node)

    def _branches(self, *blocks: Iterable[ast.AST]) -> None:
        """Each block begins with what is bound now; afterwards all that any of them bound may be bound."""
        before = set(self.bound)
        after = set(before)
        for block in blocks:
            self.bound = set(before)
            self._block(block)
            after |= self.bound
        self.bound = after

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        self._block(node.targets)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self._read(node.target.id, node.target.lineno)
        self.visit(node.value)
        self.visit(node.target)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if not any(s.kind == "function" for s in self.scopes):
            self._annotation(node.annotation)
        if node.value is not None:
            self.visit(node.value)
            self.visit(node.target)
        elif not isinstance(node.target, ast.Name):
            self.visit(node.target)

    def _annotation(self, node: ast.AST | None) -> None:
        # Evaluated at once, later or never, depending on the Python: only judged when everything is bound.
        if node is not None and not self._lazy_annotations:
            self._deferred += 1
            self.visit(node)
            self._deferred -= 1

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.visit(node.value)
        self._bind(node.target.id)

    def visit_If(self, node: ast.If) -> None:
        self.visit(node.test)
        self._branches(node.body, node.orelse)

    def _loop(self, node: ast.For | ast.AsyncFor | ast.While) -> None:
        # What an earlier turn bound is there in the next one.
        inside = _Bindings().block(node.body)
        if isinstance(node, (ast.For, ast.AsyncFor)):
            self.visit(node.iter)
            before = set(self.bound)
            self.visit(node.target)
        else:
            before = set(self.bound)
            self._may_bind(inside.names)
            self.visit(node.test)
        self._may_bind(inside.names)
        self._block(node.body)
        self._block(node.orelse)
        self.bound |= before

    visit_For = visit_AsyncFor = visit_While = _loop

    def _may_bind(self, names: set[str]) -> None:
        if not self.scopes:
            self.bound |= names
            self.ever |= names
        else:
            self.scopes[-1].names.update(names - self.scopes[-1].outer)

    def _with(self, node: ast.With | ast.AsyncWith) -> None:
        tolerant = any(_suppresses(item.context_expr) for item in node.items)
        for item in node.items:
            self.visit(item.context_expr)
            if item.optional_vars is not None:
                self.visit(item.optional_vars)
        self._tolerant += tolerant
        self._block(node.body)
        self._tolerant -= tolerant

    visit_With = visit_AsyncWith = _with

    def _try(self, node: Any) -> None:
        tolerant = any(_catches_name_error(h.type) for h in node.handlers)
        before = set(self.bound)
        self._tolerant += tolerant
        self._block(node.body)
        self._tolerant -= tolerant
        done = set(self.bound)
        after = set(done)
        self._block(node.orelse)
        after |= self.bound
        for handler in node.handlers:
            # The body may have ended anywhere: all, or none, of its names are bound.
            self.bound = before | done
            if handler.type is not None:
                self.visit(handler.type)
            if handler.name:
                self._bind(handler.name)
            self._block(handler.body)
            if handler.name and not self.scopes:
                self.bound.discard(handler.name)
                if handler.name in before:
                    self.bound.add(handler.name)
            after |= self.bound
        self.bound = after
        self._block(node.finalbody)

    visit_Try = visit_TryStar = _try

    def visit_Match(self, node: ast.Match) -> None:
        self.visit(node.subject)
        before = set(self.bound)
        after = set(before)
        for case in node.cases:
            self.bound = set(before)
            self.visit(case.pattern)
            if case.guard is not None:
                self.visit(case.guard)
            self._block(case.body)
            after |= self.bound
        self.bound = after

    def visit_MatchAs(self, node: ast.MatchAs) -> None:
        self.generic_visit(node)
        if node.name:
            self._bind(node.name)

    def visit_MatchStar(self, node: ast.MatchStar) -> None:
        if node.name:
            self._bind(node.name)

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        self.generic_visit(node)
        if node.rest:
            self._bind(node.rest)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._bind(alias.asname or alias.name.partition(".")[0])

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            if alias.name == "*":
                self.blind = True
            else:
                self._bind(alias.asname or alias.name)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name):
            plain = not node.args and not node.keywords
            if node.func.id in ("exec", "globals") or (node.func.id in ("locals", "vars", "dir") and plain):
                self.blind = True
        self.generic_visit(node)

    # -- scopes --------------------------------------------------------------------------------------------------

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._block(node.decorator_list)
        self._block(node.args.defaults)
        self._block(d for d in node.args.kw_defaults if d is not None)
        parameters = _type_parameters(node)
        if parameters:
            self.scopes.append(_Scope("function", parameters))
        for argument in _arguments(node.args):
            self._annotation(argument.annotation)
        self._annotation(node.returns)
        self._body(node, node.body)
        if parameters:
            self.scopes.pop()
        self._bind(node.name)

    visit_FunctionDef = visit_AsyncFunctionDef = _function

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._block(node.args.defaults)
        self._block(d for d in node.args.kw_defaults if d is not None)
        self._body(node, [node.body])

    def _body(self, node: Any, body: list[Any]) -> None:
        inside = _Bindings().block(body)
        names = {a.arg for a in _arguments(node.args)} | (inside.names - inside.globals - inside.nonlocals)
        # Its statements run when it is called: they neither bind nor delete module names now.
        before, tolerant = set(self.bound), self._tolerant
        self._tolerant = 0
        self.scopes.append(_Scope("function", names, inside.globals))
        self._block(body)
        self.scopes.pop()
        self.bound, self._tolerant = before, tolerant

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._block(node.decorator_list)
        parameters = _type_parameters(node)
        if parameters:
            self.scopes.append(_Scope("function", parameters))
        self._block(node.bases)
        self._block(node.keywords)
        inside = _Bindings().block(node.body)
        self.scopes.append(_Scope("class", set(), inside.globals))
        self._block(node.body)
        self.scopes.pop()
        if parameters:
            self.scopes.pop()
        self._bind(node.name)

    def _comprehension(self, node: Any) -> None:
        first, *rest = node.generators
        self.visit(first.iter)
        targets = _Bindings().block(g.target for g in node.generators).names
        kind = "generator" if isinstance(node, ast.GeneratorExp) else "comprehension"
        self.scopes.append(_Scope(kind, targets))
        self._block(first.ifs)
        for generator in rest:
            self.visit(generator.iter)
            self._block(generator.ifs)
        if isinstance(node, ast.DictComp):
            self.visit(node.key)
            self.visit(node.value)
        else:
            self.visit(node.elt)
        self.scopes.pop()

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension

    def visit_TypeAlias(self, node: Any) -> None:
        self.scopes.append(_Scope("function", _type_parameters(node)))
        self.visit(node.value)
        self.scopes.pop()
        self._bind(node.name.id)


def _arguments(arguments: ast.arguments) -> list[ast.arg]:
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return every + [a for a in (arguments.vararg, arguments.kwarg) if a is not None]


def _type_parameters(node: Any) -> set[str]:
    return {p.name for p in getattr(node, "type_params", [])}


def _catches_name_error(kind: ast.AST | None) -> bool:
    """Whether a handler says that it expects a missing name."""
    if isinstance(kind, ast.Tuple):
        return any(_catches_name_error(k) for k in kind.elts)
    return isinstance(kind, ast.Name) and kind.id in ("NameError", "UnboundLocalError")


def _suppresses(expression: ast.AST) -> bool:
    """Whether a context manager is ``suppress(NameError)``."""
    if not isinstance(expression, ast.Call):
        return False
    name = expression.func.attr if isinstance(expression.func, ast.Attribute) else getattr(expression.func, "id", "")
    return name == "suppress" and any(_catches_name_error(a) for a in expression.args)
