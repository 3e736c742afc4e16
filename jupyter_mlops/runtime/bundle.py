"""Our package for interpreters that lack it: one zip to put first on their PYTHONPATH.

The zip holds what runs in a foreign interpreter: a stub of ``jupyter_mlops/__init__``, ``runtime/`` and a
``.dist-info`` with the entry points by which MLflow finds our plugin. Its name holds the hash of its content, so a
running job keeps the one it was started with.
"""

import io
import json
import os
import subprocess
import threading
import zipfile
from hashlib import sha256

from . import jobfolder

#: The entry points that point into ``runtime/``, as in pyproject.toml.
ENTRY_POINTS = """\
[mlflow.tracking_store]
http = jupyter_mlops.runtime.mlflow_plugin:tracking_store
https = jupyter_mlops.runtime.mlflow_plugin:tracking_store

[mlflow.model_registry_store]
http = jupyter_mlops.runtime.mlflow_plugin:registry_store
https = jupyter_mlops.runtime.mlflow_plugin:registry_store

[mlflow.artifact_repository]
mlflow-artifacts = jupyter_mlops.runtime.mlflow_plugin:ArtifactRepository

[mlflow.run_context_provider]
jupyter-mlops = jupyter_mlops.runtime.mlflow_plugin:NotebookContext
"""

#: What stands in for ``jupyter_mlops/__init__.py`` there.
_STUB = '''\
"""The part of Jupyter MLOps that runs in foreign interpreters."""

__version__ = %r


def __getattr__(name):
    if name in ("inputs", "outputs"):
        from .runtime import data as module
    elif name in ("flush", "log"):
        from .runtime import record as module
    else:
        raise AttributeError("module %%r has no attribute %%r" %% (__name__, name))
    found = globals()[name] = getattr(module, name)
    return found
'''

PROBE_TIMEOUT = 30.0
OLDEST = (3, 9)

_PROBE = """\
import json, sys
answer = {"python": list(sys.version_info[:2]), "version": None, "torch": False, "folders": []}
answer["folders"] = [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
try:
    import jupyter_mlops, jupyter_mlops.runtime
    answer["version"] = jupyter_mlops.__version__
except Exception:
    pass
try:
    from importlib.util import find_spec
    spec = find_spec("torch")
    answer["torch"] = spec is not None and spec.origin is not None
except Exception:
    pass
print("\\n" + json.dumps(answer))
"""


class ProbeError(Exception):
    """An interpreter cannot be used; the message says why."""


_known = {}  # type: dict[tuple, tuple[list[int], dict]]
_lock = threading.Lock()


def version():
    """The version of this package."""
    import jupyter_mlops

    return str(jupyter_mlops.__version__)


def probe(interpreter, env):
    """What an interpreter offers: ``{"python": [major, minor], "version": ours or None, "torch": bool, …}``.

    Asked once per interpreter, PYTHONPATH and state of its site-packages.

    Args:
        interpreter: absolute path.
        env: the environment with which it will run.

    Raises:
        ProbeError: it does not run, or not in time.
    """
    try:
        stamp = os.stat(interpreter).st_mtime_ns
    except OSError as error:
        raise ProbeError(error.strerror or str(error))
    key = (interpreter, stamp, env.get("PYTHONPATH"), env.get("PYTHONHOME"))
    with _lock:
        kept = _known.get(key)
    if kept is not None and kept[0] == _stamps(kept[1]["folders"]):
        return kept[1]
    try:
        done = subprocess.run([interpreter, "-c", _PROBE], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, timeout=PROBE_TIMEOUT, cwd="/")
    except subprocess.TimeoutExpired:
        raise ProbeError("it did not answer within %d s" % PROBE_TIMEOUT)
    except OSError as error:
        raise ProbeError(error.strerror or str(error))
    try:
        answer = json.loads(done.stdout.decode("utf-8", "replace").strip().splitlines()[-1])
        answer["python"] = tuple(answer["python"])
    except (ValueError, IndexError, KeyError, TypeError):
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise ProbeError("it is no Python that works: %s" % (lines[-1][:200] if lines else "it says nothing"))
    with _lock:
        _known[key] = (_stamps(answer["folders"]), answer)
    return answer


def _stamps(folders):
    stamps = []
    for folder in folders:
        try:
            stamps.append(os.stat(folder).st_mtime_ns)
        except OSError:
            stamps.append(0)
    return stamps


def build():
    """The zip as bytes, the same for the same sources."""
    here = os.path.dirname(os.path.abspath(__file__))
    ours = version()
    files = {
        "jupyter_mlops/__init__.py": _STUB % ours,
        "jupyter_mlops-%s.dist-info/METADATA" % ours:
            "Metadata-Version: 2.1\nName: jupyter-mlops\nVersion: %s\n" % ours,
        "jupyter_mlops-%s.dist-info/entry_points.txt" % ours: ENTRY_POINTS,
    }
    for name in sorted(os.listdir(here)):
        if name.endswith(".py"):
            with open(os.path.join(here, name), encoding="utf-8") as f:
                files["jupyter_mlops/runtime/" + name] = f.read()
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as archive:  # stored: also readable without zlib, and faster
        for name in sorted(files):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            archive.writestr(info, files[name])
    return data.getvalue()


def ensure(folder):
    """Path of the zip in ``folder``, written when it is not there yet."""
    data = build()
    name = "jupyter_mlops-%s-%s.zip" % (version(), sha256(data).hexdigest()[:12])
    path = os.path.join(jobfolder.private_folder(folder), name)
    try:
        if os.path.getsize(path) == len(data):
            return path
    except OSError:
        pass
    jobfolder.write_file(path, data)
    return path


def needed(interpreter, env):
    """Whether an interpreter lacks our package in this version; see :func:`probe`."""
    return probe(interpreter, env)["version"] != version()


def prepend(env, path):
    """Put a path first on the PYTHONPATH of an environment (changed in place)."""
    old = env.get("PYTHONPATH")
    env["PYTHONPATH"] = path + (os.pathsep + old if old else "")
    return env
