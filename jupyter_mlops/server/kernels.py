"""Tells kernels where the workspace is: addresses in their environment, never a secret.

Only kernels of this machine whose interpreter has our package, in a version that fits, get them; all others start as
if we were not there. Which ones have it is found out once per interpreter, beside the event loop, and again when its
packages change.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from logging import Logger
from typing import TYPE_CHECKING, Any

from jupyter_core.utils import ensure_async

from .. import __version__
from ..runtime import locate
from .link import same_minor
from .threads import in_thread

if TYPE_CHECKING:
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_server.serverapp import ServerApp

#: Seconds that an interpreter may take to say whether it has our package.
PROBE_TIMEOUT = 10.0
#: Only what is called like a Python interpreter is asked: other programs may do anything with our question.
_PYTHON = re.compile(r"(python|pypy)[0-9.]*(\.exe)?")
#: A user who set one of these has decided for himself.
USERS_TRACKING = ("MLFLOW_TRACKING_URI",)
USERS_EXPERIMENT = ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID")
OURS = ("JUPYTER_MLOPS_URL", "JUPYTER_MLOPS_HOME", "JUPYTER_MLOPS_WORKSPACE")

# Runs in the other interpreter, so it is old Python; the import is cheap, since our package's own loads nothing.
_QUESTION = """
import json, sys
sys.path[:] = [p for p in sys.path if p]
try:
    from jupyter_mlops import __version__ as version
except Exception:
    version = None
print(json.dumps({"version": version, "path": sys.path}))
"""


class Interpreters:
    """Which interpreters have our package; asks each once and keeps the answer until its packages change."""

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._asking: dict[tuple[str, str], threading.Lock] = {}
        self._known: dict[tuple[str, str], tuple[dict[str, int], bool]] = {}

    def has_package(self, python: str, env: Mapping[str, str]) -> bool:
        """Whether ``python``, started in that environment, finds our package in a version like ours. Blocks."""
        key = (python, "\0".join(env.get(name, "") for name in ("PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "HOME")))
        with self._lock:
            lock = self._asking.setdefault(key, threading.Lock())
        with lock:  # two kernels at once: one asks, the other waits for the answer
            known = self._known.get(key)
            if known is not None and all(_mtime(path) == when for path, when in known[0].items()):
                return known[1]
            seen, answer = self._ask(python, env)
            self._known[key] = (seen, answer)
            return answer

    def _ask(self, python: str, env: Mapping[str, str]) -> tuple[dict[str, int], bool]:
        watched = {python: _mtime(python)}
        try:
            done = subprocess.run(
                [python, "-c", _QUESTION], env=dict(env), cwd="/" if os.name == "posix" else None,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=PROBE_TIMEOUT,
            )
            answer = json.loads(done.stdout.decode("utf-8", "replace").strip().rpartition("\n")[2])
            version, path = answer["version"], answer["path"]
        except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError) as e:
            self._log.warning("Jupyter MLOps: %s does not say whether it has our package: %s", python, e)
            return watched, False
        # Installing or removing a package changes the folder that it lies in.
        watched.update((entry, _mtime(entry)) for entry in path if os.path.isdir(entry))
        if version is None:
            return watched, False
        if not same_minor(str(version), __version__):
            self._log.warning(
                "Jupyter MLOps: %s has version %s and this server %s: its kernels are left alone; install one version",
                python, version, __version__,
            )
            return watched, False
        return watched, True


def _mtime(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def interpreter(argv: list[str], env: Mapping[str, str]) -> str | None:
    """The Python that a kernelspec's command starts, or None when it starts something else."""
    if not argv or not _PYTHON.fullmatch(os.path.basename(argv[0]).lower()):
        return None
    version = sys.version_info
    if argv[0] in ("python", f"python{version[0]}", f"python{version[0]}.{version[1]}"):
        return sys.executable  # as jupyter_client does
    return shutil.which(argv[0], path=env.get("PATH"))


class KernelEnvironment:
    """Stands before ``start_kernel`` of the server's kernel manager."""

    def __init__(self, serverapp: ServerApp, place: locate.Place, log: Logger) -> None:
        self._app = serverapp
        self._specs: KernelSpecManager = serverapp.kernel_spec_manager  # type: ignore[assignment]
        self._place = place
        self._log = log
        self._interpreters = Interpreters(log)
        self._wrapped = False

    def wrap(self) -> None:
        """Begin; without effect when kernels run elsewhere."""
        manager = self._app.kernel_manager
        gateway = getattr(self._app, "gateway_config", None)
        if getattr(gateway, "gateway_enabled", False) or not hasattr(manager, "cwd_for_path"):
            return
        original = manager.start_kernel

        async def start_kernel(*args: Any, **kwargs: Any) -> Any:
            kernel_id = kwargs.get("kernel_id")
            if not args and (kernel_id is None or kernel_id not in manager):
                try:
                    env = await self._environment(kwargs)
                    if env is not None:
                        kwargs["env"] = env
                except Exception:  # whatever is wrong with us, the kernel starts
                    self._log.exception("Jupyter MLOps: a kernel starts without the address of the workspace")
            return await ensure_async(original(*args, **kwargs))

        manager.start_kernel = start_kernel  # type: ignore[method-assign]
        self._wrapped = True

    def unwrap(self) -> None:
        """End."""
        if self._wrapped:
            self._wrapped = False
            try:
                del self._app.kernel_manager.start_kernel  # type: ignore[misc]
            except AttributeError:
                pass

    def look_ahead(self) -> None:
        """Ask the interpreters of all kernelspecs now, so that no kernel has to wait for an answer."""
        if self._wrapped:
            in_thread(self._look_ahead).add_done_callback(lambda f: f.cancelled() or f.exception())

    def _look_ahead(self) -> None:
        for name, spec in self._specs.get_all_specs().items():
            try:
                self._fits(spec["spec"].get("argv") or [], spec["spec"].get("metadata") or {},
                           spec["spec"].get("env") or {}, os.environ)
            except Exception as e:
                self._log.debug("Jupyter MLOps: kernelspec %s: %s", name, e)

    async def _environment(self, kwargs: dict[str, Any]) -> dict[str, str] | None:
        manager = self._app.kernel_manager
        # None means the server's own environment, see jupyter_client.
        given = kwargs.get("env")
        env = dict(os.environ if given is None else given)
        name = kwargs.get("kernel_name") or manager.default_kernel_name
        path = kwargs.get("path")
        folder = kwargs.get("cwd") or (os.getcwd() if path is None else manager.cwd_for_path(path, env=env))
        ours = await in_thread(self._ours, name, env, str(folder))
        return {**env, **ours} if ours else None

    def _ours(self, kernel_name: str, env: dict[str, str], folder: str) -> dict[str, str]:
        """What to add to a kernel's environment; empty for a kernel to be left alone. Blocks."""
        spec = self._specs.get_kernel_spec(kernel_name)
        if not self._fits(spec.argv, spec.metadata or {}, spec.env or {}, env):
            return {}
        url = (env.get("JUPYTER_MLOPS_URL") if env.get("JUPYTER_MLOPS_TOKEN") else "") or locate.url_for(
            locate.reserved_port(self._place)
        )
        ours = {
            "JUPYTER_MLOPS_URL": url,
            "JUPYTER_MLOPS_HOME": self._place.home,
            "JUPYTER_MLOPS_WORKSPACE": self._place.name,
        }
        # The kernelspec's own environment is laid over ours by jupyter_client.
        users = {**env, **(spec.env or {})}
        if not any(users.get(k) for k in USERS_TRACKING):
            ours["MLFLOW_TRACKING_URI"] = url.rstrip("/") + "/mlflow"
            experiment = os.path.basename(os.path.realpath(folder))
            if experiment and not any(users.get(k) for k in USERS_EXPERIMENT):
                ours["MLFLOW_EXPERIMENT_NAME"] = experiment
        return ours

    def _fits(
        self, argv: list[str], metadata: Mapping[str, Any], spec_env: Mapping[str, str], env: Mapping[str, str]
    ) -> bool:
        provisioner = (metadata.get("kernel_provisioner") or {}).get("provisioner_name") or "local-provisioner"
        if provisioner != "local-provisioner" or any(spec_env.get(k) for k in OURS):
            return False
        whole = {**env, **spec_env}
        python = interpreter(argv, whole)
        if python is None:
            return False
        if python == sys.executable and not {"PYTHONPATH", "PYTHONHOME"} & set(spec_env):
            return True  # the very interpreter that we run in
        return self._interpreters.has_package(python, whole)
