"""Names that code reads and never binds, found without running it.

The walk follows execution order at the top level (``df = df.dropna()`` with the notebook's ``df`` is found) and is
lenient where the order cannot be known: a name bound in any branch, or anywhere in an enclosing loop, counts as bound;
bodies of functions are judged when everything is bound. Code that can bind names unseen (``from m import *``,
``exec``, ``globals()``) ends the judging.

Beside the names that are surely missing there are doubtful ones: bound in one branch only, or built in and perhaps
replaced in the notebook. Those are worth sending where the notebook has them, and no reason to refuse where it has not.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .bindings import Bindings

#: IPython puts some of its own into builtins while a cell runs; a job has them not.
_BUILTINS = (frozenset(dir(builtins)) - {"display", "get_ipython", "__IPYTHON__"}) | {"exit", "quit"}
_MODULE_NAMES = frozenset({
    "__name__", "__file__", "__doc__", "__builtins__", "__spec__", "__loader__", "__package__", "__annotations__",
    "__cached__", "__debug__", "__conditional_annotations__",
})


@dataclass(frozen=True)
class FreeName:
    """A name that the cell reads and never binds, with its first line in the cell's body (from 1)."""

    name: str
    line: int


def free_names(tree: ast.Module) -> list[FreeName]:
    """Names that the module reads and that nothing in it can have bound by then, each once, in order of lines."""
    walk = Walk(tree)
    walk.module()
    return walk.result()


@dataclass
class _Scope:
    """A function, class or comprehension: ``names`` are bound in it, ``outer`` ones are the module's by ``global``."""

    kind: str
    names: set[str]
    outer: set[str] = field(default_factory=set)


class Walk(ast.NodeVisitor):
    """Walks in execution order; ``bound`` holds the module names that may be bound by now, ``sure`` those that are."""

    def __init__(self, tree: ast.Module) -> None:
        self._tree = tree
        self.bound: set[str] = set()
        self.sure: set[str] = set()
        #: Names that were sure between two statements of the module.
        self.settled: set[str] = set()
        self.doubtful: set[str] = set()
        #: What functions and classes of the module read when they are called, until they are first mentioned.
        self.held: dict[str, set[str]] = {}
        self._holder = self._class = ""
        #: The same for what has no name, such as lambdas: within one statement.
        self._loose: set[str] = set()
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
        for statement in self._tree.body:
            self.visit(statement)
            self.doubtful |= self._loose - self.sure
            self._loose.clear()
            self.settled |= self.sure

    def result(self) -> list[FreeName]:
        for name, line in self.later:
            if name not in self.ever and not self.blind:
                self._report(name, line)
            elif name not in self.settled:
                self.doubtful.add(name)
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
        self.sure.add(name)
        self.ever.add(name)

    def _read(self, name: str, line: int) -> None:
        if name in _MODULE_NAMES:
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
        if name in _BUILTINS or self._tolerant:
            if name not in self.sure:
                self.doubtful.add(name)
        elif in_function or self._deferred:
            self.later.append((name, line))
            (self.held.setdefault(self._holder, set()) if self._holder else self._loose).add(name)
        elif name not in self.bound and not self.blind:
            self._report(name, line)
        elif name not in self.sure:
            self.doubtful.add(name)

    def _mention(self, name: str) -> None:
        """A function that is mentioned may be called: what it reads must be there by now."""
        for read in self.held.pop(name, ()):
            if read not in self.sure:
                self.doubtful.add(read)
            self._mention(read)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            if not self._holder:
                self._mention(node.id)
            self._read(node.id, node.lineno)
        elif isinstance(node.ctx, ast.Store):
            self._bind(node.id)
        elif not self.scopes:
            self._read(node.id, node.lineno)
            self.bound.discard(node.id)
            self.sure.discard(node.id)
        else:
            self._read(node.id, node.lineno)

    # -- statements ----------------------------------------------------------------------------------------------

    def _block(self, nodes: Iterable[ast.AST]) -> None:
        for node in nodes:
            self.visit(node)

    def _branches(self, *blocks: list[Any]) -> None:
        """Each block begins with what is bound now; afterwards all that any of them bound may be bound."""
        before, sure = set(self.bound), set(self.sure)
        after = set(before)
        ends = []
        for block in blocks:
            self.bound, self.sure = set(before), set(sure)
            self._block(block)
            after |= self.bound
            if not _leaves(block):
                ends.append(self.sure)
        self.bound, self.sure = after, _common(ends, sure)

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
        inside = Bindings().block(node.body)
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
        before, sure = set(self.bound), set(self.sure)
        self._tolerant += tolerant
        self._block(node.body)
        self._tolerant -= tolerant
        done = set(self.bound)
        after = set(done)
        self._block(node.orelse)
        after |= self.bound
        ends = [] if _leaves(node.body) or _leaves(node.orelse) else [self.sure]
        for handler in node.handlers:
            # The body may have ended anywhere: all, or none, of its names are bound.
            self.bound, self.sure = before | done, set(sure)
            if handler.type is not None:
                self.visit(handler.type)
            if handler.name:
                self._bind(handler.name)
            self._block(handler.body)
            if handler.name and not self.scopes:
                self.bound.discard(handler.name)
                self.sure.discard(handler.name)
                if handler.name in before:
                    self.bound.add(handler.name)
            after |= self.bound
            if not _leaves(handler.body):
                ends.append(self.sure)
        self.bound, self.sure = after, _common(ends, sure)
        self._block(node.finalbody)

    visit_Try = visit_TryStar = _try

    def visit_Match(self, node: ast.Match) -> None:
        self.visit(node.subject)
        before, sure = set(self.bound), set(self.sure)
        after = set(before)
        whole = any(_irrefutable(case) for case in node.cases)
        ends = [] if whole else [set(sure)]
        for case in node.cases:
            self.bound, self.sure = set(before), set(sure)
            self.visit(case.pattern)
            if case.guard is not None:
                self.visit(case.guard)
            self._block(case.body)
            after |= self.bound
            if not _leaves(case.body):
                ends.append(self.sure)
        self.bound, self.sure = after, _common(ends, sure)

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
        outermost = not self._holder
        self._holder = self._holder or self._class or node.name
        parameters = _type_parameters(node)
        if parameters:
            self.scopes.append(_Scope("function", parameters))
        for argument in _arguments(node.args):
            self._annotation(argument.annotation)
        self._annotation(node.returns)
        self._body(node, node.body)
        if parameters:
            self.scopes.pop()
        if outermost:
            self._holder = ""
        self._bind(node.name)

    visit_FunctionDef = visit_AsyncFunctionDef = _function

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._block(node.args.defaults)
        self._block(d for d in node.args.kw_defaults if d is not None)
        self._body(node, [node.body])

    def _body(self, node: Any, body: list[Any]) -> None:
        inside = Bindings().block(body)
        names = {a.arg for a in _arguments(node.args)} | (inside.names - inside.globals - inside.nonlocals)
        # Its statements run when it is called: they neither bind nor delete module names now.
        before, sure, tolerant = set(self.bound), set(self.sure), self._tolerant
        self._tolerant = 0
        self.scopes.append(_Scope("function", names, inside.globals))
        self._block(body)
        self.scopes.pop()
        self.bound, self.sure, self._tolerant = before, sure, tolerant

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._block(node.decorator_list)
        parameters = _type_parameters(node)
        if parameters:
            self.scopes.append(_Scope("function", parameters))
        self._block(node.bases)
        self._block(node.keywords)
        inside = Bindings().block(node.body)
        self.scopes.append(_Scope("class", set(), inside.globals))
        outermost = not self._class
        self._class = self._class or node.name
        self._block(node.body)
        if outermost:
            self._class = ""
        self.scopes.pop()
        if parameters:
            self.scopes.pop()
        self._bind(node.name)

    def _comprehension(self, node: Any) -> None:
        first, *rest = node.generators
        self.visit(first.iter)
        targets = Bindings().block(g.target for g in node.generators).names
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


def _leaves(block: list[Any]) -> bool:
    """Whether what follows a block is never reached from it."""
    return bool(block) and isinstance(block[-1], (ast.Raise, ast.Return, ast.Continue, ast.Break))


def _common(ends: list[set[str]], otherwise: set[str]) -> set[str]:
    return set.intersection(*ends) if ends else otherwise


def _irrefutable(case: ast.match_case) -> bool:
    return case.guard is None and isinstance(case.pattern, ast.MatchAs) and case.pattern.pattern is None


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
