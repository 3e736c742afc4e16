"""What cannot leave a process, and where in an object it hides; a pickler that says so by name.

Used on both ends: by the kernel that ships variables and by the rank that brings some back. Standard library only; the
pickler itself needs the interpreter's cloudpickle.
"""

import sys
import types

#: Objects looked at in search of the one that failed.
_SEARCH = 200_000

_OPEN = "open it in the cell"
_LOCK = "make it in the cell: a lock belongs to its process"
#: Classes whose instances, also those of subclasses, mean nothing in another process: what they are, and what to do.
_RULES = {
    ("_thread", "lock"): ("a lock", _LOCK),
    ("_thread", "RLock"): ("a lock", _LOCK),
    ("threading", "_RLock"): ("a lock", _LOCK),
    ("threading", "Condition"): ("a lock", _LOCK),
    ("threading", "Event"): ("a lock", _LOCK),
    ("threading", "Semaphore"): ("a lock", _LOCK),
    ("threading", "Barrier"): ("a lock", _LOCK),
    ("threading", "Thread"): ("a thread", "start it in the cell"),
    ("multiprocessing.process", "BaseProcess"): ("a process", "start it in the cell"),
    ("multiprocessing.synchronize", "SemLock"): ("a lock", _LOCK),
    ("multiprocessing.pool", "Pool"): ("a pool of processes", "make it in the cell"),
    ("subprocess", "Popen"): ("a process", "start it in the cell"),
    ("concurrent.futures._base", "Executor"): ("a pool of workers", "make it in the cell"),
    ("concurrent.futures._base", "Future"): ("a result that is still to come", "take its result() first"),
    ("asyncio.events", "AbstractEventLoop"): ("an event loop", "the job has its own"),
    ("_asyncio", "Future"): ("a result that is still to come", "await it first"),
    ("asyncio.futures", "Future"): ("a result that is still to come", "await it first"),
    ("_socket", "socket"): ("a network connection", _OPEN),
    ("_ssl", "_SSLSocket"): ("a network connection", _OPEN),
    ("_io", "_IOBase"): ("an open file", "ship its path and open it in the cell"),
    ("builtins", "generator"): ("a generator", "make a list of it, or make it in the cell"),
    ("builtins", "coroutine"): ("a coroutine", "call it in the cell"),
    ("builtins", "async_generator"): ("an asynchronous generator", "make it in the cell"),
    ("builtins", "frame"): ("a stack frame", "leave it out"),
    ("builtins", "traceback"): ("a traceback", "leave it out"),
    ("sqlite3", "Connection"): ("a database connection", _OPEN),
    ("sqlite3", "Cursor"): ("a database cursor", _OPEN),
    ("sqlalchemy.engine.base", "Connection"): ("a database connection", _OPEN),
    ("sqlalchemy.engine.base", "Engine"): ("a database engine", "make it in the cell"),
    ("sqlalchemy.orm.session", "Session"): ("a database session", _OPEN),
    ("mlflow.tracking.fluent", "ActiveRun"): ("an active MLflow run", "the job has its own run"),
    ("IPython.core.interactiveshell", "InteractiveShell"): ("the notebook's shell", "a job is plain Python"),
    ("IPython.core.autocall", "IPyAutocall"): ("a command of the notebook's shell", "a job is plain Python"),
    ("jupyter_mlops.client.record", "Record"): ("a handle of this kernel", "ship its name or id"),
    ("jupyter_mlops.client.sync", "Client"): ("a client of this kernel", "make it in the cell"),
    ("cupy", "ndarray"): ("an array on a GPU", "ship cupy.asnumpy(…) of it"),
    ("cupy._core.core", "ndarray"): ("an array on a GPU", "ship cupy.asnumpy(…) of it"),
}
#: In-memory files are data.
_HARMLESS = {("_io", "StringIO"), ("_io", "BytesIO")}
_ATOMS = (type(None), bool, int, float, complex, str, bytes, bytearray, range, types.ModuleType, types.CodeType)

_verdicts = {}  # type: dict[type, object]


class CannotTravel(Exception):
    """An object that cannot be sent to another process."""

    def __init__(self, culprit, what, hint=""):
        super().__init__(what)
        self.culprit = culprit
        self.what = what
        self.hint = hint


def refusal(value):
    """``(what it is, what to do)`` for an object that means nothing in another process, or None."""
    kind = type(value)
    try:
        verdict = _verdicts[kind]
    except KeyError:
        verdict = _verdicts[kind] = _judge(kind)
    if verdict is _TENSOR:
        return _tensor(value)
    return verdict


_TENSOR = object()


def _judge(kind):
    names = [(c.__module__, c.__name__) for c in kind.__mro__]
    if any(n in _HARMLESS for n in names):
        return None
    for name in names:
        if name in _RULES:
            return _RULES[name]
        if name == ("torch", "Tensor"):
            return _TENSOR
    return None


def _tensor(value):
    try:
        device = value.device
        if device.type in ("cpu", "meta"):
            return None
        return ("a tensor on %s" % device, "move it with .cpu() first")
    except Exception:
        return None


def type_name(value):
    """The type of an object as one writes it: ``ndarray``, ``_thread.RLock``, ``torch.nn.modules.linear.Linear``."""
    kind = type(value)
    module = kind.__module__
    return kind.__qualname__ if module in ("builtins", "__main__") else "%s.%s" % (module, kind.__qualname__)


# -- where it hides -------------------------------------------------------------------------------------------------


def code_names(code):
    """Names that a code object and those nested in it read as globals, and the modules that they import."""
    import dis

    names, modules = set(), set()
    todo = [code]
    while todo:
        current = todo.pop()
        for step in dis.get_instructions(current):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS", "DELETE_GLOBAL"):
                names.add(step.argval)
            elif step.opname == "IMPORT_NAME" and step.argval:
                modules.add(step.argval)
        todo.extend(c for c in current.co_consts if isinstance(c, types.CodeType))
    return names, modules


def children(value):
    """What an object refers to: pairs of how that is written behind the object's name, and the other object."""
    if isinstance(value, dict):
        for key, item in list(value.items()):
            yield "[%s]" % (repr(key) if isinstance(key, (str, int, float, bool)) else "…"), item
            if not isinstance(key, _ATOMS):
                yield " (a key of it)", key
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield "[%d]" % index, item
    elif isinstance(value, (set, frozenset)):
        for item in value:
            yield " (a member of it)", item
    elif isinstance(value, types.FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or ()):
            try:
                yield " → %s" % name, cell.cell_contents
            except ValueError:
                continue
        for name in sorted(code_names(value.__code__)[0]):
            if name in value.__globals__:
                yield " → %s" % name, value.__globals__[name]
        yield ".__defaults__", value.__defaults__
        yield ".__kwdefaults__", value.__kwdefaults__
        yield ".__dict__", value.__dict__
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
        yield "", value.__func__
    elif isinstance(value, (staticmethod, classmethod)):
        yield "", value.__func__
    elif isinstance(value, property):
        for part in (value.fget, value.fset, value.fdel):
            yield "", part
    elif isinstance(value, type):
        if value.__module__ == "__main__":
            for name, item in list(vars(value).items()):
                yield ".%s" % name, item
            for base in value.__bases__:
                yield " → %s" % base.__name__, base
    else:
        yield from _parts(value)


def _parts(value):
    found = False
    state = getattr(value, "__dict__", None)
    if isinstance(state, dict):
        for name, item in list(state.items()):
            found = True
            yield ".%s" % name, item
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            try:
                item = getattr(value, name)
            except Exception:
                continue
            found = True
            yield ".%s" % name, item
    if isinstance(type(value), type) and type(value).__module__ == "__main__":
        yield " → %s" % type(value).__name__, type(value)
    if not found or type(value).__reduce__ is not object.__reduce__:
        try:
            reduced = value.__reduce_ex__(4)
        except Exception:
            return
        if isinstance(reduced, tuple):
            for part in reduced[1:3]:
                yield "", part


def where(name, root, culprit):
    """How ``culprit`` is reached from the variable ``name``: ``model.logger.handlers[0].lock``; ``name`` if unknown."""
    if root is culprit:
        return name
    seen, todo, count = {id(root)}, [(root, "")], 0
    kept = []  # what is made on the way must live as long as its id is remembered
    while todo:
        following = []
        for value, path in todo:
            kept.append(value)
            try:
                for step, child in children(value):
                    if child is culprit:
                        return name + _plain(path + step)
                    if isinstance(child, _ATOMS) or id(child) in seen:
                        continue
                    count += 1
                    if count > _SEARCH:
                        return name
                    seen.add(id(child))
                    following.append((child, path + step))
            except Exception:  # an object that dislikes being looked at
                continue
        todo = following
    return name


def _plain(path):
    """Torch modules keep their parts in dictionaries, their users write attributes."""
    import re

    return re.sub(r"\.(?:_modules|_parameters|_buffers)\['([^']*)'\]", r".\1", path)


def explain(name, value, culprit, error):
    """One line on why a variable cannot travel, and what to do: ``(line, hint)``."""
    at = where(name, value, culprit)
    kind = type_name(culprit)
    article = "an" if kind[:1].lower() in "aeiou" else "a"
    if isinstance(error, CannotTravel):
        what, hint = error.what, error.hint
        if what.startswith("a tensor on") and culprit is not value:
            hint = "move %s with .cpu() first" % name
        named = "%s (%s %s)" % (at, article, kind)
        return named if what == "%s %s" % (article, kind) else "%s: %s" % (named, what), hint
    text = (str(error) or type(error).__name__).splitlines()[0][:200]
    return "%s (%s %s): %s" % (at, article, kind, text), "make it in the cell"


# -- the pickler -----------------------------------------------------------------------------------------------------


def cached_again(function, maxsize, typed):
    """A function behind ``functools.lru_cache`` anew, with an empty cache."""
    import functools

    return functools.lru_cache(maxsize, typed)(function)


def new_type(name, supertype):
    """A ``typing.NewType`` anew."""
    import typing

    return typing.NewType(name, supertype)


_made = {}  # type: dict[str, type]


def pickler_class():
    """A cloudpickle pickler that refuses what cannot travel, and knows in :attr:`last` what it looked at last.

    Raises:
        ImportError: the interpreter has no cloudpickle.
    """
    if "class" in _made:
        return _made["class"]
    import functools
    import typing

    import cloudpickle

    cached = type(functools.lru_cache(lambda: None))

    class GuardedPickler(cloudpickle.Pickler):
        def __init__(self, file):
            super().__init__(file, protocol=5)
            self.last = None

        def special(self, obj):
            """A reduction of one's own, or NotImplemented."""
            return NotImplemented

        def reducer_override(self, obj):
            self.last = obj
            if obj is sys.stdout or obj is sys.stderr:
                return getattr, (sys, "stdout" if obj is sys.stdout else "stderr")
            verdict = refusal(obj)
            if verdict is not None:
                raise CannotTravel(obj, *verdict)
            kind = type(obj)
            # These two would be looked for in __main__, where nothing is yet.
            if kind is cached and obj.__module__ == "__main__":
                settings = obj.cache_parameters()
                return cached_again, (obj.__wrapped__, settings["maxsize"], settings["typed"])
            if isinstance(typing.NewType, type) and kind is typing.NewType and obj.__module__ == "__main__":
                return new_type, (obj.__name__, obj.__supertype__)
            own = self.special(obj)
            return own if own is not NotImplemented else super().reducer_override(obj)

    _made["class"] = GuardedPickler
    return GuardedPickler
