"""What all handlers of the extension share: JSON errors with a hint, the authorizer, the way to the control plane."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qsl, unquote, urlencode

from jupyter_core.utils import ensure_async
from jupyter_server.base.handlers import APIHandler
from jupyter_server.extension.handler import ExtensionHandlerMixin
from tornado import web
from tornado.httputil import responses

from ..core.errors import Forbidden, MlopsError, ParameterError

if TYPE_CHECKING:
    from .app import MlopsApp
    from .link import Link

#: The one resource of ours that Jupyter's authorizer is asked about.
RESOURCE = "mlops"
_CODES = {400: "bad_parameter", 401: "unauthenticated", 403: "forbidden", 404: "not_found", 405: "bad_parameter",
          413: "too_large", 503: "unavailable"}


class Refusal(web.HTTPError):
    """An :class:`MlopsError` in the shape that tornado and Jupyter expect of a refused request."""

    def __init__(self, error: MlopsError) -> None:
        super().__init__(error.status, error.message)
        self.error = error


class OneSlot(web.RequestHandler):
    """A handler whose requests count against a limit from :meth:`take_slot` until they end, however they end."""

    mlops: MlopsApp
    _slot = ""

    def take_slot(self, kind: str, most: int) -> None:
        """Begin to count. Raises Unavailable when as many as allowed are under way."""
        self.mlops.take(kind, most)
        self._slot = kind

    def _release(self) -> None:
        kind, self._slot = self._slot, ""
        if kind:
            self.mlops.release(kind)

    def on_finish(self) -> None:
        self._release()
        super().on_finish()

    def on_connection_close(self) -> None:
        self._release()
        super().on_connection_close()


def error_body(status: int, error: BaseException | None) -> dict[str, Any]:
    """The JSON body for an error status."""
    if isinstance(error, Refusal):
        return error.error.body()
    if isinstance(error, MlopsError):
        return error.body()
    message = responses.get(status, "Unknown error")
    hint = ""
    if isinstance(error, web.HTTPError) and error.log_message:
        message = error.log_message % error.args
    elif status >= 500:
        message, hint = "unexpected error", "see the log of the Jupyter server"
    return {"message": message, "code": _CODES.get(status, "error"), "hint": hint}


def clean_path(raw: str) -> str:
    """The percent-encoded path, unchanged.

    Raises:
        Refusal: a segment, decoded, is ``.`` or ``..``, or holds a control character.
    """
    for segment in raw.split("/"):
        plain = unquote(segment)
        # Decoded, a slash inside a segment may hide more segments; MLflow's names may hold slashes, so look into them.
        if any(part in (".", "..") for part in plain.replace("\\", "/").split("/")):
            raise Refusal(ParameterError("the path has a relative segment", "name the resource itself"))
        if any(ord(c) < 32 or ord(c) == 127 for c in plain):
            raise Refusal(ParameterError("the path has a control character"))
    return raw


def clean_query(query: str, *drop: str) -> str:
    """The query without the parameters that are Jupyter's (``token`` and what tells activity), with ``?``, or empty."""
    unwanted = {"token", "no_track_activity", *drop}
    if not query:
        return ""
    if not any(name in query for name in unwanted) and "%" not in query:
        return "?" + query
    pairs = parse_qsl(query, keep_blank_values=True, errors="surrogateescape")
    if not any(k in unwanted for k, _ in pairs):
        return "?" + query
    kept = urlencode([(k, v) for k, v in pairs if k not in unwanted], errors="surrogateescape")
    return "?" + kept if kept else ""


class MlopsHandler(ExtensionHandlerMixin, APIHandler):
    """Base of the handlers behind Jupyter's login. Polled, so requests that only read are no activity."""

    auth_resource = RESOURCE

    @property
    def mlops(self) -> MlopsApp:
        """The extension app."""
        return cast("MlopsApp", self.extensionapp)

    @property
    def link(self) -> Link:
        """The way to the control plane."""
        return self.mlops.link

    @property
    def raw_path(self) -> str:
        """The request's path below ``jupyter-mlops``, with its slash, still percent-encoded."""
        return "/" + self.request.path[len(self.base_url) :].partition("/")[2]

    async def allowed(self, action: str) -> bool:
        """Whether Jupyter's authorizer allows the user ``read``, ``write`` or ``execute``."""
        user = self.current_user
        return bool(user) and bool(
            await ensure_async(self.authorizer.is_authorized(self, user, action, RESOURCE))
        )

    async def demand(self, action: str) -> None:
        """Return when the user may do that.

        Raises:
            Refusal: the authorizer, or the extension's own settings, forbid it.
        """
        if not self.current_user:
            raise web.HTTPError(403)
        if action != "read" and self.mlops.readonly:
            raise Refusal(Forbidden("this Jupyter server may only read the workspace", "see MlopsApp.readonly"))
        if action == "execute" and self.mlops.hide_launch:
            raise Refusal(Forbidden("training and deploying from the browser are switched off",
                                    "use the %mlops magics, or see MlopsApp.hide_launch"))
        if not await self.allowed(action):
            raise Refusal(Forbidden(f"user may not {action} on {RESOURCE}", "ask who runs this Jupyter server"))

    async def may_write(self) -> bool:
        """Whether the control plane shall give this request the rights of the owner."""
        return not self.mlops.readonly and await self.allowed("write")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Errors are ``{message, code, hint}``."""
        error = (kwargs.get("exc_info") or (None, None, None))[1]
        if status_code == 503:
            self.set_header("Retry-After", "1")
        self.set_header("Cache-Control", "no-store")
        self.finish(json.dumps(error_body(status_code, error)))

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """A refusal is no news; anything unexpected is."""
        if not isinstance(value, Refusal):
            super().log_exception(typ, value, tb)
