"""What goes with a cell: its names looked up in the notebook, followed, packed and listed, before anything starts."""

from __future__ import annotations

import builtins
import difflib
import hashlib
import os
import pickle
import re
import shutil
import sys
import tempfile
import types
import weakref
from collections import ChainMap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from ..core.errors import ParameterError, Refused
from ..runtime import pickling
from ..runtime.variables import SCHEMA
from . import versions
from .cell import SHELL_ONLY, parse_cell, refusal
from .modules import Sources, importable
from .names import FreeName
from .needs import Needs, analyse
from .pack import Packer, Unpackable, needs_of

#: Bytes that may go with one job unless somebody sets another limit.
LIMIT = 256 * 1024 * 1024
#: Bytes that a limit can be raised to.
MOST = 2 << 30

_SECRET = re.compile(
    r"(?:^|_)(?:tokens?|passw(?:or)?d|passphrase|secrets?|api_?key|access_?key|private_?key|credentials?|auth)(?:_|$)",
    re.IGNORECASE,
)


@dataclass
class Shipment:
    """What a cell needs, packed.

    Attributes:
        variables: the manifest: one dictionary per name, as :class:`~..core.resources.job.ShippedVariable`.
        path: the payload's file, empty when nothing is sent; it is gone after :meth:`close`.
        digest: SHA-256 of it, in hexadecimal.
        size: its bytes.
        remarks: one line each on what was left out, and on versions that differ.
        packed: what packed it, as :class:`~..core.resources.job.Packed`; None when nothing is sent.
    """

    variables: list[dict[str, Any]] = field(default_factory=list)
    path: str = ""
    digest: str = ""
    size: int = 0
    remarks: list[str] = field(default_factory=list)
    packed: dict[str, Any] | None = None

    def close(self) -> None:
        """Remove the payload's file."""
        if self.path:
            _remove(self.path)
            self.path = ""


def looks_secret(name: str) -> bool:
    """Whether a variable's name says that its value is nobody's business."""
    return bool(_SECRET.search(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)))


def prepare(
    source: str,
    space: Mapping[str, Any],
    *,
    first_line: int = 2,
    use: Iterable[str] = (),
    returns: Iterable[str] = (),
    ship: bool = True,
    limit: int = LIMIT,
    interpreter: str = "",
) -> Shipment:
    """Find what a cell needs of its notebook and pack it.

    Args:
        source: body of the cell.
        space: the notebook's namespace itself, not a copy of it.
        first_line: number of the body's first line as the notebook counts it.
        use: further names to send.
        returns: names that the job shall bring back; checked only.
        ship: whether anything may be sent; else the cell must stand alone.
        limit: most bytes of the payload.
        interpreter: absolute path of the job's Python; empty for this one.

    Raises:
        CellError: the cell is no plain Python, or reads a name that is defined nowhere.
        ParameterError: ``use`` or ``returns`` name what is not there.
        Refused: something cannot travel, is too large, or does not fit the job's Python.
    """
    tree = parse_cell(source, first_line)
    needs = analyse(tree)
    use = list(dict.fromkeys(use))
    if not ship:
        if use:
            raise ParameterError("--use sends variables and --no-ship sends none", "leave one of them out")
        if needs.free:
            raise refusal(needs.free, space, first_line)
        _check_returns(returns, needs, set(), space)
        return Shipment()
    for name in use:
        if name not in space:
            raise ParameterError(f"--use {name}: there is no such variable", _nearest(name, space))
    chosen = _Chosen(space, needs, use, first_line)
    _check_returns(returns, needs, set(chosen.why), space)
    return _Loading(chosen, space, limit, interpreter).load()


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, [n for n in names if not n.startswith("_")], n=1)
    return f"did you mean {close[0]}?" if close else ""


def _check_returns(returns: Iterable[str], needs: Needs, sent: set[str], space: Mapping[str, Any]) -> None:
    for name in returns:
        if not name.isidentifier():
            raise ParameterError(f"--returns {name!r} is no variable name", "separate names by commas")
        if not needs.blind and name not in needs.binds and name not in sent:
            raise ParameterError(
                f"--returns {name}: the cell neither sets nor reads such a variable", _nearest(name, needs.binds)
            )


#: ``display`` works in a job as well, once it is imported.
_REFUSED = SHELL_ONLY - {"display"}


def _with_display(space: Mapping[str, Any]) -> Mapping[str, Any]:
    """The namespace with ``display``, which IPython keeps among the built-ins."""
    if "display" in space or "IPython" not in sys.modules:
        return space
    from IPython.display import display

    return ChainMap(space, {"display": display})  # type: ignore[arg-type]  # nothing is written to it


def _of_shell(name: str, value: Any) -> bool:
    """Whether IPython put it into the namespace, or it is the built-in that every Python has."""
    if name == "display":
        return False
    if getattr(builtins, name, None) is value:
        return True
    # IPython's own `open` says that it is of `io`: where it was written tells more.
    written = getattr(value, "__globals__", None)
    module = written.get("__name__") if isinstance(written, dict) else type(value).__module__
    return hasattr(builtins, name) and isinstance(module, str) and module.startswith(("IPython.", "ipykernel."))


class _Chosen:
    """The names to send, each with why: followed through functions and classes of the notebook."""

    def __init__(self, space: Mapping[str, Any], needs: Needs, use: list[str], first_line: int) -> None:
        self.space = _with_display(space)
        self.needs = needs
        #: Name → what is said about it in the manifest.
        self.why: dict[str, str] = {}
        #: Names that are sent if they can be, and left out otherwise.
        self.doubtful: set[str] = set()
        missing: list[FreeName] = []
        for item in needs.free:
            if item.name not in self.space or item.name in _REFUSED:
                missing.append(item)
            else:
                self.why[item.name] = ""
        if missing:
            raise refusal(missing, {m.name: None for m in missing if m.name in SHELL_ONLY}, first_line)
        for name in use:
            self.why.setdefault(name, "--use")
        for name in sorted(needs.doubtful):
            if name in self.space and name not in self.why and name not in _REFUSED and not _of_shell(
                name, self.space[name]
            ):
                self.why[name] = ""
                self.doubtful.add(name)
        for name in list(self.why):
            self.follow(name)

    def follow(self, name: str) -> None:
        """Add what a name's value needs of the notebook by itself."""
        todo = [name]
        while todo:
            by = todo.pop()
            for needed in sorted(needs_of(self.space[by])):
                if self.add(needed, by):
                    todo.append(needed)

    def add(self, name: str, by: str) -> bool:
        """Add one more name unless it is there or nobody's; returns whether it was added."""
        if name in self.why:
            if name in self.doubtful and by not in self.doubtful:
                self.doubtful.discard(name)
            return False
        if name not in self.space or name in _REFUSED or _of_shell(name, self.space[name]):
            return False
        self.why[name] = f"needed by {by}"
        if by in self.doubtful:
            self.doubtful.add(name)
        return True


class _Loading:
    """One shipment in the making."""

    def __init__(self, chosen: _Chosen, main: Mapping[str, Any], limit: int, interpreter: str) -> None:
        self.chosen = chosen
        self.main = main
        self.space = chosen.space
        self.limit = limit
        self.interpreter = interpreter
        self.left: list[str] = []
        self.imports: list[tuple[str, str, list[str]]] = []

    def load(self) -> Shipment:
        stream = tempfile.SpooledTemporaryFile(max_size=16 << 20)  # noqa: SIM115 - closed below
        try:
            packer = self._pack(stream)
            if packer.over:
                raise self._too_much(packer)
            sources = Sources(self.limit)
            sources.add([*self.chosen.needs.imports, *packer.modules, *(m for _, m, _ in self.imports)])
            archive = sources.archive()
            if packer.count + len(archive) > self.limit:
                raise self._too_much(packer, len(archive))
            modules = packer.modules | {m.partition(".")[0] for _, m, _ in self.imports}
            warnings = versions.check(self.interpreter, modules - set(sources.found), packer)
            shipment = Shipment(self._manifest(packer, sources), remarks=[*self.left, *warnings])
            if packer.packed or self.imports or archive:
                header = {
                    "schema": SCHEMA, "python": list(sys.version_info[:2]), "by_value": packer.by_value,
                    "cloudpickle": packer.uses_cloudpickle, "imports": [list(i) for i in self.imports],
                    "values": [p.name for p in packer.packed], "sources": archive,
                }
                shipment.packed = versions.packed(modules - set(sources.found), packer)
                shipment.path, shipment.digest, shipment.size = _write(header, stream)
                weakref.finalize(shipment, _remove, shipment.path)
            return shipment
        finally:
            stream.close()

    def _pack(self, stream: IO[bytes]) -> Packer:
        while True:
            stream.seek(0)
            stream.truncate()
            self.imports = []
            packer = Packer(self.space, self.main, stream, self.limit)
            try:
                self._fill(packer)
                return packer
            except Unpackable as error:
                name = error.detail["name"]
                if name not in self.chosen.doubtful:
                    raise
                # Written is written: begin anew without it, and without what only it needed.
                self.left.append(f"left out, as the cell may not need it: {error.message.partition('; it cannot')[0]}")
                gone = {name, *(n for n, why in self.chosen.why.items() if why == f"needed by {name}")}
                for one in gone & self.chosen.doubtful:
                    self.chosen.why.pop(one)
                    self.chosen.doubtful.discard(one)

    def _fill(self, packer: Packer) -> None:
        done: set[str] = set()
        while True:
            todo = [n for n in self.chosen.why if n not in done]
            if not todo:
                return
            # Data first: then what functions share with it is counted where one expects it.
            for name in sorted(todo, key=lambda n: _rank(self.space[n])):
                value = self.space[name]
                done.add(name)
                if isinstance(value, types.ModuleType):
                    self._import(name, value)
                else:
                    packer.add(name)
                for pulled in sorted(packer.pulled - set(self.chosen.why)):
                    if self.chosen.add(pulled, name):
                        self.chosen.follow(pulled)

    def _import(self, name: str, module: types.ModuleType) -> None:
        if not importable(module):
            raise Unpackable(
                f"{name} is a module that no job can import by its name ({module.__name__}); it cannot go with the job",
                "write it to a file beside the notebook and import that", {"name": name},
            )
        inner = set()
        for dotted in self.chosen.needs.chains.get(name, ()):
            parts = dotted.split(".")[1:]
            for count in range(1, len(parts) + 1):
                full = ".".join([module.__name__, *parts[:count]])
                if full not in sys.modules:
                    break
                inner.add(full)
        self.imports.append((name, module.__name__, sorted(inner)))

    def _too_much(self, packer: Packer, sources: int = 0) -> Refused:
        rows = sorted(packer.packed, key=lambda p: -p.bytes)
        total = sum(p.bytes for p in rows) + sources
        shown = [f"{p.name} ({pickling.type_name(self.space[p.name])}) {'over ' if p.beyond else ''}{_size(p.bytes)}"
                 for p in rows[:6]]
        if len(rows) > 6:
            shown.append(f"{len(rows) - 6} more")
        if sources:
            shown.append(f"local modules {_size(sources)}")
        detail = [{"name": p.name, "bytes": p.bytes} for p in rows]
        return Refused(
            f"the cell needs {_size(total)}, more than the {_size(self.limit)} that may be sent: {', '.join(shown)}",
            "save it to a file and read that in the cell, or raise the limit: --ship-limit 2G", detail,
        )

    def _manifest(self, packer: Packer, sources: Sources) -> list[dict[str, Any]]:
        rows = []
        named = {name: module for name, module, _ in self.imports}
        sizes = {p.name: p for p in packer.packed}
        for name in self.chosen.why:
            value = self.space[name]
            row: dict[str, Any] = {"name": name[:250], "bytes": 0, "sha256": "", "how": "value"}
            row["type"] = "module" if name in named else _kind(value)[:250]
            detail = [self.chosen.why[name]]
            if name in named:
                module = named[name]
                row["how"] = "import"
                detail.insert(0, f"import {module}" + ("" if module == name else f" as {name}"))
            else:
                row |= {"bytes": sizes[name].bytes, "sha256": sizes[name].sha256}
                home, attribute = _reference(value)
                if home:
                    row |= {"how": "import", "bytes": 0, "sha256": ""}
                    detail.insert(0, f"from {home} import {attribute}" + ("" if attribute == name else f" as {name}"))
                module = home
            top = module.partition(".")[0]
            if row["how"] == "import" and top in sources.found:
                row["how"] = "module"
                if name == top:
                    row["bytes"], row["sha256"] = sources.found[top]
            if row["how"] == "value" and looks_secret(name):
                detail.append("looks like a secret: its value is in the payload only")
            row["detail"] = "; ".join(d for d in detail if d)[:500]
            rows.append(row)
        listed = {row["name"] for row in rows if row["how"] == "module"}
        for name, (size, digest) in sorted(sources.found.items()):
            if name not in listed:
                rows.append({"name": name, "type": "source", "bytes": size, "sha256": digest, "how": "module",
                             "detail": "source of a local module"})
        return rows


def _rank(value: Any) -> int:
    return 2 if isinstance(value, types.FunctionType) else 1 if isinstance(value, type) or callable(value) else 0


def _kind(value: Any) -> str:
    if isinstance(value, type):
        return "class"
    if isinstance(value, (types.FunctionType, types.BuiltinFunctionType)):
        return "function"
    return pickling.type_name(value)


def _reference(value: Any) -> tuple[str, str]:
    """Module and name by which a class or function is imported again; empty when it goes by value."""
    if not isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
        return "", ""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    if not module or module == "__main__" or "." in name or "<" in name:
        return "", ""
    if getattr(sys.modules.get(module), name, None) is not value:
        return "", ""
    return module, name


def _write(header: dict[str, Any], stream: IO[bytes]) -> tuple[str, str, int]:
    """Header and stream as one private file: (path, SHA-256, bytes)."""
    descriptor, path = tempfile.mkstemp(prefix="jupyter-mlops-", suffix=".payload")
    try:
        with open(descriptor, "wb") as f:
            pickle.dump(header, f, protocol=4)
            stream.seek(0)
            shutil.copyfileobj(stream, f, 1 << 20)
        with open(path, "rb") as f:
            return path, hashlib.file_digest(f, "sha256").hexdigest(), os.path.getsize(path)
    except BaseException:
        _remove(path)
        raise


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


def _size(count: int) -> str:
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.0f} {units[0]}" if value >= 100 or units[0] == "B" else f"{value:.1f} {units[0]}"


