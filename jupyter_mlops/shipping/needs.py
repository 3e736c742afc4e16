"""What a cell needs from outside: names, dotted names, modules."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from .names import FreeName, Walk


@dataclass(frozen=True)
class Needs:
    """What a cell needs from outside.

    Attributes:
        free: names that it reads and never binds, in order of lines.
        doubtful: names that it reads and may have bound by then, or that are built in.
        binds: names that it may bind.
        chains: dotted names that it reads, such as ``xml.dom.minidom``, by their first part.
        imports: top-level modules that it imports itself.
        blind: it can bind names that nobody sees.
    """

    free: list[FreeName]
    doubtful: frozenset[str]
    binds: frozenset[str]
    chains: dict[str, frozenset[str]]
    imports: frozenset[str]
    blind: bool


def analyse(tree: ast.Module) -> Needs:
    """All that a cell needs from outside."""
    walk = Walk(tree)
    walk.module()
    free = walk.result()
    imports: set[str] = set()
    chains: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports.update(a.name.partition(".")[0] for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imports.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Attribute):
            dotted = _dotted(node)
            if dotted:
                chains.setdefault(dotted.partition(".")[0], set()).add(dotted)
    return Needs(
        free, frozenset(walk.doubtful - {f.name for f in free}), frozenset(walk.ever),
        {name: frozenset(found) for name, found in chains.items()}, frozenset(imports), walk.blind,
    )


def _dotted(node: ast.expr) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""
