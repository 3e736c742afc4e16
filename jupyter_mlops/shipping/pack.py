"""Packing: the values of some names in one stream of pickles, each measured, with what they need found on the way."""

from __future__ import annotations

import hashlib
import sys
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from ..core.errors import Refused
from ..runtime import pickling

#: A single pickle that passes this many times the limit is not measured to its end.
_FAR = 8


class Unpackable(Refused):
    """A variable that cannot travel; ``message`` leads to the part of it that cannot."""

    code = "cannot_travel"


class _Enough(Exception):
    """So much over the limit that the rest does not matter."""


class _Meter:
    """A file that hashes and counts, and stops keeping when there is too much."""

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self.file = file
        self.limit = limit
        self.count = 0
        self.begun = 0
        self.hash = hashlib.sha256()

    def begin(self) -> None:
        self.begun, self.hash = self.count, hashlib.sha256()

    @property
    def size(self) -> int:
        return self.count - self.begun

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if self.size > _FAR * self.limit:
            raise _Enough
        self.count += len(view)
        if self.count <= self.limit:
            self.hash.update(view)
            self.file.write(view)
        return len(view)


@dataclass
class Packed:
    """One name's part of the stream."""

    name: str
    bytes: int
    sha256: str
    beyond: bool = False


class _MainGlobals:
    """Stands for the globals of the notebook: functions find those of the job's ``__main__`` in their place."""

    def __reduce__(self) -> tuple[Any, ...]:
        return vars, (_ModuleNamed("__main__"),)


class _ModuleNamed:
    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> tuple[Any, ...]:
        from importlib import import_module

        return import_module, (self.name,)


@dataclass
class Packer:
    """Pickles names one after another into ``file``; objects that several of them share are written once.

    Attributes:
        space: the values by name.
        main: the globals of the notebook's functions.
        pulled: names of the notebook that functions and classes on the way need.
        modules: top-level modules that the stream refers to.
        by_value: whether code of the notebook is in it, which binds it to this version of Python.
        uses_cloudpickle: whether cloudpickle is needed to read it.
    """

    space: Mapping[str, Any]
    main: Mapping[str, Any]
    file: IO[bytes]
    limit: int
    packed: list[Packed] = field(default_factory=list)
    pulled: set[str] = field(default_factory=set)
    modules: set[str] = field(default_factory=set)
    by_value: bool = False
    uses_cloudpickle: bool = False

    def __post_init__(self) -> None:
        self._meter = _Meter(self.file, self.limit)
        self._pickler = _pickler()(self._meter, self)

    @property
    def count(self) -> int:
        """Bytes so far."""
        return self._meter.count

    @property
    def over(self) -> bool:
        """Whether there is more than the limit allows."""
        return self._meter.count > self.limit

    def add(self, name: str) -> None:
        """Pack one name.

        Raises:
            Unpackable: it cannot travel. The stream is then of no use any more: begin anew without it.
        """
        self._meter.begin()
        beyond = False
        value = self.space[name]
        try:
            self._pickler.dump(value)
        except _Enough:
            beyond = True
            self._pickler = _pickler()(self._meter, self)
        except (MemoryError, OSError):
            raise
        except Exception as error:
            culprit = error.culprit if isinstance(error, pickling.CannotTravel) else self._pickler.last
            line, hint = pickling.explain(name, value, culprit, error)
            raise Unpackable(f"{line}; it cannot go with the job", hint, {"name": name}) from None
        self.packed.append(Packed(name, self._meter.size, self._meter.hash.hexdigest(), beyond))

    def note(self, obj: Any) -> None:
        """Look at a class or function that is on its way."""
        module = getattr(obj, "__module__", None)
        if not isinstance(module, str):
            module = "__main__" if isinstance(obj, types.FunctionType) else ""
        if module != "__main__":
            self.modules.add(module.partition(".")[0])
            if not isinstance(obj, types.FunctionType) or module in sys.modules:
                return
        self.by_value = self.uses_cloudpickle = True
        top = obj.__qualname__.partition(".")[0]
        if self.space.get(top) is obj:
            self.pulled.add(top)
        if isinstance(obj, types.FunctionType):
            names, modules = pickling.code_names(obj.__code__)
            self.modules.update(m.partition(".")[0] for m in modules)
            if obj.__globals__.get("__name__") == "__main__":
                self.pulled.update(n for n in names if n in self.space)


def _pickler() -> Any:
    base = pickling.pickler_class()

    class ShippingPickler(base):  # type: ignore[misc,valid-type]
        """Lets functions of the notebook live in the ``__main__`` of the job."""

        def __init__(self, file: Any, packer: Packer) -> None:
            super().__init__(file)
            self._packer = packer
            main = sys.modules.get("__main__")
            for space in (packer.main, vars(main) if main is not None else {}):
                self.globals_ref[id(space)] = _MainGlobals()

        def special(self, obj: Any) -> Any:
            if isinstance(obj, (type, types.FunctionType)):
                self._packer.note(obj)
            elif isinstance(obj, types.ModuleType):
                self._packer.uses_cloudpickle = True
                self._packer.modules.add(obj.__name__.partition(".")[0])
            elif isinstance(obj, (types.MethodType, types.CodeType, types.CellType, property, types.MappingProxyType)):
                self._packer.uses_cloudpickle = True
            return NotImplemented

    return ShippingPickler


def needs_of(value: Any) -> set[str]:
    """Names of the notebook that a function, class, or instance of such a class refers to by itself."""
    names: set[str] = set()
    todo, seen = [value], set()
    while todo:
        item = todo.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, types.FunctionType):
            if item.__module__ == "__main__":
                names |= pickling.code_names(item.__code__)[0]
                todo += _cells(item)
        elif isinstance(item, type):
            if item.__module__ == "__main__":
                names.add(item.__qualname__.partition(".")[0])
                todo += [*vars(item).values(), *item.__bases__]
        elif isinstance(item, (staticmethod, classmethod, types.MethodType)):
            todo.append(item.__func__)
        elif isinstance(item, property):
            todo += [f for f in (item.fget, item.fset, item.fdel) if f is not None]
        elif "__wrapped__" in getattr(item, "__dict__", ()):
            todo.append(item.__wrapped__)
        elif getattr(type(item), "__module__", "") == "__main__":
            todo.append(type(item))
    return names


def _cells(function: types.FunctionType) -> Iterable[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:
            continue
