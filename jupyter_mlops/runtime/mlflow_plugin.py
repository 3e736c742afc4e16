"""What makes plain MLflow calls land in our workspace: the classes behind our entry points in MLflow.

MLflow loads this module while it is itself half imported, in every process that imports it. So nothing of MLflow is
imported here at module level; the classes are made when MLflow asks for them by name. A tracking URI that is not ours
gets exactly what MLflow would have given, and never sees our token.
"""

import importlib
import os

from . import locate, redact

#: Called with (``created`` or ``ended``, run id, id of the run above or ``""``) of runs that are no job's.
listeners = []  # type: list


def tell(event, run_id, parent=""):
    """Tell those who listen; none of them may disturb a run."""
    if not os.environ.get("JUPYTER_MLOPS_JOB"):
        for listener in list(listeners):
            try:
                listener(event, run_id, parent)
            except Exception:
                pass


def _captured():
    """The part of our package that records cells, where this interpreter has it; else None."""
    try:
        hooks = importlib.import_module("jupyter_mlops.capture.hooks")
        return hooks if hooks.active() else None
    except Exception:
        return None


def tracking_store(store_uri, artifact_uri=None, **_):
    """The tracking store for an ``http(s)`` URI."""
    if locate.is_ours(store_uri):
        from . import mlflow_stores

        _spare_proxies(store_uri)
        _print_links(False)
        return mlflow_stores.tracking_store_for(store_uri)
    _print_links(True)
    from mlflow.tracking._tracking_service.utils import _get_rest_store

    return _get_rest_store(store_uri)


def registry_store(store_uri, tracking_uri=None, **_):
    """The model registry store for an ``http(s)`` URI."""
    if locate.is_ours(store_uri):
        from . import mlflow_stores

        _spare_proxies(store_uri)
        return mlflow_stores.registry_store_for(store_uri)
    from mlflow.tracking._model_registry.utils import _get_rest_store

    return _get_rest_store(store_uri)


_LINKS = "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"
_own_setting: "list[bool]" = []


def _print_links(wanted):
    """MLflow prints a link at the end of each run; to us it would lead nowhere, for want of a token in the browser."""
    if not wanted and _LINKS not in os.environ:
        os.environ[_LINKS] = "true"
        _own_setting.append(True)
    elif wanted and _own_setting:
        _own_setting.clear()
        os.environ.pop(_LINKS, None)


def __getattr__(name):
    if name == "ArtifactRepository":
        from . import mlflow_artifacts

        found = mlflow_artifacts.ArtifactRepository
    elif name == "NotebookContext":
        found = _make_context()
    else:
        raise AttributeError("module %r has no attribute %r" % (__name__, name))
    globals()[name] = found
    return found


def _spare_proxies(uri):
    """Keep calls to loopback off the user's HTTP proxy: it could not reach us, and would see the token."""
    host = uri.split("//", 1)[-1].split("/", 1)[0].rpartition(":")[0]
    names = ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "https_proxy", "HTTPS_PROXY")
    if host not in ("127.0.0.1", "localhost", "[::1]") or not any(os.environ.get(n) for n in names):
        return
    for name in ("no_proxy", "NO_PROXY"):
        listed = os.environ.get(name, "")
        if host not in listed.split(",") and (listed or name == "no_proxy"):
            os.environ[name] = ",".join(filter(None, [listed, "127.0.0.1", "localhost"]))


def job_spec():
    """The spec of the job that this process belongs to, or ``{}``."""
    return locate.read_json(os.path.join(os.environ.get("JUPYTER_MLOPS_JOB_DIR", ""), "spec.json"))


def _make_context():
    from mlflow.tracking.context.abstract_context import RunContextProvider

    class NotebookContext(RunContextProvider):
        """Tags new runs with the notebook, script or job that they come from; only where our workspace records."""

        def in_context(self):
            if not (os.environ.get("JPY_SESSION_NAME") or os.environ.get("JUPYTER_MLOPS_JOB") or _captured()):
                return False
            from mlflow.tracking._tracking_service.utils import get_tracking_uri

            return locate.is_ours(get_tracking_uri())

        def tags(self):
            tags = {}
            if os.environ.get("JUPYTERHUB_USER"):
                tags["mlflow.user"] = os.environ["JUPYTERHUB_USER"]
            if os.environ.get("JUPYTER_MLOPS_JOB"):
                tags["mlops.job"] = os.environ["JUPYTER_MLOPS_JOB"]
                spec = job_spec()
                cell = spec.get("cell") or {}
                source = cell.get("notebook") or spec.get("script") or redact.clean(spec.get("command") or "")
                if source:
                    tags["mlflow.source.name"] = source
                    tags["mlflow.source.type"] = "NOTEBOOK" if cell.get("notebook") else "LOCAL"
            else:
                if os.environ.get("JPY_SESSION_NAME"):
                    tags["mlflow.source.name"] = os.environ["JPY_SESSION_NAME"]
                    tags["mlflow.source.type"] = "NOTEBOOK"
                hooks = _captured()
                if hooks is not None:
                    try:
                        tags.update(hooks.run_tags())
                    except Exception:  # a run is worth more than its tags
                        pass
            return tags

    return NotebookContext
