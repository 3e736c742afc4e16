"""The tornado application: every route of the control plane, and nothing else."""

from __future__ import annotations

import logging
import re
from typing import Any

from tornado import web

from . import local, routes
from .base import NotFoundHandler, OperationHandler
from .operations import API, ROOT, TABLE, Operation
from .plane import ControlPlane

log = logging.getLogger("jupyter_mlops.access")

assert routes  # imported for what it registers in TABLE


def _pattern(path: str) -> tuple[str, tuple[str, ...]]:
    names = tuple(re.findall(r"{(\w+)}", path))
    parts = re.split(r"{\w+}", path)
    return "([^/]+)".join(re.escape(p) for p in parts), names


def _log(handler: web.RequestHandler) -> None:
    status = handler.get_status()
    level = logging.WARNING if status >= 500 else logging.DEBUG
    # The path only: a query may hold what nobody should read in a log.
    log.log(level, "%s %s %d %.0f ms", handler.request.method, handler.request.path, status,
            1000 * handler.request.request_time())


def make_app(plane: ControlPlane) -> web.Application:
    """All routes: REST from the operation table, the MLflow proxy, the socket-only ones."""
    by_path: dict[str, dict[str, Operation]] = {}
    for op in TABLE:
        by_path.setdefault(op.path, {})[op.method] = op
    handlers: list[Any] = [*local.handlers()]
    for path, operations in by_path.items():
        pattern, names = _pattern(API + path)
        handler = next((op.handler for op in operations.values() if op.handler is not None), OperationHandler)
        handlers.append((pattern, handler, {"operations": operations, "parameters": names}))
    from .inside import ROUTE, InsideHandler
    from .mlflow_handler import MlflowHandler
    from .tensorboard import TensorboardHandler

    handlers.append((ROUTE, InsideHandler))
    handlers.append((re.escape(ROOT) + r"/mlflow(?:/(.*))?", MlflowHandler))
    handlers.append((re.escape(ROOT) + r"/tensorboard(?:/(.*))?", TensorboardHandler))
    return web.Application(
        handlers, default_handler_class=NotFoundHandler, log_function=_log, plane=plane, compress_response=False,
        autoreload=False,
    )
