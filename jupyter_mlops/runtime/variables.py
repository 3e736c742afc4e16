"""Variables that travel: those that a job's cell needs, put into ``__main__`` before it runs, and those it brings back.

``inputs/payload.pkl`` is a pickle of plain types that tells what is in it, followed by one pickle per value, all of
one pickler, so that what two of them share is still one object:

``{"schema": 1, "python": [3, 11], "by_value": bool, "imports": [[name, module, [submodules]]], "values": [names],
"sources": bytes}``

``sources`` is a zip of local modules; it is unpacked once and stands first on the path. ``returns/payload.pkl`` has the
same form, ``returns/manifest.json`` one entry for each name that was asked for.
"""

import hashlib
import io
import os
import pickle
import sys

from . import jobfolder, pickling

SCHEMA = 1
_MODULES = "modules"


class VariablesError(Exception):
    """Variables that cannot be read; says so in one line."""

    __module__ = "builtins"  # a traceback then names it without where it is from


# -- reading ---------------------------------------------------------------------------------------------------------


def read_header(file):
    """What a payload says of itself; the file then stands before the first value.

    Raises:
        VariablesError: it is none of ours.
    """
    try:
        header = pickle.load(file)
        if isinstance(header, dict) and header.get("schema") == SCHEMA:
            return header
    except Exception as error:
        raise VariablesError("the payload of variables cannot be read: %s" % error) from None
    raise VariablesError("the payload of variables is of another version")


def read_values(file, names):
    """``{name: value}`` of the pickles that follow the header.

    Raises:
        VariablesError: names the variable that could not be made again.
    """
    values = {}
    unpickler = pickle.Unpickler(file)
    for name in names:
        try:
            values[name] = unpickler.load()
        except Exception as error:
            text = (str(error) or "no reason given").splitlines()[0]
            raise VariablesError("variable %s cannot be read: %s: %s" % (name, type(error).__name__, text)) from error
    return values


def load(job, space, digest=None):
    """Put what was shipped with a job into a namespace, as it was in the notebook.

    Args:
        job: the job's :class:`~.jobfolder.JobFolder`.
        space: dictionary of the rank's ``__main__``.
        digest: SHA-256 of what was shipped, in hexadecimal; None: it is not looked at.

    Raises:
        VariablesError: in one line, what is missing or was changed.
    """
    path = os.path.join(job.inputs, "payload.pkl")
    if not os.path.isfile(path):
        raise VariablesError("the variables that were shipped with this job are missing: %s" % path)
    with open(path, "rb") as file:
        if digest is not None and _digest(file) != digest:
            raise VariablesError("the variables that were shipped with this job have been changed since: %s" % path)
        header = read_header(file)
        here = list(sys.version_info[:2])
        if header.get("by_value") and header["python"] != here:
            raise VariablesError(
                "functions or classes were shipped from Python %s and cannot run under %s" % (
                    ".".join(map(str, header["python"])), ".".join(map(str, here))))
        if header.get("sources"):
            _unpack(job, header["sources"])
        for name, module, inner in header.get("imports") or []:
            space[name] = _module(name, module, inner)
        if header.get("cloudpickle"):
            try:
                import cloudpickle  # noqa: F401
            except ImportError:
                raise VariablesError(
                    "functions or classes of the notebook need cloudpickle: %s -m pip install cloudpickle"
                    % sys.executable) from None
        builtins = space.get("__builtins__")
        space.update(read_values(file, header["values"]))
        if builtins is not None:
            space["__builtins__"] = builtins  # cloudpickle replaces it by its dictionary


def _digest(file):
    """SHA-256 of an open file, which then stands at its beginning again."""
    found = hashlib.sha256()
    for piece in iter(lambda: file.read(1 << 20), b""):
        found.update(piece)
    file.seek(0)
    return found.hexdigest()


def _module(name, module, inner):
    from importlib import import_module

    try:
        found = import_module(module)
        for sub in inner:
            import_module(sub)
        return found
    except Exception as error:
        text = (str(error) or "no reason given").splitlines()[0]
        raise VariablesError(
            "%s is module %s in the notebook and cannot be imported here: %s: %s" % (
                name, module, type(error).__name__, text)) from error


def _unpack(job, sources):
    """Unpack local modules, once for all ranks and attempts, and put them first on the path, of children too."""
    import shutil
    import zipfile

    digest = hashlib.sha256(sources).hexdigest()[:16]
    folder = os.path.join(job.inputs, _MODULES, digest)
    if not os.path.isdir(folder):
        jobfolder.private_folder(os.path.dirname(folder))
        temporary = "%s.%d" % (folder, os.getpid())
        with zipfile.ZipFile(io.BytesIO(sources)) as archive:
            archive.extractall(temporary)
        try:
            os.rename(temporary, folder)
        except OSError:  # another rank was first
            shutil.rmtree(temporary, ignore_errors=True)
    sys.path.insert(0, folder)
    rest = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = folder + (os.pathsep + rest if rest else "")


def _in_main(name):
    found = sys.modules["__main__"]  # type: object
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def main_class(name, otherwise):
    """The class of that qualified name in ``__main__``, or the one pickled in ``otherwise`` where there is none."""
    found = _in_main(name)
    return found if isinstance(found, type) else pickle.loads(otherwise)


# -- bringing back ---------------------------------------------------------------------------------------------------


class _Counted:
    """A file that counts and hashes what passes."""

    def __init__(self, file):
        self.file = file
        self.count = 0
        self.hash = hashlib.sha256()

    def write(self, data):
        view = memoryview(data).cast("B")
        self.count += len(view)
        self.hash.update(view)
        self.file.write(view)
        return len(view)


def _returning():
    """A pickler for results: an instance of a notebook's class comes back as one of the kernel's own class."""
    base = pickling.pickler_class()

    class ReturnPickler(base):  # type: ignore[misc,valid-type]
        def __init__(self, file):
            super().__init__(file)
            #: Classes whose definition is being written: within it they stand for themselves.
            self.inside = frozenset()  # type: frozenset[type]

        def special(self, obj):
            if not isinstance(obj, type) or obj.__module__ != "__main__" or obj in self.inside:
                return NotImplemented
            if _in_main(obj.__qualname__) is not obj:
                return NotImplemented
            buffer = io.BytesIO()
            own = ReturnPickler(buffer)
            own.inside = self.inside | {obj}
            own.dump(obj)
            return main_class, (obj.__qualname__, buffer.getvalue())

    return ReturnPickler


def keep(job, space, names):
    """Write the variables that the job was asked to bring back; those that cannot travel are named one by one.

    Args:
        job: the job's :class:`~.jobfolder.JobFolder`.
        space: dictionary of the rank's ``__main__``.
        names: what was asked for.

    Returns:
        one line for each name that was left behind.
    """
    failed = {name: "there is no such variable at the end of the cell" for name in names if name not in space}
    jobfolder.private_folder(job.returns)
    path = os.path.join(job.returns, "payload.pkl")
    temporary = "%s.%d.tmp" % (path, os.getpid())
    try:
        make = _returning()
    except ImportError:
        failed = {name: "this interpreter has no cloudpickle: %s -m pip install cloudpickle" % sys.executable
                  for name in names}
    entries = {}  # type: dict[str, dict]
    try:
        while True:
            chosen = [name for name in names if name not in failed]
            if not chosen:
                break
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                bad = _write(make, file, space, chosen, entries)
                if bad is None:
                    file.flush()
                    os.fsync(file.fileno())
            if bad is None:
                os.replace(temporary, path)
                break
            # What two values share is written once, so a value cannot be taken out again: begin anew without it.
            failed[bad[0]] = bad[1]
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    listed = []
    for name in names:
        entry = {"name": name, "type": pickling.type_name(space[name])[:250] if name in space else ""}
        if name in failed:
            entry.update(bytes=0, sha256="", how="value", detail=("not brought back: " + failed[name])[:500])
        else:
            entry.update(entries[name])
        listed.append(entry)
    jobfolder.write_json(os.path.join(job.returns, "manifest.json"), {"schema": SCHEMA, "variables": listed})
    return ["%s is not brought back: %s" % (name, failed[name]) for name in names if name in failed]


def _write(make, file, space, names, entries):
    """Write header and values; returns ``(name, why)`` of the first that cannot be, else None."""
    header = {"schema": SCHEMA, "python": list(sys.version_info[:2]), "values": names, "imports": [], "sources": b""}
    pickle.dump(header, file, protocol=4)
    out = _Counted(file)
    pickler = make(out)
    for name in names:
        begun, out.hash = out.count, hashlib.sha256()
        try:
            pickler.dump(space[name])
        except OSError:
            raise
        except Exception as error:
            culprit = error.culprit if isinstance(error, pickling.CannotTravel) else pickler.last
            return name, pickling.explain(name, space[name], culprit, error)[0]
        entries[name] = {"bytes": out.count - begun, "sha256": out.hash.hexdigest(), "how": "value", "detail": ""}
    return None
